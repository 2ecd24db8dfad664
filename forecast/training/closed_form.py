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
from forecast.data.time.context import MAX_SMOOTHED
from forecast.data.windows import WindowIndex, overlap, sample_origins
from forecast.models.heads.mean_fit import location_shift, widths
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import Frame, loss_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.inputs.transform import unit_of
from forecast.models.linear import smoothing
from forecast.models.linear.ridge import (
    CONSTANTS,
    PENALTIES,
    Samples,
    Solution,
    eventful,
    line,
    near,
    robust,
    seasonal_solution,
    solve_ridge,
    spectra,
)
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.network.panel_statistics import cold_scale_of, standardise, standardise_scales
from forecast.training.means import relative_divisor
from forecast.training.skips import Skip, better_on_data, least_error, mixture, point_errors, sureness

# Windows that the closed-form solution is fitted on: so many values, between these limits. It is chosen by fits on each
# fourth of them, or such a share that this many are left.
_SKIP_VALUES = 20_000_000
_SKIP_SAMPLES = 40_000, 200_000
_TRIED_SHARE, _LEAST_TRIED = 4, 10_000
# Windows that filters are weighed by, and lines around them are fitted on.
_SMOOTHED = 2_048
# Errors one step ahead of a window that are compared with its seasonal spread, and what their ratio may be.
_LEAST_ERRORS, _RATIOS = 4, (0.1, 10.0)
# Independent windows from which validation tells any penalty from another.
_MANY_WINDOWS = 1_000
_RIDGE_SHARE = 0.1
# Standard errors by which anything must be better than exponential smoothing: series that share their dates share their
# errors, which makes a single error too small.
_LEAST_SURENESS = 3.0
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
        counted = _counted(panel, device, shape, model, drawn, validation, limit)
        standardise(counted.network, panel, limits)
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
        if better_on_data(solution, best, overlap(validation, shape.horizon)):
            best = solution
    network, unit = best.network, best.network.shape.unit
    tensors = PanelTensors.of(panel, network, device)
    refit: Refit = _kept if best.penalty is None and not best.smoothing else partial(_refit, tensors, best)
    if len(tried) < len(drawn):
        refit(drawn, limit)
    level = best.residual_quantiles(network.skip, network.head.start_levels)
    with torch.no_grad():
        network.output_bias.copy_(network.head.parameters_of(level, _LEAST_GAP))
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


