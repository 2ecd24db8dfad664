"""Series that can be fine-tuned, held-out windows, and checks of settings before any work begins."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import EngineSettings, FinetuneSettings, TuningSettings
from forecast.data.holdout import MAX_WINDOWS, plan_gate
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import usable_lengths
from forecast.errors import ConfigError, DataError, listing
from forecast.finetuning.gradient_group import RATES
from forecast.finetuning.selection import largest_losses, select_series
from forecast.finetuning.series_gate import mean_loss
from forecast.finetuning.trials import window_losses
from forecast.models.adapters.bank import HEAD
from forecast.models.adapters.origins import SeriesGroup, forecast, held_out, origin_stride, single_origin
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, recurrent_members, tunable

# Automatic numbers: the latest steps whose cutoffs are fitted, and with kind=head the cutoffs.
_ORIGINS, _HEAD_CUTOFFS = 512, 1024

# --- losses on the gate windows


def _base_losses(group: SeriesGroup[Forecaster], settings: TuningSettings) -> np.ndarray:
    """Return the mean loss of the base on the gate windows of each series, [row]; 0 where nothing was observed."""
    n_windows = settings.gate_windows + settings.report_windows
    window_loss = window_losses(group.network.head, *held_out_windows_of(group, n_windows))
    losses: np.ndarray = np.nan_to_num(mean_loss(window_loss[:, : settings.gate_windows].cpu().numpy()))
    return losses


# --- checks and eligible series


def device_of(settings: FinetuneSettings) -> str:
    """Return the device that `finetune.accelerator` names. Raises ConfigError if there is none."""
    has_gpu = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not has_gpu:
        raise ConfigError("finetune.accelerator: gpu asked for, but torch finds none here; set it to cpu or auto")
    return "cuda" if has_gpu and settings.accelerator != "cpu" else "cpu"


def check_engine(settings: FinetuneSettings, engine: EngineSettings) -> None:
    """Raise ConfigError if each process of this machine would take its GPU."""
    if engine.kind == "processes" and device_of(settings) != "cpu":
        raise ConfigError(
            "engine=processes: each process would take the same GPU; set finetune.accelerator=cpu for the cores of "
            "this machine, or engine=local for its GPU"
        )


def with_windows(artifact: Artifact, panel: Panel, settings: FinetuneSettings) -> TuningSettings:
    """Return the settings with numbers of origins and windows resolved, the latter from the selected series."""
    holdout = settings.holdout_windows
    if isinstance(holdout, str):
        holdout = _holdout_windows(artifact, panel)
    usable = usable_lengths(panel, training_end_of(artifact, panel, holdout))[select_series(artifact, panel, settings)]
    gate, report = plan_gate(usable, artifact.horizon, gate=settings.gate_windows, report=settings.report_windows)
    origins = _origin_steps(artifact, settings) if isinstance(settings.origins, str) else settings.origins
    counts = {"origins": origins, "holdout_windows": holdout, "gate_windows": gate, "report_windows": report}
    return TuningSettings.model_construct(**dict(settings) | counts)


def _holdout_windows(artifact: Artifact, panel: Panel) -> int:
    """Return the horizons that the base has not seen: at most four, or as many as its training held out."""
    unseen = max(0, panel.last_index - artifact.trained_until) // artifact.horizon
    of_base = (artifact.latest.trained_until - artifact.trained_until) // artifact.horizon
    return min(max(MAX_WINDOWS, of_base), unseen)


def _origin_steps(artifact: Artifact, settings: FinetuneSettings) -> int:
    if settings.kind != HEAD:
        return _ORIGINS
    return max(_ORIGINS, _HEAD_CUTOFFS * origin_stride(artifact.network.shape))


def training_end_of(artifact: Artifact, panel: Panel, holdout_windows: int) -> int:
    """Return the grid index of the last step that fine-tuning may see: never before the end of the base's training."""
    return max(panel.last_index - holdout_windows * artifact.horizon, artifact.trained_until)


