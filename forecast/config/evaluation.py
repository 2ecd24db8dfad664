"""`backtest.*`, `calibrate.*` and `explain.*`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from forecast.config.base import Config, Cutoffs
from forecast.config.finetuning import FinetuneSettings
from forecast.config.training import FitConfig


class BacktestSettings(Config):
    """Rolling origins."""

    cutoffs: Cutoffs | None = None
    """Last timestamps that forecasts see: a list, or a range FIRST..LAST/STEP such as 2013-11-01..2013-12-01/1d. The
    latest n_windows that have a full horizon behind them when not given."""
    n_windows: Annotated[int, Field(ge=1)] | None = None
    """How many cutoffs; when not given 4, or as many of them as the model has not seen."""
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between them; the horizon when not given."""
    window: Literal["expanding", "sliding"] = "expanding"
    """What is seen before a cutoff: all of the history, or its last window_length steps."""
    window_length: Annotated[int | None, Field(ge=1, validate_default=True)] = None
    """Steps that are seen with window=sliding: at least the sum of the context length and the horizon."""
    refit: Literal["never", "finetune", "scratch"] = "never"
    """Judge the version as it is; or, at each cutoff, one that is fine-tuned from its base (finetune) or trained anew
    with its data, window and model (scratch, and fine-tuned if the version is) on what is seen there."""
    refit_every: Annotated[int, Field(ge=1)] | None = None
    """Refit at every so many cutoffs only; at each one when not given."""
    fit: FitConfig = FitConfig()
    """Of refit=scratch: how to train. Nothing is held out for backtests: the data end at the cutoff."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Of refit: how to fine-tune, likewise."""
    one_pass: bool = False
    """Let one pass of the encoder over the history serve all cutoffs. It has then seen the whole history, as with
    score.state, and not the context alone."""
    segments: tuple[str, ...] = ()
    """Also score groups of series: by static covariates, by length, volume (thirds of the series) or intermittency."""
    baselines: tuple[Literal["naive", "seasonal_naive", "auto_ets", "dynamic_optimized_theta"], ...] = (
        "naive",
        "seasonal_naive",
    )
    """What the models are compared with. auto_ets and dynamic_optimized_theta are fitted to each series at each cutoff
    (gatecast[baselines])."""
    baseline_history: Annotated[int, Field(ge=2)] = 500
    """Latest steps that those two are fitted to, at most."""
    n_jobs: Annotated[int, Field(ge=1)] = 1
    """Processes that fit them."""

    @field_validator(
        "n_windows", "step_size", "window_length", "refit_every", "fit", "finetune", "one_pass", "segments", "baselines"
    )
    @classmethod
    def _fits_together(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what contradicts the keys above it."""
        given, name = info.data, str(info.field_name)
        refit = given.get("refit", "scratch")
        changed = name in ("fit", "finetune") and value != cls.model_fields[name].default
        match name:
            case "n_windows" | "step_size" if value is not None and given.get("cutoffs") is not None:
                raise ValueError("cutoffs are given, which say it all; leave one of the two out")
            case "window_length" if value is None and given.get("window") == "sliding":
                raise ValueError("missing; window=sliding needs the number of steps that are seen")
            case "window_length" if value is not None and given.get("window") == "expanding":
                raise ValueError("is for window=sliding; window=expanding sees all of the history")
            case "refit_every" if value is not None and refit == "never":
                raise ValueError("refit=never has no refits; set refit=finetune or refit=scratch, or leave it out")
            case "fit" if changed and refit != "scratch":
                raise ValueError(f"is for refit=scratch (given: refit={refit})")
            case "finetune" if changed and refit == "never":
                raise ValueError("is for refit=finetune and refit=scratch (given: refit=never)")
            case "fit" | "finetune" if value.checkpoint is not None:
                raise ValueError("checkpoint can't be gone on from: every refit is a training of its own; leave it out")
            case "one_pass" if value and (refit != "never" or given.get("window") != "expanding"):
                raise ValueError("needs refit=never and window=expanding: one model, which has seen the whole history")
            case "segments" | "baselines" if len(set(value)) < len(value):
                raise ValueError("must not repeat")
            case "baselines" if "seasonal_naive" not in value:
                raise ValueError("must hold seasonal_naive: promotions are decided against it")
        return value


class CalibrateSettings(Config):
    """Intervals that cover what they say."""

    method: Literal["split", "adaptive"] = "split"
    """One shift of each quantile for all series, or shifts of each series that follow its misses over time."""
    n_windows: Annotated[int, Field(ge=1)] = 16
    """Cutoffs after those that the model has seen, at most."""
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between cutoffs; a quarter of the horizon when not given."""
    check_windows: Annotated[int, Field(ge=0)] = 1
    """The last of them tell what is won, before the calibration is made from all."""
    shrink: bool = True
    """Shift by less where cutoffs do not agree: what one period was like, the next may not be."""
    holdout_windows: Annotated[int, Field(ge=0)] = 1
    """Horizons at the end of the table that are left for a backtest."""


class ExplainSettings(Config):
    """What a forecast is made of."""

    series: str
    """The id of the series whose forecast is explained."""
    cutoff: datetime | None = None
    """Last timestamp the forecast may see; the latest of the panel when not given."""
    method: Literal["auto", "integrated_gradients", "occlusion"] = "auto"
    """Gradients on the way from a baseline, whose parts sum to the forecast (gatecast[explain]); or what is forecast
    without an input, from forecasts alone. auto: gradients where the forecast has one."""
    level: float | Literal["mean"] = 0.5
    """The quantile that is explained, one of the model's, or the mean."""
    step: Annotated[int, Field(ge=1)] | None = None
    """The step of the horizon; the mean over all steps when not given."""
    n_steps: Annotated[int, Field(ge=8)] = 64
    """Points of the way from the baseline at which integrated gradients are taken."""
    n_references: Annotated[int, Field(ge=1)] = 32
    """Windows of the panel whose covariates are the baseline, on average."""
    block: Annotated[int, Field(ge=1)] | None = None
    """Steps of the target that occlusion hides together; about 24 blocks when not given."""
