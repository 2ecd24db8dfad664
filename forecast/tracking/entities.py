"""The parts of a run, as MLflow's clients take them; MLflow's own classes take two seconds to import."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


class _Entity:
    """An object with the attributes of MLflow's entity of the same name."""

    def to_proto(self) -> Any:
        """Return the message that MLflow sends to a server."""
        from mlflow import entities

        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return getattr(entities, type(self).__name__)(**values).to_proto()


@dataclass(frozen=True)
class Metric(_Entity):
    """A value of a metric; `timestamp` is in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int
    model_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class Param(_Entity):
    """A setting of a run."""

    key: str
    value: str


@dataclass(frozen=True)
class RunTag(_Entity):
    """A tag of a run."""

    key: str
    value: str


@dataclass(frozen=True)
class InputTag(_Entity):
    """A tag of a dataset of a run."""

    key: str
    value: str


@dataclass(frozen=True)
class Dataset(_Entity):
    """Data of a run; `source` and `profile` are JSON."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class DatasetInput(_Entity):
    """Data that a run has used, and its tags."""

    dataset: Dataset
    tags: Sequence[InputTag] = ()


@dataclass(frozen=True)
class LoggedModelInput(_Entity):
    """A model that a run has used."""

    model_id: str
