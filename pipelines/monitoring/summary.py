"""Texts and metrics of a monitored day: summary line, logged metrics, and monitor.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import polars as pl

from forecast.monitoring.labels import ALARM, ALL, ANOMALY, FEW, FORECAST, NORMAL, RECENT
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.thresholds import Check
from forecast.names import SOURCE_SEASONAL_NAIVE, metric_name
from forecast.reports.page import ABSENT

_DRIFT_COLUMNS: Final = 6
"""Most columns with metrics of drift: the target, which is the first, and covariates in their order."""


def measures(result: MonitorResult, reference: Mapping[str, float | None]) -> dict[str, float]:
    """Return the logged metrics: counts, accuracy of the recent forecasts of all series, and drift.

    The tables of the day have the metrics of history, by age, and of every column.
    """
    values: dict[str, float | None] = {f"monitor/{name}": count for name, count in result.counts.items()}
    keys = {"group", "value", "window", "model"}
    for row in result.metrics.filter(group=ALL, window=RECENT).iter_rows(named=True):
        names = row.keys() - keys if row["model"] == FORECAST else {"mase", "wql"}
        values |= {f"monitor/{RECENT}/{row['model']}/{name}": row[name] for name in sorted(names)}
    for position, row in enumerate(result.drift.head(_DRIFT_COLUMNS).iter_rows(named=True)):
        column = metric_name(row["column"])
        names_of_column = ("psi",) if position else ("psi", "psi_chance", "missing")
        values |= {f"monitor/drift/{column}/{name}": row[name] for name in names_of_column}
    values |= {f"monitor/backtest/{name}": reference.get(name) for name in ("mase", "wql", "coverage")}
    values["monitor/recent/coverage_80_chance"] = result.coverage_80.chance
    values |= {f"monitor/freshness/{name}": value for name, value in result.freshness.measures().items()}
    values["monitor/alarmed"] = len(result.alarmed)
    if result.anomaly_rate is not None:
        counts = result.anomaly_counts
        values |= {
            "monitor/anomalies": counts[ANOMALY],
            "monitor/observations_judged": counts[ANOMALY] + counts[NORMAL],
        }
    for row in result.fva.head(1).iter_rows(named=True):
        values |= {
            f"monitor/fva/{name}": row[name] for name in ("n_values", "mae_override", "mae_model", "value_added")
        }
    return {name: float(value) for name, value in values.items() if value is not None}


def described(result: MonitorResult, checks: Sequence[Check], model: str) -> dict[str, object]:
    """Return the content of monitor.json, without the actions of the job."""
    freshness = result.freshness
    moments = {name: getattr(freshness, name).isoformat() for name in ("clock", "scores", "observations")}
    return {
        "as_of": result.as_of.isoformat(),
        "model": model,
        "versions": result.versions,
        "counts": result.counts,
        "freshness": {**moments, **freshness.measures(), "findings": freshness.findings},
        "alarmed": result.alarmed,
        "anomalies": {"rate": result.anomaly_rate, **result.anomaly_counts},
        "thresholds": [vars(check) | {"breached": check.breached, "verdict": check.verdict} for check in checks],
    }


def summary(result: MonitorResult, model: str, folder: Path, why_not: str) -> str:
    """Return the summary line of a day. `why_not` is the reason against a rollback, empty without one."""
    counts = result.counts
    versions = f" by {', '.join(f'v{version}' for version in result.versions)}" if result.versions else ""
    parts = [
        f"{model}: as of {result.as_of.isoformat()}",
        f"{counts['cutoffs']:,} cutoff{'s' * (counts['cutoffs'] != 1)}{versions}",
        f"{counts['rows']:,} forecasts = {counts['rows_scored']:,} scored + {counts['rows_not_yet_observed']:,} not "
        f"yet observed + {counts['rows_missing']:,} whose observation is missing",
    ]
    if result.left_out:
        parts.append(result.left_out)
    if counts["series_unknown"]:
        parts.append(f"{counts['series_unknown']:,} series are not in the table")
    if counts["series_ended"]:
        parts.append(f"{counts['series_ended']:,} series have ended and are not forecast")
    if counts["rows_recent"]:
        for label, name in (("MASE", "mase"), ("WQL", "wql")):
            value, naive = result.metric(name), result.metric(name, SOURCE_SEASONAL_NAIVE)
            parts.append(f"recent {label} {_number(value)} (seasonal naive {_number(naive)})")
        parts.append(f"{100 * result.bands[0]:g} % intervals hold {_number(result.metric(result.coverage))}")
        parts.append(f"{len(result.alarmed):,} of {result.judged:,} judged series with an alarm")
        parts += [f"{count:,} not judged ({status})" for status, count in _not_judged(result)]
        parts += _anomalies(result)
    elif counts["cutoffs"]:
        parts.append("nothing recent is observed yet, so nothing is judged")
    else:
        parts.append("no cutoff is left, so nothing is judged")
    parts += _value_added(result)
    parts += result.freshness.findings
    if why_not:
        parts.append(f"no rollback: {why_not}")
    return ", ".join([*parts, str(folder)])


def _anomalies(result: MonitorResult) -> list[str]:
    """Return the number of anomalies among the judged observations as text, nothing without `monitor.anomaly_rate`."""
    counts = result.anomaly_counts
    judged = counts[ANOMALY] + counts[NORMAL]
    if not judged:
        return ["no observation is judged for anomalies (few earlier ones)"] if counts[FEW] else []
    return [f"{counts[ANOMALY]:,} of {judged:,} recent observations are anomalies"]


def _value_added(result: MonitorResult) -> list[str]:
    """Return the error of overrides beside that of the model as text, nothing without overrides."""
    return [
        f"{row['n_values']:,} overridden values with a mean error of {row['mae_override']:.4g} (model "
        f"{row['mae_model']:.4g}, seasonal naive {row['mae_naive']:.4g})"
        for row in result.fva.head(1).iter_rows(named=True)
    ]


def verdicts(checks: Sequence[Check]) -> pl.DataFrame:
    """Return the thresholds as a table of text within 80 columns."""
    rows = [
        (check.key, ABSENT if check.found is None else f"{check.found:.4g}", check.allowed, check.verdict, check.judged)
        for check in checks
    ]
    return pl.DataFrame(
        rows, schema=dict.fromkeys(("threshold", "value", "limit", "verdict", "judged"), pl.String), orient="row"
    )


def _not_judged(result: MonitorResult) -> list[tuple[str, int]]:
    """Return the reasons why series were not judged, with their number of series."""
    states = result.alarms.group_by("status").len().sort("status").rows()
    return [(status, count) for status, count in states if status not in (ALARM, NORMAL)]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
