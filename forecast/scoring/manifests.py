"""Manifests of scores: the complete forecasts by cutoff and model, and their files."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from forecast.errors import DataError
from forecast.names import CUTOFF

Kind = Literal["rejects", "forecasts"]
FORECASTS: Final = "forecasts"
REJECTS: Final = "rejects"
KINDS: Final[tuple[Kind, ...]] = (REJECTS, FORECASTS)
"""Kinds of output, in the order of writing."""
MANIFESTS: Final = "manifests"
FAILED_SHARDS: Final = "failed_shards"
"""Key of manifests with shards that failed on all attempts, which the next job tries again."""

LAYOUT: Final = 2
"""Version of the output layout. The unnumbered layout before it had hive folders for one model, not named in rows."""
_LONG_NAME: Final = 120


class ForecastKey(NamedTuple):
    """Identity of forecasts: a cutoff and a version of a model."""

    cutoff: datetime
    model: str
    version: str
    digest: str
    is_legacy: bool = False
    """Whether they are in the layout before LAYOUT."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "ForecastKey":
        """Return the key of a manifest."""
        model, version, digest = (str(content[name]) for name in ("model", "model_version", "model_digest"))
        return cls(cutoff_moment(content), model, version, digest, is_legacy=content.get("layout", 1) < LAYOUT)

    @property
    def folder(self) -> str:
        """Name of the folder with its files; not `key=value`, which readers would turn into a column."""
        return partition(self.cutoff) if self.is_legacy else f"{self.cutoff:%Y-%m-%dT%H-%M-%S%z}.{self._name}"

    @property
    def manifest(self) -> str:
        """The file name of its manifest."""
        name = partition(self.cutoff)
        return f"{name}.json" if self.is_legacy else f"{name}.{self._name}.json"

    @property
    def _name(self) -> str:
        return f"{file_name(self.model)}.v{self.version}.{self.digest[:8]}"


def partition(cutoff: datetime) -> str:
    """Return the first part of manifest names, with %3A for colons.

    >>> partition(datetime(2024, 1, 31, 23))
    'cutoff=2024-01-31T23%3A00%3A00'
    """
    return f"{CUTOFF}={cutoff:%Y-%m-%dT%H%%3A%M%%3A%S%z}"


def file_name(model: str) -> str:
    """Return the name of a model, quoted for file names.

    >>> file_name("loads of Köln")
    'loads%20of%20K%C3%B6ln'
    """
    name = quote(model, safe="")
    return name if len(name) <= _LONG_NAME else f"{name[:100]}-{hashlib.sha256(model.encode()).hexdigest()[:12]}"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a manifest. Raises DataError for a damaged one."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        ForecastKey.of(content)
        training_end(content)
        content.setdefault("written_at", datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat())
        written_at(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} can't be read ({error}); delete it, and score its cutoff again") from None
    return content


def read_manifests(folder: Path, model: str | None = None) -> list[dict[str, Any]]:
    """Return the manifests of a scores folder, of one model or all, as sorted by `in_order`.

    Raises DataError for a damaged one.
    """
    contents = map(read_manifest, (folder / MANIFESTS).glob(f"{CUTOFF}=*.json"))
    return in_order(content for content in contents if model in (None, content["model"]))


def in_order(contents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return manifests sorted by cutoff, then by the time they became current."""
    return sorted(map(dict, contents), key=lambda content: (in_utc(cutoff_moment(content)), current_since(content)))


def current(contents: Iterable[Mapping[str, Any]], *, out_of_sample: bool = False) -> list[dict[str, Any]]:
    """Return one manifest per cutoff and model: the one that became current last.

    With `out_of_sample`, a version that was not trained on the cutoff's future takes precedence.
    """
    latest: dict[tuple[str, datetime], dict[str, Any]] = {}
    for content in in_order(contents):
        slot = content["model"], in_utc(cutoff_moment(content))
        previous = latest.get(slot)
        if not (out_of_sample and previous and is_in_sample(content) and not is_in_sample(previous)):
            latest[slot] = content
    return in_order(latest.values())


def current_since(content: Mapping[str, Any]) -> str:
    """Return the time at which forecasts became current for their cutoff: when written, or confirmed later."""
    return str(content.get("current_since") or content.get("written_at") or "")


def is_in_sample(content: Mapping[str, Any]) -> bool:
    """Return whether the version was trained on steps after the cutoff; False if not recorded."""
    until = training_end(content)
    return until is not None and in_utc(cutoff_moment(content)) < in_utc(until)


def is_superseded(folder: Path, content: Mapping[str, Any]) -> bool:
    """Return whether forecasts of the cutoff by another version became current later."""
    key = ForecastKey.of(content)
    manifests = (read_manifest(path) for path in (folder / MANIFESTS).glob(f"{partition(key.cutoff)}.*json"))
    return any(
        manifest["model"] == key.model and current_since(manifest) > current_since(content)
        for manifest in manifests
        if ForecastKey.of(manifest) != key
    )


def legacy_key(folder: Path, key: ForecastKey) -> ForecastKey | None:
    """Return the key of the same forecasts in the earlier layout, None if there are none."""
    legacy = key._replace(is_legacy=True)
    path = folder / MANIFESTS / legacy.manifest
    # The file name identifies the cutoff; moments in a repeated hour never compare equal across kinds of time zones.
    return legacy if path.is_file() and ForecastKey.of(read_manifest(path))[1:] == legacy[1:] else None


def models_of(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the models with forecasts."""
    return sorted({str(content["model"]) for content in contents})


def cutoff_moment(content: Mapping[str, Any]) -> datetime:
    """Return the cutoff of a manifest. Raises KeyError, ValueError."""
    return datetime.fromisoformat(content[CUTOFF])


def training_end(content: Mapping[str, Any]) -> datetime | None:
    """Return the last moment of the version's training data, None if not recorded. Raises ValueError."""
    until = content.get("trained_until")
    return None if until is None else datetime.fromisoformat(until)


def written_at(content: Mapping[str, Any]) -> datetime:
    """Return the time at which a cutoff was scored. Raises KeyError, ValueError."""
    return in_utc(datetime.fromisoformat(content["written_at"]))


def in_utc(moment: datetime) -> datetime:
    """Return a moment with a time zone, UTC if it has none, so that all moments are comparable."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
