"""The same work by other libraries, in their own environments: the ways that their documentation shows."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from benchmarks.meter import Figures, Meter, answer, warmed

CONTEXT, HORIZON, BATCH = 168, 24, 64
WARM_UP = 20


def neuralforecast_load(path: str, warm: str, frame: str) -> Figures:
    """`TimeSeriesDataset.from_df` of a Polars or pandas frame."""
    import pandas as pd
    import polars as pl
    from neuralforecast.tsdataset import TimeSeriesDataset

    read = {"polars": pl.read_parquet, "pandas": pd.read_parquet}[frame]

    def work(table: str) -> Any:
        return TimeSeriesDataset.from_df(read(table), id_col="series_id", time_col="timestamp", target_col="target")

    (data, *_), figures = warmed(work, warm, path)
    return {**figures, "steps": len(data.temporal), "series": len(data)}


def neuralforecast_gaps(path: str, warm: str) -> Figures:
    """The same of a table with duplicates and gaps: one row of each key, `fill_gaps`, then the data set."""
    import polars as pl
    from neuralforecast.tsdataset import TimeSeriesDataset
    from utilsforecast.preprocessing import fill_gaps

    columns = {"id_col": "series_id", "time_col": "timestamp"}

    def work(table: str) -> Any:
        rows = pl.read_parquet(table).unique(columns.values())
        return TimeSeriesDataset.from_df(fill_gaps(rows, freq="1h", **columns), target_col="target", **columns)

    (data, *_), figures = warmed(work, warm, path)
    return {**figures, "steps": len(data.temporal), "series": len(data)}


def gluonts_load(path: str, warm: str) -> Figures:
    """`PandasDataset.from_long_dataframe` and one pass over its entries: each pass makes them anew."""
    import pandas as pd
    from gluonts.dataset.pandas import PandasDataset

    def work(table: str) -> int:
        return sum(entry["target"].shape[-1] for entry in gluonts_series(PandasDataset, pd.read_parquet(table)))

    steps, figures = warmed(work, warm, path)
    return {**figures, "steps": steps}


def darts_load(path: str, warm: str) -> Figures:
    """`TimeSeries.from_group_dataframe`."""
    import pandas as pd
    from darts import TimeSeries

    series, figures = warmed(lambda table: darts_series(TimeSeries, pd.read_parquet(table)), warm, path)
    return {**figures, "steps": sum(map(len, series)), "series": len(series)}


def neuralforecast_batches(path: str, batches: int) -> Figures:
    """Training windows of a univariate model, with its default of 32 series at a time."""
    import polars as pl
    import torch
    from neuralforecast.models import MLP
    from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

    frame = pl.read_parquet(path)
    data, *_ = TimeSeriesDataset.from_df(frame, id_col="series_id", time_col="timestamp", target_col="target")
    model = MLP(h=HORIZON, input_size=CONTEXT, windows_batch_size=BATCH)
    loader = TimeSeriesDataModule(data, batch_size=model.batch_size).train_dataloader()

    def stream() -> Iterator[tuple[int, ...]]:
        while True:
            for batch in loader:  # What `training_step` does before the network.
                windows, static, static_cols, usable, weight, columns = model._create_windows(batch, step="train")
                chosen = torch.randperm(len(usable))[:BATCH]
                taken = model._sample_windows(windows, static, static_cols, columns, chosen, usable, weight)
                yield taken["temporal"].shape[0], taken["temporal"].shape[1]

    return _rate(stream(), batches)


def gluonts_batches(path: str, batches: int) -> Figures:
    """The training loader of a feed-forward estimator, over entries that are made already."""
    import pandas as pd
    from gluonts.dataset.pandas import PandasDataset
    from gluonts.torch import SimpleFeedForwardEstimator

    estimator = SimpleFeedForwardEstimator(
        HORIZON, context_length=CONTEXT, batch_size=BATCH, num_batches_per_epoch=batches + WARM_UP
    )
    entries = list(
        estimator.create_transformation().apply(
            list(gluonts_series(PandasDataset, pd.read_parquet(path))), is_train=True
        )
    )
    loader = estimator.create_training_data_loader(entries, module=None)
    shapes = ((b["past_target"].shape[0], b["past_target"].shape[1] + b["future_target"].shape[1]) for b in loader)
    return _rate(shapes, batches)


def darts_batches(path: str, batches: int) -> Figures:
    """The training loader of a torch model."""
    import numpy as np
    import pandas as pd
    from darts import TimeSeries
    from darts.utils.data import SequentialTorchTrainingDataset
    from darts.utils.data.torch_datasets._data_module import TorchDataModule
    from darts.utils.data.torch_datasets.utils import _batch_collate_fn_train

    series = [one.astype(np.float32) for one in darts_series(TimeSeries, pd.read_parquet(path))]
    data = SequentialTorchTrainingDataset(series, input_chunk_length=CONTEXT, output_chunk_length=HORIZON)
    loader = TorchDataModule(data, batch_size=BATCH, collate_fn=_batch_collate_fn_train).train_dataloader()
    shapes = ((b.past_target.shape[0], b.past_target.shape[1] + b.future_target.shape[1]) for b in loader)
    return _rate(shapes, batches)


def gluonts_series(kind: Any, frame: Any) -> Any:
    """Return the data set, of `PandasDataset`, in a frame."""
    return kind.from_long_dataframe(frame, item_id="series_id", timestamp="timestamp", target="target", freq="h")


def darts_series(kind: Any, frame: Any) -> Any:
    """Return the series, of `TimeSeries`, in a frame."""
    return kind.from_group_dataframe(
        frame, group_cols="series_id", time_col="timestamp", value_cols="target", freq="h", drop_group_cols="series_id"
    )


def _rate(shapes: Iterator[tuple[int, ...]], batches: int) -> Figures:
    """Return the cost of so many batches, after the first ones."""
    for _ in islice(shapes, WARM_UP):
        pass
    with Meter() as meter:
        found = set(islice(shapes, batches))
    assert found == {(BATCH, CONTEXT + HORIZON)}, found
    return {**meter.figures, "windows": batches * BATCH}


if __name__ == "__main__":
    answer({name: task for name, task in globals().items() if name.endswith(("_load", "_gaps", "_batches"))})
