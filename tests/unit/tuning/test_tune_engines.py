"""The trials of a search on the workers of an engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workloads import KillingEngine

from forecast.artifact import load
from forecast.config import FitSettings, TuneSettings
from forecast.config import load as validated
from forecast.data.ingest.loaded import Loaded
from forecast.engines.engine import Engine
from forecast.engines.processes import Processes
from forecast.training.fit import fit
from forecast.tuning.trial import Trial
from forecast.tuning.tune import tune

pytestmark = pytest.mark.distributed

MODEL = {"hidden_size": 4, "decoder_size": 4, "embedding_size": 2, "dropout": 0.0, "smoothing": False, "init": None}
FIT = {"max_steps": 6, "batch_size": 8, "origins": 4, "validation_every": 2, "accelerator": "cpu", "ema_decay": 0.5}
SPACE = {"fit": {"learning_rate": [1e-9, 2.0, 0.02]}}


def config_of(loaded: Loaded, **fit_settings: Any) -> FitSettings:
    window = {"horizon": 7, "context_length": 28}
    groups = {"data": loaded.data.model_dump(), "window": window, "model": MODEL, "fit": FIT | fit_settings}
    return validated(FitSettings, groups)


def settings_of(n_trials: int) -> TuneSettings:
    return validated(TuneSettings, {"n_trials": n_trials, "space": SPACE, "first_rung": 2})


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    with Processes(2) as engine:
        yield engine


def test_workers_run_the_trials_and_a_lost_one_is_run_again(
    weekly_loaded: Loaded, processes: Engine, tmp_path: Path
) -> None:
    config, engine = config_of(weekly_loaded, learning_rate=0.02), KillingEngine(processes, tmp_path)
    heard: list[Trial] = []
    folder = tmp_path / "search"
    folder.mkdir()
    result = tune(weekly_loaded, config, settings_of(6), folder, engine=engine, on_trial=heard.append)
    assert engine.marker.exists()
    assert sorted(trial.number for trial in heard) == list(range(6))
    assert {trial.state for trial in heard} == {"complete", "pruned"}, "halving stops trials of workers, too"
    assert all(trial.curve and trial.summary for trial in heard)
    complete = result.trials.filter(state="complete")
    assert result.values[0] == complete["value"].min()
    values = {trial.number: trial.value for trial in heard if trial.state == "complete"}
    assert dict(complete.select("number", "value").iter_rows()) == values
    assert load(folder / "best").digest() == result.artifact.digest()
    assert sorted(path.name for path in folder.iterdir()) == ["best", "study.log"]
    same = fit(
        weekly_loaded.panel,
        data=weekly_loaded.data,
        categories=weekly_loaded.categories,
        window=config.window,
        model=config.model,
        fit=result.config.fit,
    )
    assert result.artifact.digest() == same.artifact.digest(), "a worker trains what this process does"


def test_a_search_of_this_process_goes_on_with_workers(
    weekly_loaded: Loaded, processes: Engine, tmp_path: Path
) -> None:
    config = config_of(weekly_loaded)
    first = tune(weekly_loaded, config, settings_of(1), tmp_path)
    result = tune(weekly_loaded, config, settings_of(3), tmp_path, engine=processes)
    assert result.trials["number"].to_list() == [0, 1, 2]
    assert result.trials["value"][0] == first.trials["value"][0]
    assert (tmp_path / "study.db").exists()
    again = tune(weekly_loaded, config, settings_of(3), tmp_path)
    assert again.artifact.digest() == result.artifact.digest()
