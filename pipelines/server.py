"""`forecast server`: MLflow's server on PostgreSQL, with artifacts served by it, until Ctrl-C.

The database is configured, or a private cluster in the folder, created at the first use with a random password in the
file `password` beside it.
"""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from forecast.config import ServerConfig
from forecast.data.files import locked
from forecast.errors import ConfigError, OutputError
from pipelines import ui
from pipelines.jobs import command_line, console
from pipelines.jobs.job import on_sigterm, terminate

_USER: Final = "gatecast"
_LOCAL: Final = "127.0.0.1"
_SECONDS: Final = 180.0
"""Longest start of a server; at the first start, MLflow creates its tables."""
_STOP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.2
_UNFINISHED: Final = ".postgresql-"
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: list[str]) -> None:
    """Start the servers, print how to use them, and stop them on Ctrl-C, SIGTERM or the end of the terminal."""
    settings = command_line.verb_config(ServerConfig, "server", argv).server
    console.setup()
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError("MLflow speaks to PostgreSQL through psycopg: pip install 'gatecast[server]'")
    configured = settings.database.get_secret_value() if settings.database else os.environ.get("DATABASE_URL")
    _check_free("server.port", settings.host, settings.port)
    folder, page = Path(settings.path).resolve(), f"http://{settings.host}:{settings.port}"
    folder.mkdir(parents=True, exist_ok=True)
    on_sigterm(terminate)
    # The servers have their own sessions, which would survive the terminal. Under nohup the signal stays ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, terminate)
    with ExitStack() as stack:
        uri = configured or stack.enter_context(_postgresql(folder, settings.database_port))
        command, environment = ui.server(
            re.sub(r"^postgres(ql)?(\+\w+)?:", "postgresql+psycopg:", uri),
            *("--host", settings.host, "--port", str(settings.port), "--workers", str(settings.workers)),
            *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
        )
        log = folder / "mlflow.log"
        process = stack.enter_context(_running(command, log, signal.SIGTERM, env={**os.environ, **environment}))
        _wait(process, log, lambda: urllib.request.urlopen(f"{page}/health", timeout=5).close())
        print(f"export MLFLOW_TRACKING_URI={page}")
        if not configured:
            print(f"export GATECAST_LEDGER={uri.replace(f':{_password(folder)}@', '@')}")
            print(f"export PGPASSWORD=$(cat {folder / 'password'})")
        print(f"{page} stores in {folder} until Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):
            # Ctrl-C does not end a wait without a limit once Polars is imported: system calls are then restarted.
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
            raise OutputError(f"MLflow's server has ended:\n{_tail(log)}")


@contextmanager
def _postgresql(folder: Path, port: int) -> Iterator[str]:
    """Yield the URI of the cluster in a folder, which is created if necessary."""
    programs = _programs()
    _check_free("server.database_port", _LOCAL, port)
    user: dict[str, Any] = {}
    data, log = folder / "postgresql", folder / "postgresql.log"
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            raise ConfigError("PostgreSQL refuses to run as root, and there is no user postgres") from None
        user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    if not (data / "PG_VERSION").exists():
        _make_cluster(programs, data, user)
    settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={port}")
    server = [str(programs / "postgres"), "-D", str(data), *(word for option in settings for word in ("-c", option))]
    ready = [str(programs / "pg_isready"), "-q", "-h", _LOCAL, "-p", str(port)]
    with _running(server, log, signal.SIGINT, **user) as process:
        _wait(process, log, lambda: subprocess.run(ready, check=True))
        yield f"postgresql://{_USER}:{_password(folder)}@{_LOCAL}:{port}/postgres"


def _make_cluster(programs: Path, data: Path, user: Mapping[str, Any]) -> None:
    """Create a cluster of PostgreSQL atomically: in a temporary folder, which is then renamed."""
    password = data.with_name("password")
    with locked(data.parent, "server.path"):
        if (data / "PG_VERSION").exists():
            return
        if data.exists() and any(data.iterdir()):
            raise OutputError(f"{data} (server.path) is neither empty nor a cluster of PostgreSQL; move it away")
        for remains in data.parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(remains, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=data.parent))
        password.touch(0o600)
        password.write_text(secrets.token_urlsafe(24))
        for path in (unfinished, password):
            os.chown(path, user.get("user", -1), user.get("group", -1))
        options = ["-U", _USER, f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]
        command = [str(programs / "initdb"), "-D", str(unfinished), *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False, **user)
        if result.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise OutputError(f"PostgreSQL can't make a cluster in {data} (server.path): {result.stderr.strip()}")
        unfinished.replace(data)


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    on_path = shutil.which("initdb")
    candidates = [Path(on_path).resolve()] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not candidates:
        raise ConfigError(
            "PostgreSQL is missing (initdb is neither on PATH nor below /usr/lib/postgresql): install it, on Debian "
            "with apt-get install postgresql, or give one that runs: server.database=postgresql://user@host/database"
        )
    return candidates[-1].parent


def _password(folder: Path) -> str:
    return (folder / "password").read_text()


def _check_free(key: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"{key}={port}: {host}:{port} can't be had ({error.strerror}); give another one"
            ) from None


@contextmanager
def _running(
    command: Sequence[str], log: Path, stop: signal.Signals, **options: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield a process, which is signalled at the end; it does not get Ctrl-C directly."""
    options |= {"stdin": subprocess.DEVNULL, "start_new_session": True}
    process = None
    try:
        with log.open("ab") as file, _signals_held():
            process = subprocess.Popen(command, stdout=file, stderr=file, **options)
        yield process
    finally:
        if process is not None:
            process.send_signal(stop)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Handle signals that end this process only at the end of the context: a process that starts is not left behind."""
    received: list[int] = []
    numbers = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda code, _: received.append(code)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for sent in received:
            signal.raise_signal(sent)


def _wait(process: "subprocess.Popen[bytes]", log: Path, probe: Callable[[], object]) -> None:
    """Wait until `probe` raises nothing. Raises OutputError if the process ends before."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, subprocess.CalledProcessError):
            probe()
            return
        time.sleep(0.1)
    raise OutputError(f"a server does not answer; the end of {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])
