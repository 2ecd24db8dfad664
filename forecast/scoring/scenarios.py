"""Scenarios: forecasts with other known covariates, beside the plain ones of the same version and cutoff.

    scenarios/NAME/forecasts/..., manifests/...          as in output.path, with the column scenario
    scenarios/NAME/differences/KEY.parquet               the means of both, and their difference

The past of a scenario is that of the plain forecasts: only known covariates after the cutoff may differ.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.config import ScoreOutput
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.missing_known import missing_known
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, listing
from forecast.forecasting_model import ForecastingModel
from forecast.names import SCENARIOS, SERIES_ID, STEP
from forecast.scoring.content import PAST, past_of
from forecast.scoring.manifests import FAILED_SHARDS, MANIFESTS, ForecastKey, read_manifest
from forecast.scoring.sinks.parquet import ParquetSink

BASE_KEY: Final = "base_key"
"""Field of a scenario's manifest: the key of the plain forecasts that it is compared with."""
_COMPARED: Final = {
    "config_digest": "settings (output.sink, min, max or n_samples, score.missing_known, max_age or state)",
    "overrides_digest": "overrides",
    "cold_digest": "score.cold_start",
    "runtime": "score.runtime",
    "code": "a version of gatecast",
    "horizon": "a horizon",
}

Reread = Callable[[Mapping[str, Any]], Panel | None]


