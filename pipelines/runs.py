"""`forecast runs`: list, show, retry and sync runs of the ledger."""

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
    action_words = command_line.action_of("runs", argv, ACTIONS)
    if action_words is None:
        return
    action, words = action_words
    if action == "sync":
        from pipelines.jobs import sync

        settings = command_line.verb_config(SyncConfig, "runs sync", words)
        console.setup()
        sync.run(settings)
        return
    selection = (
        words.pop(0) if action != "list" and words and "=" not in words[0] and not words[0].startswith("-") else None
    )
    new_settings = [word for word in words if action == "retry" and not word.startswith(("-", "ledger.", "runs."))]
    config = command_line.verb_config(
        RunsConfig, f"runs {action}", [word for word in words if word not in new_settings]
    )
    ledger = open_ledger(config.ledger)
    if action == "list":
        _list(config, ledger)
    elif selection is None or not (selection.isdigit() or (selection == "failed" and action == "retry")):
        expected = "its number" if action == "show" else "its number, or failed"
        raise ConfigError(f"`forecast runs {action}`: say which run, by {expected} (`forecast runs list` shows them)")
    elif action == "show":
        _show(config, ledger.get(int(selection)))
    else:
        _retry(_selected(config, ledger, selection), ledger, new_settings)


def _list(config: RunsConfig, ledger: "Ledger") -> None:
    from pipelines.jobs.runs_table import print_runs

    entries = _entries(config, ledger, limit=config.runs.limit + 1)
    newest = entries[: config.runs.limit]
    if config.runs.format == "json":
        print(json.dumps([entry.shown() for entry in newest], indent=1))
        return
    if newest:
        print_runs(newest)
    if len(entries) != len(newest) or not newest:
        print(f"the newest {len(newest):,} runs; runs.limit sets how many are shown" if newest else "no runs")


def _entries(config: RunsConfig, ledger: "Ledger", **filters: Any) -> "list[Entry]":
    return ledger.entries(**config.runs.model_dump(exclude={"limit", "format"}) | filters)


def _show(config: RunsConfig, entry: "Entry") -> None:
    from pipelines.jobs.runs_table import cutoffs

    facts = entry.shown()
    if config.runs.format == "json":
        print(json.dumps(facts, indent=1))
        return
    settings = facts.pop("config")
    if several := cutoffs(entry):
        facts["cutoffs"] = f"{len(several):,}: {', '.join(several)}"
    del facts["references"]
    width = max(map(len, facts))
    for name, value in facts.items():
        console.say(f"{name:<{width}}  {'' if value is None else value}".rstrip())
    print(f"\n{json.dumps(settings, indent=1)}")


def _selected(config: RunsConfig, ledger: "Ledger", selection: str) -> "list[Entry]":
    """Return the selected runs, oldest first. Raises ConfigError if there is none to retry."""
    if selection == "failed":
        entries = [
            entry
            for status in ("failed", "abandoned")
            if config.runs.status in (None, status)
            for entry in _entries(config, ledger, status=status)
        ]
        if not entries:
            print("no run failed or was abandoned")
        return sorted(entries, key=lambda entry: entry.id)
    entry = ledger.get(int(selection))
    if entry.status in ("done", "running"):
        raise ConfigError(f"run {entry.id} is {entry.status}; only runs that failed or were abandoned are retried")
    return [entry]


def _retry(entries: "list[Entry]", ledger: "Ledger", new_settings: list[str]) -> None:
    """Run each entry with its settings in its folder. Raises the first failure at the end."""
    failed: dict[int, int] = {}
    prepared = [(entry, _settings(entry, new_settings)) for entry in entries]
    for entry, settings in prepared:
        print(f"run {entry.id}: forecast {entry.flow}", flush=True)
        if code := _again(entry, settings, ledger):
            failed[entry.id] = code
    if failed:
        error = GatecastError(f"{len(failed):,} of {len(entries):,} failed again: {', '.join(map(str, failed))}")
        error.exit_code = next(iter(failed.values()))
        raise error


def _settings(entry: "Entry", new_settings: list[str]) -> dict[str, Any]:
    """Return the settings of a run, with `new_settings` in place of those that the ledger omits.

    Only settings stored as references are resolved again; any other ${...} in the ledger needs a new setting.
    """
    settings: dict[str, Any] = json.loads(json.dumps(entry.config))
    if not settings or entry.flow not in JOBS:
        raise ConfigError(f"run {entry.id} can't be retried: the ledger does not say what it was to do; {entry.error}")
    missing = {path: value for path, value in _leaves(settings) if _is_left_out(entry, path, value)}
    for word in new_settings:
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
    """Run a verb with all its settings from a private file; return its exit code."""
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
    """Return the URI of a SQLite file with an absolute path."""
    start, _, path = uri.partition(":///")
    return f"sqlite:///{Path(path).absolute()}" if start == "sqlite" else uri
