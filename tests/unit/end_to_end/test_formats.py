"""Whoever comes from another library trains and forecasts with the tables as they are, and gets the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.errors import DataError

HORIZON, STEPS = 3, 60
DAYS = pd.date_range("2024-01-01", periods=STEPS + HORIZON)
PRICE = np.random.default_rng(0).normal(size=(2, STEPS + HORIZON)).round(2)
LOADS = {
    name: (10 + np.sin(np.arange(STEPS) * 2 * np.pi / 7 + k) + 0.5 * PRICE[k, :STEPS]).round(3)
    for k, name in enumerate("ab")
}
DATA = {"freq": "1d"}
QUICK: dict[str, Any] = {
    "context_length": 14,
    "model": {
        "hidden_size": 4,
        "decoder_size": 4,
        "transform": "none",
        "anchor": "level",
        "smoothing": False,
        "init": None,
    },
    "fit": {"max_steps": 0, "holdout_windows": 0, "validation_windows": 1, "accelerator": "cpu"},
}


def forecasts(table: object, data: dict[str, Any], **tables: object) -> pl.DataFrame:
    model = fc.train(table, horizon=HORIZON, data=DATA | data, **QUICK, **tables).artifact
    made = fc.forecast(model, table, **tables)
    assert not made.rejects.height
    assert made.frame["series_id"].unique().sort().to_list() == [*"ab"]
    return made.frame


def long(columns: tuple[str, str, str]) -> pd.DataFrame:
    parts = [pd.DataFrame(dict(zip(columns, (name, DAYS[:STEPS], LOADS[name]), strict=True))) for name in LOADS]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def plain() -> pl.DataFrame:
    """What our own columns give, without covariates."""
    return forecasts(long(("series_id", "timestamp", "target")), {})


@pytest.fixture(scope="module")
def with_prices() -> pl.DataFrame:
    """The same with a known covariate and a static one, in rows with a null target."""
    table = pl.concat(
        pl.DataFrame(
            {
                "series_id": name,
                "timestamp": pl.Series(DAYS.to_numpy()).cast(pl.Datetime("us")),
                "target": [*LOADS[name].tolist(), *[None] * HORIZON],
                "price": PRICE[k],
                "region": str(k),
            }
        )
        for k, name in enumerate(LOADS)
    )
    return forecasts(table, {"known_covariates": ["price"], "static_covariates": ["region"]})


def lines(folder: Path, **fields: Callable[[int], Any]) -> Path:
    entries = [
        {"item_id": name, "start": "2024-01-01", "target": values.tolist()}
        | {field: make(k) for field, make in fields.items()}
        for k, (name, values) in enumerate(LOADS.items())
    ]
    path = folder / "data.json"
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def test_a_long_frame_of_neuralforecast(plain: pl.DataFrame) -> None:
    assert_frame_equal(forecasts(long(("unique_id", "ds", "y")), {}), plain)


def test_future_and_static_frames_of_neuralforecast(with_prices: pl.DataFrame) -> None:
    frame = long(("unique_id", "ds", "y"))
    prices = [pd.DataFrame({"unique_id": name, "ds": DAYS, "price": PRICE[k]}) for k, name in enumerate(LOADS)]
    found = forecasts(
        frame,
        {"known_covariates": ["price"], "static_covariates": ["region"]},
        known=pd.concat(prices, ignore_index=True),
        static=pd.DataFrame({"unique_id": [*LOADS], "region": ["0", "1"]}),
    )
    assert_frame_equal(found, with_prices)


def test_a_data_set_and_a_long_frame_of_gluonts(plain: pl.DataFrame, tmp_path: Path) -> None:
    assert_frame_equal(forecasts(lines(tmp_path), {}), plain)
    frame = long(("item_id", "timestamp", "target")).set_index("timestamp").rename_axis(None)
    assert_frame_equal(forecasts(frame, {}), plain)


def test_covariates_of_gluonts(with_prices: pl.DataFrame, tmp_path: Path) -> None:
    path = lines(tmp_path, feat_dynamic_real=lambda k: [PRICE[k].tolist()], feat_static_cat=lambda k: [k])
    covariates = {"known_covariates": ["feat_dynamic_real_0"], "static_covariates": ["feat_static_cat_0"]}
    assert_frame_equal(forecasts(path, covariates), with_prices)


def test_a_frame_of_darts(plain: pl.DataFrame) -> None:
    frame = pd.DataFrame(LOADS, index=DAYS[:STEPS].rename("time"))
    assert_frame_equal(forecasts(frame.rename_axis(columns="component"), {"layout": "wide"}), plain)


def test_a_model_reads_the_names_that_it_was_trained_with() -> None:
    frame = long(("unique_id", "ds", "y"))
    model = fc.train(frame, horizon=HORIZON, data=DATA, **QUICK).artifact
    assert model.data.columns.model_dump() == {"series_id": "unique_id", "timestamp": "ds", "target": "y"}
    with pytest.raises(DataError, match=r"no column 'unique_id' \(data\.columns\.series_id of the model\)"):
        fc.forecast(model, long(("series_id", "timestamp", "target")))


def test_a_prepared_panel_keeps_the_names(plain: pl.DataFrame, tmp_path: Path) -> None:
    fc.prepare(long(("unique_id", "ds", "y")), tmp_path, horizon=HORIZON, data=DATA)
    model = fc.train(tmp_path, horizon=HORIZON, data=DATA, **QUICK).artifact
    assert model.data.columns.series_id == "unique_id"
    assert_frame_equal(fc.forecast(model, tmp_path).frame, plain)
