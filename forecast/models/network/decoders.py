"""Decoders, which map the summary of an origin to the features of each step of the horizon; and attention."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from forecast.config import ModelConfig
from forecast.models.network.encoder import Encoder, HiddenState


class SegmentDecoder(nn.Module):
    """One recurrent step for each segment of the horizon, all from the same state (Lin et al. 2023, "SegRNN").

    "Parallel multi-step forecasting": a step reads an embedding of its segment's position and the mean of the segment's
    known covariates; its output is mapped to all steps of the segment. The initial state comes from the summary.
    """

    def __init__(
        self, summary_size: int, horizon: int, n_future: int, segment_length: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.horizon, self.segment_length = horizon, segment_length
        self.recurrent = _one_layer(config.hidden_size + n_future, config)
        self.start = nn.Linear(summary_size, _state_size(self.recurrent))
        self.position_embeddings = nn.Embedding(-(-horizon // segment_length), config.hidden_size)
        self.output = nn.Linear(config.hidden_size, segment_length * config.decoder_size)

    def forward(
        self,
        summary: Float[Tensor, "batch origin summary"],
        ahead: Float[Tensor, "batch origin horizon future"],
    ) -> Float[Tensor, "batch origin horizon feature"]:
        """Return the features of each step; the last segment is cut to the horizon."""
        known = torch.stack([part.mean(2) for part in ahead.split(self.segment_length, dim=2)], dim=2)
        position = self.position_embeddings.weight.expand(*known.shape[:3], -1)
        inputs = torch.cat([position, known], dim=-1)
        state = self.start(summary)[:, :, None].expand(-1, -1, inputs.shape[2], -1)
        outputs, _ = self.recurrent(inputs.flatten(0, 2)[:, None], _carry(state.flatten(0, 2), self.recurrent))
        segments = self.output(outputs).reshape(*inputs.shape[:3], self.segment_length, -1)
        features: Tensor = segments.flatten(2, 3)[:, :, : self.horizon]
        return features


class AutoregressiveDecoder(nn.Module):
    """A recurrent layer over the horizon whose steps read the value before them (Salinas et al. 2020, "DeepAR").

    The initial state comes from the summary (Sutskever, Vinyals & Le 2014).
    """

    def __init__(self, summary_size: int, n_inputs: int, config: ModelConfig) -> None:
        super().__init__()
        self.recurrent = _one_layer(n_inputs, config)
        self.begin = nn.Linear(summary_size, _state_size(self.recurrent))
        self.output = nn.Linear(config.hidden_size, config.decoder_size)

    def start(self, summary: Float[Tensor, "row summary"]) -> HiddenState:
        """Return the state before the first step."""
        return _carry(self.begin(summary), self.recurrent)

    def forward(
        self, inputs: Float[Tensor, "row step input"], carry: HiddenState
    ) -> tuple[Float[Tensor, "row step feature"], HiddenState]:
        """Return the features of the next steps, one or more, and the state after them."""
        outputs, carry = self.recurrent(inputs, carry)
        return self.output(outputs), carry


class Attention(nn.Module):
    """A mean of the encoder's outputs within the context, weighted by their match with the state at the origin.

    The score is the scaled dot product of query and key (Luong, Pham & Manning 2015; Vaswani et al. 2017), plus a
    learnt bias for the age in encoder steps.
    """

    def __init__(self, size: int, steps: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size)
        self.age = nn.Parameter(torch.zeros(steps))

    def forward(
        self,
        states: Float[Tensor, "batch step hidden"],
        valid: Bool[Tensor, "batch step"],
        last: Int[Tensor, " origin"],
    ) -> tuple[Float[Tensor, "batch origin hidden"], Float[Tensor, "batch origin step"]]:
        """Return the attended outputs of encoder steps `last`, and the weights, which sum to 1.

        Weights are 0 outside of the context, after the origin, and at steps that are not `valid`, except the origin.
        """
        age = last[:, None] - torch.arange(states.shape[1], device=last.device)
        inside = (age >= 0) & (age < len(self.age))
        score = self.query(states[:, last]) @ self.key(states).transpose(-1, -2) / math.sqrt(states.shape[-1])
        score = score + self.age[age.clamp(0, len(self.age) - 1)]
        weight = score.masked_fill(~(inside & (valid[:, None] | (age == 0))), -math.inf).softmax(-1)
        return weight @ self.value(states), weight


def uniforms(paths: int, horizon: int) -> Float[Tensor, "path horizon"]:
    """Return the uniform random numbers of sampled paths, the same for all windows and calls.

    They are a scrambled Sobol sequence (Owen 1998), whose numbers at each step are spread evenly: (rank + 1/2) / paths.
    """
    points = torch.quasirandom.SobolEngine(horizon, scramble=True, seed=0).draw(paths)
    return (points.argsort(0).argsort(0) + 0.5) / paths


def _one_layer(n_inputs: int, config: ModelConfig) -> Encoder:
    plain = {"num_layers": 1, "residual": False, "dilations": (), "truncate": None, "recurrent_dropout": 0.0}
    layer = Encoder(n_inputs, config.model_copy(update=plain))
    layer.initialise()
    return layer


def _state_size(recurrent: Encoder) -> int:
    return recurrent.hidden_size * (1 + (recurrent.mode == "LSTM"))


def _carry(state: Float[Tensor, "row state"], recurrent: Encoder) -> HiddenState:
    """Return the initial output and, for an LSTM, the cell."""
    output, *cell = (part.contiguous() for part in state[None].split(recurrent.hidden_size, dim=-1))
    return torch.tanh(output), *cell
