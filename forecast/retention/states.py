"""The carried states that may go: of old cutoffs, and of versions that go. A later job computes a state anew.

A folder of a state is renamed before it is removed, so that no index names files that are gone.
"""

import json
import shutil
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from forecast.config import RetainSettings
from forecast.names import SHADOW
from forecast.retention.forecasts import oldest_kept
from forecast.retention.items import STATE, Item
from forecast.scoring.manifests import in_utc

_FREEING: Final = ".freeing-"
_INDEX: Final = "state.json"


def state_items(settings: RetainSettings, since: datetime | None, digests: Collection[str]) -> list[Item]:
    """Return the states that go: those before `since`, a cutoff in UTC, or of models with these digests.

    Without `since`, the rules count from the latest state. `retain.state` is the folder of score.state.
    """
    assert settings.state is not None
    states = list(_states(Path(settings.state)))
    moments = sorted(moment for _, moment, _ in states)
    if since is None and moments:
        since = oldest_kept(moments, settings)
    items = []
    for folder, moment, digest in states:
        if digest in digests:
            items.append(_item(folder, "its version goes"))
        elif since is not None and moment < since:
            items.append(_item(folder, f"before {since:%Y-%m-%dT%H:%M} ({settings.forecast_rule})"))
    begun = [folder for root in _roots(Path(settings.state)) for folder in sorted(root.glob(f"{_FREEING}*"))]
    return [*(_item(folder, "a killed job had begun to free it") for folder in begun), *items]


def _roots(folder: Path) -> list[Path]:
    """Return the folders with states: of the version, of its evaluated weights, and of its shadow."""
    return [root / part for root in (folder, Path(f"{folder}-{SHADOW}")) for part in ("", "evaluated")]


def _states(folder: Path) -> Iterator[tuple[Path, datetime, str]]:
    """Yield the folder of each readable state, with its cutoff in UTC and the digest of its model."""
    for root in _roots(folder):
        for index in sorted(root.glob(f"phase-*/{_INDEX}")):
            try:
                content: Any = json.loads(index.read_text(encoding="utf-8"))
                yield index.parent, in_utc(datetime.fromisoformat(content["cutoff"])), str(content["model_digest"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # The next scoring job says so, and makes it anew.


def _item(folder: Path, reason: str) -> Item:
    def free() -> int:
        renamed = folder if folder.name.startswith(_FREEING) else folder.with_name(f"{_FREEING}{folder.name}")
        size = _size(folder)
        if renamed != folder:
            shutil.rmtree(renamed, ignore_errors=True)
            folder.rename(renamed)
        shutil.rmtree(renamed)
        return size

    return Item(STATE, str(folder), _size(folder), reason, free)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
