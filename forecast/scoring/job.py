"""A scoring job: it writes forecasts, rejects and, last, a manifest for each cutoff.

    .lock                                                held by the job that writes here
    shadow/                                              all of this for the version of score.shadow
    .staging/KEY/forecasts/part-00007-1f2e....parquet    a complete shard; rejects are beside the forecasts
    manifests/cutoff=....json                            counts, versions, and the contents of the sink
    latest/MODEL.parquet                                 the forecasts of the latest cutoff, for other tools

KEY is a cutoff and a version of a model. Several models may write to a folder; each replaces its own forecasts only.

Shards are staged, and given to the sink once all are complete. The name of a part holds its key, a digest of all inputs
of its content, so a killed job resumes with the parts that are complete.
"""

import json
import mmap
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import ScoreOutput, ScoreSettings
from forecast.data.ages import ENDED
from forecast.data.files import write_parquet_atomic, write_text_atomic
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.missing_known import carry_forward, missing_known, series_missing_known
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, listing
from forecast.models.runtime.onnx import Forward, OnnxForecaster, is_faster
from forecast.names import (
    CUTOFF,
    MEAN,
    MODEL_DIGEST,
    MODEL_NAME,
    MODEL_VERSION,
    REASON,
    SERIES_ID,
    SOURCE,
    SOURCE_FINE_TUNED,
    SOURCE_LAST_VALUE,
    SOURCE_PRETRAINED,
    SOURCE_SEASONAL_NAIVE,
    STEP,
    TIMESTAMP,
    sample_column,
)
from forecast.prediction.cutoffs import check_cutoff, check_model
from forecast.prediction.fallback import forecast_shard
from forecast.prediction.one_pass import BATCH_SIZE
from forecast.prediction.paths import with_samples
from forecast.prediction.postprocess import forecast_columns
from forecast.scoring.latest import write_latest
from forecast.scoring.manifests import FORECASTS, KINDS, LAYOUT, MANIFESTS, REJECTS, ForecastKey, Kind, legacy_key
from forecast.scoring.parts import (
    COLUMNS,
    PART,
    SHARD_ROWS,
    Output,
    Part,
    Progress,
    ShardForecasts,
    clip_rows,
    complete_part,
    count_by,
    digest_of,
    frame_digest,
    part_file,
    read_if_valid,
)
from forecast.scoring.sinks.base import Files, Sink
from forecast.scoring.sinks.open import open_sink
from forecast.scoring.state import StateUpdate

_PUBLISHING: Final = "publishing"
"""File in the staging folder while the sink takes over the shards; it marks an interrupted publication."""


@dataclass(frozen=True)
class _CutoffRun:
    """The forecasts of one cutoff in the making."""

    cutoff: int
    """Grid index."""
    key: ForecastKey
    staging: Path
    update: StateUpdate | None
    seconds: dict[str, float]
    """Time by stage; forecasting and writing add theirs."""
    progress: Progress | None
    """Called with the number of series that are complete."""


