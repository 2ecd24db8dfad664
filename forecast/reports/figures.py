"""Matplotlib figures of forecasts, training and gating, and the look that they share with the HTML report.

Figures are made without pyplot: no global state, no display. Matplotlib is imported by the first figure, not here.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from forecast import names
from forecast.names import MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.figure import Figure

# Worst first: the last one present is the one whose intervals are drawn. The colours can be told apart without red
# and green, and have enough contrast on white and on black.
_COLOURS: Final = {
    names.SOURCE_LAST_VALUE: "#a9afb9",
    names.SOURCE_SEASONAL_NAIVE: "#858c97",
    names.SOURCE_PRETRAINED: "#3577dc",
    names.SOURCE_FINE_TUNED: "#e07b1a",
}
_LABELS: Final = {
    names.SOURCE_LAST_VALUE: "Last value",
    names.SOURCE_SEASONAL_NAIVE: "Seasonal naive",
    names.NAIVE: "Naive (last value)",
    names.AUTO_ETS: "AutoETS",
    names.THETA: "Dynamic Theta",
    names.SOURCE_PRETRAINED: "Pretrained",
    names.SOURCE_FINE_TUNED: "Fine-tuned",
}
_OTHER_COLOURS: Final = ("#149494", "#8f62c9", "#c94a72", "#7a8a22")
# Of classes: like the others, told apart without red and green.
_CLASS_COLOURS: Final = ("#f2c14e", "#3577dc", "#8f62c9", "#149494", "#c94a72", "#858c97", "#e07b1a", "#7a8a22")
# Classes whose counts fit into the cells of a table.
_MOST_WRITTEN: Final = 12
_INK: Final = "#22262d"
_MUTED: Final = "#6a717c"


class ModelStyle(NamedTuple):
    """How one model is named and drawn, everywhere."""

    name: str
    label: str
    colour: str


class Band(NamedTuple):
    """A central interval: the share of outcomes it should hold, and its two quantile columns."""

    coverage: float
    low: str
    high: str


def model_styles(models: Iterable[str]) -> list[ModelStyle]:
    """Return a style per distinct model, baselines first, then models unknown to us by name, then our own.

    >>> [style.label for style in model_styles(["fine_tuned", "ets", "seasonal_naive"])]
    ['Seasonal naive', 'ets', 'Fine-tuned']
    """
    present = set(models)
    own = [name for name in _COLOURS if name in present]
    baselines = [name for name in own if name in (names.SOURCE_LAST_VALUE, names.SOURCE_SEASONAL_NAIVE)]
    others = sorted(present - set(own))
    colours = _COLOURS | {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(others)}
    ordered = [*baselines, *others, *(name for name in own if name not in baselines)]
    return [ModelStyle(name, _LABELS.get(name, name), colours[name]) for name in ordered]


LOSS_STYLES: Final = (
    ModelStyle(names.TRAIN_LOSS, "Training", _COLOURS[names.SOURCE_SEASONAL_NAIVE]),
    ModelStyle(names.VAL_LOSS, "Validation", _COLOURS[names.SOURCE_PRETRAINED]),
)
CALIBRATION_STYLES: Final = (
    ModelStyle("before", "Before calibration", _COLOURS[names.SOURCE_SEASONAL_NAIVE]),
    ModelStyle("after", "After calibration", _COLOURS[names.SOURCE_FINE_TUNED]),
)


def bands(columns: Iterable[str]) -> list[Band]:
    """Return the intervals to draw from a forecast's columns: the widest, and the one nearest to half of it.

    >>> [(band.low, band.high) for band in bands(["mean", "q10", "q20", "q30", "q50", "q70", "q80", "q90"])]
    [('q10', 'q90'), ('q30', 'q70')]
    """
    present = set(columns)
    lows = sorted(float(match[1]) for match in (re.fullmatch(r"q(\d+\.?\d*)", name) for name in present) if match)
    pairs = [(low, names.quantile_column(low / 100), names.quantile_column(1 - low / 100)) for low in lows if low < 50]
    found = [Band((100 - 2 * low) / 100, below, above) for low, below, above in pairs if {below, above} <= present]
    inner = sorted(found[1:], key=lambda band: abs(band.coverage - found[0].coverage / 2))[:1]
    return found[:1] + inner


def with_model(forecasts: pl.DataFrame) -> pl.DataFrame:
    """Return forecasts with a `model` column; where there is none, the source takes its place."""
    return forecasts if MODEL in forecasts.columns else forecasts.with_columns(pl.col(names.SOURCE).alias(MODEL))


def wall_clock(column: str) -> pl.Expr:
    """Return a time column as naive local time, the way a reader of a chart knows it."""
    return pl.col(column).dt.replace_time_zone(None)


def clock_label(frame: pl.DataFrame) -> str:
    """Return what a time axis with the frame's timestamps shows."""
    zone = getattr(frame.schema[names.TIMESTAMP], "time_zone", None)
    return "Time" if zone is None else f"Local time ({zone})" if zone != "UTC" else "Time (UTC)"


