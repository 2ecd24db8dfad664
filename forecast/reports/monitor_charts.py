"""Chart data of the monitoring page: accuracy over time, by age and by interval, and series with an alarm."""

from collections.abc import Iterator
from typing import Any, Final

import polars as pl

from forecast.monitoring.labels import AGE, ALL, FORECAST, HISTORY, RECENT, TIME
from forecast.monitoring.result import MonitorResult, coverage_name
from forecast.names import SERIES_ID, SOURCE_FINE_TUNED, SOURCE_SEASONAL_NAIVE, TARGET, TIMESTAMP, quantile_column
from forecast.reports.page import milliseconds, rounded, runs
from forecast.reports.styles import model_styles

MODELS: Final = {FORECAST: "Forecast", SOURCE_SEASONAL_NAIVE: "Seasonal naive"}
COLOURS: Final = {
    FORECAST: model_styles([SOURCE_FINE_TUNED])[0].colour,
    SOURCE_SEASONAL_NAIVE: model_styles([SOURCE_SEASONAL_NAIVE])[0].colour,
}
_ALARMS: Final = {
    SERIES_ID: "Series",
    "mase": "Recent MASE",
    "limit": "Limit",
    "median": "Usual",
    "reference": "Usual in",
    "n_steps": "Steps",
    "times": "Times the usual",
}


def _line(frame: pl.DataFrame, column: str, label: str, colour: str | None, dash: str = "solid") -> dict[str, Any]:
    return {"label": label, "colour": colour, "dash": dash, "y": frame.select(rounded(column)).to_series().to_list()}


def over_time(result: MonitorResult) -> dict[str, Any]:
    """Return the charts of accuracy and coverage by day or cutoff."""
    by_time = result.metrics.filter(group=TIME)
    parts = {model: by_time.filter(model=model) for model in MODELS}
    of_forecast = parts[FORECAST]
    times = of_forecast.select(pl.col("value").str.to_datetime("%Y-%m-%d %H:%M:%S").dt.epoch("ms"))
    charts = [
        {"title": title, "series": [_line(parts[model], name, MODELS[model], COLOURS[model]) for model in MODELS]}
        for title, name in (("MASE", "mase"), ("WQL", "wql"), ("Bias", "bias"))
    ]
    intervals = [
        _line(
            of_forecast,
            coverage_name(band),
            f"{100 * band:g} %",
            None if index else COLOURS[FORECAST],
            "solid" if index == 0 else "dot",
        )
        for index, band in enumerate(result.bands[:: max(1, len(result.bands) - 1)])
    ]
    return {
        "x": times.to_series().to_list(),
        "charts": [*charts, {"title": "Share inside the intervals", "series": intervals}],
    }


def by_age(result: MonitorResult) -> Iterator[dict[str, Any]]:
    """Yield the MASE by age, and the coverage by interval, of both windows."""
    metrics = result.metrics.filter(group=AGE)
    if metrics.is_empty():
        return
    series = []
    for window, dash in ((RECENT, "solid"), (HISTORY, "dot")):
        for model, label in MODELS.items():
            part = metrics.filter(window=window, model=model)
            if part.height:
                series.append(_line(part, "mase", f"{label}, {window}", COLOURS[model], dash))
    ages = metrics["value"].unique(maintain_order=True).to_list()
    yield {"title": "MASE by age", "axis": "Steps after the cutoff", "x": ages, "series": series}
    overall = result.metrics.filter(group=ALL, model=FORECAST)
    lines = [{"label": "Ideally", "colour": None, "dash": "dot", "y": list(result.bands)}]
    for window in (RECENT, HISTORY):
        row = overall.filter(window=window)
        if row.height:
            shares = [row[coverage_name(band)].item() for band in result.bands]
            colour = COLOURS[FORECAST] if window == RECENT else COLOURS[SOURCE_SEASONAL_NAIVE]
            lines.append({"label": window.capitalize(), "colour": colour, "dash": "solid", "y": shares})
    bands = [f"{100 * band:g} %" for band in result.bands]
    yield {"title": "Share inside each interval", "axis": "Interval", "x": bands, "series": lines}


def alarm_series(result: MonitorResult, history: pl.DataFrame) -> dict[str, Any]:
    """Return the table of series with an alarm, and forecasts and observations of those kept for the page."""
    alarms = result.alarms.filter(status="alarm").with_columns(times=pl.col("mase") / pl.col("median"))
    columns = list(_ALARMS)
    numeric = [name for name in columns if alarms.schema[name].is_numeric()]
    rows = alarms.select(rounded(name) if name in numeric else pl.col(name) for name in columns).rows()
    with_forecasts = set(result.shown[SERIES_ID].unique())
    low, middle, high = (
        quantile_column(level) for level in ((1 - result.bands[0]) / 2, 0.5, (1 + result.bands[0]) / 2)
    )
    observed = history.select(SERIES_ID, milliseconds(TIMESTAMP), rounded(TARGET)).partition_by(SERIES_ID, as_dict=True)
    forecasts = result.shown.select(SERIES_ID, milliseconds(TIMESTAMP), *map(rounded, (low, middle, high)))
    parts = forecasts.partition_by(SERIES_ID, as_dict=True)
    series = []
    for row in alarms.filter(pl.col(SERIES_ID).is_in(with_forecasts)).iter_rows(named=True):
        name = row[SERIES_ID]
        part, past = parts[name,], observed[name,]
        series.append(
            {
                "name": name,
                "why": f"Recent MASE {row['mase']:.3g} over {row['n_steps']:,} steps; in its {row['reference']} it is "
                f"{row['median']:.3g} as a rule, and the limit is {row['limit']:.3g}.",
                "t": runs(past[TIMESTAMP].to_list()),
                "y": past[TARGET].to_list(),
                "f": {
                    "t": runs(part[TIMESTAMP].to_list()),
                    "q": part[middle].to_list(),
                    "low": part[low].to_list(),
                    "high": part[high].to_list(),
                },
            }
        )
    heads = [{"label": _ALARMS[name], "numeric": name in numeric} for name in columns]
    return {"columns": heads, "rows": rows, "series": series}
