"""Attention weights of forecasts, as a table."""

import numpy as np
import polars as pl
import torch

from forecast.artifact import Artifact
from forecast.data.panel import Panel
from forecast.data.windows import BATCH_SIZE
from forecast.errors import ConfigError
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import members_of
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.runtime.torch_setup import prepare
from forecast.names import CUTOFF, SERIES_ID, STEP, TIMESTAMP
from forecast.prediction.cutoffs import latest_windows


@torch.inference_mode()
def attention(artifact: Artifact, panel: Panel, *, cutoff: int | None = None) -> pl.DataFrame:
    """Return the weight of each encoder step in the forecasts from grid index `cutoff`, the latest when None.

    Columns: series_id, cutoff, timestamp (of the last row of the encoder step), step (0 at the cutoff, -1 before it),
    weight. The weights of a series sum to 1 and are 0 before its start.

    Raises ConfigError for a model without attention, DataError as `forecast`.
    """
    if not artifact.model.attention:
        raise ConfigError("model.attention: this model was trained without; train one with model.attention=true")
    prepare()
    cutoff, windows = latest_windows(panel, cutoff)
    network = artifact.for_cutoff(cutoff).network
    data = PanelTensors.of(panel, network)
    shape = members_of(network)[0].shape  # A pretrained member may have a longer context, but has no weights.
    length, context = shape.segment_length, shape.context_length
    weights, indices = [], []
    for series, ends, origins in validation_batches(windows, BATCH_SIZE):
        output = network(data.gather(series, ends, ends + 1, **window_sizes(network, 1)), origins)
        assert output.attention is not None
        weights.append(output.attention[:, 0].numpy())
        steps = data.steps(series, ends, torch.full_like(ends, 1 - context), context)
        indices.append((data.start[series, None] + steps[:, length - 1 :: length]).numpy())
    weight, index = np.concatenate(weights), np.concatenate(indices)
    n_windows, n_steps = weight.shape
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(
                np.repeat(np.arange(n_windows), n_steps)
            ),
            CUTOFF: panel.grid.timestamps(np.array([cutoff])).gather(np.zeros(n_windows * n_steps, dtype=np.int64)),
            TIMESTAMP: panel.grid.timestamps(index.ravel()),
            STEP: np.tile(np.arange(1 - n_steps, 1, dtype=np.int32), n_windows),
            "weight": weight.ravel(),
        }
    )
