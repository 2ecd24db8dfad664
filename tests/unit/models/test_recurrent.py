"""The forecaster: what it may see, and what it says untrained. `trained` networks have random weights everywhere."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from forecast.config import ModelConfig
from forecast.data.ingest.loaded import Loaded
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import loss_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.ridge import apply_linear
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.output import Output

CONTEXT, HORIZON, SEASON = 28, 7, 7
CELLS = ["lstm", "gru", "rnn"]
DECODERS: list[dict[str, Any]] = [
    {"decoder": "segment"},
    {"decoder": "autoregressive", "n_paths": 8},
    {"attention": True},
    {"decoder": "autoregressive", "n_paths": 8, "cell": "gru", "head": "normal", "attention": True},
]
EVERY = [*({"cell": cell} for cell in CELLS), *DECODERS]
Table, Load = Callable[..., pl.DataFrame], Callable[..., Loaded]


def network(
    found: Loaded, *, trained: bool, model: dict[str, Any] | None = None, season: int = SEASON, **shape: Any
) -> RecurrentForecaster:
    panel, categories = found.panel, found.categories
    torch.manual_seed(0)
    made = RecurrentForecaster(
        NetworkShape(
            context_length=CONTEXT,
            horizon=panel.horizon,
            season_length=season,
            n_past=len(panel.past),
            n_known=len(panel.known),
            n_calendar=len(panel.calendar),
            category_sizes=tuple(len(categories[n]) for n in found.data.static_covariates if n in categories),
            n_static_numbers=panel.static_numbers.shape[1],
            **shape,
        ),
        ModelConfig.model_validate({"hidden_size": 6, "num_layers": 2, "decoder_size": 3} | (model or {})),
    ).eval()
    with torch.no_grad():
        made.skip.normal_(0, 0.2)
        made.output_bias.normal_()
        if trained:
            made.output.weight.normal_()
    return made


def windows(found: Loaded, series: list[int], first: list[int], *, span: int = 1, blank: bool = False) -> Batch:
    """Windows; `blank` hides what comes after the first origin, as when forecasting."""
    at = torch.tensor(first)
    limit = at + 1 if blank else at + 1000
    sizes = {"context": CONTEXT, "span": span, "horizon": found.panel.horizon}
    return PanelTensors(found.panel).gather(torch.tensor(series), at, limit, **sizes)


@torch.no_grad()
def run(made: RecurrentForecaster, batch: Batch, *origins: int) -> Output:
    return made(batch, torch.tensor(origins or [0]))


def forecast(output: Output) -> torch.Tensor:
    """Quantiles in the units of the target, in float64."""
    frame = output.frame
    location, scale = frame.location[..., None, None].double(), frame.scale[..., None, None].double()
    return location + scale * output.quantiles.double()


@pytest.fixture(scope="module")
def plain(table: Table, loaded: Load, weekly: Callable[..., dict[str, np.ndarray]]) -> Loaded:
    """Five series of 120 steps, without gaps or covariates."""
    return loaded(table(weekly(5, 120)), HORIZON)


# --- causality


def check_causality(made: RecurrentForecaster, batch: Batch) -> None:
    """Change everything behind an origin that is not known in advance: what was said up to there stays, bit by bit."""
    origins = (0, 7, 14)
    before = run(made, batch, *origins)
    rng = torch.Generator().manual_seed(1)
    for k, origin in enumerate(origins):
        behind = torch.arange(batch.target.shape[1]) >= CONTEXT + origin
        noise = torch.randn(batch.target.shape, generator=rng) * 1e4
        changed = batch._replace(
            target=torch.where(behind, noise, batch.target),
            observed=torch.where(behind, noise > 0, batch.observed),
            past=torch.where(behind[:, None], noise[..., None], batch.past),
        )
        after = run(made, changed, *origins)
        assert torch.equal(after.quantiles[:, : k + 1], before.quantiles[:, : k + 1])
        assert torch.equal(after.state[:, : k + 1], before.state[:, : k + 1])
        for was, now in zip(before.frame, after.frame, strict=True):
            assert torch.equal(was[:, : k + 1], now[:, : k + 1])
        assert k == 2 or not torch.equal(after.quantiles[:, k + 1 :], before.quantiles[:, k + 1 :])


@pytest.mark.parametrize("segment", [1, 7])
@pytest.mark.parametrize("model", EVERY)
def test_nothing_behind_an_origin_changes_its_forecast(
    weekly_loaded: Loaded, model: dict[str, Any], segment: int
) -> None:
    made = network(weekly_loaded, trained=True, model=model, segment_length=segment)
    check_causality(made, windows(weekly_loaded, [0, 1, 3, 6], [50, 90, 60, 40], span=15))


@pytest.mark.parametrize(("season", "horizon"), [(1, 7), (14, 14), (14, 20), (28, 30)])
def test_nor_with_seasons_whose_neighbourhood_reaches_the_origin(
    table: Table, loaded: Load, weekly: Callable[..., dict[str, np.ndarray]], season: int, horizon: int
) -> None:
    # Means around a season back, and spreads, of up to a fourteenth of a season to either side.
    found = loaded(table(weekly(3, 120)), horizon)
    for anchor in ("level", "last"):
        made = network(found, trained=True, season=season, anchor=anchor)
        check_causality(made, windows(found, [0, 1, 2], [50, 80, 60], span=15))


@pytest.mark.parametrize("cell", CELLS)
def test_the_last_value_and_past_covariate_of_the_context_change_the_forecast(weekly_loaded: Loaded, cell: str) -> None:
    made = network(weekly_loaded, trained=True, model={"cell": cell})
    batch = windows(weekly_loaded, [0, 1], [50, 90], blank=True)
    before = run(made, batch).quantiles
    for name in ("target", "past"):
        values = getattr(batch, name).clone()
        values[:, CONTEXT - 1] += 1.0
        after = run(made, batch._replace(**{name: values})).quantiles
        assert (after != before).flatten(1).any(1).all(), name


def test_known_covariates_change_the_forecast_of_their_own_step_only(weekly_loaded: Loaded) -> None:
    made = network(weekly_loaded, trained=True)
    batch = windows(weekly_loaded, [0], [50], blank=True)
    known = batch.known.clone()
    known[:, CONTEXT + 2, 0] += 3.0
    changed = (run(made, batch._replace(known=known)).quantiles != run(made, batch).quantiles).any(-1)[0, 0]
    assert changed.tolist() == [step == 2 for step in range(HORIZON)]


def test_a_missing_covariate_is_not_the_same_as_its_mean(weekly_loaded: Loaded) -> None:
    made = network(weekly_loaded, trained=True)
    batch = windows(weekly_loaded, [0], [50], blank=True)
    found = []
    for value in (0.0, torch.nan):
        past = batch.past.clone()
        past[:, CONTEXT - 1] = value
        found.append(run(made, batch._replace(past=past)).quantiles)
    assert found[1].isfinite().all()
    assert not torch.equal(*found)


# --- past and known covariates that hold codes


@pytest.fixture(scope="module")
def coded(weekly_loaded: Loaded) -> Loaded:
    """Three past covariates, the middle one codes of four values, and two known ones, the first codes of two."""
    panel, rng = weekly_loaded.panel, np.random.default_rng(0)

    def codes(n_values: int, like: np.ndarray) -> np.ndarray:
        drawn = rng.integers(0, n_values + 1, like.shape).astype(np.float32)
        return np.where(rng.random(like.shape) < 0.1, np.float32(np.nan), drawn)

    past = np.concatenate([panel.past, codes(4, panel.past), panel.past**2])
    known = np.concatenate([codes(2, panel.known), panel.known])
    return dataclasses.replace(weekly_loaded, panel=dataclasses.replace(panel, past=past, known=known))


CODED: dict[str, Any] = {"past_categories": (0, 4, 0), "known_categories": (2, 0)}


@pytest.mark.parametrize("segment", [1, 7])
def test_codes_are_causal_and_their_gradients_reach_every_weight(coded: Loaded, segment: int) -> None:
    made = network(coded, trained=True, segment_length=segment, **CODED)
    batch = windows(coded, [0, 1, 3, 6], [50, 90, 60, 40], span=15)
    before = run(made, batch, 0, 7, 14)
    assert before.quantiles.isfinite().all()
    past = batch.past.clone()
    past[:, CONTEXT + 7 :, 1] = 3.0
    after = run(made, batch._replace(past=past), 0, 7, 14)
    assert torch.equal(after.quantiles[:, :2], before.quantiles[:, :2])
    assert not torch.equal(after.quantiles[:, 2], before.quantiles[:, 2])
    made.train()
    check_gradients(made, coded, tuple(name for name, _ in made.named_parameters()))


def test_each_code_the_unseen_and_the_missing_one_say_something_else(coded: Loaded) -> None:
    made = network(coded, trained=True, **CODED)
    batch = windows(coded, [0], [50], blank=True)
    found = []
    for value in (math.nan, 0.0, 1.0, 2.0):
        known = batch.known.clone()
        known[:, CONTEXT + 2, 0] = value
        found.append(run(made, batch._replace(known=known)).quantiles[0, 0])
        # Known ahead: it changes the forecast of its own step only.
        changed = (found[-1] != found[0]).any(-1)
        assert changed.tolist() == [step == 2 and not math.isnan(value) for step in range(HORIZON)]
    assert len({float(made[2, 0]) for made in found}) == 4
    found = []
    for value in (math.nan, 0.0, 1.0, 2.0, 3.0, 4.0):
        past = batch.past.clone()
        past[:, CONTEXT - 1, 1] = value
        found.append(run(made, batch._replace(past=past)).quantiles[0, 0])
    assert len({float(made[0, 0]) for made in found}) == 6


def test_gradients_reach_the_tables_of_several_covariates_of_codes(coded: Loaded) -> None:
    # Numbers before, between and after them.
    panel = coded.panel
    twice = dataclasses.replace(
        panel,
        past=panel.past[[0, 1, 2, 1]],
        known=np.concatenate([panel.known, np.roll(panel.known[:1], 3, axis=1)]),
    )
    found = dataclasses.replace(coded, panel=twice)
    made = network(found, trained=True, past_categories=(0, 4, 0, 4), known_categories=(2, 0, 2)).train()
    check_gradients(made, found, tuple(name for name, _ in made.named_parameters()))


def test_steps_before_the_start_are_no_unseen_values(coded: Loaded) -> None:
    made = network(coded, trained=True, **CODED)
    batch = windows(coded, [0], [9], blank=True)
    batch.known[:, CONTEXT - 10 :, 0] = 1.0
    before = run(made, batch).quantiles
    with torch.no_grad():
        made.known_embeddings["0"].weight[0] += 100.0
    assert torch.equal(run(made, batch).quantiles, before)


def test_training_hides_a_value_at_every_step_of_a_window(coded: Loaded) -> None:
    made = network(coded, trained=True, **CODED).train()
    batch = windows(coded, [0] * 400, [50] * 400, blank=True)
    with torch.no_grad():
        made.known_embeddings["0"].weight.copy_(torch.arange(3.0)[:, None].expand(-1, 8))
        seen = made._future(batch)[..., 0]
    codes = batch.known[..., 0].nan_to_num(0.0)
    hidden = torch.stack([((seen == 0) & (codes == code)).any(1) for code in (1, 2)])
    kept = torch.stack([((seen == code) & (codes == code)).any(1) for code in (1, 2)])
    assert (hidden ^ kept).all()
    assert 0.02 < float(hidden.float().mean()) < 0.09


def test_the_shape_survives_json_and_one_without_codes_is_read_as_before(coded: Loaded) -> None:
    shape = network(coded, trained=False, **CODED).shape
    stored = json.loads(json.dumps(shape.to_json()))
    assert NetworkShape.from_json(stored) == shape
    del stored["past_categories"], stored["known_categories"]
    assert NetworkShape.from_json(stored) == dataclasses.replace(shape, past_categories=(), known_categories=())


# --- the untrained network


@pytest.mark.parametrize("anchor", ["level", "last"])
@pytest.mark.parametrize("model", [{}, *DECODERS[:3]])
def test_an_untrained_network_forecasts_the_skip_and_the_quantiles_of_its_bias(
    plain: Loaded, model: dict[str, Any], anchor: str
) -> None:
    made = network(plain, trained=False, model=model, anchor=anchor)
    output = run(made, windows(plain, [0, 1, 2], [40, 60, 100], blank=True))
    frame = output.frame
    own = made.head.ordered(made.output_bias) * frame.spread[..., None]
    assert torch.equal(output.quantiles, own + apply_linear(frame.window, made.skip)[..., None])
    for row, (series, cutoff) in enumerate([(0, 40), (1, 60), (2, 100)]):
        values = plain.panel.target[plain.panel.offsets[series] :][cutoff - CONTEXT + 1 : cutoff + 1].astype(np.float64)
        recent = values[-made.shape.scale_length :]
        location = recent.mean() if anchor == "level" else values[-1]
        scale = np.sqrt(np.mean((recent - location) ** 2))
        weights, constant = made.skip[:-1].double().numpy(), made.skip[-1].double().numpy()
        linear = location + (values - location) @ weights + scale * constant
        median = linear + scale * own[row, 0, :, made.head.median].detach().numpy()
        np.testing.assert_allclose(forecast(output)[row, 0, :, made.head.median], median, rtol=1e-4)


@pytest.mark.parametrize(("factor", "shift"), [(3.0, 0.0), (0.01, 0.0), (1.0, 500.0), (250.0, -1000.0)])
def test_an_untrained_network_is_equivariant_to_scale_and_shift(
    table: Table, loaded: Load, weekly: Callable[..., dict[str, np.ndarray]], factor: float, shift: float
) -> None:
    # The trained one sees the size of a series, too, and need not be.
    series = weekly(3, 60)
    found = [
        loaded(table({name: values * a + b for name, values in series.items()}), HORIZON)
        for a, b in ((1.0, 0.0), (factor, shift))
    ]
    made = network(found[0], trained=False)
    base, moved = (forecast(run(made, windows(f, [0, 1, 2], [40, 50, 59], blank=True))) for f in found)
    span = float((base * factor).abs().max()) + abs(shift)
    torch.testing.assert_close(moved, base * factor + shift, rtol=0, atol=1e-5 * span)


def test_gradients_of_an_untrained_network_reach_its_last_layer(weekly_loaded: Loaded) -> None:
    check_gradients(network(weekly_loaded, trained=False).train(), weekly_loaded, ("output.weight", "output_bias"))


# --- any network


@pytest.mark.parametrize("segment", [1, 7, 14])
@pytest.mark.parametrize("model", EVERY)
def test_several_origins_give_what_each_gives_alone(weekly_loaded: Loaded, model: dict[str, Any], segment: int) -> None:
    made = network(weekly_loaded, trained=True, model=model, segment_length=segment)
    batch = windows(weekly_loaded, [0, 2, 6], [50, 90, 40], span=29)
    origins = (0, 14, 28)
    together = run(made, batch, *origins)
    for k, origin in enumerate(origins):
        alone = run(made, batch, origin)
        torch.testing.assert_close(together.quantiles[:, k], alone.quantiles[:, 0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(together.state[:, k], alone.state[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("segment", [1, 7])
def test_an_origin_inside_a_longer_window_gives_what_its_own_window_gives_untrained(
    plain: Loaded, segment: int
) -> None:
    # Only the encoder of the trained one remembers more than the context.
    made = network(plain, trained=False, segment_length=segment)
    origins = (0, 7, 21)
    inside = forecast(run(made, windows(plain, [0, 1], [50, 70], span=22), *origins))
    for k, origin in enumerate(origins):
        own = forecast(run(made, windows(plain, [0, 1], [50 + origin, 70 + origin], blank=True)))
        torch.testing.assert_close(inside[:, k], own[:, 0], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def short(table: Table, loaded: Load, weekly: Callable[..., dict[str, np.ndarray]]) -> Loaded:
    """A long series, and short ones: one with gaps and another level, one whose first rows have no target."""
    series = weekly(4, 120)
    series["s01"], series["s02"], series["s03"] = series["s01"][:20] + 1e3, series["s02"][:20], series["s03"][:2]
    series["s01"][[8, 9, 15]] = np.nan
    found = loaded(table(series), HORIZON)
    target = found.panel.target.copy()
    target[found.panel.offsets[2] :][:3] = np.nan
    return dataclasses.replace(found, panel=dataclasses.replace(found.panel, target=target))


@pytest.mark.parametrize("anchor", ["level", "last"])
@pytest.mark.parametrize("model", [{}, {"head": "normal"}, {"decoder": "autoregressive", "n_paths": 8}])
def test_batches_of_training_and_of_scoring_forecast_the_same_at_the_same_origin(
    short: Loaded, model: dict[str, Any], anchor: str
) -> None:
    # As they are drawn: a batch of training may begin before its series, and sees no target from a limit on.
    made = network(short, trained=False, model=model, anchor=anchor)
    data, sizes = PanelTensors(short.panel), {"context": CONTEXT, "horizon": HORIZON}
    series = torch.tensor([0, 0, 1, 2, 3])
    final, limit = torch.tensor([60, 20, 18, 18, 0]), torch.tensor([100, 22, 20, 20, 2])
    inside = run(made, data.gather(series, final - 21, limit, span=22, **sizes), 0, 7, 13, 21)
    for k, origin in enumerate((0, 7, 13, 21)):
        first = final - 21 + origin
        own = run(made, data.gather(series, first, first + 1, span=1, **sizes))
        assert torch.equal(inside.frame.begun[:, k], own.frame.begun[:, 0])
        begun = own.frame.begun[:, 0]
        assert begun.tolist() == [True, first[1] >= 0, first[2] >= 0, first[3] >= 3, first[4] >= 0]
        torch.testing.assert_close(inside.frame.window[begun, k], own.frame.window[begun, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(forecast(inside)[begun, k], forecast(own)[begun, 0], rtol=1e-5, atol=1e-4)


# --- windows that reach before the start, and scales


@pytest.mark.parametrize("anchor", ["level", "last"])
@pytest.mark.parametrize("cutoff", [3, 12, 19])
def test_before_its_start_a_series_was_what_it_was_at_first(short: Loaded, anchor: str, cutoff: int) -> None:
    frame = network(short, trained=False, anchor=anchor).frame(
        windows(short, [1, 2], [cutoff, cutoff], blank=True), torch.zeros(1, dtype=torch.long)
    )
    panel = short.panel
    for row, series in enumerate([1, 2]):
        seen = panel.target[panel.offsets[series] :][: cutoff + 1].astype(np.float64)
        padded = np.append(np.full(CONTEXT - len(seen), seen[np.isfinite(seen)][0]), seen)
        location, divisor = float(frame.location[row, 0]), float(frame.divisor[row, 0])
        # A gap inside, also one at the very start, is at the location.
        expected = np.nan_to_num((padded - location) / divisor, nan=0.0)
        np.testing.assert_allclose(frame.window[row, 0], expected, rtol=1e-4, atol=1e-4)
        assert (frame.window[row, 0, : CONTEXT - len(seen)] == frame.window[row, 0, 0]).all()
        gaps = np.flatnonzero(np.isnan(padded))
        assert len(gaps) == (int(np.isin([8, 9, 15], range(cutoff + 1)).sum()) if series == 1 else 3)
        assert (frame.window[row, 0, gaps] == 0).all()


def test_the_scale_around_the_last_value_is_the_root_mean_square_distance_from_it() -> None:
    rng = np.random.default_rng(0)
    target, observed = 1e3 + rng.normal(size=(4, 60)).cumsum(1), rng.random((4, 60)) > 0.2
    observed[1, :25], observed[2, 20:45], target[3, 10:] = False, False, 7.0
    shape = NetworkShape(
        context_length=CONTEXT,
        horizon=HORIZON,
        season_length=1,
        n_past=0,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
        anchor="last",
    )
    made = RecurrentForecaster(shape, ModelConfig())
    nothing = torch.zeros(4, 60, 0, dtype=torch.float64)
    batch = Batch(
        target=torch.from_numpy(target * observed),
        observed=torch.from_numpy(observed),
        past=nothing,
        known=nothing,
        there=torch.ones(4, 60, dtype=torch.bool),
        static_categories=torch.zeros(4, 0, dtype=torch.long),
        static_numbers=nothing[:, 0],
    )
    frame = made.frame(batch, torch.arange(60 - CONTEXT - HORIZON + 1))
    for row in range(4):
        for origin, at in enumerate(range(CONTEXT - 1, 60 - HORIZON)):
            seen = [t for t in range(at + 1) if observed[row, t]]
            recent = [t for t in seen if t > at - shape.scale_length] or seen
            values = target[row, recent]
            expected = np.sqrt(np.mean((values - target[row, seen[-1]]) ** 2)) if seen else 0.0
            assert float(frame.scale[row, origin]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
            assert float(frame.location[row, origin]) == (target[row, seen[-1]] if seen else 0.0)
    assert (frame.scale[3, -1], frame.divisor[3, -1]) == (0, 1)


@pytest.mark.parametrize("model", EVERY)
def test_a_window_gives_the_same_alone_as_in_a_batch(weekly_loaded: Loaded, model: dict[str, Any]) -> None:
    made = network(weekly_loaded, trained=True, model=model)
    series, first = [0, 1, 3, 5, 6, 7], [10, 159, 21, 80, 99, 2]
    together = run(made, windows(weekly_loaded, series, first, blank=True)).quantiles
    for row, at in enumerate(zip(series, first, strict=True)):
        alone = run(made, windows(weekly_loaded, [at[0]], [at[1]], blank=True)).quantiles
        torch.testing.assert_close(alone[0], together[row], rtol=1e-6, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize("anchor", ["level", "last"])
@pytest.mark.parametrize("value", [0.0, 1.1, -3.3e6, 1e17])
@pytest.mark.parametrize("model", [{}, {"decoder": "autoregressive"}])
def test_a_constant_window_forecasts_its_value_exactly(
    table: Table, loaded: Load, value: float, anchor: str, model: dict[str, Any]
) -> None:
    # Other values long ago, outside of the context.
    found = loaded(table({"a": [*np.random.default_rng(0).normal(size=20), *[value] * 50], "b": [value]}), HORIZON)
    made = network(found, trained=True, model=model, anchor=anchor)
    batch = windows(found, [0, 1], [69, 0], blank=True)
    level = torch.zeros(2) if batch.level is None else batch.level
    assert (forecast(run(made, batch)) + level[:, None, None, None] == float(found.panel.target[-1])).all()
    assert found.panel.target[-1] == pytest.approx(value, rel=1e-7 if value < 1e17 else 1e-16)


@pytest.mark.parametrize("model", [{}, *DECODERS])
def test_quantiles_do_not_cross_and_are_finite_for_extreme_series(
    table: Table, loaded: Load, model: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    series = {
        "huge": 1e17 * rng.normal(size=80),
        "tiny": 1e-20 * rng.normal(size=80),
        "flat": 1e7 + rng.normal(size=80),
        "spike": np.append(np.zeros(79), 1e12),
        "once": [3.0],
        "zeros": np.zeros(80),
    }
    found = loaded(table(series), HORIZON)
    made = network(found, trained=True, model=model)
    quantiles = forecast(run(made, windows(found, [*range(6)], (found.panel.lengths - 1).tolist(), blank=True)))
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()


def test_a_window_without_any_observation_is_said_to_have_none(plain: Loaded) -> None:
    output = run(network(plain, trained=True), windows(plain, [0, 0], [300, 119], blank=True))
    assert output.frame.begun[:, 0].tolist() == [False, True]
    assert output.quantiles.isfinite().all()


@pytest.mark.parametrize("model", EVERY)
def test_gradients_are_finite_and_reach_every_weight(weekly_loaded: Loaded, model: dict[str, Any]) -> None:
    made = network(weekly_loaded, trained=True, model=model).train()
    check_gradients(made, weekly_loaded, tuple(name for name, _ in made.named_parameters()))


def check_gradients(made: RecurrentForecaster, found: Loaded, names: tuple[str, ...]) -> None:
    batch, origins = windows(found, [0, 1, 3, 4, 5, 7], [30, 60, 60, 12, 100, 1], span=15), torch.tensor([0, 7, 14])
    output = made(batch, origins)
    target, observed = targets(batch, output.frame, origins, made.shape)
    (
        made.head.errors(output.arguments, target) * loss_weights(target, observed, output.frame, made.shape)
    ).mean().backward()
    gradients = {name: values.grad for name, values in made.named_parameters()}
    assert all(g is None or g.isfinite().all() for g in gradients.values())
    for name in names:
        gradient = gradients[name]
        assert gradient is not None, name
        assert gradient.any(), name


# --- what the loss is taken of


def test_targets_are_in_the_units_of_the_forecast(plain: Loaded) -> None:
    batch, origins = windows(plain, [0, 1], [40, 80], span=8), torch.tensor([0, 7])
    output = run(network(plain, trained=True), batch, 0, 7)
    scaled, observed = targets(batch, output.frame, origins, network(plain, trained=True).shape)
    back = output.frame.location[..., None] + output.frame.divisor[..., None] * scaled
    for row, (series, first) in enumerate([(0, 40), (1, 80)]):
        for k, origin in enumerate([0, 7]):
            at = plain.panel.offsets[series] + first + origin + 1
            np.testing.assert_allclose(back[row, k], plain.panel.target[at : at + HORIZON], rtol=1e-5)
    assert observed.all()


def test_loss_weights_leave_out_gaps_and_constant_windows_and_depend_on_the_past_only(
    table: Table, loaded: Load
) -> None:
    rng = np.random.default_rng(0)
    gap, boom, quiet = rng.normal(size=35), rng.normal(size=35), rng.normal(size=35)
    gap[30], boom[28:], quiet[14:28] = np.nan, 1e3, quiet[14:28] / 100
    constant = np.append(np.ones(28), rng.normal(size=7))
    weights = []
    for change in (0.0, 50.0):
        series = {"a": gap, "b": boom, "c": constant, "d": quiet}
        series = {name: np.append(values[:28], values[28:] + change) for name, values in series.items()}
        found = loaded(table(series), HORIZON)
        batch, origins = windows(found, [0, 1, 2, 3], [27] * 4), torch.tensor([0])
        made = network(found, trained=True)
        frame = made.frame(batch, origins)
        target, observed = targets(batch, frame, origins, made.shape)
        weights.append(loss_weights(target, observed, frame, made.shape)[:, 0])
    weight = weights[0]
    assert torch.equal(weight, weights[1])
    usual = weight[0, 0]
    assert 0.7 < float(usual) <= 1
    assert weight[0].tolist() == [usual, usual, 0.0, usual, usual, usual, usual]
    assert float(weight[1, 0]) == pytest.approx(1.0, abs=0.3)
    assert not weight[2].any()
    # After a quiet stretch, in units of which all before it is far away.
    assert 0 < float(weight[3].max()) < 0.1
    # Targets far out count to quantiles as if they were as far as anything is.
    errors = QuantileHead((0.1, 0.5, 0.9)).errors(torch.zeros(3, 3), torch.tensor([20.0, 1e4, -1e4]))
    assert errors.tolist() == pytest.approx([20.0] * 3)
