"""Candidates for the linear skip of a panel, compared by their errors on validation windows, and their stacking."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from forecast.models.heads.quantiles import empirical_quantiles, pinball
from forecast.models.inputs.transform import to_data
from forecast.models.linear.ridge import Samples, Solution, apply_linear, mean_season_solution
from forecast.models.network.forecaster import RecurrentForecaster

# Clip of an error, in units of deviation, when scales are compared.
_REACH = 20.0
# Parts of a stack's weights, and how many of them one step of the search moves.
_PARTS, _MOVED = 20, (4, 1)


@dataclass(frozen=True, eq=False)
class Skip:
    """A candidate for the skip, with its samples and errors."""

    errors: Float[Tensor, "sample 2"]
    """Errors of each validation window (`point_errors`)."""
    network: RecurrentForecaster
    skip: Solution
    fitted: Samples
    checked: Samples
    kind: str
    prior: Solution
    penalty: float | None
    """Ridge penalty; None if the skip is the prior itself, without a fit."""
    constant: bool
    """Whether the skip has a fitted constant besides the prior's."""
    share: float = 1.0
    """Share of the fitted solution in the skip."""
    remainder: Solution | None = None
    """The part of the skip that is not fitted, if any."""
    significant: bool = True
    """Whether a fitted solution was significantly better than all that are not fitted."""
    smoothing: float = 0.0
    """Share of exponential smoothing in the forecast."""

    @property
    def drifts(self) -> bool:
        """Whether the skip has a constant around the last value. Around the level a constant is no drift."""
        return self.constant and self.network.shape.anchor == "last"

    @property
    def order(self) -> int:
        """The rank in the order of preference; 0 is preferred unless another is significantly better.

        Exponential smoothing; a repeated value or season; fitted solutions: around smoothing, around the level, around
        the last value without and with a drift.
        """
        if self.penalty is None:
            return 0 if self.smoothing else 1
        if self.smoothing:
            return 2
        return 3 + (self.network.shape.anchor == "last") + self.drifts

    def forecast(self, samples: Samples, skip: Solution | None = None) -> Float[Tensor, "sample horizon"]:
        """Return the forecasts of the skip (or of `skip` with the same share of smoothing) from windows."""
        forecasts: Tensor = (
            apply_linear(samples.window, self.skip if skip is None else skip) + self.smoothing * samples.smooth
        )
        return forecasts

    def residual_quantiles(self, skip: Solution, levels: Tensor) -> Tensor:
        """Return the quantiles of the residuals of `skip`, in units of spread, [horizon, level].

        They are weighted as the loss, in units of scale: a window that hardly varies counts less. Unless the skip is
        `significant`, the residuals are made symmetric: a drift is no more certain than a solution that has one.
        """
        samples = self.fitted
        weight = samples.spread * samples.weight[:, None] * samples.observed
        residuals = (samples.target - self.forecast(samples, skip)) / samples.spread
        if not self.significant:
            residuals, weight = torch.cat([residuals, -residuals]), weight.repeat(2, 1)
        return _continued(empirical_quantiles(residuals, weight, levels), (weight > 0).any(0), levels)


def _continued(
    quantiles: Float[Tensor, "horizon quantile"], observed: Bool[Tensor, " horizon"], levels: Tensor
) -> Float[Tensor, "horizon quantile"]:
    """Return quantiles of errors for all steps; a step without observed targets has those of the last step with some.

    They widen with the root of the step, as for a random walk. If no step has any, errors are normal with the variance
    of the difference of two independent values of the window.
    """
    steps = torch.arange(1, len(observed) + 1, device=quantiles.device)
    latest = torch.where(observed, steps, 0).cummax(0).values
    first = int(observed.int().argmax()) if observed.any() else 0
    if not observed.any():
        normal: Tensor = torch.special.ndtri(levels.double()) * math.sqrt(2)
        return normal.to(quantiles).expand_as(quantiles).clone()
    source = torch.where(latest > 0, latest, first + 1)
    growth = (steps / source).sqrt().clamp(min=1.0).to(quantiles)
    return quantiles[source - 1] * growth[:, None]


