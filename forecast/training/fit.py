"""Training: panel -> artifact. The closed-form solution first, then the network on top of it."""

import copy
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as lightning
import torch
from jaxtyping import Float
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import (
    CLASS_HEADS,
    COUNT_HEADS,
    POSITIVE_HEADS,
    DataConfig,
    FitConfig,
    ModelConfig,
    SourceConfig,
    WindowConfig,
)
from forecast.data.holdout import Holdout, holdout_of
from forecast.data.ingest.categories import with_trained_categories
from forecast.data.ingest.classes import with_trained_classes
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import IntArray, Panel
from forecast.data.time.context import default_context
from forecast.data.windows import WindowIndex, held_out_windows, overlap, usable_lengths
from forecast.errors import ConfigError, DataError, listing
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.markov import MAX_TABLE
from forecast.models.network.ensemble import Forecaster, together
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import held_out_forecasts, validated, window_losses
from forecast.models.network.panel_statistics import is_nonnegative
from forecast.models.postprocess.copula import coupling_of
from forecast.models.postprocess.interval_scale import after_refit, interval_scale_of
from forecast.models.runtime.torch_setup import only_deterministic, prepare
from forecast.pretraining.pretrained_network import PretrainedNetwork, checked
from forecast.training.checkpoint import Checkpoint
from forecast.training.closed_form import closed_form, n_samples, units_of
from forecast.training.final_fit import TIME_SHARE, FinalFit, settle
from forecast.training.lightning_module import Budget, KeepBest, Teacher
from forecast.training.member_fit import TIME_SHARE as MEMBER_TIME_SHARE
from forecast.training.member_fit import MemberFit
from forecast.training.skips import surely_better
from forecast.training.stacking import Stacked, stacked
from forecast.training.trainer import Job, train, train_on_devices

log = logging.getLogger(__name__)

# Windows of validation that are used at most, a sample that is the same at each validation; and at least, if need be
# closer to each other than a horizon.
_CHECKS, _LEAST_CHECKS = 4_096, 512
# Steps forecast from one window in training, for which it has so many origins, between these limits.
_STEPS_OF_WINDOW, _ORIGINS = 1_536, (4, 32)
# Steps to train on from which a network is large, if not told otherwise.
_LARGE_PANEL, _LARGE_HIDDEN_SIZE = 500_000, 128
# Least distance of neighbouring quantiles, in units of scale: in the closed-form solution, and where training starts.
_LEAST_GAP = 1e-3
_LEAST_TRAINED_GAP = 0.03
# Latest seasons whose differences tell the spread of a phase.
_SPREAD_SEASONS = 4
# Changes of the location (the median of quantiles), in units of spread, that may be too small to be worth making; the
# last one keeps the skip's.
_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 1e6)

Progress = Callable[[float, str], None]
"""Told the share of the work done, and a few words."""
Curve = list[tuple[int, dict[str, float]]]
"""(step, {metric: value})."""
Summary = dict[str, float | int | str]


@dataclass(frozen=True, repr=False)
class FitResult:
    """A trained model and how it came about."""

    artifact: Artifact
    validation_artifact: Artifact
    """The model before its line was solved on the validation windows as well: the one that may be judged on these."""
    curve: Curve
    """In the order of training."""
    summary: Summary
    stopped: bool = False
    """Whether `watch` has ended the training."""
    finish: Callable[[], Artifact] | None = None
    """Returns the artifact with its final fit, where a `watch` has put that off."""

    def __repr__(self) -> str:
        loss = f"val/loss {self.summary['val/loss']:.4g}, " if "val/loss" in self.summary else ""
        steps = f"best step {self.summary['best_step']} of {self.summary['steps']}, " if "steps" in self.summary else ""
        return f"FitResult({loss}{steps}{self.artifact!r})"


Watch = Callable[[Artifact, int], bool]
"""Shown the model with its averaged weights at each validation, and the step; True ends the training."""


class HeldOut(NamedTuple):
    """What of a panel is not trained on."""

    trained_until: int
    """Grid index of the last step that training may see."""
    validation: WindowIndex
    """The windows that stop the training and choose the skip."""
    limits: IntArray
    """[S], the first so many steps of each series are trained on."""
    every: WindowIndex
    """All windows that `validation` is taken from."""
    plan: Holdout
    """How many windows are held out, and how many steps of them are looked at."""


