"""Monitoring: written forecasts against later observations, thresholds, alarms, and champion beside shadow.

`monitor` evaluates, `checks` judges. What is written from the result is in `pipelines.monitor`, its page in
`forecast.monitor_page`.
"""

from forecast.monitor.cutoffs import maker
from forecast.monitor.evaluation import monitor
from forecast.monitor.forecasts import Written
from forecast.monitor.labels import (
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
from forecast.monitor.result import Monitored, coverage_name
from forecast.monitor.segments import BUILT_IN
from forecast.monitor.step_scores import summarised
from forecast.monitor.thresholds import Check, checks

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
