from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from forecast.config import (
    BacktestConfig,
    CalibrateConfig,
    Config,
    DistilConfig,
    ExplainConfig,
    FinetuneConfig,
    PretrainConfig,
    PromoteConfig,
    ScoreConfig,
    TrainConfig,
    fields,
    group_of,
    load,
)
from forecast.errors import ConfigError
from pipelines.jobs.command_line import CONF, compose, verb_config

PRESETS = sorted(
    f"{folder.name}={file.stem}" for folder in CONF.iterdir() if folder.is_dir() for file in folder.iterdir()
)
NEEDED = ["data.path=x.parquet", "window.horizon=24"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_valid_config(preset: str) -> None:
    if preset.startswith("pretrain="):
        config = verb_config(PretrainConfig, "pretrain", [preset, "output.path=x"])
        assert config.pretrain.name == preset.partition("=")[2]
        return
    if preset.startswith("engine="):
        needed = ["data.path=x.parquet", "output.path=x"]
        assert verb_config(ScoreConfig, "score", [preset, *needed]).engine.kind == preset.partition("=")[2]
        return
    assert verb_config(TrainConfig, "train", [preset, *NEEDED]).window.horizon == 24


@pytest.mark.parametrize(
    ("kind", "verb", "alias"),
    [
        (FinetuneConfig, "finetune", "pretrained"),
        (BacktestConfig, "backtest", "challenger"),
        (CalibrateConfig, "calibrate", "challenger"),
        (DistilConfig, "distil", "champion"),
        (ExplainConfig, "explain", "champion"),
        (PromoteConfig, "promote", "challenger"),
        (ScoreConfig, "score", "champion"),
    ],
)
def test_every_verb_has_a_version_to_work_on(kind: type[Config], verb: str, alias: str) -> None:
    known = {path for path, _ in fields(kind)}
    needed = [
        given for given in ("data.path=x", "output.path=y", "explain.series=s") if given.partition("=")[0] in known
    ]
    assert verb_config(kind, verb, needed).model_dump()["registry"]["alias"] == alias


def test_the_demo_experiment_is_complete() -> None:
    config = verb_config(TrainConfig, "train", ["experiment=nyc_flights", "model=gru"])
    assert (config.window.context_length, config.window.horizon, config.data.season_length) == (672, 168, 168)
    assert config.registry.name == "nyc-flights"
    assert config.data.time_zone == "America/New_York"
    assert len(config.data.past_covariates) == 7
    assert config.data.static_covariates == ("airport", "carrier")
    assert config.model.cell == "gru"


def test_an_override_beats_a_preset_wherever_it_stands() -> None:
    config = verb_config(TrainConfig, "train", ["window.horizon=24", "experiment=nyc_flights", "fit.max_steps=7"])
    assert (config.window.horizon, config.fit.max_steps) == (24, 7)


def test_unknown_keys_are_reported_with_all_other_mistakes() -> None:
    with pytest.raises(ConfigError, match="4 mistakes") as caught:
        verb_config(TrainConfig, "train", ["window.horizont=3", "modle.cell=gru", "+fit.lr=1", "data.path=x"])
    for line in ("window.horizont: unknown", "modle.cell: unknown", "fit.lr: unknown", "window.horizon: missing"):
        assert line in str(caught.value)


def test_a_preset_of_training_is_refused_after_it() -> None:
    with pytest.raises(ConfigError, match="model: fixed by the trained model"):
        verb_config(ScoreConfig, "score", ["model=gru", "data.path=x", "output.path=y"])


def test_mistakes_in_the_writing_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("train", ["model=lsmt", "panel.csv", "fit.seed=1,2"])
    assert "model=lsmt: no such preset; did you mean lstm?" in str(caught.value)
    assert "'panel.csv' is not KEY=VALUE" in str(caught.value)
    assert "a list is fit.seed=[1,2]" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a b/(1)/[x]*.csv", "a b/(1)/[x]*.csv"),
        ("year=2024/*.parquet", "year=2024/*.parquet"),
        (r"C:\data\'x'(.csv", r"C:\data\'x'(.csv"),
        ("s3://bucket/{a,b}", "s3://bucket/{a,b}"),
        ("2013-12-01 00:00:00", "2013-12-01 00:00:00"),
        ("[1,2]", "[1,2]"),
        ("'[1,2]'", "[1,2]"),
        ("null", None),
        ("'null'", "null"),
    ],
)
def test_values_reach_the_config_as_they_were_written(text: str, value: Any) -> None:
    assert compose("train", [f"data.path={text}"])["data"]["path"] == value


def test_presets_of_the_user_stand_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nwindow: {horizon: 7}\ndata: {path: '${oc.env:TABLE}'}\n"
    )
    arguments = ["experiment=mine", "--config-dir", str(tmp_path), "model=gru", "data.path=x"]
    config = verb_config(TrainConfig, "train", arguments)
    assert (config.window.horizon, config.model.cell) == (7, "gru")
    with pytest.raises(ConfigError, match="TABLE"):
        verb_config(TrainConfig, "train", arguments[:-1])
    with pytest.raises(ConfigError, match="no such folder"):
        verb_config(TrainConfig, "train", ["--config-dir", str(tmp_path / "absent")])


def test_cfg_prints_a_config_that_loads_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        verb_config(TrainConfig, "train", ["--cfg", "job", "experiment=nyc_flights"])
    assert caught.value.code is None
    printed = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert isinstance(printed, dict)
    assert load(TrainConfig, {str(key): value for key, value in printed.items()}) == verb_config(
        TrainConfig, "train", ["experiment=nyc_flights"]
    )


def test_cfg_marks_what_is_missing_and_tells_the_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verb_config(TrainConfig, "train", ["--cfg", "job"])
    output = capsys.readouterr()
    assert OmegaConf.is_missing(OmegaConf.create(output.out).window, "horizon")
    assert "window.horizon: missing" in output.err


def test_help_lists_every_setting_with_the_default_of_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        verb_config(ScoreConfig, "score", ["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {path}=" in printed for path, field in fields(ScoreConfig) if not group_of(field))
    assert 'registry.alias="champion"' in printed
    assert "output.path=(required)" in printed


def test_a_config_that_was_printed_can_be_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: {path: '${oc.env:TABLE}', until: 2024-01-01}\noutput: {path: out}\nscore: {shard_size: 7}\n")
    monkeypatch.setenv("TABLE", "panel.parquet")
    config = verb_config(ScoreConfig, "score", ["--config", str(file)])
    assert (config.data.path, config.score.shard_size) == ("panel.parquet", 7)
    with pytest.raises(ConfigError, match="has all settings; change them there: output"):
        verb_config(ScoreConfig, "score", ["--config", str(file), "output.path=other"])
    monkeypatch.delenv("TABLE")
    with pytest.raises(ConfigError, match="TABLE"):
        verb_config(ScoreConfig, "score", ["--config", str(file)])