def sample_forecasts(history: pl.DataFrame, forecasts: pl.DataFrame, series: Sequence[str]) -> "Figure":
    """Return small multiples of each series' latest forecast, after two horizons of history (24 steps at least).

    `history` has series_id, timestamp and target (null: a gap); where it reaches past the cutoff, it is drawn as what
    happened. Intervals are drawn for the best model only, medians for all. Of classes, the probabilities by the best
    model are stacked, and what happened is a row of marks above them.
    """
    forecasts = with_model(forecasts).filter(pl.col(names.SERIES_ID).is_in(list(series)))
    latest = forecasts.filter(pl.col(names.CUTOFF) == pl.col(names.CUTOFF).max().over(names.SERIES_ID))
    steps = 0 if forecasts.is_empty() else forecasts[names.STEP].n_unique()
    title = f"Latest forecasts of {len(series)} series, {steps} step{'s' * (steps != 1)} ahead"
    return _multiples(history, latest, {name: _plain(name) for name in series}, title)


def best_and_worst(history: pl.DataFrame, shown: pl.DataFrame, decisions: pl.DataFrame) -> "Figure":
    """Return small multiples of base and fine-tuned forecasts on the report windows, beside what happened.

    `shown` and `decisions` are those of a `FinetuneResult`; the series that gain most come first.
    """
    ranked = (
        decisions.join(shown.select(names.SERIES_ID).unique(), on=names.SERIES_ID)
        .select(names.SERIES_ID, uplift=uplift(decisions))
        .sort("uplift", descending=True)
    )
    titles = {name: f"{_plain(name)}   {100 * gain:+.1f} %" for name, gain in ranked.iter_rows()}
    title = "Largest and smallest uplift on cutoffs that neither fitting nor the gate has seen"
    return _multiples(history, shown, titles, title if titles else "No series was fine-tuned")


def _multiples(history: pl.DataFrame, forecasts: pl.DataFrame, titles: Mapping[str, str], title: str) -> "Figure":
    """Return an axes for each series, whose ids are the keys of `titles`."""
    series = list(titles)
    styles = model_styles(forecasts[MODEL].unique())
    intervals = bands(forecasts.columns)
    classes = class_styles(forecasts.columns) if names.CLASS in forecasts.columns else []
    across = min(3, max(1, len(series)))
    down = max(1, -(-len(series) // across))
    figure = _figure(4.3 * across + 0.3, 2.35 * down + 1.0)
    for index, series_id in enumerate(series):
        axes = figure.add_subplot(down, across, index + 1)
        own = pl.col(names.SERIES_ID) == series_id
        if classes:
            best = pl.col(MODEL) == styles[-1].name
            _class_axes(axes, history.filter(own), forecasts.filter(own, best), classes)
        else:
            _forecast_axes(axes, history.filter(own), forecasts.filter(own), styles=styles, intervals=intervals)
        axes.set_title(titles[series_id], fontsize=9, loc="left")
        if index % across == 0:
            axes.set_ylabel("Probability (%)" if classes else "Target")
        if index + across >= len(series):
            axes.set_xlabel(clock_label(forecasts))
    figure.suptitle(title, fontsize=12)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=7, frameon=False, fontsize=9
        )
    return figure


def _forecast_axes(
    axes: "Axes",
    history: pl.DataFrame,
    forecasts: pl.DataFrame,
    *,
    styles: Sequence[ModelStyle],
    intervals: Sequence[Band],
) -> None:
    forecasts = forecasts.sort(names.TIMESTAMP)
    past = history.sort(names.TIMESTAMP)
    steps = forecasts[names.STEP].n_unique()
    if not forecasts.is_empty():
        cutoff, end = forecasts[names.CUTOFF].min(), forecasts[names.TIMESTAMP].max()
        seen, after = past.filter(pl.col(names.TIMESTAMP) <= cutoff), past.filter(pl.col(names.TIMESTAMP) > cutoff)
        past = pl.concat([seen.tail(max(2 * steps, 24)), after.filter(pl.col(names.TIMESTAMP) <= end)])
        for moment in _times(forecasts.unique(names.CUTOFF), names.CUTOFF):
            axes.axvline(moment, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)), label="Cutoff")
    axes.plot(_times(past), _values(past, names.TARGET), color=_INK, linewidth=1.0, label="Actual", zorder=2)
    best = [style for style in styles if style.name in forecasts[MODEL]][-1:]
    for style in styles:
        rows = forecasts.filter(pl.col(MODEL) == style.name)
        if rows.is_empty():
            continue
        median = names.quantile_column(0.5)
        (line,) = axes.plot(_times(rows), _values(rows, median), color=style.colour, linewidth=1.4, label=style.label)
        line.set(marker="o" if steps == 1 else "", markersize=4, zorder=3)
    for shade, band in zip((0.16, 0.24), intervals if best else (), strict=False):
        rows = forecasts.filter(pl.col(MODEL) == best[0].name)
        low, high = _values(rows, band.low), _values(rows, band.high)
        if steps == 1:
            area: Collection = axes.vlines(_times(rows), low, high, color=best[0].colour, linewidth=6.0)
        else:
            area = axes.fill_between(_times(rows), low, high, color=best[0].colour, linewidth=0.0)
        area.set(alpha=shade, label=f"{band.coverage:.0%} interval")
    _finish(axes)
    _date_axis(axes)


