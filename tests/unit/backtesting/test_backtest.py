"""Rolling origins on tiny panels."""

import importlib
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from pyarrow import parquet

from forecast.artifact import Artifact
from forecast.backtesting.backtest import backtest
from forecast.backtesting.cutoffs import rolling_cutoffs
from forecast.backtesting.result import BacktestResult, Contender
from forecast.config import BacktestSettings, FinetuneSettings, load
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError, DataError
from forecast.finetuning.finetune import finetune
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.training.fit import fit
from forecast.training.result import FitResult

LEVELS = [k / 10 for k in range(1, 10)]
QUANTILES = [f"q{k}0" for k in range(1, 10)]
SETTINGS = BacktestSettings(n_windows=4)
WEEK = timedelta(days=7)
Reader = Callable[[pl.DataFrame], Loaded]


@pytest.fixture(scope="module")
def read_weekly(loaded: Callable[..., Loaded]) -> Reader:
    """Read a table as `weekly_loaded` is read."""
    columns = {
        "past_covariates": ["rain"],
        "known_covariates": ["promo"],
        "static_covariates": ["city", "size"],
    }
    return lambda table: loaded(table, 7, **columns)


def changed(where: pl.Expr) -> list[pl.Expr]:
    """Other values of what is only known once it has happened."""
    columns = pl.col("target", "rain")
    return [pl.when(where).then(columns * -3 + 7).otherwise(columns)]


@pytest.fixture(scope="module")
def result(trained: FitResult, weekly_loaded: Loaded) -> BacktestResult:
    return backtest({"pretrained": Contender(trained.artifact, weekly_loaded.panel)}, SETTINGS)


def test_cutoffs_are_the_latest_with_a_full_horizon(weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    first = int(panel.start.min())
    found = rolling_cutoffs(panel, horizon=7, settings=SETTINGS, trained_until=0)
    assert [cutoff - first for cutoff in found] == [131, 138, 145, 152]
    daily = BacktestSettings(n_windows=3, step_size=1)
    found = rolling_cutoffs(panel, horizon=7, settings=daily, trained_until=0)
    assert [cutoff - first for cutoff in found] == [150, 151, 152]


def test_cutoffs_that_training_has_seen_are_refused_by_name(trained: FitResult, weekly_loaded: Loaded) -> None:
    contenders = {"pretrained": Contender(trained.artifact, weekly_loaded.panel)}
    with pytest.raises(DataError) as caught:
        backtest(contenders, BacktestSettings(n_windows=6))
    message = str(caught.value)
    assert "trained on data up to 2024-05-11" in message
    assert "2 of 6 cutoffs" in message
    assert "2024-04-27 00:00:00, 2024-05-04 00:00:00)" in message
    assert "lower backtest.n_windows" in message
    with pytest.raises(DataError, match=r"60 windows 7 steps apart begin before the panel"):
        backtest(contenders, BacktestSettings(n_windows=60))


def test_scores_are_the_metrics_of_the_forecasts(result: BacktestResult, weekly_loaded: Loaded) -> None:
    history = weekly_loaded.panel.frame()
    for row in result.scores.iter_rows(named=True):
        key = pl.col("series_id") == row["series_id"]
        part = result.forecasts.filter(key, pl.col("cutoff") == row["cutoff"], pl.col("model") == row["model"])
        assert part["step"].to_list() == [*range(1, 8)]
        y, q = part["target"].to_numpy(), part.select(QUANTILES).to_numpy()
        seen = history.filter(key, pl.col("timestamp") <= row["cutoff"])["target"].cast(pl.Float64).to_numpy()
        scale = np.nanmean(np.abs(seen[7:] - seen[:-7]))
        error = y[:, None] - q
        pinball = 2 * np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error).mean(1)
        expected = {
            "mase": np.abs(y - q[:, 4]).mean() / scale,
            "smape": (200 * np.abs(y - q[:, 4]) / (np.abs(y) + np.abs(q[:, 4]))).mean(),
            "pinball": pinball.sum(),
            "covered": ((y >= q[:, 0]) & (y <= q[:, 8])).sum(),
            "n_steps": 7,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-6), name


