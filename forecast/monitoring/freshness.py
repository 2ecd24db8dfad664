"""Age of the latest scores and observations, against the clock and against each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np

from forecast.config import MonitorSettings
from forecast.data.ages import MaxAge, age_limit
from forecast.data.panel import Panel
from forecast.data.time.frequency import DAY, Frequency
from forecast.monitoring.cutoffs import Cutoff
from forecast.scoring.manifests import in_utc, written_at

_LATE_DAYS: Final = 3
_LATE_STEPS: Final = 2
"""Tolerated lateness: the longer of these days and these steps."""
_GAPS: Final = 10
"""Latest gaps between cutoffs whose median is the usual interval."""
_YEAR: Final = timedelta(days=365)


@dataclass(frozen=True)
class Age:
    """Time and steps between two moments."""

    steps: int
    """Steps of the panel; 0 within a step."""
    time: timedelta
    limit: int | None
    """Steps allowed by the threshold; None for no limit."""

    @property
    def late(self) -> bool:
        """Whether the age exceeds its limit."""
        return self.limit is not None and self.steps > self.limit

    def __str__(self) -> str:
        """Return the age as text for people.

        >>> str(Age(3, timedelta(days=3, hours=2), 2)), str(Age(1, timedelta(hours=1), 2))
        ('3 steps (3 days)', '1 step (1 hour)')
        """
        if not self.time:
            return _plural(self.steps, "step")
        for unit, length in (
            ("day", timedelta(days=1)),
            ("hour", timedelta(hours=1)),
            ("minute", timedelta(minutes=1)),
        ):
            if self.time >= length or unit == "minute":
                count = self.time // length
                return f"{_plural(self.steps, 'step')} ({_plural(count, unit)})"
        raise AssertionError("no unit")


@dataclass(frozen=True)
class Freshness:
    """The latest scores and observations, and their ages."""

    clock: datetime
    """The present: `monitor.as_of` or the current time; the last step of the panel if neither applies."""
    scores: datetime
    """The latest cutoff."""
    observations: datetime
    """The last step of the panel."""
    scores_age: Age
    """Age of the latest cutoff, before the clock."""
    observations_age: Age
    scores_lag: Age
    """Lag of the latest scores behind the latest observations; 0 if they are not behind."""

    @property
    def breached(self) -> bool:
        """Whether any age exceeds its limit."""
        return bool(self.findings)

    @property
    def findings(self) -> list[str]:
        """Sentences on the ages that exceed their limits."""
        clock = f"before {self.clock.isoformat()}"
        sentences = []
        if self.observations_age.late:
            moment = self.observations.isoformat()
            sentences.append(f"the table is not updated: it ends at {moment}, {self.observations_age} {clock}")
        if self.scores_age.late or self.scores_lag.late:
            latest = f"the latest cutoff is {self.scores.isoformat()}, {self.scores_age} {clock}"
            if self.scores_lag.steps:
                sentences.append(f"scoring has stopped: {latest}, {self.scores_lag} before the end of the table")
            else:
                sentences.append(f"there are no new scores: {latest}, and the table has no later observations")
        return sentences

    def measures(self) -> dict[str, float]:
        """Return the ages in steps and in hours, by name."""
        ages = {"scores_age": self.scores_age, "observations_age": self.observations_age, "scores_lag": self.scores_lag}
        steps = {f"{name}_steps": float(age.steps) for name, age in ages.items()}
        return steps | {f"{name}_hours": age.time / timedelta(hours=1) for name, age in ages.items()}


def freshness_of(cutoffs: Sequence[Cutoff], panel: Panel, settings: MonitorSettings, now: datetime | None) -> Freshness:
    """Return the ages of the latest of `cutoffs` and of the latest observations in a panel.

    The clock is `settings.as_of`, else `now`, else the last step of the panel. Scores of history, each written more
    than a year after its horizon, use the last step of the panel, too.

    With a single cutoff, the next is due when its horizon ends, and observations are due at every step.
    """
    grid, end = panel.grid, panel.last_index
    latest = cutoffs[-1]
    observations, scores = grid.timestamps(np.array([end, latest.position])).to_list()
    clock = settings.as_of or (None if now is None or _is_history(cutoffs, panel) else now)
    clock = observations if clock is None else _local(clock, panel)
    clock_index = grid.floor(clock)
    lateness = default_lateness(grid.frequency)
    indices = [cutoff.position for cutoff in cutoffs[-_GAPS - 1 :]]
    gap = int(np.median(np.diff(indices))) if len(indices) > 1 else None
    limits = settings.thresholds
    interval = gap or latest.horizon
    score_limit = interval - 1 + lateness

    def age(position: int, index: int, until: datetime, limit: MaxAge, default: int) -> Age:
        steps, time = index - position, until - grid.timestamps(np.array([position]))[0]
        return Age(max(0, steps), max(timedelta(0), time), age_limit(limit, default, grid, index))

    return Freshness(
        clock=clock,
        scores=scores,
        observations=observations,
        scores_age=age(latest.position, clock_index, clock, limits.max_scores_age, score_limit),
        observations_age=age(end, clock_index, clock, limits.max_observations_age, (gap or 1) - 1 + lateness),
        scores_lag=age(
            latest.position,
            end,
            observations,
            limits.max_scores_lag,
            min(score_limit, max(_LATE_STEPS, 2 * interval - 1)),
        ),
    )


def default_lateness(frequency: Frequency) -> int:
    """Return the steps by which a value due at every step may be late: three days, or two steps if longer.

    >>> [default_lateness(Frequency.parse(text)) for text in ("15m", "1h", "1d", "1bd", "2d", "1w", "1mo")]
    [288, 72, 3, 3, 2, 2, 2]
    """
    if frequency.base == "month":
        return _LATE_STEPS
    day = DAY if frequency.sub_daily else 1
    return max(_LATE_STEPS, -(-_LATE_DAYS * day // frequency.size))


def _is_history(cutoffs: Sequence[Cutoff], panel: Panel) -> bool:
    """Return whether each of the scores was written more than a year after its horizon."""
    indices = np.array([cutoff.position for cutoff in cutoffs], dtype=np.int64)
    ends = panel.grid.timestamps(indices + np.array([cutoff.horizon for cutoff in cutoffs])).to_list()
    return all(written_at(cutoff.content) - in_utc(end) > _YEAR for cutoff, end in zip(cutoffs, ends, strict=True))


def _local(moment: datetime, panel: Panel) -> datetime:
    """Return a moment on the local clock of a panel."""
    if panel.grid.time_zone is None:
        return moment.astimezone().replace(tzinfo=None) if moment.tzinfo else moment
    zone = ZoneInfo(panel.grid.time_zone)
    return moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone)


def _plural(count: int, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"
