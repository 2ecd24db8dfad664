from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forecast.config import DataConfig
from forecast.data.features.lags import feature_names, longest_reach, past_features
from forecast.data.panel import FloatArray, IntArray
from forecast.names import MAX_MAGNITUDE

STATISTICS: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "mean": np.mean,
    "std": lambda values: np.std(values, ddof=1),
    "min": np.min,
    "max": np.max,
    "median": np.median,
    "sum": np.sum,
}

lags = st.lists(st.integers(1, 50), max_size=3, unique=True)
# Every statistic; windows around where the way of adding changes, and beyond the ends of series.
windows = st.one_of(st.integers(2, 50), st.sampled_from([2, 15, 16, 17, 18, 999_999]))
rolling = st.fixed_dictionaries(dict.fromkeys(STATISTICS, st.lists(windows, max_size=2, unique=True)))
configs = st.builds(
    lambda lags, rolling: DataConfig(
        lags=tuple(lags),
        rolling=tuple(f"{name}_{steps}" for name, window in rolling.items() for steps in window),
    ),
    lags,
    rolling,
).filter(lambda data: data.lags or data.rolling)
values = st.one_of(
    st.floats(-1000, 1000, width=32),
    st.floats(-1000, 1000, width=32),
    st.just(float("nan")),
    st.sampled_from([0.0, 1e-6, 1e8, -1e12, MAX_MAGNITUDE, -MAX_MAGNITUDE]),
)
series_lists = st.lists(st.lists(values, min_size=1, max_size=60), min_size=1, max_size=4)


def buffers(series: list[list[float]]) -> tuple[FloatArray, IntArray]:
    """Return targets end to end and offsets, as a memory-mapped panel has them: read-only."""
    target = np.concatenate([np.asarray(each, dtype=np.float32) for each in series])
    offsets = np.append(0, np.cumsum([len(each) for each in series]))
    target.flags.writeable = offsets.flags.writeable = False
    return target, offsets


