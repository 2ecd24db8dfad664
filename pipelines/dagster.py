"""The schedules of `conf/schedule.yaml` in Dagster: one asset each, with its cutoffs as partitions.

    dagster dev -m pipelines.dagster

A partition is a slot of `forecast schedule`, run by the same code in its own process and recorded in the same ledger. A
slot completed by one of the two is complete for the other.
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
_LONGEST: Final = timedelta(days=2)


@dg.definitions
def defs() -> dg.Definitions:
    """Return the schedules in conf/schedule.yaml of the working directory."""
    return definitions(SchedulerConfig().schedule.path)


def definitions(path: str | Path) -> dg.Definitions:
    """Return the schedules of a file: an asset, a job, and a schedule of Dagster for each.

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
    # The work runs in its own process anyway.
    executor = dg.in_process_executor
    return dg.Definitions(assets=assets, jobs=jobs, schedules=due, sensors=[_elsewhere(flows)], executor=executor)


def _elsewhere(flows: Sequence[Flow]) -> dg.SensorDefinition:
    @dg.sensor(name="ledger", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
    def ledger(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Report the runs of `forecast schedule` to Dagster."""
        current = datetime.now(UTC)
        start = datetime.fromisoformat(context.cursor) - _LONGEST if context.cursor else None
        events = [event for flow in flows for event in flow.elsewhere(context.instance, start)]
        return dg.SensorResult(asset_events=events, cursor=current.isoformat())

    return ledger
