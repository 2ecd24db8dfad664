"""Prepared panels: the same panel as the table gives, whatever the parts, and grown by new rows."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecast.config import DataConfig, SourceConfig
from forecast.data.files import locked
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.prepared import append as append_module
from forecast.data.prepared import storage
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.read import read_panel
from forecast.data.sources.open import Tables, is_prepared, open_tables
from forecast.errors import ConfigError, DataError, OutputError

HORIZON = 3
FIRST = datetime(2024, 1, 1)
DATA = DataConfig(
    freq="1d",
    past_covariates=("rain",),
    known_covariates=("event", "promo"),
    static_covariates=("city", "size"),
    lags=(2,),
    rolling=("mean_3",),
    max_reject_share=1.0,
)
BUFFERS = ("series_id", "offsets", "start", "target", "past", "known", "static_categories", "static_numbers")


def random_table(seed: int, n_series: int = 7) -> pl.DataFrame:
    """Series of all lengths with gaps, late starts, rows without a target at the end, duplicates and odd values."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    for number in range(n_series):
        start, length = int(rng.integers(0, 20)), int(rng.integers(1, 40))
        for step in range(length):
            if rng.random() < 0.15:
                continue
            target = None if rng.random() < 0.1 or step > 35 else float(rng.integers(0, 50))
            event = ["fair", "match", None][rng.integers(3)]
            moment = FIRST + timedelta(days=start + step)
            rows.append((f"s{number}", moment, target, rng.normal(), event, rng.normal(), f"c{number % 3}", number / 2))
    table = pl.DataFrame(
        rows,
        schema=["series_id", "timestamp", "target", "rain", "event", "promo", "city", "size"],
        orient="row",
        schema_overrides={"target": pl.Float64, "timestamp": pl.Datetime("us")},
    )
    bad = table.head(3).with_columns(target=pl.lit(float("inf")))
    nameless = table.head(2).with_columns(series_id=pl.lit(None, pl.String))
    return pl.concat([table, table.gather_every(40), bad, nameless])


def assert_same(left: Panel, right: Panel) -> None:
    for name in BUFFERS:
        mine, other = getattr(left, name), getattr(right, name)
        assert mine.shape == other.shape, name
        assert np.array_equal(mine, other, equal_nan=mine.dtype.kind == "f"), name
    assert np.array_equal(left.calendar, right.calendar)
    assert left.digest() == right.digest()


def load(table: pl.DataFrame, data: DataConfig = DATA) -> Loaded:
    return load_panel(table.lazy(), data, HORIZON)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), chunk_rows=st.integers(1, 200), shuffle=st.booleans())
def test_any_parts_and_any_order_of_rows_give_the_panel_of_the_table(
    tmp_path_factory: pytest.TempPathFactory, seed: int, chunk_rows: int, shuffle: bool
) -> None:
    table = random_table(seed)
    whole = load(table)
    if shuffle:
        table = table.sample(fraction=1.0, shuffle=True, seed=seed)
    folder = tmp_path_factory.mktemp("panel")
    made = prepare(Tables(table.lazy()), DATA, HORIZON, folder, chunk_rows=chunk_rows).loaded
    assert_same(made.panel, whole.panel)
    assert made.counts == whole.counts
    assert made.categories == whole.categories
    assert made.rejects.equals(whole.rejects)
    assert made.data == whole.data
    assert made.digest == whole.digest == whole.panel.digest()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), day=st.integers(3, 40))
