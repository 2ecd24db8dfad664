"""Sinks with timestamps that have a time zone, where an hour comes twice."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from forecast.config import ScoreOutput
from forecast.data.sinks import KINDS, Files, open_sink, partition
from forecast.errors import OutputError

NEW_YORK = ZoneInfo("America/New_York")
TWICE = [datetime(2013, 11, 3, 1, fold=fold, tzinfo=NEW_YORK) for fold in (0, 1)]
SINKS = {
    "parquet": {"sink": "parquet"},
    "delta": {"sink": "delta"},
    "sql": {"sink": "sql", "uri": "sqlite:///{}/scores.db", "table": "hours"},
}


def files(folder: Path, cutoff: datetime, n_rows: int) -> Files:
    """Write a file with so many forecasts, and one with a reject."""
    hours = [cutoff.astimezone(UTC) + timedelta(hours=step) for step in range(1, n_rows + 1)]
    ahead = pl.Series("timestamp", hours).dt.convert_time_zone(NEW_YORK.key)
    steps = pl.Series(range(1, n_rows + 1), dtype=pl.Int32)
    forecasts = pl.DataFrame({"series_id": "a", "timestamp": ahead, "cutoff": cutoff, "step": steps, "mean": 0.5})
    rejects = pl.DataFrame({"series_id": ["b"], "timestamp": ahead[:1], "reason": ["late"], "value": [None]}).cast(
        {"value": pl.Float64}
    )
    made = {}
    for kind, frame in zip(KINDS, (rejects, forecasts), strict=True):
        path = folder / f"staged-{kind}-{n_rows}" / "part.parquet"
        path.parent.mkdir(exist_ok=True)
        frame.write_parquet(path)
        made[kind] = [path]
    return made


@pytest.mark.parametrize("kind", SINKS)
def test_an_hour_that_comes_twice_is_two_cutoffs(kind: str, tmp_path: Path) -> None:
    settings = {name: value.format(tmp_path) for name, value in SINKS[kind].items()}
    sink = open_sink(ScoreOutput.model_validate({"path": str(tmp_path / "out"), **settings}))
    before = sink.found(TWICE[0])
    held = [sink.replace(moment, files(tmp_path, moment, 3), {"rejects": 1, "forecasts": 3}) for moment in TWICE]
    assert [sink.found(moment) for moment in TWICE] == held
    assert before != held[0]
    again = files(tmp_path, TWICE[1], 2)
    replaced = sink.replace(TWICE[1], again, {"rejects": 1, "forecasts": 2})
    sink.clean(TWICE[1], again)
    assert [sink.found(moment) for moment in TWICE] == [held[0], replaced]
    with pytest.raises(OutputError, match="2 rows of forecasts were found after writing 5"):
        sink.replace(TWICE[1], files(tmp_path, TWICE[1], 2), {"rejects": 1, "forecasts": 5})


def test_partitions_are_read_as_timestamps(tmp_path: Path) -> None:
    for moment in TWICE:
        folder = tmp_path / partition(moment)
        folder.mkdir()
        pl.DataFrame({"cutoff": [moment], "mean": [1.0]}).write_parquet(folder / "part.parquet")
    found = pl.read_parquet(tmp_path)
    assert found["cutoff"].to_list() == TWICE
    assert partition(TWICE[0]) == "cutoff=2013-11-03T01%3A00%3A00-0400"
