"""The linear skip: one ridge solution from the normalised window to the horizon, for all series, in closed form."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Penalties per sample that are tried; validation chooses.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_ROUNDS = 6


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


def seasonal_solution(context: int, horizon: int, season: int) -> Float[Tensor, "context horizon"]:
    """Return the matrix that repeats the last season of the window (seasonal naive)."""
    ahead = torch.arange(horizon)
    solution = torch.zeros(context, horizon)
    solution[context - season + ahead % season, ahead] = 1.0
    return solution


def solve_ridge(
    samples: Samples, prior: Float[Tensor, "context horizon"], penalties: tuple[float, ...] = PENALTIES
) -> list[Float[Tensor, "context horizon"]]:
    """Return, for each penalty p, the W that minimises sum of w |y - z W|^2 + p n |W - prior|^2.

    One eigen-decomposition of the Gram matrix serves all penalties. Targets that were not observed are replaced by
    the current solution's values and solved for again (EM), which converges to least squares over the observed ones.
    """
    gram, cross = _products(samples, prior)
    values, vectors = torch.linalg.eigh(gram)
    partial = torch.nonzero((samples.observed == 0).any(1)).flatten()
    scale = samples.weight[partial, None].sqrt()
    window, missing = (samples.window[partial] * scale).double(), 1.0 - samples.observed[partial].double()
    solutions = []
    for penalty in penalties:
        shrink = (1.0 / (values.clamp(min=0) + penalty * len(samples.window)))[:, None]
        change = vectors @ (shrink * (vectors.T @ cross))
        for _ in range(_ROUNDS if len(partial) else 0):
            filled = cross + window.T @ ((window @ change) * missing)
            change = vectors @ (shrink * (vectors.T @ filled))
        solutions.append(prior + change.to(prior.dtype))
    return solutions


def _products(samples: Samples, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Return z'wz and z'w(y - z prior) in float64, a chunk of samples at a time."""
    context, horizon = prior.shape
    gram = torch.zeros(context, context, dtype=torch.float64, device=prior.device)
    cross = torch.zeros(context, horizon, dtype=torch.float64, device=prior.device)
    for first in range(0, len(samples.window), 4096):
        part = slice(first, first + 4096)
        root = samples.weight[part, None].sqrt()
        window = (samples.window[part] * root).double()
        rest = (samples.target[part] - samples.window[part] @ prior) * samples.observed[part] * root
        gram += window.T @ window
        cross += window.T @ rest.double()
    return gram, cross
