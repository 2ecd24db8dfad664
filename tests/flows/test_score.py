"""Scoring as it runs every night: many cutoffs, every sink, and what goes wrong meanwhile."""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import polars as pl
import pytest
import services
from flow import END, HORIZON, NAME, SERIES, START, TRAIN, Store, forecast, panel, refuse, six_series, succeed, written
from polars.testing import assert_frame_equal
from services import PASSWORD_IN_URI

MODEL = f"registry.name={NAME}"
ORDER = ["cutoff", "series_id", "step"]


def manifests(folder: Path) -> dict[str, Any]:
    contents = [json.loads(path.read_text()) for path in sorted((folder / "manifests").iterdir())]
    return {content["cutoff"]: content for content in contents}


def test_a_range_of_cutoffs_is_written_skipped_when_done_and_retried_where_it_failed(promoted: Store) -> None:
    out = promoted.folder / "out"
    score = ("score", MODEL, f"output.path={out}", "score.cutoffs=2024-01-15..2024-01-18/1d", "score.shard_size=7")
    early = promoted.write(panel().filter(pl.col("timestamp") < pl.datetime(2024, 1, 17)), "early.parquet")
    done = forecast(*score, f"data.path={early}")
    assert done.code == 3
    assert "2 cutoffs 2024-01-15T00:00:00 to 2024-01-16T00:00:00, 40 series = 40 forecast + 0 rejected" in done.out
    *_, message = done.err.partition("error: ")
    assert message.startswith("2 of 4 cutoffs failed, the others are done; the same command tries these again:\n")
    assert "  2024-01-17T00:00:00: the panel ends at 2024-01-16 23:00:00, before the cutoff" in message
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("forecasts/*/*")}

    line = succeed(*score, f"data.path={promoted.table}").out
    assert "4 cutoffs 2024-01-15T00:00:00 to 2024-01-18T00:00:00" in line
    assert ", 2 done before, " in line
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("forecasts/*/*")}
    assert first.items() <= times.items()
    assert list(manifests(out)) == [f"2024-01-{day}T00:00:00" for day in (15, 16, 17, 18)]
    assert "all done before, nothing was written" in succeed(*score, f"data.path={promoted.table}").out

    promoted.score(None, "score.cutoff=2024-01-16", "score.shard_size=7", output="one")
    (one,) = manifests(promoted.folder / "one").values()
    other = manifests(out)["2024-01-16T00:00:00"]
    assert (one["key"], one["files"]) == (other["key"], other["files"])
    run = runs(promoted)[-2].data.metrics
    assert run["score/cutoffs_done_before"] == 4
    assert run["score/rows"] == 4 * len(SERIES) * HORIZON


def test_overrides_are_published_and_counted(promoted: Store) -> None:
    night = END - timedelta(days=2)
    file = promoted.folder / "overrides.csv"
    stamp = (night + timedelta(hours=1)).isoformat()
    file.write_text(f"series_id,timestamp,value,author\n{SERIES[0]},{stamp},-1,ada\n{SERIES[1]},{stamp},7,ada\n")
    line = promoted.score(None, f"score.cutoff={night.isoformat()}", f"score.overrides={file}", "output.min=0").out
    assert ", 1 values overridden (overrides: 1 rejected), " in line
    (content,) = manifests(promoted.folder / "out").values()
    assert content["overrides"]["rejected"] == {"override: below output.min": 1}
    rows = written(promoted.folder / "out").filter(source="override")
    assert rows.select("series_id", "mean", "override_author").rows() == [(SERIES[1], 7.0, "ada")]
    assert runs(promoted)[-1].data.metrics["score/overrides/applied"] == 1
    file.write_text("series_id,timestamp,value\n")
    message = refuse(
        3,
        "score",
        MODEL,
        f"data.path={promoted.table}",
        f"output.path={promoted.folder / 'none'}",
        f"score.overrides={file}",
    )
    assert "no column author" in message


