"""The difference between the forecasts of a scenario and the plain ones, by series and step."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.files import parquet_blocks
from forecast.errors import OutputError
from forecast.names import CUTOFF, MEAN, SCENARIO, SERIES_ID, STEP, TIMESTAMP
from forecast.scoring.manifests import ForecastKey, read_manifests
from forecast.scoring.scenarios import BASE_KEY, Scenario
from forecast.scoring.sinks.parquet import ParquetSink

DIFFERENCES: Final = "differences"
MEAN_BASE: Final = "mean_base"
MEAN_SCENARIO: Final = "mean_scenario"
DIFFERENCE: Final = "difference"
RELATIVE: Final = "relative"
_N_LARGEST: Final = 50
_MEANS: Final = [MEAN_BASE, MEAN_SCENARIO]


@dataclass(frozen=True)
class Difference:
    """The difference of a scenario at one cutoff."""

    file: Path
    """series_id, timestamp, cutoff, step, scenario, mean_base, mean_scenario, difference, and relative, which is the
    difference divided by the absolute value of mean_base, null where that is 0."""
    by_step: pl.DataFrame
    """step, mean_base, mean_scenario and difference, summed over all series."""
    largest: pl.DataFrame
    """series_id, mean_base, mean_scenario, difference, summed over the steps, of series with the largest difference."""
    n_series: int
    n_changed: int
    """Number of series whose forecast differs."""

    @property
    def base(self) -> float:
        """The sum of all plain forecasts."""
        return float(self.by_step[MEAN_BASE].sum())

    @property
    def scenario(self) -> float:
        """The sum of all forecasts of the scenario."""
        return float(self.by_step[MEAN_SCENARIO].sum())

    def rows(self) -> pl.DataFrame:
        """Return the rows of the largest series. Raises OutputError for a missing file."""
        ids = self.largest[SERIES_ID].to_list()
        return pl.scan_parquet(self.file).filter(pl.col(SERIES_ID).is_in(ids)).collect()

    def __str__(self) -> str:
        share = f" ({(self.scenario - self.base) / abs(self.base):+.1%})" if self.base else ""
        return (
            f"total {self.base:,.6g} -> {self.scenario:,.6g}{share}, {self.n_changed:,} of {self.n_series:,} series "
            "differ"
        )


def write_difference(scenario: Scenario, content: Mapping[str, Any]) -> Difference:
    """Write the difference of a manifest of a scenario, a part at a time, and return what a page shows of it.

    Raises DataError, OutputError if the plain forecasts are not those that the scenario was compared with.
    """
    key = ForecastKey.of(content)
    folder = Path(scenario.output.path)
    base_content = scenario.base_manifest(key)
    if base_content["key"] != content[BASE_KEY]:
        raise OutputError(f"{scenario.base}: the forecasts from {content[CUTOFF]} have changed meanwhile; run again")
    base = scenario.base_rows(base_content)
    file = folder / DIFFERENCES / f"{key.folder}.parquet"
    remaining = {ForecastKey.of(other).folder for other in read_manifests(folder)}
    for other in file.parent.glob("*.parquet"):
        if other.stem not in remaining:
            other.unlink()  # Of a cutoff that `forecast retain` has freed.
    steps, largest, n_series, n_changed = [], [], 0, 0
    with parquet_blocks(file) as write:
        for part in ParquetSink(folder).forecasts(content):
            rows = difference(base, part.collect())
            write(rows)
            steps.append(rows.group_by(STEP).agg(pl.col(*_MEANS, DIFFERENCE).sum()))
            by_series = rows.group_by(SERIES_ID).agg(
                pl.col(*_MEANS, DIFFERENCE).sum(), changed=(pl.col(DIFFERENCE) != 0).any()
            )
            n_series, n_changed = n_series + by_series.height, n_changed + int(by_series["changed"].sum())
            largest.append(_largest(by_series.drop("changed")))
    if n_series != base_content["series"]["forecast"] or n_series != content["series"]["forecast"]:
        raise OutputError(
            f"score.scenario={scenario.name}: {n_series:,} series have both forecasts, of "
            f"{base_content['series']['forecast']:,} plain ones and {content['series']['forecast']:,} of the scenario"
        )
    by_step = pl.concat(steps).group_by(STEP).agg(pl.all().sum()).sort(STEP)
    return Difference(file, by_step, _largest(pl.concat(largest)), n_series, n_changed)


def difference(base: pl.LazyFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the difference of some forecasts of a scenario, sorted by series and step."""
    ids = rows[SERIES_ID]
    plain = base.filter(pl.col(SERIES_ID).is_between(pl.lit(ids.min()), pl.lit(ids.max())))
    joined = rows.select(SERIES_ID, TIMESTAMP, CUTOFF, STEP, SCENARIO, pl.col(MEAN).alias(MEAN_SCENARIO)).join(
        plain.select(SERIES_ID, STEP, pl.col(MEAN).alias(MEAN_BASE)).collect(),
        on=[SERIES_ID, STEP],
        maintain_order="left",
    )
    change, size = pl.col(MEAN_SCENARIO) - pl.col(MEAN_BASE), pl.col(MEAN_BASE).abs()
    return joined.select(
        *(SERIES_ID, TIMESTAMP, CUTOFF, STEP, SCENARIO, *_MEANS),
        change.alias(DIFFERENCE),
        pl.when(size > 0).then(change / size).alias(RELATIVE),
    )


def _largest(by_series: pl.DataFrame) -> pl.DataFrame:
    order = [pl.col(DIFFERENCE).abs(), pl.col(SERIES_ID)]
    return by_series.sort(order, descending=[True, False]).head(_N_LARGEST)
