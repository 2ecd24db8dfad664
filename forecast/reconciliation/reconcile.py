"""Hierarchical reconciliation: forecasts of series and of their sums that add up."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs
from scipy import sparse
from scipy.special import ndtri

from forecast.config import ReconcileSettings
from forecast.data.sources.frames import column as literal
from forecast.errors import ConfigError, DataError, OutputError, listing
from forecast.names import (
    CUTOFF,
    MEAN,
    MODEL_DIGEST,
    MODEL_NAME,
    MODEL_VERSION,
    SERIES_ID,
    SOURCE,
    STEP,
    TARGET,
    TIMESTAMP,
    quantile_column,
)

Array = npt.NDArray[np.float64]

LEVEL: Final = "level"
TOTAL, BOTTOM = "total", "series"
MEDIAN: Final = quantile_column(0.5)
# Series and sums of dense matrices: their squares fit into the memory of a small machine.
_MOST_DENSE = 5000
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, repr=False)
class Hierarchy:
    """Series, and the sums of them that are forecast too: L series, N nodes."""

    nodes: list[str]
    """[N], ids: the sums from the top down, then the series."""
    level: list[str]
    """[N], which level each node is of: `total`, columns joined by a slash, `series`."""
    summing: Any
    """[N, L], sparse: 1 where a series is in a sum."""

    def __repr__(self) -> str:
        n_series = self.summing.shape[1]
        return f"Hierarchy({n_series:,} series, {len(self.nodes) - n_series:,} sums)"

    @property
    def series(self) -> list[str]:
        """Ids of the series."""
        return self.nodes[len(self.nodes) - self.summing.shape[1] :]

    def sums(self, values: Array) -> Array:
        """Return values [L, ...] of all nodes, [N, ...]."""
        found: Array = (self.summing @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
        return found


@dataclass(frozen=True, repr=False)
class Reconciled:
    """Forecasts that add up."""

    frame: pl.DataFrame
    """series_id (a series, or a sum such as `state=TX/store=7`), level, then the columns of the forecasts, without
    sample paths; the sums from the top down. `source` of sums is the method."""
    summary: pl.DataFrame
    """level, nodes, moved: the mean of |reconciled - forecast| of the medians, null where there was no forecast."""
    incoherence: dict[str, float]
    """The largest difference between a sum and the sum of its series, of mean and median: `absolute`, `relative`."""
    counts: dict[str, int]
    """nodes, series, dropped; ended, if there are any, the series that add nothing any more; errors, the past forecasts
    whose errors were used; negative, values that are below 0 now."""

    def __repr__(self) -> str:
        off = self.incoherence
        parts = [f"{number:,} {name}" for name, number in self.counts.items() if number]
        return f"Reconciled({', '.join(parts)}; sums at most {off['absolute']:.2g} off)"


def hierarchy_of(table: pl.DataFrame, by: Sequence[str | tuple[str, ...]], column: str = SERIES_ID) -> Hierarchy:
    """Return the hierarchy of the series in a table with their `by` columns; rows of a series may repeat.

    Names are levels below each other (state, then state and store); lists are levels by themselves, which may cross.
    Raises ConfigError for columns that are not there, DataError for series that have none or two values in one.
    """
    nested = all(isinstance(name, str) for name in by)
    levels = [tuple(map(str, by[: k + 1])) for k in range(len(by))] if nested else [_tuple(names) for names in by]
    columns = list(dict.fromkeys(name for names in levels for name in names))
    missing = [name for name in (column, *columns) if name not in table.columns]
    if missing:
        raise ConfigError(f"reconcile.by: {listing(missing)}: no such column in the table of the hierarchy")
    try:
        rows = table.select(
            literal(column).cast(pl.String).alias(SERIES_ID), *(literal(name).cast(pl.String) for name in columns)
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the table of the hierarchy has names that can't be read: {_first_line(error)}") from None
    rows = rows.unique().sort(SERIES_ID, *map(literal, columns))
    empty = rows.filter(pl.any_horizontal(pl.all().is_null()))[SERIES_ID].unique().sort()
    if len(empty):
        raise DataError(f"{len(empty):,} series have no value of {listing(columns)}: {listing(empty)}")
    double = rows.filter(pl.col(SERIES_ID).is_duplicated())[SERIES_ID].unique().sort()
    if len(double):
        raise DataError(f"{len(double):,} series have two paths in {listing(columns)}: {listing(double)}")
    nodes, named, parts = [TOTAL], [TOTAL], [np.ones((1, rows.height))]
    matrices = [sparse.csr_array(parts[0])]
    for names in levels:
        label = pl.concat_str([pl.lit(f"{name}=") + literal(name) for name in names], separator="/")
        keys = rows.select(label).to_series()
        found = keys.unique().sort()
        index = keys.replace_strict(found, pl.int_range(len(found), eager=True), return_dtype=pl.Int64).to_numpy()
        nodes += found.to_list()
        named += ["/".join(names)] * len(found)
        shape = len(found), rows.height
        matrices.append(sparse.csr_array((np.ones(rows.height), (index, np.arange(rows.height))), shape=shape))
    series = rows[SERIES_ID].to_list()
    nodes, named = nodes + series, named + [BOTTOM] * len(series)
    if twice := sorted({name for name in nodes if nodes.count(name) > 1}) if len(set(nodes)) < len(nodes) else []:
        raise DataError(f"{len(twice):,} series have the name of a sum, or a level is there twice: {listing(twice)}")
    return Hierarchy(nodes, named, sparse.vstack([*matrices, sparse.eye_array(len(series))], format="csr"))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def aggregated(
    table: pl.DataFrame,
    hierarchy: Hierarchy,
    column: str = SERIES_ID,
    time: str = TIMESTAMP,
    target: str = TARGET,
    *,
    ended: Collection[str] = (),
    max_age: int | None = None,
) -> pl.DataFrame:
    """Return series_id, timestamp and target of all nodes: null where one of the series of a sum has no value.

    After its last value a series adds nothing to sums, and has no rows, if it is one of `ended`, or if the table has
    more than `max_age` later timestamps. Raises DataError for a table without these columns, numbers and unique rows.
    """
    if missing := [name for name in (column, time, target) if name not in table.columns]:
        raise DataError(f"no column {listing(missing)} in the table of values; it has {listing(table.columns)}")
    try:
        rows = table.select(
            literal(column).cast(pl.String).alias(SERIES_ID),
            literal(time).alias(TIMESTAMP),
            literal(target).cast(pl.Float64).alias(TARGET),
        )
    except pl.exceptions.PolarsError:
        kind = table.schema[target]
        raise DataError(f"column {target!r} of the table of values must hold numbers, but is {kind}") from None
    rows = rows.filter(pl.col(SERIES_ID).is_in(hierarchy.series))
    double = rows.filter(pl.struct(SERIES_ID, TIMESTAMP).is_duplicated())[SERIES_ID].unique().sort()
    if len(double):
        raise DataError(f"{len(double):,} series have two rows of one timestamp: {listing(double)}")
    wide = rows.pivot(on=SERIES_ID, index=TIMESTAMP, values=TARGET, sort_columns=True).sort(TIMESTAMP)
    absent = set(hierarchy.series) - set(wide.columns)
    if lacking := sorted(absent - set(ended)):
        raise DataError(f"{len(lacking):,} series of the hierarchy are not in the table: {listing(lacking)}")
    wide = wide.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in sorted(absent))
    values = wide.select(cs.by_name(*hierarchy.series).cast(pl.Float64).fill_null(float("nan"))).to_numpy().T
    over = _after_the_end(values, hierarchy, ended, max_age)
    # NaN spreads to the sums that it is in, and to no other.
    gaps = hierarchy.sums((np.isnan(values) & ~over).astype(float)) > 0
    sums = np.where(gaps, np.nan, hierarchy.sums(np.nan_to_num(values)))
    n, length = sums.shape
    nodes = pl.DataFrame(
        {
            SERIES_ID: pl.Series(hierarchy.nodes, dtype=pl.String).gather(np.repeat(np.arange(n), length)),
            TIMESTAMP: wide[TIMESTAMP].gather(np.tile(np.arange(length), n)),
            TARGET: pl.Series(sums.ravel()).fill_nan(None),
        }
    )
    # Sums of series that have all ended have ended, too.
    left = np.diff(hierarchy.summing.indptr)[:, None] - hierarchy.sums(over.astype(float))
    return nodes.filter(pl.Series(left.ravel() > 0))


def _after_the_end(
    values: Array, hierarchy: Hierarchy, ended: Collection[str], max_age: int | None
) -> npt.NDArray[np.bool_]:
    """Return at which times each series has ended, [L, time]."""
    observed = ~np.isnan(values)
    later = np.where(observed.any(1), observed[:, ::-1].argmax(1), observed.shape[1])
    over = np.isin(np.array(hierarchy.series, dtype=object), list(ended))
    if max_age is not None:
        over |= later > max_age
    after: npt.NDArray[np.bool_] = np.arange(observed.shape[1]) >= (observed.shape[1] - later)[:, None]
    return after & over[:, None]


def reconcile(
    forecasts: pl.DataFrame,
    hierarchy: Hierarchy,
    settings: ReconcileSettings,
    *,
    errors: pl.DataFrame | None = None,
    ended: Collection[str] = (),
) -> Reconciled:
    """Return forecasts of one cutoff that add up, at all nodes.

    `forecasts` are those of `score`: of all series, and, but for `bottom_up`, of all sums, by their ids. Means and
    medians are those of the series after reconciliation, b = P y, and the sums of these, S b; P is by
    hierarchicalforecast (Wickramasuriya, Athanasopoulos & Hyndman 2019, JASA, for `mint_shrink`). Of top_down and
    middle_out, P holds the proportions of the means.

    Quantiles do not add up. With Gaussian errors of covariance W, those of the reconciled forecasts have S P W P' S'
    (Wickramasuriya 2024, JASA): a node's quantiles are its own, around the new median, as much wider or narrower as
    its standard deviation is; those of a normal distribution where it had none. Standard deviations are the widths
    between the outermost quantiles; correlations those of the `errors` (cutoff, step, and a column for each node),
    shrunk towards none (Schaefer & Strimmer 2005), and none without.

    Series that have `ended` and have no forecast add nothing: sums are those of the others, whatever the method.

    Raises ConfigError if hierarchicalforecast is not installed, or `errors` are missing that the method needs;
    DataError for series without a place in the hierarchy, or nodes without a forecast; OutputError if sums are further
    off than `settings.tolerance`.
    """
    hierarchy, dropped, n_ended = _complete(forecasts, hierarchy, settings, set(ended))
    quantiles = [name for name in forecasts.columns if name[0] == "q" and name[1:].replace(".", "", 1).isdigit()]
    if MEDIAN not in quantiles or MEAN not in forecasts.columns:
        raise DataError(f"the forecasts need the columns {MEAN} and {MEDIAN}; classes do not add up")
    base = _matrices(forecasts, hierarchy, [MEAN, *quantiles])
    error = None if errors is None else _error_matrix(errors, hierarchy)
    mapping = _mapping(base[MEAN], hierarchy, settings, error)
    mean, median = (hierarchy.sums(_applied(mapping, base[name])) for name in (MEAN, MEDIAN))
    values = {MEAN: mean, MEDIAN: median}
    levels = np.array([float(name[1:]) / 100 for name in quantiles])
    if len(quantiles) > 1:
        values |= _spread(base, median, levels, quantiles, mapping, hierarchy, error)
    frame = _frame(forecasts, hierarchy, {name: values[name] for name in (MEAN, *quantiles)}, settings.method)
    moved = np.abs(median - base[MEDIAN]).mean(1)
    summary = (
        pl.DataFrame({LEVEL: hierarchy.level, "moved": pl.Series(moved).fill_nan(None)})
        .group_by(LEVEL, maintain_order=True)
        .agg(pl.len().alias("nodes"), pl.col("moved").mean())
    )
    off = incoherence(frame, hierarchy)
    if not off["relative"] <= settings.tolerance:
        raise OutputError(
            f"sums are up to {off['absolute']:.3g} ({off['relative']:.2%}) off those of their series; raise "
            "reconcile.tolerance, if that is near enough"
        )
    counts = {
        "nodes": len(hierarchy.nodes),
        "series": len(hierarchy.series),
        "dropped": dropped,
        **({"ended": n_ended} if n_ended else {}),
        "errors": 0 if error is None else error.shape[1],
        "negative": int(sum(((found < 0) & ~(base[name] < 0)).sum() for name, found in values.items())),
    }
    return Reconciled(frame, summary, off, counts)


def incoherence(frame: pl.DataFrame, hierarchy: Hierarchy) -> dict[str, float]:
    """Return how far the sums in a table are off those of the series in it, of mean and median: the largest one.

    `relative` is the share of the sum of the sizes.
    """
    found = _matrices(frame, hierarchy, [MEAN, MEDIAN])
    series = [values[-len(hierarchy.series) :] for values in found.values()]
    off = [np.abs(hierarchy.sums(own) - values) for own, values in zip(series, found.values(), strict=True)]
    relative = [
        np.divide(part, np.maximum(hierarchy.sums(np.abs(own)), _TINY)) for part, own in zip(off, series, strict=True)
    ]
    return {"absolute": float(np.max(off)), "relative": float(np.max(relative))}


def _complete(
    forecasts: pl.DataFrame, hierarchy: Hierarchy, settings: ReconcileSettings, ended: set[str]
) -> tuple[Hierarchy, int, int]:
    """Return the hierarchy of the series that are forecast, how many others are left out, and how many have ended."""
    there = set(forecasts[SERIES_ID].unique())
    if strange := sorted(there - set(hierarchy.nodes)):
        raise DataError(
            f"{len(strange):,} of {len(there):,} series that are forecast are not in the hierarchy: "
            f"{listing(strange)}; add them to its table (reconcile.table)"
        )
    absent = set(hierarchy.series) - there
    lacking, over = sorted(absent - ended), sorted(absent & ended)
    if len(over) == len(hierarchy.series):
        raise DataError(f"all {len(over):,} series of the hierarchy have ended (score.max_age): {listing(over)}")
    if lacking and (settings.missing == "fail" or len(absent) == len(hierarchy.series)):
        raise DataError(
            f"{len(lacking):,} of {len(hierarchy.series):,} series of the hierarchy have no forecast: "
            f"{listing(lacking)}; score them, or set reconcile.missing=drop for sums without them"
        )
    if lacking and settings.method != "bottom_up":
        raise ConfigError(
            f"reconcile.missing=drop is for bottom_up: the forecasts of sums have the {len(lacking):,} series in "
            f"them that are missing: {listing(lacking)}"
        )
    if absent:
        kept = np.array([name not in absent for name in hierarchy.series])
        summing = hierarchy.summing[:, kept]
        filled = np.flatnonzero(summing.sum(1) > 0)
        names, level = ([values[k] for k in filled] for values in (hierarchy.nodes, hierarchy.level))
        hierarchy = Hierarchy(names, level, summing[filled])
    if settings.method != "bottom_up" and (gone := sorted(set(hierarchy.nodes) - there)):
        raise DataError(
            f"reconcile.method={settings.method} needs forecasts of the sums too, and {len(gone):,} of "
            f"{len(hierarchy.nodes) - len(hierarchy.series):,} have none: {listing(gone)}; train and score with the "
            "table that fc.aggregate() makes, or set reconcile.method=bottom_up" + _ended_sums(set(gone) & ended)
        )
    return hierarchy, len(lacking), len(over)


def _ended_sums(names: set[str]) -> str:
    """Return what to do about sums that have ended though some of their series have not."""
    if not names:
        return ""
    return (
        f"; {len(names):,} of these have ended, for a sum has no value where one of its series has none: "
        "fc.aggregate(..., max_age=STEPS) makes sums of the series that go on"
    )


def _matrices(frame: pl.DataFrame, hierarchy: Hierarchy, columns: Sequence[str]) -> dict[str, Array]:
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


def _error_matrix(errors: pl.DataFrame, hierarchy: Hierarchy) -> Array:
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


def _mapping(base: Array, hierarchy: Hierarchy, settings: ReconcileSettings, error: Array | None) -> Any:
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


def _applied(mapping: Any, values: Array) -> Array:
    """Return P y, [L, horizon]; what P leaves out may be missing."""
    if sparse.issparse(mapping):
        found: Array = mapping @ np.nan_to_num(values)
    elif mapping.ndim == 2:
        found = mapping @ values
    else:
        found = np.einsum("hln,nh->lh", mapping, values)
    return found


def _spread(
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


def _frame(forecasts: pl.DataFrame, hierarchy: Hierarchy, values: Mapping[str, Array], method: str) -> pl.DataFrame:
    n, horizon = values[MEAN].shape
    ahead = forecasts.unique(STEP).sort(STEP)
    index = np.tile(np.arange(horizon), n)
    nodes = pl.DataFrame({SERIES_ID: hierarchy.nodes, LEVEL: hierarchy.level})
    given = forecasts.unique(SERIES_ID).select(SERIES_ID, SOURCE)
    said = nodes.join(given, on=SERIES_ID, how="left", maintain_order="left").select(
        SERIES_ID, LEVEL, pl.when(pl.col(LEVEL) == BOTTOM).then(SOURCE).otherwise(pl.lit(method)).alias(SOURCE)
    )
    said = said[np.repeat(np.arange(n), horizon)]
    others = [name for name in (MODEL_VERSION, MODEL_NAME, MODEL_DIGEST) if name in forecasts.columns]
    return pl.DataFrame(
        [
            said[SERIES_ID],
            said[LEVEL],
            *(ahead[name].gather(index) for name in (TIMESTAMP, CUTOFF, STEP)),
            *(pl.Series(name, found.ravel()) for name, found in values.items()),
            said[SOURCE],
            *(ahead[name].gather(index) for name in others),
        ]
    )


def past_errors(
    past: pl.DataFrame, actuals: pl.DataFrame, hierarchy: Hierarchy, ended: Collection[str] = ()
) -> pl.DataFrame:
    """Return the errors of the means of past forecasts: cutoff, step, and a column for each node that was forecast.

    `actuals` has series_id, timestamp and target of the series, of which those that have `ended` add nothing after
    their last one. Raises DataError if its timestamps are of another kind.
    """
    came = aggregated(actuals, hierarchy, ended=ended)
    own, other = (frame.schema[TIMESTAMP] for frame in (past, came))
    zones = [getattr(dtype, "time_zone", None) for dtype in (own, other)]
    if zones[0] != zones[1]:
        raise DataError(
            f"reconcile.actuals: its timestamps are in {zones[1] or 'no time zone'}, those of the forecasts in "
            f"{zones[0] or 'none'}"
        )
    try:
        came = came.cast({TIMESTAMP: own})
    except pl.exceptions.PolarsError as error:
        kinds = f"{own} in the forecasts, {other} in the table"
        raise DataError(
            f"reconcile.actuals: its timestamps are of another kind ({kinds}): {_first_line(error)}"
        ) from None
    rows = past.join(came, on=[SERIES_ID, TIMESTAMP], how="inner")
    return (
        rows.select(CUTOFF, STEP, SERIES_ID, error=pl.col(TARGET) - pl.col(MEAN))
        .drop_nulls()
        .pivot(on=SERIES_ID, index=[CUTOFF, STEP], values="error")
        .sort(CUTOFF, STEP)
    )