def test_a_state_goes_forward_with_the_cutoffs(promoted: Store) -> None:
    """In one job or night by night, with late data on the way; the model takes in days at once."""
    out, state = promoted.folder / "out", f"score.state={promoted.folder / 'state'}"
    nights = [END - timedelta(days=2), END - timedelta(days=1), END]
    given = f"score.cutoffs=[{','.join(moment.isoformat() for moment in reversed(nights))}]"
    line = promoted.score(None, state, given).out
    assert ", state carried 40, state new 20, state recomputed 0, " in line
    assert [content["state"]["carried"] for content in manifests(out).values()] == [0, 20, 20]
    assert [path.name for path in (promoted.folder / "state").glob("*/state.json")] == ["state.json"]
    assert runs(promoted)[-1].data.metrics["score/state/carried"] == 40

    shifted = promoted.write(panel().with_columns(late(SERIES[4], days=5)), "late.parquet")
    nightly = ("score", MODEL, f"output.path={promoted.folder / 'nightly'}", f"{state}-2")
    succeed(*nightly, f"data.path={shifted}", f"data.until={nights[1].isoformat()}")
    assert "state carried 19, state new 0, state recomputed 1" in succeed(*nightly, f"data.path={promoted.table}").out
    expected, nightly_rows = (
        pl.read_parquet(promoted.folder / folder / "forecasts").filter(cutoff=END).sort(ORDER)
        for folder in ("out", "nightly")
    )
    assert_frame_equal(nightly_rows, expected, rel_tol=1e-5, abs_tol=1e-5)


def late(name: str, *, days: int) -> pl.Expr:
    """The target, without a row of a series some days before the end."""
    missing = (pl.col("series_id") == name) & (pl.col("timestamp") == END - timedelta(days=days))
    return pl.when(~missing).then("target").alias("target")


def runs(store: Store) -> list[Any]:
    client = mlflow.MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(NAME)
    return sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)


def test_a_job_is_told_by_its_run(promoted: Store) -> None:
    bad = panel().with_columns(target=pl.when(series_id=SERIES[3]).then(None).otherwise("target"))
    promoted.score(promoted.write(bad), "data.max_reject_share=0.1", "output.min=20")
    metrics = runs(promoted)[-1].data.metrics
    assert metrics["score/series/in"] == 20
    assert metrics["score/rejects/no observed target"] == 1
    assert metrics["score/share/pretrained"] + metrics["score/share/fine_tuned"] == pytest.approx(1)
    assert metrics["score/bounded/min"] > 0
    assert {f"score/seconds/{stage}" for stage in ("check", "forecast", "write", "publish")} <= {*metrics}
    assert metrics["score/series_per_second"] > 0


def test_cutoffs_that_the_model_was_trained_on_are_named_in_a_line(promoted: Store) -> None:
    version = mlflow.MlflowClient(promoted.uri).get_model_version(NAME, "2")
    until = datetime.fromisoformat(version.tags["trained_until"])
    assert until == END - timedelta(hours=2 * HORIZON)
    early = [until - timedelta(hours=2), until - timedelta(hours=1)]
    cutoffs = f"score.cutoffs=[{','.join(moment.isoformat() for moment in [*early, until])}]"
    (line,) = [line for line in promoted.score(None, cutoffs).err.splitlines() if "in-sample" in line]
    assert f"{NAME} v2 has seen data until {until.isoformat()}: forecasts from 2 of 3 cutoffs are in-sample" in line
    assert all(moment.isoformat() in line for moment in early)
    assert "in-sample" not in promoted.score().err
    contents = manifests(promoted.folder / "out").values()
    assert {content["trained_until"] for content in contents} == {until.isoformat()}
    assert {content["run_id"] for content in contents} == {run.info.run_id for run in runs(promoted)[-2:]}
    metadata = mlflow.models.get_model_info(f"models:/{NAME}/2").metadata
    assert metadata["trained_until"] == until.isoformat()
    assert metadata["digest"] == version.tags["digest"]
    served = mlflow.pyfunc.load_model(f"models:/{NAME}/2").unwrap_python_model()
    assert served.lineage["trained_until"] == until.isoformat()


