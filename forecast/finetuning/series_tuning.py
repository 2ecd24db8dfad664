"""Search for changes of each series of a panel: two passes over groups of series, with the gate between them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecast.config import TuningSettings
from forecast.data.panel import IntArray, Panel
from forecast.errors import OutputError
from forecast.finetuning.final_bank import FinalBank
from forecast.finetuning.gradient_group import RATES, GradientGroup
from forecast.finetuning.head_group import HeadGroup
from forecast.finetuning.series_gate import DIVERGED, NOT_FINITE, TUNED, GateResult, apply_gate
from forecast.finetuning.trials import POINT_FORECAST, Columns, Fit, n_origin_steps
from forecast.models.adapters.bank import HEAD, AdapterBank, head_feature_count
from forecast.models.adapters.examples import group_numbers
from forecast.models.adapters.origins import SeriesGroup, origin_stride
from forecast.models.adapters.stacked import Deltas
from forecast.models.network.ensemble import Forecaster, require_tunable
from forecast.models.runtime.state_file import read_state, write_state

_LOG = logging.getLogger(__name__)

# Elements held in memory at once for a group of series.
MAX_GROUP_ELEMENTS = {"cpu": 60_000_000, "cuda": 2_000_000_000}

ROW = "row"

# The two passes, as named in files of the checkpoint. The first takes most of the time.
_TRIAL, _FIT = "trial", "fit"
_TRIAL_SHARE = 0.8


def tune(
    group: SeriesGroup[Forecaster],
    panel: Panel,
    bank: AdapterBank | None,
    settings: TuningSettings,
    *,
    progress: Callable[[float, str], None] | None,
    final: FinalBank | None,
    job_key: dict[str, Any],
) -> tuple[Columns, list[str], Deltas]:
    """Return columns of the series of a group, and the ids and stacked changes of the tuned ones, in this order.

    First come the losses of all groups, because the gate needs those of all series; then accepted changes are fitted.
    They include those of the final fit (`final_bank.split`). `bank` has the existing changes; `job_key` holds all that
    the result depends on.
    """
    chosen, horizon = group.series, group.network.shape.horizon
    if not len(chosen):
        return {}, [], {}
    groups = _Groups(group, bank, settings, job_key)
    report = progress or (lambda _done, _text: None)
    trials = []
    for number in range(groups.count):
        trials.append(groups.trial(number))
        report(_TRIAL_SHARE * (number + 1) / groups.count, f"{groups.end(number):,} series tried")
    trial_columns = {name: np.concatenate([group[name] for group in trials]) for name in trials[0]}
    windows = np.arange(-settings.gate_windows, 0) - settings.report_windows
    cutoffs = (panel.start[chosen] + group.usable)[:, None] + windows * horizon
    verdict = apply_gate(trial_columns, cutoffs // horizon, settings)
    fits = []
    for number in range(groups.count):
        fits.append(groups.fit(number, verdict, panel, final))
        report(_TRIAL_SHARE + (1 - _TRIAL_SHARE) * (number + 1) / groups.count, f"{groups.end(number):,} series fitted")
    groups.clear()
    tuned_rows = np.flatnonzero(verdict.reason == TUNED)
    failed = np.zeros(len(chosen), dtype=bool)
    failed[tuned_rows] = ~np.concatenate([fit.finite for fit in fits])
    verdict = verdict.keep_base(failed, NOT_FINITE if settings.kind == HEAD else DIVERGED)
    points = np.zeros((len(chosen), *fits[0].point_forecast.shape[1:]), dtype=fits[0].point_forecast.dtype)
    points[tuned_rows] = np.concatenate([fit.point_forecast for fit in fits])
    changes = {name: torch.cat([fit.changes[name] for fit in fits]) for name in fits[0].changes}
    names = panel.series_id[chosen[verdict.reason == TUNED]].tolist()
    return {ROW: chosen, **verdict.columns(), POINT_FORECAST: points}, names, changes


class _Groups:
    """The series of a job, in groups that fit into memory."""

    def __init__(
        self,
        whole: SeriesGroup[Forecaster],
        bank: AdapterBank | None,
        settings: TuningSettings,
        job_key: dict[str, Any],
    ) -> None:
        self._whole, self._bank, self._settings = whole, bank, settings
        device = whole.data.device.type
        self._size = max(1, MAX_GROUP_ELEMENTS[device] // _elements_per_series(whole.network, settings))
        self.count = -(-len(whole.series) // self._size)
        self._store = None
        if settings.checkpoint is not None:
            self._store = _Store(Path(settings.checkpoint), {**job_key, "group": self._size, "device": device})
        self._group: HeadGroup | GradientGroup | None = None

    def end(self, number: int) -> int:
        """Return the number of series up to the end of a group."""
        return min((number + 1) * self._size, len(self._whole.series))

    def clear(self) -> None:
        """Delete the checkpoint."""
        if self._store:
            self._store.clear()

    def _make_group(self, rows: IntArray) -> HeadGroup | GradientGroup:
        """Return the group of some rows of the whole."""
        kind = HeadGroup if self._settings.kind == HEAD else GradientGroup
        return kind(self._whole.rows(rows), self._settings)

    def trial(self, number: int) -> Columns:
        """Return the losses of a group, and other columns of its trial."""
        trial = self._store.read(_TRIAL, number) if self._store else None
        if trial is None:
            self._group = None  # Frees memory before the next group.
            self._group = self._make_group(np.arange(number * self._size, self.end(number)))
            trial = {name: torch.from_numpy(values) for name, values in self._group.trial().items()}
            if self._store:
                self._store.write(_TRIAL, number, trial)
        return {name: values.numpy() for name, values in trial.items()}

    def fit(self, number: int, verdict: GateResult, panel: Panel, final: FinalBank | None) -> Fit:
        """Return the changes of the tuned series of a group."""
        part = np.arange(number * self._size, self.end(number))
        rows = np.flatnonzero(verdict.reason[part] == TUNED)
        stored = self._store.read(_FIT, number) if self._store else None
        if stored is not None:
            finite, points = stored.pop("is_finite").numpy(), stored.pop(POINT_FORECAST).numpy()
            return Fit(stored, finite, points)
        if self.count == 1:
            # Reuse the forward passes of the trial, unless it was resumed from a checkpoint.
            group = (self._group or self._make_group(part)).subset(rows)
        elif len(rows):
            self._group = None
            group = self._make_group(part[rows])
        else:
            group = self._make_group(part[:1]).subset(rows)
        series = self._whole.series[part[rows]]
        names = panel.series_id[series].tolist()
        chosen = {name: values[part][rows] for name, values in verdict.change.items()}
        fit = group.fit(chosen, (self._bank, self._bank.rows(names)) if self._bank else None)
        if final:
            finite = fit.finite
            columns = {name: values[finite] for name, values in chosen.items()}
            names = [name for name, is_finite in zip(names, finite, strict=True) if is_finite]
            fit = fit._replace(changes=final.fit(series[finite], names, columns, fit.changes))
        if self._store:
            flags = {"is_finite": torch.from_numpy(fit.finite), POINT_FORECAST: torch.from_numpy(fit.point_forecast)}
            self._store.write(_FIT, number, fit.changes | flags)
        return fit


# --- memory and checkpoints


def _elements_per_series(network: Forecaster, settings: TuningSettings) -> int:
    """Return the number of elements that a series takes in its group."""
    if settings.kind in RATES:
        return group_numbers(require_tunable(network)[0], settings)
    n_features = head_feature_count(network.shape, network.state_size)
    n_shifts = network.shape.horizon * max(network.shape.n_classes, 1)
    n_origins = -(-n_origin_steps(network, settings) // origin_stride(network.shape))
    # In single precision, and for a solution in double; the eigenvectors likewise.
    return 3 * n_origins * (n_features + n_shifts) + 2 * n_features * n_features


class _Store:
    """Checkpoint of finished groups: a file for each group and pass."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings

    def _path(self, stage: str, number: int) -> Path:
        return self._folder / f"{stage}-{number:05d}.safetensors"

    def read(self, stage: str, number: int) -> dict[str, Tensor] | None:
        """Return a finished group, None if it is not. Raises ConfigError if it belongs to another job."""
        path = self._path(stage, number)
        if not path.exists():
            return None
        return read_state(path, self._settings, key="finetune.checkpoint", job="fine-tuning")[0]

    def write(self, stage: str, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a group atomically; a full disk causes a warning only."""
        try:
            write_state(self._path(stage, number), tensors, self._settings, {})
        except OutputError as error:
            _LOG.warning("finetune.checkpoint: %s; the job goes on, a restart does this group again", error)

    def clear(self) -> None:
        """Delete all groups."""
        for stage in (_TRIAL, _FIT):
            for path in self._folder.glob(f"{stage}-*.safetensors"):
                path.unlink()
