import math
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from forecast.data.load import Loaded
from forecast.drift import Span, drift

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
    span = Span(first, first + HALF, first + N - 1)
    return {row["column"]: row for row in drift(read.panel, read.data, read.categories, span).iter_rows(named=True)}


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
