"""`forecast report`: a version, a run, or forecasts -> one page that works offline."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import RegistryConfig, ReportConfig, ReportSettings
from forecast.errors import ConfigError, DataError, RegistryError, listing
from pipelines import console
from pipelines.compose import verb_config

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.load import Loaded
    from forecast.registry import Record, Registry, Run, Version

PAGE: Final = "report.html"
_JOBS: Final = ("train", "finetune", "calibrate", "backtest", "score")
_LOGGED: Final = 200_000
"""Rows of forecasts in the page that a job logs, about."""
# What the page calls the tables that runs log.
_TABLES: Final = {
    "summary": "summary",
    "wins": "wins",
    "segments": "segments",
    "confusion": "confusion",
    "error_by_step": "steps",
    "calibration": "levels",
    "calibrated": "quantiles",
    "coverage": "coverage",
    "decisions": "decisions",
    "rejects": "rejects",
}

Tables = "Mapping[str, pl.LazyFrame]"
History = Callable[[Sequence[str]], "pl.DataFrame"]
"""Returns series_id, timestamp and target of some series."""


def main(argv: list[str]) -> None:
    """Run the verb."""
    config = verb_config(ReportConfig, "report", argv)
    console.setup()
    print(run(config))


def run(config: ReportConfig) -> str:
    """Write the page, and return a line about it."""
    from forecast.data.io import check_writable
    from forecast.registry import Registry

    check_writable(Path(config.output.path))
    target = Path(config.output.path) / PAGE
    with tempfile.TemporaryDirectory() as temporary, console.stage("report") as stage:
        if config.report.scores is not None:
            subject = _forecasts(config, Path(config.report.scores))
        else:
            registry = Registry(config.registry)
            record = _record(registry, config.report.run) if config.report.run else None
            if record and record.job == "score":
                subject = _forecasts(config, Path(record.settings["output.path"]))
            elif record:
                subject = _of_runs(registry, [record], _made(registry, record), Path(temporary))
            else:
                version = registry.resolve(str(config.registry.alias))
                subject = _of_runs(registry, _records(registry, version), version, Path(temporary))
        history = _history(config, subject)
        drawn = subject.write(target, config.report.max_rows, history)
        size = target.stat().st_size / 2**20
        stage.note(series=drawn, mebibytes=f"{size:.1f}")
    return f"{subject.title}: {drawn:,} series, {size:.1f} MiB, {target}"


@dataclass(frozen=True)
class Subject:
    """What a page is of."""
