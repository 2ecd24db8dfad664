"""Per-series fine-tuning: one linear map per series, for all series at once, in closed form, behind a gate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import FinetuneSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import usable_lengths
from forecast.errors import ConfigError, DataError
from forecast.gate import choose
from forecast.models.bank import HeadBank, head_feature_count, head_features
from forecast.models.batch import PanelTensors
from forecast.models.ensemble import Forecaster
from forecast.models.heads import CategoricalHead, Head
from forecast.models.module import window_sizes
from forecast.models.recurrent import loss_weights, targets
from forecast.models.runtime import prepare
from forecast.names import REASON, SERIES_ID

# Strengths that are tried, as ridge penalties on the sum over origins; the gate chooses per series.
PENALTIES = (1e5, 3e4, 1e4, 3e3, 1e3, 300.0, 100.0)

# Widths of the quantiles that are tried with each of them, and with no shift at all.
WIDTHS = (1.0, 0.25, 0.5, 0.7, 1.4, 2.0, 4.0)

# Numbers held at once while the network runs (targets of all origins of a batch of windows), and per group of series.
_BATCH_TARGETS = 500_000
_GROUP_NUMBERS = 60_000_000

TUNED = "tuned"
TOO_SHORT = "too short"
NO_GAIN = "no gain"
CONSTANT = "constant"
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model and why each series is in it or not."""

    artifact: Artifact
    decisions: pl.DataFrame
    """series_id, base_loss, tuned_loss, gain, penalty, width, blend, reason, report_base_loss, report_tuned_loss.

    A row per series. A null penalty: no shift, only another width.
    """
    summary: dict[str, float | int]


@dataclass(frozen=True)
class _Origins:
    """What the frozen network gives at the last N steps of a group of G series; origin j is step `usable - N + j`."""

    features: Tensor
    """[G, N, feature], times the square root of the origin's weight: 0 where it is not usable."""
    residual: Tensor
    """[G, N, shift], `Head.residual` at all steps of the horizon, 0 where not observed, weighted likewise."""
    columns: Tensor
    """[G, window, horizon, column] at the held-out cutoffs, oldest first: quantiles or probabilities."""
    held_features: Tensor
    """[G, window, feature] there, unweighted."""
    target: Tensor
    weight: Tensor
    """[G, window, horizon] at the held-out cutoffs; weight 0 where not observed."""


