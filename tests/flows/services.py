"""Servers that tests start for themselves: PostgreSQL, S3 by moto, MLflow's. Each is on a free loopback port."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

PASSWORD = "s3cr:t/@pw"
PASSWORD_IN_URI = "s3cr%3At%2F%40pw"


class S3(NamedTuple):
    """A running S3 server, whose only user has to sign its requests."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the URI of a new database cluster, without the password; the superuser is `me`."""
    bin_folder = postgresql_bin()
    # PostgreSQL refuses to run as root.
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    user: dict[str, Any] = (
        {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    )
    folder, port = Path(tempfile.mkdtemp(prefix="gatecast-postgresql-")), free_port()
    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        for path in (folder, password):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        options = ["-U", "me", f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
        initdb = [bin_folder / "initdb", "-D", folder / "data", *options]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", f"port={port}"]
        server = [bin_folder / "postgres", "-D", folder / "data", *(word for one in settings for word in ("-c", one))]
        with (folder / "log").open("wb") as log, running(server, log, stop=signal.SIGINT, cwd="/", **user) as process:
            ready = [bin_folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait(process, folder / "log", lambda: subprocess.run(ready, check=True))
            yield f"postgresql://me@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3() -> Iterator[S3]:
    """Yield an S3 server with the bucket "panels"."""
    import boto3

    with tempfile.TemporaryDirectory() as name:
        log, endpoint = Path(name) / "log", f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", endpoint.rpartition(":")[2]]
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1000"}
        with log.open("wb") as file, running(command, file, env=environment) as process:
            wait(process, log, lambda: urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close())
            anyone = {"aws_access_key_id": "any", "aws_secret_access_key": "one", "region_name": "us-east-1"}
            iam = boto3.client("iam", endpoint_url=endpoint, **anyone)
            iam.create_user(UserName="reader")
            allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
            iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=policy)
            key = iam.create_access_key(UserName="reader")["AccessKey"]
            boto3.client("s3", endpoint_url=endpoint, **anyone).create_bucket(Bucket="panels")
            # From now on, keys and signatures are checked.
            check = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
            urllib.request.urlopen(check, timeout=5).close()
            yield S3(endpoint, key["AccessKeyId"], key["SecretAccessKey"])


@contextmanager
def scoring(model: str) -> Iterator[str]:
    """Yield the address of MLflow's scoring server for a model of the default store."""
    with tempfile.TemporaryDirectory() as name:
        log, port = Path(name) / "log", free_port()
        options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, *options]
        # The server finds its programs, and this code, where the test does.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with log.open("wb") as file, running(command, file, env=environment) as process:
            address = f"http://127.0.0.1:{port}"
            wait(process, log, lambda: urllib.request.urlopen(f"{address}/ping", timeout=5).close())
            yield address


@contextmanager
def mlflow(folder: Path, *options: str, environment: Mapping[str, str] = {}) -> Iterator[str]:
    """Yield the address of MLflow's server on the database and the artifacts in a folder."""
    port = free_port()
    stores = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        folder / "artifacts",
    ]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *stores, *address, *options]
    with (folder / "log").open("wb") as log, running(command, log, env={**os.environ, **environment}) as process:
        url = f"http://127.0.0.1:{port}"
        wait(process, folder / "log", lambda: urllib.request.urlopen(f"{url}/health", timeout=5).close())
        yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgresql_bin() -> Path:
    """Return the folder of PostgreSQL's programs, which are installed if that is possible."""
    found = _find_postgresql()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, check=False, capture_output=True, env=environment)
        found = _find_postgresql()
    if found is None:
        message = "PostgreSQL is not installed (initdb is neither on PATH nor below /usr/lib/postgresql)"
        pytest.fail(message) if "CI" in os.environ else pytest.skip(message)
    return found


def _find_postgresql() -> Path | None:
    on_path = shutil.which("initdb")
    installed = [Path(on_path).resolve()] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


@contextmanager
def running(
    command: list[Any], log: IO[bytes], stop: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(process: "subprocess.Popen[bytes]", log: Path, probe: Callable[[], Any], seconds: int = 400) -> None:
    """Wait until `probe` raises nothing, for minutes: the machine may be busy. A process that ends is told at once."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError, subprocess.CalledProcessError):
            probe()
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not answer:\n{log.read_text(errors='replace')}")
