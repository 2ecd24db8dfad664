"""The budget of a training: steps and minutes."""

import math
import time


class Budget:
    """The spent share of a training, by steps or by the clock, whichever is larger."""

    def __init__(self, max_steps: int, max_minutes: float | None) -> None:
        self._max_steps = max_steps
        self._max_seconds = max_minutes * 60 if max_minutes else math.inf
        self._started = time.monotonic()
        self._fixed: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the start, or those of `hold`."""
        return self.now() if self._fixed is None else self._fixed

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def hold(self, elapsed: float | None = None) -> None:
        """Stop the clock, at `elapsed` seconds if not None: processes that train together need the same time."""
        self._fixed = self.now() if elapsed is None else elapsed

    def resume(self, elapsed: float) -> None:
        """Add the seconds of the run that is resumed."""
        self._started -= elapsed

    def spent(self, step: int) -> float:
        """Return the spent share of the budget after `step` steps, at most 1."""
        return min(1.0, max(step / max(self._max_steps, 1), self.elapsed / self._max_seconds))
