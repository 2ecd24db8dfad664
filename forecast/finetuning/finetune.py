"""Fine-tuning: changes for each series, all series at once, behind a gate."""

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
from forecast.models.adapters.bank import Bank
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

    Of each series, changes are tried on `gate_windows` cutoffs whose targets lie behind everything fitted on, and the
    series keeps the base unless they clear the gate: `pooled_gate.choose_pooled`, or `gate.choose` where that is
    strict. The uplift is reported on the `report_windows` after those, seen by neither. What is kept is then fitted on
    all origins; with `final`, once more on all rows of the panel, beside the final weights of the base
    (`Artifact.final`). Series are taken in groups that fit into memory, which does not change what is decided.

    With `incremental`, on a model with changes, series whose data has not changed since keep what they have. The gate
    judges fits that begin at the base, for its windows must be unseen; what is kept goes on from the present changes.

    Whatever the head of numbers, it is the pinball loss of quantiles that is compared, of classes the log-loss. Where a
    change would take counts or amounts below 0, `predict` gives 0.

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
    before, names, local = artifact.bank, panel.series_id.tolist(), artifact.on(device)
    trained_until = training_end_of(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network, device)
    meant, long_enough = (
        requested_series(local, panel, data, usable, settings),
        is_long_enough(artifact, usable, settings),
    )
    digests = _digests(panel, usable)
    seen = before.seen if before else {}
    same = np.array([seen.get(name) == found for name, found in digests.items()])
    every = np.select([~meant, ~long_enough, same], [NOT_SELECTED, TOO_SHORT, UNCHANGED], "")
    chosen = np.flatnonzero(every == "")
    plain, digest = artifact.uncalibrated(), artifact.digest()
    final = None
    if settings.final and (plain.final or trained_until < panel.last_index):
        last = plain.latest.on(device)
        final = FinalBank(last.network, last.bank, data, panel.lengths, settings)
    described = tuning_settings(artifact, panel, settings) if settings.checkpoint else {}
    table, tuned, changes = tune(
        local, panel, data, chosen, usable, settings, progress=progress, final=final, described=described
    )
    again, seen = {names[row] for row in chosen}, {**seen, **{names[row]: digests[names[row]] for row in chosen}}
    banks = [Bank(settings.kind, tuned, each, seen) for each in split(changes)]
    bank, final_bank = (
        _joined(now, fresh, again) if now else fresh
        for now, fresh in zip((before, plain.latest.bank), banks, strict=True)
    )
    decisions = decisions_of(panel, table, every, settings, before)
    child = plain.with_bank(bank, trained_until=trained_until, parent_digest=digest)
    if final:
        until = max(panel.last_index, plain.latest.trained_until)
        child = replace(child, final=plain.latest.with_bank(final_bank, trained_until=until, parent_digest=digest))
    shown = example_forecasts(local, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, summary_of(decisions, len(bank.series_id)), shown)


# --- going on


def _digests(panel: Panel, usable: IntArray) -> dict[str, str]:
    """Return a hash of what each series has to be fitted on: its values and covariates up to the usable length."""
    found = {}
    for row, name in enumerate(panel.series_id.tolist()):
        own = slice(panel.offsets[row], panel.offsets[row] + usable[row])
        known = slice(own.start + row * panel.horizon, own.stop + row * panel.horizon)
        hasher = hashlib.blake2b(panel.start[row : row + 1].tobytes(), digest_size=8)
        for values in (panel.target[own], panel.past[:, own], panel.known[:, known]):
            hasher.update(values.tobytes())
        found[name] = hasher.hexdigest()
    return found


def _joined(before: Bank, fresh: Bank, again: set[str]) -> Bank:
    """Return the fresh bank with what those series keep that were not fine-tuned `again`, by their ids."""
    rows = [row for row, name in enumerate(before.series_id) if name not in again]
    names = [before.series_id[row] for row in rows] + fresh.series_id
    order = np.argsort(np.array(names, dtype=str), kind="stable")
    tensors = {
        name: torch.cat([values[rows], *([fresh.tensors[name]] if fresh.series_id else [])])[torch.from_numpy(order)]
        for name, values in (before.tensors or fresh.tensors).items()
    }
    return Bank(fresh.kind, [names[row] for row in order], tensors, fresh.seen)
