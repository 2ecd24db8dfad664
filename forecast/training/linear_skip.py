"""The linear skip, chosen by validation among penalties, weights and smoothing."""

from dataclasses import replace

import torch
from torch import Tensor

from forecast.config import ModelConfig
from forecast.data.time.context import MAX_SMOOTHED
from forecast.data.windows import WindowIndex, overlap
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import loss_weights, targets
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear import smoothing
from forecast.models.linear.ridge import (
    CONSTANTS,
    PENALTIES,
    Samples,
    Solution,
    apply_linear,
    downweight_far_targets,
    downweight_flat_windows,
    huber_reweight,
    seasonal_solution,
    solve_ridge,
    spectra,
)
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.network.normalisation import SeasonWindow, seasonal_spread
from forecast.models.network.panel_statistics import cold_scale_of, standardise_scales
from forecast.models.runtime.shares import all_rows, share_of
from forecast.training.skip_samples import skip_samples
from forecast.training.skips import Skip, point_errors, select_least_error, stack, z_score

# Most windows to weigh filters by, and to fit solutions around them.
SMOOTHED = 2_048
# Fewest errors one step ahead of a window for the ratio to its seasonal spread, and the bounds of this ratio.
_LEAST_ERRORS, _RATIOS = 4, (0.1, 10.0)
# Independent windows from which all penalties are tried.
_MANY_WINDOWS = 1_000
_RIDGE_SHARE = 0.1
# Standard errors by which a candidate must be better than exponential smoothing: series with the same dates have
# correlated errors, so one standard error is too small.
_LEAST_SURENESS = 3.0


def inlying_samples(network: RecurrentForecaster, samples: Samples, prior: Solution) -> Samples:
    """Return the samples for a fit; for a median, with less weight on windows of large errors.

    With skewed targets, large errors are at high values, so a fit of the mean keeps all weights.
    """
    return samples if network.head.estimates_mean else huber_reweight(downweight_far_targets(samples), prior)


