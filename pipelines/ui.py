"""`forecast ui`: MLflow's web page on the store in use."""

import os
import sys
from typing import Final

from forecast.config import UiConfig
from forecast.errors import ConfigError
from forecast.redaction import without_password
from pipelines.jobs import command_line

STORE: Final = "MLFLOW_BACKEND_STORE_URI"


def main(argv: list[str]) -> None:
    """Replace the process by MLflow's server, until Ctrl-C. Missing tables of the store are created first."""
    config = command_line.verb_config(UiConfig, "ui", argv)
    from forecast.tracking.store import prepare_store  # after --help, which does not import MLflow

    arguments, environment = command(config)
    prepare_store(environment[STORE])
    print(f"http://{config.ui.host}:{config.ui.port}", flush=True)
    os.execve(arguments[0], arguments, {**os.environ, **environment})


def command(config: UiConfig) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves the store, and its environment."""
    from forecast.tracking.store import tracking_uri

    uri = tracking_uri(config.registry)
    if uri.startswith(("http://", "https://")):
        raise ConfigError(f"the store is a server, which has its own page: open {without_password(uri)}")
    address = ["--host", config.ui.host, "--port", str(config.ui.port), "--workers", "1"]
    return server(uri, *address)


def server(uri: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """Return the command of MLflow's server on a store, and its environment."""
    environment = {
        STORE: uri,  # not an argument, which all users of the machine could read
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 2 processes instead of 10; no jobs run in it
    }
    return [sys.executable, "-m", "mlflow", "server", *options], environment
