"""Fine-tuning: who gains, who keeps the base, and why."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact
from forecast.checkpoints import NANO
from forecast.config import FinetuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError
from forecast.finetuning.eligibility import with_windows
from forecast.finetuning.finetune import finetune
from forecast.finetuning.head_group import PENALTIES
from forecast.finetuning.result import TOO_SHORT, FinetuneResult
from forecast.finetuning.series_gate import CONSTANT, NO_GAIN, TUNED
from forecast.finetuning.series_tuning import MAX_GROUP_ELEMENTS
from forecast.metrics.seasonal_naive import future_values
from forecast.models.adapters import head_ridge
from forecast.models.adapters.bank import head_features
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import loss_weights, targets
from forecast.models.network.ensemble import as_ensemble
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.pretraining.zero_shot import universal_member
from forecast.training.result import FitResult

ODD = ("odd0", "odd1")
SETTINGS = FinetuneSettings(origins=200, gate_windows=4, report_windows=2, holdout_windows=4, gate="strict")
Table, Load = Callable[..., pl.DataFrame], Callable[..., Loaded]


def series() -> dict[str, np.ndarray]:
    """Most series repeat their last week, the odd ones its mirror image: one map can't tell them apart by one week."""
    rng = np.random.default_rng(0)
    made = {}
    for name, memory in {**{f"s{i}": 0.9 for i in range(16)}, **dict.fromkeys(ODD, -0.95)}.items():
        values = rng.normal(size=400)
        for t in range(7, 400):
            values[t] += memory * values[t - 7]
        made[name] = 50 + values
    return made | {"flat": np.full(400, 2.0), "short": 50 + rng.normal(size=75)}


@pytest.fixture(scope="module")
def panel(table: Table, loaded: Load) -> Loaded:
    return loaded(table(series(), late={"short": 325}), 7, calendar=False)


