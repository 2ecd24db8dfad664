"""Output heads: what the network's numbers mean."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class QuantileHead(nn.Module):
    """Quantiles that cannot cross: the median, plus softplus increments outwards."""

    levels: Tensor
    mean_weights: Tensor

    def __init__(self, levels: Sequence[float]) -> None:
        super().__init__()
        self.median = list(levels).index(0.5)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        # Mean of the distribution whose quantile function is linear between the levels and flat outside them.
        edges = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), 1.0]
        weights = torch.tensor(edges).diff()
        self.register_buffer("mean_weights", weights, persistent=False)

    @property
    def n_parameters(self) -> int:
        """Numbers per forecast step."""
        return len(self.levels)

    def quantiles(self, parameters: Float[Tensor, "*axes parameter"]) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles, in the order of the levels."""
        below, median, above = parameters.split([self.median, 1, self.n_parameters - self.median - 1], dim=-1)
        down = functional.softplus(below).flip(-1).cumsum(-1).flip(-1)
        up = functional.softplus(above).cumsum(-1)
        return torch.cat([median - down, median, median + up], dim=-1)

    def calmed(
        self, parameters: Float[Tensor, "*axes parameter"], threshold: Float[Tensor, ""]
    ) -> Float[Tensor, "*axes parameter"]:
        """Return parameters whose median is moved towards 0 by `threshold`, to 0 where it was nearer."""
        below, median, above = parameters.split([self.median, 1, self.n_parameters - self.median - 1], dim=-1)
        calm = median.sign() * (median.abs() - threshold).clamp(min=0)
        return torch.cat([below, calm, above], dim=-1)

    def parameters_of(
        self, quantiles: Float[Tensor, "*axes quantile"], least_gap: float
    ) -> Float[Tensor, "*axes parameter"]:
        """Return the parameters that give these quantiles, at least `least_gap` apart."""
        gaps = quantiles.diff(dim=-1).clamp(min=least_gap)
        inverse = gaps + torch.log(-torch.expm1(-gaps))
        median = quantiles[..., self.median : self.median + 1]
        return torch.cat([inverse[..., : self.median], median, inverse[..., self.median :]], dim=-1)

    def mean(self, quantiles: Float[Tensor, "*axes quantile"]) -> Float[Tensor, "*axes"]:
        """Return the mean of the distribution that is linear between the quantiles and ends at the outer ones."""
        return quantiles @ self.mean_weights.to(quantiles.dtype)

    def errors(
        self, quantiles: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the loss of each forecast: the pinball loss, doubled (the median alone gives the absolute error)."""
        return pinball(quantiles, target, self.levels)


def pinball(
    quantiles: Float[Tensor, "*axes quantile"], target: Float[Tensor, "*axes"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "*axes"]:
    """Return twice the pinball loss, averaged over the levels (Koenker & Bassett 1978)."""
    error = target.unsqueeze(-1) - quantiles
    return 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(-1)


def empirical_quantiles(
    values: Float[Tensor, "sample horizon"], mask: Bool[Tensor, "sample horizon"], levels: Float[Tensor, " quantile"]
) -> Float[Tensor, "horizon quantile"]:
    """Return the quantiles of the masked samples at each step; zeros where a step has no sample."""
    if not len(values):
        return values.new_zeros(values.shape[1], len(levels))
    found = torch.nanquantile(values.double().masked_fill(~mask, math.nan), levels.double(), dim=0).T
    return found.nan_to_num(0.0).to(values.dtype)
