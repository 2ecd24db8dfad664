"""Monitoring: written forecasts against later observations, thresholds, alarms, and champion beside shadow.

`monitor` evaluates, `checks` judges. What is written from the result is in `pipelines.monitor`, its page in
`forecast.monitor_page`.
"""

from forecast.monitoring.cutoffs import maker
from forecast.monitoring.evaluation import monitor
from forecast.monitoring.forecasts import Written
from forecast.monitoring.labels import (
    AGE,
    ALARM,
    ALL,
    FEW,
    FORECAST,
    HISTORY,
    IN_SAMPLE,
    NO_REFERENCE,
    NO_SCALE,
    NORMAL,
    RECENT,
    TIME,
)
from forecast.monitoring.result import Monitored, coverage_name
from forecast.monitoring.segments import BUILT_IN
from forecast.monitoring.step_scores import summarised
from forecast.monitoring.thresholds import Check, checks

__all__ = [
    "AGE",
    "ALARM",
    "ALL",
    "BUILT_IN",
    "FEW",
    "FORECAST",
    "HISTORY",
    "IN_SAMPLE",
    "NORMAL",
    "NO_REFERENCE",
    "NO_SCALE",
    "RECENT",
    "TIME",
    "Check",
    "Monitored",
    "Written",
    "checks",
    "coverage_name",
    "maker",
    "monitor",
    "summarised",
]
