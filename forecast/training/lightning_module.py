"""The Lightning module: joins network, loss and optimiser, and nothing else."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from forecast.config import FitConfig
from forecast.data.windows import OriginSampler, WindowIndex
from forecast.errors import DataError, listing
from forecast.models.heads.quadrature import expectation_levels
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import loss_weights
from forecast.models.network.ensemble import Forecaster, Member
from forecast.models.network.losses import Indices, held_out_error, output_errors, validation_batches, window_sizes
from forecast.models.network.output import Output
from forecast.names import TRAIN_LOSS, VAL_LOSS

_WARM_UP = 0.03
_FINAL_RATE = 0.01


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


@dataclass(frozen=True)
class Teacher:
    """A trained network whose forecasts another one learns, besides what came (Hinton, Vinyals & Dean 2015).

    Both see the same windows on the same scale, in the same segments.
    """

    network: Forecaster
    weight: float
    """Share of the loss that is against its forecasts."""
    digest: str
    """Of the model that it is of."""

    @property
    def described(self) -> dict[str, Any]:
        """What the result of a training depends on."""
        return {"digest": self.digest, "weight": self.weight}

    def errors(
        self, network: Member, batch: Batch, origins: Tensor, output: Output, *, step: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Return the expected loss of a network's output under the teacher's distribution, and the weight of each step.

        The loss is the head's own. The expectation is taken over quantiles of the whole distribution, tails included,
        each with the probability that it stands for (`quadrature`); of heads without levels of their own on another
        grid at each `step` of the training.
        """
        frame, head = output.frame, network.head
        by_level = isinstance(head, QuantileHead)
        levels, masses = (
            values.to(batch.target.device)
            for values in expectation_levels(tuple(head.levels.tolist()) if by_level else (), 0 if by_level else step)
        )
        with torch.no_grad():
            told = self.network.to(batch.target.device)(batch, origins)
            factor, divisor = told.frame.divisor[..., None, None], frame.divisor[..., None, None]
            shift = (told.frame.location - frame.location)[..., None, None]
            quantiles = (told.head.quantiles(told.arguments, levels) * factor + shift) / divisor
            middle = (told.quantiles[..., head.median] * factor[..., 0] + shift[..., 0]) / divisor[..., 0]
        errors = torch.stack([head.errors(output.arguments, target) for target in quantiles.unbind(-1)], dim=-1)
        begun = frame.begun[..., None].expand_as(middle)
        return errors @ masses.to(errors.dtype), loss_weights(middle, begun, frame, network.shape)


