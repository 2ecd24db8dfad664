"""Forecasts of other libraries for `benchmarks.score`: `predict` from a frame to a frame, each in its own environment.

Models of two layers of 128, a week of hours in, with nine quantiles a step (DeepAR: of its paths). What they have
learnt costs nothing, so one step on a few series has trained them. A small table goes first, so that imports and the
like are counted for nobody. Batches are larger than by default where that makes them cheaper.
"""

import tempfile
import warnings
from typing import Any

from benchmarks.meter import Figures, answer, warmed
from benchmarks.peers.measure import darts_series, gluonts_series
from benchmarks.peers.train import QUIET, prepare

LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
LAYERS, HIDDEN, BATCH = 2, 128, 512
QUIETLY = {**QUIET, "enable_checkpointing": False}


def neuralforecast(path: str, warm: str, context: int, horizon: int, batch: int = BATCH) -> Figures:
    """LSTM with MQLoss, a Polars frame."""
    import polars as pl
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MQLoss

    columns = {"id_col": "series_id", "time_col": "timestamp", "target_col": "target"}
    network = models.LSTM(
        h=horizon,
        input_size=context,
        encoder_n_layers=LAYERS,
        encoder_hidden_size=HIDDEN,
        loss=MQLoss(quantiles=LEVELS),
        scaler_type="robust",
        batch_size=batch,
        inference_windows_batch_size=BATCH,
        max_steps=1,
        **QUIETLY,
    )
    forecaster = NeuralForecast([network], freq="1h")
    forecaster.fit(pl.read_parquet(warm), **columns)
    frames = {table: pl.read_parquet(table) for table in (warm, path)}
    made, figures = warmed(lambda table: forecaster.predict(df=frames[table]), warm, path)
    return {**figures, "rows": len(made)}


def darts(path: str, warm: str, context: int, horizon: int) -> Figures:
    """BlockRNNModel with QuantileRegression, a pandas frame to `TimeSeries` and back."""
    import numpy as np
    import pandas as pd
    from darts import TimeSeries
    from darts.models import BlockRNNModel
    from darts.utils.likelihood_models.torch import QuantileRegression

    def series(frame: Any) -> Any:
        return [one.astype(np.float32) for one in darts_series(TimeSeries, frame)]

    model = BlockRNNModel(
        input_chunk_length=context,
        output_chunk_length=horizon,
        model="LSTM",
        n_rnn_layers=LAYERS,
        hidden_dim=HIDDEN,
        use_static_covariates=False,
        likelihood=QuantileRegression(LEVELS),
        batch_size=BATCH,
        n_epochs=1,
        pl_trainer_kwargs={**QUIETLY, "max_steps": 1},
    )
    frames = {table: pd.read_parquet(table) for table in (warm, path)}
    model.fit(series(frames[warm]))

    def work(table: str) -> Any:
        made = model.predict(horizon, series=series(frames[table]), predict_likelihood_parameters=True)
        return pd.concat([one.to_dataframe() for one in made], keys=frames[table]["series_id"].unique())

    made, figures = warmed(work, warm, path)
    return {**figures, "rows": len(made)}


def gluonts(path: str, warm: str, context: int, horizon: int, paths: int) -> Figures:
    """DeepAR with its Student t distribution, a pandas frame, quantiles of some paths."""
    import numpy as np
    import pandas as pd
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.time_feature import get_lags_for_frequency
    from gluonts.torch import DeepAREstimator

    frames = {table: pd.read_parquet(table) for table in (warm, path)}
    with tempfile.TemporaryDirectory() as folder:
        predictor = DeepAREstimator(
            freq="h",
            prediction_length=horizon,
            context_length=context,
            num_layers=LAYERS,
            hidden_size=HIDDEN,
            lags_seq=[lag for lag in get_lags_for_frequency("h") if lag <= context + 1],
            num_parallel_samples=paths,
            batch_size=BATCH,
            num_batches_per_epoch=1,
            trainer_kwargs={"max_epochs": 1, "default_root_dir": folder, **QUIET},
        ).train(gluonts_series(PandasDataset, frames[warm]))

    def work(table: str) -> Any:
        made = list(predictor.predict(gluonts_series(PandasDataset, frames[table])))
        steps = [np.stack([one.quantile(level) for level in LEVELS], axis=-1) for one in made]
        return pd.concat(
            [pd.DataFrame(values, columns=LEVELS, index=one.index) for one, values in zip(made, steps, strict=True)],
            keys=[one.item_id for one in made],
        )

    made, figures = warmed(work, warm, path)
    return {**figures, "rows": len(made)}


if __name__ == "__main__":
    prepare()
    warnings.simplefilter("ignore")
    answer({one.__name__: one for one in (neuralforecast, darts, gluonts)})
