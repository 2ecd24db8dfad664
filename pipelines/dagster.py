"""The schedules of `conf/schedule.yaml` in Dagster: an asset for each, with its cutoffs as partitions.

    dagster dev -m pipelines.dagster

A partition is a slot of `forecast schedule`: it is run by the same code, in a process of its own, and is in the same
ledger. So what is done there is done here, and the other way round.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from forecast.config import (
    JobConfig,
    SchedulerConfig,
    ScoreConfig,
    ScoreOutput,
    load,
)
from forecast.data.ages import ENDED
from forecast.data.sources.frames import UNREADABLE
from forecast.errors import ConfigError, GatecastError, LedgerError, listing
from forecast.names import CLASS, CUTOFF, MEAN
from forecast.redaction import redacted
from forecast.scoring.manifests import FORECASTS, ForecastKey, current
from forecast.scoring.sinks.open import open_sink
from pipelines.jobs.command_line import compose
from pipelines.jobs.ledger_entry import Entry, moment_of
from pipelines.schedule import FINAL, Scheduler, Slot
from pipelines.scheduling.schedule_file import Schedule, read
from pipelines.verbs import JOBS, config_of

try:
    import dagster as dg
except ImportError:
    raise ConfigError("pipelines.dagster needs: pip install 'gatecast[dagster]'") from None

CHECKS: Final = {
    "conservation": "series in = forecast + rejected, and every one that is forecast has all its steps",
    "rejects": "no more series and rows are rejected than data.max_reject_share, besides series that have ended",
    "intact": "the files, or the rows of the tables, are those that the manifest names",
    "finite": "every number of the forecasts is finite",
    "drift": "the forecasts are spread like those of the cutoffs before (a warning)",
}
"""Of a score."""

_HOUR: Final = timedelta(hours=1)
_LONGEST: Final = timedelta(days=2)
"""That a job takes, at most, which the sensor is to see the end of."""
_HISTORY: Final = 7
"""Cutoffs before, which forecasts are compared with, in so many bins."""
_BINS: Final = 10
_DRIFT: Final = 0.25
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


@dataclass(frozen=True)
class Flow:
    """A schedule as Dagster has it."""

    name: str
    schedule: Schedule
    scheduler: Scheduler

    @cached_property
    def partitions(self) -> dg.TimeWindowPartitionsDefinition:
        """Of `as_of` the moments at which it is due.

        Of `previous_day` that is due each day, the days, each there when it is over; of one that is not, the days on
        which it is due. They begin with `start`, or else with the year before this one.
        """
        zone = self.schedule.time_zone
        first_day = datetime(datetime.now(UTC).year - 1, 1, 1, tzinfo=self.schedule.zone)
        moment = self.schedule.next(self.schedule.begun() or first_day)
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
        """Return the schedules that make what this one reads: its panel, or its model."""
        panels = self.scheduler.makers[self.name]

        def makes(other: Flow) -> bool:
            same = other.config.registry.name == self.config.registry.name
            return other.name in panels or (same and other.schedule.flow in JOBS[self.schedule.flow].after)

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
            at = context.scheduled_execution_time
            is_day_before = isinstance(self.partitions, dg.DailyPartitionsDefinition)
            key = self._key(self.schedule.cutoff_of(at) if is_day_before else at)
            if key is None:
                return dg.SkipReason(f"{at} is before the first partition")
            with suppress(LedgerError):  # The run says it, and tries again.
                slot = self.slot(key)
                if (entry := self.scheduler.ledger.latest(slot.name, slot.key)) and entry.status == "done":
                    return dg.SkipReason(f"{key} is done, run {entry.id}")
            return dg.RunRequest(partition_key=key)

        return tick

    def run(self, context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        """Run the partitions that are not done, the earliest first, and check all of them."""
        verdicts: dict[str, list[tuple[str, Verdict]]] = {}
        for key in context.partition_keys:
            last = context.retry_number == self.schedule.retries
            try:
                entry = self._done(self.slot(key), last=last)
                context.add_asset_metadata(self.metadata(entry), partition_key=key)
                if isinstance(self.config, ScoreConfig):
                    for name, verdict in judge(self.config, entry).items():
                        verdicts.setdefault(name, []).append((key, verdict))
            except GatecastError as error:
                raise dg.Failure(str(error), allow_retries=error.exit_code not in FINAL) from None
        return dg.MaterializeResult(check_results=[_summary(name, found) for name, found in verdicts.items()])

    def _done(self, slot: Slot, *, last: bool) -> Entry:
        """Return the attempt that did a slot, after making one if there is none. Raises GatecastError if it failed."""
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

        Where clocks change, Dagster may be due an hour from us: of `as_of`, the slot is our moment next to it.
        """
        begins = self.partitions.time_window_for_partition_key(key).start
        if isinstance(self.partitions, dg.DailyPartitionsDefinition):
            return Slot(self.name, self.schedule.given(begins), begins)
        if self.schedule.cutoff == "previous_day":
            moment = self.schedule.next(begins - timedelta(microseconds=1))
            return Slot(self.name, self.schedule.cutoff_of(moment), moment)
        moments = self.schedule.moments(begins - 2 * _HOUR, begins + 2 * _HOUR)
        moment = min(moments, key=lambda at: abs(at - begins))
        return Slot(self.name, self.schedule.cutoff_of(moment), moment)

    def _key(self, at: datetime) -> str | None:
        """Return the partition that a moment is in, None if it is before the first."""
        key = self.partitions.get_partition_key_for_timestamp(at.timestamp())
        return key if self.partitions.has_partition_key(key) else None

    def elsewhere(self, instance: dg.DagsterInstance, since: datetime | None) -> Iterator[dg.AssetMaterialization]:
        """Yield the partitions that were done since then, and of which Dagster does not know."""
        known = instance.get_materialized_partitions(dg.AssetKey(self.name))
        for entry in reversed(self.scheduler.ledger.entries(schedule=self.name, status="done", since=since)):
            if (at := moment_of(entry.slot)) is None:
                continue
            for key in dict.fromkeys((self._key(at), self._key(at + _HOUR))):
                if key and key not in known and self.slot(key).key == entry.slot:
                    yield dg.AssetMaterialization(self.name, partition=key, metadata=self.metadata(entry))

    def metadata(self, entry: Entry) -> dict[str, Any]:
        """Return what Dagster shows of a partition."""
        shown: dict[str, Any] = {
            "run": entry.id,
            "ledger": self.scheduler.ledger.shown,
            "attempt": entry.attempt,
            "seconds": entry.seconds,
            "cutoff": entry.cutoff,
            "model": entry.model,
        }
        if entry.mlflow:
            is_page = entry.mlflow.startswith("http")
            shown["mlflow"] = dg.MetadataValue.url(entry.mlflow) if is_page else entry.mlflow
        if entry.output:
            shown["output"] = dg.MetadataValue.path(str(Path(entry.folder, entry.output)))
        if isinstance(self.config, ScoreConfig) and (content := _manifest(Path(entry.folder, entry.output))):
            counts = {group: content[group] for group in ("series", "rows", "sources", "rejects")}
            shown |= {f"{group}/{name}": n for group, found in counts.items() for name, n in found.items()}
        return shown


