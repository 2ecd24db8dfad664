"""`forecast report`: a version, a run, or forecasts -> one page that works offline."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import RegistryConfig, ReportConfig, ReportSettings
from forecast.errors import ConfigError, DataError, RegistryError, listing
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_config
from pipelines.verbs import JOBS

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.run_store import Record
    from forecast.tracking.versions import Version

PAGE: Final = "report.html"
_LOGGED: Final = 200_000
"""Rows of forecasts in the page that a job logs, about."""
_TITLES: Final = {name: job.title for name, job in JOBS.items() if job.title}
"""Of the jobs that have a page of their own."""
# The tables that runs log, by what the page calls them; forecasts and scores are put into it in part.
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
_FORECASTS: Final = "forecasts"
_SCORES: Final = "scores"
_JUDGED_HERE: Final = "train", "score"
"""Jobs whose forecasts are of all series, and are not judged by the job itself."""


@dataclass(frozen=True)
class Subject:
    """What a page is of."""

    title: str
    subtitle: str
    tables: "Mapping[str, pl.LazyFrame]"
    """By the names of _TABLES, and forecasts and scores."""
    job: str = ""
    """That made the forecasts."""
    registry: "Registry | None" = None
    version: "Version | None" = None
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    loss: "pl.DataFrame | None" = None


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
        subject, artifact, loaded = _subject(config, Path(temporary)), None, None
        if config.data.path is not None or config.data.uri is not None:
            if subject.registry is None or subject.version is None:
                raise RegistryError(
                    f"{subject.title}: its version, which says how data.path is read, is not in this store; set "
                    "registry.name and registry.tracking_uri, or leave out data.path"
                )
            _, artifact = open_version(subject.registry, str(subject.version.number))
            loaded = read_for(artifact, config.data)
        with console.stage("report") as stage:
            drawn = write(target, subject, config.report.max_rows, artifact, loaded)
            stage.note(series=drawn, megabytes=target.stat().st_size / 1e6)
    return f"{subject.title}: {drawn:,} series, {target}"


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
    """Log the page of a job that is about to end, in one call of MLflow, and keep it in a folder, if there is one.

    It has no versions: these are asked for by `forecast report`.
    """
    subject = Subject(
        title=f"{_TITLES[job]} of {version}",
        subtitle=version.kind.replace("_", "-"),
        tables={"rejects": loaded.rejects.lazy(), **{name: table.lazy() for name, table in tables.items()}},
        job=job,
        facts=_facts(version),
        settings={f"{_TITLES[job]}, run {run.id}": run.settings},
        loss=loss,
    )
    with tempfile.TemporaryDirectory() as temporary:
        page = (folder or Path(temporary)) / PAGE
        write(page, subject, _LOGGED, artifact, loaded)
        run.file(page)


def write(
    target: Path, subject: Subject, max_rows: int, artifact: "Artifact | None" = None, loaded: "Loaded | None" = None
) -> int:
    """Write the page; return how many series are drawn in it. Their history is from `loaded`, if that is given."""
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID
    from forecast.reports.report import write_report
    from pipelines.models import lineage

    tables, facts = dict(subject.tables), dict(subject.facts)
    forecasts, total, cutoffs = few(tables.get(_FORECASTS), max_rows)
    series = forecasts[SERIES_ID].unique().sort()
    history = _history(forecasts, artifact, loaded)
    if loaded is not None and artifact is not None and subject.job in _JUDGED_HERE and total:
        tables |= _judged(forecasts, artifact, loaded)
    if total:
        here, drawn = len(series), forecasts[CUTOFF].n_unique()
        facts["series"] = f"{total:,}" + (f", {here:,} of them here" if here < total else "")
        facts["cutoffs"] = str(cutoffs[-1]) if len(cutoffs) == 1 else f"{len(cutoffs):,}, {cutoffs[0]} to {cutoffs[-1]}"
        facts["cutoffs"] += f", the last {drawn:,} here" if drawn < len(cutoffs) else ""
    scores = tables.get(_SCORES)
    versions = None
    if subject.registry is not None and subject.version is not None:
        versions = lineage(subject.registry, shown=subject.version.number)
    found: dict[str, Any] = {name: tables[table].collect() for name, table in _TABLES.items() if table in tables}
    write_report(
        target,
        title=subject.title,
        subtitle=subject.subtitle,
        facts=facts,
        history=history,
        forecasts=forecasts,
        scores=None if scores is None else scores.filter(pl.col(SERIES_ID).is_in(series.implode())).collect(),
        loss=subject.loss,
        lineage=versions,
        settings=subject.settings,
        **found,
    )
    return len(series)


# ---- What there is ----


def _subject(config: ReportConfig, temporary: Path) -> Subject:
    from forecast.tracking.registry import Registry

    settings = config.report
    if settings.scores is not None:
        return _of_scores(config.registry, settings, Path(settings.scores))
    registry = Registry(config.registry)
    if settings.run is None:
        version = registry.resolve(str(config.registry.alias))
        return _of_runs(registry, version, list(_records(registry, version)), temporary)
    record = registry.record(settings.run)
    if record is None or record.job not in _TITLES:
        found = f"a run of {record.job or 'something else'}" if record else "no run of this store"
        raise ConfigError(f"report.run={settings.run}: {found}; give one of {', '.join(_TITLES)} (`forecast ui`)")
    if record.job == "score":
        return _of_scores(config.registry, settings, Path(record.settings["output.path"]))
    return _of_runs(registry, _version(registry, record), [record], temporary)


def _records(registry: "Registry", version: "Version") -> "Iterator[Record]":
    """Yield the runs that judged and made a version, and those that made what it was made from; the latest first."""
    from forecast.backtesting.result import BACKTEST_RUN

    known = {each.number: each for each in registry.versions()}
    ids, each = [version.tags.get(BACKTEST_RUN, "")], known.get(version.number)
    while each is not None:
        ids.append(each.run_id)
        each = known.pop(each.parent or 0, None)
    for run_id in filter(None, ids):
        if record := registry.record(run_id):
            yield record


def _version(registry: "Registry", record: "Record") -> "Version | None":
    """Return the version that a run has judged or made, None if it is gone."""
    if number := record.tags.get("version"):
        return registry.find(number)
    return next((each for each in registry.versions() if each.run_id == record.id), None)


def _of_runs(
    registry: "Registry",
    version: "Version | None",
    records: "Sequence[Record]",
    folder: Path,
) -> Subject:
    """Return what runs have left: of each table that of the first run which has it."""
    import polars as pl

    from forecast.names import MODEL, TRAIN_LOSS, VAL_LOSS

    tables: dict[str, pl.LazyFrame] = {}
    job, loss = "", None
    for record in records:
        for name in (*_TABLES.values(), _FORECASTS, _SCORES):
            if name not in tables and f"{name}.parquet" in record.files:
                file = registry.fetch(record.id, f"{name}.parquet", folder / record.id)
                tables[name] = pl.scan_parquet(file, glob=False, hive_partitioning=False)
                job = record.job if name == _FORECASTS else job
        if loss is None or loss.is_empty():
            loss = registry.curve(record.id, (TRAIN_LOSS, VAL_LOSS)).rename({"name": MODEL, "value": "loss"})
    what = str(version or registry.name)
    return Subject(
        title=f"{_TITLES[records[0].job]} of {what}" if len(records) == 1 else what,
        subtitle=", ".join([version.kind.replace("_", "-"), *version.aliases]) if version else "",
        tables=tables,
        job=job,
        registry=registry,
        version=version,
        facts=_facts(version) if version else {},
        settings={f"{_TITLES.get(record.job, record.job)}, run {record.id}": record.settings for record in records},
        loss=loss,
    )


def _facts(version: "Version") -> dict[str, str]:
    seen = {"trained_until": "trained until", "final_until": "final fit until"}
    return {
        "data": version.tags.get("data_digest", "")[:12],
        "digest": version.digest[:12],
        **{name: version.tags[tag].replace("T", " ") for tag, name in seen.items() if tag in version.tags},
    }


def _of_scores(registry: RegistryConfig, settings: ReportSettings, folder: Path) -> Subject:
    """Return the latest cutoffs of a folder that scoring has written."""
    import polars as pl

    from forecast.names import CUTOFF
    from forecast.scoring.manifests import current, models_of, read_manifests
    from forecast.scoring.sinks.parquet import ParquetSink
    from forecast.tracking.registry import Registry

    contents = read_manifests(folder)
    models = models_of(contents)
    if len(models) > 1:
        contents = [content for content in contents if content["model"] == registry.name]
        if not contents:
            raise ConfigError(f"report.scores={folder}: has forecasts of {listing(models)}; set registry.name")
    contents = current(contents)
    moments = [datetime.fromisoformat(content[CUTOFF]) for content in contents]
    if settings.cutoff is not None:
        wanted = settings.cutoff
        same = [moment == (wanted if wanted.tzinfo else wanted.replace(tzinfo=moment.tzinfo)) for moment in moments]
        contents = contents[: same.index(True) + 1] if any(same) else []
    if not contents:
        what = f"the cutoff {settings.cutoff}" if moments else "forecasts"
        have = f"; it has {len(moments):,}, {moments[0]} to {moments[-1]}" if moments else " (it has no manifests)"
        raise DataError(f"report.scores={folder}: {what} is not there{have}")
    contents = contents[-settings.cutoffs :]
    if any("files" not in content for content in contents):
        raise ConfigError(f"report.scores={folder}: its forecasts are in tables (output.sink); Parquet files are read")
    latest = contents[-1]

    def joined(frames: "Iterable[pl.LazyFrame]") -> pl.LazyFrame:
        return pl.concat([frame.select(pl.exclude("^sample_\\d+$")) for frame in frames], how="diagonal_relaxed")

    sink = ParquetSink(folder)
    forecasts = (frame for content in contents for frame in sink.forecasts(content))
    own = Registry(registry.model_copy(update={"name": latest["model"]}))
    version = own.find(latest["model_version"])
    there = version is not None and version.digest == latest["model_digest"]
    series = latest["series"]
    return Subject(
        title=f"Forecasts of {latest['model']} v{latest['model_version']}",
        subtitle=f"From the cutoff {latest[CUTOFF]}, and the {len(contents) - 1} before it"
        if len(contents) > 1
        else f"From the cutoff {latest[CUTOFF]}",
        tables={_FORECASTS: joined(forecasts), "rejects": joined(sink.rejects(latest))},
        job="score",
        registry=own if there else None,
        version=version if there else None,
        facts={
            "data": latest["data_digest"][:12],
            "digest": latest["model_digest"][:12],
            **({"trained until": until.replace("T", " ")} if (until := latest.get("trained_until")) else {}),
            "rows": f"{latest['rows']['in']:,}",
            "rejects": f"{sum(latest['rejects'].values()):,}",
            "series rejected": f"{series['rejected']:,} of {series['in']:,}",
            **{name.replace("_", "-"): f"{count:,} series" for name, count in latest["sources"].items()},
        },
        settings={
            f"Scoring, cutoff {content[CUTOFF]}": {
                name: str(value) for name, value in content.items() if not isinstance(value, dict)
            }
            for content in reversed(contents)
        },
    )


# ---- What is drawn ----


def few(forecasts: "pl.LazyFrame | None", most: int = _LOGGED) -> "tuple[pl.DataFrame, int, pl.Series]":
    """Return about so many rows, of the latest cutoffs of series evenly picked; how many series, and the cutoffs."""
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID, SOURCE, STEP, TIMESTAMP
    from pipelines.jobs.reading import pick

    if forecasts is None:
        moment = pl.Datetime("us")
        times = {TIMESTAMP: moment, CUTOFF: moment}
        nothing = pl.DataFrame(schema={SERIES_ID: pl.String, **times, STEP: pl.Int32, SOURCE: pl.String})
        return nothing, 0, nothing[CUTOFF]
    ids, cutoffs = (
        forecasts.select(pl.col(name).unique().sort()).collect(engine="streaming").to_series()
        for name in (SERIES_ID, CUTOFF)
    )
    rows = forecasts.select(pl.len()).collect(engine="streaming").item()
    each = max(1, rows // max(1, len(ids) * len(cutoffs)))
    some = pick(ids.to_list(), max(1, most // each))
    latest = cutoffs.tail(max(1, most // (each * max(1, len(some)))))
    shown = pl.col(SERIES_ID).is_in(some) & pl.col(CUTOFF).is_in(latest.implode())
    return forecasts.filter(shown).collect(engine="streaming"), len(ids), cutoffs


def _history(forecasts: "pl.DataFrame", artifact: "Artifact | None", loaded: "Loaded | None") -> "pl.DataFrame":
    """Return the history of series near their forecasts: from the panel, else what a backtest has written of it."""
    import numpy as np
    import polars as pl

    from forecast.names import CUTOFF, SERIES_ID, TARGET, TIMESTAMP
    from forecast.reports.report import context

    if loaded is not None and artifact is not None and forecasts.height:
        first = loaded.panel.grid.floor(forecasts[CUTOFF].min()) - context(forecasts)  # type: ignore[arg-type]
        near = loaded.panel.between(first, loaded.panel.last_index)
        drawn = np.flatnonzero(np.isin(near.series_id, forecasts[SERIES_ID].unique().to_list()))
        return near.frame(drawn, artifact.classes)
    if TARGET in forecasts.columns:
        return forecasts.select(SERIES_ID, TIMESTAMP, TARGET).unique([SERIES_ID, TIMESTAMP])
    return forecasts.clear().select(SERIES_ID, TIMESTAMP).with_columns(pl.lit(None, pl.String).alias(TARGET))


def _judged(forecasts: "pl.DataFrame", artifact: "Artifact", loaded: "Loaded") -> "dict[str, pl.LazyFrame]":
    """Return steps, levels and scores of forecasts, as far as it is known what came."""
    import numpy as np
    import polars as pl

    from forecast.data.windows import windows_at
    from forecast.metrics.seasonal_naive import seasonal_naive_errors
    from forecast.metrics.summaries import coverage_by_level, error_by_step
    from forecast.names import CUTOFF, MODEL, SERIES_ID, TARGET, TIMESTAMP, quantile_column
    from forecast.reports.figures import with_model

    panel, season = loaded.panel, loaded.data.season_length
    moments = forecasts[CUTOFF].unique().sort()
    places = {moment: panel.grid.floor(moment) for moment in moments}
    actual = panel.between(min(places.values()), panel.last_index).frame(classes=artifact.classes)
    known = with_model(forecasts).join(actual.drop_nulls(TARGET), on=[SERIES_ID, TIMESTAMP])
    if known.is_empty():
        return {}
    found = {"steps": error_by_step(known).lazy(), "levels": coverage_by_level(known).lazy()}
    if artifact.classes is not None or season is None:
        return found
    scales = []
    for moment, place in places.items():
        at = pl.lit(moment).cast(moments.dtype).alias(CUTOFF)
        windows = windows_at(panel, place)
        ids = panel.series_id[windows.series].tolist()
        scale = seasonal_naive_errors(panel, windows, season)[0]
        scales.append(pl.DataFrame({SERIES_ID: ids, "scale": np.where(scale > 0, scale, np.nan)}).with_columns(at))
    error = (pl.col(TARGET) - pl.col(quantile_column(0.5))).abs().mean()
    scores = known.group_by(SERIES_ID, CUTOFF, MODEL).agg(error.alias("error"))
    scored = scores.join(pl.concat(scales), on=[SERIES_ID, CUTOFF]).with_columns(mase=pl.col("error") / pl.col("scale"))
    return {**found, _SCORES: scored.lazy()}
