"""Blocks scored by processes, by a cluster and by shares of a job are those of one process, byte by byte."""

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecast.backtesting import work
from forecast.backtesting.backtest import backtest, backtest_share
from forecast.backtesting.result import BacktestResult, Contender
from forecast.config import BacktestConfig, BacktestSettings, EngineSettings, JobShare, load
from forecast.data.ingest.loaded import Loaded
from forecast.engines.engine import Engine, open_engine
from forecast.engines.processes import Processes
from forecast.errors import ConfigError, OutputError
from forecast.training.result import FitResult

SETTINGS = BacktestSettings(n_windows=4, segments=("city",))

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four blocks of two series; s07 has no history at the first cutoffs."""
    monkeypatch.setattr("forecast.backtesting.plan._WINDOWS", 8)


@pytest.fixture(scope="module")
def contenders(trained: FitResult, weekly_loaded: Loaded) -> dict[str, Contender]:
    champion = replace(trained.artifact, parent_digest="ab12")
    panel = weekly_loaded.panel
    return {"pretrained": Contender(trained.artifact, panel), "champion": Contender(champion, panel)}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes(2) as engine:
        yield engine


@pytest.fixture
def local(contenders: dict[str, Contender], tmp_path: Path) -> dict[str, str]:
    backtest(contenders, SETTINGS, folder=tmp_path / "local")
    return hashes(tmp_path / "local")


def hashes(folder: Path) -> dict[str, str]:
    """Return a hash of each file in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def commit(contenders: dict[str, Contender], folder: Path, settings: BacktestSettings = SETTINGS) -> BacktestResult:
    return backtest(contenders, settings, folder=folder, commit=True)


def test_a_killed_process_changes_no_byte(
    contenders: dict[str, Contender], tmp_path: Path, processes: Processes, local: dict[str, str]
) -> None:
    killed = []

    def kill(_share: float, _text: str) -> None:
        if not killed:
            process = next(iter((processes._pools[0]._processes or {}).values()))
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    backtest(contenders, SETTINGS, folder=tmp_path / "out", engine=processes, progress=kill)
    assert killed
    assert hashes(tmp_path / "out") == local
    assert sorted(local) == ["forecasts.parquet", "scores.parquet"]


def test_four_shares_and_a_commit_write_the_same_bytes(
    contenders: dict[str, Contender], tmp_path: Path, processes: Engine, local: dict[str, str]
) -> None:
    folder = tmp_path / "out"
    for index in reversed(range(4)):
        engine = processes if index % 2 else None
        output = backtest_share(contenders, SETTINGS, JobShare(index, 4), folder=folder, engine=engine)
        assert (output.n_blocks, output.n_written) == (1, 1)
    again = backtest_share(contenders, SETTINGS, JobShare(0, 2), folder=folder)
    assert (again.n_blocks, again.n_written) == (2, 0)
    assert not list(folder.glob("*.parquet"))
    result = commit(contenders, folder)
    assert hashes(folder) == local
    assert result.segments["value"].unique().sort().to_list() == ["oslo", "rome"]


def test_a_commit_without_all_parts_of_the_same_inputs_writes_nothing(
    contenders: dict[str, Contender], tmp_path: Path
) -> None:
    backtest_share(contenders, SETTINGS, JobShare(0, 2), folder=tmp_path)
    with pytest.raises(OutputError, match=r"2 of 4 parts of the backtest are missing: 2, 3; run the shards again"):
        commit(contenders, tmp_path)
    other = SETTINGS.model_copy(update={"baselines": ("seasonal_naive",)})
    with pytest.raises(OutputError, match=r"4 of 4 .* \(there are parts of 2 of them with other inputs: another"):
        commit(contenders, tmp_path, other)

    series = contenders["champion"].panel
    changed = replace(series, target=np.concatenate([series.target[:1] + 1, series.target[1:]]))
    table = {name: model._replace(panel=changed) for name, model in contenders.items()}
    with pytest.raises(OutputError, match=r"missing: 0, 2, 3 \(there are parts of 1 of them with other inputs"):
        commit(table, tmp_path)

    moved = contenders | {"champion": contenders["pretrained"]}
    backtest_share(moved, SETTINGS, JobShare(1, 2), folder=tmp_path)
    there, here = contenders["champion"].artifact.digest()[:16], contenders["pretrained"].artifact.digest()[:16]
    with pytest.raises(OutputError, match=f"parts of other models: champion is {there} there and {here} here"):
        commit(moved, tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_job_resumes_with_the_parts_of_an_interrupted_one(
    contenders: dict[str, Contender],
    tmp_path: Path,
    processes: Engine,
    local: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(_share: float, _text: str) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        backtest(contenders, SETTINGS, folder=folder, engine=processes, progress=stop)
    n_complete = len(list(folder.glob(".staging/*/forecasts/*.parquet")))
    assert n_complete >= 1
    scored, score_block = [], work.score_block

    def score(*arguments: Any) -> Any:
        scored.append(arguments)
        return score_block(*arguments)

    monkeypatch.setattr(work, "score_block", score)
    backtest(contenders, SETTINGS, folder=folder)
    assert len(scored) == 4 - n_complete
    assert hashes(folder) == local


def test_refits_are_trained_by_the_job_and_scored_by_processes(
    contenders: dict[str, Contender], tmp_path: Path, processes: Engine
) -> None:
    settings = BacktestSettings.model_validate(
        {"n_windows": 2, "refit": "scratch", "fit": {"max_steps": 0, "accelerator": "cpu"}}
    )
    first = {"pretrained": contenders["pretrained"]}
    for name, engine in (("local", None), ("processes", processes)):
        backtest(first, settings, folder=tmp_path / name, engine=engine)
    assert hashes(tmp_path / "local") == hashes(tmp_path / "processes")
    with pytest.raises(ConfigError, match="refit=scratch trains models for all blocks"):
        backtest_share(first, settings, JobShare(0, 2), folder=tmp_path)


def test_a_cluster_writes_the_same_bytes(
    contenders: dict[str, Contender], tmp_path: Path, local: dict[str, str]
) -> None:
    pytest.importorskip("ray")
    with open_engine(EngineSettings(kind="ray", workers=2)) as engine:
        backtest(contenders, SETTINGS, folder=tmp_path / "out", engine=engine)
    assert hashes(tmp_path / "out") == local


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": "0/2", "output": {"path": "out"}, "backtest": {"refit": "scratch"}}, r"refit=never"),
        ({"shard": "0/2"}, r"needs output\.path"),
        ({"shard": "commit"}, r"needs output\.path"),
        ({"shard": "2/2", "output": {"path": "out"}}, r"out of range"),
    ],
)
def test_shards_need_a_folder_and_one_model(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(BacktestConfig, {"registry": {"name": "m"}, "data": {"path": "t.parquet"}, **settings})
