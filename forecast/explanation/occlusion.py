"""Occlusion: the change of a forecast if an input is replaced by its baseline."""

from typing import Any

import torch

from forecast.explanation.explained_window import ExplainedWindow
from forecast.explanation.result import ATTRIBUTION, INPUT, KIND, LAG, STEPS
from forecast.models.inputs.batch import Batch
from forecast.names import TARGET, TIMESTAMP

# Windows per forward pass.
_BATCH = 64
# Approximate number of blocks of the context, if explain.block is not set.
_DEFAULT_BLOCKS = 24


@torch.no_grad()
def occlusion(window: ExplainedWindow) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    batch, baseline, context = window.batch, window.target_baseline(), window.shape.context_length
    block = window.settings.block or max(window.shape.segment_length, -(-context // _DEFAULT_BLOCKS))
    rows: list[dict[str, Any]] = []
    for lag in range(0, context, block):
        steps = slice(max(0, context - lag - block), context - lag)
        if not batch.observed[:, steps].any():
            continue
        target = batch.target.clone()
        target[:, steps] = baseline[:, steps]
        change = _forecast_change(window, batch._replace(target=target))
        position = {LAG: lag, STEPS: steps.stop - steps.start, TIMESTAMP: window.timestamps[context - 1 - lag]}
        rows.append({INPUT: TARGET, KIND: TARGET, ATTRIBUTION: change, **position})
    for column in window.columns():
        inputs, references = getattr(batch, column.field), getattr(window.references, column.field)
        occluded = inputs.expand(len(references), *inputs.shape[1:]).clone()
        replacement = references[..., column.first : column.last]
        if inputs.ndim == 3:
            replacement = torch.where(batch.there[..., None], replacement, occluded[..., column.first : column.last])
        occluded[..., column.first : column.last] = replacement
        expanded = batch.expand(len(references))
        labels = window.labels_of(column)[0] if column.kind == "static" else {}
        change = _forecast_change(window, expanded._replace(**{column.field: occluded}))
        rows.append({INPUT: column.name, KIND: column.kind, ATTRIBUTION: change, **labels})
    return rows


def _forecast_change(window: ExplainedWindow, occluded: Batch) -> float:
    """Return forecast - mean forecast of `occluded`, windows without an input."""
    rows = (slice(first, first + _BATCH) for first in range(0, len(occluded.target), _BATCH))
    parts = [window.forecasts(occluded.rows(row)) for row in rows]
    return window.forecast - float(torch.cat(parts).mean())
