"""Tables from and to files: the only code that reads or writes Parquet, CSV and Arrow files."""

import glob
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import polars as pl

from forecast.errors import DataError, OutputError, listing

_KINDS: Final = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv", ".csv.zst": "csv",
    ".arrow": "ipc", ".ipc": "ipc", ".feather": "ipc",
}  # fmt: skip

UNREADABLE: Final = (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What Polars raises for a table that it can't read; it panics at a time zone that is an offset, such as +05:30."""


def scan(path: str | Path, text: Collection[str] = ("series_id",)) -> pl.LazyFrame:
    """Return the table in a Parquet, CSV or Arrow file, in all such files below a folder, or of a glob.

    `text` names the CSV columns to read as they are: "007" is not 7.
    """
    files = _files(str(path))
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        found = listing(sorted(map(str, kinds)))
        raise DataError(f"data.path={path} holds files of several kinds ({found}); give files of one kind")
    kind = kinds.pop()
    if kind is None:
        raise DataError(f"data.path={path}: unknown kind of file; known are {', '.join(_KINDS)}")
    try:
        if kind == "parquet":
            in_folders = any("=" in part for part in Path(files[0]).parts)
            frame = pl.scan_parquet(files, hive_partitioning=in_folders, extra_columns="ignore")
        elif kind == "csv":
            # Types come from all rows of all files: what looks like integers may have a fraction in the last row.
            types = dict.fromkeys(text, pl.String)
            parts = [pl.scan_csv(file, infer_schema_length=None, schema_overrides=types) for file in files]
            frame = pl.concat(parts, how="vertical_relaxed")
        else:
            frame = pl.scan_ipc(files)
        frame.collect_schema()
    except UNREADABLE as error:
        raise unreadable(error, f"data.path={path}") from error
    return frame


def _files(path: str) -> list[str]:
    folder = Path(path)
    if folder.is_dir():
        below = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
        # Others leave temporary files, logs and markers under such names.
        shown = [file for file in below if not any(part.startswith((".", "_")) for part in file.parts)]
        files = [str(folder / file) for file in shown if _kind(str(file))]
        if not files:
            raise DataError(f"data.path={path}: no Parquet, CSV or Arrow file in this folder")
        return files
    if folder.exists():
        return [path]
    # Path.glob takes no absolute pattern.
    files = sorted(file for file in glob.glob(path, recursive=True) if Path(file).is_file())  # noqa: PTH207
    if not files:
        raise DataError(f"data.path={path}: no such file or folder (from {Path.cwd()})")
    return files


def _kind(file: str) -> str | None:
    name = Path(file).name.lower()
    return next((kind for suffix, kind in _KINDS.items() if name.endswith(suffix)), None)


def to_lazy(frame: Any) -> pl.LazyFrame:
    """Return a Polars, pandas or Arrow table (anything that exports Arrow streams) as a LazyFrame."""
    if isinstance(frame, pl.LazyFrame):
        return frame
    try:
        if type(frame).__module__.split(".")[0] == "pandas":
            return pl.from_pandas(frame, include_index=frame.index.name is not None).lazy()
        if (
            isinstance(frame, pl.DataFrame)
            or hasattr(frame, "__arrow_c_stream__")
            or hasattr(frame, "__arrow_c_array__")
        ):
            return pl.DataFrame(frame).lazy()
    except (TypeError, ValueError, *UNREADABLE) as error:
        raise unreadable(error, "the table") from error
    raise DataError(f"expected a Polars, pandas or Arrow table, found {type(frame).__qualname__}")


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Return the rows of a lazy table, read batch by batch."""
    try:
        return frame.collect(engine="streaming")
    except UNREADABLE as error:
        raise unreadable(error, "the table") from error


def unreadable(error: Exception, what: str) -> DataError:
    """Return the DataError for a table that Polars could not read."""
    return DataError(f"{what} can't be read (truncated or damaged?): {str(error).splitlines()[0]}")


def write_parquet_atomic(frame: pl.DataFrame, path: Path) -> None:
    """Write a Parquet file; a reader sees all of it or nothing."""
    with _atomic(path) as file:
        frame.write_parquet(file, compression="zstd", row_group_size=500_000)


def write_text_atomic(text: str, path: Path) -> None:
    """Write a text file; a reader sees all of it or nothing."""
    with _atomic(path) as file:
        file.write(text.encode())


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a file with a temporary name beside `path`, and rename it once it is complete and on the disk."""
    check_writable(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise OutputError(f"can't write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Make `folder` and raise OutputError if nothing can be written there; call it before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"can't write into {folder}: {error.strerror or error}; choose another output.path"
        ) from error
