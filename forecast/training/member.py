"""One member of the ensemble: closed form, training, and what it is compared with."""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.config import FitConfig, ModelConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, overlap
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_loss, window_losses
from forecast.models.postprocess.interval_scale import after_refit
from forecast.training.budget import Budget
from forecast.training.callbacks import BestWeights
from forecast.training.checkpoint import Checkpoint
from forecast.training.closed_form import closed_form
from forecast.training.distributed import train_on_devices
from forecast.training.final_fit import FinalFit, settle
from forecast.training.post_training import enforce_min_gap, scale_intervals, select_soft_threshold
from forecast.training.result import Curve, Progress, Summary
from forecast.training.skip_samples import n_samples
from forecast.training.skips import significantly_better
from forecast.training.teacher import Teacher
from forecast.training.trainer import Job, train

log = logging.getLogger(__name__)
# Least distance of neighbouring quantiles, in units of scale: in the closed-form solution, and where training starts.
_LEAST_GAP = 1e-3


class Member(NamedTuple):
    """One network of a training, on the CPU, and how it came about."""

    network: RecurrentForecaster
    candidate: RecurrentForecaster
    """The network before its line was solved on the validation windows as well."""
    curve: Curve
    summary: Summary
    final_fit: FinalFit | None = None
    """What is to be done yet."""
    final: RecurrentForecaster | None = None
    """The network after its final fit."""

    def finished(self, progress: Progress | None) -> "Member":
        """Return the member after its final fit."""
        if self.final_fit is None:
            return self
        final = self.final_fit.run(progress and (lambda done, text: progress(1.0, f"final fit {done:.0%}, {text}")))
        return self._replace(final_fit=None, final=final)


def train_member(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    fit: FitConfig,
    limits: IntArray,
    usable: IntArray,
    validation: WindowIndex,
    steps: int,
    units: Sequence[float],
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    shown: Callable[[Forecaster, int], bool] | None,
    teacher: Teacher | None,
) -> Member:
    """Return the best network."""
    assert fit.origins is not None
    begun = time.monotonic()
    budget = Budget(fit.max_steps, fit.max_minutes)
    if checkpoint is not None:
        budget.resume(checkpoint.elapsed)
    lightning.seed_everything(fit.seed, verbose=False)
    rng = np.random.default_rng(fit.seed)
    closed = closed_form(panel, device, shape, model, limits, validation, steps, units, rng)
    network, tensors = closed.network.to(device).eval(), closed.tensors
    solved = time.monotonic()
    start = window_losses(network, tensors, validation)
    loss = float(start[:, 0].sum() / start[:, 1].sum().clamp(min=1e-9))
    keeper = BestWeights(network, loss, fit.patience, progress, shown)
    untouched = keeper.best
    found: dict[str, float] = {}
    untrained = network.category_rows()
    if fit.max_steps:
        enforce_min_gap(network)
        job = Job(network, fit, panel, limits, validation, budget, teacher)
        if fit.devices == 1:
            found = train(job, tensors, keeper, checkpoint)
        else:
            found = train_on_devices(job, keeper, checkpoint, progress)
    network.load_state_dict(keeper.best)
    network.eval()
    best_loss = keeper.best_loss
    if keeper.best_step and network.shape.smoothing and not _surely_trained(network, tensors, validation, start[:, :1]):
        log.info("fit: the network's gain on %d windows of validation may be chance: the line is kept", len(validation))
        network.load_state_dict(untouched)
        keeper.best_step, best_loss = 0, loss
    if keeper.best_step and network.share_unseen(untrained):
        best_loss = validation_loss(network, tensors, validation)
    loss_kept = scale_intervals(
        network, tensors, validation, select_soft_threshold(network, tensors, validation, best_loss)
    )
    trained = time.monotonic()
    candidate = copy.deepcopy(network).cpu()
    network.interval_scale.fill_(after_refit(float(network.interval_scale), limits.sum() / usable.sum()))
    # Validation has chosen all there is to choose: its windows, the latest ones, are fitted on as well.
    count = int(closed.choice["skip_samples"])
    settle(network, tensors, closed.refit, usable, steps=steps, count=count, rng=rng)
    evaluated = copy.deepcopy(network).cpu().eval()

    seconds = trained - solved
    n_steps, resumed = max(step for step, _ in keeper.curve), checkpoint.step if checkpoint else 0
    windows_per_second = (n_steps - resumed) * fit.batch_size * fit.devices / max(seconds, 1e-9)
    summary: Summary = {
        "val/loss": loss_kept,
        "threshold": float(evaluated.threshold),
        "interval_scale": float(evaluated.interval_scale),
        "val/loss_closed_form": loss,
        "best_step": keeper.best_step,
        "steps": n_steps,
        **({"resumed_at_step": resumed} if resumed else {}),
        "seconds_closed_form": solved - begun + time.monotonic() - trained,
        "seconds_training": seconds,
        "windows_per_second": windows_per_second,
        "forecasts_per_second": windows_per_second * min(fit.origins, shape.origins(shape.context_length)),
        **found,
        "parameters": sum(p.numel() for p in evaluated.parameters()),
        "validation_windows": len(validation),
        **closed.choice,
    }
    member = Member(evaluated, candidate, keeper.curve, summary)
    if not fit.final:
        return member
    if not keeper.best_step and (usable == panel.lengths).all():
        return member._replace(final=evaluated)
    count, best_step = n_samples(shape), keeper.best_step
    final_fit = FinalFit(
        network, tensors, panel, closed.refit, validation, usable, steps, count, best_step, fit, teacher
    )
    return member._replace(final_fit=final_fit)


def _surely_trained(
    network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, before: Float[Tensor, "window 1"]
) -> bool:
    """Return whether a network is better than its start by more than a standard error, by the losses of windows."""
    after = window_losses(network, data, validation)[:, :1]
    return significantly_better(after, before, before.sum(0), overlap(validation, network.shape.horizon))
