"""One shard of a cutoff: some neighbouring series are forecast, and their files are written."""

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from forecast.bundle.bundle import Bundle
from forecast.bundle.predictor import BundleModel
from forecast.config import ScoreOutput, ScoreSettings
from forecast.data.files import write_parquet_atomic
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.missing_known import carry_forward, series_missing_known
from forecast.data.panel import Panel
from forecast.data.windows import BATCH_SIZE
from forecast.errors import OutputError
from forecast.forecasting_model import ForecastingModel
from forecast.names import MEAN, MODEL_DIGEST, MODEL_NAME, REASON, SCENARIO, SERIES_ID, sample_column
from forecast.prediction.cold import ColdProfile
from forecast.prediction.fallback import forecast_shard
from forecast.scoring.manifests import FORECASTS, REJECTS, ForecastKey
from forecast.scoring.overrides import Overrides
from forecast.scoring.parts import (
    COLUMNS,
    PART,
    SHARD_ROWS,
    Part,
    ShardForecasts,
    clip_rows,
    count_by,
    count_sources,
    with_model,
)

if TYPE_CHECKING:
    from forecast.scoring.cutoff_model import CutoffModel
    from forecast.scoring.state import StateUpdate


@dataclass(frozen=True)
class CutoffRun:
    """The forecasts of one cutoff in the making."""

    cutoff: int
    """Grid index."""
    key: ForecastKey
    staging: Path


