"""Output to the terminal and the log: one line per stage, with counts and seconds."""

import logging
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from forecast.redaction import printable, redacted, shown

if TYPE_CHECKING:
    import polars as pl
    from rich.status import Status

_LOG = logging.getLogger("forecast")
_OURS: Final = ("forecast", "pipelines")
_SECONDS_BETWEEN_UPDATES: Final = 30.0


class _Formatter(logging.Formatter):
    """Formats a record as one line without secrets, with an indented traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  of logging
        """Return the line."""
        record.message = printable(redacted(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  of logging
        """Return the traceback."""
        return textwrap.indent(shown(super().formatException(ei)), "  ")


def say(text: str) -> None:
    """Print text without secrets and terminal control characters."""
    print(shown(text), flush=True)


def setup(level: int = logging.INFO) -> None:
    """Log this package to stderr from a level on, and only the errors of libraries."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it sets up its own handlers on import
    form = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(levelname)s %(message)s"
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    # Not by the levels of their loggers, as Lightning sets its own on import.
    handler.addFilter(lambda record: record.name.split(".")[0] in _OURS or record.levelno >= logging.ERROR)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    warnings.simplefilter("ignore")


class Stage:
    """A running stage: collects counts and shows progress."""

    def __init__(self, name: str, status: "Status | None") -> None:
        self._name = name
        self._status = status
        self._updated = time.monotonic()
        self._counts: dict[str, object] = {}

    def note(self, **counts: object) -> None:
        """Add to the line that ends the stage: `note(series=35, version="nyc-flights v3")`."""
        self._counts |= counts

    def update(self, text: str) -> None:
        """Show progress: immediately on a terminal, at most every 30 seconds in a log."""
        if self._status:
            from rich.text import Text

            self._status.update(Text(printable(redacted(f"{self._name}: {text}"))))
        elif time.monotonic() - self._updated >= _SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            _LOG.info("%s: %s", self._name, text)

    def summary(self) -> str:
        """Return the counts as text."""
        return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in self._counts.items())


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Time a stage and log one line at its end."""
    started = time.monotonic()
    status = _status(name)
    running = Stage(name, status)
    if status:
        with status:
            yield running
    else:
        yield running
    summary = running.summary()
    _LOG.info("%s%s (%.1f s)", name, f": {summary}" if summary else "", time.monotonic() - started)


def _status(name: str) -> "Status | None":
    """Return a status line on a terminal; None in a log, and where only bundles are scored, without Rich."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    return console.status(f"{name} ...") if console.is_terminal else None


def table(frame: "pl.DataFrame", title: str = "") -> None:
    """Print a small frame."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console_table = Table(title=title or None, title_justify="left")
    for name, dtype in frame.schema.items():
        console_table.add_column(Text(printable(name)), justify="right" if dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        console_table.add_row(*(Text("" if value is None else printable(redacted(_cell(value)))) for value in row))
    Console(width=None if sys.stdout.isatty() else 120).print(console_table)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) and abs(value) < 100 else _text(value)


def _text(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
