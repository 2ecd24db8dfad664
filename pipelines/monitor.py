"""`forecast monitor`: forecasts against what came since; thresholds, alarms, and the way back from a worse champion."""

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
    """How a day was judged."""

    line: str
    """What to tell about it."""
    found: "MonitorResult"
    thresholds: "pl.DataFrame"
    """Threshold, value, limit, verdict and what was judged, as text."""
    breaches: "list[Check]"
    rolled_back: str
    """From which version to which, and why; empty if nothing was, now or in an earlier run of the same day."""
    started: bool
    """Whether `monitor.on_breach` is still to be started."""
    folder: Path


@recorded(MonitorConfig)
def main(config: MonitorConfig) -> None:
    """Run the verb. Raises ThresholdBreached and RolledBack when all is written."""
    _check_on_breach(config)
    result = run(config)
    note(output=str(result.folder))
    console.say(result.line)
    if not result.thresholds.is_empty():
        console.table(result.thresholds)
    told = list(result.found.freshness.findings)
    if result.breaches:
        count = "1 threshold is" if len(result.breaches) == 1 else f"{len(result.breaches):,} thresholds are"
        told.append(f"{count} breached: {'; '.join(map(str, result.breaches))}")
    if result.started:
        told.append(_start(config))
    if result.rolled_back:
        raise RolledBack("; ".join([result.rolled_back, *told]))
    if told:
        raise ThresholdBreached("; ".join(told))


def run(config: MonitorConfig) -> Result:
    """Judge the forecasts, roll back a worse champion if that is wanted, and write it all."""
    from forecast.data.files import locked
    from forecast.monitoring.cutoffs import latest_version
    from forecast.monitoring.evaluation import monitor
    from forecast.monitoring.forecasts import ScoredForecasts
    from forecast.monitoring.thresholds import checks
    from forecast.names import SHADOW
    from pipelines.jobs.reading import open_registry, open_version, read_for

    settings = config.monitor
    written = ScoredForecasts(config.scores, model=config.registry.name)
    _check_model(config, written)
    shadow_path = Path(config.scores.path) / SHADOW
    shadow = _shadow(shadow_path, config.registry.name)
    registry = open_registry(config)
    version, artifact = open_version(registry, config.registry.alias)
    # What came later is not read: nothing can peek at it.
    source = config.data.model_copy(update={"until": settings.as_of or config.data.until})
    loaded = read_for(artifact, source)
    champions = registry.champions()
    judged = versions_of(champions, version, shadow)
    tested, reference = _backtest(registry, registry.find(latest_version(written, loaded.panel, settings.as_of)))
    with locked(Path(config.output.path)):
        with console.stage("monitor") as stage:
            now = config.data.until or datetime.now(UTC)
            found = monitor(
                artifact, loaded, written, shadow, settings, backtest=tested, compared_versions=judged, now=now
            )
            stage.note(cutoffs=found.counts["cutoffs"], scored=found.counts["rows_scored"])
        note(cutoff=found.as_of.isoformat())
        day = _Day(loaded, found, checks(found, settings, reference), reference)
        return _record(config, registry, Compared(champions, version, judged), day)


class _Day(NamedTuple):
    """What a day was judged by."""

    loaded: "Loaded"
    found: "MonitorResult"
    checks: "list[Check]"
    reference: "dict[str, float | None]"
    """Metrics of the backtest."""


def _record(config: MonitorConfig, registry: "Registry", compared: Compared, day: _Day) -> Result:
    """Roll back a worse champion if that is wanted, and write the day into the folder and a run."""
    from forecast.reports.monitor_page import monitor_page
    from pipelines.jobs.run_logging import log_data
    from pipelines.monitoring.folder import PLOTLY, WatchFolder
    from pipelines.monitoring.summary import described, measures, summary, verdicts

    settings, found, as_of = config.monitor, day.found, day.found.as_of.isoformat()
    breaches = [check for check in day.checks if check.breached]
    folder = WatchFolder(config.output.path)
    key = {"as_of": as_of, "watch": folder.id, "scores": str(Path(config.scores.path).resolve())}
    before = registry.runs({"job": "monitor", "as_of": as_of, "watch": folder.id})
    before = {run_id: tags for run_id, tags in before.items() if tags.get("scores") == key["scores"]}
    done = {name: value for name, value in folder.content(as_of).items() if value} | next(iter(before.values()), {})
    with registry.run("monitor", config, {**key, "version": str(compared.version.number), "cutoff": as_of}) as run:
        log_data(run, day.loaded)
        verdict = verdict_of(found, compared.judged)
        rolled_back, why_not = roll_back(registry, config, compared, found, verdict)
        told = rolled_back or done.get("rollback", "")
        start = bool(breaches) and settings.on_breach is not None and "on_breach" not in done
        on_breach = settings.on_breach if start else done.get("on_breach")
        facts = {
            "comparison": str(verdict) if verdict else None,
            "rollback": told or None,
            "no_rollback": why_not or None,
            "on_breach": on_breach,
        }
        history = _history(day.loaded, found)
        page = monitor_page(found, day.checks, model=registry.name, history=history, facts=facts, plotly=PLOTLY)
        tags = {"breached": len(breaches), "rollback": told, "on_breach": on_breach}
        run.tags({name: value for name, value in tags.items() if value})
        run.metrics(measures(found, day.reference))
        for file in folder.write(as_of, found, described(found, day.checks, registry.name) | facts, page):
            run.file(file)
    registry.delete_runs(before)
    if settings.keep is not None and (removed := folder.prune(settings.keep, as_of)):
        _LOG.info("monitor.keep=%d: %d older days removed", settings.keep, removed)
    path = folder.day(as_of)
    line = summary(found, registry.name, path, why_not)
    return Result(line, found, verdicts(day.checks), breaches, rolled_back, start, path)