def test_appending_the_later_rows_gives_the_panel_of_all_rows(
    tmp_path_factory: pytest.TempPathFactory, seed: int, day: int
) -> None:
    table = random_table(seed).filter(pl.col("target").is_finite(), pl.col("series_id").is_not_null())
    table = table.unique(["series_id", "timestamp"], keep="first", maintain_order=True)
    early = pl.col("timestamp") < FIRST + timedelta(days=day)
    if not table.filter(early).height or not table.filter(~early).height:
        return
    folder = tmp_path_factory.mktemp("panel")
    before = prepare(Tables(table.filter(early).lazy()), DATA, HORIZON, folder, chunk_rows=50).loaded
    done = append(folder, Tables(table.filter(~early).lazy()), SourceConfig(max_reject_share=1.0))
    whole = load(table)
    if set(before.categories["city"]) == set(whole.categories["city"]) and before.categories == whole.categories:
        assert_same(done.loaded.panel, whole.panel)
    assert np.array_equal(done.loaded.panel.target, whole.panel.target, equal_nan=True)
    assert done.loaded.counts == whole.counts
    assert done.new_steps == table.filter(~early).height
    assert done.new_series == whole.panel.n_series - before.panel.n_series
    assert done.revisions.is_empty()


def test_the_buffers_are_mapped_read_only_and_shards_are_views(tmp_path: Path) -> None:
    panel = prepare(Tables(random_table(1).lazy()), DATA, HORIZON, tmp_path).loaded.panel
    assert isinstance(panel.target, np.memmap)
    assert not panel.target.flags.writeable
    shards = list(panel.shards(steps=20))
    assert len(shards) > 2
    assert all(np.shares_memory(shard.target, panel.target) for shard in shards)
    assert sum(shard.n_series for shard in shards) == panel.n_series
    assert b"".join(shard.series_digests.tobytes() for shard in shards) == panel.series_digests.tobytes()


def test_a_panel_of_the_same_source_is_reused_and_another_one_replaces_it(tmp_path: Path) -> None:
    table = random_table(2)
    first = prepare(Tables(table.lazy()), DATA, HORIZON, tmp_path, fingerprint="one")
    index = (tmp_path / "panel.json").stat().st_mtime_ns
    again = prepare(Tables(table.lazy()), DATA, HORIZON, tmp_path, fingerprint="one")
    assert (first.reused, again.reused) == (False, True)
    assert (tmp_path / "panel.json").stat().st_mtime_ns == index
    assert not prepare(Tables(table.lazy()), DATA, HORIZON + 1, tmp_path, fingerprint="one").reused
    other = prepare(Tables(random_table(3).lazy()), DATA, HORIZON, tmp_path, fingerprint="two")
    assert not other.reused
    assert other.loaded.digest != first.loaded.digest
    assert len(list(tmp_path.glob("data-*"))) == 1


def test_an_interrupted_preparation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table, read = random_table(4), []

    def stop(text: str) -> None:
        read.append(text)
        if len(read) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Tables(table.lazy()), DATA, HORIZON, tmp_path, fingerprint="one", chunk_rows=30, progress=stop)
    assert not is_prepared(tmp_path)
    done = sorted((tmp_path / ".parts").rglob("panel.json"))
    stamps = [path.stat().st_mtime_ns for path in done]
    assert len(done) == 2
    kept: list[int] = []

    def look(_: str) -> None:
        kept[:] = [path.stat().st_mtime_ns for path in done]

    made = prepare(Tables(table.lazy()), DATA, HORIZON, tmp_path, fingerprint="one", chunk_rows=30, progress=look)
    assert kept == stamps
    assert_same(made.loaded.panel, load(table).panel)
    assert not (tmp_path / ".parts").exists()


@pytest.mark.parametrize("day", [8, 20, 45])
def test_until_hides_what_came_later_as_it_does_in_a_table(tmp_path: Path, day: int) -> None:
    table = random_table(5).filter(pl.col("target").is_not_null())
    until = FIRST + timedelta(days=day)
    prepare(Tables(table.lazy()), DATA, HORIZON, tmp_path)
    stated = DATA.model_copy(update={"until": until})
    made, whole = open_prepared(tmp_path, stated, HORIZON), load(table, stated)
    assert_same(made.panel, whole.panel)
    counts = made.counts
    assert counts.rows_in == counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
    assert counts.series_in == counts.series_kept + counts.series_rejected == whole.counts.series_in