def select_least_error(candidates: Sequence[Skip], reference: Tensor) -> Skip:
    """Return the candidate with the least errors, each kind in units of its `reference` sum."""
    return min(candidates, key=lambda candidate: float((candidate.errors.sum(0) / reference).sum()))


def stack(best: Skip, candidates: Sequence[Skip], reference: Tensor, shared: float) -> Skip:
    """Return `best`, shrunk towards the best stack of a fitted candidate and those that are not fitted.

    The stack has the least error of all mixtures with nonnegative weights (stacked regression: Wolpert 1992, Breiman
    1996). If it is z standard errors better than `best`, its share is 1 - 1 / z^2 for z above 1, else 0 (positive-part
    James & Stein 1961). `candidates` are those around the anchor of `best`.
    """
    fitted = [weights for weights in candidates if weights.penalty is not None and not weights.drifts]
    if not fitted:
        return best
    fitted_best = best if best.significant else select_least_error(fitted, reference)
    priors = [weights for weights in candidates if weights.penalty is None]
    skips = [weights.skip for weights in (fitted_best, *priors)]
    smooth = [weights.smoothing for weights in (fitted_best, *priors)]
    shape, samples = best.network.shape, best.checked
    if shape.season_length * 2 <= shape.context_length:
        sizes = shape.context_length, shape.horizon, shape.season_length
        skips.append(mean_season_solution(*sizes).to(fitted_best.skip))
        smooth.append(0.0)
    solutions, smoothed = torch.stack(skips), torch.tensor(smooth).to(fitted_best.skip)
    forecasts_by_skip = torch.stack(
        [apply_linear(samples.window, skip) + part * samples.smooth for skip, part in zip(skips, smooth, strict=True)]
    )

    def errors(shares: Tensor) -> Tensor:
        forecasts = torch.einsum("l,lsh->sh", shares, forecasts_by_skip)
        return point_errors(samples, forecasts, shape.unit, squares=best.network.head.estimates_mean)

    start = torch.zeros(len(skips), dtype=solutions.dtype, device=solutions.device)
    start[0 if best.significant else 1 + priors.index(best)] = 1.0
    weights = stacking_weights(start, lambda shares: float((errors(shares).sum(0) / reference).sum()))
    z = z_score(errors(weights), best.errors, reference, shared)
    if z <= 1:
        return best
    shares = torch.lerp(start, weights, 1 - z**-2)
    share, total = float(shares[0]), float(shares @ smoothed)
    remainder = torch.einsum("l,lch->ch", shares[1:], solutions[1:])
    if not share:
        return replace(best, skip=remainder, penalty=None, constant=False, significant=False, smoothing=total)
    solution = remainder + share * fitted_best.skip
    return replace(
        fitted_best, skip=solution, remainder=remainder, share=share, significant=best.significant, smoothing=total
    )


def stacking_weights(shares: Tensor, loss: Callable[[Tensor], float]) -> Tensor:
    """Return weights at a local minimum of `loss`: from `shares` on, parts move between them while the loss falls."""
    least = loss(shares)
    for parts in _MOVED:
        changed = True
        while changed:
            changed = False
            for giver, taker in itertools.permutations(range(len(shares)), 2):
                part = min(parts / _PARTS, float(shares[giver]))
                trial = shares.clone()
                trial[giver] -= part
                trial[taker] += part
                if part and (trial_loss := loss(trial)) < least:
                    shares, least, changed = trial, trial_loss, True
    return shares


def significantly_better(errors: Tensor, reference_errors: Tensor, reference: Tensor, shared: float) -> bool:
    """Return whether errors are lower than the reference errors by more than a standard error (Breiman et al. 1984).

    Otherwise the simpler candidate is kept: on random walks, a fitted solution may win on the few validation windows
    by chance.
    """
    return z_score(errors, reference_errors, reference, shared) > 1


