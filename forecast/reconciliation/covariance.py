"""The matrix that reconciles, and the spread of reconciled forecasts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import sparse
from scipy.special import ndtri

from forecast.config import ReconcileSettings
from forecast.errors import ConfigError, DataError, listing
from forecast.names import SERIES_ID, STEP
from forecast.reconciliation.hierarchy import BOTTOM, MEDIAN, TOTAL, Array, Hierarchy

# Series and sums of dense matrices: their squares fit into the memory of a small machine.
_MOST_DENSE = 5000
TINY = np.finfo(np.float64).tiny


def sum_matrices(frame: pl.DataFrame, hierarchy: Hierarchy, columns: Sequence[str]) -> dict[str, Array]:
    """Return columns as [N, horizon]; NaN where a node has no forecast."""
    steps = frame[STEP].unique().sort()
    keys = pl.DataFrame({SERIES_ID: hierarchy.nodes}).join(pl.DataFrame({STEP: steps}), how="cross")
    if frame.select(SERIES_ID, STEP).is_duplicated().any():
        raise DataError("there are two forecasts of the same series and step; reconcile one cutoff at a time")
    rows = keys.join(frame.select(SERIES_ID, STEP, *columns), on=[SERIES_ID, STEP], how="left", maintain_order="left")
    shape = len(hierarchy.nodes), len(steps)
    found = {name: rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy().reshape(shape) for name in columns}
    gaps = np.isnan(found[columns[0]]) & ~np.isnan(found[columns[0]]).all(1, keepdims=True)
    if gaps.any():
        names = [hierarchy.nodes[row] for row in np.flatnonzero(gaps.any(1))]
        raise DataError(f"{len(names):,} series have no forecast at some of the {len(steps):,} steps: {listing(names)}")
    return found


def error_matrix(errors: pl.DataFrame, hierarchy: Hierarchy) -> Array:
    """Return the errors [N, error] of cutoffs and steps at which no node's is missing."""
    values = errors.select(
        pl.col(name).cast(pl.Float64) if name in errors.columns else pl.lit(None, pl.Float64).alias(name)
        for name in hierarchy.nodes
    )
    there = [name for name in values.columns if values[name].null_count() < values.height]
    kept = values.drop_nulls(there)
    if kept.height < 3:
        raise DataError(
            f"{kept.height:,} errors of past forecasts (a cutoff and step each) are too few to tell how nodes hang "
            "together; score more past cutoffs into reconcile.path (score.cutoffs), or leave out reconcile.actuals"
        )
    return np.ascontiguousarray(kept.to_numpy().T)


