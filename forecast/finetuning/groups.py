"""The series of a fine-tuning in groups that fit into memory, which are tried and fitted independently."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeAlias

import numpy as np

from forecast.artifact import Artifact
from forecast.config import TuningSettings
from forecast.data.panel import IntArray, Panel
from forecast.finetuning.final_bank import FinalBank
from forecast.finetuning.gradient_group import GradientGroup
from forecast.finetuning.head_group import HeadGroup
from forecast.finetuning.trials import POINT_FORECAST, Columns
from forecast.models.adapters.bank import HEAD
from forecast.models.adapters.origins import SeriesGroup
from forecast.models.inputs.batch import PanelTensors
from forecast.models.runtime.torch_setup import prepare


@dataclass(frozen=True)
class TrialTask:
    """The losses of a group are wanted."""

    number: int


@dataclass(frozen=True, eq=False)
class FitTask:
    """The changes of the tuned series of a group are wanted."""

    number: int
    rows: IntArray
    """[tuned], index of each tuned series in its group."""
    change: Columns
    """Parameters of the change of each of them, as in `GateResult.change`."""


GroupTask: TypeAlias = TrialTask | FitTask
IS_FINITE: Final = "is_finite"

# From this share of tuned series on, a fit in closed form takes the passes of the network over its whole group: they
# are those of the trial, which may still be in memory. Whether they are must not matter for the bits of the result.
_WHOLE_SHARE: Final = 0.5
# Bytes of such passes that are kept from trials to fits, at most.
_KEPT_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class TuningWork:
    """What it takes to fine-tune the groups, here or in a worker of an engine."""

    artifact: Artifact
    """The base, with its changes in an incremental fine-tuning."""
    panel: Panel
    series: IntArray
    """[S], row of each series in the panel."""
    usable: IntArray
    """[S], steps of each series that a fit may use."""
    settings: TuningSettings
    device: str
    size: int
    """Number of series in a group; the last one may have fewer."""
    has_final: bool
    """Whether accepted changes are fitted once more on all rows."""

    @property
    def count(self) -> int:
        """Number of groups."""
        return -(-len(self.series) // self.size)

    def part(self, number: int) -> IntArray:
        """Return the indices of the series of a group."""
        return np.arange(number * self.size, min((number + 1) * self.size, len(self.series)))

    def open(self) -> Callable[[GroupTask], Columns]:
        """Return the function of a task."""
        prepare()
        return Groups(self, PanelTensors.of(self.panel, self.artifact.network, self.device), kept_bytes=0).run


class Groups:
    """The groups of a fine-tuning, on a panel that is on its device."""

    def __init__(self, work: TuningWork, data: PanelTensors, *, kept_bytes: int = _KEPT_BYTES) -> None:
        """Keep up to `kept_bytes` of passes of the network from trials to fits; those of a single group always."""
        self._work = work
        base = work.artifact.on(work.device)
        self._whole = SeriesGroup(base.network, data, work.series, work.usable)
        latest = work.artifact.uncalibrated().latest.on(work.device)
        self._final = FinalBank.of(latest, data, work.panel.lengths, work.settings) if work.has_final else None
        self._trials: dict[int, HeadGroup | GradientGroup] = {}
        self._free_bytes = kept_bytes

    def run(self, task: GroupTask) -> Columns:
        """Return the result of a task.

        Of a trial, the losses of a group and other columns. Of a fit, the changes of the tuned series, without those
        that are not finite; IS_FINITE and POINT_FORECAST of all tuned series.
        """
        return self._trial(task.number) if isinstance(task, TrialTask) else self._fit(task)

    def _open(self, rows: IntArray) -> HeadGroup | GradientGroup:
        """Return the group of some rows of the whole."""
        kind = HeadGroup if self._work.settings.kind == HEAD else GradientGroup
        return kind(self._whole.rows(rows), self._work.settings)

    @cached_property
    def _without_series(self) -> HeadGroup | GradientGroup:
        """A group of no series, for fits of groups without a tuned one: its tensors have the axes of the others."""
        return self._open(self._work.part(0)[:1]).subset(np.zeros(0, dtype=np.int64))

    def _trial(self, number: int) -> Columns:
        group = self._open(self._work.part(number))
        columns = group.trial()
        if self._work.count == 1:
            self._trials[number] = group
        elif isinstance(group, HeadGroup) and group.n_bytes <= self._free_bytes:
            self._trials[number] = group
            self._free_bytes -= group.n_bytes
        return columns

    def _fit(self, task: FitTask) -> Columns:
        part, rows, bank = self._work.part(task.number), task.rows, self._work.artifact.bank
        trial = self._trials.pop(task.number, None)
        in_closed_form = self._work.settings.kind == HEAD
        if self._work.count == 1 or (in_closed_form and len(rows) >= max(1, _WHOLE_SHARE * len(part))):
            group = (trial or self._open(part)).subset(rows)
        elif len(rows):
            group = self._open(part[rows])
        else:
            group = self._without_series
        del trial  # Frees the passes of series that are not fitted.
        series = self._whole.series[part[rows]]
        names = self._work.panel.series_id[series].tolist()
        fit = group.fit(task.change, (bank, bank.rows(names)) if bank else None)
        changes = fit.changes
        if self._final:
            columns = {name: values[fit.finite] for name, values in task.change.items()}
            names = [name for name, is_finite in zip(names, fit.finite, strict=True) if is_finite]
            changes = self._final.fit(series[fit.finite], names, columns, changes)
        arrays = {name: values.detach().numpy() for name, values in changes.items()}
        return arrays | {IS_FINITE: fit.finite, POINT_FORECAST: fit.point_forecast}
