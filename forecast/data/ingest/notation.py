"""Notation of numbers, times and missing values in a table: unambiguous text is read as numbers."""

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


# Rows sampled first: a column is text if most of these values are not numbers.
_SAMPLE: Final = 1000


@dataclass(frozen=True)
class _Column:
    """A column of a table that may hold numbers as text."""

    name: str
    key: str
    """The setting that names it."""


@dataclass(frozen=True)
class _Counts:
    """Counts of the notations in a text column, or in several columns that form one target."""

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
    """The first and the last value that is not a number with either decimal sign."""


def as_numbers(tables: Tables, data: DataConfig, categories: Categories | None) -> tuple[Tables, DataConfig]:
    """Return the tables with text that means numbers as numbers, and timestamps parsed by the settings.

    `categories` are those of a trained model, if there is one: its text columns stay text. The returned settings hold
    the decimal sign, if all columns agree on it. Raises DataError for ambiguous text and timestamps that can't be read;
    ConfigError for a timestamp format that does not exist.
    """
    text = frozenset(categories or {})
    has_table = {"known": tables.known is not None, "static": tables.static is not None}
    past = [_Column(name, "data.past_covariates") for name in data.past_covariates]
    known = [_Column(name, "data.known_covariates") for name in data.known_covariates]
    static = [_Column(name, "data.static_covariates") for name in data.static_covariates]
    row_covariates = [*past, *([] if has_table["known"] else known), *([] if has_table["static"] else static)]
    signs: list[str] = []

    def read_table(frame: pl.LazyFrame, groups: Sequence[Sequence[_Column]]) -> pl.LazyFrame:
        frame = stamps.read(_without_missing(frame, data), data, _schema(frame))
        return _read_numbers(frame, groups, data, text if categories is not None else None, signs)

    target = [_Column(data.columns.target, "data.columns.target")]
    if data.layout == "wide":
        shared = {data.columns.timestamp, *(column.name for column in row_covariates)}
        target = [_Column(name, "data.layout=wide") for name in _schema(tables.rows) if name not in shared]
        if data.columns.target in text:
            text |= {column.name for column in target}
    changed = replace(
        tables,
        rows=read_table(tables.rows, [target, *([column] for column in row_covariates)]),
        known=None if tables.known is None else read_table(tables.known, [[column] for column in known]),
        static=None if tables.static is None else read_table(tables.static, [[column] for column in static]),
    )
    agreed = data.decimal is None and len(set(signs)) == 1
    return changed, data.model_copy(update={"decimal": signs[0]}) if agreed else data


def _schema(frame: pl.LazyFrame) -> pl.Schema:
    try:
        return frame.collect_schema()
    except frames.UNREADABLE as error:
        raise frames.unreadable(error, "the table") from error


def _without_missing(frame: pl.LazyFrame, data: DataConfig) -> pl.LazyFrame:
    """Return the table with null for the values in data.null_values, in all columns but series_id."""
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


def _nulled(name: str, condition: pl.Expr) -> pl.Expr:
    return pl.when(condition.fill_null(value=False).not_()).then(frames.column(name)).alias(name)


def _read_numbers(
    frame: pl.LazyFrame,
    groups: Sequence[Sequence[_Column]],
    data: DataConfig,
    text: Collection[str] | None,
    signs: list[str],
) -> pl.LazyFrame:
    """Return a table with text that means numbers as numbers; append the decimal signs to `signs`.

    `text` names the columns that were text in training, None before training.
    """
    schema = _schema(frame)
    text_groups = [
        [column for column in group if _may_be_numbers(column, schema) and column.name not in (text or ())]
        for group in groups
    ]
    changes = []
    for group, wide_group in zip(text_groups, groups, strict=True):
        if not group:
            continue
        head = _count(frame.head(_SAMPLE), group)
        if head.values and 2 * max(head.plain, head.point, head.comma) <= head.values:
            continue  # Text.
        counts = _count(frame, group)
        if not counts.values and "covariates" in group[0].key:
            continue
        sign = _sign(group, counts, data, trained=text is not None) if counts.values else "."
        if sign is None:
            continue
        _check_floats(sign, counts, [column.name for column in wide_group], schema, data)
        if counts.signs and counts.plain < counts.values:
            signs.append(sign)
        changes += [
            numerals.parse_numbers(frames.column(column.name).cast(pl.String), sign).alias(column.name)
            for column in group
        ]
    return frame.with_columns(changes)


