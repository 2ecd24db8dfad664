"""CSV files: detection of separator, columns and types, and a check for broken rows."""

import codecs
import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import polars as pl
import polars.selectors as cs

from forecast.data.sources import numerals
from forecast.data.sources.frames import check_odd, repeated
from forecast.data.sources.storage import Location
from forecast.errors import DataError, listing

_SEPARATORS: Final = {";": "';'", "\t": "tab", "|": "'|'"}
_HEADER_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class CsvFormat:
    """The format of CSV files."""

    separator: str | None = None
    """Separator of fields; None: a comma, or the one found in the header."""
    typed: bool = True
    """Whether numbers with decimal points are read as numbers; otherwise all columns are text."""
    null_values: tuple[str, ...] = ()
    """Text for a missing value, besides `numerals.MISSING`."""


class CsvFiles:
    """The CSV files of one table."""

    def __init__(
        self, location: Location, text: Collection[str], columns: Collection[str] | None, form: CsvFormat
    ) -> None:
        self._location, self._text, self._columns, self._form = location, text, columns, form
        self._separators: dict[str, str] = {}

    def schema(self, address: str) -> pl.Schema:
        """Return the columns of a file. Raises DataError for rows with more or fewer fields than the header."""
        header = self._header(address)
        separator = self._separators[address] = self._form.separator or self._separator(address, header)
        names = next(csv.reader([header], delimiter=separator), [])
        # Types come from all rows of all files: a column of integers may have a fraction in its last row.
        frame = pl.scan_csv(
            address,
            glob=False,
            separator=separator,
            infer_schema=self._form.typed,
            infer_schema_length=None,
            schema_overrides=dict.fromkeys(self._text, pl.String),
            storage_options=self._location.options,
        )
        try:
            schema = frame.collect_schema()
        except pl.exceptions.PolarsError:
            self._check_fields(address, separator)
            raise
        self._check_fields(address, separator)
        check_odd(repeated([name for name in names if name]), self._columns, f"{self._location.label}: {address}")
        return schema

    def read(self, addresses: list[str], schema: pl.Schema) -> pl.LazyFrame:
        """Return the rows of files that have the same columns."""
        by_separator: dict[str, list[str]] = {}
        for address in addresses:
            by_separator.setdefault(self._separators[address], []).append(address)
        options: dict[str, Any] = {"glob": False, "schema": schema, "storage_options": self._location.options}
        frames = [pl.scan_csv(files, separator=mark, **options) for mark, files in by_separator.items()]
        return frames[0] if len(frames) == 1 else pl.concat(frames)

    def align(self, schemas: dict[str, pl.Schema]) -> None:
        """Give columns that are text in some files only a common type, if possible.

        Columns without any value, which Polars reads as text, get the type of another file. If the text may be
        numbers (NA, 1.234,5), the column becomes text in all files and is parsed as a whole later.
        """
        for name in {name for schema in schemas.values() for name in schema}:
            types = dict.fromkeys(schema[name] for schema in schemas.values() if name in schema)
            if pl.String not in types or len(types) == 1:
                continue
            common_type = next(dtype for dtype in types if dtype != pl.String)
            numbers = all(dtype.is_numeric() for dtype in types if dtype != pl.String)
            texts = [address for address, schema in schemas.items() if schema.get(name) == pl.String]
            for address in texts:
                empty, numeric = self._content(address, name, schemas[address])
                if empty:
                    schemas[address] = pl.Schema({**schemas[address], name: common_type})
                numbers &= numeric
            if numbers and any(schemas[address][name] == pl.String for address in texts):
                for address, schema in schemas.items():
                    if name in schema:
                        schemas[address] = pl.Schema({**schema, name: pl.String()})

    def _content(self, address: str, name: str, schema: pl.Schema) -> tuple[bool, bool]:
        """Return whether a text column has no values, and whether all its values may be numbers."""
        column = cs.by_name(name).as_expr()
        value = numerals.strip_missing(column)
        value = pl.when(value.is_in(list(self._form.null_values)).not_()).then(value)
        numeric = numerals.is_number(value).all() & value.is_not_null().any()
        flags = self.read([address], schema).select(column.is_null().all().alias("empty"), numeric.alias("numeric"))
        empty, numbers = flags.collect().row(0)
        return empty, empty or numbers

    def _header(self, address: str) -> str:
        """Return the first line."""
        with io.BufferedReader(self._location.open(address)) as file:
            line = file.readline(_HEADER_BYTES)
        return line.decode("utf-8-sig", errors="replace").rstrip("\r\n")

    def _separator(self, address: str, header: str) -> str:
        candidates = [sign for sign in _SEPARATORS if sign in header]
        if "," in header or not candidates:
            return ","
        if len(candidates) > 1:
            names = listing(_SEPARATORS[sign] for sign in candidates)
            raise DataError(
                f"{self._location.label}: the header of {address} has no comma, but {names}: set data.separator to "
                "the one between its fields"
            )
        return candidates[0]

    def _check_fields(self, address: str, separator: str) -> None:
        """Raise DataError for rows with more or fewer fields than the header: Polars would pad them with nulls."""
        try:
            broken = _broken_rows(self._location.open(address), separator)
        except ImportError:  # Where only bundles are scored: the same by a slower reader.
            broken = broken_rows_by_python(self._location.open(address), separator)
        if broken:
            example = broken[0]
            n_fields = "1 field" if example.actual_columns == 1 else f"{example.actual_columns} fields"
            hint = "" if example.expected_columns > 1 else " (fields are separated by commas, or by data.separator)"
            raise DataError(
                f"{self._location.label}: {len(broken):,} row(s) of {address} are broken: line "
                f"{self._line(address, separator, example)} has {n_fields} where the header has "
                f"{example.expected_columns}{hint}; mend or remove what is broken"
            )

    def _line(self, address: str, separator: str, row: "_BrokenRow") -> int:
        """Return the line number where a broken row ends; `row.number` does not count line breaks in quotes."""
        text = io.TextIOWrapper(io.BufferedReader(self._location.open(address)), errors="replace", newline="")
        reader = csv.reader(text, delimiter=separator)
        try:
            for fields in reader:
                if fields and len(fields) != row.expected_columns:
                    break
        except csv.Error:
            return int(row.number)
        return reader.line_num


