"""Decisions of the gate for all series: the best change of each, and the reason to keep it or the base."""

from dataclasses import dataclass, replace

import numpy as np

from forecast.config import TuningSettings
from forecast.data.panel import IntArray
from forecast.finetuning.gate import choose_strict
from forecast.finetuning.gradient_group import shares_of
from forecast.finetuning.head_group import WIDTHS, Grid
from forecast.finetuning.pooled_gate import choose_pooled
from forecast.finetuning.trials import IS_CONSTANT, IS_DIVERGED, LOSS, POINT_FORECAST, POOLED, Columns
from forecast.models.adapters.bank import BLEND, HEAD
from forecast.names import REASON

TUNED = "tuned"
NO_GAIN = "no gain"
CONSTANT = "constant"
NOT_FINITE = "not finite"
DIVERGED = "diverged"

# Columns with the parameters of a change: by gradient, and in closed form.
CHANGE_COLUMNS = ("learning_rate", "steps"), ("penalty", "width")
POSTERIOR_GAIN, HARM_PROBABILITY = "posterior_gain", "harm_probability"


@dataclass(frozen=True)
class GateResult:
    """Decisions of the gate for S series, with the mean losses over their windows."""

    reason: np.ndarray
    change: Columns
    """Parameters of the best change, tuned or not: `CHANGE_COLUMNS`, `blend`, and by gradient `POINT_FORECAST`."""
    losses: Columns

    def keep_base(self, series: np.ndarray, reason: str) -> "GateResult":
        """Return the same with the base kept for the masked `series` that are not constant, [S], for this reason."""
        series = series & (self.reason != CONSTANT)
        return replace(self, reason=np.where(series, reason, self.reason))

    def columns(self) -> Columns:
        """Return losses, changes and reasons. The report loss of a series that keeps the base is that of the base."""
        tuned = self.reason == TUNED
        base, report = self.losses["report_base_loss"], self.losses["report_tuned_loss"]
        change = {name: values for name, values in self.change.items() if name not in (BLEND, POINT_FORECAST)}
        return {
            **self.losses,
            **change,
            BLEND: np.where(tuned, self.change[BLEND], 0.0),
            "report_tuned_loss": np.where(tuned, report, base),
            REASON: self.reason,
        }


def apply_gate(table: Columns, cluster: IntArray, settings: TuningSettings) -> GateResult:
    """Return the best change of each series, and the reason to keep it or the base.

    `table` has the trials of all series, with losses [S, window, candidate], the base's first; `cluster` numbers the
    period of each gate window, [S, window].
    """
    losses, constant = table[LOSS], table[IS_CONSTANT]
    gate, report = losses[:, : settings.gate_windows], losses[:, settings.gate_windows :]
    without_change = table.get("steps", np.ones(len(losses))) == 0
    rows, candidates = np.arange(len(losses)), np.broadcast_to(np.arange(1, losses.shape[2]), gate[:, 0, 1:].shape)
    if settings.gate == POOLED:
        choice = choose_pooled(gate[..., 0], gate[..., 1:], cluster, ~constant & ~without_change, settings)
    else:
        if settings.kind == HEAD:
            candidates = _candidates_of_best_strength(gate)
        choice = choose_strict(gate[..., 0], np.take_along_axis(gate, candidates[:, None], axis=2), settings)
    best = candidates[rows, choice.strength]
    numbers = {
        "base_loss": mean_loss(gate[..., 0]),
        "tuned_loss": mean_loss(gate[rows, :, best]),
        "gain": choice.gain,
        POSTERIOR_GAIN: choice.posterior_gain,
        HARM_PROBABILITY: choice.harm_probability,
        "report_base_loss": mean_loss(report[..., 0]),
        "report_tuned_loss": mean_loss(report[rows, :, best]),
    }
    reason = np.select([constant, choice.chosen], [CONSTANT, TUNED], NO_GAIN)
    if settings.kind == HEAD:
        grid = Grid.of(settings)
        change = {"penalty": grid.penalty[best], "width": grid.width[best], BLEND: grid.share[best]}
        return GateResult(reason, change, numbers)
    change = {"learning_rate": table["learning_rate"], "steps": table["steps"]}
    change |= {BLEND: np.array(shares_of(settings))[best], POINT_FORECAST: table[POINT_FORECAST][rows, best]}
    return (
        GateResult(reason, change, numbers).keep_base(without_change, NO_GAIN).keep_base(table[IS_DIVERGED], DIVERGED)
    )


def _candidates_of_best_strength(gate: np.ndarray) -> IntArray:
    """Return the candidates of a strict gate, [S, candidate]: all strengths, then the widths of the best of them."""
    strengths = np.arange(0, gate.shape[2], len(WIDTHS))
    losses = np.where(np.isnan(gate[..., :1]), 0.0, gate[..., strengths]).sum(1)
    best = strengths[np.where(np.isnan(losses), np.inf, losses).argmin(1)]
    first = np.broadcast_to(strengths[1:], (len(gate), len(strengths) - 1))
    return np.concatenate([first, best[:, None] + np.arange(1, len(WIDTHS))], axis=1)


def mean_loss(losses: np.ndarray) -> np.ndarray:
    """Return the mean loss of each series over its windows with an observation, [S]; NaN where there is none."""
    observed = ~np.isnan(losses)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(observed, losses, 0.0).sum(1) / observed.sum(1)
    return mean
