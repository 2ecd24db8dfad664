"""Skips of one panel, compared by what they forecast of the windows of validation."""

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

# Errors of one forecast, in units of deviation, that count at most when scales are compared.
_REACH = 20.0
# Parts that a mixture of lines has, and how many of them are moved at once while it is looked for.
_PARTS, _MOVED = 20, (4, 1)


@dataclass(frozen=True, eq=False)
class Skip:
    """A closed form."""

    errors: Float[Tensor, "sample 2"]
    """Of each window that is checked (`point_errors`)."""
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
    remainder: Solution | None = None
    """The rest of it, if any."""
    sure: bool = True
    """Whether a fitted line was better than all that are not fitted, beyond doubt."""
    smoothing: float = 0.0
    """Share of exponential smoothing in what the skip forecasts."""

    @property
    def drifts(self) -> bool:
        """Whether it has a constant around the last value. Around the level a constant is no drift."""
        return self.constant and self.network.shape.anchor == "last"

    @property
    def order(self) -> int:
        """Return its place in the order of trust, from the most on.

        Exponential smoothing; what repeats a value or a season; fitted lines: around smoothing, around the level,
        around the last value without and with a drift.
        """
        if self.penalty is None:
            return 0 if self.smoothing else 1
        if self.smoothing:
            return 2
        return 3 + (self.network.shape.anchor == "last") + self.drifts

    def forecast(self, samples: Samples, skip: Solution | None = None) -> Float[Tensor, "sample horizon"]:
        """Return what the skip forecasts from windows, or another one with the same share of smoothing."""
        made: Tensor = (
            apply_linear(samples.window, self.skip if skip is None else skip) + self.smoothing * samples.smooth
        )
        return made

    def residual_quantiles(self, skip: Solution, levels: Tensor) -> Tensor:
        """Return the quantiles of what the line leaves over, in units of spread, [horizon, level].

        Weighted as the loss is, in units of scale: a window that hardly varies says little about the others. Where
        the line is not `sure` they are symmetric: a drift is no more certain than the line that would have had it.
        """
        samples = self.fitted
        weight = samples.spread * samples.weight[:, None] * samples.observed
        rest = (samples.target - self.forecast(samples, skip)) / samples.spread
        if not self.sure:
            rest, weight = torch.cat([rest, -rest]), weight.repeat(2, 1)
        return _continued(empirical_quantiles(rest, weight, levels), (weight > 0).any(0), levels)


def _continued(
    quantiles: Float[Tensor, "horizon quantile"], known: Bool[Tensor, " horizon"], levels: Tensor
) -> Float[Tensor, "horizon quantile"]:
    """Return quantiles of errors for all steps: where no target was observed, those of the last step that has some.

    They widen by the root of the steps, as those of a random walk do. Where no step has any, errors are taken to be
    normal, with the variance of the difference of two independent values of the window.
    """
    steps = torch.arange(1, len(known) + 1, device=quantiles.device)
    latest = torch.where(known, steps, 0).cummax(0).values
    first = int(known.int().argmax()) if known.any() else 0
    if not known.any():
        normal: Tensor = torch.special.ndtri(levels.double()) * math.sqrt(2)
        return normal.to(quantiles).expand_as(quantiles).clone()
    taken = torch.where(latest > 0, latest, first + 1)
    growth = (steps / taken).sqrt().clamp(min=1.0).to(quantiles)
    return quantiles[taken - 1] * growth[:, None]


def select_least_error(candidates: Sequence[Skip], usual: Tensor) -> Skip:
    """Return the one with the least errors, each kind in units of its usual sum."""
    return min(candidates, key=lambda found: float((found.errors.sum(0) / usual).sum()))


