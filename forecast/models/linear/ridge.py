"""The linear skip: a robust ridge regression from the normalised window to the horizon, shared by all series."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.runtime.shares import all_rows, share_of, total

# Penalties per sample to try; validation chooses.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# With a constant, which around the last value is a drift, and without: validation chooses.
CONSTANTS = (True, False)
_ROUNDS = 6
# Reweightings of windows by their errors, the penalty of the pilot fit, and the stride of its samples.
_REWEIGHTINGS = 2
_PILOT = 1e-2
_PILOTS = 4
# The constant feature: large, so that its weight is hardly penalised.
_CONSTANT = 30.0
# Share of a series' typical variation below which its windows count less.
_CALM = 0.5
_CHUNK = 4096


@dataclass(frozen=True)
class Samples:
    """Windows and their targets in normalised units."""

    window: Float[Tensor, "sample context"]
    target: Float[Tensor, "sample horizon"]
    """0 where not observed."""
    observed: Float[Tensor, "sample horizon"]
    """1 where observed."""
    weight: Float[Tensor, " sample"]
    spread: Float[Tensor, "sample horizon"]
    location: Float[Tensor, " sample"]
    divisor: Float[Tensor, " sample"]
    series: Int[Tensor, " sample"]
    number: Int[Tensor, " sample"]
    """Index of the window among those of the call."""
    level: Float[Tensor, " sample"]
    """Level subtracted from window and target, float64."""
    smooth: Float[Tensor, "sample horizon"]
    """Forecast of exponential smoothing; 0 without smoothing."""

    def without(self, forecast: Float[Tensor, "sample horizon"]) -> "Samples":
        """Return the samples with the residuals of a forecast as targets."""
        return replace(self, target=(self.target - forecast) * self.observed)

    def subsample(self, stride: int) -> "Samples":
        """Return every `stride`-th sample."""
        return Samples(**{field.name: getattr(self, field.name)[::stride] for field in fields(self)})


Solution: TypeAlias = Float[Tensor, "context+1 horizon"]
"""Weights of the window's values; the last row is the intercept."""


class Spectrum(NamedTuple):
    """Eigenvalues and eigenvectors of the Gram matrix z'wz."""

    values: Float[Tensor, " context+1"]
    vectors: Float[Tensor, "context+1 context+1"]
    constant: bool
    """Whether the constant is included; otherwise its row and column are 0."""


def apply_linear(window: Float[Tensor, "*axes context"], solution: Solution) -> Float[Tensor, "*axes horizon"]:
    """Return the forecasts of a solution from windows."""
    return window @ solution[:-1] + solution[-1]


def seasonal_solution(context: int, horizon: int, season: int) -> Solution:
    """Return the solution that repeats the last season of the window (seasonal naive)."""
    ahead = torch.arange(horizon)
    solution = torch.zeros(context + 1, horizon)
    solution[context - season + ahead % season, ahead] = 1.0
    return solution


def mean_season_solution(context: int, horizon: int, season: int) -> Solution:
    """Return the solution that repeats the mean of the window's whole seasons."""
    n_seasons = context // season
    latest = seasonal_solution(context, horizon, season)
    earlier = [latest[:-1].roll(-season * number, 0) for number in range(n_seasons)]
    return torch.cat([torch.stack(earlier).mean(0), latest[-1:]])


def spectra(samples: Samples, constants: Iterable[bool] = CONSTANTS) -> list[Spectrum]:
    """Return the eigenvalues and vectors of the Gram matrix z'wz, with and without the constant.

    They serve all priors and penalties.
    """
    size = samples.window.shape[1] + 1
    gram = torch.zeros(size, size, dtype=torch.float64, device=samples.window.device)
    for part in _chunks(samples):
        features = _features(samples, part)
        gram += features.T @ features
    gram = total(gram)
    result = []
    for constant in constants:
        mask = torch.ones(size, dtype=torch.float64, device=gram.device)
        mask[-1] = constant
        values, vectors = torch.linalg.eigh(gram * mask * mask[:, None])
        result.append(Spectrum(values.clamp(min=0), vectors, constant=constant))
    return result