def test_revisions_are_reported_and_treated_as_asked(tmp_path: Path) -> None:
    day = [FIRST + timedelta(days=step) for step in range(6)]
    old = pl.DataFrame(
        {"series_id": ["a"] * 5 + ["b"], "timestamp": [*day[:5], day[0]], "target": [1.0, 2, 3, 4, 5, 9]}
    )
    new = pl.DataFrame({"series_id": ["a"] * 3, "timestamp": day[3:], "target": [4.0, 7.0, 6.0]})
    data = DataConfig(freq="1d")

    def grown(folder: str, revisions: Any) -> append_module.Appended:
        prepare(Tables(old.lazy()), data, HORIZON, tmp_path / folder)
        return append(tmp_path / folder, Tables(new.lazy()), SourceConfig(), revisions=revisions)

    accepted = grown("accept", "accept")
    assert accepted.revisions.rows() == [("a", day[4], 5.0, 7.0)]
    assert (accepted.new_steps, accepted.new_series) == (1, 0)
    assert accepted.loaded.panel.target.tolist() == [1, 2, 3, 4, 7, 6, 9]
    refused = grown("refuse", "refuse")
    assert refused.loaded.panel.target.tolist() == [1, 2, 3, 4, 5, 6, 9]
    assert refused.loaded.rejects.rows() == [("a", day[4], "revision of the past", 7.0)]
    counts = refused.loaded.counts
    assert (counts.rows_in, counts.rows_kept, counts.rows_rejected) == (9, 8, 1)
    with pytest.raises(DataError, match=r"1 values of 1 series differ .*: a at 2024-01-05 00:00:00 \(5, now 7\)"):
        grown("fail", "fail")
    assert open_prepared(tmp_path / "fail", data, HORIZON).panel.target.tolist() == [1, 2, 3, 4, 5, 9]


def test_new_values_of_a_category_get_new_codes(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"series_id": ["a", "a"], "timestamp": [FIRST, FIRST + timedelta(days=1)], "target": [1.0, 2.0]}
    )
    data = DataConfig(freq="1d", static_covariates=("city",), known_covariates=("event",))
    prepare(Tables(frame.with_columns(city=pl.lit("Ulm"), event=pl.lit("match")).lazy()), data, 1, tmp_path)
    later = frame.with_columns(series_id=pl.lit("b"), city=pl.lit("Bonn"), event=pl.Series(["fair", "match"]))
    done = append(tmp_path, Tables(later.lazy()), SourceConfig()).loaded
    assert done.categories == {"city": ("Ulm", "Bonn"), "event": ("match", "fair")}
    assert done.panel.static_categories.tolist() == [[1], [2]]
    # A model that was trained before knows nothing of Bonn and fairs.
    read = open_prepared(tmp_path, data, 1, {"city": ("Ulm",), "event": ("match",)})
    assert read.panel.static_categories.tolist() == [[1], [0]]
    assert read.panel.known[0, [0, 1, 3, 4]].tolist() == [1, 1, 0, 1]


def test_a_prepared_panel_serves_shorter_horizons_and_any_without_known_covariates(tmp_path: Path) -> None:
    table = random_table(6)
    prepare(Tables(table.lazy()), DATA, HORIZON, tmp_path / "known")
    assert open_prepared(tmp_path / "known", DATA, 1).panel.horizon == HORIZON
    with pytest.raises(DataError, match=r"for 3 steps ahead, 4 are wanted; prepare it again with window.horizon=4"):
        open_prepared(tmp_path / "known", DATA, 4)
    plain = DataConfig(freq="1d", max_reject_share=1.0)
    prepare(Tables(table.lazy()), plain, 1, tmp_path / "plain")
    assert_same(open_prepared(tmp_path / "plain", plain, 9).panel, load_panel(table.lazy(), plain, 9).panel)


