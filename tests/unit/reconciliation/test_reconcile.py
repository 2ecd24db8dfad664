"""Reconciliation against the formulas that it is of, on forecasts that are made up."""

import sys
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy.special import ndtri

import forecast as fc
from forecast.config import ReconcileSettings
from forecast.errors import ConfigError, DataError
from forecast.reconciliation.hierarchy import Hierarchy, aggregated, hierarchy_of
from forecast.reconciliation.reconcile import Reconciled, incoherence, past_errors, reconcile

CUTOFF, HORIZON = datetime(2024, 3, 1), 3
LEVELS = (0.1, 0.5, 0.9)
QUANTILES = ["q10", "q50", "q90"]
STORES = pl.DataFrame(
    {
        "series_id": ["a1", "a2", "b1", "b2", "b3"],
        "state": ["a", "a", "b", "b", "b"],
        "kind": ["big", "small", "small", "big", "big"],
    }
)
NODES = ["total", "state=a", "state=b", *STORES["series_id"]]
SUMMING = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], *np.eye(5).tolist()])
SIZE = np.array([10.0, 20.0, 5.0, 1.0, 30.0])


def forecasts(names: list[str], middle: np.ndarray, sigma: np.ndarray, cutoff: datetime = CUTOFF) -> pl.DataFrame:
    """Normal forecasts [node, step], a little to the right of which is the mean."""
    n, horizon = middle.shape
    steps = np.tile(np.arange(1, horizon + 1, dtype=np.int32), n)
    return pl.DataFrame(
        {
            "series_id": np.repeat(names, horizon),
            "timestamp": [cutoff + timedelta(days=int(step)) for step in steps],
            "cutoff": [cutoff] * len(steps),
            "step": steps,
            "mean": middle.ravel() + 0.5,
            **{name: (middle + ndtri(level) * sigma).ravel() for name, level in zip(QUANTILES, LEVELS, strict=True)},
            "source": ["pretrained"] * len(steps),
            "model_version": ["3"] * len(steps),
        }
    )


def of_all(seed: int = 0) -> tuple[pl.DataFrame, np.ndarray, np.ndarray]:
    """Return forecasts of all nodes that do not add up, their medians and standard deviations."""
    rng = np.random.default_rng(seed)
    middle = SUMMING @ (SIZE[:, None] + rng.normal(size=(5, HORIZON))) + rng.normal(size=(8, HORIZON))
    sigma = rng.uniform(0.5, 2, (8, HORIZON))
    return forecasts(NODES, middle, sigma), middle, sigma


def tree(*by: Any) -> Hierarchy:
    return hierarchy_of(STORES, by or ("state",))


def settings(method: str = "bottom_up", **others: Any) -> ReconcileSettings:
    return ReconcileSettings(by=("state",), method=method, **others)


def matrix(found: Reconciled, column: str) -> np.ndarray:
    return found.frame[column].to_numpy().reshape(-1, HORIZON)


def adds_up(found: Reconciled, summing: np.ndarray = SUMMING) -> None:
    for column in ("mean", "q50"):
        values = matrix(found, column)
        np.testing.assert_allclose(values, summing @ values[-5:], rtol=1e-12)
    assert (np.diff(found.frame.select(QUANTILES).to_numpy()) >= 0).all()
    assert found.incoherence["relative"] < 1e-12
    assert found.frame.select("series_id", "step").is_unique().all()


