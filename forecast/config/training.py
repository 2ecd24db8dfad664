"""`fit.*`, `tune.*`, `distil.*` and `pretrain.*`: training of networks."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from forecast.config.base import Config, Share, Windows, auto_or_windows
from forecast.config.data import DataConfig, WindowConfig
from forecast.config.model import ModelConfig

Launcher = Literal["none", "torchrun", "slurm", "auto"]


class FitConfig(Config):
    """Training."""

    max_steps: Annotated[int, Field(ge=0)] = 2000
    """Optimiser steps of the panel's network; with 0 it keeps the closed-form solution. `model.init` adds the
    pretrained network to it in either case."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop training after this many minutes, even before max_steps."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Windows in one step; each window gives `origins` forecasts."""
    origins: Annotated[int, Field(ge=1)] | None = None
    """Cutoffs sampled in each window: the loss is taken at all of them (forking sequences). By default 4 to 32, fewer
    for a longer horizon."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the averaged weights, which are validated and kept; 0 turns averaging off."""
    validation_windows: Annotated[Windows, auto_or_windows(1)] = "auto"
    """Cutoffs per series, a horizon apart, held out from fitting, for early stopping and the penalty of the linear
    skip. `auto`: one to four, so that 70 % of a typical series remain for fitting."""
    holdout_windows: Annotated[Windows, auto_or_windows(0)] = "auto"
    """Horizons at the end of the panel reserved for backtests. `auto`: none to four, so that 70 % of a typical series
    remain for fitting besides validation."""
    final: bool = True
    """Refit the selected model on all rows of the panel: it forecasts from the end of the panel on, while the weights
    without the holdout are kept for backtests. It takes a tenth of max_minutes."""
    validation_every: Annotated[int, Field(ge=1)] = 100
    """Steps between validations."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Validations without improvement before training stops."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    """GPUs to train on at once, or processes on a CPU; each takes `batch_size` windows in a step."""
    launcher: Launcher = "none"
    """The launcher that has started this process as one of several, on one or more machines, which train one model:
    torchrun (or what sets its variables) or slurm, by srun; each process takes `batch_size` windows in a step. `auto`,
    the default of `forecast train`, takes one of the two if it has started several processes; with none, each of them
    trains a model."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0)] = 0
    ensemble: Annotated[int, Field(ge=1, le=99)] = 1
    """Networks trained one after another from different seeds, each for its share of max_minutes and with all of
    max_steps; the model forecasts the mean of their quantiles (of classes, of their probabilities)."""
    init_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of training of the pretrained network of model.init on the panel, at a low rate and for at most a fifth of
    max_minutes, before its share is chosen; the weights move only as far as validation improves. 0 leaves it
    unchanged."""
    deterministic: bool = False
    """Use only deterministic algorithms, also on a GPU, where some are slower; on a CPU all are."""
    checkpoint: str | None = None
    """A folder for the state of the training, written at each validation: the same command, run again after an
    interruption, resumes from there, and gives the same model unless max_minutes stops it. It is emptied at the end."""


def _one_process(fit: FitConfig) -> FitConfig:
    """Refuse a launcher."""
    if fit.launcher != "none":
        raise ValueError(f"launcher={fit.launcher} is for forecast train; set launcher=none")
    return fit


LocalFit = Annotated[FitConfig, AfterValidator(_one_process)]
"""Training in one process, or in those of `devices`."""


class DistilSettings(Config):
    """Distillation: a smaller network trained to forecast like a larger one."""

    hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the student's recurrent layers; a quarter of the teacher's when not given."""
    num_layers: Annotated[int, Field(ge=1)] = 1
    weight: Share = 0.5
    """Weight of the loss against the teacher's quantiles; the remainder is the loss against the actuals."""
    n_windows: Annotated[int, Field(ge=1)] | None = None
    """Held-out cutoffs, a horizon apart, on which both are compared; by default 4, or as many as both have not seen."""


class FitSettings(Config):
    """Settings of a training in Python, on a table in memory."""

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
    """Number of trainings, the first with the settings as given; those of a resumed search count."""
    metric: Literal["wql", "mase"] = "wql"
    """The metric to minimise on the validation windows; for classes it is always the log-loss."""
    space: dict[str, Any] = _SPACE
    """The search space, in the groups window, model and fit: a list of choices, or low, high (and log) of a range. A
    given space replaces the default."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of the trials that reach a rung, one in `reduction` continues; the next rung has `reduction` times as many
    steps."""
    first_rung: Annotated[int, Field(ge=1)] | None = None
    """Steps of training up to the first rung; fit.validation_every when not given."""


class PretrainSettings(Config):
    """Pretraining of a network on synthetic series."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] = "nano"
    """Name of the checkpoint, with its version: small letters, digits, dots and dashes."""
    cell: Literal["lstm", "gru"] = "lstm"
    hidden_size: Annotated[int, Field(ge=1)] = 160
    num_layers: Annotated[int, Field(ge=1)] = 2
    steps: Annotated[int, Field(ge=1)] = 100_000
    """Total number of optimiser steps. A run with more steps in the same folder resumes before the learning rate
    fell."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Series in one step."""
    origins: Annotated[int, Field(ge=1)] = 8
    """Maximum number of cutoffs in each series at which the loss is taken."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """It rises for 300 steps, stays, and falls to 0 in the last fifth of the steps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights and of the stream of series."""
    every: Annotated[int, Field(ge=1)] = 500
    """Steps between validations on held-out series; the state is written then, to resume after an interruption."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
