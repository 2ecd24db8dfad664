"""The kinds of fine-tuning by gradient: many series at once are each alone, and the base is what they start from."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import FinetuneConfig, FinetuneSettings
from forecast.config import load as validated
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError
from forecast.finetuning import gradient_group, head_group, series_tuning
from forecast.finetuning.finetune import finetune
from forecast.finetuning.result import NOT_SELECTED, TOO_SHORT, UNCHANGED, FinetuneResult
from forecast.finetuning.series_gate import CONSTANT, DIVERGED, NO_GAIN, TUNED
from forecast.metrics.seasonal_naive import future_values
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import BLEND
from forecast.models.adapters.optimiser import BatchedAdam
from forecast.models.adapters.stacked import Deltas
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import window_sizes
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

GRADIENT = ("bias", "embedding", "lora", "full")
KINDS = ("head", *GRADIENT)
QUICK: dict[str, Any] = {
    "origins": 30,
    "gate_windows": 2,
    "report_windows": 1,
    "holdout_windows": 0,
    "steps": 4,
    "batch_size": 2,
}
RISING: dict[str, Any] = {"static_covariates": ["city", "size"], "known_covariates": ["promo"]}
# Every series that can be tuned is.
OPEN: dict[str, Any] = {**QUICK, "min_gain": 0.0, "min_windows_better": 0.0}
Train, Table, Load = Callable[..., FitResult], Callable[..., pl.DataFrame], Callable[..., Loaded]


def tune(artifact: Artifact, found: Loaded, **settings: Any) -> FinetuneResult:
    return finetune(artifact, found.panel, FinetuneSettings.model_validate(settings))


def tuned_series(result: FinetuneResult) -> list[str]:
    return result.decisions.filter(reason=TUNED)["series_id"].to_list()


@pytest.fixture(scope="module")
def rows(rising_table: pl.DataFrame) -> pl.DataFrame:
    return rising_table


@pytest.fixture(scope="module")
def panel(rising: Loaded) -> Loaded:
    return rising


@pytest.fixture(scope="module")
def base(early: FitResult) -> Artifact:
    return early.artifact


@pytest.fixture(scope="module")
def results(base: Artifact, panel: Loaded) -> dict[str, FinetuneResult]:
    found = {kind: tune(base, panel, kind=kind, **OPEN) for kind in KINDS}
    return {**found, "global": tune(base, panel, kind="global", **{**OPEN, "steps": 25})}


# --- zero steps


@pytest.mark.parametrize("kind", [*GRADIENT, "global"])
def test_no_steps_are_the_parent_bit_by_bit(base: Artifact, panel: Loaded, kind: str) -> None:
    result = tune(base, panel, kind=kind, **{**OPEN, "steps": 0})
    assert set(result.decisions["reason"]) <= {NO_GAIN, CONSTANT, TOO_SHORT}
    assert result.artifact.parent_digest == base.digest()
    for name, values in result.artifact.network.state_dict().items():
        assert torch.equal(values, base.network.state_dict()[name])
    assert forecast(result.artifact, panel.panel).frame.equals(forecast(base, panel.panel).frame)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.trains
def test_the_base_inside_is_the_parent_bit_by_bit(
    base: Artifact, results: dict[str, FinetuneResult], kind: str
) -> None:
    child = results[kind].artifact
    assert child.base().digest() == base.digest() == child.parent_digest
    assert tuned_series(results[kind]), "the other tests are of series that were tuned"


# --- together and alone


@pytest.mark.parametrize("kind", KINDS)
def test_series_together_are_each_alone(
    base: Artifact, rows: pl.DataFrame, loaded: Load, results: dict[str, FinetuneResult], kind: str
) -> None:
    """To one part in ten thousand: products of other sizes round in another order."""
    bank = results[kind].artifact.bank
    assert bank is not None
    for name in tuned_series(results[kind])[1:2]:
        own = loaded(rows.filter(series_id=name), 3, categories=base.categories, **RISING)
        alone = tune(base, own, kind=kind, **OPEN)
        for column in ("base_loss", "tuned_loss", "report_base_loss", "report_tuned_loss", "blend"):
            together = results[kind].decisions.filter(series_id=name)[column][0]
            assert alone.decisions[column][0] == pytest.approx(together, rel=1e-4, abs=1e-6)
        assert alone.artifact.bank is not None
        for part, values in alone.artifact.bank.tensors.items():
            torch.testing.assert_close(values[0], bank.tensors[part][bank.series_id.index(name)], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def pooled(base: Artifact, panel: Loaded) -> dict[str, FinetuneResult]:
    return {kind: tune(base, panel, kind=kind, max_harm=0.5, **QUICK) for kind in ("head", "bias")}


@pytest.mark.parametrize(
    ("kind", "gate"), [*itertools.product(["head", "bias"], ["strict", "pooled"]), ("lora", "strict")]
)
def test_neither_order_nor_groups_matter(
    base: Artifact,
    panel: Loaded,
    results: dict[str, FinetuneResult],
    pooled: dict[str, FinetuneResult],
    kind: str,
    gate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reverse = np.arange(panel.panel.n_series)[::-1]
    parts = [panel.panel.rows(int(row), int(row) + 1) for row in reverse]
    turned = dataclasses.replace(
        panel.panel,
        series_id=panel.panel.series_id[reverse],
        offsets=np.concatenate([[0], np.cumsum(panel.panel.lengths[reverse])]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "target")},
        **{name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("past", "known")},
        static_categories=panel.panel.static_categories[reverse],
        static_numbers=panel.panel.static_numbers[reverse],
    )
    monkeypatch.setattr(series_tuning, "_elements_per_series", lambda *_: series_tuning.MAX_GROUP_ELEMENTS["cpu"] // 4)
    settings = {**QUICK, "max_harm": 0.5} if gate == "pooled" else OPEN
    made = finetune(base, turned, FinetuneSettings.model_validate({"kind": kind, **settings}))
    together = pooled if gate == "pooled" else results
    assert tuned_series(together[kind])
    both = together[kind].decisions.join(made.decisions, on="series_id", suffix="_turned")
    assert both["reason"].to_list() == both["reason_turned"].to_list()
    for column in ("base_loss", "tuned_loss", "report_tuned_loss", "posterior_gain", "harm_probability"):
        values, others = (both[name].cast(pl.Float64).to_numpy() for name in (column, f"{column}_turned"))
        np.testing.assert_allclose(values, others, rtol=1e-3, atol=1e-5)


# --- stacked and fused


MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru", "num_layers": 2, "residual": True},
    "rnn": {"cell": "rnn", "num_layers": 2, "dilations": [1, 2]},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "attention": {"cell": "gru", "attention": True},
    "segments": {"cell": "lstm", "decoder": "segment", "segment_length": 2},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_stacked_products_give_what_the_kernels_do(
    train: Train, panel: Loaded, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = train(panel, context=14, model=model, max_steps=3, holdout_windows=0).artifact.network
    network.requires_grad_(requires_grad=False)
    series, first = torch.arange(6).repeat_interleave(2), torch.tensor([40, 60] * 6)
    batch = PanelTensors(panel.panel, unit=network.shape.unit).gather(
        series, first, first + 30, **window_sizes(network, 8)
    )
    origins = torch.tensor([0, 2, 6])
    made = {}
    for way in (True, False):
        monkeypatch.setattr(stacked, "_stacks", lambda _, way=way: way)
        changes = stacked.unchanged(network, "full", 6, 1)
        same, _ = stacked.forecasts(network, changes, batch, origins)
        torch.testing.assert_close(same, network(batch, origins).arguments, rtol=1e-4, atol=1e-4)
        generator = torch.Generator().manual_seed(0)
        for values in changes.values():
            values += 0.05 * torch.randn(values.shape, generator=generator)
            values.requires_grad_()
        made[way], _ = stacked.forecasts(network, changes, batch, origins)
        assert not torch.allclose(made[way], same, atol=1e-3)
        gradients = torch.autograd.grad(made[way].square().mean(), list(changes.values()), allow_unused=True)
        made[way, "gradients"] = torch.cat([g.flatten() for g in gradients if g is not None])
    torch.testing.assert_close(made[True], made[False], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made[True, "gradients"], made[False, "gradients"], rtol=1e-3, atol=1e-5)


# --- heads


HEADS = {
    "quantile": "lstm",
    "normal": "gru",
    "student_t": "rnn",
    "poisson": "lstm",
    "negative_binomial": "gru",
    "tweedie": "rnn",
    "bernoulli": "lstm",
    "categorical": "gru",
}


@pytest.mark.parametrize("head", HEADS)
def test_every_kind_of_every_head_is_stored_and_forecasts_the_same(
    train: Train, table: Table, loaded: Load, head: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    if head in ("bernoulli", "categorical"):
        n = 2 if head == "bernoulli" else 3
        codes = {name: (np.arange(60) + rng.integers(0, 2, 60)) % 7 % n for name in "ab"}
        found = loaded(
            pl.concat(table({name: values}) for name, values in codes.items()).with_columns(
                target=pl.format("c{}", pl.col("target").cast(pl.Int64))
            ),
            3,
        )
    else:
        found = loaded(table({name: rng.poisson(3 + np.arange(60) % 7).astype(float) for name in "ab"}), 3)
    made = train(found, context=14, model={"cell": HEADS[head], "head": head}, max_steps=3, holdout_windows=0)
    network = made.artifact.network
    before = forecast(made.artifact, found.panel).frame
    columns = [name for name in before.columns if name.startswith(("q", "p_"))]
    for kind in KINDS:
        # Any change is kept, good or bad: it is the way there and back that is looked at.
        brief = {"steps": 1, "learning_rates": [0.05], "origins": 12, "batch_size": 1}
        result = tune(made.artifact, found, kind=kind, **{**OPEN, **brief})
        assert result.artifact.bank is not None
        assert result.artifact.bank.kind == kind
        folder = tmp_path / kind
        assert result.artifact.save(folder) == result.artifact.digest()
        again = fc.load(folder)
        frame, again_frame = (forecast(a, found.panel).frame for a in (result.artifact, again))
        assert frame.equals(again_frame)
        assert set(frame.filter(source="fine_tuned")["series_id"]) == set(tuned_series(result))
        for name in tuned_series(result):
            one, other = (f.filter(series_id=name).select(columns).to_numpy() for f in (before, frame))
            assert np.isfinite(other).all()
            assert not np.array_equal(one, other) or network.head.counts


def test_a_forecast_is_of_the_tuned_weights(base: Artifact, panel: Loaded, results: dict[str, FinetuneResult]) -> None:
    """A network with the changes of one series written into its weights forecasts what the bank does."""
    bank = results["full"].artifact.bank
    assert bank is not None
    own = dataclasses.replace(base)
    name = bank.series_id[0]
    state = {
        key: values + bank.tensors[BLEND][0] * bank.tensors[key][0] if key in bank.tensors else values
        for key, values in base.network.state_dict().items()
    }
    kept = {key: values.clone() for key, values in base.network.state_dict().items()}
    base.network.load_state_dict(state)
    expected = forecast(own, panel.panel).frame.filter(series_id=name)
    base.network.load_state_dict(kept)
    made = forecast(results["full"].artifact, panel.panel).frame.filter(series_id=name)
    np.testing.assert_allclose(made["q50"], expected["q50"], rtol=1e-4)
    cold = panel.panel.rows(0, 1)
    cold = dataclasses.replace(cold, series_id=np.array(["never seen"]))
    assert set(forecast(results["full"].artifact, cold).frame["source"]) == {"pretrained"}


@pytest.mark.parametrize("kind", ["head", "bias", "full", "global"])
@pytest.mark.trains
def test_the_best_and_the_worst_are_shown_as_the_report_judges_them(
    base: Artifact, panel: Loaded, results: dict[str, FinetuneResult], kind: str
) -> None:
    result = results[kind]
    series = [name for name in tuned_series(result) if name != "flat"]
    assert result.shown["series_id"].unique().sort().to_list() == series
    tuned, before = (
        result.shown.filter(model=model).sort("series_id", "step") for model in ("fine_tuned", "pretrained")
    )
    rows = np.searchsorted(panel.panel.series_id, series)
    windows = WindowIndex(rows, panel.panel.lengths[rows] - 1 - base.horizon)
    middle = base.model.quantile_levels.index(0.5)
    expected = predict(base, panel.panel, windows).base[..., middle].ravel()
    np.testing.assert_allclose(before["q50"], expected, rtol=1e-5)
    actual = future_values(panel.panel, windows, base.horizon).ravel()
    assert tuned["timestamp"].max() == panel.panel.grid.timestamps(np.array([panel.panel.last_index]))[0]
    # The loss is of all quantiles, and in units of scale: that the rise is gained on shows in the medians, too.
    error, error_before = (np.abs(frame["q50"].to_numpy() - actual).sum() for frame in (tuned, before))
    judged = result.decisions.filter(pl.col("series_id").is_in(panel.panel.series_id[rows].tolist()))
    assert judged["report_tuned_loss"].sum() < judged["report_base_loss"].sum()
    assert error < error_before


# --- each series by itself


def test_a_series_that_diverges_stops_and_harms_no_other() -> None:
    start: Deltas = {"bias": torch.zeros(3, 2)}

    def sound(changes: Deltas) -> torch.Tensor:
        return (changes["bias"] - torch.tensor([[1.0, 2.0]])).square().sum(1)

    def loss(changes: Deltas) -> torch.Tensor:
        return sound(changes) * torch.tensor([1.0, torch.nan, 1.0])

    rate = torch.tensor([0.1, 0.1, 0.02])
    three, alone = BatchedAdam(start, rate), BatchedAdam({"bias": torch.zeros(2, 2)}, rate[[0, 2]])
    for _ in range(5):
        three.step(loss, torch.ones(3, dtype=torch.bool))
        alone.step(sound, torch.ones(2, dtype=torch.bool))
    assert three.finite.tolist() == [True, False, True]
    assert torch.equal(three.changes["bias"][1], torch.zeros(2))
    assert torch.equal(three.changes["bias"][[0, 2]], alone.changes["bias"])
    assert three.changes["bias"][0, 0] > three.changes["bias"][2, 0] > 0


def test_a_descent_is_that_of_adam() -> None:
    start = {"bias": torch.zeros(2, 3)}
    wanted = torch.tensor([[0.1, -0.2, 0.3], [0.01, 0.02, 0.0]])
    descent = BatchedAdam(start, torch.tensor([0.05, 0.05]))
    values = torch.zeros(2, 3, requires_grad=True)
    adam = torch.optim.Adam([values], lr=0.05)
    for _ in range(10):
        descent.step(lambda c: (c["bias"] - wanted).square().sum(1), torch.ones(2, dtype=torch.bool))
        adam.zero_grad()
        (values - wanted).square().sum().backward()
        adam.step()
    torch.testing.assert_close(descent.changes["bias"], values.detach())


@pytest.mark.parametrize("kind", ["bias", "embedding", "full"])
def test_a_rate_far_too_large_ends_at_the_base(base: Artifact, panel: Loaded, kind: str) -> None:
    result = tune(base, panel, kind=kind, **{**OPEN, "learning_rates": [1e38]})
    assert set(result.decisions["reason"]) == {DIVERGED, CONSTANT, TOO_SHORT}
    assert forecast(result.artifact, panel.panel).frame.equals(forecast(base, panel.panel).frame)


def test_each_series_has_its_own_rate_and_end(results: dict[str, FinetuneResult]) -> None:
    found = results["bias"].decisions.filter(reason=TUNED)
    assert set(found["learning_rate"]) <= {0.1, 0.02}
    assert found["steps"].is_between(1, 4).all()
    assert set(found["blend"]) <= {0.5, 0.25}


def test_recent_origins_weigh_more(base: Artifact, panel: Loaded, results: dict[str, FinetuneResult]) -> None:
    for kind in ("head", "bias", "full"):
        weighted = tune(base, panel, kind=kind, half_life=10.0, **OPEN).decisions
        same = results[kind].decisions
        assert weighted["base_loss"].equals(same["base_loss"])
        assert not weighted["tuned_loss"].equals(same["tuned_loss"])
        unweighted = tune(base, panel, kind=kind, half_life=1e12, **OPEN).decisions["tuned_loss"]
        np.testing.assert_allclose(unweighted.drop_nulls(), same["tuned_loss"].drop_nulls(), rtol=1e-4)


# --- one set of weights


def test_global_goes_on_with_all_weights_and_makes_a_plain_model(
    base: Artifact, panel: Loaded, results: dict[str, FinetuneResult], tmp_path: Path
) -> None:
    result = results["global"]
    child = result.artifact
    assert child.bank is None
    assert child.parent_digest == base.digest() != child.digest()
    assert set(result.decisions.filter(pl.col("blend") > 0)["reason"]) == {TUNED}
    assert result.decisions.filter(series_id="short")["reason"][0] == TOO_SHORT
    judged = result.decisions.drop_nulls("gain")
    assert judged["tuned_loss"].mean() < judged["base_loss"].mean()
    child.save(tmp_path)
    again = fc.load(tmp_path)
    assert forecast(again, panel.panel).frame.equals(forecast(child, panel.panel).frame)
    # It is a base like any other.
    assert tune(child, panel, **OPEN).artifact.parent_digest == child.digest()


# --- going on with what has changed


@pytest.mark.parametrize("kind", ["head", "bias", "lora"])
def test_only_series_whose_data_has_changed_are_tuned_again(
    base: Artifact, rows: pl.DataFrame, loaded: Load, panel: Loaded, results: dict[str, FinetuneResult], kind: str
) -> None:
    version = results[kind].artifact
    again = tune(version, panel, kind=kind, incremental=True, **OPEN)
    judged = set(again.decisions["reason"])
    assert judged == {UNCHANGED, TOO_SHORT}
    assert version.bank is not None
    assert again.artifact.bank is not None
    assert all(torch.equal(v, again.artifact.bank.tensors[k]) for k, v in version.bank.tensors.items())
    name, other = tuned_series(results[kind])[:2]
    more = rows.filter(series_id=name).tail(7).with_columns(pl.col("timestamp").dt.offset_by("7d"))
    longer = loaded(pl.concat([rows, more]), 3, categories=base.categories, **RISING)
    again = tune(version, longer, kind=kind, incremental=True, **OPEN)
    reason = dict(again.decisions.select("series_id", "reason").iter_rows())
    assert [key for key, why in reason.items() if why not in (UNCHANGED, TOO_SHORT)] == [name]
    found = again.artifact.bank
    assert found is not None
    assert again.artifact.parent_digest == version.digest()
    assert again.artifact.base().digest() == base.digest()
    for key, values in version.bank.tensors.items():
        here = found.tensors[key][found.series_id.index(other)]
        assert torch.equal(here, values[version.bank.series_id.index(other)])
    if reason[name] == TUNED:
        key = next(iter(found.tensors))
        mine = found.tensors[key][found.series_id.index(name)]
        assert not torch.equal(mine, version.bank.tensors[key][version.bank.series_id.index(name)])


@pytest.mark.trains
def test_what_is_kept_goes_on_from_the_present_changes(
    base: Artifact, rows: pl.DataFrame, loaded: Load, results: dict[str, FinetuneResult]
) -> None:
    known = tuned_series(results["bias"])
    more = rows.filter(pl.col("series_id").is_in(known))
    more = more.filter(pl.int_range(pl.len()).over("series_id") >= pl.len().over("series_id") - 7)
    more = more.with_columns(pl.col("timestamp").dt.offset_by("7d"))
    longer = loaded(pl.concat([rows, more]), 3, categories=base.categories, **RISING)
    fresh = tune(base, longer, kind="bias", **OPEN).artifact.bank
    again = tune(results["bias"].artifact, longer, kind="bias", incremental=True, **OPEN).artifact.bank
    before = results["bias"].artifact.bank
    assert fresh is not None
    assert again is not None
    assert before is not None
    both = [name for name in known if name in fresh.series_id and name in again.series_id]
    assert both
    new, gone_on, old = (
        torch.stack([bank.tensors["bias"][bank.series_id.index(name)] for name in both])
        for bank in (fresh, again, before)
    )
    assert (gone_on - old).norm() < gone_on.norm()
    assert gone_on.norm() > new.norm()


def test_a_version_with_changes_is_gone_on_from_only_when_asked(
    base: Artifact, panel: Loaded, results: dict[str, FinetuneResult]
) -> None:
    with pytest.raises(ConfigError, match=r"fine-tuned already; .* finetune\.incremental=true"):
        tune(results["bias"].artifact, panel, kind="bias")
    with pytest.raises(ConfigError, match=r"finetune\.incremental: this version has no changes"):
        tune(base, panel, incremental=True)
    with pytest.raises(ConfigError, match=r"finetune\.kind: this version was fine-tuned with kind=bias.*given: head"):
        tune(results["bias"].artifact, panel, incremental=True)
    with pytest.raises(ConfigError, match=r"finetune\.rank: this version has rank 4"):
        tune(results["lora"].artifact, panel, kind="lora", incremental=True, rank=2)
    with pytest.raises(ConfigError, match=r"finetune\.incremental: kind=global has no series of its own"):
        validated(FinetuneConfig, {"data": {"path": "x"}, "finetune": {"kind": "global", "incremental": True}})


# --- which series


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"series": ["s01", "s04"]}, ["s01", "s04"]),
        ({"where": "city = 'oslo' and series_id != 'flat'"}, ["s00", "s01", "s02"]),
        ({"where": "size >= 4", "series": ["s01", "s04", "s05"]}, ["s04", "s05"]),
    ],
)
def test_only_series_that_are_meant_are_tuned(
    base: Artifact, panel: Loaded, settings: dict[str, Any], expected: list[str]
) -> None:
    result = tune(base, panel, **OPEN, **settings)
    others = pl.col("reason") == NOT_SELECTED
    assert result.decisions.filter(~others)["series_id"].to_list() == expected
    assert result.decisions.filter(others).select("base_loss", "blend").unique().rows() == [(None, 0.0)]


@pytest.mark.parametrize(("limit", "count"), [(2, 2), (0.5, 4), (0.01, 1)])
def test_those_that_the_base_forecasts_worst(
    base: Artifact, panel: Loaded, results: dict[str, FinetuneResult], limit: float, count: int
) -> None:
    losses = results["head"].decisions.sort("base_loss", descending=True, nulls_last=True)
    result = tune(base, panel, worst=limit, **OPEN)
    found = result.decisions.filter(pl.col("reason") != NOT_SELECTED)["series_id"].to_list()
    assert sorted(found) == sorted(losses["series_id"].to_list()[:count])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"series": ["s01", "nope", "none"]}, r"finetune\.series: 2 of 3 are not in the table: none, nope; its 8"),
        ({"where": "city = 'paris'"}, r"finetune\.where: none of 8 series is meant"),
        ({"where": "cities = 'oslo'"}, r"finetune\.where: .* the columns are series_id, city, size"),
        ({"where": "size +"}, r"finetune\.where: 'size \+' can't be used"),
        ({"where": "size + 1"}, r"finetune\.where: 'size \+ 1' is no condition on each series"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(
    base: Artifact, panel: Loaded, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(base, panel, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"series": []}, r"finetune\.series: must name one at least"),
        ({"worst": 2.5}, r"finetune\.worst: must be a share below 1, or a whole number"),
        ({"kind": "ful"}, r"finetune\.kind: .*did you mean full"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(FinetuneConfig, {"data": {"path": "x"}, "finetune": settings})


def test_the_horizon_is_the_models(base: Artifact, rows: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"window\.horizon: fixed by the trained model"):
        validated(FinetuneConfig, {"data": {"path": "x"}, "window": {"horizon": 14}})
    with pytest.raises(ConfigError, match=r"horizon: "):
        fc.finetune(base, rows, horizon=14)


# --- panels and models that do not fit


def test_a_panel_unlike_the_models_is_refused(base: Artifact, rows: pl.DataFrame, loaded: Load) -> None:
    with pytest.raises(DataError, match=r"the panel has a value every 2d, the model every 1d"):
        tune(base, loaded(rows, 3, freq="2d", aggregate="mean", **RISING), **QUICK)
    with pytest.raises(DataError, match=r"other covariates than the model: 0 categorical static \(the model has 1\)"):
        tune(base, loaded(rows, 3, known_covariates=["promo"]), **QUICK)
    with pytest.raises(DataError, match=r"known covariates for 2 steps ahead, the model forecasts 3"):
        tune(base, loaded(rows, 2, **RISING), **QUICK)


def test_kinds_by_gradient_change_one_network_that_samples_nothing(train: Train, panel: Loaded) -> None:
    paths = train(panel, context=14, model={"decoder": "autoregressive", "n_paths": 4}, holdout_windows=0).artifact
    with pytest.raises(ConfigError, match=r"finetune\.kind: lora has no gradient through the sampled paths"):
        tune(paths, panel, kind="lora", **QUICK)
    two = train(panel, context=14, ensemble=2, holdout_windows=0).artifact
    with pytest.raises(ConfigError, match=r"finetune\.kind: full changes one network .* has 2 of these"):
        tune(two, panel, kind="full", **QUICK)
    assert tune(two, panel, kind="global", **QUICK).artifact.bank is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_refused(base: Artifact, panel: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.accelerator: gpu asked for, but torch finds none here"):
        tune(base, panel, accelerator="gpu")


# --- killed in the middle

KILLED = """
import os, signal, sys
from forecast import load
from forecast.finetuning.finetune import finetune
from forecast.config import FinetuneSettings
import polars as pl

