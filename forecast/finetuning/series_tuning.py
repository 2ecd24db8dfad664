"""Changes for each series of a panel: two passes over groups of series, and the gate between them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.data.panel import IntArray, Panel
from forecast.errors import OutputError
from forecast.finetuning.final_bank import FinalBank
from forecast.finetuning.gradient_group import RATES, GradientGroup
from forecast.finetuning.head_group import HeadGroup
from forecast.finetuning.series_gate import DIVERGED, NOT_FINITE, TUNED, Gated, gated
from forecast.finetuning.trials import TOLD, Columns, Fit, TuningSettings, n_origin_steps
from forecast.models.adapters.bank import HEAD, head_feature_count
from forecast.models.adapters.examples import group_numbers
from forecast.models.adapters.origins import apart
from forecast.models.adapters.stacked import Changes
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, require_tunable
from forecast.models.runtime.state_file import read_state, write_state

_LOG = logging.getLogger(__name__)

# Numbers held at once for a group of series.
GROUP_NUMBERS = {"cpu": 60_000_000, "cuda": 2_000_000_000}

ROW = "row"

# The two passes, as their files in the checkpoint are named. The first takes most of the time.
_TRIAL, _FIT = "trial", "fit"
_TRIAL_SHARE = 0.8


def tune(
    artifact: Artifact,
    panel: Panel,
    data: PanelTensors,
    chosen: IntArray,
    usable: IntArray,
    settings: TuningSettings,
    *,
    progress: Callable[[float, str], None] | None,
    final: FinalBank | None,
    described: dict[str, Any],
) -> tuple[Columns, list[str], Changes]:
    """Return columns of the `chosen` series, and the ids and stacked changes of those that are kept, in this order.

    The losses of all groups come first, for the gate needs those of all series; then what is kept is fitted. The
    changes of the final fit are among these (`final_bank.split`). `described` is all that the job depends on.
    """
    if not len(chosen):
        return {}, [], {}
    groups = _Groups(artifact, data, chosen, usable, settings, described)
    tell = progress or (lambda _done, _text: None)
    trials = []
    for number in range(groups.count):
        trials.append(groups.trial(number))
        tell(_TRIAL_SHARE * (number + 1) / groups.count, f"{groups.end(number):,} series tried")
    table = {name: np.concatenate([part[name] for part in trials]) for name in trials[0]}
    windows = np.arange(-settings.gate_windows, 0) - settings.report_windows
    cutoffs = (panel.start + usable)[chosen, None] + windows * artifact.horizon
    verdict = gated(table, cutoffs // artifact.horizon, settings)
    fits = []
    for number in range(groups.count):
        fits.append(groups.fit(number, verdict, panel, final))
        tell(_TRIAL_SHARE + (1 - _TRIAL_SHARE) * (number + 1) / groups.count, f"{groups.end(number):,} series fitted")
    groups.clear()
    kept = np.flatnonzero(verdict.reason == TUNED)
    failed = np.zeros(len(chosen), dtype=bool)
    failed[kept] = ~np.concatenate([fit.finite for fit in fits])
    verdict = verdict.without(failed, NOT_FINITE if settings.kind == HEAD else DIVERGED)
    told = np.zeros((len(chosen), *fits[0].told.shape[1:]), dtype=fits[0].told.dtype)
    told[kept] = np.concatenate([fit.told for fit in fits])
    changes = {name: torch.cat([fit.changes[name] for fit in fits]) for name in fits[0].changes}
    names = panel.series_id[chosen[verdict.reason == TUNED]].tolist()
    return {ROW: chosen, **verdict.columns(), TOLD: told}, names, changes


class _Groups:
    """The series of a job in groups that fit into memory."""

    def __init__(
        self,
        artifact: Artifact,
        data: PanelTensors,
        chosen: IntArray,
        usable: IntArray,
        settings: TuningSettings,
        described: dict[str, Any],
    ) -> None:
        self._artifact, self._data, self._usable, self._settings = artifact, data, usable, settings
        self._size = max(1, GROUP_NUMBERS[data.device.type] // _numbers(artifact.network, settings))
        self._chosen, self.count = chosen, -(-len(chosen) // self._size)
        self._store = None
        if settings.checkpoint is not None:
            self._store = _Store(
                Path(settings.checkpoint), {**described, "group": self._size, "device": data.device.type}
            )
        self._group: HeadGroup | GradientGroup | None = None

    def end(self, number: int) -> int:
        """Return how many series there are up to the end of a group."""
        return min((number + 1) * self._size, len(self._chosen))

    def clear(self) -> None:
        """Delete the checkpoint."""
        if self._store:
            self._store.clear()

    def _of(self, series: IntArray) -> HeadGroup | GradientGroup:
        kind = HeadGroup if self._settings.kind == HEAD else GradientGroup
        return kind(self._artifact.network, self._data, series, self._usable[series], self._settings)

    def trial(self, number: int) -> Columns:
        """Return the losses of a group, and what else is known of its series."""
        trial = self._store.read(_TRIAL, number) if self._store else None
        if trial is None:
            self._group = None  # What it holds would come on top.
            self._group = self._of(self._chosen[number * self._size : self.end(number)])
            trial = {name: torch.from_numpy(values) for name, values in self._group.trial().items()}
            if self._store:
                self._store.write(_TRIAL, number, trial)
        return {name: values.numpy() for name, values in trial.items()}

    def fit(self, number: int, verdict: Gated, panel: Panel, final: FinalBank | None) -> Fit:
        """Return the changes of those of a group that are kept."""
        part = slice(number * self._size, self.end(number))
        rows = np.flatnonzero(verdict.reason[part] == TUNED)
        done = self._store.read(_FIT, number) if self._store else None
        if done is not None:
            finite, told = done.pop("is_finite").numpy(), done.pop(TOLD).numpy()
            return Fit(done, finite, told)
        series = self._chosen[part]
        if self.count == 1:
            # What the trial has read is still there, unless that was before a kill.
            group = (self._group or self._of(series)).some(rows)
        elif len(rows):
            self._group = None
            group = self._of(series[rows])
        else:
            group = self._of(series[:1]).some(rows)
        series = series[rows]
        names = panel.series_id[series].tolist()
        how = {name: values[part][rows] for name, values in verdict.how.items()}
        before = self._artifact.bank
        fit = group.fit(how, (before, before.rows(names)) if before else None)
        if final:
            finite = fit.finite
            columns = {name: values[finite] for name, values in how.items()}
            names = [name for name, is_finite in zip(names, finite, strict=True) if is_finite]
            fit = fit._replace(changes=final.fit(series[finite], names, columns, fit.changes))
        if self._store:
            others = {"is_finite": torch.from_numpy(fit.finite), TOLD: torch.from_numpy(fit.told)}
            self._store.write(_FIT, number, fit.changes | others)
        return fit


# --- memory, and going on


def _numbers(network: Forecaster, settings: TuningSettings) -> int:
    """Return how many numbers a series takes in its group."""
    if settings.kind in RATES:
        return group_numbers(require_tunable(network)[0], settings)
    n_features = head_feature_count(network.shape, network.state_size)
    n_shifts = network.shape.horizon * max(network.shape.n_classes, 1)
    n_origins = -(-n_origin_steps(network, settings) // apart(network.shape))
    # In single precision, and for a solution in double; the eigenvectors likewise.
    return 3 * n_origins * (n_features + n_shifts) + 2 * n_features * n_features


class _Store:
    """The groups that are done, on disk, a file for each and for each of the two passes."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings

    def _path(self, stage: str, number: int) -> Path:
        return self._folder / f"{stage}-{number:05d}.safetensors"

    def read(self, stage: str, number: int) -> dict[str, Tensor] | None:
        """Return a group, None where it is not done. Raises ConfigError if it is of another job."""
        path = self._path(stage, number)
        if not path.exists():
            return None
        return read_state(path, self._settings, key="finetune.checkpoint", job="fine-tuning")[0]

    def write(self, stage: str, number: int, tensors: dict[str, Tensor]) -> None:
        """Keep a group, whole or not at all; where the disk is full, warn, and go on without it."""
        try:
            write_state(self._path(stage, number), tensors, self._settings, {})
        except OutputError as error:
            _LOG.warning("finetune.checkpoint: %s; the job goes on, a restart does this group again", error)

    def clear(self) -> None:
        """Delete all groups."""
        for stage in (_TRIAL, _FIT):
            for path in self._folder.glob(f"{stage}-*.safetensors"):
                path.unlink()
