"""The process that runs: the version of this program, and environment variables for a while."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version


def is_score_only() -> bool:
    """Return whether gatecast-score is installed, which has the same code as gatecast and only what bundles need."""
    try:
        version("gatecast")
    except PackageNotFoundError:
        return True
    return False


def gatecast_version() -> str:
    """Return the version of this program."""
    return version("gatecast-score" if is_score_only() else "gatecast")


@contextmanager
def environment_set(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the context."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
