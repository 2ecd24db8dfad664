"""The MLflow store: its address, its client, and the translation of its errors.

Import this module before MLflow: it sets variables that MLflow reads on import.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast

from forecast.config import RegistryConfig
from forecast.environment import environment_set
from forecast.errors import RegistryError
from forecast.redaction import without_password
from forecast.tracking.calls import Calls, TimedClient
from forecast.tracking.local_client import LocalClient
from forecast.tracking.local_database import local_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Read when MLflow is imported. MLflow's defaults are 120 s, seven times over.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


DEFAULT_URI: Final = "sqlite:///mlflow.db"
_FIRST_CALL: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


class _Caller(Protocol):
    uri: str


P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=_Caller)


def calls_mlflow(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Decorate a method to raise RegistryError, which names the store, for errors of MLflow."""

    @functools.wraps(method)
    def wrapper(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with explained(self.uri):
            return method(self, *args, **kwargs)

    return wrapper


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Raise RegistryError, which names the store, for errors of MLflow and its database."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, ImportError | OSError) and not is_of_store(error):
            raise
        store = without_password(uri)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(uri, store)
        if "Max retries exceeded" in reason:
            cause = reason.rpartition(": ")[2].strip("()'\"")
            reason = f"no answer ({cause}); is the server running?"
        if "error code 401" in reason or "not authenticated" in reason:
            reason = "the server asks for a login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise RegistryError(f"MLflow store {store}: {reason} (registry.tracking_uri sets the store)") from error


def is_of_store(error: BaseException) -> bool:
    """Return whether an error is one of MLflow or its database. Their modules are not imported: it takes seconds."""
    roots = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return not roots.isdisjoint(("mlflow", "sqlalchemy", "alembic", "sqlite3"))


def error_code(error: BaseException) -> str:
    """Return MLflow's code of an error, empty for other errors."""
    return str(getattr(error, "error_code", ""))


def tracking_uri(config: RegistryConfig) -> str:
    """Return the MLflow store in use: configured, from MLFLOW_TRACKING_URI, or a SQLite file here."""
    configured = config.tracking_uri.get_secret_value() if config.tracking_uri else None
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def connect(uri: str) -> "tuple[Calls, MlflowClient]":
    """Return the deadlines of calls and a client, after one answered call; local stores have no deadlines.

    Once MLflow is imported, all calls are made by it: it keeps databases open that a relative path no longer names.
    """
    calls = Calls(uri)
    if "mlflow" not in sys.modules and (file := local_file(uri)):
        return calls, cast("MlflowClient", local_client(uri, file))
    client = _open(uri)
    if is_server(uri) or _is_database_server(uri):
        timed = cast("MlflowClient", TimedClient(client, calls))
        with environment_set(_FIRST_CALL):
            timed.search_experiments(max_results=1)
        return calls, timed
    return calls, client


def local_client(uri: str, file: Path) -> LocalClient:
    """Return a client of the store in a SQLite file, of which MLflow's client makes the unusual calls."""
    return LocalClient(file, functools.partial(_open, uri))


def _open(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    prepare_store(uri)  # before the client, which opens it
    return MlflowClient(uri, uri)


def prepare_store(uri: str) -> None:
    """Create MLflow's tables in a database store that lacks them. Raises RegistryError."""
    if "://" in uri and not uri.startswith("file:") and not is_server(uri):
        from forecast.tracking.database import prepare_database

        with explained(uri):
            prepare_database(uri)


def is_server(uri: str) -> bool:
    """Return whether the store is behind a server."""
    return uri.startswith(("http://", "https://"))


def _is_database_server(uri: str) -> bool:
    return uri.startswith(("postgresql", "mysql", "mssql"))


def artifact_root(uri: str, name: str) -> str | None:
    """Return the artifact folder of a local store: beside its database, independent of the working folder."""
    if not uri.startswith("sqlite:///"):
        return None  # the server decides
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns" / re.sub(r"[^\w.-]", "_", name)
    return folder.as_uri()
