"""`finetune.*`: series of their own, and the gate."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from forecast.config.base import Config, Share, Windows, auto_or_windows


class FinetuneSettings(Config):
    """Fine-tuning and its gate."""

    kind: Literal["head", "bias", "embedding", "lora", "full", "global"] = "head"
    """What is changed for each series: `head`: a linear map to the horizon, in closed form; by gradient `bias`: the
    network's numbers of each step, `embedding`: a vector that the decoder sees, `lora`: a low-rank change of the
    recurrent weights (of the pretrained network, of all matrices), `full`: all weights. `global`: all weights, for all
    series alike."""
    series: tuple[str, ...] | None = None
    """Ids of the series to fine-tune; the others keep what they have. All when not given."""
    where: str | None = None
    """Which series to fine-tune, as an SQL condition on series_id and the static covariates: "city = 'oslo'"."""
    worst: Annotated[float, Field(gt=0)] | None = None
    """Fine-tune those that the base forecasts worst on their gate windows: a share of them below 1, else how many."""
    incremental: bool = False
    """Go on from a fine-tuned version: only series whose data has changed since then are fine-tuned, again."""
    origins: Annotated[int, Field(ge=8)] = 512
    """Latest steps of each series that are fitted on: each is a cutoff, or one in about half a horizon with
    kind=head, whose accuracy loses nothing by it."""
    half_life: Annotated[float, Field(gt=0)] | None = None
    """Steps after which a cutoff weighs half as much; all weigh the same when not given."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Of the kinds by gradient, the most that a series takes (60 when not given); of `global`, in all (500)."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Of the kinds by gradient, the rates that each series chooses from; by the kind when not given. `global` takes
    the first."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Of `lora` and `full`, windows of each series in one step (4 when not given); of `global`, in all (16)."""
    rank: Annotated[int, Field(ge=1)] = 4
    """Of `lora`, the rank of the changes."""
    gate_windows: Annotated[Windows, auto_or_windows(2)] = "auto"
    """Held-out cutoffs per series, one horizon apart, that choose its strength. `auto`: as many as leave 70 % of a
    typical series to fit on, two to four."""
    report_windows: Annotated[Windows, auto_or_windows(1)] = "auto"
    """Latest cutoffs, seen by neither fitting nor gating, on which the uplift is reported. `auto`: two, or one of short
    series."""
    holdout_windows: Annotated[Windows, auto_or_windows(0)] = "auto"
    """Horizons at the end of the panel that are left untouched, for backtests. `auto`: those that the base has not
    seen, four at most."""
    gate: Literal["pooled", "strict"] = "pooled"
    """Which series leave the base. `pooled`: those whose gain on the gate windows, shrunk to what all series of the
    panel gain there, is worth its risk. `strict`: each by its own windows alone. `strict` as well when not given and
    `min_gain` or `min_windows_better` is."""
    max_harm: Annotated[float, Field(gt=0.0, le=0.5)] = 0.1
    """With `gate=pooled`, the largest probability that a change makes a series worse."""
    min_gain: Share = 0.05
    """With `gate=strict`, the share by which a series must improve on its gate windows to leave the base."""
    min_windows_better: Share = 1.0
    """With `gate=strict`, the share of its gate windows with an observation on which it must improve; at least half of
    them need one."""
    blend: Share = 0.5
    """Weight of the tuned forecast (of the kinds by gradient, of the changes) where the gate lets it in, at most; the
    rest is the base. With `gate=pooled`, half of it is tried as well."""
    final: bool = True
    """Fit what is kept once more, on all rows of the panel, beside the final weights of the base: these changes
    forecast from the end of the panel on. The others are kept for backtests."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    checkpoint: str | None = None
    """A folder for what is done: the same command, run again after a kill, goes on with the next group of series. It
    is emptied when all are done."""

    @model_validator(mode="before")
    @classmethod
    def _gate_of_bounds(cls, values: Any) -> Any:
        """Fill in the gate whose bounds are set: the settings of versions from before there was another one."""
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
    def _whole(cls, worst: float | None) -> float | None:
        if worst is not None and worst > 1 and worst % 1:
            raise ValueError("must be a share below 1, or a whole number of series")
        return worst

    @field_validator("incremental")
    @classmethod
    def _of_series(cls, incremental: bool, info: ValidationInfo) -> bool:
        if incremental and info.data.get("kind") == "global":
            raise ValueError("kind=global has no series of its own to go on from; fine-tune its version again")
        return incremental