@pytest.mark.trains
def test_the_end_of_the_panel_is_forecast_with_weights_that_have_seen_it(store: str, tmp_path: Path) -> None:
    six_series().write_parquet(tmp_path / "panel.parquet")
    data = f"data.path={tmp_path / 'panel.parquet'}"
    settings = [setting for setting in TRAIN if not setting.startswith(("fit.final", "fit.max_steps"))]
    done = succeed("train", MODEL, data, *settings, "fit.max_steps=0")
    assert f"final fit until {END}" in done.out
    evaluated = END - timedelta(hours=2 * HORIZON)
    tags = mlflow.MlflowClient(store).get_model_version(NAME, "1").tags
    assert (tags["trained_until"], tags["final_until"]) == (evaluated.isoformat(), END.isoformat())
    early = END - timedelta(hours=1)
    cutoffs = f"score.cutoffs=[{early.isoformat()},{END.isoformat()}]"
    scored = succeed("score", MODEL, "registry.alias=pretrained", data, f"output.path={tmp_path / 'out'}", cutoffs)
    assert "in-sample" not in scored.err
    contents = manifests(tmp_path / "out")
    until = {cutoff: content["trained_until"] for cutoff, content in contents.items()}
    assert until == {early.isoformat(): evaluated.isoformat(), END.isoformat(): END.isoformat()}
    assert {content["model_digest"] for content in contents.values()} == {tags["digest"]}


def test_a_series_without_a_value_is_forecast_where_it_is_wanted(promoted: Store) -> None:
    rows = pl.read_parquet(promoted.table)
    new = rows.filter(pl.col("series_id") == rows["series_id"][0]).tail(2)
    new = new.with_columns(series_id=pl.lit("new"), target=pl.lit(None, rows.schema["target"]))
    path = promoted.write(pl.concat([rows, new]), "cold.parquet")
    promoted.score(path, output="plain")
    assert promoted.rejects("plain")["reason"].to_list() == ["no observed target"]
    promoted.score(path, "score.cold_start=true", "engine=processes", output="cold")
    frame = promoted.forecasts("cold")
    cold = frame.filter(pl.col("series_id") == "new")
    assert (cold.height, set(cold["source"])) == (HORIZON, {"cold"})
    keys = "series_id", "step"
    expected = promoted.forecasts("plain").sort(keys)
    assert_frame_equal(frame.filter(pl.col("source") != "cold").sort(keys), expected)
    score = "score", MODEL, f"data.path={path}", f"output.path={promoted.folder / 'none'}", "score.cold_start=true"
    assert "cold_start does not go with state" in refuse(2, *score, "score.state=state")


def test_horizons_other_than_the_trained_one(promoted: Store) -> None:
    promoted.score()
    promoted.score(None, "score.horizon=5", output="short")
    promoted.score(None, "score.horizon=30", output="long")
    trained = promoted.forecasts()
    keys = "series_id", "step"
    assert_frame_equal(promoted.forecasts("short").sort(keys), trained.filter(pl.col("step") <= 5).sort(keys))
    longer = promoted.forecasts("long")
    assert longer["step"].max() == 30
    assert_frame_equal(longer.filter(pl.col("step") <= HORIZON).sort(keys), trained.sort(keys))
    args = MODEL, "registry.alias=champion", f"data.path={promoted.table}", "backtest.n_windows=1"
    before = mlflow.MlflowClient(promoted.uri).get_model_version(NAME, "2").tags
    assert "MASE" in succeed("backtest", *args, "backtest.horizon=5").lines[-1]
    assert mlflow.MlflowClient(promoted.uri).get_model_version(NAME, "2").tags == before
    score = "score", MODEL, f"data.path={promoted.table}", f"output.path={promoted.folder / 'none'}"
    assert "more than 8 times the 12" in refuse(2, *score, "score.horizon=97")
    assert "backtest.horizon: 97 steps" in refuse(2, "backtest", *args, "backtest.horizon=97")


def test_a_second_job_is_told_who_is_writing(promoted: Store) -> None:
    from forecast.data.files import locked

    with locked(promoted.folder / "out"):
        message = refuse(6, "score", MODEL, f"data.path={promoted.table}", f"output.path={promoted.folder / 'out'}")
    assert "another job is writing into" in message
    assert "wait for it to end, or choose another output.path" in message