def _may_be_numbers(column: _Column, schema: pl.Schema) -> bool:
    """Return whether a column holds text that may mean numbers; a categorical covariate stays a category."""
    dtype = schema.get(column.name)
    return dtype == pl.String or ("covariates" not in column.key and isinstance(dtype, pl.Categorical | pl.Enum))


def _sign(group: Sequence[_Column], counts: _Counts, data: DataConfig, *, trained: bool) -> str | None:
    """Return the decimal sign of the numbers in a column, None if the column stays text.

    Raises DataError for text that may mean two numbers, or that data.decimal does not fit.
    """
    if not trained and _may_be_names(group[0].key, counts):
        return None
    if counts.plain == counts.values and (data.decimal != "," or not counts.signs):
        return "."
    reads = {".": counts.point, ",": counts.comma}
    signs = [sign for sign, n in reads.items() if n == counts.values and data.decimal in (None, sign)]
    if len(signs) == 1 or (signs and not counts.signs):
        return signs[0]
    if signs and group[0].key != "data.static_covariates":
        raise DataError(
            f"{_describe(group)} is text whose {counts.values:,} values may have thousands separators or decimals "
            f"({listing(map(repr, counts.examples))}): set data.decimal=. if 1,234 is more than a thousand, or "
            "data.decimal=',' if it is little more than one"
        )
    best: str = data.decimal or max(reads, key=lambda sign: reads[sign])
    if data.decimal is None and (counts.plain >= reads[best] or 2 * reads[best] <= counts.values):
        return None  # Text, or numbers mixed with text: `validate` reports it.
    if 2 * max(counts.plain, counts.point, counts.comma) <= counts.values or "static" in group[0].key:
        return None
    offending = listing(map(repr, dict.fromkeys(counts.odd or counts.examples)))
    raise DataError(
        f"{_describe(group)} is text: {reads[best]:,} of {counts.values:,} values are numbers with the decimal sign "
        f"{best!r}, the others are not ({offending}); mend them, change data.decimal, or name what stands for a "
        "missing value in data.null_values"
    )


def _may_be_names(key: str, counts: _Counts) -> bool:
    """Return whether the text of a covariate may be names that look like numbers: 007, or 12 in a text column."""
    if "covariates" not in key:
        return False
    all_plain = counts.plain == counts.values and not counts.missing
    return bool(counts.codes) or (all_plain and ("static" in key or not counts.signs))


def _check_floats(sign: str, counts: _Counts, names: Sequence[str], schema: pl.Schema, data: DataConfig) -> None:
    """Raise DataError for series with decimal commas beside others that have been read with decimal points."""
    floats = [name for name in names if name in schema and schema[name].is_float()]
    if sign == "," and counts.signs and floats and data.decimal is None:
        raise DataError(
            f"data.layout=wide: some series have decimal commas ({listing(map(repr, counts.examples))}), others were "
            f"read with decimal points ({listing(floats)}); set data.decimal=',' (or '.')"
        )


def _describe(group: Sequence[_Column]) -> str:
    if len(group) == 1:
        return f"column {group[0].name!r} ({group[0].key})"
    return f"the text in {len(group):,} columns ({listing(repr(column.name) for column in group)}; {group[0].key})"


def _count(frame: pl.LazyFrame, group: Sequence[_Column]) -> _Counts:
    """Count the notations in some columns. Each distinct text is examined once."""
    columns = [frames.column(column.name).cast(pl.String).alias(str(number)) for number, column in enumerate(group)]
    texts = frame.select(columns).unpivot(on=[str(number) for number in range(len(group))], value_name="text")
    rows = frames.collect(texts.group_by("text").len("rows").drop_nulls("text"))
    rows = rows.with_columns(numerals.strip_missing(pl.col("text")))
    value = pl.col("text")
    point, comma = value.str.contains(numerals.POINT), value.str.contains(numerals.COMMA)
    plain, marked = value.str.contains(numerals.PLAIN), value.str.contains(r"[.,]")
    conditions = {
        "values": value.is_not_null(),
        "missing": value.is_null(),
        "plain": plain,
        "point": point | plain,
        "comma": comma,
        "signs": marked,
        "codes": value.str.contains(numerals.LEADING_ZERO),
    }
    counts = rows.select(pl.col("rows").filter(condition).sum().alias(name) for name, condition in conditions.items())
    examples = (rows.select(value.filter(condition)).to_series() for condition in (marked, ~(point | comma | plain)))
    return _Counts(*counts.row(0), *(_ends(text) for text in examples))


def _ends(text: pl.Series) -> tuple[str, ...]:
    return tuple(str(value) for value in dict.fromkeys((text.min(), text.max())) if value is not None)