@pytest.fixture(scope="module")
def base(train: Callable[..., FitResult], panel: Loaded) -> FitResult:
    return train(panel, context=7, max_steps=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def tuned(base: FitResult, panel: Loaded) -> FinetuneResult:
    return finetune(base.artifact, panel.panel, SETTINGS)


@pytest.mark.trains
def test_a_series_whose_residual_the_base_can_not_see_is_improved_on_unseen_steps(
    tuned: FinetuneResult, panel: Loaded
) -> None:
    names = panel.panel.series_id.tolist()
    cutoffs = np.arange(371, 393)
    for name in ODD:
        windows = WindowIndex(np.full(len(cutoffs), names.index(name)), cutoffs)
        found = predict(tuned.artifact, panel.panel, windows)
        assert found.is_tuned.all()
        actual = future_values(panel.panel, windows, 7)
        before, after = (np.abs(q[..., 4] - actual).mean() for q in (found.base, found.tuned))
        assert after < 0.9 * before
    assert tuned.summary["uplift"] > 0
    report = tuned.decisions.filter(pl.col("series_id").is_in(ODD))
    assert (report["report_tuned_loss"] < report["report_base_loss"]).all()


@pytest.mark.trains
def test_every_series_has_one_decision_with_its_reason(tuned: FinetuneResult, panel: Loaded) -> None:
    decisions = tuned.decisions
    assert decisions["series_id"].to_list() == panel.panel.series_id.tolist()
    reason = dict(decisions.select("series_id", "reason").iter_rows())
    assert {reason[name] for name in ODD} == {TUNED}
    assert NO_GAIN in {reason[f"s{i}"] for i in range(16)}
    assert reason["flat"] == CONSTANT
    assert reason["short"] == TOO_SHORT
    assert set(reason.values()) == {TUNED, NO_GAIN, CONSTANT, TOO_SHORT}
    assert tuned.artifact.bank is not None
    assert tuned.artifact.bank.series_id == [name for name, why in reason.items() if why == TUNED]
    chosen = decisions["reason"] == TUNED
    assert decisions["blend"].to_list() == [SETTINGS.blend if c else 0.0 for c in chosen]
    assert (decisions.filter(chosen)["gain"] >= SETTINGS.min_gain).all()
    assert set(decisions["penalty"].drop_nulls()) <= set(PENALTIES)
    assert decisions.filter(series_id="short").select("base_loss", "gain", "penalty").row(0) == (None, None, None)
    gain = 1 - decisions["tuned_loss"] / decisions["base_loss"]
    with_loss = (decisions["base_loss"] > 0).fill_null(value=False)
    np.testing.assert_allclose(gain.filter(with_loss), decisions["gain"].filter(with_loss), atol=1e-6)


@pytest.mark.parametrize(
    ("unseen", "is_final", "windows"), [(0, False, 0), (7, False, 1), (49, False, 4), (49, True, 7)]
)
def test_what_training_held_out_stays_out(
    base: FitResult, panel: Loaded, unseen: int, is_final: bool, windows: int
) -> None:
    end = panel.panel.last_index
    artifact = replace(base.artifact, trained_until=end - unseen, final=None)
    if is_final:
        artifact = artifact.with_final(artifact.network, end)
    assert with_windows(artifact, panel.panel, FinetuneSettings()).holdout_windows == windows


def test_numbers_of_windows_follow_from_the_selected_series(base: FitResult, panel: Loaded) -> None:
    all_series, short = (
        with_windows(base.artifact, panel.panel, FinetuneSettings(holdout_windows=1, series=series))
        for series in (None, ("short",))
    )
    assert all_series.gate_windows == 4
    assert short.gate_windows == 2


@pytest.mark.parametrize("kind", ["head", "global"])
@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_a_closed_week_is_no_verdict(
    base: FitResult, tuned: FinetuneResult, table: Table, loaded: Load, window: int, kind: str
) -> None:
    """Held-out windows 0 to 3 are the gate's. A week is all the model sees, so the one after tells nothing either."""
    values = series()
    end = 400 - 7 * SETTINGS.holdout_windows - 7 * (5 - window)
    values["odd0"][end - 7 : end] = np.nan
    panel = loaded(table(values, late={"short": 325}), 7, calendar=False).panel
    result = finetune(base.artifact, panel, SETTINGS.model_copy(update={"kind": kind, "steps": 0}))
    row = result.decisions.filter(series_id="odd0").row(0, named=True)
    open_week = tuned.decisions.filter(series_id="odd0").row(0, named=True)
    if kind == "head":
        assert row["reason"] == TUNED
        assert row["gain"] > SETTINGS.min_gain
    # A closed week is no week without a loss: means are of what was observed.
    assert row["base_loss"] == pytest.approx(open_week["base_loss"], rel=0.35 if window < 4 else 1e-4)
    if window == 4:
        assert row["report_base_loss"] is None
    else:
        assert row["report_base_loss"] == pytest.approx(open_week["report_base_loss"], rel=0.35)
    assert not math.isnan(result.summary["uplift"])


def test_the_summary_counts_the_decisions(tuned: FinetuneResult) -> None:
    counted = dict(tuned.decisions.group_by("reason").len().iter_rows())
    assert tuned.summary["series"] == 20
    assert tuned.summary["series_tuned"] == counted[TUNED]
    assert tuned.summary["series_too_short"] == 1
    judged = tuned.decisions.filter(pl.col("report_base_loss") > 0)
    total = [judged[f"report_{name}_loss"].sum() for name in ("base", "tuned")]
    assert tuned.summary["uplift"] == pytest.approx(1 - total[1] / total[0])


def test_the_base_is_the_same_bit_by_bit(base: FitResult, tuned: FinetuneResult, panel: Loaded) -> None:
    assert tuned.artifact.base().digest() == base.artifact.digest() == tuned.artifact.parent_digest
    assert tuned.artifact.kind == "fine_tuned"
    rows = np.arange(panel.panel.n_series)
    windows = WindowIndex(rows, np.full(len(rows), 60))
    before, after = (predict(artifact, panel.panel, windows) for artifact in (base.artifact, tuned.artifact))
    np.testing.assert_array_equal(before.tuned, after.base)
    np.testing.assert_array_equal(after.tuned[~after.is_tuned], after.base[~after.is_tuned])
    names = {name for name, is_tuned in zip(panel.panel.series_id, after.is_tuned, strict=True) if is_tuned}
    made = forecast(tuned.artifact, panel.panel).frame
    assert set(made.filter(source="fine_tuned")["series_id"]) == names
    assert set(made["source"]) == {"fine_tuned", "pretrained"}


def test_series_together_are_tuned_as_each_alone(
    base: FitResult, tuned: FinetuneResult, table: Table, loaded: Load
) -> None:
    assert tuned.artifact.bank is not None
    for name in (*ODD, "s0", "s9"):
        alone = finetune(base.artifact, loaded(table({name: series()[name]}), 7, calendar=False).panel, SETTINGS)
        ours = tuned.decisions.filter(series_id=name)
        for column in ("base_loss", "tuned_loss", "gain", "report_base_loss", "report_tuned_loss"):
            assert alone.decisions[column][0] == pytest.approx(ours[column][0], rel=1e-4, abs=1e-5), column
        assert alone.decisions["reason"][0] == ours["reason"][0]
        assert alone.decisions["penalty"][0] == ours["penalty"][0]
        if name in tuned.artifact.bank.series_id:
            assert alone.artifact.bank is not None
            weight = tuned.artifact.bank.tensors["weight"][tuned.artifact.bank.series_id.index(name)]
            torch.testing.assert_close(alone.artifact.bank.tensors["weight"][0], weight, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def mixed(base: FitResult, panel: Loaded) -> Artifact:
    """Half of the base, half of the pretrained network."""
    network = base.artifact.network
    member = universal_member(NANO, panel.panel, network.shape, base.artifact.model)
    return replace(base.artifact, network=as_ensemble([network, member], [0.5, 0.5]))


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_short_series_beside_a_long_one_is_tuned_as_alone(
    base: FitResult, mixed: Artifact, table: Table, loaded: Load, pretrained: bool
) -> None:
    artifact = mixed if pretrained else base.artifact
    long, short = series()["s0"], series()["s9"][-120:]
    settings = SETTINGS.model_copy(update={"min_gain": 0.0, "min_windows_better": 0.0})
    both = finetune(artifact, loaded(table({"long": long, "short": short}), 7, calendar=False).panel, settings)
    alone = finetune(artifact, loaded(table({"short": short}), 7, calendar=False).panel, settings)
    for column in ("base_loss", "tuned_loss", "report_tuned_loss", "penalty"):
        assert both.decisions[column][1] == pytest.approx(alone.decisions[column][0], rel=1e-5, nan_ok=True), column


def test_with_a_pretrained_member_the_fit_is_about_that_of_origins_read_apart(
    mixed: Artifact, panel: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"min_gain": 0.0, "min_windows_better": 0.0})
    together = finetune(mixed, panel.panel, settings)
    monkeypatch.setattr(head_ridge, "reading_at_once", lambda network: network)
    apart = finetune(mixed, panel.panel, settings)
    assert together.decisions["reason"].to_list() == apart.decisions["reason"].to_list()
    for column in ("base_loss", "report_base_loss"):
        np.testing.assert_array_equal(together.decisions[column], apart.decisions[column])
    for column in ("tuned_loss", "report_tuned_loss"):
        np.testing.assert_allclose(together.decisions[column], apart.decisions[column], rtol=0.02)


def seen_from(base: FitResult, panel: Loaded, name: str, firsts: Iterable[int], at: range) -> dict[str, np.ndarray]:
    """What the base says and misses `at` some steps from the first origins of windows of a series, in float64."""
    network = base.artifact.network
    tensors = PanelTensors(panel.panel, unit=network.shape.unit)
    row, limit = torch.tensor([panel.panel.series_id.tolist().index(name)]), torch.tensor([372])
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for first in firsts:
            batch = tensors.gather(row, torch.tensor([first]), limit, context=7, span=at[-1] + 1, horizon=7)
            origins = torch.tensor(at)
            output = network(batch, origins)
            target, observed = targets(batch, output.frame, origins, network.shape)
            found = {
                "features": head_features(output, network.shape),
                "quantiles": output.quantiles,
                "target": target,
                "weight": loss_weights(target, observed, output.frame, network.shape),
            }
            for key, values in found.items():
                parts.setdefault(key, []).append(values[0])
    return {key: torch.cat(values).double().numpy() for key, values in parts.items()}


def fitted_on(base: FitResult, panel: Loaded, name: str) -> dict[str, np.ndarray]:
    """The origins 123, 127 ... 371, the last before the holdout: four steps are what is nearest to a half of 7.

    The encoder's memory begins with the window, as in the library: seven origins each, as many as fit into four
    contexts.
    """
    return seen_from(base, panel, name, range(123, 372, 28), range(0, 28, 4))


def ridge(known: dict[str, np.ndarray], *, last: int, penalty: float, n: int = 50) -> np.ndarray:
    """The map of `n` origins up to `last`, whose targets end a horizon later; each counts for four steps."""
    end = (last - 123) // 4 + 1
    part = slice(end - n, end)
    root = np.sqrt(4 * known["weight"][part].max(1, keepdims=True))
    z = known["features"][part] * root
    y = (known["target"] - known["quantiles"][..., 4])[part] * (known["weight"][part] > 0) * root
    return SETTINGS.blend * np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ y)


