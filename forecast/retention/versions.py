"""The versions that may go: those without an alias, beyond the newest, that nothing needs."""

import re
from collections.abc import Collection, Mapping
from typing import Final

from forecast.errors import RegistryError
from forecast.tracking.champions import Champions
from forecast.tracking.versions import INIT_VERSION, Version

_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")


def needed_versions(champions: Champions, needed: Mapping[int, str] | None = None) -> dict[int, str]:
    """Return the versions that never go, by number, with the reason.

    They have an alias, a rollback would return to them, or `needed` says why; and all that they derive from.
    """
    reasons = {}
    for version in champions.versions.values():
        if version.aliases:
            reasons[version.number] = f"it is the {' and the '.join(version.aliases)}"
    for number in champions.rollback_versions():
        reasons.setdefault(number, "it was the champion, and a rollback would need it")
    for number, reason in (needed or {}).items():
        if number in champions.versions:
            reasons.setdefault(number, reason)
    return _with_origins(champions, reasons)


def expired_versions(
    champions: Champions, keep: int, needed: Mapping[int, str] | None = None
) -> tuple[list[Version], dict[int, str]]:
    """Return the versions that go, newest first, if the newest `keep` without an alias stay.

    The second value has the versions that stay, with the reason.
    """
    reasons = needed_versions(champions, needed)
    newest = sorted((number for number, version in champions.versions.items() if not version.aliases), reverse=True)
    for number in newest[:keep]:
        reasons.setdefault(number, f"it is one of the newest {keep:,} without an alias")
    reasons = _with_origins(champions, reasons)
    return [champions.versions[number] for number in newest if number not in reasons], reasons


def check_free(champions: Champions, numbers: Collection[int], needed: Mapping[int, str] | None = None) -> None:
    """Raise RegistryError if versions that somebody names have an alias, or are needed by versions that stay."""
    reasons = needed_versions(champions, needed)
    stay = dict.fromkeys(champions.versions.keys() - set(numbers), "it stays")
    reasons |= {number: reason for number, reason in _with_origins(champions, stay).items() if number not in stay}
    refused = [f"v{number}: {reasons[number]}" for number in sorted(numbers) if number in reasons]
    if refused:
        raise RegistryError(
            f"retain.free: {len(refused):,} of {len(set(numbers)):,} versions can't go, so nothing was freed: "
            f"{'; '.join(refused)}; leave these out"
        )


def runs_behind(versions: Collection[Version]) -> set[str]:
    """Return the ids of the runs that created the versions, or that their tags name."""
    ids = {version.run_id for version in versions}
    return ids | {value for version in versions for value in version.tags.values() if _RUN_ID.fullmatch(value)}


def _with_origins(champions: Champions, reasons: Mapping[int, str]) -> dict[int, str]:
    """Return the reasons with those of parents, and of versions whose network initialised one of them."""
    result, waiting = dict(reasons), list(reasons)
    while waiting:
        child = champions.versions[waiting.pop()]
        for number, relation in _origins(champions.name, child):
            if number in champions.versions and number not in result:
                result[number] = f"it is the {relation} v{child.number}"
                waiting.append(number)
    return result


def _origins(name: str, version: Version) -> list[tuple[int, str]]:
    init = re.fullmatch(re.escape(name) + r" v(\d+)", version.tags.get(INIT_VERSION, ""))
    origins = [(version.parent, "parent of")] if version.parent else []
    return [*origins, *([(int(init[1]), "network that initialised")] if init else [])]
