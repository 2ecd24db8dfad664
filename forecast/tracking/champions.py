"""The history of the champions of a registered model, and the target of a rollback.

The history is a tag of the registered model. Moves of the alias by other tools are noticed when the history is next
read.
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
"""Tag of a champion: the version it last replaced; registries without a history have only this tag."""
DEMOTED: Final = "demoted"
"""Tag of a version that was rolled back: the reason."""
FORCED: Final = "forced"
"""Tag of a version that was promoted by force: the reason of the gate's refusal."""

PROMOTED: Final = "promoted"
ROLLED_BACK: Final = "rolled back"
ELSEWHERE: Final = "by another tool"
_LIMIT: Final = 100
"""Largest number of moves in the history."""


@dataclass(frozen=True)
class Move:
    """A move of the alias `champion` to a version. The field names are JSON keys of the tag."""

    version: int
    at: str
    """ISO timestamp in UTC; empty if unknown."""
    how: str
    """PROMOTED, ROLLED_BACK or ELSEWHERE; empty if unknown."""

    def __str__(self) -> str:
        """Return the move as text for people.

        >>> str(Move(2, "2024-05-01T10:20:30.000000+00:00", "rolled back"))
        'v2 (rolled back, 2024-05-01 10:20)'
        """
        details = ", ".join(filter(None, (self.how, self.at[:16].replace("T", " "))))
        return f"v{self.version} ({details})" if details else f"v{self.version}"


@dataclass(frozen=True)
class Champions:
    """The history of the alias `champion`, and the existing versions."""

    name: str
    versions: Mapping[int, Version]
    number: int | None
    """The version of the alias, which may be deleted; None without the alias."""
    moves: tuple[Move, ...]
    """Oldest first; the last one is to `number`, unless that is None."""
    dangling: Mapping[str, int]
    """Aliases of deleted versions, with their numbers."""
    damage: str = ""
    """Why the history can't be read; `moves` then come from the tags of the versions."""
    description: str = ""
    """Description of the registered model, in Markdown."""

    @property
    def champion(self) -> Version | None:
        """The champion; None if there is none, or it was deleted."""
        return None if self.number is None else self.versions.get(self.number)

    @property
    def line(self) -> list[int]:
        """The champions up to the present one, which is last, without those that were rolled back."""
        return _line(self.moves)

    def was_champion(self, number: int) -> bool:
        """Return whether a version is or was the champion, according to history and tags."""
        tags = self.versions[number].tags if number in self.versions else {}
        return any(move.version == number for move in self.moves) or REPLACED_VERSION in tags or DEMOTED in tags

    def rollback_versions(self) -> list[int]:
        """Return the targets of successive rollbacks."""
        if self.damage:  # No rollback before the history is repaired; all former champions are kept until then.
            return [number for number in sorted(self.versions, reverse=True) if self.was_champion(number)]
        line = self.line
        before = line if self.number is None else line[:-1]
        usable = (number for number in reversed(before) if not self._obstacle(number) and number != self.number)
        return list(dict.fromkeys(usable))

    def target(self) -> tuple[Version | None, str]:
        """Return the target of a rollback; None, and the reason, if there is none."""
        if self.damage:
            return None, f"{self.damage}; set rollback.to to a version"
        if self.number is None:
            return None, f"{self.name} has no champion; set rollback.to to a version"
        if rollback_versions := self.rollback_versions():
            return self.versions[rollback_versions[0]], ""
        champion = f"{self.name} v{self.number}"
        earlier = [number for number in dict.fromkeys(reversed(self.line[:-1])) if number != self.number]
        if not earlier:
            return None, f"{champion} was the first champion" + ("" if self.champion else ", and is deleted")
        why = listing(f"v{number} {self._obstacle(number)}" for number in earlier)
        advice = "; rollback.to returns to a version all the same" if self.versions.keys() & set(earlier) else ""
        return None, f"of the champions before {champion}, {why}{advice}"

    def previous(self, version: Version) -> Version | None:
        """Return the target of a rollback of `version`; None if it is not the champion."""
        return self.target()[0] if version.number == self.number else None

    def rollback_target(self, requested: Version | None) -> Version:
        """Return the target of a rollback, `requested` if that was a champion. Raises RegistryError."""
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
        """Raise GateRefused if the alias has moved since the backtest, or the challenger was rolled back."""
        if self._state() != basis._state():
            raise GateRefused(
                f"{challenger} is not promoted: {self._news()} since it was judged beside {basis._label()}; run "
                "forecast backtest, and promote again"
            )
        why = self.versions[challenger.number].tags.get(DEMOTED) if challenger.number in self.versions else ""
        if why and not challenger.tags.get(DEMOTED):
            raise GateRefused(f"{challenger} is not promoted: it was rolled back since it was judged: {why}")

    def check_rollback(self, basis: "Champions", *, is_requested: bool) -> None:
        """Raise RegistryError if the alias has moved since a rollback was decided, or its target has changed."""
        if self._state() != basis._state():
            raise RegistryError(
                f"nothing was rolled back: {self._news()} since {basis._label()} was looked at; "
                "forecast models list shows what there is now"
            )
        current, expected = (
            f"v{target.number}" if target else "no version" for target, _ in (self.target(), basis.target())
        )
        if not is_requested and current != expected:
            raise RegistryError(
                f"nothing was rolled back: it would return to {current} now, not to {expected}; look again"
            )

    def reasons_to_keep(self, version: Version) -> list[str]:
        """Return the reasons against deleting a version."""
        reasons = []
        if version.aliases:
            reasons.append(
                f"it is the {' and the '.join(version.aliases)}; give the alias to another version before (train, "
                "finetune and promote do)"
            )
        children = [f"v{number}" for number in sorted(self.versions) if self.versions[number].parent == version.number]
        if children:
            reasons.append(f"it is the parent of {listing(children)}; delete these first")
        if version.number in (rollback_versions := self.rollback_versions()):
            way = " -> ".join(f"v{number}" for number in rollback_versions)
            reasons.append(f"it was the champion, and a rollback would need it (rollbacks return to {way})")
        return reasons

    def deleted_champion(self) -> Version | None:
        """Return the champion, possibly deleted, with name and number alone; None without a champion."""
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
        """Yield each move with the time of the next one; empty for the present champion."""
        for move, successor in zip_longest(self.moves, self.moves[1:]):
            yield move, successor.at if successor else ""

    def tag_after(self, number: int, how: str) -> str:
        """Return the text of the tag after a move of the alias to a version."""
        move = Move(number, datetime.now(UTC).isoformat(timespec="microseconds"), how)
        return json.dumps([vars(past_move) for past_move in (*self.moves, move)[-_LIMIT:]], separators=(",", ":"))

    def _obstacle(self, number: int) -> str:
        """Return why a version is no automatic target of rollbacks; empty if it may be."""
        if number not in self.versions:
            return "is deleted"
        why = self.versions[number].tags.get(DEMOTED)
        return f"was rolled back ({why})" if why else ""


