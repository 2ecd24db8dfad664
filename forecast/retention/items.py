"""What retention frees: one row of its table for each version, run, cutoff and state."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import polars as pl

VERSION: Final = "version"
MODEL: Final = "unregistered model"
RUN: Final = "run"
CUTOFF: Final = "cutoff"
STATE: Final = "state"


@dataclass(frozen=True)
class Item:
    """Something that retention frees."""

    kind: str
    """VERSION, MODEL, RUN, CUTOFF or STATE."""
    name: str
    size: int
    """Bytes of its files; 0 for rows of tables."""
    reason: str
    free: Callable[[], int] = field(compare=False, repr=False)
    """Free it, and return the bytes that this has freed, as measured. Safe to repeat after a kill."""
    rows: int = 0
    """Rows of tables."""

    @property
    def size_text(self) -> str:
        """Its size for people."""
        return f"{self.rows:,} rows" if self.rows else bytes_text(self.size)


def items_table(items: Iterable[Item]) -> pl.DataFrame:
    """Return the items as a table: kind, name, bytes, rows, reason."""
    rows = [(item.kind, item.name, item.size, item.rows, item.reason) for item in items]
    kinds = {"kind": pl.String, "name": pl.String, "bytes": pl.Int64, "rows": pl.Int64, "reason": pl.String}
    return pl.DataFrame(rows, schema=kinds, orient="row")


def bytes_text(size: float) -> str:
    """Return a number of bytes for people.

    >>> bytes_text(0), bytes_text(1536), bytes_text(2.5e9)
    ('0 B', '1.5 kB', '2.3 GB')
    """
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
    return f"{size / 1024**power:.{min(power, 1)}f} {units[power]}"