def finetune(
    artifact: Artifact,
    panel: Panel,
    settings: FinetuneSettings,
    *,
    device: str = "cpu",
    progress: Callable[[float, str], None] | None = None,
) -> FinetuneResult:
    """Return the model with changes for each series that gains from them: a shift, another width, or both.

    The shift is a ridge regression of the base's residuals on [1; last season of the window; encoder state], over the
    last `origins` cutoffs of a series; one eigen-decomposition serves all penalties. Penalty and width are chosen on
    `gate_windows` cutoffs whose targets lie behind everything fitted on; the series keeps the base unless it clears the
    gate. The uplift is reported on the `report_windows` after those, seen by neither. What is kept is then fitted on
    all origins, and weighted by `blend` against the base.

    Whatever the head of numbers, it is quantiles and mean that are changed, and the pinball loss that is compared.
    Those of counts are no whole numbers then, and where a change would take them below 0, `predict` gives 0.

    Of classes it is log-odds that are shifted, and the log-loss that is compared. There is no closed form: the shift is
    the first Newton step of the penalised likelihood, with the curvature of each step and class averaged over the
    origins (the mean square of the gradient, Berndt, Hall, Hall & Hausman 1974), so that one eigen-decomposition serves
    here too; a width is a temperature.

    Raises ConfigError if the model is fine-tuned already, DataError if no series is long enough.
    """
    prepare()
    if artifact.bank is not None:
        raise ConfigError("registry.alias: this version is fine-tuned already; fine-tune its pretrained parent")
    last = panel.last_index
    trained_until = max(last - settings.holdout_windows * artifact.horizon, artifact.trained_until)
    usable = usable_lengths(panel, trained_until)
    horizon, n_windows = artifact.horizon, settings.gate_windows + settings.report_windows
    # The oldest gate window leaves at least a horizon of origins to fit on.
    long_enough = usable >= (n_windows + 2) * horizon
    eligible = np.flatnonzero(long_enough)
    if not len(eligible):
        raise DataError(
            f"no series is long enough to fine-tune: the longest of {panel.n_series:,} has {int(usable.max()):,} "
            f"usable steps, and {n_windows} held-out windows of {horizon} steps need {(n_windows + 2) * horizon:,}; "
            "lower finetune.gate_windows or finetune.report_windows"
        )
    n_origins = settings.origins + (n_windows + 1) * horizon
    network = artifact.network.to(device)
    data = PanelTensors(panel, device, unit=network.shape.unit)
    n_features = head_feature_count(network.shape, int(network.encoder.hidden_size))
    n_shifts = horizon * max(network.shape.n_classes, 1)
    group = max(1, _GROUP_NUMBERS // (n_origins * (n_features + n_shifts) + n_features * n_features * 2))
    columns: list[dict[str, np.ndarray]] = []
    kept: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(eligible), group):
        series = eligible[first : first + group]
        found, changes = _tune_group(network, data, series, usable[series], n_origins, settings)
        columns.append({"series": series, **found})
        kept.append(changes)
        if progress:
            progress(min(1.0, (first + group) / len(eligible)), f"{min(first + group, len(eligible)):,} series")
    artifact.network.to("cpu")
    table = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    tuned = table["series"][table["chosen"]]
    bank = HeadBank(panel.series_id[tuned].tolist(), *(torch.cat(parts) for parts in zip(*kept, strict=True)))
    decisions = _decisions(panel, table, settings)
    child = artifact.with_bank(bank, trained_until=trained_until, parent_digest=artifact.digest())
    return FinetuneResult(child, decisions, _summary(decisions, bank))


