"""The closed form of fine-tuning: a ridge regression of each series on the residuals of the frozen network."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from forecast.models.adapters.bank import head_features
from forecast.models.adapters.origins import (
    SPAN,
    N,
    SeriesGroup,
    chunking,
    forecast,
    held_out,
    iter_windows,
    origin_stride,
    recency,
    single_origin,
)
from forecast.models.heads.base import Head
from forecast.models.heads.categorical import CategoricalHead
from forecast.models.network.ensemble import members_of, reading_at_once, recurrent_members

# The same as `SPAN` with a pretrained member, whose context is long.
_PRETRAINED_SPAN = 2

# Of classes, where probabilities are next to 0 or 1.
_LEAST_CURVATURE = 1e-6


@dataclass(frozen=True)
class FitOrigins:
    """Features and residuals of the frozen network at the latest origins of G series, oldest first."""

    every: int
    """Steps between origins."""
    features: Tensor
    """[G, origin, feature], times the square root of the origin's weight: 0 where it is not usable."""
    residual: Tensor
    """[G, origin, shift], `Head.residual` at all steps of the horizon, 0 where not observed, weighted likewise."""


@dataclass(frozen=True)
class Origins(FitOrigins):
    """The same, and what the network forecasts at held-out cutoffs."""

    columns: Tensor
    """[G, window, horizon, column] at the held-out cutoffs, oldest first: quantiles or probabilities."""
    held_features: Tensor
    """[G, window, feature] there, unweighted."""
    target: Tensor
    weight: Tensor
    """[G, window, horizon] at the held-out cutoffs; weight 0 where not observed."""

    def some(self, rows: Tensor) -> "Origins":
        """Return the origins of some of the series."""
        return Origins(self.every, *(part[rows] for part in self._parts))

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for part in self._parts)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.features, self.residual, self.columns, self.held_features, self.target, self.weight


def fit_origins(group: SeriesGroup[N], *, n_steps: int, half_life: float | None) -> FitOrigins:
    """Run the network over the last `n_steps` steps of each series, if it has as many.

    An origin counts for all steps since the one before.
    """
    network, n_series = group.network, len(group.series)
    stride = origin_stride(network.shape)
    fitting, contexts = network, SPAN
    if len(recurrent_members(network)) < len(members_of(network)):
        fitting, contexts = reading_at_once(network), _PRETRAINED_SPAN
    divided = chunking(network.shape, n_steps, stride, contexts).within(int(group.usable.max()))
    sizes = n_series, divided.chunks, len(divided.phases)
    parts: list[Tensor] = []
    for windows in iter_windows(group, divided, blank=False):
        output, target, weight = forecast(fitting, windows)
        recent = stride * recency(windows.ago.to(weight.device), half_life)
        strength = (weight.amax(-1) * recent).sqrt()[..., None]
        residual = output.head.residual(output.arguments, target) * (weight > 0)[..., None]
        part = head_features(output, network.shape) * strength, residual.flatten(-2) * strength
        if not parts:
            parts = [values.new_zeros(math.prod(sizes), *values.shape[1:]) for values in part]
        for values, of_windows in zip(parts, part, strict=True):
            values[windows.window] = of_windows
    return FitOrigins(stride, *(part.unflatten(0, sizes).transpose(2, 3).flatten(1, 3) for part in parts))


def at_origins(group: SeriesGroup[N], *, n_steps: int, n_windows: int, half_life: float | None) -> Origins:
    """Run the network as `fit_origins`, and at the held-out cutoffs of each series."""
    network, n_series = group.network, len(group.series)
    fitted = fit_origins(group, n_steps=n_steps, half_life=half_life)
    cutoff_parts: list[tuple[Tensor, ...]] = []
    for windows in single_origin(group, held_out(network.shape.horizon, n_windows)):
        output, target, weight = forecast(network, windows)
        cutoff_parts.append(
            (output.head.predicted(output.arguments), head_features(output, network.shape), target, weight)
        )
    cutoff_columns = (
        torch.cat(part)[:, 0].unflatten(0, (n_series, n_windows)) for part in zip(*cutoff_parts, strict=True)
    )
    return Origins(fitted.every, fitted.features, fitted.residual, *cutoff_columns)


class Solved(NamedTuple):
    """A ridge regression of each of G series, solved for all penalties: `basis` times `coefficients`.

    With Z the features: in the eigenvectors of Z'Z, or of ZZ' where origins are fewer than features.
    """

    values: Tensor
    """[G, eigenvector]."""
    basis: Tensor
    """[G, feature, eigenvector]."""
    projected: Tensor
    """[G, eigenvector, shift], the right-hand side."""
    dual: bool
    """Whether of ZZ'."""

    def weight(self, penalty: Tensor) -> Tensor:
        """Return the maps for one penalty of each series, [G, feature, shift]."""
        return self.basis @ (self.projected / (self.values + penalty[:, None])[..., None])


