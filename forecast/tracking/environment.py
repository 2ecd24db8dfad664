"""Code version and packages of a job, in the form that MLflow records."""

import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("gatecast", "mlflow", "numpy", "pandas", "polars", "pyarrow", "pydantic", "safetensors", "torch")


def commit() -> dict[str, str]:
    """Return the git commit of this code as tags, empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        process = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    commit, _, dirty = process.stdout.strip().partition("-")
    return {"mlflow.source.git.commit": commit, **({"git_dirty": "true"} if dirty else {})}


def environment() -> dict[str, object]:
    """Return the versions of Python, the platform, and the main packages."""
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": dict(_installed())}


def requirements() -> list[str]:
    """Return the packages that loading a model needs, without local labels such as +cpu."""
    return [f"{name}=={number.partition('+')[0]}" for name, number in _installed()]


def _installed() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):  # this package, when run without installation
            yield name, version(name)
