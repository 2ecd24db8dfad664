"""Reading of a file whose format is unknown: encoding, separator, header, sheet."""

import codecs
import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.data.discovery.cells import kind_of
from forecast.data.discovery.excel import read_sheet
from forecast.data.sources import tables
from forecast.data.sources.storage import Location
from forecast.errors import DataError, listing

_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_BOMS: Final = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_ZIP, _OLD_EXCEL = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_COLUMNAR: Final[tuple[tuple[bytes, str, tuple[str, ...], Callable[[Any], pl.DataFrame]], ...]] = (
    (b"PAR1", "Parquet", (".parquet", ".pq"), pl.read_parquet),
    (b"ARROW1", "Arrow", (".arrow", ".ipc", ".feather"), pl.read_ipc),
)
# Lines from which separator and header are found.
_HEAD: Final = 200
# Share of the values of a column that must have a kind for the column to have it.
_MOST: Final = 0.8


@dataclass(frozen=True)
class RawTable:
    """A table as it stands in its file."""

    frame: pl.DataFrame
    """The columns: text from CSV files, types of their own from other files."""
    description: str
    """Kind of file and format, for people."""
    separator: str | None = None
    """Separator of fields of a CSV file."""
    obstacles: tuple[str, ...] = ()
    """Reasons why `tables.scan` can't read the file; empty if it can."""


def read_raw(path: str, separator: str | None = None) -> RawTable:
    """Return the table in a CSV, Excel, Parquet or Arrow file; the content tells the kind, not only the name.

    `separator` is that of CSV fields; found when None. Raises DataError for a file without a table, ConfigError if the
    package that reads Excel is missing.
    """
    label = f"data.path={path}"
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else f"no such file (from {Path.cwd()})"
        raise DataError(f"{label}: {what}; the quick start reads one file: CSV, Excel, Parquet or Arrow")
    content = _content(path, label)
    if not content.strip():
        raise DataError(f"{label}: the file is empty; give one with a header and rows")
    if content.startswith(_OLD_EXCEL):
        raise DataError(f"{label}: a workbook of Excel 97; save it as .xlsx, or as CSV")
    for mark, kind, suffixes, read in _COLUMNAR:
        if content.startswith(mark) and path.lower().endswith(suffixes):
            return RawTable(tables.scan(path, (), "data.path").collect(), kind)
        if content.startswith(mark):
            obstacle = f"it is {kind}, and its name does not end in {listing(suffixes)}"
            return RawTable(read(io.BytesIO(content)), kind, obstacles=(obstacle,))
    if content.startswith(_ZIP):
        return _from_zip(content, label, separator)
    return _from_text(content, label, Path(path).name.lower(), separator)


def _content(path: str, label: str) -> bytes:
    """Return the content of a file, uncompressed."""
    location = Location.of(path, label)
    try:
        content: bytes = location.open(path).read()
    except OSError as error:
        raise location.failure(error) from None
    return content


def _from_zip(content: bytes, label: str, separator: str | None) -> RawTable:
    """Return the table in a workbook, which is a zip archive itself, or in the only file of another archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if not re.search(r"(^|/)(\.|__MACOSX)|/$", name)]
            if "[Content_Types].xml" in names:
                return _from_excel(content, label)
            if len(names) != 1:
                raise DataError(f"{label}: an archive of {len(names):,} files ({listing(names)}); give one of them")
            inner = archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise DataError(f"{label}: neither a workbook nor an archive that can be read ({error})") from None
    raw = _from_text(inner, label, names[0].lower(), separator)
    return replace(raw, obstacles=("it is in an archive", *raw.obstacles))


def _from_excel(content: bytes, label: str) -> RawTable:
    sheet = read_sheet(content, label)
    rows = [["" if cell is None else str(cell) for cell in row] for row in sheet.cells]
    header = _header(rows, label)
    names = _names(rows[header], label)
    _check_header(rows, header, label)
    columns = [_column(name, [row[place] for row in sheet.cells[header + 1 :]]) for place, name in enumerate(names)]
    description = f"Excel, sheet {sheet.name!r}" + (f" of {sheet.n_sheets}" if sheet.n_sheets > 1 else "")
    return RawTable(
        _without_empty(pl.DataFrame(columns)), description + _skipped(header), obstacles=("it is an Excel file",)
    )


def _column(name: str, values: list[object]) -> pl.Series:
    """Return the cells of a column: of their type if they have one, else text."""
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        numbers = [float(value) if isinstance(value, int | float) else value for value in values]
        if all(value is None or isinstance(value, float) for value in numbers):
            return pl.Series(name, numbers, dtype=pl.Float64)
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)


def _from_text(content: bytes, label: str, name: str, separator: str | None) -> RawTable:
    text, encoding = _decode(content, label)
    obstacles = [] if encoding == "UTF-8" else [f"its encoding is {encoding}"]
    if not name.endswith((".csv", ".csv.gz", ".csv.zst")):
        obstacles.append("its name does not end in .csv")
    if "\n" not in text and "\r" in text:
        text = text.replace("\r", "\n")
        obstacles.append("its lines end with a carriage return")
    lines = io.StringIO(text, newline="").readlines()
    head = "".join(lines[:_HEAD])
    separator = separator or _separator(head)
    reader = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
    rows, ends = [], []
    for row in reader:
        rows.append(row)
        ends.append(reader.line_num)
    header = _header(rows, label)
    names = _names(rows[header], label)
    _check_header(rows, header, label)
    if header:
        obstacles.append(f"its header is in line {ends[header]}")
    if any(name != name.strip() for name in rows[header]):
        obstacles.append("names of columns have blanks around them")
    body = "".join(lines[ends[header] :])
    frame = _without_empty(_parse(body, separator, names, label))
    if frame.columns != names:
        obstacles.append("it has empty columns")
    description = f"CSV, fields separated by {_SEPARATORS.get(separator, repr(separator))}"
    if encoding != "UTF-8":
        description += f", {encoding}"
    return RawTable(frame, description + _skipped(header), separator, tuple(obstacles))


def _decode(content: bytes, label: str) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding."""
    for mark, codec in _BOMS.items():
        if content.startswith(mark):
            return content.decode(codec, errors="replace"), "UTF-8" if mark == codecs.BOM_UTF8 else "UTF-16"
    if b"\0" in content[: 1 << 16]:
        raise DataError(f"{label}: neither text nor Excel, Parquet or Arrow; give a file of one of these kinds")
    try:
        return content.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace"), "Latin-1"


