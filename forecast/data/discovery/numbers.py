"""Readings of text columns as numbers: decimal sign, and text that stands for a missing number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from forecast.data.discovery.cells import PLACEHOLDER, UNIT
from forecast.data.sources import numerals

# Share of the values that must be numbers; the rest must stand for missing ones.
_MOST: Final = 0.8

Sign = Literal[".", ","]


@dataclass(frozen=True)
class NumberReading:
    """A column of text that holds numbers."""

    name: str
    signs: frozenset[Sign]
    """The decimal signs with which all numbers of the column can be read."""
    marked: str | None
    """A value with a point or a comma; None if all are whole numbers."""
    evidence: str | None
    """A value that only one decimal sign reads; None if both read all."""
    commas: bool = False
    """Whether a value has a comma."""
    units: bool = False
    """Whether numbers have the sign of a currency, or a percent sign."""
    placeholders: tuple[str, ...] = ()
    """Texts that stand for a missing number, besides `numerals.MISSING`."""


def read_numbers(column: pl.Series, null_values: Sequence[str] = ()) -> NumberReading | None:
    """Return how a text column holds numbers, None if it does not.

    Up to a fifth of the values may be other text, if all of it looks like a placeholder.
    """
    counts = (
        column.to_frame("text")
        .select(numerals.strip_missing(pl.col("text")))
        .drop_nulls()
        .with_columns(pl.col("text").str.replace_all(UNIT, "").alias("text"), unit=pl.col("text").str.contains(UNIT))
        .filter(~pl.col("text").is_in(list(null_values)))
        .group_by("text", maintain_order=True)
        .agg(pl.len(), pl.col("unit").any())
        .with_columns(
            point=pl.col("text").str.contains(numerals.POINT) | pl.col("text").str.contains(numerals.PLAIN),
            comma=pl.col("text").str.contains(numerals.COMMA),
            marked=pl.col("text").str.contains(r"[.,]"),
        )
    )
    numbers = counts.filter(pl.col("point") | pl.col("comma"))
    others = counts.filter(~(pl.col("point") | pl.col("comma")))["text"].to_list()
    if int(numbers["len"].sum()) < _MOST * max(1, int(counts["len"].sum())) or not all(
        map(PLACEHOLDER.fullmatch, others)
    ):
        return None
    signs: list[Sign] = [sign for sign, name in ((".", "point"), (",", "comma")) if numbers[name].all()]  # type: ignore[misc]
    if not signs:
        return None
    marked = numbers.filter("marked")["text"]
    decisive = numbers.filter(pl.col("point") != pl.col("comma"))["text"]
    return NumberReading(
        column.name,
        frozenset(signs),
        marked[0] if len(marked) else None,
        decisive[0] if len(decisive) else None,
        bool(marked.str.contains(",", literal=True).any()),
        bool(numbers["unit"].any()),
        tuple(others),
    )


def agreed_sign(readings: Sequence[NumberReading]) -> tuple[Sign | None, NumberReading | None]:
    """Return the decimal sign that the columns of a file prove, with a column that does; None if they do not agree."""
    proofs = {next(iter(reading.signs)): reading for reading in readings if len(reading.signs) == 1}
    if len(proofs) == 1:
        return next(iter(proofs.items()))
    return None, None


def as_numbers(column: pl.Series, sign: str, placeholders: Sequence[str]) -> pl.Series:
    """Return text as numbers, without signs of currencies; null for placeholders."""
    text = pl.col(column.name).str.strip_chars().str.replace_all(UNIT, "")
    kept = pl.when(~text.is_in(list(placeholders))).then(text)
    return column.to_frame().select(numerals.parse_numbers(kept, sign).alias(column.name)).to_series()
