import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from forecast.reports import diagnostic_figures, figures, styles

START = datetime(2024, 1, 1)
LEVELS = (10, 30, 50, 70, 90)


def panel(steps: int = 60, series: tuple[str, ...] = ("a", "b"), zone: str | None = None) -> pl.DataFrame:
    times = [START + timedelta(hours=hour) for hour in range(steps)]
    frame = pl.DataFrame(
        [(name, time, float(hour % 24)) for name in series for hour, time in enumerate(times)],
        schema={"series_id": pl.String, "timestamp": pl.Datetime("us"), "target": pl.Float64},
        orient="row",
    )
    return frame.with_columns(pl.col("timestamp").dt.replace_time_zone(zone))


def forecasts(
    cutoff: int = 47, horizon: int = 12, source: str = "pretrained", series: tuple[str, ...] = ("a", "b")
) -> pl.DataFrame:
    rows = [
        {
            "series_id": name,
            "timestamp": START + timedelta(hours=cutoff + step),
            "cutoff": START + timedelta(hours=cutoff),
            "step": step,
            "source": source,
            **{f"q{level}": step + level / 10 for level in LEVELS},
        }
        for name in series
        for step in range(1, horizon + 1)
    ]
    return pl.DataFrame(rows)


def line(figure: Figure, label: str, axes: int = 0) -> Any:
    return next(line for line in figure.axes[axes].lines if line.get_label() == label)


def counted(axes: Axes) -> float:
    return sum(patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle))


def test_a_sample_shows_two_horizons_of_history_and_the_actuals_of_the_horizon() -> None:
    figure = figures.sample_forecasts(panel(), forecasts(), ["a", "b"])
    actual = line(figure, "Actual").get_ydata()
    assert len(figure.axes) == 2
    assert list(actual) == [float(hour % 24) for hour in range(24, 60)]
    assert list(line(figure, "Pretrained").get_ydata()) == [step + 5.0 for step in range(1, 13)]


def test_a_sample_takes_the_latest_cutoff_and_no_history_beyond_its_horizon() -> None:
    both = pl.concat([forecasts(cutoff=23), forecasts(cutoff=35)])
    figure = figures.sample_forecasts(panel(), both, ["a"])
    assert len(line(figure, "Pretrained").get_xdata()) == 12
    assert len(line(figure, "Actual").get_xdata()) == 24 + 12


def test_intervals_are_drawn_for_the_best_model_only() -> None:
    both = pl.concat([forecasts(source="fine_tuned"), forecasts(source="seasonal_naive")])
    figure = figures.sample_forecasts(panel(), both, ["a"])
    areas = figure.axes[0].collections
    assert [area.get_label() for area in areas] == ["80% interval", "40% interval"]
    colour = line(figure, "Fine-tuned").get_color()
    assert colour == styles.model_styles(["fine_tuned"])[0].colour
    assert line(figure, "Seasonal naive").get_color() != colour


def test_a_horizon_of_one_is_a_marker_and_a_gap_stays_a_gap() -> None:
    history = panel().with_columns(target=pl.when(pl.col("timestamp").dt.day() != 2).then("target"))
    figure = figures.sample_forecasts(history, forecasts(horizon=1), ["a"])
    assert line(figure, "Pretrained").get_marker() == "o"
    actual = line(figure, "Actual").get_ydata()
    assert np.isnan(actual).sum() == 24


def test_a_series_without_a_forecast_or_with_dollars_in_its_name_can_be_drawn(tmp_path: Path) -> None:
    figure = figures.sample_forecasts(panel(series=("$x_{",)), forecasts(), ["$x_{"])
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_times_with_a_zone_are_drawn_as_local_time() -> None:
    zone = "America/New_York"
    made = forecasts().with_columns(pl.col("timestamp", "cutoff").dt.replace_time_zone(zone))
    figure = figures.sample_forecasts(panel(zone=zone), made, ["a"])
    assert str(line(figure, "Pretrained").get_xdata()[0]).startswith("2024-01-03T00:00")
    assert figure.axes[0].get_xlabel() == f"Local time ({zone})"


