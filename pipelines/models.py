"""`forecast models`: look at registered models, export one, go back to the previous champion."""

import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import ModelsConfig
from forecast.errors import ConfigError, OutputError
from pipelines import compose, console

if TYPE_CHECKING:
    from forecast.registry import Registry, Version

ACTIONS: Final = {
    "list": "all versions of registry.name, newest first",
    "show": "one version (registry.alias) with its tags",
    "rollback": "give the champion alias back to the version it replaced",
    "export": "copy the files of one version (registry.alias) to output.path; with export.format=onnx, its network too",
}


def main(argv: list[str]) -> None:
    """Run one of ACTIONS."""
    action, *rest = argv or ["--help"]
    if action in ("-h", "--help"):
        print("usage: forecast models ACTION registry.name=NAME [KEY=VALUE ...]\n")
        print("\n".join(f"  {name:<10} {about}" for name, about in ACTIONS.items()))
        return
    if action not in ACTIONS:
        raise ConfigError(f"unknown action {action!r}; there are: {', '.join(ACTIONS)}")
    config = compose.verb_config(ModelsConfig, f"models {action}", rest)
    if action in ("show", "export") and not config.registry.alias:
        raise ConfigError(f"registry.alias: missing; `forecast models {action}` needs an alias or a version number")
    if action == "export" and not config.output.path:
        raise ConfigError("output.path: missing; the folder to copy the files to")
    console.setup()

    from forecast.registry import Registry

    registry = Registry(config.registry)
    if action == "list":
        _list(registry)
    elif action == "rollback":
        before, after = registry.rollback()
        print(f"champion of {registry.name}: v{before.number} -> v{after.number}")
    else:
        version = registry.resolve(str(config.registry.alias))
        if action == "show":
            _show(version)
        else:
            _export(registry, version, Path(str(config.output.path)), config.export.format)


def _list(registry: "Registry") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("version", "aliases", "kind", "parent", "created (UTC)", "digest", box=box.SIMPLE_HEAD)
    for version in registry.versions():
        parent = version.tags.get("parent_version", "")
        row = [f"v{version.number}", ", ".join(version.aliases), version.kind, parent and f"v{parent}"]
        table.add_row(*row, _created(version), version.digest[:12])
    # A pipe has no width: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _show(version: "Version") -> None:
    lines = {
        "version": str(version),
        "aliases": ", ".join(version.aliases),
        "created": f"{_created(version)} UTC",
        "run": version.run_id,
        **dict(sorted(version.tags.items())),
    }
    width = max(map(len, lines))
    print("\n".join(f"{name:<{width}}  {value or 'none'}" for name, value in lines.items()))


def _export(registry: "Registry", version: "Version", target: Path, kind: str) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not an empty folder; give another output.path")
    source = registry.download(version)
    with tempfile.TemporaryDirectory() as made:
        if kind == "onnx":  # First: a model that can't be exported leaves nothing behind.
            from forecast import artifact
            from forecast.export import export_onnx

            export_onnx(artifact.load(source), Path(made))
        try:
            shutil.copytree(source, target, dirs_exist_ok=True)
            shutil.copytree(made, target, dirs_exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't write {target}: {error}") from error
    print(f"{version} -> {target}")


def _created(version: "Version") -> str:
    return datetime.fromtimestamp(version.created / 1000, UTC).strftime("%Y-%m-%d %H:%M")