def test_two_jobs_at_once_leave_one_whole_output(promoted: Store) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "score", MODEL, f"data.path={promoted.table}", "output.path=out"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [job.communicate() for job in both]
    codes = sorted(job.returncode for job in both)
    assert codes in ([0, 0], [0, 6]), outputs
    assert codes == [0, 0] or any("another job is writing into out" in errors for _, errors in outputs)
    # A job prints its line and nothing else.
    (line, logs), *_ = sorted(output for output, job in zip(outputs, both, strict=True) if job.returncode == 0)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"{NAME} v2 (fine_tuned): cutoff 2024-01-18T23:00:00, 20 series = 20 forecast + 0 rejected")
    assert all(" INFO " in record for record in logs.splitlines())
    promoted.score(output="alone")
    lasting = [
        [content | {"written_at": None, "run_id": None} for content in manifests(promoted.folder / name).values()]
        for name in ("out", "alone")
    ]
    assert lasting[0] == lasting[1]
    assert promoted.forecasts().equals(promoted.forecasts("alone"))


def test_a_version_that_is_deleted_meanwhile_is_used_to_the_end(
    promoted: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATECAST_CACHE", str(promoted.folder / "cache"))
    out, ended = promoted.folder / "out", []
    settings = ("score.cutoffs=2024-01-15..2024-01-18T23:00:00/6h", "score.shard_size=2", f"output.path={out}")

    def score() -> None:
        ended.append(forecast("score", MODEL, f"data.path={promoted.table}", *settings))

    job = threading.Thread(target=score)
    job.start()
    while job.is_alive() and not list(out.glob("manifests/*.json")):
        time.sleep(0.005)
    mlflow.MlflowClient(promoted.uri).delete_model_version(NAME, "2")
    shutil.rmtree(promoted.folder / "cache")
    remaining = job.is_alive()
    job.join()
    assert remaining
    assert ended[0].code == 0, ended[0].err
    assert len(manifests(out)) == 16
    refuse(4, "score", MODEL, f"data.path={promoted.table}", *settings)


def test_series_that_end_at_different_dates_or_have_a_gap_at_the_cutoff(promoted: Store) -> None:
    ended, gap = pl.col("timestamp") > END - timedelta(hours=30), pl.col("timestamp") > END - timedelta(hours=5)
    names = pl.col("series_id")
    table = panel().filter(~((names == "s01") & ended), ~((names == "s02") & (pl.col("timestamp") > START)))
    table = table.with_columns(target=pl.when((names == "s03") & gap).then(None).otherwise("target"))
    path = promoted.write(table)
    line = promoted.score(path).lines[-1]
    assert "20 series = 19 forecast + 1 rejected (1 ended)" in line
    assert promoted.rejects().select("series_id", "timestamp", "reason").rows() == [("s02", START, "ended")]
    assert "s02" not in set(promoted.forecasts()["series_id"])
    (content,) = manifests(promoted.folder / "out").values()
    assert content["series"] == {"in": 20, "forecast": 19, "rejected": 1}
    assert content["rejects"] == {"ended": 1}
    assert runs(promoted)[-1].data.metrics["score/rejects/ended"] == 1
    regions = pl.DataFrame({"series_id": SERIES, "region": ["north"] * 12 + ["south"] * 8})
    sums = promoted.folder / "sums"
    asked = (f"reconcile.path={promoted.folder / 'out'}", f"reconcile.table={promoted.write(regions, 'regions.csv')}")
    done = succeed("reconcile", *asked, "reconcile.by=[region]", f"output.path={sums}")
    assert "19 series + 3 sums = 22 nodes" in done.lines[-1]
    assert "1 ended series add nothing" in done.lines[-1]
    north = promoted.forecasts().filter(pl.col("series_id") < "s12", step=1)["mean"].sum()
    assert written(sums).filter(series_id="region=north", step=1)["mean"].item() == pytest.approx(north)
    assert "(1 ended)" in promoted.score(path, "score.max_age=30h", output="age-30h").lines[-1]
    assert "(2 ended)" in promoted.score(path, "score.max_age=29", output="age-29").lines[-1]
    assert "score.max_age: must be a number of steps, a duration" in refuse(
        2, "score", MODEL, f"data.path={path}", "output.path=out", "score.max_age=soon"
    )

    promoted.score(path, "score.max_age=none", output="any")
    frame = promoted.forecasts("any")
    assert frame["series_id"].n_unique() == len(SERIES)
    assert (frame["cutoff"] == END).all()
    source = dict(frame.select("series_id", "source").unique().iter_rows())
    assert source["s02"] == "last_value"
    assert {source["s01"], source["s03"]} <= {"pretrained", "fine_tuned"}


# Sinks


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    with services.postgresql() as uri:
        yield uri.replace("me@", f"me:{PASSWORD_IN_URI}@")


@pytest.fixture(params=["delta", "sqlite", "postgresql"])
def sink(request: pytest.FixtureRequest, promoted: Store) -> tuple[list[str], Callable[[str], pl.DataFrame]]:
    """The settings of a sink, and what reads a table of it."""
    out = promoted.folder / "out"
    if request.param == "delta":
        return ["output.sink=delta"], lambda kind: pl.read_delta(str(out / kind))
    if request.param == "sqlite":
        uri = f"sqlite:///{promoted.folder / 'scores.db'}"
    else:
        uri = request.getfixturevalue("postgresql")
        query(uri, "drop table if exists forecasts, forecasts_rejects, forecasts_manifests cascade")
    tables = {"forecasts": "forecasts", "rejects": "forecasts_rejects"}
    return ["output.sink=sql", f"output.uri={uri}"], lambda kind: query(uri, f"select * from {tables[kind]}")


def query(uri: str, statement: str) -> pl.DataFrame:
    if uri.startswith("sqlite"):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection, connection:
            cursor = connection.execute(statement)
            names = [column[0] for column in cursor.description or ()]
            return pl.DataFrame(cursor.fetchall(), names, orient="row", infer_schema_length=None)
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetch_arrow_table() if cursor.description else None
        connection.commit()
        return pl.DataFrame() if rows is None else pl.DataFrame(rows)


def test_every_sink_holds_the_same_rows_and_replaces_a_cutoff(
    promoted: Store, sink: tuple[list[str], Callable[[str], pl.DataFrame]]
) -> None:
    settings, read = sink
    bad = promoted.write(panel().with_columns(target=pl.when(series_id=SERIES[3]).then(None).otherwise("target")))
    cutoffs = ("data.max_reject_share=0.1", "score.cutoffs=[2024-01-16,2024-01-17]", "score.shard_size=7")
    promoted.score(bad, *cutoffs, output="files")
    expected = pl.concat(
        pl.read_parquet(file, hive_partitioning=False) for file in (promoted.folder / "files").glob("forecasts/*/*")
    )

    def same() -> None:
        rows = read("forecasts")
        assert set(rows.columns) == set(expected.columns)
        if rows.schema["cutoff"] == pl.String:
            rows = rows.with_columns(pl.col("cutoff", "timestamp").str.to_datetime(time_unit="us"))
        assert_frame_equal(rows.select(expected.columns).cast(expected.schema).sort(ORDER), expected.sort(ORDER))
        assert read("rejects").select("series_id", "reason", "cutoff").rows() == [
            (SERIES[3], "no observed target", None)  # Of reading: once, of no cutoff.
        ]

    promoted.score(bad, *cutoffs, *settings)
    same()
    folder = promoted.folder / "out"
    rows = {"forecasts": 19 * HORIZON, "rejects": 0}
    assert [content["tables"] for content in manifests(folder).values()] == [rows, rows]
    assert not list(folder.glob(".staging/*"))
    assert "nothing was written" in promoted.score(bad, *cutoffs, *settings).out
    promoted.score(bad, *cutoffs, *settings, "score.force=true")
    same()
    promoted.score(promoted.table, "score.cutoff=2024-01-17", *settings, "output.max=1")
    assert read("forecasts").height == 39 * HORIZON
    assert read("rejects").is_empty()  # The panel of that job has none.
    promoted.score(bad, *cutoffs, *settings)
    same()


def test_two_versions_share_a_table_and_are_read_apart(
    promoted: Store, sink: tuple[list[str], Callable[[str], pl.DataFrame]]
) -> None:
    """The second has other columns and bounds; the first one again is done, and as it was."""
    settings, read = sink
    first = promoted.score(None, *settings).out
    assert f"{NAME} v2" in first
    expected = read("forecasts").sort(ORDER)
    promoted.score(None, "registry.alias=1", "output.n_samples=2", "output.max=15", *settings)
    rows = read("forecasts")
    assert rows.height == 2 * expected.height
    assert_frame_equal(rows.filter(model_version="2").sort(ORDER).select(expected.columns), expected)
    assert rows.filter(model_version="1")["q90"].max() == 15
    assert rows["sample_000"].null_count() == expected.height
    table = [
        f"scores.path={promoted.folder / 'out'}",
        *(word.replace("output.", "scores.") for word in settings),
    ]

    def current() -> dict[str, bool]:
        lines = [line.split() for line in succeed("scores", "list", *table).lines if NAME in line]
        return {next(word for word in words if word in ("v1", "v2")): "yes" in words for words in lines}

    assert current() == {"v1": True, "v2": False}
    assert "all done before, nothing was written" in promoted.score(None, *settings).out
    assert current() == {"v1": False, "v2": True}
    shown = succeed("scores", "show", *table, "show.series=[s03]", f"show.file={promoted.folder / 'rows.parquet'}").out
    (run, *_) = [run for run in runs(promoted) if run.data.tags["job"] == "score"]
    digest = mlflow.MlflowClient(promoted.uri).get_model_version(NAME, "2").tags["digest"]
    assert f"240 rows by {NAME} v2, digest {digest}, run {run.info.run_id}, trained until 2024-01-17T23:00:00" in shown
    frame = pl.read_parquet(promoted.folder / "rows.parquet")
    mine = read("forecasts").filter(series_id="s03", model_version="2").sort(ORDER)
    assert frame["q50"].to_list() == pytest.approx(mine["q50"].to_list())
    assert frame["run_id"].unique().to_list() == [run.info.run_id]
    every = succeed("scores", "show", *table, "show.every=true", "show.rows=0").out
    assert [f"by {NAME} v{number}, " in every for number in (1, 2)] == [True, True]
    assert "no forecasts from 2020" in refuse(3, "scores", "show", *table, "show.cutoff=2020-01-01")


def test_a_table_with_the_columns_of_an_earlier_release_is_brought_up_to_date(promoted: Store, postgresql: str) -> None:
    query(postgresql, "drop table if exists old, old_rejects, old_manifests cascade")
    settings = ["output.sink=sql", f"output.uri={postgresql}", "output.table=old"]
    columns = ", ".join(f"q{level}0 double precision" for level in range(1, 10))
    query(
        postgresql,
        "create table old (series_id text, timestamp timestamp, cutoff timestamp, step integer, mean double precision, "
        f"{columns}, source text, model_version text, primary key (cutoff, series_id, step))",
    )
    query(
        postgresql,
        "insert into old (series_id, timestamp, cutoff, step, model_version) values ('s00', '2024-01-19', "
        f"'{END}', 1, '7'), ('s00', '2024-01-02', '2024-01-01', 1, '7')",
    )
    promoted.score(None, *settings)
    promoted.score(None, *settings, "registry.alias=1")
    counts = query(postgresql, "select model_name, model_version, count(*) as rows from old group by 1, 2 order by 2")
    assert counts.rows() == [(NAME, "1", 240), (NAME, "2", 240), ("", "7", 2)]
    latest = query(postgresql, "select distinct model_version, run_id from old_latest")
    assert latest["model_version"].to_list() == ["1"]
    assert "all done before" in promoted.score(None, *settings).out
    assert query(postgresql, "select distinct model_version from old_latest").item() == "2"


def test_a_database_that_goes_away_leaves_the_old_rows_and_the_next_run_goes_on(
    promoted: Store, postgresql: str
) -> None:
    from adbc_driver_postgresql import dbapi

    query(postgresql, "drop table if exists kept, kept_rejects")
    settings = ["output.sink=sql", f"output.uri={postgresql}", "output.table=kept"]
    promoted.score(None, *settings)
    before = query(postgresql, "select * from kept order by series_id, step")
    ended: list[Any] = []
    command = ("score", MODEL, f"data.path={promoted.table}", f"output.path={promoted.folder / 'out'}", *settings)
    job = threading.Thread(target=lambda: ended.append(forecast(*command, "output.max=1")))
    waiting = "select pid from pg_stat_activity where wait_event_type = 'Lock' and query like 'lock table%kept\"%'"
    with dbapi.connect(postgresql) as connection, connection.cursor() as cursor:
        cursor.execute("lock table kept in exclusive mode")  # The job waits in its transaction, rejects written.
        job.start()
        while (backend := query(postgresql, waiting)).is_empty() and job.is_alive():
            time.sleep(0.01)
        query(postgresql, f"select pg_terminate_backend({backend.item()})")
        job.join()
    assert ended[0].code == 6, ended[0].err
    assert "output.uri=postgresql://me:***@127.0.0.1" in ended[0].err
    assert "nothing was changed" in ended[0].err
    assert services.PASSWORD not in ended[0].err
    assert PASSWORD_IN_URI not in ended[0].err
    assert query(postgresql, "select * from kept order by series_id, step").equals(before)
    promoted.score(None, *settings, "output.max=1")
    assert query(postgresql, "select max(q50) from kept").item() <= 1


def test_an_insert_that_fails_leaves_the_old_rows(promoted: Store) -> None:
    uri = f"sqlite:///{promoted.folder / 'scores.db'}"
    settings = ["output.sink=sql", f"output.uri={uri}"]
    promoted.score(None, *settings)
    before = query(uri, "select * from forecasts")
    at_step_7 = "before insert on forecasts when new.step = 7"
    query(uri, f"create trigger t {at_step_7} begin select raise(abort, 'no more'); end")
    score = ("score", MODEL, f"data.path={promoted.table}", f"output.path={promoted.folder / 'out'}", *settings)
    assert "no more; nothing was changed" in refuse(6, *score, "output.max=1")
    assert query(uri, "select * from forecasts").equals(before)
    query(uri, "drop trigger t")
    succeed(*score, "output.max=1")
    assert query(uri, "select max(q50) from forecasts").item() <= 1
    query(uri, "delete from forecasts where step = 3")
    assert "nothing was written" not in succeed(*score, "output.max=1").out
    assert query(uri, "select count(*) from forecasts").item() == len(SERIES) * HORIZON


def test_what_a_sink_can_not_take_is_told(promoted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{promoted.folder / 'scores.db'}"
    out = f"output.path={promoted.folder / 'out'}"
    score = ("score", MODEL, f"data.path={promoted.table}", out)
    query(uri, "create table mine (series_id text, value real)")
    message = refuse(6, *score, "output.sink=sql", f"output.uri={uri}", "output.table=mine")
    assert "table mine has the columns series_id, value, where series_id, timestamp" in message
    assert "choose another output.table" in message
    away = f"output.uri=postgresql://me:wr0ng@127.0.0.1:{services.free_port()}/db"
    message = refuse(6, *score, "output.sink=sql", away)
    assert "Connection refused" in message
    assert "wr0ng" not in message
    assert "output.uri: a database of kind 'mysql'" in refuse(2, *score, "output.sink=sql", "output.uri=mysql://h/d")
    assert "sink=sql and uri go together" in refuse(2, *score, "output.sink=sql")
    monkeypatch.setitem(sys.modules, "deltalake", None)
    assert "pip install 'gatecast[delta]'" in refuse(2, *score, "output.sink=delta")


def test_files_and_delta_lake_do_not_share_a_folder(promoted: Store) -> None:
    score = ("score", MODEL, f"data.path={promoted.table}", f"output.path={promoted.folder / 'out'}")
    succeed(*score)
    assert "holds Parquet files; choose another output.path" in refuse(6, *score, "output.sink=delta")
    succeed(*score[:-1], "output.sink=delta", f"output.path={promoted.folder / 'delta'}")
    message = refuse(6, *score[:-1], f"output.path={promoted.folder / 'delta'}")
    assert "holds Delta Lake tables; choose another output.path" in message


def test_scored_forecasts_are_reconciled_once_and_add_up(promoted: Store) -> None:
    earlier = END - timedelta(hours=2 * HORIZON)
    promoted.score(None, f"score.cutoffs=[{earlier.isoformat()},{END.isoformat()}]")
    regions = pl.DataFrame({"series_id": SERIES, "region": ["north"] * 12 + ["south"] * 8})
    asked = [
        f"reconcile.path={promoted.folder / 'out'}",
        f"reconcile.table={promoted.write(regions, 'regions.csv')}",
        "reconcile.by=[region]",
        f"output.path={promoted.folder / 'sums'}",
    ]
    line = succeed("reconcile", *asked, f"reconcile.actuals={promoted.table}").lines[-1]
    assert f"cutoff {END.isoformat()}, bottom_up, 20 series + 3 sums = 23 nodes, correlations of 12 past errors" in line
    nodes = written(promoted.folder / "sums")
    scored = pl.read_parquet(promoted.folder / "out" / "forecasts").filter(cutoff=END)
    north = scored.filter(pl.col("series_id") < "s12").group_by("step").agg(pl.col("mean").sum()).sort("step")
    sums = nodes.filter(series_id="region=north").sort("step")
    assert sums["mean"].to_list() == pytest.approx(north["mean"].to_list())
    assert nodes.height == 23 * HORIZON
    manifest = json.loads(next((promoted.folder / "sums" / "manifests").iterdir()).read_text())
    assert (manifest["nodes"], manifest["series"], manifest["errors"]) == (23, 20, 12)
    assert manifest["incoherence"]["relative"] < 1e-9

    files = {file: file.stat().st_mtime_ns for file in (promoted.folder / "sums").rglob("*.parquet")}
    assert "done before" in succeed("reconcile", *asked, f"reconcile.actuals={promoted.table}").lines[-1]
    assert files == {file: file.stat().st_mtime_ns for file in (promoted.folder / "sums").rglob("*.parquet")}
    next(iter(files)).write_bytes(b"damaged")
    again = succeed("reconcile", *asked, f"reconcile.actuals={promoted.table}").lines[-1]
    assert "276 rows" in again
    assert written(promoted.folder / "sums").equals(nodes)

    moment = f"reconcile.cutoff={earlier.isoformat()}"
    assert "intervals as if independent" in succeed("reconcile", *asked, moment).lines[-1]
    assert "no cutoff before" in refuse(3, "reconcile", *asked, moment, f"reconcile.actuals={promoted.table}")
    assert "needs forecasts of the sums too" in refuse(3, "reconcile", *asked, "reconcile.method=ols")
    assert "the same folder" in refuse(2, "reconcile", *asked[:3], f"output.path={promoted.folder / 'out'}")
    assert "no forecasts from 2020" in refuse(3, "reconcile", *asked, "reconcile.cutoff=2020-01-01")


def test_a_row_dated_too_late_is_named_and_the_night_is_as_without_it(promoted: Store) -> None:
    promoted.score(None, output="right")
    moment = END + timedelta(days=20)
    late = (
        panel()
        .filter(series_id=SERIES[0], timestamp=END)
        .with_columns(timestamp=pl.lit(moment).cast(pl.Datetime("us")))
    )
    table = promoted.write(pl.concat([panel(), late.cast(dict(panel().schema))]), "typo.parquet")
    done = succeed("score", MODEL, f"data.path={table}", f"output.path={promoted.folder / 'typo'}")
    assert "the panel ends at 2024-01-18 23:00:00, where its series agree; 1 row(s) of 1 of 20 series" in done.err
    assert f"{SERIES[0]} at {moment}" in done.err
    (content,) = manifests(promoted.folder / "typo").values()
    assert content["rejects"] == {"beyond the end of the panel": 1}
    left, right = (written(promoted.folder / name).sort(ORDER) for name in ("typo", "right"))
    assert left.equals(right)
    explicit = ("score", MODEL, f"data.path={table}", f"output.path={promoted.folder / 'explicit'}")
    succeed(*explicit, f"score.cutoff={moment.isoformat()}")
    assert list(manifests(promoted.folder / "explicit")) == [moment.isoformat()]
