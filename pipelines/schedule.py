"""`forecast schedule`: run verbs when they are due, and catch up on missed runs.

Due slots follow from the ledger alone: from the time until which a schedule is settled, and the attempts since then. So
schedulers may start, stop, crash or run twice at any time.
"""

from pathlib import Path
from typing import Final

from forecast.config import SchedulerConfig
from forecast.errors import ConfigError
from pipelines.jobs import command_line, console
from pipelines.scheduling import overview
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
    action_words = command_line.action_of("schedule", argv, ACTIONS)
    if action_words is None:
        return
    action, words = action_words
    takes_name = action in ("once", "repair")
    name_words = words[:1] if takes_name and words and "=" not in words[0] and not words[0].startswith("-") else []
    config = command_line.verb_config(SchedulerConfig, f"schedule {action}", _as_settings(words[len(name_words) :]))
    console.setup()

    from pipelines.scheduling.schedule_file import read

    schedules, notify = read(Path(config.schedule.path))
    scheduler = Scheduler(config, schedules, notify)
    if action == "list":
        overview.show(scheduler.agenda)
    elif action == "preview":
        overview.preview(scheduler.agenda, config.schedule.until)
    elif action == "run":
        scheduler.run()
    else:
        if (name_words and name_words[0] not in schedules) or (action == "once" and not name_words):
            raise ConfigError(f"`forecast schedule {action} NAME` needs the name of a schedule: {', '.join(schedules)}")
        if action == "once":
            scheduler.once(name_words[0])
        else:
            overview.repair(scheduler.agenda, name_words[0] if name_words else None, config.schedule.since)


def _as_settings(words: list[str]) -> list[str]:
    """Return --until TIME as schedule.until=TIME; --cutoff and --since likewise."""
    settings, remaining = [], iter(words)
    for word in remaining:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in ("until", "cutoff", "since"):
            settings.append(f"schedule.{name}={value if equals else next(remaining, '')}")
        else:
            settings.append(word)
    return settings