def _elsewhere(flows: Sequence[Flow]) -> dg.SensorDefinition:
    @dg.sensor(name="ledger", minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
    def ledger(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Tell Dagster what `forecast schedule` has done."""
        now = datetime.now(UTC)
        since = datetime.fromisoformat(context.cursor) - _LONGEST if context.cursor else None
        events = [event for flow in flows for event in flow.elsewhere(context.instance, since)]
        return dg.SensorResult(asset_events=events, cursor=now.isoformat())

    return ledger


@dataclass(frozen=True)
class Verdict:
    """What a check has found of a cutoff."""

    passed: bool
    text: str
    is_certain: bool = True
    """Whether it could be looked at; else it is a warning."""


def judge(config: ScoreConfig, entry: Entry) -> dict[str, Verdict]:
    """Return the verdicts of CHECKS on what a score has written."""
    manifest = Path(entry.folder, entry.output)
    content = _manifest(manifest)
    if content is None:
        return dict.fromkeys(CHECKS, Verdict(False, f"the manifest {manifest} can't be read"))
    output = config.output.model_copy(update={"path": str(Path(entry.folder, config.output.path))})
    checks: dict[str, Callable[[], Verdict]] = {
        "conservation": lambda: _conservation(content),
        "rejects": lambda: _rejects(content, config.data.max_reject_share),
        "intact": lambda: _intact(output, content),
        "finite": lambda: _finite(manifest, content),
        "drift": lambda: _drift(manifest, content),
    }
    return {name: _judged(check) for name, check in checks.items()}


def _judged(check: "Callable[[], Verdict]") -> Verdict:
    """Return the verdict of a check; one that can't be made fails no score."""
    try:
        return check()
    except (GatecastError, KeyError, TypeError, ValueError, pa.ArrowException, *UNREADABLE) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        return Verdict(False, f"can't be checked: {reason}", is_certain=False)


def _conservation(content: dict[str, Any]) -> Verdict:
    series, rows = content["series"], content["rows"]
    kept = series["in"] == series["forecast"] + series["rejected"]
    complete = rows["written"] == series["forecast"] * content["horizon"]
    return Verdict(
        kept and complete,
        f"{series['in']:,} series in, {series['forecast']:,} forecast, {series['rejected']:,} rejected; "
        f"{rows['written']:,} rows, {content['horizon']:,} steps ahead",
    )


def _rejects(content: dict[str, Any], limit: float) -> Verdict:
    series, rows = content["series"], content["rows"]
    ended = content["rejects"].get(ENDED, 0)  # These are no bad data.
    shares = {
        "series": (series["rejected"] - ended) / max(series["in"], 1),
        "rows": rows["rejected"] / max(rows["in"], 1),
    }
    text = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())
    return Verdict(max(shares.values()) <= limit, f"{text}; the limit is {limit:.2%}")


def _intact(output: ScoreOutput, content: dict[str, Any]) -> Verdict:
    wrong = _changed(open_sink(output).found(ForecastKey.of(content)), content)
    return Verdict(not wrong, f"not what the manifest says: {listing(wrong)}" if wrong else "as written")


def _changed(found: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Return what is not there as the manifest says it: files, tables, or the key that a database holds."""
    changed = []
    for kind, held in found.items():
        named = content[kind]
        if isinstance(held, dict):
            changed += [name for name in {*held, *named} if held.get(name) != named.get(name)]
        elif held != named:
            changed.append(kind)
    return sorted(changed)


def _finite(manifest: Path, content: dict[str, Any]) -> Verdict:
    if "files" not in content:
        return Verdict(True, "rows of tables are not read")
    try:
        numbers = _forecasts(manifest, content).select(pl.selectors.float()).collect()
    except UNREADABLE as error:
        return Verdict(False, f"can't be read: {error}")
    bad = numbers.select(pl.sum_horizontal(pl.all().is_finite().not_().fill_null(True).sum())).item()
    return Verdict(bad == 0, f"{bad:,} of {numbers.height * numbers.width:,} numbers are not finite")


def _drift(manifest: Path, content: dict[str, Any]) -> Verdict:
    if "files" not in content:
        return Verdict(True, "rows of tables are not read")
    frame = _forecasts(manifest, content).collect()
    history = list(_earlier(manifest, content, frame.columns))
    if not history:
        return Verdict(True, "there is no cutoff before that it can be compared with")
    psi = stability(frame, pl.concat(history, how="diagonal_relaxed"))
    against = f"population stability index {psi:.3f} against {len(history)} cutoff(s) before; the limit is {_DRIFT}"
    return Verdict(psi <= _DRIFT, against)


def _earlier(manifest: Path, content: dict[str, Any], columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield the forecasts of the cutoffs before that are still there, and are of the same kind."""
    names = sorted(manifest.parent.glob("*.json"))
    earlier = [other for path in names[: names.index(manifest)] if (other := _manifest(path))]
    before = current(other for other in earlier if other.get("model") == content["model"])
    for other in [other for other in before if other[CUTOFF] != content[CUTOFF]][-_HISTORY:]:
        with suppress(KeyError, *UNREADABLE):
            rows = _forecasts(manifest, other).collect()
            if (MEAN in rows.columns) == (MEAN in columns):
                yield rows


def _forecasts(manifest: Path, content: dict[str, Any]) -> pl.LazyFrame:
    files = [manifest.parents[1] / name for name in content["files"] if Path(name).parts[0] == FORECASTS]
    return pl.scan_parquet(files, glob=False, hive_partitioning=False)


def stability(frame: pl.DataFrame, history: pl.DataFrame) -> float:
    """Return the population stability index of forecasts: of finite means, in deciles of the history, or of classes.

    sum((p - q) ln(p / q)) over the bins, half a forecast being added to each so that none is empty.
    """
    if MEAN in history.columns:
        frame, history = (part.filter(pl.col(MEAN).is_finite()) for part in (frame, history))
        edges = [history[MEAN].quantile(step / _BINS) for step in range(1, _BINS)]
        of = pl.col(MEAN).cut(sorted({edge for edge in edges if edge is not None}))
    else:
        of = pl.col(CLASS)
    counted = (part.group_by(of.cast(pl.String).alias("bin")).len() for part in (frame, history))
    counts = [Counter(dict(rows.iter_rows())) for rows in counted]
    bins = counts[0].keys() | counts[1].keys()
    p, q = ([(found[each] + 0.5) / (found.total() + 0.5 * len(bins)) for each in bins] for found in counts)
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def _summary(name: str, found: Sequence[tuple[str, Verdict]]) -> dg.AssetCheckResult:
    """Return a check of all partitions of a run: of many, those that failed are named."""
    failed = [(key, verdict) for key, verdict in found if not verdict.passed]
    lines = [f"{key}: {verdict.text}" for key, verdict in failed or found[-1:]]
    is_warning = name == "drift" or not any(verdict.is_certain for _, verdict in failed)
    return dg.AssetCheckResult(
        check_name=name,
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN if is_warning else dg.AssetCheckSeverity.ERROR,
        description="; ".join(lines[:5]),
        metadata={"partitions": len(found), "failed": [key for key, _ in failed]},
    )


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
