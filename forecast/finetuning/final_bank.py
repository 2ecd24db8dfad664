"""The final fit of a fine-tuning: what the gate has let in, fitted once more on all rows of a panel.

Penalties and widths, rates, steps and shares stay as they were chosen; the base is the one after its own final fit.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forecast.config import FinetuneSettings
from forecast.data.panel import IntArray
from forecast.models.adapters import head_ridge, stacked
from forecast.models.adapters.bank import BLEND, HEAD, Bank
from forecast.models.adapters.examples import Examples, Remembered, Rolled
from forecast.models.adapters.optimiser import Descent
from forecast.models.adapters.stacked import Changes
from forecast.models.heads.base import Head
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, require_tunable

_PREFIX = "final/"


@dataclass(frozen=True)
class FinalBank:
    """Fits the changes of kept series on all rows of a panel."""

    network: Forecaster
    """Of the final base."""
    bank: Bank | None
    """What series have beside it now, in an incremental fine-tuning."""
    data: PanelTensors
    lengths: IntArray
    """[S], the steps of each series of the panel."""
    settings: FinetuneSettings

    def fit(self, series: IntArray, names: list[str], columns: dict[str, np.ndarray], changes: Changes) -> Changes:
        """Return the changes of kept series beside their final ones, which `split` takes apart.

        `columns` say how each of the series was changed. One whose fit is not finite keeps its changes as they are.
        """
        if not len(series):
            return changes
        if self.settings.kind == HEAD:
            fitted = self._head(series, columns["penalty"], columns[BLEND], changes["width"])
        else:
            fitted = self._by_gradient(series, names, columns["learning_rate"], columns["steps"])
            fitted[BLEND] = changes[BLEND]
        finite = torch.stack([torch.isfinite(values).flatten(1).all(1) for values in _columns(fitted)]).all(0)
        return changes | {_PREFIX + name: values for name, values in stacked.kept(fitted, changes, finite).items()}

    @torch.inference_mode()
    def _head(self, series: IntArray, penalty: np.ndarray, share: np.ndarray, width: Tensor) -> Changes:
        """Return the maps of series for their penalties; none where that is NaN: there the width alone is changed."""
        horizon, settings = self.network.shape.horizon, self.settings
        n_steps = settings.origins + 2 * horizon
        lengths = self.lengths[series]
        known = head_ridge.at_origins(self.network, self.data, series, lengths, n_steps, 1, settings.half_life)
        how = (torch.from_numpy(values).to(self.data.device) for values in (penalty, share))
        weight = solved_weights(known, self.network.head, *how, ago=horizon, count=settings.origins)
        return {"weight": weight.cpu(), "width": width}

    def _by_gradient(self, series: IntArray, names: list[str], rate: np.ndarray, steps: np.ndarray) -> Changes:
        (network, _), device = require_tunable(self.network), self.data.device
        lengths, settings = self.lengths[series], self.settings
        examples: Examples
        if settings.kind in stacked.FROZEN:
            ago = torch.tensor([network.shape.horizon])
            examples = Remembered(network, self.data, series, lengths, settings, ago)
        else:
            examples = Rolled(network, self.data, series, lengths, settings)
        begin = stacked.unchanged(network, settings.kind, len(series), settings.rank)
        if self.bank is not None:
            begin = begun_at(self.bank, self.bank.rows(names), begin)
        descent = descend(examples, begin, torch.from_numpy(rate).to(device), torch.from_numpy(steps).to(device))
        return {name: values.cpu() for name, values in descent.changes.items()}


def solved_weights(
    known: head_ridge.Origins, head: Head, penalty: Tensor, share: Tensor, *, ago: int, count: int
) -> Tensor:
    """Return shares of the maps of `ridge.weights`, and no map where the penalty is NaN."""
    weight = share[:, None, None] * head_ridge.weights(known, head, penalty.nan_to_num(nan=1.0), ago=ago, count=count)
    return weight.masked_fill(penalty.isnan()[:, None, None], 0.0).to(known.features.dtype)


def begun_at(bank: Bank, rows: Tensor, start: Changes) -> Changes:
    """Return the changes that series have in a bank, by their rows; those of `start` where that is -1."""
    if not bank.series_id:
        return start
    there = {name: bank.tensors[name][rows.clamp(min=0)].to(values) for name, values in start.items()}
    device = next(iter(start.values())).device
    return stacked.kept(there, start, (rows >= 0).to(device))


def descend(examples: Examples, begin: Changes, rate: Tensor, steps: Tensor) -> Descent:
    """Return the changes after so many steps of each series on all its origins."""
    descent = Descent(begin, rate)
    for step in range(int(steps.max()) if len(steps) else 0):
        descent.step(examples.loss(step, 0), steps > step)
    return descent


def split(changes: Changes) -> tuple[Changes, Changes]:
    """Return the evaluated changes and the final ones, which are the same where there are no others."""
    plain = {name: values for name, values in changes.items() if not name.startswith(_PREFIX)}
    return plain, {name: changes.get(_PREFIX + name, values) for name, values in plain.items()}


def _columns(changes: Changes) -> list[Tensor]:
    return [values if values.ndim > 1 else values[:, None] for values in changes.values()]
