"""The file of schedules: its settings, the due times of a schedule, and their cutoffs.

APScheduler evaluates a cron expression on a clock without changes; changes of the local clock are handled here (with
its own handling, a time that occurs twice fires without end).
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from pydantic import AfterValidator, BeforeValidator, Field

from forecast.config import AppendConfig, Config, JobConfig, PrepareConfig, load, table_names
from forecast.errors import ConfigError
from pipelines.jobs.command_line import compose, unresolved_mapping, yaml_mapping
from pipelines.jobs.references import unresolved_words, with_environment
from pipelines.notify import NotifyConfig
from pipelines.verbs import JOBS, config_of

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def _cron_fields(text: str) -> dict[str, str]:
    """Return the fields of a cron expression for APScheduler. Raises ValueError."""
    names = ["second", "minute", "hour", "day", "month", "day_of_week"]
    fields = text.split()
    if len(fields) not in (5, 6):
        raise ValueError(
            f"{text!r} has {len(fields)} fields, cron has 5: minute hour day month weekday (6 with seconds)"
        )
    field_of = dict(zip(names, ["0", *fields][-6:], strict=True))
    if field_of["day"] != "*" and field_of["day_of_week"] != "*":
        raise ValueError(f"{text!r} has a day and a weekday: make two schedules, or leave one of them *")
    return field_of | {"day_of_week": _weekdays(field_of["day_of_week"])}


def _weekdays(field: str) -> str:
    """Return the weekdays of a field by name: 0 and 7 are Sunday in cron, 0 is Monday in APScheduler.

    >>> _weekdays("1-3,7")
    'sun,mon,tue,wed'
    """
    days = set()
    for part in field.lower().split(","):
        match = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/([1-7]))?", part)
        if match is None:
            raise ValueError(f"weekday {part!r} is not understood")
        first, last = (0, 6) if match[1] == "*" else (_weekday(match[2]), _weekday(match[3] or match[2]))
        if first > last:
            raise ValueError(f"weekday {part!r} ends before it begins")
        days |= {day % 7 for day in range(first, last + 1, int(match[4] or 1))}
    return ",".join(_DAYS[day] for day in sorted(days))


def _weekday(text: str) -> int:
    if text in _DAYS:
        return _DAYS.index(text)
    if text not in "01234567" or len(text) != 1:
        raise ValueError(f"weekday {text!r} is not 0 to 7, or sun to sat")
    return int(text)


def _cron(text: str) -> str:
    try:
        due = CronTrigger(**_cron_fields(text), timezone=UTC).get_next_fire_time(None, datetime.now(UTC))
    except ValueError as error:
        raise ValueError(f"not a cron expression: {error}") from None
    if due is None:
        raise ValueError("is never due: there is no such day")
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError(f"no such time zone; give an IANA name such as Europe/Berlin (given: {name!r})") from None
    return name


def _flow(name: str) -> str:
    if name not in JOBS:
        raise ValueError(f"no such verb; there are: {', '.join(JOBS)} (given: {name!r})")
    return name


def _duration(text: object) -> object:
    """Return 12h, 90m, 1d as a timedelta, other values unchanged."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if isinstance(text, str) and (parts := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", text)):
        return timedelta(**{units[parts[2]]: float(parts[1])})
    raise ValueError(f"give a number with s, m, h or d, such as 12h (given: {text!r})")


