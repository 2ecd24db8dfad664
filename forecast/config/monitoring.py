"""`monitor.*`: metrics, thresholds and alarms."""

import shlex
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from forecast.config.base import AUTO, Config, MaxAge, Share


class AlarmSettings(Config):
    """Conditions for an alarm on a series; all must hold."""

    ratio: Annotated[float, Field(ge=1)] = 1.5
    """Minimum ratio of its recent MASE to the median of its reference."""
    deviations: Annotated[float, Field(ge=0)] = 4.0
    """Minimum distance of its recent MASE above that median, in robust deviations (1.4826 times the median absolute
    deviation)."""
    least: Annotated[float, Field(ge=0)] = 0.5
    """Minimum recent MASE: a lower one is good, whatever the reference."""
    min_periods: Annotated[int, Field(ge=2)] = 4
    """Minimum number of days of its history with forecasts of the same ages for a reference; a series with fewer is
    compared with its backtest."""
    min_steps: Annotated[int, Field(ge=1)] = 3
    """Minimum number of observed recent steps of a series."""


class ThresholdSettings(Config):
    """Limits whose violation in the recent window is a breach."""

    max_wql_naive: Annotated[float, Field(gt=0)] | None = 1.0
    """WQL over that of seasonal naive on the same steps."""
    max_wql_backtest: Annotated[float, Field(gt=0)] | None = None
    """WQL over that in the backtest of the version."""
    max_mase: Annotated[float, Field(gt=0)] | None = None
    min_coverage_80: Share | None = 0.65
    """Share of the observations inside the 80 % interval, if there is one. A shortfall that may be chance is no breach;
    for a single series, none is."""
    min_coverage: Share | None = None
    """Share of the observations inside the widest interval."""
    max_coverage: Share | None = None
    max_psi: Annotated[float, Field(gt=0)] | None = None
    """Population stability index of the target or a covariate: 0.1 is slight drift, 0.25 strong drift. A value that
    may be chance is no breach."""
    max_missing: Share | None = None
    """Increase in the share of missing values of a column."""
    max_unseen: Share | None = None
    """Share of the values of a column that did not occur in training."""
    max_alarmed: Share | None = 0.1
    """Share of the judged series that have an alarm."""
    min_judged: Share | None = 0.5
    """Share of the series that are judged against their history or their backtest."""
    max_scores_age: MaxAge = AUTO
    """Age of the latest scores, from their cutoff to the clock (monitor.as_of, or now): steps, or a duration such as
    36h or 10d. auto: the longer of three days and two steps, plus the typical gap between cutoffs minus one step; none:
    any age."""
    max_observations_age: MaxAge = AUTO
    """Age of the latest observations on the same clock; auto as for max_scores_age."""
    max_scores_lag: MaxAge = AUTO
    """Age of the latest scores at the time of the latest observations: the lag of scoring behind the table. auto: two
    typical gaps between cutoffs minus one step, at most max_scores_age."""

    @model_validator(mode="after")
    def _a_band(self) -> Self:
        low, high = self.min_coverage, self.max_coverage
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"min_coverage={low:g} is not below max_coverage={high:g}: every coverage would be a breach"
            )
        return self


def _words(value: Any) -> Any:
    """Return the words of a text; a list unchanged."""
    return shlex.split(value) if isinstance(value, str) else value


class MonitorSettings(Config):
    """Monitoring of forecasts against observations."""

    as_of: datetime | None = None
    """Last timestamp to use, as if it were now; the latest of the panel when not given."""
    recent: Annotated[int, Field(ge=1)] | None = None
    """Steps up to as_of that are judged. By default the longer of a season (at most a week) and a horizon; for weeks,
    months and longer steps the last four."""
    history: Annotated[int, Field(ge=1)] | None = None
    """Steps before the recent ones, as their reference; four times as many when not given."""
    ages: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Last steps of the groups of forecast ages: [24, 72, 168] is 1-24, 25-72 and 73-168. Quarters when not given."""
    segments: tuple[str, ...] | None = None
    """Static covariates by which series are grouped; by default all of the model, or length, volume and kind of demand
    if it has none."""
    by: Literal["day", "cutoff"] = "day"
    """Grouping of accuracy over time: by the day of the steps, or by the cutoff of the forecasts."""
    min_steps: Annotated[int, Field(ge=1)] = 30
    """Minimum number of observed recent steps, over all series, to judge thresholds; they also need observations at
    `monitor.alarms.min_steps` times or more."""
    anomaly_rate: Annotated[float, Field(gt=0, le=0.5)] | None = 0.01
    """Rate of false alarms at which a recent observation is an anomaly: the share of normal observations that are as
    far from their forecasts. 2 / rate earlier observations are needed. null: none is judged."""
    alarms: AlarmSettings = AlarmSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    keep: Annotated[int, Field(ge=1)] | None = 100
    """Number of latest days whose pages and tables output.path keeps; the runs in MLflow stay. null: all."""
    on_breach: str | None = None
    """A verb to start after a breach, once for each as_of: refresh, finetune, ..."""
    on_breach_overrides: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Settings of that verb, besides registry.name: 'data.path=panel finetune.kind=bias'."""
    rollback: bool = False
    """Give the alias of the champion back to the version it replaced, if that is the shadow and better."""
    rollback_p: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Significance level for a rollback: a one-sided paired test over cutoffs that accounts for shared dates of series
    and overlapping targets of close cutoffs."""
    rollback_blocks: Annotated[int, Field(ge=4)] = 6
    """Minimum number of periods for a rollback, each of a day or more and without common observed steps. If there are
    fewer whole horizons, only the first steps after each cutoff are compared."""
    rollback_min: Annotated[int, Field(ge=2)] = 10
    """Minimum number of forecasts (a series at a cutoff) by both versions, with observations, for a rollback."""

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
