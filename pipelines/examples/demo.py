"""`forecast demo [OUT] [KEY=VALUE ...]`: the whole job on real data, from the table to forecasts and a report."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import SecretStr

from forecast.config import (
    BacktestConfig,
    FinetuneConfig,
    PromoteConfig,
    RegistryConfig,
    ScoreConfig,
    TrainConfig,
    load,
)
from forecast.errors import ConfigError, GateRefused
from pipelines.jobs import console
from pipelines.jobs.command_line import compose

if TYPE_CHECKING:
    import polars as pl

    from forecast.backtesting.result import BacktestResult

USAGE: Final = """usage: forecast demo [OUT] [KEY=VALUE ...]

Train, fine-tune, backtest, promote and score on hourly departures from New York's airports, below OUT (demo when not
given).
KEY=VALUE are settings of `forecast train`. Needs the demo extra: pip install 'gatecast[demo]'."""


class _Clock:
    """Stopwatch: seconds per stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


class _Results(NamedTuple):
    """Results of the demo's jobs, for the report."""

    panel: "pl.DataFrame"
    backtest: "BacktestResult"
    summary: "pl.DataFrame"
    """Metrics by model; see `held_out`."""
    decisions: "pl.DataFrame"
    """Of the gate, a row per series."""
    forecasts: "pl.DataFrame"
    rejects: "pl.DataFrame"
    content: "dict[str, Any]"
    """Manifest of the forecasts."""
    versions: "pl.DataFrame"
    """Lineage of the scored version."""


def main(argv: list[str]) -> None:
    """Run the verb."""
    if any(word in ("-h", "--help") for word in argv):
        print(USAGE)
        return
    folders = [word for word in argv if "=" not in word]
    if len(folders) > 1:
        raise ConfigError(USAGE)
    console.setup()
    run(Path(folders[0] if folders else "demo"), [word for word in argv if "=" in word])


def run(folder: Path, overrides: Sequence[str]) -> None:
    """Run every verb once and print the results."""
    clock = _Clock()
    with clock("import"):
        import polars as pl

        from forecast.data.files import write_parquet_atomic
        from forecast.datasets.nyc_flights import nyc_flights
        from forecast.names import SERIES_ID
        from forecast.tracking.registry import Registry
        from pipelines import backtest, finetune, promote, score, train
        from pipelines.jobs.lineage import lineage

    table, uri = folder / "panel.parquet", f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    with clock("data"), console.stage("data") as stage:
        panel = nyc_flights()
        write_parquet_atomic(panel, table)
        stage.note(rows=panel.height, series=panel[SERIES_ID].n_unique(), table=table)
    data, registry = [f"data.path={table}"], ["registry.name=nyc-flights", f"registry.tracking_uri={uri}"]
    with clock("train"):
        train_config = compose("train", ["experiment=nyc_flights", *data, *registry, *overrides])
        pretrained, line = train.run(load(TrainConfig, train_config))
        print(f"{pretrained} (pretrained): {line}")
    with clock("finetune"):
        challenger, line, decisions = finetune.run(load(FinetuneConfig, compose("finetune", [*data, *registry])))
        print(f"{challenger} (fine_tuned): {line}")
    with clock("backtest"):
        backtest_config = load(BacktestConfig, compose("backtest", [*data, *registry, "registry.alias=challenger"]))
        _, line, result = backtest.run(backtest_config)
        print(f"{challenger}: {line}")
    with clock("promote"):
        try:
            _, verdict = promote.run(load(PromoteConfig, compose("promote", registry)))
            decision = f"{challenger} is champion: {verdict}"
        except GateRefused as refused:
            decision = f"not promoted: {refused}"
        print(decision)
    with clock("score"):
        scored = load(
            ScoreConfig, compose("score", [*data, *registry, f"output.path={folder / 'scores'}", *_live(uri)])
        )
        outcome = score.run(scored)
        outcome.check()
        print(f"{outcome.version}: {outcome.line}")
    (content,) = (output.content for output in outcome.outputs)
    with clock("report"), console.stage("report") as stage:
        page, summary = folder / "report.html", held_out(result.scores)
        configured = RegistryConfig(name=outcome.version.name, tracking_uri=SecretStr(uri))
        tables = _read_output(folder / "scores", content)
        versions = lineage(Registry(configured), outcome.version.number)
        _report(page, _Results(panel, result, summary, decisions, *tables, content, versions), clock)
        stage.note(page=page)
    console.table(summary, "The held-out last week, and all held-out weeks (less is better)")
    console.table(pl.DataFrame({"stage": list(clock.seconds), "seconds": [f"{s:.1f}" for s in clock.seconds.values()]}))
    print(
        f"{content['rows']['in']:,} rows, "
        f"{content['series']['in']:,} series = {content['series']['forecast']:,} forecast + "
        f"{content['series']['rejected']:,} rejected, {sum(content['rejects'].values()):,} rejects, "
        f"{sum(clock.seconds.values()):.0f} s\n{decision}\n"
        f"report: {page}\nruns and models: forecast ui registry.tracking_uri={uri}"
    )


