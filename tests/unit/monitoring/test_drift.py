import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy import stats

from forecast.data.ingest.loaded import Loaded
from forecast.monitoring.drift import Cycles, Span, cycles, drift

N, HALF = 200, 100
CITIES = ["oslo", "rome"]


def made(table: Callable[..., pl.DataFrame], *, seed: int = 0) -> pl.DataFrame:
    """Four daily series of very different sizes with a rain, a promo and a kind that do not change."""
    rng = np.random.default_rng(seed)
    series = {f"s{k}": 10.0**k * (5 + rng.normal(size=N)) for k in range(4)}
    return table(
        series,
        rain={name: rng.gamma(2.0, size=N) for name in series},
        promo={name: rng.integers(0, 2, N).astype(float) for name in series},
        kind={name: rng.choice(CITIES, N).tolist() for name in series},
    )


def found(frame: pl.DataFrame, loaded: Callable[..., Loaded]) -> dict[str, dict[str, float]]:
    columns = {"past_covariates": ["rain", "kind"], "known_covariates": ["promo"]}
    # The values of the second half are not those of training: their own code is 0.
    read = loaded(frame, 3, {"kind": tuple(CITIES)}, **columns)
    first = int(read.panel.start.min())
    halves = Cycles(first + HALF, (first,), HALF)
    return {row["column"]: row for row in drift(read.panel, read.data, read.categories, halves).iter_rows(named=True)}


def late(frame: pl.DataFrame) -> pl.Expr:
    return pl.col("timestamp") >= frame["timestamp"].min() + timedelta(days=HALF)  # type: ignore[operator]


def test_what_does_not_change_does_not_drift(table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]) -> None:
    rows = found(made(table), loaded)
    assert list(rows) == ["target", "rain", "kind", "promo"]
    assert [row["role"] for row in rows.values()] == ["target", "past", "past", "known"]
    assert all(row["psi"] < 0.1 for row in rows.values())
    assert all(row["missing"] == row["missing_before"] == 0 for row in rows.values())
    assert rows["kind"]["unseen"] == 0
    assert rows["kind"]["ks"] is None
    assert rows["rain"]["values"] == rows["rain"]["values_before"] == 4 * HALF


