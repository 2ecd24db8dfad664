"""Hierarchies of series and their sums, and the actual values of these sums."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs
from scipy import sparse

from forecast.data.panel import is_among
from forecast.data.sources.frames import column as literal
from forecast.errors import ConfigError, DataError, listing
from forecast.names import SERIES_ID, TARGET, TIMESTAMP, quantile_column

Array = npt.NDArray[np.float64]

LEVEL: Final = "level"
TOTAL, BOTTOM = "total", "series"
MEDIAN: Final = quantile_column(0.5)


@dataclass(frozen=True, repr=False)
class Hierarchy:
    """Series and their sums, the nodes of a hierarchy: L series, N nodes."""

    nodes: list[str]
    """[N], ids: the sums from the top down, then the series."""
    level: list[str]
    """[N], the level of each node: `total`, columns joined by a slash, or `series`."""
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
        """Return the values of all nodes, [N, ...], from those of the series, [L, ...]."""
        node_values: Array = (self.summing @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
        return node_values


def hierarchy_of(table: pl.DataFrame, by: Sequence[str | tuple[str, ...]], column: str = SERIES_ID) -> Hierarchy:
    """Return the hierarchy of the series in a table with their `by` columns; rows of a series may repeat.

    Names are nested levels (state, then state and store); lists are separate levels, which may cross. Raises
    ConfigError for missing columns, DataError for series without a value in a column or with two.
    """
    nested = all(isinstance(name, str) for name in by)
    levels = [tuple(map(str, by[: k + 1])) for k in range(len(by))] if nested else [as_tuple(names) for names in by]
    columns = list(dict.fromkeys(name for names in levels for name in names))
    absent = [name for name in (column, *columns) if name not in table.columns]
    if absent:
        raise ConfigError(f"reconcile.by: {listing(absent)}: no such column in the table of the hierarchy")
    try:
        rows = table.select(
            literal(column).cast(pl.String).alias(SERIES_ID), *(literal(name).cast(pl.String) for name in columns)
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the table of the hierarchy has names that can't be read: {first_line(error)}") from None
    rows = rows.unique().sort(SERIES_ID, *map(literal, columns))
    empty = rows.filter(pl.any_horizontal(pl.all().is_null()))[SERIES_ID].unique().sort()
    if len(empty):
        raise DataError(f"{len(empty):,} series have no value of {listing(columns)}: {listing(empty)}")
    ambiguous = rows.filter(pl.col(SERIES_ID).is_duplicated())[SERIES_ID].unique().sort()
    if len(ambiguous):
        raise DataError(f"{len(ambiguous):,} series have two paths in {listing(columns)}: {listing(ambiguous)}")
    nodes, level_names, parts = [TOTAL], [TOTAL], [np.ones((1, rows.height))]
    matrices = [sparse.csr_array(parts[0])]
    for names in levels:
        label = pl.concat_str([pl.lit(f"{name}=") + literal(name) for name in names], separator="/")
        keys = rows.select(label).to_series()
        labels = keys.unique().sort()
        index = keys.replace_strict(labels, pl.int_range(len(labels), eager=True), return_dtype=pl.Int64).to_numpy()
        nodes += labels.to_list()
        level_names += ["/".join(names)] * len(labels)
        shape = len(labels), rows.height
        matrices.append(sparse.csr_array((np.ones(rows.height), (index, np.arange(rows.height))), shape=shape))
    series = rows[SERIES_ID].to_list()
    nodes, level_names = nodes + series, level_names + [BOTTOM] * len(series)
    if duplicates := sorted({name for name in nodes if nodes.count(name) > 1}) if len(set(nodes)) < len(nodes) else []:
        raise DataError(
            f"{len(duplicates):,} series have the name of a sum, or a level is there twice: {listing(duplicates)}"
        )
    return Hierarchy(nodes, level_names, sparse.vstack([*matrices, sparse.eye_array(len(series))], format="csr"))


def first_line(error: Exception) -> str:
    """Return the first line of a message."""
    return str(error).partition("\n")[0]


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return one name, or several, as a tuple."""
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
    """Return series_id, timestamp and target of all nodes; a sum is null if one of its series has no value.

    After its last value a series counts as 0 in sums, and has no rows, if it is one of `ended`, or if the table has
    more than `max_age` later timestamps. Raises DataError for a table without these columns, numbers and unique rows.
    """
    if absent_columns := [name for name in (column, time, target) if name not in table.columns]:
        raise DataError(f"no column {listing(absent_columns)} in the table of values; it has {listing(table.columns)}")
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
    duplicates = rows.filter(pl.struct(SERIES_ID, TIMESTAMP).is_duplicated())[SERIES_ID].unique().sort()
    if len(duplicates):
        raise DataError(f"{len(duplicates):,} series have two rows of one timestamp: {listing(duplicates)}")
    by_series = rows.pivot(on=SERIES_ID, index=TIMESTAMP, values=TARGET, sort_columns=True).sort(TIMESTAMP)
    absent = set(hierarchy.series) - set(by_series.columns)
    if unexplained := sorted(absent - set(ended)):
        raise DataError(f"{len(unexplained):,} series of the hierarchy are not in the table: {listing(unexplained)}")
    by_series = by_series.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in sorted(absent))
    values = by_series.select(cs.by_name(*hierarchy.series).cast(pl.Float64).fill_null(float("nan"))).to_numpy().T
    has_ended = _ended_mask(values, hierarchy, ended, max_age)
    # A missing value affects only the sums that include its series.
    gaps = hierarchy.sums((np.isnan(values) & ~has_ended).astype(float)) > 0
    sums = np.where(gaps, np.nan, hierarchy.sums(np.nan_to_num(values)))
    n, length = sums.shape
    nodes = pl.DataFrame(
        {
            SERIES_ID: pl.Series(hierarchy.nodes, dtype=pl.String).gather(np.repeat(np.arange(n), length)),
            TIMESTAMP: by_series[TIMESTAMP].gather(np.tile(np.arange(length), n)),
            TARGET: pl.Series(sums.ravel()).fill_nan(None),
        }
    )
    # A sum has ended once all its series have.
    n_active = np.diff(hierarchy.summing.indptr)[:, None] - hierarchy.sums(has_ended.astype(float))
    return nodes.filter(pl.Series(n_active.ravel() > 0))


def _ended_mask(
    values: Array, hierarchy: Hierarchy, ended: Collection[str], max_age: int | None
) -> npt.NDArray[np.bool_]:
    """Return a mask of the times at which each series has ended, [L, time]."""
    observed = ~np.isnan(values)
    n_later = np.where(observed.any(1), observed[:, ::-1].argmax(1), observed.shape[1])
    is_ended = is_among(hierarchy.series, ended)
    if max_age is not None:
        is_ended |= n_later > max_age
    is_after: npt.NDArray[np.bool_] = np.arange(observed.shape[1]) >= (observed.shape[1] - n_later)[:, None]
    return is_after & is_ended[:, None]
