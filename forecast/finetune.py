"""Fine-tuning: changes for each series, all series at once, behind a gate."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.holdout import MOST, gate_of
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, held_out_windows, usable_lengths
from forecast.errors import ConfigError, DataError, OutputError, listing
from forecast.final_bank import FinalBank, begun_at, descend, split
from forecast.gate import choose
from forecast.metrics import MODEL
from forecast.models import ridge, stacked
from forecast.models.bank import BLEND, HEAD, Bank, head_feature_count
from forecast.models.batch import PanelTensors
from forecast.models.ensemble import Forecaster
from forecast.models.examples import Examples, Remembered, Rolled, group_numbers
from forecast.models.heads import CategoricalHead, Head
from forecast.models.losses import validation_batches, window_sizes
from forecast.models.origins import alone, apart, forecast, held_out
from forecast.models.recurrent import RecurrentForecaster
from forecast.models.resumable import read_state, write_state
from forecast.models.runtime import prepare
from forecast.models.stacked import Changes, Descent
from forecast.names import (
    CLASS,
    CUTOFF,
    REASON,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    STEP,
    TIMESTAMP,
    class_column,
    quantile_column,
)
from forecast.predict import in_data_units
from forecast.selection import selected, worst

_LOG = logging.getLogger(__name__)

# Strengths that are tried, as ridge penalties on the sum over origins; the gate chooses per series.
PENALTIES = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0)

# Widths of the quantiles that are tried with the best of them, which may be no shift at all.
WIDTHS = (1.0, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0)

# Shares of `blend` that are tried with changes by gradient, and the rates that each series chooses from.
SHARES = (1.0, 0.5)
RATES: dict[str, tuple[float, ...]] = {
    "bias": (0.1, 0.02),
    "embedding": (0.1, 0.02),
    "lora": (0.01, 0.003),
    "full": (2e-3, 5e-4),
}
# Steps between two looks at a series' own held-out origins, how many of these there are, and how many looks without
# any gain it takes until a series stops.
_LOOK_EVERY = 5
_LOOKS = 4
_PATIENCE = 3
STEPS = 60

# Numbers held at once for a group of series.
_GROUP_NUMBERS = {"cpu": 60_000_000, "cuda": 2_000_000_000}

TUNED = "tuned"
TOO_SHORT = "too short"
NOT_SELECTED = "not selected"
UNCHANGED = "unchanged"
NO_GAIN = "no gain"
CONSTANT = "constant"
NOT_FINITE = "not finite"
DIVERGED = "diverged"

_ROW, _TOLD = "row", "told"
# Columns of how a series was changed: by gradient, and in closed form.
_HOW = ("learning_rate", "steps"), ("penalty", "width")
# Series that are shown, of the best and of the worst.
_SHOWN = 3

Columns: TypeAlias = dict[str, np.ndarray]
"""Of each series of a group: losses, how it was changed, `blend`, `reason`, what is `told` of the report windows."""
_Present: TypeAlias = tuple[Bank, Tensor] | None
"""What series have now: a bank, and the row of each."""


class TuningSettings(FinetuneSettings):
    """Settings whose windows are numbers."""

    gate_windows: int
    report_windows: int
    holdout_windows: int


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """A fine-tuned model and why each series is in it or not."""

    artifact: Artifact
    decisions: pl.DataFrame
    """series_id, base_loss, tuned_loss, gain, how it was changed, blend, reason, report_base_loss, report_tuned_loss.

    A row per series. How: of kind `head` penalty and width (a null penalty: no shift, only another width), of the
    others learning_rate and steps.
    """
    summary: dict[str, float | int]
    shown: pl.DataFrame
    """Forecasts on the report windows, with the changes that are judged there, of the series that gain and lose most.

    series_id, timestamp, cutoff, step, model (`pretrained` and `fine_tuned`), and q50, or class and a column per class.
    """

    def __repr__(self) -> str:
        changed = len(self.artifact.bank.series_id) if self.artifact.bank else 0
        return f"FinetuneResult({changed:,} of {self.decisions.height:,} series with changes, {self.artifact!r})"


def finetune(
    artifact: Artifact,
    panel: Panel,
    settings: FinetuneSettings,
    *,
    progress: Callable[[float, str], None] | None = None,
) -> FinetuneResult:
    """Return the model with changes for each series that gains from them (`finetune.kind`).

    Series are taken in groups that fit into memory. Of each, changes are chosen on `gate_windows` cutoffs whose targets
    lie behind everything fitted on, and the series keeps the base unless it clears the gate (`gate.choose`). The uplift
    is reported on the `report_windows` after those, seen by neither. What is kept is then fitted on all origins; with
    `final`, once more on all rows of the panel, beside the final weights of the base (`Artifact.final`).

    With `incremental`, on a model with changes, series whose data has not changed since keep what they have. The gate
    judges fits that begin at the base, for its windows must be unseen; what is kept goes on from the present changes.

    Whatever the head of numbers, it is the pinball loss of quantiles that is compared, of classes the log-loss. Where a
    change would take counts or amounts below 0, `predict` gives 0.

    Raises ConfigError if the model is fine-tuned already, the selection is empty or unknown, the kind does not fit the
    model, or `checkpoint` holds something else; DataError if the panel does not fit the model, or no series is long
    enough.
    """
    prepare()
    device = _device(settings)
    _check(artifact, panel, settings)
    settings = _with_windows(artifact, panel, settings)
    if settings.kind == "global":
        return _tune_globally(artifact, panel, settings, device, progress)
    before, names, local = artifact.bank, panel.series_id.tolist(), artifact.on(device)
    trained_until = _trained_until(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network, device)
    meant, long_enough = _meant(local, panel, data, usable, settings), _long_enough(artifact, usable, settings)
    digests = _digests(panel, usable)
    seen = before.seen if before else {}
    same = np.array([seen.get(name) == found for name, found in digests.items()])
    every = np.select([~meant, ~long_enough, same], [NOT_SELECTED, TOO_SHORT, UNCHANGED], "")
    chosen = np.flatnonzero(every == "")
    plain, digest = artifact.uncalibrated(), artifact.digest()
    final = None
    if settings.final and (plain.final or trained_until < panel.last_index):
        last = plain.latest.on(device)
        final = FinalBank(last.network, last.bank, data, panel.lengths, settings)
    table, tuned, changes = _tune(local, panel, data, chosen, usable, settings, progress, final)
    again, seen = {names[row] for row in chosen}, {**seen, **{names[row]: digests[names[row]] for row in chosen}}
    banks = [Bank(settings.kind, tuned, each, seen) for each in split(changes)]
    bank, final_bank = (
        _joined(now, fresh, again) if now else fresh
        for now, fresh in zip((before, plain.latest.bank), banks, strict=True)
    )
    decisions = _decisions(panel, table, every, settings, before)
    child = plain.with_bank(bank, trained_until=trained_until, parent_digest=digest)
    if final:
        until = max(panel.last_index, plain.latest.trained_until)
        child = replace(child, final=plain.latest.with_bank(final_bank, trained_until=until, parent_digest=digest))
    shown = _shown(local, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, _summary(decisions, len(bank.series_id)), shown)


def _tune(
    artifact: Artifact,
    panel: Panel,
    data: PanelTensors,
    chosen: IntArray,
    usable: IntArray,
    settings: TuningSettings,
    progress: Callable[[float, str], None] | None,
    final: FinalBank | None,
) -> tuple[Columns, list[str], Changes]:
    """Return columns of the `chosen` series, and the ids and stacked changes of those that are kept, in this order.

    The changes of the final fit are among these (`final_bank.split`).
    """
    before = artifact.bank
    size = max(1, _GROUP_NUMBERS[data.device.type] // _numbers(artifact.network, settings))
    store = None
    if settings.checkpoint is not None:
        store = _Store(
            Path(settings.checkpoint), _settings(artifact, panel, settings, group=size, device=data.device.type)
        )
    columns: list[Columns] = []
    kept: list[Changes] = []
    for number, first in enumerate(range(0, len(chosen), size)):
        series = chosen[first : first + size]
        done = store.read(number) if store else None
        if done is None:
            present = (before, before.rows(panel.series_id[series].tolist())) if before else None
            tuner = _tune_head if settings.kind == HEAD else _tune_by_gradient
            done = tuner(artifact.network, data, series, usable[series], settings, present)
            if final:
                columns_kept = done[0][REASON] == TUNED
                how = {name: done[0][name][columns_kept] for name in _HOW[settings.kind == HEAD]}
                kept_series = series[columns_kept]
                names = panel.series_id[kept_series].tolist()
                done = done[0], final.fit(kept_series, names, how, done[1])
            if store:
                store.write(number, *done)
        columns.append({_ROW: series, **done[0]})
        kept.append(done[1])
        if progress:
            progress(min(1.0, (first + size) / len(chosen)), f"{min(first + size, len(chosen)):,} series")
    if store:
        store.remove()
    if not columns:
        return {}, [], {}
    table = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    tuned = panel.series_id[table[_ROW][table[REASON] == TUNED]].tolist()
    return table, tuned, {name: torch.cat([part[name] for part in kept]) for name in kept[0]}


# --- the closed form


@torch.inference_mode()
def _tune_head(
    network: Forecaster,
    data: PanelTensors,
    series: IntArray,
    usable: IntArray,
    settings: TuningSettings,
    present: _Present,  # noqa: ARG001  a closed form does not go on from anything
) -> tuple[Columns, Changes]:
    """Return the columns of a group, and the changes of those that are kept.

    The shift is a ridge regression of the base's residuals on [1; last season of the window; encoder state]; one
    eigen-decomposition serves all penalties and held-out cutoffs. Penalty and width are chosen by the gate.

    Of classes it is log-odds that are shifted. There is no closed form: the shift is the first step of Fisher scoring,
    the gradient over the curvature of each step and class, averaged over the origins, as what is regressed; a width is
    a temperature.
    """
    horizon, head = network.shape.horizon, network.head
    n_windows = settings.gate_windows + settings.report_windows
    n_steps = _n_steps(network, settings)
    known = ridge.at_origins(network, data, series, usable, n_steps, n_windows, settings.half_life)
    penalties = torch.tensor(PENALTIES, dtype=torch.float64, device=data.device)

    shift = ridge.held_out_shifts(known, head, penalties, horizon=horizon, count=settings.origins)
    # [G, window, penalty, horizon, shift]
    shift = settings.blend * shift.to(known.columns.dtype).unflatten(-1, (horizon, -1))
    # No shift is a strength too, and without another width either the base.
    shift = torch.cat([torch.zeros_like(shift[:, :, :1]), shift], dim=2)
    widths = 1.0 + settings.blend * (torch.tensor(WIDTHS, device=data.device) - 1.0)

    def loss(moved: Tensor, width: Tensor) -> Tensor:
        columns = head.changed(known.columns, moved, width.expand(known.target.shape))
        return _loss(head, columns, known.target, known.weight)

    each_series, n_strengths = torch.arange(len(series)), shift.shape[2]
    losses = torch.stack([loss(shift[:, :, strength], widths[0]) for strength in range(n_strengths)], -1)
    judged = losses[:, : settings.gate_windows]
    strength = judged.masked_fill(judged[..., :1].isnan(), 0.0).sum(1).nan_to_num(nan=torch.inf).argmin(1)
    best = shift[each_series, :, strength]
    losses = torch.cat([losses, torch.stack([loss(best, width) for width in widths[1:]], -1)], -1)
    gated = _gated(head, losses, known.target, known.weight, settings)

    chosen = torch.from_numpy(gated.best).to(data.device)
    strength = torch.where(chosen < n_strengths, chosen, strength)
    width = widths[(chosen - n_strengths + 1).clamp(min=0)]
    rows = torch.from_numpy(np.flatnonzero(gated.reason == TUNED)).to(data.device)
    penalty = penalties[(strength[rows] - 1).clamp(min=0)]
    weight = settings.blend * ridge.weights(known.some(rows), head, penalty, ago=horizon, count=settings.origins)
    weight = weight.masked_fill((strength[rows] == 0)[:, None, None], 0.0).to(known.features.dtype)
    finite = torch.isfinite(weight).flatten(1).all(1)
    failed = np.zeros(len(series), dtype=bool)
    failed[rows[~finite].cpu().numpy()] = True
    gated = gated.without(failed, NOT_FINITE)
    columns = known.columns[:, settings.gate_windows :]
    moved = shift[each_series, settings.gate_windows :, strength]
    found = {
        **gated.columns(),
        "penalty": np.array([np.nan, *PENALTIES])[strength.cpu().numpy()],
        "width": width.double().cpu().numpy(),
        BLEND: np.where(gated.reason == TUNED, settings.blend, 0.0),
        _TOLD: _stated(head, head.changed(columns, moved, width[:, None, None].expand(columns.shape[:-1]))),
    }
    return found, {"weight": weight[finite].cpu(), "width": width[rows[finite]].cpu()}


# --- the kinds by gradient


def _tune_by_gradient(
    network: Forecaster,
    data: PanelTensors,
    series: IntArray,
    usable: IntArray,
    settings: TuningSettings,
    present: _Present,
) -> tuple[Columns, Changes]:
    """Return the columns of a group, and the changes of those that are kept.

    Rate and steps of each series are those that do best on origins of its own, after those that are fitted on and
    before the gate's. The gate chooses how much of these changes it takes. What is kept is fitted on all origins, with
    the same rate and steps, from the `present` changes if there are any.
    """
    assert isinstance(network, RecurrentForecaster)
    horizon, head = network.shape.horizon, network.head
    n_windows = settings.gate_windows + settings.report_windows
    end = (n_windows + 2) * horizon
    held = torch.from_numpy(held_out(horizon, n_windows))
    looked = end - torch.linspace(0, horizon, _LOOKS).round().long()
    examples: Examples
    if settings.kind in stacked.FROZEN:
        examples = Remembered(network, data, series, usable, settings, torch.cat([held, looked]))
    else:
        examples = Rolled(network, data, series, usable, settings)
    start = stacked.unchanged(network, settings.kind, len(series), settings.rank)
    found = _search(examples, start, looked, end, settings)
    with torch.no_grad():
        shares = [0.0, *(share * settings.blend for share in SHARES)]
        each = [examples.at(stacked.blended(found.changes, torch.full_like(found.rate, s)), held) for s in shares]
        told = torch.stack([head.columns(one.arguments) for one in each])
        losses = torch.stack([_loss(head, columns, each[0].target, each[0].weight) for columns in told], -1)
    gated = _gated(head, losses, each[0].target, each[0].weight, settings)
    steps = found.steps.cpu().numpy()
    gated = gated.without(steps == 0, NO_GAIN).without(found.diverged, DIVERGED)

    rows = torch.from_numpy(np.flatnonzero(gated.reason == TUNED)).to(data.device)
    begin = begun_at(*present, start) if present else start
    begin = {name: values[rows] for name, values in begin.items()}
    descent = descend(examples.some(rows), begin, found.rate[rows], found.steps[rows])
    diverged = np.zeros(len(series), dtype=bool)
    diverged[rows.cpu().numpy()] = ~descent.finite.cpu().numpy()
    gated = gated.without(diverged, DIVERGED)
    blend = np.where(gated.reason == TUNED, np.array(shares)[gated.best], 0.0)
    columns = {
        **gated.columns(),
        "learning_rate": np.where(steps > 0, found.rate.cpu().numpy(), np.nan),
        "steps": steps.astype(np.float64),
        BLEND: blend,
        _TOLD: _stated(head, told[gated.best, np.arange(len(series)), settings.gate_windows :]),
    }
    kept = {name: values[descent.finite].cpu() for name, values in descent.changes.items()}
    return columns, kept | {BLEND: torch.from_numpy(blend[gated.reason == TUNED]).float()}


@dataclass(frozen=True)
class _Found:
    """Of each of G series what does best on its own held-out origins."""

    changes: Changes
    rate: Tensor
    steps: Tensor
    """[G]; 0 where nothing gains."""
    diverged: np.ndarray
    """[G], whether nothing gains and every rate ended in numbers that are not finite."""


def _search(examples: Examples, start: Changes, looked: Tensor, end: int, settings: TuningSettings) -> _Found:
    head = examples.network.head

    @torch.no_grad()
    def look(changes: Changes) -> Tensor:
        return examples.at(changes, looked).loss(head).nan_to_num(nan=torch.inf)

    base = look(start)
    best, least = start, base
    rate, steps = torch.zeros_like(base, dtype=torch.float64), torch.zeros_like(base, dtype=torch.long)
    diverged = torch.ones_like(base, dtype=torch.bool)
    most = STEPS if settings.steps is None else settings.steps
    for one in settings.learning_rates or RATES[settings.kind]:
        descent = Descent(start, torch.full_like(rate, one))
        own, waited = base, torch.zeros_like(steps)
        for step in range(most):
            descent.step(examples.loss(step, end), waited < _PATIENCE)
            if (step + 1) % _LOOK_EVERY and step + 1 < most:
                continue
            loss = torch.where((waited < _PATIENCE) & descent.finite, look(descent.changes), torch.inf)
            better = loss < least
            best, least = stacked.kept(descent.changes, best, better), torch.where(better, loss, least)
            rate, steps = rate.masked_fill(better, one), steps.masked_fill(better, step + 1)
            waited, own = torch.where(loss < own, 0, waited + 1), torch.minimum(loss, own)
            if bool((waited >= _PATIENCE).all()):
                break
        diverged &= ~descent.finite
    return _Found(best, rate, steps, (diverged & (steps == 0)).cpu().numpy() & (most > 0))


# --- one set of weights for all


def _tune_globally(
    artifact: Artifact,
    panel: Panel,
    settings: TuningSettings,
    device: str,
    progress: Callable[[float, str], None] | None,
) -> FinetuneResult:
    """Return the model after more training; it is a plain one, whose parent is known.

    The gate's windows of all series are the validation: without a gain on them the weights stay the base's.
    """
    # Of all kinds this one alone needs Lightning, which takes seconds to import.
    from forecast.continued import RATE, continued, continued_finally

    trained_until = _trained_until(artifact, panel, settings.holdout_windows)
    usable = usable_lengths(panel, trained_until)
    data = PanelTensors.of(panel, artifact.network)
    named = _meant(artifact, panel, data, usable, settings)
    meant = named & _long_enough(artifact, usable, settings)
    rows = np.flatnonzero(meant)
    n_windows, horizon = settings.gate_windows + settings.report_windows, artifact.horizon
    limits = np.where(meant, usable - settings.report_windows * horizon, 0)
    validation, limits = held_out_windows(limits, horizon=horizon, n_windows=settings.gate_windows)
    described = _settings(artifact, panel, settings, device=device) if settings.checkpoint else {}
    network, found = continued(
        artifact, panel, limits, validation, settings, device=device, described=described, progress=progress
    )
    held = [_held_out(own, data, rows, usable[rows], n_windows) for own in (artifact.network, network)]
    losses = [_loss(network.head, *part).cpu().numpy() for part in held]
    base, tuned = ((part[:, : settings.gate_windows], part[:, settings.gate_windows :]) for part in losses)
    before, after = _mean(base[0]), _mean(tuned[0])
    moved = any(share for _, share in found)
    table = {
        _ROW: rows,
        "base_loss": before,
        "tuned_loss": after,
        "gain": 1 - after / np.where(before > 0, before, np.nan),
        "report_base_loss": _mean(base[1]),
        "report_tuned_loss": _mean(tuned[1]),
        "learning_rate": np.full(len(rows), settings.learning_rates[0] if settings.learning_rates else RATE),
        "steps": np.full(len(rows), float(max(steps for steps, _ in found))),
        BLEND: np.full(len(rows), float(np.mean([share for _, share in found]))),
        REASON: np.full(len(rows), TUNED if moved else NO_GAIN, dtype=object),
        _TOLD: _stated(network.head, held[1][0][:, settings.gate_windows :]),
    }
    every = np.where(named, TOO_SHORT, NOT_SELECTED)
    decisions = _decisions(panel, table, every, settings, None)
    plain, digest = artifact.uncalibrated(), artifact.digest()
    child = replace(plain, network=network, trained_until=trained_until, parent_digest=digest, final=None)
    if settings.final and (plain.final or trained_until < panel.last_index):
        lengths = np.where(meant, panel.lengths, 0)
        last = continued_finally(plain.latest, panel, lengths, validation, settings, found, device=device)
        if last is not plain.network:
            child = child.with_final(last, max(panel.last_index, plain.latest.trained_until))
    shown = _shown(artifact, panel, data, usable, table, settings)
    return FinetuneResult(child, decisions, _summary(decisions, len(rows) if moved else 0), shown)


# --- the gate


@dataclass(frozen=True)
class _Gated:
    """What the gate says of each of G series, by the mean losses of its windows."""

    best: np.ndarray
    """[G], the candidate: 0 is the base, which none has as its best."""
    reason: np.ndarray
    losses: dict[str, np.ndarray]

    def without(self, which: np.ndarray, reason: str) -> "_Gated":
        """Return the same with the base for some series that are not constant."""
        which = which & (self.reason != CONSTANT)
        return replace(self, reason=np.where(which, reason, self.reason))

    def columns(self) -> Columns:
        """Return the losses and reasons. On the report windows, that of the base where it is kept."""
        base, tuned = self.losses["report_base_loss"], self.losses["report_tuned_loss"]
        return {**self.losses, "report_tuned_loss": np.where(self.reason == TUNED, tuned, base), REASON: self.reason}


def _gated(head: Head, loss: Tensor, target: Tensor, weight: Tensor, settings: TuningSettings) -> _Gated:
    """Return the best of the candidates (`loss` is [G, window, candidate], the base's first) and why it is kept."""
    losses = loss.cpu().numpy()
    gate, report = losses[:, : settings.gate_windows], losses[:, settings.gate_windows :]
    choice = choose(gate[..., 0], gate[..., 1:], settings)
    rows, best = np.arange(len(losses)), 1 + choice.strength
    constant = np.nansum(gate[..., 0], axis=1) == 0
    if isinstance(head, CategoricalHead):
        # Where one class came alone, any forecast gains by being surer of it.
        judged = slice(settings.gate_windows)
        came = target[:, judged].masked_fill(weight[:, judged] == 0, torch.nan).flatten(1).cpu().numpy()
        constant |= np.fmax.reduce(came, axis=1) == np.fmin.reduce(came, axis=1)
    found = {
        "base_loss": _mean(gate[..., 0]),
        "tuned_loss": _mean(gate[rows, :, best]),
        "gain": choice.gain,
        "report_base_loss": _mean(report[..., 0]),
        "report_tuned_loss": _mean(report[rows, :, best]),
    }
    return _Gated(best, np.select([constant, choice.chosen], [CONSTANT, TUNED], NO_GAIN), found)


def _loss(head: Head, columns: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the mean weighted loss of each held-out window, [G, window]; NaN where nothing was observed."""
    error = head.column_errors(columns, target)
    total = weight.sum(-1)
    mean: Tensor = (error * weight).sum(-1) / total.clamp(min=1e-9)
    return mean.masked_fill(total == 0, torch.nan)


def _mean(losses: np.ndarray) -> np.ndarray:
    """Return the mean loss of each series over its windows with an observation, [S]; NaN where there is none."""
    observed = ~np.isnan(losses)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(observed, losses, 0.0).sum(1) / observed.sum(1)
    return mean


def _base_losses(
    network: Forecaster, data: PanelTensors, rows: IntArray, usable: IntArray, settings: TuningSettings
) -> np.ndarray:
    """Return the mean loss of each series on its gate windows, [S]; 0 where nothing was observed."""
    n_windows = settings.gate_windows + settings.report_windows
    found = _loss(network.head, *_held_out(network, data, rows, usable[rows], n_windows))
    losses: np.ndarray = np.nan_to_num(_mean(found[:, : settings.gate_windows].cpu().numpy()))
    return losses


# --- who may be fine-tuned


def _device(settings: FinetuneSettings) -> str:
    there = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not there:
        raise ConfigError("finetune.accelerator: gpu asked for, but torch finds none here; set it to cpu or auto")
    return "cuda" if there and settings.accelerator != "cpu" else "cpu"


def _with_windows(artifact: Artifact, panel: Panel, settings: FinetuneSettings) -> TuningSettings:
    """Return the settings with the windows that follow from the lengths of the series."""
    unseen = max(0, panel.last_index - artifact.trained_until) // artifact.horizon
    holdout = min(MOST, unseen) if isinstance(settings.holdout_windows, str) else settings.holdout_windows
    usable = usable_lengths(panel, _trained_until(artifact, panel, holdout))
    gate, report = gate_of(usable, artifact.horizon, gate=settings.gate_windows, report=settings.report_windows)
    windows = {"holdout_windows": holdout, "gate_windows": gate, "report_windows": report}
    return TuningSettings.model_construct(**dict(settings) | windows)


def _trained_until(artifact: Artifact, panel: Panel, holdout_windows: int) -> int:
    """Return the grid index of the last step that fine-tuning may see: at least what the base has seen."""
    return max(panel.last_index - holdout_windows * artifact.horizon, artifact.trained_until)


def _check(artifact: Artifact, panel: Panel, settings: FinetuneSettings) -> None:
    bank = artifact.bank
    if bank is not None and not settings.incremental:
        raise ConfigError(
            "registry.alias: this version is fine-tuned already; fine-tune its pretrained parent, or set "
            "finetune.incremental=true to go on from it where data has changed"
        )
    if settings.incremental and bank is None:
        raise ConfigError(
            "finetune.incremental: this version has no changes of series to go on from; give a fine-tuned one "
            "(registry.alias), or set finetune.incremental=false"
        )
    if bank is not None and bank.kind != settings.kind:
        raise ConfigError(
            f"finetune.kind: this version was fine-tuned with kind={bank.kind}, and goes on with that only "
            f"(given: {settings.kind})"
        )
    by_gradient = settings.kind in RATES
    if by_gradient and not isinstance(artifact.network, RecurrentForecaster):
        raise ConfigError(
            f"finetune.kind: {settings.kind} changes one network, this model is of {len(artifact.network.members)} "
            "(fit.ensemble); set kind=head or global"
        )
    if by_gradient and artifact.model.decoder == "autoregressive":
        raise ConfigError(
            f"finetune.kind: {settings.kind} has no gradient through the sampled paths of decoder=autoregressive; set "
            "kind=head or global"
        )
    if settings.kind == "lora" and bank is not None:
        ranks = (values.shape[1] for name, values in bank.tensors.items() if name.endswith(".down"))
        rank = next(ranks, settings.rank)
        if rank != settings.rank:
            raise ConfigError(f"finetune.rank: this version has rank {rank}; set finetune.rank={rank}")
    shape, own = artifact.network.shape, artifact.grid.frequency
    if panel.grid.frequency != own:
        raise DataError(
            f"the panel has a value every {panel.grid.frequency}, the model every {own}; give one like that"
        )
    if panel.horizon < shape.horizon:
        raise DataError(
            f"the panel holds known covariates for {panel.horizon} steps ahead, the model forecasts {shape.horizon}; "
            f"prepare it with window.horizon={shape.horizon} or more"
        )
    counts = {
        "past": (len(panel.past), shape.n_past),
        "known": (len(panel.known), shape.n_known),
        "calendar": (len(panel.calendar), shape.n_calendar),
        "categorical static": (panel.static_categories.shape[1], len(shape.category_sizes)),
        "numeric static": (panel.static_numbers.shape[1], shape.n_static_numbers),
    }
    wrong = [
        f"{found} {name} (the model has {expected})" for name, (found, expected) in counts.items() if found != expected
    ]
    if wrong:
        raise DataError(
            f"the panel has other covariates than the model: {listing(wrong)}; read it with the model's own"
        )


def _least_steps(artifact: Artifact, settings: TuningSettings) -> int:
    """Return how many usable steps a series must have: a horizon of origins to fit on before all that is held out."""
    n_windows = settings.gate_windows + settings.report_windows
    return (n_windows + (4 if settings.kind in RATES else 2)) * artifact.horizon


def _long_enough(artifact: Artifact, usable: IntArray, settings: TuningSettings) -> np.ndarray:
    return usable >= _least_steps(artifact, settings)


def _meant(
    artifact: Artifact, panel: Panel, data: PanelTensors, usable: IntArray, settings: TuningSettings
) -> np.ndarray:
    """Return which series are to be fine-tuned, [S], as far as they are long enough."""
    found = selected(artifact, panel, settings)
    _refuse_short(artifact, usable[found], settings)
    if settings.worst is not None:
        found &= _long_enough(artifact, usable, settings)
        losses = _base_losses(artifact.network, data, np.flatnonzero(found), usable, settings)
        found[found] = worst(losses, settings.worst)
    return found


def _refuse_short(artifact: Artifact, usable: IntArray, settings: TuningSettings) -> None:
    if not _long_enough(artifact, usable, settings).any():
        raise DataError(
            f"no series is long enough to fine-tune: the longest of {len(usable):,} has {int(usable.max()):,} usable "
            f"steps, and {settings.gate_windows + settings.report_windows} held-out windows of "
            f"{artifact.horizon} steps need {_least_steps(artifact, settings):,}; lower finetune.gate_windows or "
            "finetune.report_windows"
        )


def _n_steps(network: Forecaster, settings: TuningSettings) -> int:
    return settings.origins + (settings.gate_windows + settings.report_windows + 1) * network.shape.horizon


def _numbers(network: Forecaster, settings: TuningSettings) -> int:
    """Return how many numbers a series takes in its group."""
    if settings.kind in RATES:
        assert isinstance(network, RecurrentForecaster)
        return group_numbers(network, settings)
    n_features = head_feature_count(network.shape, int(network.encoder.hidden_size))
    n_shifts = network.shape.horizon * max(network.shape.n_classes, 1)
    n_origins = -(-_n_steps(network, settings) // apart(network.shape))
    # In single precision, and for a solution in double; the eigenvectors likewise.
    return 3 * n_origins * (n_features + n_shifts) + 2 * n_features * n_features


# --- going on


def _digests(panel: Panel, usable: IntArray) -> dict[str, str]:
    """Return a hash of what each series has to be fitted on: its values and covariates up to the usable length."""
    found = {}
    for row, name in enumerate(panel.series_id.tolist()):
        own = slice(panel.offsets[row], panel.offsets[row] + usable[row])
        known = slice(own.start + row * panel.horizon, own.stop + row * panel.horizon)
        hasher = hashlib.blake2b(panel.start[row : row + 1].tobytes(), digest_size=8)
        for values in (panel.target[own], panel.past[:, own], panel.known[:, known]):
            hasher.update(values.tobytes())
        found[name] = hasher.hexdigest()
    return found


def _joined(before: Bank, fresh: Bank, again: set[str]) -> Bank:
    """Return the fresh bank with what those series keep that were not fine-tuned `again`, by their ids."""
    rows = [row for row, name in enumerate(before.series_id) if name not in again]
    names = [before.series_id[row] for row in rows] + fresh.series_id
    order = np.argsort(np.array(names, dtype=str), kind="stable")
    tensors = {
        name: torch.cat([values[rows], *([fresh.tensors[name]] if fresh.series_id else [])])[torch.from_numpy(order)]
        for name, values in (before.tensors or fresh.tensors).items()
    }
    return Bank(fresh.kind, [names[row] for row in order], tensors, fresh.seen)


def _settings(artifact: Artifact, panel: Panel, settings: TuningSettings, **others: Any) -> dict[str, Any]:
    """Return all that a fine-tuning depends on, by its path: it is gone on from with the same only."""
    own = settings.model_dump(mode="json", exclude={"checkpoint"})
    values = {f"finetune.{name}": value for name, value in own.items()}
    return {"panel": panel.digest(), "parent": artifact.digest(), **others, **values}


class _Store:
    """The groups that are done, on disk, a file for each."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings

    def _path(self, number: int) -> Path:
        return self._folder / f"group-{number:05d}.safetensors"

    def read(self, number: int) -> tuple[Columns, Changes] | None:
        """Return a group, None where it is not done. Raises ConfigError if it is of another job."""
        if not self._path(number).exists():
            return None
        tensors, state = read_state(self._path(number), self._settings, key="finetune.checkpoint", job="fine-tuning")
        columns = {name: tensors[f"column/{name}"].numpy() for name in state["columns"]}
        changes = {name: values for name, values in tensors.items() if not name.startswith("column/")}
        return columns | {REASON: np.array(state[REASON])}, changes

    def write(self, number: int, columns: Columns, changes: Changes) -> None:
        """Keep a group, whole or not at all; where the disk is full, warn, and go on without it."""
        numbers = {name: values for name, values in columns.items() if name != REASON}
        tensors = {f"column/{name}": torch.from_numpy(values) for name, values in numbers.items()}
        state = {"columns": list(numbers), REASON: columns[REASON].tolist()}
        try:
            write_state(self._path(number), changes | tensors, self._settings, state)
        except OutputError as error:
            _LOG.warning("finetune.checkpoint: %s; the job goes on, a restart does this group again", error)

    def remove(self) -> None:
        """Delete all groups."""
        for path in self._folder.glob("group-*.safetensors"):
            path.unlink()


# --- what is told of it


def _held_out(
    network: Forecaster, data: PanelTensors, rows: IntArray, usable: IntArray, n_windows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is stated at the held-out cutoffs, oldest first, [G, window, horizon, column], and what came.

    Target and weight are [G, window, horizon].
    """
    parts = []
    with torch.inference_mode():
        for given in alone(network, data, rows, usable, held_out(network.shape.horizon, n_windows)):
            output, target, weight = forecast(network, given)
            parts.append((output.head.columns(output.arguments), target, weight))
    columns, target, weight = (
        torch.cat(part)[:, 0].unflatten(0, (len(rows), n_windows)) for part in zip(*parts, strict=True)
    )
    return columns, target, weight


def _decisions(
    panel: Panel, table: Columns, every: np.ndarray, settings: TuningSettings, before: Bank | None
) -> pl.DataFrame:
    """Return the columns for all series: null where they were not judged, with the reason in `every`."""
    rows = table.get(_ROW, np.zeros(0, dtype=np.int64))
    how = _HOW[settings.kind == HEAD]

    def spread(name: str) -> pl.Series:
        values = np.full(panel.n_series, np.nan)
        values[rows] = table.get(name, ())
        return pl.Series(values).fill_nan(None)

    reason = every.astype(object)
    reason[rows] = table.get(REASON, ())
    # Those that were not fine-tuned now may have changes from before.
    blend = spread(BLEND).fill_null(0.0).to_numpy().copy()
    if before is not None and before.series_id:
        own = before.rows(panel.series_id.tolist()).numpy()
        shares = (
            before.tensors[BLEND].numpy() if BLEND in before.tensors else np.full(len(before.series_id), settings.blend)
        )
        kept = (own >= 0) & np.isin(np.arange(panel.n_series), rows, invert=True)
        blend[kept] = shares[own[kept]]
    return pl.DataFrame(
        {
            SERIES_ID: panel.series_id.tolist(),
            **{name: spread(name) for name in ("base_loss", "tuned_loss", "gain", *how)},
            BLEND: blend,
            REASON: reason.tolist(),
            **{name: spread(name) for name in ("report_base_loss", "report_tuned_loss")},
        }
    )


def _stated(head: Head, columns: Tensor) -> np.ndarray:
    """Return the median in columns, [..., 1]; of classes all probabilities."""
    some = columns if isinstance(head, CategoricalHead) else columns[..., head.median, None]
    return some.detach().cpu().contiguous().numpy()


@torch.inference_mode()
def _shown(
    artifact: Artifact, panel: Panel, data: PanelTensors, usable: IntArray, table: Columns, settings: TuningSettings
) -> pl.DataFrame:
    """Return `FinetuneResult.shown`: of the tuned series those with the best and the worst uplift."""
    network, horizon, n_windows = artifact.network, artifact.horizon, settings.report_windows
    base, tuned = (table.get(f"report_{name}_loss", np.zeros(0)) for name in ("base", "tuned"))
    judged = np.flatnonzero((table.get(REASON, np.zeros(0)) == TUNED) & (base > 0))
    order = judged[np.argsort(tuned[judged] / base[judged], kind="stable")]
    some = np.unique(np.concatenate([order[:_SHOWN], order[-_SHOWN:]]))
    rows = table.get(_ROW, np.zeros(0, dtype=np.int64))[some]
    cutoff = (usable[rows][:, None] - 1 - np.arange(n_windows, 0, -1) * horizon).ravel()
    names = [quantile_column(0.5)] if artifact.classes is None else [class_column(name) for name in artifact.classes]
    windows = WindowIndex(np.repeat(rows, n_windows), cutoff)
    values = np.zeros((2, len(windows), horizon, len(names)), dtype=panel.target.dtype)
    if len(windows):
        ((series, own, origins),) = validation_batches(windows)
        series, own, origins = series.to(data.device), own.to(data.device), origins.to(data.device)
        batch = data.gather(series, own, own + 1, **window_sizes(network, 1))
        output = network(batch, origins)
        positions = data.horizon_positions(series, own, horizon)
        before = _stated(network.head, output.head.columns(output.arguments)[:, 0])
        for made, columns in zip(values, (before, table[_TOLD][some].reshape(before.shape)), strict=True):
            moved = torch.from_numpy(columns).to(data.device)
            made[:] = in_data_units(moved, output.frame, positions, network.shape.unit, batch.level).cpu().numpy()
    at = (panel.start[windows.series] + cutoff)[:, None] + np.arange(horizon + 1)
    each = np.repeat(np.arange(len(windows)), horizon)
    frame = pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(each),
            TIMESTAMP: panel.grid.timestamps(at[:, 1:].ravel()),
            CUTOFF: panel.grid.timestamps(at[:, 0]).gather(each),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), len(windows)),
        }
    )
    parts = []
    for model, made in zip((SOURCE_PRETRAINED, SOURCE_FINE_TUNED), values, strict=True):
        found = {name: pl.Series(made[..., column].ravel()) for column, name in enumerate(names)}
        if artifact.classes is not None:
            found[CLASS] = pl.Series(artifact.classes, dtype=pl.String).gather(made.argmax(-1).ravel())
        parts.append(frame.with_columns(pl.lit(model).alias(MODEL), **found))
    return pl.concat(parts)


def _summary(decisions: pl.DataFrame, n_tuned: int) -> dict[str, float | int]:
    """Return counts, and the uplift on the report windows with a 95 % interval over series."""
    judged = decisions.filter(pl.col("report_base_loss") > 0)
    base, tuned = judged["report_base_loss"], judged["report_tuned_loss"]
    change = (1 - tuned / base).to_numpy()
    total = float(base.sum())
    error = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    return {
        "series": len(decisions),
        "series_tuned": n_tuned,
        "series_too_short": int((decisions[REASON] == TOO_SHORT).sum()),
        "uplift": 1 - float(tuned.sum()) / total if total else 0.0,
        "uplift_per_series": float(change.mean()) if len(change) else 0.0,
        "uplift_interval": error,
        "share_improved": _share(change > 0),
        "share_worse_2_percent": _share(change < -0.02),
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0
