"""`forecast monitor`: forecasts against later actuals; thresholds, alarms, and rollback of a worse champion."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forecast.config import MonitorConfig, SinkConfig, load
from forecast.errors import ConfigError, RolledBack, ThresholdBreached, listing
from pipelines.jobs import console
from pipelines.jobs.command_line import compose
from pipelines.jobs.job import SCHEDULE, SLOT, note, open_ledger, recorded
from pipelines.jobs.references import job_command
from pipelines.monitoring.rollback import Compared, roll_back, verdict_of, versions_of
from pipelines.verbs import JOBS, config_of

if TYPE_CHECKING:
    import polars as pl

    from forecast.data.ingest.loaded import Loaded
    from forecast.monitoring.forecasts import ScoredForecasts
    from forecast.monitoring.result import MonitorResult
    from forecast.monitoring.thresholds import Check
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Result of monitoring a day."""

    line: str
    """Line about the day for the terminal."""
    evaluation: "MonitorResult"
    thresholds: "pl.DataFrame"
    """Threshold, value, limit, verdict and what was judged, as text."""
    breaches: "list[Check]"
    rolled_back: str
    """Versions and reason of a rollback, also of an earlier run of the same day; empty without one."""
    started: bool
    """Whether to start `monitor.on_breach`."""
    folder: Path


@recorded(MonitorConfig)
def main(config: MonitorConfig) -> None:
    """Run the verb. Raises ThresholdBreached and RolledBack after everything is written."""
    _check_on_breach(config)
    result = run(config)
    note(output=str(result.folder))
    console.say(result.line)
    if not result.thresholds.is_empty():
        console.table(result.thresholds)
    messages = list(result.evaluation.freshness.findings)
    if result.breaches:
        count = "1 threshold is" if len(result.breaches) == 1 else f"{len(result.breaches):,} thresholds are"
        messages.append(f"{count} breached: {'; '.join(map(str, result.breaches))}")
    if result.started:
        messages.append(_start(config))
    if result.rolled_back:
        raise RolledBack("; ".join([result.rolled_back, *messages]))
    if messages:
        raise ThresholdBreached("; ".join(messages))


def run(config: MonitorConfig) -> Result:
    """Evaluate the forecasts, roll back a worse champion if configured, and write the result."""
    from forecast.data.files import locked
    from forecast.monitoring.cutoffs import latest_version
    from forecast.monitoring.evaluation import monitor
    from forecast.monitoring.forecasts import ScoredForecasts
    from forecast.monitoring.thresholds import checks
    from forecast.names import SHADOW
    from pipelines.jobs.reading import open_registry, open_version, read_for

    settings = config.monitor
    forecasts = ScoredForecasts(config.scores, model=config.registry.name)
    _check_model(config, forecasts)
    shadow_path = Path(config.scores.path) / SHADOW
    shadow = _shadow(shadow_path, config.registry.name)
    registry = open_registry(config)
    version, artifact = open_version(registry, config.registry.alias)
    # Later rows are not read, so nothing can use them.
    source = config.data.model_copy(update={"until": settings.as_of or config.data.until})
    loaded = read_for(artifact, source)
    champions = registry.champions()
    compared_versions = versions_of(champions, version, shadow)
    backtest_scores, reference = _backtest(
        registry, registry.find(latest_version(forecasts, loaded.panel, settings.as_of))
    )
    with locked(Path(config.output.path)):
        with console.stage("monitor") as stage:
            now = config.data.until or datetime.now(UTC)
            evaluation = monitor(
                artifact,
                loaded,
                forecasts,
                shadow,
                settings,
                backtest=backtest_scores,
                compared_versions=compared_versions,
                now=now,
            )
            stage.note(cutoffs=evaluation.counts["cutoffs"], scored=evaluation.counts["rows_scored"])
        note(cutoff=evaluation.as_of.isoformat())
        day = _Day(loaded, evaluation, checks(evaluation, settings, reference), reference)
        return _record(config, registry, Compared(champions, version, compared_versions), day)


class _Day(NamedTuple):
    """Inputs and results of the evaluation of a day."""

    loaded: "Loaded"
    evaluation: "MonitorResult"
    checks: "list[Check]"
    reference: "dict[str, float | None]"
    """Metrics of the backtest."""


