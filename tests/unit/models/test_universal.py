import math

import numpy as np
import pytest
import torch

from forecast.errors import ConfigError, DataError
from forecast.models.runtime.torch_setup import flushed_denormals
from forecast.models.universal import filters, history
from forecast.models.universal.forecasting import MAX_HORIZON, forecast_series
from forecast.models.universal.history import Window
from forecast.models.universal.network import LEVELS, MEDIAN, PATCH, Shape, UniversalNetwork

CONTEXT = 64
SMALL = Shape(hidden_size=16, input_size=16, state_size=16)


def series(length: int, seed: int = 0, season: int = 12) -> np.ndarray:
    random = np.random.default_rng(seed)
    steps = np.arange(length)
    return 50 + 0.3 * steps + 5 * np.sin(2 * np.pi * steps / season) + random.normal(size=length)


@pytest.fixture(scope="module", params=["lstm", "gru"])
def network(request: pytest.FixtureRequest) -> UniversalNetwork:
    """A network whose gate and quantiles follow from the state, as after training."""
    torch.manual_seed(0)
    network = UniversalNetwork(SMALL._replace(cell=request.param)).eval()
    with torch.no_grad():
        for layer in (network.gate, network.out):
            layer.weight.normal_(0, 0.3)
    return network


def window(values: np.ndarray, season: int = 12, second: int = 0) -> Window:
    table = torch.from_numpy(np.atleast_2d(values))
    n = len(table)
    return Window(table, ~table.isnan(), torch.full((n,), season), torch.full((n,), second))


def quantiles(network: UniversalNetwork, values: np.ndarray, origin: int, season: int = 12) -> torch.Tensor:
    forecast = network(window(values, season), torch.tensor([origin]), torch.arange(1, 25))
    return (forecast.quantiles[0, 0].double() + forecast.history.centre[0].double()).detach()


def test_what_comes_after_an_origin_changes_no_bit_of_its_forecast(network: UniversalNetwork) -> None:
    values = series(CONTEXT)
    later = values.copy()
    later[40:] = series(CONTEXT, seed=1)[40:] * 7
    later[50:] = np.nan
    assert torch.equal(quantiles(network, values, 39), quantiles(network, later, 39))
    assert not torch.equal(quantiles(network, values, 47), quantiles(network, later, 47))


@pytest.mark.parametrize("length", [3, 11, 40])
def test_units_do_not_matter_to_series_that_are_shorter_than_the_window(network: UniversalNetwork, length: int) -> None:
    past = [series(length, seed) for seed in range(3)]
    expected = forecast_series(network, past, [12] * 3, [0] * 3, 8)
    for factor in (1e-3, 7.0, 1e4):
        scaled = forecast_series(network, [factor * values for values in past], [12] * 3, [0] * 3, 8)
        np.testing.assert_allclose(scaled / factor, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (1e4, 0.0), (1.0, 1e6), (20.0, -1e5)])
def test_forecasts_follow_level_and_unit_of_a_series(network: UniversalNetwork, factor: float, shift: float) -> None:
    values = series(CONTEXT)
    values[[20, 21, 33]] = np.nan
    expected = quantiles(network, values, CONTEXT - 1)
    answer = (quantiles(network, factor * values + shift, CONTEXT - 1) - shift) / factor
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)


def test_a_series_has_the_same_forecast_alone_and_among_others(network: UniversalNetwork) -> None:
    panel = [series(length, seed) for seed, length in enumerate((9, 30, 64, 65, 120, 300, 40, 70))] * 9
    seasons, seconds = [4, 12, 24, 7, 24, 24, 1, 52] * 9, [0, 0, 168, 0, 168, 168, 0, 0] * 9
    together = forecast_series(network, panel, seasons, seconds, 10)
    for row in (0, 3, 5, 7, 70):
        alone = forecast_series(network, [panel[row]], [seasons[row]], [seconds[row]], 10)
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize(("context", "length"), [(512, 64), (512, 96), (2048, 256)])
def test_steps_before_any_observation_need_not_be_read(network: UniversalNetwork, context: int, length: int) -> None:
    values = np.stack([series(context, seed) for seed in range(3)])
    for row, first in enumerate((context - length, context - length + 5, context - length + 23)):
        values[row, :first] = np.nan
    values[0, -30] = np.nan
    whole, ahead = window(values, 24, 168), torch.arange(1, 13)
    blank = network.blank(context - length, 24, 168, torch.device("cpu"))
    part = whole._replace(values=whole.values[:, blank.length :], observed=whole.observed[:, blank.length :])
    expected = network.encode(whole, torch.tensor([context - 1]), ahead)
    state, steps, *_ = network.encode(part, torch.tensor([length - 1]), ahead, blank)
    torch.testing.assert_close(state, expected[0], rtol=1e-6, atol=1e-6)
    for name, values_of_part, values_of_whole in zip(steps._fields, steps, expected[1], strict=True):
        assert torch.equal(values_of_part, values_of_whole), name


