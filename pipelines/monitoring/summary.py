"""What `forecast monitor` says of a day: the line that it ends with, and what it logs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from forecast.monitoring.labels import AGE, ALARM, ALL, FORECAST, NORMAL, RECENT
from forecast.monitoring.result import MonitorResult
from forecast.monitoring.thresholds import Check
from forecast.names import SOURCE_SEASONAL_NAIVE
from forecast.reports.page import ABSENT
from pipelines.jobs.run_logging import metric_name


def measures(found: MonitorResult, reference: Mapping[str, float | None]) -> dict[str, float]:
    """Return what is logged: counts, metrics over all series and by age, and drift."""
    values: dict[str, float | None] = {f"monitor/{name}": count for name, count in found.counts.items()}
    keys = {"group", "value", "window", "model"}
    for row in found.metrics.filter(group=ALL).iter_rows(named=True):
        values |= {f"monitor/{row['window']}/{row['model']}/{k}": v for k, v in row.items() if k not in keys}
    for row in found.metrics.filter(group=AGE, window=RECENT, model=FORECAST).iter_rows(named=True):
        values |= {f"monitor/age/{row['value']}/{name}": row[name] for name in ("mase", "wql", "bias", found.coverage)}
    for row in found.drift.iter_rows(named=True):
        column = metric_name(row["column"])
        values |= {
            f"monitor/drift/{column}/{name}": row[name] for name in ("psi", "psi_chance", "ks", "missing", "unseen")
        }
    values |= {f"monitor/backtest/{name}": reference.get(name) for name in ("mase", "wql", "coverage")}
    values["monitor/recent/coverage_80_chance"] = found.coverage_80.chance
    values |= {f"monitor/freshness/{name}": value for name, value in found.freshness.measures().items()}
    values["monitor/alarmed"] = len(found.alarmed)
    return {name: float(value) for name, value in values.items() if value is not None}


def described(found: MonitorResult, checks: Sequence[Check], model: str) -> dict[str, object]:
    """Return what monitor.json says of a day, without what the job has done."""
    freshness = found.freshness
    moments = {name: getattr(freshness, name).isoformat() for name in ("clock", "scores", "observations")}
    return {
        "as_of": found.as_of.isoformat(),
        "model": model,
        "versions": found.versions,
        "counts": found.counts,
        "freshness": {**moments, **freshness.measures(), "findings": freshness.findings},
        "alarmed": found.alarmed,
        "thresholds": [vars(check) | {"breached": check.breached, "verdict": check.verdict} for check in checks],
    }


def summary(found: MonitorResult, model: str, folder: Path, why_not: str) -> str:
    """Return the line that says how a day was judged. `why_not`: why there was no rollback, if one was wanted."""
    counts = found.counts
    versions = f" by {', '.join(f'v{version}' for version in found.versions)}" if found.versions else ""
    parts = [
        f"{model}: as of {found.as_of.isoformat()}",
        f"{counts['cutoffs']:,} cutoff{'s' * (counts['cutoffs'] != 1)}{versions}",
        f"{counts['rows']:,} forecasts = {counts['rows_scored']:,} scored + {counts['rows_not_yet_observed']:,} not "
        f"yet observed + {counts['rows_missing']:,} whose observation is missing",
    ]
    if found.left_out:
        parts.append(found.left_out)
    if counts["series_unknown"]:
        parts.append(f"{counts['series_unknown']:,} series are not in the table")
    if counts["series_ended"]:
        parts.append(f"{counts['series_ended']:,} series have ended and are not forecast")
    if counts["rows_recent"]:
        for label, name in (("MASE", "mase"), ("WQL", "wql")):
            own, naive = found.metric(name), found.metric(name, SOURCE_SEASONAL_NAIVE)
            parts.append(f"recent {label} {_number(own)} (seasonal naive {_number(naive)})")
        parts.append(f"{100 * found.bands[0]:g} % intervals hold {_number(found.metric(found.coverage))}")
        parts.append(f"{len(found.alarmed):,} of {found.judged:,} judged series with an alarm")
        parts += [f"{count:,} not judged ({status})" for status, count in _not_judged(found)]
    elif counts["cutoffs"]:
        parts.append("nothing recent is observed yet, so nothing is judged")
    else:
        parts.append("no cutoff is left, so nothing is judged")
    parts += found.freshness.findings
    if why_not:
        parts.append(f"no rollback: {why_not}")
    return ", ".join([*parts, str(folder)])


def verdicts(checks: Sequence[Check]) -> pl.DataFrame:
    """Return the thresholds as a table of text, which fits 80 columns."""
    rows = [
        (check.key, ABSENT if check.found is None else f"{check.found:.4g}", check.allowed, check.verdict, check.judged)
        for check in checks
    ]
    return pl.DataFrame(
        rows, schema=dict.fromkeys(("threshold", "value", "limit", "verdict", "judged"), pl.String), orient="row"
    )


def _not_judged(found: MonitorResult) -> list[tuple[str, int]]:
    """Return why series were not judged, and how many."""
    states = found.alarms.group_by("status").len().sort("status").rows()
    return [(status, count) for status, count in states if status not in (ALARM, NORMAL)]


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"