def _shadow(folder: Path, model: str) -> "ScoredForecasts | None":
    """Return the forecasts of the shadow of a model, None if there are none."""
    from forecast.monitoring.forecasts import ScoredForecasts

    if not (folder / "manifests").is_dir():
        return None
    shadow = ScoredForecasts(SinkConfig(path=str(folder)), model=model)
    return shadow if shadow.contents else None


def _check_model(config: MonitorConfig, written: "ScoredForecasts") -> None:
    """Raise ConfigError if there are only forecasts of other models."""
    if not written.contents:
        raise ConfigError(
            f"registry.name={config.registry.name}, but the forecasts in {written.path} are of "
            f"{listing(written.models)}; set registry.name, or another scores.path"
        )


def _check_on_breach(config: MonitorConfig) -> None:
    """Raise ConfigError for a verb that could not be started."""
    verb = config.monitor.on_breach
    if verb is None:
        return
    if verb not in JOBS or verb == "monitor":
        there = ", ".join(name for name in JOBS if name != "monitor")
        raise ConfigError(f"monitor.on_breach: no such verb; there are: {there} (given: {verb!r})")
    try:
        load(config_of(verb), compose(verb, _overrides(config)))
    except ConfigError as error:
        raise ConfigError(f"monitor.on_breach_overrides, of forecast {verb}: {error}") from None


def _overrides(config: MonitorConfig) -> list[str]:
    return [f"registry.name={config.registry.name}", *config.monitor.on_breach_overrides]


def _start(config: MonitorConfig) -> str:
    """Run the verb of `monitor.on_breach` in a process of its own, and return how it ended."""
    from forecast.tracking.store import tracking_uri

    verb = str(config.monitor.on_breach)
    arguments, settings = job_command(verb, _overrides(config))
    # In the same stores, and not in the slot of the schedule that this job may be of.
    stores = {"GATECAST_LEDGER": open_ledger(config.ledger).uri, "MLFLOW_TRACKING_URI": tracking_uri(config.registry)}
    environment = (
        {name: value for name, value in os.environ.items() if name not in (SCHEDULE, SLOT)} | stores | settings
    )
    words = [sys.executable, "-m", "pipelines.cli", *arguments]
    code = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
    return f"forecast {verb} was started and is done" if code == 0 else f"forecast {verb} ended with exit code {code}"


def _backtest(registry: "Registry", version: "Version | None") -> "tuple[pl.DataFrame | None, dict[str, float | None]]":
    """Return scores and metrics of a version in its latest backtest, if there is one."""
    from forecast.backtesting.result import BACKTEST_RUN
    from forecast.metrics.summaries import summarise
    from forecast.names import MODEL

    run_id = version and version.tags.get(BACKTEST_RUN)
    if version is None or not run_id:
        return None, {}
    scores = registry.read_table(run_id, "scores.parquet").filter(**{MODEL: version.kind})
    return scores, summarise(scores).row(0, named=True)


def _history(loaded: "Loaded", found: "MonitorResult") -> "pl.DataFrame":
    """Return the observations of the series whose forecasts are shown, in the windows."""
    import numpy as np
    import polars as pl

    from forecast.data.panel import as_names
    from forecast.names import SERIES_ID, TIMESTAMP

    panel = loaded.panel
    rows = np.flatnonzero(np.isin(panel.series_id, as_names(found.shown[SERIES_ID].unique())))
    first = panel.grid.timestamps(np.array([found.span.first]))[0]
    return panel.frame(rows).filter(pl.col(TIMESTAMP) >= first)
