"""Which series keep their changes, and how each of them is changed best."""

from dataclasses import dataclass, replace

import numpy as np

from forecast.data.panel import IntArray
from forecast.finetuning.gate import choose
from forecast.finetuning.gradient_group import shares_of
from forecast.finetuning.head_group import WIDTHS, Grid
from forecast.finetuning.pooled_gate import choose_pooled
from forecast.finetuning.trials import IS_CONSTANT, IS_DIVERGED, LOSS, POOLED, TOLD, Columns, TuningSettings
from forecast.models.adapters.bank import BLEND, HEAD
from forecast.names import REASON

TUNED = "tuned"
NO_GAIN = "no gain"
CONSTANT = "constant"
NOT_FINITE = "not finite"
DIVERGED = "diverged"

# Columns of how a series was changed: by gradient, and in closed form.
HOW = ("learning_rate", "steps"), ("penalty", "width")
POSTERIOR_GAIN, HARM_PROBABILITY = "posterior_gain", "harm_probability"


@dataclass(frozen=True)
class Gated:
    """What the gate says of each of S series, by the mean losses of its windows."""

    reason: np.ndarray
    how: Columns
    """How each is changed, whether that is kept or not: `HOW`, `blend`, and `told` where the trial has said it."""
    losses: Columns

    def without(self, which: np.ndarray, reason: str) -> "Gated":
        """Return the same with the base for some series that are not constant."""
        which = which & (self.reason != CONSTANT)
        return replace(self, reason=np.where(which, reason, self.reason))

    def columns(self) -> Columns:
        """Return losses, changes and reasons. On the report windows, the loss of the base where that is kept."""
        tuned = self.reason == TUNED
        base, report = self.losses["report_base_loss"], self.losses["report_tuned_loss"]
        how = {name: values for name, values in self.how.items() if name not in (BLEND, TOLD)}
        return {
            **self.losses,
            **how,
            BLEND: np.where(tuned, self.how[BLEND], 0.0),
            "report_tuned_loss": np.where(tuned, report, base),
            REASON: self.reason,
        }


def gated(table: Columns, cluster: IntArray, settings: TuningSettings) -> Gated:
    """Return how each series is best changed, and why it keeps the base.

    `table` is of the trials of all series, with losses of [S, window, candidate], the base's first; `cluster` numbers
    the stretch of time of each gate window.
    """
    losses, constant = table[LOSS], table[IS_CONSTANT]
    gate, report = losses[:, : settings.gate_windows], losses[:, settings.gate_windows :]
    without_change = table.get("steps", np.ones(len(losses))) == 0
    rows, place = np.arange(len(losses)), np.broadcast_to(np.arange(1, losses.shape[2]), gate[:, 0, 1:].shape)
    if settings.gate == POOLED:
        choice = choose_pooled(gate[..., 0], gate[..., 1:], cluster, ~constant & ~without_change, settings)
    else:
        if settings.kind == HEAD:
            place = _step_by_step(gate)
        choice = choose(gate[..., 0], np.take_along_axis(gate, place[:, None], axis=2), settings)
    best = place[rows, choice.strength]
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
        how = {"penalty": grid.penalty[best], "width": grid.width[best], BLEND: grid.share[best]}
        return Gated(reason, how, numbers)
    how = {"learning_rate": table["learning_rate"], "steps": table["steps"]}
    how |= {BLEND: np.array(shares_of(settings))[best], TOLD: table[TOLD][rows, best]}
    return Gated(reason, how, numbers).without(without_change, NO_GAIN).without(table[IS_DIVERGED], DIVERGED)


def _step_by_step(gate: np.ndarray) -> IntArray:
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