class TrainingWindows(IterableDataset[Indices]):
    """An endless stream of batches, as indices: the batch itself is gathered on the device.

    Of several processes, each takes its share of the batch that all of them train on together: process `rank` every
    `n_ranks`th window, from the same origins. The first `skip` batches are drawn and left out: a training that is gone
    on from has seen them.
    """

    def __init__(
        self,
        sampler: OriginSampler,
        *,
        batch_size: int,
        candidates: np.ndarray,
        origins: int,
        seed: int,
        skip: int = 0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self._sampler = sampler
        self._batch_size = batch_size * n_ranks
        self._share = slice(rank, None, n_ranks)
        self._candidates = candidates
        self._origins = min(origins, len(candidates))
        self._seed = seed
        self._skip = skip

    def __iter__(self) -> Iterator[Indices]:
        rng = np.random.default_rng(self._seed)
        for number in itertools.count():
            drawn = self._sampler.draw(self._batch_size, rng)[self._share]
            origins = np.sort(rng.choice(self._candidates, self._origins, replace=False))
            if number < self._skip:
                continue
            yield torch.from_numpy(drawn.series), torch.from_numpy(drawn.cutoff), torch.from_numpy(origins)


class ForecastModule(lightning.LightningModule):
    """Trains a network on windows of one panel that lies on its device."""

    def __init__(
        self,
        network: Member,
        config: FitConfig,
        *,
        data: PanelTensors,
        series_id: np.ndarray,
        limits: Tensor,
        validation: WindowIndex,
        span: int,
        budget: Budget,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        assert data.unit == network.shape.unit, "the panel is on another scale than the network"
        self.network = network
        self.budget = budget
        self._config = config
        self._data = data
        self._series_id = series_id
        self._limits = limits
        self._validation = validation
        self._span = span
        self._teacher = teacher
        self._validation_loss = [0.0, 0.0]

    def training_step(self, indices: Indices, batch_idx: int) -> Tensor:
        """Return the loss at the sampled origins of a batch of windows."""
        series, first, origins = indices
        batch = self._data.gather(series, first, self._limits[series], **window_sizes(self.network, self._span))
        self.network.own_share = self.network.own_samples * self.budget.spent(self.global_step)
        output = self.network(batch, origins)
        error, weight = output_errors(self.network, batch, origins, output)
        loss = self._mean(error, weight)
        if self._teacher is not None:
            told = self._mean(*self._teacher.errors(self.network, batch, origins, output, step=self.global_step))
            loss = torch.lerp(loss, told, self._teacher.weight)
        if not torch.isfinite(loss):
            bad = ~torch.isfinite((error * weight).flatten(1).sum(1))
            names = sorted(set(self._series_id[series[bad].cpu().numpy()].tolist()))
            raise DataError(
                f"the loss is not finite at step {self.global_step}, with windows of {len(names)} series: "
                f"{listing(names)}; look at their values, or lower fit.learning_rate"
            )
        self.log(TRAIN_LOSS, loss, sync_dist=self.trainer.world_size > 1)
        return loss

    def _mean(self, error: Tensor, weight: Tensor) -> Tensor:
        """Return the mean loss of a batch.

        In each of several processes, its part of the mean over the batches of all, times their number: so the mean of
        their gradients is the gradient of one process that has all windows.
        """
        mass = weight.detach().sum()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(mass)
            mass = mass / self.trainer.world_size
        return (error * weight).sum() / mass.clamp(min=1e-9)

    def val_dataloader(self) -> DataLoader[Indices]:
        """Return the held-out windows, as indices; each of several processes takes its share."""
        world = self.trainer.world_size
        share = slice(self.global_rank, None, world) if len(self._validation) >= world else slice(None)
        return validation_batches(self._validation[share])

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._validation_loss = [0.0, 0.0]

    def validation_step(self, indices: Indices, batch_idx: int) -> None:
        """Add a batch of held-out windows to the validation loss."""
        total, weight = held_out_error(self.network, self._data, indices)
        self._validation_loss[0] += total
        self._validation_loss[1] += weight

    def validation_loss(self) -> float:
        """Return the loss over all windows of the last validation, the same in each of several processes."""
        total, weight = self._validation_loss
        if self.trainer.world_size > 1:
            sums = self.all_gather(torch.tensor([total, weight], dtype=torch.float64, device=self.device))
            assert isinstance(sums, Tensor)
            total, weight = sums.sum(0).tolist()
        return total / max(weight, 1e-9)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine over the budget, no decay on biases and embeddings."""
        decayed = [
            p
            for n, p in self.network.named_parameters()
            if p.ndim > 1 and "embeddings" not in n and "output_bias" not in n
        ]
        chosen = {id(p) for p in decayed}
        others = [p for p in self.network.parameters() if id(p) not in chosen]
        groups = [
            {"params": decayed, "weight_decay": self._config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=self._config.learning_rate, fused=True)

        def rate(step: int) -> float:
            done = self.budget.spent(step)
            cosine = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))
            return min(cosine, (done + 1e-3) / _WARM_UP)

        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": LambdaLR(optimiser, rate), "interval": "step"}}


class KeepBest(Callback):
    """Records the curve, keeps the best validated weights, and stops when patience or the budget is spent.

    Or when `shown`, which sees the averaged weights at each validation, says so.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: float,
        patience: int,
        progress: Callable[[float, str], None] | None,
        shown: Callable[[Forecaster, int], bool] | None = None,
    ) -> None:
        self.best_loss = loss
        self.best = _copied(network)
        """Weights of the best validation; those of the start until one is better."""
        self.best_step = 0
        self.curve: list[tuple[int, dict[str, float]]] = [(0, {VAL_LOSS: loss})]
        self._patience = patience
        self._waited = 0
        self._progress = progress
        self._shown = shown

    def state(self) -> dict[str, Any]:
        """Return all but the best weights, as JSON."""
        return {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "curve": self.curve,
            "waited": self._waited,
        }

    def restore(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Take up the state of the training that is gone on from."""
        self.best_loss, self.best_step, self._waited = state["best_loss"], state["best_step"], state["waited"]
        self.curve = [(step, values) for step, values in state["curve"]]
        self.best = {name: values.to(self.best[name].device) for name, values in best.items()}

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Note the training loss, tell the progress, and stop at the end of the budget."""
        assert isinstance(pl_module, ForecastModule)
        step = trainer.global_step
        if step % 10 == 0:
            self.curve.append((step, {TRAIN_LOSS: float(trainer.callback_metrics[TRAIN_LOSS])}))
        done = pl_module.budget.spent(step)
        if self._progress and step % 5 == 0:
            self._progress(done, f"step {step}, loss {self.best_loss:.4f}")
        if done >= 1.0:
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare with the best so far. The weights are the averaged ones here."""
        assert isinstance(pl_module, ForecastModule)
        loss = pl_module.validation_loss()
        self.curve.append((trainer.global_step, {VAL_LOSS: loss}))
        self._waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self._waited = loss, trainer.global_step, 0
            self.best = _copied(pl_module.network)
        # Who looks on does not change the training: its random numbers stay the same.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            stopped = self._shown is not None and self._shown(pl_module.network, trainer.global_step)
        if stopped or self._waited >= self._patience:
            trainer.should_stop = True


class OneClock(Callback):
    """Lets all processes read the clock of the first: rates and the end of the budget must be the same."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Read the clock for this step."""
        assert isinstance(pl_module, ForecastModule)
        elapsed = torch.tensor([pl_module.budget.now()], device=pl_module.device)
        torch.distributed.broadcast(elapsed, 0)
        pl_module.budget.hold(float(elapsed))


class Meter(Callback):
    """Looks now and then at how busy the GPU is, and notes the most memory that was taken."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._device: torch.device | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin anew."""
        if pl_module.device.type == "cuda":
            self._device = pl_module.device
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Look, every 20 steps."""
        if self._device is not None and trainer.global_step % 20 == 0:
            # NVIDIA's Python package may be absent, and a driver need not tell.
            with contextlib.suppress(ImportError, RuntimeError):
                self._shares.append(torch.cuda.utilization(self._device) / 100)

    def values(self) -> dict[str, float]:
        """Return the GPU's mean busy share, if it tells, and the peak of its memory in GiB; nothing on a CPU."""
        if self._device is None:
            return {}
        peak = {"gpu_peak_gib": torch.cuda.max_memory_allocated(self._device) / 2**30}
        return peak | ({"gpu_busy_share": float(np.mean(self._shares))} if self._shares else {})


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in network.state_dict().items()}
