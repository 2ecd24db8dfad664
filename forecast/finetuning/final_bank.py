"""The final fit of a fine-tuning: changes that cleared the gate are fitted once more on all rows of a panel.

Penalties, widths, learning rates, steps and shares stay as chosen; the base is the one after its own final fit.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import TuningSettings
from forecast.data.panel import IntArray
from forecast.models.adapters import head_ridge, stacked
from forecast.models.adapters.bank import BLEND, HEAD, AdapterBank
from forecast.models.adapters.examples import CachedExamples, Examples, FullExamples
from forecast.models.adapters.optimiser import BatchedAdam
from forecast.models.adapters.origins import SeriesGroup
from forecast.models.adapters.stacked import Deltas
from forecast.models.heads.base import Head
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, require_tunable

_PREFIX = "final/"


@dataclass(frozen=True)
class FinalBank:
    """The final fit of tuned series on all rows of a panel."""

    network: Forecaster
    """The network of the final base."""
    bank: AdapterBank | None
    """Existing changes beside it, in an incremental fine-tuning."""
    data: PanelTensors
    lengths: IntArray
    """[S], the number of steps of each series of the panel."""
    settings: TuningSettings

    @classmethod
    def of(cls, base: Artifact, data: PanelTensors, lengths: IntArray, settings: TuningSettings) -> Self:
        """Return the final fit beside the final base, which is on the device of `data`."""
        return cls(base.network, base.bank, data, lengths, settings)

    def fit(self, series: IntArray, names: list[str], columns: dict[str, np.ndarray], changes: Deltas) -> Deltas:
        """Return the changes of tuned series together with their final ones; `split` separates the two.

        `columns` hold the chosen parameters of each series. A series whose final fit is not finite keeps its changes.
        """
        if not len(series):  # The groups of a panel are joined by name: each has final changes.
            return changes | {_PREFIX + name: values for name, values in changes.items()}
        if self.settings.kind == HEAD:
            fitted = self._head(series, columns["penalty"], columns[BLEND], changes["width"])
        else:
            fitted = self._by_gradient(series, names, columns["learning_rate"], columns["steps"])
            fitted[BLEND] = changes[BLEND]
        finite = torch.stack([torch.isfinite(values).flatten(1).all(1) for values in _columns(fitted)]).all(0)
        return changes | {
            _PREFIX + name: values for name, values in stacked.select_rows(fitted, changes, finite).items()
        }

    @torch.inference_mode()
    def _head(self, series: IntArray, penalty: np.ndarray, share: np.ndarray, width: Tensor) -> Deltas:
        """Return the linear maps of series for their penalties; zeros where the penalty is NaN: only widths change."""
        horizon, settings = self.network.shape.horizon, self.settings
        group = SeriesGroup(self.network, self.data, series, self.lengths[series])
        origins = head_ridge.fit_origins(group, n_steps=settings.origins + 2 * horizon, half_life=settings.half_life)
        chosen = (torch.from_numpy(values).to(self.data.device) for values in (penalty, share))
        weight = solved_weights(origins, self.network.head, *chosen, ago=horizon, count=settings.origins)
        return {"weight": weight.cpu(), "width": width}

    def _by_gradient(self, series: IntArray, names: list[str], rate: np.ndarray, steps: np.ndarray) -> Deltas:
        (network, _), device = require_tunable(self.network), self.data.device
        group, settings = SeriesGroup(network, self.data, series, self.lengths[series]), self.settings
        examples: Examples
        if settings.kind in stacked.FROZEN:
            ago = torch.tensor([network.shape.horizon])
            examples = CachedExamples(group, settings, ago)
        else:
            examples = FullExamples(group, settings)
        start = stacked.unchanged(network, settings.kind, len(series), settings.rank)
        if self.bank is not None:
            start = start_from_bank(self.bank, self.bank.rows(names), start)
        descent = descend(examples, start, torch.from_numpy(rate).to(device), torch.from_numpy(steps).to(device))
        return {name: values.cpu() for name, values in descent.changes.items()}


def solved_weights(
    origins: head_ridge.FitOrigins, head: Head, penalty: Tensor, share: Tensor, *, ago: int, count: int
) -> Tensor:
    """Return the linear maps of `head_ridge.weights` times `share`, [G, ...]; zeros where the penalty is NaN."""
    weight = share[:, None, None] * head_ridge.weights(origins, head, penalty.nan_to_num(nan=1.0), ago=ago, count=count)
    return weight.masked_fill(penalty.isnan()[:, None, None], 0.0).to(origins.features.dtype)


def start_from_bank(bank: AdapterBank, rows: Tensor, start: Deltas) -> Deltas:
    """Return the changes at `rows` of a bank; those of `start` where the row is -1."""
    if not bank.series_id:
        return start
    bank_changes = {name: bank.tensors[name][rows.clamp(min=0)].to(values) for name, values in start.items()}
    device = next(iter(start.values())).device
    return stacked.select_rows(bank_changes, start, (rows >= 0).to(device))


def descend(examples: Examples, start: Deltas, rate: Tensor, steps: Tensor) -> BatchedAdam:
    """Return the optimiser after `steps` steps of each series, [G], on all its origins."""
    descent = BatchedAdam(start, rate)
    for step in range(int(steps.max()) if len(steps) else 0):
        descent.step(examples.loss(step, 0), steps > step)
    return descent


def split(changes: Deltas) -> tuple[Deltas, Deltas]:
    """Return the evaluated changes and the final ones; without a final fit both are the same."""
    plain = {name: values for name, values in changes.items() if not name.startswith(_PREFIX)}
    return plain, {name: changes.get(_PREFIX + name, values) for name, values in plain.items()}


def _columns(changes: Deltas) -> list[Tensor]:
    return [values if values.ndim > 1 else values[:, None] for values in changes.values()]
