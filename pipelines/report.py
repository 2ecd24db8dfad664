"""`forecast report`: a version, a run, or forecasts -> one HTML page that works offline."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import ReportConfig
from forecast.errors import RegistryError
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_config

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version
from pipelines.reports.content import LOGGED, loss_history, sample_rows, score_tables
from pipelines.reports.subject import FORECASTS, SCORES, TABLES, TITLES, Subject, facts_of, subject_of

PAGE: Final = "report.html"

_JUDGED_HERE: Final = "train", "score"
"""Jobs that forecast all series without scoring the forecasts themselves."""


def main(argv: list[str]) -> None:
    """Run the verb."""
    config = verb_config(ReportConfig, "report", argv)
    console.setup()
    print(run(config))


def run(config: ReportConfig) -> str:
    """Write the page, and return a line about it."""
    from forecast.data.files import check_writable
    from pipelines.jobs.reading import open_version, read_for

    check_writable(Path(config.output.path))
    target = Path(config.output.path) / PAGE
    with tempfile.TemporaryDirectory() as temporary:
        subject, artifact, loaded = subject_of(config, Path(temporary)), None, None
        if config.data.path is not None or config.data.uri is not None:
            if subject.registry is None or subject.version is None:
                raise RegistryError(
                    f"{subject.title}: its version, which says how data.path is read, is not in this store; set "
                    "registry.name and registry.tracking_uri, or leave out data.path"
                )
            _, artifact = open_version(subject.registry, str(subject.version.number))
            loaded = read_for(artifact, config.data)
        with console.stage("report") as stage:
            n_drawn = write(target, subject, config.report.max_rows, artifact, loaded)
            stage.note(series=n_drawn, megabytes=target.stat().st_size / 1e6)
    return f"{subject.title}: {n_drawn:,} series, {target}"


def log(
    run: "Run",
    job: str,
    version: "Version",
    artifact: "Artifact",
    loaded: "Loaded",
    tables: "Mapping[str, pl.DataFrame | pl.LazyFrame]",
    *,
    loss: "pl.DataFrame | None" = None,
    folder: Path | None = None,
) -> None:
    """Log the page of a job at its end, in one call of MLflow, and keep it in a folder if given.

    It has no lineage, which `forecast report` adds.
    """
    subject = Subject(
        title=f"{TITLES[job]} of {version}",
        subtitle=version.kind.replace("_", "-"),
        tables={"rejects": loaded.rejects.lazy(), **{name: table.lazy() for name, table in tables.items()}},
        job=job,
        facts=facts_of(version),
        settings={f"{TITLES[job]}, run {run.id}": run.settings},
        loss=loss,
    )
    with tempfile.TemporaryDirectory() as temporary:
        page = (folder or Path(temporary)) / PAGE
        write(page, subject, LOGGED, artifact, loaded)
        run.file(page)


def write(
    target: Path, subject: Subject, max_rows: int, artifact: "Artifact | None" = None, loaded: "Loaded | None" = None
) -> int:
    """Write the page; return the number of series drawn in it. Their history comes from `loaded` if given."""
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID
    from forecast.reports.report import ReportContent, write_report
    from pipelines.jobs.lineage import lineage

    tables, facts = dict(subject.tables), dict(subject.facts)
    forecasts, total, cutoffs = sample_rows(tables.get(FORECASTS), max_rows)
    series = forecasts[SERIES_ID].unique().sort()
    history = loss_history(forecasts, artifact, loaded)
    if loaded is not None and artifact is not None and subject.job in _JUDGED_HERE and total:
        tables |= score_tables(forecasts, artifact, loaded)
    if total:
        n_series, n_cutoffs = len(series), forecasts[CUTOFF].n_unique()
        facts["series"] = f"{total:,}" + (f", {n_series:,} of them here" if n_series < total else "")
        facts["cutoffs"] = str(cutoffs[-1]) if len(cutoffs) == 1 else f"{len(cutoffs):,}, {cutoffs[0]} to {cutoffs[-1]}"
        facts["cutoffs"] += f", the last {n_cutoffs:,} here" if n_cutoffs < len(cutoffs) else ""
    scores = tables.get(SCORES)
    versions = None
    if subject.registry is not None and subject.version is not None:
        versions = lineage(subject.registry, marked=subject.version.number)
    frames: dict[str, Any] = {name: tables[table].collect() for name, table in TABLES.items() if table in tables}
    content = ReportContent(
        title=subject.title,
        subtitle=subject.subtitle,
        facts=facts,
        history=history,
        forecasts=forecasts,
        scores=None if scores is None else scores.filter(pl.col(SERIES_ID).is_in(series.implode())).collect(),
        loss=subject.loss,
        lineage=versions,
        settings=subject.settings,
        **frames,
    )
    write_report(target, content)
    return len(series)
