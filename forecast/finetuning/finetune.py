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
from forecast.models.adapters.origins import SeriesGroup
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
    bank_before, on_device = artifact.bank, artifact.on(device)
    trained_until = training_end_of(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network, device)
    requested = requested_series(on_device, panel, data, usable, settings)
    too_short = ~is_long_enough(artifact, usable, settings)
    digests, digests_before = _digests(panel, usable), bank_before.seen if bank_before else {}
    unchanged = [digests_before.get(name) == digest for name, digest in digests.items()]
    reason = np.select([~requested, too_short, np.array(unchanged)], [NOT_SELECTED, TOO_SHORT, UNCHANGED], "")
    chosen = np.flatnonzero(reason == "")
    plain, parent_digest = artifact.uncalibrated(), artifact.digest()
    has_final = settings.final and (plain.final or trained_until < panel.last_index)
    final = FinalBank.of(plain.latest.on(device), data, panel.lengths, settings) if has_final else None
    job_key = tuning_settings(artifact, panel, settings) if settings.checkpoint else {}
    group = SeriesGroup(on_device.network, data, chosen, usable[chosen])
    table, tuned, changes = tune(group, panel, bank_before, settings, progress=progress, final=final, job_key=job_key)
    retuned = panel.series_id[chosen].tolist()
    seen = digests_before | {name: digests[name] for name in retuned}
    bank, final_bank = (
        _merge(existing, AdapterBank(settings.kind, tuned, values, seen), set(retuned))
        for existing, values in zip((bank_before, plain.latest.bank), split(changes), strict=True)
    )
    decisions = decisions_of(panel, table, reason, settings, bank_before)
    child = plain.with_bank(bank, trained_until=trained_until, parent_digest=parent_digest)
    if final:
        child = replace(child, final=_final_child(plain.latest, final_bank, panel, parent_digest))
    shown = example_forecasts(on_device, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, summary_of(decisions, len(bank.series_id)), shown)


def _final_child(latest: Artifact, bank: AdapterBank, panel: Panel, parent_digest: str) -> Artifact:
    """Return the model with the changes of the final fit, which has seen all rows of the panel."""
    until = max(panel.last_index, latest.trained_until)
    return latest.with_bank(bank, trained_until=until, parent_digest=parent_digest)


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
