"""A pretrained network of the package, as the model of a panel."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast import checkpoints
from forecast.artifact import Artifact
from forecast.errors import ArtifactError, ConfigError
from forecast.models.universal.checkpoint import MAX_BYTES, read_checkpoint
from forecast.models.universal.network import MEDIAN

Table = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def sales(table: Table, weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    return table(weekly(4, 150), price={f"s0{k}": np.ones(150) for k in range(4)})


@pytest.fixture(scope="module")
def model(sales: pl.DataFrame) -> Artifact:
    return fc.pretrained("gatecast-nano", sales, horizon=14)


def test_a_name_a_table_and_a_horizon_are_enough(sales: pl.DataFrame, model: Artifact) -> None:
    made = fc.forecast("gatecast-nano", sales, horizon=14)
    assert made.frame.height == 4 * 14
    assert set(made.frame["source"]) == {"pretrained"}
    assert made.frame.equals(fc.forecast(model, sales).frame)


def test_it_beats_seasonal_naive_on_series_that_it_has_not_been_trained_on(
    sales: pl.DataFrame, model: Artifact
) -> None:
    assert model.trained_until_timestamp < sales["timestamp"].min()
    mase = dict(fc.backtest(model, sales, n_windows=4).summary.select("model", "mase").iter_rows())
    assert mase["pretrained"] < mase["seasonal_naive"]


def test_every_verb_takes_it(sales: pl.DataFrame, model: Artifact, tmp_path: Path) -> None:
    tuned = fc.finetune(model, sales, gate_windows=2, min_gain=0.0, min_windows_better=0.0)
    assert tuned.artifact.bank is not None
    assert len(tuned.artifact.bank.series_id) > 0
    assert fc.forecast(tuned.artifact, sales).frame["mean"].is_finite().all()
    assert fc.calibrate(model, sales).artifact.calibration is not None
    assert fc.explain(model, sales, series="s01", method="occlusion", step=1).summary["magnitude"].max() > 0
    model.save(tmp_path)
    assert fc.forecast(fc.load(tmp_path), sales).frame.equals(fc.forecast(model, sales).frame)


@pytest.mark.trains
def test_its_weights_go_on_learning_from_the_panel(sales: pl.DataFrame, model: Artifact) -> None:
    """One that is always too high comes back to where the series are."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.get_parameter("network.out.bias")[MEDIAN] += 2.0
    high = replace(model, network=network)
    tuned = fc.finetune(high, sales, kind="global", steps=25, blend=1.0, gate_windows=2).artifact
    before, after = (fc.backtest(each, sales, n_windows=2).summary["mase"][-1] for each in (high, tuned))
    assert after < 0.95 * before


@pytest.mark.parametrize("n_series", [1, 40])
def test_sums_of_its_paths_stray_as_errors_that_depend_on_each_other(table: Table, n_series: int) -> None:
    """Of random walks: the errors of a horizon go together, for one series as for many."""
    rng = np.random.default_rng(0)
    walks = {f"s{k:02d}": 100 + rng.standard_normal(160).cumsum() for k in range(n_series)}
    paths = fc.sample_paths(fc.pretrained("gatecast-nano", table(walks), horizon=10), table(walks), n=400)
    values = paths["value"].to_numpy().reshape(n_series, 400, 10)
    independent, same = np.sqrt(values.var(1).sum(1)), values.std(1).sum(1)
    spread = values.sum(2).std(1)
    assert (spread > 1.6 * independent).all()
    assert (spread <= 1.01 * same).all()


@pytest.mark.parametrize("horizon", [1, 1024])
def test_any_horizon_up_to_the_limit(sales: pl.DataFrame, horizon: int) -> None:
    frame = fc.forecast("gatecast-nano", sales, horizon=horizon).frame
    assert frame.height == 4 * horizon
    spread = frame.select(pl.col("q90") - pl.col("q10")).to_series()
    assert (spread > 0).all()


def test_mistakes_are_told_with_what_to_change(sales: pl.DataFrame, model: Artifact) -> None:
    with pytest.raises(ConfigError, match="pretrained networks of the package are gatecast-nano, gatecast-nano-1"):
        fc.forecast("gatecast-mini", sales, horizon=3)
    with pytest.raises(ConfigError, match=r"horizon: missing"):
        fc.forecast("gatecast-nano", sales)
    with pytest.raises(ConfigError, match="1,024 steps at most"):
        fc.forecast("gatecast-nano", sales, horizon=1025)
    with pytest.raises(ConfigError, match="data goes with the name"):
        fc.forecast(model, sales, data={"freq": "1d"})
    classes = sales.with_columns(target=pl.when(pl.col("target") > 20).then(pl.lit("high")).otherwise(pl.lit("low")))
    with pytest.raises(ConfigError, match=r"model\.head=categorical"):
        fc.forecast("gatecast-nano", classes, horizon=3)


def test_the_latest_version_has_the_plain_name() -> None:
    numbers = [int(name.rpartition("-")[2]) for name in checkpoints.names() if name != checkpoints.NANO]
    assert checkpoints.card_of(checkpoints.NANO).stem == f"{checkpoints.NANO}-{max(numbers)}"


@pytest.mark.parametrize("name", [name for name in checkpoints.names() if name != checkpoints.NANO])
def test_every_version_loads_and_has_its_card(name: str) -> None:
    _, card = read_checkpoint(checkpoints.card_of(name))
    assert card["name"] == name
    assert card["bytes"] <= MAX_BYTES
    assert card["licence"] == "Apache-2.0"
    assert card["data"] == "synthetic series alone"


def test_a_file_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = checkpoints.card_of(checkpoints.NANO)
    content = bytearray(card.with_suffix(".safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / card.name).write_bytes(card.read_bytes())
    (tmp_path / card.with_suffix(".safetensors").name).write_bytes(content)
    monkeypatch.setattr(checkpoints, "_FOLDER", tmp_path)
    with pytest.raises(ArtifactError, match="SHA-256"):
        read_checkpoint(checkpoints.card_of(checkpoints.NANO))
