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


class SyncClock(Callback):
    """Lets all processes read the clock of the first: rates and the end of the budget must be the same."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Read the clock for this step."""
        assert isinstance(pl_module, ForecastModule)
        elapsed = torch.tensor([pl_module.budget.now()], device=pl_module.device)
        torch.distributed.broadcast(elapsed, 0)
        pl_module.budget.hold(float(elapsed))


class GpuStats(Callback):
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
