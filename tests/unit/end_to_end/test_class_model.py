"""Models of classes: training, fine-tuning, backtest and forecasts, in Python."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import Artifact
from forecast.errors import ConfigError, DataError
from forecast.finetuning.result import FinetuneResult
from forecast.finetuning.series_gate import CONSTANT, TUNED
from forecast.models.network.ensemble import members_of
from forecast.prediction.from_table import example, forecast_loaded
from forecast.promotion import compare
from forecast.training.result import FitResult

LABELS = ("clear", "rain", "snow")
P = ["p_clear", "p_rain", "p_snow"]
QUICK: dict[str, Any] = {
    "data": {"freq": "1d", "calendar": False},
    "model": {"head": "categorical", "hidden_size": 4, "decoder_size": 4, "dropout": 0.0},
    "fit": {"max_steps": 0, "batch_size": 8, "origins": 8, "accelerator": "cpu", "final": False},
}


def weather(n: int = 6, length: int = 300, labels: tuple[Any, ...] = LABELS) -> pl.DataFrame:
    """Daily Markov chains that mostly stay; in the series `odd` what comes next is what the base finds least likely."""
    rng = np.random.default_rng(0)
    stay = np.array([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]])
    odd = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    parts = []
    for name, after in {**{f"s{i}": stay for i in range(n)}, "odd": odd}.items():
        codes = [0]
        for _ in range(length - 1):
            codes.append(rng.choice(3, p=after[codes[-1]]))
        times = [datetime(2024, 1, 1) + timedelta(days=step) for step in range(length)]
        parts.append(pl.DataFrame({"series_id": name, "timestamp": times, "target": [labels[code] for code in codes]}))
    return pl.concat(parts)


def settings(**groups: dict[str, Any]) -> dict[str, Any]:
    return {name: values | groups.get(name, {}) for name, values in QUICK.items()}


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return weather()


@pytest.fixture(scope="module")
def base(table: pl.DataFrame) -> FitResult:
    return fc.train(table, horizon=7, context_length=28, **QUICK)


@pytest.fixture(scope="module")
def tuned(base: FitResult, table: pl.DataFrame) -> FinetuneResult:
    return fc.finetune(base.artifact, table, gate_windows=4, origins=128)


def check(frame: pl.DataFrame) -> None:
    stated = frame.select(P).to_numpy()
    assert (stated > 0).all()
    np.testing.assert_allclose(stated.sum(1), 1.0, atol=1e-6)
    assert frame["class"].to_list() == [LABELS[code] for code in stated.argmax(1)]


def test_a_forecast_states_the_probability_of_each_class(base: FitResult, table: pl.DataFrame) -> None:
    frame = fc.forecast(base.artifact, table).frame
    assert frame.columns == [
        *("series_id", "timestamp", "cutoff", "step", "class"),
        *P,
        *("source", "model_version"),
    ]
    assert frame.height == 7 * 7
    check(frame)


def test_the_closed_form_is_better_than_naive_and_than_the_frequencies(table: pl.DataFrame) -> None:
    table = table.filter(pl.col("series_id") != "odd")
    artifact = fc.train(table, horizon=7, context_length=28, **QUICK).artifact
    made = fc.backtest(artifact, table, n_windows=4)
    without = fc.train(table, horizon=7, context_length=28, **settings(model={"skip": False})).artifact
    plain = fc.backtest(without, table, n_windows=4)
    naive, own = (made.summary.filter(model=name)["log_loss"].item() for name in ("seasonal_naive", "pretrained"))
    frequencies = plain.summary.filter(model="pretrained")["log_loss"].item()
    assert own < frequencies
    assert own < naive
    row = fc.forecast(without, table).frame.row(0, named=True)
    shares = table["target"].value_counts(normalize=True)
    for name, share in shares.iter_rows():
        assert row[f"p_{name}"] == pytest.approx(share, abs=0.05)


@pytest.mark.trains
def test_training_gains_on_the_closed_form(table: pl.DataFrame) -> None:
    fit = {"max_steps": 60, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
    summary = fc.train(table, horizon=7, context_length=28, **settings(fit=fit)).summary
    assert summary["best_step"] > 0
    assert summary["val/loss"] < summary["val/loss_closed_form"]


@pytest.mark.trains
def test_fine_tuning_helps_the_series_that_is_unlike_the_others(tuned: FinetuneResult, table: pl.DataFrame) -> None:
    rows = tuned.decisions.rows_by_key("series_id", named=True, unique=True)
    assert rows["odd"]["reason"] == TUNED
    assert rows["odd"]["report_tuned_loss"] < 0.8 * rows["odd"]["report_base_loss"]
    frame = fc.forecast(tuned.artifact, table).frame
    assert set(frame.filter(series_id="odd")["source"]) == {"fine_tuned"}
    check(frame)


def test_a_series_with_one_class_at_its_gate_keeps_the_base(base: FitResult, table: pl.DataFrame) -> None:
    late = pl.col("timestamp") > datetime(2024, 8, 1)
    still = table.with_columns(target=pl.when(late, series_id="s0").then(pl.lit("clear")).otherwise("target"))
    found = fc.finetune(base.artifact, still, gate_windows=2, report_windows=1)
    decision = found.decisions.row(by_predicate=pl.col("series_id") == "s0", named=True)
    assert (decision["reason"], decision["blend"]) == (CONSTANT, 0.0)


def test_a_backtest_scores_probabilities_and_counts_confusions(tuned: FinetuneResult, table: pl.DataFrame) -> None:
    found = fc.backtest(tuned.artifact, table, n_windows=4)
    assert found.summary["model"].to_list() == ["naive", "seasonal_naive", "pretrained", "fine_tuned"]
    forecasts = found.forecasts.filter(model="fine_tuned")
    check(forecasts)
    code = [LABELS.index(name) for name in forecasts["target"]]
    stated = forecasts.select(P).to_numpy()
    summary = found.summary.filter(model="fine_tuned").row(0, named=True)
    assert summary["log_loss"] == pytest.approx(-np.log(stated[np.arange(len(code)), code]).mean(), rel=1e-6)
    assert summary["brier"] == pytest.approx(np.square(stated - np.eye(3)[code]).sum(1).mean(), rel=1e-6)
    assert summary["accuracy"] == pytest.approx((stated.argmax(1) == code).mean())
    assert found.confusion is not None
    assert found.confusion.filter(model="fine_tuned")["n"].sum() == len(code)
    verdict = compare(found.scores, "fine_tuned", "seasonal_naive", must_beat=True)
    assert verdict.metrics.keys() == {"log-loss"}
    assert verdict.metrics["log-loss"][0] == pytest.approx(summary["log_loss"])


def test_a_saved_model_forecasts_the_same(tuned: FinetuneResult, table: pl.DataFrame, tmp_path: Path) -> None:
    tuned.artifact.save(tmp_path)
    again = fc.load(tmp_path)
    assert again.classes == LABELS
    assert fc.forecast(again, table).frame.equals(fc.forecast(tuned.artifact, table).frame)


def test_names_of_classes_do_not_matter(base: FitResult, table: pl.DataFrame) -> None:
    """Sorted otherwise, coded otherwise: the same probabilities."""
    names = {"clear": "z", "rain": "a", "snow": "m"}
    other = table.with_columns(target=pl.col("target").replace_strict(names))
    made = fc.forecast(fc.train(other, horizon=7, context_length=28, **QUICK).artifact, other).frame
    assert made.columns[5:8] == ["p_a", "p_m", "p_z"]
    own = fc.forecast(base.artifact, table).frame
    stated = made.select(f"p_{names[name]}" for name in LABELS).to_numpy()
    np.testing.assert_allclose(stated, own.select(P).to_numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("head", "labels", "columns"),
    [
        ("categorical", (3, 10, -1), ["p_-1", "p_3", "p_10"]),
        ("bernoulli", (True, False, True), ["p_false", "p_true"]),
        ("bernoulli", (0, 1, 1), ["p_0", "p_1"]),
        ("bernoulli", ("no", "yes", "yes"), ["p_no", "p_yes"]),
    ],
)
def test_numbers_and_truth_values_are_classes_too(head: str, labels: tuple[Any, ...], columns: list[str]) -> None:
    found = weather(labels=labels)
    fit = {"max_steps": 3}
    artifact = fc.train(found, horizon=7, context_length=28, **settings(model={"head": head}, fit=fit)).artifact
    frame = fc.forecast(artifact, found).frame
    assert frame.columns[5:-2] == columns
    np.testing.assert_allclose(frame.select(columns).to_numpy().sum(1), 1.0, atol=1e-6)


def test_a_series_without_a_value_in_sight_gets_the_naive_probabilities(base: FitResult, table: pl.DataFrame) -> None:
    old = table.filter((pl.col("series_id") != "s1") | (pl.col("timestamp") < datetime(2024, 5, 1)))
    frame = fc.forecast(base.artifact, old, max_age="none").frame.filter(series_id="s1")
    assert set(frame["source"]) == {"last_value"}
    check(frame)


def test_unknown_classes_and_a_series_of_nothing_else_are_rejects(base: FitResult, table: pl.DataFrame) -> None:
    other = pl.col("series_id") == "s2"
    bad = table.with_columns(target=pl.when(other).then(pl.lit("hail")).otherwise("target"))
    artifact = base.artifact
    with pytest.raises(DataError, match="unknown class 'hail'"):
        fc.forecast(artifact, bad)
    lenient = artifact.read(bad.lazy().filter(~other | (pl.col("timestamp") > datetime(2024, 10, 1))))
    assert set(lenient.rejects["reason"]) == {"unknown class 'hail'"}
    made = forecast_loaded(artifact, lenient)
    assert "s2" not in set(made.frame["series_id"])
    assert "no observation up to the cutoff" in set(made.rejects["reason"])


def test_the_example_of_the_signature_is_of_classes(base: FitResult) -> None:
    given, made = example(base.artifact)
    assert set(given["target"]) <= set(LABELS)
    check(made)


def test_classes_that_do_not_go_are_refused(table: pl.DataFrame) -> None:
    with pytest.raises(DataError, match=r"set model.head=categorical"):
        fc.train(table, horizon=7, **settings(model={"head": "quantile"}))
    with pytest.raises(ConfigError, match=r"head=categorical is of the classes themselves; set transform=auto"):
        fc.train(table, horizon=7, **settings(model={"transform": "log"}))


PATHS: dict[str, Any] = {"decoder": "autoregressive", "n_paths": 16}
LEARNING = {"max_steps": 20, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}


@pytest.mark.parametrize("model", [{"decoder": "segment"}, {"attention": True}, PATHS, {**PATHS, "own_samples": 0.5}])
@pytest.mark.trains
def test_decoders_and_attention_take_classes(table: pl.DataFrame, model: dict[str, Any], tmp_path: Path) -> None:
    made = fc.train(table, horizon=7, context_length=28, **settings(model=model, fit=LEARNING))
    assert made.summary["best_step"] > 0
    found = fc.finetune(made.artifact, table, gate_windows=4, origins=128)
    tuned = found.artifact
    assert "odd" in found.decisions.filter(reason=TUNED)["series_id"].to_list()
    frame = fc.forecast(tuned, table).frame
    check(frame)
    scores = fc.backtest(tuned, table, n_windows=2).summary.rows_by_key("model", named=True, unique=True)
    assert scores["pretrained"]["log_loss"] < scores["seasonal_naive"]["log_loss"]
    tuned.save(tmp_path)
    assert fc.forecast(fc.load(tmp_path), table).frame.equals(frame)


@pytest.mark.parametrize("head", ["categorical", "bernoulli"])
def test_without_training_paths_of_classes_give_the_closed_form_exactly(head: str) -> None:
    table = weather(labels=("no", "yes", "yes") if head == "bernoulli" else LABELS)
    results = [
        fc.train(table, horizon=7, context_length=28, **settings(model={"head": head, **model}))
        for model in ({}, PATHS)
    ]
    frames = [fc.forecast(result.artifact, table).frame for result in results]
    assert frames[0].equals(frames[1])
    # So their losses can be compared.
    assert results[0].summary["val/loss_closed_form"] == pytest.approx(results[1].summary["val/loss_closed_form"])


def test_paths_of_models_that_have_none_are_refused(table: pl.DataFrame) -> None:
    made = settings(model=PATHS, fit={"max_steps": 3, "ensemble": 2})
    both = fc.train(table, horizon=7, context_length=28, **made).artifact
    with pytest.raises(ConfigError, match=r"this model is of 2 networks, .* fit\.ensemble=1"):
        fc.sample_paths(both, table)
    tuned = fc.finetune(replace(both, network=members_of(both.network)[0]), table, gate_windows=4, origins=128).artifact
    assert tuned.bank is not None
    with pytest.raises(ConfigError, match=r"sample those of the model without it \(model\.base\(\)"):
        fc.sample_paths(tuned, table)
    old = table.filter((pl.col("series_id") != "s1") | (pl.col("timestamp") < datetime(2024, 5, 1)))
    found = fc.sample_paths(tuned.base(), old, n=3)
    assert set(found.filter(pl.col("value").is_null())["series_id"]) == {"s1"}
    assert set(found["value"].drop_nulls()) <= set(LABELS)


def test_probabilities_have_no_intervals_to_calibrate(base: FitResult, table: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"model.head: probabilities of classes have no intervals"):
        fc.calibrate(base.artifact, table)


def test_an_ensemble_of_classes_tells_its_attention(table: pl.DataFrame) -> None:
    made = settings(model={"attention": True}, fit={"max_steps": 3, "ensemble": 2})
    weights = fc.attention(fc.train(table, horizon=7, context_length=28, **made).artifact, table)
    np.testing.assert_allclose(weights.group_by("series_id").agg(pl.col("weight").sum())["weight"], 1.0, rtol=1e-5)


def test_an_ensemble_forecasts_the_mean_of_its_probabilities(table: pl.DataFrame, tmp_path: Path) -> None:
    fit = {"max_steps": 10, "ensemble": 2, "learning_rate": 2e-2, "ema_decay": 0.5, "validation_every": 5}
    artifact = fc.train(table, horizon=7, context_length=28, **settings(fit=fit)).artifact
    members = members_of(artifact.network)
    frames = [fc.forecast(replace(artifact, network=one), table).frame for one in (artifact.network, *members)]
    joint, *each = (frame.select(P).to_numpy() for frame in frames)
    assert not np.array_equal(*each)
    np.testing.assert_allclose(joint, np.mean(each, axis=0), atol=1e-6)
    check(frames[0])
    artifact.save(tmp_path)
    assert fc.forecast(fc.load(tmp_path), table).frame.equals(frames[0])


def test_a_prepared_panel_of_text_trains_the_same_model(base: FitResult, table: pl.DataFrame, tmp_path: Path) -> None:
    fc.prepare(table, tmp_path / "panel", horizon=7, data={"freq": "1d"})
    other: Artifact = fc.train(tmp_path / "panel", horizon=7, context_length=28, **QUICK).artifact
    assert other.digest() == base.artifact.digest()
    assert fc.forecast(other, tmp_path / "panel").frame.equals(fc.forecast(base.artifact, table).frame)


def test_many_classes_with_a_long_horizon_need_no_tables(train: Callable[..., FitResult], loaded: Any) -> None:
    days = [datetime(2000, 1, 1) + timedelta(days=step) for step in range(4000)]
    names = [f"c{step % 900:03d}" for step in range(4000)]
    found = loaded(pl.DataFrame({"series_id": "a", "timestamp": days, "target": names}), 100)
    with pytest.raises(ConfigError, match=r"900 classes and window.horizon=100 its tables hold 81,000,000 numbers"):
        train(found, model={"head": "categorical"})
