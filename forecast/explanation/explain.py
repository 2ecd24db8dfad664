"""Explanation of the forecast of one series: attributions to its inputs, in units of the target."""

import copy
from dataclasses import replace

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import AUTO, ExplainSettings
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, listing
from forecast.explanation.explained_window import ExplainedWindow, Origin
from forecast.explanation.integrated_gradients import integrated_gradients
from forecast.explanation.occlusion import occlusion
from forecast.explanation.result import ATTRIBUTION, INPUT, KIND, MAGNITUDE, Explanation
from forecast.finetuning.lineage import extract_series
from forecast.models.adapters.bank import HEAD
from forecast.models.adapters.stacked import FROZEN
from forecast.models.network.ensemble import members_of, recurrent_members
from forecast.models.runtime.torch_setup import prepare
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.names import MEAN
from forecast.prediction.attention import attention
from forecast.prediction.cutoffs import check_cutoff


def explain(artifact: Artifact, panel: Panel, settings: ExplainSettings) -> Explanation:
    """Return the attributions of one series' forecast to its inputs, computed in float64 on the CPU.

    `integrated_gradients` (Sundararajan, Taly & Yan 2017, ICML): the gradient of the forecast with respect to each
    input, integrated from a baseline to the input. The attributions sum to forecast - baseline.

    `occlusion`: forecast - forecast with an input replaced by its baseline. It needs no gradients; attributions sum to
    the difference of forecasts only if the model is linear.

    The baseline of the target is its level at the cutoff. The baselines of other inputs are their values in
    `n_references` windows evenly spread over the panel: gradients start from the mean of these values (for text, from
    the mean embedding); occlusion averages the forecasts. Level, scale and spread of the window, including those from
    the errors of exponential smoothing, are held constant: otherwise they would shrink along the path, and the
    normalised window, which is the network's input, would not change.

    Raises ConfigError for an output that can't be explained, and if captum is not installed; DataError for an unknown
    series, or one without a forecast of the model.
    """
    settings = _resolve_method(artifact, settings)
    _check(artifact, settings)
    prepare()
    origin = _find_origin(panel, settings)
    artifact = artifact.for_cutoff(origin.cutoff)
    if artifact.bank is not None and artifact.bank.kind not in (HEAD, *FROZEN):
        if origin.series_id in artifact.bank.series_id:
            artifact = extract_series(artifact, origin.series_id, key="explain.series")
        else:
            artifact = artifact.base()
    network = copy.deepcopy(artifact.network).cpu().double().requires_grad_(requires_grad=False)
    for member in members_of(network):
        if isinstance(member, UniversalForecaster):
            member.network.float()
        else:
            member.encoder.truncate = None
    window = ExplainedWindow(replace(artifact, network=network), panel, origin, settings)
    if settings.method == "occlusion":
        rows, baseline, error = occlusion(window), None, None
    else:
        rows, baseline, error = integrated_gradients(window)
    frame = window.frame(rows)
    summary = (
        frame.group_by(INPUT, KIND)
        .agg(pl.col(ATTRIBUTION).sum(), pl.col(ATTRIBUTION).abs().sum().alias(MAGNITUDE))
        .sort(MAGNITUDE, INPUT, descending=[True, False])
    )
    weights = None
    if artifact.model.attention:
        weights = attention(artifact, panel.rows(origin.row, origin.row + 1), cutoff=origin.cutoff)
    return Explanation(
        origin.series_id,
        settings.method,
        window.output,
        window.forecast,
        baseline,
        error,
        frame,
        summary,
        weights,
    )


def _resolve_method(artifact: Artifact, settings: ExplainSettings) -> ExplainSettings:
    """Return the settings with `method` resolved: integrated gradients if the forecast has any, else occlusion."""
    if settings.method != AUTO:
        return settings
    method = "occlusion" if _reason_without_gradient(artifact, settings) else "integrated_gradients"
    return settings.model_copy(update={"method": method})


def _reason_without_gradient(artifact: Artifact, settings: ExplainSettings) -> str | None:
    """Return the reason why the forecast has no gradient; None if it has one."""
    if len(recurrent_members(artifact.network)) < len(members_of(artifact.network)):
        return (
            "explain.method: the model has the pretrained network as a member, whose statistics of a window have no "
            "gradient; explain.method=occlusion explains it"
        )
    if artifact.network.n_paths > 1:
        return (
            "explain.method: an autoregressive model samples its forecasts, which have no gradient; "
            "explain.method=occlusion explains them"
        )
    if artifact.network.head.positive and (settings.level != MEAN or artifact.network.shape.unit):
        return (
            f"explain.level: quantiles of {artifact.model.head} have no gradient; explain.level=mean has one (unless "
            "on a logarithmic scale), and explain.method=occlusion explains quantiles"
        )
    return None


def _check(artifact: Artifact, settings: ExplainSettings) -> None:
    if artifact.classes is not None:
        raise ConfigError("model.head: forecasts of numbers are explained, not probabilities of classes")
    levels = artifact.model.quantile_levels
    if settings.level not in (*levels, MEAN):
        raise ConfigError(
            f"explain.level: the model has no quantile {settings.level}; it has {listing(levels, 99)}, mean"
        )
    if settings.step is not None and settings.step > artifact.horizon:
        raise ConfigError(f"explain.step: the horizon has {artifact.horizon:,} steps (given: {settings.step:,})")
    if settings.method != "occlusion" and (reason := _reason_without_gradient(artifact, settings)):
        raise ConfigError(reason)


def _find_origin(panel: Panel, settings: ExplainSettings) -> Origin:
    """Return series and cutoff of the explained forecast. Raises DataError if there is no such series or cutoff."""
    row = int(np.searchsorted(panel.series_id, settings.series))
    if row == panel.n_series or panel.series_id[row] != settings.series:
        raise DataError(
            f"explain.series: no series {settings.series!r} among the {panel.n_series:,} of the panel: "
            f"{listing(panel.series_id.tolist())}"
        )
    requested = None if settings.cutoff is None else panel.grid.floor(settings.cutoff)
    cutoff = check_cutoff(panel, requested, "explain.cutoff")
    if panel.start[row] > cutoff:
        begin = panel.grid.timestamps(panel.start[row : row + 1])[0]
        raise DataError(f"{settings.series} begins at {begin}, after the cutoff; set a later explain.cutoff")
    return Origin(row, settings.series, cutoff)
