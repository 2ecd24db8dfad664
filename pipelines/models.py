"""`forecast models`: list, show, compare, add, export, roll back and delete registered models."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import (
    AddConfig,
    DeleteConfig,
    DiffConfig,
    ExportConfig,
    ListConfig,
    ModelsConfig,
    RegisterConfig,
    RollbackConfig,
    VerbConfig,
)
from forecast.errors import ConfigError, OutputError, listing
from forecast.redaction import printable, redacted
from pipelines.jobs import command_line, console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version
from pipelines.jobs.lineage import accuracy_of, created_at, lineage, metrics_of, parent_of, runs_of

# Settings class and description of each action.
ACTIONS: Final[dict[str, tuple[type[VerbConfig], str]]] = {
    "list": (ListConfig, "all versions of registry.name with their accuracy, newest first or by list.order=accuracy"),
    "show": (ModelsConfig, "what was fine-tuned from what, as a tree; or one version (registry.alias)"),
    "diff": (DiffConfig, "which series differ between registry.alias and diff.against"),
    "add": (AddConfig, "register a pretrained network of the package for the series at data.path"),
    "register": (RegisterConfig, "register a model in a folder, source.path: one that a job could not register"),
    "rollback": (RollbackConfig, "back to the champion before, to rollback.to, or with rollback.series to the base"),
    "export": (ExportConfig, "copy a version (registry.alias), or export.series of it, to output.path"),
    "delete": (DeleteConfig, "delete a version (registry.alias) that nothing needs, or delete.force=true"),
}
# Metrics shown for a version, if its runs have them.
_SHOWN: Final = ("val/", "finetune/", "backtest/")


def main(argv: list[str]) -> None:
    """Run one of ACTIONS; actions with side effects are recorded in the ledger."""
    action_words = command_line.action_of(
        "models", argv, {name: about for name, (_, about) in ACTIONS.items()}, "registry.name=NAME "
    )
    if action_words is None:
        return
    action, words = action_words
    if change := {"add": _add, "register": _register, "rollback": _rollback, "delete": _delete}.get(action):
        change(words)
    else:
        _look(action, words)


def _look(action: str, argv: list[str]) -> None:
    config = command_line.verb_config(ACTIONS[action][0], f"models {action}", argv)
    if action in ("diff", "export"):
        _check_alias(config, action)
    console.setup()

    from forecast.tracking.registry import Registry

    registry = Registry(config.registry)
    if isinstance(config, DiffConfig):
        _diff(registry, config)
    elif isinstance(config, ExportConfig):
        _export(registry, config)
    elif isinstance(config, ListConfig):
        _list(registry, config.list.order == "accuracy")
    elif config.registry.alias:
        _show(registry, registry.resolve(config.registry.alias))
    else:
        _tree(registry)


@recorded(AddConfig)
def _add(config: AddConfig) -> None:
    from pipelines.jobs.builtin import add

    version, line = add(config)
    note(model=str(version), output=str(version))
    print(f"{version} ({version.kind}): {line}")


@recorded(RegisterConfig)
def _register(config: RegisterConfig) -> None:
    from pipelines.jobs.registration import register_folder

    version, line = register_folder(config)
    note(model=str(version), output=str(version))
    print(line)


@recorded(RollbackConfig)
def _rollback(config: RollbackConfig) -> None:
    from pipelines.jobs import champions
    from pipelines.jobs.reading import open_registry

    print(champions.roll_back(open_registry(config), config))


@recorded(DeleteConfig)
def _delete(config: DeleteConfig) -> None:
    from pipelines.jobs import champions
    from pipelines.jobs.reading import open_registry

    _check_alias(config, "delete")
    print(champions.delete(open_registry(config), config))


def _check_alias(config: VerbConfig, action: str) -> None:
    if not config.registry.alias:
        raise ConfigError(f"registry.alias: missing; `forecast models {action}` needs an alias or a version number")


def _list(registry: "Registry", by_accuracy: bool) -> None:
    from pipelines.jobs.champions import history_lines, reign

    champions = registry.champions()
    versions = sorted(champions.versions.values(), key=lambda version: -version.number)
    accuracy = accuracy_of(registry, versions)
    if by_accuracy:
        versions.sort(key=lambda version: accuracy[version.number].rank)
    labels = list(dict.fromkeys(label for entry in accuracy.values() for label in entry.metrics))
    data = [accuracy[version.number].data for version in versions]
    rows = [
        (
            f"v{version.number}",
            ", ".join(version.aliases),
            version.kind,
            parent_of(version),
            created_at(version),
            version.digest[:12],
            *(accuracy[version.number].text(label) for label in labels),
            *([accuracy[version.number].data] if any(data) else []),
            reign(champions, version),
        )
        for version in versions
    ]
    columns = ("version", "aliases", "kind", "parent", "created (UTC)", "digest")
    _print((*columns, *labels, *(["backtest on"] if any(data) else []), "champion (UTC)"), rows)
    _say(history_lines(champions))
    if by_accuracy and len(set(data) - {""}) > 1:
        console.say("the backtests are on different data: compare versions with the same one")


def _tree(registry: "Registry") -> None:
    from pipelines.jobs.champions import history_lines

    versions = lineage(registry)
    _print(versions.columns, versions.rows())
    _say(history_lines(registry.champions()))


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        console.say(line)


def _show(registry: "Registry", version: "Version") -> None:
    from pipelines.jobs.champions import history_lines, reign

    champions = registry.champions()
    children = [
        f"v{other_version.number}"
        for other_version in champions.versions.values()
        if other_version.parent == version.number
    ]
    lines = {
        "version": str(version),
        "aliases": ", ".join(version.aliases),
        "created": f"{created_at(version)} UTC",
        "run": version.run_id,
        "children": ", ".join(sorted(children, key=lambda child: int(child[1:]))),
        "champion": reign(champions, version),
        **dict(sorted(version.tags.items())),
    }
    metrics = metrics_of(version, registry.metrics(runs_of(version)))
    lines |= {name: f"{value:.6g}" for name, value in sorted(metrics.items()) if name.startswith(_SHOWN)}
    if champions.number == version.number:
        lines |= {"rollback": history_lines(champions)[-1]}
    width = max(map(len, lines))
    for name, value in lines.items():
        console.say(f"{name:<{width}}  {value or 'none'}")


def _diff(registry: "Registry", config: DiffConfig) -> None:
    import polars as pl

    from forecast.data.files import write_parquet_atomic
    from forecast.finetuning.lineage import ADDED, CHANGE, CHANGED, REMOVED, SAME, STATUS, compare_changes
    from forecast.names import SERIES_ID
    from pipelines.jobs.reading import open_version

    (version, artifact), (other_version, other_artifact) = (
        open_version(registry, alias) for alias in (config.registry.alias, config.diff.against)
    )
    differences = compare_changes(artifact, other_artifact)
    counts = dict(differences[STATUS].value_counts().iter_rows())
    if config.output.path:
        write_parquet_atomic(differences, Path(config.output.path) / "diff.parquet")
    differ = differences.filter(pl.col(STATUS) != SAME).sort(
        CHANGE, SERIES_ID, descending=[True, False], nulls_last=True
    )
    console.table(differ.head(config.diff.rows))
    bases = "" if artifact.base().digest() == other_artifact.base().digest() else "; their bases differ"
    print(
        f"{version} against v{other_version.number}: {counts.get(ADDED, 0):,} series fine-tuned in v{version.number} "
        f"alone, {counts.get(REMOVED, 0):,} in v{other_version.number} alone, {counts.get(CHANGED, 0):,} changed, "
        f"{counts.get(SAME, 0):,} the same{bases}"
    )


def _export(registry: "Registry", config: ExportConfig) -> None:
    target, series = Path(config.output.path), config.export.series
    _check_target(target)
    version = registry.resolve(str(config.registry.alias))
    cost, weights, int8 = None, "", config.export.format == "onnx_int8"
    has_data = config.data.path is not None or config.data.uri is not None
    if has_data and not int8:
        raise ConfigError("data: a table is what 8 bits are judged on, with export.format=onnx_int8; leave it out")
    try:
        with tempfile.TemporaryDirectory() as name:  # A failed export leaves nothing behind.
            path = Path(name)
            if config.export.format == "bundle":
                from forecast.bundle.export import export_bundle
                from pipelines.jobs.score_jobs import names_of

                export_bundle(_model_of(registry, version, series), names_of(version), path)
            elif series is None:
                shutil.copytree(registry.download(version), path, dirs_exist_ok=True)
            else:
                _model_of(registry, version, series).save(path)
            if config.export.format.startswith("onnx"):
                from forecast import artifact
                from forecast.compression.onnx_export import export_onnx
                from pipelines.jobs.reading import read_for

                model = artifact.load(path)
                panel = read_for(model, config.data).panel if has_data else None
                until = model.latest.trained_until_timestamp
                weights = f", weights of the final fit until {until}" if model.final else ""
                cost = export_onnx(model, path, int8=int8, panel=panel)
            shutil.copytree(path, target, dirs_exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}") from error
    subject = f"{series} of {version}" if series else str(version)
    console.say(f"{subject} -> {target}{weights}" + (f", {cost.line}" if cost else ""))


def _model_of(registry: "Registry", version: "Version", series: str | None) -> "Artifact":
    """Return the model of a version, or that with the adapter of one series only."""
    from forecast.finetuning.lineage import extract_series
    from pipelines.jobs.reading import load_version

    model = load_version(registry, version)
    return model if series is None else extract_series(model, series, key="export.series")


def _check_target(target: Path) -> None:
    """Raise OutputError unless a folder is new or empty."""
    advice = "nothing is overwritten: give a new or empty output.path, or remove that first"
    try:
        if target.is_dir():
            if existing := sorted(path.name for path in target.iterdir()):
                raise OutputError(f"{target} holds {len(existing):,} files or folders: {listing(existing)}; {advice}")
        elif target.is_symlink() or target.exists():
            raise OutputError(f"{target} is there and is no folder; {advice}")
    except OSError as error:
        raise OutputError(f"can't look into {target}: {error.strerror or error}; give another output.path") from error


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(printable(redacted(cell))) for cell in row))
    # Output into a pipe has no width limit.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