class ShardWriter:
    """Forecasts and writes the shards of a panel; `names` identifies the model.

    `choice` is the file that keeps the choice of score.runtime=auto. `overrides` are applied to the forecasts.
    """

    def __init__(
        self,
        artifact: ForecastingModel,
        loaded: Loaded,
        score: ScoreSettings,
        output: ScoreOutput,
        names: dict[str, str],
        choice: Path,
        *,
        overrides: Overrides | None = None,
    ) -> None:
        self.overrides = overrides
        self._profiles: dict[int, ColdProfile] = {}
        self.loaded, self._score, self._output, self._names = loaded, score, output, names
        self.model = _cutoff_model(artifact, score, choice, loaded.panel.n_series)

    @property
    def _horizon(self) -> int:
        return self.model.artifact.horizon

    @property
    def size(self) -> int:
        """Number of series in a shard; the last one may have fewer."""
        columns = 1 + self._output.n_samples // COLUMNS
        n_fitting = max(1, SHARD_ROWS // (self._horizon * columns))
        # Full batches, if at least one fits.
        return self._score.shard_size or (n_fitting - n_fitting % BATCH_SIZE or n_fitting)

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.loaded.panel.n_series // self.size)

    def panel(self, number: int) -> Panel:
        """Return the series of a shard."""
        panel = self.loaded.panel
        return panel.rows(number * self.size, min((number + 1) * self.size, panel.n_series))

    def digests(self, number: int, cutoff: int) -> tuple[str, str]:
        """Return digests of the past of a shard, and of all that is visible at a cutoff."""
        shard = self.panel(number)
        digests = shard.in_memory().visible_digests(cutoff, self.model.artifact.reach)
        shard.advise(mmap.MADV_DONTNEED)
        return digests

    def state_update(self, cutoff: int) -> "StateUpdate | None":
        """Return the update of the carried state at the selected cutoff, None without score.state."""
        if self._score.state is None or isinstance(self.model, BundleModel):  # Bundles are refused with it.
            return None
        from forecast.scoring.state import StateUpdate

        folder = Path(self._score.state)
        if not self.model.is_latest:  # The weights of the final fit keep their own state beside this one.
            folder /= "evaluated"
        return StateUpdate(folder, self.model.weights, self.loaded.panel, cutoff, self._names["model_digest"])

    def cold_profile(self, cutoff: int) -> ColdProfile | None:
        """Return what series without an observation are forecast from; None without score.cold_start."""
        if not self._score.cold_start:
            return None
        if cutoff not in self._profiles:
            season_length = self.model.artifact.shape.season_length
            self._profiles = {cutoff: ColdProfile.of(self.loaded.panel, cutoff, season_length)}
        return self._profiles[cutoff]

    def forecast(self, shard: Panel, cutoff: int, update: "StateUpdate | None") -> ShardForecasts:
        """Return the forecasts of a shard."""
        shard = shard.in_memory()
        horizon, carried, refused = self._horizon, 0, None
        carried_states, state, counts = update.rows(shard) if update else (None, None, {})
        if len(shard.known) and self._score.missing_known == "carry_forward":
            context = self.model.artifact.shape.context_length
            shard, carried = carry_forward(shard, cutoff=cutoff, horizon=self.model.artifact.reach, context=context)
        if len(shard.known) and self._score.missing_known == "quarantine":
            refused = series_missing_known(shard, self.loaded.data, cutoff=cutoff, horizon=horizon)
        forecasts = forecast_shard(
            self.model.weights,
            shard,
            cutoff,
            refused=refused,
            carried=carried_states,
            max_age=self._score.max_age,
            model_version=self._names["model_version"],
            samples=self._output.n_samples,
            predictor=self.model.predictor,
            cold=self.cold_profile(cutoff),
        )
        return ShardForecasts(forecasts, carried, state, counts)

    def write(self, run: CutoffRun, forecasts: ShardForecasts, name: str, update: "StateUpdate | None") -> Part:
        """Write the files of a shard; the forecasts come last, so their file marks a complete part."""
        artifact = self.model.artifact
        distribution_columns = artifact.columns
        value_columns = list(distribution_columns) if artifact.classes else [MEAN, *distribution_columns]
        value_columns += map(sample_column, range(self._output.n_samples))
        frame, bounded = clip_rows(forecasts.forecasts.frame, value_columns, self._output.min, self._output.max)
        assert frame.select(pl.all_horizontal(pl.col(value_columns).is_finite().all())).item(), (
            "a forecast is not finite"
        )
        sources = count_sources(frame)
        overridden = 0
        if self.overrides is not None:
            overrides = self.overrides.at(run.cutoff, self._horizon)
            bounds = self._output.min, self._output.max
            frame, overridden, clipped = overrides.apply(frame, value_columns, *bounds)
            bounded = {name: count + clipped.get(name, 0) for name, count in bounded.items()}
        scenario = [pl.lit(self._names[SCENARIO]).alias(SCENARIO)] if SCENARIO in self._names else []
        frame = frame.with_columns(
            *scenario,
            pl.lit(self._names["model"]).alias(MODEL_NAME),
            pl.lit(self._names["model_digest"]).alias(MODEL_DIGEST),
        )
        rejects = forecasts.forecasts.rejects.cast(pl.Schema(self.loaded.rejects.schema)).sort(SERIES_ID)
        rejects = with_model(rejects, self._names, run.key.cutoff)
        part = Part(
            series=frame.height // self._horizon,
            rejected=rejects.height,
            sources=sources,
            rejects=count_by(rejects, REASON),
            bounded=bounded,
            carried=forecasts.carried,
            state=forecasts.counts,
            overridden=overridden,
        )
        if update and forecasts.state:
            update.save(name, forecasts.state)
        if rejects.height:
            write_parquet_atomic(rejects, run.staging / REJECTS / name)
        write_parquet_atomic(frame, run.staging / FORECASTS / name, {PART: part.to_json()})
        return part


def _cutoff_model(
    artifact: ForecastingModel, score: ScoreSettings, choice: Path, n_series: int
) -> "CutoffModel | BundleModel":
    """Return the model of a job in its runtime; that of a bundle needs no torch."""
    if isinstance(artifact, Bundle):
        return BundleModel(artifact)
    from forecast.artifact import Artifact
    from forecast.scoring.cutoff_model import CutoffModel

    assert isinstance(artifact, Artifact)
    return CutoffModel(artifact, score, choice, n_series)


# --- tasks of an engine


@dataclass(frozen=True)
class DigestTask:
    """The digests of a shard are wanted."""

    number: int
    cutoff: int


@dataclass(frozen=True)
class WriteTask:
    """The files of a shard are wanted."""

    number: int
    run: CutoffRun
    name: str


@dataclass(frozen=True)
class WrittenShard:
    """The result of a WriteTask."""

    part: Part
    seconds: dict[str, float]
    """Time by stage."""


@dataclass(frozen=True)
class ShardWork:
    """What the workers of an engine need to write shards. `score.runtime` names one."""

    artifact: ForecastingModel
    loaded: Loaded
    score: ScoreSettings
    output: ScoreOutput
    names: dict[str, str]
    choice: Path
    overrides: Overrides | None = None

    @classmethod
    def of(cls, writer: ShardWriter, output: ScoreOutput, score: ScoreSettings, names: dict[str, str]) -> "ShardWork":
        """Return the work of a writer, in the runtime that it has chosen."""
        loaded = replace(writer.loaded, rejects=writer.loaded.rejects.clear())
        score = score.model_copy(update={"runtime": writer.model.runtime})
        output = output.model_copy(update={"uri": None})  # Only the job itself writes to a database.
        return cls(writer.model.artifact, loaded, score, output, names, Path(), writer.overrides)

    def open(self) -> Callable[[DigestTask | WriteTask], tuple[str, str] | WrittenShard]:
        """Return the function of a task."""
        writer = ShardWriter(
            self.artifact, self.loaded, self.score, self.output, self.names, self.choice, overrides=self.overrides
        )
        updates: dict[int, StateUpdate | None] = {}

        def run(task: DigestTask | WriteTask) -> tuple[str, str] | WrittenShard:
            if isinstance(task, DigestTask):
                return writer.digests(task.number, task.cutoff)
            if not task.run.staging.is_dir():
                raise OutputError(_not_shared(task.run.staging))
            start = time.monotonic()
            cutoff = task.run.cutoff
            writer.model.select(cutoff)
            if cutoff not in updates:
                updates.clear()
                updates[cutoff] = writer.state_update(cutoff)
            shard = writer.panel(task.number)
            forecasts = writer.forecast(shard, cutoff, updates[cutoff])
            shard.advise(mmap.MADV_DONTNEED)
            write_start = time.monotonic()
            part = writer.write(task.run, forecasts, task.name, updates[cutoff])
            end = time.monotonic()
            return WrittenShard(part, {"forecast": write_start - start, "write": end - write_start})

        return run


def _not_shared(staging: Path) -> str:
    return (
        f"a worker does not see {staging}; output.path must be on a disk that all machines share, "
        "with the same path on each"
    )
