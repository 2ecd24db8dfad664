"""The search for settings: what is drawn, what goes on after a kill, what is best."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.artifact import load
from forecast.config import FitSettings, TuneSettings
from forecast.config import load as validated
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError, OutputError
from forecast.metrics.seasonal_naive import future_values
from forecast.prediction.predict import predict
from forecast.training.split import split_panel
from forecast.tuning.tune import Trial, TuneResult, tune

MODEL = {"hidden_size": 4, "decoder_size": 4, "embedding_size": 2, "dropout": 0.0, "smoothing": False, "init": None}
FIT = {"max_steps": 12, "batch_size": 8, "origins": 4, "validation_every": 3, "accelerator": "cpu", "ema_decay": 0.5}
SPACE = {"model": {"hidden_size": [3, 5]}, "fit": {"learning_rate": {"low": 1e-5, "high": 0.5}}}


def config(loaded: Loaded, **groups: dict[str, Any]) -> FitSettings:
    given = {
        "data": loaded.data.model_dump(),
        "window": {"horizon": 7, "context_length": 28},
        "model": MODEL,
        "fit": FIT,
    }
    return validated(FitSettings, {name: values | groups.get(name, {}) for name, values in given.items()})


def settings(**changes: Any) -> TuneSettings:
    return validated(TuneSettings, {"n_trials": 4, "space": SPACE} | changes)


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def result(weekly_loaded: Loaded, folder: Path, trials: list[Trial]) -> TuneResult:
    return tune(weekly_loaded, config(weekly_loaded), settings(), folder, on_trial=trials.append)


def wql(artifact: Any, loaded: Loaded, windows: WindowIndex) -> float:
    levels = np.array(artifact.model.quantile_levels)
    actual = future_values(loaded.panel, windows, 7)
    seen = np.isfinite(actual)
    error = actual[seen][:, None] - predict(artifact, loaded.panel, windows).tuned[seen]
    return float(2 * np.maximum(levels * error, (levels - 1) * error).mean(1).sum() / np.abs(actual[seen]).sum())


def test_the_best_of_the_trials_is_returned_with_its_settings(
    result: TuneResult, trials: list[Trial], weekly_loaded: Loaded
) -> None:
    assert result.trials["number"].to_list() == list(range(4))
    assert [trial.number for trial in trials] == list(range(4))
    complete = result.trials.filter(state="complete")
    assert result.best == complete.sort("value")["number"][0]
    value, given = result.values
    assert value == complete["value"].min()
    assert given == result.trials["value"][0], "the first trial has the settings as given"
    assert json.loads(result.trials["settings"][0]) == {}
    windows = split_panel(weekly_loaded.panel, 7, result.config.fit).validation
    best = trials[result.best].result
    assert best is not None
    assert value == pytest.approx(wql(best.validation_artifact, weekly_loaded, windows), rel=1e-5)
    assert value != pytest.approx(wql(result.artifact, weekly_loaded, windows), rel=1e-5), "solved on the windows since"
    assert result.config == trials[result.best].config
    assert result.artifact.model.hidden_size == result.config.model.hidden_size


def test_settings_are_drawn_from_the_space(result: TuneResult) -> None:
    drawn = [json.loads(text) for text in result.trials["settings"][1:]]
    assert all(found.keys() == {"model.hidden_size", "fit.learning_rate"} for found in drawn)
    assert {found["model.hidden_size"] for found in drawn} == {3, 5}
    rates = [found["fit.learning_rate"] for found in drawn]
    assert all(1e-5 <= rate <= 0.5 for rate in rates)
    assert len(set(rates)) == len(rates)


def test_halving_stops_what_is_worse_than_what_came_before(weekly_loaded: Loaded, tmp_path: Path) -> None:
    hopeless = {"fit": {"learning_rate": [1e-9, 2.0]}}
    long = config(weekly_loaded, fit={"learning_rate": 0.02})
    made = tune(weekly_loaded, long, settings(n_trials=5, space=hopeless, first_rung=3), tmp_path)
    states = made.trials["state"].to_list()
    assert states[0] == "complete"
    assert "pruned" in states
    pruned, complete = (made.trials.filter(state=state) for state in ("pruned", "complete"))
    assert pruned["step"].max() < 12  # type: ignore[operator]
    assert complete["step"].max() == 12
    assert pruned["value"].null_count() < len(pruned), "what it had when it was stopped is told"


def test_a_finished_search_is_not_repeated_and_a_longer_one_goes_on(
    result: TuneResult, folder: Path, weekly_loaded: Loaded
) -> None:
    heard: list[Trial] = []
    again = tune(weekly_loaded, config(weekly_loaded), settings(), folder, on_trial=heard.append)
    assert not heard
    assert again.artifact.digest() == result.artifact.digest()
    assert_frame_equal(again.trials, result.trials)
    longer = tune(weekly_loaded, config(weekly_loaded), settings(n_trials=5), folder, on_trial=heard.append)
    assert [trial.number for trial in heard] == [4]
    assert_frame_equal(longer.trials[:4], result.trials)
    drawn = longer.trials["settings"].to_list()
    assert len(set(drawn)) == len(drawn), "what was drawn is not drawn again"


KILLED = """
import os, signal, sqlite3, sys, threading
from pathlib import Path
from forecast.config import FitSettings, TuneSettings, load
from forecast.data.read import read_panel
from forecast.tuning.tune import tune

folder = Path(sys.argv[1])
config = load(FitSettings, {"data": {"path": f"{folder}/table.parquet", "freq": "1d"}, **eval(sys.argv[2])})

