"""The parts of a change add up to it, whatever the causes do together."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

import forecast as fc
from forecast.comparison.decompose import CAUSES, PARTS, by_series, decompose, shapley, shares
from forecast.errors import DataError
from forecast.training.result import FitResult

KEYS = [(name, datetime(2024, 1, 1) + timedelta(days=day)) for name in "abc" for day in range(4)]


def frame(values: np.ndarray, keys: Sequence[tuple[str, datetime]] = KEYS) -> pl.DataFrame:
    return pl.DataFrame({"series_id": [key[0] for key in keys], "timestamp": [key[1] for key in keys], "mean": values})


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_the_parts_are_those_of_any_order_on_average(count: int) -> None:
    rng = np.random.default_rng(count)
    causes = CAUSES[:count]
    table = {
        frozenset(c for c, on in zip(CAUSES, bits, strict=True) if on): rng.normal(size=5)
        for bits in np.ndindex(2, 2, 2)
    }
    parts = shapley(causes, table.__getitem__)
    assert set(parts) == set(causes)
    total = table[frozenset(causes)] - table[frozenset()]
    np.testing.assert_allclose(sum(parts.values(), np.zeros(5)), total, atol=1e-12)


def test_causes_that_add_up_have_their_effects_and_one_without_effect_has_none() -> None:
    effects = {"data": 2.0, "model": -3.0, "covariates": 0.0}
    parts = shapley(CAUSES, lambda part: np.full(4, sum(effects[name] for name in part)))
    for name, effect in effects.items():
        np.testing.assert_allclose(parts[name], effect)
    twice = shapley(CAUSES[:2], lambda part: np.array([float(len(part) == 2)]))
    assert twice["data"] == twice["model"] == 0.5


def test_rows_add_up_and_what_can_not_be_computed_again_is_other() -> None:
    rng = np.random.default_rng(7)
    stored = {name: frame(rng.normal(size=12)) for name in ("before", "after")}
    again = {
        part: frame(rng.normal(size=12)) for part in map(frozenset, ((), ("data",), ("model",), ("data", "model")))
    }
    again[frozenset({"model"})] = again[frozenset({"model"})].filter(pl.col("series_id") != "b")
    rows = decompose(stored["before"], stored["after"].head(9), ["data", "model"], again.__getitem__)
    assert rows.height == 9
    np.testing.assert_allclose(rows.select(pl.sum_horizontal(PARTS)).to_series(), rows["change"], atol=1e-12)
    np.testing.assert_allclose(rows["change"], rows["mean_after"] - rows["mean_before"])
    missing = rows.filter(series_id="b")
    assert missing["other"].equals(missing["change"].alias("other"))
    assert (rows.filter(series_id="a")["data"] != 0).all()
    assert (rows["covariates"] == 0).all()
    series = by_series(rows)
    assert series["change"].abs().is_sorted(descending=True)
    assert series["steps"].sum() == 9
    assert sum(shares(rows).values()) == pytest.approx(1)


def test_a_function_divides_the_change_of_a_forecast(trained: FitResult, weekly_table: pl.DataFrame) -> None:
    before, table = trained.artifact, weekly_table
    last = table.filter(pl.col("target").is_not_null())["timestamp"].max()
    cutoffs = str(last - timedelta(days=2)), str(last)
    changes = fc.compare(before, before, table, cutoffs=cutoffs)
    first, second = (fc.forecast(before, table, cutoff=cutoff).frame for cutoff in cutoffs)
    common = first.join(second, on=["series_id", "timestamp"]).sort("series_id", "timestamp")
    assert changes.height == common.height > 0
    np.testing.assert_allclose(changes["change"], common["mean_right"] - common["mean"], atol=1e-6)
    np.testing.assert_allclose(changes["data"], changes["change"], atol=1e-9)
    assert changes.select(pl.col("model", "covariates").abs().sum()).row(0) == (0.0, 0.0)
    with pytest.raises(DataError, match="no timestamp in common"):
        fc.compare(before, before, table, cutoffs=(str(last - timedelta(days=20)), str(last)))
