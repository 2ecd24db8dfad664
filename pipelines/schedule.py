"""`forecast schedule`: verbs run when they are due, what was missed included.

What is due follows from the ledger alone: until when a schedule is settled, and how the attempts since then ended. So
it does not matter when a scheduler was started, stopped or killed, or that there are two.
"""

from pathlib import Path
from typing import Final

from forecast.config import SchedulerConfig
from forecast.errors import ConfigError
from pipelines.jobs import command_line, console
from pipelines.scheduling.scheduler import Scheduler

ACTIONS: Final = {
    "run": "run everything when it is due, until stopped",
    "list": "the schedules, when they are due, and how they ended last",
    "preview": "what becomes due until --until TIME",
    "once": "NAME: run a schedule for --cutoff TIME, or for the latest that is due, unless that is done",
    "repair": "[NAME]: let a schedule begin again that a wrong clock has stopped, with what became due --since TIME",
}


def main(argv: list[str]) -> None:
    """Run one of ACTIONS."""
    asked = command_line.action_of("schedule", argv, ACTIONS)
    if asked is None:
        return
    action, rest = asked
    takes_name = action in ("once", "repair")
    named = rest[:1] if takes_name and rest and "=" not in rest[0] and not rest[0].startswith("-") else []
    config = command_line.verb_config(SchedulerConfig, f"schedule {action}", _as_settings(rest[len(named) :]))
    console.setup()

    from pipelines.scheduling.schedule_file import read

    schedules, notify = read(Path(config.schedule.path))
    scheduler = Scheduler(config, schedules, notify)
    if action == "list":
        scheduler.show()
    elif action == "preview":
        scheduler.preview()
    elif action == "run":
        scheduler.run()
    else:
        if (named and named[0] not in schedules) or (action == "once" and not named):
            raise ConfigError(f"`forecast schedule {action} NAME` needs the name of a schedule: {', '.join(schedules)}")
        scheduler.once(named[0]) if action == "once" else scheduler.repair(named[0] if named else None)


def _as_settings(words: list[str]) -> list[str]:
    """Return --until TIME as schedule.until=TIME; --cutoff and --since likewise."""
    settings, rest = [], iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in ("until", "cutoff", "since"):
            settings.append(f"schedule.{name}={value if equals else next(rest, '')}")
        else:
            settings.append(word)
    return settings
