"""An open run in MLflow, and the logging of a job in as few calls as MLflow allows."""

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from forecast.redaction import redacted, without_password
from forecast.tracking.accuracy import log_accuracy
from forecast.tracking.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, RunTag
from forecast.tracking.model_facts import DatasetLink, ModelFacts, Point, linked
from forecast.tracking.store import calls_mlflow, is_server
from forecast.tracking.texts import TAG_LENGTH, shortened

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from forecast.tracking.spool import RunSpool
    from forecast.tracking.versions import Version

BATCH: Final = 1000
"""Most metrics in one call of MLflow, and most runs that it returns."""
_DATASET_DIGEST_LENGTH: Final = 36
_CONTEXT: Final = "mlflow.data.context"
"""Tag of a dataset: training, validation, evaluation or scoring."""


class Run:
    """An open run. Paths are relative to its artifacts.

    `client` is an MlflowClient, or has its methods.
    """

    def __init__(
        self,
        client: Any,
        uri: str,
        run_id: str,
        experiment_id: str,
        *,
        job: str = "",
        spool: "RunSpool | None" = None,
    ) -> None:
        self.uri = uri
        self.id = run_id
        self.experiment_id = experiment_id
        self.job = job
        self.spool = spool
        """Takes its calls if the store becomes unavailable; None if the store is required."""
        self._client = client
        self.settings: dict[str, str] = {}
        """Settings of the job, and the data it has used."""
        self.data: DatasetLink | None = None
        """The data of the run, once it is logged."""
        self._last_steps: dict[str, int] = {}
        """Last step by metric, of those logged by this object."""
        self._timestamp = 0

    @property
    def link(self) -> str:
        """The page of the run on its server, or its id for other stores."""
        page = f"{without_password(self.uri).rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.id}"
        return page if is_server(self.uri) and self.experiment_id else self.id

    @calls_mlflow
    def metrics(
        self,
        values: Mapping[str, float],
        *,
        version: "Version | None" = None,
        prefix: str = "",
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Log metrics at the last step of each, as its latest value, and tags in the same call.

        With a version, those whose names begin with `prefix` become metrics of its model, too.
        """
        model_id = version.model_id if version else ""
        entries = [
            linked(point, model_id if point[0].startswith(prefix) else "", self.data) for point in self._points(values)
        ]
        self._log(entries, self._tags(tags) if tags else ())

    @calls_mlflow
    def curve(self, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Log metrics at many steps, in as few calls as MLflow allows."""
        now = self._tick()
        entries = [Metric(name, float(value), now, step) for step, values in points for name, value in values.items()]
        for entry in entries:
            self._last_steps[entry.key] = max(entry.step, self._last_steps.get(entry.key, 0))
        self._log(entries)

    def facts(
        self, values: Mapping[str, float], of_model: Sequence[str], params: Mapping[str, str], description: str
    ) -> ModelFacts:
        """Return the facts about the model of this run, with its metrics at this moment; the model has `of_model`."""
        return ModelFacts(params, self._points(values), of_model, self.data, description)

    @calls_mlflow
    def model_metrics(self, facts: ModelFacts, model_id: str) -> None:
        """Log the metrics of the model of this run."""
        self._log(
            [linked(point, model_id if point[0] in facts.linked else "", facts.dataset) for point in facts.metrics]
        )

    @calls_mlflow
    def chart(self, version: "Version", accuracy: "Sequence[tuple[Version, Mapping[str, float]]]") -> None:
        """Add the accuracy of versions to the run that charts it over versions: the step is the number.

        Metrics of versions other than `version`, the one that this run is about, become metrics of their models, too.
        """
        now = self._tick()
        entries = [
            linked(
                (name, value, now, other.number), "" if other.number == version.number else other.model_id, self.data
            )
            for other, values in accuracy
            for name, value in values.items()
        ]
        log = getattr(self._client, "log_accuracy", functools.partial(log_accuracy, self._client))
        log(self.id, self.experiment_id, entries)

    def _tick(self) -> int:
        # At equal steps the latest value counts for MLflow, within a millisecond the largest.
        self._timestamp = max(_now(), self._timestamp + 1)
        return self._timestamp

    def _points(self, values: Mapping[str, float]) -> list[Point]:
        now = self._tick()
        return [(name, float(value), now, self._last_steps.get(name, 0)) for name, value in values.items()]

    def _log(self, entries: Sequence[Metric], tags: Sequence[RunTag] = ()) -> None:
        for first in range(0, max(len(entries), bool(tags)), BATCH):
            self._client.log_batch(self.id, metrics=entries[first : first + BATCH], tags=[] if first else tags)

    @calls_mlflow
    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags; a text that is too long for a tag becomes a file, `tags/NAME.txt`."""
        self._client.log_batch(self.id, tags=self._tags(values))

    def _tags(self, values: Mapping[str, object]) -> list[RunTag]:
        tags = []
        for name, value in values.items():
            text, file = str(value), f"tags/{name}.txt"
            if len(text) > TAG_LENGTH:
                self._write(file, functools.partial(Path.write_text, data=text, encoding="utf-8"))
            tags.append(RunTag(name, shortened(text, TAG_LENGTH, file)))
        return tags

    @calls_mlflow
    def label(self, version: "Version", cutoffs: Sequence[str] = ()) -> None:
        """Name the run by its job, a version and its cutoffs in ISO format, earliest first, and tag it with them."""
        number, ends = str(version.number or ""), (cutoffs[0], cutoffs[-1]) if cutoffs else ()
        cutoff = "..".join(dict.fromkeys(ends))
        tags = {"mlflow.runName": run_name(self.job, number, cutoff), "version": number, "cutoff": cutoff}
        if len(cutoffs) > 1:
            tags["n_cutoffs"] = str(len(cutoffs))
        self._client.log_batch(self.id, tags=[RunTag(name, value) for name, value in tags.items() if value])

    @calls_mlflow
    def tag_version(self, version: "Version", values: Mapping[str, str]) -> None:
        """Set tags of a version; values may be the id of this run."""
        for name, value in values.items():
            self._client.set_model_version_tag(version.name, str(version.number), name, value)

    @calls_mlflow
    def describe(self, version: "Version", description: str) -> None:
        """Replace the description of a version."""
        self._client.update_model_version(version.name, str(version.number), description)

    @calls_mlflow
    def figure(self, figure: "Figure", path: str) -> None:
        """Log a Matplotlib figure; the suffix is the format."""
        self._client.log_figure(self.id, figure, path)

    @calls_mlflow
    def table(self, frame: "pl.DataFrame", path: str) -> None:
        """Log a table as Parquet."""
        self._write(path, frame.write_parquet)

    @calls_mlflow
    def json(self, value: object, path: str) -> None:
        """Log a value as JSON."""
        self._write(path, lambda file: file.write_text(as_json(value)))

    @calls_mlflow
    def text(self, value: str, path: str) -> None:
        """Log a text, such as a page."""
        self._write(path, lambda file: file.write_text(value, encoding="utf-8"))

    @calls_mlflow
    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file."""
        self._client.log_artifact(self.id, str(path), folder)

    def _write(self, path: str, write: Callable[[Path], object]) -> None:
        target = PurePosixPath(path)
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary) / target.name
            write(local)
            self._client.log_artifact(self.id, str(local), None if target.parent.name == "" else str(target.parent))

    @calls_mlflow
    def dataset(
        self,
        name: str,
        *,
        digest: str,
        source: str,
        rows: int,
        series: int,
        context: str = "",
        version: "Version | None" = None,
    ) -> None:
        """Record the data of the run, which is not read, its purpose, and the model that the run uses."""
        dataset = Dataset(
            name=name,
            digest=digest[:_DATASET_DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": redacted(source)}),
            profile=json.dumps({"num_rows": rows, "num_series": series}),
        )
        self._log_inputs(dataset, context, version)
        self.settings = {**described(dataset), **self.settings}

    @calls_mlflow
    def inputs(self, dataset: Dataset, version: "Version") -> None:
        """Record the data and the model of an earlier evaluation as inputs of this run."""
        self._log_inputs(dataset, "evaluation", version)

    def _log_inputs(self, dataset: Dataset, context: str, version: "Version | None") -> None:
        data = DatasetInput(dataset, [InputTag(_CONTEXT, context)] if context else [])
        models = [LoggedModelInput(version.model_id)] if version and version.model_id else []
        self._client.log_inputs(self.id, datasets=[data], models=models)
        self.data = DatasetLink(dataset.name, dataset.digest)

    @calls_mlflow
    def end(self, error: BaseException | None = None) -> None:
        """End the run: as FINISHED, FAILED by an error, or KILLED by an interrupt."""
        if error is None:
            self._client.set_terminated(self.id)
            return
        self._client.set_tag(self.id, "error", redacted(f"{type(error).__name__}: {error}")[:5000])
        self._client.set_terminated(self.id, "FAILED" if isinstance(error, Exception) else "KILLED")


def run_name(job: str, version: str = "", cutoff: str = "") -> str:
    """Return the display name of a run: its job, its version, and its cutoff or the first and the last.

    >>> run_name("score", "1", "2024-04-02T00:00:00"), run_name("score", "1", "2024-04-01T23:00..2024-04-02T23:00")
    ('score v1 2024-04-02', 'score v1 2024-04-01 23:00..2024-04-02 23:00')
    """
    moments = [_short(text) for text in cutoff.split("..") if text]
    return " ".join(filter(None, [job, version and f"v{version}", "..".join(moments)]))


def _short(moment: str) -> str:
    day, _, clock = moment.replace("T", " ").partition(" ")
    return day if clock[:8] in ("", "00:00:00", "23:59:59") else f"{day} {clock[:5]}"


def described(dataset: Dataset) -> dict[str, str]:
    """Return the description of a dataset of a run, by its name."""
    source, profile = (_object(text) for text in (dataset.source, dataset.profile))
    series = f"{profile['num_series']:,} series, " if "num_series" in profile else ""
    rows = f"{profile.get('num_rows', 0):,} rows"
    return {dataset.name: f"{source.get('uri')}, {series}{rows}, digest {dataset.digest}"}


def _object(text: str | None) -> dict[str, Any]:
    """Return the object in a JSON text, an empty one for anything else."""
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def as_json(value: object) -> str:
    """Return a value as indented JSON."""
    return json.dumps(value, indent=2, default=str)


def _now() -> int:
    return time.time_ns() // 1_000_000
