"""Defaults of a network's shape and size, from the panel and the horizon."""

import numpy as np

from forecast.config import DataConfig, FitConfig, ModelConfig, WindowConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.time.context import default_context
from forecast.errors import ConfigError
from forecast.models.inputs.shape import NetworkShape

# Steps to forecast from one window in training, which determine its origins, and the bounds of their number.
_STEPS_OF_WINDOW, _ORIGINS = 1_536, (4, 32)
# Training steps from which the default network is large.
_LARGE_PANEL, _LARGE_HIDDEN_SIZE = 500_000, 128
# Latest seasons whose differences determine the spread of a phase.
_SPREAD_SEASONS = 4


def context_length_of(panel: Panel, limits: IntArray, data: DataConfig, window: WindowConfig) -> int:
    """Return the context length: `window.context_length`, or the default for the panel."""
    assert data.season_length is not None
    return window.context_length or default_context(
        panel.grid.frequency,
        data.season_length,
        window.horizon,
        float(np.median(limits[limits > 0])),
        float(np.median(panel.lengths[limits > 0])),
    )


def shape_of(
    panel: Panel,
    data: DataConfig,
    categories: dict[str, tuple[str, ...]],
    window: WindowConfig,
    model: ModelConfig,
    context: int,
) -> NetworkShape:
    """Return the shape of the network for a panel."""
    assert data.season_length is not None
    return NetworkShape(
        context_length=context,
        horizon=window.horizon,
        season_length=data.season_length,
        n_past=panel.past.shape[0],
        n_known=panel.known.shape[0],
        n_calendar=panel.calendar.shape[0],
        category_sizes=tuple(len(categories[name]) for name in data.static_covariates if name in categories),
        n_static_numbers=panel.static_numbers.shape[1],
        segment_length=_segment_length(model, panel, context),
        past_categories=_category_sizes(data.past_covariates, categories, len(panel.past)),
        known_categories=_category_sizes(data.known_covariates, categories, len(panel.known)),
        n_classes=len(categories.get(data.columns.target, ())),
        spread_seasons=_SPREAD_SEASONS,
    )


def _category_sizes(columns: tuple[str, ...], categories: dict[str, tuple[str, ...]], n_rows: int) -> tuple[int, ...]:
    """Return the number of values of each row of a panel's covariates, 0 for numbers; empty if all are numbers.

    Rows beyond `columns` are derived ones: numbers.
    """
    sizes = [len(categories.get(name, ())) for name in columns]
    return (*sizes, *[0] * (n_rows - len(sizes))) if any(sizes) else ()


def default_origins(horizon: int) -> int:
    """Return the default number of origins of each window in training."""
    return int(np.clip(_STEPS_OF_WINDOW // horizon, *_ORIGINS))


def with_size(fit: FitConfig, model: ModelConfig, horizon: int, limits: IntArray) -> tuple[FitConfig, ModelConfig]:
    """Return the settings with defaults by the horizon and the size of the panel filled in."""
    if fit.origins is None:
        fit = fit.model_copy(update={"origins": default_origins(horizon)})
    if "hidden_size" not in model.model_fields_set and limits.sum() >= _LARGE_PANEL:
        model = model.model_copy(update={"hidden_size": _LARGE_HIDDEN_SIZE})
    return fit, model


def _segment_length(model: ModelConfig, panel: Panel, context: int) -> int:
    """Return the steps of a segment: a day for steps below a day, if that divides the context, else one step."""
    if model.segment_length is None:
        frequency = panel.grid.frequency
        day = frequency.season_length if frequency.sub_daily else 1
        return day if context % day == 0 else 1
    if context % model.segment_length:
        raise ConfigError(
            f"model.segment_length: {model.segment_length} does not divide window.context_length ({context})"
        )
    return model.segment_length
