"""The pretrained member of a model: a few steps on the panel, then an interpolation chosen by validation.

More training harms small panels: rate and steps are low, the weights are interpolated between the pretrained and the
trained ones (Wortsman et al. 2022, CVPR, "Robust fine-tuning of zero-shot models"), and without a gain the pretrained
ones are kept.
"""

import copy
import logging
import math
from dataclasses import dataclass

from forecast.config import FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import validation_loss
from forecast.models.runtime.torch_setup import seed_generators
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.interpolation import interpolate
from forecast.training.trainer import TrainingJob, train

_LOG = logging.getLogger(__name__)

TIME_SHARE = 0.2
"""Of fit.max_minutes."""
_RATE, _DECAY = 1e-4, 0.98
# Shares of the trained weights to try, and the share of the loss that they must save.
_SHARES, _LEAST_GAIN = (1.0, 0.75, 0.5, 0.25), 0.005
# Most validation windows.
_CHECKS = 1024


@dataclass(frozen=True)
class MemberFit:
    """The settings of a training of the pretrained member."""

    panel: Panel
    limits: IntArray
    """[S], steps of each series for training."""
    config: FitConfig

    def run(
        self, base: UniversalForecaster, data: PanelTensors, validation: WindowIndex
    ) -> tuple[UniversalForecaster, float]:
        """Return a trained copy of `base`, and the share of the trained weights; 0 for the base."""
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
        seed_generators(fit.seed)
        keeper = BestWeights(network, math.inf, 1, None)
        # The weights are compared after the training: a validation of one window during it is enough.
        job = TrainingJob(network, config, self.panel, self.limits, validation[:1], Budget(steps, minutes))
        train(job, data, keeper, None)
        checks = validation[:: max(1, len(validation) // _CHECKS)]
        loss = (1 - _LEAST_GAIN) * validation_loss(base.eval(), data, checks)
        share = interpolate(network.eval(), base, keeper.best, _SHARES, data, checks, loss=loss)
        last_step = max(step for step, _ in keeper.curve)
        _LOG.info(
            "fit: the pretrained network, after %d steps on the panel, goes %d %% of the way", last_step, 100 * share
        )
        return network, share
