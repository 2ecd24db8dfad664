"""The reconciling matrix, and the quantiles of reconciled forecasts."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

# Maximum number of nodes for dense [nodes, nodes] matrices, which fit into the memory of a small machine.
_MOST_DENSE = 5000
TINY = np.finfo(np.float64).tiny


def sum_matrices(frame: pl.DataFrame, hierarchy: Hierarchy, columns: Sequence[str]) -> dict[str, Array]:
    """Return columns of forecasts as matrices [N, horizon]; NaN if a node has no forecast."""
    steps = frame[STEP].unique().sort()
    keys = pl.DataFrame({SERIES_ID: hierarchy.nodes}).join(pl.DataFrame({STEP: steps}), how="cross")
    if frame.select(SERIES_ID, STEP).is_duplicated().any():
        raise DataError("there are two forecasts of the same series and step; reconcile one cutoff at a time")
    rows = keys.join(frame.select(SERIES_ID, STEP, *columns), on=[SERIES_ID, STEP], how="left", maintain_order="left")
    shape = len(hierarchy.nodes), len(steps)
    matrices = {name: rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy().reshape(shape) for name in columns}
    gaps = np.isnan(matrices[columns[0]]) & ~np.isnan(matrices[columns[0]]).all(1, keepdims=True)
    if gaps.any():
        names = [hierarchy.nodes[row] for row in np.flatnonzero(gaps.any(1))]
        raise DataError(f"{len(names):,} series have no forecast at some of the {len(steps):,} steps: {listing(names)}")
    return matrices


def error_matrix(errors: pl.DataFrame, hierarchy: Hierarchy) -> Array:
    """Return the errors [N, error] at cutoffs and steps where all nodes with any error have one."""
    values = errors.select(
        pl.col(name).cast(pl.Float64) if name in errors.columns else pl.lit(None, pl.Float64).alias(name)
        for name in hierarchy.nodes
    )
    nodes_with_errors = [name for name in values.columns if values[name].null_count() < values.height]
    complete = values.drop_nulls(nodes_with_errors)
    if complete.height < 3:
        raise DataError(
            f"{complete.height:,} errors of past forecasts (a cutoff and step each) are too few to tell how nodes hang "
            "together; score more past cutoffs into reconcile.path (score.cutoffs), or leave out reconcile.actuals"
        )
    return np.ascontiguousarray(complete.to_numpy().T)


def reconciling_matrix(base: Array, hierarchy: Hierarchy, settings: ReconcileSettings, error: Array | None) -> Any:
    """Return P, [L, N] or [horizon, L, N], which maps forecasts of all nodes to those of the series."""
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
    proportions = "forecast_proportions"
    method = TopDown(proportions) if top == TOTAL else MiddleOut(top, proportions)
    forecasts = method.fit_predict(S=dense, y_hat=base, tags=tags)["mean"]
    # Each series is its share of the node above it.
    member = dense[tags[top]]
    parents = tags[top][member.argmax(0)]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = forecasts[-n_series:] / (member.T @ forecasts[tags[top]])
    share = np.where(np.isfinite(share), share, 1.0 / member.sum(1)[member.argmax(0)][:, None])
    mapping = np.zeros((base.shape[1], n_series, n_nodes))
    mapping[:, np.arange(n_series), parents] = share.T
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
    """Return P y, [L, horizon]; a sparse P may ignore nodes whose forecasts are NaN."""
    if sparse.issparse(mapping):
        result: Array = mapping @ np.nan_to_num(values)
    elif mapping.ndim == 2:
        result = mapping @ values
    else:
        result = np.einsum("hln,nh->lh", mapping, values)
    return result


@dataclass(frozen=True)
class Reconciler:
    """The linear map of a reconciliation, with past errors for the covariance of its forecasts."""

    hierarchy: Hierarchy
    mapping: Any
    """P, [L, N] or [horizon, L, N]."""
    error: Array | None
    """[N, error], errors of past forecasts; None: nodes count as uncorrelated."""

    def reconcile(self, values: Array) -> Array:
        """Return reconciled values of all nodes, S P y, from base values [N, horizon]."""
        return self.hierarchy.sums(apply_matrix(self.mapping, values))

    def deviation(self, sigma: Array) -> Array:
        """Return standard deviations of reconciled forecasts, from those of the base forecasts, [N, horizon] both."""
        variance = np.zeros_like(sigma)
        standard, shrinkage = (sigma[:, :0], 1.0) if self.error is None else _standardised(self.error)
        for step in range(sigma.shape[1]):
            mapping = self.mapping if self.mapping.ndim == 2 else self.mapping[step]
            projection = self.hierarchy.summing @ mapping
            square = projection.multiply(projection) if sparse.issparse(projection) else projection**2
            correlated = projection @ (sigma[:, step, None] * standard)
            correlated_variance = (correlated**2).sum(1) / max(1, standard.shape[1])
            variance[:, step] = shrinkage * (square @ sigma[:, step] ** 2) + (1 - shrinkage) * correlated_variance
        return np.sqrt(variance)


def spread_quantiles(
    base: Mapping[str, Array], median: Array, levels: Mapping[str, float], reconciler: Reconciler
) -> dict[str, Array]:
    """Return the quantiles around reconciled medians, [N, horizon] each.

    `base` are the forecasts before reconciliation, `levels` the levels of their quantile columns.
    """
    names, deviates = list(levels), ndtri(np.array(list(levels.values())))
    low, high = int(deviates.argmin()), int(deviates.argmax())
    sigma = (base[names[high]] - base[names[low]]) / (deviates[high] - deviates[low])
    deviation = reconciler.deviation(np.nan_to_num(sigma))
    # Without a width, the base quantiles have no shape: those of a normal distribution are used.
    shaped = np.isfinite(sigma) & (sigma > TINY)
    ratio = np.divide(deviation, sigma, out=np.zeros_like(sigma), where=shaped)
    return {
        name: median + np.where(shaped, (base[name] - base[MEDIAN]) * ratio, deviate * deviation)
        for name, deviate in zip(names, deviates, strict=True)
    }


def _standardised(error: Array) -> tuple[Array, float]:
    """Return errors of mean square 1, [N, error], 0 where there are none, and the shrinkage of their correlations.

    The shrinkage intensity is that of Schaefer & Strimmer (2005, Statistical Applications in Genetics and Molecular
    Biology 4), computed from sums over all pairs without their matrix.
    """
    errors = np.nan_to_num(error)
    size = np.sqrt((errors**2).mean(1, keepdims=True))
    standard = np.divide(errors, size, out=np.zeros_like(errors), where=size > 0)
    count = standard.shape[1]
    gram = standard.T @ standard
    pairs = (gram**2).sum() / count**2 - (size > 0).sum()
    products = (np.diag(gram) ** 2).sum() - (standard**4).sum()
    noise = count / (count - 1) ** 3 * (products - count * pairs)
    return standard, float(np.clip(noise / pairs, 0, 1)) if pairs > 0 else 1.0
