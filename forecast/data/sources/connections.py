"""Connections to PostgreSQL and SQLite: addresses, secrets, messages and quoting."""

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from forecast.data.sources.deadlines import Deadline, TimedConnection
from forecast.errors import ConfigError, GatecastError
from forecast.redaction import without_password

_CONNECT_SECONDS: Final = 10

# A URI that libpq would take apart elsewhere shows pieces of the password in its messages: it is refused before.
_HOST: Final = r"([\w.%-]*|\[[\da-f:.]+\])(:\d+)?"
_POSTGRES_URI: Final = re.compile(
    rf"postgres(ql)?(\+\w+)?://([^/@:?#\s]*(:[^/@:?#\s]*)?@)?{_HOST}(,{_HOST})*(/[^@?\s]*)?(\?[^@\s]*)?", re.IGNORECASE
)


def is_postgresql(uri: str, key: str) -> bool:
    """Return whether a URI is of PostgreSQL, else of SQLite. Raises ConfigError for any other; `key` is set to it."""
    scheme = uri.partition(":")[0].split("+")[0]
    if "://" in uri and scheme in ("postgresql", "postgres", "sqlite"):
        return scheme != "sqlite"
    shown = f"a database of kind {scheme!r} is not known" if "://" in uri else "not the URI of a database"
    raise ConfigError(f"{key}: {shown}; give postgresql://user@host:5432/database or sqlite:///file.db")


def connect_postgresql(uri: str, key: str, failure: type[GatecastError], limit: float | None = None) -> TimedConnection:
    """Return a connection whose calls may take `limit` seconds, as long as there is a server that answers.

    Raises ConfigError for a URI that is not understood, `failure` if there is no answer.
    """
    try:
        import adbc_driver_manager
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise ConfigError(f"{key}: PostgreSQL needs: pip install 'gatecast[sql]'") from None
    if not _POSTGRES_URI.fullmatch(uri):
        raise ConfigError(
            f"{key}: not of the form postgresql://user:password@host:5432/database; in a user or password, / @ : ? # "
            "and spaces are written %2F %40 %3A %3F %23 %20 (or set PGPASSWORD)"
        )
    deadline = Deadline(without_password(uri), lambda: dbapi.connect(_libpq_uri(uri)).close(), limit)
    try:
        return TimedConnection(deadline.run("connect", dbapi.connect, _libpq_uri(uri)), deadline)
    except (adbc_driver_manager.Error, TimeoutError) as error:
        raise failure(f"{key}={without_password(uri)}: {postgres_message(error, secrets_of(uri))}") from None


def _libpq_uri(uri: str) -> str:
    """Return the URI as libpq takes it: without the driver of SQLAlchemy, and with a limit on the time to connect."""
    uri = re.sub(r"^postgres(ql)?(\+\w+)?:", "postgresql:", uri)
    if "connect_timeout=" in uri or "PGCONNECT_TIMEOUT" in os.environ:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}connect_timeout={_CONNECT_SECONDS}"


def postgres_message(error: Exception, secrets: list[str]) -> str:
    """Return what the server, or its client library, says: in a line, and without the password."""
    text = re.split(r"\s*Query was: |\.? SQLSTATE: ", str(error))[0]
    text = re.sub(r"^([A-Z_]+: |\[libpq\] |Failed to [\w ]+: |Execution error \[\w+\]: )*", "", text)
    text = re.sub(r"^.*\b(FATAL|ERROR):\s+", "", text, flags=re.DOTALL)
    text = text.replace("fe_sendauth: no password supplied", "no password supplied; set PGPASSWORD")
    for secret in secrets:
        text = text.replace(secret, "***")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip(" ^"))


def database_of(uri: str) -> str:
    """Return which database a URI is of, in one way of writing it and without user and password.

    >>> database_of("postgresql+psycopg://me:x@db/any"), database_of("postgres://db:5432/any?sslmode=require")
    ('postgresql://db:5432/any', 'postgresql://db:5432/any')
    """
    if not is_postgresql(uri, "output.uri"):
        return f"sqlite:///{sqlite_file(uri, 'output.uri').resolve()}"
    address = uri.partition("://")[2].partition("?")[0].rpartition("@")[2]
    host, _, name = address.partition("/")
    return f"postgresql://{host if re.search(r':[0-9]+$', host) else f'{host}:5432'}/{name}"


def secrets_of(uri: str) -> list[str]:
    """Return what must not be shown, longest first: passwords as they are written and as they are meant."""
    found = re.findall(r"://[^:@]*:(.*)@", uri)
    found += re.findall(r"(?:password|pwd|token|secret)[^=&;\s]*=([^&;\s]+)", uri, flags=re.IGNORECASE)
    found.append(os.environ.get("PGPASSWORD", ""))
    return sorted({form for secret in found for form in (secret, unquote(secret)) if form}, key=len, reverse=True)


def sqlite_file(uri: str, key: str) -> Path:
    """Return the file of a SQLite URI. Raises ConfigError for one without a file."""
    address = uri.partition("://")[2].partition("?")[0]
    file = Path(address[1:])
    if not address.startswith("/") or not file.name:
        raise ConfigError(f"{key}: a SQLite file is given as sqlite:///relative.db or sqlite:////absolute.db")
    return file


def quoted_names(names: Iterable[str]) -> list[str]:
    """Return names as SQL writes them."""
    return ['"{}"'.format(name.replace('"', '""')) for name in names]


def literal(value: datetime | str) -> str:
    """Return a text or a moment as both databases compare it: SQLite, which knows no timestamps, by its text."""
    if isinstance(value, datetime):
        return f"'{value.astimezone(UTC) if value.tzinfo else value}'"
    return "'{}'".format(value.replace("'", "''"))