def kill():
    with sqlite3.connect(folder / "search" / "study.db") as database:
        while not database.execute("select count(*) from trial_intermediate_values where trial_id = 2").fetchone()[0]:
            pass
    os.kill(os.getpid(), signal.SIGKILL)

tune(
    read_panel(config.data, 7), config, load(TuneSettings, eval(sys.argv[3])), folder / "search",
    on_trial=lambda trial: threading.Thread(target=kill).start(),
)
"""


def test_a_search_that_was_killed_takes_up_the_trial_it_was_at(weekly_table: pl.DataFrame, tmp_path: Path) -> None:
    weekly_table.write_parquet(tmp_path / "table.parquet")
    (tmp_path / "search").mkdir()
    groups = {"window": {"horizon": 7, "context_length": 28}, "model": MODEL, "fit": FIT | {"max_steps": 90}}
    wanted = {"n_trials": 2, "space": SPACE}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), repr(groups), repr(wanted)], check=False)
    assert done.returncode == -signal.SIGKILL
    with sqlite3.connect(tmp_path / "search" / "study.db") as database:
        drawn = database.execute("select param_name, param_value from trial_params where trial_id = 2").fetchall()
    window = {"horizon": 7, "context_length": 28, "data": {"freq": "1d"}}
    table, folder = tmp_path / "table.parquet", tmp_path / "search"
    with pytest.raises(ConfigError, match=r"folder: .* holds a search with another fit; give another folder, or those"):
        fc.tune(table, folder, **window, model=MODEL, fit=FIT, **wanted)
    made = fc.tune(table, folder, **window, model=MODEL, fit=groups["fit"], **wanted)
    assert made.trials["number"].to_list() == [0, 2]
    again = json.loads(made.trials["settings"][1])
    assert again["fit.learning_rate"] == pytest.approx(dict(drawn)["fit.learning_rate"])
    assert again["model.hidden_size"] == SPACE["model"]["hidden_size"][int(dict(drawn)["model.hidden_size"])]  # type: ignore[index]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"model": {"hidden": [3]}}, r"tune.space.model.hidden: no setting of window, model, fit"),
        ({"data": {"freq": ["1h"]}}, r"tune.space.data.freq: no setting of .*: set data.freq itself"),
        ({"fit": {"learning_rate": {"low": 1}}}, r"tune.space.fit.learning_rate: takes low and high"),
        ({"fit": {"learning_rate": {"low": 2, "high": 1}}}, r"low \(2\) is not less than high \(1\)"),
        ({"fit": {"learning_rate": {"low": 0, "high": 1}}}, r"tune.space.fit.learning_rate: .*greater than 0"),
        ({"model": {"dropout": {"low": 0, "high": 0.2, "log": True}}}, r"logarithmic scale low must be more than 0"),
        ({"model": {"cell": ["lstm", "gro"]}}, r"tune.space.model.cell: .*must be 'lstm', 'gru' or 'rnn'"),
        ({"model": {"cell": 3}}, r"tune.space.model.cell: "),
        ({}, r"tune.space: is empty"),
        *(
            ({group: {name: values}}, rf"tune.space.{group}.{name}: trials are compared by it, .*; set {group}.{name}")
            for group, name, values in (
                ("window", "horizon", {"low": 3, "high": 7}),
                ("model", "quantile_levels", [[0.1, 0.5, 0.9], [0.5]]),
                ("fit", "holdout_windows", [2, 4]),
                ("fit", "validation_windows", {"low": 1, "high": 8}),
                ("fit", "seed", [0, 1]),
            )
        ),
        ({"fit": {"ensemble": [1, 3]}}, r"tune.space.fit.ensemble: a search trains one network after another"),
        ({"fit": {"devices": [1, 2]}}, r"tune.space.fit.devices: a search trains one network after another"),
        ({"fit": {"checkpoint": ["state"]}}, r"tune.space.fit.checkpoint: a search trains one network"),
        (
            {"model": {"head": ["quantile", "categorical"]}},
            r"quantile and categorical are compared by different metrics, .*; set model.head=categorical itself",
        ),
    ],
)
def test_what_can_not_be_searched_is_told(
    space: dict[str, Any], message: str, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(weekly_loaded, config(weekly_loaded), settings(space=space), tmp_path)
    assert not list(tmp_path.iterdir())


def test_settings_that_train_nothing_are_told(weekly_loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fit.ensemble: a search trains one network"):
        tune(weekly_loaded, config(weekly_loaded, fit={"ensemble": 2}), settings(), tmp_path)
    long = {"context_length": 28, "horizon": 90}
    wanted = config(weekly_loaded, window=long, fit={"validation_windows": 1})
    with pytest.raises(DataError, match=r"none of 2 trials gave a model: .*horizon"):
        tune(weekly_loaded, wanted, settings(n_trials=2), tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.db").write_text("no database")
    with pytest.raises(OutputError, match=r"study.db is no search that can be gone on with"):
        tune(weekly_loaded, config(weekly_loaded), settings(), tmp_path / "other")


def test_a_trial_that_fails_does_not_end_the_search(weekly_loaded: Loaded, tmp_path: Path) -> None:
    """A segment that does not divide the context is refused; the other trials go on."""
    heard: list[Trial] = []
    mixed = {"model": {"segment_length": [5]}}
    made = tune(
        weekly_loaded, config(weekly_loaded), settings(n_trials=2, space=mixed), tmp_path, on_trial=heard.append
    )
    assert made.trials["state"].to_list() == ["complete", "failed"]
    assert "segment_length" in heard[1].error
    assert made.best == 0


def test_the_best_model_lies_in_the_folder(result: TuneResult, folder: Path) -> None:
    assert load(folder / "best").digest() == result.artifact.digest()
