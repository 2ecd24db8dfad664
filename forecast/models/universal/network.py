"""The network: patches of a series in, quantiles of the steps after each patch out."""

import math
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from forecast.models.runtime.torch_setup import flushed_denormals
from forecast.models.universal.candidates import NAMES, candidates, lookup, past_errors
from forecast.models.universal.filters import smooth
from forecast.models.universal.gate import SHARPNESS, Evidence, evidence
from forecast.models.universal.history import SEASONS, History, Window, history, lagged

PATCH = 8
"""Steps that the recurrent cell takes at a time."""
LEVELS = (0.025, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.975)
MEDIAN = LEVELS.index(0.5)
# Distances between the quantiles of a normal distribution, from the median outwards, over its mean absolute error.
_GAPS = (0.318, 0.340, 0.399, 0.549, 0.850)
_CLIP, _FAR = 12.0, 40.0
# Steps ahead beyond which the network sees no difference; candidates and widths go on.
_HORIZON = 64
_EXTRA, _STEP = 11, 12


class Shape(NamedTuple):
    """Sizes of a network."""

    cell: Literal["lstm", "gru"] = "lstm"
    hidden_size: int = 160
    n_layers: int = 2
    input_size: int = 96
    state_size: int = 96


class Distribution(NamedTuple):
    """Forecasts from several origins."""

    quantiles: Float[Tensor, "series origin step level"]
    """At `LEVELS`, increasing; as differences from the first observation of a series, in units of the data."""
    history: History
    evidence: Evidence
    state: Float[Tensor, "series origin state"]
    """What the cell has read."""


class Steps(NamedTuple):
    """What is known of the steps of several origins, in units of the scale around the level."""

    features: Float[Tensor, "series origin step feature"]
    relative: Float[Tensor, "series origin step candidate"]
    """Forecasts of the candidates."""
    logits: Float[Tensor, "series origin step candidate"]
    """Of their weights, before anything is read."""
    width: Float[Tensor, "series origin step 1"]
    """The error that is to be expected."""
    location: Float[Tensor, "series origin 1"]
    scale: Float[Tensor, "series origin 1"]


class Blank(NamedTuple):
    """Steps before the first observation of any series of a window, which were left out of it."""

    length: int
    """A multiple of `PATCH`."""
    carry: tuple[Float[Tensor, "layer 1 hidden"], ...]
    """State of the cell after these steps."""


