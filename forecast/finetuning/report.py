"""Reports of a fine-tuning: the table of decisions, summary figures, and example forecasts."""

import numpy as np
import polars as pl
import torch

from forecast.artifact import Artifact
from forecast.config import TuningSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.finetuning.result import TOO_SHORT
from forecast.finetuning.series_gate import CHANGE_COLUMNS, HARM_PROBABILITY, POSTERIOR_GAIN, TUNED
from forecast.finetuning.series_tuning import ROW
from forecast.finetuning.trials import POINT_FORECAST, Columns, point_forecast
from forecast.models.adapters.bank import BLEND, HEAD, AdapterBank
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.names import (
    CLASS,
    CUTOFF,
    MODEL,
    REASON,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    STEP,
    TIMESTAMP,
    class_column,
    quantile_column,
)
from forecast.prediction.postprocess import in_data_units

# Number of example series with the best uplift, and of those with the worst.
_N_EXAMPLES = 3


def decisions_of(
    panel: Panel, table: Columns, initial_reason: np.ndarray, settings: TuningSettings, bank_before: AdapterBank | None
) -> pl.DataFrame:
    """Return the table of decisions, a row per series: null, with the reason in `initial_reason`, if not judged."""
    rows = table.get(ROW, np.zeros(0, dtype=np.int64))
    chosen_columns = CHANGE_COLUMNS[settings.kind == HEAD]

    def spread(name: str) -> pl.Series:
        values = np.full(panel.n_series, np.nan)
        values[rows] = table.get(name, np.nan)
        return pl.Series(values).fill_nan(None)

    reason = initial_reason.astype(object)
    reason[rows] = table.get(REASON, ())
    # Series that are skipped in an incremental fine-tuning keep their changes.
    blend = spread(BLEND).fill_null(0.0).to_numpy().copy()
    if bank_before is not None and bank_before.series_id:
        bank_rows = bank_before.rows(panel.series_id.tolist()).numpy()
        shares = (
            bank_before.tensors[BLEND].numpy()
            if BLEND in bank_before.tensors
            else np.full(len(bank_before.series_id), settings.blend)
        )
        keeps_change = (bank_rows >= 0) & np.isin(np.arange(panel.n_series), rows, invert=True)
        blend[keeps_change] = shares[bank_rows[keeps_change]]
    return pl.DataFrame(
        {
            SERIES_ID: panel.series_id.tolist(),
            **{
                name: spread(name)
                for name in ("base_loss", "tuned_loss", "gain", POSTERIOR_GAIN, HARM_PROBABILITY, *chosen_columns)
            },
            BLEND: blend,
            REASON: reason.tolist(),
            **{name: spread(name) for name in ("report_base_loss", "report_tuned_loss")},
        }
    )


@torch.inference_mode()
def example_forecasts(
    artifact: Artifact, panel: Panel, data: PanelTensors, usable: IntArray, table: Columns, settings: TuningSettings
) -> pl.DataFrame:
    """Return `FinetuneResult.shown`: forecasts of the tuned series with the best and the worst uplift."""
    network, horizon, n_windows = artifact.network, artifact.horizon, settings.report_windows
    base, tuned = (table.get(f"report_{name}_loss", np.zeros(0)) for name in ("base", "tuned"))
    eligible = np.flatnonzero((table.get(REASON, np.zeros(0)) == TUNED) & (base > 0))
    order = eligible[np.argsort(tuned[eligible] / base[eligible], kind="stable")]
    examples = np.unique(np.concatenate([order[:_N_EXAMPLES], order[-_N_EXAMPLES:]]))
    rows = table.get(ROW, np.zeros(0, dtype=np.int64))[examples]
    cutoff = (usable[rows][:, None] - 1 - np.arange(n_windows, 0, -1) * horizon).ravel()
    names = [quantile_column(0.5)] if artifact.classes is None else [class_column(name) for name in artifact.classes]
    windows = WindowIndex(np.repeat(rows, n_windows), cutoff)
    values = np.zeros((2, len(windows), horizon, len(names)), dtype=panel.target.dtype)
    if len(windows):
        ((series, ends, origins),) = validation_batches(windows)
        series, ends, origins = series.to(data.device), ends.to(data.device), origins.to(data.device)
        batch = data.gather(series, ends, ends + 1, **window_sizes(network, 1))
        output = network(batch, origins)
        positions = data.horizon_positions(series, ends, horizon)
        base_point = point_forecast(network.head, output.head.predicted(output.arguments)[:, 0])
        for window_values, columns in zip(
            values, (base_point, table[POINT_FORECAST][examples].reshape(base_point.shape)), strict=True
        ):
            point = torch.from_numpy(columns).to(data.device)
            window_values[:] = (
                in_data_units(point, output.frame, positions, network.shape.unit, batch.level).cpu().numpy()
            )
    index = (panel.start[windows.series] + cutoff)[:, None] + np.arange(horizon + 1)
    window = np.repeat(np.arange(len(windows)), horizon)
    frame = pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(window),
            TIMESTAMP: panel.grid.timestamps(index[:, 1:].ravel()),
            CUTOFF: panel.grid.timestamps(index[:, 0]).gather(window),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), len(windows)),
        }
    )
    parts = []
    for model, window_values in zip((SOURCE_PRETRAINED, SOURCE_FINE_TUNED), values, strict=True):
        columns_of_model = {name: pl.Series(window_values[..., column].ravel()) for column, name in enumerate(names)}
        if artifact.classes is not None:
            columns_of_model[CLASS] = pl.Series(artifact.classes, dtype=pl.String).gather(
                window_values.argmax(-1).ravel()
            )
        parts.append(frame.with_columns(pl.lit(model).alias(MODEL), **columns_of_model))
    return pl.concat(parts)


def summary_of(decisions: pl.DataFrame, n_tuned: int) -> dict[str, float | int]:
    """Return counts, and the uplift on the report windows with the half-width of its 95 % interval over series.

    With a pooled gate also posterior gain and probability of harm, as means over the tuned series.
    """
    with_loss = decisions.filter(pl.col("report_base_loss") > 0)
    base, tuned = with_loss["report_base_loss"], with_loss["report_tuned_loss"]
    change = (1 - tuned / base).to_numpy()
    total = float(base.sum())
    error = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    expected = (
        decisions.filter(pl.col(REASON) == TUNED).select(POSTERIOR_GAIN, HARM_PROBABILITY).mean().row(0, named=True)
    )
    return {
        "series": len(decisions),
        "series_tuned": n_tuned,
        "series_too_short": int((decisions[REASON] == TOO_SHORT).sum()),
        "uplift": 1 - float(tuned.sum()) / total if total else 0.0,
        "uplift_per_series": float(change.mean()) if len(change) else 0.0,
        "uplift_interval": error,
        "share_improved": _share(change > 0),
        "share_worse_2_percent": _share(change < -0.02),
        **{name: value for name, value in expected.items() if value is not None},
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0
