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

_TRIED_SHARE, _LEAST_TRIED = 4, 10_000
# Windows that a statistic of the panel is taken over, at most.
_CHECKS = 4_096
# Least distance of neighbouring quantiles, in units of scale.
_LEAST_GAP = 1e-3


Refit: TypeAlias = Callable[[WindowIndex, Tensor], None]


class ClosedForm(NamedTuple):
    """The best linear skip, and how it came about."""

    network: RecurrentForecaster
    """Untrained."""
    tensors: PanelTensors
    choice: dict[str, str | float]
    """What was chosen."""
    refit: Refit
    """Fits the skip on other windows, of so many steps of each series, with all that was chosen."""


def closed_form(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    limits: IntArray,
    validation: WindowIndex,
    steps: int,
    units: Sequence[float],
    rng: np.random.Generator,
) -> ClosedForm:
    """Return the untrained network around the best linear skip.

    `units` are those of the scales to choose from. Windows have so many `steps` of targets at least.
    """
    drawn = sample_origins(limits, horizon=steps, count=n_samples(shape), rng=rng)
    if not len(drawn):  # What is hidden there leaves no target to fit on.
        drawn = validation[:1]
    limit = torch.from_numpy(limits).to(device)
    if shape.n_classes:
        counted = _fit_class_skip(panel, device, shape, model, drawn, validation, limit)
        standardise(counted.network, panel, limits)
        return counted
    tried = drawn[:: max(1, min(_TRIED_SHARE, len(drawn) // _LEAST_TRIED))]
    levels = model.head not in POSITIVE_HEADS
    solutions = (
        solve_skip(
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
        if better_on_data(solution, best, overlap(validation, shape.horizon)):
            best = solution
    network, unit = best.network, best.network.shape.unit
    tensors = PanelTensors.of(panel, network, device)
    refit: Refit = _no_refit if best.penalty is None and not best.smoothing else partial(_refit, tensors, best)
    if len(tried) < len(drawn):
        refit(drawn, limit)
    level = best.residual_quantiles(network.skip, network.head.start_levels)
    with torch.no_grad():
        network.output_bias.copy_(network.head.init_parameters(level, _LEAST_GAP))
        if network.head.estimates_mean:
            _start_likelihood(network, best.fitted)
    standardise(network, panel, limits)
    choice: dict[str, str | float] = {
        "transform": f"log, unit {unit:g}" if unit else "none",
        "skip": best.kind,
        "skip_penalty": "prior" if best.penalty is None else f"{best.penalty:g}",
        "skip_constant": int(best.constant),
        "skip_share": 0.0 if best.penalty is None else best.share,
        "smoothing_share": best.smoothing,
        "skip_samples": len(drawn),
    }
    return ClosedForm(network, tensors, choice, refit)


def _no_refit(windows: WindowIndex, limit: Tensor) -> None:
    """Do nothing: what was not fitted need not be fitted again."""


def _refit(tensors: PanelTensors, found: Skip, windows: WindowIndex, limit: Tensor) -> None:
    network = found.network
    if network.shape.smoothing:
        windows = windows[:: max(1, len(windows) // SMOOTHED)]
        weigh_filters(network, tensors, windows, limit)
    if found.penalty is None:
        return
    (samples,) = skip_samples([network], tensors, windows, limit)
    if network.shape.smoothing:
        samples = samples.without(samples.smooth)
    inlying = inlying_samples(found.network, downweight_flat_windows(samples), torch.zeros_like(found.prior))
    (known,) = spectra(inlying, [found.constant])
    (skip,) = solve_ridge(inlying, found.prior, (found.penalty,), known=known)
    found.network.skip.copy_(skip if found.beside is None else found.beside + found.share * skip)


def _fit_class_skip(
    panel: Panel,
    device: torch.device,
    shape: NetworkShape,
    model: ModelConfig,
    drawn: WindowIndex,
    validation: WindowIndex,
    limit: Tensor,
) -> ClosedForm:
    """Return what `closed_form` does, for classes: what follows what is counted."""
    network = RecurrentForecaster(shape, model).to(device)
    tensors = PanelTensors.of(panel, network, device)
    skip = network.class_skip
    for (samples,), take in (
        (skip_samples([network], tensors, drawn, limit), skip.fit),
        (skip_samples([network], tensors, validation, None), skip.choose),
    ):
        take(samples.window, samples.target, samples.observed)
    shares = zip(("latest", "season", "window"), skip.share.tolist(), strict=True)
    choice: dict[str, str | float] = {
        "transform": "none",
        "skip": ", ".join(f"{name} {share:g}" for name, share in shares),
        "skip_samples": len(drawn),
    }

    def refit(windows: WindowIndex, limit: Tensor) -> None:
        (samples,) = skip_samples([network], tensors, windows, limit)
        skip.fit(samples.window, samples.target, samples.observed)

    return ClosedForm(network, tensors, choice, refit)


def units_of(panel: Panel, limits: IntArray, model: ModelConfig) -> list[float]:
    """Return the units of the scales to try."""
    if model.transform == "none" or model.head in (*POSITIVE_HEADS, *CLASS_HEADS):
        return [0.0]
    unit, positive = unit_of(panel, limits)
    if model.transform == "log":
        return [unit]
    return [0.0, unit] if positive else [0.0]


def _start_likelihood(network: RecurrentForecaster, samples: Samples) -> None:
    """Set the start of a head that estimates a mean: sums of means are those of outcomes, and widths the likeliest."""
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
