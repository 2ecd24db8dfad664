import logging
from pathlib import Path
from typing import Any

import pytest

from forecast import redaction
from forecast.config import BacktestConfig, ScoreConfig, UiConfig, fields, load
from forecast.data.files import make_private, write_bytes_atomic
from forecast.errors import ConfigError, DataError, listing
from forecast.redaction import add_secret, is_secret_name, printable, redacted, redacted_values, shown
from pipelines import cli
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_config

SECRET = "S3cr3tPW"


@pytest.fixture(autouse=True)
def no_secrets_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_secrets", {})


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://me:{SECRET}@host/db",
        f"postgresql://me:{SECRET}@host:5432/db?sslmode=require is away",
        f"['postgresql://me:{SECRET}@127.0.0.1:1/db']",
        f"postgresql+psycopg://:{SECRET}@host/db",
        f"postgresql://me:pass/word@{SECRET}@host/db",
        f"http://{SECRET}@127.0.0.1:5000",
        f"https://host/api?token={SECRET}&page=2",
        f"https://host/api?page=2&sig={SECRET}",
        f"https://host/api?X-Amz-Signature={SECRET}",
        f"sqlite:///a.db?password={SECRET}",
        f"host=db user=me password={SECRET} dbname=x",
        f"host=db password='{SECRET} {SECRET}' dbname=x",
        f"{{'password': '{SECRET}', 'user': 'me'}}",
        f'{{"api_key": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
    ],
)
def test_secrets_are_known_by_their_place(text: str) -> None:
    assert SECRET not in redacted(text)
    assert "***" in redacted(text)
    assert SECRET not in str(DataError(text))


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@host:5432/db",
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "sqlite:////srv/mlflow.db",
        "s3://bucket/panel/*.parquet",
        "abfss://container@account.dfs.core.windows.net/x",
        "webhook.secret_env: the environment variable HOOK_SECRET is not set",
        "data.path=panel.parquet: no such file or folder",
        "a mail to me@example.org: 3 rows, tokenizer=none",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("password", ["a b", "p@ss/w:rd", "p%40ss", "abc", "x'y\"z", "x\\y", "ümläut", "?#&="])
def test_the_password_of_a_setting_is_hidden_wherever_it_is_quoted(password: str) -> None:
    load(ScoreConfig, scored(f"postgresql://me:{password}@host/db"))
    for text in (f"refused {password}.", f"login with {password!r} failed", f"({password})"):
        assert "***" in redacted(text)
        assert password not in redacted(text)


def test_a_password_that_is_a_word_hides_the_word_alone() -> None:
    add_secret("postgresql://postgres:postgres@host/db")
    assert redacted("postgresql as postgres") == "postgresql as ***"


def scored(uri: Any) -> dict[str, Any]:
    return {"data": {"uri": uri, "query": "select 1"}, "output": {"path": "o"}}


@pytest.mark.parametrize(
    "value", [[f"postgresql://me:{SECRET}@h/db"], {"a": f"x://me:{SECRET}@h"}, [[SECRET]], {"password": SECRET}]
)
def test_mistakes_do_not_quote_secrets(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.uri") as caught:
        load(ScoreConfig, scored(value))
    assert SECRET not in str(caught.value)


def test_a_config_shows_no_secret() -> None:
    uri = f"postgresql://me:{SECRET}@host/db"
    config = load(ScoreConfig, scored(uri) | {"registry": {"tracking_uri": f"https://{SECRET}@host"}})
    assert config.data.uri is not None
    assert config.data.uri.get_secret_value() == uri
    for text in (repr(config), str(config), config.model_dump_json(), str(config.model_dump())):
        assert SECRET not in text


def test_no_other_setting_has_the_name_of_a_secret() -> None:
    names = {path.rpartition(".")[2] for kind in (ScoreConfig, BacktestConfig, UiConfig) for path, _ in fields(kind)}
    assert not [name for name in names if is_secret_name(name)]
    assert redacted_values({"a": {"password": "x", "b": ["token=y", 3]}}) == {
        "a": {"password": "***", "b": ["token=***", 3]}
    }


def test_the_environment_is_known_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", SECRET)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:x{SECRET}@h/db")
    monkeypatch.setenv("TOKEN_FILE", "/run/token")
    assert redacted(f"{SECRET} x{SECRET} /run/token") == "*** *** /run/token"


