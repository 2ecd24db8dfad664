"""A version of a registered model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: int
    """0 for one that is registered later, by `forecast runs sync`."""
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
        number = self.tags.get("parent_version", "")
        # What was made later is no parent, whatever a tag says.
        return int(number) if number.isdecimal() and int(number) < self.number else None

    def __str__(self) -> str:
        """Return the version as people write it.

        >>> str(Version("flights", 3, "ab12", "pretrained", "", "", 0))
        'flights v3'
        """
        return f"{self.name} v{self.number}" if self.number else f"{self.name} (not registered yet)"


def from_mlflow(found: "ModelVersion", aliases: Sequence[str] | None = None) -> Version:
    """Return a version of MLflow as ours, with `aliases` where MLflow has not said which it has."""
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