@torch.inference_mode()
def _tune_group(
    network: Forecaster,
    data: PanelTensors,
    series: IntArray,
    usable: IntArray,
    n_origins: int,
    settings: FinetuneSettings,
) -> tuple[dict[str, np.ndarray], tuple[Tensor, Tensor]]:
    horizon, head = network.shape.horizon, network.head
    n_windows = settings.gate_windows + settings.report_windows
    known = _run(network, data, series, usable, n_origins, n_windows)
    penalties = torch.tensor(PENALTIES, dtype=torch.float64, device=data.device)

    shifts = []
    for window in range(n_windows):
        cutoff = n_origins - 1 - (n_windows - window) * horizon
        solved = _decompose(known, head, last=cutoff - horizon, count=settings.origins)
        at = torch.einsum("gf,gfe->ge", known.held_features[:, window].double(), solved.vectors)
        each = [torch.einsum("ge,geh->gh", at, solved.coefficients(penalty)) for penalty in penalties]
        shifts.append(torch.stack(each, 1))
    # [G, window, penalty, horizon, shift]
    shift = settings.blend * torch.stack(shifts, 1).to(known.columns.dtype).unflatten(-1, (horizon, -1))
    # No shift is a strength too; the very first candidate, without another width either, is the base.
    shift = torch.cat([torch.zeros_like(shift[:, :, :1]), shift], dim=2)
    widths = 1.0 + settings.blend * (torch.tensor(WIDTHS, device=data.device) - 1.0)
    losses = [
        _loss(head, head.changed(known.columns, shift[:, :, strength], width.expand(known.target.shape)), known)
        for strength in range(shift.shape[2])
        for width in widths
    ]
    loss = torch.stack(losses, -1).cpu().numpy()

    gate, report = loss[:, : settings.gate_windows], loss[:, settings.gate_windows :]
    choice = choose(gate[..., 0], gate[..., 1:], settings)
    rows = np.arange(len(series))
    best = 1 + choice.strength
    strength = torch.from_numpy(best // len(WIDTHS)).to(data.device)
    solved = _decompose(known, head, last=n_origins - 1 - horizon, count=settings.origins)
    penalty = penalties[(strength - 1).clamp(min=0)]
    weight = settings.blend * (solved.vectors @ solved.coefficients(penalty[:, None, None]))
    weight = weight.masked_fill((strength == 0)[:, None, None], 0.0).to(known.features.dtype)
    finite = torch.isfinite(weight).flatten(1).all(1).cpu().numpy()
    constant = gate[..., 0].sum(1) == 0
    if isinstance(head, CategoricalHead):
        # Where one class came alone, any forecast gains by being surer of it.
        judged = slice(settings.gate_windows)
        came = known.target[:, judged].masked_fill(known.weight[:, judged] == 0, torch.nan).flatten(1).cpu().numpy()
        constant |= np.fmax.reduce(came, axis=1) == np.fmin.reduce(came, axis=1)
    chosen = choice.chosen & finite & ~constant
    reason = np.select([constant, ~finite, chosen], [CONSTANT, NOT_FINITE, TUNED], NO_GAIN)
    found = {
        "base_loss": gate[..., 0].mean(1),
        "tuned_loss": gate[rows, :, best].mean(1),
        "gain": choice.gain,
        "penalty": np.array([np.nan, *PENALTIES])[best // len(WIDTHS)],
        "width": widths.cpu().numpy()[best % len(WIDTHS)],
        "chosen": chosen,
        REASON: reason,
        "report_base_loss": report[..., 0].mean(1),
        "report_tuned_loss": np.where(chosen, report[rows, :, best].mean(1), report[..., 0].mean(1)),
    }
    kept = torch.from_numpy(chosen)
    return found, (weight.cpu()[kept], widths.cpu()[torch.from_numpy(best % len(WIDTHS))[kept]])


def _run(
    network: Forecaster, data: PanelTensors, series: IntArray, usable: IntArray, n_origins: int, n_windows: int
) -> _Origins:
    """Run the network once over the last `n_origins` steps of each series; every step is an origin."""
    horizon, segment = network.shape.horizon, network.shape.segment_length
    # Rounds of windows, one per phase of the segments, so that every step is an origin once.
    span = min(network.shape.context_length, n_origins) // segment * segment or segment
    chunks = -(-n_origins // span)
    total = chunks * span
    held = total - 1 - horizon * torch.arange(n_windows, 0, -1)
    origins = torch.arange(0, span, segment, device=data.device)
    rows = torch.arange(len(series)).repeat_interleave(chunks * segment)
    chunk = torch.arange(chunks).repeat_interleave(segment).repeat(len(series))
    phase = torch.arange(segment).repeat(len(series) * chunks)
    begin = chunk * span + phase
    first = torch.from_numpy(usable)[rows] - total + begin
    parts: list[tuple[Tensor, Tensor]] = []
    kept: list[tuple[Tensor, ...]] = []
    n_numbers = horizon * max(network.shape.n_classes, 1) * network.n_paths
    size = max(1, _BATCH_TARGETS // (len(origins) * n_numbers))
    for at in range(0, len(rows), size):
        row, offset = rows[at : at + size], begin[at : at + size]
        chosen = torch.from_numpy(series)[row].to(data.device)
        limit = torch.from_numpy(usable)[row].to(data.device)
        batch = data.gather(chosen, first[at : at + size].to(data.device), limit, **window_sizes(network, span))
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        weight = loss_weights(target, observed, output.frame, network.shape)
        strength = weight.amax(-1, keepdim=True).sqrt()
        residual = output.head.residual(output.arguments, target) * (weight > 0)[..., None]
        features = head_features(output, network.shape)
        parts.append((features * strength, residual.flatten(-2) * strength))
        for window, j in enumerate(held.tolist()):
            here = torch.nonzero((offset <= j) & (j < offset + span) & ((j - offset) % segment == 0)).flatten()
            local = (j - offset[here]) // segment
            columns = output.head.columns(output.arguments[here, local])
            picked = (columns, features[here, local], target[here, local], weight[here, local])
            kept.append((row[here], torch.full_like(here, window), *picked))
    features, residual = (
        torch.cat(part)
        .unflatten(0, (len(series), chunks, segment))
        .transpose(2, 3)
        .flatten(1, 3)[:, total - n_origins :]
        for part in zip(*parts, strict=True)
    )
    at_row, at_window, *values = (torch.cat(column) for column in zip(*kept, strict=True))
    order = (at_row * n_windows + at_window).argsort()
    return _Origins(features, residual, *(value[order].unflatten(0, (len(series), n_windows)) for value in values))


class _Solved(NamedTuple):
    """The normal equations of a group of series in the basis of their eigenvectors."""

    values: Tensor
    """[G, feature]."""
    vectors: Tensor
    """[G, feature, eigenvector]."""
    projected: Tensor
    """[G, eigenvector, shift], the right-hand side."""
    curvature: Tensor
    """[G, 1, shift], of the loss: 1 for squares."""

    def coefficients(self, penalty: Tensor) -> Tensor:
        """Return the solution for one penalty, or one of each series ([G, 1, 1]), [G, eigenvector, shift]."""
        return self.projected / (self.values[..., None] * self.curvature + penalty)


def _decompose(known: _Origins, head: Head, *, last: int, count: int) -> _Solved:
    """Return the solved normal equations of the origins up to `last`."""
    part = slice(max(last - count + 1, 0), last + 1)
    features, residual = known.features[:, part].double(), known.residual[:, part].double()
    values, vectors = torch.linalg.eigh(features.mT @ features)
    curvature = torch.ones_like(residual[:, :1])
    if isinstance(head, CategoricalHead):
        # The first feature is 1, weighted: its squares are the weights.
        weight = features[..., :1].square().sum(1, keepdim=True).clamp(min=1e-9)
        curvature = residual.square().sum(1, keepdim=True) / weight
    return _Solved(values.clamp(min=0), vectors, vectors.mT @ (features.mT @ residual), curvature)


def _loss(head: Head, columns: Tensor, known: _Origins) -> Tensor:
    """Return the mean weighted loss of each held-out window, [G, window]; 0 where nothing was observed."""
    error = head.column_errors(columns, known.target)
    return (error * known.weight).sum(-1) / known.weight.sum(-1).clamp(min=1e-9)


def _decisions(panel: Panel, table: dict[str, np.ndarray], settings: FinetuneSettings) -> pl.DataFrame:
    known = pl.DataFrame(
        {
            SERIES_ID: panel.series_id[table["series"]].tolist(),
            **{
                name: table[name].astype(np.float64) for name in ("base_loss", "tuned_loss", "gain", "penalty", "width")
            },
            "blend": np.where(table["chosen"], settings.blend, 0.0),
            REASON: table[REASON].tolist(),
            **{name: table[name].astype(np.float64) for name in ("report_base_loss", "report_tuned_loss")},
        }
    )
    known = known.with_columns(pl.col("penalty").fill_nan(None))
    every = pl.DataFrame({SERIES_ID: panel.series_id.tolist()})
    return every.join(known, on=SERIES_ID, how="left", maintain_order="left").with_columns(
        pl.col(REASON).fill_null(TOO_SHORT), pl.col("blend").fill_null(0.0)
    )


def _summary(decisions: pl.DataFrame, bank: HeadBank) -> dict[str, float | int]:
    """Return counts, and the uplift on the report windows with a 95 % interval over series."""
    judged = decisions.filter(pl.col("report_base_loss") > 0)
    base, tuned = judged["report_base_loss"], judged["report_tuned_loss"]
    change = (1 - tuned / base).to_numpy()
    total = float(base.sum())
    error = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    return {
        "series": len(decisions),
        "series_tuned": len(bank.series_id),
        "series_too_short": int((decisions[REASON] == TOO_SHORT).sum()),
        "uplift": 1 - float(tuned.sum()) / total if total else 0.0,
        "uplift_per_series": float(change.mean()) if len(change) else 0.0,
        "uplift_interval": error,
        "share_improved": _share(change > 0),
        "share_worse_2_percent": _share(change < -0.02),
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0
