"""All verbs on MLflow's server and PostgreSQL, as `forecast server` starts them, the ledger in that database, too."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl
import pytest
import services
from flow import BACKTEST, FINETUNE, NAME, SERIES, TRAIN, panel, refuse, succeed

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry
from pipelines import server as server_verb
from pipelines.jobs.ledger import Ledger

MODEL = f"registry.name={NAME}"


# Signals are handled by default, however these tests were started, but for the numbers that are given.
START = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN if str(int(number)) in sys.argv[1].split() else signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "pipelines.cli", "server", *sys.argv[2:]])
"""


def start(folder: Path, *settings: str, ignored: Collection[signal.Signals] = ()) -> "subprocess.Popen[str]":
    numbers = " ".join(str(int(number)) for number in ignored)
    command = [sys.executable, "-c", START, numbers, f"server.path={folder}", "server.workers=1", *settings]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture
def server() -> Iterator[dict[str, str]]:
    """A server on a cluster of its own; what it says is to be exported."""
    services.postgresql_bin()
    # PostgreSQL, as its own user, has to get there.
    folder = Path(tempfile.mkdtemp(prefix="gatecast-server-"))
    folder.chmod(0o755)
    port, database_port = services.free_port(), services.free_port()
    process = start(folder, f"server.port={port}", f"server.database_port={database_port}")
    try:
        assert process.stdout
        lines = [process.stdout.readline().strip() for _ in range(4)]
        exports = dict(line.removeprefix("export ").split("=", 1) for line in lines[:3])
        assert exports["PGPASSWORD"] == f"$(cat {folder / 'password'})"
        yield {**exports, "PGPASSWORD": (folder / "password").read_text()}
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert is_free(port)
        assert is_free(database_port)
        assert any((folder / "artifacts").iterdir())
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_every_verb_on_a_server(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**server, "GATECAST_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    panel().write_parquet(tmp_path / "panel.parquet")
    data = f"data.path={tmp_path / 'panel.parquet'}"
    succeed("train", MODEL, data, *TRAIN, "fit.max_steps=0")
    succeed("finetune", MODEL, data, *FINETUNE)
    succeed("backtest", MODEL, data, *BACKTEST)
    succeed("promote", MODEL)
    done = succeed("score", MODEL, data, "output.path=scores").out
    assert f"{len(SERIES)} series = {len(SERIES)} forecast + 0 rejected" in done
    registry = Registry(RegistryConfig(name=NAME))
    tuned, base = registry.versions()
    assert (set(tuned.aliases), base.aliases) == ({"challenger", "champion"}, ("pretrained",))
    assert (tuned.parent, tuned.tags["parent_digest"]) == (1, base.digest)
    assert f"v{tuned.number}" in succeed("models", "show", MODEL).out
    entries = Ledger(server["GATECAST_LEDGER"]).entries(every=True)
    flows = ("score", "promote", "backtest", "finetune", "train")
    assert [(entry.flow, entry.status) for entry in entries] == [(flow, "done") for flow in flows]
    page = f"{server['MLFLOW_TRACKING_URI']}/#/experiments/"
    assert [entry.mlflow.startswith(page) for entry in entries] == [True] * 5
    assert entries[3].mlflow.endswith(f"/runs/{tuned.run_id}")
    assert pl.read_parquet(work / "scores" / "forecasts")["series_id"].n_unique() == len(SERIES)
    assert [path.name for path in work.iterdir()] == ["scores"]
    assert services.PASSWORD_IN_URI not in done


def test_a_server_in_the_background_under_nohup_stops_with_all_that_it_started(
    tmp_path: Path, store_template: Path
) -> None:
    database, port, ignored = (
        shutil.copy(store_template, tmp_path),
        services.free_port(),
        (signal.SIGINT, signal.SIGHUP),
    )
    process = start(tmp_path, f"server.port={port}", f"server.database=sqlite:///{database}", ignored=ignored)
    try:
        assert process.stdout
        assert "MLFLOW_TRACKING_URI" in process.stdout.readline()
        assert process.stdout.readline().endswith("until Ctrl-C\n")
        for number in ignored:
            process.send_signal(number)
        assert not is_free(port)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
        assert is_free(port)
    finally:
        process.kill()


def test_a_server_stops_with_its_terminal_also_while_it_starts(tmp_path: Path, store_template: Path) -> None:
    database, port = shutil.copy(store_template, tmp_path), services.free_port()
    process = start(tmp_path, f"server.port={port}", f"server.database=sqlite:///{database}")
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (started := children.read_text().split()):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 128 + signal.SIGHUP
        assert not [child for child in started if Path("/proc", child).exists()]
    finally:
        process.kill()


def test_a_server_that_was_killed_while_its_cluster_was_made_starts_again() -> None:
    services.postgresql_bin()
    folder = Path(tempfile.mkdtemp(prefix="gatecast-server-"))
    folder.chmod(0o755)
    port, database_port = services.free_port(), services.free_port()
    process = start(folder, f"server.port={port}", f"server.database_port={database_port}")
    try:
        while not any(folder.glob(".postgresql-*/PG_VERSION")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert not (folder / "postgresql").exists()
        with server_verb._postgresql(folder, database_port) as uri:
            assert Ledger(uri).entries() == []
        assert not any(folder.glob(".postgresql-*"))
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_what_a_server_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"server.path={tmp_path / 'server'}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = f"server.port={taken.getsockname()[1]}"
        assert f"{port}: 127.0.0.1:{taken.getsockname()[1]} can't be had" in refuse(2, "server", folder, port)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    free = f"server.port={services.free_port()}"
    assert "apt-get install postgresql" in refuse(2, "server", folder, free)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'gatecast[server]'" in refuse(2, "server", folder, free)
