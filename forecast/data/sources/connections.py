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

# libpq would show parts of the password in its messages for a URI that it splits differently: such a URI is refused.
_HOST: Final = r"([\w.%-]*|\[[\da-f:.]+\])(:\d+)?"
_POSTGRES_URI: Final = re.compile(
    rf"postgres(ql)?(\+\w+)?://([^/@:?#\s]*(:[^/@:?#\s]*)?@)?{_HOST}(,{_HOST})*(/[^@?\s]*)?(\?[^@\s]*)?", re.IGNORECASE
)


def is_postgresql(uri: str, key: str) -> bool:
    """Return whether a URI, the value of the setting `key`, is of PostgreSQL, else SQLite. Raises ConfigError."""
    scheme = uri.partition(":")[0].split("+")[0]
    if "://" in uri and scheme in ("postgresql", "postgres", "sqlite"):
        return scheme != "sqlite"
    problem = f"a database of kind {scheme!r} is not known" if "://" in uri else "not the URI of a database"
    raise ConfigError(f"{key}: {problem}; give postgresql://user@host:5432/database or sqlite:///file.db")


def connect_postgresql(uri: str, key: str, failure: type[GatecastError], limit: float | None = None) -> TimedConnection:
    """Return a connection whose calls may take `limit` seconds, as long as the server answers.

    Raises ConfigError for an invalid URI, `failure` if there is no answer.
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
    """Return the URI for libpq: without the driver of SQLAlchemy, and with a connection timeout."""
    uri = re.sub(r"^postgres(ql)?(\+\w+)?:", "postgresql:", uri)
    if "connect_timeout=" in uri or "PGCONNECT_TIMEOUT" in os.environ:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}connect_timeout={_CONNECT_SECONDS}"


def postgres_message(error: Exception, secrets: list[str]) -> str:
    """Return the message of the server, or its client library, in one line and without the password."""
    text = re.split(r"\s*Query was: |\.? SQLSTATE: ", str(error))[0]
    text = re.sub(r"^([A-Z_]+: |\[libpq\] |Failed to [\w ]+: |Execution error \[\w+\]: )*", "", text)
    text = re.sub(r"^.*\b(FATAL|ERROR):\s+", "", text, flags=re.DOTALL)
    text = text.replace("fe_sendauth: no password supplied", "no password supplied; set PGPASSWORD")
    for secret in secrets:
        text = text.replace(secret, "***")
    return "; ".join(line.strip() for line in text.splitlines() if line.strip(" ^"))


def database_of(uri: str) -> str:
    """Return the database of a URI in canonical form, without user and password.

    >>> database_of("postgresql+psycopg://me:x@db/any"), database_of("postgres://db:5432/any?sslmode=require")
    ('postgresql://db:5432/any', 'postgresql://db:5432/any')
    """
    if not is_postgresql(uri, "output.uri"):
        return f"sqlite:///{sqlite_file(uri, 'output.uri').resolve()}"
    address = uri.partition("://")[2].partition("?")[0].rpartition("@")[2]
    host, _, name = address.partition("/")
    return f"postgresql://{host if re.search(r':[0-9]+$', host) else f'{host}:5432'}/{name}"


def secrets_of(uri: str) -> list[str]:
    """Return the secrets in a URI and the environment, longest first: passwords as written and percent-decoded."""
    secrets = re.findall(r"://[^:@]*:(.*)@", uri)
    secrets += re.findall(r"(?:password|pwd|token|secret)[^=&;\s]*=([^&;\s]+)", uri, flags=re.IGNORECASE)
    secrets.append(os.environ.get("PGPASSWORD", ""))
    return sorted({variant for text in secrets for variant in (text, unquote(text)) if variant}, key=len, reverse=True)


def sqlite_file(uri: str, key: str) -> Path:
    """Return the file of a SQLite URI. Raises ConfigError for one without a file."""
    address = uri.partition("://")[2].partition("?")[0]
    file = Path(address[1:])
    if not address.startswith("/") or not file.name:
        raise ConfigError(f"{key}: a SQLite file is given as sqlite:///relative.db or sqlite:////absolute.db")
    return file


def quoted_names(names: Iterable[str]) -> list[str]:
    """Return names quoted for SQL."""
    return ['"{}"'.format(name.replace('"', '""')) for name in names]


def literal(value: datetime | str) -> str:
    """Return a text or a moment as an SQL literal for both databases; SQLite compares timestamps as text."""
    if isinstance(value, datetime):
        return f"'{value.astimezone(UTC) if value.tzinfo else value}'"
    return "'{}'".format(value.replace("'", "''"))
