"""Conversion of the network's output to quantiles, samples and means in units of the target."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.data.panel import FloatArray
from forecast.metrics.scores import midpoints
from forecast.models.adapters.bank import HEAD, AdapterBank, head_features
from forecast.models.heads import log_quantiles
from forecast.models.heads.base import Head, mean_distance
from forecast.models.heads.categorical import CategoricalHead
from forecast.models.heads.quantile import QuantileHead
from forecast.models.heads.sampled import SampledHead
from forecast.models.inputs.batch import Batch
from forecast.models.inputs.frame import Frame
from forecast.models.inputs.transform import to_data
from forecast.models.network.ensemble import Forecaster, require_tunable
from forecast.models.network.output import EncoderState, Output
from forecast.prediction.result import DoubleArray

# Number of quantiles whose average is the mean of a distribution on a logarithmic scale.
_N_MEAN_POINTS = 100


class ForecastSpec(NamedTuple):
    """The columns of a forecast."""

    levels: torch.Tensor | None = None
    """Levels of the quantiles; those of the model when None."""
    n_samples: int = 0
    """Number of sample paths."""

    def n_columns(self, artifact: Artifact) -> int:
        """Return the number of quantiles or classes."""
        return len(artifact.columns if self.levels is None else self.levels)


class OriginBatch(NamedTuple):
    """A batch of windows, and the network's output at each of their origins."""

    batch: Batch
    origins: torch.Tensor
    output: Output
    positions: torch.Tensor | None
    """`PanelTensors.horizon_positions`, a row per window and origin."""
    states: Sequence[EncoderState] | None = None
    """The encoder states that the output was computed from."""


class SeriesRows(NamedTuple):
    """Rows of series in what an artifact holds per series, [row] each."""

    adapter: torch.Tensor
    """In the bank; -1 for none."""
    calibration: torch.Tensor


def series_rows(artifact: Artifact, series_id: Sequence[str]) -> SeriesRows:
    """Return the rows of each series in the bank and in the calibration, [S] both."""
    rows = artifact.bank.rows(series_id) if artifact.bank else torch.full((len(series_id),), -1)
    return SeriesRows(rows, artifact.calibration.rows(series_id) if artifact.calibration else rows)


