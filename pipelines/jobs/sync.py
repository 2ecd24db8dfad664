"""`forecast runs sync`: logs the runs that jobs could not log while MLflow was unavailable.

A run is removed from the spool once it is logged completely. After an interruption, the same command starts the run
again, without a second run or version.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forecast.config import RegistryConfig, SyncConfig
from forecast.errors import GatecastError, LedgerError, OutputError, RegistryError
from forecast.redaction import without_password
from pipelines.jobs import console
from pipelines.jobs.job import open_ledger

if TYPE_CHECKING:
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.spool import SpooledRun
    from forecast.tracking.versions import Version

_LOG = logging.getLogger(__name__)


def run(config: SyncConfig) -> None:
    """Log every run of the spool. Raises an error that lists the failed ones."""
    from forecast.tracking.replay import spooled_runs
    from forecast.tracking.store import tracking_uri

    root, store = Path(config.registry.spool), without_password(tracking_uri(config.registry))
    runs = list(spooled_runs(root))
    real_ids: dict[str, str] = {}
    failed: dict[str, GatecastError] = {}
    for folder, spooled in runs:
        if spooled.store != store:
            failed[spooled.id] = RegistryError(
                f"it is of MLflow store {spooled.store}, not of {store}; set registry.tracking_uri"
            )
            continue
        try:
            console.say(_log(config, folder, spooled, real_ids))
        except GatecastError as error:
            failed[spooled.id] = error
    if not runs:
        print(f"{root}: every run is logged")
    if failed:
        reasons = "\n".join(f"  {name}: {error}" for name, error in failed.items())
        kind = type(next(iter(failed.values())))
        raise kind(f"{len(failed):,} of {len(runs):,} runs are not logged:\n{reasons}")


def _log(config: SyncConfig, folder: Path, spooled: "SpooledRun", real_ids: dict[str, str]) -> str:
    """Log a run, and return a line about it."""
    from forecast.data.files import locked
    from forecast.tracking.registry import Registry
    from forecast.tracking.replay import calls_of, remove
    from forecast.tracking.spool import KEY, REGISTER

    ledger = open_ledger(config.ledger).uri
    registry = Registry(RegistryConfig(name=spooled.name, tracking_uri=config.registry.tracking_uri), ledger)
    with locked(folder, KEY):
        if not (folder / "run.json").exists():
            raise OutputError(f"{folder}: another process has just logged it")
        run = registry.replay(folder, spooled, real_ids)
        real_ids[spooled.id] = run.id
        versions = [_version(registry, run, folder, call) for call in calls_of(folder) if call["call"] == REGISTER]
        registry.end_replay(folder, run)
        _relink(config, spooled, run)
        remove(folder)
    registered = f", {', '.join(versions)}" if versions else ""
    return f"{spooled.job} of {spooled.name}: logged as run {run.id}{registered}"


def _version(registry: "Registry", run: "Run", folder: Path, call: dict[str, Any]) -> str:
    """Register a model unless it is registered already; return its name with its alias.

    A later version keeps the alias.
    """
    from forecast import artifact
    from forecast.tracking.model_facts import ModelFacts
    from pipelines.jobs.registration import register, versions

    existing = [
        version for version in versions(registry) if version.digest == call["digest"] and version.run_id == run.id
    ]
    if existing:
        version = existing[0]
    else:
        model, facts = artifact.load(folder / call["file"]), ModelFacts.from_json(call.get("facts", {}))
        version = register(registry, run, model, facts, tags=call["tags"], alias=None)
    alias = call["alias"]
    if not alias:
        return str(version)
    holder = registry.set_alias(alias, version, registered=call["registered"])
    if holder.number != version.number:
        return f"{version} ({alias} stays {_number(holder)}, which is newer)"
    return f"{version} is {alias}"


def _number(version: "Version") -> str:
    return f"v{version.number}"


def _relink(config: SyncConfig, spooled: "SpooledRun", run: "Run") -> None:
    """Replace the name of the run in the ledger by its id."""
    if spooled.run_id:  # The id is there already.
        return
    try:
        open_ledger(config.ledger).relink(spooled.id, run.link)
    except LedgerError as error:
        _LOG.warning("the ledger still calls run %s %s: %s", run.id, spooled.id, error)
