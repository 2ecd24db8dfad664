"""Further training of a trained model, with weights shared by all series of a panel (`finetune.kind=global`)."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings, FitConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Ensemble, Forecaster, Member, as_ensemble, members_of
from forecast.models.network.losses import validation_loss
from forecast.models.runtime.torch_setup import seed_generators
from forecast.names import VAL_LOSS
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.checkpoint import Checkpoint
from forecast.training.defaults import default_origins
from forecast.training.interpolation import interpolate, set_interpolated
from forecast.training.trainer import TrainingJob, train

DEFAULT_STEPS, DEFAULT_RATE = 500, 1e-3
# Validation windows that are used, approximately at most.
_MAX_VALIDATION_WINDOWS = 4096
# Interpolation shares between base and trained weights that are tried, as fractions of `finetune.blend`.
_BLEND_SHARES = (1.0, 0.75, 0.5, 0.25)


def continue_training(
    artifact: Artifact,
    panel: Panel,
    train_lengths: IntArray,
    validation: WindowIndex,
    settings: FinetuneSettings,
    *,
    device: str,
    job_key: dict[str, Any],
    progress: Callable[[float, str], None] | None,
) -> tuple[Forecaster, list[tuple[int, float]]]:
    """Return the network after further training, and for each member the step of its best weights and their share.

    Targets come from the first `train_lengths` steps of each series. Weights are those with the best validation loss,
    interpolated with the base by the share that validates best; without any gain, the base's. `job_key` holds all
    settings and digests that the result depends on.
    """
    config = _config(artifact, settings, device)
    validation = validation[:: max(1, len(validation) // _MAX_VALIDATION_WINDOWS)]
    members, outcomes, checkpoints = [], [], []
    data = PanelTensors.of(panel, artifact.network, device)
    base_members = members_of(artifact.network)
    for seed, base in enumerate(base_members, 1):
        network = copy.deepcopy(base).to(device)

        def report(share_done: float, text: str, seed: int = seed) -> None:
            if progress:
                progress((seed - 1 + share_done) / len(base_members), text)

        checkpoint = None
        if settings.checkpoint:
            name = f"global-{seed:02d}"
            checkpoint = Checkpoint(Path(settings.checkpoint), job_key, name=name, key="finetune.checkpoint")
        seed_generators(seed)
        network.eval()
        keeper = BestWeights(network, validation_loss(network, data, validation), config.patience, report)
        if config.max_steps:
            budget = Budget(config.max_steps, None)
            train(TrainingJob(network, config, panel, train_lengths, validation, budget), data, keeper, checkpoint)
        share = _interpolate(network.eval(), base, keeper, data, validation, settings.blend)
        members.append(network.cpu().eval())
        checkpoints.append(checkpoint)
        outcomes.append((keeper.best_step if share else 0, share))
    for checkpoint in checkpoints:
        if checkpoint is not None:
            checkpoint.remove()
    return as_ensemble(members, _shares(artifact.network)), outcomes


def _config(artifact: Artifact, settings: FinetuneSettings, device: str) -> FitConfig:
    return FitConfig(
        max_steps=DEFAULT_STEPS if settings.steps is None else settings.steps,
        batch_size=settings.batch_size or FitConfig.model_fields["batch_size"].default,
        origins=default_origins(artifact.horizon),
        learning_rate=settings.learning_rates[0] if settings.learning_rates else DEFAULT_RATE,
        ema_decay=0.98,
        validation_every=25,
        accelerator="cpu" if device == "cpu" else "gpu",
    )


def repeat_on_all_rows(
    base: Artifact,
    panel: Panel,
    train_lengths: IntArray,
    validation: WindowIndex,
    settings: FinetuneSettings,
    outcomes: list[tuple[int, float]],
    *,
    device: str,
) -> Forecaster:
    """Return the network after training for the steps and with the shares that `continue_training` has chosen.

    Targets come from the first `train_lengths` steps of each series. Without any gain there, the network itself.
    Nothing is selected here: `validation` only satisfies the interface.
    """
    config = _config(base, settings, device)
    if not any(share for _, share in outcomes):
        return base.network
    data, members = PanelTensors.of(panel, base.network, device), []
    for seed, (base_member, (steps, share)) in enumerate(zip(members_of(base.network), outcomes, strict=True), 1):
        network = copy.deepcopy(base_member).to(device)
        if share:
            seed_generators(seed)
            keeper = BestWeights(network, math.inf, 1, None)
            shorter = config.model_copy(update={"max_steps": steps, "validation_every": steps})
            # The learning rate decays over the steps that were allowed, as in the first training.
            train(
                TrainingJob(network, shorter, panel, train_lengths, validation[:1], Budget(config.max_steps, None)),
                data,
                keeper,
                None,
            )
            set_interpolated(network, base_member, network.state_dict(), share)
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
    """Interpolate the weights between the base's and the best ones, and return the share; 0 for the base."""
    shares = [share * blend for share in _BLEND_SHARES] if keeper.best_step else []
    loss = keeper.curve[0][1][VAL_LOSS]
    return interpolate(network, base, keeper.best, shares, data, validation, loss=loss)
