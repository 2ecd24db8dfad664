"""The universal network behind the interface of the networks of a panel."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact, load
from forecast.checkpoints import NANO, card_of
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Ensemble, as_ensemble, members_of, reading_at_once, recurrent_members
from forecast.models.network.losses import window_sizes
from forecast.models.universal.checkpoint import read_checkpoint
from forecast.models.universal.forecasting import forecast_series
from forecast.prediction.predict import predict
from forecast.pretraining.zero_shot import universal_member
from forecast.training.result import FitResult

Table = Callable[..., pl.DataFrame]
Read = Callable[..., Loaded]
Weekly = Callable[..., dict[str, np.ndarray]]
Train = Callable[..., FitResult]


@pytest.fixture(scope="module")
def panel(table: Table, loaded: Read, weekly: Weekly) -> Loaded:
    return loaded(table(weekly(5, 200)), 7)


@pytest.fixture(scope="module")
def trained(panel: Loaded, train: Train) -> Artifact:
    return train(panel).artifact


@pytest.fixture(scope="module")
def mixed(panel: Loaded, trained: Artifact) -> Artifact:
    """Three quarters of a network of the panel, whose context is shorter, and one of the pretrained one."""
    member = universal_member(NANO, panel.panel, members_of(trained.network)[0].shape, trained.model)
    return replace(trained, network=as_ensemble([*members_of(trained.network), member], [0.75, 0.25]))


def windows(cutoffs: range, n_series: int = 5) -> WindowIndex:
    series, cutoff = np.meshgrid(np.arange(n_series), np.array(cutoffs), indexing="ij")
    return WindowIndex(series.ravel(), cutoff.ravel())


def test_it_forecasts_what_the_network_does_alone(panel: Loaded, trained: Artifact) -> None:
    member = universal_member(NANO, panel.panel, trained.network.shape, trained.model)
    made = predict(replace(trained, network=member), panel.panel, windows(range(150, 151)))
    network, _ = read_checkpoint(card_of(NANO))
    series = [panel.panel.target[panel.panel.offsets[row] :][:151].astype(np.float64) for row in range(5)]
    padded = [np.concatenate([np.full(49, np.nan), values]) for values in series]  # its context is of 256 steps
    expected = forecast_series(network, padded, [7] * 5, [0] * 5, 7)
    np.testing.assert_allclose(made.tuned, expected[..., 1:-1], rtol=1e-4)


def test_a_forecast_does_not_depend_on_the_others_nor_on_what_comes_later(panel: Loaded, mixed: Artifact) -> None:
    pretrained = replace(mixed, network=members_of(mixed.network)[1])
    every = predict(pretrained, panel.panel, windows(range(100, 140, 10)))
    alone = predict(pretrained, panel.panel, windows(range(120, 121), 3)[np.array([2])])
    np.testing.assert_array_equal(every.tuned[10], alone.tuned[0])
    target = panel.panel.target.copy()
    target[panel.panel.offsets[2] + 121 :] = 1e3
    later = predict(pretrained, replace(panel.panel, target=target), windows(range(120, 121), 3)[np.array([2])])
    np.testing.assert_array_equal(later.tuned, alone.tuned)


def test_the_mean_of_members_is_weighted_whatever_the_lengths_of_their_contexts(
    panel: Loaded, trained: Artifact, mixed: Artifact
) -> None:
    at = windows(range(150, 160, 5))
    own, other = (predict(replace(mixed, network=member), panel.panel, at) for member in members_of(mixed.network))
    np.testing.assert_allclose(own.tuned, predict(trained, panel.panel, at).tuned, rtol=1e-5)
    made = predict(mixed, panel.panel, at)
    np.testing.assert_allclose(made.tuned, 0.75 * own.tuned + 0.25 * other.tuned, rtol=1e-4)


def test_one_pass_over_the_history_forecasts_the_share_of_the_pretrained_network_alike(
    panel: Loaded, mixed: Artifact
) -> None:
    at, (member,) = windows(range(150, 160)), members_of(mixed.network)[1:]
    pretrained = replace(mixed, network=member)
    np.testing.assert_array_equal(
        predict(pretrained, panel.panel, at, one_pass=True).tuned, predict(pretrained, panel.panel, at).tuned
    )
    both = predict(mixed, panel.panel, at, one_pass=True)
    assert np.isfinite(both.tuned).all()


def test_a_saved_mean_forecasts_the_same_bit_by_bit(panel: Loaded, mixed: Artifact, tmp_path: Path) -> None:
    digest = mixed.save(tmp_path)
    again = load(tmp_path)
    assert again.digest() == digest
    assert isinstance(again.network, Ensemble)
    assert again.network.shares == (0.75, 0.25)
    assert len(recurrent_members(again.network)) == 1
    at = windows(range(150, 151))
    np.testing.assert_array_equal(predict(again, panel.panel, at).tuned, predict(mixed, panel.panel, at).tuned)


@pytest.mark.parametrize("unit", [0.0, 0.5])
def test_units_and_levels_do_not_matter(table: Table, loaded: Read, weekly: Weekly, train: Train, unit: float) -> None:
    """On a logarithmic scale of the model too: its quantiles are those of the scale as it is."""
    series = weekly(3, 120)
    made = []
    for factor in (1.0, 1e4):
        found = loaded(table({name: factor * values for name, values in series.items()}), 7)
        base = train(found, model={"transform": "log" if unit else "none"}).artifact
        shape = members_of(base.network)[0].shape
        assert bool(shape.unit) == bool(unit)
        member = universal_member(NANO, found.panel, shape, base.model)
        made.append(predict(replace(base, network=member), found.panel, windows(range(100, 101), 3)).tuned / factor)
    np.testing.assert_allclose(made[0], made[1], rtol=2e-3)


def test_other_levels_lie_between_those_that_it_knows(panel: Loaded, trained: Artifact) -> None:
    model = trained.model.model_copy(update={"quantile_levels": (0.05, 0.25, 0.5, 0.9)})
    member = universal_member(NANO, panel.panel, trained.network.shape, model)
    made = predict(replace(trained, network=member, model=model), panel.panel, windows(range(150, 151))).tuned
    nine = universal_member(NANO, panel.panel, trained.network.shape, trained.model)
    known = predict(replace(trained, network=nine), panel.panel, windows(range(150, 151))).tuned
    assert (made[..., 0] < known[..., 0]).all()
    assert ((known[..., 1] < made[..., 1]) & (made[..., 1] < known[..., 2])).all()
    np.testing.assert_array_equal(made[..., 2:], known[..., [4, 8]])


@pytest.mark.parametrize("transform", ["none", "log"])
def test_a_series_of_one_value_is_as_uncertain_as_its_panel_and_a_constant_one_is_sure(
    table: Table, loaded: Read, weekly: Weekly, train: Train, transform: str
) -> None:
    found = loaded(table(weekly(3, 60) | {"constant": np.full(60, 3.0), "new": np.array([20.0])}, late={"new": 59}), 7)
    base = train(found, model={"transform": transform}).artifact
    member = universal_member(NANO, found.panel, members_of(base.network)[0].shape, base.model)
    names, lengths = found.panel.series_id.tolist(), found.panel.lengths
    made = predict(replace(base, network=member), found.panel, WindowIndex(np.arange(len(names)), lengths - 1)).tuned
    width = made[..., -1] - made[..., 0]
    np.testing.assert_allclose(made[names.index("constant")], 3.0, rtol=1e-6)
    assert np.median(width[names.index("new")]) > 0.1 * np.median(width[names.index("s00")])


def test_training_goes_through_all_origins_of_a_window_at_once(panel: Loaded, trained: Artifact) -> None:
    """And its gradients reach every weight of the network."""
    member = universal_member(NANO, panel.panel, trained.network.shape, trained.model)
    data, length = PanelTensors.of(panel.panel, member), member.shape.segment_length
    series, first = torch.tensor([0, 1]), torch.tensor([100, 90])
    batch = data.gather(series, first, first + 100, **window_sizes(member, 3 * length))
    origins = torch.tensor([0, length, 2 * length])
    member.train()
    output = member(batch, origins)
    output.quantiles.square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in member.network.parameters() if p.ndim > 1)
    with torch.no_grad():
        apart = member.eval()(batch, origins)
    joint, alone = (
        (each.quantiles * each.frame.divisor[..., None, None] + each.frame.location[..., None, None])[:, 0].detach()
        for each in (output, apart)
    )
    torch.testing.assert_close(joint, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 3, 14])
def test_origins_at_any_step_of_a_patch_share_a_pass(
    table: Table, loaded: Read, weekly: Weekly, train: Train, stride: int
) -> None:
    """Where the context holds the whole series, they forecast what each does alone, but for patches of nothing."""
    short = loaded(table(weekly(3, 100)), 7)
    base = train(short).artifact
    alone = universal_member(NANO, short.panel, base.network.shape, base.model)
    together = reading_at_once(as_ensemble([alone, alone], [0.5, 0.5]))
    data, origins = PanelTensors.of(short.panel, alone), torch.arange(0, 29, stride)
    series, first = torch.arange(3), torch.full((3,), 60)
    batch = data.gather(series, first, first + 40, **window_sizes(alone, 29))
    with torch.no_grad():
        apart, joint = alone(batch, origins), together(batch, origins)
    assert not alone.at_once
    torch.testing.assert_close(joint.quantiles, apart.quantiles, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(joint.state, apart.state, rtol=0, atol=0.05)