def test_levels_are_nested_or_cross() -> None:
    made = tree("state", "kind")
    assert made.nodes[:7] == [
        "total",
        "state=a",
        "state=b",
        "state=a/kind=big",
        "state=a/kind=small",
        "state=b/kind=big",
        "state=b/kind=small",
    ]
    assert dict.fromkeys(made.level) == dict.fromkeys(("total", "state", "state/kind", "series"))
    crossing = tree(("state",), ("kind",))
    assert crossing.nodes[1:5] == ["state=a", "state=b", "kind=big", "kind=small"]
    np.testing.assert_array_equal(crossing.summing.toarray()[3:5], [[1, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(tree().summing.toarray(), SUMMING)


def test_bottom_up_sums_the_series_and_leaves_them_as_they_were() -> None:
    every, middle, sigma = of_all()
    series = every.filter(pl.col("series_id").is_in(STORES["series_id"]))
    found = reconcile(series, tree(), settings())
    adds_up(found)
    np.testing.assert_allclose(matrix(found, "q50"), SUMMING @ middle[3:])
    own = found.frame.filter(level="series").drop("level")
    assert_frame_equal(own, series)
    # Sums of independent normal errors.
    width = matrix(found, "q90") - matrix(found, "q50")
    np.testing.assert_allclose(width / ndtri(0.9), np.sqrt(SUMMING @ sigma[3:] ** 2))
    assert found.frame.columns == ["series_id", "level", *series.columns[1:]]
    assert found.summary.rows() == [("total", 1, None), ("state", 2, None), ("series", 5, pytest.approx(0.0, abs=1e-9))]
    assert found.counts == {"nodes": 8, "series": 5, "dropped": 0, "errors": 0, "negative": 0}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("method", ["bottom_up", "ols", "top_down"])
def test_a_node_without_a_width_takes_that_of_a_normal_distribution(method: str) -> None:
    sigma = np.ones((8, HORIZON))
    sigma[[1, 3, 4]] = 0  # state a and both of its series
    found = reconcile(forecasts(NODES, SUMMING @ np.tile(SIZE[:, None], HORIZON), sigma), tree(), settings(method))
    adds_up(found)
    width = (matrix(found, "q90") - matrix(found, "q50")) / ndtri(0.9)
    assert np.isfinite(width).all()
    if method == "bottom_up":
        np.testing.assert_allclose(width, np.sqrt(SUMMING @ sigma[3:] ** 2))


@pytest.mark.parametrize("method", ["ols", "wls_struct", "mint_shrink"])
def test_projections_are_those_of_the_formula(method: str) -> None:
    every, middle, sigma = of_all()
    rng = np.random.default_rng(1)
    error = rng.normal(size=(8, 40)) * np.arange(1, 9)[:, None]
    errors = pl.DataFrame({"cutoff": [CUTOFF] * 40, "step": range(40), **dict(zip(NODES, error, strict=True))})
    found = reconcile(every, tree(), settings(method), errors=errors if method == "mint_shrink" else None)
    adds_up(found)
    weight = {"ols": np.eye(8), "wls_struct": np.diag(SUMMING.sum(1))}.get(method)
    if weight is not None:
        inverse = np.linalg.inv(weight)
        mapping = np.linalg.solve(SUMMING.T @ inverse @ SUMMING, SUMMING.T @ inverse)
        np.testing.assert_allclose(matrix(found, "q50"), SUMMING @ mapping @ middle, rtol=1e-6)
        covariance = [SUMMING @ mapping @ np.diag(s**2) @ mapping.T @ SUMMING.T for s in sigma.T]
        deviation = np.sqrt([np.diag(each) for each in covariance]).T
        np.testing.assert_allclose(
            (matrix(found, "q90") - matrix(found, "q10")) / (2 * ndtri(0.9)), deviation, rtol=1e-6
        )
    else:
        assert found.counts["errors"] == 40
        moved = np.abs(matrix(found, "q50") - middle).mean(1)
        assert moved[0] < moved[-1] or moved[3] < moved[-1], "what errs less moves less"
    coherent = reconcile(found.frame.drop("level"), tree(), settings(method), errors=errors)
    np.testing.assert_allclose(matrix(coherent, "q50"), matrix(found, "q50"), rtol=1e-6, err_msg="a projection")


def test_top_down_and_middle_out_keep_their_level() -> None:
    every, middle, _ = of_all()
    top = reconcile(every, tree(), settings("top_down"))
    adds_up(top)
    np.testing.assert_allclose(matrix(top, "q50")[0], middle[0])
    mean = middle + 0.5
    share = mean[1] / (mean[1] + mean[2]) * mean[3] / (mean[3] + mean[4])
    np.testing.assert_allclose(matrix(top, "mean")[3], share * mean[0])
    out = reconcile(every, tree(), settings("middle_out", middle="state"))
    adds_up(out)
    np.testing.assert_allclose(matrix(out, "q50")[1:3], middle[1:3])
    with pytest.raises(ConfigError, match=r"reconcile.middle: 'city' is no level between .* there are total, state"):
        reconcile(every, tree(), settings("middle_out", middle="city"))


def test_errors_of_the_past_widen_the_sums_of_series_that_err_together() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(size=(1, 200))
    error = 3 * common + 0.3 * rng.normal(size=(5, 200))
    errors = pl.DataFrame({"cutoff": [CUTOFF] * 200, "step": range(200), **dict(zip(NODES[3:], error, strict=True))})
    series = forecasts(NODES[3:], np.tile(SIZE[:, None], HORIZON), np.ones((5, HORIZON)))
    alone, together = (reconcile(series, tree(), settings(), errors=known) for known in (None, errors))
    width = [matrix(found, "q90")[0] - matrix(found, "q50")[0] for found in (alone, together)]
    np.testing.assert_allclose(width[0] / ndtri(0.9), np.sqrt(5))
    np.testing.assert_allclose(width[1] / ndtri(0.9), 5, rtol=0.03)
    np.testing.assert_allclose(matrix(together, "q90")[3:], matrix(alone, "q90")[3:], rtol=1e-9)
    noise = pl.DataFrame({"cutoff": [CUTOFF] * 9, "step": range(9), **{n: rng.normal(size=9) for n in NODES[3:]}})
    near = reconcile(series, tree(), settings(), errors=noise)
    assert matrix(near, "q90")[0] - matrix(near, "q50")[0] == pytest.approx(width[0], rel=0.25), "shrunk"


def test_sums_of_a_table_and_errors_of_past_forecasts() -> None:
    days = [CUTOFF + timedelta(days=k) for k in range(4)]
    table = pl.DataFrame(
        {
            "series_id": np.repeat(STORES["series_id"], 4),
            "timestamp": days * 5,
            "target": [float(k) for k in range(20)],
        }
    ).with_columns(target=pl.when(pl.int_range(pl.len()) == 1).then(None).otherwise("target"))
    made = aggregated(table, tree())
    assert made.filter(series_id="state=b")["target"].to_list() == [36.0, 39.0, 42.0, 45.0]
    assert made.filter(series_id="total")["target"].to_list() == [40.0, None, 50.0, 55.0]
    past = forecasts(["total", "b1"], np.full((2, HORIZON), 7.0), np.ones((2, HORIZON)))
    errors = past_errors(past, table, tree())
    assert errors.columns == ["cutoff", "step", "total", "b1"]
    assert errors["total"].to_list() == [None, 42.5, 47.5]
    assert errors["b1"].to_list() == [1.5, 2.5, 3.5]
    assert_frame_equal(fc.aggregate(table, STORES, by=["state"]), made)


def test_of_a_series_without_a_forecast_it_is_told_or_left_out() -> None:
    every, middle, _ = of_all()
    names = [name for name in NODES[3:] if name != "b2"]
    some = every.filter(pl.col("series_id").is_in(names))
    with pytest.raises(DataError, match=r"1 of 5 series of the hierarchy have no forecast: b2; score them, or"):
        reconcile(some, tree(), settings())
    found = reconcile(some, tree(), settings(missing="drop"))
    assert found.counts["dropped"] == 1
    np.testing.assert_allclose(matrix(found, "q50")[0], middle[[3, 4, 5, 7]].sum(0))
    alone = reconcile(every.filter(pl.col("series_id").is_in(["a1", "a2"])), tree(), settings(missing="drop"))
    assert alone.frame["series_id"].unique(maintain_order=True).to_list() == ["total", "state=a", "a1", "a2"]


def test_without_hierarchicalforecast_bottom_up_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    every, _, _ = of_all()
    monkeypatch.setitem(sys.modules, "hierarchicalforecast.methods", None)
    with pytest.raises(ConfigError, match=r"method=ols needs: pip install 'gatecast\[reconcile\]'; bottom_up does not"):
        reconcile(every, tree(), settings("ols"))
    adds_up(reconcile(every, tree(), settings()))


def test_sums_that_are_off_are_found() -> None:
    every, _, _ = of_all()
    found = reconcile(every, tree(), settings("ols"))
    wrong = pl.when(pl.col("series_id") == "state=a", pl.col("step") == 2).then(pl.col("mean") + 3.1).otherwise("mean")
    off = incoherence(found.frame.with_columns(mean=wrong), tree())
    assert off["absolute"] == pytest.approx(3.1)
    assert off["relative"] == pytest.approx(3.1 / matrix(found, "mean")[1, 1])


def test_mistakes_are_told() -> None:
    every, middle, sigma = of_all()
    series = every.filter(pl.col("series_id").is_in(STORES["series_id"]))
    strange = forecasts(["x9"], middle[:1], sigma[:1])
    with pytest.raises(DataError, match=r"1 of 6 series that are forecast are not in the hierarchy: x9; add them"):
        reconcile(pl.concat([series, strange]), tree(), settings())
    with pytest.raises(DataError, match=r"ols needs forecasts of the sums too, and 3 of 3 have none: state=a, state=b"):
        reconcile(series, tree(), settings("ols"))
    with pytest.raises(ConfigError, match=r"mint_shrink needs errors of past forecasts of all nodes"):
        reconcile(every, tree(), settings("mint_shrink"))
    crossing = tree(("state",), ("kind",))
    kinds = forecasts(["kind=big", "kind=small"], middle[:2], sigma[:2])
    with pytest.raises(ConfigError, match=r"top_down and middle_out are for levels below each other"):
        reconcile(pl.concat([every, kinds]), crossing, settings("top_down"))
    with pytest.raises(DataError, match=r"1 series have two paths in state: a1"):
        hierarchy_of(pl.concat([STORES, STORES.head(1).with_columns(state=pl.lit("b"))]), ["state"])
    with pytest.raises(DataError, match=r"1 series have no value of state: a1"):
        hierarchy_of(STORES.with_columns(state=pl.when(series_id="a1").then(None).otherwise("state")), ["state"])
    with pytest.raises(ConfigError, match=r"reconcile.by: city: no such column"):
        hierarchy_of(STORES, ["city"])
    with pytest.raises(DataError, match=r"two forecasts of the same series and step"):
        reconcile(pl.concat([series, series]), tree(), settings())
    with pytest.raises(DataError, match=r"1 series have no forecast at some of the 3 steps: b1"):
        reconcile(series.remove((pl.col("series_id") == "b1") & (pl.col("step") == 2)), tree(), settings())
    few = pl.DataFrame({"cutoff": [CUTOFF] * 2, "step": [1, 2], "a1": [0.1, 0.2]})
    with pytest.raises(DataError, match=r"2 errors of past forecasts .* are too few"):
        reconcile(series, tree(), settings(), errors=few)
    with pytest.raises(ConfigError, match=r"past and actuals go together"):
        fc.reconcile(series, STORES, by=["state"], past=series)
    assert fc.reconcile(series, STORES, by=["state"]).counts["nodes"] == 8
