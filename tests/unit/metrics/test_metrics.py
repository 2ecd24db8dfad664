"""Metrics against loops in float64."""

import functools
from collections.abc import Callable
from datetime import datetime, timedelta
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from scipy import stats
from utilsforecast import losses

from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.metrics.scores import SCORE_COLUMNS, midpoints, score_classes, score_points, score_windows
from forecast.metrics.seasonal_naive import (
    future_values,
    last_values,
    seasonal_naive,
    seasonal_naive_classes,
    seasonal_naive_errors,
)
from forecast.metrics.summaries import (
    confusion,
    coverage_by_interval,
    coverage_by_level,
    error_by_step,
    macro_f1,
    summarise,
    wins,
)
from forecast.names import quantile_column

LEVELS = (0.1, 0.5, 0.9)
SEASON, HORIZON = 4, 6
NAN = float("nan")


@pytest.fixture(scope="module")
def panel(table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]) -> Panel:
    rng = np.random.default_rng(0)
    series = {"a": rng.normal(size=40), "b": rng.normal(size=3), "c": 100 * rng.normal(size=25), "d": np.ones(20)}
    series["a"][[5, 17, 18, 30]] = np.nan
    series["c"][[1, 13, 17, 21, 9]] = np.nan
    return loaded(table(series, late={"b": 20, "c": 5}), HORIZON, season_length=SEASON).panel


@pytest.fixture(scope="module")
def windows(panel: Panel) -> WindowIndex:
    """Every cutoff of every series, some before its start and some behind its end."""
    cutoffs = [np.arange(-2, length + 8) for length in panel.lengths]
    return WindowIndex(np.repeat(np.arange(4), [len(c) for c in cutoffs]), np.concatenate(cutoffs))


def values(panel: Panel, series: int) -> np.ndarray:
    return panel.target[panel.offsets[series] : panel.offsets[series + 1]].astype(np.float64)


def differences(panel: Panel, series: int, cutoff: int) -> list[float]:
    seen = values(panel, series)[: max(cutoff + 1, 0)]
    found = [seen[t] - seen[t - SEASON] for t in range(SEASON, len(seen))]
    return [d for d in found if np.isfinite(d)]


def test_seasonal_naive_errors_equal_a_loop(panel: Panel, windows: WindowIndex) -> None:
    absolute, square = seasonal_naive_errors(panel, windows, SEASON)
    for row, (series, cutoff) in enumerate(zip(windows.series, windows.cutoff, strict=True)):
        found = np.array(differences(panel, series, cutoff))
        expected = (np.abs(found).mean(), np.sqrt((found**2).mean())) if len(found) else (NAN, NAN)
        np.testing.assert_allclose((absolute[row], square[row]), expected, rtol=1e-7, atol=1e-9)


