"""`monitor.*`: metrics, thresholds and alarms."""

import shlex
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from forecast.config.base import AUTO, Config, MaxAge, Share


class AlarmSettings(Config):
    """When a series stands out."""

    ratio: Annotated[float, Field(ge=1)] = 1.5
    """Its recent MASE is so many times the median of its reference, ..."""
    deviations: Annotated[float, Field(ge=0)] = 4.0
    """... and above that median by so many robust deviations (1.4826 times the median absolute deviation)."""
    least: Annotated[float, Field(ge=0)] = 0.5
    """... and more than this: below, it is good whatever it was before."""
    min_periods: Annotated[int, Field(ge=2)] = 4
    """Days of its own history, with forecasts as old as the recent ones, that make a reference; a series with fewer is
    compared with its backtest."""
    min_steps: Annotated[int, Field(ge=1)] = 3
    """Observed recent steps that a series needs."""


class ThresholdSettings(Config):
    """What is a breach, in the recent window."""

    max_wql_naive: Annotated[float, Field(gt=0)] | None = 1.0
    """WQL over that of seasonal naive on the same steps."""
    max_wql_backtest: Annotated[float, Field(gt=0)] | None = None
    """WQL over that in the backtest of the version."""
    max_mase: Annotated[float, Field(gt=0)] | None = None
    min_coverage_80: Share | None = 0.65
    """Share of the observations inside the 80 % interval, if there is one. What may be below 80 % by chance is no
    breach; nothing is, of one series."""
    min_coverage: Share | None = None
    """Share of the observations inside the widest interval."""
    max_coverage: Share | None = None
    max_psi: Annotated[float, Field(gt=0)] | None = None
    """Population stability index of the target or a covariate: 0.1 is a little drift, 0.25 a lot. What it may reach by
    chance is no breach."""
    max_missing: Share | None = None
    """By how much the share of missing values of a column grew."""
    max_unseen: Share | None = None
    """Share of the values of a column that training has not seen."""
    max_alarmed: Share | None = 0.1
    """Share of the judged series that have an alarm."""
    min_judged: Share | None = 0.5
    """Share of the series that are judged: held against their history or their backtest."""
    max_scores_age: MaxAge = AUTO
    """Age of the latest scores, from their cutoff to the clock (monitor.as_of, or now): steps, or a duration such as
    36h or 10d. auto: three days or two steps, the longer one, and the usual gap between cutoffs but one step; none: any
    age."""
    max_observations_age: MaxAge = AUTO
    """Age of the latest observations on the same clock. auto: likewise."""
    max_scores_lag: MaxAge = AUTO
    """Age of the latest scores when the latest observations were made: how far scoring is behind the table. auto: two
    usual gaps between cutoffs but one step, and no more than for max_scores_age."""

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        low, high = self.min_coverage, self.max_coverage
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"min_coverage={low:g} is not below max_coverage={high:g}: every coverage would be a breach"
            )
        return self


def _words(given: Any) -> Any:
    """Return the words of a text; a list as it is."""
    return shlex.split(given) if isinstance(given, str) else given


class MonitorSettings(Config):
    """Forecasts against what came."""

    as_of: datetime | None = None
    """Last timestamp that is looked at, as if it were now; the latest of the panel when not given."""
    recent: Annotated[int, Field(ge=1)] | None = None
    """Steps up to as_of that are judged. When not given, a season (a week at most) or a horizon, the longer one; of
    weeks, months and longer steps the last four."""
    history: Annotated[int, Field(ge=1)] | None = None
    """Steps before these that they are compared with; four times as many when not given."""
    ages: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Last steps of the groups of forecast ages: [24, 72, 168] is 1-24, 25-72 and 73-168. Quarters when not given."""
    segments: tuple[str, ...] | None = None
    """Static covariates that series are grouped by; all of the model's when not given, and where it has none length,
    volume and kind of demand."""
    by: Literal["day", "cutoff"] = "day"
    """Accuracy over time is that of the steps of each day, or of the forecasts of each cutoff."""
    min_steps: Annotated[int, Field(ge=1)] = 30
    """Observed recent steps, of all series, below which no threshold is judged; nor is one with observations of fewer
    than `monitor.alarms.min_steps` times, however many series these are of."""
    alarms: AlarmSettings = AlarmSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    keep: Annotated[int, Field(ge=1)] | None = 100
    """Days of which output.path keeps pages and tables, the latest ones; the runs in MLflow stay. null: all."""
    on_breach: str | None = None
    """A verb to start after a breach, once for each as_of: refresh, finetune, ..."""
    on_breach_overrides: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Its settings, besides registry.name: 'data.path=panel finetune.kind=bias'."""
    rollback: bool = False
    """Give the champion's alias back to the version it replaced, if that is the shadow and better."""
    rollback_p: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Significance that it takes: one-sided paired test over cutoffs, which knows that series share their dates and
    that targets of close cutoffs overlap."""
    rollback_blocks: Annotated[int, Field(ge=4)] = 6
    """Stretches of time, of a day at least and without an observed step in common, that it takes. Where whole horizons
    are fewer, only the first steps after each cutoff are compared."""
    rollback_min: Annotated[int, Field(ge=2)] = 10
    """Forecasts (of a series at a cutoff) by both, with observations since, that it takes."""

    @field_validator("ages")
    @classmethod
    def _increasing(cls, ages: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ages is not None and (not ages or list(ages) != sorted(set(ages))):
            raise ValueError("must increase, without repeats")
        return ages

    @model_validator(mode="after")
    def _starts_something(self) -> Self:
        if self.on_breach_overrides and self.on_breach is None:
            raise ValueError("on_breach_overrides needs on_breach: the verb that they are for")
        return self
