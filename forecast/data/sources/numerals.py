"""Patterns of numbers written as text, and text for missing numbers."""

from typing import Final

import polars as pl

MISSING: Final = ("", "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null", "None", "NaT")
"""Text that stands for a missing value among numbers, whatever data.null_values adds."""

_SIGN: Final = "[+\\-\u2212]?"
_EXPONENT: Final = r"([eE][+\-]?[0-9]+)?"
# Groups of three digits; in India, groups of two before the last. The first group has no leading zero.
_GROUPS: Final = r"[1-9][0-9]{{0,2}}({0}[0-9]{{3}})+|[1-9][0-9]?({0}[0-9]{{2}})+{0}[0-9]{{3}}"
_SPACES: Final = "|".join(_GROUPS.format(mark) for mark in (" ", "\u00a0", "\u202f", "'", "\u2019"))

PLAIN: Final = rf"^({_SIGN}([0-9]+\.?[0-9]*|\.[0-9]+){_EXPONENT}|[+\-]?(inf|Inf|INF|Infinity))$"
"""A number with a decimal point, and no groups."""
POINT: Final = rf"^{_SIGN}(({_GROUPS.format(',')}|{_SPACES})(\.[0-9]*)?|[0-9]+\.?[0-9]*|\.[0-9]+){_EXPONENT}$"
"""A number with a decimal point, where commas, spaces or apostrophes may group thousands."""
COMMA: Final = rf"^{_SIGN}(({_GROUPS.format('[.]')}|{_SPACES})(,[0-9]*)?|[0-9]+,?[0-9]*|,[0-9]+){_EXPONENT}$"
"""A number with a decimal comma, where points, spaces or apostrophes may group thousands."""
LEADING_ZERO: Final = r"^0[0-9]"
"""A number that may be a name: 007."""


def strip_missing(text: pl.Expr) -> pl.Expr:
    """Return text without surrounding blanks, null if it stands for a missing number."""
    text = text.str.strip_chars()
    return pl.when(text.is_in(list(MISSING)).not_()).then(text)


def is_number(text: pl.Expr) -> pl.Expr:
    """Return whether text is a number, whatever its decimal sign."""
    return text.str.contains(POINT) | text.str.contains(COMMA) | text.str.contains(PLAIN)


def parse_numbers(text: pl.Expr, sign: str) -> pl.Expr:
    """Return text parsed as numbers with a decimal sign, null if it stands for a missing one."""
    groups = "[" + ("," if sign == "." else ".") + "'\u2019\\s]"
    digits = (
        strip_missing(text).str.replace("\u2212", "-", literal=True).str.strip_prefix("+").str.replace_all(groups, "")
    )
    return digits.str.replace(",", ".", literal=True).cast(pl.Float64)