def solve_ridge(
    samples: Samples,
    prior: Solution,
    penalties: tuple[float, ...] = PENALTIES,
    *,
    spectrum: Spectrum | None = None,
) -> list[Solution]:
    """Return, for each penalty p, the W that minimises sum of w |y - [z; 1] W|^2 + p n |W - prior|^2.

    The constant is hardly penalised; it is the prior's where `spectrum` is a spectrum without. Targets that were not
    observed are replaced by the current solution's values and solved for again (EM), which converges to least squares
    over the observed ones. `spectrum` is the samples' spectrum.
    """
    values, vectors, constant = spectrum or spectra(samples, [True])[0]
    cross = _cross(samples, prior)
    cross[-1] *= constant
    partial = torch.nonzero((samples.observed == 0).any(1)).flatten()
    n_partial, partial = len(partial), partial[share_of(len(partial))]
    window, missing = _features(samples, partial), 1.0 - samples.observed[partial].double()
    solutions = []
    for penalty in penalties:
        shrink = (1.0 / (values + penalty * len(samples.window)))[:, None]
        change = vectors @ (shrink * (vectors.T @ cross))
        for _ in range(_ROUNDS if n_partial else 0):
            filled = cross + total(window.T @ ((window @ change) * missing))
            filled[-1] *= constant
            change = vectors @ (shrink * (vectors.T @ filled))
        change[-1] *= _CONSTANT
        solutions.append(prior + change.to(prior.dtype))
    return solutions


def huber_reweight(samples: Samples, prior: Solution) -> Samples:
    """Return the samples with less weight on windows whose mean absolute error is above the median.

    Otherwise a few windows with a break of level would dominate the fit (Huber 1964, by iteratively reweighted least
    squares: Holland & Welsch 1977). The errors are those of a fit on every fourth window.
    """
    weighted = pilots = samples.subsample(_PILOTS)
    for _ in range(_REWEIGHTINGS):
        (pilot,) = solve_ridge(weighted, prior, (_PILOT,))
        typical_error, error = _errors(pilots, pilot).median(), _errors(samples, pilot)
        if not typical_error > 0:
            return samples
        inlying = (typical_error / error.clamp(min=1e-9)).clamp(max=1.0)
        result = replace(samples, weight=samples.weight * inlying)
        weighted = result.subsample(_PILOTS)
    return result


def downweight_far_targets(samples: Samples) -> Samples:
    """Return the samples with less weight on windows whose targets are far from the location, in units of scale.

    This is the first round of Huber's weights, by the errors of a constant forecast. It lowers the mean of skewed
    targets, so it is for fits of the median only.
    """
    size = samples.target.abs().sum(1) / samples.observed.sum(1).clamp(min=1)
    return replace(samples, weight=samples.weight / (size / math.pi).clamp(min=1.0))


def downweight_flat_windows(samples: Samples) -> Samples:
    """Return the samples with less weight on windows that vary by less than half of the typical scale of their series.

    In units of the window's scale, targets after a quiet window would dominate the fit. The weight is proportional to
    the squared divisor, so that errors count in units of the series: (divisor / typical scale)^2 error^2.
    """
    n_series = int(samples.series.max()) + 1 if len(samples.series) else 0
    square = samples.divisor.double().square()
    total = square.new_zeros(n_series).index_add(0, samples.series, square)
    typical_square = _CALM**2 * total / torch.bincount(samples.series, minlength=n_series).clamp(min=1)
    typical_square = typical_square[samples.series].clamp(min=torch.finfo(square.dtype).tiny)
    return replace(samples, weight=samples.weight * (square / typical_square).clamp(max=1.0).to(samples.weight))


def _errors(samples: Samples, solution: Solution) -> Float[Tensor, " sample"]:
    """Return the mean absolute error of each window."""
    rows = share_of(len(samples.window))
    observed = samples.observed[rows]
    error = (samples.target[rows] - apply_linear(samples.window[rows], solution)) * observed
    (result,) = all_rows([(error.abs().sum(1) / observed.sum(1).clamp(min=1),)], error.device)
    return result


def _features(samples: Samples, rows: slice | Tensor) -> Float[Tensor, "sample context+1"]:
    """Return windows and the constant, times the root of the weight, in float64."""
    root = samples.weight[rows, None].double().sqrt()
    return torch.cat([samples.window[rows].double() * root, _CONSTANT * root], dim=1)


def _cross(samples: Samples, prior: Solution) -> Float[Tensor, "context+1 horizon"]:
    """Return z'w(y - z prior) in float64."""
    cross = torch.zeros(prior.shape, dtype=torch.float64, device=prior.device)
    for part in _chunks(samples):
        residual = (samples.target[part] - apply_linear(samples.window[part], prior)) * samples.observed[part]
        cross += _features(samples, part).T @ (residual * samples.weight[part, None].sqrt()).double()
    return total(cross)


def _chunks(samples: Samples) -> list[slice]:
    """Return the rows of this process, in parts."""
    rows = share_of(len(samples.window))
    return [slice(first, min(first + _CHUNK, rows.stop)) for first in range(rows.start, rows.stop, _CHUNK)]
