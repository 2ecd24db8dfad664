"""Fine-tuned models by series: rolled back, alone, compared."""

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
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError
from forecast.finetuning.finetune import finetune
from forecast.finetuning.lineage import ADDED, CHANGED, REMOVED, SAME, compare_changes, drop_changes, extract_series
from forecast.finetuning.result import TOO_SHORT, UNCHANGED
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import HEAD
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

KINDS = ("head", "bias", "embedding", "lora", "full")
# Every series that can be tuned is, well or badly.
OPEN: dict[str, Any] = {
    "origins": 40,
    "gate_windows": 2,
    "report_windows": 1,
    "holdout_windows": 0,
    "steps": 2,
    "batch_size": 2,
    "min_gain": 0.0,
    "min_windows_better": 0.0,
}


@pytest.fixture(scope="module")
def banks(early: FitResult, rising: Loaded) -> dict[str, Artifact]:
    base = early.artifact
    made = {
        kind: finetune(base, rising.panel, FinetuneSettings(kind=kind, **OPEN)).artifact  # type: ignore[arg-type]
        for kind in KINDS
    }
    assert all(artifact.bank and len(artifact.bank.series_id) > 2 for artifact in made.values())
    return made


def names(artifact: Artifact) -> list[str]:
    assert artifact.bank is not None
    return artifact.bank.series_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_alone_forecasts_as_in_the_bank(
    banks: dict[str, Artifact], rising: Loaded, kind: str, tmp_path: Path
) -> None:
    bank, panel = banks[kind], rising.panel
    name = names(bank)[1]
    extract_series(bank, name, key="export.series").save(tmp_path)
    own = fc.load(tmp_path)
    assert own.parent_digest == bank.digest()
    assert own.kind == ("pretrained" if kind in ("lora", "full") else "fine_tuned")
    found, expected = (forecast(model, panel).frame.filter(series_id=name) for model in (own, bank))
    quantiles = [column for column in found.columns if column.startswith("q")]
    one, two, before = (
        frame.select(quantiles).to_numpy()
        for frame in (found, expected, forecast(bank.base(), panel).frame.filter(series_id=name))
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert np.abs(two - before).max() > 1e-6 * np.abs(before).max()  # Two steps move weights of low rank a little.


@pytest.mark.parametrize("kind", KINDS)
def test_series_rolled_back_forecast_with_the_base_and_the_others_as_before(
    banks: dict[str, Artifact], rising: Loaded, kind: str, tmp_path: Path
) -> None:
    bank, panel = banks[kind], rising.panel
    gone, *_ = names(bank)
    drop_changes(bank, [gone], key="rollback.series").save(tmp_path)
    child = fc.load(tmp_path)
    assert names(child) == names(bank)[1:]
    assert child.parent_digest == bank.digest()
    assert child.base().digest() == bank.base().digest()
    made, before, base = (forecast(model, panel).frame for model in (child, bank, bank.base()))
    own = pl.col("series_id") == gone
    assert made.filter(own).equals(base.filter(own))
    columns = [column for column in made.columns if column.startswith("q")]
    others, expected = (frame.filter(~own).select(columns).to_numpy() for frame in (made, before))
    np.testing.assert_allclose(others, expected, rtol=1e-5)
    found = compare_changes(child, bank).rows_by_key("series_id", named=True, unique=True)
    assert found[gone]["status"] == REMOVED
    assert found[gone]["change"] > 0
    assert {row["status"] for name, row in found.items() if name != gone} == {SAME}


def test_what_was_rolled_back_stays_so_until_its_data_changes(banks: dict[str, Artifact], rising: Loaded) -> None:
    bank = banks["bias"]
    gone = names(bank)[0]
    child = drop_changes(bank, [gone], key="rollback.series")
    settings = FinetuneSettings(kind="bias", incremental=True, **OPEN)
    again = finetune(child, rising.panel, settings)
    assert set(again.decisions["reason"]) <= {UNCHANGED, TOO_SHORT}
    assert names(again.artifact) == names(child)
    # With two steps fewer at its end, the data of every series is another.
    panel = rising.panel
    shorter = finetune(bank.base(), panel, FinetuneSettings(kind="bias", **{**OPEN, "holdout_windows": 1}))
    older = drop_changes(shorter.artifact, names(shorter.artifact)[:1], key="rollback.series")
    assert names(shorter.artifact)[0] in names(finetune(older, panel, settings).artifact)


def test_the_difference_is_the_norm_of_what_is_added(banks: dict[str, Artifact]) -> None:
    one = banks["full"]
    assert one.bank is not None
    name = names(one)[0]
    tensors = {key: values.clone() for key, values in one.bank.tensors.items()}
    tensors["output_bias"][0] += 3.0
    other_bank = type(one.bank)("full", names(one), tensors, one.bank.seen)
    other = one.with_bank(other_bank, trained_until=one.trained_until, parent_digest=one.digest())
    found = compare_changes(other, one).rows_by_key("series_id", named=True, unique=True)
    blend = float(one.bank.tensors["blend"][0])
    assert found[name]["status"] == CHANGED
    assert found[name]["change"] == pytest.approx(3.0 * blend * tensors["output_bias"][0].numel() ** 0.5, rel=1e-6)
    assert {row["status"] for key, row in found.items() if key != name} == {SAME}
    assert set(compare_changes(one, one.base())["status"]) == {ADDED}
    assert set(compare_changes(one.base(), one)["status"]) == {REMOVED}
    assert compare_changes(one.base(), one.base()).is_empty()
    unlike = compare_changes(one, banks[HEAD]).filter(series_id=name)
    assert unlike.rows() == [(name, CHANGED, None)]


def test_low_rank_changes_are_compared_by_their_products(banks: dict[str, Artifact]) -> None:
    one = banks["lora"]
    assert one.bank is not None
    turned = {
        name: values * 2 if name.endswith(".up") else values / 2 if name.endswith(".down") else values
        for name, values in one.bank.tensors.items()
    }
    other_bank = type(one.bank)("lora", names(one), turned, one.bank.seen)
    other = one.with_bank(other_bank, trained_until=one.trained_until, parent_digest=one.digest())
    assert set(compare_changes(one, other)["status"]) == {SAME}


def test_series_without_changes_are_refused(banks: dict[str, Artifact]) -> None:
    bank = banks["head"]
    with pytest.raises(ConfigError, match=r"rollback\.series: 2 of 3 have no changes in this version.*: none, nope; "):
        drop_changes(bank, [names(bank)[0], "nope", "none"], key="rollback.series")
    with pytest.raises(ConfigError, match=r"export\.series: this version has no changes of series"):
        extract_series(bank.base(), "s00", key="export.series")


@pytest.mark.parametrize("kind", ["bias", "lora", "full"])
def test_windows_of_a_series_forecast_together_as_alone(
    banks: dict[str, Artifact], rising: Loaded, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, panel = banks[kind], rising.panel
    rows = np.flatnonzero(np.isin(panel.series_id, names(bank)))[:3]
    windows = WindowIndex(np.array([*rows, *rows, rows[0]]), np.array([60, 70, 80, 90, 65, 75, 50]))
    taken: list[int] = []
    weights = stacked.weights

    def counted(network: Any, changes: Any) -> dict[str, torch.Tensor]:
        found = weights(network, changes)
        taken.append(len(next(iter(found.values()))))
        return found

    monkeypatch.setattr(stacked, "weights", counted)
    together = predict(bank, panel, windows).tuned
    assert sum(taken) == (0 if kind == "bias" else 3)
    for number in range(len(windows)):
        one = predict(bank, panel, windows[np.array([number])]).tuned[0]
        np.testing.assert_allclose(together[number], one, rtol=1e-5, atol=1e-5)
