"""Forecasts from a trained model: a plain loop over windows, no trainer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from forecast.artifact import Artifact
from forecast.config import AUTO
from forecast.data.ages import ENDED, MaxAge, age_limit, ages, have_ended
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import FloatArray, IntArray, Panel
from forecast.data.sources.frames import to_lazy
from forecast.data.sources.open import used_columns
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError, DataError, listing
from forecast.metrics.scores import (
    SEASONS_BACK,
    midpoints,
    seasonal_naive,
    seasonal_naive_classes,
    seasonal_naive_errors,
)
from forecast.models.bank import HEAD, Bank, head_features
from forecast.models.heads import log_quantiles
from forecast.models.heads.base import Head, mean_distance
from forecast.models.heads.categorical import CategoricalHead
from forecast.models.heads.quantile import QuantileHead
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.transform import to_data, to_model
from forecast.models.network.carried_state import Carried, advance, segments_since
from forecast.models.network.ensemble import Forecaster, members_of, the_tunable
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.network.output import Output, Past
from forecast.models.postprocess.copula import coupled_ranks
from forecast.models.runtime.onnx import Forward
from forecast.models.runtime.torch_setup import prepare
from forecast.models.stacked import FROZEN
from forecast.names import (
    CLASS,
    CUTOFF,
    MEAN,
    MODEL_VERSION,
    REASON,
    SERIES_ID,
    SOURCE,
    SOURCE_FINE_TUNED,
    SOURCE_LAST_VALUE,
    SOURCE_PRETRAINED,
    SOURCE_SEASONAL_NAIVE,
    STEP,
    TIMESTAMP,
    VALUE,
    class_column,
    quantile_column,
    sample_column,
)

BATCH_SIZE = 512
# Quantiles whose average is the mean of a distribution on a logarithmic scale.
_POINTS = 100
# Numbers held at once for the origins of a pass over a history, and of these for each step of a horizon.
_PASS_NUMBERS, _STEP_NUMBERS = 1 << 24, 64
# A mean so many times the range of its series' history away from it is not plausible; that takes so many observations.
_PLAUSIBLE_RANGES, _FEW_OBSERVATIONS = 10, 8
# Latest steps that are looked at before the whole history is.
_RECENT = 32

DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predicted:
    """Forecasts of n windows in the units of the target: quantiles at each level, or probabilities of each class.

    Behind these are the sample paths, if any were asked for.
    """

    base: FloatArray
    """[n, horizon, column], by the shared network; NaN where it sees no observation."""
    tuned: FloatArray
    """[n, horizon, column], with the changes of the series, and calibrated; the same as `base` where there are none."""
    base_mean: DoubleArray
    tuned_mean: DoubleArray
    """[n, horizon], the means of the distributions; of classes the code of the most probable one."""
    is_tuned: np.ndarray
    """[n], whether the series has changes."""


@dataclass(frozen=True, repr=False)
class Forecasts:
    """A batch of forecasts. Series in = series in `frame` + series in `rejects`."""

    frame: pl.DataFrame
    """series_id, timestamp, cutoff, step, mean, one column per quantile, source, model_version; by series and step.

    Sample paths, if asked for, are further columns behind the quantiles. Of classes: class, the most probable one, and
    one column per class in place of mean and quantiles.
    """
    rejects: pl.DataFrame
    """series_id, timestamp, reason, value."""

    def __repr__(self) -> str:
        cutoff, n_rejects = self.frame[CUTOFF].first(), self.rejects.height
        count = self.frame[SERIES_ID].n_unique()
        series = "0 series" if cutoff is None else f"{count:,} series from {cutoff!s}, {self.frame.height:,} rows"
        reasons = self.rejects.group_by(REASON).len().sort("len", REASON, descending=[True, False])
        listed = listing(f"{number:,} {reason}" for reason, number in reasons.iter_rows())
        return f"Forecasts({series}, {n_rejects:,} rejects{f': {listed}' if n_rejects else ''})"


def predict(
    artifact: Artifact,
    panel: Panel,
    windows: WindowIndex,
    *,
    points: int = 0,
    samples: int = 0,
    forward: Forward | None = None,
    carried: Carried | None = None,
    one_pass: bool = False,
    device: str = "cpu",
) -> Predicted:
    """Return forecasts of windows, with the weights of `artifact` itself, whatever its final fit.

    Nothing after a window's cutoff is read, but known covariates.

    A window's forecast does not depend on the other windows. With `points`, the quantiles are those at the midpoints
    of so many equal shares instead of the model's own levels. `samples` is a number of paths, of a model that
    `sampling` has returned. `forward` runs the network in its place. With `carried`, by the series of the panel, the
    encoder goes on from there instead of beginning with the window. With `one_pass`, it goes once over the history of
    each series, and the forecasts of all windows follow from its states there (`_along`).

    On another `device` than that of the model's network a copy of it is used. `carried` may be on any device.
    """
    artifact = artifact.on(device)
    levels = torch.tensor(midpoints(points)) if points else None
    order = np.arange(len(windows))
    if artifact.bank and artifact.bank.kind not in (HEAD, *FROZEN):
        # Weights of a series are taken once for its windows in a batch.
        order = windows.series.argsort(kind="stable")
    data = PanelTensors.of(panel, artifact.network, device)
    if one_pass:
        tasks, order = _along(artifact.network, panel, data, windows)
    else:
        tasks = _one_by_one(windows[order], data, carried)
    parts = list(_predict_batches(artifact, panel, data, tasks, levels, samples, forward))
    shape = (0, artifact.horizon, (points or len(stated_columns(artifact))) + samples)
    nothing, no_mean = np.zeros(shape, np.float32), np.zeros(shape[:2])
    parts = parts or [Predicted(nothing, nothing, no_mean, no_mean, np.zeros(0, bool))]
    names = [field.name for field in fields(Predicted)]
    back = np.empty(len(windows), np.int64)
    there = np.flatnonzero(order >= 0)
    back[order[there]] = there
    return Predicted(*(np.concatenate([getattr(part, name) for part in parts])[back] for name in names))


class _Task(NamedTuple):
    """A batch of windows, all with the same origins."""

    series: Int[Tensor, " batch"]
    cutoff: Int[Tensor, " batch"]
    """Of the first origin."""
    origins: Int[Tensor, " origin"]
    pasts: Sequence[Past] | None


def _one_by_one(windows: WindowIndex, data: PanelTensors, carried: Carried | None) -> Iterator[_Task]:
    for indices in validation_batches(windows, BATCH_SIZE):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        yield _Task(series, cutoff, origins, None if carried is None else carried.of(series))


def _along(
    network: Forecaster, panel: Panel, data: PanelTensors, windows: WindowIndex
) -> tuple[Iterator[_Task], npt.NDArray[np.int64]]:
    """Return batches of windows that have all cutoffs of their series as origins, and which window each origin is.

    The second is [n], batch by batch and window by window; -1 is an origin nobody asked for. Cutoffs of a series go
    together where whole segments of the local clock lie between them: those in other phases are another pass.
    """
    shape = network.shape
    index = panel.start[windows.series] + windows.cutoff
    shift = panel.clock_shift_at(index)
    begun = np.full(panel.n_series, np.iinfo(np.int64).max)
    plans: list[tuple[WindowIndex, list[IntArray]]] = []
    order: list[IntArray] = []
    size_of = max(shape.context_length, _STEP_NUMBERS * shape.horizon * network.n_paths)
    for phase in np.unique(np.stack([(index + shift) % shape.segment_length, shift]), axis=1).T:
        rows = np.flatnonzero(((index + shift) % shape.segment_length == phase[0]) & (shift == phase[1]))
        begun[:] = np.iinfo(np.int64).max
        np.minimum.at(begun, windows.series[rows], index[rows])
        for first in np.unique(begun[windows.series[rows]]):
            own = rows[begun[windows.series[rows]] == first]
            cutoffs, series = np.unique(index[own]), np.unique(windows.series[own])
            at = np.full((len(series), len(cutoffs)), -1)
            at[np.searchsorted(series, windows.series[own]), np.searchsorted(cutoffs, index[own])] = own
            chunk = min(len(cutoffs), max(1, _PASS_NUMBERS // size_of))
            edges = range(chunk, len(cutoffs), chunk)
            size = max(1, _PASS_NUMBERS // (size_of * chunk))
            for begin in range(0, len(series), size):
                some = slice(begin, begin + size)
                plans.append((WindowIndex(series[some], first - panel.start[series[some]]), np.split(cutoffs, edges)))
                order += [part.ravel() for part in np.split(at[some], edges, axis=1)]

    def tasks() -> Iterator[_Task]:
        carried = Carried.blank(network, panel.n_series)
        for own, parts in plans:
            for values, blank in zip(carried, Carried.blank(network, len(own)), strict=True):
                values[own.series] = blank
            segments = segments_since(panel, own, shape.segment_length)
            for number, part in enumerate(parts):
                here = WindowIndex(own.series, own.cutoff + (part[0] - parts[0][0]))
                if number:
                    segments = np.full(len(own), (part[0] - parts[number - 1][0]) // shape.segment_length)
                advance(network, data, here, segments, carried)
                series, cutoff = (torch.from_numpy(values).to(data.device) for values in (here.series, here.cutoff))
                origins = torch.from_numpy(part - part[0]).to(data.device)
                yield _Task(series, cutoff, origins, carried.of(series))

    return tasks(), np.concatenate(order) if order else np.zeros(0, np.int64)


@torch.inference_mode()
def _predict_batches(
    artifact: Artifact,
    panel: Panel,
    data: PanelTensors,
    tasks: Iterator[_Task],
    levels: torch.Tensor | None,
    samples: int,
    forward: Forward | None,
) -> Iterator[Predicted]:
    prepare()
    device = data.device
    network = artifact.network
    forward = forward or network
    order = None
    if samples and artifact.coupling is not None:
        order = coupled_ranks(artifact.coupling, samples).to(device)
    n_stated = len(stated_columns(artifact) if levels is None else levels)
    rows, shifts = own_rows(artifact, panel.series_id.tolist())
    for series, first, origins, pasts in tasks:
        span = int(origins[-1]) + 1
        batch = data.gather(series, first, first + span, **window_sizes(network, span))
        output = forward(batch, origins) if pasts is None else network(batch, origins, pasts)
        output = output.by_origin()
        series = series.repeat_interleave(len(origins))
        cutoff = (first[:, None] + origins).flatten()
        positions = data.horizon_positions(series, cutoff, network.shape.horizon)
        row = rows[series.cpu()]
        base, tuned = outcome(
            artifact,
            batch,
            origins,
            output,
            row,
            shifts[series.cpu()],
            positions,
            levels=levels,
            samples=samples,
            pasts=pasts,
        )
        (found, mean), (found_tuned, tuned_mean) = (
            _separated(values, n_stated, samples, order, artifact) for values in (base, tuned)
        )
        yield Predicted(found, found_tuned, mean, tuned_mean, (row >= 0).numpy())


def own_rows(artifact: Artifact, series_id: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of each series in the bank (-1: none) and in the calibration, [S] both."""
    rows = artifact.bank.rows(series_id) if artifact.bank else torch.full((len(series_id),), -1)
    return rows, artifact.calibration.rows(series_id) if artifact.calibration else rows


