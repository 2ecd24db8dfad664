"""The closed form: the best linear skip of a panel, in an untrained network around it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forecast.config import CLASS_HEADS, POSITIVE_HEADS, ModelConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, overlap, sample_origins
from forecast.models.heads.mean_fit import location_shift, widths
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.shape import NetworkShape
from forecast.models.inputs.transform import unit_of
from forecast.models.linear.ridge import (
    Samples,
    downweight_flat_windows,
    solve_ridge,
    spectra,
)
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.panel_statistics import standardise
from forecast.training.linear_skip import SMOOTHED, inlying_samples, solve_skip, weigh_filters
from forecast.training.means import relative_divisor
from forecast.training.skip_samples import n_samples, skip_samples
from forecast.training.skips import Skip, better_on_data
from forecast.training.split import TrainingData

_TRIED_SHARE, _LEAST_TRIED = 4, 10_000
# Most windows of a statistic of the panel.
_CHECKS = 4_096
# Least distance of neighbouring quantiles, in units of scale.
_LEAST_GAP = 1e-3


Refit: TypeAlias = Callable[[WindowIndex, Tensor], None]


class ClosedForm(NamedTuple):
    """The best linear skip in an untrained network, and the choices that led to it."""

    network: RecurrentForecaster
    """Untrained."""
    tensors: PanelTensors
    choice: dict[str, str | float]
    """Chosen settings of the skip, for the summary."""
    refit: Refit
    """Fits the skip on other windows, up to a limit of steps of each series, with the same choices."""


def closed_form(
    training: TrainingData,
    shape: NetworkShape,
    model: ModelConfig,
    units: Sequence[float],
    rng: np.random.Generator,
) -> ClosedForm:
    """Return the untrained network around the best linear skip.

    `units` are those of the target scales to choose from.
    """
    panel, device, split = training.panel, training.device, training.split
    windows = sample_origins(split.train_lengths, horizon=split.plan.validation_steps, count=n_samples(shape), rng=rng)
    if not len(windows):  # A window whose targets are hidden: nothing is fitted.
        windows = split.validation[:1]
    if shape.n_classes:
        closed = _fit_class_skip(training, shape, model, windows)
        standardise(closed.network, panel, split.train_lengths)
        return closed
    sample = windows[:: max(1, min(_TRIED_SHARE, len(windows) // _LEAST_TRIED))]
    search = partial(_best_skip, shape=shape, model=model, units=units, windows=sample)
    best = search(training) if training.ranks is None else training.ranks.run(search, partial(search, training))
    network, unit = best.network, best.network.shape.unit
    tensors = PanelTensors.of(panel, network, device)
    refit: Refit = _no_refit
    if best.penalty is not None or best.smoothing:
        refit = (
            partial(_refit, tensors, best)
            if training.ranks is None
            else partial(_refit_by_all, training, tensors, best)
        )
    if len(sample) < len(windows):
        refit(windows, torch.from_numpy(split.train_lengths).to(device))
    level = best.residual_quantiles(network.skip, network.head.start_levels)
    with torch.no_grad():
        network.output_bias.copy_(network.head.init_parameters(level, _LEAST_GAP))
        if network.head.estimates_mean:
            _start_likelihood(network, best.fitted)
    standardise(network, panel, split.train_lengths)
    choice: dict[str, str | float] = {
        "transform": f"log, unit {unit:g}" if unit else "none",
        "skip": best.kind,
        "skip_penalty": "prior" if best.penalty is None else f"{best.penalty:g}",
        "skip_constant": int(best.constant),
        "skip_share": 0.0 if best.penalty is None else best.share,
        "smoothing_share": best.smoothing,
        "skip_samples": len(windows),
    }
    return ClosedForm(network, tensors, choice, refit)


def _best_skip(
    training: TrainingData, shape: NetworkShape, model: ModelConfig, units: Sequence[float], windows: WindowIndex
) -> Skip:
    """Return the best skip over the target scales, fitted on `windows`; the first scale unless another is better."""
    limit = torch.from_numpy(training.split.train_lengths).to(training.device)
    levels, validation = model.head not in POSITIVE_HEADS, training.split.validation
    solutions = (
        solve_skip(
            PanelTensors(training.panel, training.device, unit=unit, levels=levels),
            replace(shape, unit=unit),
            model,
            windows,
            validation,
            limit,
        )
        for unit in units
    )
    best = next(solutions)
    for solution in solutions:
        if better_on_data(solution, best, overlap(validation, shape.horizon)):
            best = solution
    return best


def _no_refit(windows: WindowIndex, limit: Tensor) -> None:
    """Do nothing: the skip is a prior without fitted weights."""


def _refit(tensors: PanelTensors, best: Skip, windows: WindowIndex, limit: Tensor) -> None:
    """Fit the skip on other windows, with the penalty, shares and constant of `best`."""
    network = best.network
    if network.shape.smoothing:
        windows = windows[:: max(1, len(windows) // SMOOTHED)]
        weigh_filters(network, tensors, windows, limit)
    if best.penalty is None:
        return
    (samples,) = skip_samples([network], tensors, windows, limit)
    if network.shape.smoothing:
        samples = samples.without(samples.smooth)
    inlying = inlying_samples(network, downweight_flat_windows(samples), torch.zeros_like(best.prior))
    (spectrum,) = spectra(inlying, [best.constant])
    (skip,) = solve_ridge(inlying, best.prior, (best.penalty,), spectrum=spectrum)
    network.skip.copy_(skip if best.remainder is None else best.remainder + best.share * skip)


def _refit_by_all(
    training: TrainingData, tensors: PanelTensors, best: Skip, windows: WindowIndex, limit: Tensor
) -> None:
    """Fit the skip as `_refit`, with sums over the processes that train together."""
    assert training.ranks is not None
    # The others need no samples of its choice.
    fitted, checked = (samples.subsample(1 + len(samples.window)) for samples in (best.fitted, best.checked))
    sent = replace(best, errors=best.errors[:0], fitted=fitted, checked=checked)
    remote = partial(_refit_here, best=sent, windows=windows, limit=limit.cpu())
    training.ranks.run(remote, partial(_refit, tensors, best, windows, limit))


def _refit_here(training: TrainingData, *, best: Skip, windows: WindowIndex, limit: Tensor) -> None:
    """Fit the skip of another process with this one's share of the windows."""
    device = training.device
    remainder = None if best.remainder is None else best.remainder.to(device)
    best = replace(best, network=best.network.to(device), prior=best.prior.to(device), remainder=remainder)
    _refit(PanelTensors.of(training.panel, best.network, device), best, windows, limit.to(device))


