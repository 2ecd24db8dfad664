"""Two weeks of nights on a simulated clock: an outage, a damaged file, a version refused, and one rolled back."""

from pathlib import Path

import polars as pl
import pytest
from flow import refuse, succeed

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry
from pipelines.jobs.ledger import Ledger

DAYS = 14


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay") / "out"
    quick = "fit.max_steps=0", "model.init=none", "model.hidden_size=8"
    done = succeed("replay", f"replay.days={DAYS}", f"output.path={folder}", *quick)
    (folder / "story.txt").write_text(done.out)
    return folder


def test_what_went_wrong_is_told_and_was_mended(replay: Path) -> None:
    story = (replay / "story.txt").read_text()
    assert story.count("nothing runs: an outage") == 3
    assert story.count("caught up: the forecasts from") == 3
    assert "data append: exit code 3, 420 of" in story
    assert "the file was replaced, and append and score run again" in story
    assert "v3 is refused by the gate: exit code 5" in story
    assert "monitor: exit code 9, champion rolled back: v3 ->" in story
    assert "0 lost" in story
    assert "0 twice" in story


def test_the_ledger_has_each_night_once(replay: Path) -> None:
    ledger = Ledger(f"sqlite:///{replay / 'ledger.db'}")
    nights = ledger.entries(schedule="nightly")
    assert sorted({entry.slot for entry in nights}) == sorted(entry.slot for entry in nights if entry.status == "done")
    assert len(nights) == DAYS
    assert {entry.flow for entry in ledger.entries()} >= {
        "train",
        "data append",
        "score",
        "monitor",
        "refresh",
        "promote",
    }


def test_the_registry_says_who_was_champion_and_who_must_not_be(replay: Path) -> None:
    registry = Registry(RegistryConfig(name="departures", tracking_uri=f"sqlite:///{replay / 'mlflow.db'}"))
    bad = registry.resolve(3)
    assert "MASE" in bad.tags["demoted"]
    assert registry.resolve("champion").number != 3
    made = pl.read_parquet(replay / "scores" / "forecasts" / "**" / "*.parquet", hive_partitioning=False)
    assert made["model_version"].n_unique() == 3, "by the first champion, the one of the first week, and the bad one"
    shadow = pl.read_parquet(replay / "scores" / "shadow" / "forecasts" / "**" / "*.parquet", hive_partitioning=False)
    assert shadow.select("series_id", "cutoff").n_unique() > 0
    pages = [path.read_text() for path in (replay / "watch").glob("as_of=*/monitor.html")]
    assert len(pages) == DAYS - 4, "none of the outage, nor of the day whose rows are not there yet in the morning"
    assert sum("Champion rolled back: v3 -&gt; v" in page for page in pages) == 1


def test_a_folder_with_something_in_it_is_left_alone(replay: Path) -> None:
    message = refuse(6, "replay", f"output.path={replay}")
    assert "is not empty: a replay begins anew" in message


def test_wrong_settings_of_the_training_are_told_before_anything_is_written(tmp_path: Path) -> None:
    message = refuse(2, "replay", f"output.path={tmp_path / 'out'}", "fit.max_stepz=3")
    assert "fit.max_stepz: unknown key; did you mean fit.max_steps?" in message
    assert not list(tmp_path.iterdir())
