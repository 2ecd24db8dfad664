"""Fine-tuning of the weights that all series share."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.windows import held_out_windows, usable_lengths
from forecast.finetuning.eligibility import (
    held_out_windows_of,
    is_long_enough,
    requested_series,
    training_end_of,
    tuning_settings,
)
from forecast.finetuning.report import decisions_of, example_forecasts, summary_of
from forecast.finetuning.result import NOT_SELECTED, TOO_SHORT, FinetuneResult
from forecast.finetuning.series_gate import NO_GAIN, TUNED, mean_loss
from forecast.finetuning.series_tuning import ROW
from forecast.finetuning.trials import TOLD, TuningSettings, stated, window_losses
from forecast.models.adapters.bank import BLEND
from forecast.models.inputs.batch import PanelTensors
from forecast.names import REASON

# --- one set of weights for all


def tune_globally(
    artifact: Artifact,
    panel: Panel,
    settings: TuningSettings,
    device: str,
    progress: Callable[[float, str], None] | None,
) -> FinetuneResult:
    """Return the model after more training; it is a plain one, whose parent is known.

    The gate's windows of all series are the validation: without a gain on them the weights stay the base's.
    """
    # Of all kinds this one alone needs Lightning, which takes seconds to import.
    from forecast.finetuning.continuation import RATE, continued, continued_finally

    trained_until = training_end_of(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network)
    named = requested_series(artifact, panel, data, usable, settings)
    meant = named & is_long_enough(artifact, usable, settings)
    rows = np.flatnonzero(meant)
    n_windows, horizon = settings.gate_windows + settings.report_windows, artifact.horizon
    limits = np.where(meant, usable - settings.report_windows * horizon, 0)
    validation, limits = held_out_windows(limits, horizon=horizon, n_windows=settings.gate_windows)
    described = tuning_settings(artifact, panel, settings, device=device) if settings.checkpoint else {}
    network, found = continued(
        artifact, panel, limits, validation, settings, device=device, described=described, progress=progress
    )
    held = [held_out_windows_of(own, data, rows, usable[rows], n_windows) for own in (artifact.network, network)]
    losses = [window_losses(network.head, *part).cpu().numpy() for part in held]
    base, tuned = ((part[:, : settings.gate_windows], part[:, settings.gate_windows :]) for part in losses)
    before, after = mean_loss(base[0]), mean_loss(tuned[0])
    moved = any(share for _, share in found)
    table = {
        ROW: rows,
        "base_loss": before,
        "tuned_loss": after,
        "gain": 1 - after / np.where(before > 0, before, np.nan),
        "report_base_loss": mean_loss(base[1]),
        "report_tuned_loss": mean_loss(tuned[1]),
        "learning_rate": np.full(len(rows), settings.learning_rates[0] if settings.learning_rates else RATE),
        "steps": np.full(len(rows), float(max(steps for steps, _ in found))),
        BLEND: np.full(len(rows), float(np.mean([share for _, share in found]))),
        REASON: np.full(len(rows), TUNED if moved else NO_GAIN, dtype=object),
        TOLD: stated(network.head, held[1][0][:, settings.gate_windows :]),
    }
    every = np.where(named, TOO_SHORT, NOT_SELECTED)
    decisions = decisions_of(panel, table, every, settings, None)
    plain, digest = artifact.uncalibrated(), artifact.digest()
    child = replace(plain, network=network, trained_until=trained_until, parent_digest=digest, final=None)
    if settings.final and (plain.final or trained_until < panel.last_index):
        lengths = np.where(meant, panel.lengths, 0)
        last = continued_finally(plain.latest, panel, lengths, validation, settings, found, device=device)
        if last is not plain.network:
            child = child.with_final(last, max(panel.last_index, plain.latest.trained_until))
    shown = example_forecasts(artifact, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, summary_of(decisions, len(rows) if moved else 0), shown)
