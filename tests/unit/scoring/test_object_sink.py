"""Forecasts in an object store: what a bucket holds, alone, after jobs that end, fail, repeat and correct."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.artifact import Artifact
from forecast.config import JobShare, ReconcileConfig, RetainSettings, ScoreOutput, ScoreSettings, SinkConfig
from forecast.config import load as validated
from forecast.data.ingest.loaded import Loaded
from forecast.data.objects import ObjectStore
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError, OutputError
from forecast.monitoring.forecasts import Block, ScoredForecasts
from forecast.retention.forecasts import StoredForecasts
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output
from forecast.scoring.scores import Scores
from forecast.scoring.shard_writer import ShardWriter
from forecast.training.result import FitResult
from pipelines.cli import main as cli
from pipelines.reconcile import run as reconcile

NAMES = {"model": "loads of Köln", "model_version": "3", "model_digest": "ab12"}
OTHER = NAMES | {"model_version": "4", "model_digest": "cd34"}


class Place:
    """A bucket, jobs that write below a prefix of it, and what a program that only knows S3 sees there."""

    def __init__(self, client: Any, name: str, folder: Path, artifact: Artifact, loaded: Loaded) -> None:
        self.client, self.name, self.folder = client, name, folder
        self.uri = f"s3://{name}/a/b"
        self._artifact, self.loaded = artifact, loaded

    def job(
        self, loaded: Loaded | None = None, names: dict[str, str] = NAMES, *, path: str = "out", **output: Any
    ) -> ScoreJob:
        force = output.pop("force", False)
        settings = ScoreOutput.model_validate({"path": str(self.folder / path), "uri": self.uri, **output})
        score = ScoreSettings(shard_size=3, force=force)
        return ScoreJob(self._artifact, loaded or self.loaded, score, settings, names)

    def write(
        self, loaded: Loaded | None = None, names: dict[str, str] = NAMES, *, back: int = 0, **output: Any
    ) -> Output:
        job = self.job(loaded, names, **output)
        written = job.write(self.loaded.panel.last_index - back)
        job.write_latest()
        return written

    def objects(self) -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {
            item["Key"].removeprefix("a/b/"): self.client.get_object(Bucket=self.name, Key=item["Key"])["Body"].read()
            for item in listed
        }

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"a/b/{name}", Body=content)

    def times(self) -> dict[str, Any]:
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {item["Key"].removeprefix("a/b/"): item["LastModified"] for item in listed}


@pytest.fixture
def place(bucket: Any, tmp_path: Path, closed_form: FitResult, weekly_loaded: Loaded) -> Place:
    return Place(bucket.client, bucket.name, tmp_path, closed_form.artifact, weekly_loaded)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def counted(function: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    """A method that notes the series of the shards it is called with."""

    def call(self: object, shard: Panel, *arguments: Any) -> Any:
        sizes.append(shard.n_series)
        return function(self, shard, *arguments)

    return call


def lasting(objects: dict[str, bytes]) -> dict[str, bytes]:
    """Objects without the times in manifests."""
    return {
        name: content
        if not name.endswith(".json")
        else json.dumps(json.loads(content) | {"written_at": None, "current_since": None}).encode()
        for name, content in objects.items()
    }


def test_a_bucket_holds_what_a_folder_would_and_every_reader_reads_it(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    written = place.write()
    local = place.write(uri=None, path="local")
    objects = place.objects()
    files = {name: hashlib.sha256(content).hexdigest() for name, content in objects.items()}
    assert written.content["files"].items() <= files.items()
    assert {*written.content["files"].values()} == {*local.content["files"].values()}
    manifest = f"manifests/{written.manifest.name}"
    assert json.loads(objects[manifest]) == json.loads(written.manifest.read_text()) == written.content
    rest = objects.keys() - written.content["files"].keys() - {manifest}
    assert sorted(name.split("/")[0] for name in rest) == ["latest", "rejects"]
    assert not list((place.folder / "out").glob(".staging/*"))
    assert not (place.folder / "out" / "forecasts").exists()

    expected = fc.read_scores(place.folder / "local", latest=True).drop("written_at")
    assert expected.height == 7 * place.loaded.panel.n_series
    for source in (place.folder / "out", place.uri):
        assert_frame_equal(fc.read_scores(source, latest=True).drop("written_at"), expected)
    scored = ScoredForecasts(SinkConfig(path=str(place.folder / "out")))
    middle = str(place.loaded.panel.series_id[3])
    for blocks in ([Block()], [Block(None, middle), Block(middle, None)]):
        frames = [frame for block in blocks for frame in scored.block(scored.contents[0], block)]
        assert pl.concat(frames)["q50"].equals(expected["q50"])
    latest = pl.read_parquet(objects["latest/loads%20of%20K%C3%B6ln.parquet"])
    assert latest["mean"].equals(expected["mean"])
    table = place.folder / "table.csv"
    pl.DataFrame({"series_id": place.loaded.panel.series_id.tolist(), "city": ["oslo", "rome"] * 4}).write_csv(table)
    sums = {"reconcile": {"path": str(place.folder / "out"), "table": str(table), "by": ["city"]}}
    reconciled, _ = reconcile(validated(ReconcileConfig, {**sums, "output": {"path": str(place.folder / "sums")}}))
    (total,) = json.loads(reconciled.read_text())["files"]
    total_mean = pl.read_parquet(place.folder / "sums" / total).filter(pl.col("series_id") == "total")["mean"].sum()
    assert total_mean == pytest.approx(expected["mean"].sum())
    assert cli(["scores", "show", f"scores.path={place.uri}", "show.rows=3"]) == 0
    assert "loads of Köln v3" in capsys.readouterr().out


def test_a_second_job_writes_nothing_and_damaged_missing_and_extra_objects_are_mended(place: Place) -> None:
    place.write()
    first, times = place.objects(), place.times()
    assert place.write().was_complete
    assert place.times() == times

    parts = sorted(name for name in first if name.startswith("forecasts/"))
    manifest = next(name for name in first if name.startswith("manifests/"))
    for change in (
        lambda: place.put(parts[0], b"damaged"),
        lambda: place.put(parts[1], first[parts[0]]),
        lambda: place.client.delete_object(Bucket=place.name, Key=f"a/b/{parts[2]}"),
        lambda: place.put(parts[0].replace("part-00000", "part-00009"), b"of another run"),
        lambda: place.client.delete_object(Bucket=place.name, Key=f"a/b/{manifest}"),
    ):
        change()
        assert lasting(place.objects()) != lasting(first)
        assert not place.write().was_complete
        assert lasting(place.objects()) == lasting(first)
    forced = place.write(force=True)
    assert not forced.was_complete
    assert lasting(place.objects()) == lasting(first)


def test_a_correction_replaces_its_part_only_after_the_manifest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that dies before the manifest leaves the bucket readable as it was; the next one completes it."""
    first = place.write()
    before = fc.read_scores(place.uri)
    panel = place.loaded.panel
    target = panel.target.copy()
    target[panel.offsets[1] - 5] += 3.0
    corrected = replace(place.loaded, panel=replace(panel, target=target), stored_digest=None)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "check_writable", lambda _: None)
        patch.setattr(ObjectStore, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            place.write(corrected)
    assert_frame_equal(fc.read_scores(place.uri), before)
    old = {*first.content["files"]}
    written = place.times()
    assert old < {name for name in written if name.startswith(("forecasts/", "rejects/part"))}
    second = place.write(corrected)
    new = {*second.content["files"]}
    assert len(old & new) == 2
    assert len(new - old) == 1
    times = place.times()
    assert {name for name in times if name.startswith("forecasts/")} == new
    assert {name: times[name] for name in old & new} == {name: written[name] for name in old & new}
    after = fc.read_scores(place.uri)
    changed = after.filter(after["mean"] != before["mean"])["series_id"].unique().to_list()
    assert changed == [panel.series_id[0]]


def test_intact_parts_are_copied_and_only_the_others_are_forecast(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write()
    first = place.objects()
    parts = sorted(name for name in first if name.startswith("forecasts/"))
    place.put(parts[0], first[parts[1]])
    forecast: list[int] = []
    monkeypatch.setattr(ShardWriter, "forecast", counted(ShardWriter.forecast, forecast))
    place.write()
    assert forecast == [3]
    assert lasting(place.objects()) == lasting(first)


def test_shares_and_a_commit_on_machines_without_a_shared_disk(place: Place) -> None:
    whole = place.write(path="whole")
    first = place.objects()
    for name in first:
        place.client.delete_object(Bucket=place.name, Key=f"a/b/{name}")
    cutoff = place.loaded.panel.last_index
    for number in range(2):
        place.job(path=f"machine-{number}").write_share(cutoff, JobShare(number, 2))
    with pytest.raises(DataError, match="no manifests"):
        Scores(place.uri)
    head = place.job(path="head")
    committed = head.write(cutoff, commit=True)
    head.write_latest()
    assert committed.content["files"] == whole.content["files"]
    assert lasting(place.objects()) == lasting(first)


def test_a_job_that_another_one_overtakes_fails_and_the_object_of_the_other_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(place.uri, "output.uri")
    assert store.put({"a": b"first"}) == store.put({"a": b"first"})
    digest = ObjectStore.sha256

    def overtake(self: ObjectStore, name: str) -> str | None:
        place.put(name, b"of another job")
        return digest(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "sha256", overtake)
        with pytest.raises(OutputError, match="another job writes a at the same time"):
            store.put({"a": b"second"})
    assert place.objects() == {"a": b"of another job"}
    store.put({"a": b"second", "b": b"new"})
    assert place.objects() == {"a": b"second", "b": b"new"}
    assert store.hashes(["a", "none"]) == {"a": hashlib.sha256(b"second").hexdigest()}


def test_versions_share_a_bucket_and_the_one_that_ran_last_is_current(place: Place) -> None:
    place.write()
    place.write(names=OTHER, max=10.0, path="second")
    assert place.write(names=OTHER, max=10.0, path="second").was_complete
    latest = fc.read_scores(place.uri, latest=True)
    assert latest["model_version"].unique().to_list() == ["4"]
    assert place.write().was_complete
    assert fc.read_scores(place.uri, latest=True)["model_version"].unique().to_list() == ["3"]
    assert fc.read_scores(place.uri).height == 2 * latest.height
    early = place.write(back=3)
    assert fc.read_scores(place.uri, latest=True)["cutoff"].max() != early.content["cutoff"]
    assert len(Scores(place.uri).contents) == 3


def test_what_an_object_store_can_not_take_is_refused_before_work(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="there is no bucket 'nobody'"):
        place.job(uri="s3://nobody/x")
    with pytest.raises(ConfigError, match="sink=parquet, not sink=delta"):
        validated(ScoreOutput, {"path": "x", "uri": place.uri, "sink": "delta"})
    place.write(uri=None, path="local")
    with pytest.raises(OutputError, match="holds files of forecasts itself"):
        place.job(path="local")
    place.write()
    with pytest.raises(OutputError, match=f"set output.uri={place.uri}"):
        place.job(uri=None)
    with pytest.raises(OutputError, match=f"set output.uri={place.uri}"):
        place.job(uri=f"{place.uri}/c")
    part = next(name for name in place.objects() if name.startswith("forecasts/"))
    place.client.delete_object(Bucket=place.name, Key=f"a/b/{part}")
    with pytest.raises(OutputError, match=r"1 of 3 files of the cutoff .* are gone"):
        fc.read_scores(place.uri)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wr0ng")
    with pytest.raises(OutputError, match=r"refuses access to the bucket .* what they may write"):
        place.job()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OutputError, match="does not answer"):
        place.job()


def test_old_cutoffs_are_freed_from_a_bucket(place: Place) -> None:
    for back in (0, 1, 2):
        place.write(back=back)
    before = place.objects()
    settings = RetainSettings(scores=str(place.folder / "out"), cutoffs=2, unjudged=True)
    (item,) = StoredForecasts(settings, NAMES["model"]).items()[0]
    assert item.free() == item.size
    left = place.objects()
    gone = before.keys() - left.keys()
    cutoff = place.loaded.panel.grid.timestamps(np.array([place.loaded.panel.last_index - 2]))[0]
    assert len(gone) == 1 + sum(name.startswith(f"forecasts/{cutoff:%Y-%m-%dT}") for name in before)
    assert item.size == sum(len(before[name]) for name in gone)
    assert left.items() <= before.items()
    for address in (place.folder / "out", place.uri):
        assert fc.read_scores(address)["cutoff"].n_unique() == 2
    assert StoredForecasts(settings, NAMES["model"]).items()[0] == []
