"""Training: from a panel to an artifact, by the closed form and then a network around it."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.config import (
    DataConfig,
    FitConfig,
    ModelConfig,
    SourceConfig,
    WindowConfig,
)
from forecast.data.ingest.categories import with_trained_categories
from forecast.data.ingest.classes import with_trained_classes
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Forecaster, as_ensemble
from forecast.models.network.losses import held_out_forecasts, validation_loss
from forecast.models.network.panel_statistics import is_nonnegative
from forecast.models.postprocess.copula import coupling_of
from forecast.models.runtime.torch_setup import only_deterministic, prepare
from forecast.pretraining.pretrained_network import PretrainedNetwork, model_for
from forecast.training.checkpoint import Checkpoint
from forecast.training.checks import check_inputs, check_model, device_of
from forecast.training.closed_form import units_of
from forecast.training.defaults import context_length_of, shape_of, with_size
from forecast.training.final_fit import TIME_SHARE
from forecast.training.member import Hooks, Member, train_member
from forecast.training.member_fit import TIME_SHARE as MEMBER_TIME_SHARE
from forecast.training.member_fit import MemberFit
from forecast.training.result import Curve, FitResult, Progress, Summary, Watch
from forecast.training.split import TrainingData, split_panel
from forecast.training.stacking import PretrainedStack, stack_pretrained
from forecast.training.teacher import Teacher

log = logging.getLogger(__name__)


def fit(
    panel: Panel,
    *,
    data: DataConfig,
    categories: dict[str, tuple[str, ...]],
    window: WindowConfig,
    model: ModelConfig,
    fit: FitConfig,
    progress: Progress | None = None,
    init: PretrainedNetwork | None = None,
    teacher: Teacher | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """Train on the panel up to the held-out windows and return the model with its best averaged weights.

    `categories` are the values of the static, past and known covariates, and of the target, that hold codes, by name.
    The model keeps the values that occur in training steps: a covariate's value that occurs only in held-out steps gets
    the code of the unseen value. Tables for this model are read with its categories (`Artifact.read`, `training_data`).

    The last `fit.holdout_windows` horizons of the panel are not used. Before them, the last `fit.validation_windows`
    horizons of each series stop the training and choose the skip (512 to 4,096 windows, the same at each validation,
    which overlap if the series are few); the closed-form solution is kept if no network validates better. With
    `fit.final`, the model has a second set of weights, fitted on all rows (`Artifact.final`).

    `init` is the pretrained network of a version, in place of the one of the package that `model.init` names. Backtests
    of the new model have no cutoff before the last real value that `init` was trained on (`Artifact.trained_until`).

    With a `teacher`, of the same panel, context and segments, a share of the loss is against its forecasts.
    `watch` is for one network on one device; it defers the final fit to `FitResult.finish`.

    Raises DataError if there are no windows to train on, or model.head does not fit the targets (counts, amounts,
    classes); ConfigError if the accelerator is not there, or `fit.checkpoint` holds another training.
    """
    prepare()
    device = device_of(fit)
    model = model_for(init, model, window.horizon)
    panel, categories = with_trained_classes(panel, categories, data.columns.target, model.head)
    split = split_panel(panel, window.horizon, fit)
    limits, validation, plan = split.train_lengths, split.validation, split.plan
    check_inputs(panel, limits, split.candidates, plan, window)
    if plan.validation_steps < window.horizon and fit.max_steps:
        log.info("fit: no network is trained: of a typical series, no window has all %d targets", window.horizon)
        fit = fit.model_copy(update={"max_steps": 0})
    if teacher is None:  # A teacher reads the same codes.
        panel, categories = with_trained_categories(panel, categories, data, limits)
    groups = {"data": data, "categories": categories, "window": window, "model": model, "init": init}
    checkpoints = _checkpoints(panel, device, fit, **groups, teacher=teacher)
    context = context_length_of(panel, limits, data, window)
    fit, model = with_size(fit, model, window.horizon, limits)
    shape = shape_of(panel, data, categories, window, model, context)
    shape = replace(shape, nonnegative=not shape.n_classes and is_nonnegative(panel, limits))
    check_model(panel, shape, model, fit)
    tunes_pretrained = fit.init_steps and model.init and model.head == "quantile" and not teacher
    member_fit = MemberFit(panel, limits, fit) if tunes_pretrained and plan.validation_steps == window.horizon else None
    trained_until = max(split.trained_until, _seen_until(init, panel, validation))
    stopped = False

    def artifact_of(network: Forecaster) -> Artifact:
        return Artifact(
            network=network,
            data=data,
            window=WindowConfig(context_length=context, horizon=window.horizon),
            model=model,
            categories=categories,
            grid=panel.grid,
            trained_until=trained_until,
        )

    def show(network: Forecaster, step: int) -> bool:
        nonlocal stopped
        stopped = watch is not None and watch(artifact_of(copy.deepcopy(network).cpu().eval()), step)
        return stopped

    hooks = [
        Hooks(_member_progress(progress, number, fit.ensemble), show if watch else None, checkpoint)
        for number, checkpoint in enumerate(checkpoints)
    ]
    with only_deterministic(fit.deterministic and device.type == "cuda"):
        member_config = fit.model_copy(update={"max_minutes": _minutes(fit, member_fit)})
        members = _train_members(TrainingData(panel, device, split), shape, model, member_config, hooks, teacher)
        candidate = as_ensemble([member.candidate for member in members]).to(device)
        data_on_device = PanelTensors.of(panel, candidate, device)
        curve, summary = members[0].curve, members[0].summary
        if len(members) > 1:
            curve, summary = _join_summaries(members, validation_loss(candidate, data_on_device, validation))
        pretrained = stack_pretrained(
            None if teacher else init or model.init,
            candidate,
            data_on_device,
            validation,
            panel=panel,
            limits=limits,
            model=model,
            member_fit=member_fit,
        )
    candidate = pretrained.beside(candidate).to(device)
    coupling = coupling_of(pretrained.forecasts or held_out_forecasts(candidate, data_on_device, validation))
    summary |= {
        "holdout_windows": plan.holdout_windows,
        "validation_steps": plan.validation_steps,
        **pretrained.summary(summary),
    }
    network = pretrained.beside(as_ensemble([member.network for member in members]))
    artifact, validation_artifact = (
        replace(artifact_of(forecaster), coupling=coupling) for forecaster in (network, candidate.to("cpu"))
    )
    _remove(checkpoints)
    log.info("fit: %s", summary)
    finish = partial(_with_final, artifact, members, panel.last_index, pretrained)
    if watch:
        return FitResult(artifact, validation_artifact, curve, summary, stopped, finish)
    return FitResult(finish(), validation_artifact, curve, summary)


def _train_members(
    training: TrainingData,
    shape: NetworkShape,
    model: ModelConfig,
    fit: FitConfig,
    hooks: Sequence[Hooks],
    teacher: Teacher | None,
) -> list[Member]:
    """Return the networks of an ensemble, one for each of `hooks`; those with a `watch` without their final fit."""
    panel, lengths = training.panel, training.split.train_lengths
    units = [teacher.network.shape.unit] if teacher else units_of(panel, lengths, model)
    members: list[Member] = []
    for number, member_hooks in enumerate(hooks):
        config = fit.model_copy(update={"seed": fit.seed + number})
        member = train_member(training, shape, model, config, units, member_hooks, teacher=teacher)
        units = [member.network.shape.unit]  # Quantiles can only be averaged on one scale.
        members.append(member if member_hooks.watch else member.finished(member_hooks.progress))
    return members


def _minutes(fit: FitConfig, member_fit: MemberFit | None) -> float | None:
    """Return the minutes of each network of the panel within `fit.max_minutes`."""
    share = 1 - TIME_SHARE * fit.final - MEMBER_TIME_SHARE * (member_fit is not None)
    return fit.max_minutes and fit.max_minutes / fit.ensemble * share


def _with_final(artifact: Artifact, members: Sequence["Member"], until: int, pretrained: PretrainedStack) -> Artifact:
    """Return the artifact with its members' final weights, if all have them and some are not the evaluated ones."""
    finals = [member.finished(None).final for member in members]
    networks = [network for network in finals if network is not None]
    if len(networks) < len(members) or all(member.network in networks for member in members):
        return artifact
    return artifact.with_final(pretrained.beside(as_ensemble(networks)), until)


