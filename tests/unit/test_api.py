"""The program of the README, on the tables that users have."""

import importlib.util
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast import api
from forecast.artifact import Artifact
from forecast.errors import ConfigError, DataError

QUICK = {"model": {"hidden_size": 4}, "fit": {"max_steps": 3, "batch_size": 4, "origins": 8, "accelerator": "cpu"}}
CLOSED = {"model": {"hidden_size": 4, "smoothing": False, "init": None}, "fit": {"max_steps": 0}}


@pytest.fixture(scope="module")
def sales(table: Callable[..., pl.DataFrame], weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    return table(weekly(4, 150))


@pytest.mark.parametrize("kind", ["polars", "pandas", "arrow", "lazy"])
def test_the_program_of_the_readme_runs_on_any_frame(sales: pl.DataFrame, kind: str, tmp_path: Path) -> None:
    frame = {"polars": sales, "pandas": sales.to_pandas(), "arrow": sales.to_arrow(), "lazy": sales.lazy()}[kind]
    base = fc.train(frame, horizon=7, **(QUICK if kind == "polars" else CLOSED)).artifact
    tuned = fc.finetune(base, frame, gate_windows=2).artifact
    summary = fc.backtest(tuned, frame).summary
    made = fc.forecast(tuned, frame)

    assert summary["model"].to_list() == ["naive", "seasonal_naive", "pretrained", "fine_tuned"]
    assert summary["mase"].is_finite().all()
    assert base.data.freq == "1d"
    assert made.frame["series_id"].unique().sort().to_list() == ["s00", "s01", "s02", "s03"]
    assert made.frame.height == 4 * 7
    assert made.frame["timestamp"].min() == datetime(2024, 5, 30)
    assert made.rejects.is_empty()
    tuned.save(tmp_path)
    assert fc.forecast(fc.load(tmp_path), sales).frame.equals(made.frame)


def test_a_pretrained_model_is_backtested_beside_naive_forecasts_only(sales: pl.DataFrame) -> None:
    base = fc.train(sales, horizon=7, **QUICK).artifact
    assert fc.backtest(base, sales).summary["model"].to_list() == ["naive", "seasonal_naive", "pretrained"]


def test_a_cutoff_and_bad_rows_are_told(sales: pl.DataFrame) -> None:
    base = fc.train(sales, horizon=7, **QUICK).artifact
    bad = sales.with_columns(target=pl.when(pl.int_range(pl.len()) == 3).then(float("inf")).otherwise("target"))
    made = fc.forecast(base, bad, cutoff=datetime(2024, 3, 1))
    assert set(made.frame["cutoff"]) == {datetime(2024, 3, 1)}
    assert made.rejects["reason"].to_list() == ["target not finite"]


@pytest.fixture(scope="module")
def closed(sales: pl.DataFrame) -> Artifact:
    return fc.train(sales, horizon=7, **CLOSED).artifact


def with_late_row(sales: pl.DataFrame, days: int) -> pl.DataFrame:
    moment = sales["timestamp"].max() + timedelta(days=days)
    late = pl.DataFrame({"series_id": ["s00"], "timestamp": [moment], "target": [1.0]})
    return pl.concat([sales, late.cast(dict(sales.select(late.columns).schema))])


@pytest.mark.parametrize("days", [20, 365])
def test_a_row_dated_too_late_changes_no_answer(sales: pl.DataFrame, closed: Artifact, days: int) -> None:
    late = with_late_row(sales, days)
    made, right = fc.forecast(closed, late), fc.forecast(closed, sales)
    assert made.frame.equals(right.frame)
    assert made.rejects.select("series_id", "timestamp").rows() == [("s00", late["timestamp"].max())]
    again = fc.train(late, horizon=7, **CLOSED).artifact
    assert again.trained_until == closed.trained_until
    assert fc.forecast(again, sales).frame.equals(right.frame)
    assert fc.backtest(closed, late).summary.equals(fc.backtest(closed, sales).summary)
    tuned = [fc.finetune(closed, table, gate_windows=2).artifact for table in (late, sales)]
    assert tuned[0].trained_until == tuned[1].trained_until
    assert fc.explain(closed, late, series="s01").frame.equals(fc.explain(closed, sales, series="s01").frame)


def test_a_cutoff_at_a_late_row_is_obeyed(sales: pl.DataFrame, closed: Artifact, tmp_path: Path) -> None:
    late = with_late_row(sales, 20)
    moment = late["timestamp"].max()
    late.write_parquet(tmp_path / "late.parquet")
    for table in (late, tmp_path / "late.parquet"):
        made = fc.forecast(closed, table, cutoff=moment)
        assert made.frame["cutoff"].unique().to_list() == [moment]
        assert made.frame.filter(step=1)["timestamp"].unique().to_list() == [moment + timedelta(days=1)]
        assert made.rejects.is_empty()
    with pytest.raises(DataError, match="the panel ends at 2024-05-29 00:00:00, before the cutoff 2024-06-05"):
        fc.forecast(closed, late, cutoff=datetime(2024, 6, 5))
    assert set(fc.forecast(closed, late, cutoff=datetime(2024, 5, 1)).frame["cutoff"]) == {datetime(2024, 5, 1)}


def panel_at(moments: np.ndarray) -> pl.DataFrame:
    """Three series with a value at each of some days."""
    rows = pl.DataFrame({"timestamp": moments}).with_columns(pl.col("timestamp").cast(pl.Datetime("us")))
    return pl.concat(
        rows.with_columns(series_id=pl.lit(name), target=size + (pl.int_range(pl.len()) % 12).cast(pl.Float64))
        for size, name in enumerate("abc")
    )


DAYS = np.arange("2023-01-01", "2024-03-01", dtype="M8[D]")
MONTH_ENDS = np.busday_offset(np.arange("2019-02", "2024-03", dtype="M8[M]").astype("M8[D]"), -1, roll="forward")


@pytest.mark.parametrize(
    ("moments", "data", "stored", "ahead"),
    [
        (
            DAYS[np.is_busday(DAYS, weekmask="Sun Mon Tue Wed Thu")],
            {"freq": "1bd", "weekmask": "sun-thu"},
            ("1bd", 5),
            ["2024-03-03", "2024-03-04", "2024-03-05", "2024-03-06", "2024-03-07", "2024-03-10"],
        ),
        (
            DAYS[np.is_busday(DAYS, weekmask="1111110")],
            {"weekmask": ["mon", "tue", "wed", "thu", "fri", "sat"]},
            ("1bd", 6),
            ["2024-03-01", "2024-03-02", "2024-03-04", "2024-03-05", "2024-03-06", "2024-03-07"],
        ),
        (
            MONTH_ENDS,
            {},
            ("1bm", 12),
            ["2024-02-29", "2024-03-29", "2024-04-30", "2024-05-31", "2024-06-28", "2024-07-31"],
        ),
    ],
    ids=["Sunday to Thursday", "Monday to Saturday", "business month ends"],
)
def test_forecasts_are_on_the_business_days_of_the_table(
    moments: np.ndarray, data: dict[str, object], stored: tuple[str, int], ahead: list[str], tmp_path: Path
) -> None:
    frame = panel_at(moments)
    settings = {**data, "holidays": "US"}
    artifact = fc.train(frame, horizon=6, data=settings, fit={"max_steps": 0, "holdout_windows": 1}).artifact
    assert (artifact.data.freq, artifact.data.season_length) == stored
    artifact.save(tmp_path / "model")
    prepared = fc.prepare(frame, tmp_path / "panel", horizon=6, data=data)
    assert not np.isnan(prepared.panel.target).any()
    for table in (frame, tmp_path / "panel"):
        made = fc.forecast(fc.load(tmp_path / "model"), table)
        assert made.rejects.is_empty()
        assert made.frame.filter(series_id="a")["timestamp"].dt.date().cast(pl.String).to_list() == ahead


def test_periods_of_four_and_five_weeks_are_forecast_as_their_weeks_or_by_month() -> None:
    weeks = DAYS[0] - 7 * 52 + 7 * np.arange(156)
    periods = np.cumsum([0, *[4, 4, 5] * 12])
    with pytest.raises(DataError, match=r"4-4-5 calendar.*weekly rows \(data\.freq=1w\).*or date each period"):
        fc.train(panel_at(weeks[periods[:-1]]), horizon=3, fit={"max_steps": 0})
    quick = {"max_steps": 0, "holdout_windows": 1}
    weekly = fc.train(panel_at(weeks), horizon=13, data={"freq": "1w"}, fit=quick).artifact
    assert fc.forecast(weekly, panel_at(weeks)).frame.filter(series_id="a").height == 4 + 4 + 5
    months = np.arange("2020-01", "2023-01", dtype="M8[M]")
    assert fc.train(panel_at(months.astype("M8[D]")), horizon=3, fit=quick).artifact.data.freq == "1mo"


def test_mistakes_are_told_as_errors_of_ours(sales: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"did you mean model.hidden_size"):
        fc.train(sales, horizon=7, model={"hidden_sise": 4})
    with pytest.raises(DataError, match=r"target"):
        fc.train(sales.rename({"target": "sales"}), horizon=7, **QUICK)
    base = fc.train(sales, horizon=7, **QUICK).artifact
    with pytest.raises(ConfigError, match=r"min_gain"):
        fc.finetune(base, sales, min_gain=2)


@pytest.mark.parametrize("name", fc.__all__)
def test_no_module_has_the_name_of_a_function(name: str) -> None:
    assert importlib.util.find_spec(f"forecast.{name}") is None
    assert getattr(fc, name) is getattr(api, name)


def test_the_package_has_no_other_names() -> None:
    assert all(callable(getattr(fc, name)) for name in fc.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        _ = fc.nothing