def held_out(panel: Panel, horizon: int, fit: FitConfig) -> HeldOut:
    """Return the validation windows of a training, and what lies before them."""
    plan = holdout_of(panel.lengths, horizon, holdout=fit.holdout_windows, validation=fit.validation_windows)
    trained_until = panel.last_index - plan.holdout_windows * horizon
    every, limits = held_out_windows(
        usable_lengths(panel, trained_until),
        horizon=plan.validation_steps,
        n_windows=plan.validation_windows,
        at_least=_LEAST_CHECKS,
    )
    return HeldOut(trained_until, _sampled(every, fit.seed), limits, every, plan)


def training_data(loaded: Loaded, horizon: int, model: ModelConfig, fit: FitConfig) -> Loaded:
    """Return a panel as `fit` trains on it: with the classes, and the categories of covariates, that training sees.

    Raises DataError if head and target do not fit together.
    """
    data = loaded.data
    panel, categories = with_trained_classes(loaded.panel, loaded.categories, data.columns.target, model.head)
    panel, categories = with_trained_categories(panel, categories, data, held_out(panel, horizon, fit).limits)
    return replace(loaded, panel=panel, categories=categories)


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
    The model has those that training sees: a value of a covariate that only held-out steps have gets the code of the
    unseen. What the model is to forecast is read with its own categories (`Artifact.read`, `training_data`).

    The last `fit.holdout_windows` horizons of the panel are not touched. Of the rest, the last `fit.validation_windows`
    horizons of each series stop the training and choose the skip (512 to 4,096 windows, the same each time, that
    overlap where the series are few); the closed-form solution is kept if no network validates better. With
    `fit.final`, the model has other weights besides, fitted on all rows (`Artifact.final`).

    `init` is the pretrained network of a version, in place of the one of the package that `model.init` names. What it
    has seen of real series, no backtest of the new model takes a cutoff before (`Artifact.trained_until`).

    With a `teacher`, of the same panel, context and segments, a part of the loss is against its forecasts.
    `watch` is for one network on one device; the final fit is left to `FitResult.finish` then.

    Raises DataError if nothing is left to train on, or model.head does not fit the targets (counts, amounts, classes);
    ConfigError if the accelerator is not there, or `fit.checkpoint` holds another training.
    """
    prepare()
    device = _device(fit)
    model = checked(init, model, window.horizon)
    panel, categories = with_trained_classes(panel, categories, data.columns.target, model.head)
    trained_until, validation, limits, every, plan = held_out(panel, window.horizon, fit)
    _check(panel, limits, every, plan, window)
    if plan.validation_steps < window.horizon and fit.max_steps:
        log.info("fit: no network is trained: of a typical series, no window has all %d targets", window.horizon)
        fit = fit.model_copy(update={"max_steps": 0})
    if teacher is None:  # Who reads the same codes.
        panel, categories = with_trained_categories(panel, categories, data, limits)
    groups = {
        "data": data,
        "categories": categories,
        "window": window,
        "model": model,
        "init": init,
        "teacher": teacher,
    }
    checkpoints = _checkpoints(panel, device, fit, **groups)
    context = _context(panel, limits, data, window)
    fit, model = _sized(fit, model, window.horizon, limits)
    shape = _shape(panel, data, categories, window, model, context)
    shape = replace(shape, nonnegative=not shape.n_classes and is_nonnegative(panel, limits))
    _check_model(panel, shape, model, fit)
    units = [teacher.network.shape.unit] if teacher else units_of(panel, limits, model)
    begins = fit.init_steps and model.init and model.head == "quantile" and not teacher
    member_fit = MemberFit(panel, limits, fit) if begins and plan.validation_steps == window.horizon else None
    seen_until = max(trained_until, _seen_until(init, panel, validation))
    stopped = False

    def artifact_of(network: Forecaster) -> Artifact:
        return Artifact(
            network=network,
            data=data,
            window=WindowConfig(context_length=context, horizon=window.horizon),
            model=model,
            categories=categories,
            grid=panel.grid,
            trained_until=seen_until,
        )

    def shown(network: Forecaster, step: int) -> bool:
        nonlocal stopped
        stopped = watch is not None and watch(artifact_of(copy.deepcopy(network).cpu().eval()), step)
        return stopped

    members: list[_Member] = []
    with only_deterministic(fit.deterministic and device.type == "cuda"):
        for number, checkpoint in enumerate(checkpoints):
            own = fit.model_copy(update={"seed": fit.seed + number, "max_minutes": _minutes(fit, member_fit)})
            told = _share_of(progress, number, fit.ensemble)
            member = _train(
                panel,
                device,
                shape,
                model,
                own,
                limits,
                usable_lengths(panel, trained_until),
                validation,
                plan.validation_steps,
                units,
                checkpoint,
                told,
                shown if watch else None,
                teacher,
            )
            units = [member.network.shape.unit]  # Quantiles can only be averaged on one scale.
            members.append(member if watch else member.finished(told))
        candidate = together([member.candidate for member in members]).to(device)
        data_on_device = PanelTensors.of(panel, candidate, device)
        curve, summary = members[0].curve, members[0].summary
        if len(members) > 1:
            curve, summary = _joined(members, validated(candidate, data_on_device, validation))
        pretrained = stacked(
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
    network = pretrained.beside(together([member.network for member in members]))
    artifact, validation_artifact = (
        replace(artifact_of(each), coupling=coupling) for each in (network, candidate.to("cpu"))
    )
    _remove(checkpoints)
    log.info("fit: %s", summary)
    finish = partial(_with_final, artifact, members, panel.last_index, pretrained)
    if watch:
        return FitResult(artifact, validation_artifact, curve, summary, stopped, finish)
    return FitResult(finish(), validation_artifact, curve, summary)


def _context(panel: Panel, limits: IntArray, data: DataConfig, window: WindowConfig) -> int:
    """Return the steps that a forecast sees."""
    assert data.season_length is not None
    return window.context_length or default_context(
        panel.grid.frequency,
        data.season_length,
        window.horizon,
        float(np.median(limits[limits > 0])),
        float(np.median(panel.lengths[limits > 0])),
    )


def _minutes(fit: FitConfig, member_fit: MemberFit | None) -> float | None:
    """Return what each network of the panel has of `fit.max_minutes`."""
    rest = 1 - TIME_SHARE * fit.final - MEMBER_TIME_SHARE * (member_fit is not None)
    return fit.max_minutes and fit.max_minutes / fit.ensemble * rest


def _with_final(artifact: Artifact, members: Sequence["_Member"], until: int, pretrained: Stacked) -> Artifact:
    """Return the artifact with the final weights of its members, if all have some and one has others."""
    finals = [member.finished(None).final for member in members]
    networks = [network for network in finals if network is not None]
    if len(networks) < len(members) or all(member.network in networks for member in members):
        return artifact
    return artifact.with_final(pretrained.beside(together(networks)), until)


class _Member(NamedTuple):
    """One network of a training, on the CPU, and how it came about."""

    network: RecurrentForecaster
    candidate: RecurrentForecaster
    """The network before its line was solved on the validation windows as well."""
    curve: Curve
    summary: Summary
    final_fit: FinalFit | None = None
    """What is to be done yet."""
    final: RecurrentForecaster | None = None
    """The network after its final fit."""

    def finished(self, progress: Progress | None) -> "_Member":
        """Return the member after its final fit."""
        if self.final_fit is None:
            return self
        final = self.final_fit.run(progress and (lambda done, text: progress(1.0, f"final fit {done:.0%}, {text}")))
        return self._replace(final_fit=None, final=final)


def _train(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    fit: FitConfig,
    limits: IntArray,
    usable: IntArray,
    validation: WindowIndex,
    steps: int,
    units: Sequence[float],
    checkpoint: Checkpoint | None,
    progress: Progress | None,
    shown: Callable[[Forecaster, int], bool] | None,
    teacher: Teacher | None,
) -> _Member:
    """Return the best network."""
    assert fit.origins is not None
    begun = time.monotonic()
    budget = Budget(fit.max_steps, fit.max_minutes)
    if checkpoint is not None:
        budget.resume(checkpoint.elapsed)
    lightning.seed_everything(fit.seed, verbose=False)
    rng = np.random.default_rng(fit.seed)
    closed = closed_form(panel, device, shape, model, limits, validation, steps, units, rng)
    network, tensors = closed.network.to(device).eval(), closed.tensors
    solved = time.monotonic()
    start = window_losses(network, tensors, validation)
    loss = float(start[:, 0].sum() / start[:, 1].sum().clamp(min=1e-9))
    keeper = KeepBest(network, loss, fit.patience, progress, shown)
    untouched = keeper.best
    found: dict[str, float] = {}
    untrained = network.category_rows()
    if fit.max_steps:
        _widen(network)
        job = Job(network, fit, panel, limits, validation, budget, teacher)
        if fit.devices == 1:
            found = train(job, tensors, keeper, checkpoint)
        else:
            found = train_on_devices(job, keeper, checkpoint, progress)
    network.load_state_dict(keeper.best)
    network.eval()
    best_loss = keeper.best_loss
    if keeper.best_step and network.shape.smoothing and not _surely_trained(network, tensors, validation, start[:, :1]):
        log.info("fit: the network's gain on %d windows of validation may be chance: the line is kept", len(validation))
        network.load_state_dict(untouched)
        keeper.best_step, best_loss = 0, loss
    if keeper.best_step and network.share_unseen(untrained):
        best_loss = validated(network, tensors, validation)
    loss_kept = _scaled(network, tensors, validation, _calm(network, tensors, validation, best_loss))
    trained = time.monotonic()
    candidate = copy.deepcopy(network).cpu()
    network.interval_scale.fill_(after_refit(float(network.interval_scale), limits.sum() / usable.sum()))
    # Validation has chosen all there is to choose: its windows, the latest ones, are fitted on as well.
    count = int(closed.choice["skip_samples"])
    settle(network, tensors, closed.refit, usable, steps=steps, count=count, rng=rng)
    evaluated = copy.deepcopy(network).cpu().eval()

    seconds = trained - solved
    n_steps, resumed = max(step for step, _ in keeper.curve), checkpoint.step if checkpoint else 0
    windows_per_second = (n_steps - resumed) * fit.batch_size * fit.devices / max(seconds, 1e-9)
    summary: Summary = {
        "val/loss": loss_kept,
        "threshold": float(evaluated.threshold),
        "interval_scale": float(evaluated.interval_scale),
        "val/loss_closed_form": loss,
        "best_step": keeper.best_step,
        "steps": n_steps,
        **({"resumed_at_step": resumed} if resumed else {}),
        "seconds_closed_form": solved - begun + time.monotonic() - trained,
        "seconds_training": seconds,
        "windows_per_second": windows_per_second,
        "forecasts_per_second": windows_per_second * min(fit.origins, shape.origins(shape.context_length)),
        **found,
        "parameters": sum(p.numel() for p in evaluated.parameters()),
        "validation_windows": len(validation),
        **closed.choice,
    }
    member = _Member(evaluated, candidate, keeper.curve, summary)
    if not fit.final:
        return member
    if not keeper.best_step and (usable == panel.lengths).all():
        return member._replace(final=evaluated)
    count, best_step = n_samples(shape), keeper.best_step
    final_fit = FinalFit(
        network, tensors, panel, closed.refit, validation, usable, steps, count, best_step, fit, teacher
    )
    return member._replace(final_fit=final_fit)


def _surely_trained(
    network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, before: Float[Tensor, "window 1"]
) -> bool:
    """Return whether a network is better than its start by more than a standard error, by the losses of windows."""
    after = window_losses(network, data, validation)[:, :1]
    return surely_better(after, before, before.sum(0), overlap(validation, network.shape.horizon))


def _share_of(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Return how one of several trainings tells its progress."""
    if progress is None or count == 1:
        return progress
    return lambda done, text: progress((number + done) / count, f"member {number + 1} of {count}, {text}")


