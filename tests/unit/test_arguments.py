"""Wrong arguments of Python functions are errors of ours, as on the command line; results are shown in a line."""

import inspect
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

import forecast as fc
from forecast.artifact import Artifact
from forecast.errors import ArtifactError, ConfigError, DataError, GatecastError, OutputError
from forecast.training.result import FitResult

STORES = pl.DataFrame({"series_id": ["s00", "s01", "s02"], "state": ["a", "b", "b"]})
QUICK = {"max_steps": 0}


@pytest.fixture(scope="module")
def sales(table: Callable[..., pl.DataFrame], weekly: Callable[..., dict[str, np.ndarray]]) -> pl.DataFrame:
    return table(weekly(3, 90))


@pytest.fixture(scope="module")
def fitted(sales: pl.DataFrame) -> FitResult:
    return fc.train(sales, horizon=7, model={"hidden_size": 4, "smoothing": False, "init": None}, fit=QUICK)


@pytest.fixture(scope="module")
def artifact(fitted: FitResult) -> Artifact:
    return fitted.artifact


VERBS: dict[str, Callable[[Artifact, Any], object]] = {
    "train": lambda _, table: fc.train(table, horizon=7, fit=QUICK),
    "forecast": fc.forecast,
    "finetune": fc.finetune,
    "backtest": fc.backtest,
    "calibrate": fc.calibrate,
    "explain": lambda artifact, table: fc.explain(artifact, table, series="s00"),
    "sample_paths": lambda artifact, table: fc.sample_paths(artifact, table, n=3),
    "distil": lambda artifact, table: fc.distil(artifact, table, fit=QUICK),
}


@pytest.mark.parametrize("verb", VERBS)
def test_tables_that_can_not_be_read_are_data_errors(verb: str, artifact: Artifact, sales: pl.DataFrame) -> None:
    tables: dict[str, Any] = {
        "no column 'target'": sales.rename({"target": "sales"}),
        "the table has no rows": sales.head(0),
        "must hold numbers|holds 1 classes": sales.with_columns(target=pl.lit("x")),
        "must hold dates, datetimes": sales.with_columns(timestamp=pl.lit(True)),
        "found ndarray": np.zeros((3, 3)),
        "found NoneType": None,
        "no such file or folder": "nowhere.parquet",
    }
    for message, table in tables.items():
        with pytest.raises(DataError, match=message):
            VERBS[verb](artifact, table)


MODEL, TABLE = object(), object()
"""Places of the model and the table among arguments."""
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("train", (TABLE,), {"horizon": 0}, "window.horizon: must be greater than or equal to 1"),
    ("train", (TABLE,), {"horizon": "week"}, "window.horizon: must be a valid integer"),
    ("train", (TABLE,), {}, "fc.train: missing a required argument: 'horizon'"),
    ("train", (TABLE,), {"horizon": 7, "hidden_size": 3}, "hidden_size: .* group model: model={'hidden_size': "),
    ("train", (TABLE,), {"horizon": 7, "max_steps": 3}, "max_steps: .* group fit: fit={'max_steps'"),
    ("train", (TABLE,), {"horizon": 7, "fit": {"steps": 3}}, "fit.steps: unknown key; did you mean fit.max_steps"),
    ("train", (TABLE,), {"horizon": 7, "fit": 3}, "fit: must be a dictionary"),
    ("train", (TABLE,), {"horizon": 7, "data": [("freq", "1d")]}, "data: must be a dictionary"),
    ("train", (TABLE,), {"horizon": 7, "known": TABLE}, "known: there are no known covariates to read"),
    ("prepare", (TABLE, "panel"), {"horizon": 0}, "horizon: must be greater than or equal to 1"),
    ("prepare", (TABLE, None), {"horizon": 7}, "folder: must be the path of a folder"),
    ("prepare", (TABLE, "panel"), {"horizon": 7, "data": 3}, "data: must be a dictionary"),
    ("tune", (TABLE, 3), {"horizon": 7}, "folder: must be the path of a folder"),
    ("tune", (TABLE, "search"), {"horizon": 7, "n_trials": 0}, "n_trials: must be greater"),
    ("forecast", (MODEL, TABLE), {"cutof": "2024-03-01"}, "fc.forecast: cutof: unknown argument; did you mean cutoff"),
    ("forecast", (MODEL, TABLE), {"static": TABLE}, "static: there are no static covariates"),
    ("forecast", (MODEL,), {}, "fc.forecast: missing a required argument: 'table'"),
    ("forecast", (MODEL, TABLE, TABLE), {}, "fc.forecast: too many positional arguments"),
    ("forecast", (TABLE, MODEL), {}, "artifact: expected a model, found DataFrame; .* comes before the table"),
    ("forecast", ("model", TABLE), {}, "artifact: .* found str; fc.load"),
    ("backtest", (None, TABLE), {}, "artifact: expected a model, found NoneType"),
    ("finetune", (MODEL, TABLE), {"foo": 3}, "foo: unknown key; there are: kind"),
    ("finetune", (MODEL, TABLE), {"engine": "spark"}, "engine.kind: must be 'local', 'processes' or 'ray'"),
    (
        "calibrate",
        (MODEL, TABLE),
        {"engine": {"kind": "local", "workers": 2}},
        "workers are those of processes and ray",
    ),
    ("tune", (TABLE, "search"), {"horizon": 7, "engine": 3}, "engine: must be a dictionary"),
    ("calibrate", (MODEL, TABLE), {"method": "magic"}, "method: must be 'split' or 'adaptive'"),
    ("distil", (MODEL, TABLE), {"fit": 3}, "fit: must be a dictionary"),
    ("explain", (MODEL, TABLE), {}, "fc.explain: missing a required argument: 'series'"),
    ("sample_paths", (MODEL, TABLE), {"n": "3"}, "n: must be a whole number, 2 or more"),
    ("sample_paths", (MODEL, TABLE), {"n": 2.5}, "n: must be a whole number, 2 or more"),
    ("attention", (MODEL, TABLE), {}, "model.attention: this model was trained without"),
    ("load", (None,), {}, "folder: must be the path of a folder"),
    ("reconcile", (TABLE, STORES), {}, "fc.reconcile: missing a required argument: 'by'"),
    ("aggregate", (TABLE, STORES), {"by": ["city"]}, "reconcile.by: city: no such column"),
    ("aggregate", (TABLE, STORES), {"by": 3}, "by: must be a list"),
]


