"""Fine-tuning by processes, by a cluster and by shares of a job gives the model of one process, byte by byte."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workloads
from workloads import KillingEngine

from forecast.artifact import Artifact
from forecast.config import EngineSettings, FinetuneSettings, JobShare
from forecast.data.ingest.loaded import Loaded
from forecast.engines.engine import Engine, open_engine
from forecast.engines.processes import Processes
from forecast.errors import ConfigError, OutputError
from forecast.finetuning import series_tuning
from forecast.finetuning.finetune import finetune, finetune_share
from forecast.finetuning.result import FinetuneResult
from forecast.finetuning.series_tuning import ShareResult
from forecast.training.result import FitResult

pytestmark = pytest.mark.distributed

BY_KIND: dict[str, dict[str, Any]] = {
    "head": {"max_harm": 0.5},
    "lora": {"steps": 5, "batch_size": 2, "min_gain": 0.0, "min_windows_better": 0.0},
}
KINDS = tuple(BY_KIND)
QUICK: dict[str, Any] = {
    "origins": 30,
    "gate_windows": 2,
    "report_windows": 1,
    "holdout_windows": 2,
    "accelerator": "cpu",
}


def settings_of(kind: str, **settings: Any) -> FinetuneSettings:
    return FinetuneSettings.model_validate({**QUICK, **BY_KIND[kind], "kind": kind, **settings})


@pytest.fixture(autouse=True)
def two_series_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_tuning, "_elements_per_series", lambda *_: series_tuning.MAX_GROUP_ELEMENTS["cpu"] // 2)


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    with Processes(2) as engine:
        yield engine


@pytest.fixture(scope="module")
def base(early: FitResult) -> Artifact:
    return early.artifact


@pytest.fixture(scope="module")
def local(base: Artifact, rising: Loaded) -> dict[str, FinetuneResult]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_tuning, "_elements_per_series", lambda *_: series_tuning.MAX_GROUP_ELEMENTS["cpu"] // 2)
        return {kind: finetune(base, rising.panel, settings_of(kind)) for kind in KINDS}


def check_equal(result: FinetuneResult, local: FinetuneResult) -> None:
    assert local.artifact.bank is not None
    assert local.artifact.bank.series_id
    assert local.artifact.final is not None
    assert result.artifact.digest() == local.artifact.digest()
    assert result.decisions.equals(local.decisions)
    assert result.shown.equals(local.shown)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_give_the_same_model(
    base: Artifact, rising: Loaded, processes: Engine, local: dict[str, FinetuneResult], kind: str
) -> None:
    check_equal(finetune(base, rising.panel, settings_of(kind), engine=processes), local[kind])


def test_a_killed_worker_is_replaced(
    base: Artifact, rising: Loaded, processes: Engine, local: dict[str, FinetuneResult], tmp_path: Path
) -> None:
    engine = KillingEngine(processes, tmp_path)
    check_equal(finetune(base, rising.panel, settings_of("head"), engine=engine), local["head"])
    assert engine.marker.exists()


def share(base: Artifact, rising: Loaded, settings: FinetuneSettings, index: int) -> ShareResult:
    return finetune_share(base, rising.panel, settings, JobShare(index, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_shares_and_a_commit_give_the_same_model(
    base: Artifact, rising: Loaded, local: dict[str, FinetuneResult], tmp_path: Path, kind: str
) -> None:
    settings = settings_of(kind, checkpoint=str(tmp_path))
    first = [share(base, rising, settings, index) for index in (2, 0)]
    assert [(result.is_fitted, result.missing) for result in first] == [
        (False, "shards 0/3, 1/3"),
        (False, "shards 1/3"),
    ]
    with pytest.raises(OutputError, match=r"1 of 4 groups of series in .* are not tried: shards 1/3; run these"):
        finetune(base, rising.panel, settings, commit=True)
    last = share(base, rising, settings, 1)
    assert (last.is_fitted, last.missing) == (True, "shards 0/3, 2/3")
    share(base, rising, settings, 0)
    with pytest.raises(OutputError, match=r"of 4 groups of series in .* are not fitted: shards 2/3; run these"):
        finetune(base, rising.panel, settings, commit=True)
    assert share(base, rising, settings, 2).missing == ""
    assert share(base, rising, settings, 2).n_new == 0
    committed = finetune(base, rising.panel, settings, commit=True, keep_checkpoint=True)
    check_equal(committed, local[kind])
    check_equal(finetune(base, rising.panel, settings, commit=True), local[kind])
    assert not list(tmp_path.iterdir())


def test_parts_of_another_job_are_refused(base: Artifact, rising: Loaded, tmp_path: Path) -> None:
    settings = settings_of("head", checkpoint=str(tmp_path))
    for index in (0, 1, 2, 0, 1, 2):
        share(base, rising, settings, index)
    with pytest.raises(ConfigError, match=r"holds another fine-tuning.*finetune\.half_life was null, is 20\.0"):
        finetune(base, rising.panel, settings.model_copy(update={"half_life": 20.0}), commit=True)
    with pytest.raises(ConfigError, match=r"holds another fine-tuning.*panel was"):
        finetune(base, rising.panel.rows(0, 7), settings, commit=True)
    with pytest.raises(ConfigError, match=r"finetune\.checkpoint: missing"):
        finetune(base, rising.panel, settings.model_copy(update={"checkpoint": None}), commit=True)
    assert len(list(tmp_path.iterdir())) == 8


def test_a_cluster_gives_the_same_model(base: Artifact, rising: Loaded, local: dict[str, FinetuneResult]) -> None:
    pytest.importorskip("ray")
    root = str(Path(workloads.__file__).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        with open_engine(EngineSettings(kind="ray", workers=2)) as engine:
            check_equal(finetune(base, rising.panel, settings_of("head"), engine=engine), local["head"])
