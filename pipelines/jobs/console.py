"""What a person or a log file sees of a run: one line per stage, with counts and seconds."""

import logging
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from forecast.redaction import printable, redacted, shown

if TYPE_CHECKING:
    import polars as pl

_LOG = logging.getLogger("forecast")
_OURS: Final = ("forecast", "pipelines")
_SECONDS_BETWEEN_UPDATES: Final = 30.0


class _Formatter(logging.Formatter):
    """Writes a record as one line without secrets, and a traceback indented below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  of logging
        """Return the line."""
        record.message = printable(redacted(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  of logging
        """Return the traceback."""
        return textwrap.indent(shown(super().formatException(ei)), "  ")


def say(text: str) -> None:
    """Print text without secrets, and without what controls a terminal."""
    print(shown(text), flush=True)


def setup() -> None:
    """Send our log lines to stderr; of libraries only errors are shown."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # it has handlers of its own, set up when it is imported
    form = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(levelname)s %(message)s"
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(form))
    # Not by the levels of their loggers: Lightning sets its own when it is imported.
    handler.addFilter(lambda record: record.name.split(".")[0] in _OURS or record.levelno >= logging.ERROR)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    warnings.simplefilter("ignore")


class Stage:
    """A stage that is running: collects its counts, shows how far it is."""

    def __init__(self, name: str, status: Status | None) -> None:
        self._name = name
        self._status = status
        self._updated = time.monotonic()
        self._counts: dict[str, object] = {}

    def note(self, **counts: object) -> None:
        """Add to the line that ends the stage: `note(series=35, version="nyc-flights v3")`."""
        self._counts |= counts

    def update(self, text: str) -> None:
        """Show progress: at once on a terminal, in a log at most every 30 seconds."""
        if self._status:
            self._status.update(Text(printable(redacted(f"{self._name}: {text}"))))
        elif time.monotonic() - self._updated >= _SECONDS_BETWEEN_UPDATES:
            self._updated = time.monotonic()
            _LOG.info("%s: %s", self._name, text)

    def summary(self) -> str:
        """Return the counts as text."""
        return ", ".join(f"{name.replace('_', ' ')} {_text(value)}" for name, value in self._counts.items())


@contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Time a stage and log one line when it is done."""
    started = time.monotonic()
    console = Console(stderr=True)
    status = console.status(f"{name} ...") if console.is_terminal else None
    running = Stage(name, status)
    if status:
        with status:
            yield running
    else:
        yield running
    summary = running.summary()
    _LOG.info("%s%s (%.1f s)", name, f": {summary}" if summary else "", time.monotonic() - started)


def table(frame: "pl.DataFrame", title: str = "") -> None:
    """Print a small frame."""
    drawn = Table(title=title or None, title_justify="left")
    for name, dtype in frame.schema.items():
        drawn.add_column(Text(printable(name)), justify="right" if dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        drawn.add_row(*(Text("" if value is None else printable(redacted(_cell(value)))) for value in row))
    Console(width=None if sys.stdout.isatty() else 120).print(drawn)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) and abs(value) < 100 else _text(value)


def _text(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
