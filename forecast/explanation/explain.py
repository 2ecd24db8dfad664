"""What a forecast is made of: how much each of its inputs has moved it, in the units of the target."""

import copy
from dataclasses import replace

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.config import AUTO, ExplainSettings
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, listing
from forecast.explanation.attribution import Attribution, Origin
from forecast.explanation.result import ATTRIBUTION, INPUT, KIND, MAGNITUDE, Explanation
from forecast.finetuning.lineage import alone
from forecast.models.adapters.bank import HEAD
from forecast.models.adapters.stacked import FROZEN
from forecast.models.network.ensemble import members_of, recurrent_members
from forecast.models.runtime.torch_setup import prepare
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.names import MEAN
from forecast.prediction.attention import attention
from forecast.prediction.cutoffs import check_cutoff


def explain(artifact: Artifact, panel: Panel, settings: ExplainSettings) -> Explanation:
    """Return how much the inputs of one series' forecast have moved it. In float64, on the CPU.

    `integrated_gradients` (Sundararajan, Taly & Yan 2017, ICML): the gradient of the forecast by each input,
    integrated from a baseline to the input, times the way. The attributions sum to forecast - baseline.

    `occlusion`: by how much the forecast is higher than with the baseline in the place of an input, from nothing but
    forecasts. They sum to nothing, unless the model is linear.

    The baseline of the target is its level at the cutoff. That of other inputs are their values in `n_references`
    windows evenly spread over the panel: the gradients go from their mean, of text from the mean of its embeddings;
    occlusion takes the mean of the forecasts. Level, scale and spread of the window, also that from the errors of
    exponential smoothing, are held as they are: they would else shrink on the way, and the normalised window, which is
    what the network sees, would not change.

    Raises ConfigError for what the model can't tell, and if captum is not installed; DataError if there is no such
    series, or no forecast of it.
    """
    settings = _with_method(artifact, settings)
    _check(artifact, settings)
    prepare()
    place = _place(panel, settings)
    artifact = artifact.for_cutoff(place.cutoff)
    if artifact.bank is not None and artifact.bank.kind not in (HEAD, *FROZEN):
        if place.series_id in artifact.bank.series_id:
            artifact = alone(artifact, place.series_id, key="explain.series")
        else:
            artifact = artifact.base()
    network = copy.deepcopy(artifact.network).cpu().double().requires_grad_(requires_grad=False)
    for member in members_of(network):
        if isinstance(member, UniversalForecaster):
            member.network.float()
        else:
            member.encoder.truncate = None
    work = Attribution(replace(artifact, network=network), panel, place, settings)
    if settings.method == "occlusion":
        rows, baseline, error = work.occlusion(), None, None
    else:
        rows, baseline, error = work.gradients()
    frame = work.frame(rows)
    summary = (
        frame.group_by(INPUT, KIND)
        .agg(pl.col(ATTRIBUTION).sum(), pl.col(ATTRIBUTION).abs().sum().alias(MAGNITUDE))
        .sort(MAGNITUDE, INPUT, descending=[True, False])
    )
    weights = None
    if artifact.model.attention:
        weights = attention(artifact, panel.rows(place.row, place.row + 1), cutoff=place.cutoff)
    return Explanation(
        place.series_id, settings.method, work.output, work.forecast, baseline, error, frame, summary, weights
    )


def _with_method(artifact: Artifact, settings: ExplainSettings) -> ExplainSettings:
    """Return the settings with a method: gradients, where the forecast has one."""
    if settings.method != AUTO:
        return settings
    method = "occlusion" if _without_gradient(artifact, settings) else "integrated_gradients"
    return settings.model_copy(update={"method": method})


def _without_gradient(artifact: Artifact, settings: ExplainSettings) -> str | None:
    """Return why the forecast has no gradient; None if it has one."""
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
    if settings.method != "occlusion" and (reason := _without_gradient(artifact, settings)):
        raise ConfigError(reason)


def _place(panel: Panel, settings: ExplainSettings) -> Origin:
    """Return the series and the cutoff of the forecast. Raises DataError if there is no such one."""
    row = int(np.searchsorted(panel.series_id, settings.series))
    if row == panel.n_series or panel.series_id[row] != settings.series:
        raise DataError(
            f"explain.series: no series {settings.series!r} among the {panel.n_series:,} of the panel: "
            f"{listing(panel.series_id.tolist())}"
        )
    given = None if settings.cutoff is None else panel.grid.floor(settings.cutoff)
    cutoff = check_cutoff(panel, given, "explain.cutoff")
    if panel.start[row] > cutoff:
        begin = panel.grid.timestamps(panel.start[row : row + 1])[0]
        raise DataError(f"{settings.series} begins at {begin}, after the cutoff; set a later explain.cutoff")
    return Origin(row, settings.series, cutoff)
