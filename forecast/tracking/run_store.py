"""The runs of an experiment in MLflow.

Only explicit run ids and batched calls: several jobs can run in one process, and the number of calls does not grow
with the number of series.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from forecast.config import Config
from forecast.errors import GatecastError, RegistryError
from forecast.redaction import redacted_values, without_password
from forecast.tracking.entities import Dataset, Param
from forecast.tracking.environment import commit, environment
from forecast.tracking.run import BATCH, Run, as_json, described, run_name
from forecast.tracking.spool import BestEffortClient, RunSpool, SpooledRun, is_away
from forecast.tracking.store import artifact_root, calls_mlflow, error_code, explained
from forecast.tracking.system_metrics import system_metrics
from forecast.tracking.texts import PARAM_LENGTH, shortened

if TYPE_CHECKING:
    import polars as pl
    from mlflow.entities import Experiment
    from mlflow.entities import Run as MlflowRun

PARENT_RUN: Final = "mlflow.parentRunId"
"""Tag of a run: its parent run in MLflow's page."""

_PARAM_BATCH: Final = 100
_EXPERIMENT_KIND: Final = "mlflow.experimentKind"
"""Tag of an experiment, without which MLflow's page asks for its kind."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """Contents of an ended run."""

    id: str
    job: str
    tags: Mapping[str, str]
    settings: Mapping[str, str]
    """Settings of the job, and the data it has used."""
    files: frozenset[str]
    """Artifacts at the top level."""
    is_deleted: bool = False
    """Whether the run was deleted; MLflow keeps deleted runs, and accepts no more changes to them."""
    dataset: Dataset | None = None
    """The data that it has used."""


@dataclass(frozen=True)
class Outcome:
    """Results of an ended run."""

    metrics: Mapping[str, float]
    """The latest value of each metric."""
    data: str
    """Name and digest of the data; empty if the run has recorded none."""


class RunStore:
    """The runs of an experiment. `uri` is its store, `name` the experiment."""

    uri: str
    name: str
    _client: Any
    """An MlflowClient, or an object with its methods."""
    _spool_root: Path | None
    """Folder for runs while the store is unavailable; None if it is required."""
    _system_metrics: bool
    """Whether runs log the use of CPU, memory, disk, network and GPU."""

    @contextmanager
    def run(self, job: str, config: Config, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """Open a run for a job and log its config and environment.

        It ends as FINISHED, FAILED on an error, or KILLED on an interrupt. With registry.tracking=best_effort, a store
        that becomes unavailable stops nothing: a spool takes the rest of the run.
        """
        run = self._start(job, config, tags or {})
        monitor = system_metrics(self.uri, run.id) if self._system_metrics and run.experiment_id else nullcontext()
        try:
            with monitor:
                yield run
        except BaseException as error:
            # The error of the job matters more than an error in reporting it.
            with suppress(GatecastError):
                run.end(error)
            raise
        else:
            run.end()
        finally:
            if run.spool:
                run.spool.close()

    @calls_mlflow
    def replay(self, folder: Path, spooled: SpooledRun, real_ids: Mapping[str, str]) -> Run:
        """Log the contents of a spool, and return its run, which is still open; see `replay.replay`."""
        from forecast.tracking import replay

        experiment = self._experiment()
        run_id = replay.replay(self._client, experiment, folder, spooled, real_ids)
        return Run(self._client, self.uri, run_id, experiment)

    @calls_mlflow
    def end_replay(self, folder: Path, run: Run) -> None:
        """End the run of a spool as its job ended."""
        from forecast.tracking import replay

        replay.end(self._client, folder, run.id)

    @contextmanager
    def resume(self, run_id: str) -> Iterator[Run]:
        """Open an ended run for additions; it ends as FINISHED unless these fail."""
        with explained(self.uri):
            experiment = self._client.get_run(run_id).info.experiment_id
        yield Run(self._client, self.uri, run_id, experiment)
        with explained(self.uri):
            self._client.set_terminated(run_id)
            try:
                self._client.delete_tag(run_id, "error")
            except Exception as error:  # it has not failed
                if not error_code(error):
                    raise

    @calls_mlflow
    def check_runs(self) -> None:
        """Raise RegistryError unless runs of this model can be logged; call it before hours of work."""
        experiment = self._client.get_experiment_by_name(self.name)
        if experiment is not None:
            self._check_active(experiment)
        root = experiment.artifact_location if experiment is not None else artifact_root(self.uri, self.name)
        if root is None or urlsplit(root).scheme not in ("", "file"):
            return
        folder = Path(unquote(urlsplit(root).path)).absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise RegistryError(
                f"can't write artifacts into {folder} ({error.strerror}), where the experiment {self.name} of "
                f"{without_password(self.uri)} has them; make it writable, or choose another registry.name"
            ) from error

    def _check_active(self, experiment: "Experiment") -> None:
        if experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {self.name} was deleted from {without_password(self.uri)}; restore it with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` or choose another "
                "registry.name"
            )

    @calls_mlflow
    def _start(self, job: str, config: Config, tags: Mapping[str, str]) -> Run:
        tags_of_job = {
            "mlflow.source.name": f"forecast {job}",
            "job": job,
            "kind": job.split(maxsplit=1)[0],
            **commit(),
            **tags,
        }
        name = run_name(job, tags.get("version") or tags.get("parent_version", ""), tags.get("cutoff", ""))
        spool = RunSpool(self._spool_root, self.name, job, self.uri) if self._spool_root else None
        client = BestEffortClient(self._client, spool) if spool else self._client
        try:
            experiment = self._experiment()
            run_id = self._client.create_run(experiment, tags=tags_of_job, run_name=name).info.run_id
        except Exception as error:
            if spool is None or not is_away(error):
                raise
            experiment, run_id = "", spool.begin(error, run_name=name, tags=tags_of_job)
        else:
            if spool is not None:
                spool.run_id = run_id
        run = Run(client, self.uri, run_id, experiment, job=job, spool=spool)
        values = redacted_values(config.model_dump(mode="json"))
        run.settings |= {name: shortened(text, PARAM_LENGTH, "config.json") for name, text in sorted(flat(values))}
        params = [Param(name, text) for name, text in run.settings.items()]
        for first in range(0, len(params), _PARAM_BATCH):
            client.log_batch(run.id, params=params[first : first + _PARAM_BATCH])
        with tempfile.TemporaryDirectory() as temporary:
            Path(temporary, "config.json").write_text(as_json(values))
            Path(temporary, "environment.json").write_text(as_json(environment()))
            client.log_artifacts(run.id, temporary)
        return run

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(self.name)
        if experiment is None:
            try:
                root = artifact_root(self.uri, self.name)
                return str(
                    self._client.create_experiment(self.name, root, {_EXPERIMENT_KIND: "custom_model_development"})
                )
            except Exception as error:  # created by another job meanwhile
                if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(self.name)
                assert experiment is not None
        self._check_active(experiment)
        return str(experiment.experiment_id)

    @calls_mlflow
    def read_json(self, run_id: str, path: str) -> Any:
        """Return a JSON artifact of a run."""
        try:
            return json.loads(self._read(run_id, path))
        except ValueError as error:
            raise RegistryError(f"{path} of run {run_id} is damaged: {error}") from None

    @calls_mlflow
    def read_table(self, run_id: str, path: str) -> "pl.DataFrame":
        """Return a Parquet artifact of a run."""
        import polars as pl

        try:
            return pl.read_parquet(self._read(run_id, path))
        except pl.exceptions.PolarsError as error:
            raise RegistryError(f"{path} of run {run_id} is damaged: {error}") from None

    @contextmanager
    def scan_table(self, run_id: str, path: str) -> "Iterator[pl.LazyFrame]":
        """Yield a Parquet artifact of a run, to be read in part or in blocks."""
        import polars as pl

        with tempfile.TemporaryDirectory() as folder:
            file = self.fetch(run_id, path, Path(folder))
            try:
                yield pl.scan_parquet(file)
            except pl.exceptions.PolarsError as error:
                raise RegistryError(f"{path} of run {run_id} is damaged: {error}") from None

    def _read(self, run_id: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return self.fetch(run_id, path, Path(folder)).read_bytes()

    @calls_mlflow
    def fetch(self, run_id: str, path: str, folder: Path) -> Path:
        """Return the path of an artifact of a run: downloaded into the folder, or in a local store."""
        folder.mkdir(parents=True, exist_ok=True)
        return Path(self._client.download_artifacts(run_id, path, str(folder)))

    @calls_mlflow
    def record(self, run_id: str) -> Record | None:
        """Return the contents of a run, None if it no longer exists."""
        try:
            run = self._client.get_run(run_id)
        except Exception as error:
            if error_code(error) not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        settings = dict(sorted(run.data.params.items()))
        datasets = [dataset_input.dataset for dataset_input in run.inputs.dataset_inputs] if run.inputs else []
        for dataset in datasets:
            settings = {**described(dataset), **settings}
        tags = dict(run.data.tags)
        files = frozenset(file.path for file in self._client.list_artifacts(run_id) if not file.is_dir)
        is_deleted = run.info.lifecycle_stage != "active"
        return Record(run_id, tags.get("job", ""), tags, settings, files, is_deleted, datasets[0] if datasets else None)

    @calls_mlflow
    def curve(self, run_id: str, names: Iterable[str]) -> "pl.DataFrame":
        """Return metrics of a run at the steps where they were logged: name, step, value."""
        import polars as pl

        histories = {name: self._client.get_metric_history(run_id, name) for name in names}
        rows = [
            (name, point.step, point.value)
            for name, points in histories.items()
            for point in sorted(points, key=lambda point: point.timestamp)
        ]
        frame = pl.DataFrame(rows, {"name": pl.String, "step": pl.Int64, "value": pl.Float64}, orient="row")
        # Final values, logged again at the end of the job, have no step of their own.
        return frame.unique(["name", "step"], keep="first", maintain_order=True).sort("name", "step")

    @calls_mlflow
    def metrics(self, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Return the latest metrics of the existing runs, by their ids."""
        return {run.info.run_id: dict(run.data.metrics) for run in self._search(run_ids)}

    @calls_mlflow
    def outcomes(self, run_ids: Iterable[str]) -> dict[str, Outcome]:
        """Return the results of the existing runs, by their ids."""
        outcomes = {}
        for run in self._search(run_ids):
            datasets = run.inputs.dataset_inputs if run.inputs else []
            names = (f"{each.dataset.name} {each.dataset.digest[:8]}" for each in datasets)
            outcomes[run.info.run_id] = Outcome(dict(run.data.metrics), ", ".join(names))
        return outcomes

    def _search(self, run_ids: Iterable[str]) -> "Iterator[MlflowRun]":
        remaining, experiment = sorted({run_id for run_id in run_ids if run_id}), self._experiment()
        for first in range(0, len(remaining), BATCH):
            quoted = ", ".join(f"'{run_id}'" for run_id in remaining[first : first + BATCH])
            yield from self._client.search_runs([experiment], f"attributes.run_id IN ({quoted})", max_results=BATCH)

    @calls_mlflow
    def runs(self, tags: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Return the tags of the finished runs with these tags, by run id, newest first."""
        quoted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        condition = " and ".join(["attributes.status = 'FINISHED'", *quoted])
        page = self._client.search_runs([self._experiment()], condition, max_results=BATCH)
        return {run.info.run_id: dict(run.data.tags) for run in page}

    @calls_mlflow
    def delete_runs(self, run_ids: Iterable[str]) -> None:
        """Delete runs, which MLflow only marks; an unavailable store is tolerated if it is not required."""
        try:
            for run_id in run_ids:
                self._client.delete_run(run_id)
        except Exception as error:
            if self._spool_root is None or not is_away(error):
                raise
            _LOG.warning("MLflow is away: runs that were to be deleted stay")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings in nested groups, by their dotted names, as texts."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield prefix + name, text.replace("\0", "\\u0000")  # PostgreSQL stores no NUL.