def reconciling_matrix(base: Array, hierarchy: Hierarchy, settings: ReconcileSettings, error: Array | None) -> Any:
    """Return P, [L, N], or one for each step: from forecasts of all nodes to those of the series."""
    n_nodes, n_series = hierarchy.summing.shape
    if settings.method == "bottom_up":
        return sparse.eye_array(n_series, n_nodes, k=n_nodes - n_series, format="csr")
    if n_nodes > _MOST_DENSE:
        raise ConfigError(
            f"reconcile.method: {settings.method} takes matrices of {n_nodes:,} x {n_nodes:,} nodes, more than "
            f"{_MOST_DENSE:,}; set reconcile.method=bottom_up"
        )
    try:
        from hierarchicalforecast.methods import MiddleOut, MinTrace, TopDown
    except ImportError:
        raise ConfigError(
            f"reconcile.method={settings.method} needs: pip install 'gatecast[reconcile]'; bottom_up does not"
        ) from None
    dense = hierarchy.summing.toarray()
    if settings.method in ("ols", "wls_struct", "mint_shrink"):
        insample = {}
        if settings.method == "mint_shrink":
            if error is None or np.isnan(error).any():
                raise ConfigError(
                    "reconcile.method=mint_shrink needs errors of past forecasts of all nodes: score past cutoffs into "
                    "reconcile.path too, and give the table with what came as reconcile.actuals; without these, "
                    "wls_struct"
                )
            insample = {"y_insample": error, "y_hat_insample": np.zeros_like(error)}
        return MinTrace(method=settings.method).fit(S=dense, y_hat=base, **insample).P
    tags = {name: np.flatnonzero(np.array(hierarchy.level) == name) for name in dict.fromkeys(hierarchy.level)}
    _check_tree(dense, tags)
    top = settings.middle if settings.method == "middle_out" else TOTAL
    if top not in tags or top == BOTTOM:
        raise ConfigError(
            f"reconcile.middle: {top!r} is no level between the total and the series; there are "
            f"{listing([name for name in tags if name != BOTTOM])}"
        )
    how = "forecast_proportions"
    method = TopDown(how) if top == TOTAL else MiddleOut(top, how)
    made = method.fit_predict(S=dense, y_hat=base, tags=tags)["mean"]
    # Each series is its share of the node above it.
    member = dense[tags[top]]
    above = tags[top][member.argmax(0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = made[-n_series:] / (member.T @ made[tags[top]])
    share = np.where(np.isfinite(share), share, 1.0 / member.sum(1)[member.argmax(0)][:, None])
    mapping = np.zeros((base.shape[1], n_series, n_nodes))
    mapping[:, np.arange(n_series), above] = share.T
    return mapping


def _check_tree(dense: Array, tags: Mapping[str, npt.NDArray[np.int64]]) -> None:
    """Raise ConfigError unless each node is in one node of the level above."""
    levels = list(tags.values())
    for above, below in itertools.pairwise(levels):
        if (((dense[above] @ dense[below].T) > 0).sum(0) > 1).any():
            raise ConfigError(
                "reconcile.method: top_down and middle_out are for levels below each other, such as "
                "reconcile.by=[state,store], and these cross; set ols, wls_struct or mint_shrink"
            )


def apply_matrix(mapping: Any, values: Array) -> Array:
    """Return P y, [L, horizon]; what P leaves out may be missing."""
    if sparse.issparse(mapping):
        found: Array = mapping @ np.nan_to_num(values)
    elif mapping.ndim == 2:
        found = mapping @ values
    else:
        found = np.einsum("hln,nh->lh", mapping, values)
    return found


def spread_quantiles(
    base: Mapping[str, Array],
    median: Array,
    levels: Array,
    quantiles: Sequence[str],
    mapping: Any,
    hierarchy: Hierarchy,
    error: Array | None,
) -> dict[str, Array]:
    """Return the quantiles around the reconciled medians."""
    deviates = ndtri(levels)
    low, high = int(levels.argmin()), int(levels.argmax())
    width = base[quantiles[high]] - base[quantiles[low]]
    sigma = width / (deviates[high] - deviates[low])
    used = np.nan_to_num(sigma)
    variance = np.zeros_like(median)
    standard, shrinkage = (used[:, :0], 1.0) if error is None else _standardised(error)
    for step in range(median.shape[1]):
        own = mapping if mapping.ndim == 2 else mapping[step]
        whole = hierarchy.summing @ own
        square = whole.multiply(whole) if sparse.issparse(whole) else whole**2
        together = whole @ (used[:, step, None] * standard)
        shared = (together**2).sum(1) / max(1, standard.shape[1])
        variance[:, step] = shrinkage * (square @ used[:, step] ** 2) + (1 - shrinkage) * shared
    deviation = np.sqrt(variance)
    # A node without a width has no shape to widen.
    shaped = np.isfinite(sigma) & (sigma > np.finfo(np.float64).tiny)
    ratio = np.divide(deviation, sigma, out=np.zeros_like(sigma), where=shaped)
    made = {}
    for name, deviate in zip(quantiles, deviates, strict=True):
        made[name] = median + np.where(shaped, (base[name] - base[MEDIAN]) * ratio, deviate * deviation)
    return made


def _standardised(error: Array) -> tuple[Array, float]:
    """Return errors of mean square 1, [N, error], 0 where there are none, and the shrinkage of their correlations.

    The intensity of Schaefer & Strimmer (2005, Statistical Applications in Genetics and Molecular Biology 4), from
    sums over all pairs that need no matrix of them.
    """
    known = np.nan_to_num(error)
    size = np.sqrt((known**2).mean(1, keepdims=True))
    standard = np.divide(known, size, out=np.zeros_like(known), where=size > 0)
    count = standard.shape[1]
    gram = standard.T @ standard
    pairs = (gram**2).sum() / count**2 - (size > 0).sum()
    products = (np.diag(gram) ** 2).sum() - (standard**4).sum()
    noise = count / (count - 1) ** 3 * (products - count * pairs)
    return standard, float(np.clip(noise / pairs, 0, 1)) if pairs > 0 else 1.0
