"""One network of a training: closed form, gradient steps, and the choices of validation."""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from forecast.config import FitConfig, ModelConfig
from forecast.data.windows import WindowIndex, overlap
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.category_tables import category_rows, share_unseen
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_loss, window_losses
from forecast.models.postprocess.interval_scale import after_refit
from forecast.models.runtime.torch_setup import seed_generators
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.checkpoint import Checkpoint
from forecast.training.closed_form import ClosedForm, closed_form
from forecast.training.distributed import train_on_devices, train_on_ranks
from forecast.training.final_fit import FinalFit, settle
from forecast.training.post_training import enforce_min_gap, scale_intervals, select_soft_threshold
from forecast.training.result import Curve, Progress, Summary
from forecast.training.skip_samples import n_samples
from forecast.training.skips import significantly_better
from forecast.training.split import TrainingData
from forecast.training.teacher import Teacher
from forecast.training.trainer import TrainingJob, train

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """One network of a training, on the CPU, with its curve and summary."""

    network: RecurrentForecaster
    candidate: RecurrentForecaster
    """The network before its skip was refitted on the validation windows as well."""
    curve: Curve
    summary: Summary
    final_fit: FinalFit | None = None
    """The pending final fit."""
    final: RecurrentForecaster | None = None
    """The network after its final fit."""

    def finished(self, progress: Progress | None) -> "Member":
        """Return the member after its final fit."""
        if self.final_fit is None:
            return self
        final = self.final_fit.run(progress and (lambda share, text: progress(1.0, f"final fit {share:.0%}, {text}")))
        return self._replace(final_fit=None, final=final)


@dataclass(frozen=True)
class Hooks:
    """Callbacks and checkpoint of a training."""

    progress: Progress | None = None
    watch: Callable[[Forecaster, int], bool] | None = None
    """Called at each validation with the averaged network and the step; True ends the training."""
    checkpoint: Checkpoint | None = None


class _Trained(NamedTuple):
    """Results of the gradient steps of a network."""

    keeper: BestWeights
    start_loss: float
    """Validation loss of the closed form."""
    loss: float
    """Validation loss of the network, with its threshold and widths."""
    gpu: dict[str, float]
    """Load and memory of the GPU."""


def train_member(
    training: TrainingData,
    shape: NetworkShape,
    model: ModelConfig,
    fit: FitConfig,
    units: Sequence[float],
    hooks: Hooks,
    *,
    teacher: Teacher | None = None,
) -> Member:
    """Return one trained network: the closed form, gradient steps around it, and thresholds chosen by validation.

    `units` are those of the target scales to choose from.
    """
    started = time.monotonic()
    split = training.split
    budget = Budget(fit.max_steps, fit.max_minutes)
    if hooks.checkpoint is not None:
        budget.resume(hooks.checkpoint.elapsed)
    seed_generators(fit.seed)
    rng = np.random.default_rng(fit.seed)
    closed = closed_form(training, shape, model, units, rng)
    network, tensors = closed.network.to(training.device).eval(), closed.tensors
    solved = time.monotonic()
    job = TrainingJob(
        network, fit, training.panel, split.train_lengths, split.validation, budget, teacher, training.ranks
    )
    trained = _train_network(network, job, tensors, hooks)
    ended = time.monotonic()
    candidate = copy.deepcopy(network).cpu()
    share = split.train_lengths.sum() / split.usable.sum()
    network.interval_scale.fill_(after_refit(float(network.interval_scale), share))
    # All choices of validation are made: its windows, the latest ones, are fitted on as well.
    steps, count = split.plan.validation_steps, int(closed.choice["skip_samples"])
    settle(network, tensors, closed.refit, split.usable, steps=steps, count=count, rng=rng)
    evaluated = copy.deepcopy(network).cpu().eval()

    resumed = hooks.checkpoint.step if hooks.checkpoint else 0
    seconds = {
        "seconds_closed_form": solved - started + time.monotonic() - ended,
        "seconds_training": ended - solved,
    }
    summary = _summary(evaluated, trained, job, seconds, resumed) | {
        "parameters": sum(p.numel() for p in evaluated.parameters()),
        "validation_windows": len(split.validation),
        **closed.choice,
    }
    return _with_final_fit(Member(evaluated, candidate, trained.keeper.curve, summary), training, job, closed, trained)


