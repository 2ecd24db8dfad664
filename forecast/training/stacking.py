"""How much a pretrained network counts in the forecasts of a model that was trained on the panel."""

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
from forecast.models.inputs.frame import loss_weights, targets
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

# Windows of validation that are looked at, and the shares that are tried: the panel's network always counts.
_CHECKS = 1024
_SHARES = torch.linspace(0, 0.9, 19, dtype=torch.float64)
# What a share of 0 must save of the loss of one window, of two of them a half, to be preferred to the middle.
_PRIOR = 0.25
# A share that saves less of the loss is not worth the time that it takes in scoring.
_LEAST_GAIN = 0.005


@dataclass(frozen=True)
class PretrainedStack:
    """A pretrained network, and its share in the forecasts of a model.

    The weights are the same beside the evaluated weights of the model and beside the final ones.
    """

    network: UniversalForecaster | None
    share: float
    interval_scale: float = 1.0
    """What the intervals of the mean are multiplied by."""
    blend: float | None = None
    """How far its weights have moved towards those that it was trained to on the panel (`MemberFit`); None where it was
    not."""
    loss: float = math.nan
    """Of the mean on windows of validation."""
    forecasts: Sequence[HeldOutForecasts] = ()
    """Of the mean on windows of validation, for those who look at them next."""

    def summary(self, summary: Mapping[str, float | int | str]) -> dict[str, float]:
        """Return what is to be told of the mean, after the `summary` of the panel's own networks."""
        told = {"pretrained_share": self.share} | ({} if self.blend is None else {"pretrained_blend": self.blend})
        if not self.share:
            return told
        return told | {
            "val/loss": self.loss,
            "interval_scale": float(summary["interval_scale"]) * self.interval_scale,
        }

    def beside(self, network: Forecaster) -> Forecaster:
        """Return the mean of networks of the panel and the pretrained one; `network` itself without a share."""
        if self.network is None or not self.share:
            return network
        own = members_of(network)
        members = [copy.deepcopy(member).cpu() for member in (*own, self.network)]
        for member in members:
            member.interval_scale.mul_(self.interval_scale)
        return as_ensemble(members, [*[(1 - self.share) / len(own)] * len(own), self.share])


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
    """Return a pretrained network, given itself or by name, with the share that validates best beside `network`.

    None without `init`, and of models that no mean with it can be taken of: with paths, or another head than quantiles.
    """
    plain = isinstance(network.head, QuantileHead) and network.n_paths == 1 and network.shape.horizon <= MAX_HORIZON
    if init is None or not plain:
        return PretrainedStack(None, 0.0)
    own = members_of(network)[0]
    cold_scale = None if own.shape.unit else own.cold_scale
    pretrained = universal_member(init, panel, own.shape, model, limits, cold_scale=cold_scale).to(data.device)
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
        forecasts = [_stretched(each, mean, scale) for each in forecasts]
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
    both = Ensemble([*members_of(network), pretrained]).eval()
    total = torch.zeros_like(_SHARES)
    for indices in validation_batches(windows):
        series, cutoff, origins = (values.to(data.device) for values in indices)
        batch = data.gather(series, cutoff, cutoff + both.shape.horizon + 1, **window_sizes(both, 1))
        (*own, other), frame = both.member_quantiles(batch, origins)
        target, observed = targets(batch, frame, origins, both.shape)
        weight, mean = loss_weights(target, observed, frame, both.shape), torch.stack(own).mean(0)
        for number, share in enumerate(_SHARES.tolist()):
            total[number] += float((both.head.errors(torch.lerp(mean, other, share), target) * weight).sum())
    if not total.any():
        return 0.5
    n_windows = max(1.0, len(windows) / overlap(windows, both.shape.horizon))
    loss = total / total[0].clamp(min=1e-12) + 4 * _PRIOR / n_windows * (_SHARES - 0.5) ** 2
    best = int(loss.argmin())
    return float(_SHARES[best]) if loss[best] < loss[0] - _LEAST_GAIN else 0.0