class Schedule(Config):
    """When a verb is run, and with what."""

    cron: Annotated[str, AfterValidator(_cron)]
    """minute hour day month weekday, with seconds before them if there are six."""
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Of cron and of previous_day, an IANA name."""
    flow: Annotated[str, AfterValidator(_flow)]
    """The verb: any that the run ledger records, such as score, monitor, refresh or data append."""
    overrides: tuple[str, ...] = ()
    """Its settings: [registry.name=loads, data.path=panel]."""
    cutoff: Literal["as_of", "previous_day"] = "as_of"
    """The last moment that a job may see: when it is due, or the end of the day before."""
    naive: bool = False
    """Give the cutoff without a time zone, so that it is in that of the panel. A panel without one takes what the clock
    of the schedule shows in any case."""
    catch_up: Literal["all", "last", "none"] = "last"
    """Of what was missed while no scheduler ran, run everything, the last, or nothing."""
    start: datetime | None = None
    """Run what was due since then, too; what becomes due from now on when not given (naive: in time_zone)."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Attempts after the first one. What is refused, or wrongly set, is not tried again."""
    backoff: Annotated[float, Field(ge=0)] = 60.0
    """Seconds before the first retry, twice as many before each further one."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which an attempt is ended as failed."""
    wait_for_data: Annotated[timedelta, BeforeValidator(_duration), Field(ge=timedelta(0))] = timedelta(0)
    """12h, 30m, 1d: so long after it was due, an attempt whose data can't be used yet is no failure; it is made again
    at each poll."""

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.time_zone)

    def moments(self, after: datetime, until: datetime) -> list[datetime]:
        """Return the due times after `after` up to `until`, in UTC and in order.

        When the clock is set back, a named hour counts the first time only, and every hour (`*`) twice; when it is set
        forward, a named hour that is skipped is due right after it.
        """
        times = set()
        for local in self._local(after, until):
            instant, repeated = (local.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
            skipped = instant.astimezone(self.zone).replace(tzinfo=None) != local
            if not self._every_hour:
                times.add(instant)
            elif not skipped:
                times |= {instant, repeated}
        return sorted(moment for moment in times if after < moment <= until)

    def next(self, after: datetime) -> datetime:
        """Return the next due time."""
        until, step = after, timedelta(hours=1)
        while True:
            before, until = until, until + step
            if times := self.moments(before, until):
                return times[0]
            step *= 4

    def last(self, until: datetime) -> datetime:
        """Return the last due time."""
        after, step = until, timedelta(hours=1)
        while True:
            before, after = after, after - step
            if times := self.moments(after, before):
                return times[-1]
            step *= 4

    def cutoff_of(self, moment: datetime) -> datetime:
        """Return the cutoff of the job due at a time, in the schedule's time zone."""
        local = moment.astimezone(self.zone)
        return local if self.cutoff == "as_of" else self._end(local.date() - timedelta(days=1))

    def given(self, cutoff: datetime) -> datetime:
        """Return a cutoff requested by a person; with previous_day, the end of its day."""
        local = (cutoff if cutoff.tzinfo else cutoff.replace(tzinfo=self.zone)).astimezone(self.zone)
        return local if self.cutoff == "as_of" else self._end(local.date())

    def before_start(self) -> datetime | None:
        """Return the last instant before `start`, None without a start."""
        if self.start is None:
            return None
        return (self.start if self.start.tzinfo else self.start.replace(tzinfo=self.zone)) - timedelta(microseconds=1)

    def settings(self, cutoff: datetime) -> list[str]:
        """Return the settings of the job for a cutoff."""
        cutoff_text = (cutoff.replace(tzinfo=None) if self.naive else cutoff).isoformat()
        key = JOBS[self.flow].cutoff
        return [*self.overrides, *([f"{key}={cutoff_text}"] if key else [])]

    def digest(self, cutoff: datetime) -> str:
        """Return the digest of the settings of the job for a cutoff."""
        words = [self.flow, str(self.naive), *map(with_environment, self.settings(cutoff))]
        return hashlib.sha256("\0".join(words).encode()).hexdigest()

    def shown(self, moment: datetime) -> str:
        """Return a time as text, on the clock of the schedule."""
        return f"{moment.astimezone(self.zone):%Y-%m-%d %H:%M:%S %Z}"

    @property
    def days(self) -> str:
        """The day fields of `cron`: day, month and weekday, * * * for each day."""
        parts = _cron_fields(self.cron)
        weekdays = "*" if set(parts["day_of_week"].split(",")) == {*_DAYS} else parts["day_of_week"]
        return f"{'*' if parts['day'] == '*/1' else parts['day']} {parts['month']} {weekdays}"

    @property
    def _every_hour(self) -> bool:
        return _cron_fields(self.cron)["hour"] == "*"

    def _local(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield what the local clock shows when cron is due, from before `after` until after `until`."""
        trigger = CronTrigger(**_cron_fields(self.cron), timezone=UTC)
        time = after.astimezone(self.zone).replace(tzinfo=UTC) - self._margin(after)
        last = until.astimezone(self.zone).replace(tzinfo=UTC) + self._margin(until)
        while (due := trigger.get_next_fire_time(None, time)) and due <= last:
            yield due.replace(tzinfo=None)
            time = due + timedelta(microseconds=1)

    def _margin(self, moment: datetime) -> timedelta:
        """Return a duration longer than any clock change if the local clock changes near a moment, else 0."""
        margin = timedelta(hours=3)
        offsets = {(moment + shift).astimezone(self.zone).utcoffset() for shift in (-margin, timedelta(0), margin)}
        return margin if len(offsets) > 1 else timedelta(0)

    def _end(self, day: date) -> datetime:
        return datetime.combine(day, clock_time(23, 59, 59), self.zone)


class Due(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """A schedule as a trigger of APScheduler, which also fires every `poll` seconds."""

    def __init__(self, schedule: Schedule, poll: float) -> None:
        self._schedule, self._poll = schedule, timedelta(seconds=poll)

    def get_next_fire_time(self, _before: datetime | None, now: datetime) -> datetime:
        """Return the time of the next look."""
        soon = now + self._poll
        return next(iter(self._schedule.moments(now, soon)), soon)


class _File(Config):
    """The settings of the file besides those of each schedule."""

    time_zone: str = "UTC"
    overrides: tuple[str, ...] = ()
    notify: NotifyConfig = NotifyConfig()
    schedules: dict[str, dict[str, Any]]


def read(path: Path) -> tuple[dict[str, Schedule], NotifyConfig]:
    """Return the schedules in a file by name, and their notifications.

    Raises ConfigError that lists all mistakes, including those in the settings of the verbs.
    """
    file = load(_File, yaml_mapping(path, "schedule.path"))
    mapping = unresolved_mapping(path, "schedule.path")
    mistakes: list[str] = []
    schedules: dict[str, Schedule] = {}
    outputs: dict[str, str] = {}  # Outputs, and the schedules that write them.
    for name, values in file.schedules.items():
        try:
            shared = {"time_zone": file.time_zone, "overrides": []} | values
            schedule = load(Schedule, shared | {"overrides": [*file.overrides, *shared["overrides"]]})
            words = [*_unresolved_overrides(schedule.flow, mapping, file.overrides)]
            words += _unresolved_overrides(schedule.flow, mapping.get("schedules", {}).get(name), shared["overrides"])
            schedules[name] = schedule = schedule.model_copy(update={"overrides": tuple(words)})
            verb = compose(schedule.flow, schedule.settings(datetime.now(UTC)))
            places = _outputs(load(config_of(schedule.flow), verb))
        except ConfigError as error:
            mistakes.append(f"{name}: {error}".replace("\n", "\n  "))
            continue
        for output, setting in places.items():
            if outputs.setdefault(output, name) != name:
                mistakes.append(f"{name}: writes {output}, as {outputs[output]} does; choose another {setting}")
                break
    if mistakes:
        raise ConfigError(f"{path}: {len(mistakes)} schedule(s) are wrong:\n  " + "\n  ".join(mistakes))
    if not schedules:
        raise ConfigError(f"{path}: has no schedules")
    return schedules, file.notify


def _unresolved_overrides(flow: str, mapping: Any, resolved: Sequence[str]) -> list[str]:
    """Return overrides of the file with unresolved references to the environment, which the job resolves."""
    words = mapping.get("overrides") if isinstance(mapping, dict) else None
    return unresolved_words(config_of(flow), words, resolved)


def panel_makers(schedules: dict[str, Schedule]) -> dict[str, list[str]]:
    """Return by schedule the names of the other schedules that write its panel."""
    configs = {
        name: load(config_of(schedule.flow), compose(schedule.flow, schedule.settings(datetime.now(UTC))))
        for name, schedule in schedules.items()
    }
    panel_of = {
        name: Path(config.output.path).resolve()
        for name, config in configs.items()
        if isinstance(config, PrepareConfig | AppendConfig)
    }
    makers = {}
    for name, config in configs.items():
        data = getattr(config, "data", None)
        read_from = Path(data.path).resolve() if data is not None and data.path else None
        makers[name] = [maker for maker, panel in panel_of.items() if maker != name and panel == read_from]
    return makers


def _outputs(config: JobConfig) -> dict[str, str]:
    """Return the outputs of a job, a folder and tables of a database, with the settings that name them."""
    output = getattr(config, "output", None)
    if output is None or output.path is None:
        return {}
    places = {str(Path(output.path).resolve()): "output.path"}
    if uri := getattr(output, "uri", None):
        from forecast.data.sources.connections import database_of

        database = database_of(uri.get_secret_value())
        places |= {f"the table {table} of {database}": "output.table" for table in table_names(output.table)}
    return places
