"""Several models, versions and settings in one folder, one Delta Lake table, or one table of a database."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.config import ScoreOutput, ScoreSettings, SinkConfig
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError, DataError, OutputError
from forecast.monitoring.forecasts import Block, ScoredForecasts
from forecast.scoring.job import ScoreJob
from forecast.scoring.manifests import ForecastKey, current, read_manifests
from forecast.scoring.parts import Output
from forecast.scoring.sinks.open import open_sink
from forecast.training.result import FitResult
from pipelines.cli import main as cli

SINKS = ["parquet", "delta", "sql"]
A = {"model": "a", "model_version": "1", "model_digest": "ab12"}
OTHERS = {
    "model": A | {"model": "b"},
    "version": A | {"model_version": "2", "model_digest": "cd34"},
    "store": A | {"model_digest": "ef56"},
}
ORDER = ["series_id", "step"]


class Place:
    """Where jobs write: by default the same folder, or the same table with a folder for each model."""

    def __init__(self, folder: Path, sink: str, trained: FitResult, loaded: Loaded) -> None:
        self.folder, self.sink, self._artifact, self.loaded = folder, sink, trained.artifact, loaded

    def config(self, path: str = "out", **output: Any) -> dict[str, Any]:
        uri = {"uri": f"sqlite:///{self.folder}/scores.db"} if self.sink == "sql" else {}
        return {"path": str(self.folder / path), "sink": self.sink, **uri, **output}

    def write(
        self, names: dict[str, str], *, back: int = 0, loaded: Loaded | None = None, path: str = "out", **output: Any
    ) -> Output:
        found = loaded or self.loaded
        settings = ScoreOutput.model_validate(self.config(path, **output))
        job = ScoreJob(self._artifact, found, ScoreSettings(shard_size=5), settings, names)
        made = job.write(self.loaded.panel.last_index - back)
        job.write_latest()
        return made

    def rows(self, output: Output, path: str = "out") -> pl.DataFrame:
        """The forecasts of a manifest, as its sink has them."""
        sink = open_sink(ScoreOutput.model_validate(self.config(path)))
        return pl.concat(sink.forecasts(output.content)).collect().sort(ORDER)

    def all_rows(self, kind: str = "forecasts") -> pl.DataFrame:
        """All rows of a kind, as other tools see them."""
        if self.sink == "parquet":
            files = sorted((self.folder / "out" / kind).glob("*/*.parquet"))
            return pl.concat([pl.read_parquet(file) for file in files], how="diagonal_relaxed")
        if self.sink == "delta":
            return pl.read_delta(str(self.folder / "out" / kind))
        return self.query(f"select * from {'forecasts' if kind == 'forecasts' else 'forecasts_rejects'}")

    def query(self, statement: str) -> pl.DataFrame:
        with closing(sqlite3.connect(self.folder / "scores.db")) as connection, connection:
            cursor = connection.execute(statement)
            names = [column[0] for column in cursor.description or ()]
            return pl.DataFrame(cursor.fetchall(), names, orient="row", infer_schema_length=None)


@pytest.fixture(params=SINKS)
def place(request: pytest.FixtureRequest, tmp_path: Path, trained: FitResult, weekly_loaded: Loaded) -> Place:
    return Place(tmp_path, request.param, trained, weekly_loaded)


@pytest.fixture
def sql(tmp_path: Path, trained: FitResult, weekly_loaded: Loaded) -> Place:
    return Place(tmp_path, "sql", trained, weekly_loaded)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_each_model_keeps_its_own_forecasts(place: Place, other: dict[str, str]) -> None:
    """In one folder; tables of a database also from two."""
    second = "second" if place.sink == "sql" and other["model_version"] == "1" else "out"
    first = place.write(A)
    expected = place.rows(first)
    assert not place.write(other, path=second, max=10.0).was_complete
    assert_frame_equal(place.rows(first), expected)
    assert place.write(A).was_complete
    assert place.write(other, path=second, max=10.0).was_complete
    rows = place.all_rows()
    assert rows.height == 2 * expected.height
    for names, highest in ((A, expected["q50"].max()), (other, 10.0)):
        own = rows.filter(model_name=names["model"], model_version=names["model_version"])
        own = own.filter(model_digest=names["model_digest"])
        assert own.height == expected.height
        assert own["q50"].max() == pytest.approx(highest)
    keys = ["model_name", "model_version", "model_digest", "cutoff", "series_id", "step"]
    assert rows.select(keys).is_duplicated().sum() == 0
    written = ScoredForecasts(SinkConfig.model_validate(place.config()), model="a")
    assert {content["model"] for content in written.contents} == {"a"}
    if other["model"] == "b":
        assert_frame_equal(pl.concat(written.block(written.contents[0], Block())).sort(ORDER), expected)


def test_rows_that_another_folder_replaced_are_not_taken_for_its_own(sql: Place) -> None:
    """The same version with other settings: as many rows, other numbers."""
    first = sql.write(A)
    expected = sql.rows(first)
    sql.write(A, path="second", max=1.0)
    assert sql.rows(first)["q50"].max() == 1.0
    assert not sql.write(A).was_complete
    assert_frame_equal(sql.rows(first), expected)
    assert sql.write(A).was_complete
    assert sql.all_rows().height == expected.height


def test_what_is_scored_again_is_current_again(place: Place) -> None:
    """As after a rollback: of a cutoff that two versions have forecast, the one that ran last counts."""

    def latest() -> set[str]:
        if place.sink == "sql":
            return {*place.query("select model_version from forecasts_latest")["model_version"]}
        return {*pl.read_parquet(place.folder / "out/latest/a.parquet")["model_version"]}

    place.write(A, back=7)
    place.write(A)
    place.write(OTHERS["version"])
    assert latest() == {"2"}
    assert place.write(A).was_complete
    assert latest() == {"1"}
    assert [content["model_version"] for content in current(read_manifests(place.folder / "out"))] == ["1", "1"]
    place.write(A, back=14)  # An older cutoff changes nothing.
    assert latest() == {"1"}
    assert place.write(OTHERS["version"], max=3.0).was_complete is False
    assert latest() == {"2"}


def test_columns_may_change(place: Place) -> None:
    plain = place.write(A, back=14)
    sampled = place.write(A, back=7, n_samples=2)
    again = place.write(A)
    samples = ["sample_000", "sample_001"]
    assert [set(samples) <= set(place.rows(made).columns) for made in (plain, sampled, again)] == [False, True, False]
    assert place.rows(sampled).select(samples).null_count().sum_horizontal().item() == 0
    rows = place.all_rows()
    assert rows[samples[0]].null_count() == 2 * len(rows) // 3
    written = ScoredForecasts(SinkConfig.model_validate(place.config()))
    assert written.levels(written.contents) == tuple(level / 10 for level in range(1, 10))
    assert place.write(A, back=7, n_samples=2).was_complete


@pytest.fixture
def bad(weekly_table: pl.DataFrame, loaded: Callable[..., Loaded], trained: FitResult) -> Callable[..., Loaded]:
    """Reads the table with bad rows: an infinite value, and so many rows without a timestamp."""

    def read(without_time: int) -> Loaded:
        nothing = weekly_table.head(without_time).with_columns(timestamp=pl.lit(None, pl.Datetime("us")))
        infinite = pl.when(pl.int_range(pl.len()) == 20).then(float("inf")).otherwise("target")
        kinds = {"past_covariates": ["rain"], "known_covariates": ["promo"], "static_covariates": ["city", "size"]}
        table = pl.concat([weekly_table.with_columns(target=infinite), nothing])
        return loaded(table, 7, trained.artifact.categories, max_reject_share=0.1, **kinds)

    return read


def test_rejects_of_reading_are_written_once(place: Place, bad: Callable[..., Loaded]) -> None:
    """Not for each cutoff, and of a later state of the panel in the place of those before."""
    for back in (14, 7, 0):
        assert place.write(A, back=back, loaded=bad(2)).content["rejects"] == {
            "null timestamp": 2,
            "target not finite": 1,
        }
    assert place.all_rows("rejects")["reason"].sort().to_list() == ["null timestamp"] * 2 + ["target not finite"]
    times = {path: path.stat().st_mtime_ns for path in place.folder.rglob("forecasts/**/*.parquet")}
    # A row without a time is nothing that a forecast follows from.
    for back in (14, 7, 0):
        assert place.write(A, back=back, loaded=bad(3)).was_complete
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("forecasts/**/*.parquet")} == times
    rejects = place.all_rows("rejects")
    assert rejects["reason"].sort().to_list() == ["null timestamp"] * 3 + ["target not finite"]
    assert rejects["cutoff"].is_null().all()
    assert rejects["model_name"].unique().to_list() == ["a"]
    place.write(A | {"model_version": "2"}, loaded=bad(3))
    assert place.all_rows("rejects").height == 4, "the panel is the same"
    place.write(OTHERS["model"], loaded=bad(1))
    assert place.all_rows("rejects").filter(model_name="a").height == 4
    place.write(A)
    assert place.all_rows("rejects").filter(model_name="a").is_empty()


def test_rejects_of_a_cutoff_have_it(place: Place, weekly_loaded: Loaded) -> None:
    """Two series begin later than this cutoff."""
    made = place.write(A, back=120)
    rejects = place.all_rows("rejects")
    assert made.content["series"]["rejected"] == rejects.height > 0
    moment = weekly_loaded.panel.grid.timestamps(pl.Series([weekly_loaded.panel.last_index - 120]).to_numpy())[0]
    assert {str(value)[:19] for value in rejects["cutoff"]} == {str(moment)}
    place.write(A)
    assert place.all_rows("rejects").height == rejects.height
    sink = open_sink(ScoreOutput.model_validate(place.config()))
    assert pl.concat(sink.rejects(made.content), how="diagonal_relaxed").collect().height == rejects.height


# What earlier releases wrote


def as_before(place: Place, outputs: list[Output]) -> list[dict[str, Any]]:
    """Turn an output into that of an earlier release: rows that do not name their model, hive folders, other keys."""
    out, contents = place.folder / "out", []
    names = ["model_name", "model_digest"]
    shutil.rmtree(out / "latest", ignore_errors=True)
    for output in outputs:
        key = ForecastKey.of(output.content)
        old = key._replace(is_legacy=True)
        content = {name: value for name, value in output.content.items() if name not in ("layout", "columns")}
        if place.sink == "parquet":
            (out / "forecasts" / key.folder).rename(out / "forecasts" / old.folder)
            for file in (out / "forecasts" / old.folder).iterdir():
                pl.read_parquet(file, hive_partitioning=False).drop(names).write_parquet(file)
            content["files"] = open_sink(ScoreOutput.model_validate(place.config())).inventory(old)["files"]
        output.manifest.unlink()
        (out / "manifests" / old.manifest).write_text(json.dumps(content))
        contents.append(content)
    if place.sink == "delta":
        for kind in ("forecasts", "rejects"):
            frame = pl.read_delta(str(out / kind)).drop(names, "model_version" if kind == "rejects" else [])
            shutil.rmtree(out / kind)
            frame.write_delta(str(out / kind), delta_write_options={"partition_by": ["cutoff"]})
    if place.sink == "sql":
        kept = ", ".join(name for name in place.all_rows().columns if name not in names)
        place.query("drop view forecasts_latest")
        place.query("drop table forecasts_manifests")
        place.query("drop table forecasts_rejects")
        place.query("alter table forecasts rename to newer")
        columns = ", ".join(
            f"{name} {kind}"
            for name, kind in place.query("select name, type from pragma_table_info('newer')").rows()
            if name not in names
        )
        place.query(f"create table forecasts ({columns}, primary key (cutoff, series_id, step))")
        place.query(f"insert into forecasts select {kept} from newer")
        place.query("drop table newer")
        place.query("create view mine as select * from forecasts where step = 1")
        place.query(
            "create table forecasts_rejects (series_id text, timestamp timestamp, reason text, value double precision, "
            "cutoff timestamp)"
        )
    return contents


def test_what_an_earlier_release_wrote_is_read_and_replaced(place: Place) -> None:
    outputs = [place.write(A, back=back) for back in (14, 7, 0)]
    expected = [place.rows(output).drop("model_name", "model_digest") for output in outputs]
    contents = as_before(place, outputs)
    config = SinkConfig.model_validate(place.config())

    def old_rows(index: int) -> pl.DataFrame:
        written = ScoredForecasts(config, model="a")
        rows = pl.concat(written.block(written.contents[index], Block())).sort(ORDER)
        return rows.select(expected[index].columns).cast(dict(expected[index].schema))

    assert [content["cutoff"] for content in ScoredForecasts(config).contents] == [
        content["cutoff"] for content in contents
    ]
    for index in range(3):
        assert_frame_equal(old_rows(index), expected[index])

    # Another model beside it, then the same one again: of the cutoff that it forecasts, nothing old is left.
    place.write(OTHERS["model"])
    assert_frame_equal(old_rows(2), expected[2])
    made = place.write(A)
    assert not made.was_complete
    assert_frame_equal(place.rows(made).drop("model_name", "model_digest"), expected[2])
    for index in range(2):
        assert_frame_equal(old_rows(index), expected[index])
    rows = place.all_rows()
    assert rows.height == sum(frame.height for frame in expected) + expected[2].height
    assert rows.filter(model_name="a").height == rows.filter(model_name="b").height == expected[2].height
    assert len(list((place.folder / "out/manifests").iterdir())) == 4
    assert place.write(A).was_complete
    if place.sink == "parquet":
        moment = outputs[2].content["cutoff"].replace(":", "%3A")
        assert not (place.folder / "out/forecasts" / f"cutoff={moment}").exists()
    if place.sink == "sql":
        assert place.query("select count(*) from mine").item() == rows.filter(step=1).height


def test_an_old_output_of_another_version_stays(place: Place) -> None:
    first = place.write(A)
    expected = place.rows(first).drop("model_name", "model_digest")
    (content,) = as_before(place, [first])
    place.write(OTHERS["version"], max=1.0)
    sink = open_sink(ScoreOutput.model_validate(place.config()))
    rows = pl.concat(sink.forecasts(content)).collect().sort(ORDER).select(expected.columns)
    assert_frame_equal(rows.cast(dict(expected.schema)), expected)
    assert timedelta(0) == rows["cutoff"].max() - rows["cutoff"].min()  # type: ignore[operator]


# The reader


def source_of(place: Place) -> str:
    return f"sqlite:///{place.folder}/scores.db" if place.sink == "sql" else str(place.folder / "out")


def test_read_scores_gives_what_manifests_name(place: Place) -> None:
    early, first = place.write(A, back=7, n_samples=2), place.write(A)
    second = place.write(OTHERS["version"])
    third = place.write(OTHERS["model"], back=7, max=1.0)
    source, moment = source_of(place), datetime.fromisoformat(first.content["cutoff"])
    outputs = [early, third, first, second]

    frame = fc.read_scores(source)
    assert frame.height == sum(output.content["rows"]["written"] for output in outputs)
    assert frame["sample_000"].null_count() == frame.height - early.content["rows"]["written"]
    for output in outputs:
        content = output.content
        same = {"model_name": content["model"], "model_version": content["model_version"]}
        rows = frame.filter(pl.col("cutoff") == datetime.fromisoformat(content["cutoff"]), **same)
        columns = [name for name in place.rows(output).columns if name in rows.columns]
        assert_frame_equal(rows.select(columns), place.rows(output).select(columns), check_dtypes=False)
        assert rows["trained_until"].unique().to_list() == [datetime.fromisoformat(content["trained_until"])]
        assert rows["written_at"].unique().to_list() == [datetime.fromisoformat(content["written_at"])]
        assert rows["run_id"].unique().to_list() == [content["run_id"]]
        assert rows["model_digest"].unique().to_list() == [content["model_digest"]]

    def by(**given: Any) -> list[tuple[Any, ...]]:
        rows = fc.read_scores(source, **given).select("cutoff", "model_name", "model_version").unique()
        return rows.sort(pl.all()).rows()

    before = moment - timedelta(days=7)
    assert by(latest=True) == [(before, "b", "1"), (moment, "a", "2")]
    assert by(latest=True, model="a") == [(moment, "a", "2")]
    assert by(cutoff=moment) == [(moment, "a", "1"), (moment, "a", "2")]
    assert by(cutoff=str(before.date()), latest=True) == [(before, "a", "1"), (before, "b", "1")]
    for chosen in (["s01"], "s01"):
        assert fc.read_scores(source, latest=True, series=chosen)["series_id"].unique().to_list() == ["s01"]
    with pytest.raises(DataError, match=r"no forecasts from 2020-01-01T00:00:00; there are: 2024-"):
        fc.read_scores(source, cutoff="2020-01-01")
    with pytest.raises(DataError, match=r"c: no forecasts of this model; there are: a, b"):
        fc.read_scores(source, model="c")


def test_read_scores_leaves_out_what_is_not_finished(place: Place) -> None:
    first, second = place.write(A, back=7), place.write(A)
    if place.sink == "sql":
        place.query(
            "delete from forecasts_manifests where current_since = (select max(current_since) from forecasts_manifests)"
        )
    else:
        second.manifest.unlink()
    assert fc.read_scores(source_of(place))["cutoff"].unique().to_list() == [
        datetime.fromisoformat(first.content["cutoff"])
    ]


def test_rows_that_are_gone_are_an_error(place: Place) -> None:
    place.write(A)
    if place.sink == "parquet":
        next((place.folder / "out/forecasts").glob("*/*.parquet")).unlink()
    elif place.sink == "delta":
        DeltaTable(str(place.folder / "out/forecasts")).delete("step = 3")
    else:
        place.query("delete from forecasts where step = 3")
    with pytest.raises(OutputError, match=r"score it again \(score\.cutoff="):
        fc.read_scores(source_of(place))


def test_the_reader_says_where_to_look(sql: Place, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no forecasts"):
        fc.read_scores(tmp_path / "nothing")
    sql.write(A)
    with pytest.raises(ConfigError, match="its forecasts are in a database; give its URI and table instead"):
        fc.read_scores(tmp_path / "out")
    with pytest.raises(DataError, match="the database: no forecasts"):
        fc.read_scores(source_of(sql), table="others")


def test_the_reader_reads_what_an_earlier_release_wrote(place: Place) -> None:
    outputs = [place.write(A, back=back) for back in (7, 0)]
    expected = [place.rows(output) for output in outputs]
    as_before(place, outputs)
    if place.sink == "sql":
        place.write(A)  # Its table of manifests has what is written from then on.
        assert fc.read_scores(source_of(place)).height == expected[1].height
        return
    frame = fc.read_scores(source_of(place))
    assert_frame_equal(frame.select(expected[0].columns), pl.concat(expected), check_dtypes=False)
    assert frame["model_name"].unique().to_list() == ["a"]


def test_folders_of_an_earlier_release_are_brought_into_the_present_layout(
    trained: FitResult, weekly_loaded: Loaded, bad: Callable[..., Loaded], tmp_path: Path
) -> None:
    place = Place(tmp_path, "parquet", trained, weekly_loaded)
    outputs = [place.write(A, back=back, loaded=bad(2)) for back in (120, 7, 0)]
    expected = [place.rows(output) for output in outputs]
    rejects = place.all_rows("rejects")
    as_before(place, outputs)
    sums = place.folder / "out/rejects"
    rows = pl.read_parquet(next(sums.glob("rows.*/*")))
    shutil.rmtree(next(sums.glob("rows.*")))
    for output in outputs:  # Each cutoff had the rejects of reading.
        old = ForecastKey.of(output.content)._replace(is_legacy=True)
        manifest = place.folder / "out/manifests" / old.manifest
        content, names = json.loads(manifest.read_text()), ["cutoff", "model_name", "model_version", "model_digest"]
        key = ForecastKey.of(output.content)
        (sums / old.folder).mkdir()
        for file in (sums / key.folder).glob("*"):
            pl.read_parquet(file).drop(names).write_parquet(sums / old.folder / file.name)
        shutil.rmtree(sums / key.folder, ignore_errors=True)
        rows.drop(names).write_parquet(sums / old.folder / "rows-1f2e3d4c.parquet")
        content["files"] = open_sink(ScoreOutput.model_validate(place.config())).inventory(old)["files"]
        manifest.write_text(json.dumps(content))

    with pytest.raises(pa.ArrowException):
        pd.read_parquet(place.folder / "out/forecasts")
    assert cli(["scores", "upgrade", f"scores.path={place.folder / 'out'}"]) == 0
    assert cli(["scores", "upgrade", f"scores.path={place.folder / 'out'}"]) == 0, "nothing is left to do"
    frame = pl.from_pandas(pd.read_parquet(place.folder / "out/forecasts")).sort("cutoff", *ORDER)
    assert_frame_equal(frame.select(expected[0].columns), pl.concat(expected), check_dtypes=False)
    assert_frame_equal(fc.read_scores(place.folder / "out").select(frame.columns), frame, check_dtypes=False)
    order = ["cutoff", "reason", "series_id"]
    assert_frame_equal(place.all_rows("rejects").select(rejects.columns).sort(order), rejects.sort(order))
    assert not [path for path in (place.folder / "out").rglob("*") if path.is_dir() and "=" in path.name]
    assert len(list((place.folder / "out/manifests").iterdir())) == 3
