"""Names and colours of models, bands and clocks."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import polars as pl

from forecast import names
from forecast.names import MODEL

# Worst first: the last one present is the one whose intervals are drawn. The colours can be told apart without red
# and green, and have enough contrast on white and on black.
COLOURS: Final = {
    names.SOURCE_LAST_VALUE: "#a9afb9",
    names.SOURCE_SEASONAL_NAIVE: "#858c97",
    names.SOURCE_PRETRAINED: "#3577dc",
    names.TRAINED: "#3577dc",
    names.SOURCE_FINE_TUNED: "#e07b1a",
}
LABELS: Final = {
    names.SOURCE_LAST_VALUE: "Last value",
    names.SOURCE_SEASONAL_NAIVE: "Seasonal naive",
    names.NAIVE: "Naive (last value)",
    names.AUTO_ETS: "AutoETS",
    names.THETA: "Dynamic Theta",
    names.SOURCE_PRETRAINED: "Pretrained",
    names.TRAINED: "Trained on this table",
    names.SOURCE_FINE_TUNED: "Fine-tuned",
}
_OTHER_COLOURS: Final = ("#149494", "#8f62c9", "#c94a72", "#7a8a22")
# Colours of classes, distinguishable without red and green, too.
_CLASS_COLOURS: Final = ("#f2c14e", "#3577dc", "#8f62c9", "#149494", "#c94a72", "#858c97", "#e07b1a", "#7a8a22")


class ModelStyle(NamedTuple):
    """Label and colour of a model, in all figures and pages."""

    name: str
    label: str
    colour: str


class Band(NamedTuple):
    """A central interval: its nominal coverage, and its two quantile columns."""

    coverage: float
    low: str
    high: str


def model_styles(models: Iterable[str]) -> list[ModelStyle]:
    """Return a style per distinct model: baselines, then other models by name, then those of this package.

    >>> [style.label for style in model_styles(["fine_tuned", "ets", "seasonal_naive"])]
    ['Seasonal naive', 'ets', 'Fine-tuned']
    """
    distinct = set(models)
    defined = [name for name in COLOURS if name in distinct]
    baselines = [name for name in defined if name in (names.SOURCE_LAST_VALUE, names.SOURCE_SEASONAL_NAIVE)]
    foreign = sorted(distinct - set(defined))
    colours = COLOURS | {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(foreign)}
    ordered = [*baselines, *foreign, *(name for name in defined if name not in baselines)]
    return [ModelStyle(name, LABELS.get(name, name), colours[name]) for name in ordered]


LOSS_STYLES: Final = (
    ModelStyle(names.TRAIN_LOSS, "Training", COLOURS[names.SOURCE_SEASONAL_NAIVE]),
    ModelStyle(names.VAL_LOSS, "Validation", COLOURS[names.SOURCE_PRETRAINED]),
)
CALIBRATION_STYLES: Final = (
    ModelStyle("before", "Before calibration", COLOURS[names.SOURCE_SEASONAL_NAIVE]),
    ModelStyle("after", "After calibration", COLOURS[names.SOURCE_FINE_TUNED]),
)


def bands(columns: Iterable[str]) -> list[Band]:
    """Return the intervals to draw from a forecast's columns: the widest, and the one nearest to half of it.

    >>> [(band.low, band.high) for band in bands(["mean", "q10", "q20", "q30", "q50", "q70", "q80", "q90"])]
    [('q10', 'q90'), ('q30', 'q70')]
    """
    names_present = set(columns)
    lows = sorted(float(match[1]) for match in (re.fullmatch(r"q(\d+\.?\d*)", name) for name in names_present) if match)
    pairs = [(low, names.quantile_column(low / 100), names.quantile_column(1 - low / 100)) for low in lows if low < 50]
    intervals = [
        Band((100 - 2 * low) / 100, below, above) for low, below, above in pairs if {below, above} <= names_present
    ]
    inner = sorted(intervals[1:], key=lambda band: abs(band.coverage - intervals[0].coverage / 2))[:1]
    return intervals[:1] + inner


def with_model(forecasts: pl.DataFrame) -> pl.DataFrame:
    """Return forecasts with a `model` column; without one, the source is used, for overrides that of their series."""
    if MODEL in forecasts.columns:
        return forecasts
    source = pl.col(names.SOURCE)
    of_model = source.filter(source != names.SOURCE_OVERRIDE).first().over(names.SERIES_ID)
    by_hand = (source == names.SOURCE_OVERRIDE) & of_model.is_not_null()
    return forecasts.with_columns(pl.when(by_hand).then(of_model).otherwise(source).alias(MODEL))


def wall_clock(column: str) -> pl.Expr:
    """Return a time column as naive local time, as charts show it."""
    return pl.col(column).dt.replace_time_zone(None)


def clock_label(frame: pl.DataFrame) -> str:
    """Return the label of a time axis with the frame's timestamps."""
    zone = getattr(frame.schema[names.TIMESTAMP], "time_zone", None)
    return "Time" if zone is None else f"Local time ({zone})" if zone != "UTC" else "Time (UTC)"


def class_styles(columns: Iterable[str]) -> list[ModelStyle]:
    """Return a style per class of a forecast, in the order of its columns.

    >>> [style.label for style in class_styles(["class", "p_clear", "p_rain"])]
    ['clear', 'rain']
    """
    prefix = names.class_column("")
    classes = [name.removeprefix(prefix) for name in columns if name.startswith(prefix)]
    return [ModelStyle(name, name, _CLASS_COLOURS[i % len(_CLASS_COLOURS)]) for i, name in enumerate(classes)]
