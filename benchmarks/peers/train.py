"""Trainings of other libraries for `benchmarks.race`, each in its own environment and for a budget of CPU seconds.

What was chosen, and why. The same for all: a week of hours in, 128 units as in our preset, one layer and 32 windows a
step, a rate of 3e-3, and gradients clipped: two layers, and two weeks where they were tried, cost so much more a step
that a minute ends worse. That was tried on the test part itself, which favours them. Quantile losses or a distribution:
their median is what MAE would give, and there are quantiles besides. None has a schedule by the clock, and theirs by
steps or plateaus would not fit the budget: they get ours, a short warm-up and a cosine. None holds windows back for
validation: all of the training part is for training. And malloc keeps its blocks, as it does for us.
"""

import ctypes
import logging
import math
import platform
import tempfile
import time
import warnings
from typing import Any

from benchmarks.meter import Figures, answer

CONTEXT, HIDDEN, LAYERS, BATCH, RATE, CLIP = 168, 128, 1, 32, 3e-3, 1.0
WARM_UP = 0.05
FOREVER = 1_000_000  # Steps or epochs: the budget ends the training.
SEED = 1
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Clock:
    """The CPU seconds of this process, all threads, since its creation, of a budget."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = time.process_time()
        self.steps = 0

    def cpu(self) -> float:
        """Return the CPU seconds so far."""
        return time.process_time() - self._begun

    def callback(self, base: type) -> Any:
        """Return a callback, of the Lightning that `base` is of, which sets the rate and stops when all is spent."""
        clock = self

        class Budget(base):  # type: ignore[misc]
            def on_train_start(self, trainer: Any, *_: Any) -> None:
                self.rates = [[group["lr"] for group in each.param_groups] for each in trainer.optimizers]

            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                spent = min(clock.cpu() / clock._seconds, 1.0)
                share = min(0.5 * (1 + math.cos(math.pi * spent)), (spent + 1e-3) / WARM_UP)
                for each, rates in zip(trainer.optimizers, self.rates, strict=True):
                    for group, rate in zip(each.param_groups, rates, strict=True):
                        group["lr"] = rate * share

            def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                clock.steps = trainer.global_step
                if clock.cpu() >= clock._seconds:
                    trainer.should_stop = True

        return Budget()


def neuralforecast(path: str, out: str, seconds: float, horizon: int, levels: list[float], network: str) -> Figures:
    """LSTM or GRU with MQLoss. Each window is scaled by its median and deviation; 8 series at a time give them."""
    import polars as pl
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MQLoss
    from pytorch_lightning import Callback

    frame = pl.read_parquet(path)
    clock = Clock(seconds)
    model = getattr(models, network)(
        h=horizon,
        input_size=CONTEXT,
        encoder_n_layers=LAYERS,
        encoder_hidden_size=HIDDEN,
        loss=MQLoss(quantiles=levels),
        scaler_type="robust",
        learning_rate=RATE,
        batch_size=8,  # All windows of a series are unfolded and copied, before some are drawn.
        windows_batch_size=BATCH,
        max_steps=FOREVER,
        random_seed=SEED,
        gradient_clip_val=CLIP,
        callbacks=[clock.callback(Callback)],
        enable_checkpointing=False,
        **QUIET,
    )
    forecaster = NeuralForecast([model], freq="1h")
    forecaster.fit(frame, id_col="series_id", time_col="timestamp", target_col="value")
    cpu = clock.cpu()
    made = forecaster.predict().sort("series_id", "timestamp")
    names = made["series_id"].unique(maintain_order=True).to_list()
    quantiles = made.drop("series_id", "timestamp").to_numpy().reshape(len(names), horizon, len(levels))
    return _written(out, quantiles, names, clock.steps, cpu)


def each_series(path: str, context: int, horizon: int, hidden: int, steps: int) -> Figures:
    """Return the CPU seconds that neuralforecast's `fit` of an LSTM takes for a series, on one after another."""
    import polars as pl
    from neuralforecast import NeuralForecast, models
    from neuralforecast.losses.pytorch import MQLoss

    parts = pl.read_parquet(path).partition_by("series_id")
    begun = 0.0
    for number, frame in enumerate(parts):
        if number == 1:  # The first warms up.
            begun = time.process_time()
        network = models.LSTM(
            h=horizon,
            input_size=context,
            encoder_n_layers=1,
            encoder_hidden_size=hidden,
            loss=MQLoss(level=[80]),
            scaler_type="robust",
            batch_size=1,
            windows_batch_size=BATCH,
            max_steps=steps,
            enable_checkpointing=False,
            **QUIET,
        )
        NeuralForecast([network], freq="1d").fit(frame, id_col="series_id", time_col="timestamp", target_col="value")
    return {"seconds": (time.process_time() - begun) / (len(parts) - 1)}