def test_what_is_kept_is_the_ridge_regression_of_all_usable_origins(
    base: FitResult, tuned: FinetuneResult, panel: Loaded
) -> None:
    bank = tuned.artifact.bank
    assert bank is not None
    for name in ODD:
        penalty = tuned.decisions.filter(series_id=name)["penalty"][0]
        expected = ridge(fitted_on(base, panel, name), last=371 - 7, penalty=penalty)
        np.testing.assert_allclose(bank.tensors["weight"][bank.series_id.index(name)], expected, atol=1e-4)


def test_held_out_losses_are_of_fits_on_what_was_known_at_each_cutoff(
    base: FitResult, tuned: FinetuneResult, panel: Loaded
) -> None:
    levels = np.arange(1, 10) / 10
    for name in ODD:
        known, row = fitted_on(base, panel, name), tuned.decisions.filter(series_id=name).row(0, named=True)
        losses = []
        for window in range(6):
            cutoff = 371 - (6 - window) * 7
            here = {key: values[0] for key, values in seen_from(base, panel, name, [cutoff], range(1)).items()}
            # The targets of the last origin that is fitted on end at the cutoff; the first is that of the oldest fit.
            n = 50 + (cutoff - 7 - 123) // 4 - (371 - 7 * 7 - 123) // 4
            shift = here["features"] @ ridge(known, last=cutoff - 7, penalty=row["penalty"], n=n)
            middle = here["quantiles"][:, 4:5]
            made = middle + (here["quantiles"] - middle) * row["width"] + shift[:, None]
            error = here["target"][:, None] - made
            pinball = 2 * np.maximum(levels * error, (levels - 1) * error).mean(1)
            losses.append((pinball * here["weight"]).sum() / here["weight"].sum())
        assert np.mean(losses[:4]) == pytest.approx(row["tuned_loss"], rel=1e-4)
        assert np.mean(losses[4:]) == pytest.approx(row["report_tuned_loss"], rel=1e-4)


