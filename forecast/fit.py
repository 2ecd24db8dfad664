"""Training: panel -> artifact. The closed-form solution first, then the network on top of it."""

import copy
import itertools
import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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
from forecast.data.categories import with_trained_categories
from forecast.data.classes import with_trained_classes
from forecast.data.context import default_context
from forecast.data.load import Loaded
from forecast.data.panel import FloatArray, IntArray, Panel
from forecast.data.windows import WindowIndex, held_out_windows, overlap, sample_origins, usable_lengths
from forecast.errors import ConfigError, DataError, listing
from forecast.models import log_quantiles
from forecast.models.batch import PanelTensors
from forecast.models.checkpoint import Checkpoint
from forecast.models.copula import rank_correlation
from forecast.models.ensemble import Forecaster, together
from forecast.models.heads import CategoricalHead, SampledHead, empirical_quantiles, mean_distance, pinball
from forecast.models.losses import validated, validation_batches, window_sizes
from forecast.models.markov import MAX_TABLE
from forecast.models.mean_fit import location_shift, widths
from forecast.models.module import Budget, KeepBest, Teacher
from forecast.models.recurrent import Frame, NetworkShape, RecurrentForecaster, loss_weights, targets
from forecast.models.runtime import only_deterministic, prepare
from forecast.models.scaling import FEW
from forecast.models.skip import (
    CONSTANTS,
    PENALTIES,
    Samples,
    Solution,
    eventful,
    line,
    mean_season_solution,
    near,
    robust,
    seasonal_solution,
    solve_ridge,
    spectra,
)
from forecast.models.training import Job, train, train_on_devices
from forecast.models.transform import to_data, unit_of

log = logging.getLogger(__name__)

# Windows that the closed-form solution is fitted on: so many values, between these limits. It is chosen by fits on each
# fourth of them, or such a share that this many are left.
_SKIP_VALUES = 20_000_000
_SKIP_SAMPLES = 40_000, 200_000
_TRIED_SHARE, _LEAST_TRIED = 4, 10_000
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
# Groups of windows that a standard error takes at least, and what means may be moved by.
_LEAST_GROUPS, _SHIFTS = 8, (-0.5, 1.0)
# Entries of a panel's buffer that are looked at together.
_BLOCK = 1 << 20
# With a season of fewer steps there is one seasonal difference of a phase in each; so many of them tell its spread.
_SHORT_SEASON, _FEW_PAIRS = 14, 4
# Errors of one forecast, in units of deviation, that count at most when scales are compared.
_REACH = 20.0
# Parts that a mixture of lines has, and how many of them are moved at once while it is looked for.
_PARTS, _MOVED = 20, (4, 1)
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


def held_out(panel: Panel, horizon: int, fit: FitConfig) -> HeldOut:
    """Return the validation windows of a training, and what lies before them."""
    trained_until = panel.last_index - fit.holdout_windows * horizon
    every, limits = held_out_windows(
        usable_lengths(panel, trained_until), horizon=horizon, n_windows=fit.validation_windows, at_least=_LEAST_CHECKS
    )
    return HeldOut(trained_until, _sampled(every, fit.seed), limits, every)


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
    teacher: Teacher | None = None,
    watch: Watch | None = None,
) -> FitResult:
    """Train on the panel up to the held-out windows and return the model with its best averaged weights.

    `categories` are the values of the static, past and known covariates, and of the target, that hold codes, by name.
    The model has those that training sees: a value of a covariate that only held-out steps have gets the code of the
    unseen. What the model is to forecast is read with its own categories (`Artifact.read`, `training_data`).

    The last `fit.holdout_windows` horizons of the panel are not touched. Of the rest, the last `fit.validation_windows`
    horizons of each series stop the training and choose the skip (512 to 4,096 windows, the same each time, that
    overlap where the series are few); the closed-form solution is kept if no network validates better.

    With a `teacher`, of the same panel, context and segments, a part of the loss is against its forecasts.
    `watch` is for one network on one device.

    Raises DataError if nothing is left to train on, or model.head does not fit the targets (counts, amounts, classes);
    ConfigError if the accelerator is not there, or `fit.checkpoint` holds another training.
    """
    prepare()
    device = _device(fit)
    panel, categories = with_trained_classes(panel, categories, data.columns.target, model.head)
    trained_until, validation, limits, every = held_out(panel, window.horizon, fit)
    _check(panel, limits, every, fit, window)
    if teacher is None:  # Who reads the same codes.
        panel, categories = with_trained_categories(panel, categories, data, limits)
    n_classes = len(categories.get(data.columns.target, ()))
    checkpoints: list[Checkpoint | None] = [None] * fit.ensemble
    if fit.checkpoint and fit.max_steps:
        settings = _settings(
            panel,
            device,
            data=data,
            categories=categories,
            window=window,
            model=model,
            fit=fit,
            teacher=teacher.described if teacher else {},
        )
        names = ["training", *(f"training-{number:02d}" for number in range(2, fit.ensemble + 1))]
        checkpoints = [Checkpoint(Path(fit.checkpoint), settings, name=name) for name in names]
    assert data.season_length is not None
    context = window.context_length or default_context(
        panel.grid.frequency,
        data.season_length,
        window.horizon,
        float(np.median(limits[limits > 0])),
        float(np.median(panel.lengths[limits > 0])),
    )
    fit, model = _sized(fit, model, window.horizon, limits)
    shape = NetworkShape(
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
        n_classes=n_classes,
        spread_seasons=_FEW_PAIRS if data.season_length < _SHORT_SEASON else 1,
    )
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
    if model.skip and n_classes**2 * window.horizon > MAX_TABLE:
        raise ConfigError(
            f"model.skip: with {n_classes:,} classes and window.horizon={window.horizon} its tables hold "
            f"{n_classes**2 * window.horizon:,} numbers, and may hold {MAX_TABLE:,}; lower window.horizon, or set "
            "model.skip=false"
        )

    units = [teacher.network.shape.unit] if teacher else _units(panel, limits, model)
    minutes = fit.max_minutes / fit.ensemble if fit.max_minutes else None
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

    def shown(network: Forecaster, step: int) -> bool:
        nonlocal stopped
        stopped = watch is not None and watch(artifact_of(copy.deepcopy(network).cpu().eval()), step)
        return stopped

    members: list[_Member] = []
    with only_deterministic(fit.deterministic and device.type == "cuda"):
        for number, checkpoint in enumerate(checkpoints):
            own = fit.model_copy(update={"seed": fit.seed + number, "max_minutes": minutes})
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
                units,
                checkpoint,
                told,
                shown if watch else None,
                teacher,
            )
            units = [member.network.shape.unit]  # Quantiles can only be averaged on one scale.
            members.append(member)
    candidate = together([member.candidate for member in members]).to(device)
    data_on_device = PanelTensors.of(panel, candidate, device)
    curve, summary = members[0].curve, members[0].summary
    if len(members) > 1:
        curve, summary = _joined(members, validated(candidate, data_on_device, validation))
    coupling = _coupling(candidate, data_on_device, validation)
    artifact, validation_artifact = (
        replace(artifact_of(network), coupling=coupling)
        for network in (together([member.network for member in members]), candidate.to("cpu"))
    )
    for checkpoint in checkpoints:
        if checkpoint is not None:
            checkpoint.remove()
    log.info("fit: %s", summary)
    return FitResult(artifact, validation_artifact, curve, summary, stopped)


