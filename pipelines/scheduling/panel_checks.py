"""Checks of the tables of schedules before their jobs run."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import DataConfig, SourceConfig, load
from forecast.errors import GatecastError
from pipelines.jobs.command_line import compose
from pipelines.verbs import config_of

if TYPE_CHECKING:
    from pipelines.scheduling.schedule_file import Schedule


def panel_faults(schedules: "dict[str, Schedule]", makers: dict[str, list[str]], now: datetime) -> list[str]:
    """Return a line for each schedule whose settings do not suit its current table.

    A missing table is no fault if another schedule writes it.
    """
    faults = []
    for name, schedule in schedules.items():
        cutoff = schedule.cutoff_of(schedule.last(now))
        config = load(config_of(schedule.flow), compose(schedule.flow, schedule.settings(cutoff)))
        data = getattr(config, "data", None)
        if isinstance(data, SourceConfig) and data.uri is None:
            fault = _fault(schedule, data, is_made=bool(makers[name]))
            faults += [f"{name}: {fault}"] if fault else []
    return faults


def _fault(schedule: "Schedule", data: SourceConfig, *, is_made: bool) -> str | None:
    from forecast.data.sources.open import fingerprint

    try:
        fingerprint(data)
        zone = _time_zone(data)
    except GatecastError as error:
        return None if is_made else str(error)
    if schedule.naive and zone and zone != schedule.time_zone:
        return (
            f"naive: true has its cutoffs read in {zone}, the time zone of the panel, and not in "
            f"{schedule.time_zone}; leave naive out, or set time_zone: {zone}"
        )
    return None


def _time_zone(data: SourceConfig) -> str | None:
    """Return the time zone of a panel if its table or its preparation defines one. Raises DataError."""
    from forecast.data.prepared.storage import reading
    from forecast.data.sources import tables
    from forecast.data.sources.columns import KNOWN_NAMES
    from forecast.data.sources.open import is_prepared
    from forecast.names import TIMESTAMP

    assert data.path is not None
    if is_prepared(data.path):
        return reading(Path(data.path), data).time_zone
    if isinstance(data, DataConfig) and data.time_zone:
        return data.time_zone
    if ".csv" in data.path or "json" in data.path:
        return None  # Timestamps as text are not parsed here.
    schema = tables.scan(data.path, (), "data.path").collect_schema()
    zones = [getattr(schema[name], "time_zone", None) for name in KNOWN_NAMES[TIMESTAMP] if name in schema]
    return next(filter(None, zones), None)
