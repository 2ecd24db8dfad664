"""Search for changes of each series of a panel: two passes over groups of series, with the gate between them.

The groups are independent: they run here, on the workers of an engine, or in shares of a job on any machine. The gate
needs the trials of all groups.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from forecast.config import JobShare, TuningSettings
from forecast.engines.engine import Engine, results
from forecast.finetuning.checkpoint import FIT, TRIAL, GroupStore
from forecast.finetuning.gradient_group import RATES
from forecast.finetuning.groups import IS_FINITE, FitTask, Groups, GroupTask, TrialTask, TuningWork
from forecast.finetuning.series_gate import DIVERGED, NOT_FINITE, TUNED, GateResult, apply_gate
from forecast.finetuning.trials import POINT_FORECAST, Columns, n_origin_steps
from forecast.models.adapters.bank import HEAD, head_feature_count
from forecast.models.adapters.examples import group_numbers
from forecast.models.adapters.origins import origin_stride
from forecast.models.adapters.stacked import Deltas
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, require_tunable

# Elements held in memory at once for a group of series. On a CPU larger groups are no faster, and smaller ones keep
# more workers busy.
MAX_GROUP_ELEMENTS = {"cpu": 15_000_000, "cuda": 2_000_000_000}

ROW = "row"

_TRIAL_SHARE: Final = 0.8
"""Share of the work that is done once all series are tried, about."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class ShareResult:
    """What a share of a fine-tuning has done."""

    is_fitted: bool
    """Whether its groups are fitted; else they are tried, and groups of other shares are not yet."""
    n_groups: int
    n_new: int
    """Groups that were not finished before."""
    n_series: int
    missing: str
    """The shares, or groups, whose trials (once fitted: fits) are missing; empty if the job is complete."""


