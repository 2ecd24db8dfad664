"""The champions of a registered model: which version it was when, and what a rollback returns to.

The history is a tag of the registered model. What other tools do to the alias is seen when the history is next read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, Final

from forecast.errors import GateRefused, RegistryError, listing
from forecast.names import CHAMPION
from forecast.tracking.versions import Version

CHAMPIONS: Final = "champions"
"""Tag of the registered model: the moves of its alias `champion`, as JSON."""
REPLACED_VERSION: Final = "replaced_version"
"""Tag of a champion: the version it took over from when it last became champion; registries without a history have
that alone."""
DEMOTED: Final = "demoted"
"""Tag of a version that was rolled back: why."""
FORCED: Final = "forced"
"""Tag of a version that became champion against the gate: why the gate refused it."""

PROMOTED: Final = "promoted"
ROLLED_BACK: Final = "rolled back"
ELSEWHERE: Final = "by another tool"
_LIMIT: Final = 100
"""Moves that are kept."""


@dataclass(frozen=True)
class Move:
    """The alias `champion` came to a version."""

    version: int
    at: str
    """ISO timestamp in UTC; empty where it is not known."""
    how: str
    """PROMOTED, ROLLED_BACK or ELSEWHERE; empty where it is not known."""

    def __str__(self) -> str:
        """Return the move as people read it.

        >>> str(Move(2, "2024-05-01T10:20:30.000000+00:00", "rolled back"))
        'v2 (rolled back, 2024-05-01 10:20)'
        """
        details = ", ".join(filter(None, (self.how, self.at[:16].replace("T", " "))))
        return f"v{self.version} ({details})" if details else f"v{self.version}"


@dataclass(frozen=True)
class Champions:
    """The history of the alias `champion`, and the versions that there are."""

    name: str
    versions: Mapping[int, Version]
    number: int | None
    """The version that the alias means, None where there is no such alias. It may be deleted."""
    moves: tuple[Move, ...]
    """The oldest first; the last one is to `number`, if that is not None."""
    dangling: Mapping[str, int]
    """The aliases of versions that are deleted, with the numbers of these."""
    damage: str = ""
    """Why the history can't be read; `moves` are then what the tags of the versions say."""

    @property
    def champion(self) -> Version | None:
        """The champion; None where there is none, and where it was deleted."""
        return None if self.number is None else self.versions.get(self.number)

    @property
    def line(self) -> list[int]:
        """The champions that led to the present one, which is the last. Those that were rolled back are left out."""
        return _line(self.moves)

    def was_champion(self, number: int) -> bool:
        """Return whether a version is or was the champion, as far as is known."""
        tags = self.versions[number].tags if number in self.versions else {}
        return any(move.version == number for move in self.moves) or REPLACED_VERSION in tags or DEMOTED in tags

    def way_back(self) -> list[int]:
        """Return the versions that rollbacks would return to, one after the other."""
        if self.damage:  # Nothing is returned to before it is mended, and nothing that might be is lost.
            return [number for number in sorted(self.versions, reverse=True) if self.was_champion(number)]
        line = self.line
        before = line if self.number is None else line[:-1]
        usable = (number for number in reversed(before) if not self._obstacle(number) and number != self.number)
        return list(dict.fromkeys(usable))

    def target(self) -> tuple[Version | None, str]:
        """Return the version that a rollback returns to; None, and why, if there is none."""
        if self.damage:
            return None, f"{self.damage}; set rollback.to to a version"
        if self.number is None:
            return None, f"{self.name} has no champion; set rollback.to to a version"
        if way_back := self.way_back():
            return self.versions[way_back[0]], ""
        champion = f"{self.name} v{self.number}"
        earlier = [number for number in dict.fromkeys(reversed(self.line[:-1])) if number != self.number]
        if not earlier:
            return None, f"{champion} was the first champion" + ("" if self.champion else ", and is deleted")
        why = listing(f"v{number} {self._obstacle(number)}" for number in earlier)
        advice = "; rollback.to returns to a version all the same" if self.versions.keys() & set(earlier) else ""
        return None, f"of the champions before {champion}, {why}{advice}"

    def previous(self, version: Version) -> Version | None:
        """Return the version that a rollback of `version` returns to; None if it is not the champion."""
        return self.target()[0] if version.number == self.number else None

    def rollback_target(self, requested: Version | None) -> Version:
        """Return the version that a rollback returns to, `requested` if that may be. Raises RegistryError."""
        if requested is None:
            target, why = self.target()
            if target is None:
                raise RegistryError(f"nothing to roll back to: {why}")
            return target
        if not self.damage and not self.was_champion(requested.number):
            earlier = (f"v{number}" for number in sorted({move.version for move in self.moves} & set(self.versions)))
            raise RegistryError(
                f"{requested} was never the champion of {self.name}, so there is no way back to it; set rollback.to to "
                f"one that was ({listing(earlier, 20) or 'there is none'}), or promote it"
            )
        return requested

    def check(self, basis: "Champions", challenger: Version) -> None:
        """Raise GateRefused if the alias has moved since the challenger was judged, or it was rolled back."""
        if self._state() != basis._state():
            raise GateRefused(
                f"{challenger} is not promoted: {self._news()} since it was judged beside {basis._label()}; run "
                "forecast backtest, and promote again"
            )
        why = self.versions[challenger.number].tags.get(DEMOTED) if challenger.number in self.versions else ""
        if why and not challenger.tags.get(DEMOTED):
            raise GateRefused(f"{challenger} is not promoted: it was rolled back since it was judged: {why}")

    def check_rollback(self, basis: "Champions", *, is_requested: bool) -> None:
        """Raise RegistryError if the alias has moved since a rollback was decided, or it would go elsewhere now."""
        if self._state() != basis._state():
            raise RegistryError(
                f"nothing was rolled back: {self._news()} since {basis._label()} was looked at; "
                "forecast models list shows what there is now"
            )
        now, then = (f"v{target.number}" if target else "no version" for target, _ in (self.target(), basis.target()))
        if not is_requested and now != then:
            raise RegistryError(f"nothing was rolled back: it would return to {now} now, not to {then}; look again")

    def reasons_to_keep(self, version: Version) -> list[str]:
        """Return why a version should not be deleted."""
        reasons = []
        if version.aliases:
            reasons.append(
                f"it is the {' and the '.join(version.aliases)}; give the alias to another version before (train, "
                "finetune and promote do)"
            )
        children = [f"v{number}" for number in sorted(self.versions) if self.versions[number].parent == version.number]
        if children:
            reasons.append(f"it is the parent of {listing(children)}; delete these first")
        if version.number in (way_back := self.way_back()):
            way = " -> ".join(f"v{number}" for number in way_back)
            reasons.append(f"it was the champion, and a rollback would need it (rollbacks return to {way})")
        return reasons

    def deleted_champion(self) -> Version | None:
        """Return what is known of a champion that was deleted, None where there is no champion."""
        return None if self.number is None else Version(self.name, self.number, "", "", "", "", 0)

    def _state(self) -> tuple[int | None, tuple[Move, ...]]:
        return self.number, self.moves[-1:]

    def _label(self) -> str:
        return "no champion" if self.number is None else f"{self.name} v{self.number}"

    def _news(self) -> str:
        if self.number is None:
            return f"the champion of {self.name} has lost its alias"
        return f"{self.name} v{self.number} has become champion ({self.moves[-1].how or 'promoted'})"

    def reigns(self) -> Iterator[tuple[Move, str]]:
        """Yield the moves with the moment that each one's version was followed by another; empty for the present."""
        for move, successor in zip_longest(self.moves, self.moves[1:]):
            yield move, successor.at if successor else ""

    def tag_after(self, number: int, how: str) -> str:
        """Return the text of the tag once the alias has moved to a version."""
        move = Move(number, datetime.now(UTC).isoformat(timespec="microseconds"), how)
        return json.dumps([vars(each) for each in (*self.moves, move)[-_LIMIT:]], separators=(",", ":"))

    def _obstacle(self, number: int) -> str:
        """Return why no rollback returns to a version unasked; empty if one may."""
        if number not in self.versions:
            return "is deleted"
        why = self.versions[number].tags.get(DEMOTED)
        return f"was rolled back ({why})" if why else ""


