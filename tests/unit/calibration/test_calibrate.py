"""Conformal calibration on a panel whose series are not what they were in training."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy import stats

from forecast.artifact import Artifact, load
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.calibration import windows as windows_module
from forecast.calibration.calibrate import CalibrationResult, calibrate
from forecast.calibration.conformal import Calibrator
from forecast.calibration.windows import Window, calibration_forecasts
from forecast.config import BacktestSettings, CalibrateSettings, FinetuneSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import windows_at
from forecast.engines.engine import Engine
from forecast.engines.processes import Processes
from forecast.errors import DataError
from forecast.finetuning.finetune import finetune
from forecast.metrics.seasonal_naive import future_values
from forecast.models.postprocess.conformal import Calibration
from forecast.prediction.from_table import forecast
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

Train = Callable[..., FitResult]
HORIZON, STEPS, BEGUN, N_SERIES = 6, 320, 200, 60
CALM = 30
"""Series from here on stay as they were in training, white noise; those before become random walks."""
SETTINGS = CalibrateSettings(n_windows=40, step_size=2, check_windows=8, holdout_windows=2)


@pytest.fixture(scope="module")
def restless(table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]) -> Loaded:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N_SERIES, STEPS))
    values[:CALM, BEGUN:] = values[:CALM, BEGUN:].cumsum(1)
    series = {f"s{number:02d}": 50 + row for number, row in enumerate(values)}
    kind = {name: ["calm" if number >= CALM else "wild"] * STEPS for number, name in enumerate(series)}
    return loaded(table(series, kind=kind), HORIZON, calendar=False, season_length=1, static_covariates=["kind"])


@pytest.fixture(scope="module")
def model(train: Train, restless: Loaded) -> Artifact:
    """Trained on what was before the change."""
    return train(restless, context=14, holdout_windows=20).artifact


@pytest.fixture(scope="module")
def split(model: Artifact, restless: Loaded) -> CalibrationResult:
    return calibrate(model, restless.panel, SETTINGS)


@pytest.fixture(scope="module")
def adaptive(model: Artifact, restless: Loaded) -> CalibrationResult:
    return calibrate(model, restless.panel, SETTINGS.model_copy(update={"method": "adaptive"}))


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    with Processes(2) as engine:
        yield engine


def below(artifact: Artifact, loaded: Loaded, cutoffs: range) -> np.ndarray:
    """Return the share of targets at or below each quantile, by series, [S, level]."""
    found = []
    for cutoff in cutoffs:
        windows = windows_at(loaded.panel, int(loaded.panel.start[0]) + cutoff)
        actual = future_values(loaded.panel, windows, HORIZON)
        found.append(actual[..., None] <= predict(artifact, loaded.panel, windows).tuned)
    return np.stack(found).mean((0, 2))


def test_each_quantile_has_its_share_of_later_targets_below_it(
    model: Artifact, split: CalibrationResult, restless: Loaded
) -> None:
    levels = np.array(model.model.quantile_levels)
    later = range(STEPS - 2 * HORIZON, STEPS - HORIZON)
    before, after = (below(artifact, restless, later).mean(0) for artifact in (model, split.artifact))
    assert np.abs(after - levels).mean() < 0.6 * np.abs(before - levels).mean()
    assert abs(after[-1] - after[0] - 0.8) < 0.03 < abs(before[-1] - before[0] - 0.8)
    summary = split.summary
    assert summary["error_after"] < 0.6 * summary["error_before"]
    assert summary["pinball_after"] < summary["pinball_before"]


def test_shifts_are_the_conformal_quantiles_of_past_errors(model: Artifact, restless: Loaded) -> None:
    settings = CalibrateSettings(n_windows=2, step_size=6, check_windows=0, holdout_windows=2, shrink=False)
    made = calibrate(model, restless.panel, settings).artifact.calibration
    assert made is not None
    assert made.shift.shape == (1, 1, 9), "720 errors are enough for one part of the horizon"
    errors: list[list[float]] = [[] for _ in made.levels]
    for cutoff in (STEPS - 1 - 4 * HORIZON, STEPS - 1 - 3 * HORIZON):
        windows = windows_at(restless.panel, int(restless.panel.start[0]) + cutoff)
        actual = future_values(restless.panel, windows, HORIZON).astype(float)
        stated = predict(model, restless.panel, windows).tuned.astype(float)
        for series in range(N_SERIES):
            for step in range(HORIZON):
                quantiles = stated[series, step]
                for k in range(9):
                    errors[k].append((actual[series, step] - quantiles[k]) / (quantiles[8] - quantiles[0]))
    count = len(errors[0])
    assert count == 2 * N_SERIES * HORIZON
    for k, level in enumerate(made.levels):
        rank = math.floor((count + 1) * level) if level < 0.5 else math.ceil((count + 1) * level)
        expected = 0.0 if level == 0.5 else sorted(errors[k])[rank - 1]
        assert float(made.shift[0, 0, k]) == pytest.approx(expected, rel=1e-4, abs=1e-5), level


def test_shifts_are_less_where_cutoffs_do_not_agree(
    model: Artifact, split: CalibrationResult, restless: Loaded
) -> None:
    plain = calibrate(model, restless.panel, SETTINGS.model_copy(update={"shrink": False})).artifact.calibration
    shrunk = split.artifact.calibration
    assert plain is not None
    assert shrunk is not None
    share = (shrunk.shift / plain.shift)[plain.shift != 0]
    assert ((share >= 0) & (share <= 1)).all()
    assert 0.5 < float(share.mean()) < 1, "these agree, by and large"


def test_the_median_stays_and_quantiles_are_in_order(
    model: Artifact, split: CalibrationResult, restless: Loaded
) -> None:
    before, after = (forecast(artifact, restless.panel).frame for artifact in (model, split.artifact))
    same = ["series_id", "timestamp", "cutoff", "step", "q50", "source"]
    assert_frame_equal(before.select(same), after.select(same))
    quantiles = after.select(f"q{k}0" for k in range(1, 10)).to_numpy()
    assert (np.diff(quantiles) >= 0).all()
    assert (after["q90"] - after["q10"]).mean() > 1.2 * (before["q90"] - before["q10"]).mean()


def test_adaptive_shifts_give_each_series_its_own_width(
    split: CalibrationResult, adaptive: CalibrationResult, restless: Loaded
) -> None:
    assert adaptive.summary["rate"] > 0
    later = range(STEPS - 2 * HORIZON, STEPS - HORIZON)

    def off(artifact: Artifact) -> float:
        shares = below(artifact, restless, later)
        levels = np.array(artifact.model.quantile_levels)
        return float(sum(np.abs(part.mean(0) - levels).mean() for part in (shares[:CALM], shares[CALM:])))

    assert off(adaptive.artifact) < 0.8 * off(split.artifact)
    assert adaptive.summary["pinball_after"] < split.summary["pinball_after"]
    wild = pl.col("series_id") < f"s{CALM}"
    made = forecast(adaptive.artifact, restless.panel).frame.with_columns(width=pl.col("q90") - pl.col("q10"))
    assert made.filter(wild)["width"].mean() > 1.2 * made.filter(~wild)["width"].mean()  # type: ignore[operator]


def test_nothing_that_comes_later_has_a_part_in_the_check(
    model: Artifact, restless: Loaded, loaded: Callable[..., Loaded]
) -> None:
    """The targets of the checked windows change what is returned, not how they are checked: `before` stays."""
    frame = restless.panel.frame(classes=None).with_columns(
        kind=pl.when(pl.col("series_id") < f"s{CALM}").then(pl.lit("wild")).otherwise(pl.lit("calm"))
    )
    settings = CalibrateSettings(n_windows=12, step_size=HORIZON, check_windows=1, holdout_windows=0)
    last = frame["timestamp"].unique().sort()[-HORIZON]
    calm = frame.with_columns(target=pl.when(pl.col("timestamp") >= last).then(50.0).otherwise(pl.col("target")))
    results = [
        calibrate(
            model,
            loaded(values, HORIZON, calendar=False, season_length=1, static_covariates=["kind"]).panel,
            settings,
        )
        for values in (frame, calm)
    ]
    widths = [result.coverage.filter(by="all").select("level", "width_before", "width_after") for result in results]
    assert_frame_equal(*widths)
    one, other = (result.artifact.calibration for result in results)
    assert one is not None
    assert other is not None
    assert not torch.equal(one.shift, other.shift)


def test_coverage_is_told_by_level_step_and_segment(split: CalibrationResult) -> None:
    coverage = split.coverage
    assert coverage["by"].unique().sort().to_list() == ["all", "kind", "step"]
    overall = coverage.filter(by="all")
    assert overall["level"].to_list() == pytest.approx([0.8, 0.6, 0.4, 0.2])
    steps = coverage.filter(pl.col("by") == "step", pl.col("level") == 0.8)
    assert steps["value"].cast(pl.Int64).sort().to_list() == list(range(1, HORIZON + 1))
    assert steps["n"].sum() == overall["n"][0] == 8 * N_SERIES * HORIZON
    by_kind = dict(
        coverage.filter(pl.col("by") == "kind", pl.col("level") == 0.8).select("value", "coverage_before").rows()
    )
    assert by_kind["wild"] < by_kind["calm"]
    mean = (steps["coverage_after"] * steps["n"]).sum() / steps["n"].sum()
    assert overall["coverage_after"][0] == pytest.approx(mean)


def test_a_saved_calibration_forecasts_the_same(adaptive: CalibrationResult, restless: Loaded, tmp_path: Path) -> None:
    digest = adaptive.artifact.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.digest() == digest != again.uncalibrated().digest()
    assert_frame_equal(forecast(adaptive.artifact, restless.panel).frame, forecast(again, restless.panel).frame)
    part = restless.panel.rows(7, 9)
    whole = forecast(again, restless.panel).frame.filter(pl.col("series_id").is_in(part.series_id.tolist()))
    assert_frame_equal(whole, forecast(again, part).frame)


def test_what_calibration_has_seen_is_no_backtest(split: CalibrationResult, model: Artifact, restless: Loaded) -> None:
    seen = restless.panel.last_index - 2 * HORIZON
    assert split.artifact.trained_until == seen > model.trained_until
    with pytest.raises(DataError, match="1 of 3 cutoffs"):
        backtest({"pretrained": Contender(split.artifact, restless.panel)}, BacktestSettings(n_windows=3))
    scores = backtest({"pretrained": Contender(split.artifact, restless.panel)}, BacktestSettings(n_windows=2))
    assert scores.summary["n_windows"].to_list() == [2 * N_SERIES] * 3


def test_fine_tuning_begins_uncalibrated(split: CalibrationResult, restless: Loaded) -> None:
    tuning = FinetuneSettings(holdout_windows=0, gate_windows=2, report_windows=1, min_gain=0, min_windows_better=0)
    child = finetune(split.artifact, restless.panel, tuning).artifact
    assert child.bank is not None
    assert child.calibration is None
    assert child.parent_digest == split.artifact.digest()


@pytest.mark.parametrize("head", ["normal", "negative_binomial"])
def test_other_heads_are_calibrated_too(head: str, train: Train, table: Any, loaded: Callable[..., Loaded]) -> None:
    rng = np.random.default_rng(1)
    series = {f"s{k:02d}": rng.poisson(3, 160).astype(float) for k in range(20)}
    for values in series.values():
        values[100:] = rng.poisson(rng.gamma(1, 3, 60))
    found = loaded(table(series), 4, calendar=False, season_length=1)
    model = train(found, context=8, model={"head": head}, holdout_windows=15).artifact
    wanted = CalibrateSettings(n_windows=12, step_size=4, check_windows=4, holdout_windows=0)
    result = calibrate(model, found.panel, wanted)
    quantiles = forecast(result.artifact, found.panel).frame.select(f"q{k}0" for k in range(1, 10)).to_numpy()
    assert (np.diff(quantiles) >= 0).all()
    outer = result.coverage.filter(by="all", level=0.8)
    assert outer["coverage_after"][0] == pytest.approx(0.8, abs=0.08)
    if head == "negative_binomial":
        assert (quantiles == quantiles.round()).all()
        assert (quantiles >= 0).all()
        backtest({"pretrained": Contender(model, found.panel)}, BacktestSettings(n_windows=1))


LEVELS = (0.1, 0.25, 0.5, 0.9)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    st.integers(3, 12),
)
def test_shifted_quantiles_ascend_around_a_median_that_stays(
    values: list[float], shifts: list[float], count: int
) -> None:
    stated = torch.tensor(sorted(values), dtype=torch.float64)[None, None]
    shifts[2] = 0.0
    calibration = Calibration(LEVELS, torch.zeros(1, dtype=torch.long), torch.tensor(shifts)[None, None])
    made = calibration.applied(stated, torch.zeros(1, dtype=torch.long))
    assert (made.diff() >= 0).all()
    assert made[..., 2] == stated[..., 2]
    between = torch.linspace(0.05, 0.95, count, dtype=torch.float64)
    dense = calibration.applied(torch.linspace(0, 1, count).expand(1, 1, -1), torch.zeros(1, dtype=torch.long), between)
    assert (dense.diff() >= 0).all()


def test_too_few_cutoffs_are_told(model: Artifact, split: CalibrationResult, restless: Loaded) -> None:
    with pytest.raises(DataError, match=r"needs at least 1 cutoff.*of 0 after .* there are 0; append data, lower"):
        calibrate(split.artifact, restless.panel, SETTINGS)
    few = CalibrateSettings(method="adaptive", n_windows=3, step_size=6)
    with pytest.raises(DataError, match=r"adaptive\) needs at least 3 cutoff.*of 3 after .* there are 2"):
        calibrate(model, restless.panel, few)
    one = restless.panel.rows(0, 1)
    with pytest.raises(DataError, match=r"6 errors of past forecasts are too few to calibrate the level 0.1"):
        calibrate(model, one, CalibrateSettings(n_windows=1, check_windows=0))


def windows_of(rng: np.random.Generator, spread: np.ndarray, step: int) -> list[Window]:
    """What is stated of noise around 0 from cutoffs `step` apart; a fifth of its variance is shared by all series.

    `spread` [series, time] is its standard deviation; the quantiles are those of 1.
    """
    n, steps = spread.shape
    values = spread * (0.8**0.5 * rng.normal(size=(n, steps)) + 0.2**0.5 * rng.normal(size=steps))
    stated = np.tile(stats.norm.ppf(WORK_LEVELS), (n, HORIZON, 1))
    return [
        Window(cutoff, np.arange(n), stated, values[:, cutoff + 1 : cutoff + 1 + HORIZON])
        for cutoff in range(0, steps - HORIZON, step)
    ]


WORK_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def rates(spread: np.ndarray, step: int, runs: int = 40) -> int:
    """Return how many of some panels get a rate."""
    rng = np.random.default_rng(3)
    work = Calibrator(WORK_LEVELS, np.zeros(1, dtype=np.int64), HORIZON, len(spread), shrink=False)
    return sum(work.best_rate(windows_of(rng, spread, step)) > 0 for _ in range(runs))


@pytest.mark.parametrize(("step", "count"), [(1, 24), (2, 30), (6, 16)])
def test_a_rate_is_chosen_where_series_differ_and_not_by_chance(step: int, count: int) -> None:
    steps = step * (count - 1) + HORIZON + 1
    alike = np.ones((20, steps))
    assert rates(alike, step) <= 0.25 * 40
    apart = alike * np.where(np.arange(20) < 10, 0.3, 3.0)[:, None]
    assert rates(apart, step) >= 0.8 * 40


def test_windows_that_share_targets_with_those_the_shifts_come_from_choose_no_rate() -> None:
    spread = np.where(np.arange(20) < 10, 0.3, 3.0)[:, None] * np.ones((20, HORIZON + 8))
    assert rates(spread, 1) == 0


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["split", "adaptive"])
def test_processes_give_the_same_calibration(
    model: Artifact,
    restless: Loaded,
    split: CalibrationResult,
    adaptive: CalibrationResult,
    method: str,
    processes: Engine,
) -> None:
    local = adaptive if method == "adaptive" else split
    result = calibrate(model, restless.panel, SETTINGS.model_copy(update={"method": method}), engine=processes)
    assert local.artifact.calibration is not None
    assert result.artifact.digest() == local.artifact.digest()
    assert_frame_equal(result.coverage, local.coverage, check_exact=True)
    assert result.summary == local.summary


def test_ranges_of_series_are_joined(model: Artifact, restless: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = calibration_forecasts(model, restless.panel, [250], all_series=True)
    monkeypatch.setattr(windows_module, "_RANGE", 16)
    (joined,) = calibration_forecasts(model, restless.panel, [250], all_series=True)
    assert joined.series.tolist() == whole.series.tolist()
    np.testing.assert_array_equal(joined.actual, whole.actual)
    np.testing.assert_allclose(joined.quantiles, whole.quantiles, rtol=1e-4)
