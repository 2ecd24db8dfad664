"""Subjects of reports: a version, a run, or forecasts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import RegistryConfig, ReportConfig, ReportSettings, SinkConfig
from forecast.errors import ConfigError, DataError, listing
from pipelines.verbs import JOBS

if TYPE_CHECKING:
    import polars as pl

    from forecast.tracking.registry import Registry
    from forecast.tracking.run_store import Record
    from forecast.tracking.versions import Version

TITLES: Final = {name: job.title for name, job in JOBS.items() if job.title}
# Tables logged by runs, by their names in the page; forecasts and scores are sampled.
TABLES: Final = {
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
FORECASTS: Final = "forecasts"
SCORES: Final = "scores"


@dataclass(frozen=True)
class Subject:
    """Subject of a page."""

    title: str
    subtitle: str
    tables: "Mapping[str, pl.LazyFrame]"
    """Tables by the names of TABLES, and forecasts and scores."""
    job: str = ""
    """The job that made the forecasts."""
    registry: "Registry | None" = None
    version: "Version | None" = None
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    loss: "pl.DataFrame | None" = None


# ---- Look-up of the subject ----


def subject_of(config: ReportConfig, temporary: Path) -> Subject:
    """Return the subject of a report."""
    from forecast.tracking.registry import Registry

    settings = config.report
    if settings.scores is not None:
        return _of_scores(config.registry, settings, Path(settings.scores))
    registry = Registry(config.registry)
    if settings.run is None:
        version = registry.resolve(str(config.registry.alias))
        return _of_runs(registry, version, list(_records(registry, version)), temporary)
    record = registry.record(settings.run)
    if record is None or record.job not in TITLES:
        actual = f"a run of {record.job or 'something else'}" if record else "no run of this store"
        raise ConfigError(f"report.run={settings.run}: {actual}; give one of {', '.join(TITLES)} (`forecast ui`)")
    if record.job == "score":
        return _of_scores(config.registry, settings, Path(record.settings["output.path"]))
    return _of_runs(registry, _version(registry, record), [record], temporary)


def _records(registry: "Registry", version: "Version") -> "Iterator[Record]":
    """Yield the runs that evaluated and created a version and its ancestors, latest first."""
    from forecast.names import BACKTEST_RUN

    versions = {entry.number: entry for entry in registry.versions()}
    ids, entry = [version.tags.get(BACKTEST_RUN, "")], versions.get(version.number)
    while entry is not None:
        ids.append(entry.run_id)
        entry = versions.pop(entry.parent or 0, None)
    for run_id in filter(None, ids):
        if record := registry.record(run_id):
            yield record


def _version(registry: "Registry", record: "Record") -> "Version | None":
    """Return the version that a run evaluated or created, None if it no longer exists."""
    if number := record.tags.get("version"):
        return registry.find(number)
    return next((candidate for candidate in registry.versions() if candidate.run_id == record.id), None)


def _of_runs(
    registry: "Registry",
    version: "Version | None",
    records: "Sequence[Record]",
    folder: Path,
) -> Subject:
    """Return a subject from runs; each table is that of the first run with it."""
    import polars as pl

    from forecast.names import MODEL, TRAIN_LOSS, VAL_LOSS

    tables: dict[str, pl.LazyFrame] = {}
    job, loss = "", None
    for record in records:
        for name in (*TABLES.values(), FORECASTS, SCORES):
            if name not in tables and f"{name}.parquet" in record.files:
                file = registry.fetch(record.id, f"{name}.parquet", folder / record.id)
                tables[name] = pl.scan_parquet(file, glob=False, hive_partitioning=False)
                job = record.job if name == FORECASTS else job
        if loss is None or loss.is_empty():
            loss = registry.curve(record.id, (TRAIN_LOSS, VAL_LOSS)).rename({"name": MODEL, "value": "loss"})
    what = str(version or registry.name)
    return Subject(
        title=f"{TITLES[records[0].job]} of {what}" if len(records) == 1 else what,
        subtitle=", ".join([version.kind.replace("_", "-"), *version.aliases]) if version else "",
        tables=tables,
        job=job,
        registry=registry,
        version=version,
        facts=facts_of(version) if version else {},
        settings={f"{TITLES.get(record.job, record.job)}, run {record.id}": record.settings for record in records},
        loss=loss,
    )


def facts_of(version: "Version") -> dict[str, str]:
    """Return facts about a version by name."""
    labels = {"trained_until": "trained until", "final_until": "final fit until"}
    return {
        "data": version.tags.get("data_digest", "")[:12],
        "digest": version.digest[:12],
        **{name: version.tags[tag].replace("T", " ") for tag, name in labels.items() if tag in version.tags},
    }


def _latest_contents(folder: Path, name: str | None, settings: ReportSettings) -> list[dict[str, Any]]:
    """Return the manifests of the latest cutoffs of a scores folder, up to the requested one, oldest first."""
    from forecast.names import CUTOFF
    from forecast.scoring.manifests import current, models_of, read_manifests

    contents = read_manifests(folder)
    models = models_of(contents)
    if len(models) > 1:
        contents = [content for content in contents if content["model"] == name]
        if not contents:
            raise ConfigError(f"report.scores={folder}: has forecasts of {listing(models)}; set registry.name")
    contents = current(contents)
    moments = [datetime.fromisoformat(content[CUTOFF]) for content in contents]
    if settings.cutoff is not None:
        cutoff = settings.cutoff
        is_requested = [
            moment == (cutoff if cutoff.tzinfo else cutoff.replace(tzinfo=moment.tzinfo)) for moment in moments
        ]
        contents = contents[: is_requested.index(True) + 1] if any(is_requested) else []
    if not contents:
        missing = f"the cutoff {settings.cutoff}" if moments else "forecasts"
        have = f"; it has {len(moments):,}, {moments[0]} to {moments[-1]}" if moments else " (it has no manifests)"
        raise DataError(f"report.scores={folder}: {missing} is not there{have}")
    contents = contents[-settings.cutoffs :]
    if any("files" not in content for content in contents):
        raise ConfigError(f"report.scores={folder}: its forecasts are in tables (output.sink); Parquet files are read")
    return contents


def _of_scores(registry: RegistryConfig, settings: ReportSettings, folder: Path) -> Subject:
    """Return a subject from the latest cutoffs of a scores folder."""
    import polars as pl

    from forecast.names import CUTOFF
    from forecast.scoring.sinks.open import open_stored
    from forecast.tracking.registry import Registry

    contents = _latest_contents(folder, registry.name, settings)
    latest = contents[-1]

    def joined(frames: "Iterable[pl.LazyFrame]") -> pl.LazyFrame:
        return pl.concat([frame.select(pl.exclude("^sample_\\d+$")) for frame in frames], how="diagonal_relaxed")

    sink = open_stored(SinkConfig(path=str(folder)), contents, "report.scores")
    forecasts = (frame for content in contents for frame in sink.forecasts(content))
    model_registry = Registry(registry.model_copy(update={"name": latest["model"]}))
    version = model_registry.find(latest["model_version"])
    is_registered = version is not None and version.digest == latest["model_digest"]
    series = latest["series"]
    return Subject(
        title=f"Forecasts of {latest['model']} v{latest['model_version']}",
        subtitle=f"From the cutoff {latest[CUTOFF]}, and the {len(contents) - 1} before it"
        if len(contents) > 1
        else f"From the cutoff {latest[CUTOFF]}",
        tables={FORECASTS: joined(forecasts), "rejects": joined(sink.rejects(latest))},
        job="score",
        registry=model_registry if is_registered else None,
        version=version if is_registered else None,
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