def _joined(members: Sequence[_Member], loss: float) -> tuple[Curve, Summary]:
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


def _shape(
    panel: Panel,
    data: DataConfig,
    categories: dict[str, tuple[str, ...]],
    window: WindowConfig,
    model: ModelConfig,
    context: int,
) -> NetworkShape:
    assert data.season_length is not None
    return NetworkShape(
        context_length=context,
        horizon=window.horizon,
        season_length=data.season_length,
        n_past=panel.past.shape[0],
        n_known=panel.known.shape[0],
        n_calendar=panel.calendar.shape[0],
        category_sizes=tuple(len(categories[name]) for name in data.static_covariates if name in categories),
        n_static_numbers=panel.static_numbers.shape[1],
        segment_length=_segment_length(model, panel, context),
        past_categories=_category_sizes(data.past_covariates, categories, len(panel.past)),
        known_categories=_category_sizes(data.known_covariates, categories, len(panel.known)),
        n_classes=len(categories.get(data.columns.target, ())),
        spread_seasons=_SPREAD_SEASONS,
    )


def _check_model(panel: Panel, shape: NetworkShape, model: ModelConfig, fit: FitConfig) -> None:
    """Raise ConfigError or DataError if settings of the model contradict each other, or the panel."""
    if model.decoder == "segment" and shape.segment_length >= shape.horizon:
        raise ConfigError(
            f"model.decoder: segment has nothing to do where one segment ({shape.segment_length} steps) covers "
            f"window.horizon ({shape.horizon}); set a smaller model.segment_length, or model.decoder=direct"
        )
    if fit.ensemble > 1 and model.head not in ("quantile", *CLASS_HEADS):
        raise ConfigError(
            f"fit.ensemble: the mean of several networks is one of quantiles or of probabilities; set "
            f"model.head=quantile (given: {model.head}), or fit.ensemble=1"
        )
    if model.head in POSITIVE_HEADS:
        _check_positive(panel, model)
    if model.skip and shape.n_classes**2 * shape.horizon > MAX_TABLE:
        raise ConfigError(
            f"model.skip: with {shape.n_classes:,} classes and window.horizon={shape.horizon} its tables hold "
            f"{shape.n_classes**2 * shape.horizon:,} numbers, and may hold {MAX_TABLE:,}; lower window.horizon, or set "
            "model.skip=false"
        )