def class_styles(columns: Iterable[str]) -> list[ModelStyle]:
    """Return a style per class of a forecast, in the order of its columns.

    >>> [style.label for style in class_styles(["class", "p_clear", "p_rain"])]
    ['clear', 'rain']
    """
    prefix = names.class_column("")
    found = [name.removeprefix(prefix) for name in columns if name.startswith(prefix)]
    return [ModelStyle(name, name, _CLASS_COLOURS[i % len(_CLASS_COLOURS)]) for i, name in enumerate(found)]


def _class_axes(axes: "Axes", history: pl.DataFrame, forecasts: pl.DataFrame, classes: Sequence[ModelStyle]) -> None:
    rows = forecasts.sort(names.TIMESTAMP)
    cutoff, end = rows[names.CUTOFF][0], rows[names.TIMESTAMP].max()
    past = history.filter(pl.col(names.TIMESTAMP) <= end).sort(names.TIMESTAMP)
    before = past.filter(pl.col(names.TIMESTAMP) <= cutoff).tail(max(2 * len(rows), 24))
    past = pl.concat([before, past.filter(pl.col(names.TIMESTAMP) > cutoff)])
    # A bar lasts for a step: what is stated is constant in it.
    shares = [_values(rows, names.class_column(style.name)) * 100 for style in classes]
    axes.stackplot(
        _times(rows), *shares, step="mid", colors=[style.colour for style in classes], alpha=0.85, linewidth=0.0
    )
    for style in classes:
        marks = past.filter(pl.col(names.TARGET) == style.name)
        at = [106.0] * marks.height
        axes.plot(_times(marks), at, linestyle="", marker="s", markersize=4, color=style.colour, label=style.label)
    axes.axvline(_times(rows.head(1), names.CUTOFF)[0], color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 25, 50, 75, 100])
    _finish(axes)
    _date_axis(axes)