def _with_final_fit(
    member: Member, training: TrainingData, job: TrainingJob, closed: ClosedForm, trained: _Trained
) -> Member:
    """Return the member with its pending final fit, if `fit.final` asks for one and there are rows left to fit on."""
    split, best_step = training.split, trained.keeper.best_step
    if not job.config.final:
        return member
    if not best_step and (split.usable == training.panel.lengths).all():
        return member._replace(final=member.network)
    final_fit = FinalFit(
        closed.network,
        closed.tensors,
        training.panel,
        closed.refit,
        split.validation,
        split.usable,
        split.plan.validation_steps,
        n_samples(member.network.shape),
        best_step,
        job.config,
        job.teacher,
    )
    return member._replace(final_fit=final_fit)


def _train_network(network: RecurrentForecaster, job: TrainingJob, tensors: PanelTensors, hooks: Hooks) -> _Trained:
    """Train the network in place from its closed form, and choose threshold and widths; keep the better one."""
    validation, fit = job.validation, job.config
    start = window_losses(network, tensors, validation)
    start_loss = float(start[:, 0].sum() / start[:, 1].sum().clamp(min=1e-9))
    keeper = BestWeights(network, start_loss, fit.patience, hooks.progress, hooks.watch)
    start_weights = keeper.best
    gpu: dict[str, float] = {}
    untrained = category_rows(network)
    if fit.max_steps:
        enforce_min_gap(network)
        if job.ranks is not None:
            gpu = train_on_ranks(job, tensors, keeper, hooks.checkpoint)
        elif fit.devices == 1:
            gpu = train(job, tensors, keeper, hooks.checkpoint)
        else:
            gpu = train_on_devices(job, keeper, hooks.checkpoint, hooks.progress)
    network.load_state_dict(keeper.best)
    network.eval()
    loss = keeper.best_loss
    if (
        keeper.best_step
        and network.shape.smoothing
        and not _significantly_trained(network, tensors, validation, start[:, :1])
    ):
        log.info("fit: the network's gain on %d windows of validation may be chance: the line is kept", len(validation))
        network.load_state_dict(start_weights)
        keeper.best_step, loss = 0, start_loss
    if keeper.best_step and share_unseen(network, untrained):
        loss = validation_loss(network, tensors, validation)
    loss = scale_intervals(network, tensors, validation, select_soft_threshold(network, tensors, validation, loss))
    return _Trained(keeper, start_loss, loss, gpu)


def _summary(
    network: RecurrentForecaster, trained: _Trained, job: TrainingJob, seconds: dict[str, float], resumed: int
) -> Summary:
    """Return losses, steps and speed of a training; `resumed` is the step of its checkpoint, 0 without one."""
    fit = job.config
    assert fit.origins is not None
    n_steps = max(step for step, _ in trained.keeper.curve)
    windows_per_second = (n_steps - resumed) * fit.batch_size * job.n_processes / max(seconds["seconds_training"], 1e-9)
    n_origins = min(fit.origins, network.shape.origins(network.shape.context_length))
    return {
        "val/loss": trained.loss,
        "threshold": float(network.threshold),
        "interval_scale": float(network.interval_scale),
        "val/loss_closed_form": trained.start_loss,
        "best_step": trained.keeper.best_step,
        "steps": n_steps,
        **({"resumed_at_step": resumed} if resumed else {}),
        **({"ranks": job.ranks.size} if job.ranks else {}),
        **seconds,
        "windows_per_second": windows_per_second,
        "forecasts_per_second": windows_per_second * n_origins,
        **trained.gpu,
    }


def _significantly_trained(
    network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, start: Float[Tensor, "window 1"]
) -> bool:
    """Return whether the network is better than its start by more than a standard error of the windows' losses."""
    trained = window_losses(network, data, validation)[:, :1]
    return significantly_better(trained, start, start.sum(0), overlap(validation, network.shape.horizon))