def test_a_minimum_gain_of_one_tunes_nothing_and_changes_nothing(base: FitResult, panel: Loaded) -> None:
    settings = SETTINGS.model_copy(update={"min_gain": 1.0})
    result = finetune(base.artifact, panel.panel, settings)
    assert set(result.decisions["reason"]) == {NO_GAIN, CONSTANT, TOO_SHORT}
    assert result.summary["series_tuned"] == 0
    assert result.summary["uplift"] == 0.0
    made = [forecast(artifact, panel.panel).frame for artifact in (base.artifact, result.artifact)]
    assert made[0].equals(made[1])


def test_the_holdout_is_not_touched(base: FitResult, tuned: FinetuneResult, table: Table, loaded: Load) -> None:
    changed = {name: values.copy() for name, values in series().items()}
    for values in changed.values():
        values[-28:] += np.arange(28)
    other = finetune(base.artifact, loaded(table(changed, late={"short": 325}), 7, calendar=False).panel, SETTINGS)
    evaluated = [replace(made.artifact, final=None).digest() for made in (other, tuned)]
    assert evaluated[0] == evaluated[1]
    assert other.artifact.digest() != tuned.artifact.digest()
    assert other.decisions.equals(tuned.decisions)


def test_the_gate_never_sees_the_report_windows(
    base: FitResult, tuned: FinetuneResult, table: Table, loaded: Load
) -> None:
    changed = {name: values.copy() for name, values in series().items()}
    for values in changed.values():
        values[-28 - 14 : -28] += 5
    other = finetune(base.artifact, loaded(table(changed, late={"short": 325}), 7, calendar=False).panel, SETTINGS)
    columns = ["series_id", "base_loss", "tuned_loss", "gain", "penalty", "blend", "reason"]
    kept = pl.col("series_id") != "flat"
    assert other.decisions.filter(kept).select(columns).equals(tuned.decisions.filter(kept).select(columns))
    assert not other.decisions["report_base_loss"].equals(tuned.decisions["report_base_loss"])


def test_a_fine_tuned_model_is_not_tuned_again(tuned: FinetuneResult, panel: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"fine-tuned already; fine-tune its pretrained parent"):
        finetune(tuned.artifact, panel.panel, SETTINGS)


def test_a_panel_without_a_series_long_enough_is_refused(base: FitResult, table: Table, loaded: Load) -> None:
    found = loaded(table({"a": np.random.default_rng(0).normal(size=50)}), 7, calendar=False)
    with pytest.raises(DataError, match=r"the longest of 1 has 50 usable steps, .* need 56"):
        finetune(base.artifact, found.panel, SETTINGS)


