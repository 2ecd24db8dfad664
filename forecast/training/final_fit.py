"""The final fit: what validation has chosen, fitted once more on all rows of a panel.

    | o o o o o o o o o o o o o o | v v v | v v v | - - - | - - - |
      evaluated weights: o, then their line on v as well
      final weights: all of it; the line is solved again, and the network goes on for a few steps

Settings, steps, shares, thresholds and calibration stay as they are.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from forecast.config import FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, sample_origins
from forecast.errors import DataError
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.category_tables import category_rows, share_unseen
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_loss
from forecast.models.postprocess.interval_scale import after_refit
from forecast.models.runtime.torch_setup import seed_generators
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.closed_form import Refit
from forecast.training.means import balance_means, mean_shift_of
from forecast.training.teacher import Teacher
from forecast.training.trainer import TrainingJob, train

_LOG = logging.getLogger(__name__)

# Steps of the network, in those of the best weights, but so many at least; and their rate, in that of the training.
_SHARE, _LEAST_STEPS, _RATE = 0.1, 10, 0.1
_DECAY = 0.98
TIME_SHARE = 0.1
"""Of fit.max_minutes."""
# By how much more the final weights may err on windows of validation, which they have seen: beyond that they diverged.
_MOST_LOSS = 2.0


def settle(
    network: RecurrentForecaster,
    data: PanelTensors,
    refit: Refit,
    usable: IntArray,
    *,
    steps: int,
    count: int,
    rng: np.random.Generator,
) -> None:
    """Solve the line on `count` windows of the first `usable` steps of each series, and move the means to them."""
    windows = sample_origins(usable, horizon=steps, count=count, rng=rng)
    limit = torch.from_numpy(usable).to(data.device)
    refit(windows, limit)
    _move_means(network, data, windows, limit)


def _move_means(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: torch.Tensor) -> None:
    if network.head.estimates_mean:
        balance_means(network, data, windows, limit)
    if not network.shape.n_classes and (network.shape.unit or not network.head.estimates_mean):
        network.mean_shift.fill_(mean_shift_of(network, data, windows, limit))


@dataclass(frozen=True)
class FinalFit:
    """A finished training that can be fitted on all rows."""

    network: RecurrentForecaster
    """That is evaluated; it is changed in place."""
    data: PanelTensors
    panel: Panel
    refit: Refit
    """Of the closed form of this network."""
    validation: WindowIndex
    usable: IntArray
    """[S], the steps of each series that the network has seen."""
    steps: int
    """Targets of a window."""
    count: int
    """Windows that the line is fitted on."""
    best_step: int
    """Of the weights that are kept; 0 for the closed form."""
    config: FitConfig
    teacher: Teacher | None = None

    @property
    def n_steps(self) -> int:
        """Steps that the network goes on for."""
        return max(_LEAST_STEPS, round(_SHARE * self.best_step)) if self.best_step else 0

    def run(self, progress: Callable[[float, str], None] | None = None) -> RecurrentForecaster | None:
        """Return the network on the CPU; None, and say so, if it is far worse on windows that it has seen."""
        network = self.network.to(self.data.device).eval()
        before = validation_loss(network, self.data, self.validation)
        lengths, rng = self.panel.lengths, np.random.default_rng(self.config.seed)
        windows = sample_origins(lengths, horizon=self.steps, count=self.count, rng=rng)
        limit = torch.from_numpy(lengths).to(self.data.device)
        share = self.usable.sum() / lengths.sum()
        network.interval_scale.fill_(after_refit(float(network.interval_scale), share))
        try:
            self.refit(windows, limit)
            if self.n_steps:
                self._go_on(network, progress)
            _move_means(network, self.data, windows, limit)
        except DataError as error:  # A loss that is not finite.
            _LOG.warning("final fit: %s; the evaluated weights are kept for all forecasts", error)
            return None
        loss = validation_loss(network, self.data, self.validation)
        if not loss <= _MOST_LOSS * max(before, 1e-9):
            _LOG.warning(
                "final fit: the loss on %d windows of validation went from %.4g to %.4g with the newest rows; the "
                "evaluated weights are kept for all forecasts",
                len(self.validation),
                before,
                loss,
            )
            return None
        return network.cpu().eval()

    def _go_on(self, network: RecurrentForecaster, progress: Callable[[float, str], None] | None) -> None:
        """Train for a few steps on all windows, around the new line; the averaged weights are taken."""
        minutes = self.config.max_minutes and self.config.max_minutes * TIME_SHARE / (1 - TIME_SHARE)
        config = self.config.model_copy(
            update={
                "max_steps": self.n_steps,
                "learning_rate": self.config.learning_rate * _RATE,
                "ema_decay": min(self.config.ema_decay, _DECAY),
                "validation_every": self.n_steps,
                "devices": 1,
            }
        )
        seed_generators(config.seed)
        keeper = BestWeights(network, math.inf, 1, progress)
        # Nothing is chosen here: a validation of one window is as good as any.
        job = TrainingJob(
            network,
            config,
            self.panel,
            self.panel.lengths,
            self.validation[:1],
            Budget(self.n_steps, minutes),
            self.teacher,
        )
        # Values that no training has drawn have the row of the unseen one, and are to keep it.
        untrained = [
            rows.masked_fill((rows != rows[0]).any(1, keepdim=True), math.nan) for rows in category_rows(network)
        ]
        train(job, self.data, keeper, None)
        network.load_state_dict(keeper.best)
        share_unseen(network, untrained)
        network.eval()
