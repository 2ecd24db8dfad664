"""Changes per series: what fine-tuning adds to the forecast of the shared network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.recurrent import NetworkShape, Output

# Most recent values of the window that a series' own map sees, at most.
_WINDOW_FEATURES = 168


class HeadBank:
    """A linear map per series from [1; last season of the window; encoder state] to a shift of the forecast."""

    def __init__(self, series_id: Sequence[str], weight: Float[Tensor, "series feature horizon"]) -> None:
        self.series_id = list(series_id)
        self.weight = weight
        self._row = {name: row for row, name in enumerate(self.series_id)}

    def rows(self, series_id: Sequence[str]) -> Int[Tensor, " series"]:
        """Return the row of each series, -1 for those that keep the base."""
        return torch.tensor([self._row.get(name, -1) for name in series_id], dtype=torch.long)

    def shift(self, features: Float[Tensor, "batch feature"], rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch horizon"]:
        """Return what to add to each quantile, in units of the window's scale; 0 for row -1."""
        if not len(self.series_id):
            return features.new_zeros(len(features), self.weight.shape[-1])
        chosen = self.weight.to(features.device)[rows.clamp(min=0)]
        return torch.einsum("bf,bfh->bh", features, chosen).masked_fill((rows < 0)[:, None], 0.0)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored besides the series ids."""
        return {"weight": self.weight.contiguous()}

    @classmethod
    def from_tensors(cls, series_id: Sequence[str], tensors: dict[str, Tensor]) -> "HeadBank":
        """Return the bank that `tensors` wrote."""
        return cls(series_id, tensors["weight"])


def head_features(output: Output, shape: NetworkShape) -> Float[Tensor, "batch origin feature"]:
    """Return what a series' own map sees at each origin."""
    season = shape.season_length if shape.season_length > 1 else shape.horizon
    recent = output.frame.window[..., -min(season, shape.context_length, _WINDOW_FEATURES) :]
    return torch.cat([torch.ones_like(recent[..., :1]), recent, output.state], dim=-1)