def _category_sizes(columns: tuple[str, ...], categories: dict[str, tuple[str, ...]], n_rows: int) -> tuple[int, ...]:
    """Return how many values each row of a panel's covariates has, 0 for numbers; empty if all are.

    Rows beyond `columns` are derived ones: numbers.
    """
    sizes = [len(categories.get(name, ())) for name in columns]
    return (*sizes, *[0] * (n_rows - len(sizes))) if any(sizes) else ()


def _checkpoints(panel: Panel, device: torch.device, fit: FitConfig, **groups: Any) -> list[Checkpoint | None]:
    """Return where the training of each network is kept; None where none is."""
    if not (fit.checkpoint and fit.max_steps):
        return [None] * fit.ensemble
    settings = _settings(panel, device, fit=fit, **groups)
    names = ["training", *(f"training-{number:02d}" for number in range(2, fit.ensemble + 1))]
    return [Checkpoint(Path(fit.checkpoint), settings, name=name) for name in names]


def _seen_until(init: PretrainedNetwork | None, panel: Panel, validation: WindowIndex) -> int:
    """Return the last step of a panel that a network may have seen, and say so where that is one of validation."""
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
    """Return all that a training depends on, by its path: a training is gone on from with the same only."""
    source = set(SourceConfig.model_fields)
    found: dict[str, Any] = {"panel": panel.digest(), "device": device.type}
    # Which accelerator was asked for is not what counts.
    groups["fit"] = fit.model_copy(update={"checkpoint": None, "accelerator": "auto"})
    for group, config in ((group, config) for group, config in groups.items() if config is not None):
        if isinstance(config, Teacher | PretrainedNetwork):
            values = config.described
        else:
            values = config if isinstance(config, dict) else config.model_dump(mode="json", exclude=source)
        found |= {f"{group}.{name}": value for name, value in values.items()}
    return found


