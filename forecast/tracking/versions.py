"""A version of a registered model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

INIT_VERSION: Final = "init_version"
"""Tag of a version initialised with the network of another one: the name and number of that version."""


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
    description: str = ""
    """Markdown."""

    @property
    def model_id(self) -> str:
        """The id of its LoggedModel; empty for versions without one.

        >>> Version("flights", 3, "ab12", "pretrained", "", f"models:/m-{'0' * 32}", 0).model_id
        'm-00000000000000000000000000000000'
        """
        # A SQL store keeps the source of a version, but not its model id.
        model = re.search(r"\bm-[0-9a-f]{32}\b", self.source)
        return model[0] if model else ""

    @property
    def parent(self) -> int | None:
        """The number of the version it was derived from, None if trained from data alone."""
        number = self.tags.get("parent_version", "")
        # A later version is no parent, whatever the tag says.
        return int(number) if number.isdecimal() and int(number) < self.number else None

    def __str__(self) -> str:
        """Return the version as text for people.

        >>> str(Version("flights", 3, "ab12", "pretrained", "", "", 0))
        'flights v3'
        """
        return f"{self.name} v{self.number}" if self.number else f"{self.name} (not registered yet)"


def from_mlflow(entry: "ModelVersion", aliases: Sequence[str] | None = None) -> Version:
    """Return a version of MLflow as Version; `aliases` replaces those of the entry."""
    return Version(
        name=entry.name,
        number=int(entry.version),
        digest=entry.tags.get("digest", ""),
        kind=entry.tags.get("kind", ""),
        run_id=entry.run_id or "",
        source=entry.source or "",
        created=int(entry.creation_timestamp or 0),
        tags=dict(entry.tags),
        aliases=tuple(sorted(entry.aliases if aliases is None else aliases)),
        description=entry.description or "",
    )
