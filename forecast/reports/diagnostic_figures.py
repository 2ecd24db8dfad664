"""Figures of losses, errors, calibration, uplift and confusion."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import polars as pl

from forecast import names
from forecast.names import MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from forecast.reports.axes import INK, MUTED, add_legend, axis_values, finish, new_figure, plain_text
from forecast.reports.styles import COLOURS, LABELS, LOSS_STYLES, model_styles

# Largest number of classes whose counts are written into the cells.
_MOST_WRITTEN: Final = 12


def confusion(counts: pl.DataFrame, model: str) -> "Figure":
    """Return the confusion matrix, rows by actual class, columns by most probable class, as shares of each row."""
    of_model = counts.filter(pl.col(MODEL) == model)
    classes = sorted({*of_model[names.TARGET], *of_model[names.CLASS]})
    size = min(12.0, 2.4 + 0.7 * len(classes))
    figure = new_figure(size + 0.6, size)
    axes = figure.add_subplot()
    cells = {(row[names.TARGET], row[names.CLASS]): row["n"] for row in of_model.iter_rows(named=True)}
    table = [[cells.get((actual, predicted), 0) for predicted in classes] for actual in classes]
    shares = [[count / max(1, sum(row)) for count in row] for row in table]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for y, row in enumerate(table if len(classes) <= _MOST_WRITTEN else []):
        for x, count in enumerate(row):
            colour = "white" if shares[y][x] > 0.5 else INK
            axes.text(x, y, f"{count:,}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(classes)), [plain_text(name) for name in classes], rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), [plain_text(name) for name in classes])
    axes.set_xlabel("Most probable class")
    axes.set_ylabel("Class that came")
    axes.set_title(f"Confusion, {LABELS.get(model, model)}", loc="left", fontsize=12)
    finish(axes)
    axes.grid(visible=False)
    return figure


def loss_curves(curve: Sequence[tuple[int, Mapping[str, float]]]) -> "Figure":
    """Return training and validation loss by optimiser step, with the best validation marked."""
    figure = new_figure(7.5, 4.2)
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
            text = f"Best: {best[1]:.4g} at step {best[0]:,}"
            axes.plot(*best, "o", markersize=8, markerfacecolor="none", color="#e07b1a", label=text)
    axes.set_xlabel("Optimiser step")
    axes.set_ylabel("Loss (scaled target)")
    axes.set_title("Loss during training", loc="left", fontsize=12)
    finish(axes)
    add_legend(axes)
    return figure


def error_by_step(scores: pl.DataFrame) -> "Figure":
    """Return the mean error at each step of the horizon, a line per model; needs step, model and mae or error_rate."""
    error, unit = ("mae", "Mean absolute error (units of the target)")
    if "error_rate" in scores.columns:
        error, unit = "error_rate", "Share of steps with another class than the most probable one"
    figure = new_figure(7.5, 4.2)
    axes = figure.add_subplot()
    for style in model_styles(scores[MODEL].unique()):
        rows = scores.filter(pl.col(MODEL) == style.name).sort(names.STEP)
        steps, errors = rows[names.STEP].to_list(), axis_values(rows, error)
        axes.plot(steps, errors, color=style.colour, linewidth=1.6, marker="o", markersize=3, label=style.label)
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("Steps after the cutoff")
    axes.set_ylabel(unit)
    axes.set_title("Error by step of the horizon", loc="left", fontsize=12)
    finish(axes)
    add_legend(axes)
    return figure


def calibration(frame: pl.DataFrame) -> "Figure":
    """Return observed coverage by nominal level, a line per model; needs model, level and coverage, as shares."""
    figure = new_figure(5.2, 5.2)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="Perfectly calibrated")
    for style in model_styles(frame[MODEL].unique()):
        rows = frame.filter(pl.col(MODEL) == style.name).sort("level")
        levels, shares = axis_values(rows, "level") * 100, axis_values(rows, "coverage") * 100
        axes.plot(levels, shares, color=style.colour, linewidth=1.6, marker="o", markersize=4, label=style.label)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="Level or probability stated (%)", ylabel="Observed share (%)")
    axes.set_aspect("equal")
    axes.set_title("Calibration", loc="left", fontsize=12)
    finish(axes)
    add_legend(axes)
    return figure


def uplift(decisions: pl.DataFrame) -> pl.Expr:
    """Return the relative reduction of the base's loss by fine-tuning on the report windows; null if unknown."""
    base, tuned = pl.col("report_base_loss"), pl.col("report_tuned_loss")
    if "report_base_loss" not in decisions.columns:
        return pl.lit(None, pl.Float64)
    return pl.when(base > 0).then(1 - tuned / base).fill_nan(None)


def uplift_histogram(decisions: pl.DataFrame) -> "Figure":
    """Return histograms of the gain by fine-tuning over series, on the report windows and at the gate.

    The uplift on the report windows, which neither the fit nor the gate used, is that of the fine-tuned series. Gains
    at the gate are split by its decision. Shares beyond -100 % are counted at the edge; series without a value are
    omitted and counted in the title.
    """
    figure = new_figure(7.5, 7.0)
    tuned = (pl.col("blend") > 0).fill_null(value=False)
    series = decisions.select(
        tuned.alias("tuned"), uplift(decisions).alias("uplift"), pl.col("gain").fill_nan(None).alias("gain")
    )
    later = series.filter("tuned")
    _histogram(figure.add_subplot(2, 1, 1), later, "uplift", "Uplift on the report windows", "Uplift, of the loss (%)")
    _histogram(figure.add_subplot(2, 1, 2), series, "gain", "Gain at the gate", "Gain in the gate's loss (%)")
    return figure


def _histogram(axes: "Axes", series: pl.DataFrame, column: str, title: str, label: str) -> None:
    """Draw the histogram of a column over series, split by whether they are fine-tuned."""
    shares = series.with_columns(pl.col(column).clip(-1.0, 1.0) * 100).drop_nulls(column)
    parts = [shares.filter(~pl.col("tuned"))[column].to_numpy(), shares.filter("tuned")[column].to_numpy()]
    labels = [f"Base kept ({len(parts[0]):,})", f"Fine-tuned ({len(parts[1]):,})"]
    colours = [COLOURS[names.SOURCE_PRETRAINED], COLOURS[names.SOURCE_FINE_TUNED]]
    # Zero is a bin edge, so that no bar mixes gains and losses.
    largest = max((float(abs(part).max()) for part in parts if len(part)), default=1.0)
    width = next((width for width in (0.1, 0.2, 0.5, 1, 2, 5) if largest / width <= 20), 5)
    edges = [width * edge for edge in range(int(-largest // width), int(largest // width) + 2)]
    axes.hist(parts, bins=edges, stacked=True, color=colours, label=labels, edgecolor="white", linewidth=0.4)
    axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
    axes.locator_params(axis="y", integer=True)
    axes.set_xlabel(label)
    axes.set_ylabel("Series")
    missing = series.height - shares.height
    axes.set_title(title + (f" ({missing:,} series without one)" if missing else ""), loc="left", fontsize=12)
    finish(axes)
    add_legend(axes)