def _record(config: MonitorConfig, registry: "Registry", compared: Compared, day: _Day) -> Result:
    """Roll back a worse champion if configured, and write the day into the folder and a run."""
    from forecast.monitoring.labels import RECENT
    from forecast.reports.monitor_page import monitor_page
    from pipelines.jobs.run_logging import log_data
    from pipelines.monitoring.folder import PLOTLY, WatchFolder
    from pipelines.monitoring.summary import described, measures, summary, verdicts

    settings, evaluation, as_of = config.monitor, day.evaluation, day.evaluation.as_of.isoformat()
    breaches = [check for check in day.checks if check.breached]
    folder = WatchFolder(config.output.path)
    key = {"as_of": as_of, "watch": folder.id, "scores": str(Path(config.scores.path).resolve())}
    before = registry.runs({"job": "monitor", "as_of": as_of, "watch": folder.id})
    before = {run_id: tags for run_id, tags in before.items() if tags.get("scores") == key["scores"]}
    earlier = {name: value for name, value in folder.content(as_of).items() if value} | next(iter(before.values()), {})
    with registry.run("monitor", config, {**key, "version": str(compared.version.number), "cutoff": as_of}) as run:
        log_data(run, day.loaded, "evaluation", compared.version)
        verdict = verdict_of(evaluation, compared.versions)
        rolled_back, why_not = roll_back(registry, config, compared, evaluation, verdict)
        rollback = rolled_back or earlier.get("rollback", "")
        start = bool(breaches) and settings.on_breach is not None and "on_breach" not in earlier
        on_breach = settings.on_breach if start else earlier.get("on_breach")
        facts = {
            "comparison": str(verdict) if verdict else None,
            "rollback": rollback or None,
            "no_rollback": why_not or None,
            "on_breach": on_breach,
        }
        history = _history(day.loaded, evaluation)
        page = monitor_page(evaluation, day.checks, model=registry.name, history=history, facts=facts, plotly=PLOTLY)
        tags = {"breached": len(breaches), "rollback": rollback, "on_breach": on_breach}
        # Forecasts of several versions are no metric of one of them.
        scored = compared.version if set(evaluation.versions) == {str(compared.version.number)} else None
        set_tags = {name: value for name, value in tags.items() if value}
        run.metrics(measures(evaluation, day.reference), version=scored, prefix=f"monitor/{RECENT}/", tags=set_tags)
        for file in folder.write(as_of, evaluation, described(evaluation, day.checks, registry.name) | facts, page):
            run.file(file)
    registry.delete_runs(before)
    if settings.keep is not None and (removed := folder.prune(settings.keep, as_of)):
        _LOG.info("monitor.keep=%d: %d older days removed", settings.keep, removed)
    path = folder.day(as_of)
    line = summary(evaluation, registry.name, path, why_not)
    return Result(line, evaluation, verdicts(day.checks), breaches, rolled_back, start, path)


def _shadow(folder: Path, model: str) -> "ScoredForecasts | None":
    """Return the forecasts of the shadow of a model, None if there are none."""
    from forecast.monitoring.forecasts import ScoredForecasts

    if not (folder / "manifests").is_dir():
        return None
    shadow = ScoredForecasts(SinkConfig(path=str(folder)), model=model)
    return shadow if shadow.contents else None


def _check_model(config: MonitorConfig, forecasts: "ScoredForecasts") -> None:
    """Raise ConfigError if all forecasts are of other models."""
    if not forecasts.contents:
        raise ConfigError(
            f"registry.name={config.registry.name}, but the forecasts in {forecasts.path} are of "
            f"{listing(forecasts.models)}; set registry.name, or another scores.path"
        )


def _check_on_breach(config: MonitorConfig) -> None:
    """Raise ConfigError if `monitor.on_breach` can't be started."""
    verb = config.monitor.on_breach
    if verb is None:
        return
    if verb not in JOBS or verb == "monitor":
        names = ", ".join(name for name in JOBS if name != "monitor")
        raise ConfigError(f"monitor.on_breach: no such verb; there are: {names} (given: {verb!r})")
    try:
        load(config_of(verb), compose(verb, _overrides(config)))
    except ConfigError as error:
        raise ConfigError(f"monitor.on_breach_overrides, of forecast {verb}: {error}") from None


def _overrides(config: MonitorConfig) -> list[str]:
    return [f"registry.name={config.registry.name}", *config.monitor.on_breach_overrides]


def _start(config: MonitorConfig) -> str:
    """Run the verb of `monitor.on_breach` in a separate process; return a line about its end."""
    from forecast.tracking.store import tracking_uri

    verb = str(config.monitor.on_breach)
    arguments, settings = job_command(verb, _overrides(config))
    # In the same stores, but not in the slot of this job's schedule.
    stores = {"GATECAST_LEDGER": open_ledger(config.ledger).uri, "MLFLOW_TRACKING_URI": tracking_uri(config.registry)}
    environment = (
        {name: value for name, value in os.environ.items() if name not in (SCHEDULE, SLOT)} | stores | settings
    )
    words = [sys.executable, "-m", "pipelines.cli", *arguments]
    code = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    return f"forecast {verb} was started and is done" if code == 0 else f"forecast {verb} ended with exit code {code}"


def _backtest(registry: "Registry", version: "Version | None") -> "tuple[pl.DataFrame | None, dict[str, float | None]]":
    """Return the MASE of each window and the metrics of a version in its latest backtest, if there is one."""
    import polars as pl

    from forecast.metrics.summaries import summarise
    from forecast.names import BACKTEST_RUN, MODEL, SERIES_ID

    run_id = version and version.tags.get(BACKTEST_RUN)
    if version is None or not run_id:
        return None, {}
    with registry.scan_table(run_id, "scores.parquet") as table:
        scores = table.filter(pl.col(MODEL) == version.kind)
        return scores.select(SERIES_ID, "mase").collect(), summarise(scores).row(0, named=True)


def _history(loaded: "Loaded", evaluation: "MonitorResult") -> "pl.DataFrame":
    """Return the observations in the windows, of the series whose forecasts are shown."""
    import numpy as np
    import polars as pl

    from forecast.data.panel import is_among
    from forecast.names import SERIES_ID, TIMESTAMP

    panel = loaded.panel
    rows = np.flatnonzero(is_among(panel.series_id, evaluation.shown[SERIES_ID]))
    first = panel.grid.timestamps(np.array([evaluation.span.first]))[0]
    return panel.frame(rows).filter(pl.col(TIMESTAMP) >= first)
