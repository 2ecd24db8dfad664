"""The encoder: a stack of recurrent layers, and the hidden state from which it continues."""

from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from forecast.config import ModelConfig

HiddenState: TypeAlias = tuple[Float[Tensor, "row batch hidden"], ...]
"""The state of a stack: the outputs of its layers and, for an LSTM, their cells.

Layer after layer, the last `dilation` steps of each, oldest first: `sum(dilations)` rows. Without dilations these are
the states that `torch.nn.LSTM`, `GRU` and `RNN` take and return.
"""

_MODES = {"lstm": "LSTM", "gru": "GRU"}
_KERNELS: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}
# The spread of the input weights of a ReLU layer (Le, Jaitly & Hinton 2015).
_RELU_SPREAD = 0.001


class Encoder(nn.RNNBase):
    """Recurrent layers: the parameters, their names and the kernels are those of `torch.nn`.

    A plain stack is one call of the fused kernel (cuDNN, oneDNN) for all layers and steps. Residual or dilated layers,
    and recurrent dropout in training, are one or two such calls for each layer (a GPU then gathers the weights of the
    layer at each call, and torch warns of it once).

    Residual: from the second layer on, a layer's input is added to its output.

    Dilations (Chang et al. 2017, "Dilated Recurrent Neural Networks"): a layer with dilation d continues from its state
    d steps ago. These are d independent sequences, so time is folded into the batch; where d does not divide the
    length, the remaining steps are one further step of the first of these sequences.

    Recurrent dropout, in training only, scaled to keep the expectation. Masks are drawn once for each call of `forward`
    and are the same at all its steps:

    - of the inputs of each layer, a mask for each sequence drops features (Gal & Ghahramani 2016, "A Theoretically
      Grounded Application of Dropout in Recurrent Neural Networks"), in place of `dropout` between layers, which
      draws a mask at each step. The sum of a residual layer has its input undropped.
    - of the recurrent connection, single weights of `weight_hh` are dropped, for all sequences of the batch alike
      (DropConnect: Merity, Keskar & Socher 2018, "Regularizing and Optimizing LSTM Language Models"). Gal &
      Ghahramani drop units of the previous output instead, for each sequence, which no fused kernel can.

    Truncation: gradients do not pass from one piece of `truncate` steps, counted from the start of the call, to the
    one before; states do.
    """

    def __init__(self, input_size: int, config: ModelConfig) -> None:
        super().__init__(
            _MODES.get(config.cell) or f"RNN_{config.nonlinearity.upper()}",
            input_size,
            config.hidden_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout * (config.num_layers > 1),
        )
        self.residual = config.residual
        self.dilations = config.dilations or (1,) * config.num_layers
        self.recurrent_dropout = config.recurrent_dropout
        self.truncate = config.truncate
        self.forget_bias = 1.0 if config.forget_bias is None and config.cell == "lstm" else config.forget_bias
        self.written = False
        """Whether steps run as single products, which `torch.vmap` can batch, in place of the fused kernels."""

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialise the recurrent weights, and the biases that let a state last.

        Recurrent weights are orthogonal, gate by gate (Saxe et al. 2014). The forget gate of an LSTM has bias 1
        (Jozefowicz et al. 2015), or `forget_bias`; for a GRU this is the update gate. A layer with ReLU
        starts as a sum of its inputs: identity, small input weights, no bias (Le, Jaitly & Hinton 2015, "A Simple Way
        to Initialize Recurrent Networks of Rectified Linear Units").
        """
        relu = self.mode == "RNN_RELU"
        for name, values in self.named_parameters():
            blocks = values.split(self.hidden_size)
            if "weight_hh" in name:
                for block in blocks:
                    nn.init.eye_(block) if relu else nn.init.orthogonal_(block)
            elif relu:
                nn.init.normal_(values, std=_RELU_SPREAD) if "weight" in name else nn.init.zeros_(values)
            elif "bias_ih" in name and self.forget_bias is not None:
                blocks[1].fill_(self.forget_bias)

    def forward(
        self, inputs: Float[Tensor, "batch step input"], carry: HiddenState | None = None
    ) -> tuple[Float[Tensor, "batch step hidden"], HiddenState]:
        """Return the outputs of the last layer at each step (one or more), and the carry after the last step.

        `carry` is the state that the call for the steps before returned; None starts from zero. Outside of training, a
        sequence in pieces has the same outputs as in one call.

        Raises:
            ValueError: `carry` is of another stack or batch.
        """
        shape = (sum(self.dilations), inputs.shape[0], self.hidden_size)
        if carry is None:
            carry = (inputs.new_zeros(shape),) * (1 + (self.mode == "LSTM"))
        elif any(part.shape != shape for part in carry):
            raise ValueError(f"carry must be {list(shape)}, not {[list(part.shape) for part in carry]}")
        masks, weights = self._draw_masks(inputs)
        if self.truncate is None or not torch.is_grad_enabled():
            return self._encode(inputs, carry, masks, weights)
        states = []
        for k, piece in enumerate(inputs.split(self.truncate, dim=1)):
            if k:
                carry = tuple(part.detach() for part in carry)
            outputs, carry = self._encode(piece, carry, masks, weights)
            states.append(outputs)
        return torch.cat(states, dim=1), carry

    def _draw_masks(self, inputs: Tensor) -> tuple[list[Tensor | None], list[list[Tensor]]]:
        """Return the input mask and the weights of each layer, with recurrent dropout applied."""
        weights: list[list[Tensor]] = [list(layer) for layer in self.all_weights]
        if not (self.training and self.recurrent_dropout):
            return [None] * self.num_layers, weights
        masks: list[Tensor | None] = []
        for layer in weights:
            masks.append(functional.dropout(inputs.new_ones(len(inputs), layer[0].shape[1]), self.recurrent_dropout))
            layer[1] = functional.dropout(layer[1], self.recurrent_dropout)
        return masks, weights

    def _encode(
        self, inputs: Tensor, carry: HiddenState, masks: list[Tensor | None], weights: list[list[Tensor]]
    ) -> tuple[Tensor, HiddenState]:
        if masks[0] is None and not (self.residual or self.written) and max(self.dilations) == 1:
            flat_weights = [values for layer in weights for values in layer]
            return self._kernel(inputs, carry, flat_weights, self.dropout, batch_first=True)
        outputs, new_states = inputs.transpose(0, 1), []
        states = zip(*(part.split(self.dilations) for part in carry), strict=True)
        for k, (state, mask, layer) in enumerate(zip(states, masks, weights, strict=True)):
            if mask is not None:
                dropped = outputs * mask
            else:
                dropped = functional.dropout(outputs, self.dropout, self.training and k > 0)
            layer_outputs, state = self._layer(dropped, state, layer)
            outputs = outputs + layer_outputs if self.residual and k else layer_outputs
            new_states.append(state)
        return outputs.transpose(0, 1), tuple(torch.cat(parts) for parts in zip(*new_states, strict=True))

    def _layer(
        self, inputs: Float[Tensor, "step batch input"], state: HiddenState, weights: list[Tensor]
    ) -> tuple[Float[Tensor, "step batch hidden"], HiddenState]:
        """Return outputs and state of a layer whose dilation is the number of rows of `state`."""
        dilation, batch = state[0].shape[:2]
        outputs = []
        n_full = len(inputs) - len(inputs) % dilation
        for part in inputs[:n_full], inputs[n_full:]:
            if not len(part):
                continue
            n = min(len(part), dilation)  # sequences; their next states come after those of the others
            folded = part.reshape(-1, n * batch, part.shape[-1])
            result, after = self._kernel(folded, tuple(s[:n].reshape(1, n * batch, -1) for s in state), weights)
            outputs.append(result.reshape(len(part), batch, -1))
            state = tuple(torch.cat([s[n:], m.reshape(n, batch, -1)]) for s, m in zip(state, after, strict=True))
        return torch.cat(outputs), state

    def _kernel(
        self,
        inputs: Tensor,
        carry: HiddenState,
        weights: list[Tensor],
        dropout: float = 0.0,
        *,
        batch_first: bool = False,
    ) -> tuple[Tensor, HiddenState]:
        if self.written:
            return self._steps(inputs, carry, *weights)
        states = carry if self.mode == "LSTM" else carry[0]
        outputs, *state = _KERNELS[self.mode](
            inputs, states, weights, True, len(weights) // 4, dropout, self.training, False, batch_first
        )
        return outputs, tuple(state)

    def _steps(
        self,
        inputs: Float[Tensor, "step batch input"],
        carry: HiddenState,
        input_weight: Tensor,
        weight: Tensor,
        input_bias: Tensor,
        bias: Tensor,
    ) -> tuple[Float[Tensor, "step batch hidden"], HiddenState]:
        """Return outputs and state of one layer as the kernel does; the equations are those of `torch.nn`."""
        state, *cell = (part[0] for part in carry)
        outputs = []
        # The state's bias is added once for all steps, except for a GRU, which resets a part of it.
        step_bias, state_bias = (input_bias, bias) if self.mode == "GRU" else (input_bias + bias, None)
        for projected in functional.linear(inputs, input_weight, step_bias).unbind(0):
            recurrent = functional.linear(state, weight, state_bias)
            if self.mode == "LSTM":
                enter, keep, new, leave = (projected + recurrent).chunk(4, dim=-1)
                cell = [keep.sigmoid() * cell[0] + enter.sigmoid() * new.tanh()]
                state = leave.sigmoid() * cell[0].tanh()
            elif self.mode == "GRU":
                (reset, keep), new = (projected + recurrent).chunk(3, dim=-1)[:2], projected.chunk(3, dim=-1)[2]
                new = (new + reset.sigmoid() * recurrent.chunk(3, dim=-1)[2]).tanh()
                state = new + keep.sigmoid() * (state - new)
            else:
                state = (projected + recurrent).tanh() if self.mode == "RNN_TANH" else (projected + recurrent).relu()
            outputs.append(state)
        return torch.stack(outputs), tuple(part[None] for part in (state, *cell))