def test_settings_that_contradict_the_buffers_are_refused(tmp_path: Path) -> None:
    prepare(Tables(random_table(7).lazy()), DATA, HORIZON, tmp_path)
    stated = DataConfig(path=str(tmp_path), freq="1h", known_covariates=("price",))
    with pytest.raises(ConfigError, match=r"data.freq: .* was prepared with '1d', not '1h'\ndata.known_covariates: "):
        read_panel(stated, HORIZON)
    # What is not said is as it was prepared; the calendar is made anew.
    read = read_panel(DataConfig(path=str(tmp_path), calendar=False), HORIZON)
    assert read.data.known_covariates == DATA.known_covariates
    assert len(read.panel.calendar) == 0
    with pytest.raises(ConfigError, match=r"data.until: prepare the whole table"):
        prepare(Tables(random_table(7).lazy()), DATA.model_copy(update={"until": FIRST}), HORIZON, tmp_path / "other")


def _truncate(folder: Path) -> str:
    path = next(folder.glob("data-*/target.npy"))
    path.write_bytes(path.read_bytes()[:-4])
    return r"target.npy has [\d,]+ bytes instead of [\d,]+; prepare the panel again"


def _remove(folder: Path) -> str:
    next(folder.glob("data-*/known.npy")).unlink()
    return "known.npy is missing; prepare the panel again"


def _other_version(folder: Path) -> str:
    index = json.loads((folder / "panel.json").read_text())
    (folder / "panel.json").write_text(json.dumps(index | {"schema_version": 99}))
    return "schema version 99, this program reads 2"


def _no_json(folder: Path) -> str:
    (folder / "panel.json").write_text("{")
    return "panel.json can't be read"


@pytest.mark.parametrize("damage", [_truncate, _remove, _other_version, _no_json])
def test_a_damaged_folder_is_told(tmp_path: Path, damage: Callable[[Path], str]) -> None:
    prepare(Tables(random_table(8).lazy()), DATA, HORIZON, tmp_path)
    message = damage(tmp_path)
    with pytest.raises(DataError, match=message):
        open_prepared(tmp_path, DATA, HORIZON)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds other files \(thesis.txt\); choose an empty folder"):
        prepare(Tables(random_table(9).lazy()), DATA, HORIZON, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_has_one_job_at_a_time(tmp_path: Path) -> None:
    tables = Tables(random_table(1).lazy())
    refused = pytest.raises(OutputError, match=r"another job is writing into .*process .* wait for it to end")
    with locked(tmp_path), refused:
        prepare(tables, DATA, HORIZON, tmp_path)
    before = prepare(tables, DATA, HORIZON, tmp_path).loaded.panel.digest()
    with locked(tmp_path), refused:
        append(tmp_path, tables, SourceConfig(path="later"))
    assert open_prepared(tmp_path, DATA, HORIZON).panel.digest() == before


def test_a_prepared_panel_is_not_a_table(tmp_path: Path) -> None:
    prepare(Tables(random_table(11).lazy()), DATA, HORIZON, tmp_path)
    with pytest.raises(ConfigError, match="is a prepared panel already; give the table that it was made from"):
        open_tables(DATA.model_copy(update={"path": str(tmp_path)}))


def test_too_many_rejects_leave_no_panel(tmp_path: Path) -> None:
    strict = DATA.model_copy(update={"max_reject_share": 0.0})
    with pytest.raises(DataError, match=r"more than data.max_reject_share=0"):
        prepare(Tables(random_table(10).lazy()), strict, HORIZON, tmp_path, chunk_rows=20)
    assert not is_prepared(tmp_path)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "datetime64[s]"])
def test_a_buffer_is_what_numpy_would_write(tmp_path: Path, dtype: str, axis: int) -> None:
    whole = np.arange(30).reshape(5, 6).astype(dtype)
    cuts = np.split(whole, [0, 2, 3], axis)
    storage._write_buffer(tmp_path / "a.npy", [np.asfortranarray(part) for part in cuts], axis)
    np.save(tmp_path / "b.npy", whole)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_buffer_on_a_full_disk_is_an_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        storage._write_buffer(Path("/dev/full"), [np.zeros((3, 100_000), np.float32)], 1)
