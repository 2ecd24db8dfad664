"""The table of the ledger: columns, indices and migrations."""

from typing import Any, Final

from forecast.data.sources.database import Database
from pipelines.jobs.ledger_entry import Entry, entry_of

VERSION: Final = 4
KEY: Final = "ledger.uri"
COLUMNS: Final = {
    "id": "bigint primary key",
    "flow": "text",
    "dataset": "text",
    "cutoff": "text",
    "model": "text",
    "mlflow": "text",
    "config_digest": "text",
    "schedule": "text",
    "slot": "text",
    "status": "text",
    "started": "text",
    "heartbeat": "text",
    "ended": "text",
    "seconds": "double precision",
    "host": "text",
    "pid": "bigint",
    "output": "text",
    "exit_code": "bigint",
    "error": "text",
    "config": "text",
    "given": "text default ''",
    "folder": "text",
    "process": "text default ''",
    "notice": "text default ''",
    "settings_digest": "text default ''",
}
ADDED: Final = {2: ("mlflow",), 3: ("process", "notice", "settings_digest"), 4: ("given",)}
"""Text columns added by each version of the format."""
_INDICES: Final = {"work": ("config_digest", "dataset", "cutoff", "model", "flow"), "slot": ("schedule", "slot")}
"""Key columns of jobs started by a person, and by a schedule."""
WORK: Final = (*_INDICES["work"], *_INDICES["slot"])
"""Key columns of a job."""
LATEST: Final = (
    "not exists (select 1 from gatecast_runs o where o.id > r.id and o.schedule = r.schedule and o.slot = r.slot)"
)


def create_indices(database: Database) -> None:
    """Create the missing indices."""
    for name, columns in {**_INDICES, "notice": ("schedule", "notice")}.items():
        database.execute(f"create index if not exists gatecast_runs_{name} on gatecast_runs ({', '.join(columns)})")


def is_prepared(database: Database) -> bool:
    """Return whether the ledger has the tables of this version."""
    if not database.has_table("gatecast_ledger"):
        return False
    return database.execute("select version from gatecast_ledger") == [{"version": VERSION}]


def find_sql(database: Database, where: str, values: list[Any], limit: int | None = None) -> list[Entry]:
    """Return the attempts that fulfil a condition, newest first.

    Attempts are numbered, and failures counted, in one pass over the rows with the same keys.
    """
    query = f"select * from gatecast_runs r where {where} order by id desc"
    query += "" if limit is None else f" limit {limit}"
    failed = "sum(case when status = 'failed' then 1 else 0 end)"
    ranks = []
    for label, condition, also in (("work", "slot = ''", ""), ("slot", "slot <> ''", ", settings_digest")):
        key = ", ".join(_INDICES[label])
        ranks.append(
            f"select id, row_number() over (partition by {key} order by id) as attempt, "
            f"{failed} over (partition by {key}{also} order by id) as failures "
            f"from gatecast_runs where {condition} and ({key}) in (select {key} from chosen where {condition})"
        )
    rows = database.execute(
        f"with chosen as ({query}), ranks as ({' union all '.join(ranks)}) "
        "select chosen.*, ranks.attempt, ranks.failures from chosen left join ranks on ranks.id = chosen.id "
        "order by chosen.id desc",
        values,
    )
    return [entry_of(row) for row in rows]
