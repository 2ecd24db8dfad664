"""Lightning callbacks: the best weights, the checkpoint, one clock for all devices, GPU figures."""

import contextlib
import signal
import threading

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback

from forecast.training.best_weights import BestWeights
from forecast.training.checkpoint import Checkpoint
from forecast.training.lightning_module import ForecastModule


class KeepBest(Callback):
    """Shows a training to its `BestWeights`."""

    def __init__(self, keeper: BestWeights) -> None:
        self._keeper = keeper

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        """Record the step."""
        assert isinstance(pl_module, ForecastModule)
        self._keeper.on_train_batch_end(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare the weights."""
        assert isinstance(pl_module, ForecastModule)
        self._keeper.on_validation_epoch_end(trainer, pl_module)


class WriteCheckpoint(Callback):
    """Restores a training from its `Checkpoint`, and writes it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore the state."""
        assert isinstance(pl_module, ForecastModule)
        self._checkpoint.on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the state."""
        assert isinstance(pl_module, ForecastModule)
        self._checkpoint.on_validation_end(trainer, pl_module)


class DefaultSignals(Callback):
    """Restores the handler of SIGTERM: Lightning's talks to the other processes, which wait for something else then."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restore the handler."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)


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
