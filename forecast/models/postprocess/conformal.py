"""Quantiles that are shifted until they cover what they should (conformal calibration)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forecast.models.tensors import untraced


class Calibration:
    """Shifts of quantiles, in units of the width between the outermost ones: at each step of the horizon.

    The median, and with it the point forecast, stays where it is. Row 0 is for series without shifts of their own.
    """

    def __init__(
        self,
        levels: Sequence[float],
        bucket: Int[Tensor, " horizon"],
        shift: Float[Tensor, "row bucket level"],
        series_id: Sequence[str] = (),
    ) -> None:
        self.levels = tuple(levels)
        self.bucket = bucket
        """Which shifts each step takes."""
        self.shift = shift
        self.series_id = list(series_id)
        """Of the rows from 1 on."""
        self._row = {name: row for row, name in enumerate(self.series_id, 1)}

    def rows(self, series_id: Sequence[str]) -> Int[Tensor, " series"]:
        """Return the row of each series."""
        return torch.tensor([self._row.get(name, 0) for name in series_id], dtype=torch.long)

    def of(self, series_id: str) -> "Calibration":
        """Return the calibration of one series."""
        return Calibration(self.levels, self.bucket, self.shift[[self._row.get(series_id, 0)]])

    def applied(
        self,
        values: Float[Tensor, "batch horizon column"],
        rows: Int[Tensor, " batch"],
        levels: Float[Tensor, " column"] | None = None,
        *,
        whole: bool = False,
    ) -> Float[Tensor, "batch horizon column"]:
        """Return the quantiles at `levels` (its own when None), which ascend, shifted and in order again.

        Between its own levels the shifts are interpolated on the scale of normal deviates. `whole` rounds outward.
        """
        own = torch.tensor(self.levels, dtype=torch.float64)
        levels = own if levels is None else levels.double().cpu()
        shift = self.shift[rows.cpu()][:, self.bucket]
        low, high = (_at(values, levels, own[[k]])[..., 0] for k in (0, -1))
        new = values + (high - low)[..., None] * _at(shift, own, levels).to(values)
        if whole:
            new = torch.where((levels < 0.5).to(values.device), new.floor(), new.ceil())
        # From the median outward, which is not to move.
        middle = int(torch.searchsorted(levels, 0.5))
        below = new[..., : middle + 1].flip(-1).cummin(-1).values.flip(-1)
        above = new[..., middle:].cummax(-1).values
        return torch.cat([below[..., :-1], above], dim=-1)


def _at(
    values: Float[Tensor, "*axes level"], levels: Float[Tensor, " level"], wanted: Float[Tensor, " column"]
) -> Float[Tensor, "*axes column"]:
    """Return values at other levels, by their normal deviates; those of the outermost level beyond it."""
    with untraced():
        have, want = torch.special.ndtri(levels), torch.special.ndtri(wanted)
        after = torch.searchsorted(have, want).clamp(1, len(have) - 1)
        share = ((want - have[after - 1]) / (have[after] - have[after - 1])).clamp(0.0, 1.0)
        after, share = after.to(values.device), share.to(values)
    return torch.lerp(values[..., after - 1], values[..., after], share)
