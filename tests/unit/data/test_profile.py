from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from forecast.data.features.calendar import clock_shift
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.rejects import Counts
from forecast.data.panel import Panel
from forecast.data.profiling import profile as module
from forecast.data.profiling.profile import frequencies, profile
from forecast.data.profiling.quality import quality, summary
from forecast.data.time.frequency import Frequency
from forecast.data.time.grid import Grid

NAN = float("nan")
GRID = Grid.natural(Frequency.parse("1d"), None)
MONDAY = int(GRID.index(pl.Series([datetime(2024, 1, 1)]))[0])


def make_panel(series: Sequence[Sequence[float] | np.ndarray], grid: Grid = GRID, start: int = MONDAY) -> Panel:
    lengths, n = [len(values) for values in series], len(series)
    steps, last = sum(lengths), start + max(lengths)
    target = np.concatenate([np.asarray(values, dtype=np.float32) for values in series])
    target.setflags(write=False)
    return Panel(
        grid=grid,
        series_id=np.array([f"s{number:04d}" for number in range(n)]),
        offsets=np.append(0, np.cumsum(lengths)),
        start=np.full(n, start),
        target=target,
        past=np.empty((0, steps), dtype=np.float32),
        known=np.empty((0, steps + n), dtype=np.float32),
        calendar=np.empty((0, 0), dtype=np.float32),
        calendar_start=start,
        clock_shift=clock_shift(grid, start, last),
        horizon=1,
        static_categories=np.empty((n, 0), dtype=np.int64),
        static_numbers=np.empty((n, 0), dtype=np.float32),
    )


def one(values: Sequence[float] | np.ndarray, season_length: int = 1) -> dict[str, Any]:
    return profile(make_panel([values]), season_length).row(0, named=True)


def test_each_column_of_a_small_series() -> None:
    row = one([0, NAN, 0, 2, NAN, NAN, 4, 0])
    assert row == {
        "series_id": "s0000",
        "first": datetime(2024, 1, 1),
        "last": datetime(2024, 1, 8),
        "length": 8,
        "observed": 5,
        "gaps": 3,
        "longest_gap": 2,
        "zeros": 3 / 5,
        "leading_zeros": 3,
        "trailing_zeros": 1,
        "negatives": 0.0,
        "mean": pytest.approx(1.2),
        "std": pytest.approx(np.std([0, 0, 2, 4, 0])),
        "min": 0.0,
        "max": 4.0,
        "adi": 5 / 2,
        "cv2": pytest.approx(1 / 9),
        "demand": "intermittent",
        "seasonality": None,
        "trend": None,
        "constant": False,
        "outliers": 0,
    }


@pytest.mark.parametrize(
    ("values", "adi", "cv2", "demand"),
    [
        ([5, 6, 5, 6], 1, (0.5 / 5.5) ** 2, "smooth"),
        ([1, 1, 1, 13], 1, (27 / 16), "erratic"),
        ([3, 0, 3, 0], 2, 0, "intermittent"),
        ([1, 0, 7, 0], 2, 9 / 16, "lumpy"),
        ([1.0] * 100 + [0.0] * 32, 1.32, 0, "smooth"),  # not above the limit
        ([1.0] * 100 + [0.0] * 33, 1.33, 0, "intermittent"),
        ([3, 17] * 5, 1, 0.49, "smooth"),
        ([5], 1, 0, "smooth"),
        ([5, 5, -1], None, None, None),
        ([0, 0, 0], None, None, None),
    ],
)
def test_demand_is_sorted_by_how_rare_and_how_varying_it_is(
    values: list[float], adi: float | None, cv2: float | None, demand: str | None
) -> None:
    row = one(values)
    assert row["demand"] == demand
    for name, wanted in (("adi", adi), ("cv2", cv2)):
        assert row[name] == (None if wanted is None else pytest.approx(wanted, abs=1e-12))


@pytest.mark.parametrize(
    ("values", "constant", "leading", "trailing"),
    [([0, NAN, 0], True, 3, 3), ([7], True, 0, 0), ([1.1] * 40, True, 0, 0), ([0, 0, 7], False, 2, 0)],
)
def test_series_without_much_in_them(values: list[float], constant: bool, leading: int, trailing: int) -> None:
    row = one(values, 2)
    assert (row["constant"], row["leading_zeros"], row["trailing_zeros"]) == (constant, leading, trailing)
    assert row["seasonality"] is None
    assert row["trend"] is None
    assert row["std"] == 0.0 or not constant


