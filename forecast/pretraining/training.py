"""The training loop of pretraining: resumable, with a learning rate schedule that can be prolonged."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from forecast.models.runtime.state_file import read_state, write_state
from forecast.models.universal.network import Shape, UniversalNetwork
from forecast.pretraining.batches import Pool
from forecast.pretraining.loss import pinball

STATE, STABLE = "state.safetensors", "stable.safetensors"
"""Files of a run: its state at the latest step, and at the last step before the learning rate decays."""


class Schedule(NamedTuple):
    """Settings of a training."""

    steps: int
    learning_rate: float = 2e-3
    warmup: int = 300
    decay: float = 0.2
    """Share of the steps, at the end, over which the learning rate decays to 0."""
    weight_decay: float = 0.01
    clip: float = 1.0
    averaging: float = 0.999
    batch_size: int = 64
    n_origins: int = 8
    n_steps: int = 20
    seed: int = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warmup, a plateau, then 1 - square root decay to 0."""
        remaining = (self.steps - step) / max(1, self.steps - self.decay_start)
        decay = 1.0 if step < self.decay_start else 1 - (1 - min(1.0, remaining)) ** 0.5
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * decay

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return round(self.steps * (1 - self.decay))


class Progress(NamedTuple):
    """Progress of a run."""

    step: int
    loss: float
    """Mean since the last report."""
    cpu_seconds: float
    """CPU time of this process and of interrupted ones before it."""
    series: int
    """Number of training windows so far."""


class Run:
    """A network in training, with all state that is needed to resume it."""

    def __init__(self, shape: Shape, schedule: Schedule, device: torch.device) -> None:
        torch.manual_seed(schedule.seed)
        self.shape, self.schedule, self.device = shape, schedule, device
        self.network = UniversalNetwork(shape).to(device)
        self.average = copy.deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.step, self.series, self.cpu_seconds = 0, 0, 0.0

    def train(
        self, pool: Pool, folder: Path, report_every: int, report: Callable[[Progress], None]
    ) -> UniversalNetwork:
        """Train up to the last step and return the averaged network; write the state and report periodically."""
        losses: list[float] = []
        start = time.process_time() - self.cpu_seconds
        while self.step < self.schedule.steps:
            if self.step == self.schedule.decay_start:
                self.write(folder / STABLE)
            losses.append(self._learn(pool))
            self.cpu_seconds = time.process_time() - start
            if self.step % report_every == 0 or self.step == self.schedule.steps:
                self.write(folder / STATE)
                report(Progress(self.step, sum(losses) / len(losses), self.cpu_seconds, self.series))
                losses.clear()
        return self.average

    def _learn(self, pool: Pool) -> float:
        schedule = self.schedule
        batch = pool.batch(self.step, schedule.batch_size, schedule.n_origins, schedule.n_steps)
        window = type(batch.window)(*(part.to(self.device) for part in batch.window))
        origins = batch.origins.to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = schedule.rate(self.step)
        loss = pinball(
            self.network(window, origins, batch.ahead.to(self.device)), batch.target.to(self.device), origins
        )
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), schedule.clip)
        self.optimiser.step()
        self.step += 1
        self.series += len(batch.target)
        share = 1 - min(schedule.averaging, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, latest in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(latest, share)
        return loss.item()

    def settings(self) -> dict[str, Any]:
        """Return the settings that must not change for a run to be resumed; the number of steps may grow."""
        schedule = self.schedule._asdict()
        return {**self.shape._asdict(), **{name: value for name, value in schedule.items() if name != "steps"}}

    def write(self, path: Path) -> None:
        """Write the state atomically."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
        state = {
            "step": self.step,
            "series": self.series,
            "cpu_seconds": self.cpu_seconds,
            "decay_start": self.schedule.decay_start,
        }
        write_state(path, tensors, self.settings(), state)

    def resume(self, folder: Path, *, key: str) -> bool:
        """Resume from a folder, and return whether it holds a state.

        A prolonged run resumes from the state before its learning rate decayed. Raises ConfigError, which names the
        setting `key`, if the folder holds a run with other settings.
        """
        if not (folder / STATE).exists():
            return False
        tensors, state = read_state(folder / STATE, self.settings(), key=key, job="pretraining")
        if state["decay_start"] < min(state["step"], self.schedule.decay_start) and (folder / STABLE).exists():
            tensors, state = read_state(folder / STABLE, self.settings(), key=key, job="pretraining")
        self._load(tensors)
        self.step, self.series, self.cpu_seconds = state["step"], state["series"], state["cpu_seconds"]
        return True

    def _load(self, tensors: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "optimiser": {}}
        for name, value in tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = value
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimiser"].items():
            number, moment = name.split(".", 1)
            moments.setdefault(int(number), {})[moment] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
