"""What covariates add to the forecasts of a pretrained network, from the panel that it is to forecast."""

import copy
import logging
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.batch import Batch, PanelTensors
from forecast.models.inputs.frame import targets
from forecast.models.network.losses import validation_batches, window_sizes
from forecast.models.universal.covariates import Columns, deviation, differences
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.models.universal.history import SEASONS

_LOG = logging.getLogger(__name__)

# Series and windows that are read, and the windows of one series.
_SERIES, _WINDOWS, _LEAST, _MOST = 128, 768, 6, 90
# Penalties, for columns with a variance of about 1; steps towards the solution; residuals count at most so much.
_PENALTIES, _STEPS, _CLIP = (1e-3, 1e-2, 1e-1, 1.0), 2, 5.0
# Windows of a series that judge, at least, and their share; steps of a level, at least.
_CHECKED, _SHARE, _LEVEL = 3, 0.25, 8
# What the loss on validation must fall by, and how likely chance may be.
_LEAST_GAIN, _CHANCE = 0.005, 0.05


class _Windows(NamedTuple):
    """Windows whose targets are known."""

    batches: list[tuple[Batch, Tensor]]
    age: Int[Tensor, " window"]
    """How many horizons before the end of its series a window ends."""
    unit: Float[Tensor, " window"]
    """Deviation of the series."""

    @property
    def is_checked(self) -> Bool[Tensor, " window"]:
        """Those that judge: the latest quarter, at least three of each series."""
        return self.age <= max(_CHECKED, int(_SHARE * int(self.age.max())))


class _Errors(NamedTuple):
    """Of a network on windows, in units of the deviation of each series."""

    residual: Float[Tensor, "window horizon"]
    """0 where not observed."""
    observed: Bool[Tensor, "window horizon"]
    loss: Float[Tensor, " window"]


@torch.no_grad()
def with_covariates(network: UniversalForecaster, panel: Panel) -> UniversalForecaster:
    """Return a network with its regression on the covariates of a panel; `network` itself if they save next to nothing.

    The coefficients, the same for all series, are a ridge solution: of the residuals at the last horizons of up to
    `_SERIES` series on what covariates differ by from earlier seasons. Earlier windows are fitted, in two steps, since
    the network sees each time what is left without the effect; later ones choose the penalty and judge. Where they
    gain, all windows are fitted.
    """
    data = PanelTensors.of(panel, network)
    changed = copy.deepcopy(network)
    effect = changed.effect
    assert effect is not None
    windows = _windows(changed, panel, data)
    if windows is None:
        _LOG.warning("covariates are not used: no series has the five horizons of history that it takes to judge them")
        return network
    checked, base = windows.is_checked, _errors(network, windows)
    regression = _regression(changed, windows, base)
    best, solution, weight = base, None, regression.weight
    for _ in range(_STEPS if regression.gains else 0):
        effect.set_coefficients(weight)
        errors = _errors(changed, windows)
        if errors.loss[checked].sum() < best.loss[checked].sum():
            best, solution = errors, weight
        weight = weight + regression.solve(errors, ~checked, weight)
    gain = _gain(base, best, windows)
    if solution is None or not gain:
        _LOG.warning("covariates are not used: on validation they save less than half a percent, or not surely more")
        return network
    effect.set_coefficients(solution + regression.solve(best, torch.ones_like(checked), solution))
    _LOG.info("covariates save %.1f %% of the loss on %d windows of validation", 100 * gain, int(checked.sum()))
    return changed


