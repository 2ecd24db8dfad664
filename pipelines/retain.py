"""`forecast retain`: free old versions, runs, forecasts and states; without retain.apply, only show them."""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import RetainConfig
from forecast.errors import GatecastError, listing
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    import polars as pl

    from forecast.retention.items import Item
    from forecast.tracking.disposal import Disposal, OldRun, StoredModel
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

_DAY_MS: Final = 24 * 3_600_000
_SHOWN: Final = 200
"""Rows of the table on the terminal."""


@dataclass(frozen=True)
class Retained:
    """Result of the job."""

    table: "pl.DataFrame"
    """A row for each item that goes: kind, name, bytes, rows, reason."""
    freed: int | None
    """Bytes freed, as measured; None for a look."""
    notes: list[str]
    """What stays in spite of the rules."""


@recorded(RetainConfig)
def main(config: RetainConfig) -> None:
    """Run the verb."""
    run(config)


def run(config: RetainConfig) -> Retained:
    """Show what the rules free, and free it with `retain.apply`.

    An item that can't be freed does not stop the others; their errors are raised at the end. Raises RegistryError if
    `retain.free` names a version that is needed.
    """
    from forecast.retention.items import items_table
    from forecast.tracking.disposal import Disposal
    from pipelines.jobs.reading import open_registry

    registry = open_registry(config)
    disposal = Disposal(registry)
    with _locks(config):
        items, notes = _items(config, registry, disposal)
        table = items_table(items)
        _show(items, table)
        for line in notes:
            console.say(line)
        if not config.retain.apply:
            console.say(_line(items, "would go, nothing was freed; retain.apply=true frees this"))
            return Retained(table, None, notes)
        if not items:
            console.say(_line(items))
            return Retained(table, 0, notes)
        freed = _free(config, registry, items, table)
    if not disposal.removes_rows and config.retain.run_days is not None:
        console.say("the server keeps the rows of these runs in its trash; `mlflow gc` there removes them")
    return Retained(table, freed, notes)


@contextmanager
def _locks(config: RetainConfig) -> Iterator[None]:
    """Keep scoring jobs out of the folders; a look needs no lock."""
    from forecast.data.files import locked

    retain = config.retain
    with ExitStack() as stack:
        for key in ("scores", "state") if retain.apply else ():
            path = getattr(retain, key)
            if path is not None and Path(path).is_dir():
                stack.enter_context(locked(Path(path), f"retain.{key}"))
        yield


def _items(config: RetainConfig, registry: "Registry", disposal: "Disposal") -> "tuple[list[Item], list[str]]":
    """Return what goes, in the order in which it is freed, and notes about what stays."""
    from forecast.retention.forecasts import StoredForecasts
    from forecast.retention.states import state_items

    retain = config.retain
    items: list[Item] = []
    notes: list[str] = []
    needed: dict[int, str] = {}
    since = None
    if retain.scores is not None:
        forecasts = StoredForecasts(retain, registry.name)
        items, n_unjudged = forecasts.items()
        since = forecasts.threshold()
        if n_unjudged:
            notes.append(
                f"{n_unjudged:,} cutoffs stay because forecast monitor reads them; retain.unjudged=true frees them"
            )
        latest = forecasts.contents[-1]
        if str(latest["model_version"]).isdecimal():
            needed[int(latest["model_version"])] = "it made the forecasts of the latest cutoff"
    versions: list[Version] = []
    named: set[int] = set()
    if retain.versions is not None or retain.free:
        versions, named = _versions(config, registry, disposal, needed)
    if retain.state is not None:
        items += state_items(retain, since, {version.digest for version in versions})
    items += _version_items(config, registry, disposal, versions, named)
    if retain.run_days is not None:
        items += _run_items(retain.run_days, registry, disposal, versions)
    return items, notes


def _versions(
    config: RetainConfig, registry: "Registry", disposal: "Disposal", needed: dict[int, str]
) -> "tuple[list[Version], set[int]]":
    """Return the versions that go, newest first, and the numbers of those in retain.free.

    Raises RegistryError for versions in retain.free that are needed.
    """
    from forecast.retention.versions import check_free, expired_versions

    retain, champions = config.retain, registry.champions()
    named = {registry.resolve(name, "retain.free").number for name in retain.free}
    check_free(champions, named, needed)
    keep = len(champions.versions) if retain.versions is None else retain.versions
    while True:
        expired, _ = expired_versions(champions, keep, needed)
        numbers = {version.number for version in expired} | named
        copies = {number: disposal.copies(champions.versions[number]) for number in numbers}
        shared = {number: f"{listing(names)} has its files or its network" for number, names in copies.items() if names}
        if not shared:
            return [champions.versions[number] for number in sorted(numbers, reverse=True)], named
        needed |= shared
        check_free(champions, named, needed)


