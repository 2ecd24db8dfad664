"""Results of a quick start: forecasts as CSV, the table of accuracy, and the page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.checkpoints import NANO
from forecast.names import AUTO_ETS, MODEL, SOURCE_PRETRAINED, SOURCE_SEASONAL_NAIVE, TRAINED
from pipelines.jobs import console

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.backtesting.result import BacktestResult
    from forecast.data.ingest.loaded import Loaded
from pipelines.reports.content import LOGGED
from pipelines.reports.subject import FORECASTS, SCORES, Subject

_COLUMNS: Final = (MODEL, "mase", "wql", "wape", "coverage", "n_series", "n_windows")
_LABELS: Final = {
    SOURCE_SEASONAL_NAIVE: "seasonal naive",
    AUTO_ETS: "AutoETS",
    NANO: f"{NANO}, without training",
    SOURCE_PRETRAINED: "trained on this file",
}


def write_csv(frames: "Mapping[str, pl.DataFrame]", target: Path) -> "pl.DataFrame":
    """Write forecasts by the name of their model, with six digits, and return them. Raises OutputError.

    The source of a forecast is the name of its model, or a fallback.
    """
    import polars as pl
    import polars.selectors as cs

    from forecast.data.files import write_text_atomic
    from forecast.names import CUTOFF, MODEL_VERSION, SOURCE, TIMESTAMP

    parts = [
        frame.drop(MODEL_VERSION, strict=False).select(
            pl.lit(name).alias(MODEL), pl.exclude(SOURCE), pl.col(SOURCE).replace(SOURCE_PRETRAINED, name)
        )
        for name, frame in frames.items()
    ]
    table = pl.concat(parts, how="diagonal_relaxed")
    days = table.select((pl.col(TIMESTAMP, CUTOFF).dt.time() == pl.time(0)).all()).row(0) == (True, True)
    zoned = table.schema[TIMESTAMP].time_zone is not None  # type: ignore[attr-defined]
    form = "%Y-%m-%d" if days and not zoned else "%Y-%m-%d %H:%M" + "%z" * zoned
    text = table.with_columns(cs.float().round_sig_figs(6)).write_csv(datetime_format=form)
    write_text_atomic(text, target)
    return table


def print_accuracy(result: "BacktestResult") -> None:
    """Print MASE, WQL and coverage of each model."""
    import polars as pl

    from forecast.reports.styles import bands

    table = _ordered(result.summary).select(
        pl.col(MODEL).replace(_LABELS), MASE="mase", WQL="wql", coverage="coverage", windows="n_windows"
    )
    interval = bands(result.scan("forecasts").collect_schema().names())[0].coverage
    title = f"Accuracy on the last horizons, which training has not seen (coverage of the {interval:.0%} interval)"
    console.table(table, title)


def _ordered(summary: "pl.DataFrame") -> "pl.DataFrame":
    """Return the metrics of baselines first, the trained model last."""
    ranks = {name: place for place, name in enumerate(_LABELS)}
    order = [ranks.get(name, -1) for name in summary[MODEL]]
    return summary[sorted(range(len(order)), key=order.__getitem__)]


def write_page(
    target: Path,
    title: str,
    facts: Mapping[str, str],
    forecasts: "pl.DataFrame",
    *,
    result: "BacktestResult | None",
    model: "Artifact",
    loaded: "Loaded",
) -> None:
    """Write the page: the accuracy, and the forecasts from past cutoffs and from the end of the table."""
    import polars as pl

    from pipelines import report

    def name_trained(frame: "pl.DataFrame | pl.LazyFrame") -> pl.LazyFrame:
        return frame.lazy().with_columns(pl.col(MODEL).replace(SOURCE_PRETRAINED, TRAINED))

    tables: dict[str, pl.LazyFrame] = {"rejects": loaded.rejects.lazy(), FORECASTS: forecasts.lazy()}
    if result is not None:
        columns = [name for name in _COLUMNS if name in result.summary.columns]
        tables["summary"] = name_trained(_ordered(result.summary).select(columns))
        names = "steps", "levels", "wins"
        tables |= {name: name_trained(table) for name, table in result.tables().items() if name in names}
        tables[SCORES] = name_trained(result.scan(SCORES))
        tables[FORECASTS] = pl.concat([name_trained(result.scan(FORECASTS)), tables[FORECASTS]], how="diagonal_relaxed")
    subject = Subject(
        title=title,
        subtitle="Forecasts from the end of the table, and from past cutoffs beside what happened",
        tables=tables,
        facts=facts,
    )
    report.write(target, subject, LOGGED, model, loaded)
