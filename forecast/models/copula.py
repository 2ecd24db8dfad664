"""How the steps of a horizon depend on each other, where each has a distribution of its own (a Gaussian copula)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.models.decoders import uniforms

# The least variance of a direction, so that every correlation has a root.
_LEAST_VARIANCE = 1e-6


def rank_correlation(
    errors: Float[Tensor, "window horizon"], observed: Bool[Tensor, "window horizon"]
) -> Float[Tensor, "horizon horizon"]:
    """Return the correlation of the normal scores of errors (van der Waerden): what a Gaussian copula has.

    Of steps that were never observed together it is 0. In float64.
    """
    # Ranks among those observed at the step: the others come after them.
    rank = torch.where(observed, errors.double(), torch.inf).argsort(dim=0, stable=True).argsort(0)
    level = (rank + 0.5) / observed.sum(0).clamp(min=1)
    scores = torch.where(observed, torch.special.ndtri(level.clamp(max=1.0)), 0.0)
    there = observed.double()
    found = (scores.T @ scores) / (there.T @ there).clamp(min=1)
    # Steps may have been observed in different windows: the nearest matrix that is a covariance (Higham 1988).
    values, vectors = torch.linalg.eigh(found)
    found = (vectors * values.clamp(min=_LEAST_VARIANCE)) @ vectors.T
    spread = found.diagonal().sqrt()
    result: Tensor = found / spread[:, None] / spread
    return result


def coupled_ranks(correlation: Float[Tensor, "horizon horizon"], count: int) -> Int[Tensor, "horizon path"]:
    """Return which place each of `count` paths takes at each step, among the values there from the least on.

    The same at every call, for all series: paths of equal number of different series are not independent.
    """
    scores = torch.special.ndtri(uniforms(count, len(correlation)).double())
    coupled: Tensor = scores @ torch.linalg.cholesky(correlation.double()).T
    return coupled.argsort(0).argsort(0).T
