"""Thresholds of monitoring and their verdicts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from forecast.config import MonitorSettings
from forecast.monitoring.freshness import Freshness
from forecast.monitoring.labels import ALARM, NO_SCALE, NORMAL
from forecast.monitoring.result import MonitorResult
from forecast.names import SOURCE_SEASONAL_NAIVE


@dataclass(frozen=True)
class Check:
    """A threshold and the measured value. The field names are keys of monitor.json."""

    key: str
    """Key in `monitor.thresholds`."""
    what: str
    found: float | None
    """The measured value; None if there is too little data."""
    limit: float
    judged: str = ""
    """Amount of data behind the value; if too little, the amount and what is required."""
    by_chance: bool = False
    """Whether chance alone may explain a value beyond the limit."""

    @property
    def verdict(self) -> str:
        """`kept`, `breached`, `by chance` (beyond the limit, but no breach) or `not judged`."""
        if self.found is None or math.isnan(self.found):
            return "not judged"
        beyond = self.found < self.limit if self.key.startswith("min_") else self.found > self.limit
        return "kept" if not beyond else "by chance" if self.by_chance else "breached"

    @property
    def breached(self) -> bool:
        """Whether the value is beyond the limit and not by chance; False if not judged."""
        return self.verdict == "breached"

    @property
    def allowed(self) -> str:
        """The limit as text for people."""
        return f"{'≥' if self.key.startswith('min_') else '≤'} {self.limit:.4g}"

    def __str__(self) -> str:
        """Return the check as text for people.

        >>> str(Check("max_mase", "MASE", 1.23456, 1))
        'MASE 1.235, monitor.thresholds.max_mase=1'
        """
        value = "not judged" if self.found is None else f"{self.found:.4g}"
        return f"{self.what} {value}, monitor.thresholds.{self.key}={self.limit:g}"


def checks(result: MonitorResult, settings: MonitorSettings, reference: Mapping[str, float | None]) -> list[Check]:
    """Return the check of each threshold that is set.

    `reference` holds the metrics of the version's backtest.
    """
    limits, counts = settings.thresholds, result.counts
    is_enough, steps = _recent_steps(result, settings)
    wql = result.metric("wql")

    def over(name: str, base: float | None) -> tuple[str, float | None, str]:
        return f"WQL over that {name}", wql / base if wql is not None and base else None, steps

    widest = (f"coverage of {100 * result.bands[0]:g} %", result.metric(result.coverage), steps)
    judged_series = f"{result.judged:,} of {result.alarms.height:,} series"
    beyond_chance = (
        pl.when(pl.col("psi") > pl.col("psi_chance"))
        .then("psi")
        .otherwise(pl.when(pl.col("psi").is_not_null()).then(0.0))
    )
    growth = pl.col("missing") - pl.col("missing_before")
    coverage = result.coverage_80
    values: dict[str, tuple[str, float | None, str]] = {
        "max_wql_naive": over("of seasonal naive", result.metric("wql", SOURCE_SEASONAL_NAIVE)),
        "max_wql_backtest": over("in the backtest", reference.get("wql")),
        "max_mase": ("MASE", result.metric("mase"), steps),
        "min_coverage_80": ("coverage of 80 %", None if coverage.chance is None else coverage.value, steps),
        "min_coverage": widest,
        "max_coverage": widest,
        "max_psi": _largest(result.drift, "PSI beyond chance", beyond_chance),
        "max_missing": _largest(result.drift, "growth of missing values", growth),
        "max_unseen": _largest(result.drift, "unseen values", pl.col("unseen")),
        "max_alarmed": ("share of judged series with an alarm", _share_alarmed(result.alarms), judged_series),
        "min_judged": ("share of series that are judged", _share_judged(result), f"{counts['series']:,} series"),
    }
    by_chance = {"min_coverage_80": coverage.may_be_chance}
    results = [
        Check(
            key, label, value if is_enough else None, limit, amount if is_enough else steps, by_chance.get(key, False)
        )
        for key, (label, value, amount) in values.items()
        if (limit := getattr(limits, key)) is not None
    ]
    return results + _age_checks(result.freshness)


def _recent_steps(result: MonitorResult, settings: MonitorSettings) -> tuple[bool, str]:
    """Return whether the recent window has enough observations to be judged, and their amount as text."""
    rows = result.counts["rows_recent"]
    if rows < settings.min_steps:
        return False, f"{rows:,} of {settings.min_steps:,} steps"
    if result.observed < result.least_observed:
        return False, f"{result.observed:,} of {result.least_observed:,} times"
    return True, f"{rows:,} steps"


def _age_checks(freshness: Freshness) -> list[Check]:
    """Return the checks on the age of scores and observations, which need no minimum of data."""
    ages = {
        "max_scores_age": ("age of the latest scores in steps", freshness.scores_age),
        "max_observations_age": ("age of the latest observations in steps", freshness.observations_age),
        "max_scores_lag": ("steps of scores behind observations", freshness.scores_lag),
    }
    return [
        Check(key, label, age.steps, age.limit, str(age)) for key, (label, age) in ages.items() if age.limit is not None
    ]


def _share_alarmed(alarms: pl.DataFrame) -> float | None:
    rows = alarms.filter(pl.col("status").is_in([ALARM, NORMAL]))
    return float((rows["status"] == ALARM).mean()) if rows.height else None  # type: ignore[arg-type]


def _share_judged(result: MonitorResult) -> float | None:
    """Return the share of judged series among those with a scale; None without such a series."""
    scaled = result.alarms.filter(pl.col("status") != NO_SCALE)
    if not scaled.height:
        return None
    return float(scaled["status"].is_in([ALARM, NORMAL]).mean())  # type: ignore[arg-type]


def _largest(drift: pl.DataFrame, label: str, value: pl.Expr) -> tuple[str, float | None, str]:
    """Return label, value and amount for the column with the largest value; None if no column has one."""
    columns = drift.select("column", "values", value.alias("value")).drop_nulls("value").sort("value", descending=True)
    if columns.is_empty():
        return label, None, "0 columns"
    name, values, largest = columns.row(0)
    return f"{label} of {name}", float(largest), f"{values:,} values"
