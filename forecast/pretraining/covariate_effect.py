"""The regression of a pretrained network's residuals on the covariates of a panel.

The effect as a module of the network is in `forecast.models.universal.covariates`.
"""

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

# Largest number of series, target number of windows, and bounds of the number of windows per series.
_MAX_SERIES, _TARGET_WINDOWS, _MIN_WINDOWS, _MAX_WINDOWS = 128, 768, 6, 90
# Ridge penalties, for columns with a variance of about 1; iterations of the fit; clip of residuals.
_PENALTIES, _ITERATIONS, _CLIP = (1e-3, 1e-2, 1e-1, 1.0), 2, 5.0
# Validation windows of a series, at least, and their share; steps of a level, at least.
_MIN_VALIDATION, _VALIDATION_SHARE, _MIN_LEVEL_STEPS = 3, 0.25, 8
# Smallest relative gain on validation, and largest p-value.
_MIN_GAIN, _MAX_P_VALUE = 0.005, 0.05


class _Windows(NamedTuple):
    """Windows with observed targets."""

    batches: list[tuple[Batch, Tensor]]
    age: Int[Tensor, " window"]
    """Number of horizons between the end of a window and the end of its series."""
    unit: Float[Tensor, " window"]
    """Standard deviation of the series."""

    @property
    def is_validation(self) -> Bool[Tensor, " window"]:
        """Mask of the validation windows: the latest quarter, at least three of each series."""
        return self.age <= max(_MIN_VALIDATION, int(_VALIDATION_SHARE * int(self.age.max())))


class _Errors(NamedTuple):
    """Errors of a network on windows, in units of each series' deviation."""

    residual: Float[Tensor, "window horizon"]
    """0 where not observed."""
    observed: Bool[Tensor, "window horizon"]
    loss: Float[Tensor, " window"]


@torch.no_grad()
def with_covariates(network: UniversalForecaster, panel: Panel) -> UniversalForecaster:
    """Return the network with a regression on the covariates of a panel; `network` itself without a significant gain.

    The coefficients, shared by all series, solve a ridge regression of the residuals at the last horizons of up to
    `_MAX_SERIES` series on the differences of covariates from earlier seasons. The regression is fitted on earlier
    windows in two iterations, because the network then forecasts the target without the effect; later windows validate
    the penalty and the gain. With a gain, all windows are fitted.
    """
    data = PanelTensors.of(panel, network)
    candidate = copy.deepcopy(network)
    effect = candidate.effect
    assert effect is not None
    windows = _windows(candidate, panel, data)
    if windows is None:
        _LOG.warning("covariates are not used: no series has the five horizons of history that it takes to judge them")
        return network
    validation, base = windows.is_validation, _errors(network, windows)
    regression = _regression(candidate, windows, base)
    best, solution, weight = base, None, regression.weight
    for _ in range(_ITERATIONS if regression.gains else 0):
        effect.set_coefficients(weight)
        errors = _errors(candidate, windows)
        if errors.loss[validation].sum() < best.loss[validation].sum():
            best, solution = errors, weight
        weight = weight + regression.solve(errors, ~validation, weight)
    gain = _gain(base, best, windows)
    if solution is None or not gain:
        _LOG.warning("covariates are not used: on validation they save less than half a percent, or not surely more")
        return network
    effect.set_coefficients(solution + regression.solve(best, torch.ones_like(validation), solution))
    _LOG.info("covariates save %.1f %% of the loss on %d windows of validation", 100 * gain, int(validation.sum()))
    return candidate


