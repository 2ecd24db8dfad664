"""An encoder that goes on where it was, against one that sees the whole history at once."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from forecast.config import ModelConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex, windows_at
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.models.network.ensemble import Ensemble, Forecaster, members_of
from forecast.models.network.features import numeric_seasons
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.normalisation import SeasonWindow, season_offset, seasonal_spread
from forecast.models.network.output import Output
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

CONTEXT, HORIZON, SEASON = 28, 7, 7
Table, Load = Callable[..., pl.DataFrame], Callable[..., Loaded]


@pytest.fixture(scope="module")
def found(table: Table, loaded: Load, weekly: Callable[..., dict[str, np.ndarray]]) -> Loaded:
    """Series of all kinds: of any start, with gaps longer than the context, constant at first, stopped."""
    rng = np.random.default_rng(1)
    series = weekly(7, 150)
    series["s01"][40:80] = np.nan
    series["s02"] = series["s02"][:100]
    series["s03"] = series["s03"][:30]
    series["s04"][:60] = 4.0
    series["s05"][rng.random(150) < 0.5] = np.nan
    series["s05"][[0, -1]] = 1.0
    columns = {
        "rain": {name: rng.normal(size=len(values)) for name, values in series.items()},
        "promo": {name: rng.integers(0, 2, len(values)).astype(float) for name, values in series.items()},
        "city": {name: ["oslo"] * len(values) for name, values in series.items()},
    }
    kinds = {"past_covariates": ["rain"], "known_covariates": ["promo"], "static_covariates": ["city"]}
    return loaded(table(series, late={"s03": 120, "s06": 0}, **columns), HORIZON, **kinds)


def network(
    found: Loaded, segment: int, unit: float = 0.0, anchor: str = "level", seed: int = 0, **model: Any
) -> RecurrentForecaster:
    panel = found.panel
    torch.manual_seed(seed)
    made = RecurrentForecaster(
        NetworkShape(
            context_length=CONTEXT,
            horizon=HORIZON,
            season_length=SEASON,
            n_past=len(panel.past),
            n_known=len(panel.known),
            n_calendar=len(panel.calendar),
            category_sizes=tuple(map(len, found.categories.values())),
            n_static_numbers=0,
            segment_length=segment,
            unit=unit,
            anchor=anchor,
        ),
        ModelConfig.model_validate({"hidden_size": 6, "num_layers": 2, "decoder_size": 3} | model),
    ).eval()
    with torch.no_grad():
        made.skip.normal_(0, 0.2)
        made.output.weight.normal_()
    return made


def night(made: Forecaster, found: Loaded, cutoff: int, before: int | None, carried: StateStore) -> Output:
    """Let what is new since the cutoff `before` go in, or everything, and forecast."""
    windows = windows_at(found.panel, cutoff)
    length = made.shape.segment_length
    segments = segments_since(found.panel, windows, length)
    data = PanelTensors(found.panel, unit=made.shape.unit)
    if before is not None:
        segments = np.minimum(segments, (cutoff - before) // length)
    advance(made, data, windows, segments, carried)
    series, own = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
    batch = data.gather(series, own, own + 1, context=CONTEXT, span=1, horizon=HORIZON)
    output: Output = made(batch, torch.zeros(1, dtype=torch.long), carried.of(series))
    return output


def whole(made: RecurrentForecaster, found: Loaded, windows: WindowIndex, number: int) -> Output:
    """The forecast of a network that is given all of a series in one window, which begins as the state does."""
    length = made.shape.segment_length
    steps = (int(segments_since(found.panel, windows, length)[number]) + 1) * length
    assert steps > CONTEXT
    data = PanelTensors(found.panel, unit=made.shape.unit)
    series, own = (torch.from_numpy(values[number : number + 1]) for values in (windows.series, windows.cutoff))
    span = steps - CONTEXT + 1
    batch = data.gather(series, own - span + 1, own + 1, context=CONTEXT, span=span, horizon=HORIZON)
    output: Output = made(batch, torch.tensor([span - 1]))
    return output


KINDS: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({"cell": "gru"}, 1),
    ({"cell": "rnn"}, 4),
    ({"dilations": [1, 3]}, 1),
    ({"residual": True, "cell": "gru"}, 7),
    ({"dilations": [2, 1], "residual": True}, 1),
    ({"unit": 2.0, "decoder": "segment"}, 7),
    ({"anchor": "last", "decoder": "autoregressive", "n_paths": 4}, 1),
]


@torch.inference_mode()
@pytest.mark.parametrize(("model", "segment"), KINDS)
def test_nights_in_a_row_are_the_whole_history_at_once(found: Loaded, model: dict[str, Any], segment: int) -> None:
    made = network(found, segment, **model)
    carried = StateStore.blank(made, found.panel.n_series)
    before, cutoff = None, found.panel.last_index - 13 * segment
    for steps in (0, segment, 0, 4 * segment, 8 * segment):
        cutoff += steps
        output = night(made, found, cutoff, before, carried)
        before = cutoff
    windows = windows_at(found.panel, cutoff)
    long_enough = np.flatnonzero((segments_since(found.panel, windows, segment) + 1) * segment > CONTEXT)
    assert len(long_enough) >= 6
    blind = 0
    for number in long_enough:
        expected = whole(made, found, windows, int(number))
        torch.testing.assert_close(output.state[number], expected.state[0], rtol=0, atol=1e-5)
        if bool(output.frame.begun[number]):
            torch.testing.assert_close(output.arguments[number], expected.arguments[0], rtol=1e-5, atol=1e-5)
        else:
            blind += 1
    assert blind == 1, "of the series that stopped before the context nothing is said"


@torch.inference_mode()
def test_the_state_tells_more_than_the_context(found: Loaded) -> None:
    made = network(found, 1, forget_bias=9.0)
    windows = windows_at(found.panel, found.panel.last_index)
    output = night(made, found, found.panel.last_index, None, StateStore.blank(made, found.panel.n_series))
    series, own = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
    batch = PanelTensors(found.panel).gather(series, own, own + 1, context=CONTEXT, span=1, horizon=HORIZON)
    assert (made(batch, torch.zeros(1, dtype=torch.long)).state - output.state).abs().max() > 1e-3


@torch.inference_mode()
def test_each_member_of_an_ensemble_goes_on_from_its_own_state(found: Loaded) -> None:
    made = Ensemble([network(found, 7, seed=seed) for seed in range(2)]).eval()
    carried = StateStore.blank(made, found.panel.n_series)
    cutoff = found.panel.last_index
    night(made, found, cutoff - 14, None, carried)
    output = night(made, found, cutoff, cutoff - 14, carried)
    windows = windows_at(found.panel, cutoff)
    outputs = [whole(member, found, windows, 0) for member in members_of(made)]
    mean = torch.stack([one.quantiles for one in outputs]).mean(0)
    torch.testing.assert_close(output.quantiles[:1], mean, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_segments_are_hours_of_the_local_clock(table: Table, loaded: Load) -> None:
    """Over a night in which clocks change, a day is a segment still, which begins at the same hour."""
    rng = np.random.default_rng(2)
    made_table = table(
        {"a": rng.normal(size=24 * 12), "b": rng.normal(size=24 * 8)},
        late={"b": 30},
        start=datetime(2024, 3, 24, 23),
        every=timedelta(hours=1),
        time_zone="Europe/Berlin",
    )
    found = loaded(made_table, HORIZON, freq="1h")
    made = network(found, 14, cell="gru")
    carried = StateStore.blank(made, 2)
    first = found.panel.start.min()
    # 28 hours of the clock that are 27 hours: the one from 2 to 3 on 31 March is left out.
    nights = [int(first) + 24 * 6, int(first) + 24 * 6 + 27, int(first) + 24 * 6 + 27 + 28]
    clock = [index + int(found.panel.clock_shift_at(np.array([index]))[0]) for index in nights]
    assert np.diff(clock).tolist() == [28, 28]
    for cutoff, before in zip(nights, (None, *clock), strict=False):
        windows = windows_at(found.panel, cutoff)
        segments = segments_since(found.panel, windows, 14)
        new = segments if before is None else np.minimum(segments, 2)
        advance(made, PanelTensors(found.panel), windows, new, carried)
    once = StateStore.blank(made, 2)
    advance(made, PanelTensors(found.panel), windows, segments, once)
    for ours, expected in zip(carried, once, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_pasts_that_lie_on_the_host_are_taken_to_the_device_of_a_batch_and_put_back(found: Loaded) -> None:
    # Without an accelerator here: tensors that have a device, and no values.
    made = Ensemble([network(found, 1, seed=seed) for seed in range(2)])
    with FakeTensorMode():
        carried = StateStore.blank(made, 7)
        series = torch.tensor([5, 2]).to("lazy")
        pasts = carried.of(series)
        assert len(pasts) == 2
        assert {part.device.type for past in pasts for part in (*past.carry, *past.totals)} == {"lazy"}
        carried.put(series, pasts)
        assert {values.device.type for values in carried} == {"cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("one_pass", [False, True])
def test_a_state_on_the_host_is_gone_on_from_on_a_gpu(
    trained: FitResult, weekly_loaded: Loaded, one_pass: bool
) -> None:
    artifact, panel = trained.artifact, weekly_loaded.panel
    windows = windows_at(panel, panel.last_index)
    carried = None
    if not one_pass:
        carried = StateStore.blank(artifact.network, panel.n_series)
        data = PanelTensors(panel, "cuda", unit=artifact.network.shape.unit)
        segments = segments_since(panel, windows, artifact.network.shape.segment_length)
        advance(artifact.on("cuda").network, data, windows, segments, carried)
    on_gpu = predict(artifact, panel, windows, carried=carried, one_pass=one_pass, device="cuda")
    on_host = predict(artifact, panel, windows, carried=carried, one_pass=one_pass)
    np.testing.assert_allclose(on_gpu.tuned, on_host.tuned, rtol=1e-3, atol=1e-3)
    assert artifact.network.output_bias.device.type == "cpu"  # type: ignore[union-attr]


@pytest.mark.parametrize("horizon", [3, 20])
@pytest.mark.parametrize("season", [1, 2, 7, 15])
@pytest.mark.parametrize("spread_seasons", [1, 4])
def test_past_seasons_are_read_from_no_more_steps_than_they_need(
    season: int, spread_seasons: int, horizon: int
) -> None:
    context = 150
    shape = NetworkShape(
        context_length=context,
        horizon=horizon,
        season_length=season,
        n_past=0,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
        spread_seasons=spread_seasons,
    )
    torch.manual_seed(0)
    observed = torch.rand(5, context + horizon) > torch.linspace(0, 0.9, 5)[:, None]
    observed[:, context:] = False
    target = torch.randn(observed.shape) * observed
    none = torch.zeros(5, context + horizon, 0)
    batch = Batch(target, observed, none, none, torch.ones_like(observed), torch.zeros(5, 0), torch.zeros(5, 0))
    origin, one, offset = torch.zeros(1, dtype=torch.long), torch.ones(5, 1), season_offset(shape)
    window = target[:, None, :context]
    frame = Frame(one * 0, one, one, one.bool(), window, one[..., None], one[..., None])
    whole = SeasonWindow.of(batch, origin, shape)
    cropped = SeasonWindow.within_contexts(batch, origin, shape)
    assert cropped.target.shape[1] == min(max(spread_seasons + 1, 7) * season + season // 14, context) or season == 1
    torch.testing.assert_close(seasonal_spread(cropped, one, shape, offset), seasonal_spread(whole, one, shape, offset))
    if season > 1:
        torch.testing.assert_close(
            numeric_seasons(cropped, frame, shape, offset), numeric_seasons(whole, frame, shape, offset)
        )