def confusion(counts: pl.DataFrame, model: str) -> "Figure":
    """Return the table of classes that came, in rows, by the most probable one, in columns, as shares of each row."""
    own = counts.filter(pl.col(MODEL) == model)
    found = sorted({*own[names.TARGET], *own[names.CLASS]})
    size = min(12.0, 2.4 + 0.7 * len(found))
    figure = _figure(size + 0.6, size)
    axes = figure.add_subplot()
    cells = {(row[names.TARGET], row[names.CLASS]): row["n"] for row in own.iter_rows(named=True)}
    table = [[cells.get((came, said), 0) for said in found] for came in found]
    shares = [[count / max(1, sum(row)) for count in row] for row in table]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for y, row in enumerate(table if len(found) <= _MOST_WRITTEN else []):
        for x, count in enumerate(row):
            colour = "white" if shares[y][x] > 0.5 else _INK
            axes.text(x, y, f"{count:,}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(found)), [_plain(name) for name in found], rotation=45, ha="right")
    axes.set_yticks(range(len(found)), [_plain(name) for name in found])
    axes.set_xlabel("Most probable class")
    axes.set_ylabel("Class that came")
    axes.set_title(f"Confusion, {_LABELS.get(model, model)}", loc="left", fontsize=12)
    _finish(axes)
    axes.grid(visible=False)
    return figure


def loss_curves(curve: Sequence[tuple[int, Mapping[str, float]]]) -> "Figure":
    """Return training and validation loss by optimiser step, with the best validation marked."""
    figure = _figure(7.5, 4.2)
    axes = figure.add_subplot()
    for key, label, colour in LOSS_STYLES:
        points = [(step, values[key]) for step, values in curve if key in values]
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else None
        axes.plot(steps, losses, color=colour, linewidth=1.5, marker=marker, markersize=3, label=label)
        if key == names.VAL_LOSS:
            best = min(points, key=lambda point: point[1])
            found = f"Best: {best[1]:.4g} at step {best[0]:,}"
            axes.plot(*best, "o", markersize=8, markerfacecolor="none", color="#e07b1a", label=found)
    axes.set_xlabel("Optimiser step")
    axes.set_ylabel("Loss (scaled target)")
    axes.set_title("Loss during training", loc="left", fontsize=12)
    _finish(axes)
    _legend(axes)
    return figure


def error_by_step(scores: pl.DataFrame) -> "Figure":
    """Return the mean error at each step of the horizon, a line per model; needs step, model and mae or error_rate."""
    error, unit = ("mae", "Mean absolute error (units of the target)")
    if "error_rate" in scores.columns:
        error, unit = "error_rate", "Share of steps with another class than the most probable one"
    figure = _figure(7.5, 4.2)
    axes = figure.add_subplot()
    for style in model_styles(scores[MODEL].unique()):
        rows = scores.filter(pl.col(MODEL) == style.name).sort(names.STEP)
        steps, errors = rows[names.STEP].to_list(), _values(rows, error)
        axes.plot(steps, errors, color=style.colour, linewidth=1.6, marker="o", markersize=3, label=style.label)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("Steps after the cutoff")
    axes.set_ylabel(unit)
    axes.set_title("Error by step of the horizon", loc="left", fontsize=12)
    _finish(axes)
    _legend(axes)
    return figure


def calibration(frame: pl.DataFrame) -> "Figure":
    """Return observed coverage by nominal level, a line per model; needs model, level and coverage, as shares."""
    figure = _figure(5.2, 5.2)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=_MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="Perfectly calibrated")
    for style in model_styles(frame[MODEL].unique()):
        rows = frame.filter(pl.col(MODEL) == style.name).sort("level")
        levels, shares = _values(rows, "level") * 100, _values(rows, "coverage") * 100
        axes.plot(levels, shares, color=style.colour, linewidth=1.6, marker="o", markersize=4, label=style.label)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="Level or probability stated (%)", ylabel="Observed share (%)")
    axes.set_aspect("equal")
    axes.set_title("Calibration", loc="left", fontsize=12)
    _finish(axes)
    _legend(axes)
    return figure