def z_score(errors: Tensor, reference_errors: Tensor, reference: Tensor, shared: float) -> float:
    """Return the number of standard errors by which errors ([window, kind]) are lower; below 0 if they are higher.

    Errors are in units of the `reference` sum of their kind. A single window has no standard error: half its error
    counts as significantly better. If several windows share a target, `shared` reduces their effective number.
    """
    gain = ((reference_errors - errors) / reference.clamp(min=1e-12)).sum(1)
    if len(gain) == 1:
        return math.inf if (errors.sum(0) < reference_errors.sum(0) / 2).any() and gain > 0 else 0.0
    standard_error = (len(gain) * shared) ** 0.5 * float(gain.std()) if len(gain) else 0.0
    total = float(gain.sum())
    return total / standard_error if standard_error else math.inf * total if total else 0.0


def better_on_data(solution: Skip, rival: Skip, shared: float) -> bool:
    """Return whether a solution is significantly better than one on another scale, in the units of the data.

    They are compared on windows that vary on both scales: a series that hardly varies may be constant on one of them.
    """
    common, rows, rival_rows = np.intersect1d(
        solution.checked.number.cpu(), rival.checked.number.cpu(), return_indices=True
    )
    if not len(common):
        return False
    errors = _errors_of_data(solution)[torch.from_numpy(rows)]
    reference = _errors_of_data(rival)[torch.from_numpy(rival_rows)]
    return significantly_better(errors, reference, reference.sum(0), shared)


def _errors_of_data(skip_candidate: Skip) -> Float[Tensor, "sample 2"]:
    """Return, of each window, the pinball loss in units of its deviation, and the relative error of the median.

    In the data's units, to compare scales.
    """
    samples, unit, skip = skip_candidate.checked, skip_candidate.network.shape.unit, skip_candidate.skip
    levels = torch.arange(1, 10, device=skip.device, dtype=skip.dtype) / 10
    around = skip_candidate.residual_quantiles(skip, levels)
    quantiles = skip_candidate.forecast(samples)[..., None] + samples.spread[..., None] * around
    actual = _restored(samples, samples.target, unit)
    loss = pinball(_restored(samples, quantiles, unit), actual, levels.double()) / _deviation(samples, unit)
    relative = point_errors(samples, skip_candidate.forecast(samples), unit)[:, 1]
    return torch.stack([(loss.clamp(max=_REACH) * samples.observed).sum(1) * samples.weight, relative], 1)


def point_errors(
    samples: Samples, forecasts: Tensor, unit: float, *, squares: bool = False
) -> Float[Tensor, "sample 2"]:
    """Return the absolute error of each window's forecasts, in units of its deviation, and the relative error.

    Both are sums over the horizon, on the scale of the data, times the weight of the window. Relative errors are 0 if
    some targets are not positive.
    With `squares`, which are least at a mean, the first is the squared error and the second 0.
    """
    forecasts, actual = (_restored(samples, values, unit) for values in (forecasts, samples.target))
    error = (forecasts - actual).abs() * samples.observed
    # Windows that hardly vary must not decide alone.
    scaled = (error / _deviation(samples, unit)).clamp(max=_REACH)
    if squares:
        return torch.stack([scaled.square().sum(1) * samples.weight, torch.zeros_like(scaled[:, 0])], dim=1)
    relative = error / (forecasts.abs() + actual.abs()).clamp(min=1e-12)
    positive = bool((actual > 0)[samples.observed > 0].all())
    return torch.stack([scaled.sum(1), relative.sum(1) * positive], dim=1) * samples.weight[:, None]


def _restored(samples: Samples, values: Tensor, unit: float) -> Tensor:
    """Return normalised values, [sample, ...], in the data's units, in float64."""
    shape = (-1, *[1] * (values.ndim - 1))
    return to_data(samples.location.view(shape) + samples.divisor.view(shape) * values, unit, samples.level.view(shape))


def _deviation(samples: Samples, unit: float) -> Float[Tensor, "sample 1"]:
    values = _restored(samples, samples.window, unit)
    return (values - values.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