def outcome(
    artifact: Artifact,
    batch: Batch,
    origins: torch.Tensor,
    output: Output,
    rows: torch.Tensor,
    shifts: torch.Tensor,
    positions: torch.Tensor | None,
    *,
    levels: torch.Tensor | None = None,
    samples: int = 0,
    pasts: Sequence[Past] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the network's output says in the units of the target: of the shared network, and of each series.

    [row, horizon, column] both, a row for each window and origin (`Output.by_origin`): quantiles or probabilities,
    samples, and points whose average is the mean, as `mean_of` takes them.

    `rows` and `shifts` are those of `own_rows`, `positions` those of `PanelTensors.horizon_positions`. Gradients pass
    through, where they do through the head's quantiles.
    """
    network, head, unit = artifact.network, artifact.network.head, artifact.network.shape.unit
    n_stated = len(stated_columns(artifact) if levels is None else levels)
    columns = _columns(output, unit, levels, samples)
    level = None if batch.level is None else batch.level.repeat_interleave(len(origins))
    base = in_data_units(columns, output.frame, positions, unit, level)
    row, tuned = rows.to(base.device), base
    if artifact.bank is not None and bool((row >= 0).any()):
        better = _tuned_columns(
            artifact.bank, network, batch, origins, output, columns, row, unit, levels, samples, pasts
        )
        tuned = in_data_units(better, output.frame, positions, unit, level)
        tuned = torch.where((row >= 0)[:, None, None], tuned, base)
    base, tuned = (_within_support(values, n_stated + samples, head) for values in (base, tuned))
    if artifact.calibration:
        quantiles, others = tuned.tensor_split([n_stated], dim=-1)
        quantiles = artifact.calibration.applied(quantiles, shifts, levels, whole=head.counts)
        tuned = torch.cat([head.within_support(quantiles), others], dim=-1)
    if samples and isinstance(output.head, QuantileHead):
        between = torch.tensor(midpoints(samples), dtype=torch.float64, device=base.device)
        base, tuned = (
            torch.cat([values, _between(output.head, values, between, unit)], dim=-1) for values in (base, tuned)
        )
    return base, tuned


def _between(head: QuantileHead, stated: torch.Tensor, levels: torch.Tensor, unit: float) -> torch.Tensor:
    """Return quantiles at other levels than the stated ones, of the distribution that `mean_of` takes the mean of."""
    return log_quantiles.at_levels(stated, head.levels, levels, unit) if unit else head.quantiles(stated, levels)


def _within_support(columns: torch.Tensor, n_values: int, head: Head) -> torch.Tensor:
    """Return columns that targets can have: the first `n_values` as values, those behind them as means."""
    values, points = columns.tensor_split([n_values], dim=-1)
    return torch.cat([head.within_support(values), head.within_support(points, whole=False)], dim=-1)


def _tuned_columns(
    bank: Bank,
    network: Forecaster,
    batch: Batch,
    origins: torch.Tensor,
    output: Output,
    columns: torch.Tensor,
    rows: torch.Tensor,
    unit: float,
    levels: torch.Tensor | None,
    samples: int,
    pasts: Sequence[Past] | None,
) -> torch.Tensor:
    """Return the columns with the changes of each series, whose rows are by origin; as they are for row -1."""
    known = torch.nonzero(rows >= 0).flatten()
    result, own = columns.clone(), rows[known].cpu()
    if bank.kind == HEAD:
        features = head_features(output, network.shape)[known, 0]
        result[known] = bank.shifted(network.head, columns[known], features, own)
    else:
        member, share = the_tunable(network)
        window = known[:: len(origins)] // len(origins)  # Each of whose origins is a row.
        past = pasts[0].rows(window) if pasts else None  # Of the pretrained network alone there is none.
        some = batch.rows(window).since(network.shape.context_length - member.shape.context_length)
        arguments = bank.arguments(member, some, origins, own[:: len(origins)], past).flatten(0, 1)[:, None]
        if share < 1:  # The others forecast what they did.
            before = member(some, origins, None if past is None else [past]).arguments.flatten(0, 1)[:, None]
            arguments = output.arguments[known] + share * (arguments - before)
        result[known] = _columns(output._replace(arguments=arguments), unit, levels, samples)
    return result


def _columns(output: Output, unit: float, levels: torch.Tensor | None, samples: int) -> torch.Tensor:
    """Return [batch, horizon, column]: quantiles, samples, and the points whose average, in data units, is the mean.

    Of classes their probabilities, and of `levels` the quantiles, without such points. Changes of a series are made to
    all of them. No points where the mean is that of the stated quantiles: of quantile heads, and of all on a
    logarithmic scale, where a normal distribution is what its quantiles stand for, and Student-t has no mean. There the
    points are the values of sampled paths, if any, or quantiles, if only one is stated. No samples of quantile heads:
    these are made of what is stated.
    """
    head, arguments = output.head, output.arguments[:, 0]
    if levels is not None:
        return head.quantiles(arguments, levels.to(arguments.device))
    drawn = [_samples(output, samples)] if samples and not isinstance(head, QuantileHead) else []
    if isinstance(head, CategoricalHead):
        return torch.cat([head.columns(arguments), *drawn], dim=-1)
    points: list[torch.Tensor] = []
    if isinstance(head, QuantileHead) or (
        unit and not isinstance(head, SampledHead) and (head.heavy_tailed or len(head.levels) > 1)
    ):
        pass
    elif not unit:
        points.append(head.mean(arguments)[..., None])
    elif isinstance(head, SampledHead):
        points.append(arguments[..., :-1])
    else:
        points.append(head.quantiles(arguments, (torch.arange(_POINTS, device=arguments.device) + 0.5) / _POINTS))
    return torch.cat([head.quantiles(arguments), *drawn, *points], dim=-1)


def _samples(output: Output, count: int) -> torch.Tensor:
    """Return [batch, horizon, sample]: paths of a decoder that samples them, else quantiles at `midpoints`."""
    if output.paths is not None and isinstance(output.head, SampledHead | CategoricalHead):
        return output.paths[:, 0, :count].mT
    arguments = output.arguments[:, 0]
    return output.head.quantiles(arguments, torch.tensor(midpoints(count), device=arguments.device))


def _separated(
    columns: torch.Tensor, n_stated: int, samples: int, order: torch.Tensor | None, artifact: Artifact
) -> tuple[FloatArray, DoubleArray]:
    """Return quantiles (or probabilities) with samples behind them, and mean of the columns.

    `order` says which of the samples at a step, [horizon, sample], each path takes.
    """
    stated, drawn, points = columns.tensor_split([n_stated, n_stated + samples], dim=-1)
    if order is not None:
        drawn = drawn.gather(-1, order.expand(drawn.shape))
    numbers = np.ascontiguousarray(stated.cpu().numpy())
    mean = published_mean(artifact, stated, points).cpu().numpy()
    return torch.cat([stated, drawn], dim=-1).cpu().numpy() if samples else numbers, mean


def published_mean(artifact: Artifact, stated: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the means of the model's forecasts, `mean_of` what is stated, with the shift that training has found."""
    network = artifact.network
    mean = mean_of(stated, points, network.head, network.shape.unit)
    if network.mean_shift and not isinstance(network.head, CategoricalHead):
        mean = mean + network.mean_shift.to(mean) * mean_distance(stated, mean, network.head, network.shape.unit)
    return network.head.within_support(mean) if network.head.nonnegative and not network.head.counts else mean


def mean_of(stated: torch.Tensor, points: torch.Tensor, head: Head, unit: float = 0.0) -> torch.Tensor:
    """Return the means of forecasts in float64, [...]: of their points, or, where there are none, of what is stated.

    The mean of quantiles is that of a distribution on the scale of the model, whose `unit` is not 0 where that is a
    logarithmic one (`log_quantiles`). Of classes it is the code of the most probable one.
    """
    if points.shape[-1]:
        return points.double().mean(-1)
    if isinstance(head, CategoricalHead):
        return stated.argmax(-1).double()
    if stated.shape[-1] != len(head.levels):
        return stated.double().mean(-1)
    if unit:
        return log_quantiles.mean(stated, head.levels, unit)
    # From the median on, so that the mean of equal numbers is that number.
    middle = stated[..., head.median].double()
    return middle + (stated.double() - middle[..., None]) @ head.mean_weights.double().to(stated.device)


def stated_columns(artifact: Artifact) -> tuple[str, ...]:
    """Return the columns of a forecast: one for each quantile, or for each class."""
    if artifact.classes is not None:
        return tuple(class_column(name) for name in artifact.classes)
    return tuple(quantile_column(level) for level in artifact.model.quantile_levels)


def naive_forecasts(
    artifact: Artifact,
    panel: Panel,
    windows: WindowIndex,
    *,
    season: int | None = None,
    points: int = 0,
    horizon: int | None = None,
    levels: Sequence[float] | None = None,
) -> DoubleArray:
    """Return seasonal naive as the model's own forecast, where it has none, [n, horizon, column].

    Of counts whole numbers, of counts and amounts none below 0. `season`, `horizon` and `levels` (of numbers) are those
    of the model when None, `points` as in `predict`.
    """
    season = season or artifact.network.shape.season_length
    horizon = horizon or artifact.horizon
    levels = midpoints(points) if points else levels or artifact.model.quantile_levels
    if artifact.classes is not None:
        n_classes = len(artifact.classes)
        classes = seasonal_naive_classes(panel, windows, horizon=horizon, season=season, n_classes=n_classes)
        return classes.astype(np.float64)
    naive = seasonal_naive(panel, windows, horizon=horizon, season=season, levels=levels)
    _, sigma = seasonal_naive_errors(panel, windows, season)
    unknown = np.isnan(sigma)
    naive[unknown] = _with_panel_scale(artifact.network, naive[unknown], levels, season)
    return within_support(artifact, naive)


def _with_panel_scale(
    network: Forecaster, point: npt.NDArray[np.floating], levels: Sequence[float], season: int
) -> DoubleArray:
    """Return normal quantiles around `point`, [n, horizon, level], with the panel's scale: the series has none."""
    relative, absolute = (float(value) for value in members_of(network)[0].cold_scale)
    unit = network.shape.unit
    centre = to_model(torch.from_numpy(point).double(), unit)
    seasons_ahead = -(-torch.arange(1, point.shape[1] + 1) // season)
    scale = (relative * centre.abs()).clamp(min=absolute) * seasons_ahead[:, None].sqrt()
    deviates = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
    return np.asarray(to_data(centre + scale * deviates, unit).numpy())


def mean_of_naive(artifact: Artifact, stated: DoubleArray) -> DoubleArray:
    """Return the means of what `naive_forecasts` states, [n, horizon]."""
    return np.asarray(mean_of(torch.from_numpy(stated), torch.empty(0), artifact.network.head).numpy())


def within_support(artifact: Artifact, quantiles: npt.NDArray[np.floating]) -> DoubleArray:
    """Return quantiles of a baseline, moved to what targets of the model can be (`Head.within_support`)."""
    values = torch.from_numpy(quantiles.astype(np.float64))
    return np.asarray(artifact.network.head.within_support(values).numpy())


def in_data_units(
    columns: torch.Tensor,
    frame: Frame,
    positions: torch.Tensor | None,
    unit: float,
    level: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return [batch, horizon, column] by steps, in the units of the target; NaN where nothing was observed.

    `level`, [batch], is what was taken off the target (`Batch.level`); with it the result is float64.
    """
    if positions is not None:  # By positions of the local clock until here.
        columns = columns.gather(1, positions[..., None].expand(-1, -1, columns.shape[-1]))
    location, scale, begun = (values[:, 0, None, None] for values in (frame.location, frame.scale, frame.begun))
    if level is not None:
        level = level[:, None, None]
    return to_data(location + scale * columns, unit, level).masked_fill(~begun, torch.nan)


def sampling(artifact: Artifact, count: int, key: str = "n") -> Artifact:
    """Return a model that samples `count` paths (`predict`): it, or one whose autoregressive decoder draws more.

    Raises ConfigError for a model that has no paths, which names the setting at `key`.
    """
    network = artifact.network
    if artifact.bank is not None and artifact.classes is not None:
        raise ConfigError(
            f"{key}: fine-tuning changes the probabilities of classes at each step, which moves no path; sample those "
            "of the model without it (model.base(), or its pretrained version)"
        )
    if network.n_paths > 1 and not isinstance(network, RecurrentForecaster):
        raise ConfigError(
            f"{key}: this model is of {len(members_of(network))} networks, whose paths have no mean; train one with "
            "fit.ensemble=1"
        )
    # Where training has kept the closed form, a decoder that could sample numbers does not.
    sampled = (
        isinstance(network, RecurrentForecaster)
        and network.n_paths > 1
        and (artifact.classes is not None or bool(network.output.weight.any()))
    )
    if not sampled and artifact.coupling is None:
        if artifact.classes is not None:
            raise ConfigError(
                f"{key}: a model of classes with decoder={artifact.model.decoder} knows each step of the horizon by "
                "itself, and what is drawn from each is no path; train one with model.decoder=autoregressive"
            )
        raise ConfigError(
            f"{key}: this model does not hold how its errors depend on each other over the horizon; train it again"
        )
    if isinstance(network, RecurrentForecaster) and 1 < network.n_paths < count:
        network = network.sampling(count)
    return replace(artifact, network=network, final=artifact.final and sampling(artifact.final, count, key))


def forecast(
    artifact: Artifact,
    panel: Panel,
    *,
    cutoff: int | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    device: str = "cpu",
) -> Forecasts:
    """Return the forecasts of every series from grid index `cutoff`, the latest step of the panel when None.

    Series older than `max_age` are rejects. Raises DataError if the panel ends before the cutoff, or begins after it.
    """
    cutoff = check_cutoff(panel, cutoff)
    artifact = artifact.for_cutoff(cutoff)
    return forecast_shard(artifact, panel, cutoff, max_age=max_age, model_version=model_version, device=device)


def forecast_shard(
    artifact: Artifact,
    panel: Panel,
    cutoff: int,
    *,
    refused: npt.NDArray[np.bool_] | None = None,
    carried: Carried | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
    samples: int = 0,
    forward: Forward | None = None,
    device: str = "cpu",
) -> Forecasts:
    """Return the forecasts of every series from grid index `cutoff`, which is anywhere: the panel may be part of one.

    With the weights of `artifact` itself, whatever its final fit.

    The ladder: fine-tuned, pretrained, seasonal naive where the model gives no finite forecast (no observation within
    its context) or means beyond ten times the range of the series' history, last value where there is no full season of
    late. Rejected are series without any observation up to
    the cutoff, those whose last one is older than `max_age`, and those that are `refused`, [S], for the known
    covariates that they lack. `samples`, `forward` and `carried` as in `predict`.
    """
    windows = windows_at(panel, cutoff)
    late = np.setdiff1d(np.arange(panel.n_series), windows.series)
    assert artifact.window.context_length is not None
    limit = age_limit(max_age, artifact.window.context_length, panel.grid, cutoff)
    over = have_ended(panel, windows, limit)
    ended, windows = windows[np.flatnonzero(over)], windows[np.flatnonzero(~over)]
    lacking = np.zeros(0, np.int64)
    if refused is not None:
        lacking = windows.series[refused[windows.series]]
        windows = windows[np.flatnonzero(~refused[windows.series])]
    predicted = predict(artifact, panel, windows, samples=samples, forward=forward, device=device, carried=carried)

    quantiles, mean = predicted.tuned.astype(np.float64), predicted.tuned_mean
    source = np.where(predicted.is_tuned, SOURCE_FINE_TUNED, SOURCE_PRETRAINED).astype(object)
    context = None if artifact.classes is not None else artifact.network.shape.context_length
    finite = _sound(quantiles, mean, panel, windows, context)
    back_to_base = ~finite & _sound(predicted.base, predicted.base_mean, panel, windows, context)
    quantiles[back_to_base], mean[back_to_base] = predicted.base[back_to_base], predicted.base_mean[back_to_base]
    source[back_to_base] = SOURCE_PRETRAINED
    fallen = np.flatnonzero(~finite & ~back_to_base)
    if len(fallen):
        season = artifact.network.shape.season_length
        naive = naive_forecasts(artifact, panel, windows[fallen])
        mean[fallen] = mean_of_naive(artifact, naive)
        if samples:
            drawn = naive_forecasts(artifact, panel, windows[fallen], points=samples)
            naive = np.concatenate([naive, drawn], axis=-1)
        quantiles[fallen] = naive
        end = np.minimum(windows.cutoff, panel.lengths[windows.series] - 1)[fallen]
        enough = (end >= season - 1) & (windows.cutoff[fallen] - end < season * SEASONS_BACK)
        source[fallen] = np.where(enough, SOURCE_SEASONAL_NAIVE, SOURCE_LAST_VALUE)
    given = _finite(quantiles, mean)

    frame = _frame(
        artifact,
        panel,
        windows[np.flatnonzero(given)],
        quantiles[given],
        mean[given],
        source[given],
        samples,
        cutoff,
        model_version,
    )
    rejects = pl.concat(
        [
            _rejects(panel, windows.series[~given], "no observation up to the cutoff"),
            _rejects(panel, late, "begins after the cutoff"),
            _rejects(panel, lacking, "known covariates missing over the horizon"),
            _rejects(panel, ended.series, ENDED, cutoff - ages(panel, ended)),
        ]
    )
    return Forecasts(frame, rejects)


def _finite(stated: np.ndarray, mean: np.ndarray) -> npt.NDArray[np.bool_]:
    """Return whether all that is said of a window is finite, [n]."""
    finite: npt.NDArray[np.bool_] = np.isfinite(stated).all((1, 2)) & np.isfinite(mean).all(1)
    return finite


def _sound(
    stated: np.ndarray, mean: DoubleArray, panel: Panel, windows: WindowIndex, context: int | None
) -> npt.NDArray[np.bool_]:
    """Return whether all that is said of a window is finite, and its means, [n, horizon], are plausible, [n].

    Those within ten times the range of the observations up to the cutoff are, on either side of them. Series of few
    observations, or of one value only, set no limit; nor do classes, whose `context` is None.
    """
    sound = _finite(stated, mean)
    if context is None or not sound.any():
        return sound
    first, end = panel.offsets[windows.series], np.minimum(windows.cutoff + 1, panel.lengths[windows.series])
    ago = end[:, None] - np.arange(1, min(context, _RECENT) + 1)
    recent = np.where(ago >= 0, panel.target[first[:, None] + np.maximum(ago, 0)], np.nan)
    # What is near the latest values is near the whole history, too, which few series have to be read for.
    limited, near = _near(mean, recent)
    for row in np.flatnonzero(sound & ~(limited & near)):
        limited, near = _near(mean[[row]], panel.target[None, first[row] : first[row] + end[row]])
        sound[row] = bool((near | ~limited)[0])
    return sound


def _near(mean: DoubleArray, values: np.ndarray) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return whether values, [n, step], set a limit: enough of them, which differ; and whether means are within it."""
    missing = np.isnan(values)
    least, most = np.where(missing, np.inf, values).min(1), np.where(missing, -np.inf, values).max(1)
    limited = ((~missing).sum(1) >= _FEW_OBSERVATIONS) & (most > least)
    margin = _PLAUSIBLE_RANGES * np.where(limited, most - least, 0.0)
    return limited, limited & (mean.min(1) >= least - margin) & (mean.max(1) <= most + margin)


def check_cutoff(panel: Panel, cutoff: int | None, key: str = "score.cutoff") -> int:
    """Return the grid index of a cutoff, the latest step of the panel when None; the setting is at `key`.

    Raises DataError if the panel ends before it, or begins after it.
    """
    final = panel.last_index
    cutoff = final if cutoff is None else cutoff
    if cutoff > final:
        there, asked = panel.grid.timestamps(np.array([final, cutoff])).to_list()
        raise DataError(
            f"the panel ends at {there}, before the cutoff {asked}; wait for the data, or set an earlier {key}"
        )
    if cutoff < panel.start.min():
        asked = panel.grid.timestamps(np.array([cutoff]))[0]
        raise DataError(f"no series has begun by the cutoff {asked}; set a later {key}")
    return cutoff


def _latest(panel: Panel, cutoff: int | None) -> tuple[int, WindowIndex]:
    """Return grid index and windows of the cutoff, the latest step of the panel when None."""
    cutoff = check_cutoff(panel, cutoff)
    return cutoff, windows_at(panel, cutoff)


@torch.inference_mode()
def attention(artifact: Artifact, panel: Panel, *, cutoff: int | None = None) -> pl.DataFrame:
    """Return how much each step of the encoder weighs in the forecasts from grid index `cutoff`, the latest when None.

    Columns: series_id, cutoff, timestamp (of the last row that the step takes in), step (0 at the cutoff, -1 before
    it), weight; a series' weights sum to 1, and are 0 before its start.

    Raises ConfigError for a model without attention, DataError as `forecast`.
    """
    if not artifact.model.attention:
        raise ConfigError("model.attention: this model was trained without; train one with model.attention=true")
    prepare()
    cutoff, windows = _latest(panel, cutoff)
    network = artifact.for_cutoff(cutoff).network
    data = PanelTensors.of(panel, network)
    shape = members_of(network)[0].shape  # A pretrained member may look further back, and has no weights.
    length, context = shape.segment_length, shape.context_length
    weights, indices = [], []
    for series, own, origins in validation_batches(windows, BATCH_SIZE):
        output = network(data.gather(series, own, own + 1, **window_sizes(network, 1)), origins)
        assert output.attention is not None
        weights.append(output.attention[:, 0].numpy())
        steps, _ = data.steps(series, own, torch.full_like(own, 1 - context), context)
        indices.append((data.start[series, None] + steps[:, length - 1 :: length]).numpy())
    weight, index = np.concatenate(weights), np.concatenate(indices)
    n, n_steps = weight.shape
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(
                np.repeat(np.arange(n), n_steps)
            ),
            CUTOFF: panel.grid.timestamps(np.array([cutoff])).gather(np.zeros(n * n_steps, dtype=np.int64)),
            TIMESTAMP: panel.grid.timestamps(index.ravel()),
            STEP: np.tile(np.arange(1 - n_steps, 1, dtype=np.int32), n),
            "weight": weight.ravel(),
        }
    )


def sample_paths(artifact: Artifact, panel: Panel, *, n: int | None = None, cutoff: int | None = None) -> pl.DataFrame:
    """Return `n` possible futures (model.n_paths when None) of every series from grid index `cutoff`.

    Columns: series_id, cutoff, path (1 to n), step, timestamp, value (a class of a model of classes). The steps of a
    path follow from one another where the decoder is autoregressive. Else each step has the distribution that is
    forecast, and they depend on each other as the errors did in validation (`copula`). All series and calls share their
    random numbers: paths of equal number are not independent. The cutoff is the latest step of the panel when None;
    series that begin later are left out, and values are null where the context of the model holds no observation.

    Raises ConfigError for a model that has no paths, DataError as `forecast`.
    """
    n = artifact.model.n_paths if n is None else n
    if n < 2:
        raise ConfigError(f"n: a sample has 2 paths or more, {n} asked for")
    cutoff, windows = _latest(panel, cutoff)
    artifact = sampling(artifact.for_cutoff(cutoff), n)
    made = predict(artifact, panel, windows, samples=n)
    found = np.moveaxis(made.tuned[..., -n:], -1, 1)
    n_series, n_paths, horizon = found.shape
    each = np.tile(np.arange(horizon), n_series * n_paths)
    value = pl.Series(found.astype(np.float64).ravel(), dtype=pl.Float64).fill_nan(None)
    if artifact.classes is not None:
        value = pl.Series(artifact.classes, dtype=pl.String).gather(value.cast(pl.Int64))
    ahead = panel.grid.timestamps(np.arange(cutoff, cutoff + horizon + 1))
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(
                np.repeat(np.arange(n_series), n_paths * horizon)
            ),
            CUTOFF: ahead[:1].gather(np.zeros(len(each), dtype=np.int64)),
            "path": np.tile(np.repeat(np.arange(1, n_paths + 1, dtype=np.int32), horizon), n_series),
            STEP: each.astype(np.int32) + 1,
            TIMESTAMP: ahead[1:].gather(each),
            VALUE: value,
        }
    )