def _fit_class_skip(
    training: TrainingData, shape: NetworkShape, model: ModelConfig, windows: WindowIndex
) -> ClosedForm:
    """Return the closed form for classes: transitions are counted on `windows`, shares chosen by validation."""
    network = RecurrentForecaster(shape, model).to(training.device)
    tensors = PanelTensors.of(training.panel, network, training.device)
    limit = torch.from_numpy(training.split.train_lengths).to(training.device)
    skip = network.class_skip
    for (samples,), step in (
        (skip_samples([network], tensors, windows, limit), skip.fit),
        (skip_samples([network], tensors, training.split.validation, None), skip.choose),
    ):
        step(samples.window, samples.target, samples.observed)
    shares = zip(("latest", "season", "window"), skip.share.tolist(), strict=True)
    choice: dict[str, str | float] = {
        "transform": "none",
        "skip": ", ".join(f"{name} {share:g}" for name, share in shares),
        "skip_samples": len(windows),
    }

    def refit(windows: WindowIndex, limit: Tensor) -> None:
        (samples,) = skip_samples([network], tensors, windows, limit)
        skip.fit(samples.window, samples.target, samples.observed)

    return ClosedForm(network, tensors, choice, refit)


def units_of(panel: Panel, limits: IntArray, model: ModelConfig) -> list[float]:
    """Return the units of the target scales to try; 0 for the linear scale."""
    if model.transform == "none" or model.head in (*POSITIVE_HEADS, *CLASS_HEADS):
        return [0.0]
    unit, positive = unit_of(panel, limits)
    if model.transform == "log":
        return [unit]
    return [0.0, unit] if positive else [0.0]


def _start_likelihood(network: RecurrentForecaster, samples: Samples) -> None:
    """Initialise a head that estimates a mean: sums of means equal those of the targets; widths are the likeliest."""
    samples = samples.subsample(max(1, len(samples.window) // _CHECKS))
    if not len(samples.window):
        return
    frame = Frame(
        samples.location,
        samples.divisor,
        samples.divisor,
        samples.divisor > 0,
        samples.window,
        samples.spread,
        samples.smooth,
    )
    linear, bias, head = network.apply_skip(samples.window, samples.smooth), network.output_bias, network.head
    share = relative_divisor(samples.series, samples.divisor) * samples.observed
    start = bias.expand(len(linear), -1, -1)
    bias[:, head.location_index] += location_shift(head, start, linear, frame, samples.target, share)
    if head.n_parameters > 1:
        start, weight = bias.expand(len(linear), -1, -1), samples.weight[:, None] * samples.observed
        bias[:, 1] = widths(head, start, linear, frame, samples.target, weight)
