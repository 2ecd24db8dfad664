"""Values of covariates that training does not see, and what is known of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import load
from forecast.config import FitConfig, ModelConfig
from forecast.data.ingest.categories import with_codes, with_trained_categories
from forecast.data.ingest.loaded import Loaded
from forecast.training.result import FitResult
from forecast.training.split import training_data

LENGTH, HORIZON = 84, 7
# Held out: two horizons for backtests, and two that stop the training.
TRAINED = LENGTH - 4 * HORIZON
FIT: dict[str, Any] = {"holdout_windows": 2, "validation_windows": 2, "validation_every": 5, "learning_rate": 2e-2}
KINDS = {"past_covariates": ["sky"], "known_covariates": ["day"], "static_covariates": ["city"]}
MODEL = {"hidden_size": 6, "decoder_size": 4, "embedding_size": 2, "dropout": 0.0, "transform": "none", "skip": False}
# Without a fitted skip, so that training has something to gain within a few steps.
Table, Load = Callable[..., pl.DataFrame], Callable[..., Loaded]


@pytest.fixture(scope="module")
def rows(table: Table, weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    """Known, past and static values that are `new` from the first held-out step on, and a series of a new city."""
    series = weekly(4, LENGTH)
    series["s03"] = series["s03"][:10]
    late = {"s03": LENGTH - 10}
    columns: dict[str, dict[str, list[str]]] = {"sky": {}, "day": {}, "city": {}}
    for row, (name, values) in enumerate(series.items()):
        step = late.get(name, 0) + np.arange(len(values))
        columns["sky"][name] = [("fair", "wet")[k % 5 // 3] if k < TRAINED else "new" for k in step]
        columns["day"][name] = [("work", "rest")[k % 7 // 5] if k < TRAINED else "new" for k in step]
        columns["city"][name] = ["new" if name == "s03" else ("oslo", "rome")[row % 2]] * len(values)
    return table(series, late=late, **columns)


def trained(rows: object, **fit: Any) -> FitResult:
    quick = {"max_steps": 40, "batch_size": 8, "origins": 4, "accelerator": "cpu", "ema_decay": 0.5}
    data = {"freq": "1d", "calendar": False, **KINDS}
    return fc.train(rows, horizon=HORIZON, context_length=28, data=data, model=MODEL, fit={**quick, **FIT, **fit})


@pytest.fixture(scope="module")
def result(rows: pl.DataFrame) -> FitResult:
    found = trained(rows)
    assert found.summary["best_step"] != 0, "what the closed form says does not depend on covariates"
    return found


def ahead(rows: pl.DataFrame, **values: str) -> pl.DataFrame:
    """The table, with a horizon of known values behind it, and some columns of which every value is another."""
    last = rows.filter(pl.int_range(pl.len()).over("series_id") >= pl.len().over("series_id") - HORIZON)
    future = last.with_columns(pl.col("timestamp").dt.offset_by(f"{HORIZON}d"), target=pl.lit(None, pl.Float64))
    return pl.concat([rows, future]).with_columns(pl.lit(value).alias(name) for name, value in values.items())


def test_the_categories_of_a_model_are_those_that_training_sees(result: FitResult) -> None:
    assert result.artifact.categories == {"sky": ("fair", "wet"), "day": ("rest", "work"), "city": ("oslo", "rome")}


@pytest.mark.parametrize("column", ["sky", "day", "city"])
def test_a_value_that_only_held_out_steps_have_is_forecast_like_one_never_heard_of(
    result: FitResult, rows: pl.DataFrame, column: str
) -> None:
    new, other, known = (
        fc.forecast(result.artifact, ahead(rows, **{column: value})).frame
        for value in ("new", "never", result.artifact.categories[column][0])
    )
    assert new.equals(other)
    assert not new.equals(known)


def test_how_a_held_out_value_is_named_changes_no_model(result: FitResult, rows: pl.DataFrame) -> None:
    # First in their order, so that the codes of all others move.
    renamed = rows.with_columns(pl.col("sky", "day", "city").str.replace("^new$", "a"))
    assert trained(renamed).artifact.digest() == result.artifact.digest()


def test_a_prepared_panel_trains_the_same_model(result: FitResult, rows: pl.DataFrame, tmp_path: Path) -> None:
    data = {"freq": "1d", "calendar": False, **KINDS}
    fc.prepare(rows, tmp_path / "panel", horizon=HORIZON, data=data)
    assert trained(str(tmp_path / "panel")).artifact.digest() == result.artifact.digest()


def test_fine_tuning_and_backtests_read_it_as_unseen(result: FitResult, rows: pl.DataFrame) -> None:
    renamed = rows.with_columns(pl.col("sky", "day", "city").str.replace("^new$", "never"))
    tuned = [fc.finetune(result.artifact, table, min_gain=0, min_windows_better=0) for table in (rows, renamed)]
    assert tuned[0].summary["series_tuned"]
    assert tuned[0].decisions.equals(tuned[1].decisions)
    again: dict[str, Any] = {"n_windows": 1, "refit": "scratch", "refit_every": 1}
    scores = [
        fc.backtest(result.artifact, table, **again, fit={"max_steps": 5, "accelerator": "cpu", **FIT}).summary
        for table in (rows, renamed)
    ]
    assert scores[0].equals(scores[1])


def test_a_refit_that_sees_fewer_values_is_scored_with_its_own_codes(rows: pl.DataFrame) -> None:
    # Of the model, which has seen them all, the first value in order is one that the refit does not see.
    named = rows.with_columns(pl.col("sky", "day", "city").str.replace("^new$", "a"))
    artifact = trained(named, holdout_windows=0, validation_windows=1).artifact
    assert [values[0] for values in artifact.categories.values()] == ["a"] * 3
    fit = {"max_steps": 5, "accelerator": "cpu", "validation_windows": 1, "holdout_windows": 0, "learning_rate": 2e-2}
    cutoff = rows["timestamp"].min() + pl.duration(days=TRAINED + HORIZON - 1)  # type: ignore[operator]
    moment = pl.select(cutoff).item()
    made = fc.backtest(artifact, named, cutoffs=[moment], refit="scratch", refit_every=1, fit=fit)
    seen = named.filter(pl.col("timestamp") <= moment)
    model = artifact.model.model_dump(exclude_unset=True)
    data = artifact.data.model_dump(exclude_unset=True)
    alone = fc.train(seen, horizon=HORIZON, context_length=28, data=data, model=model, fit=fit).artifact
    assert "a" not in alone.categories["sky"]
    expected = fc.forecast(alone, named, cutoff=moment).frame.filter(pl.col("series_id") != "s03")
    found = made.scan("forecasts").filter(pl.col("series_id") != "s03", model="pretrained").collect()
    np.testing.assert_allclose(
        found.sort("series_id", "timestamp")["q50"], expected.sort("series_id", "timestamp")["q50"], rtol=1e-5
    )


def test_a_search_judges_with_the_codes_of_its_trials(rows: pl.DataFrame, tmp_path: Path) -> None:
    renamed = rows.with_columns(pl.col("sky", "day", "city").str.replace("^new$", "a"))
    values = []
    for number, table in enumerate((rows, renamed)):
        made = fc.tune(
            table,
            tmp_path / f"{number}",
            horizon=HORIZON,
            context_length=28,
            data={"freq": "1d", "calendar": False, **KINDS},
            model=MODEL,
            fit={"accelerator": "cpu", "batch_size": 8, "origins": 4, **FIT, "max_steps": 2, "validation_every": 2},
            n_trials=1,
        )
        values.append(made.values[0])
        assert "city" in made.artifact.categories
        assert made.artifact.categories["city"] == ("oslo", "rome")
    assert values[0] == values[1]


def test_a_covariate_of_which_training_sees_no_value_says_nothing(rows: pl.DataFrame, tmp_path: Path) -> None:
    blank = rows.with_columns(
        pl.when(pl.col(name) == "new").then(pl.lit("new")).otherwise(None).alias(name) for name in ("sky", "day")
    )
    artifact = trained(blank).artifact
    assert (artifact.categories["sky"], artifact.categories["day"]) == ((), ())
    artifact.save(tmp_path)
    stored = load(tmp_path)
    new, other = (fc.forecast(stored, ahead(blank, sky=value, day=value)).frame for value in ("new", "never"))
    assert new.equals(other)
    assert new["q50"].is_finite().all()


def test_the_last_step_that_is_trained_on_counts_and_the_next_one_does_not(rows: pl.DataFrame, loaded: Load) -> None:
    found = loaded(rows, HORIZON, **KINDS)
    for shift, kept in ((-1, False), (0, False), (1, True)):
        limits = np.array([TRAINED + shift, TRAINED - 9, TRAINED, 1])
        panel, categories = with_trained_categories(found.panel, found.categories, found.data, limits)
        assert [("new" in categories[name]) for name in ("sky", "day", "city")] == [kept, kept, False]
        codes = panel.known[0][np.isfinite(panel.known[0])]
        assert (codes == 0).any() != kept
        back = with_codes(panel, categories, found.categories, found.data)
        if kept:
            np.testing.assert_array_equal(back.known, found.panel.known)
            np.testing.assert_array_equal(back.past, found.panel.past)
    with_two = with_trained_categories(found.panel, found.categories, found.data, np.array([56, 56, 56, 2]))[1]
    assert "new" in with_two["city"]


@pytest.mark.parametrize("coded", ["sky", "day", "city"])
def test_text_stands_beside_numbers_of_any_kind(rows: pl.DataFrame, loaded: Load, coded: str) -> None:
    # A column of numbers before the text, and the other kinds all of numbers.
    number = pl.lit(7.0).alias("number")
    others = [name for name in ("sky", "day", "city") if name != coded]
    table = rows.with_columns(number, *((pl.col(name) == "new").cast(pl.Float64) for name in others))
    kinds = {kind: ["number", *names] if coded in names else names for kind, names in KINDS.items()}
    found = loaded(table, HORIZON, **kinds)
    limits = np.array([TRAINED, TRAINED, TRAINED, 0])
    panel, categories = with_trained_categories(found.panel, found.categories, found.data, limits)
    assert categories == {coded: tuple(value for value in found.categories[coded] if value != "new")}
    for kind, before, after in (
        ("past_covariates", found.panel.past, panel.past),
        ("known_covariates", found.panel.known, panel.known),
    ):
        numbers = [row for row, name in enumerate(kinds[kind]) if name != coded]
        np.testing.assert_array_equal(after[numbers], before[numbers])
    np.testing.assert_array_equal(panel.static_numbers, found.panel.static_numbers)


def test_the_panel_is_as_it_was_where_training_sees_all_values(rows: pl.DataFrame, loaded: Load) -> None:
    found = loaded(rows, HORIZON, **KINDS)
    panel, categories = with_trained_categories(found.panel, found.categories, found.data, found.panel.lengths)
    assert panel is found.panel
    assert categories == found.categories
    config = FitConfig(holdout_windows=2, validation_windows=2)
    assert training_data(found, HORIZON, ModelConfig(), config).categories["city"] == ("oslo", "rome")


def test_a_value_that_training_never_draws_is_forecast_like_one_never_heard_of(
    table: Table, weekly: Callable[..., dict[str, np.ndarray]]
) -> None:
    series = weekly(24, LENGTH)
    promo = {name: np.random.default_rng(row).integers(0, 2, LENGTH) for row, name in enumerate(series)}
    city = {name: [f"city {name}"] * LENGTH for name in series}
    rows = table({name: values + 12.0 * promo[name] for name, values in series.items()}, city=city, promo=promo)
    made = fc.train(
        rows,
        horizon=HORIZON,
        context_length=28,
        data={"freq": "1d", "calendar": False, "static_covariates": ["city"], "known_covariates": ["promo"]},
        model=MODEL,
        fit={"max_steps": 3, "batch_size": 2, "origins": 4, "accelerator": "cpu", "ema_decay": 0.0, **FIT}
        | {"validation_every": 1},
    )
    assert made.summary["best_step"] != 0
    assert len(made.artifact.categories["city"]) == 24
    forecasts = {
        value: fc.forecast(made.artifact, rows.with_columns(city=pl.lit(value))).frame["q50"]
        for value in ("never", *made.artifact.categories["city"])
    }
    different = [value for value, values in forecasts.items() if not values.equals(forecasts["never"])]
    assert 0 < len(different) < 24, "three batches of two windows, and ten of the final fit"
