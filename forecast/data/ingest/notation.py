"""How a table writes numbers, times and missing values: text is read as numbers where it can mean one thing only."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from forecast.config import DataConfig
from forecast.data.ingest import stamps
from forecast.data.sources import frames, numerals
from forecast.data.sources.open import Tables
from forecast.errors import DataError, listing

Categories = Mapping[str, tuple[str, ...]]


# Rows that tell whether a column is text: where most of its first values are no numbers, it is.
_SAMPLE: Final = 1000


@dataclass(frozen=True)
class _Column:
    """A column of a table that may hold numbers as text."""

    name: str
    key: str
    """The setting that names it."""


@dataclass(frozen=True)
class _Counts:
    """What the text in a column, or in several that are one target, looks like."""

    values: int = 0
    missing: int = 0
    plain: int = 0
    point: int = 0
    comma: int = 0
    signs: int = 0
    """Values with a point or a comma."""
    codes: int = 0
    """Values with a leading zero, such as 007."""
    examples: tuple[str, ...] = ()
    """The first and the last value, in the order of text, with a point or a comma."""
    odd: tuple[str, ...] = ()
    """The first and the last value that is no number, however it is read."""


def as_numbers(tables: Tables, data: DataConfig, categories: Categories | None) -> tuple[Tables, DataConfig]:
    """Return the tables with text that means numbers as numbers, and times as the settings say that they are written.

    `categories` are those of training, when there was one: columns that were text stay so. A decimal sign that all
    columns agree on is in the settings that are returned. Raises DataError for text that may mean two numbers, and
    times that can't be read; ConfigError for a format of times that does not exist.
    """
    text = frozenset(categories or {})
    beside = {"known": tables.known is not None, "static": tables.static is not None}
    past = [_Column(name, "data.past_covariates") for name in data.past_covariates]
    known = [_Column(name, "data.known_covariates") for name in data.known_covariates]
    static = [_Column(name, "data.static_covariates") for name in data.static_covariates]
    own = [*past, *([] if beside["known"] else known), *([] if beside["static"] else static)]
    signs: list[str] = []

    def read(frame: pl.LazyFrame, groups: Sequence[Sequence[_Column]]) -> pl.LazyFrame:
        frame = stamps.read(_without_missing(frame, data), data, _schema(frame))
        return _read(frame, groups, data, text if categories is not None else None, signs)

    target = [_Column(data.columns.target, "data.columns.target")]
    if data.layout == "wide":
        shared = {data.columns.timestamp, *(column.name for column in own)}
        target = [_Column(name, "data.layout=wide") for name in _schema(tables.rows) if name not in shared]
        if data.columns.target in text:
            text |= {column.name for column in target}
    changed = replace(
        tables,
        rows=read(tables.rows, [target, *([column] for column in own)]),
        known=None if tables.known is None else read(tables.known, [[column] for column in known]),
        static=None if tables.static is None else read(tables.static, [[column] for column in static]),
    )
    agreed = data.decimal is None and len(set(signs)) == 1
    return changed, data.model_copy(update={"decimal": signs[0]}) if agreed else data


def _schema(frame: pl.LazyFrame) -> pl.Schema:
    try:
        return frame.collect_schema()
    except frames.UNREADABLE as error:
        raise frames.unreadable(error, "the table") from error


def _without_missing(frame: pl.LazyFrame, data: DataConfig) -> pl.LazyFrame:
    """Return the table with null where a value is one of data.null_values, in all columns but the names of series."""
    if not data.null_values:
        return frame
    numbers = pl.Series(data.null_values, dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls()
    changes = []
    for name, dtype in _schema(frame).items():
        if name == data.columns.series_id:
            continue
        column = frames.column(name)
        if dtype == pl.String:
            changes.append(_nulled(name, column.str.strip_chars().is_in(list(data.null_values))))
        elif dtype.is_numeric() and len(numbers):
            changes.append(_nulled(name, column.cast(pl.Float64).is_in(numbers.to_list())))
    return frame.with_columns(changes)


def _nulled(name: str, where: pl.Expr) -> pl.Expr:
    return pl.when(where.fill_null(value=False).not_()).then(frames.column(name)).alias(name)


def _read(
    frame: pl.LazyFrame,
    groups: Sequence[Sequence[_Column]],
    data: DataConfig,
    text: Collection[str] | None,
    signs: list[str],
) -> pl.LazyFrame:
    """Return a table with numbers in the place of text that means numbers; the decimal signs go to `signs`.

    `text` are the columns that were text in training, None before one.
    """
    schema = _schema(frame)
    asked = [
        [column for column in group if _may_be_numbers(column, schema) and column.name not in (text or ())]
        for group in groups
    ]
    changes = []
    for group, whole in zip(asked, groups, strict=True):
        if not group:
            continue
        head = _count(frame.head(_SAMPLE), group)
        if head.values and 2 * max(head.plain, head.point, head.comma) <= head.values:
            continue  # Text.
        found = _count(frame, group)
        if not found.values and "covariates" in group[0].key:
            continue
        sign = _sign(group, found, data, trained=text is not None) if found.values else "."
        if sign is None:
            continue
        _check_floats(sign, found, [column.name for column in whole], schema, data)
        if found.signs and found.plain < found.values:
            signs.append(sign)
        changes += [
            numerals.parsed(frames.column(column.name).cast(pl.String), sign).alias(column.name) for column in group
        ]
    return frame.with_columns(changes)


def _may_be_numbers(column: _Column, schema: pl.Schema) -> bool:
    """Return whether a column holds text: in a covariate, what is called a category is one."""
    dtype = schema.get(column.name)
    return dtype == pl.String or ("covariates" not in column.key and isinstance(dtype, pl.Categorical | pl.Enum))


def _sign(group: Sequence[_Column], found: _Counts, data: DataConfig, *, trained: bool) -> str | None:
    """Return the decimal sign of the numbers in a column, None if it is to stay text.

    Raises DataError for text that may mean two numbers, or that data.decimal does not fit.
    """
    if not trained and _may_be_names(group[0].key, found):
        return None
    if found.plain == found.values and (data.decimal != "," or not found.signs):
        return "."
    reads = {".": found.point, ",": found.comma}
    signs = [sign for sign, n in reads.items() if n == found.values and data.decimal in (None, sign)]
    if len(signs) == 1 or (signs and not found.signs):
        return signs[0]
    if signs and group[0].key != "data.static_covariates":
        raise DataError(
            f"{_shown(group)} is text whose {found.values:,} values may have thousands separators or decimals "
            f"({listing(map(repr, found.examples))}): set data.decimal=. if 1,234 is more than a thousand, or "
            "data.decimal=',' if it is little more than one"
        )
    best: str = data.decimal or max(reads, key=lambda sign: reads[sign])
    if data.decimal is None and (found.plain >= reads[best] or 2 * reads[best] <= found.values):
        return None  # Text, or numbers with a decimal point beside text: for others to tell.
    if 2 * max(found.plain, found.point, found.comma) <= found.values or "static" in group[0].key:
        return None
    shown = listing(map(repr, dict.fromkeys(found.odd or found.examples)))
    raise DataError(
        f"{_shown(group)} is text: {reads[best]:,} of {found.values:,} values are numbers with the decimal sign "
        f"{best!r}, the others are not ({shown}); mend them, change data.decimal, or name what stands for a missing "
        "value in data.null_values"
    )


def _may_be_names(key: str, found: _Counts) -> bool:
    """Return whether the text of a covariate may be names that look like numbers: 007, or 12 where all is text."""
    if "covariates" not in key:
        return False
    plain = found.plain == found.values and not found.missing
    return bool(found.codes) or (plain and ("static" in key or not found.signs))


def _check_floats(sign: str, found: _Counts, names: Sequence[str], schema: pl.Schema, data: DataConfig) -> None:
    """Raise DataError for series with decimal commas beside others that have been read with decimal points."""
    floats = [name for name in names if name in schema and schema[name].is_float()]
    if sign == "," and found.signs and floats and data.decimal is None:
        raise DataError(
            f"data.layout=wide: some series have decimal commas ({listing(map(repr, found.examples))}), others were "
            f"read with decimal points ({listing(floats)}); set data.decimal=',' (or '.')"
        )


def _shown(group: Sequence[_Column]) -> str:
    if len(group) == 1:
        return f"column {group[0].name!r} ({group[0].key})"
    return f"the text in {len(group):,} columns ({listing(repr(column.name) for column in group)}; {group[0].key})"


def _count(frame: pl.LazyFrame, group: Sequence[_Column]) -> _Counts:
    """Return what the text in some columns looks like. Each text is looked at once, however many rows have it."""
    columns = [frames.column(column.name).cast(pl.String).alias(str(number)) for number, column in enumerate(group)]
    texts = frame.select(columns).unpivot(on=[str(number) for number in range(len(group))], value_name="text")
    rows = frames.collect(texts.group_by("text").len("rows").drop_nulls("text"))
    rows = rows.with_columns(numerals.stated(pl.col("text")))
    value = pl.col("text")
    point, comma = value.str.contains(numerals.POINT), value.str.contains(numerals.COMMA)
    plain, marked = value.str.contains(numerals.PLAIN), value.str.contains(r"[.,]")
    where = {
        "values": value.is_not_null(),
        "missing": value.is_null(),
        "plain": plain,
        "point": point | plain,
        "comma": comma,
        "signs": marked,
        "codes": value.str.contains(numerals.LEADING_ZERO),
    }
    counts = rows.select(pl.col("rows").filter(which).sum().alias(name) for name, which in where.items())
    examples = (rows.select(value.filter(which)).to_series() for which in (marked, ~(point | comma | plain)))
    return _Counts(*counts.row(0), *(_ends(text) for text in examples))


def _ends(text: pl.Series) -> tuple[str, ...]:
    return tuple(str(value) for value in dict.fromkeys((text.min(), text.max())) if value is not None)
