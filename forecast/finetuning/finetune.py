"""Fine-tuning of a model on a panel: changes per series that are kept only if they clear the gate."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import usable_lengths
from forecast.finetuning.eligibility import (
    check_settings,
    device_of,
    is_long_enough,
    requested_series,
    training_end_of,
    tuning_settings,
    with_windows,
)
from forecast.finetuning.final_bank import FinalBank, split
from forecast.finetuning.report import decisions_of, example_forecasts, summary_of
from forecast.finetuning.result import NOT_SELECTED, TOO_SHORT, UNCHANGED, FinetuneResult
from forecast.finetuning.series_tuning import tune
from forecast.finetuning.shared_weights import tune_globally
from forecast.models.adapters.bank import AdapterBank
from forecast.models.inputs.batch import PanelTensors
from forecast.models.runtime.torch_setup import prepare


def finetune(
    artifact: Artifact,
    panel: Panel,
    settings: FinetuneSettings,
    *,
    progress: Callable[[float, str], None] | None = None,
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

    Raises ConfigError if the model is fine-tuned already, the selection is empty or unknown, the kind does not fit the
    model, or `checkpoint` holds something else; DataError if the panel does not fit the model, or no series is long
    enough.
    """
    prepare()
    device = device_of(settings)
    check_settings(artifact, panel, settings)
    settings = with_windows(artifact, panel, settings)
    if settings.kind == "global":
        return tune_globally(artifact, panel, settings, device, progress)
    bank_before, names, on_device = artifact.bank, panel.series_id.tolist(), artifact.on(device)
    trained_until = training_end_of(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network, device)
    requested = requested_series(on_device, panel, data, usable, settings)
    long_enough = is_long_enough(artifact, usable, settings)
    digests, digests_before = _digests(panel, usable), bank_before.seen if bank_before else {}
    unchanged = np.array([digests_before.get(name) == digest for name, digest in digests.items()])
    initial_reason = np.select([~requested, ~long_enough, unchanged], [NOT_SELECTED, TOO_SHORT, UNCHANGED], "")
    chosen = np.flatnonzero(initial_reason == "")
    plain, parent_digest = artifact.uncalibrated(), artifact.digest()
    latest, final = plain.latest, None
    if settings.final and (plain.final or trained_until < panel.last_index):
        final_base = latest.on(device)
        final = FinalBank(final_base.network, final_base.bank, data, panel.lengths, settings)
    job_key = tuning_settings(artifact, panel, settings) if settings.checkpoint else {}
    table, tuned, changes = tune(
        on_device, panel, data, chosen, usable, settings, progress=progress, final=final, job_key=job_key
    )
    retuned = {names[row] for row in chosen}
    digests = {**digests_before, **{name: digest for name, digest in digests.items() if name in retuned}}
    bank, final_bank = (
        _merge(existing, AdapterBank(settings.kind, tuned, values, digests), retuned)
        for existing, values in zip((bank_before, latest.bank), split(changes), strict=True)
    )
    decisions = decisions_of(panel, table, initial_reason, settings, bank_before)
    child = plain.with_bank(bank, trained_until=trained_until, parent_digest=parent_digest)
    if final:
        until = max(panel.last_index, latest.trained_until)
        child = replace(child, final=latest.with_bank(final_bank, trained_until=until, parent_digest=parent_digest))
    shown = example_forecasts(on_device, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, summary_of(decisions, len(bank.series_id)), shown)


# --- incremental fine-tuning


def _digests(panel: Panel, usable: IntArray) -> dict[str, str]:
    """Return a hash of the data of each series: target and covariates up to the usable length."""
    digests = {}
    for row, name in enumerate(panel.series_id.tolist()):
        steps = slice(panel.offsets[row], panel.offsets[row] + usable[row])
        known_steps = slice(steps.start + row * panel.horizon, steps.stop + row * panel.horizon)
        hasher = hashlib.blake2b(panel.start[row : row + 1].tobytes(), digest_size=8)
        for values in (panel.target[steps], panel.past[:, steps], panel.known[:, known_steps]):
            hasher.update(values.tobytes())
        digests[name] = hasher.hexdigest()
    return digests


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