def _member_progress(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Return the progress callback of one of several trainings, as a share of all."""
    if progress is None or count == 1:
        return progress
    return lambda share, text: progress((number + share) / count, f"member {number + 1} of {count}, {text}")


def _join_summaries(members: Sequence[Member], loss: float) -> tuple[Curve, Summary]:
    """Return curve and summary of an ensemble: those of the first member, with the sums and losses of all."""
    curve, summary = list(members[0].curve), dict(members[0].summary)
    for number, member in enumerate(members[1:], 2):
        key = f"member_{number:02d}"
        curve += [(step, {f"{key}/{name}": value for name, value in values.items()}) for step, values in member.curve]
        summary |= {f"{key}/{name}": member.summary[name] for name in ("val/loss", "best_step", "steps", "threshold")}
    for name in ("steps", "parameters"):
        summary[name] = sum(int(member.summary[name]) for member in members)
    for name in ("seconds_closed_form", "seconds_training"):
        summary[name] = sum(float(member.summary[name]) for member in members)
    return curve, summary | {"member_01/val/loss": summary["val/loss"], "val/loss": loss}


def _checkpoints(panel: Panel, device: torch.device, fit: FitConfig, **groups: Any) -> list[Checkpoint | None]:
    """Return the checkpoint of each network's training; None without `fit.checkpoint`."""
    if not (fit.checkpoint and fit.max_steps):
        return [None] * fit.ensemble
    settings = _settings(panel, device, fit=fit, **groups)
    names = ["training", *(f"training-{number:02d}" for number in range(2, fit.ensemble + 1))]
    return [Checkpoint(Path(fit.checkpoint), settings, name=name) for name in names]


def _seen_until(init: PretrainedNetwork | None, panel: Panel, validation: WindowIndex) -> int:
    """Return the last step of a panel that a network may have been trained on; warn if validation contains it."""
    if init is None:
        return int(panel.start.min()) - 1
    last = init.last_index(panel)
    first = int((panel.start[validation.series] + validation.cutoff).min()) + 1
    if last >= first:
        stamps = panel.grid.timestamps(np.array([last, first]))
        log.warning(
            "model.init: %s has seen values until %s, and validation begins at %s: if these were of the same series, "
            "its share here is too high",
            init.name,
            *stamps,
        )
    return last


def _remove(checkpoints: Sequence[Checkpoint | None]) -> None:
    for checkpoint in checkpoints:
        if checkpoint is not None:
            checkpoint.remove()


def _settings(panel: Panel, device: torch.device, *, fit: FitConfig, **groups: Any) -> dict[str, Any]:
    """Return all settings that a training depends on, by path: a checkpoint resumes only with the same ones."""
    source = set(SourceConfig.model_fields)
    settings: dict[str, Any] = {"panel": panel.digest(), "device": device.type}
    # The device counts, not the accelerator setting.
    groups["fit"] = fit.model_copy(update={"checkpoint": None, "accelerator": "auto"})
    for group, config in ((group, config) for group, config in groups.items() if config is not None):
        if isinstance(config, Teacher | PretrainedNetwork):
            values = config.digests
        else:
            values = config if isinstance(config, dict) else config.model_dump(mode="json", exclude=source)
        settings |= {f"{group}.{name}": value for name, value in values.items()}
    return settings
