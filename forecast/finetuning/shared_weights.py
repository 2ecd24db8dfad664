"""Fine-tuning of the weights that all series share."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from forecast.artifact import Artifact
from forecast.config import TuningSettings
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
from forecast.finetuning.trials import POINT_FORECAST, point_forecast, window_losses
from forecast.models.adapters.bank import BLEND
from forecast.models.adapters.origins import SeriesGroup
from forecast.models.inputs.batch import PanelTensors
from forecast.names import REASON


def tune_globally(
    artifact: Artifact,
    panel: Panel,
    settings: TuningSettings,
    device: str,
    progress: Callable[[float, str], None] | None,
) -> FinetuneResult:
    """Return the model after further training: a model without changes per series, with the digest of its parent.

    The gate windows of all series are the validation set; without a gain on them, the weights stay those of the base.
    """
    # Only this kind needs Lightning, which takes seconds to import.
    from forecast.finetuning.continuation import DEFAULT_RATE, continue_training, repeat_on_all_rows

    trained_until = training_end_of(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network)
    requested = requested_series(artifact, panel, data, usable, settings)
    eligible = requested & is_long_enough(artifact, usable, settings)
    rows = np.flatnonzero(eligible)
    n_windows, horizon = settings.gate_windows + settings.report_windows, artifact.horizon
    limits = np.where(eligible, usable - settings.report_windows * horizon, 0)
    validation, limits = held_out_windows(limits, horizon=horizon, n_windows=settings.gate_windows)
    job_key = tuning_settings(artifact, panel, settings, device=device) if settings.checkpoint else {}
    network, outcomes = continue_training(
        artifact, panel, limits, validation, settings, device=device, job_key=job_key, progress=progress
    )
    group = SeriesGroup(artifact.network, data, rows, usable[rows])
    windows_by_network = [
        held_out_windows_of(group._replace(network=model), n_windows) for model in (group.network, network)
    ]
    losses = [window_losses(network.head, *values).cpu().numpy() for values in windows_by_network]
    base, tuned = ((values[:, : settings.gate_windows], values[:, settings.gate_windows :]) for values in losses)
    changed = any(share for _, share in outcomes)
    table = {
        ROW: rows,
        **_loss_columns(base, tuned),
        "learning_rate": np.full(len(rows), settings.learning_rates[0] if settings.learning_rates else DEFAULT_RATE),
        "steps": np.full(len(rows), float(max(steps for steps, _ in outcomes))),
        BLEND: np.full(len(rows), float(np.mean([share for _, share in outcomes]))),
        REASON: np.full(len(rows), TUNED if changed else NO_GAIN, dtype=object),
        POINT_FORECAST: point_forecast(network.head, windows_by_network[1][0][:, settings.gate_windows :]),
    }
    initial_reason = np.where(requested, TOO_SHORT, NOT_SELECTED)
    decisions = decisions_of(panel, table, initial_reason, settings, None)
    plain, parent_digest = artifact.uncalibrated(), artifact.digest()
    child = replace(plain, network=network, trained_until=trained_until, parent_digest=parent_digest, final=None)
    if settings.final and (plain.final or trained_until < panel.last_index):
        lengths = np.where(eligible, panel.lengths, 0)
        final_network = repeat_on_all_rows(plain.latest, panel, lengths, validation, settings, outcomes, device=device)
        if final_network is not plain.network:
            child = child.with_final(final_network, max(panel.last_index, plain.latest.trained_until))
    shown = example_forecasts(artifact, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, summary_of(decisions, len(rows) if changed else 0), shown)


def _loss_columns(base: tuple[np.ndarray, np.ndarray], tuned: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns of losses, from those on gate and report windows, [row, window] each."""
    base_loss, tuned_loss = mean_loss(base[0]), mean_loss(tuned[0])
    return {
        "base_loss": base_loss,
        "tuned_loss": tuned_loss,
        "gain": 1 - tuned_loss / np.where(base_loss > 0, base_loss, np.nan),
        "report_base_loss": mean_loss(base[1]),
        "report_tuned_loss": mean_loss(tuned[1]),
    }
