"""Kinds of single cells, by their form."""

import re
from typing import Final, Literal

from forecast.data.sources import numerals

UNIT: Final = r"^[€$£¥]\s*|\s*[€$£¥%]$"
"""Signs of currencies and percent around a number."""
PLACEHOLDER: Final = re.compile(
    r"[^\w]+|#(N/A|NV|DIV/0!|VALUE!|WERT!|REF!|BEZUG!)|n\.?[aAdDvV]\.?|missing|none|unknown|k\.A\.", re.IGNORECASE
)
"""Text that may stand for a missing number, besides `numerals.MISSING`."""

Kind = Literal["empty", "number", "time", "text"]

_CLOCK: Final = r"([T ]+\d\d?(:?\d\d){0,2}([.,]\d+)?( ?[AaPp]\.?[Mm]\.?)?( ?(Z|UTC|GMT|[+-]\d\d:?\d\d))?)?"
_MONTH: Final = r"[A-Za-z]{3,9}\.?"
_TIME: Final = re.compile(
    rf"(\d{{4}}[-/.]\d\d?([-/.]\d\d?)?|\d\d?[-/.]\d\d?[-/.](\d{{4}}|\d\d)|\d\d?[-/]\d{{4}}"
    rf"|\d{{4}}[- ]?[Qq][1-4]|[Qq][1-4][- ]?\d{{4}}|\d{{4}}[Mm]\d\d"
    rf"|\d\d?[- ]{_MONTH}[- ]\d{{2,4}}|{_MONTH}[- ]\d{{2,4}}|{_MONTH}[ -]\d\d?(, |-)\d{{4}}){_CLOCK}"
)
_NUMBER: Final = tuple(re.compile(form) for form in (numerals.PLAIN, numerals.POINT, numerals.COMMA))


def kind_of(cell: str) -> Kind:
    """Return the kind of a cell. A number of eight digits is a number, though it may be a date.

    >>> kind_of("31.12.2020"), kind_of("1.234,5"), kind_of("north"), kind_of("Jan 2020"), kind_of("NA")
    ('time', 'number', 'text', 'time', 'empty')
    """
    text = re.sub(UNIT, "", cell.strip())
    if text in numerals.MISSING or PLACEHOLDER.fullmatch(text):
        return "empty"
    if any(form.match(text) for form in _NUMBER):
        return "number"
    return "time" if _TIME.fullmatch(text) else "text"
