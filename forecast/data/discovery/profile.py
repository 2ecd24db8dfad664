"""What each column of a file may be: times, numbers, names."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from forecast.config import AUTO, DataConfig
from forecast.data.discovery.dates import TimeReading, read_times
from forecast.data.discovery.numbers import NumberReading, read_numbers
from forecast.data.sources import numerals

# Names that columns of a role often have, the clearest first. They decide only where the values do not.
TIME_NAMES: Final = (
    "timestamp", "ds", "datetime", "date", "time", "day", "week", "month", "quarter", "year", "period", "datum", "zeit",
    "tag", "woche", "monat", "jahr", "fecha",
)  # fmt: skip
SERIES_NAMES: Final = (
    "series_id", "unique_id", "item_id", "series", "id", "store", "shop", "item", "sku", "product", "article",
    "station", "sensor", "meter", "site", "location", "customer", "branch", "region", "country", "state", "city",
    "dept", "department", "family", "brand", "group", "warehouse", "plant", "client", "account", "device", "machine",
    "line", "route", "building", "household", "symbol", "ticker", "name", "code", "key", "category", "filiale",
    "artikel",
)  # fmt: skip
TARGET_NAMES: Final = (
    "target", "y", "value", "sales", "demand", "quantity", "qty", "units", "sold", "close", "volume", "revenue",
    "turnover", "load", "consumption", "usage", "wert", "umsatz", "absatz", "menge", "amount", "count", "price",
    "total",
)  # fmt: skip
# These are often one column among several series.
WEAK_TARGETS: Final = ("amount", "count", "price", "total")
CALENDAR_NAMES: Final = (
    "year", "quarter", "month", "week", "weekday", "dayofweek", "dow", "day", "hour", "minute", "holiday", "weekend",
)  # fmt: skip
_ROW_NUMBER_NAMES: Final = re.compile(
    r"column \d+|Unnamed: \d+|__index_level_\d+__|level_\d+|index|row|rownum|nr|no\.?|#|id", re.IGNORECASE
)


def name_rank(name: str, names: Sequence[str]) -> float:
    """Return the place of a name in a list of usual ones: the whole name, half a place later a word of it, else inf.

    >>> name_rank("Sales", TARGET_NAMES), name_rank("net_sales", TARGET_NAMES), name_rank("foo", TARGET_NAMES)
    (3.0, 3.5, inf)
    """
    whole = name.strip().lower()
    if whole in names:
        return float(names.index(whole))
    words = re.split(r"[\W_]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return min((names.index(word) + 0.5 for word in words if word in names), default=math.inf)


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a file, with its readings."""

    values: pl.Series
    """As in the file."""
    times: tuple[TimeReading, ...]
    numbers: NumberReading | None
    """How text holds numbers; None for other types and other text."""

    @property
    def name(self) -> str:
        """Name of the column."""
        return self.values.name

    @property
    def numeric(self) -> bool:
        """Whether the column holds numbers, of a numeric type or as text."""
        return self.values.dtype.is_numeric() or self.numbers is not None

    @property
    def whole(self) -> bool:
        """Whether the column holds whole numbers."""
        if self.numbers is not None:
            return self.numbers.marked is None
        return self.values.dtype.is_integer()

    @property
    def has_name(self) -> bool:
        """Whether the file gives the column a name."""
        return not self.name.startswith("column ")

    @cached_property
    def n_distinct(self) -> int:
        """Number of different values; missing ones do not count."""
        return self.values.drop_nulls().n_unique()

    @cached_property
    def counts_rows(self) -> bool:
        """Whether each value is one more than that of the row before."""
        counts = self.values.cast(pl.Int64, strict=False) if self.whole else self.values.clear()
        return len(counts) > 1 and counts.null_count() == 0 and bool((counts.diff().drop_nulls() == 1).all())

    @property
    def is_row_number(self) -> bool:
        """Whether the column counts the rows, by its values and its name."""
        return self.counts_rows and _ROW_NUMBER_NAMES.fullmatch(self.name) is not None


def profile(frame: pl.DataFrame, data: DataConfig) -> dict[str, Column]:
    """Return the columns of a table with their readings; settings for times and missing values apply."""
    columns = {}
    for name in frame.columns:
        values = frame[name]
        form = data.timestamp_format if data.columns.timestamp in (name, AUTO) else None
        numbers = None
        if values.dtype in (pl.Categorical, pl.Enum):
            values = values.cast(pl.String)
        if values.dtype == pl.String:
            values = values.set(values.str.strip_chars().is_in(list(numerals.MISSING)), None)
            numbers = read_numbers(values, data.null_values)
        readable = values.dtype.is_temporal() or values.dtype.is_integer() or values.dtype == pl.String
        readable &= numbers is None or numbers.marked is None
        columns[name] = Column(values, tuple(read_times(values, form)) if readable else (), numbers)
    return columns
