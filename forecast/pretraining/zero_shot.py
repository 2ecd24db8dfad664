"""Zero-shot models: the pretrained universal network for a panel, without training."""

import copy
import logging
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import DataConfig, ModelConfig, WindowConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import IntArray, Panel
from forecast.data.time.context import default_context
from forecast.data.time.frequency import Frequency
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, listing
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.losses import held_out_forecasts
from forecast.models.network.panel_statistics import cold_scale_of, is_nonnegative
from forecast.models.postprocess.copula import coupling_of
from forecast.models.postprocess.interval_scale import interval_scale_from
from forecast.models.universal.covariates import CovariateEffect
from forecast.models.universal.forecaster import UniversalForecaster, UniversalShape
from forecast.models.universal.forecasting import CONTEXTS
from forecast.models.universal.season import estimate_season
from forecast.pretraining.covariate_effect import with_covariates
from forecast.pretraining.pretrained_network import PretrainedNetwork, of_package

_LOG = logging.getLogger(__name__)

_WEEK: Final = 7
# Series whose errors calibrate the width of intervals, and the number of their last horizons.
_MAX_CHECKED_SERIES, _CHECKED_HORIZONS = 500, 2
# Weight of the prior correlations, those of an autoregressive process, as a number of windows.
_PRIOR_WINDOWS = 50.0


def zero_shot(name: str, loaded: Loaded, window: WindowConfig, model: ModelConfig | None = None) -> Artifact:
    """Return the pretrained network `name` of the package as a model for a panel, without training.

    `loaded` is read with `zero_shot_data`, without text (`drop_text`). Of `model`, only `quantile_levels` apply.
    The model takes from the panel its frequency and seasons, whether values can be below 0, and the scale for series
    without one. Its final weights include the regression on covariates, if that gains, and the interval scale from the
    errors at the last two horizons.

    Raises ConfigError for an unknown name, a horizon that is too long, or a target of classes.
    """
    data, panel, horizon = loaded.data, loaded.panel, window.horizon
    if loaded.classes is not None:
        raise ConfigError(
            f"{name} forecasts numbers, and {data.columns.target} holds {len(loaded.classes):,} classes; train a model "
            "with model.head=categorical"
        )
    assert data.season_length is not None
    shape = NetworkShape(
        context_length=1,
        horizon=horizon,
        season_length=data.season_length,
        n_past=panel.past.shape[0],
        n_known=panel.known.shape[0],
        n_calendar=panel.calendar.shape[0],
        category_sizes=(),
        n_static_numbers=0,
        nonnegative=is_nonnegative(panel, panel.lengths),
    )
    model = ModelConfig(quantile_levels=(model or ModelConfig()).quantile_levels)
    network = universal_member(name, panel, shape, model)
    if shape.n_past + shape.n_known + shape.n_calendar:
        network.shape = replace(network.shape, covariates=True)
        network.effect = CovariateEffect(shape.n_known + shape.n_calendar, shape.n_past)
    median_length = float(np.median(panel.lengths))
    context = window.context_length or default_context(
        panel.grid.frequency, data.season_length, horizon, median_length, median_length
    )
    artifact = Artifact(
        network=network,
        data=data.without_source(),
        window=WindowConfig(context_length=context, horizon=horizon),
        model=model,
        categories={},
        grid=panel.grid,
        trained_until=int(panel.start.min()) - 1,
    )
    final = network if network.effect is None else with_covariates(network, panel)
    scale, coupling = _calibrate_intervals(final, panel)
    artifact = replace(artifact, coupling=coupling)
    if final is network and scale == 1:
        return artifact
    final = copy.deepcopy(final)
    final.interval_scale.fill_(scale)
    return artifact.with_final(final, panel.last_index)


