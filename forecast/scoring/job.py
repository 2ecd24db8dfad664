"""What a scoring job leaves behind: for each cutoff forecasts, rejects, and a manifest that is written last.

    .lock                                                held by the job that writes here
    shadow/                                              all of this for the version of score.shadow
    .staging/KEY/forecasts/part-00007-1f2e....parquet    a shard that is complete; rejects beside forecasts
    manifests/cutoff=....json                            counts, versions, and what the sink holds
    latest/MODEL.parquet                                 the forecasts of the latest cutoff, for other tools

KEY is a cutoff and a version of a model: several models may write here, each replaces its own forecasts only.

Shards are staged, and given to the sink once all are there. A part's name has its key, a digest of all that its content
follows from: so a job that was killed, at whatever moment, finds those that need not be made again.
"""

import json
import mmap
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
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
    WrittenPart,
    counted_forecasts,
    digest_of,
    frame_digest,
    part_file,
    read_part,
    ready_part,
    rows_within,
)
from forecast.scoring.sinks.base import Files, Sink
from forecast.scoring.sinks.open import open_sink
from forecast.scoring.state import Update

_PUBLISHING: Final = "publishing"
"""Is told how many series are done."""


class Job:
    """Writes the forecasts of a model on a panel, cutoff by cutoff. Hold the locks of its folders meanwhile.

    `names` says which model it is: model, model_version and model_digest; `run_id` is the MLflow run of the job. Raises
    ConfigError and OutputError for settings that the model or the sink can't follow.
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
        """The model with the weights that forecast from the cutoff at hand."""
        self._forward = self._runtime()
        for half in (self.folder / MANIFESTS).glob(".*.tmp"):  # What a kill has left.
            half.unlink()
        for staging in (self.folder / ".staging").glob(f"{CUTOFF}=*"):  # An earlier release.
            shutil.rmtree(staging, ignore_errors=True)

    def write(self, cutoff: int, progress: Progress | None = None) -> Output:
        """Write the forecasts from a grid index, unless they are there already.

        Series are forecast in shards, so memory holds a few of these at a time; a thread writes one while the next is
        forecast, and the system reads the one after it. The same inputs give the same bytes. Raises DataError as
        `check_cutoff`, and for known covariates that are missing where none may be; OutputError for what can't be
        written.
        """
        panel, horizon = self.loaded.panel, self.artifact.horizon
        first = begun = time.monotonic()
        check_cutoff(panel, cutoff)
        self._take_weights(cutoff)
        moment = panel.grid.timestamps(np.array([cutoff]))[0]
        self._check_known(cutoff)
        digests = [shard.visible_digest(cutoff, horizon) for shard in self._shards()]
        panel.advise(mmap.MADV_DONTNEED)
        inputs = {"cutoff": moment.isoformat(), **self._inputs}
        keys = [digest_of(inputs, digest) for digest in digests]
        data_digest, digest = digest_of(digests), digest_of(inputs, keys)
        seconds = {"check": time.monotonic() - begun}

        key = ForecastKey(moment, self.names["model"], self.names["model_version"], self.names["model_digest"])
        manifest, staging = self.folder / MANIFESTS / key.manifest, self.folder / ".staging" / key.folder
        if self._score.force:
            shutil.rmtree(staging, ignore_errors=True)
        elif old := read_part(manifest):
            found = self._sink.found(key)
            same = old.get("key") == digest and all(old.get(name) == value for name, value in found.items())
            if same and not (staging / _PUBLISHING).exists():
                shutil.rmtree(staging, ignore_errors=True)
                self._write_rows()
                return Output(manifest, self._confirmed(old, manifest), done_before=True, seconds=seconds)
            for name, expected in old.get("files", {}).items():
                if found.get("files", {}).get(name, expected) != expected:
                    (self.folder / name).unlink()  # Changed or damaged since.

        update = self._update(cutoff)
        parts, files = self._parts(cutoff, key, keys, staging, update, seconds, progress)
        begun = time.monotonic()
        content = self._content(inputs | {"data_digest": data_digest, "key": digest}, parts)
        content["columns"] = list(pl.read_parquet_schema(files[FORECASTS][0])) if files[FORECASTS] else []
        self._check_sources(content)
        if update:
            update.publish()  # What is not published yet is made from it again, and is the same.
        self._write_rows()
        write_text_atomic("", staging / _PUBLISHING)
        content |= self._sink.replace(key, files, content)
        write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
        self._sink.clean(key, files)
        if legacy := legacy_key(self.folder, key):
            (self.folder / MANIFESTS / legacy.manifest).unlink()
        (staging / _PUBLISHING).unlink()
        shutil.rmtree(staging)
        seconds |= {"publish": time.monotonic() - begun, "all": time.monotonic() - first}
        return Output(manifest, content, done_before=False, seconds=seconds)

    def write_latest(self) -> None:
        """Put the forecasts of the latest cutoff of this model into latest/, unless they are there."""
        if self._output.latest and self._output.sink != "sql":
            write_latest(self.folder, self._sink, self.names["model"])

    def _confirmed(self, content: dict[str, Any], manifest: Path) -> dict[str, Any]:
        """Return the manifest of forecasts that are there, made current again if another version's were."""
        if self._sink.is_superseded(content):
            content["current_since"] = datetime.now(UTC).isoformat()
            self._sink.record(content)
            write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
        return content

    def _write_rows(self) -> None:
        """Put the rejects of reading in the place of those before: once, they are of no cutoff."""
        if self._rows_written:
            return
        rejects = self._named(self.loaded.rejects, None).with_columns(
            pl.lit(None, pl.String).alias(MODEL_VERSION), pl.lit(None, pl.String).alias(MODEL_DIGEST)
        )
        self._sink.replace_rows(self.names["model"], rejects, frame_digest(rejects))
        self._rows_written = True

    def _named(self, rejects: pl.DataFrame, cutoff: datetime | None) -> pl.DataFrame:
        """Return rejects with their cutoff and the names of the model, in columns as forecasts have them."""
        return rejects.with_columns(
            pl.lit(cutoff).cast(rejects.schema[TIMESTAMP]).alias(CUTOFF),
            pl.lit(self.names["model_version"]).alias(MODEL_VERSION),
            pl.lit(self.names["model"]).alias(MODEL_NAME),
            pl.lit(self.names["model_digest"]).alias(MODEL_DIGEST),
        )

    def _take_weights(self, cutoff: int) -> None:
        """Take the weights that forecast from a cutoff, in the runtime of those before."""
        weights = self.artifact.for_cutoff(cutoff)
        if weights is not self._weights and self._forward is not None:
            self._forward = OnnxForecaster(weights.network)
        self._weights = weights

    def _runtime(self) -> Forward | None:
        """Return what runs the network if torch does not.

        What score.runtime=auto has chosen is kept in the folder: files must not depend on how busy the machine is.
        """
        if self._score.runtime == "torch" or self._score.state is not None:
            return None  # A graph has no state to go on from.
        if self._score.runtime == "onnx":
            return OnnxForecaster(self._weights.network)
        kept = self.folder / f".runtime-{self.names['model_digest'][:16]}"
        with suppress(OSError):
            if kept.read_text() == "torch":
                return None
        try:
            made = OnnxForecaster(self._weights.network)
        except ConfigError:  # It is not installed, or can't run this model.
            return None
        if kept.exists():
            return made
        faster = is_faster(made, self._weights.network, min(self.loaded.panel.n_series, BATCH_SIZE))
        write_text_atomic("onnx" if faster else "torch", kept)
        return made if faster else None

    @cached_property
    def _inputs(self) -> dict[str, str | int]:
        """What forecasts follow from besides the cutoff and the panel, as the manifest says it."""
        shown = self._output.model_dump(mode="json", include={"sink", "uri", "table", "min", "max", "n_samples"})
        settings = {**shown, "missing_known": self._score.missing_known, "max_age": self._score.max_age}
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

    def _update(self, cutoff: int) -> Update | None:
        if self._score.state is None:
            return None
        folder = Path(self._score.state)
        if self._weights is not self.artifact.latest:  # Those of the final fit keep their state beside this one.
            folder /= "evaluated"
        return Update(folder, self._weights, self.loaded.panel, cutoff, self.names["model_digest"])

    def _shards(self) -> Iterator[Panel]:
        """Yield the shards, whose pages the system reads one ahead, and lets go when they are done with."""
        panel = self.loaded.panel
        columns = 1 + self._output.n_samples // COLUMNS
        fitting = max(1, SHARD_ROWS // (self.artifact.horizon * columns))
        # Full batches, if there is room for one.
        size = self._score.shard_size or (fitting - fitting % BATCH_SIZE or fitting)
        every = (panel.rows(first, min(first + size, panel.n_series)) for first in range(0, panel.n_series, size))
        for shard, following in pairwise(chain(every, [None])):
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

    def _parts(
        self,
        cutoff: int,
        key: ForecastKey,
        keys: Sequence[str],
        staging: Path,
        update: Update | None,
        seconds: dict[str, float],
        progress: Progress | None,
    ) -> tuple[list[Part], Files]:
        """Return what is in each shard, and where its files are, after making those that are not there."""
        folders = {kind: [staging / kind] for kind in KINDS}
        if not self._score.force:
            for kind in KINDS:
                if final := self._sink.folder(kind, key):
                    folders[kind].append(final)
        names = [f"part-{number:05d}-{digest[:16]}.parquet" for number, digest in enumerate(keys)]
        wanted = {*names}
        for kind in KINDS:
            for file in (staging / kind).glob("*"):
                if file.name not in wanted:
                    file.unlink()
        seconds |= {"forecast": 0.0, "write": 0.0}

        parts: list[Part | Future[Part]] = []
        writing: Future[Part] | None = None
        done = 0
        with ThreadPoolExecutor(1) as writer:
            for shard, name in zip(self._shards(), names, strict=True):
                part = ready_part(name, folders) if update is None or update.has(name, shard) else None
                if part is None:
                    begun = time.monotonic()
                    made = self._forecast(shard, cutoff, update)
                    seconds["forecast"] += time.monotonic() - begun
                    if writing:
                        writing.result()  # One at a time: memory is bounded, and an error ends the job.
                    writing = writer.submit(self._write_part, made, key, update, staging, name, seconds)
                    parts.append(writing)
                    del made
                else:
                    parts.append(part)
                done += shard.n_series
                if progress:
                    progress(done)
            found = [part.result() if isinstance(part, Future) else part for part in parts]
        files: dict[Kind, list[Path]] = {
            kind: [path for name in names if (path := part_file(name, folders[kind])) is not None] for kind in KINDS
        }
        return found, files

    def _forecast(self, shard: Panel, cutoff: int, update: Update | None) -> WrittenPart:
        """Return the forecasts of a shard."""
        horizon, carried, refused = self.artifact.horizon, 0, None
        past, state, counts = update.rows(shard) if update else (None, None, {})
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
            carried=past,
            max_age=self._score.max_age,
            model_version=self.names["model_version"],
            samples=self._output.n_samples,
            forward=self._forward,
        )
        return WrittenPart(forecasts, carried, state, counts)

    def _write_part(
        self,
        made: WrittenPart,
        key: ForecastKey,
        update: Update | None,
        staging: Path,
        name: str,
        seconds: dict[str, float],
    ) -> Part:
        """Write the files of a shard, the one with its forecasts last: if that is there, both are."""
        begun = time.monotonic()
        stated = forecast_columns(self.artifact)
        numbers = list(stated) if self.artifact.classes else [MEAN, *stated]
        numbers += map(sample_column, range(self._output.n_samples))
        frame, bounded = rows_within(made.forecasts.frame, numbers, self._output.min, self._output.max)
        assert frame.select(pl.all_horizontal(pl.col(numbers).is_finite().all())).item(), "a forecast is not finite"
        frame = frame.with_columns(
            pl.lit(self.names["model"]).alias(MODEL_NAME), pl.lit(self.names["model_digest"]).alias(MODEL_DIGEST)
        )
        rejects = made.forecasts.rejects.cast(pl.Schema(self.loaded.rejects.schema)).sort(SERIES_ID)
        rejects = self._named(rejects, key.cutoff)
        part = Part(
            series=frame.height // self.artifact.horizon,
            rejected=rejects.height,
            sources=counted_forecasts(frame.filter(pl.col(STEP) == 1), SOURCE),
            rejects=counted_forecasts(rejects, REASON),
            bounded=bounded,
            carried=made.carried,
            state=made.counts,
        )
        if update and made.state:
            update.save(name, made.state)
        if rejects.height:
            write_parquet_atomic(rejects, staging / REJECTS / name)
        write_parquet_atomic(frame, staging / FORECASTS / name, {PART: json.dumps(asdict(part))})
        seconds["write"] += time.monotonic() - begun
        return part

    def _check_sources(self, content: dict[str, Any]) -> None:
        """Raise DataError if the model spoke for no series, or for fewer than score.min_model_share."""
        sources, series = content["sources"], content["series"]
        n_model = sum(sources.get(name, 0) for name in (SOURCE_FINE_TUNED, SOURCE_PRETRAINED))
        if n_model and n_model >= self._score.min_model_share * series["forecast"]:
            return
        others = [f"{sources[name]:,} {name}" for name in (SOURCE_SEASONAL_NAIVE, SOURCE_LAST_VALUE) if name in sources]
        ended = content["rejects"].get(ENDED, 0)
        of_these = f", {ended:,} of them {ENDED} (score.max_age={self._score.max_age})" if ended else ""
        rejected = [f"{series['rejected']:,} rejected{of_these}"] if series["rejected"] else []
        raise DataError(
            f"the model forecast {n_model:,} of {series['forecast']:,} series at {content['cutoff']} "
            f"(score.min_model_share={self._score.min_model_share:g}; {listing([*others, *rejected])}), so nothing is "
            "published. It gives no finite forecast of a series without a value in its last "
            f"{self.artifact.network.shape.context_length:,} steps; check the cutoff and the newest rows of the table, "
            "or take another version"
        )

    def _content(self, versions: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
        """Return the manifest, but for what the sink holds. No series and no row is lost on the way to it."""
        counts = self.loaded.counts
        series, rejected = sum(part.series for part in parts), sum(part.rejected for part in parts)
        rejected += counts.series_rejected
        assert series + rejected == counts.series_in, "a series was lost"
        rejects = Counter(counted_forecasts(self.loaded.rejects, REASON))
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
