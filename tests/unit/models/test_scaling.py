"""Running statistics against a plain loop in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from forecast.models.inputs.scaling import (
    RunningSums,
    Statistics,
    cold_start_scale,
    continued_statistics,
    running_statistics,
)

FLOOR = 1e-6


def statistics(values: np.ndarray, length: int) -> Statistics:
    """Statistics of [batch, time] values, NaN where nothing was observed."""
    target = torch.from_numpy(np.nan_to_num(values).astype(np.float32))
    return running_statistics(target, torch.from_numpy(np.isfinite(values)), length)


def reference(values: np.ndarray, length: int) -> np.ndarray:
    """Level, last and scale of one series, [3, time]."""
    values = values.astype(np.float32).astype(np.float64)
    found = np.zeros((3, len(values)))
    for t in range(len(values)):
        recent = values[max(t - length + 1, 0) : t + 1]
        so_far = values[: t + 1]
        seen = recent[np.isfinite(recent)] if np.isfinite(recent).any() else so_far[np.isfinite(so_far)]
        if len(seen):
            level = seen.mean()
            scale = 0.0 if (seen == seen[0]).all() else max(seen.std(), FLOOR * abs(level))
            found[:, t] = level, so_far[np.isfinite(so_far)][-1], scale
    return found


def check(values: np.ndarray, length: int, tolerance: float = 1e-5) -> None:
    found = statistics(values, length)
    for row, series in enumerate(values):
        level, last, scale = reference(series, length)
        np.testing.assert_allclose(found.level[row], level, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found.last[row], last.astype(np.float32))
        np.testing.assert_allclose(found.scale[row], scale, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(found.scale[row] == 0, scale == 0)
        np.testing.assert_array_equal(found.any_observed[row], np.maximum.accumulate(np.isfinite(series)))


# Few different values, so that equal neighbours and constant stretches are common.
SERIES = st.lists(st.sampled_from([np.nan, np.nan, -3.0, 0.0, 0.0, 7.25, 7.25, 1000.0]), min_size=1, max_size=30)


@given(SERIES, st.integers(1, 12))
@settings(max_examples=150)
def test_statistics_equal_those_of_a_loop(series: list[float], length: int) -> None:
    check(np.array([series]), length)


def test_each_row_of_a_batch_has_its_own_statistics() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 50)) * 10.0 ** rng.integers(-3, 4, (6, 1))
    values[rng.random(values.shape) < 0.3] = np.nan
    check(values, 9)


@pytest.mark.parametrize("level", [1e7, -1e7, 1e4])
def test_small_noise_on_a_large_level_keeps_its_scale(level: float) -> None:
    noise = np.random.default_rng(1).normal(0.0, 50.0, (1, 200))
    values = (level + noise).astype(np.float32).astype(np.float64)
    check(values, 24, tolerance=1e-4)
    assert 30 < float(statistics(values, 24).scale[0, -1]) < 70


def test_a_difference_within_the_rounding_of_the_level_does_not_become_the_scale() -> None:
    values = np.array([[1e7, 1e7, 1e7 + 1, 1e7]])
    assert statistics(values, 4).scale[0].tolist() == [0.0, 0.0, 10.0, 10.0]


def test_scale_is_exactly_zero_on_constant_stretches_and_only_there() -> None:
    values = np.array([[5.0, 1.1, 1.1, 1.1, np.nan, 1.1, 1.1, 2.0, 1.1, 1.1, 1.1]])
    scale = statistics(values, 3).scale[0]
    assert (scale == 0).tolist() == [True, False, False, True, True, True, True, False, False, False, True]


def test_scale_of_an_odd_constant_is_exactly_zero_whatever_came_before() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(1e3, 1e3, 300), np.full(20, 1.1)])[None]
    found = statistics(values, 10)
    assert float(found.scale[0, -1]) == 0.0
    assert float(found.level[0, -1]) == pytest.approx(1.1, rel=1e-6)


def test_a_stretch_without_observation_takes_all_steps_so_far() -> None:
    values = np.array([[2.0, 4.0, np.nan, np.nan, np.nan, 10.0]])
    found = statistics(values, 2)
    assert found.level[0].tolist() == [2.0, 3.0, 4.0, 3.0, 3.0, 10.0]
    assert found.scale[0].tolist() == [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    assert found.last[0].tolist() == [2.0, 4.0, 4.0, 4.0, 4.0, 10.0]


def test_nothing_observed_gives_zeros() -> None:
    found = statistics(np.array([[np.nan, np.nan], [np.nan, 3.0]]), 2)
    assert found.any_observed.tolist() == [[False, False], [False, True]]
    assert found.level.tolist() == [[0.0, 0.0], [0.0, 3.0]]
    assert not found.scale.any()


@given(SERIES.filter(lambda s: len(s) > 1), SERIES, st.integers(1, 12))
@settings(max_examples=100)
def test_later_values_change_nothing_earlier(before: list[float], after: list[float], length: int) -> None:
    whole = statistics(np.array([before + after]), length)
    blank = statistics(np.array([before + [np.nan] * len(after)]), length)
    for found, expected in zip(whole, blank, strict=True):
        assert torch.equal(found[:, : len(before)], expected[:, : len(before)])


@pytest.mark.parametrize("first", [3e3, 1e9, -1e15])
def test_a_large_value_long_ago_does_not_blur_the_level_of_a_constant(first: float) -> None:
    found = statistics(np.array([[first, 17.3, *[1.1] * 20]]), 10)
    assert found.level[0, -1] == found.last[0, -1] == torch.tensor(1.1)
    assert float(found.scale[0, -1]) == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([np.nan, np.nan, 3.0, 3.0, 5.5, -1e6]), min_size=24, max_size=24),
    st.integers(1, 6),
    st.integers(1, 23),
    st.integers(0, 8),
)
def test_totals_go_on_as_if_the_window_were_the_whole_past(
    values: list[float], length: int, cut: int, further: int
) -> None:
    """From any step on, with any lead that is long enough; whatever gaps there are."""
    series = torch.tensor([values])
    target, observed = series.nan_to_num(0.0), series.isfinite()
    nothing = torch.zeros(1, dtype=torch.float64)
    blank = RunningSums(
        torch.zeros(1, 3, dtype=torch.float64), nothing, nothing, nothing + torch.inf, nothing + torch.inf
    )

    def from_start(end: int) -> RunningSums:
        return continued_statistics(target[:, :end], observed[:, :end], length, blank, 0)[1]

    whole = running_statistics(target, observed, length)
    lead = length - 1 + further
    begin = cut - lead
    window, seen = (functional.pad(part, (max(-begin, 0), 0))[:, max(begin, 0) :] for part in (target, observed))
    found, after = continued_statistics(window, seen, length, from_start(cut), lead)
    for ours, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(ours, expected[:, cut:], rtol=1e-6, atol=1e-6)
    for ours, expected in zip(after, from_start(target.shape[1]), strict=True):
        torch.testing.assert_close(ours, expected)


def test_few_observations_take_the_scale_of_the_panel_and_enough_do_not() -> None:
    found = statistics(np.random.default_rng(0).normal(10, 1, size=(1, 30)), 20)
    none, relative, absolute = torch.tensor(0.0), torch.tensor(0.2), torch.tensor(5.0)
    assert torch.equal(cold_start_scale(found, none, none, 20), found.scale)
    panel = cold_start_scale(found, none, absolute, 20)
    assert float(panel[0, 0]) == pytest.approx(5 * 2**0.5)
    assert (panel[:, :8] > found.scale[:, :8]).all()
    assert torch.equal(panel[:, 8:], found.scale[:, 8:])
    assert float(cold_start_scale(found, relative, none, 20)[0, 0]) == pytest.approx(
        0.2 * abs(float(found.level[0, 0])) * 2**0.5
    )
    # No more observations are asked for than statistics are taken over.
    short = statistics(np.full((1, 30), 7.0), 4)
    assert torch.equal(cold_start_scale(short, none, absolute, 4)[:, 3:], short.scale[:, 3:])
