"""Decoders: from the summary of an origin to the features of each step of the horizon; and attention, a part of it."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from forecast.config import ModelConfig
from forecast.models.network.encoder import Encoder, HiddenState


class SegmentDecoder(nn.Module):
    """One recurrent step for each segment of the horizon, all from the same state (Lin et al. 2023, "SegRNN").

    "Parallel multi-step forecasting": a step is told the position of its segment, and the mean of what is known of it
    ahead, and its output is mapped to all steps of the segment. The state is made from the summary.
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
    """A recurrent layer over the steps of the horizon, told the value before each (Salinas et al. 2020, "DeepAR").

    Its first state is made from the summary (Sutskever, Vinyals & Le 2014).
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
    """What the encoder put out within the context, weighted by how well it answers the state at the origin.

    The scaled dot product of queries and keys (Luong, Pham & Manning 2015; Vaswani et al. 2017), plus a learnt number
    for how many encoder steps ago it was.
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
        there: Bool[Tensor, "batch step"],
        last: Int[Tensor, " origin"],
    ) -> tuple[Float[Tensor, "batch origin hidden"], Float[Tensor, "batch origin step"]]:
        """Return what is seen from encoder steps `last`, and the weights, which sum to 1.

        They are 0 outside of the context, after the origin, and where `there` is not (but at the origin itself).
        """
        age = last[:, None] - torch.arange(states.shape[1], device=last.device)
        inside = (age >= 0) & (age < len(self.age))
        score = self.query(states[:, last]) @ self.key(states).transpose(-1, -2) / math.sqrt(states.shape[-1])
        score = score + self.age[age.clamp(0, len(self.age) - 1)]
        weight = score.masked_fill(~(inside & (there[:, None] | (age == 0))), -math.inf).softmax(-1)
        return weight @ self.value(states), weight


def uniforms(paths: int, horizon: int) -> Float[Tensor, "path horizon"]:
    """Return the random numbers that paths are drawn with, the same for every window and at every call.

    A scrambled Sobol sequence (Owen 1998), whose numbers at each step are then spread evenly: (rank + 1/2) / paths.
    """
    drawn = torch.quasirandom.SobolEngine(horizon, scramble=True, seed=0).draw(paths)
    return (drawn.argsort(0).argsort(0) + 0.5) / paths


def _one_layer(n_inputs: int, config: ModelConfig) -> Encoder:
    plain = {"num_layers": 1, "residual": False, "dilations": (), "truncate": None, "recurrent_dropout": 0.0}
    layer = Encoder(n_inputs, config.model_copy(update=plain))
    layer.initialise()
    return layer


def _state_size(recurrent: Encoder) -> int:
    return recurrent.hidden_size * (1 + (recurrent.mode == "LSTM"))


def _carry(state: Float[Tensor, "row state"], recurrent: Encoder) -> HiddenState:
    """Return output and, for an LSTM, cell."""
    output, *cell = (part.contiguous() for part in state[None].split(recurrent.hidden_size, dim=-1))
    return torch.tanh(output), *cell
