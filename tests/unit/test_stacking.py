"""The share of a pretrained network in a model that is trained on the panel."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact
from forecast.checkpoints import NANO
from forecast.config import FinetuneSettings, FitConfig
from forecast.data.load import Loaded
from forecast.data.windows import windows_at
from forecast.finetune import finetune
from forecast.fit import FitResult, held_out
from forecast.models.batch import PanelTensors
from forecast.models.ensemble import Ensemble, members_of, together
from forecast.models.losses import validated
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.predict import predict
from forecast.stacking import share_of
from forecast.zero_shot import universal_member

Table = Callable[..., pl.DataFrame]
Read = Callable[..., Loaded]
Train = Callable[..., FitResult]


@pytest.fixture(scope="module")
def panel(table: Table, loaded: Read, weekly: Callable[..., dict[str, np.ndarray]]) -> Loaded:
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
    table: Table, loaded: Read, weekly: Callable[..., dict[str, np.ndarray]], train: Train
) -> None:
    rng, spread = np.random.default_rng(9), np.where(np.arange(180) < 120, 0.1, 4.0)
    wild = loaded(table({name: values + spread * rng.normal(size=180) for name, values in weekly(8, 180).items()}), 7)
    made = train(wild, model={"skip": False, "init": NANO}, max_steps=0)
    assert made.summary["interval_scale"] != 1
    settings = FitConfig(holdout_windows=4, validation_windows=4)
    windows = held_out(wild.panel, 7, settings).validation
    network = stacked(made.validation_artifact).network
    loss = validated(network, PanelTensors.of(wild.panel, network), windows)
    assert made.summary["val/loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["bias", "full"])
@pytest.mark.trains
def test_changes_by_gradient_are_made_to_the_network_of_the_panel_alone(panel: Loaded, train: Train, kind: str) -> None:
    """And they are judged, and forecast, with its share of the mean."""
    base = train(panel, max_steps=0, holdout_windows=1).artifact
    pretrained = universal_member(NANO, panel.panel, base.network.shape, base.model)  # type: ignore[arg-type]
    mixed = replace(base, network=together([*members_of(base.network), pretrained], [0.6, 0.4]))
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
