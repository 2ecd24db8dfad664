"""An engine that measures its tasks; workers import it from here."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forecast.engines.engine import Engine, Outcome


@dataclass(frozen=True)
class _TimedWork:
    """Work whose tasks return their wall time, too."""

    work: Any

    def open(self) -> Callable[[Any], tuple[Any, float]]:
        function = self.work.open()

        def run(task: Any) -> tuple[Any, float]:
            start = time.perf_counter()
            return function(task), time.perf_counter() - start

        return run


class TimedEngine:
    """An engine that sums the time of its tasks, and the time that its caller waits for them."""

    def __init__(self, engine: Engine) -> None:
        self.n_workers, self._engine, self._work = engine.n_workers, engine, _TimedWork(None)
        self.seconds: dict[str, float] = {"tasks": 0.0, "engine": 0.0}

    def run(self, work: Any, tasks: Sequence[Any]) -> Iterator[Outcome[Any, Any]]:
        """Yield the outcomes, as `Engine.run`."""
        if self._work.work is not work:
            self._work = _TimedWork(work)
        start = time.perf_counter()
        for outcome in self._engine.run(self._work, tasks):
            self.seconds["engine"] += time.perf_counter() - start
            result, seconds = outcome.result or (None, 0.0)
            self.seconds["tasks"] += seconds
            yield replace(outcome, result=result)
            start = time.perf_counter()
        self.seconds["engine"] += time.perf_counter() - start
