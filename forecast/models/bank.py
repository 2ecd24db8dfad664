"""Changes per series: what fine-tuning adds to the forecast of the shared network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.heads import Head
from forecast.models.recurrent import NetworkShape, Output

# Most recent values of the window that a series' own map sees, at most.
_WINDOW_FEATURES = 168


class HeadBank:
    """What is changed for each series: a shift of the forecast, and the width of its quantiles.

    The shift is a linear map of [1; last season of the window; encoder state]; the width is by how much the quantiles
    are stretched around the median. Of classes it is log-odds that are shifted, and divided by the width (`Head`).
    """

    def __init__(
        self, series_id: Sequence[str], weight: Float[Tensor, "series feature shift"], width: Float[Tensor, " series"]
    ) -> None:
        self.series_id = list(series_id)
        self.weight = weight
        self.width = width
        self._row = {name: row for row, name in enumerate(self.series_id)}

    def rows(self, series_id: Sequence[str]) -> Int[Tensor, " series"]:
        """Return the row of each series, -1 for those that keep the base."""
        return torch.tensor([self._row.get(name, -1) for name in series_id], dtype=torch.long)

    def tuned(
        self,
        head: Head,
        columns: Float[Tensor, "batch horizon column"],
        features: Float[Tensor, "batch feature"],
        rows: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch horizon column"]:
        """Return what is stated with the changes of each series, in units of scale; as it is for row -1."""
        known = torch.nonzero(rows >= 0).flatten()
        result = columns.clone()
        chosen = rows[known].to(self.weight.device)
        weight, width = self.weight[chosen].to(features), self.width[chosen].to(features)
        shift = torch.einsum("bf,bfh->bh", features[known], weight).unflatten(1, (columns.shape[1], -1))
        result[known] = head.changed(columns[known], shift, width[:, None])
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored besides the series ids."""
        return {"weight": self.weight.contiguous(), "width": self.width.contiguous()}

    @classmethod
    def from_tensors(cls, series_id: Sequence[str], tensors: dict[str, Tensor]) -> "HeadBank":
        """Return the bank that `tensors` wrote."""
        return cls(series_id, tensors["weight"], tensors["width"])


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
