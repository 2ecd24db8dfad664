"""The training loop of Lightning, in this process, in one per device, or in those that a launcher has started."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback, WeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from forecast.config import FitConfig
from forecast.data.windows import OriginSampler
from forecast.models.inputs.batch import PanelTensors
from forecast.models.runtime.torch_setup import quieten_lightning
from forecast.training.best_weights import BestWeights
from forecast.training.callbacks import DefaultSignals, GpuStats, KeepBest, SyncClock, WriteCheckpoint
from forecast.training.checkpoint import Checkpoint
from forecast.training.dataset import TrainingWindows
from forecast.training.lightning_module import ForecastModule
from forecast.training.ranks import Ranks
from forecast.training.trainer import TrainingJob

quieten_lightning()  # after its import, which sets the levels of its loggers


def run(
    job: TrainingJob, data: PanelTensors, keeper: BestWeights, checkpoint: Checkpoint | None, *, rank: int = 0
) -> dict[str, float]:
    """As `trainer.train`."""
    config, network = job.config, job.network
    averaging = WeightAveraging(use_buffers=False, avg_fn=_averaging(config.ema_decay)) if config.ema_decay else None
    if checkpoint is not None:
        checkpoint.attach(keeper, averaging)
        if checkpoint.finished:
            return {}
    meter = GpuStats()
    # The keeper goes first: it must see the averaged weights before they are swapped back.
    callbacks = [
        KeepBest(keeper),
        averaging,
        WriteCheckpoint(checkpoint) if checkpoint is not None else None,
        meter,
        DefaultSignals() if job.ranks else None,
        SyncClock() if job.n_processes > 1 and config.max_minutes else None,
    ]
    span = network.shape.context_length - network.shape.segment_length + 1
    module = ForecastModule(
        network,
        config,
        data=data,
        series_id=job.panel.series_id,
        limits=torch.from_numpy(job.limits).to(data.device),
        validation=job.validation,
        span=span,
        budget=job.budget,
        teacher=job.teacher,
    )
    windows = _windows(job, span, skip=checkpoint.step if checkpoint else 0, rank=rank)
    present = [callback for callback in callbacks if callback is not None]
    trainer = _trainer(config, data.device, present, job.ranks)
    network.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(windows, batch_size=None))
    network.to(data.device)  # Lightning leaves it on the host.
    return meter.values()


def _windows(job: TrainingJob, span: int, *, skip: int, rank: int) -> TrainingWindows:
    """Return the windows of a training from step `skip` on, of `span` origins each."""
    config = job.config
    assert config.origins is not None
    return TrainingWindows(
        OriginSampler(job.limits, span=span),
        batch_size=config.batch_size,
        candidates=np.arange(0, span, job.network.shape.segment_length),
        origins=config.origins,
        seed=config.seed,
        skip=skip,
        rank=rank,
        n_ranks=job.n_processes,
    )


def _trainer(
    config: FitConfig, device: torch.device, callbacks: Sequence[Callback], ranks: Ranks | None
) -> lightning.Trainer:
    # To Lightning, each process of a launcher is a machine with one device.
    devices: int | list[int] = config.devices if ranks is None or device.type == "cpu" else [ranks.device]
    alone = ranks is None and config.devices == 1
    return lightning.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=devices,
        num_nodes=ranks.size if ranks else 1,
        strategy="auto"
        if alone
        else _strategy(device, _LaunchedEnvironment(ranks) if ranks else LightningEnvironment()),
        # One process trains, whatever a scheduler (SLURM, LSF, Kubeflow, MPI, torchrun) has in its environment.
        plugins=[LightningEnvironment()] if alone else None,
        precision=config.precision,
        max_steps=config.max_steps,
        val_check_interval=min(config.validation_every, config.max_steps),
        check_val_every_n_epoch=None,
        gradient_clip_val=config.gradient_clip,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _averaging(decay: float) -> Callable[[Tensor, Tensor, int | Tensor], Tensor]:
    """Return the update of the averaged weights: a mean at first, so that they do not trail behind the start."""

    def update(averaged: Tensor, current: Tensor, count: int | Tensor) -> Tensor:
        return averaged.lerp(current, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


def _strategy(device: torch.device, environment: ClusterEnvironment) -> DDPStrategy:
    backend = "gloo" if device.type == "cpu" else "nccl"
    return DDPStrategy(process_group_backend=backend, cluster_environment=environment)


class _LaunchedEnvironment(ClusterEnvironment):
    """The place of this process among those of a launcher, whose groups exist."""

    creates_processes_externally = True
    main_address = main_port = None  # type: ignore[assignment]  # They have met.

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    @staticmethod
    def detect() -> bool:
        """Return False: it is never found, only given."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self._ranks.size

    def set_world_size(self, size: int) -> None:
        """Leave it as it is."""

    def global_rank(self) -> int:
        """Return the number of this process."""
        return self._ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """Leave it as it is."""

    def local_rank(self) -> int:
        """Return 0, for the one device."""
        return 0

    def node_rank(self) -> int:
        """Return the number of this process."""
        return self._ranks.rank
