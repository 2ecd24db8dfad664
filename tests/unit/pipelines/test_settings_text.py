"""Settings that are text keep the text that was given: on the command line, in lists, in YAML, in the ledger."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.config import (
    Config,
    DataConfig,
    ExplainConfig,
    FinetuneConfig,
    MonitorConfig,
    ReconcileConfig,
    TrainConfig,
    fields,
    load,
    text_form,
)
from forecast.errors import ConfigError
from pipelines.jobs.command_line import compose, verb_config, verb_settings
from pipelines.jobs.job import describe
from pipelines.jobs.settings_text import has_reference

ODD_IDS = [
    "3.10",
    "3.0",
    "1e5",
    "007",
    "0x10",
    "1_000",
    "-0",
    "+5",
    "inf",
    "nan",
    "true",
    "True",
    "no",
    "off",
    "None",
    "~",
    "2024-01-31",
    "12:30",
    "1:30",
    "a,b",
    "a=b",
    "it's",
    '5" pipe',
    "{a: 1}",
    "[x]",
    "[1, 2]",
    "(a)",
    "a${b}",
    "${",
    "a\\${b}",
    "$HOME",
    "C:\\new",
    "a\\",
    "größe",
    "a b",
    "#1",
    "%20",
    "a: b",
    "a\tb",
    "???",
]


def explained(text: str) -> str:
    return verb_config(ExplainConfig, "explain", ["data.path=x", f"explain.series={text}"]).explain.series


def finetuned(*words: str) -> FinetuneConfig:
    return verb_config(FinetuneConfig, "finetune", ["data.path=x", *words])


TEXTS = [path for path, field in fields(TrainConfig) if text_form(field.annotation) == "text"]


def test_one_text_is_kept_as_it_was_given() -> None:
    for texts in (ODD_IDS[first : first + len(TEXTS)] for first in range(0, len(ODD_IDS), len(TEXTS))):
        composed = compose("train", [f"{path}={text}" for path, text in zip(TEXTS, texts, strict=False)])
        assert [_at(composed, path) for path in TEXTS[: len(texts)]] == texts
    assert explained("null") == "null"


def test_a_text_in_a_list_is_kept_and_one_in_quotes_whatever_it_holds() -> None:
    plain = [
        text for text in (*ODD_IDS, "null") if not any(sign in text for sign in ",'\"") and not text.endswith("\\")
    ]
    texts = [*ODD_IDS, "null", "", "'", "'a'", '"a"', "\\'", " a "]
    quoted = map(_in_single_quotes, texts)
    assert finetuned(f"finetune.series=[{', '.join([*plain, *quoted])}]").finetune.series == (*plain, *texts)
    for text in ("null", "'a'", "a,b"):
        assert explained(_in_single_quotes(text)) == text


def _in_single_quotes(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


@settings(max_examples=4, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=30, max_size=60))
def test_any_text_in_quotes_is_itself(texts: list[str]) -> None:
    wanted = tuple(text for text in texts if not has_reference(text, FinetuneConfig.model_fields)) or ("a",)
    assert finetuned(f"finetune.series=[{','.join(map(_in_single_quotes, wanted))}]").finetune.series == wanted


@pytest.mark.parametrize(
    ("given_text", "series"),
    [
        ("[3.10]", ("3.10",)),
        ("[ 3.10 , 1e5 ]", ("3.10", "1e5")),
        ("[true,null,2020]", ("true", "null", "2020")),
        ("[it's,b]", ("it's", "b")),
        ("['a,b',\"c,d\"]", ("a,b", "c,d")),
        ("[a\\,b]", ("a,b",)),
        ("[[x],{y}]", ("[x]", "{y}")),
        ("['it\\'s']", ("it's",)),
        ("[a 'b' c]", ("a 'b' c",)),
    ],
)
def test_elements_of_a_list_are_texts(given_text: str, series: tuple[str, ...]) -> None:
    assert finetuned(f"finetune.series={given_text}").finetune.series == series


def test_null_is_no_text_where_nothing_may_be_given() -> None:
    assert finetuned("finetune.series=null", "finetune.where=null", "registry.alias=null").finetune.series is None
    assert finetuned("finetune.series=[null]").finetune.series == ("null",)


@pytest.mark.parametrize("text", ["[a,,b]", "[,a]", "[a,]"])
def test_an_empty_element_is_refused_or_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="is empty; leave it out, or write ''"):
        finetuned(f"finetune.series={text}")
    assert finetuned("finetune.series=[a,'']").finetune.series == ("a", "")


@pytest.mark.parametrize("text", ["a,b", "[a", "a]"])
def test_texts_that_are_no_list_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"finetune.series: must be a list"):
        finetuned(f"finetune.series={text}")


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_names_of_columns_and_models_are_texts(plus: str) -> None:
    words = ["data.path=2024", "data.columns.target=1", "data.past_covariates=[2020,2021]", "registry.name=2024"]
    config = verb_config(TrainConfig, "train", ["window.horizon=3", *(f"{plus}{word}" for word in words)])
    assert (config.data.path, config.data.columns.target, config.registry.name) == ("2024", "1", "2024")
    assert config.data.past_covariates == ("2020", "2021")


def test_lists_of_lists_and_of_words() -> None:
    where = ["reconcile.path=x", "reconcile.table=y", "output.path=z"]
    crossed = verb_config(ReconcileConfig, "reconcile", ["reconcile.by=[[1,2.0],[b]]", *where])
    assert crossed.reconcile.by == (("1", "2.0"), ("b",))
    nested = verb_config(ReconcileConfig, "reconcile", ["reconcile.by=[2020,'a,b']", *where])
    assert nested.reconcile.by == ("2020", "a,b")
    watched = ["data.path=x", "scores.path=y", "output.path=z", "monitor.on_breach=finetune"]
    monitor = verb_config(
        MonitorConfig, "monitor", [*watched, "monitor.on_breach_overrides='finetune.series=[3.10] finetune.kind=bias'"]
    )
    assert monitor.monitor.on_breach_overrides == ("finetune.series=[3.10]", "finetune.kind=bias")


def test_every_text_setting_of_a_training_keeps_a_number() -> None:
    forms = {path: text_form(field.annotation) for path, field in fields(DataConfig, "data.")}
    texts = [path for path, form in forms.items() if form == "text" and path not in ("data.uri", "data.query")]
    lists = [path for path, form in forms.items() if form == "texts" and path != "data.rolling"]
    assert {"data.columns.series_id", "data.time_zone", "data.holidays"} <= set(texts)
    assert set(lists) >= {"data.holiday_names", *(f"data.{time}_covariates" for time in ("past", "known", "static"))}
    words = [*(f"{path}=1.{place}0" for place, path in enumerate(texts)), *(f"{path}=[1e5]" for path in lists)]
    composed = compose("train", words)
    for place, path in enumerate(texts):
        assert _at(composed, path) == f"1.{place}0"
    assert all(_at(composed, path) == ["1e5"] for path in lists)


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def test_references_to_the_environment_and_to_settings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "oslo")
    assert explained("${oc.env:PLACE}/a${b}") == "oslo/a${b}"
    assert explained("${data.path}-1") == "x-1"
    assert finetuned("finetune.series=[${oc.env:PLACE},'${oc.env:NO_SUCH,a}',b]").finetune.series == ("oslo", "a", "b")
    assert explained("\\${oc.env:PLACE}") == "${oc.env:PLACE}"
    with pytest.raises(ConfigError, match="NO_SUCH"):
        explained("${oc.env:NO_SUCH}")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("[3.10]", "3.1 is a number"),
        ("[true]", "True is a truth value"),
        ("[1e5]", "100000.0 is a number"),
        ("[007]", "YAML reads 007 in .* as 7"),
        ("[a, 0x10]", "YAML reads 0x10 in .* as 16"),
        ("[1_000]", "YAML reads 1_000 in .* as 1000"),
    ],
)
def test_numbers_in_yaml_are_no_texts(tmp_path: Path, yaml: str, message: str) -> None:
    (tmp_path / "experiment").mkdir()
    preset, job = tmp_path / "experiment" / "mine.yaml", tmp_path / "job.yaml"
    preset.write_text(f"# @package _global_\ndata: {{past_covariates: {yaml}}}\n")
    arguments = ["experiment=mine", "--config-dir", str(tmp_path), "window.horizon=3", "data.path=x"]
    with pytest.raises(ConfigError, match=f"data.past_covariates: must be text, and {message}.*in quotes"):
        verb_config(TrainConfig, "train", arguments)
    job.write_text(f"data: {{path: x}}\nfinetune: {{series: {yaml}}}\n")
    with pytest.raises(ConfigError, match=f"finetune.series: must be text, and {message}.*in quotes"):
        finetuned_from(job)


def finetuned_from(file: Path) -> FinetuneConfig:
    return verb_config(FinetuneConfig, "finetune", ["--config", str(file)])


def test_whole_numbers_and_quoted_texts_of_yaml_are_texts(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("data: {path: x}\nfinetune: {series: [101, '007', \"3.10\", 2024-01-31], steps: 0x10}\n")
    config = finetuned_from(job).finetune
    assert (config.series, config.steps) == (("101", "007", "3.10", "2024-01-31"), 16)


def test_a_number_in_python_is_no_text() -> None:
    with pytest.raises(ConfigError, match=r"finetune.series: must be text, and 3.1 is a number"):
        load(FinetuneConfig, {"data": {"path": "x"}, "finetune": {"series": [3.10]}})


@pytest.mark.parametrize("text", [20240131, "20240131", "2024", 1.5, True])
def test_a_number_is_no_timestamp(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"data.until: must be a timestamp such as 2024-01-31"):
        load(FinetuneConfig, {"data": {"path": "x", "until": text}})


def test_a_truth_value_is_no_number() -> None:
    values = {"data": {"path": "x"}, "window": {"horizon": 3}, "fit": {"max_steps": True, "learning_rate": False}}
    with pytest.raises(ConfigError, match="2 mistakes") as caught:
        load(TrainConfig, values)
    assert "fit.max_steps: must be a number (given: True)" in str(caught.value)


@pytest.mark.parametrize("where", ["null", "'null'", "${oc.env:PLACE}", "a${b}-${oc.env:PLACE}", "\\${oc.env:PLACE}"])
def test_what_the_ledger_and_cfg_keep_is_read_as_the_same(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLACE", "oslo")
    series = ",".join([*map(_in_single_quotes, ODD_IDS), "${oc.env:PLACE}"])
    words = ["data.path=x", f"finetune.series=[{series}]", f"finetune.where={where}"]
    config, file = finetuned(*words), tmp_path / "config.json"
    assert config.finetune.series == (*ODD_IDS, "oslo")
    kept = describe("finetune", *verb_settings(FinetuneConfig, "finetune", words)).config
    assert "oslo" not in json.dumps(kept)
    file.write_text(json.dumps(kept))
    assert finetuned_from(file).finetune == config.finetune
    with pytest.raises(SystemExit):
        finetuned(*words, "--cfg", "job")
    file.write_text(capsys.readouterr().out)
    assert finetuned_from(file).finetune == config.finetune


def test_settings_that_are_no_text_are_read_as_before() -> None:
    words = ["window.horizon=3", "data.path=x", "fit.max_steps=1e3", "data.lags=[1,2]", "fit.deterministic=true"]
    config: Config = verb_config(TrainConfig, "train", words)
    assert isinstance(config, TrainConfig)
    assert (config.fit.max_steps, config.data.lags, config.fit.deterministic) == (1000, (1, 2), True)
