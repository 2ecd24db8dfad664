"""What schedules do next and did last, as tables; and schedules that begin again after a wrong clock."""

from datetime import UTC, datetime, timedelta

from forecast.errors import ConfigError
from pipelines.jobs import console
from pipelines.jobs.ledger_entry import moment_of
from pipelines.scheduling.agenda import Agenda


def show(agenda: Agenda) -> None:
    """Print the schedules."""
    import polars as pl

    current, rows = agenda.now(), []
    for name, schedule in agenda.schedules.items():
        last = next(iter(agenda.ledger.entries(schedule=name, limit=1)), None)
        rows.append(
            {
                "schedule": name,
                "flow": schedule.flow,
                "cron": schedule.cron,
                "next": schedule.shown(schedule.next(current)),
                "last": schedule.shown(last.started) if last else "",
                "cutoff": schedule.shown(cutoff) if last and (cutoff := moment_of(last.slot)) else "",
                "status": last.status if last else "",
                "attempts": last.attempt if last else None,
            }
        )
    console.table(pl.DataFrame(rows, schema_overrides={"attempts": pl.Int64}))
    _print_faults(agenda)


def preview(agenda: Agenda, until: datetime | None = None) -> None:
    """Print the slots that become due `until` a time, or within a week."""
    import polars as pl

    current, schedules = agenda.now(), agenda.schedules
    until = until or current + timedelta(days=7)
    due = sorted((moment, name) for name, schedule in schedules.items() for moment in schedule.moments(current, until))
    rows = [
        {
            "due": schedules[name].shown(moment),
            "schedule": name,
            "flow": schedules[name].flow,
            "cutoff": schedules[name].shown(schedules[name].cutoff_of(moment)),
        }
        for moment, name in due
    ]
    columns = ("due", "schedule", "flow", "cutoff")
    console.table(pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String)))
    _print_faults(agenda)


def _print_faults(agenda: Agenda) -> None:
    """Print the stopped schedules, and those whose settings do not suit their table."""
    from pipelines.scheduling.panel_checks import panel_faults

    for line in (*agenda.stopped(), *panel_faults(agenda.schedules, agenda.makers, agenda.now())):
        print(line)


def repair(agenda: Agenda, name: str | None, since: datetime | None = None) -> None:
    """Restart a schedule `since` a time, or all that are settled until a time in the future.

    Raises ConfigError for a `since` in the future, or without a schedule.
    """
    if since is not None and (name is None or since > datetime.now(UTC)):
        reason = "needs the name of a schedule" if name is None else f"{since.isoformat()} is in the future"
        raise ConfigError(f"schedule.since: {reason}: `forecast schedule repair NAME --since TIME`")
    stopped = [schedule_name for schedule_name in agenda.schedules if agenda.stopped_until(schedule_name)]
    names = [name] if name is not None and (since or name in stopped) else [] if name else stopped
    for schedule_name in names:
        moment = since or _last_run(agenda, schedule_name)
        count = agenda.ledger.rewind(schedule_name, moment)
        runs = f"; {count:,} run(s) for slots in the future no longer count" if count else ""
        print(
            f"{schedule_name}: begins again with what became due since "
            f"{agenda.schedules[schedule_name].shown(moment)}{runs}"
        )
    if not names:
        print(f"{name or 'every schedule'}: settled until now or earlier, nothing to repair")


def _last_run(agenda: Agenda, name: str) -> datetime:
    """Return the time of a schedule's last run by a correct clock; now without one."""
    current = datetime.now(UTC)
    runs = agenda.ledger.entries(schedule=name, every=True)
    return max(
        (run.started for run in runs if run.started <= current and run.slot <= current.isoformat()), default=current
    )
