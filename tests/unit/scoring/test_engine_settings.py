"""Every kind of model and setting: processes write the bytes of one process."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from folders import contents
from pydantic import ValidationError

import forecast as fc
from forecast import artifact as artifacts
from forecast.artifact import Artifact
from forecast.config import JobShare, ScoreConfig, ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.files import write_text_once
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import open_tables
from forecast.engines.engine import Engine
from forecast.engines.processes import Processes
from forecast.errors import OutputError
from forecast.models.runtime import onnx
from forecast.scoring import cutoff_model
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}

pytestmark = pytest.mark.distributed


def write(
    artifact: Artifact,
    loaded: Loaded,
    folder: Path,
    engine: Engine | None = None,
    *,
    nights: tuple[int, ...] = (0,),
    state: bool = False,
    **settings: Any,
) -> dict[str, str]:
    """Return hashes of the files of jobs, and of their states, at cutoffs some nights before the end."""
    output = {name: settings.pop(name) for name in ("n_samples", "min") if name in settings}
    score = ScoreSettings(shard_size=3, state=str(folder / "state") if state else None, **settings)
    job = ScoreJob(artifact, loaded, score, ScoreOutput(path=str(folder / "out"), **output), NAMES, engine=engine)
    for night in nights:
        job.write(loaded.panel.last_index - night)
    return contents(folder)


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    with Processes(2) as engine:
        yield engine


@pytest.mark.parametrize(
    "settings",
    [
        {"state": True, "nights": (9, 2, 0)},
        {"n_samples": 20, "min": 30.0},
        {"missing_known": "quarantine", "nights": (9, 7)},
        {"missing_known": "carry_forward", "nights": (1, 0)},
        {"runtime": "onnx"},
    ],
    ids=str,
)
def test_settings(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, processes: Engine, settings: dict[str, Any]
) -> None:
    local = write(trained.artifact, weekly_loaded, tmp_path / "local", **settings)
    assert write(trained.artifact, weekly_loaded, tmp_path / "processes", processes, **settings) == local


@pytest.mark.parametrize("name", ["head", "lora", "counts", "classes", "gatecast-nano"])
@pytest.mark.parametrize("is_prepared", [False, True])
def test_models(name: str, tmp_path: Path, processes: Engine, *, is_prepared: bool) -> None:
    from test_golden import make_table

    make_table(name).write_parquet(tmp_path / "table.parquet")
    source = SourceConfig(path=str(tmp_path / "table.parquet"))
    if name == "gatecast-nano":
        artifact = fc.pretrained(name, pl.read_parquet(source.path), horizon=7)
    else:
        artifact = artifacts.load(GOLDEN / name / "model")
    loaded = artifact.open(source)
    if is_prepared:
        data = artifact.data.with_source(source)
        prepare(open_tables(data), data, artifact.horizon, tmp_path / "panel")
        loaded = artifact.open(SourceConfig(path=str(tmp_path / "panel")))
    local = write(artifact, loaded, tmp_path / "local")
    assert write(artifact, loaded, tmp_path / "processes", processes) == local


def test_a_panel_of_one_series_and_shares_without_a_shard(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, processes: Engine
) -> None:
    counts = replace(weekly_loaded.counts, series_in=1, series_kept=1)
    one = replace(weekly_loaded, panel=weekly_loaded.panel.rows(0, 1), counts=counts, stored_digest=None)
    local = write(trained.artifact, one, tmp_path / "local")
    assert write(trained.artifact, one, tmp_path / "processes", processes) == local
    output = ScoreOutput(path=str(tmp_path / "shares" / "out"))
    job = ScoreJob(trained.artifact, one, ScoreSettings(shard_size=3), output, NAMES, engine=processes)
    written = [job.write_share(one.panel.last_index, JobShare(index, 3)).n_written for index in range(3)]
    assert sorted(written) == [0, 0, 1]
    job.write(one.panel.last_index, commit=True)
    assert contents(tmp_path / "shares") == local


@pytest.mark.parametrize(
    ("names", "score", "message"),
    [
        ({"model_digest": "cd34"}, {}, r"there are parts of other models: .*m\.v3\.ab12"),
        ({}, {"missing_known": "carry_forward"}, r"3 of them are there for other inputs"),
        ({}, {"shard_size": 4}, r"2 of 2 parts of the cutoff are missing: 0, 1 \(2 of them are there for other inputs"),
    ],
)
def test_a_commit_of_other_shares_is_refused(
    trained: FitResult,
    weekly_loaded: Loaded,
    tmp_path: Path,
    names: dict[str, str],
    score: dict[str, Any],
    message: str,
) -> None:
    def job(names: dict[str, str], **score: Any) -> ScoreJob:
        settings = ScoreSettings(**({"shard_size": 3} | score))
        return ScoreJob(trained.artifact, weekly_loaded, settings, ScoreOutput(path=str(tmp_path)), NAMES | names)

    cutoff = weekly_loaded.panel.last_index
    job({}).write_share(cutoff, JobShare(0, 1))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=message):
        job(names, **score).write(cutoff, commit=True)
    assert contents(tmp_path) == before


def test_shares_that_choose_the_runtime_at_once_take_the_same(
    trained: FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each measures while no other has chosen, and half of them measure that torch is faster."""
    pytest.importorskip("onnxruntime")
    barrier, answers = threading.Barrier(4), iter([True, False, True, False])
    forecaster = onnx.OnnxForecaster(trained.artifact.latest.network)
    monkeypatch.setattr(cutoff_model, "OnnxForecaster", lambda _: forecaster)

    def is_faster(*_: object) -> bool:
        barrier.wait()
        return next(answers)

    monkeypatch.setattr(cutoff_model, "is_faster", is_faster)
    runtimes: list[str] = []

    def choose() -> None:
        score = ScoreSettings(runtime="auto")
        runtimes.append(cutoff_model.CutoffModel(trained.artifact, score, tmp_path / "choice", 10).runtime)

    threads = [threading.Thread(target=choose) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runtimes) == 4
    assert set(runtimes) == {(tmp_path / "choice").read_text()}
    assert [path.name for path in tmp_path.iterdir()] == ["choice"]
    assert write_text_once("other", tmp_path / "choice") == runtimes[0]


def test_shares_of_a_state_take_one_cutoff() -> None:
    settings: dict[str, Any] = {
        "registry": {"name": "m"},
        "data": {"path": "panel"},
        "output": {"path": "scores"},
        "shard": "0/2",
    }
    ScoreConfig.model_validate({**settings, "score": {"state": "state", "cutoffs": "2024-01-01..2024-01-01/1d"}})
    with pytest.raises(ValidationError, match=r"score.state with several cutoffs is for whole jobs"):
        ScoreConfig.model_validate({**settings, "score": {"state": "state", "cutoffs": "2024-01-01..2024-01-02/1d"}})
