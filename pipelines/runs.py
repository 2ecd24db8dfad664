"""`forecast runs`: what ran, how it ended, and once more what did not end well."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import RunsConfig, SyncConfig
from forecast.errors import ConfigError, GatecastError
from forecast.redaction import HIDDEN
from pipelines.jobs import command_line, console
from pipelines.jobs.job import LOCAL_CLOCK, SCHEDULE, SLOT, open_ledger
from pipelines.jobs.references import references_of
from pipelines.verbs import JOBS

if TYPE_CHECKING:
    from pipelines.jobs.ledger import Ledger
    from pipelines.jobs.ledger_entry import Entry

ACTIONS: Final = {
    "list": "the latest attempt of everything that ran, newest first",
    "show": "ID: one run, with its settings",
    "retry": "ID or failed: run with the same settings again what failed or was abandoned",
    "sync": "log in MLflow what jobs with registry.tracking=best_effort could not",
}


def main(argv: list[str]) -> None:
    """Run one of ACTIONS."""
    asked = command_line.action_of("runs", argv, ACTIONS)
    if asked is None:
        return
    action, rest = asked
    if action == "sync":
        from pipelines.jobs import sync

        settings = command_line.verb_config(SyncConfig, "runs sync", rest)
        console.setup()
        sync.run(settings)
        return
    which = rest.pop(0) if action != "list" and rest and "=" not in rest[0] and not rest[0].startswith("-") else None
    given = [word for word in rest if action == "retry" and not word.startswith(("-", "ledger.", "runs."))]
    config = command_line.verb_config(RunsConfig, f"runs {action}", [word for word in rest if word not in given])
    ledger = open_ledger(config.ledger)
    if action == "list":
        _list(config, ledger)
    elif which is None or not (which.isdigit() or (which == "failed" and action == "retry")):
        wanted = "its number" if action == "show" else "its number, or failed"
        raise ConfigError(f"`forecast runs {action}`: say which run, by {wanted} (`forecast runs list` shows them)")
    elif action == "show":
        _show(config, ledger.get(int(which)))
    else:
        _retry(_asked(config, ledger, which), ledger, given)


def _list(config: RunsConfig, ledger: "Ledger") -> None:
    from pipelines.jobs.runs_table import print_runs

    found = _entries(config, ledger, limit=config.runs.limit + 1)
    shown = found[: config.runs.limit]
    if config.runs.format == "json":
        print(json.dumps([entry.shown() for entry in shown], indent=1))
        return
    if shown:
        print_runs(shown)
    if len(found) != len(shown) or not shown:
        print(f"the newest {len(shown):,} runs; runs.limit sets how many are shown" if shown else "no runs")


def _entries(config: RunsConfig, ledger: "Ledger", **asked: Any) -> "list[Entry]":
    return ledger.entries(**config.runs.model_dump(exclude={"limit", "format"}) | asked)


def _show(config: RunsConfig, entry: "Entry") -> None:
    from pipelines.jobs.runs_table import cutoffs

    shown = entry.shown()
    if config.runs.format == "json":
        print(json.dumps(shown, indent=1))
        return
    settings = shown.pop("config")
    if several := cutoffs(entry):
        shown["cutoffs"] = f"{len(several):,}: {', '.join(several)}"
    del shown["references"]
    width = max(map(len, shown))
    for name, value in shown.items():
        console.say(f"{name:<{width}}  {'' if value is None else value}".rstrip())
    print(f"\n{json.dumps(settings, indent=1)}")


def _asked(config: RunsConfig, ledger: "Ledger", which: str) -> "list[Entry]":
    """Return the runs to retry, oldest first. Raises ConfigError if there is nothing to retry."""
    if which == "failed":
        found = [
            entry
            for status in ("failed", "abandoned")
            if config.runs.status in (None, status)
            for entry in _entries(config, ledger, status=status)
        ]
        if not found:
            print("no run failed or was abandoned")
        return sorted(found, key=lambda entry: entry.id)
    entry = ledger.get(int(which))
    if entry.status in ("done", "running"):
        raise ConfigError(f"run {entry.id} is {entry.status}; only runs that failed or were abandoned are retried")
    return [entry]


def _retry(entries: "list[Entry]", ledger: "Ledger", given: list[str]) -> None:
    """Run each with its own settings, in the folder where it ran. Raises the first one's failure at the end."""
    failed: dict[int, int] = {}
    prepared = [(entry, _settings(entry, given)) for entry in entries]
    for entry, settings in prepared:
        print(f"run {entry.id}: forecast {entry.flow}", flush=True)
        if code := _again(entry, settings, ledger):
            failed[entry.id] = code
    if failed:
        error = GatecastError(f"{len(failed):,} of {len(entries):,} failed again: {', '.join(map(str, failed))}")
        error.exit_code = next(iter(failed.values()))
        raise error


def _settings(entry: "Entry", given: list[str]) -> dict[str, Any]:
    """Return the settings of a run, those that are given in place of what was left out of the ledger.

    Only settings that were given as references are references again; any other ${...} in the ledger has to be given.
    """
    settings: dict[str, Any] = json.loads(json.dumps(entry.config))
    if not settings or entry.flow not in JOBS:
        raise ConfigError(f"run {entry.id} can't be retried: the ledger does not say what it was to do; {entry.error}")
    missing = {path: value for path, value in _leaves(settings) if _is_left_out(entry, path, value)}
    for word in given:
        path, equals, value = word.partition("=")
        if not equals or path not in missing:
            raise ConfigError(f"{word}: a retry has the settings of its run; only what was left out of them is given")
        del missing[path]
        *groups, leaf = path.split(".")
        functools.reduce(dict.__getitem__, groups, settings)[leaf] = value
    if missing:
        secret = [path for path, value in missing.items() if HIDDEN in str(value)]
        why = (
            f"had a secret in {', '.join(secret)}, which the ledger does not keep"
            if secret
            else f"has a reference in {', '.join(missing)} which is not one that the run was given"
        )
        raise ConfigError(
            f"run {entry.id} {why}; give it again: forecast runs retry {entry.id} "
            + " ".join(f"{path}=VALUE" for path in missing)
        )
    return settings


def _is_left_out(entry: "Entry", path: str, value: Any) -> bool:
    if path in entry.references and entry.references[path] == value:
        return False
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return any(HIDDEN in text for text in texts) or bool(references_of({path: value}))


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = [(f"{prefix}{name}", value) for name, value in values.items()]
    return [
        leaf
        for path, value in pairs
        for leaf in (_leaves(value, f"{path}.") if isinstance(value, dict) else [(path, value)])
    ]


def _again(entry: "Entry", settings: dict[str, Any], ledger: "Ledger") -> int:
    """Run a verb with all its settings from a file that only we can read; return its exit code."""
    slot = {SCHEDULE: entry.schedule, SLOT: entry.slot, LOCAL_CLOCK: "1"} if entry.slot else {}
    environment = {**os.environ, **slot, "GATECAST_LEDGER": _absolute(ledger.uri)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.touch(0o600)
        file.write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, "-m", "pipelines.cli", *entry.flow.split(), "--config", str(file)]
        where = entry.folder if Path(entry.folder).is_dir() else None
        return subprocess.run(command, cwd=where, env=environment, check=False).returncode


def _absolute(uri: str) -> str:
    """Return the URI of a SQLite file as it is from any folder."""
    start, _, path = uri.partition(":///")
    return f"sqlite:///{Path(path).absolute()}" if start == "sqlite" else uri