def test_a_large_series_does_not_blur_a_small_one(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    small = np.random.default_rng(0).normal(size=50)
    both = loaded(table({"a": 1e12 * np.sin(np.arange(50.0)), "b": small}), HORIZON).panel
    alone = loaded(table({"b": small}), HORIZON).panel
    found = seasonal_naive_errors(both, WindowIndex(np.array([1]), np.array([40])), SEASON)
    expected = seasonal_naive_errors(alone, WindowIndex(np.array([0]), np.array([40])), SEASON)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_shards_change_no_value(panel: Panel, windows: WindowIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = windows[np.random.default_rng(0).permutation(len(windows))]

    def found() -> list[np.ndarray]:
        naive = seasonal_naive(panel, shuffled, horizon=HORIZON, season=SEASON, levels=LEVELS)
        return [*seasonal_naive_errors(panel, shuffled, SEASON), last_values(panel, shuffled), naive]

    whole = found()
    monkeypatch.setattr(Panel, "shards", functools.partialmethod(Panel.shards, steps=30))
    assert len(list(panel.shards())) > 2
    for ours, theirs in zip(found(), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_last_and_future_values_equal_a_loop(panel: Panel, windows: WindowIndex) -> None:
    last, future = last_values(panel, windows), future_values(panel, windows, HORIZON)
    for row, (series, cutoff) in enumerate(zip(windows.series, windows.cutoff, strict=True)):
        series_values = values(panel, series)
        seen = series_values[: max(cutoff + 1, 0)]
        seen = seen[np.isfinite(seen)]
        np.testing.assert_array_equal(last[row], seen[-1] if len(seen) else NAN)
        padded = [series_values[t] if 0 <= t < len(series_values) else NAN for t in range(cutoff + 1, cutoff + 7)]
        np.testing.assert_array_equal(future[row], padded)


def test_seasonal_naive_equals_a_loop(panel: Panel, windows: WindowIndex) -> None:
    found = seasonal_naive(panel, windows, horizon=HORIZON, season=SEASON, levels=LEVELS)
    for row, (series, cutoff) in enumerate(zip(windows.series, windows.cutoff, strict=True)):
        seen = values(panel, series)[: max(cutoff + 1, 0)]
        gaps = differences(panel, series, cutoff)
        sigma = np.sqrt(np.mean(np.square(gaps))) if gaps else 0.0
        observed = seen[np.isfinite(seen)]
        for ahead in range(1, HORIZON + 1):
            seasons = (ahead + SEASON - 1) // SEASON
            back = [cutoff + ahead - SEASON * (seasons + k) for k in range(4)]
            usable = [seen[t] for t in back if 0 <= t < len(seen) and np.isfinite(seen[t])]
            centre = (usable or [observed[-1] if len(observed) else NAN])[0]
            expected = [centre + sigma * np.sqrt(seasons) * NormalDist().inv_cdf(level) for level in LEVELS]
            np.testing.assert_allclose(found[row, ahead - 1], expected, rtol=1e-6, atol=1e-9)


def test_one_season_back_is_the_same_time_on_the_local_clock(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    hours = table(
        {"a": np.zeros(120)}, start=datetime(2024, 3, 8, 5), every=timedelta(hours=1), time_zone="America/New_York"
    )
    hours = hours.with_columns(target=pl.col("timestamp").dt.hour().cast(pl.Float64))
    panel = loaded(hours, 24, freq="1h").panel
    # The clock skips 02:00 on the 10th, step 50.
    for cutoff in (30, 40, 47, 60, 80):
        window = WindowIndex(np.array([0]), np.array([cutoff]))
        made = seasonal_naive(panel, window, horizon=24, season=24, levels=(0.5,))[0, :, 0]
        truth = future_values(panel, window, 24)[0]
        # What the clock skips on one day has no value a season back on the next.
        assert truth[made != truth].tolist() == ([2.0] if cutoff == 60 else [])


def test_scores_equal_loops() -> None:
    rng = np.random.default_rng(1)
    actual = rng.normal(size=(6, 5))
    actual[0, 2] = actual[3, :4] = NAN
    actual[1, 0] = 0.0
    quantiles = np.sort(rng.normal(size=(6, 5, 3)), -1)
    quantiles[1, 0] = 0.0
    scale = np.array([1.0, 2.0, 0.5, 3.0, 0.0, NAN])
    found = score_windows(actual, quantiles, levels=LEVELS, scale=scale, root_scale=2 * scale)
    assert set(found) == set(SCORE_COLUMNS)
    for i in range(6):
        steps = [j for j in range(5) if np.isfinite(actual[i, j])]
        y, q = [actual[i, j] for j in steps], [quantiles[i, j] for j in steps]
        absolute = [abs(a - b[1]) for a, b in zip(y, q, strict=True)]
        relative = [200 * abs(a - b[1]) / (abs(a) + abs(b[1])) if a or b[1] else 0.0 for a, b in zip(y, q, strict=True)]
        pinball = [
            np.mean([2 * max(level * (a - b), (level - 1) * (a - b)) for level, b in zip(LEVELS, row, strict=True)])
            for a, row in zip(y, q, strict=True)
        ]
        expected = {
            "mase": np.mean(absolute) / scale[i] if scale[i] > 0 else NAN,
            "smape": np.mean(relative),
            "rmsse": np.sqrt(np.mean(np.square(absolute))) / (2 * scale[i]) if scale[i] > 0 else NAN,
            "abs_error": sum(absolute),
            "square_error": sum(np.square(absolute)),
            "pinball": sum(pinball),
            "abs_target": sum(map(abs, y)),
            "error": sum(b[1] - a for a, b in zip(y, q, strict=True)),
            "covered": sum(b[0] <= a <= b[2] for a, b in zip(y, q, strict=True)),
            "width": sum(b[2] - b[0] for b in q),
            "n_steps": len(steps),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-12, err_msg=f"{name} of window {i}")


def test_summary_of_two_windows_by_hand() -> None:
    # Window 1: y = (10, 20), q50 = (12, 20), q10/q90 two below/above. Window 2: y = (5, not observed), q50 = 2.
    actual = np.array([[10.0, 20.0], [5.0, NAN]])
    median = np.array([[12.0, 20.0], [2.0, 7.0]])
    quantiles = np.stack([median - 2, median, median + 2], -1)
    scores = score_windows(
        actual, quantiles, levels=LEVELS, scale=np.array([4.0, 0.0]), root_scale=np.array([5.0, 0.0])
    )
    keys = {"series_id": ["a", "b"], "cutoff": [1, 1], "model": ["m", "m"]}
    row = summarise(pl.DataFrame({**keys, **scores})).row(0, named=True)
    # Pinball of a step: mean over three levels of 2 max(level e, (level - 1) e).
    first = (2 * 0.9 * 0 + 2 * 0.5 * 2 + 2 * 0.1 * 4) / 3
    second = (2 * 0.1 * 2 + 0 + 2 * 0.1 * 2) / 3
    third = (2 * 0.1 * 5 + 2 * 0.5 * 3 + 2 * 0.9 * 1) / 3
    expected = {
        "model": "m",
        "mase": (2 + 0) / 2 / 4,
        "smape": (200 * (2 / 22 + 0) / 2 + 200 * 3 / 7) / 2,
        "wql": (first + second + third) / 35,
        "wape": (2 + 0 + 3) / 35,
        "bias": (2 + 0 - 3) / 35,
        "me": (2 + 0 - 3) / 3,
        "rmsse": 2**0.5 / 5,
        "coverage": 2 / 3,
        "width": 12 / 35,
        "n_series": 2,
        "n_windows": 2,
        "n_undefined": 1,
    }
    assert row == pytest.approx(expected)


def test_error_and_coverage_leave_out_what_was_not_observed() -> None:
    forecasts = pl.DataFrame(
        {
            "model": ["m"] * 4,
            "step": [1, 2, 1, 2],
            "target": [1.0, None, 3.0, 10.0],
            "q10": [0.0, 0.0, 3.0, 12.0],
            "q50": [2.0, 5.0, 3.0, 13.0],
            "q97.5": [4.0, 6.0, 4.0, 14.0],
        }
    )
    assert error_by_step(forecasts)["mae"].to_list() == [0.5, 3.0]
    covered = coverage_by_level(forecasts).sort("level")
    assert covered["level"].to_list() == [0.1, 0.5, 0.975]
    assert covered["coverage"].to_list() == pytest.approx([2 / 3, 1.0, 1.0])


def test_naive_probabilities_follow_hits_and_counts(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    codes = {"a": [0, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0, 0], "b": [2] * 12, "c": [1]}
    panel = loaded(table({name: np.array(values, float) for name, values in codes.items()}), 6, season_length=4).panel
    windows = WindowIndex(np.array([0, 1, 2, 0]), np.array([11, 11, 0, 7]))
    found = seasonal_naive_classes(panel, windows, horizon=6, season=4, n_classes=3)
    np.testing.assert_allclose(found.sum(-1), 1.0)
    assert (found > 0).all()
    assert found.argmax(-1)[1].tolist() == [2] * 6
    for row, (name, end) in enumerate([("a", 12), ("b", 12), ("c", 1), ("a", 8)]):
        own = codes[name][:end]
        hits = sum(own[t] == own[t - 4] for t in range(4, end))
        share = (hits + 1) / (max(end - 4, 0) + 2)
        for step in range(6):
            point = own[-4 + step % 4] if end >= 4 else own[-1]
            others = [own.count(k) + 1 if k != point else 0 for k in range(3)]
            expected = [share if k == point else (1 - share) * others[k] / sum(others) for k in range(3)]
            np.testing.assert_allclose(found[row, step], expected)


def test_scores_of_classes_are_those_written_out() -> None:
    rng = np.random.default_rng(0)
    stated, actual = rng.dirichlet([1, 1, 1], (5, 4)), rng.integers(0, 3, (5, 4)).astype(float)
    actual[1, 2], actual[3] = NAN, NAN
    found = score_classes(actual, stated)
    for row in range(5):
        steps = [step for step in range(4) if not np.isnan(actual[row, step])]
        pairs = [(stated[row, step], int(actual[row, step])) for step in steps]
        assert found["n_steps"][row] == len(steps)
        assert found["log_loss"][row] == pytest.approx(sum(-np.log(p[y]) for p, y in pairs))
        assert found["brier"][row] == pytest.approx(sum(((p - np.eye(3)[y]) ** 2).sum() for p, y in pairs))
        assert found["correct"][row] == sum(p.argmax() == y for p, y in pairs)
    certain = np.array([[[1.0, 0.0]]])
    assert np.isfinite(score_classes(np.array([[1.0]]), certain)["log_loss"]).all()


def test_macro_f1_is_the_mean_over_classes() -> None:
    came = ["a", "a", "a", "b", "b", None]
    said = ["a", "a", "b", "b", "c", "a"]
    counts = confusion(pl.DataFrame({"model": ["m"] * 6, "target": came, "class": said}))
    assert counts["n"].sum() == 5
    # a: 2 hits, said 2, came 3; b: 1 hit, said 2, came 2; c: said once, never came.
    assert macro_f1(counts)["macro_f1"].item() == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)


def test_crps_is_that_of_the_distribution() -> None:
    levels = np.array(midpoints(100))
    counts = np.arange(200)
    for mean, value in [(0.3, 0.0), (0.3, 2.0), (4.0, 1.0), (60.0, 75.0)]:
        ranked = ((stats.poisson(mean).cdf(counts) - (counts >= value)) ** 2).sum()
        found = score_points(np.array([[value]]), stats.poisson(mean).ppf(levels)[None, None])
        assert found[0] == pytest.approx(ranked, rel=0.02, abs=2e-3)
    for value in (-1.0, 0.2, 3.0):
        density, below = stats.norm.pdf(value), stats.norm.cdf(value)
        exact = value * (2 * below - 1) + 2 * density - np.pi**-0.5
        assert score_points(np.array([[value]]), stats.norm.ppf(levels)[None, None])[0] == pytest.approx(
            exact, rel=0.01
        )
    certain = score_points(np.array([[3.0, NAN]]), np.full((1, 2, 100), 5.0))
    assert certain.tolist() == [2.0]


def test_probabilities_are_calibrated_where_classes_come_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    stated = rng.random(20_000)
    came = np.where(rng.random(20_000) < stated, "rain", "clear")
    frame = pl.DataFrame({"model": "m", "target": came, "class": "rain", "p_clear": 1 - stated, "p_rain": stated})
    found = coverage_by_level(frame)
    assert found.height == 10
    np.testing.assert_allclose(found["coverage"], found["level"], atol=0.03)
    assert found["level"].is_sorted()


def test_metrics_are_those_of_utilsforecast() -> None:
    """To ten digits in float64, on the means over windows that the summary takes."""
    rng = np.random.default_rng(0)
    n, horizon, levels = 30, 6, (0.1, 0.25, 0.5, 0.75, 0.9)
    ids = [f"s{row:02d}" for row in range(n)]
    past = rng.gamma(2.0, 10.0, (n, 40))
    actual = rng.gamma(2.0, 10.0, (n, horizon))
    quantiles = np.sort(rng.gamma(2.0, 10.0, (n, horizon, 5)), -1)
    gaps = past[:, SEASON:] - past[:, :-SEASON]
    scores = score_windows(
        actual,
        quantiles,
        levels=levels,
        scale=np.abs(gaps).mean(1),
        root_scale=np.sqrt((gaps**2).mean(1)),
    )
    keys = {"series_id": ids, "cutoff": [0] * n, "model": ["m"] * n}
    found = summarise(pl.DataFrame({**keys, **scores})).row(0, named=True)
    columns = [quantile_column(level) for level in levels]
    frame = pl.DataFrame(
        {
            "unique_id": np.repeat(ids, horizon),
            "y": actual.ravel(),
            **{name: quantiles[..., k].ravel() for k, name in enumerate(columns)},
        }
    )
    train = pl.DataFrame({"unique_id": np.repeat(ids, 40), "ds": np.tile(np.arange(40), n), "y": past.ravel()})

    def mean(frame: pl.DataFrame, name: str = "q50") -> float:
        return float(frame[name].mean())  # type: ignore[arg-type]

    theirs = {
        "mase": mean(losses.mase(frame, ["q50"], SEASON, train)),
        "smape": 200 * mean(losses.smape(frame, ["q50"])),
        "rmsse": mean(losses.rmsse(frame, ["q50"], SEASON, train)),
        "wape": float(np.abs(actual - quantiles[..., 2]).sum() / actual.sum()),
        "me": mean(losses.bias(frame, ["q50"])),
        "wql": 2 * mean(losses.mqloss(frame, {"m": columns}, np.array(levels)), "m") / actual.mean(),
        "coverage": mean(losses.coverage(frame.rename({"q10": "m-lo-80", "q90": "m-hi-80"}), ["m"], 80), "m"),
    }
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, rel=1e-10)

    forecasts = frame.rename({"unique_id": "series_id", "y": "target"}).with_columns(
        model=pl.lit("m"), step=pl.Series(np.tile(np.arange(1, horizon + 1), n))
    )
    by_level = coverage_by_level(forecasts)
    for level, name in zip(levels, columns, strict=True):
        row = by_level.filter(pl.col("level") == level).row(0, named=True)
        loss = mean(losses.quantile_loss(frame, {"m": name}, level), "m")
        assert row["pinball"] == pytest.approx(2 * loss, rel=1e-10)
        share = mean(losses.calibration(frame, {"m": name}), "m")
        assert row["coverage"] == pytest.approx(share, rel=1e-10)
    for level, lower, upper in ((0.5, "q25", "q75"), (0.8, "q10", "q90")):
        row = coverage_by_interval(forecasts).filter(pl.col("level") == level).row(0, named=True)
        bounds = frame.rename({lower: f"m-lo-{level * 100:.0f}", upper: f"m-hi-{level * 100:.0f}"})
        assert row["coverage"] == pytest.approx(mean(losses.coverage(bounds, ["m"], int(level * 100)), "m"), rel=1e-10)
        assert row["width"] == pytest.approx((frame[upper] - frame[lower]).mean(), rel=1e-10)
    steps = error_by_step(forecasts)
    for step in range(1, horizon + 1):
        part = frame.filter(forecasts["step"] == step)
        row = steps.filter(pl.col("step") == step).row(0, named=True)
        expected = {
            "mae": mean(losses.mae(part, ["q50"])),
            "rmse": float(np.sqrt(((part["q50"] - part["y"]) ** 2).mean())),  # type: ignore[arg-type]
            "me": mean(losses.bias(part, ["q50"])),
            "pinball": 2 * mean(losses.mqloss(part, {"m": columns}, np.array(levels)), "m"),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-10)


def test_wins_count_series_over_windows_that_both_have() -> None:
    """Model m beats naive on a in MASE and on b in pinball; c has no MASE; of d there is one window in common."""
    rows = [
        ("a", 1, "m", 1.0, 5.0),
        ("a", 2, "m", 1.0, 5.0),
        ("a", 1, "naive", 3.0, 4.0),
        ("a", 2, "naive", 0.5, 5.0),
        ("b", 1, "m", 2.0, 1.0),
        ("b", 1, "naive", 2.0, 2.0),
        ("c", 1, "m", NAN, 1.0),
        ("c", 1, "naive", NAN, 2.0),
        ("d", 1, "m", 9.0, 9.0),
        ("d", 2, "m", 0.1, 0.1),
        ("d", 1, "naive", 8.0, 8.0),
        ("e", 1, "m", 0.1, 0.1),
    ]
    scores = pl.DataFrame(rows, ["series_id", "cutoff", "model", "mase", "pinball"], orient="row")
    assert wins(scores).rows(named=True) == [
        {"model": "m", "baseline": "naive", "mase": 1 / 3, "pinball": 2 / 4, "n_series": 4, "n_mase": 3}
    ]
    assert wins(scores.lazy()).equals(wins(scores))
