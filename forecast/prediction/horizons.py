"""Forecasts of another length than the trained horizon: a prefix of it, or beyond it."""

import copy
from dataclasses import replace
from typing import Final

from forecast.artifact import Artifact
from forecast.errors import ConfigError
from forecast.models.network.ensemble import Forecaster
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.models.universal.forecasting import MAX_HORIZON
from forecast.prediction.paths import with_samples
from forecast.prediction.rolling import paths_of

MAX_HORIZONS: Final = 8
"""Longest horizon, in trained horizons."""


def with_horizon(artifact: Artifact, horizon: int | None, key: str = "score.horizon") -> Artifact:
    """Return a model that forecasts `horizon` steps, for forecasts only: `artifact` itself when None.

    A shorter horizon is a prefix of the trained one, with the same numbers. A longer one is rolled (`rolling.roll`);
    an unchanged pretrained network forecasts it directly. Raises ConfigError, which names the setting `key`, for more
    than MAX_HORIZONS trained horizons, and beyond one for classes and for models without sample paths.
    """
    trained = artifact.network.shape.horizon
    if horizon is None or horizon == artifact.horizon:
        return artifact
    if horizon > MAX_HORIZONS * trained:
        raise ConfigError(
            f"{key}: {horizon:,} steps are more than {MAX_HORIZONS} times the {trained:,} that the model is trained "
            f"for; give {MAX_HORIZONS * trained:,} or less, or train one with a longer window.horizon"
        )
    if horizon > trained and artifact.classes is not None:
        raise ConfigError(
            f"{key}: a model of classes forecasts the {trained:,} steps that it is trained for (given: {horizon:,}); "
            f"give {trained:,} or less, or train one with window.horizon={horizon}"
        )
    network = _direct(artifact, horizon) if horizon > trained else None
    if horizon > trained and network is None:
        with_samples(artifact, paths_of(artifact), key)
    window = artifact.window.model_copy(update={"horizon": horizon})
    final = artifact.final and with_horizon(artifact.final, horizon, key)
    return replace(artifact, window=window, network=network or artifact.network, final=final)


def is_rolled(artifact: Artifact) -> bool:
    """Return whether forecasts reach beyond the horizon of the network."""
    return artifact.horizon > artifact.network.shape.horizon


def _direct(artifact: Artifact, horizon: int) -> Forecaster | None:
    """Return a pretrained network for a longer horizon; None if the model has parameters for each step of its own."""
    network = artifact.network
    if not isinstance(network, UniversalForecaster) or horizon > MAX_HORIZON:
        return None
    if artifact.bank is not None or artifact.calibration is not None:
        return None
    longer = copy.copy(network)
    longer.shape = replace(network.shape, horizon=horizon)
    return longer
