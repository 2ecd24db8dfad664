"""Runs and model versions in MLflow. No other module speaks to the tracking server.

Only explicit run ids and batched calls: several jobs can run in one process, and the number of calls does not grow
with the number of series.
"""

import functools
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast
from urllib.parse import unquote, urlsplit

# Read when MLflow is imported, so before it. Its own limits on a call are 120 s, seven times over.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow.artifacts
import mlflow.pyfunc
import polars as pl
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, LoggedModelOutput, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema
from mlflow.types.schema import AnyType

from forecast import names
from forecast.config import Config, RegistryConfig
from forecast.errors import RegistryError, listing
from forecast.redaction import redacted, redacted_values, without_password
from forecast.tracking_calls import Calls, TimedClient, environment_set
from forecast.tracking_database import prepare_database

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DEFAULT_URI: Final = "sqlite:///mlflow.db"
REPLACED_VERSION: Final = "replaced_version"
"""Tag of a champion: the version it took over from, for `Registry.rollback`."""
DEMOTED: Final = "demoted"
"""Tag of a version that was rolled back: why."""

PARENT_RUN: Final = "mlflow.parentRunId"
"""Tag of a run: the one that it is shown inside of."""

_ARTIFACT: Final = "model"  # the name of our folder inside the logged model
_PACKAGES: Final = ("gatecast", "mlflow", "numpy", "pandas", "polars", "pyarrow", "pydantic", "safetensors", "torch")
_BATCH: Final = 1000  # metrics MLflow takes in one call
_PARAM_BATCH: Final = 100
_PARAM_LENGTH: Final = 6000
_DATASET_DIGEST_LENGTH: Final = 36
_FIRST_CALL: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    digest: str
    kind: str
    run_id: str
    source: str
    created: int
    """Milliseconds since 1970."""
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def parent(self) -> int | None:
        """The number of the version that it was made from, None for one from data alone."""
        number = self.tags.get("parent_version")
        return int(number) if number else None

    def __str__(self) -> str:
        """Return the version as people write it.

        >>> str(Version("flights", 3, "ab12", "pretrained", "", "", 0))
        'flights v3'
        """
        return f"{self.name} v{self.number}"


@dataclass(frozen=True)
class Record:
    """What a run has left."""

    id: str
    job: str
    tags: Mapping[str, str]
    settings: Mapping[str, str]
    """Of the job, and which data it has used."""
    files: frozenset[str]
    """Artifacts that are in no folder."""


class _Caller(Protocol):
    uri: str


P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=_Caller)