class Passes:
    """The two passes over the groups: finished ones are read from the store, the others done."""

    def __init__(
        self, work: TuningWork, data: PanelTensors, store: GroupStore | None, engine: Engine | None = None
    ) -> None:
        self.work, self._store = work, store
        self._engine = engine if work.count > 1 else None
        self._groups = Groups(work, data)

    def trials(self, numbers: Sequence[int], done: Callable[[int], None]) -> list[Columns]:
        """Return the losses of groups, and other columns of their trials. `done` is called with each number."""
        trials = self._all(TRIAL, {number: TrialTask(number) for number in numbers}, done)
        return [trials[number] for number in numbers]

    def gate(self, trials: Sequence[Columns]) -> GateResult:
        """Return the decisions of the gate from the trials of all groups."""
        work, settings = self.work, self.work.settings
        columns = {name: np.concatenate([group[name] for group in trials]) for name in trials[0]}
        windows = np.arange(-settings.gate_windows, 0) - settings.report_windows
        horizon = work.artifact.horizon
        cutoffs = (work.panel.start[work.series] + work.usable)[:, None] + windows * horizon
        return apply_gate(columns, cutoffs // horizon, settings)

    def fits(self, numbers: Sequence[int], verdict: GateResult, done: Callable[[int], None]) -> list[Columns]:
        """Return the changes of the tuned series of groups, as `Groups.run`."""
        tasks = {number: self._fit_task(number, verdict) for number in numbers}
        fits = self._all(FIT, tasks, done)
        return [fits[number] for number in numbers]

    def _fit_task(self, number: int, verdict: GateResult) -> FitTask:
        part = self.work.part(number)
        rows = np.flatnonzero(verdict.reason[part] == TUNED)
        return FitTask(number, rows, {name: values[part][rows] for name, values in verdict.change.items()})

    def _all(self, stage: str, tasks: Mapping[int, GroupTask], done: Callable[[int], None]) -> dict[int, Columns]:
        """Return the results of tasks, by number."""
        finished: dict[int, Columns] = {}
        inputs = {number: _inputs(task) for number, task in tasks.items()}
        for number in tasks:
            stored = self._store.read(stage, number, **inputs[number]) if self._store else None
            if stored is not None:
                finished[number] = {name: values.numpy() for name, values in stored.items()}
                done(number)
        for task, columns in self._run([task for number, task in tasks.items() if number not in finished]):
            finished[task.number] = columns
            if self._store:
                tensors = {name: as_tensor(values) for name, values in columns.items()}
                self._store.write(stage, task.number, tensors, **inputs[task.number])
            done(task.number)
        return finished

    def _run(self, tasks: Sequence[GroupTask]) -> Iterator[tuple[GroupTask, Columns]]:
        if self._engine is not None:
            return results(self._engine, self.work, tasks)
        return ((task, self._groups.run(task)) for task in tasks)


def tune(
    passes: Passes, *, progress: Progress | None = None, store: GroupStore | None = None
) -> tuple[Columns, list[str], Deltas]:
    """Return columns of the series of a job, and the ids and stacked changes of the tuned ones, in this order.

    First come the losses of all groups, because the gate needs those of all series; then accepted changes are fitted.
    They include those of the final fit (`final_bank.split`). With a `store`, nothing is computed: raises OutputError if
    a group is missing there.
    """
    work = passes.work
    numbers, chosen, report = range(work.count), work.series, _Report(work, progress)
    if not len(chosen):
        return {}, [], {}
    if store:
        store.check_complete(TRIAL, work.count)
        store.check_complete(FIT, work.count)
    verdict = passes.gate(passes.trials(numbers, report.of("tried", 0.0, _TRIAL_SHARE)))
    fits = passes.fits(numbers, verdict, report.of("fitted", _TRIAL_SHARE, 1.0))
    tuned_rows = np.flatnonzero(verdict.reason == TUNED)
    failed = np.zeros(len(chosen), dtype=bool)
    failed[tuned_rows] = ~np.concatenate([fit.pop(IS_FINITE) for fit in fits])
    verdict = verdict.keep_base(failed, NOT_FINITE if work.settings.kind == HEAD else DIVERGED)
    of_groups = [fit.pop(POINT_FORECAST) for fit in fits]
    points = np.zeros((len(chosen), *of_groups[0].shape[1:]), dtype=of_groups[0].dtype)
    points[tuned_rows] = np.concatenate(of_groups)
    changes = {name: torch.cat([as_tensor(fit[name]) for fit in fits]) for name in fits[0]}
    names = work.panel.series_id[chosen[verdict.reason == TUNED]].tolist()
    return {ROW: chosen, **verdict.columns(), POINT_FORECAST: points}, names, changes


def tune_share(passes: Passes, store: GroupStore, share: JobShare, progress: Progress | None = None) -> ShareResult:
    """Try the groups of a share; once the trials of all groups are in the store, fit those of the share."""
    work = passes.work
    numbers, report = share.of(work.count), _Report(work, progress)
    n_new = sum(not store.has(TRIAL, number) for number in numbers)
    passes.trials(numbers, report.of("tried", 0.0, _TRIAL_SHARE))
    stage, untried = TRIAL, [number for number in range(work.count) if not store.has(TRIAL, number)]
    missing = untried
    if not untried:
        stage, n_new = FIT, sum(not store.has(FIT, number) for number in numbers)
        verdict = passes.gate(passes.trials(range(work.count), lambda _number: None))
        passes.fits(numbers, verdict, report.of("fitted", _TRIAL_SHARE, 1.0))
        missing = [number for number in range(work.count) if not store.has(FIT, number)]
    n_series = sum(len(work.part(number)) for number in numbers)
    owners = store.owners(missing, work.count) if missing else ""
    return ShareResult(stage == FIT, len(numbers), n_new, n_series, owners)


class _Report:
    """Reports the progress of a pass."""

    def __init__(self, work: TuningWork, progress: Progress | None) -> None:
        self._work, self._progress = work, progress

    def of(self, verb: str, first: float, last: float) -> Callable[[int], None]:
        """Return the function to call with each group that ends; the pass is the work from `first` to `last`."""
        n_groups = n_series = 0

        def done(number: int) -> None:
            nonlocal n_groups, n_series
            n_groups, n_series = n_groups + 1, n_series + len(self._work.part(number))
            if self._progress:
                share = min(1.0, n_groups / self._work.count)
                self._progress(first + (last - first) * share, f"{n_series:,} series {verb}")

        return done


def _inputs(task: GroupTask) -> dict[str, str]:
    """Return what a group depends on besides the settings: in a fit, the decisions of the gate."""
    if isinstance(task, TrialTask):
        return {}
    hasher = hashlib.sha256(task.rows.tobytes())
    for name, values in sorted(task.change.items()):
        if name != POINT_FORECAST:
            hasher.update(np.ascontiguousarray(values).tobytes())
    return {"decisions": hasher.hexdigest()[:16]}


def as_tensor(values: np.ndarray) -> Tensor:
    """Return an array as a tensor. Those of a cluster are read-only, and copied."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def group_size(network: Forecaster, settings: TuningSettings, device: str) -> int:
    """Return the number of series in a group that fits into memory."""
    return max(1, MAX_GROUP_ELEMENTS[device] // _elements_per_series(network, settings))


def _elements_per_series(network: Forecaster, settings: TuningSettings) -> int:
    """Return the number of elements that a series takes in its group."""
    if settings.kind in RATES:
        return group_numbers(require_tunable(network)[0], settings)
    n_features = head_feature_count(network.shape, network.state_size)
    n_shifts = network.shape.horizon * max(network.shape.n_classes, 1)
    n_origins = -(-n_origin_steps(network, settings) // origin_stride(network.shape))
    # In single precision, and for a solution in double; the eigenvectors likewise.
    return 3 * n_origins * (n_features + n_shifts) + 2 * n_features * n_features