def darts(path: str, out: str, seconds: float, horizon: int, levels: list[float]) -> Figures:
    """BlockRNNModel with QuantileRegression. Each series is scaled by its median and quartiles."""
    import numpy as np
    import pandas as pd
    from darts import TimeSeries
    from darts.models import BlockRNNModel
    from darts.utils.likelihood_models.torch import QuantileRegression
    from pytorch_lightning import Callback

    frame = pd.read_parquet(path)
    series = TimeSeries.from_group_dataframe(
        frame, group_cols="series_id", time_col="timestamp", value_cols="value", freq="h"
    )
    clock = Clock(seconds)
    quartiles = np.stack([np.percentile(one.values(), [50, 25, 75]) for one in series])
    middle, spread = quartiles[:, 0], quartiles[:, 2] - quartiles[:, 1]
    spread[spread == 0] = 1.0
    scaled = [((one - m) / s).astype(np.float32) for one, m, s in zip(series, middle, spread, strict=True)]
    model = BlockRNNModel(
        input_chunk_length=CONTEXT,
        output_chunk_length=horizon,
        model="LSTM",
        n_rnn_layers=LAYERS,
        hidden_dim=HIDDEN,
        use_static_covariates=False,
        likelihood=QuantileRegression(levels),
        optimizer_kwargs={"lr": RATE},
        batch_size=BATCH,
        n_epochs=FOREVER,
        random_state=SEED,
        pl_trainer_kwargs={
            "callbacks": [clock.callback(Callback)],
            "gradient_clip_val": CLIP,
            "enable_checkpointing": False,
            **QUIET,
        },
    )
    model.fit(scaled)
    cpu = clock.cpu()
    made = model.predict(horizon, series=scaled, predict_likelihood_parameters=True)
    quantiles = np.stack([one.values() for one in made]) * spread[:, None, None] + middle[:, None, None]
    return _written(
        out, quantiles, [str(one.static_covariates["series_id"].item()) for one in series], clock.steps, cpu
    )


def gluonts(path: str, out: str, seconds: float, horizon: int, levels: list[float]) -> Figures:
    """DeepAR with its Student t distribution and mean scaling, and embedded series; quantiles of 100 paths."""
    import numpy as np
    import pandas as pd
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.time_feature import get_lags_for_frequency
    from gluonts.torch import DeepAREstimator
    from lightning.pytorch import Callback, seed_everything

    frame = pd.read_parquet(path)
    names = sorted(frame["series_id"].unique())
    data = PandasDataset.from_long_dataframe(
        frame,
        item_id="series_id",
        timestamp="timestamp",
        target="value",
        freq="h",
        static_features=pd.DataFrame({"series": pd.Categorical(names)}, index=names),
    )
    clock = Clock(seconds)
    seed_everything(SEED, verbose=False)
    with tempfile.TemporaryDirectory() as folder:  # It keeps the weights of the epoch with the least loss.
        estimator = DeepAREstimator(
            freq="h",
            prediction_length=horizon,
            context_length=CONTEXT,
            num_layers=LAYERS,
            hidden_size=HIDDEN,
            lr=RATE,
            # The usual lags reach back a month, which is longer than the shortest series.
            lags_seq=[lag for lag in get_lags_for_frequency("h") if lag <= CONTEXT + 1],
            num_feat_static_cat=1,
            cardinality=[len(names)],
            batch_size=BATCH,
            trainer_kwargs={
                "max_epochs": FOREVER,
                "gradient_clip_val": CLIP,
                "callbacks": [clock.callback(Callback)],
                "default_root_dir": folder,
                **QUIET,
            },
        )
        predictor = estimator.train(data, cache_data=True)
        cpu = clock.cpu()
    made = list(predictor.predict(data, num_samples=100))
    quantiles = np.stack([np.stack([one.quantile(level) for level in levels], axis=-1) for one in made])
    return _written(out, quantiles, [one.item_id for one in made], clock.steps, cpu)


def _written(out: str, quantiles: Any, names: list[str], steps: int, cpu: float) -> Figures:
    """Write the quantiles, [series, step, level]."""
    import numpy as np

    np.save(out, quantiles)
    return {"series": names, "steps": steps, "cpu": cpu}


def prepare() -> None:
    """Take one thread, keep what malloc has, and be quiet, as `forecast.models.runtime` does."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.ERROR)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-3, 1 << 30), (-1, (2 << 30) - 1), (-2, 64 << 20)):
            libc.mallopt(parameter, value)


if __name__ == "__main__":
    prepare()
    answer({one.__name__: one for one in (neuralforecast, each_series, darts, gluonts)})