def cfg(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        verb_config(ScoreConfig, "score", [*words, "--cfg", "job"])
    output = capsys.readouterr()
    return output.out + output.err


@pytest.mark.parametrize(
    "words",
    [
        (f"data.uri=postgresql://me:{SECRET}@h/db", "data.query=q", "output.path=o"),
        (f"data.uri=postgresql://me:{SECRET}@h/db",),
        (f"data.uri={SECRET}",),
        (f"data.url=postgresql://me:{SECRET}@h/db",),
        (f"data.path=https://h/x?token={SECRET}",),
        (f"registry.tracking_uri=https://{SECRET}@h",),
        (f"notify.password={SECRET}",),
        (f"ledger.uri=[{SECRET}]",),
    ],
)
def test_cfg_shows_no_secret_whatever_else_is_wrong(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    printed = cfg(capsys, *words)
    assert "registry:" in printed
    assert SECRET not in printed


@pytest.mark.parametrize("key", ["data.uri", "data.path", "output.path", "registry.tracking_uri", "data.query"])
def test_what_came_from_the_environment_is_shown_as_it_was_given(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", f"https://me:x{SECRET}@nowhere/{SECRET}")
    assert f"{key.rpartition('.')[2]}: ${{oc.env:PLACE}}" in cfg(capsys, f"{key}=${{oc.env:PLACE}}")
    message = str(DataError(f"https://me:x{SECRET}@nowhere/{SECRET}: no such file"))
    assert message == "${oc.env:PLACE}: no such file"


def test_common_words_of_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("panel", "2024-01-31", "true", "/x", "12"):
        monkeypatch.setenv("PLACE", value)
        words = ["data.path=${oc.env:PLACE}", "output.path=o"]
        assert verb_config(ScoreConfig, "score", words).data.path == value
        assert redacted(f"read {value}") == f"read {value}"


EVIL = "x\x1b]0;t\x07\x1b[2J\r\n2026-01-01 00:00:00,000 INFO score: all is well\u202e\x9b\u2028\ud800"


def test_nothing_that_is_printed_controls_a_terminal_or_begins_a_line() -> None:
    for text in (printable(EVIL), listing([EVIL, "b"]), shown(EVIL)):
        assert not any(sign in text for sign in "\x1b\x07\r\u202e\x9b\u2028\ud800")
        assert not any(line.startswith("2026") for line in text.splitlines())
        text.encode()
    assert listing(["a\x1b", "b"]) == "a\\x1b, b"
    assert printable("größer, 東京 \u0301é") == "größer, 東京 \u0301é"
    assert "\x1b" not in str(DataError(f"series {EVIL}"))
    assert str(ConfigError("2 mistakes:\n  a\n  b")) == "2 mistakes:\n  a\n  b"


def test_logs_have_one_line_for_a_record_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers, root.level
    try:
        console.setup()
        with console.stage("read") as stage:
            stage.note(series=EVIL, source=f"postgresql://me:{SECRET}@h/db")
        try:
            raise ValueError(f"postgresql://me:{SECRET}@h/db\n2026-01-01 forged {EVIL}")
        except ValueError:
            logging.getLogger("forecast").exception("failed")
    finally:
        root.handlers, root.level = before, level
    lines = capsys.readouterr().err.splitlines()
    assert SECRET not in "".join(lines)
    assert "\x1b" not in "".join(lines)
    assert [line[:4] for line in lines if not line.startswith(" ")] == [lines[0][:4]] * 2
    assert not any(line.startswith("2026-01-01 00:00:00,000") for line in lines)


def test_a_table_shows_ids_as_they_are_but_for_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    import polars as pl

    console.table(pl.DataFrame({"series": ["[bold]a[/bold]", "b\x1b[2J"], "n": [1, 2]}))
    printed = capsys.readouterr().out
    assert "[bold]a[/bold]" in printed
    assert "b\\x1b[2J" in printed
    assert "\x1b" not in printed


def test_a_traceback_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError) as caught:
        raise KeyError(f"postgresql://me:{SECRET}@h/db")
    cli._print_traceback(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "postgresql://me:***@" in printed


def test_private_files_are_for_their_owner(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "file")
    write_bytes_atomic(b"x", tmp_path / "b", private=True)
    write_bytes_atomic(b"x", tmp_path / "c")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a/file", "b", "c")]
    assert modes[:2] == [0o600, 0o600]
    assert modes[2] & 0o400
    (tmp_path / "c").write_bytes(b"kept")
    make_private(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"kept"
