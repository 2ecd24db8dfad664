"""The final fit: what is scored has seen everything, what is evaluated has not."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc
from forecast.artifact import Artifact, load
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, FinetuneSettings, ScoreOutput, ScoreSettings
from forecast.data.files import locked
from forecast.errors import ArtifactError, DataError
from forecast.finetuning.finetune import finetune
from forecast.finetuning.lineage import drop_changes, extract_series
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

HORIZON, HELD_OUT = 7, 4
BEGIN = datetime(2024, 1, 1)
TRAINED: dict[str, Any] = {
    "max_steps": 20,
    "batch_size": 8,
    "origins": 8,
    "learning_rate": 2e-2,
    "ema_decay": 0.9,
    "validation_every": 10,
    "holdout_windows": HELD_OUT,
    "validation_windows": 2,
    "accelerator": "cpu",
}
SMALL: dict[str, Any] = {"hidden_size": 8, "decoder_size": 4, "embedding_size": 2, "dropout": 0.0, "smoothing": False}
KNOWN: dict[str, Any] = {"freq": "1d", "known_covariates": ["promo"]}


def shop(n: int = 4, length: int = 120) -> pl.DataFrame:
    """Daily series with a weekly pattern and a promo that adds 8, which the closed form does not see."""
    rng = np.random.default_rng(3)
    parts = []
    for row in range(n):
        pattern, promo = rng.normal(size=7), rng.integers(0, 2, length).astype(float)
        values = 20 + 3 * row + 2 * pattern[np.arange(length) % 7] + 8 * promo + rng.normal(size=length)
        moments = [BEGIN + timedelta(days=step) for step in range(length)]
        parts.append(
            pl.DataFrame({"series_id": f"s{row}", "timestamp": moments, "target": values.round(), "promo": promo})
        )
    return pl.concat(parts)


def changed(table: pl.DataFrame, days: int = HORIZON) -> pl.DataFrame:
    """The table with other values on its last days."""
    late = pl.col("timestamp") > pl.col("timestamp").max() - timedelta(days=days)
    target = pl.col("target")
    if table["target"].dtype == pl.String:
        return table.with_columns(pl.when(late).then(pl.lit("rain")).otherwise(target).alias("target"))
    return table.with_columns(pl.when(late).then(target * 2 + 5).otherwise(target))


def before(table: pl.DataFrame, days: int) -> pl.DataFrame:
    return table.filter(pl.col("timestamp") <= pl.col("timestamp").max() - timedelta(days=days))


def train(table: pl.DataFrame, model: dict[str, Any] | None = None, **settings: Any) -> FitResult:
    data = KNOWN if "promo" in table.columns else {"freq": "1d"}
    return fc.train(
        table, horizon=HORIZON, context_length=28, data=data, model=SMALL | (model or {}), fit=TRAINED | settings
    )


def same(one: Artifact, other: Artifact) -> bool:
    states = (one.network.state_dict(), other.network.state_dict())
    return all(torch.equal(values, states[1][name]) for name, values in states[0].items())


def evaluated(artifact: Artifact) -> Artifact:
    return replace(artifact, final=None)


def final(artifact: Artifact) -> Artifact:
    assert artifact.final is not None
    return artifact.final


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    return shop()


@pytest.fixture(scope="module")
def result(table: pl.DataFrame) -> FitResult:
    made = train(table)
    assert int(made.summary["best_step"]) > 0
    return made


@pytest.fixture(scope="module")
def model(result: FitResult) -> Artifact:
    return result.artifact


def weather(table: pl.DataFrame) -> pl.DataFrame:
    rain = pl.col("target") > pl.col("target").mean()
    return table.select("series_id", "timestamp", target=pl.when(rain).then(pl.lit("rain")).otherwise(pl.lit("sun")))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quantiles": ({}, {}),
    "line": ({}, {"max_steps": 0}),
    "smoothing": ({"smoothing": True}, {"max_steps": 0}),
    "ensemble": ({}, {"ensemble": 2, "max_steps": 10}),
    "counts": ({"head": "poisson"}, {"max_steps": 10}),
    "classes": ({"head": "categorical"}, {"max_steps": 0}),
}


@pytest.mark.trains
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_horizon_changes_what_is_scored_and_not_what_is_evaluated(kind: str, table: pl.DataFrame) -> None:
    settings, fit = KINDS[kind]
    history = weather(table) if kind == "classes" else table
    one, other = (train(rows, settings, **fit).artifact for rows in (history, changed(history)))
    # Bit by bit, with all that is said of them in validation.
    assert evaluated(one).digest() == evaluated(other).digest()
    assert same(one, other)
    assert not same(final(one), final(other))
    assert final(one).trained_until == one.trained_until + HELD_OUT * HORIZON
    # From the same past: rows before the end, with a cutoff at it.
    tonight = [fc.forecast(artifact, history).frame for artifact in (one, other)]
    assert not tonight[0].equals(tonight[1])
    early = BacktestSettings(n_windows=HELD_OUT)
    scores = [backtest({"m": Contender(each, each.read(history.lazy()).panel)}, early).scores for each in (one, other)]
    assert scores[0].equals(scores[1])


@pytest.mark.trains
def test_what_is_evaluated_is_the_same_without_a_final_fit(table: pl.DataFrame, result: FitResult) -> None:
    plain = train(table, final=False)
    assert plain.artifact.final is None
    assert plain.artifact.digest() == evaluated(result.artifact).digest()
    assert plain.summary["val/loss"] == result.summary["val/loss"]
    assert plain.curve == result.curve


@pytest.mark.trains
def test_a_holdout_of_nothing_leaves_the_network_to_go_on_alone(table: pl.DataFrame) -> None:
    known = {"holdout_windows": 0}
    assert train(table, max_steps=0, **known).artifact.final is None
    trained = train(table, **known).artifact
    assert final(trained).trained_until == trained.trained_until
    assert not same(final(trained), trained)


def test_a_cutoff_is_forecast_with_weights_that_have_not_seen_what_follows(
    model: Artifact, table: pl.DataFrame
) -> None:
    for days in (1, HORIZON, HELD_OUT * HORIZON, HELD_OUT * HORIZON + 3):
        cutoff = table["timestamp"].max() - timedelta(days=days)  # type: ignore[operator]
        expected = fc.forecast(evaluated(model), table, cutoff=cutoff).frame
        assert fc.forecast(model, table, cutoff=cutoff).frame.equals(expected)
    tonight = fc.forecast(model, table).frame
    assert tonight.equals(fc.forecast(final(model), table).frame)
    assert not tonight.equals(fc.forecast(evaluated(model), table).frame)


def test_paths_and_explanations_are_of_the_same_weights(model: Artifact, table: pl.DataFrame) -> None:
    late = table["timestamp"].max()
    for cutoff, weights in ((late, final(model)), (late - timedelta(days=3), evaluated(model))):  # type: ignore[operator]
        paths = fc.sample_paths(model, table, n=4, cutoff=cutoff)
        assert paths.equals(fc.sample_paths(weights, table, n=4, cutoff=cutoff))
        told = fc.explain(model, table, series="s1", cutoff=cutoff, method="occlusion", n_references=4)
        stated = fc.forecast(weights, table, cutoff=cutoff).frame.filter(series_id="s1")
        np.testing.assert_allclose(told.forecast, stated["q50"].mean(), rtol=1e-4)


def test_a_backtest_takes_the_final_weights_where_they_have_seen_no_cutoff(
    model: Artifact, table: pl.DataFrame
) -> None:
    more = shop(length=150)
    panel = model.read(more.lazy()).panel
    settings = BacktestSettings(n_windows=2)
    score = {
        name: backtest({"m": Contender(each, panel)}, settings).scores
        for name, each in (("both", model), ("final", final(model)))
    }
    assert score["both"].equals(score["final"])
    seen = model.read(table.lazy()).panel
    with pytest.raises(DataError, match="trained on data up to"):
        backtest({"m": Contender(model, seen)}, BacktestSettings(n_windows=HELD_OUT + 1))


def test_both_weights_are_in_one_folder_and_one_digest(model: Artifact, table: pl.DataFrame, tmp_path: Path) -> None:
    digest = model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.digest() == digest == model.digest()
    assert digest != evaluated(model).digest()
    assert repr(loaded) == repr(model)
    assert fc.forecast(loaded, table).frame.equals(fc.forecast(model, table).frame)
    assert final(loaded).coupling is loaded.coupling
    weights = tmp_path / "model" / "final-model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"final-model.safetensors does not match"):
        load(tmp_path / "model")


def test_final_weights_that_have_seen_less_are_refused(model: Artifact, tmp_path: Path) -> None:
    wrong = replace(model, final=replace(final(model), trained_until=model.trained_until - 1))
    wrong.save(tmp_path)
    with pytest.raises(ArtifactError, match="the final fit has seen less"):
        load(tmp_path)


@pytest.mark.parametrize("score", [{}, {"state": "state"}])
def test_a_job_of_many_cutoffs_takes_the_weights_of_each(
    score: dict[str, Any], model: Artifact, table: pl.DataFrame, tmp_path: Path
) -> None:
    loaded = model.read(table.lazy())
    names = {"model": "m", "model_version": "1", "model_digest": "ab12"}

    def write(artifact: Artifact, folder: str, cutoffs: list[int]) -> list[dict[str, Any]]:
        path = tmp_path / folder
        settings = ScoreSettings.model_validate(
            {name: str(tmp_path / f"{folder}-{value}") for name, value in score.items()}
        )
        with locked(path):
            job = ScoreJob(artifact, loaded, settings, ScoreOutput(path=str(path)), names)
            return [job.write(cutoff).content for cutoff in cutoffs]

    last = loaded.panel.last_index
    contents = write(model, "both", [last - HORIZON, last, last - HORIZON - 1])
    until = [each.trained_until_timestamp.isoformat() for each in (model, final(model), model)]
    assert [content["trained_until"] for content in contents] == until
    alone = [*write(final(model), "final", [last])]
    assert contents[1]["files"] == alone[0]["files"]
    if not score:
        expected = write(evaluated(model), "evaluated", [last - HORIZON, last - HORIZON - 1])
        assert [contents[0]["files"], contents[2]["files"]] == [content["files"] for content in expected]


@pytest.mark.trains
def test_a_training_that_is_killed_in_its_final_fit_is_not_trained_again(
    table: pl.DataFrame, result: FitResult, tmp_path: Path
) -> None:
    settings = TRAINED | {"checkpoint": str(tmp_path)}

    def killed(_: float, text: str) -> None:
        if text.startswith("final fit"):
            raise RuntimeError(text)

    common: dict[str, Any] = {"horizon": HORIZON, "context_length": 28, "data": KNOWN, "model": SMALL}
    with pytest.raises(RuntimeError, match="final fit"):
        fc.train(table, fit=settings, progress=killed, **common)
    resumed = fc.train(table, fit=settings, **common)
    assert resumed.summary["resumed_at_step"] == resumed.summary["steps"]
    assert resumed.artifact.digest() == result.artifact.digest()
    assert not list(tmp_path.iterdir())


@pytest.mark.trains
def test_rows_that_would_ruin_the_final_fit_leave_the_evaluated_weights(
    table: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    late = pl.col("timestamp") > pl.col("timestamp").max() - timedelta(days=HELD_OUT * HORIZON)
    noise = pl.col("timestamp").dt.ordinal_day().cast(pl.Float64).pow(5)
    broken = table.with_columns(pl.when(late).then(noise).otherwise(pl.col("target")).alias("target"))
    made = train(broken, {"head": "normal"}).artifact
    assert made.final is None
    assert "the evaluated weights are kept" in caplog.text


def test_a_served_model_names_both_ends(model: Artifact, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from forecast.pyfunc import GatecastModel

    model.save(tmp_path)
    served = GatecastModel()
    served.load_context(SimpleNamespace(artifacts={"model": str(tmp_path)}))  # type: ignore[arg-type]
    assert served.lineage["trained_until"] == model.trained_until_timestamp.isoformat()
    assert served.lineage["final_until"] == final(model).trained_until_timestamp.isoformat()


# --- models that are made from others


GATED: dict[str, Any] = {
    "min_gain": 0.0,
    "min_windows_better": 0.0,
    "origins": 32,
    "gate_windows": 2,
    "report_windows": 1,
}
BY_GRADIENT: dict[str, Any] = {"steps": 5, "learning_rates": [0.005]}


def odd(table: pl.DataFrame) -> pl.DataFrame:
    """The table with a pattern in two series that the base does not have."""
    wave = 6 * (pl.col("timestamp").dt.ordinal_day() % 3 == 0).cast(pl.Float64)
    return table.with_columns(target=pl.col("target") + wave * pl.col("series_id").is_in(["s0", "s1"]))


def tuned_bits(artifact: Artifact) -> dict[str, torch.Tensor]:
    """All weights and changes of a model."""
    bank = artifact.bank.tensors if artifact.bank else {}
    return {**artifact.network.state_dict(), **{f"bank/{name}": values for name, values in bank.items()}}


def equal(one: Artifact, other: Artifact) -> bool:
    left, right = tuned_bits(one), tuned_bits(other)
    return left.keys() == right.keys() and all(torch.equal(values, right[name]) for name, values in left.items())


@pytest.mark.trains
@pytest.mark.parametrize("kind", ["head", "bias", "full", "global"])
@pytest.mark.parametrize("whole", [True, False])
def test_changes_that_are_kept_are_fitted_on_all_rows_beside_the_final_base(
    kind: str, whole: bool, model: Artifact, table: pl.DataFrame, tmp_path: Path
) -> None:
    base = model if whole else evaluated(model)
    settings = GATED | {"kind": kind} | ({} if kind == "head" else BY_GRADIENT)
    if kind == "global":
        settings |= {"steps": 25, "learning_rates": [1e-4]}
    rows = odd(table)
    one, other = (fc.finetune(base, each, **settings) for each in (rows, changed(rows)))
    assert one.decisions.equals(other.decisions)
    assert one.summary["series_tuned"] > 0
    assert evaluated(one.artifact).digest() == evaluated(other.artifact).digest()
    assert not equal(final(one.artifact), final(other.artifact))
    assert not equal(final(one.artifact), one.artifact)
    assert final(one.artifact).trained_until == one.artifact.trained_until + HELD_OUT * HORIZON
    if kind != "global":
        assert one.artifact.base().digest() == base.digest()
        assert final(one.artifact).bank.series_id == one.artifact.bank.series_id  # type: ignore[union-attr]
        assert same(final(one.artifact), base.latest)
    one.artifact.save(tmp_path)
    assert load(tmp_path).digest() == one.artifact.digest()
    assert fc.forecast(load(tmp_path), rows).frame.equals(fc.forecast(one.artifact, rows).frame)
    stored = {path.name for path in tmp_path.iterdir()}
    assert ("final-model.safetensors" in stored) == (whole or kind == "global")


def test_a_fine_tuning_goes_on_where_it_was_killed_and_can_do_without_a_final_fit(
    model: Artifact, table: pl.DataFrame, tmp_path: Path
) -> None:
    rows = odd(table)
    whole = fc.finetune(model, rows, **GATED).artifact
    assert fc.finetune(model, rows, **GATED, final=False).artifact.digest() == evaluated(whole).digest()
    panel = model.read(rows.lazy()).panel

    def killed(_: float, __: str) -> None:
        raise RuntimeError("killed")

    settings = FinetuneSettings.model_validate(GATED | {"checkpoint": str(tmp_path)})
    with pytest.raises(RuntimeError, match="killed"):
        finetune(model, panel, settings, progress=killed)
    assert list(tmp_path.iterdir())
    assert finetune(model, panel, settings).artifact.digest() == whole.digest()


def test_an_incremental_fine_tuning_goes_on_from_both(model: Artifact, table: pl.DataFrame) -> None:
    rows = odd(table)
    first = fc.finetune(model, rows, **GATED).artifact
    again = fc.finetune(first, rows, **GATED, incremental=True)
    assert set(again.decisions["reason"]) == {"unchanged"}
    assert equal(again.artifact, first)
    assert equal(final(again.artifact), final(first))
    early = rows.with_columns(target=pl.col("target") + (pl.col("series_id") == "s0") * (pl.col("promo") + 1))
    part = fc.finetune(first, early, **GATED, incremental=True).artifact
    kept = [name for name in first.bank.series_id if name != "s0"]  # type: ignore[union-attr]
    for now, before_ in ((part, first), (final(part), final(first))):
        assert now.bank
        assert before_.bank
        for name, values in now.bank.tensors.items():
            assert torch.equal(values[now.bank.rows(kept)], before_.bank.tensors[name][before_.bank.rows(kept)])


def test_a_calibration_is_of_unseen_errors_and_moves_both(model: Artifact, table: pl.DataFrame) -> None:
    one = fc.calibrate(model, table, n_windows=2, check_windows=0, step_size=7, holdout_windows=1).artifact
    other = fc.calibrate(model, changed(table), n_windows=2, check_windows=0, step_size=7, holdout_windows=1).artifact
    assert one.calibration is final(one).calibration
    assert one.digest() == other.digest()
    assert model.trained_until < one.trained_until < final(one).trained_until == final(model).trained_until
    plain = one.uncalibrated()
    assert plain.final is not None
    assert plain.final.calibration is None
    frames = [fc.forecast(each, table).frame for each in (one, final(one), model)]
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])


@pytest.mark.trains
def test_a_student_has_a_final_fit_of_its_own(model: Artifact, table: pl.DataFrame) -> None:
    config = TRAINED | {"max_steps": 10}
    made = fc.distil(model, table, n_windows=2, fit=config).artifact
    assert final(made).trained_until == final(model).trained_until
    assert made.trained_until == model.trained_until
    assert made.parent_digest == final(made).parent_digest == model.digest()


def test_series_that_are_taken_out_keep_the_final_base(model: Artifact, table: pl.DataFrame) -> None:
    rows = odd(table)
    tuned = fc.finetune(model, rows, **GATED).artifact
    names = tuned.bank.series_id  # type: ignore[union-attr]
    rest = drop_changes(tuned, names, key="series")
    frame = fc.forecast(rest, rows).frame.drop("source")
    assert frame.equals(fc.forecast(model, rows).frame.drop("source"))
    one = extract_series(tuned, names[0], key="series")
    stated = [fc.forecast(each, rows.filter(series_id=names[0])).frame for each in (one, tuned)]
    assert stated[0].equals(stated[1])
