"""Fine-tuning in closed form, for a group of series at once."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from forecast.config import TuningSettings
from forecast.data.panel import IntArray
from forecast.finetuning.final_bank import solved_weights
from forecast.finetuning.trials import (
    IS_CONSTANT,
    LOSS,
    POOLED,
    SHARES,
    Columns,
    ExistingChanges,
    Fit,
    is_constant,
    n_origin_steps,
    point_forecast,
    window_losses,
)
from forecast.models.adapters import head_ridge
from forecast.models.adapters.bank import BLEND
from forecast.models.adapters.origins import SeriesGroup
from forecast.models.network.ensemble import Forecaster

# Ridge penalties that are tried, on the sum over origins. A pooled gate tries every second of them, because neighbours
# differ by less than it can resolve, each with the shares of `blend`.
PENALTIES = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0)

# Factors on the width of the quantiles; `blend` interpolates between 1 and each of them.
WIDTHS = (1.0, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0)


class Grid(NamedTuple):
    """The candidates of the closed form, all pairs of a strength and a width; the first is the base."""

    penalty: np.ndarray
    """[candidate]; NaN where only the width changes."""
    share: np.ndarray
    """[candidate], share of the linear map that is applied."""
    width: np.ndarray
    """[candidate], factor on the width of the quantiles."""

    @classmethod
    def of(cls, settings: TuningSettings) -> Self:
        """Return all pairs of a strength, or none, and a width."""
        pooled = settings.gate == POOLED
        penalties, shares = (PENALTIES[::2], SHARES) if pooled else (PENALTIES, SHARES[:1])
        strengths = [
            (np.nan, settings.blend),
            *((penalty, share * settings.blend) for penalty in penalties for share in shares),
        ]
        pairs = [(*strength, 1.0 + settings.blend * (width - 1.0)) for strength in strengths for width in WIDTHS]
        return cls(*np.array(pairs).T)


@dataclass
class HeadGroup:
    """A group of series with one linear map each, fitted in closed form.

    The shift is a ridge regression of the base's residuals on [1; last season of the window; encoder state]; one
    eigen-decomposition serves all penalties and held-out cutoffs.

    For classes, log-odds are shifted. There is no closed form: the regression target is the first step of Fisher
    scoring, the gradient over the curvature of each step and class, averaged over the origins; a width is a
    temperature.
    """

    group: SeriesGroup[Forecaster]
    settings: TuningSettings

    @cached_property
    @torch.inference_mode()
    def _origins(self) -> head_ridge.Origins:
        settings = self.settings
        return head_ridge.at_origins(
            self.group,
            n_steps=n_origin_steps(self.group.network, settings),
            n_windows=settings.gate_windows + settings.report_windows,
            half_life=settings.half_life,
        )

    @property
    def n_bytes(self) -> int:
        """Bytes of what a pass of the network leaves."""
        return self._origins.n_bytes

    def subset(self, rows: IntArray) -> Self:
        """Return the group restricted to `rows`, without another pass of the network."""
        subset = copy.copy(self)
        subset.group = self.group.rows(rows)
        subset._origins = self._origins.some(torch.from_numpy(rows).to(self.group.data.device))
        return subset

    @torch.inference_mode()
    def trial(self) -> Columns:
        """Return the losses of all candidates, [G, window, candidate], and which series are constant."""
        origins, head, grid = self._origins, self.group.network.head, Grid.of(self.settings)
        strengths = range(0, len(grid.penalty), len(WIDTHS))
        penalties = [float(grid.penalty[number]) for number in strengths]
        distinct = sorted({penalty for penalty in penalties if not np.isnan(penalty)})
        shifts = self._shifts(distinct)
        losses = []
        for number, penalty in zip(strengths, penalties, strict=True):
            shift = torch.zeros_like(shifts[:, :, 0])
            if penalty in distinct:
                shift = float(grid.share[number]) * shifts[:, :, distinct.index(penalty)]
            for width in grid.width[: len(WIDTHS)]:
                columns = head.shift_and_scale(
                    origins.columns, shift, shift.new_tensor(width).expand(origins.target.shape)
                )
                losses.append(window_losses(head, columns, origins.target, origins.weight))
        loss = torch.stack(losses, -1).cpu().numpy()
        return {LOSS: loss, IS_CONSTANT: is_constant(head, loss, origins.target, origins.weight, self.settings)}

    def _shifts(self, penalties: list[float]) -> Tensor:
        """Return the shifts at the held-out cutoffs with share 1, [G, window, penalty, horizon, shift]."""
        horizon, origins = self.group.network.shape.horizon, self._origins
        penalty = torch.tensor(penalties, dtype=torch.float64, device=self.group.data.device)
        shifts = head_ridge.held_out_shifts(
            origins, self.group.network.head, penalty, horizon=horizon, count=self.settings.origins
        )
        at_steps: Tensor = shifts.to(origins.columns.dtype).unflatten(-1, (horizon, -1))
        return at_steps

    @torch.inference_mode()
    def fit(self, chosen: Columns, existing: ExistingChanges) -> Fit:  # noqa: ARG002  a closed form has no starting point
        """Return the linear maps of all usable origins for the `penalty`, `blend` and `width` of each series."""
        origins, head, settings = self._origins, self.group.network.head, self.settings
        horizon, device = self.group.network.shape.horizon, self.group.data.device
        penalty, share, width = (torch.from_numpy(chosen[name]).to(device) for name in ("penalty", BLEND, "width"))
        weight = solved_weights(origins, head, penalty, share, ago=horizon, count=settings.origins)
        finite = torch.isfinite(weight).flatten(1).all(1)
        distinct = sorted({float(value) for value in penalty if not value.isnan()}) or [1.0]
        penalty_index = torch.searchsorted(
            torch.tensor(distinct, dtype=penalty.dtype, device=device), penalty.nan_to_num()
        )
        shift = self._shifts(distinct)[torch.arange(len(penalty_index)), settings.gate_windows :, penalty_index]
        shift = shift * torch.where(penalty.isnan(), 0.0, share).to(shift)[:, None, None, None]
        columns, width = origins.columns[:, settings.gate_windows :], width.to(shift)
        points = point_forecast(
            head, head.shift_and_scale(columns, shift, width[:, None, None].expand(columns.shape[:-1]))
        )
        changes = {"weight": weight, "width": width}
        return Fit({name: values[finite].cpu() for name, values in changes.items()}, finite.cpu().numpy(), points)