def _read_output(folder: Path, content: "dict[str, Any]") -> "tuple[pl.DataFrame, pl.DataFrame]":
    """Return the forecasts and the rejects of a manifest."""
    import polars as pl

    from forecast.scoring.sinks.parquet import ParquetSink

    sink = ParquetSink(folder)
    return pl.concat(sink.forecasts(content)).collect(), pl.concat(sink.rejects(content)).collect()


def _live(uri: str) -> list[str]:
    """Return the alias to score with: the champion, or the pretrained model without one."""
    from forecast.names import CHAMPION, PRETRAINED
    from forecast.tracking.registry import Registry

    champion = Registry(RegistryConfig(name="nyc-flights", tracking_uri=SecretStr(uri))).find(CHAMPION)
    return [f"registry.alias={CHAMPION if champion else PRETRAINED}"]


def held_out(scores: "pl.DataFrame") -> "pl.DataFrame":
    """Return MASE, WQL and coverage per model on the last cutoff and on all of them."""
    import polars as pl

    from forecast.metrics.summaries import summarise
    from forecast.names import CUTOFF, MODEL

    last = summarise(scores.filter(pl.col(CUTOFF) == pl.col(CUTOFF).max())).select(
        MODEL, mase_last_week="mase", wql_last_week="wql"
    )
    overall = summarise(scores).select(MODEL, "mase", "wql", "wape", "coverage", "n_windows")
    return last.join(overall, on=MODEL, maintain_order="left")


def _report(page: Path, results: "_Results", clock: _Clock) -> None:
    """Write the report of the demo."""
    import polars as pl

    from forecast.datasets.nyc_flights import TIME_ZONE
    from forecast.names import SERIES_ID, TARGET, TIMESTAMP
    from forecast.reports.report import ReportContent, write_report

    content, backtest = results.content, results.backtest
    facts = {
        "model": f"{content['model']} v{content['model_version']}",
        "digest": str(content["model_digest"])[:12],
        "rows": f"{content['rows']['in']:,}",
        "series": f"{content['series']['forecast']:,} of {content['series']['in']:,} forecast",
        "rejects": f"{sum(content['rejects'].values()):,}",
        "next cutoff": str(results.forecasts["cutoff"][0]),
    }
    report = ReportContent(
        title="NYC departures",
        subtitle="Hourly departures per airport and carrier, 2013: forecasts of held-out weeks beside what happened",
        summary=results.summary,
        facts=facts,
        stages=list(clock.seconds.items()),
        history=results.panel.select(SERIES_ID, pl.col(TIMESTAMP).dt.convert_time_zone(TIME_ZONE), TARGET),
        forecasts=backtest.forecasts,
        scores=backtest.scores,
        decisions=results.decisions,
        rejects=results.rejects,
        error_by_step=backtest.steps,
        calibration=backtest.levels,
        wins=backtest.wins,
        lineage=results.versions,
    )
    write_report(page, report)