def stack(best: Skip, candidates: Sequence[Skip], usual: Tensor, shared: float) -> Skip:
    """Return the best line on the way to the best mixture of a fitted one and those that are not fitted.

    That has the least error of all mixtures whose shares are not negative (stacked regression: Wolpert 1992, Breiman
    1996). If it is z standard errors better than the best line, 1 - 1 / z^2 of the way there is gone, from one standard
    error on (the positive part of James & Stein 1961). `candidates` are those around the best one's anchor.
    """
    fitted = [found for found in candidates if found.penalty is not None and not found.drifts]
    if not fitted:
        return best
    lined = best if best.sure else select_least_error(fitted, usual)
    plain = [found for found in candidates if found.penalty is None]
    skips = [found.skip for found in (lined, *plain)]
    smooth = [found.smoothing for found in (lined, *plain)]
    shape, samples = best.network.shape, best.checked
    if shape.season_length * 2 <= shape.context_length:
        sizes = shape.context_length, shape.horizon, shape.season_length
        skips.append(mean_season_solution(*sizes).to(lined.skip))
        smooth.append(0.0)
    every, smoothed = torch.stack(skips), torch.tensor(smooth).to(lined.skip)
    said = torch.stack(
        [apply_linear(samples.window, skip) + own * samples.smooth for skip, own in zip(skips, smooth, strict=True)]
    )

    def errors(shares: Tensor) -> Tensor:
        forecasts = torch.einsum("l,lsh->sh", shares, said)
        return point_errors(samples, forecasts, shape.unit, squares=best.network.head.estimates_mean)

    start = torch.zeros(len(skips), dtype=every.dtype, device=every.device)
    start[0 if best.sure else 1 + plain.index(best)] = 1.0
    found = stacking_weights(start, lambda shares: float((errors(shares).sum(0) / usual).sum()))
    sure = z_score(errors(found), best.errors, usual, shared)
    if sure <= 1:
        return best
    shares = torch.lerp(start, found, 1 - sure**-2)
    share, total = float(shares[0]), float(shares @ smoothed)
    remainder = torch.einsum("l,lch->ch", shares[1:], every[1:])
    if not share:
        return replace(best, skip=remainder, penalty=None, constant=False, sure=False, smoothing=total)
    solution = remainder + share * lined.skip
    return replace(lined, skip=solution, remainder=remainder, share=share, sure=best.sure, smoothing=total)


def stacking_weights(shares: Tensor, loss: Callable[[Tensor], float]) -> Tensor:
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


def significantly_better(errors: Tensor, others: Tensor, usual: Tensor, shared: float) -> bool:
    """Return whether errors are lower than others by more than the standard error (Breiman et al. 1984).

    What is simpler is kept otherwise: of random walks, a fitted line may win on the few windows of validation, and
    lose ever after.
    """
    return z_score(errors, others, usual, shared) > 1


def z_score(errors: Tensor, others: Tensor, usual: Tensor, shared: float) -> float:
    """Return by how many standard errors the errors ([window, kind]) are lower than others; less than 0 if higher.

    In units of the usual sum of their kind. A single window has no standard error: what halves its error is surely
    better. Where a target is `shared` by several windows, only so many count as are independent.
    """
    gain = ((others - errors) / usual.clamp(min=1e-12)).sum(1)
    if len(gain) == 1:
        return math.inf if (errors.sum(0) < others.sum(0) / 2).any() and gain > 0 else 0.0
    doubt = (len(gain) * shared) ** 0.5 * float(gain.std()) if len(gain) else 0.0
    total = float(gain.sum())
    return total / doubt if doubt else math.inf * total if total else 0.0


def better_on_data(solution: Skip, other: Skip, shared: float) -> bool:
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
    return significantly_better(errors, reference, reference.sum(0), shared)


def _errors_of_data(found: Skip) -> Float[Tensor, "sample 2"]:
    """Return, of each window, the pinball loss in units of its deviation, and the relative error of the median.

    In the data's units, to compare scales.
    """
    samples, unit, skip = found.checked, found.network.shape.unit, found.skip
    levels = torch.arange(1, 10, device=skip.device, dtype=skip.dtype) / 10
    around = found.residual_quantiles(skip, levels)
    quantiles = found.forecast(samples)[..., None] + samples.spread[..., None] * around
    actual = _restored(samples, samples.target, unit)
    loss = pinball(_restored(samples, quantiles, unit), actual, levels.double()) / _deviation(samples, unit)
    relative = point_errors(samples, found.forecast(samples), unit)[:, 1]
    return torch.stack([(loss.clamp(max=_REACH) * samples.observed).sum(1), relative], 1)


def point_errors(samples: Samples, made: Tensor, unit: float, *, squares: bool = False) -> Float[Tensor, "sample 2"]:
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