def test_the_summary_is_of_the_scores_and_the_model_beats_seasonal_naive(result: BacktestResult) -> None:
    summary = {row["model"]: row for row in result.summary.iter_rows(named=True)}
    assert list(summary) == ["naive", "seasonal_naive", "pretrained"]
    for model, row in summary.items():
        part = result.scores.filter(pl.col("model") == model)
        assert row["mase"] == pytest.approx(part["mase"].mean())
        assert row["wql"] == pytest.approx(part["pinball"].sum() / part["abs_target"].sum())
        assert row["n_windows"] == len(part) == 32
    assert summary["pretrained"]["mase"] < summary["seasonal_naive"]["mase"]
    assert summary["pretrained"]["wql"] < summary["seasonal_naive"]["wql"]


def test_forecasts_are_those_of_scoring_at_the_same_cutoff(
    result: BacktestResult, trained: FitResult, weekly_loaded: Loaded
) -> None:
    cutoffs = rolling_cutoffs(weekly_loaded.panel, horizon=7, settings=SETTINGS, trained_until=0)
    keys = ["series_id", "timestamp", "cutoff", "step"]
    for cutoff in cutoffs:
        made = forecast(trained.artifact, weekly_loaded.panel, cutoff=cutoff).frame
        ours = result.forecasts.filter(pl.col("model") == "pretrained").join(made, on=keys, suffix="_scored")
        assert len(ours) == 56
        np.testing.assert_allclose(ours.select(QUANTILES), ours.select(f"{q}_scored" for q in QUANTILES), rtol=1e-5)


def ordered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort(name for name in ("model", "series_id", "cutoff", "step", "segment", "value") if name in frame)


