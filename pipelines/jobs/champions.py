"""The champions of a model on the command line: history, rollback, and protected deletion."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import DeleteConfig, RollbackConfig
from forecast.errors import listing
from pipelines.jobs.job import note

if TYPE_CHECKING:
    from forecast.tracking.champions import Champions
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

# Most ids in a tag; the run has all of them.
_NAMED: Final = 100
_SHOWN_MOVES: Final = 12


def roll_back(registry: "Registry", config: RollbackConfig) -> str:
    """Roll back the champion to an earlier one, or series of a version to the base; return a line about it."""
    if config.rollback.series is not None:
        return _roll_series_back(registry, config, config.rollback.series)
    champions = registry.champions()
    before, after = registry.rollback("by forecast models rollback", to=config.rollback.to, basis=champions)
    note(model=str(before or after), output=str(after))
    if before is not None and before.number == after.number:
        return f"champion of {registry.name}: v{after.number}, it already was"
    return f"champion of {registry.name}: {f'v{before.number}' if before else 'none'} -> v{after.number}"


def _roll_series_back(registry: "Registry", config: RollbackConfig, series: tuple[str, ...]) -> str:
    """Register a version with some series back at the base; return a line about it.

    The new version takes over the aliases of its parent, unless they have moved meanwhile; as champion it is a new
    entry of the history, so this can be rolled back, too.
    """
    from forecast.finetuning.lineage import drop_changes
    from forecast.names import CHAMPION
    from forecast.prediction.from_table import example
    from pipelines.jobs.reading import open_version
    from pipelines.jobs.registration import model_facts
    from pipelines.jobs.version_tags import child_tags, version_tags

    version, artifact = open_version(registry, config.registry.alias or CHAMPION)
    child = drop_changes(artifact, series, key="rollback.series")
    assert child.bank is not None
    with (
        registry.run("rollback", config, {"parent_version": str(version.number)}) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        note(mlflow=run.link)
        run.json(list(series), "rolled_back.json")
        tags = {
            **version_tags(child, config, version.tags.get("data_digest", "")),
            **child_tags(version, child.bank.kind, len(child.bank.series_id)),
            "rolled_back": listing(series, _NAMED),
            "rolled_back_from": f"v{version.number}",
        }
        digest = child.save(Path(folder))
        facts = model_facts(run, child, registry.name, tags, {})
        child_version = registry.register(
            run, Path(folder), digest=digest, tags=tags, example=example(child), facts=facts
        )
        moved = registry.hand_over(version, child_version)
    note(output=str(child_version))
    moved_text = f", which is now {' and '.join(moved)}" if moved else ""
    if remaining := sorted(set(version.aliases) - set(moved)):
        moved_text += f" ({' and '.join(remaining)} moved to another version meanwhile, and stays there)"
    base = f"{len(set(series)):,} series of {version} are back at the base"
    return f"{base} in v{child_version.number}{moved_text}, run {run.id}"


def delete(registry: "Registry", config: DeleteConfig) -> str:
    """Delete a version and return a line about it."""
    version = registry.resolve(str(config.registry.alias))
    note(model=str(version))
    aliases = registry.delete(version, force=config.delete.force)
    return f"{version} deleted" + (f", and no version is {' or '.join(aliases)} any more" if aliases else "")


def history_lines(champions: "Champions") -> list[str]:
    """Return the history of champions and the target of a rollback, as lines of text."""
    lines = []
    if champions.moves:
        moves = champions.moves[-_SHOWN_MOVES:]
        earlier = f"{len(champions.moves) - len(moves):,} earlier -> " if len(moves) < len(champions.moves) else ""
        lines.append(f"champions: {earlier}{' -> '.join(map(str, moves))}")
    if champions.damage:
        lines.append(f"warning: {champions.damage}")
    lines += [f"warning: the alias {alias} means v{n}, which is deleted" for alias, n in champions.dangling.items()]
    target, why = champions.target()
    if target is not None:
        lines.append(f"a rollback returns to v{target.number}")
    elif champions.moves:
        lines.append(f"nothing to roll back to: {why}")
    return lines


def reign(champions: "Champions", version: "Version") -> str:
    """Return the periods in which a version was champion; empty if there is none."""
    spells = []
    for move, until in champions.reigns():
        if move.version == version.number:
            start, until = (moment[:16].replace("T", " ") for moment in (move.at, until))
            is_present = move is champions.moves[-1] and champions.number == version.number
            end = "now" if is_present else until or "?"
            spells.append(f"{start or '?'} to {end}")
    return ", ".join(spells)
