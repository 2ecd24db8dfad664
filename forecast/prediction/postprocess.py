"""From the network's output to numbers in units of the target: quantiles, samples, means."""

from collections.abc import Sequence

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.data.panel import FloatArray
from forecast.metrics.scores import midpoints
from forecast.models.adapters.bank import HEAD, Bank, head_features
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
from forecast.names import class_column, quantile_column
from forecast.prediction.result import DoubleArray

# Quantiles whose average is the mean of a distribution on a logarithmic scale.
_POINTS = 100


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
    pasts: Sequence[EncoderState] | None = None,
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
    pasts: Sequence[EncoderState] | None,
) -> torch.Tensor:
    """Return the columns with the changes of each series, whose rows are by origin; as they are for row -1."""
    known = torch.nonzero(rows >= 0).flatten()
    result, own = columns.clone(), rows[known].cpu()
    if bank.kind == HEAD:
        features = head_features(output, network.shape)[known, 0]
        result[known] = bank.shifted(network.head, columns[known], features, own)
    else:
        member, share = require_tunable(network)
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
        return torch.cat([head.predicted(arguments), *drawn], dim=-1)
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


def split_columns(
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