def _windows(network: UniversalForecaster, panel: Panel, data: PanelTensors) -> _Windows | None:
    """Return the last horizons of some series, and set the scales of covariates; None where there are too few."""
    horizon, context = network.shape.horizon, network.shape.context_length
    rows = np.arange(panel.n_series)[:: -(-panel.n_series // _SERIES)]
    count = int(np.clip(_WINDOWS // len(rows), _LEAST, _MOST))
    ends = panel.lengths[rows, None] - 1 - horizon * np.arange(1, count + 1)
    series, number = np.nonzero(ends >= horizon)
    if not len(series) or number.max() < _CHECKED:
        return None
    assert network.effect is not None
    batches, units, moments = [], [], []
    for numbers, cutoff, origins in validation_batches(WindowIndex(rows[series], ends[series, number])):
        batch = data.gather(numbers, cutoff, cutoff + horizon + 1, **window_sizes(network, 1))
        units.append(deviation(batch.target[:, :context], batch.observed[:, :context], network.shape.season_length))
        columns = [values[:, :context] for values in Columns.of(batch)]
        there = torch.cat([torch.isfinite(values) for values in columns], -1).sum((0, 1))
        squares = torch.cat([differences(values, context) for values in columns], -1).double().square().sum((0, 1))
        moments.append(torch.stack([squares, there]))
        batches.append((batch, origins))
    squares, there = torch.stack(moments).sum(0)
    scale = (squares / there.clamp(min=1)).sqrt()
    network.effect.scale.copy_(torch.where(scale > 0, scale, 1.0))
    return _Windows(batches, torch.from_numpy(number + 1), torch.cat(units))


def _errors(network: UniversalForecaster, windows: _Windows) -> _Errors:
    """Return residuals and losses; of all steps that are observed and follow steps that vary."""
    parts, begin = [], 0
    for batch, origins in windows.batches:
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        unit = windows.unit[begin : begin + len(target), None, None]
        begin += len(target)
        observed = observed & (unit > 0)
        size = output.frame.divisor[..., None] / torch.where(unit > 0, unit, 1.0)
        residual = (target - output.quantiles[..., len(network.head.levels) // 2]) * size * observed
        loss = network.head.errors(output.arguments, target) * size * observed
        parts.append((residual[:, 0], observed[:, 0], loss.sum((1, 2))))
    residual, observed, loss = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Errors(residual.double(), observed, loss.double())


class _Regression(NamedTuple):
    """Residuals on columns."""

    columns: Float[Tensor, "window horizon column"]
    penalty: float
    weight: Float[Tensor, " column"]
    gains: bool

    def solve(self, errors: _Errors, fitted: Bool[Tensor, " window"], weight: Tensor) -> Tensor:
        """Return what is to be added to a weight, whose residuals are those of `errors`."""
        return _solve(self.columns, errors, fitted, self.penalty, weight)


def _regression(network: UniversalForecaster, windows: _Windows, base: _Errors) -> _Regression:
    """Return the ridge regression of the residuals of a network without the effect.

    What it takes covariates to be has left no trace but its residuals: the mean of the same phase of the last seasons,
    or that of the last steps. Which of them, earlier windows choose, and later ones the penalty.
    """
    checked = windows.is_checked
    parts = [_columns(network, batch) for batch, _ in windows.batches]
    references = [torch.cat(columns).double() for columns in zip(*parts, strict=True)]

    def left(columns: Tensor, weight: Tensor, rows: Tensor) -> float:
        rest = base.residual[rows] - columns[rows] @ weight
        return float((rest.abs() * base.observed[rows]).sum())

    def solution(columns: Tensor, penalty: float) -> Tensor:
        return _solve(columns, base, ~checked, penalty, columns.new_zeros(columns.shape[-1]))

    columns = min(references, key=lambda each: left(each, solution(each, _PENALTIES[1]), ~checked))
    penalty = min(_PENALTIES, key=lambda each: left(columns, solution(columns, each), checked))
    weight = solution(columns, penalty)
    return _Regression(columns, penalty, weight, left(columns, weight, checked) < left(columns, 0 * weight, checked))


def _solve(columns: Tensor, errors: _Errors, fitted: Tensor, penalty: float, weight: Tensor) -> Tensor:
    """Return the change of a weight that leaves least squares and `penalty` times those of the weight."""
    rows = columns[fitted][errors.observed[fitted]]
    residual = errors.residual[fitted][errors.observed[fitted]].clamp(-_CLIP, _CLIP)
    count = max(1, len(rows))
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    product, moment = rows.T @ rows / count, rows.T @ residual / count
    change: Tensor = torch.linalg.solve(product + penalty * identity, moment - penalty * weight)
    return change


def _columns(network: UniversalForecaster, batch: Batch) -> list[Tensor]:
    """Return the columns of the regression by each reference, [window, horizon, column].

    Known covariates as differences from it, then the latest past ones, and these by the steps ahead.
    """
    assert network.effect is not None
    shape, context = network.shape, network.shape.context_length
    known, past = network.effect.standardised(Columns.of(batch), context)
    ahead = torch.arange(1, shape.horizon + 1)
    last = past[:, context - 1 : context].expand(-1, shape.horizon, -1)
    others = [last, last / ahead[:, None]]
    season = max(shape.season_length, _LEVEL)
    references = [known[:, max(0, context - season) : context].mean(1, keepdim=True)]
    for steps in {shape.season_length, shape.second_season} - {0}:
        index = context - 1 + ahead - steps * ((ahead - 1) // steps + 1)
        valid = torch.stack([index - number * steps for number in range(SEASONS)])
        mean = (known[:, valid.clamp(min=0)] * (valid >= 0)[..., None]).sum(1)
        references.append(mean / (valid >= 0).sum(0).clamp(min=1)[:, None])
    references.append((references[0] + references[1]) / 2)
    return [torch.cat([known[:, context:] - each, *others], -1) for each in references]


def _gain(base: _Errors, best: _Errors, windows: _Windows) -> float:
    """Return the share of the loss on validation that is saved; 0 where it is small, or no more than chance.

    Series of one date share what happens there. So it must be surely better over windows, and over dates.
    """
    checked = windows.is_checked
    gain, age = (base.loss - best.loss)[checked], windows.age[checked]
    dates = torch.stack([gain[age == number].sum() for number in age.unique()])
    share = float(gain.sum() / base.loss[checked].sum().clamp(min=1e-12))
    sure = max(_chance(gain), _chance(dates)) < _CHANCE
    return share if share > _LEAST_GAIN and sure else 0.0


def _chance(gain: Float[Tensor, " part"]) -> float:
    """Return how likely a sum of this size is without any gain (Student's t); 1 where there is one part alone."""
    from scipy.special import stdtr

    count = len(gain)
    z = float(gain.sum() / (count**0.5 * gain.std()).clamp(min=1e-12)) if count > 1 else 0.0
    return float(stdtr(count - 1, -z)) if count > 1 else 1.0