# ---- Against a plain version, series by series ----


def numbers(values: np.ndarray) -> dict[str, Any]:
    there = ~np.isnan(values)
    known = values[there]
    run = longest = 0
    for missing in ~there:
        run = run + 1 if missing else 0
        longest = max(longest, run)
    return {
        "length": len(values),
        "observed": len(known),
        "gaps": len(values) - len(known),
        "longest_gap": longest,
        "zeros": np.mean(known == 0),
        "negatives": np.mean(known < 0),
        "mean": np.mean(known),
        "std": np.std(known),
        "min": np.min(known),
        "max": np.max(known),
        "constant": len(set(known)) == 1,
    }


def strengths(values: np.ndarray, season: int) -> tuple[float, float]:
    """Strength of season and trend by the formulas, one step after another."""
    window = season if season > 1 else 5
    half, n = window // 2, len(values)
    weights = np.full(window, 1 / window) if window % 2 else np.array([0.5, *[1] * (window - 1), 0.5]) / window
    trend = np.full(n, NAN)
    for step in range(half, n - half):
        near = values[step - half : step + half + 1]
        there = ~np.isnan(near)
        if there.any():
            trend[step] = np.sum((weights * near)[there]) / np.sum(weights[there])
    low, high = half, n - half - 1
    slope = (trend[high] - trend[low]) / max(high - low, 1)
    trend[:low] = trend[low] + slope * (np.arange(low) - low)
    trend[high:] = trend[high] + slope * (np.arange(high, n) - high)
    rest = values - trend
    there = ~np.isnan(rest)
    phases = np.arange(n) % season
    pattern = np.zeros(n)
    for phase in set(phases[there]) if season > 1 else set():
        pattern[phases == phase] = np.mean(rest[there & (phases == phase)])
    taken = 2 * weights[half] - np.sum(weights**2)
    places = len(set(phases[there]))
    count = np.count_nonzero(there)

    def variance(part: np.ndarray, free: float) -> float:
        return float(np.sum((part[there] - np.mean(part[there])) ** 2) / free)

    noise = variance(rest - pattern, count * (1 - taken) - (places - 1))
    return (
        max(0.0, 1 - noise / variance(rest, count * (1 - taken))),
        max(0.0, 1 - noise / variance(values - pattern, count - places)),
    )


def a_series(values: Sequence[float | None]) -> np.ndarray:
    found = np.array([NAN if value is None else value for value in values], dtype=np.float32)
    found[[0, -1]] = np.nan_to_num(found[[0, -1]], nan=1.0)
    return found


small = st.one_of(st.none(), st.sampled_from([0.0, 0.0, 1.0, 2.5, 40.0, -3.0]))
panels = st.lists(st.lists(small, min_size=1, max_size=30).map(a_series), min_size=1, max_size=6)


@given(panels, st.integers(1, 8))
def test_any_panel_agrees_with_a_loop_over_its_series(series: list[np.ndarray], season: int) -> None:
    found = profile(make_panel(series), season)
    for row, values in zip(found.iter_rows(named=True), series, strict=True):
        for name, value in numbers(values.astype(np.float64)).items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
        assert row["observed"] + row["gaps"] == row["length"]
        assert (row["demand"] is None) == (row["negatives"] > 0 or row["zeros"] == 1)
        for name in ("seasonality", "trend", "zeros", "negatives"):
            assert row[name] is None or 0 <= row[name] <= 1
        if season == 1 or row["constant"] or row["length"] < 2 * season:
            assert row["seasonality"] is None


@pytest.mark.parametrize("season", [1, 2, 3, 4, 7, 12])
def test_strengths_agree_with_the_formulas(season: int) -> None:
    rng = np.random.default_rng(season)
    series = []
    for number in range(12):
        length = rng.integers(max(10, 2 * season), 90)
        step = np.arange(length)
        made = (
            3 * rng.random() * np.sin(2 * np.pi * step / season) + 0.1 * rng.random() * step + rng.normal(size=length)
        )
        made[1:-1][rng.random(length - 2) < 0.02 * number] = NAN
        series.append(made.astype(np.float32) * 10.0 ** rng.integers(-6, 9))
    found = profile(make_panel(series), season)
    for row, values in zip(found.iter_rows(named=True), series, strict=True):
        seasonality, trend = strengths(values.astype(np.float64), season)
        assert row["trend"] == pytest.approx(trend, abs=1e-6)
        assert row["seasonality"] == (None if season == 1 else pytest.approx(seasonality, abs=1e-6))