def test_a_shifted_covariate_drifts_and_the_others_do_not(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    frame = made(table)
    moved = frame.with_columns(rain=pl.when(late(frame)).then(pl.col("rain") + 2).otherwise("rain"))
    before, after = found(frame, loaded), found(moved, loaded)
    assert after["rain"]["psi"] > 0.25
    assert after["rain"]["ks"] > 0.3
    for name in ("target", "kind", "promo"):
        assert after[name] == before[name]


def test_a_target_drifts_in_the_units_of_its_series(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    frame = made(table)
    doubled = pl.when(late(frame), pl.col("series_id").is_in(["s0", "s1"])).then(pl.col("target") * 2)
    rows = found(frame.with_columns(target=doubled.otherwise("target")), loaded)
    assert rows["target"]["psi"] > 0.25  # The small ones, which are lost beside the others in their sum.
    assert rows["rain"]["psi"] < 0.1


def test_missing_and_unseen_values_are_shares_of_the_window(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    frame = made(table)
    every = pl.int_range(pl.len()).over("series_id")
    holes = frame.with_columns(
        rain=pl.when(late(frame) & (every % 4 == 0)).then(None).otherwise("rain"),
        kind=pl.when(late(frame) & (every % 5 == 0)).then(pl.lit("bern")).otherwise("kind"),
    )
    rows = found(holes, loaded)
    assert (rows["rain"]["missing"], rows["rain"]["missing_before"]) == (0.25, 0)
    assert (rows["kind"]["unseen"], rows["kind"]["unseen_before"]) == pytest.approx((0.2, 0))
    ended = frame.filter(~late(frame) | (pl.col("series_id") != "s3"))
    assert found(ended, loaded)["target"]["missing"] == 0.25  # A series that does not report is missing.


def test_the_index_of_categories_is_what_it_is_by_hand(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    frame = made(table)
    row = found(frame.with_columns(kind=pl.when(late(frame)).then(pl.lit("oslo")).otherwise("kind")), loaded)["kind"]
    n, oslo = 4 * HALF, frame.filter(~late(frame), kind="oslo").height
    p = [(count + 0.5) / (n + 1) for count in (oslo, n - oslo)]
    q = [(count + 0.5) / (n + 1) for count in (n, 0)]
    assert row["psi"] == pytest.approx(sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True)))


def test_few_values_say_nothing(table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]) -> None:
    rows = found(made(table).filter(pl.col("series_id") == "s0").gather_every(3), loaded)
    assert rows["rain"]["psi"] is None
    assert rows["rain"]["ks"] is None


# --- whole cycles


def regular(loaded: Callable[..., Loaded], freq: str, steps: int, n: int = 1, **data: object) -> Loaded:
    """A panel of n series on a frequency, whose targets are of no matter."""
    moments = pl.datetime_range(datetime(2001, 1, 1), datetime(2101, 1, 1), freq.replace("bd", "d"), eager=True)
    if freq.endswith("bd"):
        moments = moments.filter(moments.dt.weekday() <= 5)
    parts = [
        pl.DataFrame({"series_id": f"s{k:03d}", "timestamp": moments.head(steps), "target": 1.0}) for k in range(n)
    ]
    return loaded(pl.concat(parts), 1, freq=freq, **data)


@pytest.mark.parametrize(
    ("freq", "steps", "recent", "data", "length", "apart", "count"),
    [
        ("1h", 24 * 70, 24, {}, 168, 168, 4),
        ("1h", 24 * 70, 200, {}, 336, 336, 4),
        ("1h", 24 * 20, 24, {}, 168, 168, 1),
        ("1h", 24 * 10, 24, {}, 168, 168, 0),
        ("15m", 96 * 40, 96, {}, 672, 672, 4),
        ("5h", 34 * 40, 5, {}, 168, 168, 4),  # five weeks, until the hours are the same again
        ("1h", 24 * 300, 24, {"season_length": 24 * 28}, 168, 672, 4),
        ("1d", 100, 7, {}, 7, 7, 4),
        ("1d", 100, 10, {}, 14, 14, 4),
        ("1d", 1000, 10, {"season_length": 365}, 14, 371, 2),
        ("1bd", 100, 5, {}, 5, 5, 4),
        ("1w", 300, 4, {}, 4, 52, 4),
        ("1w", 120, 4, {}, 4, 52, 2),
        ("1w", 50, 4, {}, 4, 52, 0),
        ("1w", 500, 60, {}, 60, 104, 4),
        ("1mo", 80, 3, {}, 3, 12, 4),
        ("1q", 40, 2, {}, 2, 4, 4),
        ("1y", 40, 2, {}, 2, 2, 4),
    ],
)
def test_windows_are_the_same_part_of_earlier_cycles(
    loaded: Callable[..., Loaded],
    freq: str,
    steps: int,
    recent: int,
    data: dict[str, int],
    length: int,
    apart: int,
    count: int,
) -> None:
    read = regular(loaded, freq, steps, **data)
    end = read.panel.last_index
    found = cycles(read.panel, read.data, Span(end - 5 * recent + 1, end - recent + 1, end))
    assert found.length == length
    assert found.last(found.recent) == end
    assert [found.recent - at for at in found.before] == [apart * (k + 1) for k in range(count)]


def test_days_that_differ_by_weekday_do_not_drift_on_any_day(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(0)
    hours = np.arange(24 * 7 * 7)
    busy = np.where(hours // 24 % 7 < 5, 4.0, 0.0)
    series = {f"s{k}": 10 * k + busy + np.sin(hours / 24 * 2 * np.pi) + rng.normal(size=len(hours)) for k in range(5)}
    read = loaded(table(series, every=timedelta(hours=1)), 24, freq="1h")
    for day in range(7):
        end = read.panel.last_index - 24 * day
        span = Span(end - 5 * 24 + 1, end - 24 + 1, end)
        row = drift(read.panel, read.data, {}, cycles(read.panel, read.data, span)).row(0, named=True)
        assert row["psi"] < 0.05
        assert row["psi"] < row["psi_chance"]
        assert row["ks"] < 0.1
        assert (row["missing"], row["values"], row["values_before"]) == (0, 5 * 168, 4 * 5 * 168)


def test_without_an_earlier_cycle_there_is_no_verdict(loaded: Callable[..., Loaded]) -> None:
    read = regular(loaded, "1w", 50, n=60)
    end = read.panel.last_index
    row = drift(read.panel, read.data, {}, cycles(read.panel, read.data, Span(end - 19, end - 3, end))).row(
        0, named=True
    )
    assert {name: row[name] for name in ("psi", "psi_chance", "ks", "missing_before")} == dict.fromkeys(
        ("psi", "psi_chance", "ks", "missing_before")
    )
    assert (row["values"], row["values_before"], row["missing"]) == (240, 0, 0)


def looks(loaded: Callable[..., Loaded], freq: str, steps: int, n: int, period: int, recent: int, shift: float) -> int:
    """Return how many of 40 panels of seasonal series that share shocks, and remember them, have drift above 0.25."""
    rng, read, hits = np.random.default_rng(7), regular(loaded, freq, steps, n), 0
    end = read.panel.last_index
    windows = cycles(read.panel, read.data, Span(end - 5 * recent + 1, end - recent + 1, end))
    for _ in range(40):
        noise = np.concatenate([rng.normal(size=(n, steps)), rng.normal(size=(1, steps))])
        for t in range(1, steps):
            noise[:, t] = 0.5 * noise[:, t - 1] + 0.75**0.5 * noise[:, t]
        values = 10 + 2 * rng.normal(size=(n, period))[:, np.arange(steps) % period]
        values += 0.9**0.5 * noise[:-1] + 0.1**0.5 * noise[-1]
        values[:, -windows.length :] += shift
        panel = replace(read.panel, target=values.astype(np.float32).ravel())
        row = drift(panel, read.data, {}, windows).row(0, named=True)
        hits += row["psi"] > max(0.25, row["psi_chance"])
    return hits


@pytest.mark.parametrize(
    ("freq", "steps", "n", "period", "recent"),
    [
        ("1h", 24 * 38, 5, 168, 24),
        ("1d", 50, 20, 7, 7),
        ("1d", 30, 20, 7, 7),  # a history of two weeks
        ("1w", 220, 60, 52, 4),
        ("1w", 60, 60, 52, 4),
        ("1mo", 70, 50, 12, 3),
    ],
)
def test_chance_is_no_drift_and_drift_is_seen(
    loaded: Callable[..., Loaded], freq: str, steps: int, n: int, period: int, recent: int
) -> None:
    assert looks(loaded, freq, steps, n, period, recent, 0.0) <= stats.binom.ppf(1 - 1e-3, 40, 0.01)
    assert looks(loaded, freq, steps, n, period, recent, 3.0) >= 0.9 * 40