def solve_skip(
    tensors: PanelTensors,
    shape: NetworkShape,
    model: ModelConfig,
    windows: WindowIndex,
    validation: WindowIndex,
    limit: Tensor,
) -> Skip:
    """Return the best linear skip on one target scale, in its network, fitted on `windows`."""
    anchors = ("level", "last") if model.anchor == "auto" else (model.anchor,)
    networks = [RecurrentForecaster(replace(shape, anchor=anchor), model).to(tensors.device) for anchor in anchors]
    cold_scale = cold_scale_of(networks[0].shape, tensors, windows, limit)
    for network in networks:
        network.cold_scale.copy_(cold_scale)
    fitted, checked = skip_samples(networks, tensors, windows, limit), skip_samples(networks, tensors, validation, None)
    candidates: list[Skip] = []
    for pair in zip(networks, fitted, checked, strict=True):
        candidates += _candidates(*pair, model, overlap(windows, shape.horizon))
    if model.smoothing and model.skip and shape.context_length <= MAX_SMOOTHED:
        with torch.random.fork_rng(devices=[]):  # The random numbers of other networks stay the same.
            network = RecurrentForecaster(replace(shape, anchor=anchors[0], smoothing=True), model).to(tensors.device)
        network.cold_scale.copy_(cold_scale)
        checks = windows[:: max(1, len(windows) // SMOOTHED)]
        weigh_filters(network, tensors, checks, limit)
        (smoothed,), (judged,) = (
            skip_samples([network], tensors, *pair) for pair in ((checks, limit), (validation, None))
        )
        candidates += _candidates(network, smoothed, judged, model, overlap(checks, shape.horizon))
    reference = candidates[0].errors.sum(0).clamp(min=1e-12)
    groups: dict[int, list[Skip]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.order, []).append(candidate)
    shared = overlap(validation, shape.horizon)
    best, *rivals = (select_least_error(groups[order], reference) for order in sorted(groups))
    for rival in rivals:
        least = _LEAST_SURENESS if best.order == 0 else 1.0
        best = rival if z_score(rival.errors, best.errors, reference, shared) > least else best
    best = stack(best, [candidate for candidate in candidates if candidate.network is best.network], reference, shared)
    best = _without_smoothing(best, model) if best.network.shape.smoothing and not best.smoothing else best
    best.network.skip.copy_(best.skip)
    if best.network.shape.smoothing:
        best.network.smoothing_share.fill_(best.smoothing)
    return best


def _candidates(
    network: RecurrentForecaster, fitted: Samples, checked: Samples, model: ModelConfig, shared: float
) -> list[Skip]:
    """Return the priors, and fitted solutions around them for all penalties, as candidates.

    `shared` is the number of fitted windows that share a target.
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
    fitted = downweight_flat_windows(fitted)
    residual_samples = fitted.without(fitted.smooth) if shape.smoothing else fitted
    inlying = inlying_samples(network, residual_samples, priors["anchor"]) if fits else residual_samples
    # Around the level a constant is no drift.
    solved_spectra = spectra(inlying, CONSTANTS if shape.anchor == "last" else [True]) if fits else []
    penalties = _penalties(len(priors["anchor"]), len(fitted.window) / shared)
    candidates = []
    for name, prior in priors.items():
        solutions_tried: list[tuple[Solution, float | None, bool]] = [(prior, None, False)]
        # Solutions around smoothing are fitted to its residuals.
        for spectrum in solved_spectra if shape.smoothing == (name == "smoothing") else []:
            solutions = solve_ridge(inlying, prior, penalties, spectrum=spectrum)
            solutions_tried += [
                (weights, p, spectrum.constant) for weights, p in zip(solutions, penalties, strict=True)
            ]
        kind = name if name == "smoothing" else f"{shape.anchor}/{name}"
        for solution, penalty, constant in solutions_tried:
            forecasts = apply_linear(checked.window, solution) + shares[name] * checked.smooth
            errors = point_errors(checked, forecasts, shape.unit, squares=network.head.estimates_mean)
            fields = (network, solution, fitted, checked, kind, prior, penalty, constant)
            candidates.append(Skip(errors, *fields, significant=penalty is not None, smoothing=shares[name]))
    return candidates


def _penalties(n_weights: int, n_windows: float) -> tuple[float, ...]:
    """Return the penalties to try with `n_windows` independent windows.

    With few windows, validation cannot choose. For weights whose squares sum to about one, and errors as large as the
    targets, the best penalty per window is n_weights / n_windows (Hoerl & Kennard 1970): smaller ones are not tried.
    """
    if n_windows >= _MANY_WINDOWS:
        return PENALTIES
    least = _RIDGE_SHARE * n_weights / max(n_windows, 1.0)
    return tuple(penalty for penalty in PENALTIES if penalty >= least) or PENALTIES[-1:]


def _without_smoothing(skip: Skip, model: ModelConfig) -> Skip:
    """Return the skip in a network without smoothing."""
    with torch.random.fork_rng(devices=[]):
        network = RecurrentForecaster(replace(skip.network.shape, smoothing=False), model)
    names = network.state_dict().keys()
    network.load_state_dict({name: values for name, values in skip.network.state_dict().items() if name in names})
    return replace(skip, network=network.to(skip.skip.device))


@torch.no_grad()
def weigh_filters(network: RecurrentForecaster, data: PanelTensors, windows: WindowIndex, limit: Tensor) -> None:
    """Set the cost of each filter on the panel, and the ratio of smoothing's errors to the seasonal spread.

    Only windows with at least the median length of history count. Of several processes, each reads its share of them.
    """
    shape, origins = network.shape, torch.zeros(1, dtype=torch.long, device=data.device)
    parts: list[tuple[Tensor, ...]] = []
    for series, cutoff, _ in validation_batches(windows[share_of(len(windows))], 512):
        series, cutoff = series.to(data.device), cutoff.to(data.device)
        batch = data.gather(series, cutoff, limit[series], **window_sizes(network, 1))
        frame = network.frame(batch, origins)
        target, observed = targets(batch, frame, origins, shape)
        weight = (loss_weights(target, observed, frame, shape) > 0)[:, 0].to(target.dtype)
        observed = batch.observed[:, : shape.context_length]
        smoothed = smoothing.smooth(frame.window[:, 0], observed, shape.season_length)
        distance = (smoothing.paths(smoothed, shape.horizon) - target[:, :1]).abs() * weight[:, None]
        own_mean = smoothed.error.mean(1) * weight.sum(1)
        seasons = SeasonWindow.of(batch, origins, shape)
        spread = seasonal_spread(seasons, frame.divisor, shape, network.season_offset)
        varied = own_mean > 0
        columns = (
            distance.sum(2) / own_mean.clamp(min=1e-12)[:, None],
            smoothed.n_errors,
            smoothed.error,
            spread.log().mean((1, 2)),
        )
        parts.append(tuple(values[varied] for values in columns))
    error, count, own_error, spread = all_rows(parts, data.device)
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
