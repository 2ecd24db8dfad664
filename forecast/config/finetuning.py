"""`finetune.*`: fine-tuning of series, and the gate."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from forecast.config.base import Config, Share, Windows, auto_or_windows


class FinetuneSettings(Config):
    """Fine-tuning and its gate."""

    kind: Literal["head", "bias", "embedding", "lora", "full", "global"] = "head"
    """What fine-tuning changes for each series. In closed form, `head`: a linear map to the horizon. By gradient,
    `bias`: a bias per output parameter and step, `embedding`: a vector input of the decoder, `lora`: a low-rank change
    of the recurrent weights (for the pretrained network, of all matrices), `full`: all weights. `global`: all weights,
    shared by all series."""
    series: tuple[str, ...] | None = None
    """Ids of the series to fine-tune; the others keep their adapters. All when not given."""
    where: str | None = None
    """Series to fine-tune, as an SQL condition on series_id and the static covariates: "city = 'oslo'"."""
    worst: Annotated[float, Field(gt=0)] | None = None
    """Fine-tune the series that the base forecasts worst on their gate windows: a share if below 1, else a number."""
    incremental: bool = False
    """Continue from a fine-tuned version: fine-tune only series whose data has changed since."""
    origins: Annotated[Windows, auto_or_windows(8)] = "auto"
    """Latest steps of each series that serve as cutoffs for fitting; with kind=head only one in about half a horizon,
    which does not cost accuracy. `auto`: 512; with kind=head all, up to 1,024 cutoffs."""
    half_life: Annotated[float, Field(gt=0)] | None = None
    """Steps after which a cutoff weighs half as much; all weigh the same when not given."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """With a kind by gradient, the maximum number of steps per series (default 60); with `global`, in total (500)."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """With a kind by gradient, the candidate rates of each series; the default depends on the kind. `global` uses the
    first."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """With `lora` and `full`, windows of each series in one step (default 4); with `global`, in total (16)."""
    rank: Annotated[int, Field(ge=1)] = 4
    """With `lora`, the rank of the changes."""
    gate_windows: Annotated[Windows, auto_or_windows(2)] = "auto"
    """Held-out cutoffs per series, one horizon apart, that decide on its adapter. `auto`: two to four, so that 70 % of
    a typical series remain for fitting, and up to 14 where they take at most 5 % of it."""
    report_windows: Annotated[Windows, auto_or_windows(1)] = "auto"
    """Latest cutoffs, used by neither fitting nor gating, on which the uplift is reported. `auto`: two, or one for
    short series."""
    holdout_windows: Annotated[Windows, auto_or_windows(0)] = "auto"
    """Horizons at the end of the panel reserved for backtests. `auto`: those that the base has not seen, at most
    four, or as many as its training held out."""
    gate: Literal["pooled", "strict"] = "pooled"
    """Criterion for a series to use its adapter. `pooled`: its gain on the gate windows, shrunk towards the gain of all
    series, outweighs its risk. `strict`: its own gate windows alone. The default is `strict` if `min_gain` or
    `min_windows_better` is given."""
    max_harm: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1
    """With `gate=pooled`, the largest probability that a change makes a series worse."""
    min_gain: Share = 0.05
    """With `gate=strict`, the share by which a series must improve on its gate windows to use its adapter."""
    min_windows_better: Share = 1.0
    """With `gate=strict`, the share of its gate windows with an observation on which it must improve; at least half of
    them need one."""
    blend: Share = 0.5
    """Maximum weight of the tuned forecast (with kinds by gradient: of the parameter changes) if the gate accepts it;
    the remainder is the base. With `gate=pooled`, half of it is tried as well."""
    final: bool = True
    """Refit accepted adapters on all rows of the panel, for the final weights of the base: they forecast from the end
    of the panel on. The earlier ones are kept for backtests."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    checkpoint: str | None = None
    """A folder for finished work, which all shards of a job share: the same command, run again after an interruption,
    resumes with the next group of series. It is emptied at the end."""

    @model_validator(mode="before")
    @classmethod
    def _gate_of_bounds(cls, values: Any) -> Any:
        """Set gate=strict if its bounds are given, as in settings of earlier releases, which had no other gate."""
        strict = (
            isinstance(values, dict) and "gate" not in values and values.keys() & {"min_gain", "min_windows_better"}
        )
        return values | {"gate": "strict"} if strict else values

    @model_validator(mode="after")
    def _bounds_of_gate(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in ("min_gain", "min_windows_better") if getattr(self, name) != fields[name].default]
        if self.gate == "pooled" and idle:
            raise ValueError(f"gate=pooled does not look at {' and '.join(idle)}: set gate=strict, or leave it out")
        return self

    @field_validator("series", "learning_rates")
    @classmethod
    def _not_empty(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and not values:
            raise ValueError("must name one at least; leave it out (null) for all")
        return values

    @field_validator("worst")
    @classmethod
    def _share_or_count(cls, worst: float | None) -> float | None:
        if worst is not None and worst > 1 and worst % 1:
            raise ValueError("must be a share below 1, or a whole number of series")
        return worst

    @field_validator("incremental")
    @classmethod
    def _of_series(cls, incremental: bool, info: ValidationInfo) -> bool:
        if incremental and info.data.get("kind") == "global":
            raise ValueError("kind=global has no series of its own to go on from; fine-tune its version again")
        return incremental


class TuningSettings(FinetuneSettings):
    """Settings with resolved numbers of origins and windows."""

    origins: int
    gate_windows: int
    report_windows: int
    holdout_windows: int
