"""The pretrained member of a model: trained for some steps on the panel, and moved as far as validates better.

Small panels are harmed by more than that: rate and steps are low, weights are interpolated between those that the
network came with and those that it has been trained to (Wortsman et al. 2022, CVPR, "Robust fine-tuning of zero-shot
models"), and without a gain it stays as it came.
"""

import copy
import logging
import math
from dataclasses import dataclass

import pytorch_lightning as lightning

from forecast.config import FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import validation_loss
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.training.budget import Budget
from forecast.training.callbacks import BestWeights
from forecast.training.interpolation import interpolate
from forecast.training.trainer import TrainingJob, train

_LOG = logging.getLogger(__name__)

TIME_SHARE = 0.2
"""Of fit.max_minutes."""
_RATE, _DECAY = 1e-4, 0.98
# How far towards the trained weights is tried, and what must be saved of the loss to go there.
_SHARES, _LEAST_GAIN = (1.0, 0.75, 0.5, 0.25), 0.005
# Windows of validation that are looked at.
_CHECKS = 1024


@dataclass(frozen=True)
class MemberFit:
    """A training of the pretrained member that is to come."""

    panel: Panel
    limits: IntArray
    """[S], steps of each series that targets may come from."""
    config: FitConfig

    def run(
        self, base: UniversalForecaster, data: PanelTensors, validation: WindowIndex
    ) -> tuple[UniversalForecaster, float]:
        """Return the network, and how far it has moved from `base`, a copy of which is trained; 0 for the base."""
        fit, steps = self.config, self.config.init_steps
        minutes = fit.max_minutes and fit.max_minutes * TIME_SHARE
        config = fit.model_copy(
            update={
                "max_steps": steps,
                "max_minutes": minutes,
                "learning_rate": _RATE,
                "ema_decay": _DECAY,
                "validation_every": steps,
                "devices": 1,
            }
        )
        network = copy.deepcopy(base)
        lightning.seed_everything(fit.seed, verbose=False)
        keeper = BestWeights(network, math.inf, 1, None)
        # How good it is decides after the training: a validation of one window on the way is as good as any.
        job = TrainingJob(network, config, self.panel, self.limits, validation[:1], Budget(steps, minutes))
        train(job, data, keeper, None)
        some = validation[:: max(1, len(validation) // _CHECKS)]
        loss = (1 - _LEAST_GAIN) * validation_loss(base.eval(), data, some)
        share = interpolate(network.eval(), base, keeper.best, _SHARES, data, some, loss=loss)
        done = max(step for step, _ in keeper.curve)
        _LOG.info("fit: the pretrained network, after %d steps on the panel, goes %d %% of the way", done, 100 * share)
        return network, share
