"""Series that are fine-tuned by gradient, a group at once."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.finetuning.final_bank import begun_at, descend
from forecast.finetuning.trials import (
    IS_CONSTANT,
    IS_DIVERGED,
    LOSS,
    SHARES,
    TOLD,
    Columns,
    Fit,
    Present,
    TuningSettings,
    is_constant,
    stated,
    window_losses,
)
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import BLEND
from forecast.models.adapters.examples import Examples, Remembered, Rolled
from forecast.models.adapters.optimiser import Descent
from forecast.models.adapters.origins import alone, held_out
from forecast.models.adapters.stacked import Changes
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, Member, require_tunable

# Rates that each series chooses from.
RATES: dict[str, tuple[float, ...]] = {
    "bias": (0.1, 0.02),
    "embedding": (0.1, 0.02),
    "lora": (0.01, 0.003),
    "full": (2e-3, 5e-4),
}
# Steps between two looks at a series' own held-out origins, how many of these there are, and how many looks without
# any gain it takes until a series stops.
_LOOK_EVERY = 5
_LOOKS = 4
_PATIENCE = 3
STEPS = 60


@dataclass
class GradientGroup:
    """Series with changes by gradient, by an Adam each."""

    network: Forecaster
    data: PanelTensors
    series: IntArray
    usable: IntArray
    settings: TuningSettings

    @cached_property
    def _member(self) -> tuple[Member, float]:
        """The network that is changed, and its share of the forecast."""
        return require_tunable(self.network)

    @cached_property
    def _examples(self) -> Examples:
        (network, _), settings = self._member, self.settings
        judged = torch.cat([self._held, self._looked])
        if settings.kind in stacked.FROZEN:
            return Remembered(network, self.data, self.series, self.usable, settings, judged)
        return Rolled(network, self.data, self.series, self.usable, settings)

    @property
    def _n_windows(self) -> int:
        return self.settings.gate_windows + self.settings.report_windows

    @property
    def _held(self) -> Tensor:
        return torch.from_numpy(held_out(self.network.shape.horizon, self._n_windows))

    @property
    def _end(self) -> int:
        """Steps before the end that nothing is fitted on while changes are tried."""
        return (self._n_windows + 2) * self.network.shape.horizon

    @property
    def _looked(self) -> Tensor:
        return self._end - torch.linspace(0, self.network.shape.horizon, _LOOKS).round().long()

    @property
    def _unchanged(self) -> Changes:
        (network, _), settings = self._member, self.settings
        return stacked.unchanged(network, settings.kind, len(self.series), settings.rank)

    def some(self, rows: IntArray) -> Self:
        """Return some of the series, without another pass of the network."""
        other = copy.copy(self)
        other.series, other.usable = self.series[rows], self.usable[rows]
        other._examples = self._examples.some(torch.from_numpy(rows).to(self.data.device))
        return other

    def trial(self) -> Columns:
        """Return the losses of all shares, [G, window, share], and how the changes were found.

        Rate and steps of each series are those that do best on origins of its own, after those that are fitted on and
        before the gate's.
        """
        examples, head, settings = self._examples, self.network.head, self.settings
        found = _search(examples, self._unchanged, self._looked, self._end, settings)
        with torch.no_grad():
            each = [
                examples.at(stacked.blended(found.changes, torch.full_like(found.rate, share)), self._held)
                for share in shares_of(settings)
            ]
            columns = [head.predicted(arguments) for arguments in self._mixed([one.arguments for one in each])]
            target, weight = each[0].target, each[0].weight
            loss = torch.stack([window_losses(head, one, target, weight) for one in columns], -1).cpu().numpy()
        told = np.stack([stated(head, one[:, settings.gate_windows :]) for one in columns], 1)
        steps = found.steps.cpu().numpy()
        return {
            LOSS: loss,
            IS_CONSTANT: is_constant(head, loss, target, weight, settings),
            "learning_rate": np.where(steps > 0, found.rate.cpu().numpy(), np.nan),
            "steps": steps.astype(np.float64),
            IS_DIVERGED: found.diverged,
            TOLD: told,
        }

    def _mixed(self, each: list[Tensor]) -> list[Tensor]:
        """Return the forecasts of the whole model on the held-out windows, from those of the network that is changed.

        `each` has its arguments [G, window, horizon, argument] with changes, the first without any.
        """
        share = self._member[1]
        if share == 1:
            return each
        windows = alone(self.network, self.data, self.series, self.usable, self._held.numpy())
        base = torch.cat([self.network(given.batch, given.origins).arguments[:, 0] for given in windows])
        base = base.unflatten(0, each[0].shape[:2])
        return [base + share * (arguments - each[0]) for arguments in each]

    def fit(self, how: Columns, present: Present) -> Fit:
        """Return the changes after the `steps` at the `learning_rate` of each series, on all its origins.

        They go on from the `present` ones, if there are any.
        """
        begin = begun_at(*present, self._unchanged) if present else self._unchanged
        rate, steps = (torch.from_numpy(how[name]).to(self.data.device) for name in ("learning_rate", "steps"))
        descent = descend(self._examples, begin, rate, steps.long())
        changes = {**descent.changes, BLEND: torch.from_numpy(how[BLEND]).float().to(self.data.device)}
        finite = descent.finite
        return Fit({name: values[finite].cpu() for name, values in changes.items()}, finite.cpu().numpy(), how[TOLD])


def shares_of(settings: TuningSettings) -> list[float]:
    """Return by how much of the changes by gradient series are forecast; the first is the base."""
    return [0.0, *(share * settings.blend for share in SHARES)]


@dataclass(frozen=True)
class _Found:
    """Of each of G series what does best on its own held-out origins."""

    changes: Changes
    rate: Tensor
    steps: Tensor
    """[G]; 0 where nothing gains."""
    diverged: np.ndarray
    """[G], whether nothing gains and every rate ended in numbers that are not finite."""


def _search(examples: Examples, start: Changes, looked: Tensor, end: int, settings: TuningSettings) -> _Found:
    head = examples.network.head

    @torch.no_grad()
    def look(changes: Changes) -> Tensor:
        return examples.at(changes, looked).loss(head).nan_to_num(nan=torch.inf)

    base = look(start)
    best, least = start, base
    rate, steps = torch.zeros_like(base, dtype=torch.float64), torch.zeros_like(base, dtype=torch.long)
    diverged = torch.ones_like(base, dtype=torch.bool)
    most = STEPS if settings.steps is None else settings.steps
    for one in settings.learning_rates or RATES[settings.kind]:
        descent = Descent(start, torch.full_like(rate, one))
        own, waited = base, torch.zeros_like(steps)
        for step in range(most):
            descent.step(examples.loss(step, end), waited < _PATIENCE)
            if (step + 1) % _LOOK_EVERY and step + 1 < most:
                continue
            loss = torch.where((waited < _PATIENCE) & descent.finite, look(descent.changes), torch.inf)
            better = loss < least
            best, least = stacked.kept(descent.changes, best, better), torch.where(better, loss, least)
            rate, steps = rate.masked_fill(better, one), steps.masked_fill(better, step + 1)
            waited, own = torch.where(loss < own, 0, waited + 1), torch.minimum(loss, own)
            if bool((waited >= _PATIENCE).all()):
                break
        diverged &= ~descent.finite
    return _Found(best, rate, steps, (diverged & (steps == 0)).cpu().numpy() & (most > 0))