def check_settings(artifact: Artifact, panel: Panel, settings: FinetuneSettings) -> None:
    """Raise ConfigError for settings that do not fit the model or the panel."""
    bank = artifact.bank
    if bank is not None and not settings.incremental:
        raise ConfigError(
            "registry.alias: this version is fine-tuned already; fine-tune its pretrained parent, or set "
            "finetune.incremental=true to go on from it where data has changed"
        )
    if settings.incremental and bank is None:
        raise ConfigError(
            "finetune.incremental: this version has no changes of series to go on from; give a fine-tuned one "
            "(registry.alias), or set finetune.incremental=false"
        )
    if bank is not None and bank.kind != settings.kind:
        raise ConfigError(
            f"finetune.kind: this version was fine-tuned with kind={bank.kind}, and goes on with that only "
            f"(given: {settings.kind})"
        )
    by_gradient = settings.kind in RATES
    if by_gradient and tunable(artifact.network) is None:
        raise ConfigError(
            f"finetune.kind: {settings.kind} changes one network that was trained on the panel, and this model has "
            f"{len(recurrent_members(artifact.network))} of these (fit.ensemble); set kind=head or global"
        )
    if by_gradient and artifact.model.decoder == "autoregressive":
        raise ConfigError(
            f"finetune.kind: {settings.kind} has no gradient through the sampled paths of decoder=autoregressive; set "
            "kind=head or global"
        )
    if settings.kind == "lora" and bank is not None:
        ranks = (values.shape[1] for name, values in bank.tensors.items() if name.endswith(".down"))
        rank = next(ranks, settings.rank)
        if rank != settings.rank:
            raise ConfigError(f"finetune.rank: this version has rank {rank}; set finetune.rank={rank}")
    shape, frequency = artifact.network.shape, artifact.grid.frequency
    if panel.grid.frequency != frequency:
        raise DataError(
            f"the panel has a value every {panel.grid.frequency}, the model every {frequency}; give one like that"
        )
    if panel.horizon < shape.horizon:
        raise DataError(
            f"the panel holds known covariates for {panel.horizon} steps ahead, the model forecasts {shape.horizon}; "
            f"prepare it with window.horizon={shape.horizon} or more"
        )
    counts = {
        "past": (len(panel.past), shape.n_past),
        "known": (len(panel.known), shape.n_known),
        "calendar": (len(panel.calendar), shape.n_calendar),
        "categorical static": (panel.static_categories.shape[1], len(shape.category_sizes)),
        "numeric static": (panel.static_numbers.shape[1], shape.n_static_numbers),
    }
    wrong = [
        f"{count} {name} (the model has {expected})" for name, (count, expected) in counts.items() if count != expected
    ]
    if wrong:
        raise DataError(
            f"the panel has other covariates than the model: {listing(wrong)}; read it with the model's own"
        )


def _least_steps(artifact: Artifact, settings: TuningSettings) -> int:
    """Return the number of usable steps that a series needs: a horizon of fitting origins before the held-out steps."""
    n_windows = settings.gate_windows + settings.report_windows
    return (n_windows + (4 if settings.kind in RATES else 2)) * artifact.horizon


def is_long_enough(artifact: Artifact, usable: IntArray, settings: TuningSettings) -> np.ndarray:
    """Return a mask of the series with enough usable steps, [S]."""
    return usable >= _least_steps(artifact, settings)


def requested_series(
    artifact: Artifact, panel: Panel, data: PanelTensors, usable: IntArray, settings: TuningSettings
) -> np.ndarray:
    """Return a mask of the requested series, [S]. With `finetune.worst` only those that are long enough.

    Raises ConfigError as `select_series`, DataError if none of them is long enough.
    """
    requested = select_series(artifact, panel, settings)
    _refuse_short(artifact, usable[requested], settings)
    if settings.worst is not None:
        requested &= is_long_enough(artifact, usable, settings)
        rows = np.flatnonzero(requested)
        losses = _base_losses(SeriesGroup(artifact.network, data, rows, usable[rows]), settings)
        requested[requested] = largest_losses(losses, settings.worst)
    return requested


def _refuse_short(artifact: Artifact, usable: IntArray, settings: TuningSettings) -> None:
    if not is_long_enough(artifact, usable, settings).any():
        raise DataError(
            f"no series is long enough to fine-tune: the longest of {len(usable):,} has {int(usable.max()):,} usable "
            f"steps, and {settings.gate_windows + settings.report_windows} held-out windows of "
            f"{artifact.horizon} steps need {_least_steps(artifact, settings):,}; lower finetune.gate_windows or "
            "finetune.report_windows"
        )


def tuning_settings(artifact: Artifact, panel: Panel, settings: TuningSettings, **details: Any) -> dict[str, Any]:
    """Return all that the result of a fine-tuning depends on: the key under which a checkpoint can be resumed."""
    fields = settings.model_dump(mode="json", exclude={"checkpoint"})
    values = {f"finetune.{name}": value for name, value in fields.items()}
    return {"panel": panel.digest(), "parent": artifact.digest(), **details, **values}


# --- held-out windows


def held_out_windows_of(group: SeriesGroup[Forecaster], n_windows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return forecast columns, targets and weights at the held-out cutoffs, oldest first.

    Columns are [G, window, horizon, column]; target and weight are [G, window, horizon].
    """
    parts = []
    with torch.inference_mode():
        for windows in single_origin(group, held_out(group.network.shape.horizon, n_windows)):
            output, target, weight = forecast(group.network, windows)
            parts.append((output.head.predicted(output.arguments), target, weight))
    columns, target, weight = (
        torch.cat(part)[:, 0].unflatten(0, (len(group.series), n_windows)) for part in zip(*parts, strict=True)
    )
    return columns, target, weight
