"""Manifests of scores: which forecasts are complete, of which cutoff and model, and where their files are."""

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
"""In the order in which they are written."""
MANIFESTS: Final = "manifests"

LAYOUT: Final = 2
"""Of the output. Before it had a number, forecasts were in hive folders of one model, and rows did not name it."""
_LONG_NAME: Final = 120


class ForecastKey(NamedTuple):
    """Which forecasts: those of a cutoff by a version of a model."""

    cutoff: datetime
    model: str
    version: str
    digest: str
    is_legacy: bool = False
    """Whether they are laid out as before LAYOUT."""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "ForecastKey":
        """Return the key of a manifest."""
        model, version, digest = (str(content[name]) for name in ("model", "model_version", "model_digest"))
        return cls(cutoff_moment(content), model, version, digest, is_legacy=content.get("layout", 1) < LAYOUT)

    @property
    def folder(self) -> str:
        """The name of the folder with its files: no `key=value`, of which readers would make a column."""
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
    """Return what names of manifests begin with: a colon is %3A.

    >>> partition(datetime(2024, 1, 31, 23))
    'cutoff=2024-01-31T23%3A00%3A00'
    """
    return f"{CUTOFF}={cutoff:%Y-%m-%dT%H%%3A%M%%3A%S%z}"


def file_name(model: str) -> str:
    """Return the name of a model as a part of file names.

    >>> file_name("loads of Köln")
    'loads%20of%20K%C3%B6ln'
    """
    name = quote(model, safe="")
    return name if len(name) <= _LONG_NAME else f"{name[:100]}-{hashlib.sha256(model.encode()).hexdigest()[:12]}"


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of a manifest. Raises DataError for one that is not whole."""
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
    """Return the manifests of a scores folder, of one model or all: by cutoff, then by when they became current.

    Raises DataError for one that is not whole.
    """
    contents = map(read_manifest, (folder / MANIFESTS).glob(f"{CUTOFF}=*.json"))
    return in_order(content for content in contents if model in (None, content["model"]))


def in_order(contents: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return manifests by cutoff, then by when they became current."""
    return sorted(map(dict, contents), key=lambda content: (in_utc(cutoff_moment(content)), current_since(content)))


def current(contents: Iterable[Mapping[str, Any]], *, out_of_sample: bool = False) -> list[dict[str, Any]]:
    """Return one manifest of each cutoff and model: that of the version whose forecasts became current last.

    With `out_of_sample`, one of a version that was not trained on what it forecasts comes first, if there is any.
    """
    chosen: dict[tuple[str, datetime], dict[str, Any]] = {}
    for content in in_order(contents):
        place = content["model"], in_utc(cutoff_moment(content))
        held = chosen.get(place)
        if not (out_of_sample and held and is_in_sample(content) and not is_in_sample(held)):
            chosen[place] = content
    return in_order(chosen.values())


def current_since(content: Mapping[str, Any]) -> str:
    """Return when forecasts became the ones that count for their cutoff: when they were written, or confirmed."""
    return str(content.get("current_since") or content.get("written_at") or "")


def is_in_sample(content: Mapping[str, Any]) -> bool:
    """Return whether the version was trained on steps after the cutoff; not, if the manifest does not say."""
    until = training_end(content)
    return until is not None and in_utc(cutoff_moment(content)) < in_utc(until)


def is_superseded(folder: Path, content: Mapping[str, Any]) -> bool:
    """Return whether another version of the model has forecast the cutoff later."""
    key = ForecastKey.of(content)
    others = (read_manifest(path) for path in (folder / MANIFESTS).glob(f"{partition(key.cutoff)}.*json"))
    return any(
        other["model"] == key.model and current_since(other) > current_since(content)
        for other in others
        if ForecastKey.of(other) != key
    )


def legacy_key(folder: Path, key: ForecastKey) -> ForecastKey | None:
    """Return the key of the same forecasts in the layout before, None if there are none."""
    legacy = key._replace(is_legacy=True)
    path = folder / MANIFESTS / legacy.manifest
    # The name has the cutoff; moments in an hour that comes twice are never equal across kinds of time zones.
    return legacy if path.is_file() and ForecastKey.of(read_manifest(path))[1:] == legacy[1:] else None


def models_of(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the models that have made forecasts."""
    return sorted({str(content["model"]) for content in contents})


def cutoff_moment(content: Mapping[str, Any]) -> datetime:
    """Return the cutoff of a manifest. Raises KeyError, ValueError."""
    return datetime.fromisoformat(content[CUTOFF])


def training_end(content: Mapping[str, Any]) -> datetime | None:
    """Return the last moment that the version of a manifest was trained on; None where it does not say. ValueError."""
    until = content.get("trained_until")
    return None if until is None else datetime.fromisoformat(until)


def written_at(content: Mapping[str, Any]) -> datetime:
    """Return when a cutoff was scored; its file's time where the manifest does not say. Raises ValueError."""
    return in_utc(datetime.fromisoformat(content["written_at"]))


def in_utc(moment: datetime) -> datetime:
    """Return a moment with a time zone, UTC where it has none, so that moments can be sorted."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
