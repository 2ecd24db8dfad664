"""Settings of all tests, and their order: by what `durations.json` says they take.

`--record-durations` writes those of the files that run into it. `--fast` runs what needs no server, no browser and next
to no time.
"""

import gc
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: the machines are shared. In CI the examples are the same each time; elsewhere they keep looking.
settings.register_profile(
    "gatecast", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gatecast")

# Threads that wait for others sleep, as other processes have work for the processor: read when PyTorch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Torch and MLflow make a million objects that stay: to look through them at each step takes a tenth of all the time.
gc.set_threshold(20_000, 20, 50)

_DURATIONS = Path(__file__).with_name("durations.json")
# Seconds that a test takes with all its parameters, so that it is written down; and at most, to be a fast one.
_RECORDED, _FAST = 0.2, 0.0

_seconds: defaultdict[str, float] = defaultdict(float)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gatecast")
    group.addoption("--fast", action="store_true", help="only tests that take next to no time")
    group.addoption("--record-durations", action="store_true", help=f"write {_DURATIONS.name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that all processes end at about the same time."""
    seconds = _recorded()
    if config.getoption("--fast"):
        fast = [item for item in items if seconds.get(_name(item.nodeid), 0.0) <= _FAST and not _is_slow(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(fast)])
        items[:] = fast
    files: defaultdict[str, float] = defaultdict(float)
    for name, duration in seconds.items():
        files[_file(name)] += duration
    items.sort(key=lambda item: -files[_file(_name(item.nodeid))])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what a test takes."""
    _seconds[_name(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the durations, in the process that has all of them."""
    if session.config.getoption("--record-durations") and "PYTEST_XDIST_WORKER" not in os.environ:
        slow = {name: round(duration, 1) for name, duration in _seconds.items() if duration >= _RECORDED}
        files = {_file(name) for name in _seconds}
        unchanged = {name: duration for name, duration in _recorded().items() if _file(name) not in files}
        _DURATIONS.write_text(json.dumps(dict(sorted((unchanged | slow).items())), indent=0) + "\n", encoding="utf-8")


def _recorded() -> dict[str, float]:
    return json.loads(_DURATIONS.read_text(encoding="utf-8")) if _DURATIONS.exists() else {}


def _name(node: str) -> str:
    """Return the file and the function of a test, without folders and parameters."""
    return node.partition("[")[0].rpartition("/")[2]


def _file(name: str) -> str:
    """Return the file of a test."""
    return name.partition("::")[0]


def _is_slow(item: pytest.Item) -> bool:
    return "flows" in item.path.parts or item.get_closest_marker("trains") is not None