class UniversalNetwork(nn.Module):
    """Forecasts any series, of any season, length and horizon.

    The median is a weighted mean of simple forecasts (`candidates.NAMES`) and a correction. Weights begin at how well
    each did before the origin, and distances between quantiles are in units of the errors of the best of them; what
    the recurrent cell has read changes both. Nothing depends on the level or unit of a series, nor on what comes
    after an origin.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or Shape()
        self.shape = shape
        n_inputs = PATCH * 7 + _EXTRA
        self.read = nn.Sequential(nn.Linear(n_inputs, 128), nn.SiLU(), nn.Linear(128, shape.input_size))
        cell = nn.LSTM if shape.cell == "lstm" else nn.GRU
        self.cell = cell(shape.input_size, shape.hidden_size, shape.n_layers, batch_first=True)
        self.state = nn.Linear(shape.hidden_size + _EXTRA, shape.state_size)
        self.step_features = shape.state_size + 3 * len(NAMES) + _STEP
        self.step = nn.Sequential(nn.Linear(self.step_features, 96), nn.SiLU(), nn.Linear(96, 64), nn.SiLU())
        self.gate = nn.Linear(64, len(NAMES))
        self.out = nn.Linear(64, len(LEVELS))
        self.sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        nn.init.zeros_(self.out.weight)
        gap = torch.tensor(_GAPS).expm1().log()
        with torch.no_grad():
            self.out.bias.copy_(torch.cat([gap.flip(0), torch.zeros(1), gap]))

    def forward(self, window: Window, origins: Int[Tensor, " origin"], ahead: Int[Tensor, " step"]) -> Distribution:
        """Return quantiles of the steps `ahead` (1 is the next) of each origin.

        An origin is the index of the last step that is known. In training, and in a graph, a patch ends with each.
        """
        state, steps, past, known = self.encode(window, origins, ahead)
        return Distribution(self.decode(state, steps), past, known, state)

    @torch.no_grad()
    def blank(self, length: int, season: int, second: int, device: torch.device) -> Blank:
        """Return what `encode` takes in place of the first `length` steps, before any observation."""
        values = torch.zeros(1, length, device=device)
        seasons = (torch.tensor([steps], device=device) for steps in (season, second))
        inputs, _ = self._inputs(history(Window(values, values.bool(), *seasons)))
        with flushed_denormals():
            carry = self.cell(self.read(inputs))[1]
        return Blank(length, carry if isinstance(carry, tuple) else (carry,))

    def encode(
        self,
        window: Window,
        origins: Int[Tensor, " origin"],
        ahead: Int[Tensor, " step"],
        blank: Blank | None = None,
    ) -> tuple[Float[Tensor, "series origin state"], Steps, History, Evidence]:
        """Return what the cell has read, and what else `decode` needs, as `forward`.

        The forecast is that of the window with the steps of `blank` before it.
        """
        n_blank, carry = (0, None) if blank is None else (blank.length, self._carry(blank, len(window.values)))
        with torch.no_grad():
            past = history(window)
            smoothed = smooth(past)
            paths = candidates(past, smoothed, origins, ahead)
            known = evidence(past, past_errors(past, smoothed, origins, n_blank), origins, ahead)
        state = self._states(past, origins, carry)
        location, scale = past.level[:, origins, None], past.scale[:, origins, None]
        relative = (paths - location[..., None]) / scale[..., None]
        width = (known.width / scale)[..., None]
        logits = self.sharpness.exp() * known.quality
        with torch.no_grad():
            start = (logits.softmax(-1) * relative).sum(-1, keepdim=True)
            features = self._steps(past, known, relative, start, width, origins=origins, ahead=ahead)
        return state, Steps(features, relative, logits, width, location, scale), past, known

    def _states(self, past: History, origins: Int[Tensor, " origin"], carry: Any) -> Tensor:
        """Return what the cell has read at each origin, [series, origin, state].

        It reads the window once for the origins at the same step of a patch, from that step on.
        """
        if self.training or torch.onnx.is_in_onnx_export():
            return self._states_of_patches(past, (origins + 1) // PATCH - 1, carry)
        phase, parts = (origins + 1) % PATCH, []
        for first in phase.unique().tolist():
            number = (origins[phase == first] + 1) // PATCH - 1
            part = past.between(first, first + PATCH * (int(number.max()) + 1))
            parts.append(self._states_of_patches(part, number, carry))
        # Origins of one phase after another, in their order.
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, phase.argsort(stable=True).argsort()]

    def _states_of_patches(self, past: History, number: Int[Tensor, " origin"], carry: Any) -> Tensor:
        """Return what the cell has read after the patches of these numbers, the first of which begins the history."""
        with torch.no_grad():
            inputs, extra = self._inputs(past)
        with flushed_denormals():  # Gates of this cell close so far that they would take most of its time.
            states, _ = self.cell(self.read(inputs), carry)
        state: Tensor = self.state(torch.cat([states[:, number], extra[:, number]], -1))
        return state

    def _carry(self, blank: Blank, n_series: int) -> Any:
        carry = tuple(part.expand(-1, n_series, -1).contiguous() for part in blank.carry)
        return carry if self.shape.cell == "lstm" else carry[0]

    def decode(self, state: Float[Tensor, "series origin state"], steps: Steps) -> Tensor:
        """Return `Distribution.quantiles`."""
        features, relative, logits, width, location, scale = steps
        hidden = self.step(torch.cat([state[:, :, None].expand(-1, -1, features.shape[2], -1), features], -1))
        weight = (logits + self.gate(hidden)).softmax(-1)
        outcome = self.out(hidden)
        median = (weight * relative.clamp(-_FAR, _FAR)).sum(-1) + outcome[..., MEDIAN] * width[..., 0]
        up = F.softplus(outcome[..., MEDIAN + 1 :]).cumsum(-1) * width
        down = F.softplus(outcome[..., :MEDIAN].flip(-1)).cumsum(-1).flip(-1) * width
        quantiles = torch.cat([median[..., None] - down, median[..., None], median[..., None] + up], -1)
        return quantiles * scale[..., None] + location[..., None]

    @staticmethod
    def _inputs(past: History) -> tuple[Tensor, Tensor]:
        """Return what the cell reads of each patch, and what is known of the series at its end."""
        end = torch.arange(PATCH - 1, past.raw.shape[1], PATCH, device=past.raw.device)
        level, scale, change = past.level[:, end, None], past.scale[:, end, None], past.change[:, end, None]
        change = torch.where(change > 0, change, scale)

        def patches(values: Tensor) -> Tensor:
            return values.reshape(values.shape[0], -1, PATCH)

        def normal(values: Tensor, valid: Tensor) -> Tensor:
            return ((patches(values) - level) / scale).clamp(-_CLIP, _CLIP) * patches(valid)

        observed = past.observed.float()
        ahead = PATCH - past.season * ((PATCH - 1) // past.season + 1)
        ahead_second = PATCH - past.second * ((PATCH - 1) // past.second + 1)
        parts = [normal(past.raw, observed), patches(observed)]
        for lag in (past.season, -ahead, -ahead_second):
            values, valid = lagged(past.filled, lag)
            valid = valid & lagged(past.n_observed > 0, lag)[0]
            parts.append(normal(values, valid.float()))
        parts.append(patches(valid.float()))
        difference = F.pad(past.filled[:, 1:] - past.filled[:, :-1], (1, 0))
        parts.append((patches(difference) / change).clamp(-_CLIP, _CLIP) / 4)
        extra = _extra(past, end)
        return torch.cat([*parts, extra], -1), extra

    @staticmethod
    def _steps(
        past: History,
        known: Evidence,
        relative: Tensor,
        start: Tensor,
        width: Tensor,
        *,
        origins: Tensor,
        ahead: Tensor,
    ) -> Tensor:
        shape = relative.shape[:-1]
        step = ahead.clamp(max=_HORIZON).float()
        turns = [2 * math.pi * ahead / season[:, None] for season in (past.season, past.second)]
        phases = [wave[:, None].expand(shape) for turn in turns for wave in (turn.sin(), turn.cos())]
        at = origins[None, :, None]
        valid = [
            lookup(past, past.filled, past.season, at, ahead, number)[1].float() for number in range(1, SEASONS + 1)
        ]
        others = [
            *phases,
            *valid,
            past.has_second[:, None, None].float().expand(shape),
            known.trust,
            width[..., 0].log(),
            (step / _HORIZON).expand(shape),
            (step.log() / 4).expand(shape),
        ]
        return torch.cat(
            [
                relative.clamp(-_CLIP, _CLIP),
                ((relative - start) / width).clamp(-_CLIP, _CLIP),
                known.quality,
                torch.stack(others, -1),
            ],
            -1,
        )


def _extra(past: History, end: Tensor) -> Float[Tensor, "series patch extra"]:
    level, scale, change = past.level[:, end], past.scale[:, end], past.change[:, end]
    before, scale_before = (F.pad(part[:, :-1], (1, 0)) for part in (level, scale))
    moved = (level - before) / scale
    # A series that has not varied has no scale: what stands for it has the unit of nothing.
    varied = F.pad((past.high > past.low)[:, end[:-1]], (1, 0))
    ratio = torch.where(varied, scale / scale_before.clamp(min=torch.finfo(scale.dtype).tiny), 1)
    parts = [
        moved.clamp(-_CLIP, _CLIP),
        ratio.clamp(1e-3, 1e3).log(),
        (change / scale).clamp(1e-4, 1e2).log() / 3,
        past.n_observed[:, end].log1p() / 5,
        (past.season.float().log() / 5)[:, None].expand_as(level),
        (past.second.float().log() / 5)[:, None].expand_as(level),
        past.has_second.float()[:, None].expand_as(level),
        ((level - past.low[:, end]) / scale).clamp(0, _CLIP) / 3,
        ((past.high[:, end] - level) / scale).clamp(0, _CLIP) / 3,
        (past.recent[:, end] * past.season[:, None].clamp(min=6) / scale).clamp(-_CLIP, _CLIP),
        (past.walk[:, end] / torch.where(change > 0, change, scale)).clamp(-_CLIP, _CLIP),
    ]
    return torch.stack(parts, -1)
