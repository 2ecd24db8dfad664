"""Thresholds, and what was measured for each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from forecast.config import MonitorSettings
from forecast.monitor.freshness import Freshness
from forecast.monitor.labels import ALARM, NO_SCALE, NORMAL
from forecast.monitor.result import Monitored
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

    @property
    def breached(self) -> bool:
        """Whether it is beyond its limit; what is not judged is not."""
        if self.found is None or math.isnan(self.found):
            return False
        return self.found < self.limit if self.key.startswith("min_") else self.found > self.limit

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
    limits = settings.thresholds
    enough = found.counts["rows_recent"] >= settings.min_steps and found.observed >= found.least_observed
    wql = found.metric("wql")

    def over(name: str, base: float | None) -> tuple[str, float | None]:
        return f"WQL over that {name}", wql / base if wql is not None and base else None

    values: dict[str, tuple[str, float | None]] = {
        "max_wql_naive": over("of seasonal naive", found.metric("wql", SOURCE_SEASONAL_NAIVE)),
        "max_wql_backtest": over("in the backtest", reference.get("wql")),
        "max_mase": ("MASE", found.metric("mase")),
        "min_coverage": (f"coverage of {100 * found.bands[0]:g} %", found.metric(found.coverage)),
        "max_coverage": (f"coverage of {100 * found.bands[0]:g} %", found.metric(found.coverage)),
        "max_psi": _largest(
            found.drift,
            "PSI beyond chance",
            pl.when(pl.col("psi") > pl.col("psi_chance"))
            .then("psi")
            .otherwise(pl.when(pl.col("psi").is_not_null()).then(0.0)),
        ),
        "max_missing": _largest(found.drift, "growth of missing values", pl.col("missing") - pl.col("missing_before")),
        "max_unseen": _largest(found.drift, "unseen values", pl.col("unseen")),
        "max_alarmed": ("share of judged series with an alarm", _share_alarmed(found.alarms)),
        "min_judged": ("share of series that are judged", _share_judged(found)),
    }
    results = [
        Check(key, what, value if enough else None, limit)
        for key, (what, value) in values.items()
        if (limit := getattr(limits, key)) is not None
    ]
    return results + _age_checks(found.freshness)


def _age_checks(freshness: Freshness) -> list[Check]:
    """Return the thresholds on the age of scores and observations, which there is always enough to judge."""
    ages = {
        "max_scores_age": ("age of the latest scores in steps", freshness.scores_age),
        "max_observations_age": ("age of the latest observations in steps", freshness.observations_age),
        "max_scores_lag": ("steps of scores behind observations", freshness.scores_lag),
    }
    return [Check(key, what, age.steps, age.limit) for key, (what, age) in ages.items() if age.limit is not None]


def _share_alarmed(alarms: pl.DataFrame) -> float | None:
    judged = alarms.filter(pl.col("status").is_in([ALARM, NORMAL]))
    return float((judged["status"] == ALARM).mean()) if judged.height else None  # type: ignore[arg-type]


def _share_judged(found: Monitored) -> float | None:
    """Return the share of the series with a scale that are judged; None where there is none."""
    scaled = found.alarms.filter(pl.col("status") != NO_SCALE)
    if not scaled.height:
        return None
    return float(scaled["status"].is_in([ALARM, NORMAL]).mean())  # type: ignore[arg-type]


def _largest(drift: pl.DataFrame, what: str, value: pl.Expr) -> tuple[str, float | None]:
    """Return the largest value over all columns, and which one has it."""
    found = drift.select("column", value.alias("value")).drop_nulls().sort("value", descending=True)
    return (what, None) if found.is_empty() else (f"{what} of {found['column'][0]}", float(found["value"][0]))