def forecast_loaded(
    artifact: Artifact,
    loaded: Loaded,
    *,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
) -> Forecasts:
    """Return the forecasts of every series of a panel that `artifact` has read, with the rejects of rows and series.

    `cutoff` is the last timestamp a forecast may see, the latest of the panel when None. Series older than `max_age`
    are rejects.
    """
    at = None if cutoff is None else loaded.panel.grid.floor(cutoff)
    made = forecast(artifact, loaded.panel, cutoff=at, max_age=max_age, model_version=model_version)
    return Forecasts(made.frame, pl.concat([loaded.rejects, made.rejects]))


def forecast_frame(
    artifact: Artifact,
    frame: object,
    *,
    cutoff: datetime | None = None,
    max_age: MaxAge = AUTO,
    model_version: str = "",
) -> Forecasts:
    """Return the forecasts of every series in a Polars, pandas or Arrow table, as `forecast_loaded`.

    Raises DataError as `Artifact.read`.
    """
    rows = to_lazy(frame, used_columns(artifact.data).rows)
    loaded = artifact.read(rows, [cutoff])
    return forecast_loaded(artifact, loaded, cutoff=cutoff, max_age=max_age, model_version=model_version)


def example(artifact: Artifact) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return a made-up table that the model can read, and its forecasts: the model's signature, and how to call it."""
    columns, data = artifact.data.columns, artifact.data
    length = max(artifact.network.shape.season_length, 2) + 1
    steps = np.arange(artifact.trained_until - length + 1, artifact.trained_until + 1)
    values: Any = 10.0 + np.round(5.0 * np.sin(2 * np.pi * np.arange(length) / (length - 1)), 3)
    if artifact.classes is not None:
        values = [artifact.classes[step % len(artifact.classes)] for step in range(length)]
    wide = data.layout == "wide"
    table = pl.DataFrame(
        {
            **({} if wide else {columns.series_id: ["example"] * length}),
            columns.timestamp: artifact.grid.timestamps(steps),
            ("example" if wide else columns.target): values,
            **{
                name: [(artifact.categories[name] or ("",))[0] if name in artifact.categories else 0.0] * length
                for name in (
                    *data.past_covariates,
                    *data.known_covariates,
                    *(() if wide else data.static_covariates),
                )
            },
        }
    )
    return table, forecast_frame(artifact, table).frame


