"""Opening the tables that a config names, and detecting changes of their files."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from forecast.config import DataConfig, SourceConfig
from forecast.data.sources import tables
from forecast.data.sources.columns import KNOWN_NAMES, possible_names
from forecast.data.sources.csv_files import CsvFormat
from forecast.data.sources.file_systems import S3
from forecast.data.sources.json_lines import Unread, is_lines, read_lines
from forecast.data.sources.sql import read_sql
from forecast.data.sources.storage import Location
from forecast.errors import ConfigError, DataError, listing
from forecast.names import SERIES_ID


@dataclass(frozen=True)
class Tables:
    """The source tables of a panel."""

    rows: pl.LazyFrame
    known: pl.LazyFrame | None = None
    """Known covariates, including the horizon, by series or for all series."""
    static: pl.LazyFrame | None = None
    """One row per series."""
    unread: Unread | None = None
    """Lines of JSON that could not be read."""


@dataclass(frozen=True)
class UsedColumns:
    """Possible column names of each table, by the settings; None if all columns are read."""

    rows: Collection[str] | None
    known: Collection[str]
    static: Collection[str]


def used_columns(data: DataConfig, *, known: bool = False, static: bool = False) -> UsedColumns:
    """Return the columns of each table that a panel uses; in a wide table each column is a series.

    `known` and `static` say whether these covariates are in separate tables.
    """
    ids, times, targets = (possible_names(data, role) for role in KNOWN_NAMES)
    other_covariates = [*(() if known else data.known_covariates), *(() if static else data.static_covariates)]
    other_covariates += filter(None, (data.available, data.weight))
    return UsedColumns(
        [*ids, *times, *targets, *data.past_covariates, *other_covariates] if data.layout == "long" else None,
        [*ids, *times, *data.side_columns("known")],
        [*ids, *data.side_columns("static")],
    )


PREPARED: Final = "panel.json"
"""The file that makes a folder a prepared panel."""


def is_prepared(path: str | Path | None) -> bool:
    """Return whether a path is a folder that `forecast data prepare` wrote, or its copy at an s3:// address.

    Raises DataError if a store does not answer.
    """
    if path is None or "://" not in str(path):
        return path is not None and (Path(path) / PREPARED).is_file()
    address = str(path).rstrip("/")
    if not address.startswith(S3) or tables.is_file_or_glob(address):
        return False
    return Location.of(address, f"data.path={address}").is_file(f"{address}/{PREPARED}")


def open_tables(data: DataConfig, text: Collection[str] = ()) -> Tables:
    """Return the tables at data.path, or of data.query at data.uri, and at data.known_path and data.static_path.

    `text` names further columns of CSV files to read as text, like series_id: "007" is not 7. A database and lines of
    JSON are read here, once; other files are read lazily. Raises DataError and ConfigError, see `tables.scan`,
    `json_lines.read_lines` and `sql.read_sql`.
    """
    if is_prepared(data.path):
        raise ConfigError(f"data.path={data.path} is a prepared panel already; give the table that it was made from")
    text = {*possible_names(data, SERIES_ID), *text}
    csv_format = CsvFormat(data.separator, data.decimal != ",", data.null_values)
    columns_by_table = used_columns(data, known=data.known_path is not None, static=data.static_path is not None)

    def scan_covariates(key: str, path: str | None, names: Collection[str]) -> pl.LazyFrame | None:
        return None if path is None else tables.scan(path, text, key, names, csv_format)

    unread = None
    if data.uri is not None:
        rows = read_sql(data.uri.get_secret_value(), data.query or "", columns_by_table.rows)
    elif data.path is not None and is_lines(data.path):
        rows, unread = read_lines(data.path, data)
    else:
        assert data.path is not None
        rows = tables.scan(data.path, text, "data.path", columns_by_table.rows, csv_format)
    return Tables(
        rows=rows,
        known=scan_covariates("data.known_path", data.known_path, columns_by_table.known),
        static=scan_covariates("data.static_path", data.static_path, columns_by_table.static),
        unread=unread,
    )


def fingerprint(data: SourceConfig) -> str | None:
    """Return a digest that changes with any file of the tables; None for a database, whose changes are not visible.

    It hashes the names, sizes and times of all files, or the version of a Delta Lake table; no row is read.
    """
    if data.uri is not None:
        return None
    identities = [(key, tables.identity(path, key)) for key, path in _paths(data).items()]
    return hashlib.sha256(repr(identities).encode()).hexdigest()


def _paths(data: SourceConfig) -> dict[str, str]:
    """Return the paths of the tables, by their settings."""
    paths = {"data.path": data.path, "data.known_path": data.known_path, "data.static_path": data.static_path}
    return {key: path for key, path in paths.items() if path is not None}


@contextmanager
def unchanged(data: SourceConfig) -> Iterator[Callable[[], None]]:
    """Yield a function that raises DataError if a file of the tables has changed since; call it after reading.

    Another error during reading is replaced by this one if a file has changed. New files do not matter; nor do a
    database, a version of a Delta Lake table, and lines of JSON at data.path: they are read as of one moment.
    """
    before = _files(data)

    def check() -> None:
        changed = before.items() - _files(data).items()
        if changed:
            names = listing(sorted({name for (_, name), _ in changed}))
            raise DataError(
                f"{len(changed):,} files were replaced, changed or removed while they were read, so that the panel "
                f"would be of both: {names}; run this again once they are complete (write a new file elsewhere, and "
                "begin to read when it is in place)"
            )

    try:
        yield check
    except (Exception, pl.exceptions.PanicException):
        check()
        raise


def _files(data: SourceConfig) -> dict[tuple[str, str], tuple[int, int]]:
    """Return size and time (ns) of each file that is read more than once, by the setting and the name."""
    stamps: dict[tuple[str, str], tuple[int, int]] = {}
    for key, path in _paths(data).items():
        if key == "data.path" and is_lines(path):
            continue
        with suppress(DataError, ConfigError):  # Reading the table reports these errors.
            stamps |= {(key, name): (size, time) for name, size, time in tables.identity(path, key) if time}
    return stamps