class Scenario:
    """A scenario of the forecasts in `output.path`.

    `reread` returns the panel of plain forecasts from the tables that their manifest names, None if it can't be read;
    it is needed only to name the series whose past differs. Raises ConfigError for a model that no scenario affects.
    """

    def __init__(
        self,
        name: str,
        output: ScoreOutput,
        artifact: ForecastingModel,
        loaded: Loaded,
        reread: Reread = lambda _: None,
    ) -> None:
        if artifact.classes is not None:
            raise ConfigError("score.scenario compares numbers; this model forecasts classes")
        if not len(loaded.panel.known) and not len(loaded.panel.available):
            raise ConfigError(
                f"score.scenario={name}: this model has no known covariates (data.known_covariates) that a scenario "
                "could change"
            )
        self.name, self.base = name, Path(output.path)
        self.output = output.model_copy(update={"path": str(self.base / SCENARIOS / name)})
        self._loaded, self._reread = loaded, reread

    def check(self, key: ForecastKey, cutoff: int, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Return the inputs of the scenario that identify the plain forecasts of a cutoff, a grid index.

        `inputs` are those of the scenario. Raises DataError if there are no plain forecasts by this version, with other
        settings, or with another past; or if the scenario lacks known covariates over the horizon.
        """
        content = self.base_manifest(key)
        differing = [label for name, label in _COMPARED.items() if content.get(name) != inputs.get(name)]
        if differing:
            raise self._error(
                content, f"were written with other {listing(differing)}; use the same, or score them again"
            )
        if FAILED_SHARDS in content:
            raise self._error(content, "lack the series of shards that failed; run their job again")
        if PAST not in content:
            raise self._error(
                content, "are of a release that does not record their past; write them again with score.force=true"
            )
        self._check_past(content, cutoff, inputs["horizon"])
        self._check_horizon(content, cutoff, inputs["horizon"])
        return {BASE_KEY: content["key"]}

    def base_manifest(self, key: ForecastKey) -> dict[str, Any]:
        """Return the manifest of the plain forecasts of a key. Raises DataError if there is none."""
        path = self.base / MANIFESTS / key.manifest
        if not path.is_file():
            raise DataError(
                f"score.scenario={self.name}: {self.base} has no forecasts from {key.cutoff.isoformat()} by "
                f"{key.model} v{key.version} to compare with; write them first, without score.scenario and with "
                "the known covariates as planned"
            )
        return read_manifest(path)

    def base_rows(self, content: Mapping[str, Any]) -> pl.LazyFrame:
        """Return the plain forecasts of a manifest. Raises OutputError for missing files."""
        return pl.concat(ParquetSink(self.base).forecasts(content), how="diagonal_relaxed")

    def _error(self, content: Mapping[str, Any], problem: str) -> DataError:
        return DataError(f"score.scenario={self.name}: the forecasts from {content['cutoff']} in {self.base} {problem}")

    def _check_past(self, content: Mapping[str, Any], cutoff: int, horizon: int) -> None:
        """Raise DataError if anything but the known covariates after the cutoff differs."""
        expected, panel = content[PAST], self._loaded.panel
        size = int(expected["shard_size"])
        if _past(panel, size, cutoff, horizon) == expected:
            return
        base = self._reread(content)
        if base is not None and _past(base, size, cutoff, horizon) == expected:
            reasons = [f"{kind}: {len(ids):,} series ({listing(ids)})" for kind, ids in changes(base, panel, cutoff)]
            where = "; ".join(reasons)
        else:
            shards = [panel.rows(n, min(n + size, panel.n_series)) for n in range(0, panel.n_series, size)]
            digests = _past(panel, size, cutoff, horizon)["digests"]
            pairs = zip(shards, digests, [*expected["digests"], *([None] * len(digests))], strict=False)
            spans = [f"{shard.series_id[0]} to {shard.series_id[-1]}" for shard, new, old in pairs if new != old]
            where = f"among the series {listing(spans)}" if spans else "the last series are missing"
            where += "; their tables can't be read as they were, so the history may have been revised"
        raise self._error(
            content,
            "have another past: a scenario may change known covariates after the cutoff only, and the inputs at or "
            f"before it differ: {where}",
        )

    def _check_horizon(self, content: Mapping[str, Any], cutoff: int, horizon: int) -> None:
        """Raise DataError if series with forecasts lack known covariates after the cutoff."""
        missing = missing_known(self._loaded.panel, self._loaded.data, horizon=horizon, cutoff=cutoff)
        missing = missing.filter(pl.col("missing_horizon") > 0)
        if missing.is_empty():
            return
        rows = self.base_rows(content).filter(pl.col(STEP) == 1).select(SERIES_ID).collect()
        missing = missing.join(rows, on=SERIES_ID, how="semi")
        if missing.height:
            ids = missing[SERIES_ID].unique().sort()
            raise DataError(
                f"score.scenario={self.name}: {missing['missing_horizon'].sum():,} cells of "
                f"{listing(missing['covariate'].unique().sort())} are missing in the {horizon:,} steps after "
                f"{content['cutoff']}, in {len(ids):,} series: {listing(ids)}; the table of a scenario has all rows of "
                "the plan, also those that stay as they are"
            )


def scenarios_in(folder: Path) -> list[str]:
    """Return the names of the scenarios with forecasts in a scores folder."""
    return sorted(path.parent.name for path in (folder / SCENARIOS).glob(f"*/{MANIFESTS}"))


def scenario_folder(folder: Path, name: str) -> Path:
    """Return the folder of a scenario. Raises DataError if it has no forecasts."""
    names = scenarios_in(folder)
    if name not in names:
        raise DataError(f"{folder}: no scenario {name}; there are: {listing(names) or 'none'}")
    return folder / SCENARIOS / name


def _past(panel: Panel, size: int, cutoff: int, horizon: int) -> dict[str, Any]:
    """Return the field PAST of a panel."""
    shards = (panel.rows(n, min(n + size, panel.n_series)) for n in range(0, panel.n_series, size))
    return past_of(size, [shard.in_memory().visible_digests(cutoff, horizon)[0] for shard in shards])


def changes(base: Panel, panel: Panel, cutoff: int) -> list[tuple[str, list[str]]]:
    """Return the series of two panels that differ at or before a cutoff, a grid index, by the kind of input."""
    base, panel = base.in_memory(), panel.in_memory()
    numbers = ({name: number for number, name in enumerate(one.series_id.tolist())} for one in (base, panel))
    old, new = numbers
    differing: dict[str, list[str]] = {
        "only in the forecasts": sorted(old.keys() - new.keys()),
        "only in the scenario": sorted(new.keys() - old.keys()),
    }
    for name in sorted(old.keys() & new.keys()):
        before, after = _visible(base, old[name], cutoff), _visible(panel, new[name], cutoff)
        for kind, values in before.items():
            if not np.array_equal(values, after[kind], equal_nan=True):
                differing.setdefault(kind, []).append(name)
    return [(kind, ids) for kind, ids in differing.items() if ids]


def _visible(panel: Panel, number: int, cutoff: int) -> dict[str, Any]:
    """Return what is visible of a series at a cutoff, by the kind of input."""
    start, end = int(panel.start[number]), int(cutoff + 1)
    begin, length = int(panel.offsets[number]), int(panel.lengths[number])
    steps = slice(begin, begin + min(max(end - start, 0), length))
    first = begin + number * panel.horizon
    ahead = slice(first, first + min(max(end - start, 0), length + panel.horizon))
    return {
        "start": np.array([min(start, end)]),
        "target": panel.target[steps],
        "past covariates": panel.past[:, steps],
        "known covariates": panel.known[:, ahead],
        "availability": panel.available[:, ahead],
        "static covariates": np.concatenate([panel.static_categories[number], panel.static_numbers[number]]),
    }
