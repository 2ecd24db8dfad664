"""What a training gives, and what it tells on the way."""

from collections.abc import Callable
from dataclasses import dataclass

from forecast.artifact import Artifact

Progress = Callable[[float, str], None]
Curve = list[tuple[int, dict[str, float]]]
Summary = dict[str, float | int | str]


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model and how it came about."""

    artifact: Artifact
    validation_artifact: Artifact
    """The model before its line was solved on the validation windows as well: the one that may be judged on these."""
    curve: Curve
    """In the order of training."""
    summary: Summary
    stopped: bool = False
    """Whether `watch` has ended the training."""
    finish: Callable[[], Artifact] | None = None
    """Returns the artifact with its final fit, where a `watch` has put that off."""

    def __repr__(self) -> str:
        loss = f"val/loss {self.summary['val/loss']:.4g}, " if "val/loss" in self.summary else ""
        steps = f"best step {self.summary['best_step']} of {self.summary['steps']}, " if "steps" in self.summary else ""
        return f"FitResult({loss}{steps}{self.artifact!r})"


Watch = Callable[[Artifact, int], bool]
