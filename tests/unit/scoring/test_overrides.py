"""Values that people set in place of forecasts: exact where they apply, and nothing else changes."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from folders import contents

import forecast as fc
from forecast.config import JobShare, ScoreOutput, ScoreSettings
from forecast.data.ingest.loaded import Loaded
from forecast.engines.engine import Engine
from forecast.engines.processes import Processes
from forecast.errors import ConfigError, DataError
from forecast.scoring.job import ScoreJob
from forecast.scoring.overrides import Overrides, overrides_of, read_overrides
from forecast.scoring.parts import Output
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
QUANTILES = [f"q{level}" for level in range(10, 100, 10)]
NUMBERS = ["mean", *QUANTILES]


def day(number: int) -> datetime:
    """Of the table, whose last day is 159."""
    return datetime(2024, 1, 1) + timedelta(days=number)


def row(series: str | None, number: float, **cells: Any) -> dict[str, Any]:
    """A row of a table of overrides, by ada unless `cells` say otherwise."""
    empty = dict.fromkeys(("value", "factor", "note", "valid_until"))
    return {"series_id": series, "timestamp": day(int(number)), **empty, "author": "ada"} | cells


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    kinds = {"value": pl.Float64, "factor": pl.Float64, "valid_until": pl.Datetime("us")}
    return pl.DataFrame(list(rows), schema_overrides=kinds, infer_schema_length=None)


def write(
    trained: FitResult,
    loaded: Loaded,
    folder: Path,
    overrides: Overrides | None = None,
    engine: Engine | None = None,
    cutoff: int = 159,
    **output: Any,
) -> Output:
    given = ScoreOutput.model_validate({"path": str(folder), **output})
    settings = ScoreSettings(shard_size=3, runtime="torch")
    job = ScoreJob(trained.artifact, loaded, settings, given, NAMES, engine=engine, overrides=overrides)
    return job.write(loaded.panel.grid.floor(day(cutoff)))


def frame_of(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("forecasts/*/*.parquet")), hive_partitioning=False)


@pytest.fixture(scope="module")
def plain(trained: FitResult, weekly_loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write(trained, weekly_loaded, folder)
    return folder


def forecasts_in(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in contents(folder).items() if name.startswith("forecasts/")}


def test_without_an_override_that_applies_the_bytes_are_as_before(
    trained: FitResult, weekly_loaded: Loaded, plain: Path, tmp_path: Path
) -> None:
    others = table(
        row("s00", 170, value=1.0), row("s00", 161, value=1.0, valid_until=day(158)), row("none", 161, value=2.0)
    )
    written = write(trained, weekly_loaded, tmp_path, overrides_of(others, weekly_loaded.panel))
    assert forecasts_in(tmp_path) == forecasts_in(plain)
    assert written.content["overrides"] == {
        "rows": 3,
        "applied": 0,
        "without_forecast": 0,
        "later": 1,
        "expired": 1,
        "rejected": {"override: series not in the panel": 1},
    }
    assert "overridden" not in pl.read_parquet_metadata(next(tmp_path.glob("forecasts/*/*.parquet")))["gatecast"]


def test_overridden_rows_are_exact_and_no_other_changes(
    trained: FitResult, weekly_loaded: Loaded, plain: Path, tmp_path: Path
) -> None:
    rows = table(row("s01", 161, value=500.0, note="fair"), row("s05", 160, factor=1.25, author="bo"))
    written = write(trained, weekly_loaded, tmp_path, overrides_of(rows, weekly_loaded.panel))
    before, after = frame_of(plain), frame_of(tmp_path)
    changed = after["source"] == "override"
    assert after.height == before.height
    assert changed.sum() == written.content["overrides"]["applied"] == 2
    facts = ["model_mean", "override_author", "override_note"]
    assert after.filter(~changed).drop(facts).equals(before.filter(~changed))
    assert after.filter(~changed).select(pl.col(facts).null_count()).row(0) == (after.height - 2,) * 3
    value, factor = after.filter(changed).sort("series_id").rows(named=True)
    old_value, old_factor = before.filter(changed).sort("series_id").rows(named=True)
    assert value["mean"] == 500.0
    assert (value["timestamp"], value["override_note"], value["override_author"]) == (day(161), "fair", "ada")
    assert (value["model_mean"], factor["model_mean"]) == (old_value["mean"], old_factor["mean"])
    for name in NUMBERS:
        assert value[name] == pytest.approx(old_value[name] + 500 - old_value["mean"])
        assert factor[name] == pytest.approx(old_factor[name] * 1.25)
    assert written.content["sources"] == {"pretrained": 8}
    assert written.content["rows"]["written"] == after.height


def test_another_table_gives_other_forecasts_and_the_same_one_writes_nothing(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    first, second = (
        overrides_of(table(row("s01", 161, value=3.0, author=name)), weekly_loaded.panel) for name in ("ada", "bo")
    )
    keys = {write(trained, weekly_loaded, tmp_path, overrides).content["key"] for overrides in (None, first, second)}
    assert len(keys) == 3
    assert write(trained, weekly_loaded, tmp_path, second).was_complete
    assert frame_of(tmp_path)["override_author"].drop_nulls().to_list() == ["bo"]
    assert not write(trained, weekly_loaded, tmp_path).was_complete
    assert "override_author" not in frame_of(tmp_path).columns


def test_a_forecast_that_is_not_negative_is_lowered_to_nothing_less_than_zero(weekly_loaded: Loaded) -> None:
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.gamma(2, size=(8, 9)), axis=1)
    quantiles[4:] -= 2.0
    values = dict(zip(QUANTILES, quantiles.T, strict=True)) | {"mean": quantiles.mean(1)}
    frame = pl.DataFrame(
        {"series_id": [f"s{k:02d}" for k in range(8)], "step": pl.Series([1] * 8, dtype=pl.Int32), **values}
    ).with_columns(source=pl.lit("pretrained"))
    targets = [0.0, 0.1, 1.0, 9.0, -5.0, 0.0, 2.0, 9.0]
    rows = table(*(row(f"s{k:02d}", 160, value=value) for k, value in enumerate(targets)))
    at = overrides_of(rows, weekly_loaded.panel).at(weekly_loaded.panel.last_index, 7)
    after, count, _ = at.apply(frame, NUMBERS)
    assert count == 8
    assert after["mean"].to_list() == targets
    numbers = after.select(QUANTILES).to_numpy()
    assert (np.diff(numbers, axis=1) >= 0).all()
    assert (numbers[:4] >= 0).all()
    assert (numbers[0] == 0).all()
    np.testing.assert_allclose(
        numbers[4:] - quantiles[4:], (np.array(targets) - quantiles.mean(1))[4:, None] + 0 * quantiles[4:]
    )
    clipped, _, bounded = at.apply(frame, NUMBERS, 0.0, 8.0)
    assert clipped.select(low=pl.min_horizontal(NUMBERS).min(), high=pl.max_horizontal(NUMBERS).max()).row(0) == (0, 8)
    assert bounded["min"] > 0 < bounded["max"]


FAULTS = {
    "series not in the panel": row("none", 160, value=1.0),
    "no timestamp": row("s00", 160, value=1.0) | {"timestamp": None},
    "not at a step of the panel": row("s00", 160, value=1.0) | {"timestamp": day(160) + timedelta(hours=3)},
    "both value and factor": row("s00", 160, value=1.0, factor=2.0),
    "neither value nor factor": row("s00", 160),
    "not a number": row("s00", 160, value=float("nan")),
    "a negative factor": row("s00", 160, factor=-1.0),
    "below output.min": row("s00", 160, value=-1.0),
    "above output.max": row("s00", 160, value=1e9),
    "no author": row("s00", 160, value=1.0, author=" "),
    "not after the cutoff": row("s00", 159, value=1.0),
    "several of one cell": row("s04", 160, value=1.0),
}


def test_every_row_is_applied_or_rejected_with_its_reason_or_counted(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    good = [row("s01", 160, value=1.0), row("s00", 166, factor=0.0), row("s00", 167, value=1.0)]
    expired = row("s04", 160, value=7.0, valid_until=day(158)), row("s02", 160, value=7.0, valid_until=day(158))
    rows = table(*FAULTS.values(), row("s04", 160, factor=2.0), *good, *expired)
    overrides = overrides_of(rows, weekly_loaded.panel, 0.0, 1e6)
    counts = write(trained, weekly_loaded, tmp_path, overrides, min=0.0, max=1e6).content["overrides"]
    assert counts["rejected"] == {f"override: {name}": 1 + (name == "several of one cell") for name in FAULTS}
    assert (counts["applied"], counts["later"], counts["expired"]) == (2, 1, 2)
    assert counts["rows"] == rows.height == sum(counts["rejected"].values()) + 2 + 1 + 2
    rejects = pl.read_parquet(next(tmp_path.glob("rejects/rows.*/*.parquet")))
    written = rejects.filter(pl.col("reason").str.starts_with("override: "))
    assert dict(written.group_by("reason").len().iter_rows()) == counts["rejected"]
    below = written.filter(reason="override: below output.min").row(0, named=True)
    assert (below["series_id"], below["timestamp"], below["value"]) == ("s00", day(160), -1.0)


def test_a_revised_override_counts_once_the_first_has_expired(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    rows = table(row("s01", 152, value=1.0, valid_until=day(148)), row("s01", 152, value=2.0))
    overrides = overrides_of(rows, weekly_loaded.panel)
    twice = write(trained, weekly_loaded, tmp_path, overrides, cutoff=148).content["overrides"]
    once = write(trained, weekly_loaded, tmp_path, overrides, cutoff=149).content["overrides"]
    assert (twice["applied"], twice["rejected"]) == (0, {"override: several of one cell": 2})
    assert (once["applied"], once["expired"], once["rejected"]) == (1, 1, {})
    scores = fc.read_scores(tmp_path, series="s01").filter(source="override")
    assert scores.select("cutoff", "mean").row(0) == (day(149), 2.0)


@pytest.mark.parametrize("sink", ["parquet", "delta", "sql"])
def test_sinks_take_cutoffs_with_and_without_overrides(
    sink: str, trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    if sink == "delta":
        pytest.importorskip("deltalake")
    output = {"sink": sink} | ({"uri": f"sqlite:///{tmp_path}/scores.db"} if sink == "sql" else {})
    overrides = overrides_of(table(row("s01", 152, value=2.0)), weekly_loaded.panel)
    for cutoff in (140, 149, 155):
        write(trained, weekly_loaded, tmp_path, overrides, cutoff=cutoff, **output)
    scores = fc.read_scores(output.get("uri", tmp_path))
    assert scores.height == 3 * 8 * 7
    changed = scores.filter(source="override")
    assert changed.select("cutoff", "series_id", "mean", "override_author").rows() == [(day(149), "s01", 2.0, "ada")]
    assert scores["model_mean"].null_count() == scores.height - 1


def test_shares_and_a_commit_write_the_same_bytes(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    overrides = overrides_of(table(row("s01", 161, value=3.0), row("s07", 166, factor=2.0)), weekly_loaded.panel)
    whole = write(trained, weekly_loaded, tmp_path / "whole", overrides).content
    settings, output = ScoreSettings(shard_size=3, runtime="torch"), ScoreOutput(path=str(tmp_path / "shares"))
    job = ScoreJob(trained.artifact, weekly_loaded, settings, output, NAMES, overrides=overrides)
    for index in range(2):
        job.write_share(weekly_loaded.panel.last_index, JobShare(index, 2))
    shared = job.write(weekly_loaded.panel.last_index, commit=True).content
    assert (shared["key"], shared["files"], shared["overrides"]) == (whole["key"], whole["files"], whole["overrides"])


@pytest.mark.distributed
def test_processes_write_the_same_bytes(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    overrides = overrides_of(table(row("s01", 161, value=3.0), row("s07", 166, factor=2.0)), weekly_loaded.panel)
    write(trained, weekly_loaded, tmp_path / "here", overrides)
    with Processes(1) as engine:
        write(trained, weekly_loaded, tmp_path / "there", overrides, engine)
    assert forecasts_in(tmp_path / "here") == forecasts_in(tmp_path / "there")
    assert (frame_of(tmp_path / "there")["source"] == "override").sum() == 2


def test_a_file_is_read_as_it_is_and_the_function_applies_it_too(
    trained: FitResult, weekly_table: pl.DataFrame, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    file = tmp_path / "overrides.csv"
    file.write_text(
        "series_id,timestamp,value,author,valid_until,comment\n"
        "s01,2024-06-09,12.5,ada,,x\ns02,2024-06-09,much,bo,,\ns03,2024-06-09,1,bo,soon,\n"
    )
    overrides = read_overrides(str(file), weekly_loaded.panel).at(weekly_loaded.panel.last_index, 7)
    assert overrides.rows.rows() == [("s01", 1, 12.5, None, "ada", None)]
    assert overrides.counts(1)["rejected"] == {
        "override: not a number": 1,
        "override: valid_until is no timestamp": 1,
    }
    result = fc.forecast(trained.artifact, weekly_table, overrides=file)
    changed = result.frame.filter(source="override")
    assert changed.select("series_id", "timestamp", "mean").row(0) == ("s01", day(160), 12.5)
    assert result.rejects["reason"].str.starts_with("override: ").sum() == 2
    frame = fc.forecast(trained.artifact, weekly_table, overrides=pl.read_csv(file, try_parse_dates=True)).frame
    assert frame.equals(result.frame)


def test_a_table_that_lacks_columns_is_an_error_before_work_begins(
    trained: FitResult, weekly_loaded: Loaded, weekly_table: pl.DataFrame
) -> None:
    with pytest.raises(DataError, match="no column author, value or factor"):
        overrides_of(pl.DataFrame({"series_id": ["a"], "timestamp": [day(1)], "price": [1.0]}), weekly_loaded.panel)
    with pytest.raises(DataError, match=r"timestamp.*Float64"):
        overrides_of(table(row("s01", 1, value=1.0)).with_columns(timestamp=1.5), weekly_loaded.panel)
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        fc.forecast(trained.artifact, weekly_table, overrides="nowhere.csv")
    with pytest.raises(ConfigError, match="overides"):
        fc.forecast(trained.artifact, weekly_table, overides="nowhere.csv")  # type: ignore[call-arg]
