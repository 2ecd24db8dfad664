"""Changes by gradient of the universal network alone: the same machinery as of a network of the panel."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import windows_at
from forecast.finetuning import series_tuning
from forecast.finetuning.finetune import finetune
from forecast.finetuning.gradient_group import GradientGroup
from forecast.finetuning.lineage import extract_series
from forecast.finetuning.result import FinetuneResult
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import BLEND, AdapterBank
from forecast.models.adapters.stacked import Deltas
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import window_sizes
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.models.universal.network import MEDIAN, Shape
from forecast.prediction.predict import predict

KINDS = ("bias", "embedding", "lora", "full")
HORIZON, N_SERIES = 5, 3
# Whatever helps on the gate windows is kept.
OPEN: dict[str, Any] = {
    "gate": "strict",
    "min_gain": 0.0,
    "min_windows_better": 0.0,
    "gate_windows": 2,
    "report_windows": 1,
    "holdout_windows": 0,
    "origins": 40,
    "steps": 10,
    "batch_size": 2,
    "accelerator": "cpu",
}
Table = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def rows(table: Table, weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    return table(weekly(N_SERIES, 100))


@pytest.fixture(scope="module")
def model(rows: pl.DataFrame) -> Artifact:
    """A tiny network whose forecasts are all too high."""
    artifact = replace(fc.pretrained("gatecast-nano", rows, horizon=HORIZON), final=None)
    return replace(artifact, network=tiny(artifact))


def tiny(artifact: Artifact) -> UniversalForecaster:
    torch.manual_seed(0)
    shape = replace(network_of(artifact).shape, network=Shape("lstm", 16, 1, 16, 16))
    network = UniversalForecaster(shape, artifact.model)
    with torch.no_grad():
        network.network.out.weight.normal_(std=0.1)
        network.network.gate.weight.normal_(std=0.1)
        network.network.out.bias[MEDIAN] += 2.0
    return network.eval()


@pytest.fixture(scope="module")
def panel(model: Artifact, rows: pl.DataFrame) -> Loaded:
    return model.read(rows.lazy())


def network_of(model: Artifact) -> UniversalForecaster:
    assert isinstance(model.network, UniversalForecaster)
    return model.network


def drawn(network: UniversalForecaster, kind: str, spread: float) -> Deltas:
    generator = torch.Generator().manual_seed(1)
    changes = stacked.unchanged(network, kind, N_SERIES, 2)
    return {name: values + spread * torch.randn(values.shape, generator=generator) for name, values in changes.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", [0.0, 0.5])
def test_changes_of_nothing_leave_the_forecast(model: Artifact, panel: Loaded, kind: str, unit: float) -> None:
    """Bit by bit with a frozen encoder; weights of a series of its own are multiplied in other blocks.

    On a logarithmic scale, the last bits of `sinh` depend on the place of a value in memory.
    """
    network = copy.deepcopy(network_of(model))
    network.shape = replace(network.shape, unit=unit)
    changes = stacked.unchanged(network, kind, 2, 2) | {BLEND: torch.ones(2)}
    base = replace(model, network=network)
    tuned = base.with_bank(AdapterBank(kind, ["s00", "s02"], changes), trained_until=0, parent_digest="")
    at = windows_at(panel.panel, panel.panel.last_index)
    before, after = (predict(each, panel.panel, at).tuned for each in (base, tuned))
    exact = kind in stacked.FROZEN and not unit
    np.testing.assert_allclose(before, after, rtol=0 if exact else 1e-5)


@pytest.mark.parametrize("kind", ["embedding", "lora", "full"])
def test_series_together_forecast_what_a_network_with_the_weights_of_each_does(
    model: Artifact, panel: Loaded, kind: str
) -> None:
    network = network_of(model).requires_grad_(requires_grad=False)
    changes = drawn(network, kind, 0.1)
    data = PanelTensors.of(panel.panel, network)
    series = torch.arange(N_SERIES)
    batch = data.gather(series, series + 80, series + 90, **window_sizes(network, 1))
    origin = torch.tensor([0])
    made, _ = stacked.forecasts(network, changes, batch, origin)
    for row in range(N_SERIES):
        single = copy.deepcopy(network)
        if kind == "embedding":
            single.network.state.bias += changes["embedding"][row]
        else:
            written = {name: values[row] for name, values in stacked.weights(network, changes).items()}
            single.load_state_dict(written, strict=False)
        expected = single(batch, origin).arguments[row]
        torch.testing.assert_close(made[row], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(made[row], network(batch, origin).arguments[row], atol=1e-3)


def test_a_bias_moves_the_median_by_its_spread_and_widens_around_it(model: Artifact, panel: Loaded) -> None:
    network = network_of(model)
    data, series = PanelTensors.of(panel.panel, network), torch.arange(N_SERIES)
    batch = data.gather(series, series + 80, series + 90, **window_sizes(network, 1))
    base = network(batch, torch.tensor([0]))
    bias = stacked.unchanged(network, "bias", N_SERIES, 1)["bias"]
    bias[1, :, 0], bias[2, :, 1] = -0.5, float(np.log(2))
    made, _ = stacked.forecasts(network, {"bias": bias}, batch, torch.tensor([0]))
    middle = network.head.median
    torch.testing.assert_close(made[1, 0], base.arguments[1, 0] - 0.5 * base.frame.spread[1, 0, :, None])
    width, wider = (each - each[..., middle, None] for each in (base.arguments[2, 0], made[2, 0]))
    torch.testing.assert_close(wider, 2 * width)


@pytest.mark.parametrize("kind", ["embedding", "full"])
def test_a_regression_on_covariates_stays_as_it_is(rows: pl.DataFrame, kind: str) -> None:
    promo = np.random.default_rng(0).integers(0, 2, rows.height).astype(float)
    table = rows.with_columns(promo=promo, target=pl.col("target") + 8 * promo)
    artifact = fc.pretrained("gatecast-nano", table, horizon=HORIZON, data={"known_covariates": ["promo"]})
    network, effect = tiny(artifact), network_of(artifact.latest).effect
    assert network.effect is not None
    assert effect is not None
    assert effect.is_active
    network.effect.load_state_dict(effect.state_dict())
    base = replace(artifact, network=network, final=None)
    panel = base.read(table.lazy())
    made = tune(base, panel, kind=kind, steps=5, origins=20).artifact
    assert made.bank is not None
    assert not any(name.startswith("effect") for name in made.bank.tensors)
    at = windows_at(panel.panel, panel.panel.last_index - HORIZON)
    moved = promo.reshape(N_SERIES, -1)[:, -HORIZON:] == 1
    before, after = (predict(each, panel.panel, at).tuned[..., 4] for each in (base, made))
    for median in (before, after):
        assert median[moved].mean() - median[~moved].mean() > 4
    assert not np.array_equal(before, after)


def tune(model: Artifact, panel: Loaded, **settings: Any) -> FinetuneResult:
    return finetune(model, panel.panel, FinetuneSettings.model_validate(OPEN | settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.trains
def test_every_kind_gains_where_all_forecasts_are_off_alike(
    model: Artifact, panel: Loaded, kind: str, tmp_path: Path
) -> None:
    made = tune(model, panel, kind=kind, final=True)
    judged = made.decisions.filter(reason="tuned")
    assert judged.height == N_SERIES
    assert (judged["report_tuned_loss"] < judged["report_base_loss"]).all()
    made.artifact.save(tmp_path)
    at = windows_at(panel.panel, panel.panel.last_index)
    own, again = (predict(each, panel.panel, at).tuned for each in (made.artifact, fc.load(tmp_path)))
    np.testing.assert_array_equal(own, again)
    assert (own[..., 4] < predict(model, panel.panel, at).tuned[..., 4]).mean() > 0.9
    one = extract_series(made.artifact, "s01", key="series")
    np.testing.assert_allclose(predict(one, panel.panel, at).tuned[1], own[1], rtol=1e-4)


@pytest.mark.parametrize("kind", ["bias", "full"])
def test_a_job_that_ended_early_goes_on_with_the_groups_that_are_left(
    model: Artifact, panel: Loaded, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"kind": kind, "steps": 5, "learning_rates": [0.01], "origins": 20}
    monkeypatch.setattr(series_tuning, "_elements_per_series", lambda *_: series_tuning.MAX_GROUP_ELEMENTS["cpu"])
    whole = tune(model, panel, **settings)
    trial, tried = GradientGroup.trial, []

    def counted(group: GradientGroup) -> dict[str, Any]:
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(group.group.series.tolist())
        return trial(group)

    monkeypatch.setattr(GradientGroup, "trial", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(model, panel, checkpoint=str(tmp_path), **settings)
    assert tried == [[0], [1]]
    tried.clear()
    again = tune(model, panel, checkpoint=str(tmp_path), **settings)
    assert tried == [[2]]
    assert again.decisions.equals(whole.decisions)
    assert again.artifact.digest() == whole.artifact.digest()