def _separator(head: str) -> str:
    """Return the sign that splits most lines into the same number of fields, more than one."""

    def score(sign: str) -> tuple[float, int]:
        rows = [row for row in csv.reader(io.StringIO(head, newline=""), delimiter=sign) if any(row)]
        (width, count) = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
        return (count / len(rows), width) if width > 1 else (0.0, 0)

    return max(_SEPARATORS, key=score)


def _header(rows: Sequence[Sequence[str]], label: str) -> int:
    """Return the number of the first row with as many fields as most rows, most of them filled.

    Raises DataError if the file is no table.
    """
    filled = [row for row in rows if any(cell.strip() for cell in row)]
    width = Counter(map(len, filled)).most_common(1)[0][0] if filled else 0
    if width < 2:
        example = filled[0][0][:60] if filled and filled[0] else ""
        raise DataError(
            f"{label}: no table with two columns or more (it begins with {example!r}); a table has a header and a row "
            "per time, or per series and time, with fields separated by commas, semicolons, tabs or bars "
            "(data.separator)"
        )
    for number, row in enumerate(rows):
        places = [place for place, cell in enumerate(row) if cell.strip()]
        if len(row) == width and len(places) >= max(1, width // 2) and places != [0]:
            if number + 1 == len(rows):
                break
            return number
    raise DataError(f"{label}: a header without rows; give a file with both")


def _names(header: Sequence[str], label: str) -> list[str]:
    """Return the names of columns; those without one are called `column 3`, by their place."""
    names = [cell.strip() for cell in header]
    repeated = [name for name, count in Counter(names).items() if name and count > 1]
    if repeated:
        raise DataError(
            f"{label}: {len(repeated):,} column names are there more than once ({listing(map(repr, repeated))}); if "
            "the file has several header rows, keep one of them, with a name for each column"
        )
    return [name or f"column {place}" for place, name in enumerate(names, 1)]


def _check_header(rows: Sequence[Sequence[str]], header: int, label: str) -> None:
    """Raise DataError if the header looks like data, or the row below it like a second header."""
    names, first, *below = (list(row) for row in rows[header : header + 60])
    width = len(names)
    below = [row for row in below if len(row) == width and any(row)]
    kinds = [kind_of(name) for name in names]
    first = [*first, *[""] * (width - len(first))]
    if any(kind == "time" and kind_of(cell) == "time" for kind, cell in zip(kinds, first, strict=False)):
        raise DataError(
            f"{label}: line {header + 1} looks like data ({listing(map(repr, names))}), and the file has no header; "
            "add a line with names of columns, such as timestamp,target"
        )
    typed, odd = [], []
    for place in range(width):
        values = [kind_of(row[place]) for row in below if row[place].strip()]
        if values and sum(kind in ("number", "time") for kind in values) >= _MOST * len(values):
            typed.append(place)
            if kind_of(first[place]) == "text":
                odd.append(place)
    if odd and 2 * len(odd) >= len(typed):
        raise DataError(
            f"{label}: the header has two rows: below the names ({listing(names)}), a row holds "
            f"{listing(repr(first[place]) for place in odd)} where numbers and times follow; remove one of them, or "
            "join them to one row of names"
        )


def _parse(body: str, separator: str, names: list[str], label: str) -> pl.DataFrame:
    """Return the rows below the header, all as text."""
    schema = dict.fromkeys(names, pl.String)
    try:
        return pl.read_csv(body.encode(), has_header=False, separator=separator, schema=schema)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(
            f"{label}: rows have other numbers of fields than the header, which has {len(names)} ({reason}); mend "
            "them, or set data.separator"
        ) from None


def _without_empty(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a table without rows and unnamed columns that hold nothing."""
    names = [
        name for name in frame.columns if not (name.startswith("column ") and frame[name].null_count() == frame.height)
    ]
    frame = frame.select(names)
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _skipped(header: int) -> str:
    return "" if not header else f", {header} row{'s' * (header > 1)} above the header skipped"