def read(name: str, tag: str | None, aliases: Mapping[str, int], versions: Iterable[Version]) -> Champions:
    """Return the history in a tag, updated by later moves of other tools.

    Without a tag, the history is taken from the tags of the versions.
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
        if len(moves) > 1 and moves[-2].version == number:  # The last move was interrupted, or reverted.
            moves = moves[:-1]
        else:
            moves = (*moves, Move(number, "", ELSEWHERE if moves else ""))
    dangling = {alias: holder for alias, holder in sorted(aliases.items()) if holder not in by_number}
    return Champions(name, by_number, number, moves, dangling, damage)


def _parse(tag: str) -> tuple[Move, ...] | None:
    """Return the moves in a tag, None if it is damaged."""
    try:
        content: Any = json.loads(tag)
        moves = tuple(Move(**values) for values in content)
    except (ValueError, TypeError, RecursionError):
        return None
    is_valid = isinstance(content, list) and all(
        type(move.version) is int and move.version > 0 and isinstance(move.at, str) and isinstance(move.how, str)
        for move in moves
    )
    return moves if is_valid else None


def _from_tags(number: int | None, versions: Mapping[int, Version]) -> tuple[Move, ...]:
    """Return the moves to a champion, by the tags that name the version each champion replaced."""
    chain: list[int] = []
    while number is not None and number not in chain:
        chain.append(number)
        replaced = versions[number].tags.get(REPLACED_VERSION, "") if number in versions else ""
        number = int(replaced) if replaced.isdecimal() else None
    return tuple(Move(version, "", "") for version in reversed(chain))


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
