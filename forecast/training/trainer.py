"""A training of one network, and its start. Lightning, whose import takes seconds, is imported with the first one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forecast.config import FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Member
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.checkpoint import Checkpoint
from forecast.training.teacher import Teacher

if TYPE_CHECKING:
    from forecast.training.ranks import Ranks


@dataclass(frozen=True)
class TrainingJob:
    """A network, its settings, and the data of its training."""

    network: Member
    config: FitConfig
    panel: Panel
    limits: IntArray
    """[S], steps of each series for training."""
    validation: WindowIndex
    budget: Budget
    teacher: Teacher | None = None
    ranks: "Ranks | None" = None
    """The processes that train together, if a launcher has started several."""

    @property
    def n_processes(self) -> int:
        """Number of processes, each of which takes `batch_size` windows in a step."""
        return self.ranks.size if self.ranks else self.config.devices


def train(
    job: TrainingJob, data: PanelTensors, keeper: BestWeights, checkpoint: Checkpoint | None, *, rank: int = 0
) -> dict[str, float]:
    """Train the network in place, while `keeper` keeps its best weights; return the figures of `GpuStats`.

    A training with a `checkpoint` resumes from its state, if there is one, and writes it.
    """
    from forecast.training.lightning_loop import run

    return run(job, data, keeper, checkpoint, rank=rank)