def reference(series: FloatArray, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return a feature by its definition, and the largest magnitude in the window of each step."""
    statistic, length = name.split()
    steps = int(length)
    expected, size = np.full(len(series), np.nan), np.zeros(len(series))
    for step in range(len(series)):
        if statistic == "lag":
            expected[step] = series[step - steps] if step >= steps else np.nan
            continue
        window = series[max(0, step - steps + 1) : step + 1].astype(np.float64)
        window = window[~np.isnan(window)]
        if len(window) > (statistic == "std"):
            expected[step] = STATISTICS[statistic](window)
            size[step] = np.abs(window).max()
    return expected, size


@given(series=series_lists, data=configs)
def test_features_are_what_their_names_say(series: list[list[float]], data: DataConfig) -> None:
    target, offsets = buffers(series)
    names, features = past_features(target, offsets, data)
    assert names == feature_names(data)
    assert features.shape == (len(names), len(target))
    assert features.dtype == np.float32
    for name, feature in zip(names, features, strict=True):
        for begin, end in pairwise(offsets.tolist()):
            expected, size = reference(target[begin:end], name)
            found = feature[begin:end].astype(np.float64)
            assert (np.isnan(found) == np.isnan(expected)).all(), name
            # Half a digit of float32, and of the sums in float64 what the largest value in the window leaves.
            error = np.abs(np.nan_to_num(found - expected))
            assert (error <= 1e-7 * np.abs(np.nan_to_num(expected)) + 1e-13 * size + 1e-44).all(), name


@given(series=series_lists, data=configs, choice=st.data())
def test_no_feature_sees_what_comes_later(series: list[list[float]], data: DataConfig, choice: st.DataObject) -> None:
    target, offsets = buffers(series)
    number = choice.draw(st.integers(0, len(series) - 1))
    step = choice.draw(st.integers(0, len(series[number]) - 1))
    later = len(series[number]) - step - 1
    changed = target.copy()
    place = offsets[number] + step + 1
    changed[place : place + later] = choice.draw(st.lists(values, min_size=later, max_size=later))
    _, before = past_features(target, offsets, data)
    _, after = past_features(changed, offsets, data)
    same = np.ones(len(target), dtype=bool)
    same[place : place + later] = False
    # Not at or before the step, and not in any other series.
    np.testing.assert_array_equal(before[:, same], after[:, same])


@given(series=st.lists(values, min_size=55, max_size=60), data=configs.filter(lambda data: longest_reach(data) <= 50))
def test_no_feature_sees_further_back_than_its_reach(series: list[float], data: DataConfig) -> None:
    target, offsets = buffers([series])
    first_seen = len(series) - 1 - longest_reach(data)
    changed = target.copy()
    changed[:first_seen] += 1
    size = np.nanmax(np.abs(target[first_seen:]), initial=0)
    _, before = past_features(target, offsets, data)
    _, after = past_features(changed, offsets, data)
    np.testing.assert_allclose(before[:, -1], after[:, -1], rtol=1e-6, atol=1e-13 * size)


@given(series=series_lists, data=configs)
def test_a_panel_in_blocks_has_the_same_features(series: list[list[float]], data: DataConfig) -> None:
    _, whole = past_features(*buffers(series), data)
    alone = [past_features(*buffers([each]), data)[1] for each in series]
    np.testing.assert_array_equal(np.concatenate(alone, axis=1), whole)


@pytest.mark.parametrize("steps", [3, 7, 16, 17, 28])
@pytest.mark.parametrize("spike", [1e8, 1e12, MAX_MAGNITUDE])
@pytest.mark.parametrize("gaps", [False, True])
def test_a_spike_leaves_no_trace_when_it_has_left_the_window(steps: int, spike: float, gaps: bool) -> None:
    rng = np.random.default_rng(0)
    small = (3 + rng.normal(0, 1e-3, 200)).astype(np.float32)
    if gaps:
        small[rng.random(200) < 0.2] = np.nan
    spiky = small.copy()
    spiky[[50, 53, 60]] = np.float32(spike) * np.array([1, -1, 0.1], dtype=np.float32)
    data = DataConfig(rolling=tuple(f"{name}_{steps}" for name in STATISTICS))
    offsets = np.array([0, 200])
    names, found = past_features(spiky, offsets, data)
    free = slice(60 + steps, None)
    for name, feature, usual in zip(names, found, past_features(small, offsets, data)[1], strict=True):
        np.testing.assert_allclose(feature[free], usual[free], rtol=2e-7, err_msg=name)
        np.testing.assert_array_equal(feature[:50], usual[:50], err_msg=name)


def test_partly_observed_windows_give_the_statistic_of_what_is_there() -> None:
    nan = np.nan
    target, offsets = buffers([[nan, 1, nan, 3, nan, nan, nan, 5], [7, 8]])
    data = DataConfig(lags=(2,), rolling=("mean_3", "sum_3", "std_3", "max_2", "median_4"))
    names, features = past_features(target, offsets, data)
    expected = {
        "lag 2": [nan, nan, nan, 1, nan, 3, nan, nan, nan, nan],
        "mean 3": [nan, 1, 1, 2, 3, 3, nan, 5, 7, 7.5],
        "sum 3": [nan, 1, 1, 4, 3, 3, nan, 5, 7, 15],
        "std 3": [nan, nan, nan, 2**0.5, nan, nan, nan, nan, nan, 0.5**0.5],
        "max 2": [nan, 1, 1, 3, 3, nan, nan, 5, 7, 8],
        "median 4": [nan, 1, 1, 2, 2, 3, 3, 5, 7, 7.5],
    }
    assert names == tuple(expected)
    np.testing.assert_allclose(features, list(expected.values()), rtol=1e-7)


def test_without_lags_and_statistics_there_is_nothing() -> None:
    names, features = past_features(*buffers([[1, 2], [3]]), DataConfig())
    assert names == ()
    assert features.shape == (0, 3)
    assert longest_reach(DataConfig()) == 0


def test_the_spread_of_one_value_is_refused() -> None:
    with pytest.raises(ValidationError, match="std_1: one value has no spread"):
        DataConfig(rolling=("std_1",))
