"""How long a training may take."""

import math
import time


class Budget:
    """How much of the training is done, by steps or by the clock, whichever is further."""

    def __init__(self, max_steps: int, max_minutes: float | None) -> None:
        self._max_steps = max_steps
        self._max_seconds = max_minutes * 60 if max_minutes else math.inf
        self._begun = time.monotonic()
        self._held: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the begin, or those that it is held at."""
        return self.now() if self._held is None else self._held

    def now(self) -> float:
        """Return the seconds since the begin."""
        return time.monotonic() - self._begun

    def hold(self, elapsed: float | None = None) -> None:
        """Stop the clock, at `elapsed` seconds if given: processes that train together must read the same."""
        self._held = self.now() if elapsed is None else elapsed

    def resume(self, elapsed: float) -> None:
        """Count the seconds of the run that is gone on from."""
        self._begun -= elapsed

    def spent(self, step: int) -> float:
        """Return the share of the budget that is spent after `step` steps, at most 1."""
        return min(1.0, max(step / max(self._max_steps, 1), self.elapsed / self._max_seconds))