def _calibrate_intervals(network: UniversalForecaster, panel: Panel) -> tuple[float, Tensor | None]:
    """Return the factor on the width of intervals and the coupling of steps, from errors at the last two horizons.

    The factor is at least 1, so that a quiet period makes no interval narrower. The coupling is for sample paths; None
    if no series is long enough.
    """
    horizon, rows = network.shape.horizon, np.arange(panel.n_series)[:: -(-panel.n_series // _MAX_CHECKED_SERIES)]
    ends = panel.lengths[rows, None] - 1 - horizon * np.arange(_CHECKED_HORIZONS, 0, -1)
    series, number = np.nonzero(ends >= horizon // 2)
    windows = WindowIndex(rows[series], ends[series, number])
    with torch.inference_mode():
        forecasts = list(held_out_forecasts(network, PanelTensors.of(panel, network), windows))
    scale = max(1.0, interval_scale_from(forecasts, network, windows))
    return scale, coupling_of(forecasts, prior=_PRIOR_WINDOWS) if forecasts else None


def universal_member(
    init: str | PretrainedNetwork,
    panel: Panel,
    shape: NetworkShape,
    model: ModelConfig,
    train_lengths: IntArray | None = None,
    *,
    cold_scale: Tensor | None = None,
) -> UniversalForecaster:
    """Return a pretrained network for a panel, with horizon, season and scale of another network's shape.

    `init` is the network, or the name of one of the package.

    Only the first `train_lengths` steps of each series, [S], are seen; all if None. `cold_scale` is the scale of the
    panel in units of the data, [2]; computed if None.
    Raises ConfigError for an unknown name, or a horizon that is too long.
    """
    pretrained = of_package(init) if isinstance(init, str) else init
    pretrained.check_horizon(shape.horizon)
    train_lengths = panel.lengths if train_lengths is None else train_lengths
    if shape.season_length == 1:
        shape = replace(shape, season_length=_season(panel, train_lengths))
    universal_shape = UniversalShape.of(
        shape,
        pretrained.network.shape,
        second_season=_second_season(panel.grid.frequency, shape.season_length),
        length=int(panel.lengths.max()),
        checkpoint=pretrained.checkpoint,
    )
    member = UniversalForecaster(universal_shape, model)
    member.network.load_state_dict(pretrained.network.state_dict())
    if cold_scale is None:
        last_windows = WindowIndex(np.flatnonzero(train_lengths > 0), train_lengths[train_lengths > 0] - 1)
        # The network works in units of the data, even if the model has a logarithmic scale.
        shape_of_data = replace(universal_shape, unit=0.0)
        tensors = PanelTensors(panel, levels=not member.head.positive)
        cold_scale = cold_scale_of(shape_of_data, tensors, last_windows, torch.from_numpy(train_lengths))
    member.cold_scale.copy_(cold_scale)
    return member.eval()


def zero_shot_data(data: DataConfig) -> DataConfig:
    """Return the data settings for a pretrained network: no static covariates, lags, rolling or calendar features.

    The network has the history of the target and the seasons itself. A warning names settings that are ignored.
    """
    names = ("static_covariates", "lags", "rolling")
    if unread := [f"data.{name}" for name in names if getattr(data, name)]:
        _LOG.warning("%s: not read by a pretrained network, which knows each series; train a model", listing(unread))
    return data.model_copy(update=dict.fromkeys(names, ()) | {"static_path": None, "calendar": False})


def drop_text(loaded: Loaded) -> Loaded:
    """Return a panel without covariates of text, which a warning names."""
    data, panel, categories = loaded.data, loaded.panel, loaded.categories
    text_columns = [name for name in (*data.past_covariates, *data.known_covariates) if name in categories]
    if not text_columns:
        return loaded
    _LOG.warning(
        "%s: text, of which a pretrained network reads none; give numbers, or train a model", listing(text_columns)
    )
    keep_past, keep_known = (
        np.array([name not in text_columns for name in names], dtype=bool)
        for names in (data.past_covariates, data.known_covariates)
    )
    update: dict[str, object] = {
        "past_covariates": tuple(name for name in data.past_covariates if name not in text_columns),
        "known_covariates": tuple(name for name in data.known_covariates if name not in text_columns),
    }
    if not keep_known.any():
        update["known_path"] = None
    return replace(
        loaded,
        panel=replace(panel, past=panel.past[keep_past], known=panel.known[keep_known]),
        data=data.model_copy(update=update),
        categories={name: values for name, values in categories.items() if name not in text_columns},
        stored_digest=None,
    )


def _season(panel: Panel, train_lengths: IntArray) -> int:
    """Return the season length estimated from the first `train_lengths` steps of some series; 1 without any."""
    rows = np.flatnonzero(train_lengths > 0)
    rows = rows[:: max(1, -(-len(rows) // _MAX_CHECKED_SERIES))]
    season = estimate_season(
        panel.target[start : start + train_lengths[row]] for row, start in zip(rows, panel.offsets[rows], strict=True)
    )
    if season > 1:
        _LOG.info(
            "the pretrained network takes a season of %d steps, estimated from the values: for steps of %s, "
            "data.season_length is 1",
            season,
            panel.grid.frequency,
        )
    return season


def _second_season(frequency: Frequency, season: int) -> int:
    """Return the steps of a week if the season is a day and the context can hold three weeks, else 0."""
    week = _WEEK * season
    is_day = frequency.sub_daily and season == frequency.season_length and season > 1
    return week if is_day and 3 * week <= CONTEXTS[-1] else 0
