"""How the steps of a horizon depend on each other, where each has a distribution of its own (a Gaussian copula)."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.models.heads.categorical import CategoricalHead
from forecast.models.heads.sampled import SampledHead
from forecast.models.network.decoders import uniforms
from forecast.models.network.losses import HeldOutForecasts

# The least variance of a direction, so that every correlation has a root.
_LEAST_VARIANCE = 1e-6


@torch.inference_mode()
def coupling_of(forecasts: Iterable[HeldOutForecasts], *, prior: float = 0.0) -> Float[Tensor, "step step"] | None:
    """Return how the errors of a window correlate over the steps of its horizon; None where a head samples paths.

    And where classes are forecast: their codes have no order. Of few windows, single correlations say little: those of
    an autoregressive process of order one count as much as `prior` windows do.
    """
    parts = []
    for _, output, target, observed, _ in forecasts:
        if isinstance(output.head, SampledHead | CategoricalHead):
            return None
        errors = (target - output.head.location(output.arguments)[:, 0]) / output.frame.spread[:, 0]
        parts.append((errors.cpu(), observed.cpu()))
    errors, observed = (torch.cat(part) for part in zip(*parts, strict=True))
    correlation = rank_correlation(errors, observed)
    share = prior / (prior + len(errors)) if prior else 0.0
    return correlation if not share else torch.lerp(correlation, _autoregressive(errors, observed), share)


def _autoregressive(
    errors: Float[Tensor, "window horizon"], observed: Bool[Tensor, "window horizon"]
) -> Float[Tensor, "horizon horizon"]:
    """Return the correlations of a process of order one, whose coefficient is that of neighbouring errors."""
    steps = torch.arange(errors.shape[1], dtype=torch.float64)
    score = rank_scores(errors.flatten()[:, None], observed.flatten()[:, None]).view_as(errors)
    both = observed[:, 1:] & observed[:, :-1]
    product = (score[:, 1:] * score[:, :-1])[both].sum()
    size = 0.5 * (score[:, 1:] ** 2 + score[:, :-1] ** 2)[both].sum()
    coefficient = (product / size.clamp(min=1e-12)).clamp(0.0, 0.999)
    matrix: Tensor = coefficient ** (steps[:, None] - steps).abs()
    return matrix


def rank_scores(
    errors: Float[Tensor, "window horizon"], observed: Bool[Tensor, "window horizon"]
) -> Float[Tensor, "window horizon"]:
    """Return the normal scores of the ranks of errors at each step (van der Waerden); 0 where not observed."""
    # Ranks among those observed at the step: the others come after them.
    rank = torch.where(observed, errors.double(), torch.inf).argsort(dim=0, stable=True).argsort(0)
    level = (rank + 0.5) / observed.sum(0).clamp(min=1)
    return torch.where(observed, torch.special.ndtri(level.clamp(max=1.0)), 0.0)


def rank_correlation(
    errors: Float[Tensor, "window horizon"], observed: Bool[Tensor, "window horizon"]
) -> Float[Tensor, "horizon horizon"]:
    """Return the correlation of the normal scores of errors (van der Waerden): what a Gaussian copula has.

    Of steps that were never observed together it is 0. In float64.
    """
    scores, there = rank_scores(errors, observed), observed.double()
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
