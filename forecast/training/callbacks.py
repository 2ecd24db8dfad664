"""Lightning callbacks: the best weights, one clock for all devices, GPU figures."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from forecast.models.network.ensemble import Forecaster
from forecast.names import TRAIN_LOSS, VAL_LOSS
from forecast.training.lightning_module import ForecastModule


class BestWeights(Callback):
    """Records the curve, keeps the best validated weights, and stops when patience or the budget is spent.

    It also stops when `watch`, which gets the network with averaged weights at each validation, returns True.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: float,
        patience: int,
        progress: Callable[[float, str], None] | None,
        watch: Callable[[Forecaster, int], bool] | None = None,
    ) -> None:
        self.best_loss = loss
        self.best = _copied(network)
        """Weights of the best validation; the initial ones until a validation is better."""
        self.best_step = 0
        self.curve: list[tuple[int, dict[str, float]]] = [(0, {VAL_LOSS: loss})]
        self._patience = patience
        self._waited = 0
        self._progress = progress
        self._watch = watch

    def state(self) -> dict[str, Any]:
        """Return all but the best weights, as JSON."""
        return {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "curve": self.curve,
            "waited": self._waited,
        }

    def restore(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Restore the state of a training that is resumed."""
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
        """Record the training loss, report the progress, and stop at the end of the budget."""
        assert isinstance(pl_module, ForecastModule)
        step = trainer.global_step
        if step % 10 == 0:
            self.curve.append((step, {TRAIN_LOSS: float(trainer.callback_metrics[TRAIN_LOSS])}))
        share = pl_module.budget.spent(step)
        if self._progress and step % 5 == 0:
            self._progress(share, f"step {step}, loss {self.best_loss:.4f}")
        if share >= 1.0:
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare the loss with the best one. The weights are the averaged ones here."""
        assert isinstance(pl_module, ForecastModule)
        loss = pl_module.validation_loss()
        self.curve.append((trainer.global_step, {VAL_LOSS: loss}))
        self._waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self._waited = loss, trainer.global_step, 0
            self.best = _copied(pl_module.network)
        # A `watch` does not change the training: the random numbers stay the same.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            stopped = self._watch is not None and self._watch(pl_module.network, trainer.global_step)
        if stopped or self._waited >= self._patience:
            trainer.should_stop = True


class SyncClock(Callback):
    """Sets the clock of all processes to that of the first: rates and the end of the budget must be the same."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Read the clock for this step."""
        assert isinstance(pl_module, ForecastModule)
        elapsed = torch.tensor([pl_module.budget.now()], device=pl_module.device)
        torch.distributed.broadcast(elapsed, 0)
        pl_module.budget.hold(float(elapsed))


class GpuStats(Callback):
    """Samples the utilisation of the GPU, and records its peak memory."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._device: torch.device | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Reset the figures."""
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
        """Sample the utilisation every 20 steps."""
        if self._device is not None and trainer.global_step % 20 == 0:
            # NVIDIA's Python package may be absent, and a driver may not report it.
            with contextlib.suppress(ImportError, RuntimeError):
                self._shares.append(torch.cuda.utilization(self._device) / 100)

    def values(self) -> dict[str, float]:
        """Return the GPU's mean utilisation, if available, and its peak memory in GiB; nothing on a CPU."""
        if self._device is None:
            return {}
        peak = {"gpu_peak_gib": torch.cuda.max_memory_allocated(self._device) / 2**30}
        return peak | ({"gpu_busy_share": float(np.mean(self._shares))} if self._shares else {})


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in network.state_dict().items()}
