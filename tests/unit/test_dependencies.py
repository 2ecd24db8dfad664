"""What is imported is declared."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Modules of the checkout, beside those of packages.
_HERE = {"benchmarks", "docs", "forecast", "pipelines"}


distributions = functools.cache(packages_distributions)


@functools.cache
def imported(folder: str) -> set[str]:
    """Return the modules that the files of a folder import, at the top or inside of functions."""
    files = [*(ROOT / folder).rglob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    modules = {name.partition(".")[0] for name in names}
    return modules - {file.stem for file in files} - _HERE - set(sys.stdlib_module_names)


def declared(*, extras: bool, development: bool = False) -> set[str]:
    """Return the distributions that the package asks for, in lower case with dashes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = project["optional-dependencies"]
    requirements = list(project["dependencies"])
    requirements += [text for name in groups if (development if name == "dev" else extras) for text in groups[name]]
    return {_normal(re.split(r"[<>=\[ ]", text)[0]) for text in requirements}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", ["forecast", "pipelines", "docs", "tests"])
def test_every_import_is_of_a_declared_distribution(folder: str) -> None:
    names, modules = declared(extras=True, development=folder == "tests"), imported(folder)
    assert not {m for m in modules if not {_normal(name) for name in distributions().get(m, [m])} & names}


def test_every_dependency_of_the_package_is_imported() -> None:
    modules = imported("forecast") | imported("pipelines")
    assert declared(extras=False) <= {_normal(name) for module in modules for name in distributions().get(module, [])}


def test_the_distribution_that_scores_bundles_is_of_the_same_version_with_fewer_dependencies() -> None:
    files = ROOT / "pyproject.toml", ROOT / "distributions/gatecast-score/pyproject.toml"
    whole, score = (tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files)
    for key in ("version", "requires-python", "license", "scripts"):
        assert score[key] == whole[key], key
    assert set(score["dependencies"]) <= {*whole["dependencies"], *whole["optional-dependencies"]["onnx"]}
