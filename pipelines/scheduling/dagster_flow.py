"""A schedule as a Dagster job with assets, checks and a sensor."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from forecast.config import JobConfig, ScoreConfig, load
from forecast.errors import ConfigError, GatecastError, LedgerError
from forecast.redaction import redacted
from pipelines.jobs.command_line import compose
from pipelines.jobs.ledger_entry import Entry, moment_of
from pipelines.scheduling.agenda import FINAL, Slot
from pipelines.scheduling.dagster_checks import CHECKS, Verdict, judge, manifest_at, summary_of
from pipelines.scheduling.schedule_file import Schedule
from pipelines.scheduling.scheduler import Scheduler
from pipelines.verbs import JOBS, config_of

try:
    import dagster as dg
except ImportError:
    raise ConfigError("pipelines.dagster needs: pip install 'gatecast[dagster]'") from None


_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Flow:
    """A schedule as asset, job and schedule of Dagster."""

    name: str
    schedule: Schedule
    scheduler: Scheduler

    @cached_property
    def partitions(self) -> dg.TimeWindowPartitionsDefinition:
        """The partitions: for `as_of`, the times at which it is due.

        For a daily schedule with `previous_day`, the days, each available when it is over; for others with
        `previous_day`, the days on which they are due. The first is `start`, or a year before the present.
        """
        zone = self.schedule.time_zone
        first_day = datetime(datetime.now(UTC).year - 1, 1, 1, tzinfo=self.schedule.zone)
        moment = self.schedule.next(self.schedule.before_start() or first_day)
        first = self.schedule.cutoff_of(moment)
        if self.schedule.cutoff == "previous_day" and self.schedule.days == "* * *":
            return dg.DailyPartitionsDefinition(start_date=f"{first:%Y-%m-%d}", timezone=zone)
        if self.schedule.cutoff == "previous_day":
            return dg.TimeWindowPartitionsDefinition(
                start=f"{moment.astimezone(self.schedule.zone):%Y-%m-%d}",
                fmt="%Y-%m-%d",
                cron_schedule=f"0 0 {self.schedule.days}",
                timezone=zone,
                end_offset=1,
            )
        return dg.TimeWindowPartitionsDefinition(
            start=first, fmt="%Y-%m-%d-%H:%M", cron_schedule=self.schedule.cron, timezone=zone, end_offset=1
        )

    @cached_property
    def config(self) -> JobConfig:
        """The settings of the verb."""
        settings = self.schedule.settings(datetime.now(UTC))
        return load(config_of(self.schedule.flow), compose(self.schedule.flow, settings))

    def asset(self, flows: "Sequence[Flow]") -> dg.AssetsDefinition:
        """Return the asset."""
        schedule, is_score = self.schedule, isinstance(self.config, ScoreConfig)

        @dg.asset(
            name=self.name,
            description=redacted(f"forecast {' '.join([schedule.flow, *schedule.overrides])}"),
            group_name="gatecast",
            kinds={schedule.flow.replace(" ", "_")},
            partitions_def=self.partitions,
            backfill_policy=dg.BackfillPolicy.single_run(),
            retry_policy=dg.RetryPolicy(schedule.retries, schedule.backoff, dg.Backoff.EXPONENTIAL),
            pool=schedule.flow.replace(" ", "_"),
            deps=[dg.AssetDep(name, partition_mapping=dg.LastPartitionMapping()) for name in self.upstream(flows)],
            check_specs=[dg.AssetCheckSpec(name, asset=self.name, description=CHECKS[name]) for name in CHECKS]
            if is_score
            else [],
        )
        def run(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]  # as Dagster reads it
            return self.run(context)

        return run

    def upstream(self, flows: "Sequence[Flow]") -> list[str]:
        """Return the schedules that write the inputs of this one: its panel, or its model."""
        panels = self.scheduler.agenda.makers[self.name]

        def makes(candidate: Flow) -> bool:
            same_model = candidate.config.registry.name == self.config.registry.name
            return candidate.name in panels or (
                same_model and candidate.schedule.flow in JOBS[self.schedule.flow].after
            )

        return [flow.name for flow in flows if makes(flow)]

    def due(self, job: Any) -> dg.ScheduleDefinition:
        """Return the schedule of Dagster."""

        @dg.schedule(
            name=f"{self.name}_schedule",
            job=job,
            cron_schedule=self.schedule.cron,
            execution_timezone=self.schedule.time_zone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
        def tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
            due_time = context.scheduled_execution_time
            is_day_before = isinstance(self.partitions, dg.DailyPartitionsDefinition)
            key = self._key(self.schedule.cutoff_of(due_time) if is_day_before else due_time)
            if key is None:
                return dg.SkipReason(f"{due_time} is before the first partition")
            with suppress(LedgerError):  # The run reports it, and tries again.
                slot = self.slot(key)
                if (entry := self.scheduler.ledger.latest(slot.name, slot.key)) and entry.status == "done":
                    return dg.SkipReason(f"{key} is done, run {entry.id}")
            return dg.RunRequest(partition_key=key)

        return tick

    def run(self, context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        """Run the incomplete partitions, earliest first, and check all of them."""
        verdicts: dict[str, list[tuple[str, Verdict]]] = {}
        for key in context.partition_keys:
            last = context.retry_number == self.schedule.retries
            try:
                entry = self._complete(self.slot(key), last=last)
                context.add_asset_metadata(self.metadata(entry), partition_key=key)
                if isinstance(self.config, ScoreConfig):
                    for name, verdict in judge(self.config, entry).items():
                        verdicts.setdefault(name, []).append((key, verdict))
            except GatecastError as error:
                raise dg.Failure(str(error), allow_retries=error.exit_code not in FINAL) from None
        return dg.MaterializeResult(check_results=[summary_of(name, values) for name, values in verdicts.items()])

    def _complete(self, slot: Slot, *, last: bool) -> Entry:
        """Return the attempt that completed a slot, run now if necessary. Raises GatecastError if it fails."""
        entry = self.scheduler.ledger.latest(slot.name, slot.key)
        if entry is not None and entry.status == "done":
            return entry
        code = self.scheduler.attempt(slot, last=last)
        entry = self.scheduler.ledger.latest(slot.name, slot.key)
        if code or entry is None:
            text = f"run {entry.id}: {entry.status}, {entry.error}" if entry else "it was not begun"
            error = GatecastError(f"{slot.name} of {slot.key} ended with exit code {code} ({text})")
            error.exit_code = code
            raise error
        return entry

    def slot(self, key: str) -> Slot:
        """Return the slot of a partition.

        Around clock changes, Dagster's time may differ by an hour: for `as_of`, the slot is the nearest due time.
        """
        begins = self.partitions.time_window_for_partition_key(key).start
        if isinstance(self.partitions, dg.DailyPartitionsDefinition):
            return Slot(self.name, self.schedule.given(begins), begins)
        if self.schedule.cutoff == "previous_day":
            moment = self.schedule.next(begins - timedelta(microseconds=1))
            return Slot(self.name, self.schedule.cutoff_of(moment), moment)
        moments = self.schedule.moments(begins - 2 * _HOUR, begins + 2 * _HOUR)
        moment = min(moments, key=lambda due_time: abs(due_time - begins))
        return Slot(self.name, self.schedule.cutoff_of(moment), moment)

    def _key(self, moment: datetime) -> str | None:
        """Return the partition of a time, None before the first."""
        key = self.partitions.get_partition_key_for_timestamp(moment.timestamp())
        return key if self.partitions.has_partition_key(key) else None

    def elsewhere(self, instance: dg.DagsterInstance, start: datetime | None) -> Iterator[dg.AssetMaterialization]:
        """Yield the partitions completed since `start` that Dagster does not know."""
        materialized = instance.get_materialized_partitions(dg.AssetKey(self.name))
        for entry in reversed(self.scheduler.ledger.entries(schedule=self.name, status="done", since=start)):
            if (due_time := moment_of(entry.slot)) is None:
                continue
            for key in dict.fromkeys((self._key(due_time), self._key(due_time + _HOUR))):
                if key and key not in materialized and self.slot(key).key == entry.slot:
                    yield dg.AssetMaterialization(self.name, partition=key, metadata=self.metadata(entry))

    def metadata(self, entry: Entry) -> dict[str, Any]:
        """Return the metadata of a partition for Dagster."""
        values: dict[str, Any] = {
            "run": entry.id,
            "ledger": self.scheduler.ledger.shown,
            "attempt": entry.attempt,
            "seconds": entry.seconds,
            "cutoff": entry.cutoff,
            "model": entry.model,
        }
        if entry.mlflow:
            is_page = entry.mlflow.startswith("http")
            values["mlflow"] = dg.MetadataValue.url(entry.mlflow) if is_page else entry.mlflow
        if entry.output:
            values["output"] = dg.MetadataValue.path(str(Path(entry.folder, entry.output)))
        if isinstance(self.config, ScoreConfig) and (content := manifest_at(Path(entry.folder, entry.output))):
            counts = {group: content[group] for group in ("series", "rows", "sources", "rejects")}
            values |= {
                f"{group}/{name}": n for group, group_counts in counts.items() for name, n in group_counts.items()
            }
        return values
