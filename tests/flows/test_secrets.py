"""Secrets from the command line to the ledger, the store and the processes of jobs."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import services
from flow import Done, forecast, refuse

from pipelines.jobs.ledger import Ledger

SECRET = "S3cr3tPW"
SLOT = "2024-01-17T05:00"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "GATECAST_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def files_with(text: str) -> list[str]:
    """The files below the current folder in which a text is."""
    return [str(path) for path in Path().rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def arguments_seen(command: list[str]) -> tuple[list[str], str]:
    """Run a command, and return the arguments of all processes meanwhile that are of ours, and what was written."""
    found: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    of_ours = (path.parent / "cwd").readlink() == Path.cwd()
                except OSError:  # It has ended.
                    continue
                if of_ours:
                    found.add(words)
            time.sleep(0.02)
        assert process.stdout is not None
        return sorted(found), process.stdout.read()


def test_a_job_of_a_schedule_gets_its_settings_where_nobody_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"postgresql://me:{SECRET}@127.0.0.1:{services.free_port()}/db"
    monkeypatch.setenv("DB_URI", uri)
    monkeypatch.setenv("QUERY", f"select 1 as x{SECRET}")
    Path("taken").touch()  # Both jobs end soon.
    overrides = ["data.uri=${oc.env:DB_URI}", "data.query=${oc.env:QUERY}", "output.path=taken/a", "registry.name=m"]
    literal = [f"data.uri={uri}", "data.query=select 1", "output.path=taken/b", "registry.name=m"]
    nightly = {"cron": "30 2 * * *", "flow": "score", "retries": 0, "start": SLOT[:10]}
    schedules = {"nightly": nightly | {"overrides": overrides}, "literal": nightly | {"overrides": literal}}
    Path("s.yaml").write_text(json.dumps({"schedules": schedules}))
    command = [sys.executable, "-m", "pipelines.cli", "schedule", "run"]
    seen, written = arguments_seen([*command, "schedule.path=s.yaml", f"schedule.now={SLOT}"])
    assert any("pipelines.cli score" in words for words in seen)
    assert SECRET not in "".join(seen) + written
    assert files_with(SECRET) == ["s.yaml"]
    entries = {entry.schedule: entry for entry in Ledger("sqlite:///gatecast.db").entries()}
    kept = entries["nightly"]
    assert (kept.status, kept.dataset, kept.references) == (
        "failed",
        "${oc.env:DB_URI}",
        {"data.uri": "${oc.env:DB_URI}", "data.query": "${oc.env:QUERY}"},
    )
    assert entries["literal"].config["data"]["uri"].startswith("postgresql://me:***@127.0.0.1")
    assert Path("gatecast.db").stat().st_mode & 0o777 == 0o600


def test_what_a_database_answers_is_written_without_its_password(store_template: Path) -> None:
    assert store_template.stat().st_mode & 0o777 == 0o600
    store = f"registry.tracking_uri=sqlite:///{shutil.copy(store_template, 'mlflow.db')}"
    uri = f"data.uri=postgresql://me:{SECRET}@127.0.0.1:{services.free_port()}/db"
    table = uri, "data.query=select 1", "data.freq=1h", "window.horizon=5"
    message = refuse(3, "data", "prepare", *table, "output.path=out", store)
    (entry,) = Ledger("sqlite:///gatecast.db").entries()
    assert entry.error == message.strip()
    assert "postgresql://me:***@127.0.0.1" in message
    assert not files_with(SECRET)


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "list", "registry.name=x", f"registry.tracking_uri=http://{SECRET}@127.0.0.1:9"),
        ("data", "profile", f"data.path=postgresql://me:{SECRET}@127.0.0.1:9/db"),
        ("data", "profile", f"data.path=https://host/x.csv?token={SECRET}"),
        ("data", "profile", f"data.uri=['postgresql://me:{SECRET}@127.0.0.1:9/db']"),
        ("data", "profile", f"data.uri=mysql://me:{SECRET}@127.0.0.1:9/db", "data.query=select 1"),
        ("data", "profile", f"data.uri=sqlite:///x.db?password={SECRET}", "data.query=select 1"),
        ("train", f"data.uri=[postgresql://me:{SECRET}@127.0.0.1:9/db", "data.path=x"),
        ("train", f"data=postgresql://me:{SECRET}@127.0.0.1:9/db", "window.horizon=3"),
        ("train", f"data=postgresql://me:{SECRET}@127.0.0.1:9/db", "--cfg", "job"),
        ("score", f"postgresql://me:{SECRET}@127.0.0.1:9/db"),
        ("score", "--config", "absent.yaml", f"data.uri=postgresql://me:{SECRET}@127.0.0.1:9/db"),
        ("runs", "list", f"ledger.uri=postgresql://me:{SECRET}@127.0.0.1:9/db"),
        ("runs", "retry", "1", f"data.uri=postgresql://me:{SECRET}@127.0.0.1:9/db"),
    ],
)
def test_no_message_has_a_secret(arguments: tuple[str, ...]) -> None:
    done: Done = forecast(*arguments)
    assert done.code in (2, 3, 4, 7)
    assert SECRET not in done.out + done.err
    assert not files_with(SECRET)


def test_a_path_from_the_environment_is_in_the_ledger_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", f"/nowhere/{SECRET}.parquet")
    prepare = ("data", "prepare", "data.path=${oc.env:P}", "data.freq=1h", "window.horizon=5", "output.path=out")
    assert "${oc.env:P}" in refuse(3, *prepare)
    Path("job.yaml").write_text("data: {path: '${oc.env:P}', freq: 1h}\nwindow: {horizon: 5}\noutput: {path: out}\n")
    refuse(3, "data", "prepare", "--config", "job.yaml")
    entries = Ledger("sqlite:///gatecast.db").entries(every=True)
    assert [entry.dataset for entry in entries] == ["${oc.env:P}"] * 2
    assert not files_with(SECRET)
    for listed in (forecast("runs", "list", "runs.format=json"), forecast("runs", "show", 1), forecast("runs", "list")):
        assert SECRET not in listed.out


def edit(column: str, change: str, value: str) -> None:
    """Change a column of the only run; of a JSON column the value at a path such as data.path."""
    with closing(sqlite3.connect("gatecast.db", isolation_level=None)) as database:
        (text,) = database.execute(f"select {column} from gatecast_runs where id = 1").fetchone()
        content = json.loads(text)
        group, _, leaf = change.partition(".")
        content[group][leaf] = value
        database.execute(f"update gatecast_runs set {column} = ? where id = 1", [json.dumps(content)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "leak_${oc.env:SEKRET}.parquet"),
        ("data.path", "${oc.env:SEKRET}"),
        ("output.path", "${oc.env:SEKRET}"),
        ("registry.alias", "${oc.env:SEKRET}"),
        ("data.path", "${oc.decode:${oc.env:SEKRET}}"),
    ],
)
def test_a_retry_follows_no_reference_that_was_not_given(key: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEKRET", "TOPSECRET123")
    monkeypatch.setenv("TABLE", "nope.parquet")
    refuse(3, "score", "registry.name=m", "data.path=${oc.env:TABLE}", "output.path=o")
    edit("config", key, value)
    message = refuse(2, "runs", "retry", 1)
    assert f"run 1 has a reference in {key} which is not one that the run was given" in message
    assert f"forecast runs retry 1 {key}=VALUE" in message
    assert "TOPSECRET123" not in message
    assert len(Ledger("sqlite:///gatecast.db").entries(every=True)) == 1
    assert not files_with("TOPSECRET123")


def test_text_with_a_dollar_stays_text_in_a_retry(capfd: pytest.CaptureFixture[str]) -> None:
    refuse(3, "score", "registry.name=m", "data.path=a${b}-\\${oc.env:HOME}.parquet", "output.path=o")
    assert forecast("runs", "retry", 1).code == 3
    assert "a${b}-${oc.env:HOME}.parquet: no such file" in capfd.readouterr().err
