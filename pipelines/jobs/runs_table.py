"""The table of `forecast runs list`, as wide as the terminal."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forecast.redaction import printable, redacted

if TYPE_CHECKING:
    from pipelines.jobs.ledger_entry import Entry

_WIDTH: Final = 120
"""Width without a terminal and COLUMNS."""
_NARROW: Final = 60
"""Terminals up to this width get no lines between columns."""
_LISTED: Final = 4
"""Most cutoffs of a backfill listed one by one; of more, the first, the last and the number."""


@dataclass(frozen=True)
class _Column:
    name: str
    least: int
    """Least width; a narrower column is omitted instead."""
    is_number: bool = False


_COLUMNS: Final = (
    _Column("run", 99, is_number=True),
    _Column("flow", 14),
    _Column("status", 9),
    _Column("exit", 4, is_number=True),
    _Column("attempt", 7, is_number=True),
    _Column("dataset", 12),
    _Column("cutoff", 19),
    _Column("model", 14),
    _Column("schedule", 10),
    _Column("began (UTC)", 19),
    _Column("seconds", 9, is_number=True),
    _Column("error", 20),
)
_LEFT_OUT: Final = ("attempt", "seconds", "dataset", "schedule", "began (UTC)", "model", "cutoff", "flow", "exit")
"""Columns omitted on a narrow terminal, in this order."""


def print_runs(entries: "Sequence[Entry]", width: int | None = None) -> None:
    """Print a row for each run, no line longer than the terminal, or `width`."""
    width = width or shutil.get_terminal_size((_WIDTH, 24)).columns
    rows = [{name: printable(redacted(text)) for name, text in _row(entry).items()} for entry in entries]
    widths = _fit(rows, width)
    is_narrow = width < _NARROW
    style: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0)} if is_narrow else {"box": box.HEAVY_HEAD}
    table = Table(**style)
    for column in _COLUMNS:
        if size := widths.get(column.name):
            options: dict[str, Any] = {"justify": "right" if column.is_number else "left", "no_wrap": True}
            table.add_column(_cut(column.name, size), width=size, **options)
    for row in rows:
        table.add_row(*(Text(_cut(row[name], size)) for name, size in widths.items()))
    Console(width=width, highlight=False).print(table)


def cutoffs(entry: "Entry") -> list[str]:
    """Return the cutoffs of a run with several, as given, earliest first."""
    settings = entry.config.get("score")
    several = settings.get("cutoffs") if isinstance(settings, dict) else None
    return sorted(map(str, several)) if isinstance(several, list) else []


def _row(entry: "Entry") -> dict[str, str]:
    return {
        "run": str(entry.id),
        "flow": entry.flow,
        "status": entry.status,
        "exit": "" if entry.exit_code is None else str(entry.exit_code),
        "attempt": str(entry.attempt),
        "dataset": entry.dataset,
        "cutoff": _cutoff(entry),
        "model": entry.model,
        "schedule": entry.schedule,
        "began (UTC)": f"{entry.started:%Y-%m-%d %H:%M:%S}",
        "seconds": f"{entry.seconds:,.1f}",
        "error": " ".join(entry.error.split()),
    }


def _cutoff(entry: "Entry") -> str:
    moments = [moment.removesuffix("T00:00:00") for moment in cutoffs(entry)]
    if not moments:
        return entry.cutoff
    if len(moments) <= _LISTED:
        return ", ".join(moments)
    return f"{len(moments):,}: {moments[0]} .. {moments[-1]}"


def _fit(rows: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """Return the widths of the columns that fit: the least useful are omitted, the widest cut."""
    natural = {
        column.name: max([cell_len(column.name), *(cell_len(row[column.name]) for row in rows)]) for column in _COLUMNS
    }
    least = {column.name: min(column.least, natural[column.name]) for column in _COLUMNS}
    # Empty columns are omitted.
    columns = [name for name in natural if any(row[name] for row in rows)]
    for name in _LEFT_OUT:
        if _total([least[each] for each in columns], width) <= width:
            break
        if name in columns:
            columns.remove(name)
    widths = {name: natural[name] for name in columns}
    while _total(widths.values(), width) > width:
        above = [name for name in columns if widths[name] > least[name]]
        above = above or [name for name in columns if widths[name] > 1 and name != "run"]
        if not above:
            break
        widths[max(above, key=widths.__getitem__)] -= 1
    return widths


def _total(widths: Iterable[int], width: int) -> int:
    """Return the width of a table with such columns."""
    sizes: list[int] = list(widths)
    return sum(sizes) + (len(sizes) if width < _NARROW else 3 * len(sizes) + 1)


def _cut(text: str, size: int) -> str:
    return text if cell_len(text) <= size else (chop_cells(text, size - 1)[0] if size > 1 else "") + "…"
