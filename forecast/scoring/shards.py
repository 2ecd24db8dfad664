"""The shards of a cutoff: series are forecast and written a shard at a time, into the staging folder.

A thread writes one shard while the next is forecast, and the system reads the one after it, so memory holds only a few.
"""

import json
import mmap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path

import polars as pl

from forecast.config import ScoreOutput, ScoreSettings
from forecast.data.files import write_parquet_atomic
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.missing_known import carry_forward, series_missing_known
from forecast.data.panel import Panel
from forecast.names import (
    MEAN,
    MODEL_DIGEST,
    MODEL_NAME,
    REASON,
    SERIES_ID,
    SOURCE,
    STEP,
    sample_column,
)
from forecast.prediction.fallback import forecast_shard
from forecast.prediction.one_pass import BATCH_SIZE
from forecast.prediction.postprocess import forecast_columns
from forecast.scoring.cutoff_model import CutoffModel
from forecast.scoring.manifests import FORECASTS, KINDS, REJECTS, ForecastKey, Kind
from forecast.scoring.parts import (
    COLUMNS,
    PART,
    SHARD_ROWS,
    Part,
    Progress,
    ShardForecasts,
    clip_rows,
    complete_part,
    count_by,
    part_file,
    with_model,
)
from forecast.scoring.sinks.base import Files
from forecast.scoring.state import StateUpdate


@dataclass(frozen=True)
class CutoffRun:
    """The forecasts of one cutoff in the making."""

    cutoff: int
    """Grid index."""
    key: ForecastKey
    staging: Path
    published: dict[Kind, Path]
    """Folders with parts of an earlier job that may be complete, by kind."""
    update: StateUpdate | None
    seconds: dict[str, float]
    """Time by stage; forecasting and writing add theirs."""
    progress: Progress | None
    """Called with the number of series that are complete."""


class Shards:
    """Forecasts and writes the series of a panel, a shard at a time; `names` identifies the model."""

    def __init__(
        self, loaded: Loaded, model: CutoffModel, score: ScoreSettings, output: ScoreOutput, names: dict[str, str]
    ) -> None:
        self._loaded, self._model, self._score, self._output, self._names = loaded, model, score, output, names

    @property
    def _horizon(self) -> int:
        return self._model.artifact.horizon

    def digests(self, cutoff: int) -> list[str]:
        """Return a digest of what is visible at a cutoff of each shard."""
        digests = [shard.visible_digest(cutoff, self._horizon) for shard in self._panels()]
        self._loaded.panel.advise(mmap.MADV_DONTNEED)
        return digests

    def _panels(self) -> Iterator[Panel]:
        """Yield the shards; the system reads the pages of the next one ahead, and drops those of the last one."""
        panel = self._loaded.panel
        columns = 1 + self._output.n_samples // COLUMNS
        n_fitting = max(1, SHARD_ROWS // (self._horizon * columns))
        # Full batches, if at least one fits.
        size = self._score.shard_size or (n_fitting - n_fitting % BATCH_SIZE or n_fitting)
        shards = (panel.rows(first, min(first + size, panel.n_series)) for first in range(0, panel.n_series, size))
        for shard, following in pairwise(chain(shards, [None])):
            assert shard is not None
            if following is not None:
                following.advise(mmap.MADV_WILLNEED)
            yield shard
            shard.advise(mmap.MADV_DONTNEED)

    def write(self, run: CutoffRun, keys: Sequence[str]) -> tuple[list[Part], Files]:
        """Return the counts and the files of all shards; missing parts are forecast and written.

        `keys` are the digests of the inputs, [shard].
        """
        names = [f"part-{number:05d}-{digest[:16]}.parquet" for number, digest in enumerate(keys)]
        folders = {
            kind: [run.staging / kind, *([run.published[kind]] if kind in run.published else [])] for kind in KINDS
        }
        _remove_others(run.staging, {*names})
        run.seconds.update({"forecast": 0.0, "write": 0.0})

        pending: list[Part | Future[Part]] = []
        writing: Future[Part] | None = None
        n_series = 0
        with ThreadPoolExecutor(1) as writer:
            for shard, name in zip(self._panels(), names, strict=True):
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
        horizon, carried, refused = self._horizon, 0, None
        carried_states, state, counts = update.rows(shard) if update else (None, None, {})
        if len(shard.known) and self._score.missing_known == "carry_forward":
            context = self._model.artifact.network.shape.context_length
            shard, carried = carry_forward(shard, cutoff=cutoff, horizon=horizon, context=context)
        if len(shard.known) and self._score.missing_known == "quarantine":
            refused = series_missing_known(shard, self._loaded.data, cutoff=cutoff, horizon=horizon)
        forecasts = forecast_shard(
            self._model.weights,
            shard,
            cutoff,
            refused=refused,
            carried=carried_states,
            max_age=self._score.max_age,
            model_version=self._names["model_version"],
            samples=self._output.n_samples,
            forward=self._model.forward,
        )
        return ShardForecasts(forecasts, carried, state, counts)

    def _write_part(self, run: CutoffRun, shard_forecasts: ShardForecasts, name: str) -> Part:
        """Write the files of a shard; the forecasts come last, so their file marks a complete part."""
        stage_start = time.monotonic()
        artifact = self._model.artifact
        distribution_columns = forecast_columns(artifact)
        value_columns = list(distribution_columns) if artifact.classes else [MEAN, *distribution_columns]
        value_columns += map(sample_column, range(self._output.n_samples))
        frame, bounded = clip_rows(shard_forecasts.forecasts.frame, value_columns, self._output.min, self._output.max)
        assert frame.select(pl.all_horizontal(pl.col(value_columns).is_finite().all())).item(), (
            "a forecast is not finite"
        )
        frame = frame.with_columns(
            pl.lit(self._names["model"]).alias(MODEL_NAME), pl.lit(self._names["model_digest"]).alias(MODEL_DIGEST)
        )
        rejects = shard_forecasts.forecasts.rejects.cast(pl.Schema(self._loaded.rejects.schema)).sort(SERIES_ID)
        rejects = with_model(rejects, self._names, run.key.cutoff)
        part = Part(
            series=frame.height // self._horizon,
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


def _remove_others(staging: Path, names: set[str]) -> None:
    """Remove the parts of other inputs from a staging folder."""
    for kind in KINDS:
        for file in (staging / kind).glob("*"):
            if file.name not in names:
                file.unlink()