class ScoreJob:
    """Writes the forecasts of a model on a panel, cutoff by cutoff. The caller holds the locks of its folders.

    `names` identifies the model: model, model_version and model_digest; `run_id` is the MLflow run of the job. Raises
    ConfigError and OutputError for settings that the model or the sink does not support.
    """

    def __init__(
        self,
        artifact: Artifact,
        loaded: Loaded,
        score: ScoreSettings,
        output: ScoreOutput,
        names: dict[str, str],
        *,
        run_id: str = "",
    ) -> None:
        if artifact.classes is not None and (output.min is not None or output.max is not None):
            raise ConfigError("output.min and output.max are for numbers; this model forecasts classes")
        if score.state is not None:
            check_model(artifact)
        if output.n_samples:
            if artifact.classes is not None:
                raise ConfigError("output.n_samples is for numbers; fc.sample_paths() gives the paths of classes")
            artifact = with_samples(artifact, output.n_samples, "output.n_samples")
        self.artifact, self.loaded = artifact, loaded
        self._score, self._output, self.names, self._run_id = score, output, names, run_id
        self.folder = Path(output.path)
        self._sink: Sink = open_sink(output)
        self._sink.check()
        self._rows_written = False
        self._weights = artifact.latest
        """The model with the weights for the current cutoff."""
        self._forward = self._runtime()
        for leftover in (self.folder / MANIFESTS).glob(".*.tmp"):  # Left by a killed job.
            leftover.unlink()
        for staging in (self.folder / ".staging").glob(f"{CUTOFF}=*"):  # Left by an earlier release.
            shutil.rmtree(staging, ignore_errors=True)

    def write(self, cutoff: int, progress: Progress | None = None) -> Output:
        """Write the forecasts from a cutoff, a grid index, unless they exist already.

        Series are forecast in shards, so memory holds only a few at a time: a thread writes one while the next is
        forecast, and the system reads the one after it. The same inputs give the same bytes. Raises DataError as
        `check_cutoff`, and for missing known covariates if score.missing_known=fail; OutputError if writing fails.
        """
        panel, horizon = self.loaded.panel, self.artifact.horizon
        job_start = stage_start = time.monotonic()
        check_cutoff(panel, cutoff)
        self._select_weights(cutoff)
        moment = panel.grid.timestamps(np.array([cutoff]))[0]
        self._check_known(cutoff)
        digests = [shard.visible_digest(cutoff, horizon) for shard in self._shards()]
        panel.advise(mmap.MADV_DONTNEED)
        inputs = {"cutoff": moment.isoformat(), **self._inputs}
        keys = [digest_of(inputs, digest) for digest in digests]
        data_digest, digest = digest_of(digests), digest_of(inputs, keys)
        seconds = {"check": time.monotonic() - stage_start}

        key = ForecastKey(moment, self.names["model"], self.names["model_version"], self.names["model_digest"])
        manifest, staging = self.folder / MANIFESTS / key.manifest, self.folder / ".staging" / key.folder
        if self._score.force:
            shutil.rmtree(staging, ignore_errors=True)
        elif manifest_content := read_if_valid(manifest):
            inventory = self._sink.inventory(key)
            is_same = manifest_content.get("key") == digest and all(
                manifest_content.get(name) == value for name, value in inventory.items()
            )
            if is_same and not (staging / _PUBLISHING).exists():
                shutil.rmtree(staging, ignore_errors=True)
                self._write_rows()
                return Output(
                    manifest, self._make_current(manifest_content, manifest), was_complete=True, seconds=seconds
                )
            for name, expected in manifest_content.get("files", {}).items():
                if inventory.get("files", {}).get(name, expected) != expected:
                    (self.folder / name).unlink()  # Changed or damaged since then.

        update = self._update(cutoff)
        parts, files = self._parts(_CutoffRun(cutoff, key, staging, update, seconds, progress), keys)
        stage_start = time.monotonic()
        content = self._content(inputs | {"data_digest": data_digest, "key": digest}, parts)
        content["columns"] = list(pl.read_parquet_schema(files[FORECASTS][0])) if files[FORECASTS] else []
        self._check_sources(content)
        if update:
            update.publish()  # A job that resumes recomputes unpublished forecasts from it, with the same result.
        self._write_rows()
        write_text_atomic("", staging / _PUBLISHING)
        content |= self._sink.replace(key, files, content)
        write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
        self._sink.clean(key, files)
        if legacy := legacy_key(self.folder, key):
            (self.folder / MANIFESTS / legacy.manifest).unlink()
        (staging / _PUBLISHING).unlink()
        shutil.rmtree(staging)
        seconds |= {"publish": time.monotonic() - stage_start, "all": time.monotonic() - job_start}
        return Output(manifest, content, was_complete=False, seconds=seconds)

    def write_latest(self) -> None:
        """Write the forecasts of the latest cutoff of this model into latest/, unless they are there already."""
        if self._output.latest and self._output.sink != "sql":
            write_latest(self.folder, self._sink, self.names["model"])

    def _make_current(self, content: dict[str, Any], manifest: Path) -> dict[str, Any]:
        """Return the manifest of existing forecasts, made current again if another version has superseded them."""
        if self._sink.is_superseded(content):
            content["current_since"] = datetime.now(UTC).isoformat()
            self._sink.record(content)
            write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
        return content

    def _write_rows(self) -> None:
        """Replace the rejects of reading, which belong to no cutoff; once per job."""
        if self._rows_written:
            return
        rejects = self._with_model(self.loaded.rejects, None).with_columns(
            pl.lit(None, pl.String).alias(MODEL_VERSION), pl.lit(None, pl.String).alias(MODEL_DIGEST)
        )
        self._sink.replace_rows(self.names["model"], rejects, frame_digest(rejects))
        self._rows_written = True

    def _with_model(self, rejects: pl.DataFrame, cutoff: datetime | None) -> pl.DataFrame:
        """Return rejects with columns for the cutoff and the names of the model, as in the forecasts."""
        return rejects.with_columns(
            pl.lit(cutoff).cast(rejects.schema[TIMESTAMP]).alias(CUTOFF),
            pl.lit(self.names["model_version"]).alias(MODEL_VERSION),
            pl.lit(self.names["model"]).alias(MODEL_NAME),
            pl.lit(self.names["model_digest"]).alias(MODEL_DIGEST),
        )

    def _select_weights(self, cutoff: int) -> None:
        """Select the weights for a cutoff, in the runtime in use."""
        weights = self.artifact.for_cutoff(cutoff)
        if weights is not self._weights and self._forward is not None:
            self._forward = OnnxForecaster(weights.network)
        self._weights = weights

    def _runtime(self) -> Forward | None:
        """Return the ONNX runtime of the network, None to run it in torch.

        The choice of score.runtime=auto is kept in the folder: files must not depend on the load of the machine.
        """
        if self._score.runtime == "torch" or self._score.state is not None:
            return None  # An ONNX graph cannot resume from a state.
        if self._score.runtime == "onnx":
            return OnnxForecaster(self._weights.network)
        choice_file = self.folder / f".runtime-{self.names['model_digest'][:16]}"
        with suppress(OSError):
            if choice_file.read_text() == "torch":
                return None
        try:
            onnx = OnnxForecaster(self._weights.network)
        except ConfigError:  # Not installed, or unable to run this model.
            return None
        if choice_file.exists():
            return onnx
        faster = is_faster(onnx, self._weights.network, min(self.loaded.panel.n_series, BATCH_SIZE))
        write_text_atomic("onnx" if faster else "torch", choice_file)
        return onnx if faster else None

    @cached_property
    def _inputs(self) -> dict[str, str | int]:
        """Inputs of the forecasts besides the cutoff and the panel, as recorded in the manifest."""
        output = self._output.model_dump(mode="json", include={"sink", "uri", "table", "min", "max", "n_samples"})
        settings = {**output, "missing_known": self._score.missing_known, "max_age": self._score.max_age}
        if self._score.state is not None:
            settings["state"] = "carried"
        return {
            "layout": LAYOUT,
            "horizon": self.artifact.horizon,
            **self.names,
            "runtime": "torch" if self._forward is None else "onnx",
            "config_digest": digest_of(settings),
            "code": f"gatecast {version('gatecast')}",
        }

    def _update(self, cutoff: int) -> StateUpdate | None:
        if self._score.state is None:
            return None
        folder = Path(self._score.state)
        if (
            self._weights is not self.artifact.latest
        ):  # The weights of the final fit keep their own state beside this one.
            folder /= "evaluated"
        return StateUpdate(folder, self._weights, self.loaded.panel, cutoff, self.names["model_digest"])

    def _shards(self) -> Iterator[Panel]:
        """Yield the shards; the system reads the pages of the next one ahead, and drops those of the last one."""
        panel = self.loaded.panel
        columns = 1 + self._output.n_samples // COLUMNS
        n_fitting = max(1, SHARD_ROWS // (self.artifact.horizon * columns))
        # Full batches, if at least one fits.
        size = self._score.shard_size or (n_fitting - n_fitting % BATCH_SIZE or n_fitting)
        shards = (panel.rows(first, min(first + size, panel.n_series)) for first in range(0, panel.n_series, size))
        for shard, following in pairwise(chain(shards, [None])):
            assert shard is not None
            if following is not None:
                following.advise(mmap.MADV_WILLNEED)
            yield shard
            shard.advise(mmap.MADV_DONTNEED)

    def _check_known(self, cutoff: int) -> None:
        if self._score.missing_known != "fail":
            return
        horizon = self.artifact.horizon
        missing = missing_known(self.loaded.panel, self.loaded.data, horizon=horizon, cutoff=cutoff)
        missing = missing.filter(pl.col("missing_horizon") > 0)
        if missing.height:
            names = missing[SERIES_ID].unique(maintain_order=True)
            raise DataError(
                f"{missing['missing_horizon'].sum():,} cells of {listing(missing['covariate'].unique().sort())} are "
                f"missing over the horizon, in {len(names):,} series: {listing(names)}; mend the table, or set "
                "score.missing_known to mask, quarantine or carry_forward"
            )

    def _parts(self, run: _CutoffRun, keys: Sequence[str]) -> tuple[list[Part], Files]:
        """Return the counts and the files of all shards; missing parts are forecast and written.

        `keys` are the digests of the inputs, [shard].
        """
        folders = {kind: [run.staging / kind] for kind in KINDS}
        if not self._score.force:
            for kind in KINDS:
                if final := self._sink.folder(kind, run.key):
                    folders[kind].append(final)
        names = [f"part-{number:05d}-{digest[:16]}.parquet" for number, digest in enumerate(keys)]
        expected_names = {*names}
        for kind in KINDS:
            for file in (run.staging / kind).glob("*"):
                if file.name not in expected_names:
                    file.unlink()
        run.seconds.update({"forecast": 0.0, "write": 0.0})

        pending: list[Part | Future[Part]] = []
        writing: Future[Part] | None = None
        n_series = 0
        with ThreadPoolExecutor(1) as writer:
            for shard, name in zip(self._shards(), names, strict=True):
                part = complete_part(name, folders) if run.update is None or run.update.has(name, shard) else None
                if part is None:
                    start = time.monotonic()
                    shard_forecasts = self._forecast(shard, run.cutoff, run.update)
                    run.seconds["forecast"] += time.monotonic() - start
                    if writing:
                        writing.result()  # One write at a time bounds memory, and an error ends the job.
                    writing = writer.submit(self._write_part, run, shard_forecasts, name)
                    pending.append(writing)
                    del shard_forecasts
                else:
                    pending.append(part)
                n_series += shard.n_series
                if run.progress:
                    run.progress(n_series)
            parts = [part.result() if isinstance(part, Future) else part for part in pending]
        files: dict[Kind, list[Path]] = {
            kind: [path for name in names if (path := part_file(name, folders[kind])) is not None] for kind in KINDS
        }
        return parts, files

    def _forecast(self, shard: Panel, cutoff: int, update: StateUpdate | None) -> ShardForecasts:
        """Return the forecasts of a shard."""
        horizon, carried, refused = self.artifact.horizon, 0, None
        carried_states, state, counts = update.rows(shard) if update else (None, None, {})
        if len(shard.known) and self._score.missing_known == "carry_forward":
            context = self.artifact.network.shape.context_length
            shard, carried = carry_forward(shard, cutoff=cutoff, horizon=horizon, context=context)
        if len(shard.known) and self._score.missing_known == "quarantine":
            refused = series_missing_known(shard, self.loaded.data, cutoff=cutoff, horizon=horizon)
        forecasts = forecast_shard(
            self._weights,
            shard,
            cutoff,
            refused=refused,
            carried=carried_states,
            max_age=self._score.max_age,
            model_version=self.names["model_version"],
            samples=self._output.n_samples,
            forward=self._forward,
        )
        return ShardForecasts(forecasts, carried, state, counts)

    def _write_part(self, run: _CutoffRun, shard_forecasts: ShardForecasts, name: str) -> Part:
        """Write the files of a shard; the forecasts come last, so their file marks a complete part."""
        stage_start = time.monotonic()
        distribution_columns = forecast_columns(self.artifact)
        value_columns = list(distribution_columns) if self.artifact.classes else [MEAN, *distribution_columns]
        value_columns += map(sample_column, range(self._output.n_samples))
        frame, bounded = clip_rows(shard_forecasts.forecasts.frame, value_columns, self._output.min, self._output.max)
        assert frame.select(pl.all_horizontal(pl.col(value_columns).is_finite().all())).item(), (
            "a forecast is not finite"
        )
        frame = frame.with_columns(
            pl.lit(self.names["model"]).alias(MODEL_NAME), pl.lit(self.names["model_digest"]).alias(MODEL_DIGEST)
        )
        rejects = shard_forecasts.forecasts.rejects.cast(pl.Schema(self.loaded.rejects.schema)).sort(SERIES_ID)
        rejects = self._with_model(rejects, run.key.cutoff)
        part = Part(
            series=frame.height // self.artifact.horizon,
            rejected=rejects.height,
            sources=count_by(frame.filter(pl.col(STEP) == 1), SOURCE),
            rejects=count_by(rejects, REASON),
            bounded=bounded,
            carried=shard_forecasts.carried,
            state=shard_forecasts.counts,
        )
        if run.update and shard_forecasts.state:
            run.update.save(name, shard_forecasts.state)
        if rejects.height:
            write_parquet_atomic(rejects, run.staging / REJECTS / name)
        write_parquet_atomic(frame, run.staging / FORECASTS / name, {PART: json.dumps(asdict(part))})
        run.seconds["write"] += time.monotonic() - stage_start
        return part

    def _check_sources(self, content: dict[str, Any]) -> None:
        """Raise DataError if the model itself forecast no series, or less than score.min_model_share."""
        sources, series = content["sources"], content["series"]
        n_model = sum(sources.get(name, 0) for name in (SOURCE_FINE_TUNED, SOURCE_PRETRAINED))
        if n_model and n_model >= self._score.min_model_share * series["forecast"]:
            return
        fallbacks = [
            f"{sources[name]:,} {name}" for name in (SOURCE_SEASONAL_NAIVE, SOURCE_LAST_VALUE) if name in sources
        ]
        ended = content["rejects"].get(ENDED, 0)
        of_which = f", {ended:,} of them {ENDED} (score.max_age={self._score.max_age})" if ended else ""
        rejected = [f"{series['rejected']:,} rejected{of_which}"] if series["rejected"] else []
        raise DataError(
            f"the model forecast {n_model:,} of {series['forecast']:,} series at {content['cutoff']} "
            f"(score.min_model_share={self._score.min_model_share:g}; {listing([*fallbacks, *rejected])}), so nothing "
            "is published. It gives no finite forecast of a series without a value in its last "
            f"{self.artifact.network.shape.context_length:,} steps; check the cutoff and the newest rows of the table, "
            "or take another version"
        )

    def _content(self, versions: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
        """Return the manifest without the inventory of the sink, after checking that no series and no row is lost."""
        counts = self.loaded.counts
        series, rejected = sum(part.series for part in parts), sum(part.rejected for part in parts)
        rejected += counts.series_rejected
        assert series + rejected == counts.series_in, "a series was lost"
        rejects = Counter(count_by(self.loaded.rejects, REASON))
        sources: Counter[str] = Counter()
        bounded: Counter[str] = Counter()
        state: Counter[str] = Counter()
        for part in parts:
            rejects.update(part.rejects)
            sources.update(part.sources)
            bounded.update(part.bounded)
            state.update(part.state)
        assert sources.total() == series, "a source was lost"
        return {
            **versions,
            "trained_until": self._weights.trained_until_timestamp.isoformat(),
            "run_id": self._run_id or None,
            "written_at": datetime.now(UTC).isoformat(),
            "series": {"in": counts.series_in, "forecast": series, "rejected": rejected},
            "rows": {
                "in": counts.rows_in,
                "kept": counts.rows_kept,
                "rejected": counts.rows_rejected,
                "future": counts.rows_future,
                "after_until": counts.rows_after_until,
                "written": series * self.artifact.horizon,
                "refused": sum(part.rejected for part in parts),
            },
            "sources": dict(sorted(sources.items())),
            "rejects": dict(sorted(rejects.items())),
            "bounded": dict(sorted(bounded.items())),
            "carried_forward": sum(part.carried for part in parts),
            "state": dict(sorted(state.items())),
        }