def _version_items(
    config: RetainConfig,
    registry: "Registry",
    disposal: "Disposal",
    versions: "Sequence[Version]",
    named: "Collection[int]",
) -> "Iterator[Item]":
    from forecast.retention.items import MODEL, VERSION, Item

    retain = config.retain
    for version in versions:
        model = disposal.model_of(version)
        size = disposal.size(model.artifact_uri) if model else 0
        reason = f"no alias, not among the newest {retain.versions}"

        def free(version: "Version" = version, model: "StoredModel | None" = model) -> int:
            return disposal.free_version(version, model)

        yield Item(VERSION, str(version), size, "retain.free" if version.number in named else reason, free)
    if retain.versions is not None:
        for stored in disposal.models_without_version(registry.versions()):

            def free_model(stored: "StoredModel" = stored) -> int:
                return disposal.free_model(stored)

            yield Item(MODEL, stored.name, disposal.size(stored.artifact_uri), "it has no version", free_model)


def _run_items(
    days: float, registry: "Registry", disposal: "Disposal", versions: "Sequence[Version]"
) -> "Iterator[Item]":
    from forecast.retention.items import RUN, Item
    from forecast.retention.versions import runs_behind

    gone = {version.number for version in versions}
    behind = runs_behind([version for version in registry.versions() if version.number not in gone])
    behind |= disposal.parents(behind)
    for old in disposal.old_runs(int(time.time() * 1000 - days * _DAY_MS)):
        if old.id in behind:
            continue
        size = disposal.size(old.artifact_uri)
        if old.is_deleted and not size and not disposal.removes_rows:
            continue  # Freed before: a row in the trash of the server.
        ended = datetime.fromtimestamp(old.ended / 1000, UTC)

        def free(old: "OldRun" = old) -> int:
            return disposal.free_run(old)

        yield Item(RUN, f"{old.job} {old.id}", size, f"ended {ended:%Y-%m-%d} (retain.run_days={days:g})", free)


def _free(config: RetainConfig, registry: "Registry", items: "Sequence[Item]", table: "pl.DataFrame") -> int:
    """Free the items, log the table with the bytes of each, and return the bytes in total."""
    import polars as pl

    from forecast.retention.items import bytes_text

    freed: list[int | None] = []
    failed: dict[str, GatecastError] = {}
    with registry.run("retain", config) as run:
        note(mlflow=run.link)
        with console.stage("retain") as stage:
            for item in items:
                try:
                    freed.append(item.free())
                except GatecastError as error:
                    freed.append(None)
                    failed[f"{item.kind} {item.name}"] = error
                stage.update(f"{len(freed):,} of {len(items):,}")
            total = sum(filter(None, freed))
            stage.note(freed=len(items) - len(failed), failed=len(failed), bytes=total)
        run.table(table.with_columns(pl.Series("freed", freed, dtype=pl.Int64)), "retained.parquet")
        run.metrics({"retain/items": len(items) - len(failed), "retain/bytes": total, "retain/failed": len(failed)})
        line = _line([item for item, size in zip(items, freed, strict=True) if size is not None], "freed")
        console.say(f"{line}, measured: {bytes_text(total)}")
        note(output=f"{bytes_text(total)} freed")
        if failed:
            reasons = "\n".join(f"  {name}: {error}" for name, error in failed.items())
            raise type(next(iter(failed.values())))(f"{len(failed):,} of {len(items):,} stay:\n{reasons}")
    return total


def _show(items: "Sequence[Item]", table: "pl.DataFrame") -> None:
    """Print the items, those of most bytes if they are many."""
    import polars as pl

    if not items:
        return
    texts = pl.Series("size", [item.size_text for item in items])
    shown = table.with_columns(texts).with_row_index().sort("bytes", "rows", descending=True).head(_SHOWN)
    console.table(shown.sort("index").select("kind", "name", "size", "reason"))
    if table.height > _SHOWN:
        console.say(f"the {_SHOWN:,} largest of {table.height:,}")


def _line(items: "Sequence[Item]", what: str = "") -> str:
    """Return the numbers and the size of items, by kind."""
    from forecast.retention.items import bytes_text

    if not items:
        return "nothing to free"
    kinds = list(dict.fromkeys(item.kind for item in items))
    parts = []
    for kind in kinds:
        of_kind = [item for item in items if item.kind == kind]
        rows = sum(item.rows for item in of_kind)
        sizes = [bytes_text(sum(item.size for item in of_kind)), *([f"{rows:,} rows"] if rows else [])]
        parts.append(f"{len(of_kind):,} {kind}{'s' * (len(of_kind) != 1)} ({', '.join(sizes)})")
    return f"{', '.join(parts)} {what}"