def explanation(rows: pl.DataFrame, summary: pl.DataFrame, title: str) -> "Figure":
    """Return what moved a forecast: inputs by their sums, and those with most by step; tables of an `Explanation`."""
    shown = summary.head(12)
    drawn = rows.drop_nulls([names.TIMESTAMP, "attribution"])
    inputs = [name for name in shown["input"] if name in drawn["input"]][:4]
    figure = _figure(10.5, max(3.6, 1.5 * len(inputs) + 0.8))
    grid = figure.add_gridspec(max(1, len(inputs)), 2, width_ratios=[1, 1.6])
    axes = figure.add_subplot(grid[:, 0])
    moved = _values(shown, "attribution")
    colours = [_COLOURS[names.SOURCE_FINE_TUNED if value > 0 else names.SOURCE_PRETRAINED] for value in moved]
    axes.barh([_plain(name) for name in shown["input"]], moved, color=colours)
    axes.invert_yaxis()
    axes.axvline(0, color=_MUTED, linewidth=0.9)
    axes.set_xlabel("Attribution (units of the target)")
    _finish(axes)
    for row, name in enumerate(inputs):
        axes = figure.add_subplot(grid[row, 1])
        own = drawn.filter(input=name).sort(names.TIMESTAMP)
        axes.vlines(_times(own), 0, _values(own, "attribution"), color=_INK, linewidth=1.4)
        axes.axhline(0, color=_MUTED, linewidth=0.6)
        axes.axvline(_times(own.head(1), names.CUTOFF)[0], color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_title(_plain(name), fontsize=9, loc="left")
        _finish(axes)
        _date_axis(axes)
    figure.suptitle("\n".join(textwrap.wrap(_plain(title), 120)), fontsize=9, x=0.01, ha="left")
    return figure


def uplift(decisions: pl.DataFrame) -> pl.Expr:
    """Return the share of the base's loss that fine-tuning saves on the report windows; null where it is not known."""
    base, tuned = pl.col("report_base_loss"), pl.col("report_tuned_loss")
    if "report_base_loss" not in decisions.columns:
        return pl.lit(None, pl.Float64)
    return pl.when(base > 0).then(1 - tuned / base).fill_nan(None)


def uplift_histogram(decisions: pl.DataFrame) -> "Figure":
    """Return how many series gained how much by fine-tuning, on the report windows and at the gate.

    The uplift on the report windows, which neither the fit nor the gate has seen, is that of the series that are
    fine-tuned. Gains at the gate are split by whether it let the series in. Shares beyond -100 % are counted at the
    edge; series without one are left out and counted in the title.
    """
    figure = _figure(7.5, 7.0)
    tuned = (pl.col("blend") > 0).fill_null(value=False)
    found = decisions.select(
        tuned.alias("tuned"), uplift(decisions).alias("uplift"), pl.col("gain").fill_nan(None).alias("gain")
    )
    later = found.filter("tuned")
    _histogram(figure.add_subplot(2, 1, 1), later, "uplift", "Uplift on the report windows", "Uplift, of the loss (%)")
    _histogram(figure.add_subplot(2, 1, 2), found, "gain", "Gain at the gate", "Gain in the gate's loss (%)")
    return figure


def _histogram(axes: "Axes", found: pl.DataFrame, column: str, title: str, label: str) -> None:
    """Draw how many series have how much in a column, split by whether they are fine-tuned."""
    shares = found.with_columns(pl.col(column).clip(-1.0, 1.0) * 100).drop_nulls(column)
    parts = [shares.filter(~pl.col("tuned"))[column].to_numpy(), shares.filter("tuned")[column].to_numpy()]
    labels = [f"Base kept ({len(parts[0]):,})", f"Fine-tuned ({len(parts[1]):,})"]
    colours = [_COLOURS[names.SOURCE_PRETRAINED], _COLOURS[names.SOURCE_FINE_TUNED]]
    # Zero is an edge, so that no bar mixes gains and losses.
    reach = max((float(abs(part).max()) for part in parts if len(part)), default=1.0)
    width = next((width for width in (0.1, 0.2, 0.5, 1, 2, 5) if reach / width <= 20), 5)
    edges = [width * edge for edge in range(int(-reach // width), int(reach // width) + 2)]
    axes.hist(parts, bins=edges, stacked=True, color=colours, label=labels, edgecolor="white", linewidth=0.4)
    axes.axvline(0, color=_MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.locator_params(axis="y", integer=True)
    axes.set_xlabel(label)
    axes.set_ylabel("Series")
    missing = found.height - shares.height
    axes.set_title(title + (f" ({missing:,} series without one)" if missing else ""), loc="left", fontsize=12)
    _finish(axes)
    _legend(axes)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def _finish(axes: "Axes") -> None:
    """Give an axes its quiet frame and grid."""
    axes.grid(color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b7bcc5")
    axes.tick_params(colors=_MUTED, labelsize=8, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.yaxis.get_offset_text()):
        label.set(fontsize=9, color=_MUTED)


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)


def _date_axis(axes: "Axes") -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=2, maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set(fontsize=8, color=_MUTED)


def _times(frame: pl.DataFrame, column: str = names.TIMESTAMP) -> Any:
    return frame.select(wall_clock(column)).to_series().to_numpy()


def _values(frame: pl.DataFrame, column: str) -> Any:
    return frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _plain(text: str) -> str:
    """Keep dollar signs of a name from being set as mathematics."""
    return text.replace("$", r"\$")
