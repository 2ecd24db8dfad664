"""Names of series of any length and content: the same in the panel, on the disk, in digests, rejects and forecasts."""

import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import SecretStr

import forecast as fc
from forecast.config import DataConfig, ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel, as_names, concatenated, is_among
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import Tables
from forecast.scoring.job import ScoreJob
from forecast.scoring.sinks.open import open_sink
from forecast.scoring.state_rows import StateRows

NAMES = ["", "\0", "a", "a\0", "a\0\0", "a\0b", "ab", "zürich\0", "x" * 70_000]
DATA = DataConfig(freq="1d", max_reject_share=1.0)


@pytest.fixture(scope="module")
def rows(table: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """Seventy days of each of the names, on levels of their own."""
    return table({name: 10.0 * number + np.arange(70) % 7 for number, name in enumerate(NAMES)})


@pytest.fixture(scope="module")
def found(rows: pl.DataFrame) -> Loaded:
    return load_panel(rows.lazy(), DATA, 7)


def test_the_panel_has_each_name_once_beside_its_values(rows: pl.DataFrame, found: Loaded) -> None:
    assert found.panel.series_id.tolist() == sorted(NAMES)
    frame = found.panel.frame()
    assert frame.equals(rows.sort("series_id", "timestamp").with_columns(pl.col("target").cast(pl.Float32)))


def test_parts_of_a_panel_keep_the_names(found: Loaded) -> None:
    panel, ordered = found.panel, sorted(NAMES)
    assert panel.rows(2, 5).series_id.tolist() == ordered[2:5]
    assert panel.take(np.array([4, 3, 3])).series_id.tolist() == [ordered[4], ordered[3], ordered[3]]
    assert concatenated(list(panel.shards(1))).series_id.tolist() == ordered
    assert panel.between(panel.last_index, panel.last_index).series_id.tolist() == ordered


def test_a_prepared_panel_holds_the_names_as_they_are(tmp_path: Path, rows: pl.DataFrame, found: Loaded) -> None:
    made = prepare(Tables(rows.lazy()), DATA, 7, tmp_path, chunk_rows=50).loaded
    assert made.panel.series_id.tolist() == sorted(NAMES)
    assert made.digest == found.digest
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.npy"))
    assert size < 2 * 70_000  # Not names x longest name.


def test_rows_are_appended_to_the_series_of_their_name(tmp_path: Path, rows: pl.DataFrame) -> None:
    folder, old = tmp_path / "panel", rows.filter(pl.col("timestamp") < rows["timestamp"].max())
    prepare(Tables(old.lazy()), DATA, 7, folder)
    done = append(folder, Tables(rows.filter(pl.col("timestamp") == rows["timestamp"].max()).lazy()), SourceConfig())
    assert (done.new_steps, done.new_series, done.revisions.height) == (len(NAMES), 0, 0)
    assert done.loaded.counts.series_in == done.loaded.counts.series_kept == len(NAMES)
    assert done.loaded.panel.digest() == load_panel(rows.lazy(), DATA, 7).panel.digest()


def test_a_panel_of_the_first_schema_version_is_read(tmp_path: Path, rows: pl.DataFrame) -> None:
    plain = rows.filter(~pl.col("series_id").str.contains("\0", literal=True))
    made = prepare(Tables(plain.lazy()), DATA, 7, tmp_path).loaded
    index = json.loads((tmp_path / "panel.json").read_text())
    buffers = tmp_path / index["folder"]
    np.save(buffers / "series_id.npy", np.array(made.panel.series_id.tolist(), dtype=np.str_))
    (buffers / "series_id_ends.npy").unlink()
    index["files"] = {path.name: path.stat().st_size for path in sorted(buffers.iterdir())}
    old_index = {name: value for name, value in index.items() if name not in ("checksums", "sha256")}
    (tmp_path / "panel.json").write_text(json.dumps(old_index | {"schema_version": 1}))
    old = open_prepared(tmp_path, DATA, 7)
    assert old.panel.series_id.tolist() == made.panel.series_id.tolist()
    assert old.panel.digest() == made.digest


def test_one_long_name_takes_its_own_room_only(found: Loaded) -> None:
    panel = found.panel
    wide = panel.take(np.tile(np.arange(panel.n_series), 500))
    tracemalloc.start()
    names = wide.series_id[1:]
    held = concatenated([wide]).series_id
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(names) == len(held) - 1
    assert peak < len(held) * 70_000  # A fixed width would be four times that.


@pytest.mark.parametrize(
    ("one", "other"),
    [(["a", "b"], ["a\0b", ""]), (["a\0"], ["a"]), (["a", "\0b"], ["a\0", "b"]), (["a\0b", "c"], ["a", "b\0c"])],
)
def test_no_nul_makes_two_panels_look_the_same(found: Loaded, one: list[str], other: list[str]) -> None:
    def named(names: list[str]) -> Panel:
        return replace(found.panel.rows(0, len(names)), series_id=as_names(names))

    cutoff = found.panel.last_index
    if len(one) == len(other):
        assert named(one).visible_digest(cutoff, 7) != named(other).visible_digest(cutoff, 7)
    assert named(one).digest() != named(other).digest()


def test_a_nul_is_not_taken_for_the_first_bytes_of_the_values(found: Loaded) -> None:
    panel = found.panel.rows(0, 1)
    # Four NULs behind a name, and a start of 0 with a first value of 0, are the same bytes.
    zero = replace(panel, series_id=as_names(["a"]), start=np.array([0]), offsets=np.array([0, 2]))
    zero = replace(zero, target=np.array([0.0, 1.0], dtype=np.float32))
    nul = replace(zero, series_id=as_names(["a\0\0\0\0"]), offsets=np.array([0, 1]), target=zero.target[1:])
    assert not np.array_equal(zero.series_digests, nul.series_digests)


def test_rejects_name_the_series(rows: pl.DataFrame) -> None:
    bad = rows.filter(series_id="a\0").head(1).with_columns(target=pl.lit(float("inf")))
    silent = rows.head(3).with_columns(series_id=pl.lit("b\0"), target=pl.lit(None, pl.Float64))
    rejects = load_panel(pl.concat([rows, bad, silent]).lazy(), DATA, 7).rejects
    assert rejects.filter(reason="target not finite")["series_id"].to_list() == ["a\0"]
    assert rejects.filter(reason="no observed target")["series_id"].to_list() == ["b\0"]


def test_carried_states_keep_the_names() -> None:
    import torch

    from forecast.models.network.carried_state import StateStore

    blank = StateStore(*(torch.zeros(len(NAMES), 1) for _ in StateStore._fields))
    state = StateRows(as_names(NAMES), blank, np.zeros((len(NAMES), 16), np.uint8))
    assert StateRows.from_bytes(state.to_bytes()).series_id.tolist() == NAMES


def test_forecasts_banks_and_tables_have_a_row_for_each_name(tmp_path: Path, rows: pl.DataFrame) -> None:
    settings = {"hidden_size": 4, "decoder_size": 2, "embedding_size": 2}
    base = fc.train(rows, horizon=7, context_length=14, data={"freq": "1d"}, model=settings, fit={"max_steps": 0})
    tuned = fc.finetune(base.artifact, rows, kind="head", min_gain=0.0, gate_windows=2).artifact
    tuned.save(tmp_path / "model")
    frame = fc.forecast(fc.load(tmp_path / "model"), rows).frame
    levels = dict(frame.group_by("series_id").agg(pl.col("q50").mean()).iter_rows())
    assert sorted(levels) == sorted(NAMES)
    for number, name in enumerate(NAMES):
        assert abs(levels[name] - 10 * number - 3) < 5, name

    bank = fc.load(tmp_path / "model").bank
    assert bank is None or bank.rows(bank.series_id).tolist() == list(range(len(bank.series_id)))
    settings = ScoreOutput(path=str(tmp_path), sink="sql", uri=SecretStr(f"sqlite:///{tmp_path}/{os.getpid()}.db"))
    names = {"model": "a'b", "model_version": "1", "model_digest": "ab12"}
    loaded = fc.load(tmp_path / "model").read(rows.lazy())
    written = ScoreJob(fc.load(tmp_path / "model"), loaded, ScoreSettings(), settings, names).write(
        loaded.panel.last_index
    )
    stored = pl.concat(open_sink(settings).forecasts(written.content)).collect().sort("series_id", "step")
    assert stored["series_id"].to_list() == frame["series_id"].to_list()


def test_names_are_looked_up_among_others() -> None:
    names = as_names(["a", "b\0", "b", "c"])
    assert is_among(names, ["c", "b", "d"]).tolist() == [False, False, True, True]
    assert is_among(names, []).tolist() == [False] * 4
    assert is_among([], names).tolist() == []