def _device(config: FitConfig) -> torch.device:
    there = torch.cuda.is_available()
    if config.accelerator == "gpu" and not there:
        raise ConfigError("fit.accelerator: gpu asked for, but torch finds none here; set fit.accelerator=cpu or auto")
    device = torch.device("cuda" if there and config.accelerator != "cpu" else "cpu")
    if config.precision == "bf16-mixed" and device.type == "cpu":
        raise ConfigError(
            "fit.precision: bf16-mixed is several times slower than 32-true on a CPU; set fit.precision=32-true"
        )
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(f"fit.devices: {config.devices} asked for, but torch finds {torch.cuda.device_count()} GPUs")
    if config.devices > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "fit.devices: each process of the training imports the script that was run, which must not train again "
            'there; put what it does under `if __name__ == "__main__":`'
        )
    return device


def usual_origins(horizon: int) -> int:
    """Return how many origins each window has in training, when not told."""
    return int(np.clip(_STEPS_OF_WINDOW // horizon, *_ORIGINS))


def _sized(fit: FitConfig, model: ModelConfig, horizon: int, limits: IntArray) -> tuple[FitConfig, ModelConfig]:
    """Return the settings with those that were left open set by the horizon and the size of the panel."""
    if fit.origins is None:
        fit = fit.model_copy(update={"origins": usual_origins(horizon)})
    if "hidden_size" not in model.model_fields_set and limits.sum() >= _LARGE_PANEL:
        model = model.model_copy(update={"hidden_size": _LARGE_HIDDEN_SIZE})
    return fit, model


def _segment_length(model: ModelConfig, panel: Panel, context: int) -> int:
    """Return the steps of a segment: a day for steps below a day, if that divides the context, else one step."""
    if model.segment_length is None:
        frequency = panel.grid.frequency
        day = frequency.season_length if frequency.sub_daily else 1
        return day if context % day == 0 else 1
    if context % model.segment_length:
        raise ConfigError(
            f"model.segment_length: {model.segment_length} does not divide window.context_length ({context})"
        )
    return model.segment_length


def _check(panel: Panel, limits: IntArray, validation: WindowIndex, plan: Holdout, window: WindowConfig) -> None:
    # The closed-form solution is fitted on full horizons, where there are some.
    steps = plan.validation_steps
    full = steps == window.horizon
    if len(validation) and (not full or (limits > steps).any()):
        return
    longest = int(panel.lengths.max())
    needed = (plan.holdout_windows + 2) * steps + 1 if full else 2
    change = "lower window.horizon or fit.holdout_windows" if full else "give more rows"
    raise DataError(
        f"no series is long enough to train and validate on: the longest of {panel.n_series:,} has {longest:,} "
        f"steps, and {plan.holdout_windows} held-out windows, one validation window and one of history need "
        f"{needed:,}; {change}"
    )


def _check_positive(panel: Panel, model: ModelConfig) -> None:
    counts = model.head in COUNT_HEADS
    negative, fractional, names, total = 0, 0, list[str](), 0
    for shard in panel.shards():
        below, between = shard.target < 0, counts & np.isfinite(shard.target) & (shard.target % 1 != 0)
        negative, fractional = negative + int(below.sum()), fractional + int(between.sum())
        total += int(np.isfinite(shard.target).sum())
        bad = np.flatnonzero(below | between)
        names += shard.series_id[np.unique(np.searchsorted(shard.offsets, bad, side="right") - 1)].tolist()
    if names:
        wrong = f"{negative:,} are negative" + (f" and {fractional:,} fractional" if counts else "")
        raise DataError(
            f"model.head={model.head} is for {'counts' if counts else 'values of 0 and more'}, but of {total:,} "
            f"targets {wrong}, in {len(names):,} of {panel.n_series:,} series: {listing(names)}; set "
            f"model.head=quantile, normal or student_t, or give {'whole numbers' if counts else 'none below 0'}"
        )


def _sampled(validation: WindowIndex, seed: int) -> WindowIndex:
    """Return as many of the windows as are used."""
    if len(validation) <= _CHECKS:
        return validation
    log.info("fit: of %d validation windows, %d are used", len(validation), _CHECKS)
    return validation[np.sort(np.random.default_rng(seed).choice(len(validation), _CHECKS, replace=False))]


def _calm(network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, loss: float) -> float:
    """Set the threshold, below which the network leaves the skip's median alone, to the one that validates best.

    Where most steps repeat the last season exactly, many small corrections cost more than they gain. Returns the loss.
    """
    losses = {0.0: loss}
    # Means that are drawn towards those of the line are no means any more.
    for threshold in () if network.head.estimates_mean else _THRESHOLDS:
        network.threshold.fill_(threshold)
        losses[threshold] = validated(network, data, validation)
    best = min(losses, key=losses.__getitem__)
    network.threshold.fill_(best)
    return losses[best]


def _scaled(network: RecurrentForecaster, data: PanelTensors, validation: WindowIndex, loss: float) -> float:
    """Make intervals as wide as they must be on validation; return the loss, which was `loss` before."""
    scale = interval_scale_of(network, data, validation)
    network.interval_scale.fill_(scale)
    return loss if scale == 1 else validated(network, data, validation)


def _widen(network: RecurrentForecaster) -> None:
    """Move quantiles apart that the closed-form solution has on top of each other: they would hardly learn to part."""
    with torch.no_grad():
        network.output_bias.copy_(network.head.widened(network.output_bias, _LEAST_TRAINED_GAP))