@given(panels, st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_of_series_and_the_shards_do_not_matter(series: list[np.ndarray], season: int, random: Any) -> None:
    whole = profile(make_panel(series), season)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SHARD", 5)
        assert_frame_equal(profile(make_panel(series), season), whole, abs_tol=1e-9)
    order = list(range(len(series)))
    random.shuffle(order)
    shuffled = profile(make_panel([series[number] for number in order]), season).drop("series_id")
    assert_frame_equal(shuffled, whole.drop("series_id")[order], abs_tol=1e-9)


# ---- What strengths mean ----


def test_a_season_is_seen_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=12)
    assert one(np.tile(pattern, 8), 12)["seasonality"] > 0.999
    assert one(np.tile(pattern, 8) + 0.5 * np.arange(96), 12)["seasonality"] > 0.999
    for length in (24, 30, 240):  # even where two seasons explain half of it
        noise = profile(make_panel(rng.normal(size=(400, length)).tolist()), 12)
        assert noise["seasonality"].median() < 0.08
        assert noise["trend"].median() < 0.08


def test_a_line_is_all_trend() -> None:
    for season in (1, 7, 12):
        row = one(1e6 + 10 * np.arange(60), season)
        assert row["trend"] == pytest.approx(1.0)
        assert row["seasonality"] == (None if season == 1 else 0.0)


def test_a_pure_season_has_no_trend() -> None:
    assert one(np.tile([1.0, 2, 3, 4, 5, 4, 3], 6), 7)["trend"] < 0.01


def test_what_float32_leaves_of_a_large_number_is_no_season() -> None:
    ramp = 1e7 + 0.5 * np.arange(400)  # float32 keeps whole numbers here: 0, 0, 1, 2, 2, 2, 3, 4, ...
    assert one(ramp, 4)["seasonality"] == 0.0
    assert one(ramp - 1e7, 4)["seasonality"] == 0.0


def test_series_much_smaller_than_their_neighbours_keep_their_digits() -> None:
    values = np.tile([1.0, 5, 2, 3, 3, 2, 9], 20) + np.random.default_rng(0).normal(size=140)
    alone = one(values * 1e-9, 7)
    found = profile(make_panel([values * 1e17, values * 1e-9, values * -1e17]), 7)
    assert found.row(1, named=True) == alone | {"series_id": "s0001"}
    assert found["seasonality"].to_list() == pytest.approx([alone["seasonality"]] * 3, abs=1e-6)


def test_gaps_barely_change_a_strength() -> None:
    rng = np.random.default_rng(0)
    values = np.tile(rng.normal(size=24), 30) + 0.5 * rng.normal(size=720)
    holes = values.copy()
    holes[1:-1][rng.random(718) < 0.2] = NAN
    assert one(holes, 24)["seasonality"] == pytest.approx(one(values, 24)["seasonality"], abs=0.03)


def test_the_season_is_that_of_the_local_clock() -> None:
    grid = Grid.natural(Frequency.parse("1h"), "Europe/Berlin")
    start = int(grid.index(pl.Series([datetime(2024, 1, 1)]).dt.replace_time_zone("Europe/Berlin"))[0])
    times = grid.timestamps(start + np.arange(24 * 360))
    local = times.dt.hour().to_numpy()
    found = profile(make_panel([np.sin(local * 2 * np.pi / 24) ** 3 + (local > 8)], grid, start), 24)
    assert found["seasonality"][0] > 0.99
    assert found["last"][0] == times[-1]


# ---- Quality and summary ----


