"""Shared style of figures, axes and legends."""

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from forecast import names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from forecast.reports.styles import wall_clock

INK: Final = "#22262d"
MUTED: Final = "#6a717c"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def finish(axes: "Axes") -> None:
    """Apply the common frame, grid and labels to an axes."""
    axes.grid(color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b7bcc5")
    axes.tick_params(colors=MUTED, labelsize=8, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.yaxis.get_offset_text()):
        label.set(fontsize=9, color=MUTED)


def add_legend(axes: "Axes") -> None:
    """Add a legend if the axes has labelled artists."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5)


def date_axis(axes: "Axes") -> None:
    """Format the x axis with concise dates."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=2, maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.xaxis.get_offset_text().set(fontsize=8, color=MUTED)


def axis_times(frame: pl.DataFrame, column: str = names.TIMESTAMP) -> Any:
    """Return a column of timestamps as wall-clock times."""
    return frame.select(wall_clock(column)).to_series().to_numpy()


def axis_values(frame: pl.DataFrame, column: str) -> Any:
    """Return a column of numbers, NaN where they are missing."""
    return frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def plain_text(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
