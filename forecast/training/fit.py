"""Training: from a panel to an artifact, by the closed form and then a network around it."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from forecast.artifact import Artifact
from forecast.config import DataConfig, FitConfig, ModelConfig, WindowConfig
from forecast.data.panel import Panel
from forecast.errors import ConfigError
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, as_ensemble
from forecast.models.network.losses import held_out_forecasts, validation_loss
from forecast.models.postprocess.copula import coupling_of
from forecast.models.runtime.torch_setup import only_deterministic, prepare
from forecast.pretraining.pretrained_network import PretrainedNetwork
from forecast.training.closed_form import units_of
from forecast.training.final_fit import TIME_SHARE
from forecast.training.member import Hooks, Member, train_member
from forecast.training.member_fit import TIME_SHARE as MEMBER_TIME_SHARE
from forecast.training.member_fit import MemberFit
from forecast.training.ranks import joined
from forecast.training.result import Curve, FitResult, Progress, Summary, Watch
from forecast.training.setup import Setup, facts_of, set_up
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
    `watch` is for one network on one device; it defers the final fit to `FitResult.finish`. With `fit.launcher`, all
    processes of torchrun or Slurm call this function with the same arguments, and each returns the model that they
    train together (`forecast.training.ranks`). Progress is that of rank 0.

    Raises DataError if there are no windows to train on, or model.head does not fit the targets (counts, amounts,
    classes); ConfigError if the accelerator is not there, `fit.checkpoint` holds another training, or processes differ
    in their arguments; EngineError if a process is lost.
    """
    prepare()
    with joined(fit) as ranks:
        if ranks is not None and (watch or teacher):
            raise ConfigError(f"fit.launcher={fit.launcher} is for training only; set fit.launcher=none")
        if ranks is not None:
            ranks.check_alike(facts_of(panel, data=data, window=window, model=model, fit=fit))
        leads = ranks is None or ranks.leads
        setup = set_up(
            panel,
            data=data,
            categories=categories,
            window=window,
            # Rank 0 alone has the pretrained network and the checkpoints.
            model=model if leads else model.model_copy(update={"init": None}),
            fit=fit if leads else fit.model_copy(update={"checkpoint": None}),
            init=init if leads else None,
            teacher=teacher,
            ranks=ranks,
        )
        with only_deterministic(setup.fit.deterministic and setup.training.device.type == "cuda"):
            if ranks is None:
                return _fit(setup, progress, watch)
            result: FitResult = _fit(setup, progress, watch) if leads else ranks.serve(setup.training)
        if leads:
            ranks.send_result(result)
        return result


def _fit(setup: Setup, progress: Progress | None, watch: Watch | None) -> FitResult:
    watcher = None if watch is None else _Watcher(setup, watch)
    member_fit = setup.member_fit()
    members = _train_members(setup, _hooks(setup, progress, watcher), _minutes(setup.fit, member_fit))
    evaluated = _evaluate(setup, members, member_fit)
    return _result(setup, members, evaluated, watcher)


@dataclass
class _Watcher:
    """Gives the model to `watch` at each validation, and knows whether that has ended the training."""

    setup: Setup
    watch: Watch
    stopped: bool = False

    def __call__(self, network: Forecaster, step: int) -> bool:
        self.stopped = self.watch(self.setup.artifact(copy.deepcopy(network).cpu().eval()), step)
        return self.stopped


class _Evaluated(NamedTuple):
    """The networks of a training before their refit on the validation windows, as an ensemble, and its figures."""

    network: Forecaster
    tensors: PanelTensors
    curve: Curve
    summary: Summary
    pretrained: PretrainedStack


def _hooks(setup: Setup, progress: Progress | None, watcher: _Watcher | None) -> list[Hooks]:
    return [
        Hooks(_member_progress(progress, number, setup.fit.ensemble), watcher, checkpoint)
        for number, checkpoint in enumerate(setup.checkpoints)
    ]


def _train_members(setup: Setup, hooks: Sequence[Hooks], minutes: float | None) -> list[Member]:
    """Return the networks of an ensemble, one for each of `hooks`; those with a `watch` without their final fit.

    `minutes` is the time of each.
    """
    training, model, teacher = setup.training, setup.model, setup.teacher
    lengths = training.split.train_lengths
    units = [teacher.network.shape.unit] if teacher else units_of(training.panel, lengths, model)
    members: list[Member] = []
    for number, member_hooks in enumerate(hooks):
        config = setup.fit.model_copy(update={"max_minutes": minutes, "seed": setup.fit.seed + number})
        member = train_member(training, setup.shape, model, config, units, member_hooks, teacher=teacher)
        units = [member.network.shape.unit]  # Quantiles can only be averaged on one scale.
        members.append(member if member_hooks.watch else member.finished(member_hooks.progress))
    return members


def _evaluate(setup: Setup, members: Sequence[Member], member_fit: MemberFit | None) -> _Evaluated:
    """Return the ensemble with its loss on the validation windows, and the share of the pretrained network there."""
    training, validation = setup.training, setup.training.split.validation
    network = as_ensemble([member.candidate for member in members]).to(training.device)
    tensors = PanelTensors.of(training.panel, network, training.device)
    curve, summary = members[0].curve, members[0].summary
    if len(members) > 1:
        curve, summary = _join_summaries(members, validation_loss(network, tensors, validation))
    pretrained = stack_pretrained(
        None if setup.teacher else setup.init or setup.model.init,
        network,
        tensors,
        validation,
        panel=training.panel,
        limits=training.split.train_lengths,
        model=setup.model,
        member_fit=member_fit,
    )
    return _Evaluated(network, tensors, curve, summary, pretrained)


def _result(setup: Setup, members: Sequence[Member], evaluated: _Evaluated, watcher: _Watcher | None) -> FitResult:
    """Return the model of a training, which removes its checkpoints; with a watcher, the final fit is deferred."""
    split, pretrained = setup.training.split, evaluated.pretrained
    candidate = pretrained.beside(evaluated.network).to(setup.training.device)
    forecasts = pretrained.forecasts or held_out_forecasts(candidate, evaluated.tensors, split.validation)
    coupling = coupling_of(forecasts)
    summary = evaluated.summary | {
        "holdout_windows": split.plan.holdout_windows,
        "validation_steps": split.plan.validation_steps,
        **pretrained.summary(evaluated.summary),
    }
    network = pretrained.beside(as_ensemble([member.network for member in members]))
    artifact, validation_artifact = (
        replace(setup.artifact(forecaster), coupling=coupling) for forecaster in (network, candidate.to("cpu"))
    )
    setup.remove_checkpoints()
    log.info("fit: %s", summary)
    finish = partial(_with_final, artifact, members, setup.training.panel.last_index, pretrained)
    if watcher:
        return FitResult(artifact, validation_artifact, evaluated.curve, summary, watcher.stopped, finish)
    return FitResult(finish(), validation_artifact, evaluated.curve, summary)


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