def n_samples(shape: NetworkShape) -> int:
    """Return how many windows a line is fitted on, at most."""
    return int(np.clip(_SKIP_VALUES // shape.context_length, *_SKIP_SAMPLES))


def _kept(windows: WindowIndex, limit: Tensor) -> None:
    """Do nothing: what was not fitted need not be fitted again."""


def _refit(tensors: PanelTensors, found: Skip, windows: WindowIndex, limit: Tensor) -> None:
    network = found.network
    if network.shape.smoothing:
        windows = windows[:: max(1, len(windows) // _SMOOTHED)]
        _weigh_filters(network, tensors, windows, limit)
    if found.penalty is None:
        return
    (samples,) = _samples([network], tensors, windows, limit)
    if network.shape.smoothing:
        samples = samples.without(samples.smooth)
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
) -> ClosedForm:
    """Return what `closed_form` does, for classes: what follows what is counted."""
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

    return ClosedForm(network, tensors, choice, refit)


def units_of(panel: Panel, limits: IntArray, model: ModelConfig) -> list[float]:
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
) -> Skip:
    """Return the best linear skip on one scale, in its network; fitted on windows `drawn`."""
    anchors = ("level", "last") if model.anchor == "auto" else (model.anchor,)
    networks = [RecurrentForecaster(replace(shape, anchor=anchor), model).to(tensors.device) for anchor in anchors]
    cold_scale = cold_scale_of(networks[0], tensors, drawn, limit)
    for network in networks:
        network.cold_scale.copy_(cold_scale)
    fitted, checked = _samples(networks, tensors, drawn, limit), _samples(networks, tensors, validation, None)
    candidates: list[Skip] = []
    for each in zip(networks, fitted, checked, strict=True):
        candidates += _candidates(*each, model, overlap(drawn, shape.horizon))
    if model.smoothing and model.skip and shape.context_length <= MAX_SMOOTHED:
        with torch.random.fork_rng(devices=[]):  # Other networks are drawn as they are without this one.
            network = RecurrentForecaster(replace(shape, anchor=anchors[0], smoothing=True), model).to(tensors.device)
        network.cold_scale.copy_(cold_scale)
        some = drawn[:: max(1, len(drawn) // _SMOOTHED)]
        _weigh_filters(network, tensors, some, limit)
        (smoothed,), (judged,) = (_samples([network], tensors, *each) for each in ((some, limit), (validation, None)))
        candidates += _candidates(network, smoothed, judged, model, overlap(some, shape.horizon))
    usual = candidates[0].errors.sum(0).clamp(min=1e-12)
    groups: dict[int, list[Skip]] = {}
    for found in candidates:
        groups.setdefault(found.order, []).append(found)
    shared = overlap(validation, shape.horizon)
    best, *others = (least_error(groups[order], usual) for order in sorted(groups))
    for other in others:
        least = _LEAST_SURENESS if best.order == 0 else 1.0
        best = other if sureness(other.errors, best.errors, usual, shared) > least else best
    best = mixture(best, [found for found in candidates if found.network is best.network], usual, shared)
    best = _unsmoothed(best, model) if best.network.shape.smoothing and not best.smoothing else best
    best.network.skip.copy_(best.skip)
    if best.network.shape.smoothing:
        best.network.smoothing_share.fill_(best.smoothing)
    return best


def _candidates(
    network: RecurrentForecaster, fitted: Samples, checked: Samples, model: ModelConfig, shared: float
) -> list[Skip]:
    """Return what does not have to be fitted, and lines of all penalties around it.

    A target is `shared` by so many windows that are fitted on.
    """
    shape = network.shape
    priors = {"anchor": torch.zeros_like(network.skip)}
    if 1 < shape.season_length <= shape.context_length:
        priors["season"] = seasonal_solution(shape.context_length, shape.horizon, shape.season_length).to(network.skip)
    shares = dict.fromkeys(priors, 0.0)
    if shape.smoothing:
        priors, shares = {"smoothing": priors["anchor"], **priors}, {"smoothing": 1.0, **shares}
    fits = model.skip and len(fitted.window) > 0
    standardise_scales(network, fitted)
    fitted = eventful(fitted)
    rest = fitted.without(fitted.smooth) if shape.smoothing else fitted
    inlying = _inlying(network, rest, priors["anchor"]) if fits else rest
    # Around the level a constant is no drift.
    known = spectra(inlying, CONSTANTS if shape.anchor == "last" else [True]) if fits else []
    penalties = _penalties(len(priors["anchor"]), len(fitted.window) / shared)
    candidates = []
    for name, prior in priors.items():
        made: list[tuple[Solution, float | None, bool]] = [(prior, None, False)]
        # Around smoothing, lines are of what it leaves over.
        for own in known if shape.smoothing == (name == "smoothing") else []:
            solutions = solve_ridge(inlying, prior, penalties, known=own)
            made += [(found, p, own.constant) for found, p in zip(solutions, penalties, strict=True)]
        kind = name if name == "smoothing" else f"{shape.anchor}/{name}"
        for solution, penalty, constant in made:
            said = line(checked.window, solution) + shares[name] * checked.smooth
            errors = point_errors(checked, said, shape.unit, squares=network.head.estimates_mean)
            given = (network, solution, fitted, checked, kind, prior, penalty, constant)
            candidates.append(Skip(errors, *given, sure=penalty is not None, smoothing=shares[name]))
    return candidates


def _penalties(n_weights: int, n_windows: float) -> tuple[float, ...]:
    """Return the penalties to try, where so many windows are independent.

    With few of them validation is no guide. Weights whose squares add up to about one, and errors as large as the
    targets, have n_weights / n_windows as the best penalty per window (Hoerl & Kennard 1970): no smaller one is tried.
    """
    if n_windows >= _MANY_WINDOWS:
        return PENALTIES
    least = _RIDGE_SHARE * n_weights / max(n_windows, 1.0)
    return tuple(penalty for penalty in PENALTIES if penalty >= least) or PENALTIES[-1:]


def _unsmoothed(found: Skip, model: ModelConfig) -> Skip:
    """Return a skip that has no share of smoothing in a network without any."""
    with torch.random.fork_rng(devices=[]):
        network = RecurrentForecaster(replace(found.network.shape, smoothing=False), model)
    kept = network.state_dict().keys()
    network.load_state_dict({name: values for name, values in found.network.state_dict().items() if name in kept})
    return replace(found, network=network.to(found.skip.device))


@torch.no_grad()
def _weigh_filters(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> None:
    """Set what each filter costs on the panel, and what smoothing errs by in units of the seasonal spread.

    By windows with as much history as most have.
    """
    shape, origins = network.shape, torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[tuple[Tensor, ...]] = []
    for series, cutoff, _ in validation_batches(windows, 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        frame = network.frame(batch, origins)
        target, observed = targets(batch, frame, origins, shape)
        weight = (loss_weights(target, observed, frame, shape) > 0)[:, 0].to(target.dtype)
        smoothed = network.smoothed(frame.window, batch.observed[:, None, : shape.context_length])
        distance = (smoothing.paths(smoothed, shape.horizon) - target[:, :1]).abs() * weight[:, None]
        usual = smoothed.error.mean(1) * weight.sum(1)
        spread = network.seasonal_spread(batch, origins, frame.divisor).log().mean((1, 2))
        varied = usual > 0
        columns = distance.sum(2) / usual.clamp(min=1e-12)[:, None], smoothed.n_errors, smoothed.error, spread
        parts.append(tuple(values[varied] for values in columns))
    error, count, own_error, spread = (torch.cat(columns) for columns in zip(*parts, strict=True))
    if not len(error):
        return
    long = count >= count.median()
    independent = int(long.sum()) / overlap(windows, shape.horizon)
    prior = torch.zeros_like(network.smoothing_cost)
    network.smoothing_cost.copy_(smoothing.shared_cost(error[long], independent, prior))
    judged = long & (count >= _LEAST_ERRORS)
    if judged.any():
        shares = smoothing.shares_of(own_error[judged], count[judged], network.smoothing_cost)
        mean = (shares * own_error[judged]).sum(1).clamp(min=1e-12)
        network.smoothing_ratio.copy_((mean.log() - spread[judged]).median().exp().clamp(*_RATIOS))


def _start_likelihood(network: RecurrentForecaster, samples: Samples) -> None:
    """Set the start of a head that estimates a mean: sums of means are those of outcomes, and widths the likeliest."""
    samples = samples.every(max(1, len(samples.window) // _CHECKS))
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
    linear, bias, head = network.skipped(samples.window, samples.smooth), network.output_bias, network.head
    share = relative_divisor(samples.series, samples.divisor) * samples.observed
    start = bias.expand(len(linear), -1, -1)
    bias[:, head.location] += location_shift(head, start, linear, frame, samples.target, share)
    if head.n_parameters > 1:
        start, weight = bias.expand(len(linear), -1, -1), samples.weight[:, None] * samples.observed
        bias[:, 1] = widths(head, start, linear, frame, samples.target, weight)


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
                    frame.smooth[told, 0],
                )
            )
    return [Samples(*(torch.cat(columns) for columns in zip(*own, strict=True))) for own in parts]
