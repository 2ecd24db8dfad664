"""A scoring job: it writes forecasts, rejects and, last, a manifest for each cutoff.

    .lock                                                held by the job that writes here
    shadow/                                              all of this for the version of score.shadow
    scenarios/NAME/                                      all of this for score.scenario=NAME, and differences
    .staging/KEY/forecasts/part-00007-1f2e....parquet    a complete shard; rejects are beside the forecasts
    manifests/cutoff=....json                            counts, versions, and the contents of the sink
    latest/MODEL.parquet                                 the forecasts of the latest cutoff, for other tools
    plans/MODEL.csv, MODEL.xlsx                          the same for spreadsheets, with output.format

KEY is a cutoff and a version of a model. Several models may write to a folder; each replaces its own forecasts only.

Shards are staged, and given to the sink once all are complete. The name of a part holds its key, a digest of all inputs
of its content, so a killed job resumes with the parts that are complete, and a commit finds those that shares have
written on other machines.
"""

import json
import shutil
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from forecast.config import JobShare, ScoreOutput, ScoreSettings
from forecast.data.files import write_text_atomic
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.missing_known import check_known
from forecast.engines.engine import Engine
from forecast.environment import gatecast_version
from forecast.errors import ConfigError, EngineError, listing
from forecast.forecasting_model import ForecastingModel
from forecast.names import CUTOFF, MODEL_DIGEST, MODEL_VERSION, SCENARIO
from forecast.prediction.cutoffs import check_cutoff, check_model
from forecast.scoring.content import PAST, TABLES, check_model_share, content_of, past_of, tables_of
from forecast.scoring.latest import write_latest
from forecast.scoring.manifests import FAILED_SHARDS, FORECASTS, KINDS, LAYOUT, MANIFESTS, ForecastKey, legacy_key
from forecast.scoring.overrides import CutoffOverrides, Overrides
from forecast.scoring.parts import Output, Progress, ShareOutput, digest_of, frame_digest, read_if_valid, with_model
from forecast.scoring.plans import check_plan, write_plan
from forecast.scoring.scenarios import Scenario
from forecast.scoring.shard_writer import CutoffRun, ShardWork, ShardWriter
from forecast.scoring.shards import CutoffParts, Shards, check_complete
from forecast.scoring.sinks.base import Files, Sink
from forecast.scoring.sinks.open import open_sink

_PUBLISHING: Final = "publishing"
"""File in the staging folder while the sink takes over the shards; it marks an interrupted publication."""


