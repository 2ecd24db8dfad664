"""The schedules of `conf/schedule.yaml` in Dagster: an asset for each, with its cutoffs as partitions.

    dagster dev -m pipelines.dagster

A partition is a slot of `forecast schedule`: it is run by the same code, in a process of its own, and is in the same
ledger. So what is done there is done here, and the other way round.
"""

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from forecast.config import (
    SchedulerConfig,
)
from forecast.errors import ConfigError
from pipelines.scheduling.dagster_flow import Flow
from pipelines.scheduling.schedule_file import read
from pipelines.scheduling.scheduler import Scheduler

try:
    import dagster as dg
except ImportError:
    raise ConfigError("pipelines.dagster needs: pip install 'gatecast[dagster]'") from None
"""Of a score."""
_LONGEST: Final = timedelta(days=2)
"""That a job takes, at most, which the sensor is to see the end of."""
"""Cutoffs before, which forecasts are compared with, in so many bins."""
"""Of the population stability index: more is commonly called a shift."""


@dg.definitions
def defs() -> dg.Definitions:
    """Return the schedules in conf/schedule.yaml of the working directory."""
    return definitions(SchedulerConfig().schedule.path)


def definitions(path: str | Path) -> dg.Definitions:
    """Return the schedules of a file: of each an asset, a job, and a schedule of Dagster.

    Raises ConfigError as `schedules.read` does, and for schedules that Dagster can't express.
    """
    schedules, notify = read(Path(path))
    scheduler = Scheduler(SchedulerConfig(), schedules, notify)
    flows = [Flow(name, schedule, scheduler) for name, schedule in schedules.items()]
    assets, jobs, due, mistakes = [], [], [], []
    warnings.filterwarnings("ignore", category=dg.BetaWarning)  # of backfill_policy, at each load
    for flow in flows:
        try:
            assets.append(flow.asset(flows))
            jobs.append(dg.define_asset_job(f"{flow.name}_job", dg.AssetSelection.assets(flow.name)))
            due.append(flow.due(jobs[-1]))
        except (dg.DagsterInvalidDefinitionError, dg.DagsterInvariantViolationError) as error:
            mistakes.append(f"{flow.name}: {' '.join(str(error).split())}")
    if mistakes:
        raise ConfigError(f"{path}: {len(mistakes)} schedule(s) can't be had in Dagster:\n  " + "\n  ".join(mistakes))
    # The work is in a process of its own anyway.
    executor = dg.in_process_executor
    return dg.Definitions(assets=assets, jobs=jobs, schedules=due, sensors=[_elsewhere(flows)], executor=executor)


def _elsewhere(flows: Sequence[Flow]) -> dg.SensorDefinition:
    @dg.sensor(name="ledger", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
    def ledger(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Tell Dagster what `forecast schedule` has done."""
        now = datetime.now(UTC)
        since = datetime.fromisoformat(context.cursor) - _LONGEST if context.cursor else None
        events = [event for flow in flows for event in flow.elsewhere(context.instance, since)]
        return dg.SensorResult(asset_events=events, cursor=now.isoformat())

    return ledger
