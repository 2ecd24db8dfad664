"""The share of a pretrained network in the forecasts of a model that was trained on the panel."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from forecast.config import ModelConfig
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, overlap
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import PanelTensors
from forecast.models.inputs.frame import loss_weights, target_weights, targets
from forecast.models.network.ensemble import Ensemble, Forecaster, as_ensemble, members_of
from forecast.models.network.losses import (
    HeldOutForecasts,
    forecast_loss,
    held_out_forecasts,
    validation_batches,
    window_sizes,
)
from forecast.models.postprocess.interval_scale import interval_scale_from
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.models.universal.forecasting import MAX_HORIZON
from forecast.pretraining.pretrained_network import PretrainedNetwork
from forecast.pretraining.zero_shot import universal_member
from forecast.training.member_fit import MemberFit

# Most validation windows, and the shares to try: the panel's network always has one.
_CHECKS = 1024
_SHARES = torch.linspace(0, 0.9, 19, dtype=torch.float64)
# Loss of one window that a share of 0 must save to be preferred to the middle; half of it with two windows.
_PRIOR = 0.25
# A share that saves less of the loss is not worth its time in scoring.
_LEAST_GAIN = 0.005


@dataclass(frozen=True)
class PretrainedStack:
    """A pretrained network, and its share in the forecasts of a model.

    The weights are the same beside the evaluated weights of the model and beside the final ones.
    """

    network: UniversalForecaster | None
    share: float
    interval_scale: float = 1.0
    """Factor of the intervals of the mean."""
    blend: float | None = None
    """Share of the weights trained on the panel (`MemberFit`); None without such a training."""
    loss: float = math.nan
    """Loss of the mean on validation windows."""
    forecasts: Sequence[HeldOutForecasts] = ()
    """Forecasts of the mean on validation windows, for later steps."""

    def summary(self, summary: Mapping[str, float | int | str]) -> dict[str, float]:
        """Return the figures of the mean, which update the `summary` of the panel's networks."""
        figures = {"pretrained_share": self.share} | ({} if self.blend is None else {"pretrained_blend": self.blend})
        if not self.share:
            return figures
        return figures | {
            "val/loss": self.loss,
            "interval_scale": float(summary["interval_scale"]) * self.interval_scale,
        }

    def beside(self, network: Forecaster) -> Forecaster:
        """Return the weighted mean of the panel's networks and the pretrained one; `network` for a share of 0."""
        if self.network is None or not self.share:
            return network
        networks = members_of(network)
        members = [copy.deepcopy(member).cpu() for member in (*networks, self.network)]
        for member in members:
            member.interval_scale.mul_(self.interval_scale)
        return as_ensemble(members, [*[(1 - self.share) / len(networks)] * len(networks), self.share])


def stack_pretrained(
    init: PretrainedNetwork | str | None,
    network: Forecaster,
    data: PanelTensors,
    validation: WindowIndex,
    *,
    panel: Panel,
    limits: IntArray,
    model: ModelConfig,
    member_fit: MemberFit | None = None,
) -> PretrainedStack:
    """Return a pretrained network (`init`, or its name) with the share that validates best beside `network`.

    The share is 0 without `init`, and for models that have no mean with it: with paths, or a head other than quantiles.
    """
    plain = isinstance(network.head, QuantileHead) and network.n_paths == 1 and network.shape.horizon <= MAX_HORIZON
    if init is None or not plain:
        return PretrainedStack(None, 0.0)
    first_member = members_of(network)[0]
    cold_scale = None if first_member.shape.unit else first_member.cold_scale
    pretrained = universal_member(init, panel, first_member.shape, model, limits, cold_scale=cold_scale).to(data.device)
    blend = None
    if member_fit is not None:
        pretrained, blend = member_fit.run(pretrained, data, validation)
    share = share_of(pretrained, network, data, validation)
    if not share:
        return PretrainedStack(None, 0.0, blend=blend)
    mean = PretrainedStack(pretrained, share).beside(network).to(data.device)
    with torch.inference_mode():
        forecasts = list(held_out_forecasts(mean, data, validation))
        scale = interval_scale_from(forecasts, mean, validation)
        forecasts = [_stretched(batch, mean, scale) for batch in forecasts]
        return PretrainedStack(pretrained.cpu(), share, scale, blend, forecast_loss(mean, forecasts), forecasts)


def _stretched(forecasts: HeldOutForecasts, network: Forecaster, scale: float) -> HeldOutForecasts:
    output = forecasts.output
    arguments = network.head.scale_width(output.arguments, torch.tensor(scale))
    return forecasts._replace(output=output._replace(arguments=arguments))


@torch.inference_mode()
def share_of(pretrained: UniversalForecaster, network: Forecaster, data: PanelTensors, windows: WindowIndex) -> float:
    """Return the share of `pretrained` in its mean with `network` that forecasts windows of validation best.

    0 where it saves next to nothing. The loss of shares away from the middle is taken for higher, the fewer windows
    there are: the mean of two forecasts is a good one unless one is known to be bad (Bates & Granger 1969, Operational
    Research Quarterly 20).
    """
    windows = windows[:: max(1, len(windows) // _CHECKS)]
    mean_of_both = Ensemble([*members_of(network), pretrained]).eval()
    total = torch.zeros_like(_SHARES)
    for indices in validation_batches(windows):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        batch = data.gather(series, cutoff, cutoff + mean_of_both.shape.horizon + 1, **window_sizes(mean_of_both, 1))
        (*panel_quantiles, rival), frame = mean_of_both.member_quantiles(batch, origins)
        target, observed = targets(batch, frame, origins, mean_of_both.shape)
        weight = target_weights(batch, origins, mean_of_both.shape)
        weight = loss_weights(target, observed, frame, mean_of_both.shape, weight)
        mean = torch.stack(panel_quantiles).mean(0)
        for number, share in enumerate(_SHARES.tolist()):
            total[number] += float((mean_of_both.head.errors(torch.lerp(mean, rival, share), target) * weight).sum())
    if not total.any():
        return 0.5
    n_windows = max(1.0, len(windows) / overlap(windows, mean_of_both.shape.horizon))
    loss = total / total[0].clamp(min=1e-12) + 4 * _PRIOR / n_windows * (_SHARES - 0.5) ** 2
    best = int(loss.argmin())
    return float(_SHARES[best]) if loss[best] < loss[0] - _LEAST_GAIN else 0.0
