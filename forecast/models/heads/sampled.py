"""A distribution that consists of samples."""

from jaxtyping import Float
from torch import Tensor, nn

from forecast.models.heads.quantiles import pinball

# Tolerance above a whole number in levels times draws.
_WHOLE = 1e-4


class SampledHead(nn.Module):
    """A distribution of samples: its arguments are draws in ascending order, and the mean."""

    levels: Tensor

    def __init__(
        self, levels: Float[Tensor, " quantile"], *, median: int, counts: bool = False, heavy_tailed: bool = False
    ) -> None:
        super().__init__()
        self.median, self.counts, self.heavy_tailed = median, counts, heavy_tailed
        self.register_buffer("levels", levels, persistent=False)

    def quantiles(
        self, arguments: Float[Tensor, "*axes argument"], levels: Float[Tensor, " quantile"] | None = None
    ) -> Float[Tensor, "*axes quantile"]:
        """Return the quantiles at `levels` (None: `self.levels`).

        They are linear between draws, each in the middle of its share; for counts they are draws. These are definitions
        5 and 1 of Hyndman & Fan (1996).
        """
        draws = arguments[..., :-1]
        position = (self.levels if levels is None else levels).double() * draws.shape[-1] - 0.5
        if self.counts:
            return draws[..., (position - 0.5 - _WHOLE).ceil().long().clamp(0, draws.shape[-1] - 1)]
        lower = position.floor().clamp(0, draws.shape[-1] - 2)
        share = (position - lower).clamp(0, 1).to(draws.dtype)
        return draws[..., lower.long()].lerp(draws[..., lower.long() + 1], share)

    def mean(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the mean."""
        return arguments[..., -1]

    def location(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes"]:
        """Return the point forecast that residuals refer to: the median, or the mean for counts."""
        return self.mean(arguments) if self.counts else self.quantiles(arguments)[..., self.median]

    def predicted(self, arguments: Float[Tensor, "*axes argument"]) -> Float[Tensor, "*axes quantile"]:
        """Return the columns of a forecast: the quantiles."""
        return self.quantiles(arguments)

    def residual(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes shift"]:
        """Return the residual that a shift corrects, as `Head.residual`."""
        return (target - self.location(arguments))[..., None]

    def scores(
        self, arguments: Float[Tensor, "*axes argument"], target: Float[Tensor, "*axes"]
    ) -> Float[Tensor, "*axes"]:
        """Return the pinball loss at the levels."""
        return pinball(self.quantiles(arguments), target, self.levels)
