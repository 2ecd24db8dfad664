"""Attributions on a panel whose target follows from a known covariate, and does not from another."""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal

from forecast.artifact import Artifact
from forecast.config import ExplainSettings
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError, DataError
from forecast.explanation.explain import explain
from forecast.explanation.result import Explanation
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import HEAD, AdapterBank, head_feature_count
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.prediction.from_table import forecast
from forecast.training.result import FitResult

Train = Callable[..., FitResult]
Table = Callable[..., pl.DataFrame]
HORIZON, LENGTH = 4, 120
START = datetime(2024, 1, 1)


@pytest.fixture(scope="module")
def promoted(table: Table, loaded: Callable[..., Loaded]) -> Loaded:
    """Twelve series of 10 + 6 promo and a little noise; `sun` has no part in them, past `visits` and `town` neither."""
    rng = np.random.default_rng(3)
    names = [f"s{number:02d}" for number in range(12)]
    promo = {name: (rng.random(LENGTH) < 0.4).astype(float) for name in names}
    columns: dict[str, Any] = {
        "promo": promo,
        "sun": {name: rng.normal(size=LENGTH) for name in names},
        "visits": {name: rng.normal(size=LENGTH) for name in names},
        "sky": {name: rng.choice(["clear", "grey"], LENGTH).tolist() for name in names},
        "town": {name: ["oslo" if number % 2 else "rome"] * LENGTH for number, name in enumerate(names)},
        "size": {name: np.full(LENGTH, float(number % 3)) for number, name in enumerate(names)},
    }
    series = {name: 10 + 6 * promo[name] + 0.2 * rng.normal(size=LENGTH) for name in names}
    return loaded(
        table(series, **columns),
        HORIZON,
        season_length=1,
        past_covariates=["visits"],
        known_covariates=["promo", "sun", "sky"],
        static_covariates=["town", "size"],
    )


@pytest.fixture(scope="module")
def learnt(train: Train, promoted: Loaded) -> Artifact:
    made = train(
        promoted,
        context=16,
        model={"hidden_size": 12, "decoder_size": 8},
        max_steps=100,
        learning_rate=2e-2,
        ema_decay=0.9,
        validation_every=25,
        holdout_windows=1,
    )
    assert made.summary["best_step"] > 0
    return made.artifact


CUTOFF = START + timedelta(days=LENGTH - 1 - HORIZON)


def explained(artifact: Artifact, found: Loaded, **settings: Any) -> Explanation:
    return explain(artifact, found.panel, ExplainSettings(**{"series": "s03", "cutoff": CUTOFF} | settings))


def size_of(found: Explanation, *names: str) -> float:
    """Return how much inputs have moved the forecast, the largest of them."""
    moved = found.summary.filter(pl.col("input").is_in(names))["attribution"].abs()
    assert len(moved) == len(names)
    return float(moved.max())  # type: ignore[arg-type]


def sums_up(found: Explanation, share: float) -> None:
    """Attributions sum to the forecast less that of the baseline, but for a share of them."""
    assert found.baseline is not None
    moved = float(found.frame["attribution"].sum())
    assert abs(found.forecast - found.baseline) > 0.01
    assert found.baseline + moved == pytest.approx(found.forecast, abs=share * found.frame["attribution"].abs().sum())
    assert found.error == pytest.approx(found.forecast - found.baseline - moved, abs=1e-9)


