"""Tables for spreadsheets, written block by block: CSV files and Excel workbooks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final, TypeAlias

import polars as pl

from forecast.data.files import atomic_file
from forecast.errors import ConfigError, OutputError, listing

MAX_ROWS: Final = 1_048_576
MAX_COLUMNS: Final = 16_384
"""Limits of a sheet in Excel, header included."""
_MAX_TEXT: Final = 32_767
"""Characters that a cell can hold."""

XLSX: Final = ".xlsx"
SUFFIXES: Final = (".csv", XLSX)

Heading: TypeAlias = str | date | datetime
Write: TypeAlias = Callable[[pl.DataFrame], None]

_FORMULA: Final = r"^[=+\-@\t\r]"
"""How text begins that spreadsheets would run as a formula on opening a CSV file (OWASP, CSV injection)."""
_CSV_TIME: Final = "%Y-%m-%d %H:%M:%S%.f"
_TIME: Final = "yyyy-mm-dd hh:mm:ss"
_DATE: Final = "yyyy-mm-dd"
UNFINISHED: Final = ".sheet-"
"""How the names of folders begin that hold the rows of an unfinished workbook."""
_SHEET: Final = "forecast"


def check_xlsx(key: str, n_rows: int, n_columns: int, advice: str) -> None:
    """Raise ConfigError if a table, without its header, does not fit on a sheet, or no workbook can be written.

    `key` is the setting that asks for a workbook.
    """
    try:
        import xlsxwriter  # noqa: F401
    except ImportError:
        raise ConfigError(f"{key} needs: pip install 'gatecast[excel]'") from None
    if n_rows + 1 > MAX_ROWS or n_columns > MAX_COLUMNS:
        raise ConfigError(
            f"{key}: the table has {n_rows:,} rows and {n_columns:,} columns, but a sheet in Excel holds "
            f"{MAX_ROWS - 1:,} rows below its header and {MAX_COLUMNS:,} columns; {advice}"
        )


@contextmanager
def sheet_blocks(path: Path, header: Sequence[Heading], key: str = "output.path") -> Iterator[Write]:
    """Yield a function that adds rows to a new table in a file ending in .csv or .xlsx.

    A reader sees all rows once this succeeds, or the earlier file. Text stays text in a workbook, whatever it looks
    like; dates and timestamps are real dates, in the local time of their zone. In a CSV file, text that a spreadsheet
    would run as a formula gets a leading apostrophe. Numbers that are not finite are empty cells. Raises OutputError,
    also for text that is too long for a cell.
    """
    with atomic_file(path, key) as file:
        if path.suffix == XLSX:
            with (
                TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder,
                _workbook(file, header, folder) as add,
            ):
                yield add
        else:
            yield _csv(file, header)


def write_sheet(frame: pl.DataFrame, path: Path, key: str = "output.path") -> None:
    """Write a frame as `sheet_blocks` does."""
    with sheet_blocks(path, frame.columns, key) as add:
        add(frame)


def local_times(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a frame whose timestamps are local time without a zone, which spreadsheets can read."""
    zoned = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime) and kind.time_zone]
    return frame.with_columns(pl.col(zoned).dt.replace_time_zone(None))


def _csv(file: BinaryIO, header: Sequence[Heading]) -> Write:
    options: Any = {"include_header": False, "quote_style": "non_numeric", "datetime_format": _CSV_TIME}

    def add(frame: pl.DataFrame) -> None:
        text = pl.col(pl.String)
        guarded = pl.when(text.str.contains(_FORMULA)).then("'" + text).otherwise(text)
        _finite(local_times(frame)).with_columns(guarded.name.keep()).write_csv(file, **options)

    add(pl.DataFrame({str(number): [str(heading)] for number, heading in enumerate(header)}))
    return add


@contextmanager
def _workbook(file: BinaryIO, header: Sequence[Heading], folder: str) -> Iterator[Write]:
    import xlsxwriter

    book = xlsxwriter.Workbook(file, {"constant_memory": True, "tmpdir": folder})
    book.use_zip64()
    sheet = book.add_worksheet(_SHEET)
    styles = {str: "@", date: _DATE, datetime: _TIME}
    formats: dict[type, Any] = {kind: book.add_format({"num_format": text}) for kind, text in styles.items()}
    bold: dict[type, Any] = {kind: book.add_format({"num_format": text, "bold": True}) for kind, text in styles.items()}
    writers = {str: sheet.write_string, date: sheet.write_datetime, datetime: sheet.write_datetime}
    sheet.freeze_panes(1, 1)
    sheet.set_column(0, len(header) - 1, 12)
    for column, heading in enumerate(header):
        writers[type(heading)](0, column, heading, bold[type(heading)])
    n_rows = 1

    def add(frame: pl.DataFrame) -> None:
        nonlocal n_rows
        if n_rows + frame.height > MAX_ROWS:
            raise OutputError(f"more than the {MAX_ROWS - 1:,} rows that a sheet in Excel holds; write a .csv file")
        frame = _finite(local_times(frame))
        _check_text(frame)
        columns = [_cell_writer(sheet, kind, formats) for kind in frame.dtypes]
        for row in frame.iter_rows():
            for column, value in enumerate(row):
                if value is not None:
                    write, style = columns[column]
                    write(n_rows, column, value, style)
            n_rows += 1

    yield add
    sheet.autofilter(0, 0, n_rows - 1, len(header) - 1)
    book.close()


def _cell_writer(sheet: Any, kind: pl.DataType, formats: dict[type, Any]) -> tuple[Callable[..., Any], Any]:
    """Return the function that writes a value of a type, and its format."""
    if kind == pl.Boolean:
        return sheet.write_boolean, None
    if kind.is_numeric():
        return sheet.write_number, None
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        return sheet.write_datetime, formats[date if kind == pl.Date else datetime]
    return sheet.write_string, formats[str]


def _finite(frame: pl.DataFrame) -> pl.DataFrame:
    floats = pl.col(pl.Float32, pl.Float64)
    return frame.with_columns(pl.when(floats.is_finite()).then(floats).name.keep())


def _check_text(frame: pl.DataFrame) -> None:
    """Raise OutputError for text that does not fit into a cell."""
    for name in (name for name, kind in frame.schema.items() if kind == pl.String):
        long = frame.filter(pl.col(name).str.len_chars() > _MAX_TEXT)[name]
        if len(long):
            raise OutputError(
                f"{len(long):,} rows have more than the {_MAX_TEXT:,} characters in {name} that a cell in Excel holds: "
                f"{listing(long.str.head(40))}; write a .csv file"
            )
