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
    """Of cell=rnn."""
    hidden_size: Annotated[int, Field(ge=1)] = 64
    """Units of a layer; 64, or 128 for half a million steps to train on and more, when not given."""
    num_layers: Annotated[int, Field(ge=1)] = 1
    residual: bool = False
    """Add a layer's input to its output, from the second layer on."""
    dilations: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """How many encoder steps back each layer goes on from: [1, 2, 4] for three layers; 1 when not given."""
    forget_bias: float | None = None
    """Bias that the forget gate (lstm) or update gate (gru) starts with: the higher, the longer the memory. 1 for lstm
    and as drawn for gru when not given."""
    truncate: Annotated[int, Field(ge=2)] | None = None
    """Stop gradients every so many encoder steps (truncated backpropagation); the state is carried on."""
    segment_length: Annotated[int, Field(ge=1)] | None = None
    """Steps that the encoder takes in at once; a day for steps below a day, otherwise one, when not given."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of units dropped between layers and before the decoder."""
    recurrent_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share dropped of the inputs of each layer, in place of dropout between layers, and of the recurrent weights: the
    same at all steps of a window."""
    decoder: Literal["direct", "segment", "autoregressive"] = "direct"
    """How the steps of the horizon follow from the encoder's state: all at once by one linear map, by a recurrent step
    for each segment of segment_length steps (SegRNN), or one after another, each told the value or class before it:
    sampled paths, whose quantiles (of classes, mean probabilities) are the forecast (DeepAR)."""
    own_samples: Share = 0.0
    """With decoder=autoregressive, the share of steps that are told a value of its own instead of the true one at the
    end of training, from none at the start (scheduled sampling). More than 0 forgives mistakes, but makes paths follow
    themselves less than the data do."""
    n_paths: Annotated[int, Field(ge=2)] = 128
    """With decoder=autoregressive, the paths that are sampled for each forecast."""
    attention: bool = False
    """Add what the encoder put out at each step of the context, weighted, to what the decoder sees of its state."""
    decoder_size: Annotated[int, Field(ge=1)] = 16
    """Features that the decoder's first stage hands to each step of the horizon."""
    embedding_size: Annotated[int, Field(ge=1)] = 8
    """Size of the embedding of each categorical covariate."""
    anchor: Literal["auto", "last", "level"] = "auto"
    """What a window is centred on: its last value, its mean, or whichever validates better."""
    skip: bool = True
    """Add the linear skip, solved in closed form; of classes, what mostly follows the latest class and that of one
    season back."""
    smoothing: bool = True
    """Let the skip begin at exponential smoothing, by filters that each series weighs, if windows have at most 160
    steps; what validates surely better takes its place. Without effect for classes."""
    head: Literal[
        "quantile", "normal", "student_t", "poisson", "negative_binomial", "tweedie", "bernoulli", "categorical"
    ] = "quantile"
    """What is forecast: quantiles of any shape, or a distribution, trained by its likelihood. poisson and
    negative_binomial are for counts, tweedie for amounts of 0 and more, bernoulli and categorical for classes (text,
    truth values or whole numbers): their probabilities are forecast."""
    tweedie_power: Annotated[float, Field(ge=1.1, le=1.9)] = 1.5
    """Of head=tweedie: the variance grows with this power of the mean."""
    transform: Literal["auto", "none", "log"] = "auto"
    """Scale of the target: as it is, or logarithmic; auto: whichever validates better, if all values are positive.
    Counts, amounts and classes (head=poisson, negative_binomial, tweedie, ...) are taken as they are."""
    quantile_levels: tuple[Level, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    init: str | None = NANO
    """A pretrained network that forecasts beside the one that is trained here, with the share that validation gives it:
    gatecast-nano, of the package; models:/NAME@ALIAS or models:/NAME/VERSION, the one in a registered version; none to
    do without. Of head=quantile; it reads the target alone."""

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
        """Refuse what contradicts the keys above it."""
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
