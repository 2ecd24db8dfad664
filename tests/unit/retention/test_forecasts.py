"""Old forecasts and states go with their bytes, from every sink; what monitor reads and the latest cutoff stay."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from forecast import api
from forecast.config import RetainSettings, ScoreOutput, ScoreSettings
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ConfigError
from forecast.retention.forecasts import StoredForecasts
from forecast.retention.items import Item
from forecast.retention.states import state_items
from forecast.scoring.job import ScoreJob
from forecast.scoring.manifests import in_utc
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
END = datetime(2024, 6, 8)
BACKS = (0, 1, 30, 50, 60)
"""Ages of the cutoffs in days. Monitor reads those of the last 42: 7 recent, 28 of history, and the horizon of 7."""


class Scores:
    """An output folder with five cutoffs."""

    def __init__(self, folder: Path, sink: str, fitted: FitResult, loaded: Loaded) -> None:
        self.folder, self.path = folder, folder / "scores"
        self._sink, self._fitted, self._loaded = sink, fitted, loaded
        self.uri = f"sqlite:///{folder}/scores.db" if sink == "sql" else None
        self.write(BACKS)

    def write(self, backs: tuple[int, ...], path: str = "", names: dict[str, str] = NAMES, **score: Any) -> None:
        uri = {"uri": self.uri} if self.uri else {}
        output = ScoreOutput.model_validate({"path": str(self.path / path), "sink": self._sink, **uri})
        job = ScoreJob(self._fitted.artifact, self._loaded, ScoreSettings(shard_size=5, **score), output, names)
        for back in backs:
            job.write(self._loaded.panel.last_index - back)
        job.write_latest()

    def items(self, **rules: Any) -> list[Item]:
        uri = {"uri": self.uri} if self.uri else {}
        settings = RetainSettings.model_validate({"scores": str(self.path), **uri, **rules})
        return StoredForecasts(settings, "m").items()[0]

    def backs(self, path: str = "") -> list[int]:
        place = self.uri or self.path / path
        return sorted({(END - moment).days for moment in api.read_scores(place)["cutoff"].unique()})

    def bytes(self) -> int:
        kinds = [self.path / kind for kind in ("forecasts", "rejects", "manifests")]
        files = (file for kind in kinds for file in kind.rglob("*.*") if "_delta_log" not in file.parts)
        return sum(file.stat().st_size for file in files if file.is_file())


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(params=["parquet", "delta", "sql"])
def scores(request: pytest.FixtureRequest, tmp_path: Path, closed_form: FitResult, weekly_loaded: Loaded) -> Scores:
    if request.param == "delta":
        pytest.importorskip("deltalake")
    return Scores(tmp_path, request.param, closed_form, weekly_loaded)


@pytest.fixture
def files(tmp_path: Path, closed_form: FitResult, weekly_loaded: Loaded) -> Scores:
    return Scores(tmp_path, "parquet", closed_form, weekly_loaded)


def test_the_rules_and_what_monitor_reads(files: Scores) -> None:
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"cutoffs": 1}, [0, 1, 30]),
        ({"cutoffs": 4}, [0, 1, 30, 50]),
        ({"forecast_days": 55}, [0, 1, 30, 50]),
        ({"forecast_days": 55, "cutoffs": 9}, [0, 1, 30, 50, 60]),
        ({"cutoffs": 1, "unjudged": True}, [0]),
        ({"forecast_days": 0, "unjudged": True}, [0]),
        ({"forecast_days": 1, "recent": 3, "history": 1}, [0, 1]),
        ({"cutoffs": 1, "history": 45}, [0, 1, 30, 50]),
    ]
    for rules, left in cases:
        settings = RetainSettings.model_validate({"scores": str(files.path), **rules})
        since = StoredForecasts(settings, "m").threshold()
        assert [back for back in BACKS if in_utc(END - timedelta(days=back)) >= since] == left, rules
        assert len(files.items(**rules)) == len(BACKS) - len(left), rules


def test_old_cutoffs_are_freed_from_every_sink(scores: Scores) -> None:
    before, rows, size = content(scores.folder), api.read_scores(scores.uri or scores.path), scores.bytes()
    items = scores.items(forecast_days=40)
    assert content(scores.folder) == before, "a look frees nothing"
    assert [item.name.rpartition(": ")[2] for item in items] == [
        f"{(END - timedelta(days=back)).isoformat()} by m v3" for back in (60, 50)
    ]
    freed = sum(item.free() for item in items)
    assert freed == size - scores.bytes()
    assert scores.uri or freed == sum(item.size for item in items) or scores._sink == "delta"
    assert scores.backs() == [0, 1, 30]
    kept = rows.filter(pl.col("cutoff") > END - timedelta(days=40))
    assert api.read_scores(scores.uri or scores.path).equals(kept)
    assert scores.items(forecast_days=40) == []
    assert not (scores.path / ".freeing").exists()
    latest = scores.path / "latest" / "m.parquet"
    assert scores.uri or pl.read_parquet(latest)["cutoff"].unique().to_list() == [END]
    scores.write((50,))
    assert scores.backs() == [0, 1, 30, 50], "what was freed can be scored again"


@pytest.mark.parametrize("step", ["before", "half", "after"])
def test_a_kill_leaves_no_cutoff_without_its_files(step: str, scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    (oldest, _) = scores.items(forecast_days=40)
    settings = RetainSettings.model_validate({"scores": str(scores.path), "uri": scores.uri, "forecast_days": 40})
    sink = StoredForecasts(settings, "m")._sink
    free = type(sink).free

    def killed(self: Any, key: Any) -> int:
        if step == "after":
            free(self, key)
        elif step == "half" and scores.uri is None and scores._sink == "parquet":
            next(self._folder.glob(f"forecasts/{key.folder}/*")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(sink), "free", killed)
        with pytest.raises(KeyboardInterrupt):
            oldest.free()
    if scores.uri is None:
        assert scores.backs() == [0, 1, 30, 50]
    items = scores.items(forecast_days=40)
    assert items[0].reason == "a killed job had begun to free it"
    for item in items:
        item.free()
    assert scores.backs() == [0, 1, 30]
    assert scores.items(forecast_days=40) == []
    assert not [*scores.path.glob(f"forecasts/{END - timedelta(days=60):%Y-%m-%d}*")]


def test_shadow_and_other_folders_below_go_by_the_same_rule(files: Scores) -> None:
    files.write((30, 50, 60), "shadow", NAMES | {"model_version": "2"})
    files.write((50, 60), "scenarios/promo")
    files.write((60,), names=NAMES | {"model": "other"})
    names = [item.name for item in files.items(forecast_days=40)]
    assert len(names) == 2 + 2 + 2
    assert not any("by other" in name for name in names)
    files.write((50,), "old/shadow")
    assert not any("old/shadow" in item.name for item in files.items(forecast_days=40)), "the latest of a shadow stays"


def test_states_of_old_cutoffs_and_of_versions_that_go(files: Scores) -> None:
    state = files.folder / "state"
    for back in (50, 3, 0):
        folder = state / f"phase-{back:03d}"
        folder.mkdir(parents=True)
        (folder / "part.safetensors").write_bytes(bytes(500))
        index = {"cutoff": (END - timedelta(days=back)).isoformat(), "model_digest": "cd" if back == 3 else "ab12"}
        (folder / "state.json").write_text(json.dumps(index))
    begun = files.folder / "state-shadow" / ".freeing-phase-001"
    begun.mkdir(parents=True)
    settings = RetainSettings(state=str(state), forecast_days=40)
    items = state_items(settings, None, {"cd"})
    assert [Path(item.name).name for item in items] == [begun.name, "phase-003", "phase-050"]
    assert all(item.free() == item.size for item in items)
    assert sorted(path.name for path in state.iterdir()) == ["phase-000"]
    assert state_items(settings, None, {"cd"}) == []
    assert state_items(settings, in_utc(END), set()) == []


def test_a_database_without_its_address_and_other_models_are_refused(
    tmp_path: Path, closed_form: FitResult, weekly_loaded: Loaded
) -> None:
    scores = Scores(tmp_path, "sql", closed_form, weekly_loaded)
    settings = RetainSettings(scores=str(scores.path), cutoffs=1)
    with pytest.raises(ConfigError, match=r"set retain.uri to its address"):
        StoredForecasts(settings, "m")
    with pytest.raises(ConfigError, match="no forecasts of loads; there are those of: m"):
        StoredForecasts(settings, "loads")
