"""MLflow's database in a SQLite file, and its artifact folders: checks, transactions and copies."""

import os
import re
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

REVISIONS: Final = ("dc11669786a5",)
"""Alembic revisions of MLflow's tables (MLflow 3.17) whose rows are known here."""
_TABLES: Final = (
    *("runs", "tags", "params", "metrics", "latest_metrics", "datasets", "inputs", "input_tags", "experiments"),
    *("registered_models", "registered_model_tags", "registered_model_aliases", "model_versions"),
    *("model_version_tags", "alembic_version"),
)
_VARIABLES: Final = ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID")
"""Variables of MLflow with an effect on the rows that it writes."""
_BUSY_SECONDS: Final = 20.0
"""Longest wait for a lock of the database, as MLflow's."""


def local_file(uri: str) -> Path | None:
    """Return the SQLite file of a store if its tables are of a known revision, and MLflow has completed them."""
    if not re.fullmatch(r"sqlite:///[^?#%]+", uri) or any(map(os.environ.get, _VARIABLES)):
        return None
    file = Path(uri.removeprefix("sqlite:///"))
    if str(file).startswith((":memory:", "file:")) or not file.is_file():
        return None
    try:
        with transaction(file) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            if not tables.issuperset(_TABLES):
                return None
            revisions = [revision for (revision,) in database.execute("select version_num from alembic_version")]
            workspaces = database.execute("select experiment_id, workspace from experiments").fetchall()
    except sqlite3.Error:
        return None
    is_complete = 0 in dict(workspaces) and {name for _, name in workspaces} <= {"default"}
    return file.resolve() if is_complete and len(revisions) == 1 and revisions[0] in REVISIONS else None


@contextmanager
def transaction(file: Path, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
    """Yield a transaction."""
    database = sqlite3.connect(file, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        database.execute("pragma foreign_keys = on")
        database.execute("begin immediate" if writes else "begin")
        yield database
        database.execute("commit")
    finally:
        database.close()


def insert_input(database: sqlite3.Connection, kind: str, source: str, target_kind: str, target: str) -> str:
    """Record an input. Raises IntegrityError if it is recorded already."""
    number = uuid.uuid4().hex
    row = {"input_uuid": number, "source_type": kind, "source_id": source}
    insert_row(database, "inputs", {**row, "destination_type": target_kind, "destination_id": target, "step": 0})
    return number


def insert_row(database: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    """Insert a row, given by column."""
    marks = ", ".join("?" * len(row))
    database.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", list(row.values()))


def local_folder(uri: str) -> Path | None:
    """Return the folder of a local artifact URI."""
    parts = urlsplit(uri)
    is_local = parts.scheme == "file" and not parts.netloc and not parts.query and not parts.fragment
    return Path(unquote(parts.path)) if is_local else None


def copy_file(path: Path, folder: Path) -> None:
    """Copy a file into a folder; it appears there complete."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as temporary:
        pass
    try:
        shutil.copyfile(path, temporary.name)
        shutil.copystat(path, temporary.name)
        Path(temporary.name).replace(folder / path.name)
    except BaseException:
        Path(temporary.name).unlink(missing_ok=True)
        raise
