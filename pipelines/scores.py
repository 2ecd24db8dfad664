"""`forecast scores`: list or show scored forecasts, with their lineage."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import ScoresConfig
from forecast.errors import ConfigError
from pipelines.jobs import command_line, console

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

ACTIONS: Final = {
    "list": "the cutoffs that are done, oldest first, with version, run and time",
    "upgrade": "bring Parquet files that an earlier release wrote into the present layout",
    "show": "the forecasts of the latest cutoff, or of show.cutoff; show.file writes them",
}


def main(argv: list[str]) -> None:
    """Run one of ACTIONS."""
    action_words = command_line.action_of("scores", argv, ACTIONS, "scores.path=FOLDER ")
    if action_words is None:
        return
    action, words = action_words
    config = command_line.verb_config(ScoresConfig, f"scores {action}", words)
    console.setup()
    {"list": _list, "show": _show, "upgrade": _upgrade}[action](config)


def _place(config: ScoresConfig) -> str:
    """Return the source of the forecasts: a folder, also that of a scenario, or a database."""
    from forecast.scoring.scenarios import scenario_folder

    if config.show.scenario is not None:
        return str(scenario_folder(Path(config.scores.path), config.show.scenario))
    return config.scores.path if config.scores.uri is None else config.scores.uri.get_secret_value()


def _list(config: ScoresConfig) -> None:
    import polars as pl

    from forecast.scoring.manifests import current
    from forecast.scoring.scenarios import scenarios_in
    from forecast.scoring.scores import Scores

    show = config.show
    scores = Scores(_place(config), config.scores.table)
    contents = scores.select(show.cutoff, show.model)
    counting = {_identity(content) for content in current(scores.contents)}
    rows = [
        {name: value for name, value in _facts(content).items() if name != "trained until"}
        | {"current": "yes" if _identity(content) in counting else ""}
        for content in contents
    ]
    console.table(pl.DataFrame(rows))
    if show.scenario is None and (names := scenarios_in(Path(config.scores.path))):
        print(f"scenarios (show.scenario): {', '.join(names)}")


def _upgrade(config: ScoresConfig) -> None:
    from forecast.data.files import locked
    from forecast.scoring.scores import Scores
    from forecast.scoring.scores_upgrade import upgrade

    if config.scores.sink != "parquet":
        raise ConfigError("scores.sink: tables are brought up to date by the next job that writes into them")
    folder = Path(config.scores.path)
    total = len(Scores(folder).contents)
    with locked(folder, "scores.path"):
        count = upgrade(folder)
    print(
        f"{folder}: {count:,} of {total:,} cutoffs were in the layout of an earlier release and are in the present one"
    )


def _show(config: ScoresConfig) -> None:
    from forecast.scoring.scores import Scores

    show = config.show
    scores = Scores(_place(config), config.scores.table)
    contents = scores.select(show.cutoff, show.model, latest=not show.every)
    if show.every and show.cutoff is None:
        latest = contents[-1]["cutoff"]
        contents = [content for content in contents if content["cutoff"] == latest]
    frame = scores.read(contents, show.series)
    if show.rows:
        console.table(frame.select(_printed(frame)).head(show.rows))
    if frame.height > show.rows:
        print(f"{min(show.rows, frame.height):,} of {frame.height:,} rows; show.rows prints more, show.file writes all")
    for content in contents:
        facts = _facts(content)
        print(
            f"cutoff {facts['cutoff']}: {facts['rows']:,} rows by {facts['model']}, digest {content['model_digest']}, "
            f"run {facts['run'] or 'not known'}, trained until {facts['trained until'] or 'not known'}, written "
            f"{facts['written (UTC)']} UTC"
        )
    if show.file:
        _write(frame, Path(show.file))
        print(f"{frame.height:,} rows -> {show.file}")


def _identity(content: "Mapping[str, Any]") -> tuple[str, ...]:
    return tuple(str(content[name]) for name in ("cutoff", "model", "model_version", "model_digest"))


def _facts(content: "Mapping[str, Any]") -> dict[str, Any]:
    """Return the facts about a manifest for display."""
    from forecast.scoring.manifests import is_in_sample, written_at

    return {
        "cutoff": content["cutoff"],
        "model": f"{content['model']} v{content['model_version']}",
        "rows": content["rows"]["written"],
        "trained until": content.get("trained_until") or "",
        "sample": "in-sample" if is_in_sample(content) else "",
        "written (UTC)": f"{written_at(content):%Y-%m-%d %H:%M}",
        "run": content.get("run_id") or "",
    }


def _printed(frame: "pl.DataFrame") -> list[str]:
    """Return the columns for a terminal: the outermost quantiles and the median; no constant model names."""
    from forecast.names import (
        CLASS,
        CUTOFF,
        MEAN,
        MODEL_NAME,
        MODEL_VERSION,
        SERIES_ID,
        SOURCE,
        STEP,
        TIMESTAMP,
        quantile_columns,
    )

    quantiles = quantile_columns(frame.columns)
    shares = [name for name in frame.columns if name.startswith("p_")]
    printed = dict.fromkeys([*quantiles[:1], *(name for name in quantiles if name == "q50"), *quantiles[-1:]])
    several = [name for name in (CUTOFF, MODEL_NAME, MODEL_VERSION) if frame[name].n_unique() > 1]
    names = [SERIES_ID, TIMESTAMP, STEP, CLASS, MEAN, *printed, *shares[:4], SOURCE, *several]
    return [name for name in names if name in frame.columns]


def _write(frame: "pl.DataFrame", path: Path) -> None:
    from forecast.data.files import write_bytes_atomic, write_parquet_atomic
    from forecast.data.spreadsheets import XLSX, check_xlsx, write_sheet

    if path.suffix == ".parquet":
        write_parquet_atomic(frame, path)
    elif path.suffix == XLSX:
        check_xlsx(f"show.file={path}", frame.height, frame.width, "write .csv or .parquet, or select show.series")
        write_sheet(frame, path, "show.file")
    else:
        write_bytes_atomic(frame.write_csv().encode(), path, "show.file")
