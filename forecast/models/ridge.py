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
from forecast.models.origins import passes, recency, rounds
from forecast.models.recurrent import loss_weights, targets


@dataclass(frozen=True)
class Origins:
    """What the frozen network gives at the last N steps of a group of G series; origin j is step `usable - N + j`."""

    features: Tensor
    """[G, N, feature], times the square root of the origin's weight: 0 where it is not usable."""
    residual: Tensor
    """[G, N, shift], `Head.residual` at all steps of the horizon, 0 where not observed, weighted likewise."""
    columns: Tensor
    """[G, window, horizon, column] at the held-out cutoffs, oldest first: quantiles or probabilities."""
    held_features: Tensor
    """[G, window, feature] there, unweighted."""
    target: Tensor
    weight: Tensor
    """[G, window, horizon] at the held-out cutoffs; weight 0 where not observed."""


def at_origins(
    network: Forecaster,
    data: PanelTensors,
    series: IntArray,
    usable: IntArray,
    n_origins: int,
    n_windows: int,
    half_life: float | None,
) -> Origins:
    """Run the network once over the last `n_origins` steps of each series; every step is an origin."""
    horizon, segment = network.shape.horizon, network.shape.segment_length
    chunks, total = rounds(network.shape, n_origins).chunks, rounds(network.shape, n_origins).total
    parts: list[tuple[Tensor, Tensor]] = []
    kept: list[tuple[Tensor, ...]] = []
    for row, ago, batch, origins in passes(network, data, series, usable, n_origins):
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        weight = loss_weights(target, observed, output.frame, network.shape)
        recent = recency(ago.to(weight.device), half_life)
        strength = (weight.amax(-1) * recent).sqrt()[..., None]
        residual = output.head.residual(output.arguments, target) * (weight > 0)[..., None]
        features = head_features(output, network.shape)
        parts.append((features * strength, residual.flatten(-2) * strength))
        for window in range(n_windows):
            here, local = torch.nonzero(ago == (n_windows - window) * horizon, as_tuple=True)
            columns = output.head.columns(output.arguments[here, local])
            picked = (columns, features[here, local], target[here, local], weight[here, local])
            kept.append((row[here], torch.full_like(here, window), *picked))
    features, residual = (
        torch.cat(part)
        .unflatten(0, (len(series), chunks, segment))
        .transpose(2, 3)
        .flatten(1, 3)[:, total - n_origins :]
        for part in zip(*parts, strict=True)
    )
    at_row, at_window, *values = (torch.cat(column) for column in zip(*kept, strict=True))
    order = (at_row * n_windows + at_window).argsort()
    return Origins(features, residual, *(value[order].unflatten(0, (len(series), n_windows)) for value in values))


class Solved(NamedTuple):
    """The normal equations of a group of series in the basis of their eigenvectors."""

    values: Tensor
    """[G, feature]."""
    vectors: Tensor
    """[G, feature, eigenvector]."""
    projected: Tensor
    """[G, eigenvector, shift], the right-hand side."""
    curvature: Tensor
    """[G, 1, shift], of the loss: 1 for squares."""

    def coefficients(self, penalty: Tensor) -> Tensor:
        """Return the solution for one penalty, or one of each series ([G, 1, 1]), [G, eigenvector, shift]."""
        return self.projected / (self.values[..., None] * self.curvature + penalty)


def decompose(known: Origins, head: Head, *, last: int, count: int) -> Solved:
    """Return the solved normal equations of the origins up to `last`."""
    part = slice(max(last - count + 1, 0), last + 1)
    features, residual = known.features[:, part].double(), known.residual[:, part].double()
    values, vectors = torch.linalg.eigh(features.mT @ features)
    curvature = torch.ones_like(residual[:, :1])
    if isinstance(head, CategoricalHead):
        # The first feature is 1, weighted: its squares are the weights.
        weight = features[..., :1].square().sum(1, keepdim=True).clamp(min=1e-9)
        curvature = residual.square().sum(1, keepdim=True) / weight
    return Solved(values.clamp(min=0), vectors, vectors.mT @ (features.mT @ residual), curvature)
