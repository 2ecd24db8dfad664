"""No rule frees a version that has an alias, that a rollback needs, or that a kept version derives from."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.errors import RegistryError
from forecast.retention.versions import check_free, expired_versions, runs_behind
from forecast.tracking.champions import DEMOTED, PROMOTED, ROLLED_BACK, Champions, Move
from forecast.tracking.versions import Version

NAME = "loads"


def version(number: int, aliases: tuple[str, ...] = (), **tags: str) -> Version:
    return Version(NAME, number, f"{number:064x}", "pretrained", f"{number:032x}", "", number, tags, aliases)


@st.composite
def registries(draw: st.DrawFn) -> Champions:
    """A registry with any versions, parents, networks that initialise others, aliases and history of champions."""
    numbers = sorted(draw(st.sets(st.integers(1, 14), min_size=1)))
    versions = {}
    for number in numbers:
        tags = {}
        if number > 1 and draw(st.booleans()):
            tags["parent_version"] = str(draw(st.integers(1, number - 1)))
        if number > 1 and draw(st.integers(0, 4)) == 0:
            tags["init_version"] = f"{NAME} v{draw(st.integers(1, number - 1))}"
        if draw(st.integers(0, 5)) == 0:
            tags[DEMOTED] = "worse"
        aliases = tuple(draw(st.sets(st.sampled_from(["challenger", "pretrained"]), max_size=1)))
        versions[number] = version(number, aliases, **tags)
    # Moves may name versions that were deleted.
    chain = draw(st.lists(st.tuples(st.integers(1, 14), st.sampled_from([PROMOTED, ROLLED_BACK])), max_size=6))
    moves = tuple(Move(number, "", how) for number, how in chain)
    champion = moves[-1].version if moves else None
    if champion in versions:
        before = versions[champion]
        versions[champion] = version(champion, (*before.aliases, "champion"), **before.tags)
    damage = "the history can't be read" if draw(st.integers(0, 6)) == 0 else ""
    return Champions(NAME, versions, champion, moves, {}, damage)


def origins(entry: Version) -> set[int]:
    init = re.fullmatch(rf"{NAME} v(\d+)", entry.tags.get("init_version", ""))
    return {number for number in (entry.parent, int(init[1]) if init else None) if number}


@given(registries(), st.integers(0, 6), st.sets(st.integers(1, 14), max_size=2))
def test_what_is_needed_never_goes(champions: Champions, keep: int, needed: set[int]) -> None:
    expired, reasons = expired_versions(champions, keep, dict.fromkeys(needed, "it is needed"))
    gone = {entry.number for entry in expired}
    kept = champions.versions.keys() - gone
    assert kept == reasons.keys()
    assert not any(entry.aliases for entry in expired)
    assert not gone & (needed | set(champions.rollback_versions()))
    assert not gone & {origin for number in kept for origin in origins(champions.versions[number])}
    plain = [number for number in sorted(champions.versions, reverse=True) if not champions.versions[number].aliases]
    assert set(plain[:keep]) <= kept
    # Nothing stays without a reason: each kept version is one of these, or the origin of one.
    roots = {number for number in kept if champions.versions[number].aliases} | needed | set(plain[:keep])
    closure = (roots | set(champions.rollback_versions())) & champions.versions.keys()
    while (
        more := {o for number in closure for o in origins(champions.versions[number])}
        & champions.versions.keys() - closure
    ):
        closure |= more
    assert kept == closure
    # The order is one in which each deletion is allowed, and a second run has nothing to do.
    left = dict(champions.versions)
    for entry in expired:
        rest = Champions(NAME, left, champions.number, champions.moves, {}, champions.damage)
        assert not rest.reasons_to_keep(entry)
        del left[entry.number]
    rest = Champions(NAME, left, champions.number, champions.moves, {}, champions.damage)
    assert expired_versions(rest, keep, dict.fromkeys(needed, "it is needed"))[0] == []


@given(registries(), st.sets(st.integers(1, 14), min_size=1, max_size=4))
def test_versions_that_are_named_are_freed_only_if_nothing_needs_them(champions: Champions, names: set[int]) -> None:
    names &= champions.versions.keys()
    stay = {number: entry for number, entry in champions.versions.items() if number not in names}
    blocked = {number for number in names if champions.versions[number].aliases}
    blocked |= names & set(champions.rollback_versions())
    blocked |= names & {origin for entry in stay.values() for origin in origins(entry)}
    while more := names & {o for number in blocked for o in origins(champions.versions[number])} - blocked:
        blocked |= more
    if not blocked:
        check_free(champions, names)
        return
    with pytest.raises(RegistryError) as refused:
        check_free(champions, names)
    assert {int(number) for number in re.findall(r"[:;] v(\d+):", str(refused.value))} == blocked


def test_the_runs_behind_a_version_are_those_of_its_training_and_of_its_tags() -> None:
    entry = version(3, backtest_run="ab" * 16, data_digest="cd" * 32, kind="pretrained")
    assert runs_behind([entry]) == {f"{3:032x}", "ab" * 16}
