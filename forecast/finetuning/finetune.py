"""Fine-tuning: changes for each series, all series at once, behind a gate."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.holdout import MOST, gate_of
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, held_out_windows, usable_lengths
from forecast.errors import ConfigError, DataError, listing
from forecast.finetuning.final_bank import FinalBank, split
from forecast.finetuning.gradient_group import RATES
from forecast.finetuning.head_group import PENALTIES
from forecast.finetuning.selection import selected, worst
from forecast.finetuning.series_gate import (
    CONSTANT,
    DIVERGED,
    HARM_PROBABILITY,
    HOW,
    NO_GAIN,
    NOT_FINITE,
    POSTERIOR_GAIN,
    TUNED,
    mean_loss,
)
from forecast.finetuning.series_tuning import ROW, tune
from forecast.finetuning.trials import TOLD, Columns, TuningSettings, stated, window_losses
from forecast.models.adapters.bank import BLEND, HEAD, Bank
from forecast.models.adapters.origins import alone, forecast, held_out
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.ensemble import Forecaster, recurrent_members, tunable
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.runtime.torch_setup import prepare
from forecast.names import (
    CLASS,
    CUTOFF,
    MODEL,
    REASON,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    STEP,
    TIMESTAMP,
    class_column,
    quantile_column,
)
from forecast.prediction.postprocess import in_data_units

__all__ = ["CONSTANT", "DIVERGED", "NOT_FINITE", "NO_GAIN", "PENALTIES", "TUNED", "FinetuneResult", "finetune"]

TOO_SHORT = "too short"
NOT_SELECTED = "not selected"
UNCHANGED = "unchanged"

# Series that are shown, of the best and of the worst.
_SHOWN = 3


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """A fine-tuned model and why each series is in it or not."""

    artifact: Artifact
    decisions: pl.DataFrame
    """series_id, base_loss, tuned_loss, gain, posterior_gain, harm_probability, how it was changed, blend, reason,
    report_base_loss, report_tuned_loss.

    A row per series. `gain` is of the gate windows of the series, `posterior_gain` what is to be expected of it by the
    windows of all series, and `harm_probability` that of a gain below 0; the latter are null where the gate is strict.
    How: of kind `head` penalty and width (a null penalty: no shift, only another width), of the others learning_rate
    and steps.
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

    Of each series, changes are tried on `gate_windows` cutoffs whose targets lie behind everything fitted on, and the
    series keeps the base unless they clear the gate: `pooled_gate.choose_pooled`, or `gate.choose` where that is
    strict. The uplift is reported on the `report_windows` after those, seen by neither. What is kept is then fitted on
    all origins; with `final`, once more on all rows of the panel, beside the final weights of the base
    (`Artifact.final`). Series are taken in groups that fit into memory, which does not change what is decided.

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
    described = _settings(artifact, panel, settings) if settings.checkpoint else {}
    table, tuned, changes = tune(
        local, panel, data, chosen, usable, settings, progress=progress, final=final, described=described
    )
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
    from forecast.finetuning.continuation import RATE, continued, continued_finally

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
    losses = [window_losses(network.head, *part).cpu().numpy() for part in held]
    base, tuned = ((part[:, : settings.gate_windows], part[:, settings.gate_windows :]) for part in losses)
    before, after = mean_loss(base[0]), mean_loss(tuned[0])
    moved = any(share for _, share in found)
    table = {
        ROW: rows,
        "base_loss": before,
        "tuned_loss": after,
        "gain": 1 - after / np.where(before > 0, before, np.nan),
        "report_base_loss": mean_loss(base[1]),
        "report_tuned_loss": mean_loss(tuned[1]),
        "learning_rate": np.full(len(rows), settings.learning_rates[0] if settings.learning_rates else RATE),
        "steps": np.full(len(rows), float(max(steps for steps, _ in found))),
        BLEND: np.full(len(rows), float(np.mean([share for _, share in found]))),
        REASON: np.full(len(rows), TUNED if moved else NO_GAIN, dtype=object),
        TOLD: stated(network.head, held[1][0][:, settings.gate_windows :]),
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


# --- the gate's losses


def _base_losses(
    network: Forecaster, data: PanelTensors, rows: IntArray, usable: IntArray, settings: TuningSettings
) -> np.ndarray:
    """Return the mean loss of each series on its gate windows, [S]; 0 where nothing was observed."""
    n_windows = settings.gate_windows + settings.report_windows
    found = window_losses(network.head, *_held_out(network, data, rows, usable[rows], n_windows))
    losses: np.ndarray = np.nan_to_num(mean_loss(found[:, : settings.gate_windows].cpu().numpy()))
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
    if by_gradient and tunable(artifact.network) is None:
        raise ConfigError(
            f"finetune.kind: {settings.kind} changes one network that was trained on the panel, and this model has "
            f"{len(recurrent_members(artifact.network))} of these (fit.ensemble); set kind=head or global"
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
    rows = table.get(ROW, np.zeros(0, dtype=np.int64))
    how = HOW[settings.kind == HEAD]

    def spread(name: str) -> pl.Series:
        values = np.full(panel.n_series, np.nan)
        values[rows] = table.get(name, np.nan)
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
            **{
                name: spread(name)
                for name in ("base_loss", "tuned_loss", "gain", POSTERIOR_GAIN, HARM_PROBABILITY, *how)
            },
            BLEND: blend,
            REASON: reason.tolist(),
            **{name: spread(name) for name in ("report_base_loss", "report_tuned_loss")},
        }
    )


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
    rows = table.get(ROW, np.zeros(0, dtype=np.int64))[some]
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
        before = stated(network.head, output.head.columns(output.arguments)[:, 0])
        for made, columns in zip(values, (before, table[TOLD][some].reshape(before.shape)), strict=True):
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
    """Return counts, and the uplift on the report windows with a 95 % interval over series.

    Of a pooled gate also the posterior gain and the probability of harm, the means over the series that are tuned.
    """
    judged = decisions.filter(pl.col("report_base_loss") > 0)
    base, tuned = judged["report_base_loss"], judged["report_tuned_loss"]
    change = (1 - tuned / base).to_numpy()
    total = float(base.sum())
    error = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    expected = (
        decisions.filter(pl.col(REASON) == TUNED).select(POSTERIOR_GAIN, HARM_PROBABILITY).mean().row(0, named=True)
    )
    return {
        "series": len(decisions),
        "series_tuned": n_tuned,
        "series_too_short": int((decisions[REASON] == TOO_SHORT).sum()),
        "uplift": 1 - float(tuned.sum()) / total if total else 0.0,
        "uplift_per_series": float(change.mean()) if len(change) else 0.0,
        "uplift_interval": error,
        "share_improved": _share(change > 0),
        "share_worse_2_percent": _share(change < -0.02),
        **{name: value for name, value in expected.items() if value is not None},
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0
