"""What a scoring job leaves behind, also when it is killed, refused or run again."""

import copy
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from folders import contents
from kills import killed_at

from forecast.artifact import Artifact
from forecast.config import ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import Tables
from forecast.data.sources.sql import read_sql
from forecast.errors import ConfigError, DataError, OutputError
from forecast.models.adapters.bank import AdapterBank
from forecast.prediction.from_table import forecast
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
SETTINGS: dict[str, Any] = {"shard_size": 3}


def job(
    artifact: Artifact, loaded: Loaded, folder: Path, score: dict[str, Any] | None = None, **output: Any
) -> ScoreJob:
    settings = ScoreSettings.model_validate(SETTINGS | (score or {}))
    return ScoreJob(artifact, loaded, settings, ScoreOutput.model_validate({"path": str(folder), **output}), NAMES)


def write(
    artifact: Artifact, loaded: Loaded, folder: Path, score: dict[str, Any] | None = None, **output: Any
) -> Output:
    with locked(folder):
        return job(artifact, loaded, folder, score, **output).write(loaded.panel.last_index)


def frame_of(folder: Path, kind: str = "forecasts") -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob(f"{kind}/*/*.parquet")), hive_partitioning=False)


def test_shards_are_the_forecasts_of_the_whole_panel(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    written = write(trained.artifact, weekly_loaded, tmp_path)
    assert [len(list(tmp_path.glob(f"{kind}/*/*"))) for kind in ("forecasts", "rejects")] == [3, 1]
    expected = forecast(trained.artifact, weekly_loaded.panel, model_version="3").frame
    expected = expected.with_columns(model_name=pl.lit("m"), model_digest=pl.lit("ab12"))
    found = frame_of(tmp_path)
    assert found.drop("^q.*|mean$").equals(expected.drop("^q.*|mean$"))
    np.testing.assert_allclose(found["q50"], expected["q50"], rtol=1e-5)
    assert written.content["series"] == {"in": 8, "forecast": 8, "rejected": 0}
    assert json.loads(written.manifest.read_text()) == written.content
    assert {name: value for name, value in contents(tmp_path).items() if name.startswith("forecasts/")} == (
        written.content["files"]
    )
    assert pl.read_parquet(tmp_path / "forecasts").equals(found)


def test_a_second_run_writes_nothing_unless_forced_and_new_settings_replace_the_old_output(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    assert not write(trained.artifact, weekly_loaded, tmp_path).was_complete
    first = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.*")}
    assert write(trained.artifact, weekly_loaded, tmp_path).was_complete
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.*")} == times
    assert not write(trained.artifact, weekly_loaded, tmp_path, {"force": True}).was_complete
    assert contents(tmp_path) == first

    bounded = write(trained.artifact, weekly_loaded, tmp_path, max=10.0)
    assert not bounded.was_complete
    assert len(contents(tmp_path)) == len(first)
    assert not set(bounded.content["files"]) & set(first)
    assert not write(trained.artifact, weekly_loaded, tmp_path).was_complete
    assert contents(tmp_path) == first


def test_a_changed_file_is_made_again_and_the_others_are_kept(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    write(trained.artifact, weekly_loaded, tmp_path)
    first = contents(tmp_path)
    damaged, kept, gone = sorted(tmp_path.glob("forecasts/*/*"))
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    gone.unlink()
    time = kept.stat().st_mtime_ns
    assert not write(trained.artifact, weekly_loaded, tmp_path).was_complete
    assert contents(tmp_path) == first
    assert kept.stat().st_mtime_ns == time


def test_what_comes_after_the_cutoff_redoes_nothing_and_a_change_before_it_only_its_shard(
    trained: FitResult, weekly_table: pl.DataFrame, loaded: Callable[..., Loaded], tmp_path: Path
) -> None:
    kinds = {"past_covariates": ["rain"], "known_covariates": ["promo"], "static_covariates": ["city", "size"]}
    categories = trained.artifact.categories
    last = weekly_table["timestamp"].max()
    early = loaded(weekly_table.filter(pl.col("timestamp") <= last - timedelta(days=20)), 7, categories, **kinds)
    bad = pl.when(pl.int_range(pl.len()) == 159).then(1e30).otherwise("target")  # The last row of the first series.
    whole = loaded(weekly_table.with_columns(target=bad), 7, categories, **kinds)
    assert whole.counts.rows_rejected == 1
    cutoff = whole.panel.last_index - 40
    with locked(tmp_path):
        assert not job(trained.artifact, early, tmp_path).write(cutoff).was_complete
        assert job(trained.artifact, whole, tmp_path).write(cutoff).was_complete
        times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("forecasts/*/*")}
        row = pl.int_range(pl.len())
        revised = loaded(weekly_table.with_columns(pl.col("target") + (row == 10)), 7, categories, **kinds)
        assert not job(trained.artifact, revised, tmp_path).write(cutoff).was_complete
    later = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("forecasts/*/*")}
    assert len(later) == len(times) == 3
    assert len(later.items() & times.items()) == 2


def test_a_job_killed_at_any_moment_ends_like_one_that_was_not(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    """Each kill comes in place of one of the moments at which something is put on the disk."""
    trained.artifact.save(tmp_path / "model")
    prepare(Tables(weekly_table.lazy()), trained.artifact.data, 7, tmp_path / "panel")
    loaded = trained.artifact.open(SourceConfig(path=str(tmp_path / "panel")))
    kills = [0, 1, 3, 5, 7, 9, 11, 12, 13, 99]
    codes = killed_at(kills, tmp_path / "model", tmp_path / "panel", tmp_path, NAMES)
    assert codes.count(-signal.SIGKILL) >= 8
    assert codes[-1] == 0, "the last one is not killed: all moments were tried"
    undisturbed = contents(tmp_path / str(kills[-1]) / "out")
    for kill in kills:
        folder = tmp_path / str(kill) / "out"
        shards = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}
        write(trained.artifact, loaded, folder)
        assert contents(folder) == undisturbed, kill
        again = {path.name: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}
        assert {path.name: time for path, time in shards.items()}.items() <= again.items()
        assert not list(folder.glob(".staging/*"))


@pytest.mark.parametrize("sink", [{"sink": "delta"}, {"sink": "sql", "uri": "sqlite:///scores.db"}])
def test_a_table_that_was_written_without_its_manifest_is_written_again(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, sink: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same number of rows the old manifest would say that all is done."""
    monkeypatch.chdir(tmp_path)
    manifest = write(trained.artifact, weekly_loaded, tmp_path / "out", **sink).manifest
    old = manifest.read_text()
    manifest.unlink()
    manifest.mkdir()  # Nothing can be moved here.
    with pytest.raises(OutputError, match=r"can't write .*\.json"):
        write(trained.artifact, weekly_loaded, tmp_path / "out", max=1.0, **sink)
    manifest.rmdir()
    manifest.write_text(old)
    again = write(trained.artifact, weekly_loaded, tmp_path / "out", **sink)
    assert not again.was_complete
    if sink["sink"] == "delta":
        table = pl.read_delta(str(tmp_path / "out" / "forecasts"))
    else:
        table = read_sql("sqlite:///scores.db", "select * from forecasts").collect()
    assert table["q50"].max() > 1.0
    assert write(trained.artifact, weekly_loaded, tmp_path / "out", **sink).was_complete


def test_a_manifest_says_what_the_forecasts_come_from(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    begun = datetime.now(UTC).replace(microsecond=0)
    settings = ScoreSettings.model_validate(SETTINGS)
    made = ScoreJob(trained.artifact, weekly_loaded, settings, ScoreOutput(path=str(tmp_path)), NAMES, run_id="run-7")
    content = made.write(weekly_loaded.panel.last_index).content
    assert {name: content[name] for name in NAMES} == NAMES
    assert content["run_id"] == "run-7"
    last = weekly_loaded.panel.grid.timestamps(np.array([weekly_loaded.panel.last_index]))[0]
    assert content["trained_until"] == (last - timedelta(days=4 * 7)).isoformat()  # fit.holdout_windows is 4.
    assert begun <= datetime.fromisoformat(content["written_at"]) <= datetime.now(UTC)
    again = ScoreJob(trained.artifact, weekly_loaded, settings, ScoreOutput(path=str(tmp_path)), NAMES, run_id="run-8")
    assert again.write(weekly_loaded.panel.last_index).content["run_id"] == "run-7", "the run that wrote it"


def test_two_jobs_can_not_write_into_one_folder(tmp_path: Path) -> None:
    message = rf"another job is writing into .*: process {os.getpid()} on .*; wait for it to end, or"
    with locked(tmp_path), pytest.raises(OutputError, match=message), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == ""


def test_bounds_are_applied_when_asked_for_and_counted(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    free = write(trained.artifact, weekly_loaded, tmp_path / "free")
    found = frame_of(tmp_path / "free")
    numbers = found.select("mean", pl.col("^q.*$"))
    least, most = float(numbers["q50"].quantile(0.2) or 0), float(numbers["q50"].quantile(0.8) or 0)
    held = write(trained.artifact, weekly_loaded, tmp_path / "held", min=least, max=most)
    assert free.content["bounded"] == {}
    assert held.content["bounded"] == {
        "min": int((numbers.to_numpy() < least).sum()),
        "max": int((numbers.to_numpy() > most).sum()),
    }
    assert frame_of(tmp_path / "held").equals(found.with_columns(pl.col(numbers.columns).clip(least, most)))
    nothing = write(trained.artifact, weekly_loaded, tmp_path / "none", min=-1e9)
    assert nothing.content["bounded"] == {"min": 0}
    assert frame_of(tmp_path / "none").equals(found)


def test_no_forecast_that_is_not_finite_is_written(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    """A bank that breaks one series, and a network that breaks all: each falls to the next rung."""
    artifact = trained.artifact
    bank = AdapterBank("head", ["s01"], {"weight": torch.full((1, 1 + 7 + 8, 7), torch.nan), "width": torch.ones(1)})
    tuned = artifact.with_bank(bank, trained_until=0, parent_digest="x")
    assert write(tuned, weekly_loaded, tmp_path / "tuned").content["sources"] == {"pretrained": 8}
    broken = copy.deepcopy(artifact.network)
    for parameter in broken.parameters():
        parameter.data.fill_(torch.nan)
    frame = forecast(replace(artifact, network=broken), weekly_loaded.panel).frame
    assert frame["source"].unique().to_list() == ["seasonal_naive"]
    assert np.isfinite(frame.select("mean", pl.col("^q.*$")).to_numpy()).all()
    with pytest.raises(DataError, match=r"the model forecast 0 of 8 series .*8 seasonal_naive"):
        write(replace(artifact, network=broken), weekly_loaded, tmp_path / "broken")
    assert not (tmp_path / "broken/forecasts").exists()


def without_promo(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with rows for the horizon, in which s00 lacks promo from the third step on, s01 everywhere."""
    last = table["timestamp"].max()
    assert isinstance(last, datetime)
    ahead = pl.DataFrame({"timestamp": [last + timedelta(days=step) for step in range(1, 8)]})
    names = table.filter(pl.col("timestamp") == last).select("series_id", "city", "size")
    rows = names.join(ahead, how="cross").with_columns(
        promo=pl.when((pl.col("series_id") == "s00") & (pl.col("timestamp") > last + timedelta(days=2)))
        .then(None)
        .otherwise(1.0)
    )
    both = pl.concat([table, rows], how="diagonal")
    return both.with_columns(promo=pl.when(pl.col("series_id") == "s01").then(None).otherwise("promo"))


def test_known_covariates_that_are_missing_are_masked_refused_or_carried_forward(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    artifact = trained.artifact
    found = artifact.read(without_promo(weekly_table).lazy())
    made: dict[str, Output] = {}
    for how in ("mask", "quarantine", "carry_forward"):
        made[how] = write(artifact, found, tmp_path / how, {"missing_known": how})
    assert made["mask"].content["series"] == made["carry_forward"].content["series"]
    assert made["quarantine"].content["series"] == {"in": 8, "forecast": 6, "rejected": 2}
    assert made["quarantine"].content["rejects"] == {"known covariates missing over the horizon": 2}
    assert frame_of(tmp_path / "quarantine", "rejects")["series_id"].to_list() == ["s00", "s01"]
    # Of s01 there is nothing to carry.
    assert made["carry_forward"].content["carried_forward"] == 5
    whole = without_promo(weekly_table).with_columns(
        promo=pl.when(pl.col("series_id") == "s00").then(pl.col("promo").fill_null(1.0)).otherwise("promo")
    )
    write(artifact, artifact.read(whole.lazy()), tmp_path / "whole")
    carried, masked = frame_of(tmp_path / "carry_forward"), frame_of(tmp_path / "mask")
    assert carried.equals(frame_of(tmp_path / "whole"))
    assert not carried.filter(series_id="s00").equals(masked.filter(series_id="s00"))
    assert carried.filter(pl.col("series_id") != "s00").equals(masked.filter(pl.col("series_id") != "s00"))
    with pytest.raises(DataError, match=r"12 cells of promo are missing .* in 2 series: s00, s01; .*score.missing_kno"):
        write(artifact, found, tmp_path / "fail", {"missing_known": "fail"})


def test_series_that_end_before_the_cutoff_are_carried_forward_too(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    artifact = trained.artifact
    table = weekly_table.filter((pl.col("series_id") != "s02") | (pl.col("timestamp") < pl.date(2024, 6, 1)))
    found = artifact.read(table.lazy())
    content = write(artifact, found, tmp_path, {"missing_known": "carry_forward"}).content
    assert content["series"] == {"in": 8, "forecast": 8, "rejected": 0}
    # The seven steps of the horizon, of every series: the gap of s02 before it is left as it is.
    assert content["carried_forward"] == 8 * 7


def test_bounds_are_refused_for_classes(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    artifact = replace(trained.artifact, categories={"target": ("down", "up")})
    with pytest.raises(ConfigError, match=r"output.min and output.max are for numbers"):
        job(artifact, weekly_loaded, tmp_path, min=0.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told_leaves_no_half_file_and_the_next_run_completes(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(OutputError, match="No space left on device"):
            write(trained.artifact, weekly_loaded, disk)
        assert not list(disk.glob("manifests/*"))
        for part in disk.rglob("*.parquet"):
            pl.read_parquet(part, hive_partitioning=False)
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        write(trained.artifact, weekly_loaded, disk)
        write(trained.artifact, weekly_loaded, tmp_path / "other")
        assert contents(disk) == contents(tmp_path / "other")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_cutoff_in_which_the_model_speaks_for_too_few_series_fails_and_changes_nothing(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    # Three of eight series have stopped before the context of the others.
    last = weekly_table["timestamp"].max() - timedelta(days=60)  # type: ignore[operator]
    stopped = pl.col("series_id").is_in(["s00", "s01", "s02"])
    table = weekly_table.filter(~stopped | (pl.col("timestamp") <= last))
    loaded = trained.artifact.read(table.lazy())
    written = write(trained.artifact, loaded, tmp_path, {"max_age": "none"})
    sources = written.content["sources"]
    fallen = sum(count for name, count in sources.items() if name in ("seasonal_naive", "last_value"))
    assert 3 <= fallen < written.content["series"]["forecast"] == 8
    before, share = contents(tmp_path), 1 - fallen / 8
    again = {"force": True, "min_model_share": share, "max_age": "none"}
    assert write(trained.artifact, loaded, tmp_path, again).content["sources"] == sources
    message = rf"the model forecast {8 - fallen} of 8 series at .*score.min_model_share=.*nothing is published"
    with pytest.raises(DataError, match=message):
        write(trained.artifact, loaded, tmp_path, again | {"min_model_share": share + 0.01})
    network = copy.deepcopy(trained.artifact.network)
    with torch.no_grad():
        for values in network.parameters():
            values.fill_(torch.nan)
    broken = replace(trained.artifact, network=network)
    forced = {"force": True, "max_age": "none"}
    for settings in (forced, forced | {"state": str(tmp_path / "state")}):
        with pytest.raises(DataError, match=r"the model forecast 0 of 8 series at .*score.min_model_share=0;"):
            write(broken, loaded, tmp_path, settings)
    published = {name: value for name, value in contents(tmp_path).items() if name[:1] != "." and name[:5] != "state"}
    assert published == {name: value for name, value in before.items() if name[:1] != "."}
    assert not list(tmp_path.glob("state/*/state.json"))
