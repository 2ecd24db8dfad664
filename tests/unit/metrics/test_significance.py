"""The paired test over time: how often it errs when nothing differs, whatever series share, and what it sees."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from forecast.metrics.significance import PairedTest, count_blocks, paired_test

LEVELS = (0.01, 0.05)


def looks(
    rng: np.random.Generator, runs: int, *, nights: int, horizon: int, series: int, shared: float, mean: float = 0.0
) -> Iterator[PairedTest]:
    """Two versions from nightly cutoffs, of which all is compared that is observed by the last one and a horizon.

    The difference of a series at a step has variance 1, of which `shared` is that of the step, for all series and
    cutoffs; the rest is its own.
    """
    begin = np.arange(nights)
    end = np.minimum(begin + horizon, nights)
    steps = end - begin
    for _ in range(runs):
        nightly = np.append(0.0, rng.normal(size=nights).cumsum())
        alike = np.sqrt(shared) * series * (nightly[end] - nightly[begin])
        alone = np.sqrt((1 - shared) * series * steps) * rng.normal(size=nights)
        weight = (series * steps).astype(np.float64)
        yield paired_test(alike + alone + mean * weight, weight, begin, end)


@pytest.mark.parametrize("shared", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("series", [1, 10, 150])
@pytest.mark.parametrize(("nights", "horizon"), [(6, 1), (30, 1), (35, 7), (60, 14)])
def test_equal_versions_are_told_apart_as_often_as_the_level_says(
    nights: int, horizon: int, series: int, shared: float
) -> None:
    rng, runs = np.random.default_rng(0), 500
    found = [test.p_value for test in looks(rng, runs, nights=nights, horizon=horizon, series=series, shared=shared)]
    for level in LEVELS:
        # Effects of the cutoffs alone, that horizons do not share, make the test careful.
        assert stats.binom.ppf(1e-4, runs, level / 4) <= np.sum(np.array(found) <= level)
        assert np.sum(np.array(found) <= level) <= stats.binom.ppf(1 - 1e-4, runs, level)


@pytest.mark.parametrize(
    ("nights", "horizon", "series", "better", "least"),
    [
        (6, 1, 150, 1.5, 0.9),
        (30, 1, 150, 0.4, 0.9),
        (35, 7, 150, 1.0, 0.9),
        (30, 1, 1, 1.0, 0.9),
        (30, 1, 150, 0.05, 0.0),
    ],
)
def test_what_is_better_is_seen(nights: int, horizon: int, series: int, better: float, least: float) -> None:
    rng, runs = np.random.default_rng(1), 200
    at = {"nights": nights, "horizon": horizon, "series": series, "shared": 0.2}
    rates = [
        np.mean([test.p_value <= 0.01 for test in looks(rng, runs, **at, mean=mean)])  # type: ignore[arg-type]
        for mean in (-better, better)
    ]
    assert rates[0] >= least
    assert rates[1] <= 0.01


def test_few_nights_without_overlap_are_the_test_of_student() -> None:
    difference = np.array([-0.3, 0.1, -0.4, -0.2, -0.35])
    found = paired_test(difference * 7, np.full(5, 7.0), np.arange(5), np.arange(5) + 1)
    assert found.p_value == pytest.approx(stats.ttest_1samp(difference, 0, alternative="less").pvalue)
    assert found.blocks == 5


def test_series_that_share_their_dates_are_no_more_evidence() -> None:
    rng = np.random.default_rng(2)
    total, weight = rng.normal(size=20), rng.uniform(1, 3, 20)
    begin, end = np.arange(20), np.arange(20) + 3
    once, often = (paired_test(total * n, weight * n, begin, end) for n in (1, 1000))
    assert often.p_value == pytest.approx(once.p_value)
    assert once.blocks == 7


def test_one_observed_date_is_no_evidence() -> None:
    """Six cutoffs, all of whose observed targets are of the same day."""
    found = paired_test(np.full(6, -150.0) + np.arange(6), np.full(6, 150.0), np.arange(6), np.full(6, 6))
    assert found.blocks == 1
    assert np.isnan(found.p_value)


def test_equal_forecasts_are_not_told_apart() -> None:
    assert np.isnan(paired_test(np.zeros(9), np.ones(9), np.arange(9), np.arange(9) + 1).p_value)


INTERVALS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=8)


@given(INTERVALS)
@settings(max_examples=100)
def test_blocks_are_the_most_intervals_that_do_not_overlap(intervals: list[tuple[int, int]]) -> None:
    begin, end = np.array([(low, low + size) for low, size in intervals]).T
    best = 0
    for chosen in range(1 << len(intervals)):
        some = sorted((begin[k], end[k]) for k in range(len(intervals)) if chosen >> k & 1)
        if all(one[1] <= other[0] for one, other in pairwise(some)):
            best = max(best, len(some))
    assert count_blocks(begin, end) == best