def is_forecast(found: Explanation, artifact: Artifact, loaded: Loaded, column: str = "q50") -> None:
    cutoff = loaded.panel.grid.floor(found.frame["cutoff"][0])
    made = forecast(artifact, loaded.panel, cutoff=cutoff).frame.filter(series_id=found.series_id)
    step = found.frame["step"][0]
    made = made if step == "mean" else made.filter(step=int(step))
    assert found.forecast == pytest.approx(made[column].mean(), rel=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
@pytest.mark.trains
def test_what_determines_the_target_moves_the_forecast_and_noise_does_not(
    method: str, learnt: Artifact, promoted: Loaded
) -> None:
    for step in range(1, HORIZON + 1):
        found = explained(learnt, promoted, method=method, step=step)
        assert size_of(found, "promo") > 1.0
        assert size_of(found, "target") < 0.7 * size_of(found, "promo")
        assert size_of(found, "sun", "visits", "sky", "town", "size") < 0.15 * size_of(found, "promo")
        is_forecast(found, learnt, promoted)
        if method == "integrated_gradients":
            strongest = found.frame.sort(pl.col("attribution").abs())[-1]
            assert strongest.select("input", "lag").row(0) == ("promo", -step), "the step's own promo moves it most"


def test_attributions_sum_to_the_forecast_less_that_of_the_baseline(learnt: Artifact, promoted: Loaded) -> None:
    for settings in ({}, {"step": 2, "level": 0.9}, {"level": "mean"}):
        found = explained(learnt, promoted, n_steps=128, **settings)
        sums_up(found, 1e-3)
        is_forecast(found, learnt, promoted, found.output)
    coarse = explained(learnt, promoted, n_steps=8)
    assert coarse.error is not None
    assert abs(coarse.error) > 0, "what few points miss is told"


def test_rows_say_where_an_input_stood(learnt: Artifact, promoted: Loaded) -> None:
    frame = explained(learnt, promoted, step=3).frame
    counts = dict(frame.group_by("input").len().iter_rows())
    known = 16 + HORIZON
    assert counts == {"target": 16, "visits": 16, "size": 1, "town": 1} | dict.fromkeys(
        ("promo", "sun", "sky", "calendar"), known
    )
    table = promoted.panel.frame(np.array([3])).filter(pl.col("timestamp") <= CUTOFF).tail(16).reverse()
    target = frame.filter(input="target").sort("lag")
    assert target["timestamp"].to_list() == table["timestamp"].to_list()
    assert target["value"].to_list() == pytest.approx(table["target"].to_list())
    assert target["lag"].to_list() == list(range(16))
    assert set(frame.filter(input="promo", lag=-HORIZON)["timestamp"]) == {CUTOFF + timedelta(days=HORIZON)}
    assert frame.filter(input="town").select("lag", "value", "category").row(0) == (None, None, "oslo")
    assert set(frame.filter(input="sky")["category"]) == {"clear", "grey"}
    assert set(frame["step"]) == {"3"}


def test_of_a_linear_model_occlusion_and_gradients_are_the_same(train: Train, promoted: Loaded) -> None:
    line = train(promoted, context=16, holdout_windows=1).artifact
    found, other = (
        explained(line, promoted, method=method, block=1, level=level)
        for method, level in (("integrated_gradients", 0.5), ("occlusion", 0.5))
    )
    sums_up(found, 1e-6)
    lags = [each.frame.filter(input="target").sort("lag").select("lag", "attribution") for each in (found, other)]
    assert_frame_equal(*lags, abs_tol=1e-5)
    assert lags[0]["attribution"].abs().max() > 0.01  # type: ignore[operator]
    blocks = explained(line, promoted, method="occlusion", block=5).frame.filter(input="target")
    assert blocks.select("lag", "steps").rows() == [(0, 5), (5, 5), (10, 5), (15, 1)]
    assert blocks["attribution"].sum() == pytest.approx(lags[0]["attribution"].sum(), abs=1e-5)


def test_the_width_of_intervals_is_held_where_the_errors_of_smoothing_set_it(
    train: Train, table: Table, loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(5)
    walks = {f"s{k:02d}": 50 + (k + 1) * rng.normal(size=LENGTH).cumsum() for k in range(12)}
    found = loaded(table(walks), HORIZON, season_length=1)
    model = train(found, context=16, model={"smoothing": True}, holdout_windows=1).artifact
    assert model.network.smoothing_share > 0
    middle, high = (explained(model, found, level=level, step=2) for level in (0.5, 0.9))
    for each in (middle, high):
        sums_up(each, 1e-6)
        is_forecast(each, model, found, each.output)
    assert middle.baseline is not None
    assert high.baseline is not None
    assert high.forecast - middle.forecast > 0.1
    assert high.baseline - middle.baseline == pytest.approx(high.forecast - middle.forecast, rel=1e-6)


def bank(kind: str, learnt: Artifact) -> AdapterBank:
    """Return changes of one series."""
    network = learnt.network
    assert isinstance(network, RecurrentForecaster)
    generator = torch.Generator().manual_seed(0)
    if kind == HEAD:
        n_features = head_feature_count(network.shape, 12)
        weight = 0.05 * torch.randn(1, n_features, HORIZON, generator=generator)
        return AdapterBank(kind, ["s03"], {"weight": weight, "width": torch.full((1,), 1.2)})
    changes = stacked.unchanged(network, kind, 1, 4)
    changes = {name: 0.05 * torch.randn(values.shape, generator=generator) for name, values in changes.items()}
    return AdapterBank(kind, ["s03"], {**changes, "blend": torch.ones(1)})


@pytest.mark.parametrize("kind", ["head", "bias", "full"])
@pytest.mark.trains
def test_a_fine_tuned_series_is_explained_with_its_changes(kind: str, learnt: Artifact, promoted: Loaded) -> None:
    tuned = learnt.with_bank(bank(kind, learnt), trained_until=learnt.trained_until, parent_digest="")
    found = explained(tuned, promoted, n_steps=128, level=0.8)
    sums_up(found, 1e-2)
    is_forecast(found, tuned, promoted, "q80")
    plain = explained(learnt, promoted, method="occlusion", level=0.8)
    assert abs(found.forecast - plain.forecast) > 1e-3
    is_forecast(explained(tuned, promoted, series="s05", method="occlusion"), learnt, promoted)


@pytest.mark.parametrize(
    ("model", "level"),
    [
        ({"head": "student_t"}, 0.9),
        ({"head": "tweedie"}, "mean"),
        ({"transform": "log"}, "mean"),
        ({"attention": True, "cell": "gru"}, 0.5),
        ({"truncate": 3}, 0.5),
    ],
)
@pytest.mark.trains
def test_models_of_all_kinds_are_explained(model: dict[str, Any], level: Any, train: Train, promoted: Loaded) -> None:
    learning = {"max_steps": 10, "learning_rate": 2e-2, "ema_decay": 0.0, "validation_every": 5}
    made = train(promoted, context=16, model=model, ensemble=1 + ("cell" in model), holdout_windows=1, **learning)
    found = explained(made.artifact, promoted, level=level, n_steps=128)
    sums_up(found, 3e-2)
    is_forecast(found, made.artifact, promoted, found.output)
    weights = found.attention
    assert (weights is not None) == bool(model.get("attention"))
    if weights is not None:
        assert set(weights["series_id"]) == {"s03"}
        assert weights["weight"].sum() == pytest.approx(1.0, rel=1e-5)


def test_what_has_no_gradient_is_told(train: Train, promoted: Loaded) -> None:
    amounts = train(promoted, context=16, model={"head": "tweedie"}, holdout_windows=1).artifact
    with pytest.raises(ConfigError, match=r"quantiles of tweedie have no gradient; explain.level=mean"):
        explained(amounts, promoted, method="integrated_gradients")
    paths = train(promoted, context=16, model={"decoder": "autoregressive", "n_paths": 8}, holdout_windows=1).artifact
    with pytest.raises(ConfigError, match=r"explain.method=occlusion explains them"):
        explained(paths, promoted, method="integrated_gradients")
    for model in (amounts, paths):
        explanation = explained(model, promoted, method="auto")
        assert explanation.method == "occlusion"
        is_forecast(explanation, model, promoted)


def test_without_captum_occlusion_is_left(learnt: Artifact, promoted: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ConfigError, match=r"gatecast\[explain\]'; or set explain.method=occlusion"):
        explained(learnt, promoted)
    assert explained(learnt, promoted, method="occlusion").baseline is None


def test_hours_that_clocks_skip_are_no_inputs(train: Train, table: Table, loaded: Callable[..., Loaded]) -> None:
    hours = np.arange(24 * 20)
    series = {f"s{k:02d}": 20 + k + 5 * np.sin(2 * np.pi * hours / 24 + k) for k in range(4)}
    begin = datetime(2024, 3, 14)
    made = table(series, start=begin, every=timedelta(hours=1), time_zone="Europe/Berlin")
    found = loaded(made, 6, freq="1h", season_length=24)
    model = train(found, context=48, model={"segment_length": 24}, holdout_windows=1).artifact
    asked = ExplainSettings(series="s01", cutoff=datetime(2024, 4, 1, 3), step=4)
    explanation = explain(model, found.panel, asked)
    sums_up(explanation, 1e-6)
    is_forecast(explanation, model, found)
    target = explanation.frame.filter(input="target")
    # From two o'clock to three there is nothing on the last day of March.
    gone = {stamp.replace(tzinfo=None) for stamp in target["timestamp"]}
    assert datetime(2024, 3, 31, 2) not in gone
    assert len(target) == len(gone) == 47


def test_what_there_is_not_is_told(learnt: Artifact, promoted: Loaded) -> None:
    with pytest.raises(DataError, match=r"no series 's99' among the 12 of the panel: s00, s01, .* and 7 more"):
        explained(learnt, promoted, series="s99")
    with pytest.raises(DataError, match=r"set an earlier explain.cutoff"):
        explained(learnt, promoted, cutoff=START + timedelta(days=2 * LENGTH))
    with pytest.raises(ConfigError, match=r"no quantile 0.55; it has 0.1, .*, 0.9, mean"):
        explained(learnt, promoted, level=0.55)
    with pytest.raises(ConfigError, match=r"explain.step: the horizon has 4 steps \(given: 5\)"):
        explained(learnt, promoted, step=5)