class ScoreJob:
    """Writes the forecasts of a model on a panel, cutoff by cutoff. The caller holds the locks of its folders.

    `names` identifies the model: model, model_version and model_digest; `run_id` is the MLflow run of the job. The
    shards are forecast by `engine`, in this process without one; `overrides` are applied to the forecasts. With a
    `scenario`, `output` is that of the scenario. Raises ConfigError and OutputError for settings that the model or the
    sink does not support.
    """

    def __init__(
        self,
        artifact: ForecastingModel,
        loaded: Loaded,
        score: ScoreSettings,
        output: ScoreOutput,
        names: dict[str, str],
        *,
        run_id: str = "",
        engine: Engine | None = None,
        overrides: Overrides | None = None,
        scenario: Scenario | None = None,
    ) -> None:
        if artifact.classes is not None and overrides is not None:
            raise ConfigError("score.overrides are numbers; this model forecasts classes")
        if artifact.classes is not None and (output.min is not None or output.max is not None):
            raise ConfigError("output.min and output.max are for numbers; this model forecasts classes")
        if score.state is not None:
            check_model(artifact)  # type: ignore[arg-type]  # a bundle has no state
        if score.cold_start and artifact.classes is not None:
            raise ConfigError("score.cold_start is for numbers; this model forecasts classes")
        if output.n_samples:
            if artifact.classes is not None:
                raise ConfigError("output.n_samples is for numbers; fc.sample_paths() gives the paths of classes")
            from forecast.prediction.paths import with_samples

            artifact = with_samples(artifact, output.n_samples, "output.n_samples")  # type: ignore[arg-type]
        check_plan(output, artifact, loaded.panel.n_series)
        self.artifact, self.loaded, self._scenario = artifact, loaded, scenario
        names = names if scenario is None else {**names, SCENARIO: scenario.name}
        self._score, self._output, self.names, self._run_id = score, output, names, run_id
        self.folder = Path(output.path)
        self._sink: Sink = open_sink(output)
        self._sink.check()
        self._rows_written = False
        choice = (scenario.base if scenario else self.folder) / f".runtime-{names['model_digest'][:16]}"
        self._writer = ShardWriter(artifact, loaded, score, output, names, choice, overrides=overrides)
        self._shards = Shards(self._writer, ShardWork.of(self._writer, output, score, names), engine)

    def write(self, cutoff: int, progress: Progress | None = None, *, commit: bool = False) -> Output:
        """Write the forecasts from a cutoff, a grid index, unless they exist already.

        Series are forecast in shards, so memory holds only a few at a time. The same inputs give the same bytes, with
        any engine. With `commit`, all shards must have been written by `write_share`. Raises DataError as
        `check_cutoff`, and for missing known covariates if score.missing_known=fail; OutputError if writing fails or a
        shard is missing; EngineError if the workers fail.
        """
        job_start = stage_start = time.monotonic()
        self._clean()
        key = self._start(cutoff)
        inputs = self._inputs_of(key, cutoff)
        pairs = self._shards.digests(cutoff, range(self._writer.count))
        past, digests = [past for past, _ in pairs], [digest for _, digest in pairs]
        keys = [digest_of(inputs, digest) for digest in digests]
        data_digest, digest = digest_of(digests), digest_of(inputs, keys)
        seconds = {"check": time.monotonic() - stage_start}

        manifest, staging = self.folder / MANIFESTS / key.manifest, self._staging(key)
        if self._score.force:
            shutil.rmtree(staging, ignore_errors=True)
        elif (existing := self._published(manifest, key, digest)) and not (staging / _PUBLISHING).exists():
            shutil.rmtree(staging, ignore_errors=True)
            self._write_rows(cutoff)
            return Output(manifest, self._make_current(existing, manifest), was_complete=True, seconds=seconds)

        parts = self._parts(cutoff, key, dict(enumerate(keys)))
        missing = self._shards.find(parts)
        if commit:
            check_complete(parts, missing)
        parts.remove_others()
        self._shards.write(parts, missing, seconds, progress)
        stage_start = time.monotonic()
        content = self._content(parts, inputs | {"data_digest": data_digest, "key": digest})
        content |= {PAST: past_of(self._writer.size, past), TABLES: tables_of(self.loaded.data)}
        if parts.update:
            parts.update.publish()  # A job that resumes recomputes unpublished forecasts from it, with the same result.
        content = self._publish(parts.run, parts.files(), content, manifest)
        seconds |= {"publish": time.monotonic() - stage_start, "all": time.monotonic() - job_start}
        return Output(manifest, content, was_complete=False, seconds=seconds)

    def _clean(self) -> None:
        """Remove what killed jobs and earlier releases have left in the folder."""
        for leftover in (self.folder / MANIFESTS).glob(".*.tmp"):
            leftover.unlink()
        for staging in (self.folder / ".staging").glob(f"{CUTOFF}=*"):
            shutil.rmtree(staging, ignore_errors=True)

    def write_share(self, cutoff: int, share: JobShare, progress: Progress | None = None) -> ShareOutput:
        """Write the parts of a share of the shards into the staging folder, unless they exist already.

        Nothing is published: `write` with `commit` does that. Other shares may be written at the same time, on other
        machines. Raises as `write`; EngineError if a shard fails.
        """
        key = self._start(cutoff)
        numbers = share.of(self._writer.count)
        inputs = self._inputs_of(key, cutoff)
        digests = self._shards.digests(cutoff, numbers)
        keys = {number: digest_of(inputs, digest) for number, (_, digest) in zip(numbers, digests, strict=True)}
        parts = self._parts(cutoff, key, keys)
        missing = self._shards.find(parts)
        self._shards.write(parts, missing, {}, progress)
        if parts.failures:
            raise EngineError(
                f"{len(parts.failures):,} of {len(keys):,} shards failed: {listing(parts.failures.values())}"
            )
        self._sink.stage(key, parts.files())
        n_series = sum(self._writer.panel(number).n_series for number in numbers)
        return ShareOutput(inputs[CUTOFF], len(keys), len(missing), n_series)

    def _start(self, cutoff: int) -> ForecastKey:
        """Check a cutoff, and select the weights of the model for it."""
        panel = self.loaded.panel
        check_cutoff(panel, cutoff)
        self._writer.model.select(cutoff)
        if self._score.missing_known == "fail":
            check_known(panel, self.loaded.data, cutoff=cutoff, horizon=self.artifact.horizon)
        moment = panel.grid.timestamps(np.array([cutoff]))[0]
        return ForecastKey(moment, self.names["model"], self.names["model_version"], self.names["model_digest"])

    def _inputs_of(self, key: ForecastKey, cutoff: int) -> dict[str, Any]:
        overrides = self._overrides_at(cutoff)
        digest = None if overrides is None else overrides.digest
        inputs = {CUTOFF: key.cutoff.isoformat(), **self._inputs, **({"overrides_digest": digest} if digest else {})}
        if (profile := self._writer.cold_profile(cutoff)) is not None:
            inputs["cold_digest"] = profile.digest()
        return inputs if self._scenario is None else inputs | self._scenario.check(key, cutoff, inputs)

    def _overrides_at(self, cutoff: int) -> CutoffOverrides | None:
        overrides = self._writer.overrides
        return None if overrides is None else overrides.at(cutoff, self.artifact.horizon)

    def _staging(self, key: ForecastKey) -> Path:
        return self.folder / ".staging" / key.folder

    def _parts(self, cutoff: int, key: ForecastKey, keys: Mapping[int, str]) -> CutoffParts:
        """Return the parts of a cutoff; `keys` are the digests of the inputs of each shard."""
        finals = {kind: None if self._score.force else self._sink.folder(kind, key) for kind in KINDS}
        published = {kind: folder for kind, folder in finals.items() if folder is not None}
        names = {number: f"part-{number:05d}-{digest[:16]}.parquet" for number, digest in keys.items()}
        run = CutoffRun(cutoff, key, self._staging(key))
        if not self._score.force:
            self._sink.restore(key, names.values(), run.staging)
        return CutoffParts(run, names, published, self._writer.state_update(cutoff))

    def _content(self, parts: CutoffParts, versions: Mapping[str, Any]) -> dict[str, Any]:
        """Return the manifest without the inventory of the sink. Raises DataError as `check_model_share`."""
        facts = {
            "trained_until": self._writer.model.weights.trained_until_timestamp.isoformat(),
            "run_id": self._run_id or None,
        }
        counts = [part for _, part in sorted(parts.parts.items())]
        content = content_of(counts, self.loaded, self.artifact.horizon, versions, facts)
        forecasts = parts.files()[FORECASTS]
        content["columns"] = list(pl.read_parquet_schema(forecasts[0])) if forecasts else []
        if (overrides := self._overrides_at(parts.run.cutoff)) is not None:
            content["overrides"] = overrides.counts(sum(part.overridden for part in counts))
        if parts.failures:
            content[FAILED_SHARDS] = {str(number): reason for number, reason in sorted(parts.failures.items())}
        check_model_share(content, self._score, self.artifact.shape.context_length)
        return content

    def _published(self, manifest: Path, key: ForecastKey, digest: str) -> dict[str, Any] | None:
        """Return the manifest of complete forecasts with the same inputs; None without, once damaged files are gone."""
        content = read_if_valid(manifest)
        inventory = self._sink.inventory(key) if content else {}
        if (
            FAILED_SHARDS not in content
            and content.get("key") == digest
            and all(content.get(name) == value for name, value in inventory.items())
        ):
            return content
        for name, expected in content.get("files", {}).items():
            if inventory.get("files", {}).get(name, expected) != expected:
                (self.folder / name).unlink(missing_ok=True)  # Changed or damaged since then.
        return None

    def _publish(self, run: CutoffRun, files: Files, content: dict[str, Any], manifest: Path) -> dict[str, Any]:
        """Give the shards to the sink, write the manifest last, and return its content."""
        self._write_rows(run.cutoff)
        write_text_atomic("", run.staging / _PUBLISHING)
        content |= self._sink.replace(run.key, files, content)
        write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
        self._sink.clean(run.key, files)
        if legacy := legacy_key(self.folder, run.key):
            (self.folder / MANIFESTS / legacy.manifest).unlink()
        (run.staging / _PUBLISHING).unlink()
        shutil.rmtree(run.staging)
        return content

    def write_latest(self) -> None:
        """Write the forecasts of the latest cutoff of this model into latest/, unless they are there already."""
        if self._output.latest and self._output.sink != "sql":
            write_latest(self.folder, self._sink, self.names["model"])

    def write_plan(self) -> str | None:
        """Write the forecasts of the latest cutoff as output.format; return where, None without a new file."""
        if self._output.format == "parquet":
            return None
        return write_plan(self.folder, self._sink, self.names["model"], self._output)

    def _make_current(self, content: dict[str, Any], manifest: Path) -> dict[str, Any]:
        """Return the manifest of existing forecasts, made current again if another version has superseded them."""
        if self._sink.is_superseded(content):
            content["current_since"] = datetime.now(UTC).isoformat()
            self._sink.record(content)
            write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
        return content

    def _write_rows(self, cutoff: int) -> None:
        """Replace the rejects of reading, which belong to no cutoff; once per job.

        Among them are the rejects of the overrides, as of the first cutoff of the job.
        """
        if self._rows_written:
            return
        overrides, rows = self._overrides_at(cutoff), self.loaded.rejects
        if overrides is not None and overrides.rejects.height:
            rows = pl.concat([rows, overrides.rejects.cast(pl.Schema(rows.schema))])
        rejects = with_model(rows, self.names, None).with_columns(
            pl.lit(None, pl.String).alias(MODEL_VERSION), pl.lit(None, pl.String).alias(MODEL_DIGEST)
        )
        self._sink.replace_rows(self.names["model"], rejects, frame_digest(rejects))
        self._rows_written = True

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
            "runtime": self._writer.model.runtime,
            "config_digest": digest_of(settings),
            "code": f"gatecast {gatecast_version()}",
        }
