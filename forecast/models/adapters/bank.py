"""Changes per series: what fine-tuning adds to the forecast of the shared network."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.adapters import stacked
from forecast.models.heads.base import Head
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.output import EncoderState, Output
from forecast.models.tunable import AnyTunable

# Most recent values of the window that a series' own map sees, at most.
_WINDOW_FEATURES = 168
# Numbers of the weights of several series that are held at once.
_NUMBERS = 60_000_000

HEAD = "head"
BLEND = "blend"


class Bank:
    """What is changed for each series, stacked: tensors [series, ...] by name.

    Of kind `head`, `weight` and `width`: a shift of the forecast, and the width of its quantiles. The shift is a linear
    map of [1; last season of the window; encoder state]; the width is by how much the quantiles are stretched around
    the median. Of classes it is log-odds that are shifted, and divided by the width (`Head`). Of the other kinds, the
    `stacked.Changes`, and `blend`, by how much of them a series forecasts with.
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
        """Of each series that was fine-tuned, whether its changes were kept or not, a hash of the data it was on."""
        self._row = {name: row for row, name in enumerate(self.series_id)}

    def rows(self, series_id: Sequence[str]) -> Int[Tensor, " series"]:
        """Return the row of each series, -1 for those that keep the base."""
        return torch.tensor([self._row.get(name, -1) for name in series_id], dtype=torch.long)

    def some(self, rows: Sequence[int], seen: Mapping[str, str]) -> "Bank":
        """Return the changes of some series, by their rows."""
        tensors = {name: values[list(rows)] for name, values in self.tensors.items()}
        return Bank(self.kind, [self.series_id[row] for row in rows], tensors, seen)

    def changes(self, rows: Int[Tensor, " series"]) -> stacked.Changes:
        """Return the changes that some series forecast with."""
        found = {name: values[rows] for name, values in self.tensors.items()}
        return found if self.kind == HEAD else stacked.blended(found, found.pop(BLEND))

    def shifted(
        self,
        head: Head,
        columns: Float[Tensor, "batch horizon column"],
        features: Float[Tensor, "batch feature"],
        rows: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch horizon column"]:
        """Return what is stated with the changes of each series, of kind `head`, in units of scale."""
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
        each = order.split(series[order].unique_consecutive(return_counts=True)[1].tolist())
        numbers = stacked.count(v[0] for v in self.tensors.values()) + stacked.count(network.parameters())
        made, at = [], []
        for length in sorted({len(windows) for windows in each}):
            alike = torch.stack([windows for windows in each if len(windows) == length])
            for windows in alike.split(max(1, _NUMBERS // numbers)):
                changes = {
                    name: values.to(batch.target.device) for name, values in self.changes(rows[windows[:, 0]]).items()
                }
                own = windows.flatten()
                some = batch.rows(own)
                begun = None if past is None else [past.rows(own)]
                made.append(stacked.forecasts(network, changes, some, origins, begun)[0])
                at.append(own)
        return torch.cat(made)[torch.cat(at).argsort()]


def head_features(output: Output, shape: NetworkShape) -> Float[Tensor, "batch origin feature"]:
    """Return what a series' own map sees at each origin."""
    recent = output.frame.window[..., -_recent_length(shape) :]
    if shape.n_classes:
        codes = torch.arange(shape.n_classes, device=recent.device)
        recent = (recent[..., None] == codes).to(output.state.dtype).flatten(-2)
    return torch.cat([torch.ones_like(output.state[..., :1]), recent, output.state], dim=-1)


def head_feature_count(shape: NetworkShape, hidden_size: int) -> int:
    """Return how many features `head_features` gives."""
    return 1 + _recent_length(shape) * max(shape.n_classes, 1) + hidden_size


def _recent_length(shape: NetworkShape) -> int:
    season = shape.season_length if shape.season_length > 1 else shape.horizon
    return max(1, min(season, shape.context_length, _WINDOW_FEATURES // max(shape.n_classes, 1)))
