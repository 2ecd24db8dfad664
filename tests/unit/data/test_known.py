"""Covariates from tables of their own, text as categories, and what is missing of them."""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.missing_known import missing_known
from forecast.data.sources.open import Tables
from forecast.errors import DataError

FIRST = datetime(2024, 1, 1)


def days(n: int, first: int = 0) -> list[datetime]:
    return [FIRST + timedelta(days=first + step) for step in range(n)]


def sales(**lengths: int) -> pl.DataFrame:
    parts = [
        pl.DataFrame({"series_id": name, "timestamp": days(length), "target": np.arange(length, dtype=float)})
        for name, length in lengths.items()
    ]
    return pl.concat(parts)


def load(
    rows: pl.DataFrame,
    known: pl.DataFrame | None = None,
    static: pl.DataFrame | None = None,
    horizon: int = 2,
    categories: dict[str, tuple[str, ...]] | None = None,
    **data: Any,
) -> Loaded:
    tables = Tables(rows.lazy(), *(None if table is None else table.lazy() for table in (known, static)))
    loaded = load_panel(tables, DataConfig.model_validate({"freq": "1d"} | data), horizon, categories)
    counts = loaded.counts
    assert counts.known_rows_in == (0 if known is None else known.height)
    assert counts.known_rows_in == counts.known_rows_kept + counts.known_rows_rejected + counts.known_rows_unused
    return loaded


def test_a_second_table_reaches_over_the_horizon_of_each_series() -> None:
    known = pl.DataFrame(
        {
            "series_id": ["a"] * 6 + ["b"] * 3 + ["z"],
            "timestamp": [*days(6), *days(3), FIRST],
            "price": [*np.arange(6.0), 10.0, 11.0, 12.0, 99.0],
        }
    )
    loaded = load(sales(a=3, b=2), known.sample(fraction=1.0, shuffle=True, seed=1), known_covariates=["price"])
    assert np.array_equal(loaded.panel.known, [[0, 1, 2, 3, 4, 10, 11, 12, np.nan]], equal_nan=True)
    assert (loaded.counts.known_rows_kept, loaded.counts.known_rows_unused) == (9, 1)
    missing = missing_known(loaded.panel, loaded.data, horizon=2)
    assert missing.rows() == [("b", "price", 0, 1)]
    # From the second day on, which a has beyond; three days ahead are not held for b.
    later = missing_known(loaded.panel, loaded.data, horizon=3, cutoff=int(loaded.panel.start[0]) + 1)
    assert later.rows() == [("b", "price", 0, 2)]


def test_a_table_without_ids_is_for_all_series() -> None:
    known = pl.DataFrame({"timestamp": [date(2024, 1, day) for day in range(1, 6)], "open": [True, False] * 2 + [True]})
    loaded = load(sales(a=3, b=1), known, known_covariates=["open"])
    assert loaded.panel.known.tolist() == [[1, 0, 1, 0, 1, 1, 0, 1]]
    assert missing_known(loaded.panel, loaded.data, horizon=2).is_empty()


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_a_table_of_its_own_gives_what_columns_of_the_first_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = sales(a=int(rng.integers(2, 9)), b=int(rng.integers(1, 9)), c=3)
    rows = rows.with_columns(
        price=pl.Series(rng.normal(size=rows.height)), event=pl.Series(rng.choice(["x", "y"], rows.height))
    )
    names = {"known_covariates": ["price", "event"]}
    together = load(rows, **names)
    apart = load(
        rows.select("series_id", "timestamp", "target"),
        rows.drop("target").sample(fraction=1.0, shuffle=True, seed=seed),
        **names,
    )
    assert apart.categories == together.categories
    assert np.array_equal(apart.panel.known, together.panel.known, equal_nan=True)
    assert apart.digest == together.digest


def test_bad_rows_of_the_second_table_are_rejected_with_its_name() -> None:
    known = pl.DataFrame(
        {
            "series_id": ["a", "a", "a", None, "a", "a"],
            "timestamp": [*days(2), FIRST + timedelta(hours=5), FIRST, None, FIRST],
            "price": [1.0, float("inf"), 2.0, 3.0, 4.0, 9.0],
        }
    )
    loaded = load(sales(a=3), known, known_covariates=["price"], max_reject_share=1.0)
    found = sorted(loaded.rejects["reason"].str.strip_prefix("data.known_path: "))
    assert found == [
        "duplicate key with different values",
        "duplicate key with different values",
        "null series_id",
        "null timestamp",
        "off-grid timestamp",
        "price not finite",
    ]
    assert all(reason.startswith("data.known_path: ") for reason in loaded.rejects["reason"])
    assert loaded.counts.rows_rejected == 0
    with pytest.raises(DataError, match=r"of data.known_path 6 of 6 rows"):
        load(sales(a=3), known, known_covariates=["price"])


def test_static_covariates_of_their_own_table() -> None:
    static = pl.DataFrame({"series_id": ["b", "a", "z"], "city": ["Ulm", "Bonn", "Kiel"], "size": [2.0, None, 9.0]})
    loaded = load(sales(a=2, b=2, c=2), static=static, static_covariates=["city", "size"])
    assert loaded.categories == {"city": ("Bonn", "Ulm")}
    assert loaded.panel.static_categories.tolist() == [[1], [2], [0]]
    assert np.array_equal(loaded.panel.static_numbers, [[np.nan], [2], [np.nan]], equal_nan=True)
    twice = pl.concat([static, static.with_columns(city=pl.lit("Trier"))])
    with pytest.raises(DataError, match=r"'city' has more than one value in 3 of 3 series: a \(Bonn, Trier\)"):
        load(sales(a=2, b=2), static=twice, static_covariates=["city", "size"])


def test_text_covariates_are_codes_and_new_values_are_the_unseen_one() -> None:
    rows = sales(a=4).with_columns(event=pl.Series(["fair", None, "match", "fair"]), mood=pl.lit("good"))
    names = {"known_covariates": ["event"], "past_covariates": ["mood"]}
    loaded = load(rows, **names)
    assert loaded.categories == {"event": ("fair", "match"), "mood": ("good",)}
    assert np.array_equal(loaded.panel.known, [[1, np.nan, 2, 1, np.nan, np.nan]], equal_nan=True)
    assert loaded.panel.past.tolist() == [[1, 1, 1, 1]]
    later = rows.with_columns(event=pl.lit("strike"), mood=pl.lit("good"))
    again = load(later, categories=loaded.categories, **names)
    assert again.panel.known[0, :4].tolist() == [0, 0, 0, 0]
    assert again.panel.past.tolist() == [[1, 1, 1, 1]]


def test_missing_columns_name_their_own_table() -> None:
    with pytest.raises(DataError, match=r"no column 'price' \(data.known_covariates\); did you mean 'Price'\?"):
        load(sales(a=3), pl.DataFrame({"timestamp": days(3), "Price": [1.0] * 3}), known_covariates=["price"])
    with pytest.raises(DataError, match=r"no column 'city' \(data.static_covariates\)"):
        load(sales(a=3), static=pl.DataFrame({"series_id": ["a"]}), static_covariates=["city"])