def test_the_best_validation_is_marked() -> None:
    curve = [
        (0, {"train/loss": 3.0, "val/loss": 2.0}),
        (50, {"train/loss": 2.0}),
        (100, {"train/loss": 1.0, "val/loss": 1.0}),
    ]
    figure = diagnostic_figures.loss_curves([*curve, (200, {"train/loss": 0.5, "val/loss": 1.5})])
    assert list(line(figure, "Training").get_xdata()) == [0, 50, 100, 200]
    assert list(line(figure, "Validation").get_xdata()) == [0, 100, 200]
    assert list(line(figure, "Best: 1 at step 100").get_xdata()) == [100]


def test_an_empty_curve_gives_an_empty_figure() -> None:
    assert not diagnostic_figures.loss_curves([]).axes[0].lines


def test_error_by_step_has_a_line_per_model_in_order_of_steps() -> None:
    scores = pl.DataFrame({"step": [2, 1, 1], "model": ["pretrained", "pretrained", "other"], "mae": [4.0, 3.0, 9.0]})
    figure = diagnostic_figures.error_by_step(scores)
    assert list(line(figure, "Pretrained").get_ydata()) == [3.0, 4.0]
    assert list(line(figure, "other").get_ydata()) == [9.0]


def test_calibration_is_drawn_in_percent_beside_the_diagonal() -> None:
    figure = diagnostic_figures.calibration(
        pl.DataFrame({"model": ["a", "a"], "level": [0.9, 0.1], "coverage": [0.8, 0.2]})
    )
    assert list(line(figure, "a").get_xdata()) == [10.0, 90.0]
    assert list(line(figure, "a").get_ydata()) == [20.0, 80.0]
    assert list(line(figure, "Perfectly calibrated").get_ydata()) == [0, 100]


def test_the_uplift_counts_every_series_once() -> None:
    decisions = pl.DataFrame(
        {"gain": [0.2, 0.1, -0.05, -7.0, None, float("nan")], "blend": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]}
    )
    later, axes = diagnostic_figures.uplift_histogram(decisions).axes
    assert counted(later) == 0, "nothing was judged on later windows"
    # Stacked bars: the height of a patch is the count of its own part.
    assert counted(axes) == 4
    assert axes.get_legend_handles_labels()[1] == ["Base kept (2)", "Fine-tuned (2)"]
    assert "2 series without one" in axes.get_title(loc="left")


def test_an_uplift_without_any_gain_can_be_drawn() -> None:
    decisions = pl.DataFrame({"gain": [None], "blend": [0.0]}, schema={"gain": pl.Float64, "blend": pl.Float64})
    assert [counted(axes) for axes in diagnostic_figures.uplift_histogram(decisions).axes] == [0, 0]


def test_the_uplift_is_that_of_fine_tuned_series_on_the_report_windows() -> None:
    decisions = pl.DataFrame(
        {
            "gain": [0.5, 0.25, 0.01],
            "blend": [0.5, 0.5, 0.0],
            "report_base_loss": [2.0, 0.0, 1.0],
            "report_tuned_loss": [2.2, 0.0, 1.0],
        }
    )
    assert decisions.select(diagnostic_figures.uplift(decisions)).to_series().to_list() == [
        pytest.approx(-0.1),
        None,
        0.0,
    ]
    later, gate = diagnostic_figures.uplift_histogram(decisions).axes
    assert (counted(later), counted(gate)) == (1, 3)
    assert all(patch.get_x() < 0 for patch in later.patches if patch.get_height())
    assert later.get_title(loc="left") == "Uplift on the report windows (1 series without one)"
    assert gate.get_title(loc="left") == "Gain at the gate"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["q50"], []),
        (["q10", "q50", "q90"], [(0.8, "q10", "q90")]),
        (["q2.5", "q25", "q50", "q75", "q97.5"], [(0.95, "q2.5", "q97.5"), (0.5, "q25", "q75")]),
        (["q10", "q20", "q50"], []),
    ],
)
def test_bands_need_both_sides(columns: list[str], expected: list[tuple[float, str, str]]) -> None:
    assert [(round(band.coverage, 6), band.low, band.high) for band in styles.bands(columns)] == expected


