"""Coverage of the 80 % interval: when it falls short by more than chance, which knows what series and days share."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import MonitorSettings
from forecast.monitoring.coverage import BAND, Coverage, CoverageSums

LIMIT = MonitorSettings().thresholds.min_coverage_80


def days(
    rng: np.random.Generator,
    *,
    n: int,
    nights: int,
    recent: int,
    shared: float = 0.0,
    factor: float = 1.0,
    **panel: Any,
) -> pl.DataFrame:
    """Sums of series whose intervals are right, after some nights: random walks, or noise.

    A share of their variance is that of the date. In the recent window steps are `factor` times as large.
    """
    horizon, walk = panel["horizon"], panel["walk"]
    steps = rng.normal(size=(n, nights + 1)) * np.sqrt(1 - shared) + rng.normal(size=nights + 1) * np.sqrt(shared)
    steps[:, nights - recent + 1 :] *= factor
    values = steps.cumsum(1) if walk else steps
    cutoff, step = (grid.ravel() for grid in np.meshgrid(np.arange(nights), np.arange(1, horizon + 1)))
    inside = (cutoff + step <= nights) & (cutoff + step > nights - 5 * recent)
    cutoff, step = cutoff[inside], step[inside]
    at = cutoff + step
    error = np.abs(values[:, at] - (values[:, cutoff] if walk else 0.0))
    covered = error <= 1.2816 * (np.sqrt(step) if walk else 1.0)
    keys = pl.DataFrame(
        {
            "window": np.where(at > nights - recent, "recent", "history").tolist() * n,
            "day": [datetime(2024, 1, 1) + timedelta(days=day) for day in at.tolist()] * n,
            "series_id": np.repeat(np.arange(n), len(at)),
        }
    )
    return keys.with_columns(covered_80=pl.Series(covered.ravel()).cast(pl.Int64), n_steps=1)


def coverage_of(table: pl.DataFrame) -> Coverage:
    sums = CoverageSums()
    sums.add(table)
    return sums.coverage()


def breached(coverage: Coverage) -> bool:
    assert coverage.value is not None
    assert LIMIT is not None
    return coverage.chance is not None and coverage.value < LIMIT and not coverage.may_be_chance


PANELS = [(7, 7), (8, 4), (6, 4)]
"""Horizon and recent window: daily, weekly, monthly."""


@pytest.mark.parametrize("walk", [True, False])
@pytest.mark.parametrize(("horizon", "recent"), PANELS)
def test_intervals_that_are_right_are_no_breach_and_those_that_are_not_are(
    horizon: int, recent: int, walk: bool
) -> None:
    rng = np.random.default_rng(0)
    counts = {}
    for shared, factor in ((0.0, 1.0), (0.2, 1.0), (0.0, 4.0), (0.2, 4.0)):
        panels = [
            days(rng, n=30, nights=nights, recent=recent, shared=shared, factor=factor, horizon=horizon, walk=walk)
            for nights in (recent + 4, 5 * recent + 8)
            for _ in range(5)
        ]
        counts[shared, factor] = sum(breached(coverage_of(panel)) for panel in panels)
    # Of 10: two are rare at 1 %.
    assert counts[0.0, 1.0] == 0
    assert counts[0.2, 1.0] <= 1
    assert counts[0.0, 4.0] >= 9
    assert counts[0.2, 4.0] >= 7


def test_one_odd_day_of_all_series_may_be_chance() -> None:
    rows = [(day, series, int(day != 4)) for day in range(1, 5) for series in range(150)]
    table = pl.DataFrame(rows, schema=["day", "series_id", "covered_80"], orient="row")
    table = table.with_columns(
        pl.col("day").map_elements(lambda day: datetime(2024, 1, day)), n_steps=1, window=pl.lit("recent")
    )
    one = coverage_of(table)
    assert one.value == 0.75
    assert one.may_be_chance
    # Three of four are not what one day does, but four days say little: all of them are needed.
    three = coverage_of(table.with_columns(covered_80=1 - pl.col("covered_80")))
    assert three.value == 0.25
    assert three.may_be_chance
    assert breached(coverage_of(table.with_columns(covered_80=pl.lit(0))))


def test_a_window_that_is_wrong_in_part_is_a_breach_once_there_is_a_history() -> None:
    """Three weeks of four that are wrong in all series: the weeks before say that this is not usual."""
    table = days(np.random.default_rng(0), n=60, nights=28, recent=4, horizon=8, walk=False)
    wrong = (pl.col("window") == "recent") & (pl.col("day") > pl.col("day").max() - timedelta(days=3))
    table = table.with_columns(covered_80=pl.when(wrong).then(0).otherwise("covered_80"))
    assert breached(coverage_of(table))
    assert not breached(coverage_of(table.filter(window="recent")))


def test_one_series_is_not_judged_nor_are_intervals_that_are_not_there() -> None:
    table = days(np.random.default_rng(0), n=1, nights=20, recent=7, horizon=7, walk=False)
    assert coverage_of(table).value is not None
    assert coverage_of(table).chance is None
    assert coverage_of(table.drop("covered_80")) == Coverage(None, None)
    assert coverage_of(table.filter(window="history")) == Coverage(None, None)
    assert BAND == 0.8