def _rejects(panel: Panel, series: np.ndarray, reason: str, index: IntArray | None = None) -> pl.DataFrame:
    """Return rejects of series; `index`, [n], has the grid indices of their timestamps, which are null without."""
    n, timestamp = len(series), panel.grid.timestamps(np.zeros(0, np.int64) if index is None else index)
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[series].tolist(), dtype=pl.String),
            TIMESTAMP: pl.repeat(None, n, dtype=timestamp.dtype, eager=True) if index is None else timestamp,
            REASON: pl.repeat(reason, n, dtype=pl.String, eager=True),
            VALUE: pl.repeat(None, n, dtype=pl.Float64, eager=True),
        }
    )


def _frame(
    artifact: Artifact,
    panel: Panel,
    windows: WindowIndex,
    quantiles: np.ndarray,
    mean: np.ndarray,
    source: np.ndarray,
    samples: int,
    cutoff: int,
    model_version: str,
) -> pl.DataFrame:
    n, horizon = len(windows), artifact.horizon
    classes = artifact.classes
    centre: dict[str, Any] = {MEAN: mean.ravel()}
    if classes is not None:
        centre = {CLASS: pl.Series(classes, dtype=pl.String).gather(mean.ravel().astype(np.int64))}
    ahead = panel.grid.timestamps(np.arange(cutoff, cutoff + horizon + 1))
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(
                np.repeat(np.arange(n), horizon)
            ),
            TIMESTAMP: ahead[1:].gather(np.tile(np.arange(horizon), n)),
            CUTOFF: ahead[:1].gather(np.zeros(n * horizon, dtype=np.int64)),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            **centre,
            **{
                name: quantiles[..., k].ravel()
                for k, name in enumerate((*stated_columns(artifact), *map(sample_column, range(samples))))
            },
            SOURCE: pl.Series(source.tolist(), dtype=pl.String).gather(np.repeat(np.arange(n), horizon)),
            MODEL_VERSION: pl.repeat(model_version, n * horizon, dtype=pl.String, eager=True),
        }
    )