def test_blocks_of_windows_change_no_score(
    result: BacktestResult, trained: FitResult, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forecast.backtesting.plan._WINDOWS", 5)
    blocks = backtest({"pretrained": Contender(trained.artifact, weekly_loaded.panel)}, SETTINGS)
    assert parquet.read_metadata(blocks.folder / "forecasts.parquet").num_row_groups == 1
    assert blocks.scores["model"].rle().len() == 8 * 3
    for name in ("scores", "forecasts", "summary", "skipped"):
        # Batches of another size round otherwise.
        ours, theirs = (ordered(getattr(found, name)) for found in (blocks, result))
        assert_frame_equal(ours, theirs, rel_tol=1e-5, abs_tol=1e-5)


def test_series_without_a_scored_window_are_named(
    train: Callable[..., FitResult], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(0)
    found = loaded(table({"a": rng.normal(size=160), "gone": rng.normal(size=50), "new": [1.0]}, late={"new": 159}), 7)
    made = backtest({"m": Contender(train(found).artifact, found.panel)}, SETTINGS)
    assert made.skipped["series_id"].to_list() == ["gone", "new"]
    assert set(made.scores["series_id"]) == {"a"}


def test_models_that_forecast_something_else_are_not_compared(
    trained: FitResult, train: Callable[..., FitResult], weekly_loaded: Loaded
) -> None:
    panel = weekly_loaded.panel
    other = train(weekly_loaded, model={"quantile_levels": (0.2, 0.5, 0.8)}).artifact
    contenders = {"a": Contender(trained.artifact, panel), "b": Contender(other, panel)}
    with pytest.raises(ConfigError, match=r"b forecasts quantiles 0.2, 0.5, 0.8 of 7 steps .* can't be compared"):
        backtest(contenders, SETTINGS)
    finer = tuple(level + 0.01 if level != 0.5 else level for level in LEVELS)
    same_count = train(weekly_loaded, model={"quantile_levels": finer}).artifact
    with pytest.raises(ConfigError, match=r"can't be compared"):
        backtest({"a": Contender(trained.artifact, panel), "b": Contender(same_count, panel)}, SETTINGS)


# --- cutoffs and settings


def judged(found: FitResult, loaded: Loaded, **settings: Any) -> BacktestResult:
    return backtest({"pretrained": Contender(found.artifact, loaded.panel)}, load(BacktestSettings, settings))


def test_cutoffs_are_given_as_timestamps(trained: FitResult, weekly_loaded: Loaded) -> None:
    given = ["2024-05-23", "2024-05-12"]
    found = judged(trained, weekly_loaded, cutoffs=given)
    assert found.cutoffs.dt.strftime("%F").to_list() == sorted(given)
    for wrong, message in {
        "2024-05-12T06:00": r"backtest.cutoffs: 1 of 1 are no timestamps of the panel, .*: 2024-05-12 06:00:00",
        "2024-06-08": r"backtest.cutoffs: 1 of 1 have no history or no full horizon of 7 steps .* to 2024-06-01",
        "2023-12-31": r"backtest.cutoffs: 1 of 1 have no history",
    }.items():
        with pytest.raises(ConfigError, match=message):
            judged(trained, weekly_loaded, cutoffs=[wrong])
    with pytest.raises(ConfigError, match=r"backtest.cutoffs: must not repeat"):
        judged(trained, weekly_loaded, cutoffs=["2024-05-12", "2024-05-12"])
    with pytest.raises(DataError, match=r"trained on data up to .* give later backtest.cutoffs"):
        judged(trained, weekly_loaded, cutoffs=["2024-04-12"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cutoffs": ["2024-05-12"], "n_windows": 3}, "n_windows: cutoffs are given"),
        ({"cutoffs": ["2024-05-12"], "step_size": 3}, "step_size: cutoffs are given"),
        ({"window": "sliding"}, "window_length: missing; window=sliding needs"),
        ({"window_length": 90}, "window_length: is for window=sliding"),
        ({"refit_every": 2}, "refit_every: refit=never has no refits"),
        ({"fit": {"max_steps": 9}}, r"fit: is for refit=scratch \(given: refit=never\)"),
        ({"refit": "finetune", "fit": {"max_steps": 9}}, r"fit: is for refit=scratch \(given: refit=finetune\)"),
        ({"finetune": {"kind": "bias"}}, "finetune: is for refit=finetune and refit=scratch"),
        ({"refit": "scratch", "fit": {"checkpoint": "x"}}, "fit: checkpoint can't be gone on from"),
        ({"refit": "scratch", "one_pass": True}, "one_pass: needs refit=never and window=expanding"),
        ({"baselines": ["naive"]}, "baselines: must hold seasonal_naive"),
        ({"segments": ["city", "city"]}, "segments: must not repeat"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(BacktestSettings, settings)


def test_settings_that_do_not_fit_the_model_are_refused(
    trained: FitResult, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"backtest.window_length: 34 steps are less than the context \(28\)"):
        judged(trained, weekly_loaded, window="sliding", window_length=34)
    with pytest.raises(ConfigError, match=r"backtest.segments: town unknown; there are: city, size, length"):
        judged(trained, weekly_loaded, segments=["town"])
    monkeypatch.setattr("forecast.backtesting.baselines.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"auto_ets need: pip install 'gatecast\[baselines\]'"):
        judged(trained, weekly_loaded, baselines=["seasonal_naive", "auto_ets"])


# --- windows, refits, one pass


def test_a_sliding_window_hides_what_lies_before_it(
    result: BacktestResult, trained: FitResult, weekly_table: pl.DataFrame, weekly_loaded: Loaded, read_weekly: Reader
) -> None:
    settings = {"window": "sliding", "window_length": 40, "n_windows": 1}
    found = judged(trained, weekly_loaded, **settings)
    before = pl.col("timestamp") <= pl.lit(found.cutoffs[0]).dt.offset_by("-40d")
    other = judged(trained, read_weekly(weekly_table.with_columns(changed(before))), **settings)
    assert_frame_equal(other.forecasts, found.forecasts)
    last = result.forecasts.filter(pl.col("cutoff") == found.cutoffs[0])
    model, naive = pl.col("model") == "pretrained", pl.col("model") == "seasonal_naive"
    assert_frame_equal(ordered(found.forecasts.filter(model)), ordered(last.filter(model)), rel_tol=1e-5, abs_tol=1e-5)
    assert not ordered(found.forecasts.filter(naive)).equals(ordered(last.filter(naive)))


@pytest.mark.parametrize(
    "settings",
    [
        {"refit": "scratch", "fit": {"max_steps": 2, "accelerator": "cpu"}},
        {"refit": "scratch", "fit": {"max_steps": 0}, "window": "sliding", "window_length": 80},
        {"refit": "finetune", "finetune": {"min_gain": 0.0, "min_windows_better": 0.0, "gate_windows": 2}},
    ],
    ids=["scratch", "sliding", "finetune"],
)
def test_a_refit_has_seen_nothing_behind_its_cutoff(
    trained: FitResult,
    weekly_table: pl.DataFrame,
    weekly_loaded: Loaded,
    read_weekly: Reader,
    settings: dict[str, Any],
) -> None:
    """What changes behind the cutoff changes no forecast; what changes before it does."""
    settings |= {"n_windows": 1}
    found = judged(trained, weekly_loaded, **settings)
    (cutoff,) = found.cutoffs
    later = read_weekly(weekly_table.with_columns(changed(pl.col("timestamp") > cutoff)))
    made = judged(trained, later, **settings)
    assert not made.forecasts["target"].equals(found.forecasts["target"])
    assert_frame_equal(made.forecasts.drop("target"), found.forecasts.drop("target"))
    earlier = read_weekly(weekly_table.with_columns(changed(pl.col("timestamp").is_between(cutoff - WEEK, cutoff))))
    own = pl.col("model") == ("fine_tuned" if settings["refit"] == "finetune" else "pretrained")
    before = judged(trained, earlier, **settings).forecasts.filter(own)
    assert not before["q50"].equals(found.forecasts.filter(own)["q50"])


def test_refits_are_as_many_as_asked_for(
    trained: FitResult, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("forecast.backtesting.refit")
    cutoffs: list[int] = []

    def counted(panel: Panel, **given: Any) -> FitResult:
        cutoffs.append(panel.last_index - int(weekly_loaded.panel.start.min()))
        return fit(panel, **given)

    monkeypatch.setattr(module, "fit", counted)
    # Training has seen all of these cutoffs, which is no matter to models that are trained anew.
    settings = {"refit": "scratch", "refit_every": 3, "fit": {"max_steps": 0}, "n_windows": 7}
    found = judged(trained, weekly_loaded, **settings)
    assert cutoffs == [110, 131, 152]
    assert len(found.cutoffs) == 7


def carried_forecasts(artifact: Artifact, panel: Panel, windows: WindowIndex) -> np.ndarray:
    """What `score.state` makes at a cutoff."""
    network = artifact.network
    carried = StateStore.blank(network, panel.n_series)
    segments = segments_since(panel, windows, network.shape.segment_length)
    advance(network, PanelTensors(panel, unit=network.shape.unit), windows, segments, carried)
    return predict(artifact, panel, windows, carried=carried).tuned


@pytest.mark.parametrize("kind", ["head", "bias"])
def test_one_pass_forecasts_as_a_carried_state_does(trained: FitResult, weekly_loaded: Loaded, kind: str) -> None:
    panel = weekly_loaded.panel
    settings = {"kind": kind, "min_gain": 0, "min_windows_better": 0, "gate_windows": 2, "steps": 10}
    artifact = finetune(trained.artifact, panel, load(FinetuneSettings, settings)).artifact
    assert artifact.bank
    assert artifact.bank.series_id
    contenders = {"fine_tuned": Contender(artifact, panel)}
    found = backtest(contenders, BacktestSettings(one_pass=True, n_windows=8, step_size=3))
    for cutoff, moment in zip(range(131, 153, 3), found.cutoffs, strict=True):
        expected = carried_forecasts(artifact, panel, windows_at(panel, int(panel.start.min()) + cutoff))
        ours = found.forecasts.filter(pl.col("cutoff") == moment, pl.col("model") == "fine_tuned")
        np.testing.assert_allclose(ours.select(QUANTILES).to_numpy(), expected.reshape(-1, 9), rtol=1e-5)


def test_one_pass_goes_by_the_local_clock(
    train: Callable[..., FitResult], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    """Hours around the change of the clocks, a day at a time: cutoffs in several phases, of series late and early."""
    rng = np.random.default_rng(0)
    series = {"a": rng.normal(size=320), "late": rng.normal(size=60)}
    hours = table(
        series,
        start=datetime(2024, 3, 5, 5),
        every=timedelta(hours=1),
        time_zone="America/New_York",
        late={"late": 200},
    )
    sold = loaded(hours, 12, freq="1h", season_length=24)
    artifact, panel = train(sold, context=72, validation_windows=1, holdout_windows=1).artifact, sold.panel
    assert artifact.network.shape.segment_length == 24
    with torch.no_grad():
        artifact.network.output.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    each = [windows_at(panel, int(panel.start.min()) + cutoff) for cutoff in range(90, 300, 5)]
    windows = WindowIndex(np.concatenate([w.series for w in each]), np.concatenate([w.cutoff for w in each]))
    assert len(np.unique(panel.clock_shift_at(panel.start[windows.series] + windows.cutoff))) == 2
    expected = np.concatenate([carried_forecasts(artifact, panel, own) for own in each])
    made = predict(artifact, panel, windows, one_pass=True).tuned
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(made - predict(artifact, panel, windows).tuned).max() > 1e-3


def test_one_pass_in_pieces_is_one_pass(
    trained: FitResult, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = judged(trained, weekly_loaded, one_pass=True, n_windows=11, step_size=2)
    monkeypatch.setattr("forecast.prediction.one_pass._MAX_PASS_ELEMENTS", 5 * 64 * 7)
    pieces = judged(trained, weekly_loaded, one_pass=True, n_windows=11, step_size=2)
    assert_frame_equal(ordered(pieces.forecasts), ordered(whole.forecasts), rel_tol=1e-5, abs_tol=1e-5)


# --- results


def test_small_tables_say_what_the_large_ones_hold(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    contenders = {"pretrained": Contender(trained.artifact, weekly_loaded.panel)}
    segments = ("city", "size", "length", "volume", "intermittency")
    found = backtest(contenders, BacktestSettings(segments=segments), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecasts.parquet", "scores.parquet"]
    assert found.segments["segment"].unique(maintain_order=True).to_list() == list(segments)
    city = found.segments.filter(segment="city", value="oslo", model="pretrained").row(0, named=True)
    own = found.scores.filter(pl.col("series_id") < "s04", pl.col("model") == "pretrained")
    assert city["mase"] == pytest.approx(own["mase"].mean())
    assert city["n_windows"] == len(own) == 16
    for name in segments:
        counted = found.segments.filter(segment=name, model="pretrained")["n_windows"].sum()
        assert counted == found.scores.height // 3, name
    lengths = found.segments.filter(segment="length")["value"].unique(maintain_order=True).to_list()
    assert lengths == ["low: 32 to 72", "middle: 132 to 132"]
    step = found.steps.filter(model="pretrained", step=3).row(0, named=True)
    part = found.forecasts.filter(model="pretrained", step=3)
    error = (part["q50"] - part["target"]).to_numpy()
    assert step["mae"] == pytest.approx(np.abs(error).mean())
    assert step["me"] == pytest.approx((part["mean"] - part["target"]).to_numpy().mean())
    assert step["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found.intervals["level"].unique().sort().to_list() == [0.2, 0.4, 0.6, 0.8]
    outer = found.intervals.filter(model="pretrained", level=0.8).row(0, named=True)
    assert outer["coverage"] == pytest.approx(found.summary.filter(model="pretrained")["coverage"].item())


def test_a_backtest_that_fails_leaves_no_file(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    def stop(_done: float, _text: str) -> None:
        raise KeyboardInterrupt

    contenders = {"pretrained": Contender(trained.artifact, weekly_loaded.panel)}
    with pytest.raises(KeyboardInterrupt):
        backtest(contenders, SETTINGS, folder=tmp_path, progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_temporary_folder_goes_with_its_result(trained: FitResult, weekly_loaded: Loaded) -> None:
    found = judged(trained, weekly_loaded)
    folder = found.folder
    assert found.forecasts.height == found.scores.height * 7
    del found
    assert not folder.exists()


def test_statistical_baselines_are_scored_beside_the_others(
    train: Callable[..., FitResult],
    table: Callable[..., pl.DataFrame],
    loaded: Callable[..., Loaded],
    weekly: Callable[..., dict[str, np.ndarray]],
) -> None:
    series = weekly(2, 90) | {"short": weekly(1, 12)["s00"]}
    series["s01"][70:74] = np.nan
    sold = loaded(table(series, late={"short": 78}), 7, season_length=7)
    settings = {"baselines": ["seasonal_naive", "auto_ets", "dynamic_optimized_theta"], "n_windows": 1}
    found = judged(train(sold), sold, **settings, baseline_history=60)
    assert found.failures.select("series_id", "model", "reason").rows() == [
        ("short", "auto_ets", "NotImplementedError: tiny datasets")
    ]
    windows = dict(found.summary.select("model", "n_windows").iter_rows())
    assert windows == {"seasonal_naive": 3, "auto_ets": 2, "dynamic_optimized_theta": 3, "pretrained": 3}
    for name in ("auto_ets", "dynamic_optimized_theta"):
        assert found.summary.filter(model=name)["mase"].item() < 1.5
        quantiles = found.forecasts.filter(model=name).select(QUANTILES).to_numpy()
        assert (np.diff(quantiles) >= 0).all()
    shares = found.wins.rows_by_key("baseline", named=True, unique=True)
    assert shares["auto_ets"]["n_series"] == 2
    assert shares["dynamic_optimized_theta"]["n_mase"] == 2
    scores = found.scores.filter(pl.col("series_id") != "short").pivot("model", index="series_id", values="mase")
    better = (scores["pretrained"] < scores["dynamic_optimized_theta"]).mean()
    assert shares["dynamic_optimized_theta"]["mase"] == pytest.approx(better)


def test_a_part_of_a_panel_is_the_panel_of_a_part(
    weekly_table: pl.DataFrame, weekly_loaded: Loaded, read_weekly: Reader
) -> None:
    """The last of the rows of s03 is a gap at the end of this part, and s07 has not begun."""
    panel, first, last = weekly_loaded.panel, datetime(2024, 1, 20), datetime(2024, 3, 31)
    part = panel.between(panel.grid.floor(first), panel.grid.floor(last))
    other = read_weekly(weekly_table.filter(pl.col("timestamp").is_between(first, last))).panel
    assert "s07" not in part.series_id
    for name in ("series_id", "start", "offsets", "target", "past", "static_categories", "static_numbers"):
        np.testing.assert_array_equal(getattr(part, name), getattr(other, name), err_msg=name)
    there = np.isfinite(other.known)
    np.testing.assert_array_equal(part.known[there], other.known[there])
    assert np.isfinite(part.known).sum() > there.sum()
