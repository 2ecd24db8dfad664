"""Prepared panels in an object store: what is read of them, and when."""

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from forecast.backtesting.backtest import backtest, backtest_share
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, DataConfig, JobShare, ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.panel import Panel
from forecast.data.prepared import ranges
from forecast.data.prepared.prepare import prepare
from forecast.data.prepared.ranges import RangeArray, RemoteFile
from forecast.data.read import read_panel
from forecast.data.sources.open import Tables, is_prepared
from forecast.engines.processes import Processes
from forecast.errors import ConfigError, DataError
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

BUFFERS = ("offsets", "start", "target", "past", "known", "static_categories", "static_numbers", "calendar")
NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
COVARIATES = {"past_covariates": ["rain"], "known_covariates": ["promo"], "static_covariates": ["city", "size"]}


@pytest.fixture
def folder(tmp_path: Path, weekly_table: pl.DataFrame) -> Path:
    """A prepared panel on the disk."""
    data = DataConfig.model_validate({"freq": "1d", **COVARIATES})
    prepare(Tables(weekly_table.lazy()), data, 7, tmp_path / "panel")
    return tmp_path / "panel"


@pytest.fixture
def address(folder: Path, bucket: Any) -> str:
    """A copy of the panel in a bucket."""
    upload(bucket, folder)
    return f"s3://{bucket.name}/a/panel"


