"""Sinks with timestamps that have a time zone, where an hour comes twice."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from forecast.config import ScoreOutput
from forecast.errors import OutputError
from forecast.scoring.manifests import KINDS, ForecastKey, legacy_key
from forecast.scoring.sinks.base import Files
from forecast.scoring.sinks.open import open_sink

NEW_YORK = ZoneInfo("America/New_York")
TWICE = [datetime(2013, 11, 3, 1, fold=fold, tzinfo=NEW_YORK) for fold in (0, 1)]
SINKS = {
    "parquet": {"sink": "parquet"},
    "delta": {"sink": "delta"},
    "sql": {"sink": "sql", "uri": "sqlite:///{}/scores.db", "table": "hours"},
}


def key_of(cutoff: datetime) -> ForecastKey:
    return ForecastKey(cutoff, "m", "3", "ab12cd34")


def content_of(cutoff: datetime, written: int, refused: int) -> dict[str, Any]:
    """The manifest of so many rows."""
    return {
        "layout": 2,
        "cutoff": cutoff.isoformat(),
        "model": "m",
        "model_version": "3",
        "model_digest": "ab12cd34",
        "key": "k",
        "written_at": datetime.now(UTC).isoformat(),
        "rows": {"written": written, "refused": refused},
    }


def files(folder: Path, cutoff: datetime, n_rows: int) -> Files:
    """Write a file with so many forecasts, and one with a reject."""
    hours = [cutoff.astimezone(UTC) + timedelta(hours=step) for step in range(1, n_rows + 1)]
    ahead = pl.Series("timestamp", hours).dt.convert_time_zone(NEW_YORK.key)
    steps = pl.Series(range(1, n_rows + 1), dtype=pl.Int32)
    names = {
        "cutoff": pl.lit(cutoff).cast(ahead.dtype),
        "model_name": pl.lit("m"),
        "model_version": pl.lit("3"),
        "model_digest": pl.lit("ab12cd34"),
    }
    forecasts = pl.DataFrame({"series_id": "a", "timestamp": ahead, "step": steps, "mean": 0.5, "source": "pretrained"})
    rejects = pl.DataFrame({"series_id": ["b"], "timestamp": ahead[:1], "reason": ["late"], "value": [None]}).cast(
        {"value": pl.Float64}
    )
    made = {}
    for kind, frame in zip(KINDS, (rejects, forecasts), strict=True):
        path = folder / f"staged-{kind}-{n_rows}" / "part.parquet"
        path.parent.mkdir(exist_ok=True)
        frame.with_columns(**names).write_parquet(path)
        made[kind] = [path]
    return made


@pytest.mark.parametrize("kind", SINKS)
def test_an_hour_that_comes_twice_is_two_cutoffs(kind: str, tmp_path: Path) -> None:
    settings = {name: value.format(tmp_path) for name, value in SINKS[kind].items()}
    sink = open_sink(ScoreOutput.model_validate({"path": str(tmp_path / "out"), **settings}))
    before = sink.inventory(key_of(TWICE[0]))
    held = [
        sink.replace(key_of(moment), files(tmp_path, moment, 3), content_of(moment, 3, 1)).items() for moment in TWICE
    ]
    for moment, expected in zip(TWICE, held, strict=True):
        assert expected <= sink.inventory(key_of(moment)).items()
        assert pl.concat(sink.forecasts(content_of(moment, 3, 1) | dict(expected))).collect().height == 3
    assert not held[0] <= before.items()
    again = files(tmp_path, TWICE[1], 2)
    replaced = sink.replace(key_of(TWICE[1]), again, content_of(TWICE[1], 2, 1))
    sink.clean(key_of(TWICE[1]), again)
    for moment, expected in zip(TWICE, (held[0], replaced.items()), strict=True):
        assert expected <= sink.inventory(key_of(moment)).items()
    with pytest.raises(OutputError, match="2 rows of forecasts were found after writing 5"):
        sink.replace(key_of(TWICE[1]), files(tmp_path, TWICE[1], 2), content_of(TWICE[1], 5, 1))


def test_folders_and_manifests_are_named_after_cutoff_and_model() -> None:
    key = ForecastKey(TWICE[0], "loads", "12", "ab12cd34ef")
    assert key.folder == "2013-11-03T01-00-00-0400.loads.v12.ab12cd34"
    assert key.manifest == "cutoff=2013-11-03T01%3A00%3A00-0400.loads.v12.ab12cd34.json"
    assert key._replace(is_legacy=True).folder == "cutoff=2013-11-03T01%3A00%3A00-0400"
    names = ["a/b", "a=b", "Köln", "x" * 200, "é" * 100, "é" * 99 + "x"]
    folders = [ForecastKey(TWICE[0], name, "1", "ab").folder for name in names]
    assert len({*folders}) == len(names)
    assert not any("=" in folder or "/" in folder or len(folder) > 200 for folder in folders)


def test_the_layout_before_is_recognised_in_an_hour_that_comes_twice(tmp_path: Path) -> None:
    key = key_of(TWICE[1])
    content = content_of(TWICE[1], 1, 0) | {"layout": 1}
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / key._replace(is_legacy=True).manifest).write_text(json.dumps(content))
    assert legacy_key(tmp_path, key) == key._replace(is_legacy=True)
    assert legacy_key(tmp_path, key_of(TWICE[0])) is None
    assert legacy_key(tmp_path, key._replace(version="4")) is None
