"""Spools: folders that keep the calls of runs while the tracking server is unavailable, for later logging.

A spool has `run.json` (the identity of the run), `calls.jsonl` (one call a line, in order), and the files of these
calls, which `replay` makes later.
"""

import functools
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from forecast.data.files import locked
from forecast.redaction import redacted, without_password
from forecast.tracking.accuracy import log_accuracy
from forecast.tracking.entities import DatasetInput, LoggedModelInput, Metric, Param, RunTag
from forecast.tracking.model_facts import ModelFacts
from forecast.tracking.store import error_code, is_of_store

SPOOL_ID: Final = "unlogged_id"
"""Tag of a run that was created after its job: the name of its spool, which the job used as run id."""
KEY: Final = "registry.spool"
REGISTER: Final = "register"
"""The call that registers the model in a spool."""

_LOG = logging.getLogger(__name__)
RUN: Final = "run.json"
CALLS: Final = "calls.jsonl"
_REFUSALS: Final = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")
_METHODS: Final = (
    "log_batch",
    "log_figure",
    "log_artifact",
    "log_artifacts",
    "log_inputs",
    "set_tag",
    "set_terminated",
    "set_model_version_tag",
    "update_model_version",
)
"""Client methods that a spool implements."""


def is_away(error: BaseException | None) -> bool:
    """Return whether an error means that the store does not answer, or can't work at present.

    A call that is refused for its content would be refused later, too.
    """
    if error is None or (code := error_code(error)) in _REFUSALS:
        return False
    return bool(code) or isinstance(error, OSError) or is_of_store(error)


@dataclass(frozen=True)
class SpooledRun:
    """The run of a spool."""

    id: str
    """The name of the spool."""
    name: str
    """Name of the registered model and of the experiment."""
    job: str
    store: str
    """URI of the store, without secrets."""
    run_id: str
    """Id of the run; empty if it is not in the store yet."""
    run_name: str
    started: int
    """Milliseconds since 1970."""
    tags: Mapping[str, str]
    """Tags of a run that is not in the store yet."""


