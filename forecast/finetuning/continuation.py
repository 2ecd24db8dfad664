"""Training that goes on from a trained model, on all series of a panel alike."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings, FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Ensemble, Forecaster, Member, as_ensemble, members_of
from forecast.models.network.losses import validation_loss
from forecast.names import VAL_LOSS
from forecast.training.budget import Budget
from forecast.training.callbacks import BestWeights
from forecast.training.checkpoint import Checkpoint
from forecast.training.defaults import usual_origins
from forecast.training.interpolation import interpolate, place
from forecast.training.trainer import Job, train

STEPS, RATE = 500, 1e-3
# Validation windows that are used, about.
_CHECKS = 4096
# How far from the base towards the trained weights it is gone, of what `finetune.blend` allows.
_SHARES = (1.0, 0.75, 0.5, 0.25)


def continued(
    artifact: Artifact,
    panel: Panel,
    limits: IntArray,
    validation: WindowIndex,
    settings: FinetuneSettings,
    *,
    device: str,
    described: dict[str, Any],
    progress: Callable[[float, str], None] | None,
) -> tuple[Forecaster, list[tuple[int, float]]]:
    """Return the network after more training, and of each member the steps of its best weights and their share.

    Targets come from the first `limits` steps of each series. Weights are those of the best validation, interpolated
    with the base's as validates best; without any gain, the base's. `described` is all that the result depends on.
    """
    config = _config(artifact, settings, device)
    validation = validation[:: max(1, len(validation) // _CHECKS)]
    members, found, checkpoints = [], [], []
    data = PanelTensors.of(panel, artifact.network, device)
    every = members_of(artifact.network)
    for number, base in enumerate(every, 1):
        network = copy.deepcopy(base).to(device)

        def tell(done: float, text: str, number: int = number) -> None:
            if progress:
                progress((number - 1 + done) / len(every), text)

        saved = None
        if settings.checkpoint:
            name = f"global-{number:02d}"
            saved = Checkpoint(Path(settings.checkpoint), described, name=name, key="finetune.checkpoint")
        lightning.seed_everything(number, verbose=False)
        network.eval()
        keeper = BestWeights(network, validation_loss(network, data, validation), config.patience, tell)
        if config.max_steps:
            budget = Budget(config.max_steps, None)
            train(Job(network, config, panel, limits, validation, budget), data, keeper, saved)
        share = _interpolate(network.eval(), base, keeper, data, validation, settings.blend)
        members.append(network.cpu().eval())
        checkpoints.append(saved)
        found.append((keeper.best_step if share else 0, share))
    for saved in checkpoints:
        if saved is not None:
            saved.remove()
    return as_ensemble(members, _shares(artifact.network)), found


def _config(artifact: Artifact, settings: FinetuneSettings, device: str) -> FitConfig:
    return FitConfig(
        max_steps=STEPS if settings.steps is None else settings.steps,
        batch_size=settings.batch_size or FitConfig.model_fields["batch_size"].default,
        origins=usual_origins(artifact.horizon),
        learning_rate=settings.learning_rates[0] if settings.learning_rates else RATE,
        ema_decay=0.98,
        validation_every=25,
        accelerator="cpu" if device == "cpu" else "gpu",
    )


def continued_finally(
    base: Artifact,
    panel: Panel,
    limits: IntArray,
    validation: WindowIndex,
    settings: FinetuneSettings,
    found: list[tuple[int, float]],
    *,
    device: str,
) -> Forecaster:
    """Return the network after as much more training as `continued` has found best, on the first `limits` steps.

    The network itself where that is none. Nothing is chosen, and `validation` is not looked at.
    """
    config = _config(base, settings, device)
    if not any(share for _, share in found):
        return base.network
    data, members = PanelTensors.of(panel, base.network, device), []
    for number, (own, (steps, share)) in enumerate(zip(members_of(base.network), found, strict=True), 1):
        network = copy.deepcopy(own).to(device)
        if share:
            lightning.seed_everything(number, verbose=False)
            keeper = BestWeights(network, math.inf, 1, None)
            part = config.model_copy(update={"max_steps": steps, "validation_every": steps})
            # The rate falls as it did: with the steps that were allowed.
            train(Job(network, part, panel, limits, validation[:1], Budget(config.max_steps, None)), data, keeper, None)
            place(network, own, network.state_dict(), share)
        members.append(network.cpu().eval())
    return as_ensemble(members, _shares(base.network))


def _shares(network: Forecaster) -> tuple[float, ...] | None:
    return network.shares if isinstance(network, Ensemble) else None


def _interpolate(
    network: Member,
    base: Member,
    keeper: BestWeights,
    data: PanelTensors,
    validation: WindowIndex,
    blend: float,
) -> float:
    """Set the weights between the base's and the best ones, and return how far that is; 0 for the base."""
    shares = [share * blend for share in _SHARES] if keeper.best_step else []
    loss = keeper.curve[0][1][VAL_LOSS]
    return interpolate(network, base, keeper.best, shares, data, validation, loss=loss)
