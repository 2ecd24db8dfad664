"""Thresholds, and what was measured for each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from forecast.config import MonitorSettings
from forecast.monitoring.freshness import Freshness
from forecast.monitoring.labels import ALARM, NO_SCALE, NORMAL
from forecast.monitoring.result import Monitored
from forecast.names import SOURCE_SEASONAL_NAIVE


@dataclass(frozen=True)
class Check:
    """A threshold and what was found."""

    key: str
    """Of `monitor.thresholds`."""
    what: str
    found: float | None
    """None: nothing to judge, or too little."""
    limit: float
    judged: str = ""
    """How much of what was judged; where too little was, how much of what it takes."""
    by_chance: bool = False
    """Whether chance may put it beyond its limit."""

    @property
    def verdict(self) -> str:
        """`kept`, `breached`, `by chance` (beyond its limit, and no breach) or `not judged`."""
        if self.found is None or math.isnan(self.found):
            return "not judged"
        beyond = self.found < self.limit if self.key.startswith("min_") else self.found > self.limit
        return "kept" if not beyond else "by chance" if self.by_chance else "breached"

    @property
    def breached(self) -> bool:
        """Whether it is beyond its limit, and not by chance; what is not judged is not."""
        return self.verdict == "breached"

    @property
    def allowed(self) -> str:
        """The limit as people write it."""
        return f"{'≥' if self.key.startswith('min_') else '≤'} {self.limit:.4g}"

    def __str__(self) -> str:
        """Return it as people write it.

        >>> str(Check("max_mase", "MASE", 1.23456, 1))
        'MASE 1.235, monitor.thresholds.max_mase=1'
        """
        found = "not judged" if self.found is None else f"{self.found:.4g}"
        return f"{self.what} {found}, monitor.thresholds.{self.key}={self.limit:g}"


def checks(found: Monitored, settings: MonitorSettings, reference: Mapping[str, float | None]) -> list[Check]:
    """Return the thresholds that are set, and what was found for each.

    `reference` are the metrics of the version's backtest.
    """
    limits, counts = settings.thresholds, found.counts
    enough, steps = _recent_steps(found, settings)
    wql = found.metric("wql")

    def over(name: str, base: float | None) -> tuple[str, float | None, str]:
        return f"WQL over that {name}", wql / base if wql is not None and base else None, steps

    widest = (f"coverage of {100 * found.bands[0]:g} %", found.metric(found.coverage), steps)
    judged = f"{found.judged:,} of {found.alarms.height:,} series"
    beyond_chance = (
        pl.when(pl.col("psi") > pl.col("psi_chance"))
        .then("psi")
        .otherwise(pl.when(pl.col("psi").is_not_null()).then(0.0))
    )
    growth = pl.col("missing") - pl.col("missing_before")
    coverage = found.coverage_80
    values: dict[str, tuple[str, float | None, str]] = {
        "max_wql_naive": over("of seasonal naive", found.metric("wql", SOURCE_SEASONAL_NAIVE)),
        "max_wql_backtest": over("in the backtest", reference.get("wql")),
        "max_mase": ("MASE", found.metric("mase"), steps),
        "min_coverage_80": ("coverage of 80 %", None if coverage.chance is None else coverage.value, steps),
        "min_coverage": widest,
        "max_coverage": widest,
        "max_psi": _largest(found.drift, "PSI beyond chance", beyond_chance),
        "max_missing": _largest(found.drift, "growth of missing values", growth),
        "max_unseen": _largest(found.drift, "unseen values", pl.col("unseen")),
        "max_alarmed": ("share of judged series with an alarm", _share_alarmed(found.alarms), judged),
        "min_judged": ("share of series that are judged", _share_judged(found), f"{counts['series']:,} series"),
    }
    by_chance = {"min_coverage_80": coverage.may_be_chance}
    results = [
        Check(key, what, value if enough else None, limit, amount if enough else steps, by_chance.get(key, False))
        for key, (what, value, amount) in values.items()
        if (limit := getattr(limits, key)) is not None
    ]
    return results + _age_checks(found.freshness)


def _recent_steps(found: Monitored, settings: MonitorSettings) -> tuple[bool, str]:
    """Return whether enough of the recent window is observed to judge anything, and how much is, or of how much."""
    rows = found.counts["rows_recent"]
    if rows < settings.min_steps:
        return False, f"{rows:,} of {settings.min_steps:,} steps"
    if found.observed < found.least_observed:
        return False, f"{found.observed:,} of {found.least_observed:,} times"
    return True, f"{rows:,} steps"


def _age_checks(freshness: Freshness) -> list[Check]:
    """Return the thresholds on the age of scores and observations, which there is always enough to judge."""
    ages = {
        "max_scores_age": ("age of the latest scores in steps", freshness.scores_age),
        "max_observations_age": ("age of the latest observations in steps", freshness.observations_age),
        "max_scores_lag": ("steps of scores behind observations", freshness.scores_lag),
    }
    return [
        Check(key, what, age.steps, age.limit, str(age)) for key, (what, age) in ages.items() if age.limit is not None
    ]


def _share_alarmed(alarms: pl.DataFrame) -> float | None:
    judged = alarms.filter(pl.col("status").is_in([ALARM, NORMAL]))
    return float((judged["status"] == ALARM).mean()) if judged.height else None  # type: ignore[arg-type]


def _share_judged(found: Monitored) -> float | None:
    """Return the share of the series with a scale that are judged; None where there is none."""
    scaled = found.alarms.filter(pl.col("status") != NO_SCALE)
    if not scaled.height:
        return None
    return float(scaled["status"].is_in([ALARM, NORMAL]).mean())  # type: ignore[arg-type]


def _largest(drift: pl.DataFrame, what: str, value: pl.Expr) -> tuple[str, float | None, str]:
    """Return the largest value over all columns: which one has it, the value, and of how many."""
    columns = drift.select("column", "values", value.alias("value")).drop_nulls("value").sort("value", descending=True)
    if columns.is_empty():
        return what, None, "0 columns"
    name, values, largest = columns.row(0)
    return f"{what} of {name}", float(largest), f"{values:,} values"