def _calls_mlflow(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Turn the errors of MLflow into RegistryError that names the store."""

    @functools.wraps(method)
    def wrapper(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with _explained(self.uri):
            return method(self, *args, **kwargs)

    return wrapper


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kinds = (MlflowException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError)
        # Alembic makes MLflow's tables; to import its errors would import all of it.
        if not isinstance(error, kinds) and not type(error).__module__.startswith("alembic."):
            raise
        shown = without_password(uri)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(uri, shown)
        if "Max retries exceeded" in reason:
            cause = reason.rpartition(": ")[2].strip("()'\"")
            reason = f"no answer ({cause}); is the server running?"
        raise RegistryError(f"MLflow store {shown}: {reason} (registry.tracking_uri sets the store)") from error


def tracking_uri(config: RegistryConfig) -> str:
    """Return the MLflow store in use: configured, from MLFLOW_TRACKING_URI, or a SQLite file here."""
    given = config.tracking_uri.get_secret_value() if config.tracking_uri else None
    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


class Run:
    """A run that is open. Paths are relative to its artifacts."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str, experiment_id: str) -> None:
        self.uri = uri
        self.id = run_id
        self.experiment_id = experiment_id
        self._client = client
        self.settings: dict[str, str] = {}
        """Of the job, and which data it has used."""

    @property
    def link(self) -> str:
        """The page of the run on its server, or the id where the store is none."""
        page = f"{without_password(self.uri).rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.id}"
        return page if _is_server(self.uri) else self.id

    @_calls_mlflow
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, all at one step."""
        self._log_metrics([(step or 0, values)])

    @_calls_mlflow
    def curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log metrics at many steps, in as few calls as MLflow allows."""
        self._log_metrics(points)

    def _log_metrics(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        now = _now()
        entries = [Metric(name, float(value), now, step) for step, values in points for name, value in values.items()]
        for first in range(0, len(entries), _BATCH):
            self._client.log_batch(self.id, metrics=entries[first : first + _BATCH])

    @_calls_mlflow
    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    @_calls_mlflow
    def figure(self, figure: "Figure", path: str) -> None:
        """Log a Matplotlib figure; the suffix is the format."""
        self._client.log_figure(self.id, figure, path)

    @_calls_mlflow
    def table(self, frame: pl.DataFrame, path: str) -> None:
        """Log a table as Parquet."""
        self._write(path, frame.write_parquet)

    @_calls_mlflow
    def json(self, value: object, path: str) -> None:
        """Log a value as JSON."""
        self._write(path, lambda file: file.write_text(_json(value)))

    @_calls_mlflow
    def text(self, value: str, path: str) -> None:
        """Log a text: a page, say."""
        self._write(path, lambda file: file.write_text(value, encoding="utf-8"))

    @_calls_mlflow
    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file."""
        self._client.log_artifact(self.id, str(path), folder)

    def _write(self, path: str, write: Callable[[Path], object]) -> None:
        target = PurePosixPath(path)
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / target.name
            write(local)
            self._client.log_artifact(self.id, str(local), None if target.parent.name == "" else str(target.parent))

    @_calls_mlflow
    def dataset(self, name: str, *, digest: str, source: str, rows: int) -> None:
        """Say which data the run used; the data is not read."""
        dataset = Dataset(
            name=name,
            digest=digest[:_DATASET_DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": redacted(source)}),
            profile=json.dumps({"num_rows": rows}),
        )
        self._client.log_inputs(self.id, datasets=[DatasetInput(dataset)])
        self.settings = {**_described(dataset), **self.settings}


class Registry:
    """The runs and versions of one registered model.

    Raises RegistryError if the store does not answer; a dead server is noticed in seconds.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.uri = tracking_uri(config)
        self.name = config.name
        with _explained(self.uri):
            self._calls, self._client = _connect(self.uri)

    @contextmanager
    def run(self, job: str, config: Config, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """Open a run for a job and log its config and environment.

        It ends as FINISHED, FAILED on an error, or KILLED on an interrupt.
        """
        run = self._start(job, config, tags or {})
        try:
            yield run
        except BaseException as error:
            # The error that stopped the job matters more than one in reporting it.
            with suppress(MlflowException, OSError):
                self._client.set_tag(run.id, "error", redacted(f"{type(error).__name__}: {error}")[:5000])
                self._client.set_terminated(run.id, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        with _explained(self.uri):
            self._client.set_terminated(run.id)

    @contextmanager
    def resume(self, run_id: str) -> Iterator[Run]:
        """Open a run that has ended; it ends as FINISHED if no error stops what is added to it."""
        with _explained(self.uri):
            experiment = self._client.get_run(run_id).info.experiment_id
        yield Run(self._client, self.uri, run_id, experiment)
        with _explained(self.uri):
            self._client.set_terminated(run_id)
            with suppress(MlflowException):  # it has not failed
                self._client.delete_tag(run_id, "error")

    @_calls_mlflow
    def check_runs(self) -> None:
        """Raise RegistryError unless runs of this model can be logged; call it before hours of work."""
        found = self._client.get_experiment_by_name(self.name)
        if found is not None:
            self._check_active(found)
        root = found.artifact_location if found is not None else _artifact_root(self.uri, self.name)
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

    def _check_active(self, experiment: Experiment) -> None:
        if experiment.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {self.name} was deleted from {without_password(self.uri)}; restore it with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` or choose another "
                "registry.name"
            )

    @_calls_mlflow
    def _start(self, job: str, config: Config, tags: Mapping[str, str]) -> Run:
        own = {"mlflow.source.name": f"forecast {job}", "job": job, **_commit(), **tags}
        experiment = self._experiment()
        info = self._client.create_run(experiment, tags=own, run_name=job).info
        run = Run(self._client, self.uri, info.run_id, experiment)
        values = redacted_values(config.model_dump(mode="json"))
        run.settings |= {name: text[:_PARAM_LENGTH] for name, text in sorted(_flat(values))}
        params = [Param(name, text) for name, text in run.settings.items()]
        for first in range(0, len(params), _PARAM_BATCH):
            self._client.log_batch(run.id, params=params[first : first + _PARAM_BATCH])
        with tempfile.TemporaryDirectory() as temporary:
            Path(temporary, "config.json").write_text(_json(values))
            Path(temporary, "environment.json").write_text(_json(_environment()))
            self._client.log_artifacts(run.id, temporary)
        return run

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(self.name)
        if found is None:
            try:
                return str(self._client.create_experiment(self.name, _artifact_root(self.uri, self.name)))
            except MlflowException as error:  # another job was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(self.name)
                assert found is not None
        self._check_active(found)
        return str(found.experiment_id)

    @_calls_mlflow
    def register(
        self,
        run: Run,
        folder: Path,
        *,
        digest: str,
        tags: Mapping[str, str],
        alias: str | None = None,
        example: tuple[pl.DataFrame, pl.DataFrame] | None = None,
    ) -> Version:
        """Register an artifact folder as a version which any MLflow client can load, and give it an alias.

        `example` is a few made-up input rows with their forecasts: they become the signature and the input example.
        """
        # Its name may hold fewer characters than that of a registered model.
        logged = re.sub(r"""[/:.%"']""", "_", self.name)
        model = self._client.create_logged_model(run.experiment_id, f"{logged}-{digest[:8]}", run.id)
        with tempfile.TemporaryDirectory() as temporary:
            local = str(Path(temporary) / "pyfunc")
            mlflow.pyfunc.save_model(
                local,
                mlflow_model=Model(run_id=run.id, model_id=model.model_id),
                python_model=str(Path(__file__).with_name("serving.py")),
                artifacts={_ARTIFACT: str(_renamed(folder, Path(temporary)))},
                signature=_signature(*example) if example else None,
                input_example=_to_pandas(example[0]) if example else None,
                # Given, because inferring them means loading the model in another process.
                pip_requirements=_requirements(),
            )
            self._client.log_model_artifacts(model.model_id, local)
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(run.id, [LoggedModelOutput(model.model_id, 0)])
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Asked directly, a database looks for models:/ in whatever store is set for the whole process.
        source = f"models:/{model.model_id}" if _is_server(self.uri) else model.artifact_location
        created = self._client.create_model_version(
            self.name, source, run.id, tags={**tags, "digest": digest}, model_id=model.model_id
        )
        if alias:
            self._client.set_registered_model_alias(self.name, alias, created.version)
        return _version(created, [alias] if alias else [])

    @_calls_mlflow
    def resolve(self, which: str | int, key: str = "registry.alias") -> Version:
        """Return the version that an alias or a number means now.

        Raises RegistryError that lists what there is; `key` is the setting that names it.
        """
        number = re.fullmatch(r"v?(\d+)", str(which))
        try:
            if number:
                return _version(self._client.get_model_version(self.name, number[1]))
            return _version(self._client.get_model_version_by_alias(self.name, str(which)))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        aliases = self._aliases()
        existing = listing((f"{alias} (v{number})" for alias, number in sorted(aliases.items())), limit=20)
        wanted = f"version {number[1]}" if number else f"alias {which!r}"
        raise RegistryError(f"{self.name} has no {wanted}; its aliases: {existing or 'none'}; set {key}")

    def find(self, alias: str) -> Version | None:
        """Return the version that an alias means now, None if there is no such alias or model yet."""
        try:
            return self.resolve(alias)
        except RegistryError as error:
            if error.__cause__ is not None:  # the store failed, not the look-up
                raise
            return None

    @_calls_mlflow
    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, str(version.number), name, value)

    @_calls_mlflow
    def read_json(self, run_id: str, path: str) -> Any:
        """Return a JSON artifact of a run."""
        return json.loads(self._read(run_id, path))

    @_calls_mlflow
    def read_table(self, run_id: str, path: str) -> pl.DataFrame:
        """Return a Parquet artifact of a run."""
        return pl.read_parquet(self._read(run_id, path))

    def _read(self, run_id: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return self.fetch(run_id, path, Path(folder)).read_bytes()

    @_calls_mlflow
    def fetch(self, run_id: str, path: str, folder: Path) -> Path:
        """Return an artifact of a run, which is in this folder then, or in the store on this disk."""
        folder.mkdir(parents=True, exist_ok=True)
        return Path(self._client.download_artifacts(run_id, path, str(folder)))

    @_calls_mlflow
    def record(self, run_id: str) -> Record | None:
        """Return what a run has left, None if it is gone."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        settings = dict(sorted(run.data.params.items()))
        for each in run.inputs.dataset_inputs if run.inputs else ():
            settings = {**_described(each.dataset), **settings}
        tags = dict(run.data.tags)
        files = frozenset(file.path for file in self._client.list_artifacts(run_id) if not file.is_dir)
        return Record(run_id, tags.get("job", ""), tags, settings, files)

    @_calls_mlflow
    def curve(self, run_id: str, names: Iterable[str]) -> pl.DataFrame:
        """Return metrics of a run at the steps where they were logged: name, step, value."""
        histories = {name: self._client.get_metric_history(run_id, name) for name in names}
        rows = [
            (name, point.step, point.value)
            for name, points in histories.items()
            for point in sorted(points, key=lambda point: point.timestamp)
        ]
        found = pl.DataFrame(rows, {"name": pl.String, "step": pl.Int64, "value": pl.Float64}, orient="row")
        # What was logged once more when the job was done has no step of its own.
        return found.unique(["name", "step"], keep="first", maintain_order=True).sort("name", "step")

    @_calls_mlflow
    def metrics(self, run_ids: Iterable[str]) -> dict[str, dict[str, float]]:
        """Return the latest metrics of runs, by their ids; runs that are gone are left out."""
        wanted = sorted({run_id for run_id in run_ids if run_id})
        found, experiment = {}, self._experiment()
        for first in range(0, len(wanted), _BATCH):
            quoted = ", ".join(f"'{run_id}'" for run_id in wanted[first : first + _BATCH])
            page = self._client.search_runs([experiment], f"attributes.run_id IN ({quoted})", max_results=_BATCH)
            found.update({run.info.run_id: dict(run.data.metrics) for run in page})
        return found

    def _aliases(self) -> dict[str, int]:
        """Return alias -> number. Searching for versions does not report them."""
        try:
            found = self._client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            return {alias: int(number) for alias, number in found.aliases.items()}
        known = listing((model.name for model in self._client.search_registered_models(max_results=100)), limit=20)
        raise RegistryError(
            f"no registered model {self.name} in {without_password(self.uri)}; there are: {known or 'none'}; "
            "set registry.name, or train one"
        )

    @_calls_mlflow
    def versions(self) -> list[Version]:
        """Return all versions, newest first."""
        held: dict[int, list[str]] = {}
        for alias, number in sorted(self._aliases().items()):
            held.setdefault(number, []).append(alias)
        found: list[ModelVersion] = []
        token = None
        while token is None or token:
            page = self._client.search_model_versions(f"name='{self.name}'", max_results=1000, page_token=token)
            found.extend(page)
            token = page.token or ""
        versions = [_version(each, held.get(int(each.version), [])) for each in found]
        return sorted(versions, key=lambda each: each.number, reverse=True)

    @_calls_mlflow
    def download(self, version: Version) -> Path:
        """Return the artifact folder of a version.

        The local cache is keyed by digest: a version that is in it, each file as it was saved, makes no request. One
        that is damaged there is fetched again. Raises RegistryError, also where what the registry has is damaged.
        """
        from forecast import artifact  # brings torch with it

        if not re.fullmatch(r"[0-9a-f]{8,}", version.digest):
            raise RegistryError(f"{version} is not one of ours: its tag `digest` is {version.digest!r}")
        cache = Path(os.environ.get("GATECAST_CACHE") or Path.home() / ".cache" / "gatecast")
        folder = cache / version.digest
        if artifact.is_intact(folder, version.digest):
            return folder
        if folder.exists():
            _LOG.warning("%s, the cached copy of %s, is damaged; it is fetched again", folder, version)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._fetch(version, folder)
        except OSError as error:
            raise RegistryError(
                f"{version} can't be kept in {cache}: {error.strerror or error}; set GATECAST_CACHE to another folder"
            ) from error
        return folder

    def _fetch(self, version: Version, folder: Path) -> None:
        """Put the files of a version into the cache once all of them are checked."""
        from forecast import artifact

        root = self._client.get_model_version_download_uri(version.name, str(version.number))
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as temporary:
            fetched = self._calls.run(
                "download_artifacts",
                mlflow.artifacts.download_artifacts,
                folder=Path(temporary),
                artifact_uri=f"{root}/artifacts/{_ARTIFACT}",
                dst_path=temporary,
                tracking_uri=self.uri,
                registry_uri=self.uri,
            )
            if not artifact.is_intact(Path(fetched), version.digest):
                raise RegistryError(
                    f"{version} is damaged in the registry: its files are not those of digest {version.digest[:16]}; "
                    "take another version (registry.alias), or train or register it again"
                )
            if artifact.is_intact(folder, version.digest):  # Another job was faster.
                return
            with suppress(FileNotFoundError):
                folder.rename(Path(temporary) / "replaced")
            try:
                Path(fetched).rename(folder)
            except OSError:
                if not artifact.is_intact(folder, version.digest):
                    raise

    @_calls_mlflow
    def set_alias(self, alias: str, version: Version) -> None:
        """Point an alias at a version."""
        self._client.set_registered_model_alias(self.name, alias, str(version.number))

    @_calls_mlflow
    def delete_alias(self, alias: str) -> None:
        """Remove an alias."""
        self._client.delete_registered_model_alias(self.name, alias)

    @_calls_mlflow
    def promote(self, challenger: Version) -> None:
        """Make a version the champion, and remember which one it replaced. The champion stays what it is."""
        champion = self._aliases().get(names.CHAMPION)
        if champion == challenger.number:
            return
        number = str(challenger.number)
        self._client.set_model_version_tag(self.name, number, REPLACED_VERSION, str(champion or ""))
        if challenger.tags.get(DEMOTED):
            self._client.set_model_version_tag(self.name, number, DEMOTED, "")
        self._client.set_registered_model_alias(self.name, names.CHAMPION, number)

    @_calls_mlflow
    def delete(self, version: Version, *, force: bool = False) -> None:
        """Delete a version. Its run stays.

        Raises RegistryError if an alias means it, or, without `force`, if others were fine-tuned from it.
        """
        every = self.versions()
        (aliases,) = (each.aliases for each in every if each.number == version.number)
        if aliases:
            raise RegistryError(
                f"{version} is not deleted: it is the {' and the '.join(aliases)}; give the alias to another version "
                "before (train, finetune and promote do)"
            )
        children = [f"v{each.number}" for each in reversed(every) if each.parent == version.number]
        if children and not force:
            raise RegistryError(
                f"{version} is not deleted: it is the parent of {listing(children)}; delete these first, or set "
                "delete.force=true"
            )
        self._client.delete_model_version(self.name, str(version.number))

    def previous(self, champion: Version) -> Version | None:
        """Return the version that a champion replaced, None for the first one, and if it was deleted."""
        replaced = champion.tags.get(REPLACED_VERSION)
        return self.find(replaced) if replaced else None

    @_calls_mlflow
    def rollback(self, reason: str) -> tuple[Version, Version]:
        """Give the champion alias back to the version that the champion replaced; return (from, to).

        The one that is left remembers why, so that `promote` does not bring it back.
        """
        champion = self.resolve(names.CHAMPION)
        replaced = champion.tags.get(REPLACED_VERSION)
        if not replaced:
            raise RegistryError(f"nothing to roll back to: {champion} was the first champion")
        target = self.resolve(replaced)
        self._client.set_model_version_tag(self.name, str(champion.number), DEMOTED, reason)
        self._client.set_registered_model_alias(self.name, names.CHAMPION, str(target.number))
        return champion, target

    @_calls_mlflow
    def runs(self, tags: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Return the tags of the runs that ended well and have these tags, by their ids, newest first."""
        quoted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        condition = " and ".join(["attributes.status = 'FINISHED'", *quoted])
        page = self._client.search_runs([self._experiment()], condition, max_results=_BATCH)
        return {run.info.run_id: dict(run.data.tags) for run in page}

    @_calls_mlflow
    def delete_runs(self, run_ids: Iterable[str]) -> None:
        """Delete runs, which MLflow keeps among the deleted ones."""
        for run_id in run_ids:
            self._client.delete_run(run_id)


def _connect(uri: str) -> tuple[Calls, MlflowClient]:
    """Return a client after one answered call, and what limits its calls, those of a file excepted."""
    prepare_store(uri)  # before the client, which opens it
    client, calls = MlflowClient(uri, uri), Calls(uri)
    if _is_server(uri):
        timed = cast(MlflowClient, TimedClient(client, calls))
        with environment_set(_FIRST_CALL):
            timed.search_experiments(max_results=1)
        return calls, timed
    return calls, client


def prepare_store(uri: str) -> None:
    """Make MLflow's tables in a store that is a database and lacks them. Raises RegistryError if that fails."""
    if "://" in uri and not uri.startswith("file:") and not _is_server(uri):
        with _explained(uri):
            prepare_database(uri)


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _artifact_root(uri: str, name: str) -> str | None:
    """Return where the artifacts of a local store go: beside its database, not where the job happens to run."""
    if not uri.startswith("sqlite:///"):
        return None  # the server decides
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns" / re.sub(r"[^\w.-]", "_", name)
    return folder.as_uri()


def _signature(inputs: pl.DataFrame, outputs: pl.DataFrame) -> ModelSignature:
    """Return the columns in and out. We check input types ourselves: MLflow refuses time zones and integers."""
    columns = Schema([ColSpec(AnyType(), name) for name in inputs.columns])
    return ModelSignature(columns, infer_signature(_to_pandas(outputs)).inputs)


def _to_pandas(frame: pl.DataFrame) -> "pd.DataFrame":
    """Return a frame as pandas, whatever its columns are called: Arrow's C interface has no name with a NUL."""
    numbered = frame.rename({name: str(number) for number, name in enumerate(frame.columns)})
    return numbered.to_pandas().set_axis(frame.columns, axis=1)


def _renamed(folder: Path, temporary: Path) -> Path:
    """Return a copy of the folder under the name it has inside the logged model."""
    return Path(shutil.copytree(folder, temporary / _ARTIFACT))


def _version(found: ModelVersion, aliases: Sequence[str] | None = None) -> Version:
    return Version(
        name=found.name,
        number=int(found.version),
        digest=found.tags.get("digest", ""),
        kind=found.tags.get("kind", ""),
        run_id=found.run_id or "",
        source=found.source or "",
        created=int(found.creation_timestamp or 0),
        tags=dict(found.tags),
        aliases=tuple(sorted(found.aliases if aliases is None else aliases)),
    )


def _described(dataset: Dataset) -> dict[str, str]:
    source, profile = (json.loads(text or "{}") for text in (dataset.source, dataset.profile))
    return {dataset.name: f"{source.get('uri')}, {profile.get('num_rows', 0):,} rows, digest {dataset.digest}"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield prefix + name, text.replace("\0", "\\u0000")  # PostgreSQL keeps no NUL.


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str)


def _now() -> int:
    return time.time_ns() // 1_000_000


def _commit() -> dict[str, str]:
    """Return the git commit of this code as tags, nothing where it is not a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    commit, _, dirty = done.stdout.strip().partition("-")
    return {"mlflow.source.git.commit": commit, **({"git_dirty": "true"} if dirty else {})}


def _environment() -> dict[str, object]:
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": dict(_installed())}


def _requirements() -> list[str]:
    """Return what loading a model needs; local labels such as +cpu are in no index."""
    return [f"{name}=={number.partition('+')[0]}" for name, number in _installed()]


def _installed() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # ours, where it is run without being installed
            yield name, version(name)
