"""The share of a pretrained network in a model that is trained on the panel."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact
from forecast.checkpoints import NANO
from forecast.config import FinetuneSettings, FitConfig, ModelConfig, WindowConfig, load
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import windows_at
from forecast.errors import ConfigError
from forecast.finetuning.finetune import finetune
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Ensemble, as_ensemble, members_of
from forecast.models.network.losses import validation_loss
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.prediction.predict import predict
from forecast.pretraining.pretrained_network import model_for, of_model, of_package
from forecast.pretraining.zero_shot import universal_member, zero_shot
from forecast.training import member_fit
from forecast.training.result import FitResult
from forecast.training.split import split_panel
from forecast.training.stacking import share_of

Table = Callable[..., pl.DataFrame]
Read = Callable[..., Loaded]
Train = Callable[..., FitResult]
Weekly = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def panel(table: Table, loaded: Read, weekly: Weekly) -> Loaded:
    return loaded(table(weekly(4, 180)), 7)


def spoilt(network: torch.nn.Module) -> None:
    """Make a network forecast nonsense."""
    with torch.no_grad():
        for name, values in network.named_parameters():
            if name.endswith(("gate.bias", "out.bias", "output_bias")):
                values.copy_(30 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))


def test_a_bad_forecast_has_no_share_and_a_good_one_most(panel: Loaded, train: Train) -> None:
    made = train(panel, validation_windows=4)
    network = made.validation_artifact.network
    pretrained = universal_member(NANO, panel.panel, network.shape, made.artifact.model)
    data = PanelTensors.of(panel.panel, network)
    at = windows_at(panel.panel, panel.panel.last_index - 7)
    fair = share_of(pretrained, network, data, at)
    spoilt(network)
    assert share_of(pretrained, network, data, at) >= 0.9 > fair
    again = train(panel, validation_windows=4).validation_artifact.network
    spoilt(pretrained)
    assert share_of(pretrained, again, data, at) == 0.0


def test_without_any_window_both_count_the_same(panel: Loaded, train: Train) -> None:
    network = train(panel).artifact.network
    pretrained = universal_member(NANO, panel.panel, network.shape, train(panel).artifact.model)
    nothing = windows_at(panel.panel, panel.panel.last_index)[np.zeros(0, np.int64)]
    assert share_of(pretrained, network, PanelTensors.of(panel.panel, network), nothing) == 0.5


def stacked(artifact: Artifact) -> Artifact:
    assert isinstance(artifact.network, Ensemble)
    assert [type(member) is UniversalForecaster for member in members_of(artifact.network)] == [False, True]
    return artifact


@pytest.mark.trains
def test_training_takes_a_share_that_validates_and_says_which(panel: Loaded, train: Train) -> None:
    plain = train(panel, model={"skip": False}, max_steps=0)
    made = train(panel, model={"skip": False, "init": NANO}, max_steps=0, final=True)
    artifact = stacked(made.artifact)
    assert made.summary["pretrained_share"] == artifact.network.shares[1]  # type: ignore[union-attr]
    assert made.summary["val/loss"] < plain.summary["val/loss"]
    assert artifact.final is not None
    assert isinstance(artifact.final.network, Ensemble)
    assert artifact.final.network.shares == artifact.network.shares
    at = windows_at(panel.panel, panel.panel.last_index)
    assert np.isfinite(predict(artifact.final, panel.panel, at).tuned).all()


@pytest.mark.trains
def test_the_loss_that_is_told_is_that_of_the_mean_with_its_intervals(
    table: Table, loaded: Read, weekly: Weekly, train: Train
) -> None:
    rng, spread = np.random.default_rng(9), np.where(np.arange(180) < 120, 0.1, 4.0)
    wild = loaded(table({name: values + spread * rng.normal(size=180) for name, values in weekly(8, 180).items()}), 7)
    made = train(wild, model={"skip": False, "init": NANO}, max_steps=0)
    assert made.summary["interval_scale"] != 1
    settings = FitConfig(holdout_windows=4, validation_windows=4)
    windows = split_panel(wild.panel, 7, settings).validation
    network = stacked(made.validation_artifact).network
    loss = validation_loss(network, PanelTensors.of(wild.panel, network), windows)
    assert made.summary["val/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["bias", "full"])
@pytest.mark.trains
def test_changes_by_gradient_are_made_to_the_network_of_the_panel_alone(panel: Loaded, train: Train, kind: str) -> None:
    """And they are judged, and forecast, with its share of the mean."""
    base = train(panel, max_steps=0, holdout_windows=1).artifact
    pretrained = universal_member(NANO, panel.panel, base.network.shape, base.model)  # type: ignore[arg-type]
    mixed = replace(base, network=as_ensemble([*members_of(base.network), pretrained], [0.6, 0.4]))
    keep = {"gate": "strict", "min_gain": 0.0, "min_windows_better": 0.0, "steps": 10, "gate_windows": 2}
    settings = FinetuneSettings.model_validate({"kind": kind, "accelerator": "cpu", **keep})
    tuned = finetune(mixed, panel.panel, settings)
    bank = tuned.artifact.bank
    assert bank is not None
    assert len(bank.series_id) > 0
    at = windows_at(panel.panel, panel.panel.last_index)
    own, other, both = (
        predict(replace(tuned.artifact, network=network, bank=changes, final=None), panel.panel, at).tuned
        for network, changes in ((members_of(mixed.network)[0], bank), (pretrained, None), (mixed.network, bank))
    )
    np.testing.assert_allclose(both, 0.6 * own + 0.4 * other, rtol=1e-4)
    plain = predict(mixed, panel.panel, at).tuned
    changed = np.isin(panel.panel.series_id, bank.series_id)
    assert (np.abs(both - plain).max((1, 2)) > 1e-4).tolist() == changed.tolist()
    judged = tuned.decisions.filter(pl.col("series_id").is_in(bank.series_id))
    assert (judged["tuned_loss"] < judged["base_loss"]).all()


@pytest.mark.parametrize(
    "model", [{"head": "student_t"}, {"decoder": "autoregressive", "n_paths": 4}, {"init": "none"}]
)
def test_models_that_no_mean_can_be_taken_of_do_without(panel: Loaded, train: Train, model: dict[str, object]) -> None:
    made = train(panel, model={"init": NANO} | model)
    assert made.summary["pretrained_share"] == 0
    assert not isinstance(made.artifact.network, Ensemble)


# --- trained on the panel


def member_of(artifact: Artifact) -> UniversalForecaster:
    *_, member = members_of(artifact.network)
    assert isinstance(member, UniversalForecaster)
    return member


@pytest.mark.trains
def test_the_pretrained_member_goes_as_far_as_validates_and_never_sees_the_holdout(
    table: Table,
    loaded: Read,
    weekly: Weekly,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    series = weekly(3, 150, noise=0.0)
    for values in series.values():
        values += np.where(np.arange(150) % 10 < 2, 8.0, 0.0)  # What no season says.
    changed = {name: np.concatenate([values[:-28], -9 * values[-28:]]) for name, values in series.items()}
    monkeypatch.setattr(member_fit, "_RATE", 3e-3)
    kept = {"model": {"skip": False, "init": NANO}, "final": True, "init_steps": 4}
    made, other = (train(loaded(table(each), 7), **kept) for each in (series, changed))
    assert made.summary["pretrained_blend"] in (0.25, 0.5, 0.75, 1.0)
    member = member_of(stacked(made.artifact))
    came = of_package(NANO).network.state_dict()
    weights = member.network.state_dict()
    assert any(not torch.equal(values, came[name]) for name, values in weights.items())
    theirs = member_of(stacked(other.artifact)).network.state_dict()
    assert all(torch.equal(values, theirs[name]) for name, values in weights.items())
    # The final weights of the model have those of the member that were evaluated.
    assert made.artifact.final is not None
    final = member_of(stacked(made.artifact.final)).network.state_dict()
    assert all(torch.equal(values, final[name]) for name, values in weights.items())


@pytest.mark.trains
def test_a_training_that_does_not_validate_better_leaves_the_pretrained_member_as_it_came(
    panel: Loaded, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_fit, "_LEAST_GAIN", 0.999)
    made = train(panel, model={"skip": False, "init": NANO}, init_steps=2)
    assert made.summary["pretrained_blend"] == 0
    came = of_package(NANO).network.state_dict()
    weights = member_of(stacked(made.artifact)).network.state_dict()
    assert all(torch.equal(values, came[name]) for name, values in weights.items())


# --- the network of a version


def test_a_model_begins_with_the_network_of_another_and_says_what_that_has_seen(panel: Loaded, train: Train) -> None:
    window = WindowConfig(horizon=7)
    base = zero_shot(NANO, panel, window)
    assert of_model(base, "loads v1").trained_until is None
    with torch.no_grad():
        member_of(base).network.gate.bias += 0.5
    init = of_model(base, "loads v2")
    made = train(panel, model={"skip": False, "init": NANO}, init=init)
    assert member_of(stacked(made.artifact)).network.gate.bias[0] == 0.5 + of_package(NANO).network.gate.bias[0]
    assert made.artifact.model.init == "gatecast-nano-1"
    plain = made.artifact.trained_until
    seen = of_model(replace(base, trained_until=panel.panel.last_index - 3), "loads v3")
    assert train(panel, model={"init": NANO}, init=seen).artifact.trained_until == panel.panel.last_index - 3 > plain


def test_what_is_no_pretrained_network_is_refused(panel: Loaded, train: Train) -> None:
    made = train(panel)
    with pytest.raises(ConfigError, match=r"loads v3 was trained on its panel alone.*gatecast-nano"):
        of_model(made.artifact, "loads v3")
    init = of_model(zero_shot(NANO, panel, WindowConfig(horizon=7)), "loads v1")
    with pytest.raises(ConfigError, match=r"forecasts 1,024 steps at most, and window.horizon is 1,025"):
        model_for(init, ModelConfig(), 1025)
    with pytest.raises(ConfigError, match="head=normal"):
        train(panel, model={"head": "normal"}, init=init)
    with pytest.raises(ConfigError, match="in Python"):
        train(panel, model={"init": "models:/loads@pretrained"})
    with pytest.raises(ConfigError, match="models:/NAME@ALIAS or models:/NAME/VERSION"):
        load(ModelConfig, {"init": "models:/loads"})
