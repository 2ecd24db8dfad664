"""Integrated gradients of a forecast (Sundararajan, Taly & Yan 2017, ICML)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from forecast.errors import ConfigError
from forecast.explanation.explained_window import ExplainedWindow
from forecast.explanation.references import interpolation_hook, mean_baseline
from forecast.explanation.result import ATTRIBUTION, INPUT, KIND
from forecast.models.inputs.batch import Batch
from forecast.models.network.ensemble import recurrent_members
from forecast.names import TARGET

# Windows per forward pass.
_BATCH = 64


def integrated_gradients(window: ExplainedWindow) -> tuple[list[dict[str, Any]], float, float]:
    """Return the rows of the table, the forecast of the baseline, and the error of the integral.

    The error is forecast - baseline - sum of attributions. Raises ConfigError if captum is not installed.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise ConfigError(
            "explain.method=integrated_gradients needs: pip install 'gatecast[explain]'; or set "
            "explain.method=occlusion"
        ) from None
    inputs, baselines = _endpoints(window)
    names = [name for name, values in inputs.items() if values.numel()]
    shares: dict[str, Tensor] = {}

    def forward(*tensors: Tensor) -> Tensor:
        parts = {name: values.expand(len(tensors[0]), *values.shape[1:]) for name, values in inputs.items()}
        parts |= dict(zip(names, tensors, strict=True))
        shares.update(parts)
        forecast = window.forecasts(_batch_with(window, parts))
        # Columns of text enter by their embeddings only; the product with 0 keeps them in the graph.
        return forecast + 0.0 * torch.stack([values.flatten(1).sum(1) for values in tensors]).sum(0)

    with _interpolated_embeddings(window, shares):
        integrals = IntegratedGradients(forward).attribute(
            tuple(inputs[name] for name in names),
            tuple(baselines[name] for name in names),
            n_steps=window.settings.n_steps,
            method="gausslegendre",
            internal_batch_size=_BATCH,
        )
        with torch.no_grad():
            baseline = float(forward(*(baselines[name] for name in names)))
    attributions = dict(zip(names, (values[0] for values in integrals), strict=True))
    total = sum(float(values.sum()) for values in attributions.values())
    for name in ("past", "known"):
        if f"{name}_share" in attributions:
            attributions[name] = attributions[name].clone()
            attributions[name][:, : attributions[f"{name}_share"].shape[1]] += attributions[f"{name}_share"]
    context = window.shape.context_length
    rows = window.rows_by_step(TARGET, TARGET, attributions["target"][:context], window.target_labels)
    for column in window.columns():
        values = attributions["static_share" if column.field == "static_categories" else column.field]
        values = values[..., column.first : column.last].sum(-1)
        labels = window.labels_of(column)
        if column.kind == "static":
            rows.append({INPUT: column.name, KIND: column.kind, ATTRIBUTION: float(values), **labels[0]})
        else:
            steps = values[:context] if column.kind == "past" else values
            rows += window.rows_by_step(column.name, column.kind, steps, labels)
    return rows, baseline, window.forecast - baseline - total


def _endpoints(window: ExplainedWindow) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors at the inputs and at the baseline, [1, ...] each; missing values are 0.

    The shares of categories interpolate from the mean embedding (0) to that of the category (1).
    """
    batch, references = window.batch, window.references
    inputs = {
        "target": batch.target,
        "past": batch.past.nan_to_num(0.0),
        "known": batch.known.nan_to_num(0.0),
        "static_numbers": batch.static_numbers.nan_to_num(0.0),
        "static_share": torch.ones_like(batch.static_categories, dtype=torch.float64),
    }
    baselines = {
        "target": window.target_baseline(),
        "past": mean_baseline(
            inputs["past"], batch.past, references.past, references.there, window.shape.past_categories
        ),
        "known": mean_baseline(
            inputs["known"], batch.known, references.known, references.there, window.shape.known_categories
        ),
        "static_numbers": mean_baseline(
            inputs["static_numbers"], batch.static_numbers, references.static_numbers, None
        ),
        "static_share": torch.zeros_like(inputs["static_share"]),
    }
    baselines["known"] = torch.where(batch.there[..., None], baselines["known"], inputs["known"])
    for name in ("past", "known"):
        n_coded = len(getattr(window.shape, f"{name}_categories"))
        inputs[f"{name}_share"] = torch.ones_like(inputs[name][..., :n_coded])
        baselines[f"{name}_share"] = torch.zeros_like(inputs[f"{name}_share"])
    return inputs, baselines


def _batch_with(window: ExplainedWindow, parts: dict[str, Tensor]) -> Batch:
    """Return windows with the values in `parts`; values that are missing in the series stay missing."""
    count, batch = len(parts["target"]), window.batch
    expanded = batch.expand(count)

    def numbers(name: str) -> Tensor:
        return torch.where(torch.isfinite(getattr(batch, name)), parts[name], torch.nan)

    return expanded._replace(
        target=parts["target"] * batch.observed,
        past=numbers("past"),
        known=numbers("known"),
        static_numbers=numbers("static_numbers"),
    )


@contextmanager
def _interpolated_embeddings(window: ExplainedWindow, shares: dict[str, Tensor]) -> Iterator[None]:
    """Interpolate embeddings between the mean over the reference windows and their own value, by `shares`."""
    handles = []
    for member in recurrent_members(window.artifact.network):
        for column, table in enumerate(member.embeddings):
            codes = window.references.static_categories[:, column]
            handles.append(table.register_forward_hook(interpolation_hook(shares, "static_share", column, codes)))
        for name, tables in (("past", member.past_embeddings), ("known", member.known_embeddings)):
            values = getattr(window.references, name)
            for key, table in tables.items():
                column = int(key)
                present = torch.isfinite(values[..., column]) & window.references.there
                codes = values[..., column][present].long()
                handles.append(table.register_forward_hook(interpolation_hook(shares, f"{name}_share", column, codes)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