def test_models_keep_their_colours_whatever_else_is_drawn() -> None:
    alone = styles.model_styles(["pretrained"])[0]
    several = styles.model_styles(["pretrained", "zeta", "fine_tuned", "alpha", "seasonal_naive"])
    assert [style.name for style in several] == ["seasonal_naive", "alpha", "zeta", "pretrained", "fine_tuned"]
    assert alone in several
    assert len({style.colour for style in several}) == 5


def test_neither_import_nor_drawing_touches_pyplot() -> None:
    code = (
        "import sys, forecast.reports.diagnostic_figures as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.loss_curves([(0, {'val/loss': 1.0})])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_probabilities_of_classes_are_stacked_to_a_hundred_below_what_came() -> None:
    names = ["clear", "rain"]
    history = panel(series=("a",)).with_columns(target=pl.Series([names[hour % 2] for hour in range(60)]))
    share = pl.Series([0.1 * k for k in range(1, 9)] + [0.5] * 4)
    made = forecasts(series=("a",)).select("series_id", "timestamp", "cutoff", "step", "source")
    made = made.with_columns(p_clear=share, p_rain=1 - share, **{"class": pl.lit("clear")})
    (axes,) = figures.sample_forecasts(history, made, ["a"]).axes
    lower, upper = (area.get_paths()[0].vertices for area in axes.collections)
    assert upper[:, 1].max() == pytest.approx(100.0)
    assert lower[:, 1].max() == pytest.approx(80.0)
    marks = {line.get_label(): len(line.get_xdata()) for line in axes.lines}
    assert (marks["clear"], marks["rain"]) == (18, 18)


def test_a_confusion_shows_the_counts_of_one_model() -> None:
    rows = [("m", "a", "a", 8), ("m", "a", "b", 2), ("m", "b", "b", 1), ("other", "a", "c", 99)]
    counts = pl.DataFrame(rows, schema=["model", "target", "class", "n"], orient="row")
    (axes,) = diagnostic_figures.confusion(counts, "m").axes
    assert [text.get_text() for text in axes.texts] == ["8", "2", "0", "1"]
    assert axes.images[0].get_array().tolist() == [[0.8, 0.2], [0.0, 1.0]]


def test_the_best_and_the_worst_are_drawn_over_all_their_cutoffs_best_first() -> None:
    cutoffs = (23, 35)
    parts = [forecasts(cutoff, source=source) for cutoff in cutoffs for source in ("pretrained", "fine_tuned")]
    shown = (
        pl.concat(parts).rename({"source": "model"}).select("series_id", "timestamp", "cutoff", "step", "model", "q50")
    )
    decisions = pl.DataFrame(
        {"series_id": ["a", "b", "c"], "report_base_loss": [2.0, 2.0, 1.0], "report_tuned_loss": [2.5, 1.0, 0.1]}
    )
    figure = figures.best_and_worst(panel(), shown, decisions)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["b   +50.0 %", "a   -25.0 %"]
    for label in ("Pretrained", "Fine-tuned"):
        assert list(line(figure, label).get_ydata()) == [step + 5.0 for step in range(1, 13)] * 2
    assert list(line(figure, "Actual").get_ydata()) == [float(hour % 24) for hour in range(48)]
    assert sum(found.get_label() == "Cutoff" for found in figure.axes[0].lines) == 2
    nothing = figures.best_and_worst(panel(), shown.clear(), decisions)
    assert not nothing.axes
