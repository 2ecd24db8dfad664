"""The columns of time, series and target, by evidence: readable times, unique rows, varying numbers, then names."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import polars as pl

from forecast.config import AUTO, DataConfig
from forecast.data.discovery.profile import (
    CALENDAR_NAMES,
    SERIES_NAMES,
    TARGET_NAMES,
    TIME_NAMES,
    WEAK_TARGETS,
    Column,
    name_rank,
)
from forecast.errors import DataError, listing

# Share of rows that may repeat a series and time; they become rejects.
MAX_REPEATS: Final = 0.05
# Rows that a series has on average, at least, and columns that name a series together, at most.
_LEAST_ROWS, _MOST_KEYS = 2.0, 3
_MOST_CANDIDATES: Final = 8
_CERTAIN_SERIES_NAMES: Final = ("series_id", "unique_id", "item_id", "series")


class SeriesKey(NamedTuple):
    """Columns that name a series."""

    names: tuple[str, ...]
    """Empty for a single series, or a column per series."""
    n_series: int
    repeats: int
    """Rows with the series and time of an earlier row."""


def find_time(columns: Mapping[str, Column], data: DataConfig) -> tuple[str, str]:
    """Return the column of time, and why. Raises DataError without one."""
    name = data.columns.timestamp
    if name != AUTO:
        if not _column_of(name, columns, "timestamp").times:
            example = columns[name].values.drop_nulls().head(1).to_list()
            raise DataError(
                f"column {name!r} (data.columns.timestamp) can't be read as times (e.g. "
                f"{listing(map(repr, example))}); set data.timestamp_format (strftime, such as "
                "'%d/%m/%Y %H:%M'), or another column"
            )
        return name, "as set"
    candidates = [column for column in columns.values() if column.times and _is_certain_time(column, columns)]
    if not candidates:
        raise DataError(
            f"no column holds times that can be read; the columns are {_examples(columns.values())}. Set "
            "data.columns.timestamp, and data.timestamp_format (strftime, such as '%d/%m/%Y %H:%M') if its times are "
            "written in another way"
        )
    ranked = sorted(
        candidates,
        key=lambda column: (
            _whole(column),
            min(name_rank(column.name, TIME_NAMES), len(TIME_NAMES)),
            column.values.null_count(),
        ),
    )
    best, *others = ranked
    if not others:
        return best.name, "the only column of times"
    why = "by its name" if name_rank(best.name, TIME_NAMES) < math.inf else "the first"
    return best.name, f"{why} of the columns of times, {listing(repr(column.name) for column in ranked)}"


def _whole(column: Column) -> bool:
    return column.times[0].whole_number


def _is_certain_time(column: Column, columns: Mapping[str, Column]) -> bool:
    """Return whether whole numbers that can be read as times are not rather amounts."""
    if not _whole(column) or name_rank(column.name, TIME_NAMES) < math.inf:
        return True
    times = column.times[0].values.drop_nulls()
    if times.dt.year().n_unique() < len(times.unique()):  # Days or months.
        return True
    others = any(other.times and not _whole(other) for other in columns.values())
    years = times.dt.year()
    span = int(years.max()) - int(years.min()) + 1  # type: ignore[arg-type]
    return not others and span <= 2 * years.n_unique()


def find_series(columns: Mapping[str, Column], time: str, data: DataConfig) -> tuple[SeriesKey, str]:
    """Return the columns that name a series, and why: the fewest that make the rows unique.

    Raises DataError if several rows have the same series and time, whatever names the series.
    """
    frame = pl.DataFrame([column.values for column in columns.values()])
    rows = frame.filter(pl.col(time).is_not_null())
    target, name = data.columns.target, data.columns.series_id

    def key_of(names: tuple[str, ...]) -> SeriesKey:
        n_series = rows.select(names).drop_nulls().n_unique() if names else 1
        return SeriesKey(names, n_series, rows.height - rows.select(*names, time).n_unique())

    if name != AUTO:
        _column_of(name, columns, "series_id")
        return _check_key(key_of((name,)), rows, time, data), "as set"
    if data.layout == "wide":
        return _check_key(key_of(()), rows, time, data), "data.layout=wide"
    others = [column for column in columns.values() if column.name not in (time, target) and not column.is_row_number]
    certain = [column for column in others if column.name.strip().lower() in _CERTAIN_SERIES_NAMES]
    if certain and (key := key_of((certain[0].name,))).repeats <= MAX_REPEATS * rows.height:
        return key, "by its name"
    texts = [column for column in others if not column.numeric and not column.times]
    numbers = [column for column in others if column.whole and name_rank(column.name, SERIES_NAMES) < math.inf]
    ranked = sorted([*texts, *numbers], key=lambda column: name_rank(column.name, SERIES_NAMES))[:_MOST_CANDIDATES]
    names_in_order = [name for name in columns if name in {column.name for column in ranked}]
    closest = key_of(())
    for size in range(_MOST_KEYS + 1):
        keys = [key_of(names) for names in itertools.combinations(names_in_order, size)]
        keys = [key for key in keys if key.n_series * _LEAST_ROWS <= max(rows.height, _LEAST_ROWS)]
        unique = [key for key in keys if key.repeats <= MAX_REPEATS * rows.height]
        if unique:
            best = min(unique, key=lambda key: (key.repeats > 0, key.n_series, _rank(key.names)))
            return best, _why_series(best, time)
        closest = min([closest, *keys], key=lambda key: key.repeats)
    if data.aggregate is not None:
        return key_of(()), "rows are put together by data.aggregate"
    raise _repeats_error(rows, time, closest)


def _rank(names: Iterable[str]) -> float:
    return sum(min(name_rank(name, SERIES_NAMES), len(SERIES_NAMES)) for name in names)


def _why_series(key: SeriesKey, time: str) -> str:
    repeated = f", except {key.repeats:,} rows" if key.repeats else ""
    if not key.names:
        return f"each {time!r} occurs once{repeated}"
    together = "together they make" if len(key.names) > 1 else "it makes"
    return f"{together} the rows of a {time!r} unique{repeated}"


def _check_key(key: SeriesKey, rows: pl.DataFrame, time: str, data: DataConfig) -> SeriesKey:
    """Return a configured key. Raises DataError if too many rows repeat a series and time."""
    if key.repeats > MAX_REPEATS * rows.height and data.aggregate is None:
        raise _repeats_error(rows, time, key)
    return key


def _repeats_error(rows: pl.DataFrame, time: str, key: SeriesKey) -> DataError:
    """Return the error for several rows with the same series and time."""
    copies = rows.height - rows.n_unique()
    example = rows.group_by(time, *key.names).len().sort("len", time, descending=[True, False]).row(0)
    where = listing(repr(value) for value in example[:-1])
    series = f"series by {listing(map(repr, key.names))}; " if key.names else ""
    problem = (
        f"{key.repeats:,} of {rows.height:,} rows repeat the time of another row of their series ({series}"
        f"{example[-1]:,} rows have {where})"
    )
    if copies >= 0.9 * key.repeats:
        return DataError(f"{problem}, {copies:,} of them in all columns; remove the copies")
    return DataError(
        f"{problem}. Name the column of the series in data.columns.series_id; or, if a row is a single sale or event, "
        "put rows together with data.freq=1d data.aggregate=sum (or mean, last)"
    )


class Targets(NamedTuple):
    """Columns of values to forecast."""

    names: tuple[str, ...]
    """One, or the columns of a wide table."""
    wide: bool
    reason: str


def find_target(
    columns: Mapping[str, Column], time: str, key: SeriesKey, data: DataConfig, covariates: Sequence[str] = ()
) -> Targets:
    """Return the columns of values, and why. `covariates` are no candidates.

    Raises DataError if no column holds varying numbers, or several are as likely.
    """
    name = data.columns.target
    if name != AUTO:
        if not _column_of(name, columns, "target").numeric:
            raise DataError(
                f"column {name!r} (data.columns.target) holds no numbers (e.g. "
                f"{listing(map(repr, columns[name].values.drop_nulls().head(2)))}); for classes use `forecast train`"
            )
        return Targets((name,), False, "as set")
    numbers = [
        column
        for column in columns.values()
        if column.numeric
        and column.name not in (time, *key.names, *covariates)
        and not (column.counts_rows if key.names else column.is_row_number)
    ]
    if data.layout == "wide":
        return Targets(tuple(column.name for column in numbers), True, "data.layout=wide")
    varying = [column for column in numbers if column.n_distinct > 1 and column.values.dtype != pl.Boolean]
    calendar = [column for column in varying if name_rank(column.name, CALENDAR_NAMES) < math.inf]
    attributes = _attributes([column for column in varying if column not in calendar], columns[time], columns, key)
    candidates = [column for column in varying if column not in calendar and column.name not in attributes]
    candidates = candidates or [column for column in varying if column not in calendar] or varying
    if not candidates:
        raise DataError(
            f"no column holds numbers that vary; the columns are {_examples(columns.values())}. Set "
            "data.columns.target (for classes, use `forecast train`)"
        )
    ranked = sorted(candidates, key=lambda column: name_rank(column.name, TARGET_NAMES))
    if len(ranked) == 1:
        return Targets((ranked[0].name,), False, "the only column of numbers that vary")
    first, second = (name_rank(column.name, TARGET_NAMES) for column in ranked[:2])
    weak = not key.names and any(name_rank(ranked[0].name, [name]) < math.inf for name in WEAK_TARGETS)
    if first < second and not weak:
        return Targets(
            (ranked[0].name,), False, f"by its name, of {listing(repr(column.name) for column in candidates)}"
        )
    if not key.names:
        series = tuple(column.name for column in numbers if column not in calendar and not column.counts_rows)
        return Targets(series, True, "no name stands out, so each column is a series")
    raise DataError(
        f"{len(candidates):,} columns may be the target ({listing(repr(column.name) for column in candidates)}); set "
        f"data.columns.target, for example data.columns.target={candidates[0].name}"
    )


def _attributes(candidates: Sequence[Column], time: Column, columns: Mapping[str, Column], key: SeriesKey) -> set[str]:
    """Return the columns of a panel with one value per series, or per time: they describe a series or a day."""
    if key.n_series < 2 or not candidates:
        return set()
    frame = pl.DataFrame([column.values for column in candidates])
    keys = pl.DataFrame([columns[name].values for name in key.names]).hash_rows().alias("key of series")
    groups = {"key of series": keys, "time of row": time.values.alias("time of row")}
    result: set[str] = set()
    for group, values in groups.items():
        n_values = frame.with_columns(values).group_by(group).agg(pl.all().drop_nulls().n_unique()).drop(group).max()
        result |= {name for name, count in n_values.row(0, named=True).items() if count <= 1}
    return result


def _column_of(name: str, columns: Mapping[str, Column], role: str) -> Column:
    """Return a configured column. Raises DataError if the file lacks it."""
    if name not in columns:
        raise DataError(
            f"no column {name!r} (data.columns.{role}); the file has {listing(map(repr, columns), limit=30)}"
        )
    return columns[name]


def _examples(columns: Iterable[Column]) -> str:
    """Return names and first values of columns."""
    examples = ((column.name, column.values.drop_nulls().head(1).to_list()) for column in columns)
    return listing(
        (f"{name!r} ({str(value[0])[:30]!r})" if value else f"{name!r} (empty)" for name, value in examples), 10
    )