def upload(bucket: Any, folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.client.upload_file(str(file), bucket.name, f"a/panel/{file.relative_to(folder)}")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The file and the bytes of each range that is read from now on."""
    entries: list[tuple[str, int]] = []
    read = RemoteFile._read_at

    def note(file: RemoteFile, begin: int, size: int) -> bytes:
        entries.append((file.address.rpartition("/")[2].removesuffix(".npy"), size))
        return read(file, begin, size)

    monkeypatch.setattr(RemoteFile, "_read_at", note)
    return entries


def assert_same(panel: Panel, expected: Panel) -> None:
    assert panel.series_id.tolist() == expected.series_id.tolist()
    for name in BUFFERS:
        np.testing.assert_array_equal(np.asarray(getattr(panel, name)), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_panel_in_a_bucket_is_the_one_on_the_disk(folder: Path, address: str, in_memory: bool) -> None:
    assert is_prepared(address)
    expected = read_panel(DataConfig(path=str(folder)), 7)
    loaded = read_panel(DataConfig(path=f"{address}/"), 7, in_memory=in_memory)
    assert isinstance(loaded.panel.target, np.ndarray) == in_memory
    assert loaded.digest == expected.digest
    assert loaded.counts == expected.counts
    assert loaded.categories == expected.categories
    assert_frame_equal(loaded.rejects, expected.rejects)
    copy = pickle.loads(pickle.dumps(loaded.panel))
    if not in_memory:
        assert len(pickle.dumps(loaded.panel.target)) < 1_000
        assert isinstance(copy.target, RangeArray)
    for first, last in ((0, 3), (3, 8), (7, 8), (2, 2)):
        shard = copy.rows(first, last)
        assert_same(shard.in_memory(), expected.panel.rows(first, last))
        if last > first:
            assert shard.in_memory().visible_digest(80, 7) == expected.panel.rows(first, last).visible_digest(80, 7)
    assert_same(loaded.panel, expected.panel)


def test_a_shard_reads_its_own_ranges_once(address: str, requests: list[tuple[str, int]]) -> None:
    panel = read_panel(DataConfig(path=address), 7, in_memory=False).panel
    headers = {name for name, _ in requests if name in ("target", "past", "known")}
    assert headers == {"target", "past", "known"}
    small = panel.lengths.max() * 4
    assert sum(size for name, size in requests if name == "target") <= ranges._HEADER + 2 * small
    requests.clear()
    shard = panel.rows(2, 5)
    assert requests == []
    shard.in_memory()
    steps = int(panel.lengths[2:5].sum())
    assert sorted(requests) == [("known", (steps + 3 * 7) * 4), ("past", steps * 4), ("target", steps * 4)]

    requests.clear()
    panel.rows(5, 8).advise(ranges.mmap.MADV_WILLNEED)
    ahead = panel.rows(5, 8).in_memory()
    np.testing.assert_array_equal(ahead.target, np.asarray(panel.target)[panel.offsets[5] :])
    assert [name for name, size in requests if size < panel.target.nbytes] == ["target", "past", "known"]


def test_slices_of_parts_are_parts_and_other_indices_are_values() -> None:
    """The array semantics of NumPy, on a file that is never read whole."""

    class Memory(ranges.FileArray):
        def read(self, row: int, begin: int, out: np.ndarray) -> None:
            out[:] = whole.reshape(-1)[self.offset // 4 + row * self.columns + begin :][: len(out)]

        def row(self, number: int) -> "Memory":
            return Memory(self.file, self.dtype, self.offset + number * self.columns * 4, self.columns)

    whole = np.arange(60, dtype=np.float32).reshape(3, 20)
    file = RemoteFile("s3://none/x", whole.nbytes, "x")
    for array, values in (
        (RangeArray(Memory(file, whole.dtype, 0, 20), (0, 1, 2), 0, 20), whole),
        (RangeArray(Memory(file, whole.dtype, 80, 20), None, 0, 20), whole[1]),
    ):
        columns = (slice(None),) * (values.ndim - 1)
        part, expected = array[(*columns, slice(4, 17))], values[(*columns, slice(4, 17))]
        part, expected = part[(*columns, slice(2, -3))], expected[(*columns, slice(2, -3))]
        assert isinstance(part, RangeArray)
        assert (part.shape, part.dtype, len(part), part.nbytes) == (
            expected.shape,
            expected.dtype,
            len(expected),
            expected.nbytes,
        )
        np.testing.assert_array_equal(part, expected)
        for index in (-1, slice(None, None, 2), slice(8, 2), expected % 2 == 0, [0]):
            np.testing.assert_array_equal(part[index], expected[index])
            fresh = array[(*columns, slice(6, 14))]
            np.testing.assert_array_equal(fresh[index], expected[index])
        assert [np.asarray(row).tolist() for row in array] == values.tolist()
        np.testing.assert_array_equal(np.concatenate([array, values], axis=-1)[..., :20], values)


def test_scoring_from_a_bucket_writes_the_bytes_of_scoring_from_the_disk(
    folder: Path, address: str, closed_form: FitResult, tmp_path: Path, requests: list[tuple[str, int]]
) -> None:
    def files(source: str) -> dict[str, str]:
        loaded = closed_form.artifact.open(SourceConfig(path=source), in_memory=False)
        output = ScoreOutput(path=str(tmp_path / f"out-{len(source)}"))
        job = ScoreJob(closed_form.artifact, loaded, ScoreSettings(shard_size=3), output, NAMES)
        requests.clear()
        written = job.write(loaded.panel.last_index)
        assert written.content["data_digest"]
        result: dict[str, str] = written.content["files"]
        return result

    expected = files(str(folder))
    assert requests == []
    assert files(address) == expected
    panel = read_panel(DataConfig(path=str(folder)), 7).panel
    whole = panel.target.nbytes + panel.past.nbytes + panel.known.nbytes
    assert sum(size for _, size in requests) == pytest.approx(
        2 * whole, abs=16 * ranges._HEADER
    )  # Digest and forecasts.
    assert max(size for name, size in requests if name == "target") < panel.target.nbytes / 2


@pytest.mark.distributed
def test_workers_read_the_ranges_of_their_shards(address: str, closed_form: FitResult, tmp_path: Path) -> None:
    loaded = closed_form.artifact.open(SourceConfig(path=address), in_memory=False)
    contents = []
    with Processes(1) as processes:
        for engine in (None, processes):
            output = ScoreOutput(path=str(tmp_path / f"out-{len(contents)}"))
            job = ScoreJob(closed_form.artifact, loaded, ScoreSettings(shard_size=3), output, NAMES, engine=engine)
            contents.append(job.write(loaded.panel.last_index).content["files"])
    assert contents[0] == contents[1]


def test_a_share_of_a_backtest_reads_the_ranges_of_its_series(
    folder: Path,
    address: str,
    closed_form: FitResult,
    tmp_path: Path,
    requests: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forecast.backtesting.plan._WINDOWS", 4)
    settings, artifact = BacktestSettings(n_windows=2), closed_form.artifact
    contenders = {"m": Contender(artifact, artifact.open(SourceConfig(path=address), in_memory=False).panel)}
    panel = contenders["m"].panel
    for index in range(2):
        requests.clear()
        backtest_share(contenders, settings, JobShare(index, 2), folder=tmp_path / "shards")
        sizes = [size for name, size in requests if name == "target"]
        assert sum(sizes) == 2 * panel.lengths[4 * index : 4 * index + 4].sum() * 4
    on_disk = {"m": Contender(artifact, artifact.open(SourceConfig(path=str(folder))).panel)}
    backtest(on_disk, settings, folder=tmp_path / "shards", commit=True)
    backtest(on_disk, settings, folder=tmp_path / "whole")
    for name in ("scores.parquet", "forecasts.parquet"):
        assert (tmp_path / "shards" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_needs_the_whole_panel_reads_it_and_says_so(
    address: str, folder: Path, caplog: pytest.LogCaptureFixture, closed_form: FitResult
) -> None:
    caplog.set_level(logging.INFO)
    loaded = closed_form.artifact.open(SourceConfig(path=address))
    assert isinstance(loaded.panel.known, np.ndarray)
    assert "MiB are read into memory; a copy of the panel on a disk is mapped" in caplog.text
    caplog.clear()
    last = loaded.panel.grid.timestamps(np.array([loaded.panel.last_index - 30]))[0]
    source = {"until": last.isoformat()}
    early = closed_form.artifact.open(SourceConfig(path=address, **source), in_memory=False)
    expected = closed_form.artifact.open(SourceConfig(path=str(folder), **source))
    assert_same(early.panel, expected.panel)


def test_damaged_panels_are_refused(folder: Path, address: str, bucket: Any) -> None:
    def put(name: str, content: bytes) -> None:
        bucket.client.put_object(Bucket=bucket.name, Key=f"a/panel/{name}", Body=content)

    data_folder = next(folder.glob("data-*")).name
    for name, change, message in (
        ("offsets.npy", lambda content: content[:-1] + b"\1", "offsets.npy is damaged"),
        ("target.npy", lambda content: content[:-4], "target.npy has .* bytes instead of"),
        ("target.npy", lambda content: b"\0" + content[1:], "is damaged"),
    ):
        content = (folder / data_folder / name).read_bytes()
        put(f"{data_folder}/{name}", change(content))
        with pytest.raises(DataError, match=message):
            read_panel(DataConfig(path=address), 7, in_memory=False)
        put(f"{data_folder}/{name}", content)
    panel = read_panel(DataConfig(path=address), 7, in_memory=False).panel
    bucket.client.delete_object(Bucket=bucket.name, Key=f"a/panel/{data_folder}/past.npy")
    with pytest.raises(DataError, match=r"past.npy is gone: the panel was replaced"):
        panel.rows(0, 3).in_memory()
    with pytest.raises(DataError, match=r"past.npy is missing"):
        read_panel(DataConfig(path=address), 7, in_memory=False)
    put("panel.json", b"{}")
    with pytest.raises(DataError, match="schema version None"):
        read_panel(DataConfig(path=address), 7)
    upload(bucket, folder)
    with pytest.raises(ConfigError, match="was prepared with"):
        read_panel(DataConfig(path=address, freq="1w"), 7, in_memory=False)