folder, last = sys.argv[1:]
sys.modules["forecast.finetuning.series_tuning"].MAX_GROUP_ELEMENTS["cpu"] = 1
base, rows = load(folder + "/base"), pl.read_parquet(folder + "/rows.parquet")
settings = FinetuneSettings.model_validate_json(open(folder + "/settings.json").read())

def progress(done: float, text: str) -> None:
    if text == last:
        os.kill(os.getpid(), signal.SIGKILL)

finetune(base, base.read(rows.lazy()).panel, settings, progress=progress)
"""


@pytest.mark.parametrize(
    ("kind", "last", "n_files", "tried", "fitted"),
    [("bias", "3 series tried", 3, 1, 4), ("head", "3 series fitted", 7, 0, 1)],
)
def test_a_run_that_was_killed_goes_on_with_the_next_group(
    base: Artifact,
    rows: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    last: str,
    n_files: int,
    tried: int,
    fitted: int,
) -> None:
    saved = tmp_path / "checkpoint"
    series = ["s00", "s01", "s02", "s03"]
    settings = FinetuneSettings.model_validate(
        {**QUICK, "kind": kind, "checkpoint": str(saved), "series": series, "steps": 2, "max_harm": 0.5}
    )
    base.save(tmp_path / "base")
    rows.write_parquet(tmp_path / "rows.parquet")
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), last],
        cwd=Path(fc.__file__).parents[1],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(fc.__file__).parents[1])},
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list(saved.iterdir())) == n_files
    monkeypatch.setitem(series_tuning.MAX_GROUP_ELEMENTS, "cpu", 1)
    panel = base.read(rows.lazy()).panel
    with pytest.raises(ConfigError, match=r"finetune\.checkpoint: .* holds another fine-tuning.*finetune\.max_harm"):
        finetune(base, panel, settings.model_copy(update={"max_harm": 0.1}))
    group = head_group.HeadGroup if kind == "head" else gradient_group.GradientGroup
    counts = {"trial": 0, "fit": 0}
    for name in counts:
        inner = getattr(group, name)

        def counted(*given: Any, name: str = name, inner: Callable[..., Any] = inner) -> Any:
            counts[name] += 1
            return inner(*given)

        monkeypatch.setattr(group, name, counted)
    resumed = finetune(base, panel, settings)
    assert counts == {"trial": tried, "fit": fitted}
    assert not any(saved.iterdir())
    whole = finetune(base, panel, settings.model_copy(update={"checkpoint": None}))
    assert resumed.artifact.digest() == whole.artifact.digest()
    assert resumed.decisions.equals(whole.decisions)


def test_a_checkpoint_that_is_damaged_is_refused(base: Artifact, panel: Loaded, tmp_path: Path) -> None:
    (tmp_path / "trial-00000.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ConfigError, match=r"finetune\.checkpoint: .* is not readable"):
        tune(base, panel, kind="bias", checkpoint=str(tmp_path), **QUICK)