@pytest.mark.parametrize(("verb", "args", "settings", "message"), WRONG)
def test_wrong_arguments_are_config_errors(
    verb: str,
    args: tuple[Any, ...],
    settings: dict[str, Any],
    message: str,
    artifact: Artifact,
    sales: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def filled(value: Any) -> Any:
        return artifact if value is MODEL else sales if value is TABLE else value

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        getattr(fc, verb)(*map(filled, args), **{key: filled(value) for key, value in settings.items()})
    assert not list(tmp_path.iterdir())


def test_other_mistakes_have_their_own_kind(artifact: Artifact, sales: pl.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="no folder that a model can be saved into"):
        artifact.save(tmp_path / "file")
    with pytest.raises(ArtifactError, match="not a gatecast model"):
        fc.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no series 'zz' among the 3"):
        fc.explain(artifact, sales, series="zz")
    for table, message in {
        "no column target": sales.drop("target"),
        "must hold numbers": sales.with_columns(target=pl.lit("x")),
        "3 series have two rows of one timestamp: s00, s01, s02": pl.concat([sales, sales]),
    }.items():
        with pytest.raises(DataError, match=table):
            fc.aggregate(message, STORES, by=["state"])
    made, by = fc.forecast(artifact, sales), ["state"]
    periods = sales.to_pandas().assign(timestamp=lambda frame: frame["timestamp"].dt.to_period("D"))
    with pytest.raises(DataError, match=r"reconcile.actuals: its timestamps are of another kind"):
        fc.reconcile(made, STORES, by=by, past=made, actuals=periods)
    with pytest.raises(DataError, match="the table of the hierarchy has names that can't be read"):
        fc.reconcile(made, STORES.with_columns(state=pl.lit(b"\xff")), by=by)
    for table, kind in (
        (pl.DataFrame, "the class DataFrame itself"),
        (sales.to_pandas().groupby("series_id"), "found DataFrameG"),
    ):
        with pytest.raises(DataError, match=kind):
            fc.forecast(artifact, table)
    with pytest.raises(DataError, match="forecasts: no column cutoff, step, source"):
        fc.reconcile(sales, STORES, by=["state"])


def test_a_result_is_not_a_model_and_the_message_says_which_part_is(fitted: FitResult, sales: pl.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"found FitResult; pass the .artifact of this FitResult"):
        fc.forecast(fitted, sales)  # type: ignore[arg-type]


CUTOFFS = [
    "2024-03-01",
    "2024-03-01T00:00",
    " 2024-03-01 ",
    date(2024, 3, 1),
    datetime(2024, 3, 1),
    pd.Timestamp("2024-03-01"),
    np.datetime64("2024-03-01"),
    np.datetime64("2024-03-01T00:00:00", "ns"),
    pl.Series([datetime(2024, 3, 1)])[0],
]


def test_a_cutoff_is_text_a_date_or_a_time(artifact: Artifact, sales: pl.DataFrame) -> None:
    expected = fc.forecast(artifact, sales, cutoff=datetime(2024, 3, 1)).frame
    assert set(expected["cutoff"]) == {datetime(2024, 3, 1)}
    paths = fc.sample_paths(artifact, sales, n=2, cutoff=datetime(2024, 3, 1))
    for cutoff in CUTOFFS:
        assert fc.forecast(artifact, sales, cutoff=cutoff).frame.equals(expected)
    for cutoff in CUTOFFS[::3]:
        assert fc.sample_paths(artifact, sales, n=2, cutoff=cutoff).equals(paths)
        explained = fc.explain(artifact, sales, series="s00", cutoff=cutoff).frame
        assert set(explained["cutoff"]) == {datetime(2024, 3, 1)}


@pytest.mark.parametrize(
    "wrong", ["soon", "", 5, 1.5, True, pd.NaT, np.datetime64("NaT"), timedelta(1), ["2024-03-01"]]
)
def test_what_is_no_moment_is_a_config_error(artifact: Artifact, sales: pl.DataFrame, wrong: Any) -> None:
    for call in (fc.forecast, fc.sample_paths, fc.attention):
        with pytest.raises(ConfigError, match=r"^cutoff: "):
            call(artifact, sales, cutoff=wrong)


def test_a_cutoff_with_a_zone_is_refused_where_the_panel_has_none(artifact: Artifact, sales: pl.DataFrame) -> None:
    for cutoff in (
        datetime(2024, 3, 1, tzinfo=UTC),
        "2024-03-01T00:00+01:00",
        pd.Timestamp("2024-03-01", tz="Asia/Tokyo"),
    ):
        with pytest.raises(ConfigError, match="has a time zone and the panel has none"):
            fc.forecast(artifact, sales, cutoff=cutoff)


def test_cutoffs_of_backtests_are_moments_of_any_kind(artifact: Artifact, sales: pl.DataFrame) -> None:
    expected = fc.backtest(artifact, sales, cutoffs=["2024-03-23"]).summary
    for cutoffs in (
        pd.DatetimeIndex(["2024-03-23"]),
        [date(2024, 3, 23)],
        np.array(["2024-03-23"], "M8[D]"),
        "2024-03-23..2024-03-23/1d",
    ):
        assert fc.backtest(artifact, sales, cutoffs=cutoffs).summary.equals(expected)
    with pytest.raises(ConfigError, match="cutoffs: "):
        fc.backtest(artifact, sales, cutoffs=["soon"])


def test_a_moment_in_another_zone_is_the_same_moment(table: Callable[..., pl.DataFrame], weekly: Any) -> None:
    zoned = table(weekly(2, 60), time_zone="Europe/Berlin").with_columns(
        pl.col("timestamp").dt.replace_time_zone(None).dt.replace_time_zone("Europe/Berlin")
    )
    model = fc.train(zoned, horizon=3, fit=QUICK).artifact
    moments = [
        "2024-02-20T01:00",
        datetime(2024, 2, 20, 1, tzinfo=timezone(timedelta(hours=1))),
        pd.Timestamp("2024-02-20", tz="UTC"),
    ]
    frames = [fc.forecast(model, zoned, cutoff=moment).frame for moment in moments]
    assert all(frame.equals(frames[0]) for frame in frames)


def test_the_package_lists_its_functions_and_each_says_what_it_takes_and_raises() -> None:
    assert set(fc.__all__) <= set(dir(fc))
    for name in fc.__all__:
        function = getattr(fc, name)
        about = inspect.getdoc(function) or ""
        assert "Error" in about, name
        hints = inspect.signature(function)
        assert hints.return_annotation is not inspect.Signature.empty
        for parameter in hints.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty
            assert parameter.name in about or "as of" in about, (name, parameter.name)


def test_results_are_shown_in_a_line(
    fitted: FitResult, artifact: Artifact, sales: pl.DataFrame, tmp_path: Path
) -> None:
    bad = sales.with_columns(target=pl.when(pl.int_range(pl.len()) == 3).then(float("inf")).otherwise("target"))
    made = fc.forecast(artifact, bad)
    tuned, prepared = fc.finetune(artifact, sales, gate_windows=2), fc.prepare(sales, tmp_path / "panel", horizon=7)
    shown = {
        "Artifact(pretrained, every 1d, context 35, horizon 7, trained until 2024-03-23 00:00:00, final fit": artifact,
        "FitResult(val/loss ": fitted,
        "Forecasts(3 series from 2024-03-30 00:00:00, 21 rows, 1 rejects: 1 target not finite)": made,
        "FinetuneResult(": tuned,
        "BacktestResult(mase: naive ": fc.backtest(artifact, sales, n_windows=1),
        "Explanation(s00 from 2024-03-30": fc.explain(artifact, sales, series="s00"),
        "Reconciled(6 nodes, 3 series; sums at most ": fc.reconcile(made, STORES, by=["state"]),
        "Loaded(Panel(3 series, 270 steps every 1d, 2024-01-01 00:00:00 to 2024-03-30 00:00:00), 0": prepared,
    }
    for beginning, result in shown.items():
        text = repr(result)
        assert text.startswith(beginning)
        assert len(text) < 400
        assert "\n" not in text
        assert not any(word in text for word in ("tensor", "shape:", "array(", "object at"))
        assert not hasattr(result, "_repr_html_")
    nothing = fc.forecast(artifact, sales.filter(series_id="s00"), cutoff="2024-03-30", max_age=0)
    assert repr(nothing).startswith("Forecasts(1 series")
    empty = type(made)(made.frame.head(0), made.rejects.head(0))
    assert repr(empty) == "Forecasts(0 series, 0 rejects)"


def test_all_errors_of_arguments_are_ours() -> None:
    assert issubclass(ConfigError, GatecastError)
    with pytest.raises(GatecastError):
        fc.load(3)  # type: ignore[arg-type]