def test_errors_before_a_single_origin_are_those_among_several(network: UniversalNetwork) -> None:
    past, ahead = window(np.stack([series(512, seed) for seed in range(2)])), torch.arange(1, 13)
    single = network.encode(past, torch.tensor([479]), ahead)[1]
    several = network.encode(past, torch.tensor([407, 479]), ahead)[1]
    torch.testing.assert_close(single.logits[:, 0], several.logits[:, 1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.width[:, 0], several.width[:, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flushes", [False, True])
def test_a_forecast_leaves_small_numbers_as_its_thread_had_them(network: UniversalNetwork, flushes: bool) -> None:
    def is_flushed() -> bool:
        return bool(torch.tensor(1e-39) * 1.0 == 0)

    before = is_flushed()  # Some libraries switch it on.
    torch.set_flush_denormal(flushes)
    try:
        forecast_series(network, [series(20)], [12], [0], 3)
        assert is_flushed() == flushes
        with flushed_denormals():
            assert is_flushed()
        assert is_flushed() == flushes
    finally:
        torch.set_flush_denormal(before)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 20, 700])
@pytest.mark.parametrize("season", [1, 12, 24])
def test_any_length_and_horizon_has_finite_increasing_quantiles(
    network: UniversalNetwork, length: int, season: int
) -> None:
    answer = forecast_series(network, [series(length)], [season], [7 * season if season == 24 else 0], 200)
    assert answer.shape == (1, 200, len(LEVELS))
    assert np.isfinite(answer).all()
    assert (np.diff(answer, axis=-1) >= 0).all()


def test_a_constant_is_forecast_as_one_and_gaps_do_not_matter_to_it(network: UniversalNetwork) -> None:
    values = np.full(40, 3.25)
    values[10:20] = np.nan
    answer = forecast_series(network, [values], [7], [0], 5)
    assert np.abs(answer[..., MEDIAN] - 3.25).max() < 0.1


def test_before_training_the_gate_takes_what_did_best_in_the_past() -> None:
    network = UniversalNetwork(SMALL).eval()
    steps = np.arange(200)
    season = forecast_series(network, [10 * np.sin(2 * np.pi * steps / 12)], [12], [0], 24)[0, :, MEDIAN]
    np.testing.assert_allclose(season, 10 * np.sin(2 * np.pi * (200 + np.arange(24)) / 12), atol=1.5)
    line = forecast_series(network, [5 + 2.0 * steps], [1], [0], 24)[0, :, MEDIAN]
    np.testing.assert_allclose(line, 5 + 2.0 * (200 + np.arange(24)), rtol=0.02)


def test_intervals_widen_with_the_horizon_of_a_random_walk_and_beyond_the_trained_one() -> None:
    walks = np.random.default_rng(0).normal(size=(32, 400)).cumsum(1)
    answer = forecast_series(UniversalNetwork(SMALL).eval(), [*walks], [1] * 32, [0] * 32, 256)
    width = (answer[..., -2] - answer[..., 1]).mean(0)
    assert width[0] < width[15] < width[63] < width[255]


def test_a_horizon_out_of_range_is_refused() -> None:
    for horizon in (0, MAX_HORIZON + 1):
        with pytest.raises(ConfigError, match=f"horizon={horizon}"):
            forecast_series(UniversalNetwork(SMALL), [series(30)], [1], [0], horizon)


def test_filters_are_exponential_smoothing_step_by_step() -> None:
    values = torch.from_numpy(np.r_[0.0, np.random.default_rng(0).normal(size=27).cumsum()])[None]
    level, trend = filters.run(values)
    for number, item in enumerate(filters.FILTERS):
        state, rise = 0.0, 0.0
        for step, value in enumerate(values[0].tolist()):
            before = state + item.damping * rise
            error = value - before
            state, rise = before + item.level * error, item.damping * rise + item.level * item.trend * error
            assert math.isclose(float(level[0, step, number]), state, abs_tol=1e-9)
            assert math.isclose(float(trend[0, step, number]), rise, abs_tol=1e-9)


def test_slopes_are_those_of_least_squares() -> None:
    values = series(48)
    past = history.history(window(values, season=12))
    for end in (10, 30, 47):
        steps = np.arange(max(0, end - 23), end + 1)
        slope, begin = np.polyfit(steps, values[steps], 1)
        assert math.isclose(float(past.slope[0, end]), slope, rel_tol=1e-4)
        assert math.isclose(float(past.line[0, end] + past.centre[0]), begin + slope * end, rel_tol=1e-5)
        assert math.isclose(
            float(past.long_slope[0, end]), np.polyfit(range(end + 1), values[: end + 1], 1)[0], rel_tol=1e-4
        )


def test_patches_divide_all_contexts() -> None:
    from forecast.models.universal.forecasting import CONTEXTS

    assert all(context % PATCH == 0 for context in CONTEXTS)


def test_series_without_a_forecast_are_refused() -> None:
    network = UniversalNetwork().eval()
    past = np.arange(30.0)
    with pytest.raises(DataError, match=r"1 of 2 series have no observation: number 1"):
        forecast_series(network, [past, np.full(5, np.nan)], [1, 1], [0, 0], 4)
    with pytest.raises(DataError, match=r"1 of 2 series have values beyond 1e\+30; rescale them: number 0"):
        forecast_series(network, [past * 1e39, past], [1, 1], [0, 0], 4)
