"""Windows as (series, cutoff): which are held out, which are drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import (
    OriginSampler,
    WindowIndex,
    held_out_windows,
    overlap,
    sample_origins,
    usable_lengths,
    windows_at,
    windows_at_ends,
)

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=12).map(np.array)


def pairs(windows: WindowIndex) -> list[tuple[int, int]]:
    return list(zip(windows.series.tolist(), windows.cutoff.tolist(), strict=True))


def test_usable_lengths_end_at_the_cutoff(weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    first = int(panel.start.min())
    assert usable_lengths(panel).tolist() == panel.lengths.tolist()
    found = usable_lengths(panel, first + 79)
    # s06 starts at step 60, s07 at 100.
    assert found.tolist() == [80] * 6 + [20, 0]
    assert usable_lengths(panel, first + 10_000).tolist() == panel.lengths.tolist()


def test_windows_at_a_cutoff_leave_out_series_that_start_later(weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    first = int(panel.start.min())
    assert pairs(windows_at(panel, first + 99)) == [(s, 99) for s in range(6)] + [(6, 39)]
    assert len(windows_at(panel, first - 1)) == 0
    assert pairs(windows_at_ends(panel)) == [(s, int(length) - 1) for s, length in enumerate(panel.lengths)]


def test_held_out_windows_as_in_the_drawing() -> None:
    windows, left = held_out_windows(np.array([12, 3, 6]), horizon=3, n_windows=2)
    assert pairs(windows) == [(0, 5), (0, 8), (2, 2)]
    assert left.tolist() == [6, 3, 3]


@given(LENGTHS, st.integers(1, 9), st.integers(0, 6))
@settings(max_examples=150)
def test_held_out_windows_tile_the_end_of_each_series(lengths: np.ndarray, horizon: int, n_windows: int) -> None:
    windows, left = held_out_windows(lengths, horizon=horizon, n_windows=n_windows)
    assert len(left) == len(lengths)
    for series, length in enumerate(lengths.tolist()):
        cutoffs = windows.cutoff[windows.series == series].tolist()
        targets = [step for cutoff in cutoffs for step in range(cutoff + 1, cutoff + 1 + horizon)]
        assert targets == list(range(left[series], length))
        assert len(cutoffs) <= n_windows
        assert not cutoffs or left[series] >= horizon
        # No window that would have fitted is missing.
        assert len(cutoffs) == n_windows or length < (len(cutoffs) + 2) * horizon


@given(LENGTHS, st.integers(1, 40), st.integers(0, 6), st.integers(0, 300))
@settings(max_examples=150)
def test_few_held_out_windows_overlap_and_hold_out_what_they_would(
    lengths: np.ndarray, horizon: int, n_windows: int, at_least: int
) -> None:
    apart, left = held_out_windows(lengths, horizon=horizon, n_windows=n_windows)
    closer, left_by_closer = held_out_windows(lengths, horizon=horizon, n_windows=n_windows, at_least=at_least)
    assert left_by_closer.tolist() == left.tolist()
    assert len(closer) >= len(apart)
    assert (len(closer) == len(apart)) or len(apart) < at_least
    strides = np.diff(closer.cutoff)[np.diff(closer.series) == 0]
    assert len(set(strides.tolist())) <= 1
    for series, length in enumerate(lengths.tolist()):
        cutoffs = closer.cutoff[closer.series == series]
        assert (cutoffs >= left[series] - 1).all()
        assert (len(cutoffs) == 0) == (left[series] == length)
        assert not len(cutoffs) or cutoffs[-1] + horizon == length - 1
    if len(strides) and strides[0] < horizon:
        assert strides[0] % 2 == 1
        assert overlap(closer, horizon) == pytest.approx(horizon / strides[0])


def test_windows_apart_do_not_overlap() -> None:
    assert overlap(held_out_windows(np.array([50, 30]), horizon=3, n_windows=4)[0], 3) == 1.0
    assert overlap(held_out_windows(np.array([50, 30]), horizon=3, n_windows=1)[0], 3) == 1.0


@given(LENGTHS, st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_drawn_windows_end_before_the_last_usable_step(limits: np.ndarray, span: int, seed: int) -> None:
    sampler = OriginSampler(limits, span=span)
    assert sampler.series.tolist() == np.flatnonzero(limits >= 2).tolist()
    if not len(sampler.series):
        return
    drawn = sampler.draw(200, np.random.default_rng(seed))
    final = drawn.cutoff + span - 1
    assert (limits[drawn.series] >= 2).all()
    assert (final >= 0).all()
    assert (final <= limits[drawn.series] - 2).all()
    # A window only starts before its series if the series is too short for it.
    assert (drawn.cutoff[limits[drawn.series] - 1 >= span] >= 0).all()


@pytest.mark.parametrize("span", [1, 2, 3, 8, 50])
def test_every_series_and_every_stretch_of_it_is_drawn_equally_often(span: int) -> None:
    """The newest and the oldest origins too; the last one of 200 usable steps has one target."""
    drawn = OriginSampler(np.array([200, 400, 1]), span=span).draw(40_000, np.random.default_rng(0))
    assert np.bincount(drawn.series, minlength=3).tolist() == pytest.approx([20_000, 20_000, 0], rel=0.05)
    origins = (drawn.cutoff[drawn.series == 0][:, None] + np.arange(span)).ravel()
    times = np.bincount(origins, minlength=199)
    assert len(times) == 199
    usual = times.mean()
    size = max(span, 20)
    stretches = np.convolve(times, np.ones(size), "valid") / size
    for edge in (stretches[0], stretches[-1], stretches[len(stretches) // 2]):
        assert edge == pytest.approx(usual, rel=0.12)
    assert times.min() > 0.3 * usual
    assert times.max() < 1.9 * usual


@given(LENGTHS, st.integers(1, 9), st.integers(0, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_sampled_origins_have_history_and_a_full_horizon(
    limits: np.ndarray, horizon: int, count: int, seed: int
) -> None:
    drawn = pairs(sample_origins(limits, horizon=horizon, count=count, rng=np.random.default_rng(seed)))
    history = horizon if any(limits >= 2 * horizon) else 1
    possible = {(s, c) for s, limit in enumerate(limits.tolist()) for c in range(history - 1, limit - horizon)}
    assert len(drawn) == len(set(drawn)) == min(count, len(possible))
    assert set(drawn) <= possible


def test_where_no_series_has_a_horizon_of_history_one_step_will_do() -> None:
    drawn = [
        pairs(sample_origins(np.array([length, 5, 2]), horizon=4, count=9, rng=np.random.default_rng(0)))
        for length in (7, 8)
    ]
    assert drawn == [[(0, 0), (0, 1), (0, 2), (1, 0)], [(0, 3)]]
