"""Fine-tuning of a model on a panel: changes per series that are kept only if they clear the gate."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings, JobShare
from forecast.data.panel import Panel
from forecast.engines.engine import Engine
from forecast.errors import ConfigError
from forecast.finetuning.checkpoint import clear_checkpoint
from forecast.finetuning.eligibility import check_settings, device_of, with_windows
from forecast.finetuning.final_bank import split
from forecast.finetuning.report import decisions_of, example_forecasts, summary_of
from forecast.finetuning.result import FinetuneResult
from forecast.finetuning.series_plan import SeriesPlan
from forecast.finetuning.series_tuning import Passes, ShareResult, tune, tune_share
from forecast.finetuning.shared_weights import tune_globally
from forecast.models.adapters.bank import AdapterBank
from forecast.models.adapters.stacked import Deltas
from forecast.models.runtime.torch_setup import prepare

_LOG = logging.getLogger(__name__)
_NO_SHARDS: Final = "finetune.kind: global trains weights that all series share, which has no shards; leave out shard"


def finetune(
    artifact: Artifact,
    panel: Panel,
    settings: FinetuneSettings,
    *,
    progress: Callable[[float, str], None] | None = None,
    engine: Engine | None = None,
    commit: bool = False,
    keep_checkpoint: bool = False,
) -> FinetuneResult:
    """Return the model with changes for each series that gains from them (`finetune.kind`).

    Changes of each series are tried on `gate_windows` cutoffs whose targets lie after all data of the fit. The series
    keeps the base unless a change clears the gate: `pooled_gate.choose_pooled`, or `gate.choose_strict` for a strict
    gate. The uplift is reported on the `report_windows` cutoffs after those, which neither fit nor gate has seen.
    Accepted changes are then fitted on all origins; with `final`, once more on all rows of the panel, beside the final
    weights of the base (`Artifact.final`). Series are processed in groups that fit into memory, which does not change
    the decisions.

    With `incremental`, on a model with changes, series whose data has not changed keep their changes. The gate judges
    fits that start from the base, because its windows must be unseen; accepted changes start from the existing ones.

    Losses are the pinball loss of the quantiles for all heads of numbers, the log-loss for classes. Where a change
    would move counts or amounts below 0, `predict` returns 0.

    Groups are tried and fitted by `engine`, in this process without one, with the same result for the same number of
    threads, which is one in workers; kind `global` always runs here. With `commit`, nothing is computed: all groups
    must have been written by `finetune_share`. The checkpoint is emptied at the end, unless `keep_checkpoint`.

    Raises ConfigError if the model is fine-tuned already, the selection is empty or unknown, the kind does not fit the
    model, or `checkpoint` holds something else; DataError if the panel does not fit the model, or no series is long
    enough; OutputError if groups are missing at a commit; EngineError if the workers fail.
    """
    prepare()
    device = device_of(settings)
    check_settings(artifact, panel, settings)
    settings = with_windows(artifact, panel, settings)
    if settings.kind == "global":
        if commit:
            raise ConfigError(_NO_SHARDS)
        if engine is not None:
            _LOG.info("finetune.kind=global trains weights that all series share: it runs in this process")
        return tune_globally(artifact, panel, settings, device, progress)
    plan = SeriesPlan.of(artifact, panel, settings, device)
    store = plan.shared_store(None) if commit else plan.store()
    table, tuned, changes = tune(
        Passes(plan.work, plan.data, store, engine), progress=progress, store=store if commit else None
    )
    child = _child(artifact, plan, tuned, changes, panel)
    decisions = decisions_of(panel, table, plan.reason, settings, artifact.bank)
    n_changes = len(child.bank.series_id) if child.bank else 0
    shown = example_forecasts(artifact.on(device), panel, plan.data, plan.usable, table, settings)
    if settings.checkpoint and not keep_checkpoint:
        clear_checkpoint(Path(settings.checkpoint))
    return FinetuneResult(child, decisions, summary_of(decisions, n_changes), shown)


def finetune_share(
    artifact: Artifact,
    panel: Panel,
    settings: FinetuneSettings,
    share: JobShare,
    *,
    progress: Callable[[float, str], None] | None = None,
    engine: Engine | None = None,
) -> ShareResult:
    """Do a share of the groups of `finetune`, and write them into `finetune.checkpoint`.

    The groups are tried. Once the trials of all shares are there, a share fits its groups; so each share runs twice.
    `finetune` with `commit` joins them. Raises as `finetune`; ConfigError without a checkpoint, or with kind `global`;
    OutputError if it can't be written.
    """
    prepare()
    check_settings(artifact, panel, settings)
    if settings.kind == "global":
        raise ConfigError(_NO_SHARDS)
    plan = SeriesPlan.of(artifact, panel, with_windows(artifact, panel, settings), device_of(settings))
    store = plan.shared_store(share)
    return tune_share(Passes(plan.work, plan.data, store, engine), store, share, progress)


def _child(artifact: Artifact, plan: SeriesPlan, tuned: list[str], changes: Deltas, panel: Panel) -> Artifact:
    """Return the model with the changes of the tuned series beside those that series keep."""
    plain, parent_digest, before = artifact.uncalibrated(), artifact.digest(), artifact.bank
    retuned = panel.series_id[plan.work.series].tolist()
    seen = (before.seen if before else {}) | {name: plan.digests[name] for name in retuned}
    bank, final_bank = (
        _merge(existing, AdapterBank(plan.work.settings.kind, tuned, values, seen), set(retuned))
        for existing, values in zip((before, plain.latest.bank), split(changes), strict=True)
    )
    child = plain.with_bank(bank, trained_until=plan.trained_until, parent_digest=parent_digest)
    if plan.work.has_final:
        child = replace(child, final=_final_child(plain.latest, final_bank, panel, parent_digest))
    return child


def _final_child(latest: Artifact, bank: AdapterBank, panel: Panel, parent_digest: str) -> Artifact:
    """Return the model with the changes of the final fit, which has seen all rows of the panel."""
    until = max(panel.last_index, latest.trained_until)
    return latest.with_bank(bank, trained_until=until, parent_digest=parent_digest)


def _merge(before: AdapterBank | None, fresh: AdapterBank, retuned: set[str]) -> AdapterBank:
    """Return the fresh bank together with the changes of all series that are not `retuned`, ordered by id."""
    if before is None:
        return fresh
    rows = [row for row, name in enumerate(before.series_id) if name not in retuned]
    names = [before.series_id[row] for row in rows] + fresh.series_id
    order = np.argsort(np.array(names, dtype=str), kind="stable")
    tensors = {
        name: torch.cat([values[rows], *([fresh.tensors[name]] if fresh.series_id else [])])[torch.from_numpy(order)]
        for name, values in (before.tensors or fresh.tensors).items()
    }
    return AdapterBank(fresh.kind, [names[row] for row in order], tensors, fresh.seen)
