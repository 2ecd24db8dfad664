"""`backtest.*`, `calibrate.*` and `explain.*`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from forecast.config.base import Config, Cutoffs
from forecast.config.finetuning import FinetuneSettings
from forecast.config.training import FitConfig, LocalFit


class BacktestSettings(Config):
    """Rolling origins."""

    cutoffs: Cutoffs | None = None
    """Last timestamps that forecasts see: a list, or a range FIRST..LAST/STEP such as 2013-11-01..2013-12-01/1d. By
    default the latest n_windows with a full horizon after them."""
    horizon: Annotated[int, Field(ge=1)] | None = None
    """Steps to forecast, as score.horizon; by default those that the model is trained for. With another horizon the
    backtest is not recorded with the version, and `forecast promote` ignores it."""
    n_windows: Annotated[int, Field(ge=1)] | None = None
    """Number of cutoffs; by default 4, or fewer if training saw some of them."""
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between cutoffs; the horizon when not given."""
    window: Literal["expanding", "sliding"] = "expanding"
    """History before a cutoff: all of it, or its last window_length steps."""
    window_length: Annotated[int | None, Field(ge=1, validate_default=True)] = None
    """Steps of history with window=sliding: at least the sum of the context length and the horizon."""
    refit: Literal["never", "finetune", "scratch"] = "never"
    """Evaluate the version as it is; or, at each cutoff, a model fitted on the history there: fine-tuned from its base
    (finetune), or trained with its data, window and model (scratch, and fine-tuned if the version is)."""
    refit_every: Annotated[int, Field(ge=1)] | None = None
    """Refit at every n-th cutoff only; at each one when not given."""
    fit: LocalFit = FitConfig()
    """Training with refit=scratch. Nothing is held out for backtests: the data end at the cutoff."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Fine-tuning with refit=finetune or scratch."""
    one_pass: bool = False
    """Use one pass of the encoder over the history for all cutoffs. It then sees the whole history, as with
    score.state, not only the context."""
    segments: tuple[str, ...] = ()
    """Also score groups of series: by static covariates, by length, volume (thirds of the series) or intermittency."""
    baselines: tuple[Literal["naive", "seasonal_naive", "auto_ets", "dynamic_optimized_theta"], ...] = (
        "naive",
        "seasonal_naive",
    )
    """Models to compare with. auto_ets and dynamic_optimized_theta are fitted to each series at each cutoff
    (gatecast[baselines])."""
    baseline_history: Annotated[int, Field(ge=2)] = 500
    """Maximum number of latest steps to which auto_ets and dynamic_optimized_theta are fitted."""
    n_jobs: Annotated[int, Field(ge=1)] = 1
    """Processes that fit these two."""

    @field_validator(
        "n_windows",
        "step_size",
        "window_length",
        "refit",
        "refit_every",
        "fit",
        "finetune",
        "one_pass",
        "segments",
        "baselines",
    )
    @classmethod
    def _fits_together(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a value that contradicts settings declared before it."""
        settings, name = info.data, str(info.field_name)
        refit = settings.get("refit", "scratch")
        changed = name in ("fit", "finetune") and value != cls.model_fields[name].default
        match name:
            case "n_windows" | "step_size" if value is not None and settings.get("cutoffs") is not None:
                raise ValueError("cutoffs are given, which say it all; leave one of the two out")
            case "window_length" if value is None and settings.get("window") == "sliding":
                raise ValueError("missing; window=sliding needs the number of steps that are seen")
            case "window_length" if value is not None and settings.get("window") == "expanding":
                raise ValueError("is for window=sliding; window=expanding sees all of the history")
            case "refit" if value != "never" and settings.get("horizon") is not None:
                raise ValueError("trains models for the horizon of the version; leave backtest.horizon out")
            case "refit_every" if value is not None and refit == "never":
                raise ValueError("refit=never has no refits; set refit=finetune or refit=scratch, or leave it out")
            case "fit" if changed and refit != "scratch":
                raise ValueError(f"is for refit=scratch (given: refit={refit})")
            case "finetune" if changed and refit == "never":
                raise ValueError("is for refit=finetune and refit=scratch (given: refit=never)")
            case "fit" | "finetune" if value.checkpoint is not None:
                raise ValueError("checkpoint can't be gone on from: every refit is a training of its own; leave it out")
            case "one_pass" if value and (refit != "never" or settings.get("window") != "expanding"):
                raise ValueError("needs refit=never and window=expanding: one model, which has seen the whole history")
            case "segments" | "baselines" if len(set(value)) < len(value):
                raise ValueError("must not repeat")
            case "baselines" if "seasonal_naive" not in value:
                raise ValueError("must hold seasonal_naive: promotions are decided against it")
        return value


class CalibrateSettings(Config):
    """Calibration: quantiles shifted until empirical coverage matches the nominal level."""

    method: Literal["split", "adaptive"] = "split"
    """One shift of each quantile for all series, or shifts per series that adapt to its misses over time."""
    n_windows: Annotated[int, Field(ge=1)] = 16
    """Maximum number of cutoffs, all after those that training saw."""
    step_size: Annotated[int, Field(ge=1)] | None = None
    """Steps between cutoffs; a quarter of the horizon when not given."""
    check_windows: Annotated[int, Field(ge=0)] = 1
    """Latest cutoffs on which the gain is measured before the calibration is fitted on all."""
    shrink: bool = True
    """Shrink the shifts if cutoffs disagree, as the next period may differ from the last."""
    holdout_windows: Annotated[int, Field(ge=0)] = 1
    """Horizons at the end of the table reserved for a backtest."""


class ExplainSettings(Config):
    """Explanation of one forecast."""

    series: str
    """The id of the series whose forecast is explained."""
    cutoff: datetime | None = None
    """Last timestamp the forecast may see; the latest of the panel when not given."""
    method: Literal["auto", "integrated_gradients", "occlusion"] = "auto"
    """Integrated gradients, whose attributions sum to the difference from a baseline forecast (gatecast[explain]); or
    occlusion, which compares forecasts without an input. auto: gradients if the forecast is differentiable."""
    level: float | Literal["mean"] = 0.5
    """The quantile level to explain, one of the model, or the mean."""
    step: Annotated[int, Field(ge=1)] | None = None
    """The step of the horizon to explain; the mean over all steps when not given."""
    n_steps: Annotated[int, Field(ge=8)] = 64
    """Points between the baseline and the input at which integrated gradients are evaluated."""
    n_references: Annotated[int, Field(ge=1)] = 32
    """Windows of the panel whose average covariates are the baseline."""
    block: Annotated[int, Field(ge=1)] | None = None
    """Steps of the target that occlusion hides together; about 24 blocks when not given."""
