"""The closed form of fine-tuning: a linear map for each series to what the frozen network leaves over."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.models.bank import head_features
from forecast.models.batch import PanelTensors
from forecast.models.ensemble import Forecaster
from forecast.models.heads import CategoricalHead, Head
from forecast.models.origins import alone, apart, forecast, held_out, passes, recency, rounds


@dataclass(frozen=True)
class Origins:
    """What the frozen network gives at the latest origins of G series, up to the last usable step, oldest first."""

    every: int
    """Steps between origins."""
    features: Tensor
    """[G, origin, feature], times the square root of the origin's weight: 0 where it is not usable."""
    residual: Tensor
    """[G, origin, shift], `Head.residual` at all steps of the horizon, 0 where not observed, weighted likewise."""
    columns: Tensor
    """[G, window, horizon, column] at the held-out cutoffs, oldest first: quantiles or probabilities."""
    held_features: Tensor
    """[G, window, feature] there, unweighted."""
    target: Tensor
    weight: Tensor
    """[G, window, horizon] at the held-out cutoffs; weight 0 where not observed."""

    def some(self, rows: Tensor) -> "Origins":
        """Return those of some of the series."""
        parts = (self.features, self.residual, self.columns, self.held_features, self.target, self.weight)
        return Origins(self.every, *(part[rows] for part in parts))


def at_origins(
    network: Forecaster,
    data: PanelTensors,
    series: IntArray,
    usable: IntArray,
    n_steps: int,
    n_windows: int,
    half_life: float | None,
) -> Origins:
    """Run the network over the last `n_steps` steps of each series, and at its held-out cutoffs.

    An origin counts for all steps since the one before.
    """
    every = apart(network.shape)
    parts: list[tuple[Tensor, Tensor]] = []
    for given in passes(network, data, series, usable, n_steps, every):
        output, target, weight = forecast(network, given)
        recent = every * recency(given.ago.to(weight.device), half_life)
        strength = (weight.amax(-1) * recent).sqrt()[..., None]
        residual = output.head.residual(output.arguments, target) * (weight > 0)[..., None]
        parts.append((head_features(output, network.shape) * strength, residual.flatten(-2) * strength))
    _, chunks, _, phases = rounds(network.shape, n_steps, every)
    features, residual = (
        torch.cat(part).unflatten(0, (len(series), chunks, len(phases))).transpose(2, 3).flatten(1, 3)
        for part in zip(*parts, strict=True)
    )
    held: list[tuple[Tensor, ...]] = []
    for given in alone(network, data, series, usable, held_out(network.shape.horizon, n_windows)):
        output, target, weight = forecast(network, given)
        held.append((output.head.columns(output.arguments), head_features(output, network.shape), target, weight))
    rest = (torch.cat(part)[:, 0].unflatten(0, (len(series), n_windows)) for part in zip(*held, strict=True))
    return Origins(every, features, residual, *rest)


class Solved(NamedTuple):
    """A ridge regression of each of a group of series, solved for all penalties: `basis` times `coefficients`.

    With Z the features: in the eigenvectors of Z'Z, or of ZZ' where origins are fewer than features.
    """

    values: Tensor
    """[G, eigenvector]."""
    basis: Tensor
    """[G, feature, eigenvector]."""
    projected: Tensor
    """[G, eigenvector, shift], the right-hand side."""
    curvature: Tensor
    """[G, 1, shift], of the loss: 1 for squares."""

    def coefficients(self, penalty: Tensor) -> Tensor:
        """Return those for one penalty, or one of each series ([G, 1, 1]), [G, eigenvector, shift]."""
        return self.projected / (self.values[..., None] * self.curvature + penalty)


def decompose(known: Origins, head: Head, *, ago: int, count: int) -> Solved:
    """Return the solved normal equations of the origins in `count` steps, the last of which is `ago` steps ago."""
    n_origins = known.features.shape[1]
    end = n_origins - -(-ago // known.every)
    part = slice(max(end - -(-count // known.every), 0), end)
    features, residual = known.features[:, part].double(), known.residual[:, part].double()
    curvature = torch.ones_like(residual[:, :1])
    if isinstance(head, CategoricalHead):
        # The first feature is 1, weighted: its squares are the weights.
        weight = features[..., :1].square().sum(1, keepdim=True).clamp(min=1e-9)
        curvature = residual.square().sum(1, keepdim=True) / weight
    if features.shape[1] < features.shape[2]:
        values, vectors = torch.linalg.eigh(features @ features.mT)
        basis, projected = features.mT @ vectors, vectors.mT @ residual
    else:
        values, basis = torch.linalg.eigh(features.mT @ features)
        projected = basis.mT @ (features.mT @ residual)
    return Solved(values.clamp(min=0), basis, projected, curvature)