def test_every_rejected_row_is_in_one_line_of_the_quality_table(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rows = table({"a": range(40), "b": range(40), "empty": [None] * 6, "bad": [float("inf")] * 2})
    extra = pl.DataFrame(
        {
            "series_id": ["a", "a", None],
            "timestamp": [datetime(2024, 1, 1), datetime(2024, 1, 3, 7), datetime(2024, 1, 5)],
            "target": [99.0, 1.5, None],
        },
        schema=rows.schema,
    )
    found = loaded(pl.concat([rows, extra]), 1, max_reject_share=1.0)
    lines = quality(found.rejects, found.counts)
    assert lines["rows"].sum() == found.counts.rows_rejected
    assert lines["share"].sum() == pytest.approx(found.counts.rows_rejected / found.counts.rows_in)
    assert lines["rows"].to_list() == sorted(lines["rows"], reverse=True)
    by_reason = {row["reason"]: row for row in lines.iter_rows(named=True)}
    assert by_reason["no observed target"] | {"share": 0} == {
        "reason": "no observed target", "rows": 6, "series": 2, "share": 0, "examples": "bad, empty",
    }  # fmt: skip
    assert by_reason["off-grid timestamp"]["examples"] == "a at 2024-01-03 07:00:00 (1.5)"
    assert by_reason["null series_id"]["examples"] == "no series_id at 2024-01-05"
    assert by_reason["null series_id"]["series"] == 0


def rejects(reasons: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "series_id": [f"s{number}" for number in range(len(reasons))],
            "timestamp": [datetime(2024, 1, 1) + timedelta(hours=number) for number in range(len(reasons))],
            "reason": reasons,
            "value": [float(number) for number in range(len(reasons))],
        },
        schema={"series_id": pl.String, "timestamp": pl.Datetime("us"), "reason": pl.String, "value": pl.Float64},
    )


def test_rows_of_data_known_path_are_shares_of_that_table() -> None:
    counts = Counts(rows_in=100, rows_rejected=1, known_rows_in=10, known_rows_rejected=2)
    found = quality(rejects(["data.known_path: x"] * 2 + ["off-grid timestamp"]), counts)
    assert found["reason"].to_list() == ["data.known_path: x", "off-grid timestamp"]
    assert found["share"].to_list() == [0.2, 0.01]


def test_five_offenders_are_named() -> None:
    found = quality(rejects(["x"] * 7), Counts(rows_in=10, rows_rejected=7))
    assert found["examples"][0].startswith("s0 at 2024-01-01 (0), s1 at 2024-01-01 01:00:00 (1), ")
    assert found["examples"][0].endswith("s4 at 2024-01-01 04:00:00 (4)")


def test_no_rejects_are_a_table_without_rows() -> None:
    found = quality(rejects([]), Counts(rows_in=3))
    assert found.is_empty()
    assert found.columns == ["reason", "rows", "series", "share", "examples"]


def test_the_summary_says_it_in_words() -> None:
    found = dict(summary(profile(make_panel([[1, NAN, 3], [0, 0, 0, 2], [-1]]), 7)).iter_rows())
    assert found == {
        "Series": "3",
        "Time": "2024-01-01 to 2024-01-04",
        "Steps": "8, 87.5 % observed",
        "Length": "1 to 4, median 3",
        "With gaps": "1 (33.3 %), longest gap 1",
        "Constant": "1 (33.3 %)",
        "Zeros": "42.9 % of the values, in 1 (33.3 %) of the series",
        "Negatives": "in 1 (33.3 %) of the series",
        "Outliers": "0 values, in 0 (0 %) of the series",
        "Demand": "smooth 1 (33.3 %), intermittent 1 (33.3 %)",
        "Seasonality": "not known for any series",
        "Trend": "not known for any series",
    }


def test_classes_have_frequencies_and_no_size() -> None:
    panel = make_panel([[1, NAN, 0, 1], [2, 2], [0, 1]])
    names = ("idle", "up", "down")
    found = profile(panel, 7, names)
    assert found.columns == [
        *("series_id", "first", "last", "length", "observed", "gaps", "longest_gap"),
        *("classes", "class", "share", "constant"),
    ]
    assert found.drop("series_id", "first", "last").rows() == [
        (4, 3, 1, 1, 2, "up", 2 / 3, False),
        (2, 2, 0, 0, 1, "down", 1.0, True),
        (2, 2, 0, 0, 2, "idle", 0.5, False),
    ]
    assert found.select("first", "last", "length", "gaps").equals(
        profile(panel, 7).select("first", "last", "length", "gaps")
    )
    assert frequencies(panel, names).rows() == [("up", 3, 3 / 7, 2), ("idle", 2, 2 / 7, 2), ("down", 2, 2 / 7, 1)]
    told = dict(summary(found).iter_rows())
    assert told["Classes"] == "1 to 2 in a series"
    assert told["Constant"] == "1 (33.3 %)"
    assert not told.keys() & {"Zeros", "Negatives", "Demand", "Seasonality", "Trend"}
