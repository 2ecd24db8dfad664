"""The Lightning module: joins network, loss and optimiser, and nothing else."""

import math

import numpy as np
import pytorch_lightning as lightning
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from forecast.config import FitConfig
from forecast.data.windows import WindowIndex
from forecast.errors import DataError, listing
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Member
from forecast.models.network.losses import Indices, held_out_error, output_errors, validation_batches, window_sizes
from forecast.names import TRAIN_LOSS
from forecast.training.budget import Budget
from forecast.training.teacher import Teacher

_WARM_UP = 0.03
_FINAL_RATE = 0.01


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
        self.network.sampled_share = self.network.own_samples * self.budget.spent(self.global_step)
        output = self.network(batch, origins)
        error, weight = output_errors(self.network, batch, origins, output)
        loss = self._mean(error, weight)
        if self._teacher is not None:
            soft_loss = self._mean(*self._teacher.errors(self.network, batch, origins, output, step=self.global_step))
            loss = torch.lerp(loss, soft_loss, self._teacher.weight)
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
        undecayed = [p for p in self.network.parameters() if id(p) not in chosen]
        groups = [
            {"params": decayed, "weight_decay": self._config.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=self._config.learning_rate, fused=True)

        def rate(step: int) -> float:
            spent = self.budget.spent(step)
            cosine = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * spent))
            return min(cosine, (spent + 1e-3) / _WARM_UP)

        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": LambdaLR(optimiser, rate), "interval": "step"}}