def _windows(network: UniversalForecaster, panel: Panel, data: PanelTensors) -> _Windows | None:
    """Return windows at the last horizons of some series, None if there are too few. Sets the scales of covariates."""
    horizon, context = network.shape.horizon, network.shape.context_length
    rows = np.arange(panel.n_series)[:: -(-panel.n_series // _MAX_SERIES)]
    count = int(np.clip(_TARGET_WINDOWS // len(rows), _MIN_WINDOWS, _MAX_WINDOWS))
    ends = panel.lengths[rows, None] - 1 - horizon * np.arange(1, count + 1)
    series, number = np.nonzero(ends >= horizon)
    if not len(series) or number.max() < _MIN_VALIDATION:
        return None
    assert network.effect is not None
    batches, units, moments = [], [], []
    for numbers, cutoff, origins in validation_batches(WindowIndex(rows[series], ends[series, number])):
        batch = data.gather(numbers, cutoff, cutoff + horizon + 1, **window_sizes(network, 1))
        units.append(deviation(batch.target[:, :context], batch.observed[:, :context], network.shape.season_length))
        columns = [values[:, :context] for values in Columns.of(batch)]
        n_present = torch.cat([torch.isfinite(values) for values in columns], -1).sum((0, 1))
        squares = torch.cat([differences(values, context) for values in columns], -1).double().square().sum((0, 1))
        moments.append(torch.stack([squares, n_present]))
        batches.append((batch, origins))
    squares, n_present = torch.stack(moments).sum(0)
    scale = (squares / n_present.clamp(min=1)).sqrt()
    network.effect.scale.copy_(torch.where(scale > 0, scale, 1.0))
    return _Windows(batches, torch.from_numpy(number + 1), torch.cat(units))


def _errors(network: UniversalForecaster, windows: _Windows) -> _Errors:
    """Return residuals and losses at observed steps of windows whose target varies."""
    parts, start = [], 0
    for batch, origins in windows.batches:
        output = network(batch, origins)
        target, observed = targets(batch, output.frame, origins, network.shape)
        unit = windows.unit[start : start + len(target), None, None]
        start += len(target)
        observed = observed & (unit > 0)
        size = output.frame.divisor[..., None] / torch.where(unit > 0, unit, 1.0)
        residual = (target - output.quantiles[..., len(network.head.levels) // 2]) * size * observed
        loss = network.head.errors(output.arguments, target) * size * observed
        parts.append((residual[:, 0], observed[:, 0], loss.sum((1, 2))))
    residual, observed, loss = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Errors(residual.double(), observed, loss.double())


class _Regression(NamedTuple):
    """A ridge regression of residuals on columns."""

    columns: Float[Tensor, "window horizon column"]
    penalty: float
    weight: Float[Tensor, " column"]
    gains: bool

    def solve(self, errors: _Errors, fitted: Bool[Tensor, " window"], weight: Tensor) -> Tensor:
        """Return the update of `weight`, whose residuals are those of `errors`, on the `fitted` windows."""
        return _solve(self.columns, errors, fitted, self.penalty, weight)


def _regression(network: UniversalForecaster, windows: _Windows, base: _Errors) -> _Regression:
    """Return the ridge regression of the residuals of a network without the effect.

    The network's implicit expectation of the covariates is unknown: candidates are their mean at the same phase of the
    last seasons, and that of the last steps. Earlier windows select the reference, later ones the penalty.
    """
    validation = windows.is_validation
    parts = [_columns(network, batch) for batch, _ in windows.batches]
    references = [torch.cat(columns).double() for columns in zip(*parts, strict=True)]

    def absolute_error(columns: Tensor, weight: Tensor, rows: Tensor) -> float:
        residual = base.residual[rows] - columns[rows] @ weight
        return float((residual.abs() * base.observed[rows]).sum())

    def solution(columns: Tensor, penalty: float) -> Tensor:
        return _solve(columns, base, ~validation, penalty, columns.new_zeros(columns.shape[-1]))

    columns = min(references, key=lambda part: absolute_error(part, solution(part, _PENALTIES[1]), ~validation))
    penalty = min(_PENALTIES, key=lambda value: absolute_error(columns, solution(columns, value), validation))
    weight = solution(columns, penalty)
    return _Regression(
        columns,
        penalty,
        weight,
        absolute_error(columns, weight, validation) < absolute_error(columns, 0 * weight, validation),
    )


def _solve(columns: Tensor, errors: _Errors, fitted: Tensor, penalty: float, weight: Tensor) -> Tensor:
    """Return the update of `weight` that minimises squared residuals plus `penalty` times the squared weights."""
    rows = columns[fitted][errors.observed[fitted]]
    residual = errors.residual[fitted][errors.observed[fitted]].clamp(-_CLIP, _CLIP)
    count = max(1, len(rows))
    identity = torch.eye(rows.shape[1], dtype=rows.dtype)
    product, moment = rows.T @ rows / count, rows.T @ residual / count
    change: Tensor = torch.linalg.solve(product + penalty * identity, moment - penalty * weight)
    return change


def _columns(network: UniversalForecaster, batch: Batch) -> list[Tensor]:
    """Return the columns of the regression for each reference, [window, horizon, column].

    These are known covariates as differences from the reference, the latest past covariates, and these divided by the
    steps ahead.
    """
    assert network.effect is not None
    shape, context = network.shape, network.shape.context_length
    known, past = network.effect.standardised(Columns.of(batch), context)
    ahead = torch.arange(1, shape.horizon + 1)
    last = past[:, context - 1 : context].expand(-1, shape.horizon, -1)
    past_columns = [last, last / ahead[:, None]]
    season = max(shape.season_length, _MIN_LEVEL_STEPS)
    references = [known[:, max(0, context - season) : context].mean(1, keepdim=True)]
    for steps in {shape.season_length, shape.second_season} - {0}:
        index = context - 1 + ahead - steps * ((ahead - 1) // steps + 1)
        valid = torch.stack([index - number * steps for number in range(SEASONS)])
        mean = (known[:, valid.clamp(min=0)] * (valid >= 0)[..., None]).sum(1)
        references.append(mean / (valid >= 0).sum(0).clamp(min=1)[:, None])
    references.append((references[0] + references[1]) / 2)
    return [torch.cat([known[:, context:] - reference, *past_columns], -1) for reference in references]


def _gain(base: _Errors, best: _Errors, windows: _Windows) -> float:
    """Return the saved share of the validation loss; 0 if it is small or not significant.

    Errors of series at one date are correlated, so the gain must be significant over windows and over dates.
    """
    validation = windows.is_validation
    gain, age = (base.loss - best.loss)[validation], windows.age[validation]
    dates = torch.stack([gain[age == number].sum() for number in age.unique()])
    share = float(gain.sum() / base.loss[validation].sum().clamp(min=1e-12))
    significant = max(_p_value(gain), _p_value(dates)) < _MAX_P_VALUE
    return share if share > _MIN_GAIN and significant else 0.0


def _p_value(gain: Float[Tensor, " part"]) -> float:
    """Return the p-value of the sum of `gain` (one-sided Student's t); 1 with a single part."""
    from scipy.special import stdtr

    count = len(gain)
    z = float(gain.sum() / (count**0.5 * gain.std()).clamp(min=1e-12)) if count > 1 else 0.0
    return float(stdtr(count - 1, -z)) if count > 1 else 1.0
