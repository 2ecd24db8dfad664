from datetime import datetime
from typing import Any

import pytest

from forecast.config import (
    BacktestConfig,
    Config,
    DataConfig,
    ScoreConfig,
    ScoreSettings,
    SourceConfig,
    TrainConfig,
    UiConfig,
    descriptions,
    fields,
    load,
    paths,
)
from forecast.errors import ConfigError

TRAIN: dict[str, Any] = {"data": {"path": "panel.parquet"}, "window": {"horizon": 24}}


def mistakes(kind: type[Config], values: dict[str, Any]) -> list[str]:
    """Return the lines of the message, without the heading."""
    with pytest.raises(ConfigError) as caught:
        load(kind, values)
    heading, *lines = str(caught.value).splitlines()
    assert heading.startswith(f"{len(lines)} mistake")
    return [line.strip() for line in lines]


def test_a_config_needs_only_a_table_and_a_horizon() -> None:
    config = load(TrainConfig, TRAIN)
    assert (config.window.horizon, config.model.cell, config.registry.name) == (24, "lstm", "forecaster")


def test_all_mistakes_are_reported_together_with_their_paths() -> None:
    values = {
        "data": {"freq": "1h", "past_covariates": "wind", "max_reject_share": 2},
        "window": {},
        "model": {"cell": "lstmm", "quantile_levels": [0.1, 0.9]},
        "fit": {"max_steps": "many", "batch_size": 0},
        "horizon": 3,
    }
    assert mistakes(TrainConfig, values) == [
        "data.max_reject_share: must be less than or equal to 1 (given: 2)",
        "data.past_covariates: must be a list: data.past_covariates=[wind]",
        "data.path: missing; give data.path=VALUE, or data.uri and data.query for a database",
        "fit.batch_size: must be greater than or equal to 1 (given: 0)",
        "fit.max_steps: must be a valid integer, unable to parse string as an integer (given: 'many')",
        "horizon: unknown key; did you mean window.horizon?",
        "model.cell: must be 'lstm', 'gru' or 'rnn'; did you mean lstm? (given: 'lstmm')",
        "model.quantile_levels: must contain 0.5 (the median)",
        "window.horizon: missing; give window.horizon=VALUE",
    ]


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"window": {"horizont": 3}}, "window.horizont: unknown key; did you mean window.horizon?"),
        ({"windw": {"horizon": 3}}, "windw.horizon: unknown key; did you mean window.horizon?"),
        ({"model": {"learning_rate": 1}}, "model.learning_rate: unknown key; did you mean fit.learning_rate?"),
        ({"fit": {"lr": 1}}, "fit.lr: unknown key; keys of fit: max_steps, max_minutes,"),
        ({"xyz": 1}, "xyz: unknown key; there are: registry, ledger, data, window, model, fit"),
        ({"data": "panel.csv"}, "data: a group of settings (path, uri, query,"),
    ],
)
def test_an_unknown_key_points_at_the_likely_one(values: dict[str, Any], hint: str) -> None:
    assert any(line.startswith(hint) for line in mistakes(TrainConfig, values))


@pytest.mark.parametrize(
    "values",
    [
        {"window": {"horizon": 3}},
        {"model": {"cell": "gru"}},
        {"model": "gru"},
        {"data": {"freq": "1h"}},
        {"data": {"columns": {"target": "y"}}},
        {"data": {"static_covariates": ["airport"]}},
    ],
)
@pytest.mark.parametrize("kind", [BacktestConfig, ScoreConfig])
def test_what_a_trained_model_fixes_cannot_be_set_later(kind: type[Config], values: dict[str, Any]) -> None:
    path = next(iter(values))
    lines = [line for line in mistakes(kind, values) if "fixed by the trained model" in line]
    assert len(lines) == 1
    assert lines[0].startswith(path)


def test_an_unknown_key_after_training_is_not_called_fixed() -> None:
    lines = mistakes(BacktestConfig, {"data": {"path": "x"}, "backtest": {"n_window": 3}})
    assert lines == ["backtest.n_window: unknown key; did you mean backtest.n_windows?"]


def test_a_column_cannot_be_two_things() -> None:
    data = {"columns": {"target": "sold"}, "past_covariates": ["sold", "wind"], "known_covariates": ["wind"]}
    values = {**TRAIN, "data": {"path": "x", **data}}
    assert mistakes(TrainConfig, values) == ["data: column(s) used twice: sold, wind"]


@pytest.mark.parametrize("levels", [[0.5, 0.1], [0.5, 0.5]])
def test_quantile_levels_increase(levels: list[float]) -> None:
    lines = mistakes(TrainConfig, {**TRAIN, "model": {"quantile_levels": levels}})
    assert lines == ["model.quantile_levels: must increase, without repeats"]


def test_a_version_number_is_an_alias_too() -> None:
    assert load(TrainConfig, {**TRAIN, "registry": {"alias": 3}}).registry.alias == "3"


def test_a_config_is_frozen() -> None:
    config = load(UiConfig, {})
    with pytest.raises(ValueError, match="frozen"):
        config.ui.port = 1


def test_paths_name_groups_and_their_keys() -> None:
    found = paths(TrainConfig)
    assert {"data", "data.columns", "data.columns.target", "fit.seed"} <= set(found)
    assert len(found) == len(set(found))


def test_settings_describe_themselves() -> None:
    """The text of `forecast VERB --help`."""
    described = descriptions(TrainConfig)
    assert described.keys() == {path for path, _ in fields(TrainConfig)}
    assert described["window.horizon"] == "Steps it forecasts."
    assert described["data.path"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2013-11-01..2013-11-03/1d", [datetime(2013, 11, day) for day in (1, 2, 3)]),
        ("2013-11-01T06:00..2013-11-01T23:00/12h", [datetime(2013, 11, 1, hour) for hour in (6, 18)]),
        ("2024-01-31..2024-03-31/1mo", [datetime(2024, 1, 31), datetime(2024, 2, 29), datetime(2024, 3, 31)]),
        (["2013-11-01", "2012-01-01"], [datetime(2013, 11, 1), datetime(2012, 1, 1)]),
    ],
)
def test_cutoffs_are_a_list_or_a_range(given: object, expected: list[datetime]) -> None:
    assert load(ScoreSettings, {"cutoffs": given}).cutoffs == tuple(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cutoffs": "2013-11-03..2013-11-01/1d"}, "the range ends before it begins"),
        ({"cutoffs": "2013-11-03..2013-11-05/1x"}, "a range is FIRST..LAST/STEP"),
        ({"cutoffs": "2013-11-03..soon/1d"}, "not a range of timestamps"),
        ({"cutoffs": []}, "at least 1 item"),
        ({"cutoffs": ["2013-11-03"], "cutoff": "2013-11-03"}, "cutoff and cutoffs are both given"),
    ],
)
def test_cutoffs_that_mean_nothing_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(ScoreSettings, given)


@pytest.mark.parametrize("kind", ["known", "static"])
def test_a_table_of_covariates_that_a_model_has_not_is_refused(kind: str) -> None:
    source = load(SourceConfig, {"path": "x", f"{kind}_path": "y"})
    with pytest.raises(ConfigError, match=rf"data\.{kind}_path: there are no {kind} covariates"):
        DataConfig().with_source(source)
    assert DataConfig.model_validate({f"{kind}_covariates": ["z"]}).with_source(source).path == "x"