def test_gaps_and_a_short_history_are_no_trouble(base: FitResult, table: Table, loaded: Load) -> None:
    rng = np.random.default_rng(1)
    gappy = np.where(rng.random(400) < 0.5, np.nan, rng.normal(size=400))
    lately = np.append(np.full(330, np.nan), rng.normal(size=70))
    gappy[0] = gappy[-1] = lately[0] = 1.0
    found = loaded(table({"gappy": gappy, "lately": lately}), 7, calendar=False)
    result = finetune(base.artifact, found.panel, SETTINGS.model_copy(update={"min_gain": 0.0}))
    losses = result.decisions.select("base_loss", "tuned_loss", "gain").to_numpy()
    assert np.isfinite(losses).all()
    assert math.isfinite(result.summary["uplift"])
    assert np.isfinite(forecast(result.artifact, found.panel).frame.select("q10", "mean", "q90").to_numpy()).all()


def test_a_model_with_segments_is_tuned_too(train: Callable[..., FitResult], panel: Loaded) -> None:
    model = train(panel, context=7, model={"segment_length": 7}).artifact
    result = finetune(model, panel.panel, SETTINGS)
    reason = dict(result.decisions.select("series_id", "reason").iter_rows())
    assert {reason[name] for name in ODD} == {TUNED}
    assert result.summary["uplift"] > 0


# --- by the evidence of all series


@pytest.fixture(scope="module")
def pooled(base: FitResult, panel: Loaded) -> FinetuneResult:
    return finetune(base.artifact, panel.panel, SETTINGS.model_copy(update={"gate": "pooled"}))


def test_the_pooled_gate_says_what_it_expects(pooled: FinetuneResult, tuned: FinetuneResult) -> None:
    changed = pooled.decisions.filter(reason=TUNED)
    assert set(ODD) <= set(changed["series_id"])
    assert set(changed["blend"]) <= {SETTINGS.blend, SETTINGS.blend / 2}
    assert (changed["harm_probability"] <= SETTINGS.max_harm).all()
    assert (changed["posterior_gain"] >= 0.002).all()
    assert pooled.summary["posterior_gain"] == pytest.approx(changed["posterior_gain"].mean())
    assert pooled.summary["harm_probability"] == pytest.approx(changed["harm_probability"].mean())
    # A series that says nothing has no posterior, nor has one whose gate is strict.
    silent = pooled.decisions.filter(pl.col("reason").is_in([CONSTANT, TOO_SHORT]))
    assert silent.height == 2
    assert silent["posterior_gain"].null_count() == 2
    assert tuned.decisions["posterior_gain"].null_count() == 20
    assert "posterior_gain" not in tuned.summary


def test_the_share_that_the_pooled_gate_takes_is_that_of_the_forecast(
    base: FitResult, pooled: FinetuneResult, panel: Loaded
) -> None:
    bank = pooled.artifact.bank
    assert bank is not None
    for row in pooled.decisions.filter(pl.col("penalty").is_not_null(), reason=TUNED).head(3).iter_rows(named=True):
        expected = ridge(fitted_on(base, panel, row["series_id"]), last=371 - 7, penalty=row["penalty"])
        weight = bank.tensors["weight"][bank.series_id.index(row["series_id"])]
        np.testing.assert_allclose(weight, expected * row["blend"] / SETTINGS.blend, atol=1e-4)


def test_groups_that_fit_into_memory_do_not_change_what_is_pooled(
    base: FitResult, pooled: FinetuneResult, panel: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_GROUP_ELEMENTS, "cpu", 1)
    alone = finetune(base.artifact, panel.panel, SETTINGS.model_copy(update={"gate": "pooled"}))
    assert alone.decisions["reason"].equals(pooled.decisions["reason"])
    for name in ("posterior_gain", "harm_probability", "report_tuned_loss"):
        values, others = (result.decisions[name].to_numpy() for result in (alone, pooled))
        np.testing.assert_allclose(values, others, rtol=1e-3, atol=1e-6)
    # The first group has a constant series, and so nothing to tune.
    assert alone.decisions["reason"][0] == CONSTANT
    banks = [artifact.bank for artifact in (alone.artifact, alone.artifact.latest, pooled.artifact.latest)]
    evaluated, final, expected = (bank.tensors["weight"].numpy() for bank in banks if bank is not None)
    np.testing.assert_allclose(final, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(final - evaluated).max() > 1e-3
