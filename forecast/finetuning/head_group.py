"""Series that are fine-tuned in closed form, a group at once."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from forecast.data.panel import IntArray
from forecast.finetuning.final_bank import solved_weights
from forecast.finetuning.trials import (
    IS_CONSTANT,
    LOSS,
    POOLED,
    SHARES,
    Columns,
    Fit,
    Present,
    TuningSettings,
    is_constant,
    n_origin_steps,
    stated,
    window_losses,
)
from forecast.models.adapters import head_ridge
from forecast.models.adapters.bank import BLEND
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster

# Strengths that are tried, as ridge penalties on the sum over origins. A pooled gate tries every second of them, whose
# neighbours differ by less than what it can tell, each with the shares of `blend`.
PENALTIES = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0)

# Widths of the quantiles; `blend` of the way to them is gone.
WIDTHS = (1.0, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0)


class Grid(NamedTuple):
    """The candidates of the closed form, strength by strength and width by width; the first is the base."""

    penalty: np.ndarray
    """[candidate]; NaN where only the width changes."""
    share: np.ndarray
    """[candidate], of the map."""
    width: np.ndarray
    """[candidate]."""

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
    """Series with a linear map each, in closed form.

    The shift is a ridge regression of the base's residuals on [1; last season of the window; encoder state]; one
    eigen-decomposition serves all penalties and held-out cutoffs.

    Of classes it is log-odds that are shifted. There is no closed form: the shift is the first step of Fisher scoring,
    the gradient over the curvature of each step and class, averaged over the origins, as what is regressed; a width is
    a temperature.
    """

    network: Forecaster
    data: PanelTensors
    series: IntArray
    usable: IntArray
    settings: TuningSettings

    @cached_property
    @torch.inference_mode()
    def _known(self) -> head_ridge.Origins:
        settings = self.settings
        n_windows, n_steps = settings.gate_windows + settings.report_windows, n_origin_steps(self.network, settings)
        return head_ridge.at_origins(
            self.network, self.data, self.series, self.usable, n_steps, n_windows, settings.half_life
        )

    def some(self, rows: IntArray) -> Self:
        """Return some of the series, without another pass of the network."""
        other = copy.copy(self)
        other.series, other.usable = self.series[rows], self.usable[rows]
        other._known = self._known.some(torch.from_numpy(rows).to(self.data.device))
        return other

    @torch.inference_mode()
    def trial(self) -> Columns:
        """Return the losses of all candidates, [G, window, candidate], and which series are constant."""
        known, head, grid = self._known, self.network.head, Grid.of(self.settings)
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
                columns = head.shift_and_scale(known.columns, shift, shift.new_tensor(width).expand(known.target.shape))
                losses.append(window_losses(head, columns, known.target, known.weight))
        loss = torch.stack(losses, -1).cpu().numpy()
        return {LOSS: loss, IS_CONSTANT: is_constant(head, loss, known.target, known.weight, self.settings)}

    def _shifts(self, penalties: list[float]) -> Tensor:
        """Return the whole shifts at the held-out cutoffs, [G, window, penalty, horizon, shift]."""
        horizon, known = self.network.shape.horizon, self._known
        each = torch.tensor(penalties, dtype=torch.float64, device=self.data.device)
        shifts = head_ridge.held_out_shifts(
            known, self.network.head, each, horizon=horizon, count=self.settings.origins
        )
        at_steps: Tensor = shifts.to(known.columns.dtype).unflatten(-1, (horizon, -1))
        return at_steps

    @torch.inference_mode()
    def fit(self, how: Columns, present: Present) -> Fit:  # noqa: ARG002  a closed form does not go on from anything
        """Return the maps of all usable origins for the `penalty`, `blend` and `width` of each series."""
        known, head, settings = self._known, self.network.head, self.settings
        horizon, device = self.network.shape.horizon, self.data.device
        penalty, share, width = (torch.from_numpy(how[name]).to(device) for name in ("penalty", BLEND, "width"))
        weight = solved_weights(known, head, penalty, share, ago=horizon, count=settings.origins)
        finite = torch.isfinite(weight).flatten(1).all(1)
        distinct = sorted({float(each) for each in penalty if not each.isnan()}) or [1.0]
        place = torch.searchsorted(torch.tensor(distinct, dtype=penalty.dtype, device=device), penalty.nan_to_num())
        moved = self._shifts(distinct)[torch.arange(len(place)), settings.gate_windows :, place]
        moved = moved * torch.where(penalty.isnan(), 0.0, share).to(moved)[:, None, None, None]
        columns, width = known.columns[:, settings.gate_windows :], width.to(moved)
        told = stated(head, head.shift_and_scale(columns, moved, width[:, None, None].expand(columns.shape[:-1])))
        changes = {"weight": weight, "width": width}
        return Fit({name: values[finite].cpu() for name, values in changes.items()}, finite.cpu().numpy(), told)
