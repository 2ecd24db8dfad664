"""The result of a training, and the callbacks that report on it."""

from collections.abc import Callable
from dataclasses import dataclass

from forecast.artifact import Artifact

Progress = Callable[[float, str], None]
"""Called with the share of the work done, and a short text."""
Curve = list[tuple[int, dict[str, float]]]
"""(step, {metric: value})."""
Summary = dict[str, float | int | str]


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model, with its loss curve and summary."""

    artifact: Artifact
    validation_artifact: Artifact
    """The model before its skip was refitted on the validation windows: the one to evaluate on these."""
    curve: Curve
    """Losses in the order of training."""
    summary: Summary
    stopped: bool = False
    """Whether `watch` has ended the training."""
    finish: Callable[[], Artifact] | None = None
    """Returns the artifact with its final fit, if a `watch` has deferred it."""

    def __repr__(self) -> str:
        loss = f"val/loss {self.summary['val/loss']:.4g}, " if "val/loss" in self.summary else ""
        steps = f"best step {self.summary['best_step']} of {self.summary['steps']}, " if "steps" in self.summary else ""
        return f"FitResult({loss}{steps}{self.artifact!r})"


Watch = Callable[[Artifact, int], bool]
"""Called at each validation with the model (averaged weights) and the step; True ends the training."""
