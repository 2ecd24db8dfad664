"""Figures of forecasts."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from forecast import names
from forecast.names import MODEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.figure import Figure
from forecast.reports.axes import INK, MUTED, axis_times, axis_values, date_axis, finish, new_figure, plain_text
from forecast.reports.diagnostic_figures import uplift
from forecast.reports.styles import (
    COLOURS,
    Band,
    ModelStyle,
    bands,
    class_styles,
    clock_label,
    model_styles,
    with_model,
)


def sample_forecasts(history: pl.DataFrame, forecasts: pl.DataFrame, series: Sequence[str]) -> "Figure":
    """Return small multiples of each series' latest forecast, after two horizons of history (24 steps at least).

    `history` has series_id, timestamp and target (null: a gap); where it reaches past the cutoff, it is drawn as the
    actuals. Intervals are drawn for the best model only, medians for all. For classes, the probabilities of the best
    model are stacked, and the actual classes are a row of marks above them.
    """
    forecasts = with_model(forecasts).filter(pl.col(names.SERIES_ID).is_in(list(series)))
    latest = forecasts.filter(pl.col(names.CUTOFF) == pl.col(names.CUTOFF).max().over(names.SERIES_ID))
    steps = 0 if forecasts.is_empty() else forecasts[names.STEP].n_unique()
    title = f"Latest forecasts of {len(series)} series, {steps} step{'s' * (steps != 1)} ahead"
    return _multiples(history, latest, {name: plain_text(name) for name in series}, title)


def best_and_worst(history: pl.DataFrame, shown: pl.DataFrame, decisions: pl.DataFrame) -> "Figure":
    """Return small multiples of base and fine-tuned forecasts on the report windows, with the actuals.

    `shown` and `decisions` are fields of a `FinetuneResult`; the series with the largest gain come first.
    """
    ranked = (
        decisions.join(shown.select(names.SERIES_ID).unique(), on=names.SERIES_ID)
        .select(names.SERIES_ID, uplift=uplift(decisions))
        .sort("uplift", descending=True)
    )
    titles = {name: f"{plain_text(name)}   {100 * gain:+.1f} %" for name, gain in ranked.iter_rows()}
    title = "Largest and smallest uplift on cutoffs that neither fitting nor the gate has seen"
    return _multiples(history, shown, titles, title if titles else "No series was fine-tuned")


def _multiples(history: pl.DataFrame, forecasts: pl.DataFrame, titles: Mapping[str, str], title: str) -> "Figure":
    """Return a figure with one axes per series; the keys of `titles` are series ids."""
    series = list(titles)
    styles = model_styles(forecasts[MODEL].unique())
    intervals = bands(forecasts.columns)
    classes = class_styles(forecasts.columns) if names.CLASS in forecasts.columns else []
    across = min(3, max(1, len(series)))
    down = max(1, -(-len(series) // across))
    figure = new_figure(4.3 * across + 0.3, 2.35 * down + 1.0)
    for index, series_id in enumerate(series):
        axes = figure.add_subplot(down, across, index + 1)
        is_series = pl.col(names.SERIES_ID) == series_id
        if classes:
            best = pl.col(MODEL) == styles[-1].name
            _class_axes(axes, history.filter(is_series), forecasts.filter(is_series, best), classes)
        else:
            _forecast_axes(
                axes, history.filter(is_series), forecasts.filter(is_series), styles=styles, intervals=intervals
            )
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
    observed = history.sort(names.TIMESTAMP)
    steps = forecasts[names.STEP].n_unique()
    if not forecasts.is_empty():
        cutoff, end = forecasts[names.CUTOFF].min(), forecasts[names.TIMESTAMP].max()
        before, after = (
            observed.filter(pl.col(names.TIMESTAMP) <= cutoff),
            observed.filter(pl.col(names.TIMESTAMP) > cutoff),
        )
        observed = pl.concat([before.tail(max(2 * steps, 24)), after.filter(pl.col(names.TIMESTAMP) <= end)])
        for moment in axis_times(forecasts.unique(names.CUTOFF), names.CUTOFF):
            axes.axvline(moment, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), label="Cutoff")
    axes.plot(
        axis_times(observed), axis_values(observed, names.TARGET), color=INK, linewidth=1.0, label="Actual", zorder=2
    )
    best = [style for style in styles if style.name in forecasts[MODEL]][-1:]
    for style in styles:
        rows = forecasts.filter(pl.col(MODEL) == style.name)
        if rows.is_empty():
            continue
        median = names.quantile_column(0.5)
        (line,) = axes.plot(
            axis_times(rows), axis_values(rows, median), color=style.colour, linewidth=1.4, label=style.label
        )
        line.set(marker="o" if steps == 1 else "", markersize=4, zorder=3)
    for shade, band in zip((0.16, 0.24), intervals if best else (), strict=False):
        rows = forecasts.filter(pl.col(MODEL) == best[0].name)
        low, high = axis_values(rows, band.low), axis_values(rows, band.high)
        if steps == 1:
            area: Collection = axes.vlines(axis_times(rows), low, high, color=best[0].colour, linewidth=6.0)
        else:
            area = axes.fill_between(axis_times(rows), low, high, color=best[0].colour, linewidth=0.0)
        area.set(alpha=shade, label=f"{band.coverage:.0%} interval")
    finish(axes)
    date_axis(axes)


def _class_axes(axes: "Axes", history: pl.DataFrame, forecasts: pl.DataFrame, classes: Sequence[ModelStyle]) -> None:
    rows = forecasts.sort(names.TIMESTAMP)
    cutoff, end = rows[names.CUTOFF][0], rows[names.TIMESTAMP].max()
    observed = history.filter(pl.col(names.TIMESTAMP) <= end).sort(names.TIMESTAMP)
    before = observed.filter(pl.col(names.TIMESTAMP) <= cutoff).tail(max(2 * len(rows), 24))
    observed = pl.concat([before, observed.filter(pl.col(names.TIMESTAMP) > cutoff)])
    # A bar covers one step: the probabilities are constant within it.
    shares = [axis_values(rows, names.class_column(style.name)) * 100 for style in classes]
    axes.stackplot(
        axis_times(rows), *shares, step="mid", colors=[style.colour for style in classes], alpha=0.85, linewidth=0.0
    )
    for style in classes:
        marks = observed.filter(pl.col(names.TARGET) == style.name)
        heights = [106.0] * marks.height
        axes.plot(
            axis_times(marks), heights, linestyle="", marker="s", markersize=4, color=style.colour, label=style.label
        )
    axes.axvline(axis_times(rows.head(1), names.CUTOFF)[0], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 25, 50, 75, 100])
    finish(axes)
    date_axis(axes)


def explanation(rows: pl.DataFrame, summary: pl.DataFrame, title: str) -> "Figure":
    """Return the attribution of a forecast: inputs by sum, and the largest by step; tables of an `Explanation`."""
    shown = summary.head(12)
    by_step = rows.drop_nulls([names.TIMESTAMP, "attribution"])
    inputs = [name for name in shown["input"] if name in by_step["input"]][:4]
    figure = new_figure(10.5, max(3.6, 1.5 * len(inputs) + 0.8))
    grid = figure.add_gridspec(max(1, len(inputs)), 2, width_ratios=[1, 1.6])
    axes = figure.add_subplot(grid[:, 0])
    moved = axis_values(shown, "attribution")
    colours = [COLOURS[names.SOURCE_FINE_TUNED if value > 0 else names.SOURCE_PRETRAINED] for value in moved]
    axes.barh([plain_text(name) for name in shown["input"]], moved, color=colours)
    axes.invert_yaxis()
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.set_xlabel("Attribution (units of the target)")
    finish(axes)
    for row, name in enumerate(inputs):
        axes = figure.add_subplot(grid[row, 1])
        of_input = by_step.filter(input=name).sort(names.TIMESTAMP)
        axes.vlines(axis_times(of_input), 0, axis_values(of_input, "attribution"), color=INK, linewidth=1.4)
        axes.axhline(0, color=MUTED, linewidth=0.6)
        axes.axvline(axis_times(of_input.head(1), names.CUTOFF)[0], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_title(plain_text(name), fontsize=9, loc="left")
        finish(axes)
        date_axis(axes)
    figure.suptitle("\n".join(textwrap.wrap(plain_text(title), 120)), fontsize=9, x=0.01, ha="left")
    return figure
