"""Sample paths of forecasts, as a table, and models that can draw them."""

from dataclasses import replace

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.data.availability import closed_ahead
from forecast.data.panel import Panel
from forecast.errors import ConfigError
from forecast.models.network.ensemble import members_of
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.names import CUTOFF, SERIES_ID, STEP, TIMESTAMP, VALUE
from forecast.prediction.cutoffs import latest_windows
from forecast.prediction.predict import predict


def with_samples(artifact: Artifact, count: int, key: str = "n") -> Artifact:
    """Return a model that samples `count` paths (`predict`): `artifact`, or a copy whose decoder draws more paths.

    Raises ConfigError, which names the setting `key`, for a model that has no paths.
    """
    network = artifact.network
    if artifact.horizon > network.shape.horizon:
        raise ConfigError(
            f"{key}: sample paths reach as far as the horizon that the model is trained for, "
            f"{network.shape.horizon:,} steps, and {artifact.horizon:,} are wanted; leave {key} out, or shorten the "
            "horizon"
        )
    if artifact.bank is not None and artifact.classes is not None:
        raise ConfigError(
            f"{key}: fine-tuning changes the probabilities of classes at each step, which moves no path; sample those "
            "of the model without it (model.base(), or its pretrained version)"
        )
    if network.n_paths > 1 and not isinstance(network, RecurrentForecaster):
        raise ConfigError(
            f"{key}: this model is of {len(members_of(network))} networks, whose paths have no mean; train one with "
            "fit.ensemble=1"
        )
    # If training has kept the closed form, the output layer is zero, and the decoder does not sample numbers.
    samples_paths = (
        isinstance(network, RecurrentForecaster)
        and network.n_paths > 1
        and (artifact.classes is not None or bool(network.output.weight.any()))
    )
    if not samples_paths and artifact.coupling is None:
        if artifact.classes is not None:
            raise ConfigError(
                f"{key}: a model of classes with decoder={artifact.model.decoder} knows each step of the horizon by "
                "itself, and what is drawn from each is no path; train one with model.decoder=autoregressive"
            )
        raise ConfigError(
            f"{key}: this model does not hold how its errors depend on each other over the horizon; train it again"
        )
    if isinstance(network, RecurrentForecaster) and 1 < network.n_paths < count:
        network = network.sampling(count)
    return replace(artifact, network=network, final=artifact.final and with_samples(artifact.final, count, key))


def sample_paths(artifact: Artifact, panel: Panel, *, n: int | None = None, cutoff: int | None = None) -> pl.DataFrame:
    """Return `n` possible futures (model.n_paths when None) of every series from grid index `cutoff`.

    Columns: series_id, cutoff, path (1 to n), step, timestamp, value (a class, for a model of classes). With an
    autoregressive decoder, each step of a path is drawn given the steps before it. Otherwise each step has the forecast
    distribution, and steps depend on each other as the errors did in validation (`copula`). All series and calls share
    their random numbers: paths with the same number are not independent across series. The cutoff is the latest step of
    the panel when None. Series that begin later are omitted; values are null if the context of the model holds no
    observation.

    Raises ConfigError for a model that has no paths, DataError as `forecast`.
    """
    n = artifact.model.n_paths if n is None else n
    if n < 2:
        raise ConfigError(f"n: a sample has 2 paths or more, {n} asked for")
    cutoff, windows = latest_windows(panel, cutoff)
    artifact = with_samples(artifact.for_cutoff(cutoff), n)
    predicted = predict(artifact, panel, windows, samples=n)
    paths = np.moveaxis(predicted.tuned[..., -n:], -1, 1)
    paths = np.where(closed_ahead(panel, windows, paths.shape[-1])[:, None], np.float32(0), paths)
    n_series, n_paths, horizon = paths.shape
    step_index = np.tile(np.arange(horizon), n_series * n_paths)
    value = pl.Series(paths.astype(np.float64).ravel(), dtype=pl.Float64).fill_nan(None)
    if artifact.classes is not None:
        value = pl.Series(artifact.classes, dtype=pl.String).gather(value.cast(pl.Int64))
    timestamps = panel.grid.timestamps(np.arange(cutoff, cutoff + horizon + 1))
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(
                np.repeat(np.arange(n_series), n_paths * horizon)
            ),
            CUTOFF: timestamps[:1].gather(np.zeros(len(step_index), dtype=np.int64)),
            "path": np.tile(np.repeat(np.arange(1, n_paths + 1, dtype=np.int32), horizon), n_series),
            STEP: step_index.astype(np.int32) + 1,
            TIMESTAMP: timestamps[1:].gather(step_index),
            VALUE: value,
        }
    )