def postprocess(
    artifact: Artifact, windows: OriginBatch, rows: SeriesRows, spec: ForecastSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return forecasts in the units of the target: of the shared network, and with changes and calibration per series.

    [row, horizon, column] both, a row for each window and origin (`Output.by_origin`): quantiles or probabilities,
    samples, and points whose average is the mean (`mean_of`). Both are one tensor where no series has changes.
    Gradients pass through where they pass through the head's quantiles.
    """
    head, unit, n_columns = artifact.network.head, artifact.network.shape.unit, spec.n_columns(artifact)
    batch, origins, output, positions, _ = windows
    columns = _columns(output, unit, spec)
    level = None if batch.level is None else batch.level.repeat_interleave(len(origins))
    base = in_data_units(columns, output.frame, positions, unit, level)
    bank_row, tuned = rows.adapter.to(base.device), base
    if artifact.bank is not None and (torch.onnx.is_in_onnx_export() or bool((bank_row >= 0).any())):
        tuned_columns = _columns_with_changes(artifact.bank, artifact.network, windows, columns, bank_row, spec)
        tuned = in_data_units(tuned_columns, output.frame, positions, unit, level)
        tuned = torch.where((bank_row >= 0)[:, None, None], tuned, base)
    base, tuned = _change_both(lambda values: _within_support(values, n_columns + spec.n_samples, head), base, tuned)
    if artifact.calibration:
        quantiles, remaining = tuned[..., :n_columns], tuned[..., n_columns:]
        quantiles = artifact.calibration.applied(quantiles, rows.calibration, spec.levels, whole=head.counts)
        tuned = torch.cat([head.within_support(quantiles), remaining], dim=-1)
    if spec.n_samples and isinstance(output.head, QuantileHead):
        levels = torch.tensor(midpoints(spec.n_samples), dtype=torch.float64, device=base.device)
        quantile_head = output.head
        base, tuned = _change_both(
            lambda values: torch.cat([values, _sample_quantiles(quantile_head, values, levels, unit)], dim=-1),
            base,
            tuned,
        )
    return base, tuned


def _change_both(
    change: Callable[[torch.Tensor], torch.Tensor], base: torch.Tensor, tuned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both after a change, which is made once if they are one tensor."""
    changed = change(base)
    return changed, changed if tuned is base else change(tuned)


def _sample_quantiles(head: QuantileHead, quantiles: torch.Tensor, levels: torch.Tensor, unit: float) -> torch.Tensor:
    """Return quantiles at `levels` of the distribution through `quantiles`, the one whose mean `mean_of` returns."""
    return log_quantiles.at_levels(quantiles, head.levels, levels, unit) if unit else head.quantiles(quantiles, levels)


def _within_support(columns: torch.Tensor, n_values: int, head: Head) -> torch.Tensor:
    """Return columns clipped to the support of the target: the first `n_values` as values, the rest as means."""
    values, points = columns[..., :n_values], columns[..., n_values:]
    return torch.cat([head.within_support(values), head.within_support(points, rounded=False)], dim=-1)


def _columns_with_changes(
    bank: AdapterBank,
    network: Forecaster,
    windows: OriginBatch,
    columns: torch.Tensor,
    rows: torch.Tensor,
    spec: ForecastSpec,
) -> torch.Tensor:
    """Return the columns with the changes of each series at `rows` of the bank, by origin; unchanged for row -1."""
    batch, origins, output, _, states = windows
    if torch.onnx.is_in_onnx_export():  # All rows: the caller drops those of series without changes.
        return bank.shifted(network.head, columns, head_features(output, network.shape)[:, 0], rows.clamp(min=0))
    tuned = torch.nonzero(rows >= 0).flatten()
    result, bank_rows = columns.clone(), rows[tuned].cpu()
    if bank.kind == HEAD:
        features = head_features(output, network.shape)[tuned, 0]
        result[tuned] = bank.shifted(network.head, columns[tuned], features, bank_rows)
    else:
        member, share = require_tunable(network)
        window = tuned[:: len(origins)] // len(origins)  # Each origin of a window is a row.
        state = states[0].rows(window) if states else None  # A pretrained network alone has none.
        tuned_batch = batch.rows(window).since(network.shape.context_length - member.shape.context_length)
        arguments = bank.arguments(member, tuned_batch, origins, bank_rows[:: len(origins)], state)
        arguments = arguments.flatten(0, 1)[:, None]
        if share < 1:  # The other members of the ensemble are unchanged.
            unchanged = member(tuned_batch, origins, None if state is None else [state])
            arguments = output.arguments[tuned] + share * (arguments - unchanged.arguments.flatten(0, 1)[:, None])
        result[tuned] = _columns(output._replace(arguments=arguments), network.shape.unit, spec)
    return result


def _columns(output: Output, unit: float, spec: ForecastSpec) -> torch.Tensor:
    """Return [batch, horizon, column]: quantiles, samples, and points whose average, in data units, is the mean.

    For classes, probabilities and samples. With `spec.levels`, the quantiles alone. Changes of a series apply to all
    columns.

    There are no points where the mean follows from the forecast quantiles: with quantile heads, and with all heads on a
    logarithmic scale, where a normal distribution is represented by its quantiles and Student-t has no mean. On that
    scale, points are the values of sampled paths, if any, or a grid of quantiles if only one is forecast. Quantile
    heads have no samples here: these are interpolated from the forecast quantiles.
    """
    head, arguments = output.head, output.arguments[:, 0]
    if spec.levels is not None:
        return head.quantiles(arguments, spec.levels.to(arguments.device))
    samples = [_samples(output, spec.n_samples)] if spec.n_samples and not isinstance(head, QuantileHead) else []
    if isinstance(head, CategoricalHead):
        return torch.cat([head.predicted(arguments), *samples], dim=-1)
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
        points.append(
            head.quantiles(arguments, (torch.arange(_N_MEAN_POINTS, device=arguments.device) + 0.5) / _N_MEAN_POINTS)
        )
    return torch.cat([head.quantiles(arguments), *samples, *points], dim=-1)


def _samples(output: Output, count: int) -> torch.Tensor:
    """Return [batch, horizon, sample]: paths of a decoder that samples them, else quantiles at `midpoints`."""
    if output.paths is not None and isinstance(output.head, SampledHead | CategoricalHead):
        return output.paths[:, 0, :count].mT
    arguments = output.arguments[:, 0]
    return output.head.quantiles(arguments, torch.tensor(midpoints(count), device=arguments.device))


def split_columns(
    columns: torch.Tensor, spec: ForecastSpec, order: torch.Tensor | None, artifact: Artifact
) -> tuple[FloatArray, DoubleArray]:
    """Return quantiles (or probabilities) followed by samples, [n, horizon, column], and the mean, [n, horizon].

    `order`, [horizon, sample], is the index of the sample that each path takes at a step.
    """
    n_columns = spec.n_columns(artifact)
    quantiles, samples, points = columns.tensor_split([n_columns, n_columns + spec.n_samples], dim=-1)
    if order is not None:
        samples = samples.gather(-1, order.expand(samples.shape))
    mean = published_mean(artifact, quantiles, points).cpu().numpy()
    if spec.n_samples:
        return torch.cat([quantiles, samples], dim=-1).cpu().numpy(), mean
    return np.ascontiguousarray(quantiles.cpu().numpy()), mean


def published_mean(artifact: Artifact, columns: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the means of the model's forecasts, [...]: `mean_of` their columns, with the mean shift of training."""
    network = artifact.network
    mean = mean_of(columns, points, network.head, network.shape.unit)
    if network.mean_shift and not isinstance(network.head, CategoricalHead):
        mean = mean + network.mean_shift.to(mean) * mean_distance(columns, mean, network.head, network.shape.unit)
    return network.head.within_support(mean) if network.head.nonnegative and not network.head.counts else mean


def mean_of(columns: torch.Tensor, points: torch.Tensor, head: Head, unit: float = 0.0) -> torch.Tensor:
    """Return the means of forecasts in float64, [...]: of their points or, without points, of their columns.

    The mean of quantiles is that of a distribution on the scale of the model; a `unit` other than 0 means a logarithmic
    scale (`log_quantiles`). For classes it is the code of the most probable one.
    """
    if points.shape[-1]:
        return points.double().mean(-1)
    if isinstance(head, CategoricalHead):
        return columns.argmax(-1).double()
    if columns.shape[-1] != len(head.levels):
        return columns.double().mean(-1)
    if unit:
        return log_quantiles.mean(columns, head.levels, unit)
    # Relative to the median, so that the mean of equal numbers is exactly that number.
    middle = columns[..., head.median].double()
    return middle + (columns.double() - middle[..., None]) @ head.mean_weights.double().to(columns.device)


def in_data_units(
    columns: torch.Tensor,
    frame: Frame,
    positions: torch.Tensor | None,
    unit: float,
    level: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return [batch, horizon, column] by step, in the units of the target; NaN for windows without an observation.

    `level`, [batch], was subtracted from the target (`Batch.level`); with it the result is float64.
    """
    if positions is not None:  # The columns are by positions of the local clock so far.
        columns = columns.gather(1, positions[..., None].expand(-1, -1, columns.shape[-1]))
    location, scale, begun = (values[:, 0, None, None] for values in (frame.location, frame.scale, frame.begun))
    if level is not None:
        level = level[:, None, None]
    return to_data(location + scale * columns, unit, level).masked_fill(~begun, torch.nan)
