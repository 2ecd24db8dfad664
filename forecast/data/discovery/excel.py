"""The cells of an Excel workbook."""

import io
from datetime import date, datetime, time
from typing import Any, NamedTuple

from forecast.errors import ConfigError, DataError


class Sheet(NamedTuple):
    """Cells of a sheet."""

    name: str
    n_sheets: int
    """Sheets of the workbook."""
    cells: list[list[Any]]
    """Rows without the empty ones, all of one width: None, bool, int, float, str, date or datetime."""


def read_sheet(content: bytes, label: str) -> Sheet:
    """Return the first sheet of a workbook with two rows or more; formulas have the values that Excel stored.

    Raises ConfigError if openpyxl is missing, DataError for a damaged or an empty workbook.
    """
    try:
        import openpyxl
    except ImportError:
        raise ConfigError(f"{label} is an Excel file, which needs: pip install 'gatecast[excel]'") from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        for sheet in book.worksheets:
            rows = [[_cell(value) for value in row] for row in sheet.iter_rows(values_only=True)]
            rows = [row for row in rows if any(cell is not None for cell in row)]
            if len(rows) > 1:
                return Sheet(sheet.title, len(book.worksheets), _trimmed(rows))
    except Exception as error:  # Damaged workbooks raise errors of zipfile, of XML parsers, and others.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{label}: the workbook can't be read ({reason}); save it again, or as CSV") from None
    raise DataError(f"{label}: no sheet has a header and rows")


def _cell(value: Any) -> Any:
    """Return the value of a cell: text without blanks around it, a date for the midnight of a day."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, datetime | date | bool | int | float) or value is None:
        return value
    return value.isoformat() if isinstance(value, time) else str(value)


def _trimmed(rows: list[list[Any]]) -> list[list[Any]]:
    """Return rows without the empty columns at both ends."""
    width = max(len(row) for row in rows)
    rows = [row + [None] * (width - len(row)) for row in rows]
    filled = [place for place in range(width) if any(row[place] is not None for row in rows)]
    return [row[filled[0] : filled[-1] + 1] for row in rows]