class RunSpool:
    """Keeps the calls of one run once its store is unavailable."""

    def __init__(self, root: Path, name: str, job: str, store: str) -> None:
        self._root, self._name, self._job, self._store = root, name, job, without_password(store)
        self._started = now()
        self._lock = ExitStack()
        self._n_files = 0
        self.run_id = ""
        """Id of the run, empty if it is not in the store."""
        self.folder: Path | None = None
        """Folder of the calls; None as long as the store answers."""

    def begin(self, error: BaseException, run_name: str = "", tags: Mapping[str, str] = {}) -> str:
        """Start to keep calls because of an error of the store; return the id of the run for later calls."""
        identity = f"unlogged-{uuid.uuid4().hex[:12]}"
        self.folder = self._root / identity
        self._lock.enter_context(locked(self.folder, KEY))
        run = SpooledRun(
            identity, self._name, self._job, self._store, self.run_id, run_name or self._job, self._started, dict(tags)
        )
        _write_run(self.folder, run)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _LOG.warning(
            "MLflow at %s does not answer (%s): the rest of this run is kept in %s",
            self._store,
            redacted(reason),
            self.folder,
        )
        return self.run_id or identity

    def close(self) -> None:
        """Release the spool for logging, and log its folder."""
        if self.folder is not None:
            self._lock.close()
            _LOG.warning(
                "%s: not logged, MLflow at %s was away; kept in %s, `forecast runs sync` logs it",
                self._job,
                self._store,
                self.folder,
            )

    def log_batch(
        self,
        _run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        """Keep metrics, params and tags."""
        texts = [[(item.key, item.value) for item in group] for group in (params, tags)]
        self._append("log_batch", metrics=_values(metrics), params=texts[0], tags=texts[1])

    def log_accuracy(self, _run_id: str, _experiment: str, metrics: Sequence[Metric]) -> None:
        """Keep points of the chart of versions."""
        self._append("log_accuracy", metrics=_values(metrics))

    def set_tag(self, run_id: str, key: str, value: object) -> None:
        """Keep a tag."""
        self.log_batch(run_id, tags=[RunTag(key, str(value))])

    def log_figure(self, _run_id: str, figure: Any, path: str) -> None:
        """Keep a Matplotlib figure."""
        file = self._new_folder() / Path(path).name
        figure.savefig(file)
        self._append("log_artifact", file=self._relative(file), folder=_parent(path))

    def log_artifact(self, _run_id: str, path: str, folder: str | None = None) -> None:
        """Keep a file."""
        file = Path(shutil.copy(path, self._new_folder()))
        self._append("log_artifact", file=self._relative(file), folder=folder)

    def log_artifacts(self, _run_id: str, folder: str) -> None:
        """Keep all files of a folder."""
        copy = shutil.copytree(folder, self._new_folder(), dirs_exist_ok=True)
        self._append("log_artifacts", file=self._relative(copy))

    def log_inputs(
        self, _run_id: str, datasets: Sequence[DatasetInput], models: Sequence[LoggedModelInput] = ()
    ) -> None:
        """Keep descriptions of data, and the models that the run uses."""
        names = ("name", "digest", "source_type", "source", "profile")
        described = [{name: getattr(dataset_input.dataset, name) for name in names} for dataset_input in datasets]
        tags = [[(tag.key, tag.value) for tag in dataset_input.tags] for dataset_input in datasets]
        self._append("log_inputs", datasets=described, tags=tags, models=[model.model_id for model in models])

    def set_terminated(self, _run_id: str, status: str = "FINISHED") -> None:
        """Keep the end of the run."""
        self._append("set_terminated", status=status, end_time=now())

    def set_model_version_tag(self, name: str, version: str, key: str, value: object) -> None:
        """Keep a tag of a version."""
        self._append("set_model_version_tag", name=name, version=version, key=key, value=str(value))

    def update_model_version(self, name: str, version: str, description: str) -> None:
        """Keep the description of a version."""
        self._append("update_model_version", name=name, version=version, description=description)

    def register(
        self, model: Path, facts: ModelFacts, *, digest: str, alias: str | None, tags: Mapping[str, str]
    ) -> None:
        """Keep a model folder and the facts about the model for later registration."""
        file = self._relative(shutil.copytree(model, self._new_folder(), dirs_exist_ok=True))
        values = {"file": file, "digest": digest, "alias": alias, "tags": dict(tags), "facts": asdict(facts)}
        self._append(REGISTER, **values, registered=now())

    def _new_folder(self) -> Path:
        assert self.folder is not None
        self._n_files += 1
        folder = self.folder / "files" / f"{self._n_files:04d}"
        folder.mkdir(parents=True)
        return folder

    def _relative(self, path: Path) -> str:
        assert self.folder is not None
        return path.relative_to(self.folder).as_posix()

    def _append(self, call: str, **values: Any) -> None:
        assert self.folder is not None
        with (self.folder / CALLS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"call": call, **values}) + "\n")
            file.flush()
            os.fsync(file.fileno())


class BestEffortClient:
    """An MLflow client for one run, which passes calls to a spool once the store is unavailable."""

    def __init__(self, client: Any, spool: RunSpool) -> None:
        self._client, self._spool = client, spool

    def __getattr__(self, name: str) -> Any:
        """Return a method of the client."""
        method = getattr(self._client, name)
        return functools.partial(self._call, name, method) if name in _METHODS else method

    def log_accuracy(self, run_id: str, experiment: str, metrics: Sequence[Metric]) -> None:
        """Add points to the chart of versions."""
        self._call("log_accuracy", functools.partial(log_accuracy, self._client), run_id, experiment, metrics)

    def _call(self, name: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        if self._spool.folder is None:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if not is_away(error):
                    raise
                self._spool.begin(error)
        return getattr(self._spool, name)(*args, **kwargs)


def _values(metrics: Sequence[Metric]) -> list[tuple[Any, ...]]:
    names = ("key", "value", "timestamp", "step", "model_id", "dataset_name", "dataset_digest")
    return [tuple(getattr(metric, name) for name in names) for metric in metrics]


def _write_run(folder: Path, run: SpooledRun) -> None:
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        json.dump(asdict(run), file)
    Path(file.name).replace(folder / RUN)


def _parent(path: str) -> str | None:
    return Path(path).parent.as_posix() if Path(path).parent != Path() else None


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
