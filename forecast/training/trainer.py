"""The training loop: Lightning's, in this process or in one for each of several devices."""

import copy
import hashlib
import multiprocessing
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException, spawn

from forecast.config import FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import OriginSampler, WindowIndex
from forecast.errors import GatecastError
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Member
from forecast.models.runtime.torch_setup import only_deterministic, prepare
from forecast.training.checkpoint import Checkpoint
from forecast.training.lightning_module import (
    Budget,
    ForecastModule,
    KeepBest,
    Meter,
    OneClock,
    Teacher,
    TrainingWindows,
)


@dataclass(frozen=True)
class Job:
    """What is trained, on what."""

    network: Member
    config: FitConfig
    panel: Panel
    limits: IntArray
    """[S], steps of each series that targets may come from."""
    validation: WindowIndex
    budget: Budget
    teacher: Teacher | None = None


def train(
    job: Job, data: PanelTensors, keeper: KeepBest, checkpoint: Checkpoint | None, *, rank: int = 0
) -> dict[str, float]:
    """Train the network in place, while `keeper` keeps its best weights; return what the GPU says of it.

    Goes on from the state in `checkpoint`, if there is one, and writes it.
    """
    config, network = job.config, job.network
    averaging = WeightAveraging(use_buffers=False, avg_fn=_averaging(config.ema_decay)) if config.ema_decay else None
    if checkpoint is not None:
        checkpoint.attach(keeper, averaging)
        if checkpoint.finished:
            return {}
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
    assert config.origins is not None
    stream = TrainingWindows(
        OriginSampler(job.limits, span=span),
        batch_size=config.batch_size,
        candidates=np.arange(0, span, network.shape.segment_length),
        origins=config.origins,
        seed=config.seed,
        skip=checkpoint.step if checkpoint else 0,
        rank=rank,
        n_ranks=config.devices,
    )
    meter = Meter()
    # The keeper goes first: it must see the averaged weights before they are swapped back.
    callbacks = [
        keeper,
        averaging,
        checkpoint,
        meter,
        OneClock() if config.devices > 1 and config.max_minutes else None,
    ]
    trainer = lightning.Trainer(
        accelerator="cpu" if data.device.type == "cpu" else "gpu",
        devices=config.devices,
        strategy=_strategy(data.device) if config.devices > 1 else "auto",
        # One process trains, whatever a scheduler (SLURM, LSF, Kubeflow, MPI, torchrun) has in its environment.
        plugins=[LightningEnvironment()] if config.devices == 1 else None,
        precision=config.precision,
        max_steps=config.max_steps,
        val_check_interval=min(config.validation_every, config.max_steps),
        check_val_every_n_epoch=None,
        gradient_clip_val=config.gradient_clip,
        callbacks=[callback for callback in callbacks if callback is not None],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    network.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(stream, batch_size=None))
    return meter.values()


def _averaging(decay: float) -> Callable[[Tensor, Tensor, int | Tensor], Tensor]:
    """Return the update of the averaged weights: a mean at first, so that they do not trail behind the start."""

    def update(averaged: Tensor, current: Tensor, count: int | Tensor) -> Tensor:
        return averaged.lerp(current, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))

    return update


# --- several devices


def train_on_devices(
    job: Job, keeper: KeepBest, checkpoint: Checkpoint | None, progress: Callable[[float, str], None] | None
) -> dict[str, float]:
    """As `train`, with a process for each of `devices`, whose gradients are averaged at each step.

    A step of n processes is that of one whose `batch_size` is n times as large: the same windows, the same loss.
    The processes are started here, not by Lightning: its launchers run the script again, which a library call need not
    come from, or fork, which hangs once torch has threads. `keeper` gets the state of the first process's. If this
    process ends, so do they.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The result comes back as the state of the finished training.
        checkpoint = checkpoint or Checkpoint(Path(folder), {})
        job.budget.hold()
        started = _Start(
            job=replace(job, network=copy.deepcopy(job.network).cpu()),
            loss=keeper.best_loss,
            checkpoint=(checkpoint.path, checkpoint.settings),
            threads=max(1, torch.get_num_threads() // job.config.devices),
            port=_free_port(),
            wants_progress=progress is not None,
        )
        told = torch.multiprocessing.get_context("spawn").SimpleQueue()
        processes = spawn(_run, (started, told), nprocs=job.config.devices, join=False)
        try:
            weights, found = _listen(processes, told, progress)
        finally:
            for process in processes.processes:
                process.kill()
                process.join()
        assert len(set(weights)) == 1, "the processes of a training ended with different weights"
        Checkpoint(checkpoint.path.parent, checkpoint.settings, name=checkpoint.path.stem).attach(keeper, None)
    return found


@dataclass(frozen=True)
class _Start:
    """What a process of several is told."""

    job: Job
    loss: float
    checkpoint: tuple[Path, dict[str, Any]]
    threads: int
    port: int
    wants_progress: bool


def _run(rank: int, start: _Start, told: Any) -> None:
    """Train in one of several processes."""
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(start.port),
    }
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()
    torch.set_num_threads(start.threads)
    job = start.job
    cuda = torch.cuda.is_available() and job.config.accelerator != "cpu"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    lightning.seed_everything(job.config.seed + rank, verbose=False)
    # The processes are handed one network in shared memory.
    job = replace(job, network=copy.deepcopy(job.network).to(device))
    path, settings = start.checkpoint

    def progress(done: float, text: str) -> None:
        told.put(("progress", (done, text)))

    try:
        keeper = KeepBest(
            job.network, start.loss, job.config.patience, progress if start.wants_progress and not rank else None
        )
        checkpoint = Checkpoint(path.parent, settings, name=path.stem, required=True)
        with only_deterministic(job.config.deterministic and cuda):
            data = PanelTensors.of(job.panel, job.network, device)
            found = train(job, data, keeper, checkpoint, rank=rank)
        told.put(("done", (rank, _hash(job.network), found)))
    except GatecastError as error:
        told.put(("error", error))
        raise


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, even by a kill that leaves no time to tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _listen(
    processes: Any, told: Any, progress: Callable[[float, str], None] | None
) -> tuple[list[str], dict[str, float]]:
    """Return the hashes of the weights, and what the first process has found, once all have ended.

    Raises the error that ended one of them.
    """
    weights: list[str] = []
    found: dict[str, float] = {}
    errors: list[GatecastError] = []

    def hear() -> None:
        while not told.empty():
            kind, value = told.get()
            if kind == "progress" and progress:
                progress(*value)
            elif kind == "error":
                errors.append(value)
            elif kind == "done":
                rank, digest, values = value
                weights.append(digest)
                if not rank:
                    found.update(values)

    try:
        while not processes.join(timeout=0.1):
            hear()
    except ProcessException:
        hear()
        if errors:
            raise errors[0] from None
        raise
    hear()
    return weights, found


def _strategy(device: torch.device) -> DDPStrategy:
    return DDPStrategy(
        process_group_backend="gloo" if device.type == "cpu" else "nccl", cluster_environment=LightningEnvironment()
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _hash(network: nn.Module) -> str:
    hasher = hashlib.sha256()
    for values in network.state_dict().values():
        hasher.update(values.detach().cpu().numpy().tobytes())
    return hasher.hexdigest()
