"""`model.*`: the network, its inputs and its head."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from forecast.checkpoints import NANO, names
from forecast.config.base import VERSION, Config, Level, Share, is_version

COUNT_HEADS = ("poisson", "negative_binomial")
POSITIVE_HEADS = (*COUNT_HEADS, "tweedie")
CLASS_HEADS = ("bernoulli", "categorical")


class ModelConfig(Config):
    """The network."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """The activation with cell=rnn."""
    hidden_size: Annotated[int, Field(ge=1)] = 64
    """Units of a layer; by default 64, or 128 from half a million training steps on."""
    num_layers: Annotated[int, Field(ge=1)] = 1
    residual: bool = False
    """Add a layer's input to its output, from the second layer on."""
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Encoder steps between a layer's state and its previous state: [1, 2, 4] for three layers; 1 when not given."""
    forget_bias: float | None = None
    """Initial bias of the forget gate (lstm) or update gate (gru): the higher, the longer the memory. By default 1 for
    lstm, and random for gru."""
    truncate: Annotated[int, Field(ge=2)] | None = None
    """Encoder steps after which gradients are stopped (truncated backpropagation); the state is carried on."""
    segment_length: Annotated[int, Field(ge=1)] | None = None
    """Steps that the encoder reads at a time; by default a day for steps below a day, otherwise one."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of units dropped between layers and before the decoder."""
    recurrent_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share dropped of the inputs of each layer (in place of dropout between layers) and of its recurrent weights, with
    the same mask at all steps of a window."""
    decoder: Literal["direct", "segment", "autoregressive"] = "direct"
    """The decoder from the encoder's state to the horizon. `direct`: all steps by one linear map; `segment`: a
    recurrent step for each segment of segment_length steps (SegRNN); `autoregressive`: step by step from the value or
    class before, as sampled paths, whose quantiles (of classes, mean probabilities) are the forecast (DeepAR)."""
    own_samples: Share = 0.0
    """With decoder=autoregressive, the share of steps at the end of training whose input is a sampled value instead of
    the true one, from 0 at the start (scheduled sampling). Above 0 the decoder tolerates its own errors, but paths are
    less autocorrelated than the data."""
    n_paths: Annotated[int, Field(ge=2)] = 128
    """With decoder=autoregressive, the number of sampled paths per forecast."""
    attention: bool = False
    """Add attention over the encoder's outputs in the context to the input of the decoder."""
    decoder_size: Annotated[int, Field(ge=1)] = 16
    """Features per step of the horizon in the first stage of the decoder."""
    embedding_size: Annotated[int, Field(ge=1)] = 8
    """Size of the embedding of each categorical covariate."""
    anchor: Literal["auto", "last", "level"] = "auto"
    """The value on which a window is centred: its last value, its mean, or (auto) whichever validates better."""
    skip: bool = True
    """Add the linear skip, solved in closed form; for classes, transition probabilities from the latest class and the
    one a season before."""
    smoothing: bool = True
    """Start the skip from exponential smoothing, by filters with weights per series, if windows have at most 160 steps,
    unless an alternative validates significantly better. No effect for classes."""
    head: Literal[
        "quantile", "normal", "student_t", "poisson", "negative_binomial", "tweedie", "bernoulli", "categorical"
    ] = "quantile"
    """The output: quantiles of any shape, or a distribution, trained by its likelihood. poisson and negative_binomial
    are for counts, tweedie for amounts from 0 on, bernoulli and categorical for the probabilities of classes (text,
    truth values or whole numbers)."""
    tweedie_power: Annotated[float, Field(ge=1.1, le=1.9)] = 1.5
    """With head=tweedie, the variance is proportional to this power of the mean."""
    transform: Literal["auto", "none", "log"] = "auto"
    """Transform of the target: none or logarithmic; auto: whichever validates better, if all values are positive.
    Counts, amounts and classes (head=poisson, negative_binomial, tweedie, ...) are not transformed."""
    quantile_levels: tuple[Level, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    init: str | None = NANO
    """A pretrained network that is combined with the trained one, with a share chosen by validation: gatecast-nano of
    the package; models:/NAME@ALIAS or models:/NAME/VERSION, that of a registered version; or none. For head=quantile;
    it uses only the target."""

    @field_validator("init", mode="before")
    @classmethod
    def _check_exists(cls, name: object) -> object:
        if name in (None, "none"):
            return None
        if isinstance(name, str) and name.startswith(VERSION) and not is_version(name):
            raise ValueError(f"a version is models:/NAME@ALIAS or models:/NAME/VERSION (given: {name})")
        if name not in names() and not is_version(name):
            raise ValueError(
                f"no such pretrained network; there are {', '.join(names())}, models:/NAME@ALIAS, none (given: {name})"
            )
        return name

    @field_validator("nonlinearity", "residual", "dilations", "forget_bias", "truncate", "recurrent_dropout")
    @classmethod
    def _fits_the_cell(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a value that contradicts settings declared before it."""
        cell, n = info.data.get("cell"), info.data.get("num_layers")
        match info.field_name:
            case "nonlinearity" if value != "tanh" and cell in ("lstm", "gru"):
                raise ValueError(f"{value} is for cell=rnn; the gates of cell={cell} have their own")
            case "residual" if value and n == 1:
                raise ValueError("needs num_layers of 2 or more: the first layer has no sum")
            case "dilations" if value and n is not None and len(value) != n:
                raise ValueError(f"one for each of the {n} layers (num_layers); {len(value)} are given")
            case "forget_bias" if value is not None and cell == "rnn":
                raise ValueError("cell=rnn has no gates; use cell=lstm or gru")
            case "truncate" if value is not None and value <= max(info.data.get("dilations", ()), default=1):
                raise ValueError("must be more than each of the dilations: no gradient would pass through that layer")
            case "recurrent_dropout" if value and info.data.get("nonlinearity") == "relu":
                raise ValueError("nonlinearity=relu grows without bound once kept weights are scaled up")
        return value

    @field_validator("own_samples", "n_paths")
    @classmethod
    def _fits_the_decoder(cls, value: Any, info: ValidationInfo) -> Any:
        decoder = info.data.get("decoder", "autoregressive")
        if decoder != "autoregressive" and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(f"is for decoder=autoregressive; decoder={decoder} samples nothing")
        return value

    @field_validator("transform")
    @classmethod
    def _fits_the_head(cls, transform: str, info: ValidationInfo) -> str:
        head = info.data.get("head")
        if transform == "log" and head in (*POSITIVE_HEADS, *CLASS_HEADS):
            kind = "counts" if head in COUNT_HEADS else "classes" if head in CLASS_HEADS else "values"
            raise ValueError(f"head={head} is of the {kind} themselves; set transform=auto or none")
        return transform

    @field_validator("quantile_levels")
    @classmethod
    def _levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if 0.5 not in levels:
            raise ValueError("must contain 0.5 (the median)")
        if list(levels) != sorted(set(levels)):
            raise ValueError("must increase, without repeats")
        return levels
