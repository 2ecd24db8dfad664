"""Replay of spools: the calls of a run that were kept while the tracking server was unavailable.

All calls are safe to repeat, as a killed replay starts again.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from forecast.errors import OutputError
from forecast.tracking.accuracy import log_accuracy
from forecast.tracking.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, Param, RunTag
from forecast.tracking.spool import CALLS, KEY, RUN, SPOOL_ID, SpooledRun, now


def spooled_runs(root: Path) -> Iterator[tuple[Path, SpooledRun]]:
    """Yield the spools in a folder, by the start of their runs.

    Raises OutputError for one that can't be read.
    """
    runs = []
    for file in root.glob(f"*/{RUN}"):
        try:
            runs.append((file.parent, SpooledRun(**json.loads(file.read_text(encoding="utf-8")))))
        except FileNotFoundError:  # Another process has just logged it.
            continue
        except (OSError, ValueError, TypeError) as error:
            raise OutputError(
                f"{file} can't be read: {error}; move {file.parent} away ({KEY} names its folder)"
            ) from None
    yield from sorted(runs, key=lambda pair: (pair[1].started, pair[1].id))


def calls_of(folder: Path) -> list[dict[str, Any]]:
    """Return the calls in a spool, without a last line that a kill has cut off."""
    lines = (folder / CALLS).read_text(encoding="utf-8").splitlines() if (folder / CALLS).exists() else []
    calls = []
    for number, line in enumerate(lines, start=1):
        try:
            calls.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise OutputError(f"{folder / CALLS}: line {number:,} can't be read; move {folder} away") from None
    return calls


def replay(client: Any, experiment: str, folder: Path, run: SpooledRun, real_ids: Mapping[str, str]) -> str:
    """Make all calls of a spool except the registration and the end; return the id of the run.

    `real_ids` maps names of other spools, which tags may contain, to the ids of their runs.
    """
    run_id = run.run_id or _find(client, experiment, run.id)
    if not run_id:
        tags = {name: real_ids.get(value, value) for name, value in run.tags.items()} | {SPOOL_ID: run.id}
        run_id = client.create_run(experiment, run.started, tags, run.run_name).info.run_id
    names = {**real_ids, run.id: run_id}
    for call in calls_of(folder):
        if call["call"] == "log_accuracy":
            log_accuracy(client, run_id, experiment, _metrics(call))
        else:
            _replay_call(client, run_id, folder, call, names)
    return run_id


def end(client: Any, folder: Path, run_id: str) -> None:
    """End a run with the status of its job; as KILLED if the job has recorded none."""
    ends = [call for call in calls_of(folder) if call["call"] == "set_terminated"]
    last = ends[-1] if ends else {"status": "KILLED", "end_time": now()}
    client.set_terminated(run_id, last["status"], last["end_time"])


def remove(folder: Path) -> None:
    """Remove a spool, after renaming it, so that no partial spool is left."""
    aside = folder.with_name(f".{folder.name}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _find(client: Any, experiment: str, spool_id: str) -> str:
    runs = client.search_runs([experiment], f"tags.`{SPOOL_ID}` = '{spool_id}'", max_results=1)
    return str(runs[0].info.run_id) if runs else ""


def _replay_call(client: Any, run_id: str, folder: Path, call: Mapping[str, Any], names: Mapping[str, str]) -> None:
    kind = call["call"]
    if kind == "log_batch":
        params = [Param(*values) for values in call["params"]]
        tags = [RunTag(key, names.get(value, value)) for key, value in call["tags"]]
        client.log_batch(run_id, metrics=_metrics(call), params=params, tags=tags)
    elif kind == "log_artifact":
        client.log_artifact(run_id, str(folder / call["file"]), call["folder"])
    elif kind == "log_artifacts":
        client.log_artifacts(run_id, str(folder / call["file"]))
    elif kind == "log_inputs":
        tags_of = call.get("tags") or [[] for _ in call["datasets"]]
        datasets = [
            DatasetInput(Dataset(**values), [InputTag(*tag) for tag in tags])
            for values, tags in zip(call["datasets"], tags_of, strict=True)
        ]
        models = [LoggedModelInput(model_id) for model_id in call.get("models", ())]
        client.log_inputs(run_id, datasets=datasets, models=models)
    elif kind == "set_model_version_tag":
        value = names.get(call["value"], call["value"])
        client.set_model_version_tag(call["name"], call["version"], call["key"], value)
    elif kind == "update_model_version":
        client.update_model_version(call["name"], call["version"], call["description"])


def _metrics(call: Mapping[str, Any]) -> list[Metric]:
    return [Metric(*values) for values in call["metrics"]]
