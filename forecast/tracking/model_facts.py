"""Facts that MLflow shows about the model of a run: settings, metrics, data and a description."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from forecast.tracking.entities import Metric

Point = tuple[str, float, int, int]
"""Name, value, timestamp in milliseconds since 1970, and step of a metric."""


@dataclass(frozen=True)
class DatasetLink:
    """The dataset that a metric was computed on."""

    name: str
    digest: str


@dataclass(frozen=True)
class ModelFacts:
    """Settings, metrics, data and description of a model; JSON can hold them."""

    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Point] = ()
    linked: Sequence[str] = ()
    """Names of the metrics that the model has, too; the others are about the run."""
    dataset: DatasetLink | None = None
    description: str = ""
    """Markdown."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the facts in a JSON object, defaults for those that it lacks."""
        dataset = content.get("dataset")
        return cls(
            params=content.get("params", {}),
            metrics=[(name, value, timestamp, step) for name, value, timestamp, step in content.get("metrics", ())],
            linked=content.get("linked", ()),
            dataset=DatasetLink(**dataset) if dataset else None,
            description=content.get("description", ""),
        )


def linked(point: Point, model_id: str, dataset: DatasetLink | None) -> Metric:
    """Return a metric of a run, linked to a model and the dataset it was computed on.

    An empty model id means no link. Values that are not finite are not linked either: MLflow shows NaN as 0 there.
    """
    name, value, timestamp, step = point
    if not model_id or value - value != 0:
        return Metric(name, value, timestamp, step)
    link = {} if dataset is None else {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
    return Metric(name, value, timestamp, step, model_id=model_id, **link)