def read(name: str, tag: str | None, aliases: Mapping[str, int], versions: Iterable[Version]) -> Champions:
    """Return the history in a tag, with what another tool has done to the alias since.

    Without a tag it is what the versions say that were promoted before there was a history.
    """
    by_number, number = {version.number: version for version in versions}, aliases.get(CHAMPION)
    moves, damage = None, ""
    if tag:
        moves = _parse(tag)
        if moves is None:
            damage = f"the history of champions, the tag `{CHAMPIONS}` of the registered model {name}, can't be read"
    if moves is None:
        moves = _from_tags(number, by_number)
    if number is not None and (not moves or moves[-1].version != number):
        if len(moves) > 1 and moves[-2].version == number:  # The last one was cut short, or taken back.
            moves = moves[:-1]
        else:
            moves = (*moves, Move(number, "", ELSEWHERE if moves else ""))
    dangling = {alias: holder for alias, holder in sorted(aliases.items()) if holder not in by_number}
    return Champions(name, by_number, number, moves, dangling, damage)


def _parse(tag: str) -> tuple[Move, ...] | None:
    """Return the moves in a tag, None if it is damaged."""
    try:
        content: Any = json.loads(tag)
        moves = tuple(Move(**each) for each in content)
    except (ValueError, TypeError, RecursionError):
        return None
    is_whole = isinstance(content, list) and all(
        type(move.version) is int and move.version > 0 and isinstance(move.at, str) and isinstance(move.how, str)
        for move in moves
    )
    return moves if is_whole else None


def _from_tags(number: int | None, versions: Mapping[int, Version]) -> tuple[Move, ...]:
    """Return the moves to a champion by the one version that each remembers to have replaced."""
    chain: list[int] = []
    while number is not None and number not in chain:
        chain.append(number)
        replaced = versions[number].tags.get(REPLACED_VERSION, "") if number in versions else ""
        number = int(replaced) if replaced.isdecimal() else None
    return tuple(Move(each, "", "") for each in reversed(chain))


def _line(moves: Iterable[Move]) -> list[int]:
    """Return the versions from the first to the present champion, without those that were rolled back.

    >>> _line([Move(1, "", PROMOTED), Move(2, "", PROMOTED), Move(1, "", PROMOTED)])
    [1, 2, 1]
    >>> _line([Move(1, "", PROMOTED), Move(2, "", PROMOTED), Move(1, "", ROLLED_BACK)])
    [1]
    """
    line: list[int] = []
    for move in moves:
        if move.how in (ROLLED_BACK, ELSEWHERE) and move.version in line:
            while line[-1] != move.version:
                line.pop()
        elif not line or line[-1] != move.version:
            line.append(move.version)
    return line