class _Member(NamedTuple):
    """One network of a training, on the CPU, and how it came about."""

    network: RecurrentForecaster
    candidate: RecurrentForecaster
    """The network before its line was solved on the validation windows as well."""
    curve: Curve
    summary: Summary


def _train(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    fit: FitConfig,
    limits: IntArray,
    usable: IntArray,
    validation: WindowIndex,
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
    closed = _closed_form(panel, device, shape, model, limits, validation, units, rng)
    network, tensors = closed.network.to(device).eval(), closed.tensors
    solved = time.monotonic()
    loss = validated(network, tensors, validation)
    keeper = KeepBest(network, loss, fit.patience, progress, shown)
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
    if keeper.best_step and network.share_unseen(untrained):
        best_loss = validated(network, tensors, validation)
    loss_kept = _calm(network, tensors, validation, best_loss)
    trained = time.monotonic()
    candidate = copy.deepcopy(network).cpu()
    # Validation has chosen all there is to choose: its windows, the latest ones, are fitted on as well.
    count = int(closed.choice["skip_samples"])
    drawn = sample_origins(usable, horizon=shape.horizon, count=count, rng=rng)
    limit = torch.from_numpy(usable).to(device)
    closed.refit(drawn, limit)
    if network.head.estimates_mean:
        _balance(network, tensors, drawn, limit)
    if not shape.n_classes and (network.shape.unit or not network.head.estimates_mean):
        network.mean_shift.fill_(_mean_shift(network, tensors, drawn, limit))
    network.to("cpu").eval()

    seconds = trained - solved
    steps = max(step for step, _ in keeper.curve)
    resumed = checkpoint.step if checkpoint else 0
    windows_per_second = (steps - resumed) * fit.batch_size * fit.devices / max(seconds, 1e-9)
    summary: Summary = {
        "val/loss": loss_kept,
        "threshold": float(network.threshold),
        "val/loss_closed_form": loss,
        "best_step": keeper.best_step,
        "steps": steps,
        **({"resumed_at_step": resumed} if resumed else {}),
        "seconds_closed_form": solved - begun + time.monotonic() - trained,
        "seconds_training": seconds,
        "windows_per_second": windows_per_second,
        "forecasts_per_second": windows_per_second * min(fit.origins, shape.origins(shape.context_length)),
        **found,
        "parameters": sum(p.numel() for p in network.parameters()),
        "validation_windows": len(validation),
        **closed.choice,
    }
    return _Member(network, candidate, keeper.curve, summary)


def _share_of(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Return how one of several trainings tells its progress."""
    if progress is None or count == 1:
        return progress
    return lambda done, text: progress((number + done) / count, f"member {number + 1} of {count}, {text}")


def _joined(members: Sequence[_Member], loss: float) -> tuple[Curve, Summary]:
    """Return curve and summary of an ensemble: those of the first member, with the sums and losses of all."""
    curve, summary = list(members[0].curve), dict(members[0].summary)
    for number, (*_, own_curve, own) in enumerate(members[1:], 2):
        member = f"member_{number:02d}"
        curve += [(step, {f"{member}/{name}": value for name, value in values.items()}) for step, values in own_curve]
        summary |= {f"{member}/{name}": own[name] for name in ("val/loss", "best_step", "steps", "threshold")}
    for name in ("steps", "parameters"):
        summary[name] = sum(int(member.summary[name]) for member in members)
    for name in ("seconds_closed_form", "seconds_training"):
        summary[name] = sum(float(member.summary[name]) for member in members)
    return curve, summary | {"member_01/val/loss": summary["val/loss"], "val/loss": loss}


def _category_sizes(columns: tuple[str, ...], categories: dict[str, tuple[str, ...]], n_rows: int) -> tuple[int, ...]:
    """Return how many values each row of a panel's covariates has, 0 for numbers; empty if all are.

    Rows beyond `columns` are derived ones: numbers.
    """
    sizes = [len(categories.get(name, ())) for name in columns]
    return (*sizes, *[0] * (n_rows - len(sizes))) if any(sizes) else ()


def _settings(panel: Panel, device: torch.device, *, fit: FitConfig, **groups: Any) -> dict[str, Any]:
    """Return all that a training depends on, by its path: a training is gone on from with the same only."""
    source = set(SourceConfig.model_fields)
    found: dict[str, Any] = {"panel": panel.digest(), "device": device.type}
    # Which accelerator was asked for is not what counts.
    groups["fit"] = fit.model_copy(update={"checkpoint": None, "accelerator": "auto"})
    for group, config in groups.items():
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


def _check(panel: Panel, limits: IntArray, validation: WindowIndex, fit: FitConfig, window: WindowConfig) -> None:
    # The closed-form solution is fitted on full horizons.
    if not (limits > window.horizon).any() or not len(validation):
        longest = int(panel.lengths.max())
        needed = (fit.holdout_windows + 2) * window.horizon + 1
        raise DataError(
            f"no series is long enough to train and validate on: the longest of {panel.n_series:,} has {longest:,} "
            f"steps, and {fit.holdout_windows} held-out windows, one validation window and one of history need "
            f"{needed:,}; lower window.horizon or fit.holdout_windows"
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


@dataclass(frozen=True, eq=False)
class _Solution:
    """A closed form."""

    errors: Float[Tensor, "sample 2"]
    """Of each window that is checked (`_point_errors`)."""
    network: RecurrentForecaster
    skip: Solution
    fitted: Samples
    checked: Samples
    kind: str
    prior: Solution
    penalty: float | None
    """None where the skip is the prior itself, not fitted at all."""
    constant: bool
    """Whether the skip has one of its own, beside the prior's."""
    share: float = 1.0
    """Of the fitted line in the skip."""
    beside: Solution | None = None
    """The rest of it, if any."""
    sure: bool = True
    """Whether a fitted line was better than all that are not fitted, beyond doubt."""

    @property
    def drifts(self) -> bool:
        """Whether it has a constant around the last value. Around the level a constant is no drift."""
        return self.constant and self.network.shape.anchor == "last"

    @property
    def order(self) -> int:
        """From the simplest on: not fitted at all, around the level, around the last value without and with a drift."""
        if self.penalty is None:
            return 0
        return 1 + (self.network.shape.anchor == "last") + self.drifts

    def residual_quantiles(self, skip: Solution, levels: Tensor) -> Tensor:
        """Return the quantiles of what the line leaves over, in units of spread, [horizon, level].

        Weighted as the loss is, in units of scale: a window that hardly varies says little about the others. Where
        the line is not `sure` they are symmetric: a drift is no more certain than the line that would have had it.
        """
        samples = self.fitted
        weight = samples.spread * samples.weight[:, None] * samples.observed
        rest = (samples.target - line(samples.window, skip)) / samples.spread
        if not self.sure:
            rest, weight = torch.cat([rest, -rest]), weight.repeat(2, 1)
        return empirical_quantiles(rest, weight, levels)


_Refit: TypeAlias = Callable[[WindowIndex, Tensor], None]


class _ClosedForm(NamedTuple):
    network: RecurrentForecaster
    """Untrained."""
    tensors: PanelTensors
    choice: dict[str, str | float]
    """What was chosen."""
    refit: _Refit
    """Fits the skip on other windows, of so many steps of each series, with all that was chosen."""


def _closed_form(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    limits: IntArray,
    validation: WindowIndex,
    units: Sequence[float],
    rng: np.random.Generator,
) -> _ClosedForm:
    """Return the untrained network around the best linear skip.

    `units` are those of the scales to choose from.
    """
    count = int(np.clip(_SKIP_VALUES // shape.context_length, *_SKIP_SAMPLES))
    drawn = sample_origins(limits, horizon=shape.horizon, count=count, rng=rng)
    limit = torch.from_numpy(limits).to(device)
    if shape.n_classes:
        counted = _counted(panel, device, shape, model, drawn, validation, limit)
        _standardise(counted.network, panel, limits)
        return counted
    tried = drawn[:: max(1, min(_TRIED_SHARE, len(drawn) // _LEAST_TRIED))]
    levels = model.head not in POSITIVE_HEADS
    solutions = (
        _solve(
            PanelTensors(panel, device, unit=unit, levels=levels),
            replace(shape, unit=unit),
            model,
            tried,
            validation,
            limit,
        )
        for unit in units
    )
    best = next(solutions)
    for solution in solutions:
        if _better_on_data(solution, best, overlap(validation, shape.horizon)):
            best = solution
    network, unit = best.network, best.network.shape.unit
    tensors = PanelTensors.of(panel, network, device)
    refit: _Refit = _kept if best.penalty is None else partial(_refit, tensors, best)
    if len(tried) < len(drawn):
        refit(drawn, limit)
    level = best.residual_quantiles(network.skip, network.head.start_levels)
    with torch.no_grad():
        network.output_bias.copy_(network.head.parameters_of(level, _LEAST_GAP))
        if network.head.estimates_mean:
            _start_likelihood(network, best.fitted)
    _standardise(network, panel, limits)
    choice: dict[str, str | float] = {
        "transform": f"log, unit {unit:g}" if unit else "none",
        "skip": best.kind,
        "skip_penalty": "prior" if best.penalty is None else f"{best.penalty:g}",
        "skip_constant": int(best.constant),
        "skip_share": 0.0 if best.penalty is None else best.share,
        "skip_samples": len(drawn),
    }
    return _ClosedForm(network, tensors, choice, refit)


def _kept(windows: WindowIndex, limit: Tensor) -> None:
    """Do nothing: what was not fitted need not be fitted again."""


def _start_likelihood(network: RecurrentForecaster, samples: Samples) -> None:
    """Set the start of a head that estimates a mean: sums of means are those of outcomes, and widths the likeliest."""
    samples = samples.every(max(1, len(samples.window) // _CHECKS))
    if not len(samples.window):
        return
    frame = Frame(
        samples.location, samples.divisor, samples.divisor, samples.divisor > 0, samples.window, samples.spread
    )
    linear, bias, head = line(samples.window, network.skip), network.output_bias, network.head
    share = _relative_divisor(samples.series, samples.divisor) * samples.observed
    start = bias.expand(len(linear), -1, -1)
    bias[:, head.location] += location_shift(head, start, linear, frame, samples.target, share)
    if head.n_parameters > 1:
        start, weight = bias.expand(len(linear), -1, -1), samples.weight[:, None] * samples.observed
        bias[:, 1] = widths(head, start, linear, frame, samples.target, weight)


@torch.no_grad()
def _balance(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> None:
    """Shift the means so that over windows of training their sum is that of the outcomes, in the scale of each series.

    A likelihood is rarely at its greatest when training ends, and what keeps means positive bends them. Sampled paths
    are left as they are: their means do not follow from the parameters of one step.
    """
    if network.n_paths > 1 and network.output.weight.any():
        return
    windows = windows[:: max(1, len(windows) // _CHECKS)]
    origins = torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[tuple[Tensor, ...]] = []
    for series, cutoff, _ in validation_batches(windows):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        reading = network.read(batch, origins)
        target, observed = targets(batch, reading.frame, origins, network.shape)
        usable = observed & (reading.frame.scale > 0)[..., None]
        bias = network.output_bias.expand(*target.shape, -1)
        parameters = bias if network.n_paths > 1 else network.numbers(reading)
        frame = reading.frame._replace(window=reading.frame.window[..., :0])
        columns = (values[:, 0] for values in (parameters, reading.linear, target, usable, *frame))
        parts.append((*columns, series))
    if not parts:
        return
    parameters, linear, target, usable, *fields, series = (torch.cat(part) for part in zip(*parts, strict=True))
    frame = Frame(*fields)
    share = _relative_divisor(series, frame.divisor) * usable
    network.output_bias[:, network.head.location] += location_shift(
        network.head, parameters, linear, frame, target, share
    )


@torch.no_grad()
def _mean_shift(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> float:
    """Return what means are moved by (`RecurrentForecaster.mean_shift`).

    A few quantiles do not say how far the tails of skewed targets go, nor does a symmetric distribution; and on a
    logarithmic scale what is not known of level and width raises each mean. Over windows
    of training the sum of means becomes that of the outcomes, each series in units of its intervals. If the sum is z
    standard errors off, 1 - 1 / z^2 of the way is gone, from one standard error on (the positive part of James & Stein
    1961).
    """
    windows = windows[:: max(1, len(windows) // _CHECKS)]
    origins, unit = torch.zeros(1, dtype=torch.long, device=data.device), network.shape.unit
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for series, cutoff, _ in validation_batches(windows):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        usable = (observed & (output.frame.scale > 0)[..., None])[:, 0]
        location, divisor = (values.double() for values in output.frame[:2])
        level = None if batch.level is None else batch.level[:, None, None]
        columns = (output.quantiles, target[..., None], output.mean[..., None])
        quantiles, actual, mean = (
            to_data(location[..., None] + divisor[..., None] * values[:, 0], unit, level) for values in columns
        )
        actual, mean = actual[..., 0], mean[..., 0]
        if unit:
            mean = log_quantiles.mean(quantiles, network.head.levels, unit)
        distance = mean_distance(quantiles, mean, network.head, unit)
        parts.append((((actual - mean) * usable).sum(1), (distance * usable).sum(1), series))
    if not parts:
        return 0.0
    error, width, series = (torch.cat(part) for part in zip(*parts, strict=True))
    total = width.new_zeros(int(series.max()) + 1).index_add(0, series, width)
    reference = total / torch.bincount(series, minlength=len(total)).clamp(min=1)
    error, width = (values / _bounded_scale(reference)[series] for values in (error, width))
    # Windows of a series share their outcomes: so many groups are independent.
    groups = series if len(reference) >= _LEAST_GROUPS else torch.arange(len(series)) * _LEAST_GROUPS // len(series)
    shift = float(error.sum() / width.sum().clamp(min=1e-12))
    rest = error - shift * width
    sums = rest.new_zeros(int(groups.max()) + 1).index_add(0, groups.to(series.device), rest)
    sureness = float(error.sum().abs() / sums.square().sum().sqrt().clamp(min=1e-12))
    return float(np.clip(shift, *_SHIFTS)) * max(0.0, 1 - 1 / max(sureness, 1e-12) ** 2)


def _relative_divisor(series: Tensor, divisor: Tensor) -> Float[Tensor, "window 1"]:
    """Return the divisors in units of those of their series (`_bounded_scale`)."""
    square, n_series = divisor.double().square(), int(series.max()) + 1
    total = square.new_zeros(n_series).index_add(0, series, square)
    reference = (total / torch.bincount(series, minlength=n_series).clamp(min=1)).sqrt()
    return (divisor / _bounded_scale(reference)[series])[:, None]


def _bounded_scale(scale: Float[Tensor, " series"]) -> Float[Tensor, " series"]:
    """Return the scale of each series in a sum over all, at least twice the median of those that have one.

    No large series decides alone. Series of about one size count as they are: of those that differ by chance, the high
    ones would else count less, and the mean be too low.
    """
    least = 2 * scale[scale > 0].median() if (scale > 0).any() else scale.new_ones(())
    return scale.clamp(min=float(least))


def _refit(tensors: PanelTensors, found: _Solution, windows: WindowIndex, limit: Tensor) -> None:
    assert found.penalty is not None
    (samples,) = _samples([found.network], tensors, windows, limit)
    inlying = _inlying(found.network, eventful(samples), torch.zeros_like(found.prior))
    (known,) = spectra(inlying, [found.constant])
    (skip,) = solve_ridge(inlying, found.prior, (found.penalty,), known=known)
    found.network.skip.copy_(skip if found.beside is None else found.beside + found.share * skip)


def _inlying(network: RecurrentForecaster, samples: Samples, prior: Solution) -> Samples:
    """Return the samples that a line is fitted on: for a median with less weight on windows of large errors.

    Of skewed targets those are the high ones: a line that is to be a mean takes all as they are.
    """
    return samples if network.head.estimates_mean else robust(near(samples), prior)


def _counted(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    drawn: WindowIndex,
    validation: WindowIndex,
    limit: Tensor,
) -> _ClosedForm:
    """Return what `_closed_form` does, for classes: what follows what is counted."""
    network = RecurrentForecaster(shape, model).to(device)
    tensors = PanelTensors.of(panel, network, device)
    skip = network.class_skip
    for (samples,), take in (
        (_samples([network], tensors, drawn, limit), skip.fit),
        (_samples([network], tensors, validation, None), skip.choose),
    ):
        take(samples.window, samples.target, samples.observed)
    shares = zip(("latest", "season", "window"), skip.share.tolist(), strict=True)
    choice: dict[str, str | float] = {
        "transform": "none",
        "skip": ", ".join(f"{name} {share:g}" for name, share in shares),
        "skip_samples": len(drawn),
    }

    def refit(windows: WindowIndex, limit: Tensor) -> None:
        (samples,) = _samples([network], tensors, windows, limit)
        skip.fit(samples.window, samples.target, samples.observed)

    return _ClosedForm(network, tensors, choice, refit)


def _units(panel: Panel, limits: IntArray, model: ModelConfig) -> list[float]:
    """Return the units of the scales to try."""
    if model.transform == "none" or model.head in (*POSITIVE_HEADS, *CLASS_HEADS):
        return [0.0]
    unit, positive = unit_of(panel, limits)
    if model.transform == "log":
        return [unit]
    return [0.0, unit] if positive else [0.0]


def _solve(
    tensors: PanelTensors,
    shape: NetworkShape,
    model: ModelConfig,
    drawn: WindowIndex,
    validation: WindowIndex,
    limit: Tensor,
) -> _Solution:
    """Return the best linear skip on one scale, in its network; fitted on windows `drawn`."""
    anchors = ("level", "last") if model.anchor == "auto" else (model.anchor,)
    networks = [RecurrentForecaster(replace(shape, anchor=anchor), model).to(tensors.device) for anchor in anchors]
    cold_scale = _cold_scale(networks[0], tensors, drawn, limit)
    for network in networks:
        network.cold_scale.copy_(cold_scale)
    seen = zip(_samples(networks, tensors, drawn, limit), _samples(networks, tensors, validation, None), strict=True)
    candidates: list[_Solution] = []
    for network, (fitted, checked) in zip(networks, seen, strict=True):
        priors = {"anchor": torch.zeros_like(network.skip)}
        if 1 < shape.season_length <= shape.context_length:
            priors["season"] = seasonal_solution(shape.context_length, shape.horizon, shape.season_length).to(
                network.skip
            )
        fits = model.skip and len(fitted.window) > 0
        _standardise_scales(network, fitted)
        fitted = eventful(fitted)
        inlying = _inlying(network, fitted, priors["anchor"]) if fits else fitted
        # Around the level a constant is no drift.
        known = spectra(inlying, CONSTANTS if network.shape.anchor == "last" else [True]) if fits else []
        for name, prior in priors.items():
            made: list[tuple[Solution, float | None, bool]] = [(prior, None, False)]
            for own in known:
                solutions = solve_ridge(inlying, prior, known=own)
                made += [(found, p, own.constant) for found, p in zip(solutions, PENALTIES, strict=True)]
            kind = f"{network.shape.anchor}/{name}"
            for solution, penalty, constant in made:
                said = line(checked.window, solution)
                errors = _point_errors(checked, said, shape.unit, squares=network.head.estimates_mean)
                given = (network, solution, fitted, checked, kind, prior, penalty, constant)
                candidates.append(_Solution(errors, *given, sure=penalty is not None))
    usual = candidates[0].errors.sum(0).clamp(min=1e-12)
    groups: dict[int, list[_Solution]] = {}
    for found in candidates:
        groups.setdefault(found.order, []).append(found)
    shared = overlap(validation, shape.horizon)
    best, *others = (_least(groups[order], usual) for order in sorted(groups))
    for other in others:
        best = other if _surely_better(other.errors, best.errors, usual, shared) else best
    best = _mixed(best, [found for found in candidates if found.network is best.network], usual, shared)
    best.network.skip.copy_(best.skip)
    return best


def _least(candidates: Sequence[_Solution], usual: Tensor) -> _Solution:
    return min(candidates, key=lambda found: float((found.errors.sum(0) / usual).sum()))


def _mixed(best: _Solution, candidates: Sequence[_Solution], usual: Tensor, shared: float) -> _Solution:
    """Return the best line on the way to the best mixture of a fitted one and those that are not fitted.

    That has the least error of all mixtures whose shares are not negative (stacked regression: Wolpert 1992, Breiman
    1996). If it is z standard errors better than the best line, 1 - 1 / z^2 of the way there is gone, from one standard
    error on (the positive part of James & Stein 1961). `candidates` are those around the best one's anchor.
    """
    fitted = [found for found in candidates if found.penalty is not None and not found.drifts]
    if not fitted:
        return best
    lined = best if best.sure else _least(fitted, usual)
    plain = [found for found in candidates if found.penalty is None]
    skips = [found.skip for found in (lined, *plain)]
    shape, samples = best.network.shape, best.checked
    if shape.season_length * 2 <= shape.context_length:
        sizes = shape.context_length, shape.horizon, shape.season_length
        skips.append(mean_season_solution(*sizes).to(lined.skip))
    every = torch.stack(skips)
    said = torch.stack([line(samples.window, skip) for skip in skips])

    def errors(shares: Tensor) -> Tensor:
        mixture = torch.einsum("l,lsh->sh", shares, said)
        return _point_errors(samples, mixture, shape.unit, squares=best.network.head.estimates_mean)

    start = torch.zeros(len(skips), dtype=every.dtype, device=every.device)
    start[0 if best.sure else 1 + plain.index(best)] = 1.0
    found = _least_mixture(start, lambda shares: float((errors(shares).sum(0) / usual).sum()))
    sureness = _sureness(errors(found), best.errors, usual, shared)
    if sureness <= 1:
        return best
    shares = torch.lerp(start, found, 1 - sureness**-2)
    share = float(shares[0])
    beside = torch.einsum("l,lch->ch", shares[1:], every[1:])
    if not share:
        return replace(best, skip=beside, penalty=None, constant=False, sure=False)
    return replace(lined, skip=beside + share * lined.skip, beside=beside, share=share, sure=best.sure)


def _least_mixture(shares: Tensor, loss: Callable[[Tensor], float]) -> Tensor:
    """Return the shares, from those given on, from which no part can be moved to another without more loss."""
    least = loss(shares)
    for parts in _MOVED:
        moved = True
        while moved:
            moved = False
            for giver, taker in itertools.permutations(range(len(shares)), 2):
                part = min(parts / _PARTS, float(shares[giver]))
                tried = shares.clone()
                tried[giver] -= part
                tried[taker] += part
                if part and (now := loss(tried)) < least:
                    shares, least, moved = tried, now, True
    return shares


def _point_errors(samples: Samples, made: Tensor, unit: float, *, squares: bool = False) -> Float[Tensor, "sample 2"]:
    """Return the absolute error of what is `made` of each window, in units of its deviation, and the relative error.

    Sums over the horizon, in the data's units. No relative errors (0) if some targets are not positive. With `squares`,
    which are least at a mean, the squared error and no relative ones.
    """
    made, actual = (_restored(samples, values, unit) for values in (made, samples.target))
    error = (made - actual).abs() * samples.observed
    # Windows that hardly vary must not decide alone.
    scaled = (error / _deviation(samples, unit)).clamp(max=_REACH)
    if squares:
        return torch.stack([scaled.square().sum(1), torch.zeros_like(scaled[:, 0])], dim=1)
    relative = error / (made.abs() + actual.abs()).clamp(min=1e-12)
    positive = bool((actual > 0)[samples.observed > 0].all())
    return torch.stack([scaled.sum(1), relative.sum(1) * positive], dim=1)


def _restored(samples: Samples, values: Tensor, unit: float) -> Tensor:
    """Return normalised values, [sample, ...], in the data's units, in float64."""
    shape = (-1, *[1] * (values.ndim - 1))
    return to_data(samples.location.view(shape) + samples.divisor.view(shape) * values, unit, samples.level.view(shape))


def _deviation(samples: Samples, unit: float) -> Float[Tensor, "sample 1"]:
    values = _restored(samples, samples.window, unit)
    return (values - values.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)


def _surely_better(errors: Tensor, others: Tensor, usual: Tensor, shared: float) -> bool:
    """Return whether errors are lower than others by more than the standard error (Breiman et al. 1984).

    What is simpler is kept otherwise: of random walks, a fitted line may win on the few windows of validation, and
    lose ever after.
    """
    return _sureness(errors, others, usual, shared) > 1


def _sureness(errors: Tensor, others: Tensor, usual: Tensor, shared: float) -> float:
    """Return by how many standard errors the errors ([window, kind]) are lower than others; less than 0 if higher.

    In units of the usual sum of their kind. A single window has no standard error: the lower one is surely so. Where a
    target is `shared` by several windows, only so many count as are independent.
    """
    gain = ((others - errors) / usual.clamp(min=1e-12)).sum(1)
    doubt = (len(gain) * shared) ** 0.5 * float(gain.std()) if len(gain) > 1 else 0.0
    total = float(gain.sum())
    return total / doubt if doubt else math.inf * total if total else 0.0


def _better_on_data(solution: _Solution, other: _Solution, shared: float) -> bool:
    """Return whether a solution is significantly better than one on another scale, in the units of the data.

    They are compared on the windows that tell something on both scales: a series that hardly varies may be constant on
    one of them.
    """
    common, rows, other_rows = np.intersect1d(
        solution.checked.number.cpu(), other.checked.number.cpu(), return_indices=True
    )
    if not len(common):
        return False
    errors = _errors_of_data(solution)[torch.from_numpy(rows)]
    reference = _errors_of_data(other)[torch.from_numpy(other_rows)]
    return _surely_better(errors, reference, reference.sum(0), shared)


def _errors_of_data(found: _Solution) -> Float[Tensor, "sample 2"]:
    """Return, of each window, the pinball loss in units of its deviation, and the relative error of the median.

    In the data's units, to compare scales.
    """
    samples, unit, skip = found.checked, found.network.shape.unit, found.skip
    levels = torch.arange(1, 10, device=skip.device, dtype=skip.dtype) / 10
    around = found.residual_quantiles(skip, levels)
    quantiles = line(samples.window, skip)[..., None] + samples.spread[..., None] * around
    actual = _restored(samples, samples.target, unit)
    loss = pinball(_restored(samples, quantiles, unit), actual, levels.double()) / _deviation(samples, unit)
    relative = _point_errors(samples, line(samples.window, skip), unit)[:, 1]
    return torch.stack([(loss.clamp(max=_REACH) * samples.observed).sum(1), relative], 1)


def _cold_scale(
    network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor
) -> Float[Tensor, " 2"]:
    """Return the scale of the panel: relative to the level of a series, and at least (`scaling.cold_start_scale`).

    It is relative where the scales of series differ less in shares of their levels than as they are. Seen are windows
    with enough observations for a scale of their own, or all that vary where none has.
    """
    parts = []
    for series, cutoff, _ in validation_batches(windows[:: max(1, len(windows) // _CHECKS)], 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        statistics = network.statistics(batch, network.shape.context_length)
        parts.append(torch.stack([statistics.level, statistics.scale, statistics.n_observed])[:, :, -1])
    level, scale, count = torch.cat(parts, dim=1) if parts else torch.zeros(3, 0)
    varied = scale > 0
    enough = varied & (count >= min(FEW, network.shape.scale_length))
    level, scale = (values[enough if enough.any() else varied] for values in (level.abs(), scale))
    if not len(scale):
        return torch.zeros(2)
    if network.shape.unit or not (level > 0).all() or (scale / level).log().std() >= scale.log().std():
        return torch.stack([torch.zeros_like(scale[0]), scale.median()])
    return torch.stack([(scale / level).median(), scale.quantile(0.1)])


def _standardise_scales(network: RecurrentForecaster, samples: Samples) -> None:
    """Set mean and deviation of the logarithm of the scales, which the network reads."""
    logs = samples.divisor.log()
    if len(logs) > 1:
        network.log_scale.copy_(torch.stack([logs.mean(), logs.std().clamp(min=0.1)]))


def _samples(
    networks: Sequence[RecurrentForecaster], data: PanelTensors, windows: WindowIndex, limit: Tensor | None
) -> list[Samples]:
    """Return the samples of each network; they differ in their anchor only, and share gathered windows."""
    shape = networks[0].shape
    origins = torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in networks]
    position = 0
    for series, cutoff, _ in validation_batches(windows, 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        number = torch.arange(position, position + len(series), device=data.device)
        position += len(series)
        until = cutoff + shape.horizon + 1 if limit is None else limit[series]
        batch = data.gather(series, cutoff, until, **window_sizes(networks[0], 1))
        statistics = networks[0].statistics(batch, shape.context_length)
        level = (
            torch.zeros(len(series), dtype=torch.float64, device=data.device) if batch.level is None else batch.level
        )
        for network, own in zip(networks, parts, strict=True):
            frame = network.frame(batch, origins, statistics)
            target, observed = targets(batch, frame, origins, shape)
            weight = (loss_weights(target, observed, frame, shape) > 0).to(target.dtype)
            # Constant windows, and those without any observed target, have nothing to say.
            told = torch.nonzero(weight[:, 0].amax(-1) > 0).flatten()
            own.append(
                (
                    frame.window[told, 0],
                    target[told, 0],
                    observed[told, 0].to(target.dtype),
                    weight[told, 0].amax(-1),
                    frame.spread[told, 0],
                    frame.location[told, 0],
                    frame.divisor[told, 0],
                    series[told],
                    number[told],
                    level[told],
                )
            )
    return [Samples(*(torch.cat(columns) for columns in zip(*own, strict=True))) for own in parts]


def _standardise(network: RecurrentForecaster, panel: Panel, limits: IntArray) -> None:
    """Set mean and scale of the covariates from the steps that training may see. Those of codes are not used."""
    begin = panel.offsets[:-1]
    every = np.zeros(1, dtype=np.int64), np.array([panel.n_series])
    found = [
        *_moments(panel.past, begin, limits),
        *_moments(panel.known, begin + panel.horizon * np.arange(panel.n_series), limits),
        *_moments(panel.static_numbers.T, *every),
    ]
    for row, (count, mean, squares) in enumerate(found):
        if count:
            network.covariate_mean[row] = mean
            network.covariate_scale[row] = max((squares / count) ** 0.5, 1e-6 * abs(mean), 1e-12)


def _moments(values: FloatArray, begin: IntArray, limits: IntArray) -> list[tuple[int, float, float]]:
    """Return count, mean and squared deviations of the finite values of each row ([row, entry]).

    Of a series, which begins at entry `begin`, the first `limits` entries are taken. A block of entries at a time, put
    together as in Chan, Golub & LeVeque (1983): a panel on disk is read once, and never held.
    """
    found = [(0, 0.0, 0.0)] * len(values)
    for first in range(0, values.shape[1] if len(values) else 0, _BLOCK):
        last = min(first + _BLOCK, values.shape[1])
        series = slice(np.searchsorted(begin, first, side="right") - 1, np.searchsorted(begin, last))
        inside = np.diff(np.append(np.maximum(begin[series], first), last))
        seen = np.arange(first, last) < np.repeat(begin[series] + limits[series], inside)
        for row, entries in enumerate(values[:, first:last]):
            part = entries[seen]
            part = part[np.isfinite(part)].astype(np.float64)
            if not len(part):
                continue
            count, mean, squares = found[row]
            total, change = count + len(part), float(part.mean()) - mean
            squares += float(np.square(part - part.mean()).sum()) + change**2 * count * (len(part) / total)
            found[row] = total, mean + change * (len(part) / total), squares
    return found


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


def _widen(network: RecurrentForecaster) -> None:
    """Move quantiles apart that the closed-form solution has on top of each other: they would hardly learn to part."""
    with torch.no_grad():
        network.output_bias.copy_(network.head.widened(network.output_bias, _LEAST_TRAINED_GAP))


@torch.inference_mode()
def _coupling(network: Forecaster, data: PanelTensors, windows: WindowIndex) -> Tensor | None:
    """Return how the errors of a window correlate over its steps, [horizon, horizon]; None where paths are sampled.

    And where classes are forecast: their codes have no order.
    """
    parts = []
    for indices in validation_batches(windows):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        batch = data.gather(series, cutoff, cutoff + network.shape.horizon + 1, **window_sizes(network, 1))
        output = network(batch, origins)
        if isinstance(output.head, SampledHead | CategoricalHead):
            return None
        target, observed = targets(batch, output.frame, origins, network.shape)
        errors = (target - output.head.centre(output.arguments)) / output.frame.spread
        parts.append((errors[:, 0].cpu(), (observed & (output.frame.scale > 0)[..., None])[:, 0].cpu()))
    return rank_correlation(*(torch.cat(part) for part in zip(*parts, strict=True)))
