"""Adapters: the changes per series that fine-tuning makes to the forecasts of the shared network."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from forecast.models.adapters import stacked
from forecast.models.heads.base import Head
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.output import EncoderState, Output
from forecast.models.tunable import AnyTunable

# Most recent values of the window among the features of kind `head`, at most.
_WINDOW_FEATURES = 168
# Elements of the weights of several series in memory at once.
_NUMBERS = 60_000_000

HEAD = "head"
BLEND = "blend"


class AdapterBank:
    """The changes of each series, stacked: tensors [series, ...] by name.

    Of kind `head`, `weight` and `width`: a shift of the forecast, and the width of its quantiles. The shift is a linear
    map of [1; last season of the window; encoder state]; the width is by how much the quantiles are stretched around
    the median. Of classes it is log-odds that are shifted, and divided by the width (`Head`). Of the other kinds, the
    `stacked.Deltas`, and `blend`, by how much of them a series forecasts with.
    """

    def __init__(
        self,
        kind: str,
        series_id: Sequence[str],
        tensors: Mapping[str, Tensor],
        seen: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.series_id = list(series_id)
        self.tensors = dict(tensors)
        self.seen = dict(seen or {})
        """A digest of the data of each series that was fine-tuned, with or without changes."""
        self._row = {name: row for row, name in enumerate(self.series_id)}

    def rows(self, series_id: Sequence[str]) -> Int[Tensor, " series"]:
        """Return the row of each series, -1 for those that keep the base."""
        return torch.tensor([self._row.get(name, -1) for name in series_id], dtype=torch.long)

    def some(self, rows: Sequence[int], seen: Mapping[str, str]) -> "AdapterBank":
        """Return the changes of some series, by their rows."""
        tensors = {name: values[list(rows)] for name, values in self.tensors.items()}
        return AdapterBank(self.kind, [self.series_id[row] for row in rows], tensors, seen)

    def changes(self, rows: Int[Tensor, " series"]) -> stacked.Deltas:
        """Return the changes of some series, scaled by their blend."""
        tensors = {name: values[rows] for name, values in self.tensors.items()}
        return tensors if self.kind == HEAD else stacked.blended(tensors, tensors.pop(BLEND))

    def shifted(
        self,
        head: Head,
        columns: Float[Tensor, "batch horizon column"],
        features: Float[Tensor, "batch feature"],
        rows: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch horizon column"]:
        """Return the columns of a forecast with the changes of each series, of kind `head`, in units of scale."""
        weight, width = (self.tensors[name][rows].to(features) for name in ("weight", "width"))
        shift = torch.einsum("bf,bfh->bh", features, weight).unflatten(1, (columns.shape[1], -1))
        return head.shift_and_scale(columns, shift, width[:, None])

    def arguments(
        self,
        network: AnyTunable,
        batch: Batch,
        origins: Int[Tensor, " origin"],
        rows: Int[Tensor, " batch"],
        past: EncoderState | None = None,
    ) -> Float[Tensor, "batch origin horizon argument"]:
        """Return the distributions with the changes of each window's series, of the other kinds.

        The windows of a series are forecast together: its weights are taken once. With a past, only of kinds that
        leave the encoder as it is (`stacked.FROZEN`).
        """
        series = torch.arange(len(rows)) if self.kind in stacked.FROZEN else rows
        order = series.argsort(stable=True)
        windows_by_series = order.split(series[order].unique_consecutive(return_counts=True)[1].tolist())
        numbers = stacked.count(v[0] for v in self.tensors.values()) + stacked.count(network.parameters())
        parts, order_of_parts = [], []
        for length in sorted({len(windows) for windows in windows_by_series}):
            alike = torch.stack([windows for windows in windows_by_series if len(windows) == length])
            for windows in alike.split(max(1, _NUMBERS // numbers)):
                changes = {
                    name: values.to(batch.target.device) for name, values in self.changes(rows[windows[:, 0]]).items()
                }
                positions = windows.flatten()
                window_batch = batch.rows(positions)
                states = None if past is None else [past.rows(positions)]
                parts.append(stacked.forecasts(network, changes, window_batch, origins, states)[0])
                order_of_parts.append(positions)
        return torch.cat(parts)[torch.cat(order_of_parts).argsort()]


def head_features(output: Output, shape: NetworkShape) -> Float[Tensor, "batch origin feature"]:
    """Return the features of kind `head` at each origin."""
    recent = output.frame.window[..., -_recent_length(shape) :]
    if shape.n_classes:
        codes = torch.arange(shape.n_classes, device=recent.device)
        recent = (recent[..., None] == codes).to(output.state.dtype).flatten(-2)
    return functional.pad(torch.cat([recent, output.state], dim=-1), (1, 0), value=1.0)


def head_feature_count(shape: NetworkShape, hidden_size: int) -> int:
    """Return the number of features of `head_features`."""
    return 1 + _recent_length(shape) * max(shape.n_classes, 1) + hidden_size


def _recent_length(shape: NetworkShape) -> int:
    season = shape.season_length if shape.season_length > 1 else shape.horizon
    return max(1, min(season, shape.context_length, _WINDOW_FEATURES // max(shape.n_classes, 1)))
