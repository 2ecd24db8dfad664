"""Fine-tuning by gradient, for a group of series at once."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from forecast.config import TuningSettings
from forecast.data.panel import IntArray
from forecast.finetuning.final_bank import descend, start_from_bank
from forecast.finetuning.trials import (
    IS_CONSTANT,
    IS_DIVERGED,
    LOSS,
    POINT_FORECAST,
    SHARES,
    Columns,
    ExistingChanges,
    Fit,
    is_constant,
    point_forecast,
    window_losses,
)
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import BLEND
from forecast.models.adapters.examples import CachedExamples, Examples, FullExamples
from forecast.models.adapters.optimiser import BatchedAdam
from forecast.models.adapters.origins import SeriesGroup, held_out, single_origin
from forecast.models.adapters.stacked import Deltas
from forecast.models.network.ensemble import Forecaster, Member, require_tunable

# Learning rates that are tried for each series.
RATES: dict[str, tuple[float, ...]] = {
    "bias": (0.1, 0.02),
    "embedding": (0.1, 0.02),
    "lora": (0.01, 0.003),
    "full": (2e-3, 5e-4),
}
# Steps between two checks on a series' held-out origins, the number of these origins, and the number of checks without
# any gain after which a series stops.
_CHECK_EVERY = 5
_N_CHECK_ORIGINS = 4
_PATIENCE = 3
STEPS = 60


@dataclass
class GradientGroup:
    """A group of series whose changes are fitted by gradient, with one Adam optimiser per series."""

    group: SeriesGroup[Forecaster]
    settings: TuningSettings

    @cached_property
    def _member(self) -> tuple[Member, float]:
        """The network that is changed, and its weight in the ensemble."""
        return require_tunable(self.group.network)

    @cached_property
    def _examples(self) -> Examples:
        group, settings = SeriesGroup(self._member[0], *self.group[1:]), self.settings
        origins = torch.cat([self._holdout_ago, self._selection_ago])
        if settings.kind in stacked.FROZEN:
            return CachedExamples(group, settings, origins)
        return FullExamples(group, settings)

    @property
    def _n_windows(self) -> int:
        return self.settings.gate_windows + self.settings.report_windows

    @property
    def _holdout_ago(self) -> Tensor:
        return torch.from_numpy(held_out(self.group.network.shape.horizon, self._n_windows))

    @property
    def _fit_end_ago(self) -> int:
        """Number of steps before the end that are left out of the fit while changes are tried."""
        return (self._n_windows + 2) * self.group.network.shape.horizon

    @property
    def _selection_ago(self) -> Tensor:
        return self._fit_end_ago - torch.linspace(0, self.group.network.shape.horizon, _N_CHECK_ORIGINS).round().long()

    @property
    def _unchanged(self) -> Deltas:
        (network, _), settings = self._member, self.settings
        return stacked.unchanged(network, settings.kind, len(self.group.series), settings.rank)

    def subset(self, rows: IntArray) -> Self:
        """Return the group restricted to `rows`, without another pass of the network."""
        subset = copy.copy(self)
        subset.group = self.group.rows(rows)
        subset._examples = self._examples.some(torch.from_numpy(rows).to(self.group.data.device))
        return subset

    def trial(self) -> Columns:
        """Return the losses of all shares, [G, window, share], with learning rate and steps of each series.

        Rate and steps are those with the least loss on origins of the series that lie after those of the fit and before
        those of the gate.
        """
        examples, head, settings = self._examples, self.group.network.head, self.settings
        search = _search(examples, self._unchanged, self._selection_ago, self._fit_end_ago, settings)
        with torch.no_grad():
            blends = [
                examples.at(stacked.blended(search.changes, torch.full_like(search.rate, share)), self._holdout_ago)
                for share in shares_of(settings)
            ]
            columns = [
                head.predicted(arguments)
                for arguments in self._with_ensemble([candidate.arguments for candidate in blends])
            ]
            target, weight = blends[0].target, blends[0].weight
            loss = (
                torch.stack([window_losses(head, candidate, target, weight) for candidate in columns], -1).cpu().numpy()
            )
        points = np.stack([point_forecast(head, candidate[:, settings.gate_windows :]) for candidate in columns], 1)
        steps = search.steps.cpu().numpy()
        return {
            LOSS: loss,
            IS_CONSTANT: is_constant(head, loss, target, weight, settings),
            "learning_rate": np.where(steps > 0, search.rate.cpu().numpy(), np.nan),
            "steps": steps.astype(np.float64),
            IS_DIVERGED: search.diverged,
            POINT_FORECAST: points,
        }

    def _with_ensemble(self, arguments_by_share: list[Tensor]) -> list[Tensor]:
        """Return head arguments of the whole ensemble on the held-out windows, from those of the changed network.

        Each of `arguments_by_share` is [G, window, horizon, argument] of the changed network; the first has no changes.
        """
        share = self._member[1]
        if share == 1:
            return arguments_by_share
        windows, network = single_origin(self.group, self._holdout_ago.numpy()), self.group.network
        base_arguments = torch.cat([network(part.batch, part.origins).arguments[:, 0] for part in windows])
        base_arguments = base_arguments.unflatten(0, arguments_by_share[0].shape[:2])
        return [base_arguments + share * (arguments - arguments_by_share[0]) for arguments in arguments_by_share]

    def fit(self, chosen: Columns, existing: ExistingChanges) -> Fit:
        """Return the changes after `steps` steps at the `learning_rate` of each series, on all its origins.

        They start from the `existing` changes, if there are any.
        """
        start = start_from_bank(*existing, self._unchanged) if existing else self._unchanged
        rate, steps = (torch.from_numpy(chosen[name]).to(self.group.data.device) for name in ("learning_rate", "steps"))
        descent = descend(self._examples, start, rate, steps.long())
        changes = {**descent.changes, BLEND: torch.from_numpy(chosen[BLEND]).float().to(self.group.data.device)}
        finite = descent.finite
        return Fit(
            {name: values[finite].cpu() for name, values in changes.items()},
            finite.cpu().numpy(),
            chosen[POINT_FORECAST],
        )


def shares_of(settings: TuningSettings) -> list[float]:
    """Return the shares of the changes by gradient that are tried; the first is 0, the base."""
    return [0.0, *(share * settings.blend for share in SHARES)]


@dataclass(frozen=True)
class _SearchResult:
    """The changes of each of G series with the least loss on its held-out origins."""

    changes: Deltas
    rate: Tensor
    steps: Tensor
    """[G]; 0 where nothing gains."""
    diverged: np.ndarray
    """[G], whether nothing gains and every learning rate ended in values that are not finite."""


def _search(
    examples: Examples, start: Deltas, selection_ago: Tensor, fit_end_ago: int, settings: TuningSettings
) -> _SearchResult:
    head = examples.network.head

    @torch.no_grad()
    def check(changes: Deltas) -> Tensor:
        return examples.at(changes, selection_ago).loss(head).nan_to_num(nan=torch.inf)

    base = check(start)
    best, least = start, base
    rate, steps = torch.zeros_like(base, dtype=torch.float64), torch.zeros_like(base, dtype=torch.long)
    diverged = torch.ones_like(base, dtype=torch.bool)
    max_steps = STEPS if settings.steps is None else settings.steps
    for candidate_rate in settings.learning_rates or RATES[settings.kind]:
        descent = BatchedAdam(start, torch.full_like(rate, candidate_rate))
        least_of_rate, checks_without_gain = base, torch.zeros_like(steps)
        for step in range(max_steps):
            descent.step(examples.loss(step, fit_end_ago), checks_without_gain < _PATIENCE)
            if (step + 1) % _CHECK_EVERY and step + 1 < max_steps:
                continue
            loss = torch.where((checks_without_gain < _PATIENCE) & descent.finite, check(descent.changes), torch.inf)
            better = loss < least
            best, least = stacked.select_rows(descent.changes, best, better), torch.where(better, loss, least)
            rate, steps = rate.masked_fill(better, candidate_rate), steps.masked_fill(better, step + 1)
            checks_without_gain, least_of_rate = (
                torch.where(loss < least_of_rate, 0, checks_without_gain + 1),
                torch.minimum(loss, least_of_rate),
            )
            if bool((checks_without_gain >= _PATIENCE).all()):
                break
        diverged &= ~descent.finite
    return _SearchResult(best, rate, steps, (diverged & (steps == 0)).cpu().numpy() & (max_steps > 0))
