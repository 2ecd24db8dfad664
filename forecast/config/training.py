"""`fit.*`, `tune.*`, `distil.*` and `pretrain.*`: how a network is trained."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from forecast.config.base import Config, Share, Windows, auto_or_windows
from forecast.config.data import DataConfig, WindowConfig
from forecast.config.model import ModelConfig


class FitConfig(Config):
    """Training."""

    max_steps: Annotated[int, Field(ge=0)] = 2000
    """Optimiser steps of the panel's network; with 0 it keeps the closed-form solution. `model.init` adds the
    pretrained network to it in either case."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop training after so many minutes, whatever max_steps says."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Windows in one step; each window gives `origins` forecasts."""
    origins: Annotated[int, Field(ge=1)] | None = None
    """Cutoffs sampled in each window: the loss is taken at all of them (forking sequences). 4 to 32 when not given, the
    fewer the longer the horizon."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights, the ones that are validated and kept; 0 turns averaging off."""
    validation_windows: Annotated[Windows, auto_or_windows(1)] = "auto"
    """Cutoffs per series, a horizon apart, held out from fitting; they stop it early and choose the skip's penalty.
    `auto`: as many as leave 70 % of a typical series to fit on, one to four."""
    holdout_windows: Annotated[Windows, auto_or_windows(0)] = "auto"
    """Horizons at the end of the panel that training leaves untouched, for backtests. `auto`: as many as leave, with
    those of validation, 70 % of a typical series to fit on, none to four."""
    final: bool = True
    """Fit the chosen model once more, on all rows of the panel: it forecasts from the end of the panel on, while the
    weights that have not seen the holdout are kept for backtests. It takes a tenth of max_minutes."""
    validation_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Validations without improvement before training stops."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    """GPUs to train on at once, or processes on a CPU; each takes `batch_size` windows in a step."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0
    ensemble: Annotated[int, Field(ge=1, le=99)] = 1
    """Networks trained one after another from different seeds, each for its share of max_minutes and with all of
    max_steps; the model forecasts the mean of their quantiles (of classes, of their probabilities)."""
    init_steps: Annotated[int, Field(ge=0)] = 0
    """Steps that the pretrained network of model.init is trained for on the panel, at a low rate and for a fifth of
    max_minutes at most, before it gets its share; of that way it goes as far as validates better. 0 takes it as it
    is."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, on a GPU too, where some are slower; a CPU does so anyway."""
    checkpoint: str | None = None
    """A folder for the state of the training, written at each validation: the same command, run again after a kill,
    goes on from there, to the very same model if no clock decides. It is emptied when the training is done."""


class DistilSettings(Config):
    """A smaller network that forecasts like a larger one."""

    hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the student's recurrent layers; a quarter of the teacher's when not given."""
    num_layers: Annotated[int, Field(ge=1)] = 1
    weight: Share = 0.5
    """Share of the loss that is against the teacher's quantiles; the rest is against what came."""
    n_windows: Annotated[int, Field(ge=1)] | None = None
    """Held-out cutoffs, a horizon apart, on which both are compared; when not given 4, or as many as neither has
    seen."""


class FitSettings(Config):
    """Training on a frame that is passed, in Python."""

    data: DataConfig = DataConfig()
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


_SPACE: Final[dict[str, Any]] = {
    "model": {
        "cell": ["lstm", "gru"],
        "hidden_size": [32, 64, 128],
        "decoder_size": [8, 16, 32],
        "dropout": {"low": 0.0, "high": 0.3},
    },
    "fit": {"learning_rate": {"low": 1e-3, "high": 2e-2}, "batch_size": [8, 16, 32, 64]},
}


class TuneSettings(Config):
    """The search for settings."""

    n_trials: Annotated[int, Field(ge=1)] = 20
    """Trainings, the first with the settings as given; those of a search that is gone on with count."""
    metric: Literal["wql", "mase"] = "wql"
    """What is to be small on the validation windows; of classes it is the log-loss."""
    space: dict[str, Any] = _SPACE
    """What is drawn, in the groups window, model and fit: a list to choose from, or low, high (and log) of a range. A
    space that is given takes the place of this one."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of the trials that came to a rung, one in so many goes on; the next rung is so many times further."""
    first_rung: Annotated[int, Field(ge=1)] | None = None
    """Steps of training up to the first rung; fit.validation_every when not given."""


class PretrainSettings(Config):
    """A network for any series, trained on synthetic ones."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = "nano"
    """Name of the checkpoint, with its version: small letters, digits, dots and dashes."""
    cell: Literal["lstm", "gru"] = "lstm"
    hidden_size: Annotated[int, Field(ge=1)] = 160
    num_layers: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 100_000
    """Optimiser steps in all. A run with more of them in the same folder goes on from before its learning rate fell."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Series in one step."""
    origins: Annotated[int, Field(ge=1)] = 8
    """Cutoffs in each series at which the loss is taken, at most."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """It rises for 300 steps, stays, and falls to 0 in the last fifth of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first weights and of the stream of series."""
    every: Annotated[int, Field(ge=1)] = 500
    """Steps between validations on series that are held out; the state is written then, to go on from after a kill."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
