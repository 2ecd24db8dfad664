"""Decisions, summary and examples of a fine-tuning."""

import numpy as np
import polars as pl
import torch

from forecast.artifact import Artifact
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.finetuning.result import TOO_SHORT
from forecast.finetuning.series_gate import HARM_PROBABILITY, HOW, POSTERIOR_GAIN, TUNED
from forecast.finetuning.series_tuning import ROW
from forecast.finetuning.trials import TOLD, Columns, TuningSettings, stated
from forecast.models.adapters.bank import BLEND, HEAD, Bank
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

# Series that are shown, of the best and of the worst.
_SHOWN = 3


def decisions_of(
    panel: Panel, table: Columns, every: np.ndarray, settings: TuningSettings, before: Bank | None
) -> pl.DataFrame:
    """Return the columns for all series: null where they were not judged, with the reason in `every`."""
    rows = table.get(ROW, np.zeros(0, dtype=np.int64))
    how = HOW[settings.kind == HEAD]

    def spread(name: str) -> pl.Series:
        values = np.full(panel.n_series, np.nan)
        values[rows] = table.get(name, np.nan)
        return pl.Series(values).fill_nan(None)

    reason = every.astype(object)
    reason[rows] = table.get(REASON, ())
    # Those that were not fine-tuned now may have changes from before.
    blend = spread(BLEND).fill_null(0.0).to_numpy().copy()
    if before is not None and before.series_id:
        own = before.rows(panel.series_id.tolist()).numpy()
        shares = (
            before.tensors[BLEND].numpy() if BLEND in before.tensors else np.full(len(before.series_id), settings.blend)
        )
        kept = (own >= 0) & np.isin(np.arange(panel.n_series), rows, invert=True)
        blend[kept] = shares[own[kept]]
    return pl.DataFrame(
        {
            SERIES_ID: panel.series_id.tolist(),
            **{
                name: spread(name)
                for name in ("base_loss", "tuned_loss", "gain", POSTERIOR_GAIN, HARM_PROBABILITY, *how)
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
    """Return `FinetuneResult.shown`: of the tuned series those with the best and the worst uplift."""
    network, horizon, n_windows = artifact.network, artifact.horizon, settings.report_windows
    base, tuned = (table.get(f"report_{name}_loss", np.zeros(0)) for name in ("base", "tuned"))
    judged = np.flatnonzero((table.get(REASON, np.zeros(0)) == TUNED) & (base > 0))
    order = judged[np.argsort(tuned[judged] / base[judged], kind="stable")]
    some = np.unique(np.concatenate([order[:_SHOWN], order[-_SHOWN:]]))
    rows = table.get(ROW, np.zeros(0, dtype=np.int64))[some]
    cutoff = (usable[rows][:, None] - 1 - np.arange(n_windows, 0, -1) * horizon).ravel()
    names = [quantile_column(0.5)] if artifact.classes is None else [class_column(name) for name in artifact.classes]
    windows = WindowIndex(np.repeat(rows, n_windows), cutoff)
    values = np.zeros((2, len(windows), horizon, len(names)), dtype=panel.target.dtype)
    if len(windows):
        ((series, own, origins),) = validation_batches(windows)
        series, own, origins = series.to(data.device), own.to(data.device), origins.to(data.device)
        batch = data.gather(series, own, own + 1, **window_sizes(network, 1))
        output = network(batch, origins)
        positions = data.horizon_positions(series, own, horizon)
        before = stated(network.head, output.head.predicted(output.arguments)[:, 0])
        for made, columns in zip(values, (before, table[TOLD][some].reshape(before.shape)), strict=True):
            moved = torch.from_numpy(columns).to(data.device)
            made[:] = in_data_units(moved, output.frame, positions, network.shape.unit, batch.level).cpu().numpy()
    at = (panel.start[windows.series] + cutoff)[:, None] + np.arange(horizon + 1)
    each = np.repeat(np.arange(len(windows)), horizon)
    frame = pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(each),
            TIMESTAMP: panel.grid.timestamps(at[:, 1:].ravel()),
            CUTOFF: panel.grid.timestamps(at[:, 0]).gather(each),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), len(windows)),
        }
    )
    parts = []
    for model, made in zip((SOURCE_PRETRAINED, SOURCE_FINE_TUNED), values, strict=True):
        found = {name: pl.Series(made[..., column].ravel()) for column, name in enumerate(names)}
        if artifact.classes is not None:
            found[CLASS] = pl.Series(artifact.classes, dtype=pl.String).gather(made.argmax(-1).ravel())
        parts.append(frame.with_columns(pl.lit(model).alias(MODEL), **found))
    return pl.concat(parts)


def summary_of(decisions: pl.DataFrame, n_tuned: int) -> dict[str, float | int]:
    """Return counts, and the uplift on the report windows with a 95 % interval over series.

    Of a pooled gate also the posterior gain and the probability of harm, the means over the series that are tuned.
    """
    judged = decisions.filter(pl.col("report_base_loss") > 0)
    base, tuned = judged["report_base_loss"], judged["report_tuned_loss"]
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
