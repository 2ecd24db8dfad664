"""Digests of the inputs of carried states: what they see, and what they do not depend on."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.data.panel import Panel
from forecast.data.time.grid import Frequency, Grid
from forecast.scoring.state_digests import Digests, digest_inputs

HORIZON = 2
VALUES = st.sampled_from([np.nan, -1.0, -0.0, 0.0, 1.0, 2.0, 1e-30, 3.4e38])


def panel(*lengths: int, dtype: type = np.float32, seed: int = 0) -> Panel:
    """Series of these lengths with two past covariates, one known, and static ones."""
    rng = np.random.default_rng(seed)
    n, total = len(lengths), sum(lengths)
    return Panel(
        grid=Grid(Frequency.parse("1h"), (0,), None),
        series_id=np.array([f"s{number:03d}" for number in range(n)], dtype=np.object_),
        offsets=np.append(0, np.cumsum(lengths)),
        start=np.arange(n) * 3,
        target=rng.normal(size=total).astype(dtype),
        past=rng.normal(size=(2, total)).astype(np.float32),
        known=rng.normal(size=(1, total + n * HORIZON)).astype(np.float32),
        calendar=np.zeros((0, 0), np.float32),
        calendar_start=0,
        clock_shift=np.zeros(0, np.int64),
        horizon=HORIZON,
        static_categories=rng.integers(0, 5, size=(n, 1)),
        static_numbers=rng.normal(size=(n, 1)).astype(np.float32),
    )


def digests(shard: Panel, *steps: int) -> Digests:
    """Digests of the first steps of each series (all of them without any), [cutoff, S, 16]."""
    counts = [np.minimum(count, shard.lengths) for count in steps] or [shard.lengths]
    return digest_inputs(shard, counts, [count + 1 for count in counts])


def of_target(values: list[float], dtype: type = np.float32) -> bytes:
    """The digest of one series with these targets and nothing else."""
    one = panel(len(values), dtype=dtype)
    one = replace(one, target=np.array(values, dtype), past=one.past[:0], known=one.known[:0])
    one = replace(one, static_numbers=np.zeros((1, 0), np.float32), static_categories=np.zeros((1, 0), np.int64))
    return digests(one).tobytes()


def trimmed(values: list[float]) -> bytes:
    """The values up to the last that is there."""
    observed = np.flatnonzero(~np.isnan(values))
    return np.array(values[: observed[-1] + 1 if len(observed) else 0]).tobytes()


@settings(deadline=None, max_examples=150)
@given(st.lists(VALUES, min_size=1, max_size=12), st.lists(VALUES, min_size=1, max_size=12), st.booleans())
def test_targets_have_one_digest_only_if_they_are_the_same_up_to_gaps_at_the_end(
    one: list[float], other: list[float], wide: bool
) -> None:
    dtype = np.float64 if wide else np.float32
    assert (of_target(one, dtype) == of_target(other, dtype)) == (trimmed(one) == trimmed(other))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_each_change_of_one_series_is_seen_and_of_no_other(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(2, 9), min_size=2, max_size=5))
    shard = panel(*lengths, dtype=data.draw(st.sampled_from([np.float32, np.float64])))
    series = data.draw(st.integers(0, len(lengths) - 1))
    begin, length = int(shard.offsets[series]), lengths[series]
    step = begin + data.draw(st.integers(0, length - 1))
    kind = data.draw(
        st.sampled_from(["target", "missing", "swap", "blank", "past", "rows", "known", "start", "number", "category"])
    )
    buffers = {
        name: getattr(shard, name).copy()
        for name in ("target", "past", "known", "start", "static_numbers", "static_categories")
    }
    whole = slice(begin, begin + length)
    if kind == "target":
        buffers["target"][step] = np.nextafter(buffers["target"][step], buffers["target"].dtype.type(9))
    elif kind == "missing":
        buffers["target"][step] = np.nan
    elif kind == "swap":
        buffers["target"][whole] = buffers["target"][whole][::-1].copy()
    elif kind == "blank":
        buffers["target"][whole] = np.append(np.nan, buffers["target"][whole][:-1])
    elif kind == "past":
        buffers["past"][1, step] *= -1
    elif kind == "rows":
        buffers["past"][:, step] = buffers["past"][::-1, step].copy()
    elif kind == "known":
        buffers["known"][0, step + series * HORIZON] += 1
    elif kind == "start":
        buffers["start"][series] += 1
    else:
        buffers["static_numbers" if kind == "number" else "static_categories"][series] += 1
    differs = (digests(replace(shard, **buffers)) != digests(shard)).any((0, 2))
    assert differs.tolist() == [number == series for number in range(len(lengths))]


def test_many_sign_changes_and_swapped_series_are_seen() -> None:
    values = np.ones(30)
    seen = set()
    for first in range(30):
        for second in range(first):
            values[[first, second]] = -1
            seen.add(of_target(values.tolist(), np.float64))
            values[[first, second]] = 1
    assert len(seen) == 30 * 29 // 2
    shard = panel(5, 5)
    swapped = replace(shard, target=np.roll(shard.target, 5))
    assert (digests(shard) != digests(swapped)).any(2).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 40))
def test_the_digest_of_a_cutoff_depends_neither_on_others_nor_on_later_steps(
    lengths: list[int], first: int, further: int
) -> None:
    shard = panel(*lengths)
    both = digests(shard, first, first + further)
    np.testing.assert_array_equal(both, np.concatenate([digests(shard, first), digests(shard, first + further)]))
    later = np.arange(len(shard.target)) - np.repeat(shard.offsets[:-1], shard.lengths) >= first
    changed = replace(shard, target=np.where(later, np.float32(7), shard.target), past=np.where(later, 7, shard.past))
    np.testing.assert_array_equal(digests(changed, first), digests(shard, first))


@pytest.mark.parametrize("lengths", [(20_000,) * 5, (1, 70_000, 0, 3, 31_000, 40_000, 2)])
def test_series_have_the_digest_that_they_have_alone(lengths: tuple[int, ...]) -> None:
    shard = panel(*lengths)
    together = digests(shard)
    for number in range(len(lengths)):
        np.testing.assert_array_equal(digests(shard.rows(number, number + 1))[0, 0], together[0, number])


def test_a_series_without_steps_has_no_start() -> None:
    shard = panel(4, 4)
    moved = replace(shard, start=shard.start + 1)
    np.testing.assert_array_equal(digests(shard, 0), digests(moved, 0))
    assert (digests(shard, 1) != digests(moved, 1)).any()


def test_digests_stay_what_they_are() -> None:
    """Those of another release would recompute each state."""
    assert digests(panel(3))[0, 0].tobytes().hex() == "863402c72c9be7ecdd678a976b4821fe"
