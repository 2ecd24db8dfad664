"""Files of a scoring job that become files of a Delta Lake table, as they are, by one commit."""

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable, QueryBuilder
from polars.testing import assert_frame_equal

from forecast.config import ScoreOutput, ScoreSettings
from forecast.data.ingest.loaded import Loaded
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output
from forecast.scoring.sinks import delta_files
from forecast.scoring.sinks.delta import DeltaSink
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
ORDER = ["cutoff", "series_id", "step"]


class Jobs:
    """Jobs that write three shards for a cutoff into a folder."""

    def __init__(self, folder: Path, model: FitResult, loaded: Loaded) -> None:
        self.folder, self._artifact, self._loaded = folder, model.artifact, loaded

    def write(self, path: str = "out", *, back: int = 0, names: dict[str, str] = NAMES, **output: Any) -> Output:
        settings = ScoreOutput.model_validate({"path": str(self.folder / path), "sink": "delta", **output})
        job = ScoreJob(self._artifact, self._loaded, ScoreSettings(shard_size=3), settings, names)
        return job.write(self._loaded.panel.last_index - back)

    def table(self, path: str = "out") -> DeltaTable:
        return DeltaTable(self.folder / path / "forecasts")

    def rows(self, path: str = "out") -> pl.DataFrame:
        return pl.read_delta(str(self.folder / path / "forecasts")).sort(ORDER)

    def hashes(self, path: str = "out") -> set[str]:
        files = (self.folder / path / "forecasts").rglob("*.parquet")
        return {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def jobs(tmp_path: Path, closed_form: FitResult, weekly_loaded: Loaded) -> Jobs:
    return Jobs(tmp_path, closed_form, weekly_loaded)


def test_parts_are_added_as_they_are_and_every_reader_has_the_rows_of_a_write(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = jobs.write("local", sink="parquet").content["files"]
    first = jobs.write()
    assert jobs.hashes() == {value for name, value in parts.items() if name.startswith("forecasts/")}
    assert jobs.write().was_complete
    jobs.write(back=2)
    jobs.write(n_samples=2, names=NAMES | {"model_version": "4"})  # Columns that the table lacks.
    jobs.write(names=NAMES | {"model_version": "5"})  # Columns that the files lack.
    assert len(jobs.hashes()) == len(jobs.table().file_uris()) == 12
    with monkeypatch.context() as patch:
        patch.setattr(delta_files, "can_add", lambda *_: False)
        jobs.write("written")
        jobs.write("written", back=2)
        jobs.write("written", n_samples=2, names=NAMES | {"model_version": "4"})
        jobs.write("written", names=NAMES | {"model_version": "5"})
    expected = jobs.rows("written")
    assert expected.height == 4 * first.content["rows"]["written"]
    names = expected.columns
    assert_frame_equal(
        jobs.rows().select(names).sort([*ORDER, "model_version"]), expected.sort([*ORDER, "model_version"])
    )

    table, cutoff = jobs.table(), expected["cutoff"].max()
    late = expected.filter(pl.col("cutoff") == cutoff, pl.col("series_id") > "s03").sort([*ORDER, "model_version"])
    arrow = table.to_pyarrow_dataset().to_table(filter=(ds.field("cutoff") == cutoff) & (ds.field("series_id") > "s03"))
    query = "select * from t where cutoff = (select max(cutoff) from t) and series_id > 's03'"
    fusion = pl.DataFrame(QueryBuilder().register("t", table).execute(query).read_all())
    scanned = pl.scan_delta(table).filter(pl.col("cutoff") == cutoff, pl.col("series_id") > "s03").collect()
    for frame in (pl.DataFrame(arrow), fusion, scanned):
        assert_frame_equal(frame.select(names).sort([*ORDER, "model_version"]), late, check_dtypes=False)

    statistics = pl.DataFrame(table.get_add_actions(flatten=True)).sort("path")
    assert statistics["num_records"].sum() == expected.height
    assert statistics["min.series_id"].min() == "s00"
    assert statistics["max.step"].unique().to_list() == [7]


def test_new_settings_replace_the_rows_of_a_key_and_only_those(jobs: Jobs) -> None:
    jobs.write()
    jobs.write(back=2)
    before = jobs.rows()
    jobs.write(max=10.0)
    after = jobs.rows()
    cutoff = before["cutoff"].max()
    assert after.height == before.height
    assert after.filter(pl.col("cutoff") == cutoff)["mean"].max() == 10.0
    rest = pl.col("cutoff") != cutoff
    assert_frame_equal(after.filter(rest), before.filter(rest))


@pytest.mark.parametrize("settings", [{}, {"max": 10.0}], ids=["the same", "others"])
def test_a_job_killed_before_the_commit_leaves_nothing_in_the_table(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    jobs.write(back=2)
    before = jobs.rows()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create_write_transaction", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jobs.write()
    assert_frame_equal(jobs.rows(), before)
    assert len(jobs.hashes()) == 6
    jobs.write(**settings)
    assert len(jobs.hashes()) == len(jobs.table().file_uris()) == 6
    jobs.write("undisturbed", back=2)
    jobs.write("undisturbed", **settings)
    assert_frame_equal(jobs.rows(), jobs.rows("undisturbed"))
    assert not list((jobs.folder / "out").glob(".adding*"))


def test_tables_of_other_types_are_written_and_not_added_to(jobs: Jobs) -> None:
    """A table with 64-bit steps, or with rules for its rows: the writer casts the rows, and checks them."""
    jobs.write(back=2)
    rows = jobs.rows()
    path = str(jobs.folder / "out" / "forecasts")
    options = {"partition_by": ["cutoff"], "schema_mode": "overwrite"}
    rows.with_columns(pl.col("step").cast(pl.Int64)).write_delta(path, mode="overwrite", delta_write_options=options)
    jobs.write()
    assert jobs.rows().schema["step"] == pl.Int64
    assert jobs.rows().height == 2 * rows.height
    jobs.write("ruled", back=2)
    jobs.table("ruled").alter.add_constraint({"forward": "step > 0"})
    jobs.write("ruled")
    assert_frame_equal(jobs.rows("ruled"), jobs.rows(), check_dtypes=False)
    for table in ("out", "ruled"):
        assert jobs.table(table).history(1)[0]["operationParameters"]["mode"] == "Overwrite"


def test_a_sink_without_hard_links_copies(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    content = jobs.write().content
    assert jobs.rows().height == content["rows"]["written"]
    assert sum(1 for _ in DeltaSink(jobs.folder / "out").forecasts(content)) == 1