class _BrokenRow(NamedTuple):
    """A row that has more or fewer fields than the header."""

    expected_columns: int
    actual_columns: int
    number: int


def _broken_rows(file: Any, separator: str) -> list[_BrokenRow]:
    """Return the broken rows of a binary file. Raises ImportError without pyarrow, UnicodeDecodeError."""
    from pyarrow import csv as arrow_csv

    broken: list[_BrokenRow] = []

    def skip(row: Any) -> str:
        broken.append(_BrokenRow(row.expected_columns, row.actual_columns, row.number))
        return "skip"

    rows = arrow_csv.open_csv(
        _CheckedText(file),
        # A single column that does not exist: the rows are split into fields, and nothing is converted.
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=1 << 22),
        parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=skip),
        convert_options=arrow_csv.ConvertOptions(include_columns=["\0"], include_missing_columns=True),
    )
    for _ in rows:
        pass
    return broken


def broken_rows_by_python(file: Any, separator: str) -> list[_BrokenRow]:
    """Return the broken rows of a binary file, as `_broken_rows`."""
    text = io.TextIOWrapper(io.BufferedReader(file), encoding="utf-8", newline="")
    reader = csv.reader(text, delimiter=separator)
    expected = len(next(reader, []))
    rows = ((len(fields), reader.line_num) for fields in reader if fields)
    return [_BrokenRow(expected, count, number) for count, number in rows if count != expected]


class _CheckedText:
    """A file that raises UnicodeDecodeError if it is not UTF-8: Polars would only notice when it reads the rows."""

    def __init__(self, file: Any) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")()

    def read(self, size: int) -> bytes:
        block: bytes = self._file.read(size)
        self._decoder.decode(block, final=not block)
        return block

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()