def solve(features: Tensor, residual: Tensor) -> Solved:
    """Return the solved normal equations of [G, origin, feature] and [G, origin, shift]."""
    if features.shape[1] < features.shape[2]:
        values, vectors = torch.linalg.eigh(features @ features.mT)
        return Solved(values.clamp(min=0), features.mT @ vectors, vectors.mT @ residual, True)
    values, basis = torch.linalg.eigh(features.mT @ features)
    return Solved(values.clamp(min=0), basis, basis.mT @ (features.mT @ residual), False)


def weights(origins: FitOrigins, head: Head, penalty: Tensor, *, ago: int, count: int) -> Tensor:
    """Return the maps that fit the origins in `count` steps, the last of which is `ago` steps ago.

    For one penalty of each series; [G, feature, shift].
    """
    end = _end(origins, ago)
    part = slice(max(end - -(-count // origins.every), 0), end)
    features, residual = origins.features[:, part].double(), origins.residual[:, part].double()
    return solve(features, residual / _curvature(features, residual, head)).weight(penalty)


def held_out_shifts(origins: Origins, head: Head, penalties: Tensor, *, horizon: int, count: int) -> Tensor:
    """Return the shifts at the held-out cutoffs, [G, window, penalty, shift], by what was known at each.

    The first cutoff's fit is on the origins in `count` steps, that of a later one on those since as well.

    The later ones are updates of the first. With H = (Z'Z + p)^-1 of the first, its map W, and U, E the origins since
    and what W misses there, that of the first k of them is W + H U_k' (1 + U_k H U_k')^-1 E_k (Woodbury 1950), and with
    LL' the Cholesky factors of 1 + U H U', of which those for k are a part, at features z it says
    zW + sum over i < k of (L^-1 U H z')_i (L^-1 E)_i.
    """
    n_windows = origins.target.shape[1]
    ends = [_end(origins, (n_windows - window + 1) * horizon) for window in range(n_windows)]
    first = max(ends[0] - -(-count // origins.every), 0)
    features, missed = origins.features[:, first : ends[-1]].double(), origins.residual[:, first : ends[-1]].double()
    begin, cutoff_features = ends[0] - first, origins.held_features.double()
    missed = missed / _curvature(features[:, :begin], missed[:, :begin], head)
    solved = solve(features[:, :begin], missed[:, :begin])
    later_features = torch.cat([features[:, begin:], cutoff_features], dim=1)
    projected = later_features @ solved.basis
    # [G, penalty, 1, eigenvector]
    shrunk = projected[:, None] / (solved.values[:, None] + penalties[:, None])[:, :, None]
    shifts_before = shrunk @ solved.projected[:, None]
    if solved.dual:
        inner = ((later_features @ later_features.mT)[:, None] - shrunk @ projected.mT[:, None]) / penalties[
            :, None, None
        ]
    else:
        inner = shrunk @ projected.mT[:, None]
    since = features.shape[1] - begin
    factor = torch.linalg.cholesky(
        inner[..., :since, :since] + torch.eye(since, dtype=inner.dtype, device=inner.device)
    )
    right = torch.cat([inner[..., :since, since:], missed[:, None, begin:] - shifts_before[..., :since, :]], dim=-1)
    toward, error = torch.linalg.solve_triangular(factor, right, upper=False).split(
        [n_windows, missed.shape[-1]], dim=-1
    )
    visible = torch.arange(since)[:, None] < torch.tensor(ends) - ends[0]
    toward = toward * visible.to(toward)
    shifts: Tensor = shifts_before[..., since:, :] + toward.mT @ error
    return shifts.transpose(1, 2)


def _end(origins: FitOrigins, ago: int) -> int:
    """Return how many of the origins are `ago` steps ago or more."""
    return origins.features.shape[1] - -(-ago // origins.every)


def _curvature(features: Tensor, residual: Tensor, head: Head) -> Tensor:
    """Return the curvature of the loss in each shift, [G, 1, shift]: 1 for squares.

    Of classes p (1 - p), averaged over the origins. The first feature is 1, weighted, and residuals are as well: 1 - p
    where the class came, and -p where not.
    """
    if not isinstance(head, CategoricalHead):
        return torch.ones_like(residual[:, :1])
    root_weight, size = features[..., :1], residual.abs()
    total = root_weight.square().sum(1, keepdim=True).clamp(min=1e-9)
    return ((size * (root_weight - size)).sum(1, keepdim=True) / total).clamp(min=_LEAST_CURVATURE)
