"""The state of a training on disk, to go on from after a kill."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forecast.errors import OutputError
from forecast.models.runtime.state_file import read_state, write_state

if TYPE_CHECKING:
    import pytorch_lightning as lightning
    from pytorch_lightning.callbacks import WeightAveraging

    from forecast.training.best_weights import BestWeights
    from forecast.training.lightning_module import ForecastModule

_LOG = logging.getLogger(__name__)


class Checkpoint:
    """Writes the whole state of a training at each validation, and restores it when the training begins.

    One file: the tensors, and the rest as JSON in its header. It is replaced as a whole, so that a kill leaves the
    state of the last validation or of the one before, never half of one.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        name: str = "training",
        key: str = "fit.checkpoint",
        required: bool = False,
    ) -> None:
        """Read what `folder` holds, if anything.

        A state that can't be written (a full disk) is a warning, and the training goes on; with `required`, which is
        for a training whose result is read from the file, an error.

        Raises ConfigError that names the setting `key` if that is of a training with other `settings`, or can't be
        read.
        """
        self.path = folder / f"{name}.safetensors"
        self.settings = dict(settings)
        self._key, self._required = key, required
        self._tensors: dict[str, Tensor] = {}
        self._state: dict[str, Any] = {}
        self._attached: tuple[BestWeights, WeightAveraging | None] | None = None
        if self.path.exists():
            self._tensors, self._state = read_state(self.path, self.settings, key=key, job="training")

    @property
    def step(self) -> int:
        """Optimiser steps done when the file was written; 0 without one."""
        return int(self._state.get("step", 0))

    @property
    def finished(self) -> bool:
        """Whether the training had come to its end."""
        return bool(self._state.get("finished", False))

    @property
    def elapsed(self) -> float:
        """Seconds of the budget that were spent when the file was written."""
        return float(self._state.get("elapsed", 0.0))

    def attach(self, keeper: "BestWeights", averaging: "WeightAveraging | None") -> None:
        """Name the callbacks whose state belongs to the training, and restore what `keeper` had found."""
        self._attached = keeper, averaging
        if self._state:
            keeper.restore(self._state["keeper"], self._of("best"))

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    def on_train_start(self, trainer: "lightning.Trainer", module: "ForecastModule") -> None:
        """Restore weights, averages, optimiser, schedule, counters and random state."""
        if not self._state:
            return
        assert self._attached is not None
        module.network.load_state_dict(self._of("network"))
        _, averaging = self._attached
        if averaging is not None:
            model, network = _average(averaging)
            network.load_state_dict(self._of("averaged"))
            model.n_averaged.copy_(self._tensors["n_averaged"])
            averaging._latest_update_step = self.step
        (optimiser,), (scheduler,) = trainer.optimizers, trainer.lr_scheduler_configs
        groups = optimiser.state_dict()["param_groups"]
        for group, rate in zip(groups, self._state["rates"], strict=True):
            group["lr"] = rate
        moments: dict[int, dict[str, Tensor]] = {}
        for key, values in self._of("optimiser").items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = values
        optimiser.load_state_dict({"state": moments, "param_groups": groups})
        scheduler.scheduler.load_state_dict(self._state["schedule"])
        # The two counters of Lightning's loop that go on over epochs: steps taken, and batches until a validation.
        loop = trainer.fit_loop.epoch_loop
        loop.automatic_optimization.optim_progress.optimizer.step.total.completed = self.step
        loop.batch_progress.total.ready = self.step
        # Torch breaks on a view that begins elsewhere than its storage.
        torch.set_rng_state(self._tensors["rng"][trainer.global_rank].clone())
        if "rng_cuda" in self._tensors:
            torch.cuda.set_rng_state(self._tensors["rng_cuda"][trainer.global_rank].clone(), module.device)

    def on_validation_end(self, trainer: "lightning.Trainer", module: "ForecastModule") -> None:
        """Write the file. The averaged weights have been swapped back by now."""
        assert self._attached is not None
        keeper, averaging = self._attached
        (optimiser,), (scheduler,) = trainer.optimizers, trainer.lr_scheduler_configs
        tensors = {"rng": _of_all_ranks(module, torch.get_rng_state())}
        if module.device.type == "cuda":
            tensors["rng_cuda"] = _of_all_ranks(module, torch.cuda.get_rng_state(module.device))
        if not trainer.is_global_zero:
            return
        parts = {"network": module.network.state_dict(), "best": keeper.best}
        if averaging is not None:
            model, network = _average(averaging)
            parts["averaged"] = network.state_dict()
            tensors["n_averaged"] = model.n_averaged
        tensors |= {f"{part}/{name}": values for part, state in parts.items() for name, values in state.items()}
        for number, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}.{name}": values for name, values in moments.items()}
        schedule = scheduler.scheduler.state_dict()
        state = {
            "step": trainer.global_step,
            "finished": trainer.should_stop,
            "elapsed": module.budget.elapsed,
            "keeper": keeper.state(),
            "rates": [group["lr"] for group in optimiser.param_groups],
            "schedule": schedule,
        }
        try:
            write_state(self.path, tensors, self.settings, state)
        except OutputError as error:
            if self._required:
                raise
            _LOG.warning(
                "%s: %s; the training goes on, a restart begins at the last state that was written", self._key, error
            )

    def _of(self, part: str) -> dict[str, Tensor]:
        prefix = f"{part}/"
        return {name.removeprefix(prefix): v for name, v in self._tensors.items() if name.startswith(prefix)}


def _average(averaging: "WeightAveraging") -> tuple[Any, nn.Module]:
    """Return Lightning's averaged model, and the network in it."""
    model = averaging._average_model
    assert model is not None
    network = model.module.network
    assert isinstance(network, nn.Module)
    return model, network


def _of_all_ranks(module: "ForecastModule", values: Tensor) -> Tensor:
    """Return the values of each process, [rank, entry], on the host."""
    gathered = module.all_gather(values.to(module.device))
    assert isinstance(gathered, Tensor)
    return gathered.reshape(-1, len(values)).cpu()
