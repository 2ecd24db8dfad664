"""Which columns of a table hold the panel, where the config leaves that to us."""

from collections.abc import Collection
from typing import Final

from forecast.config import AUTO, DataConfig, load
from forecast.errors import DataError
from forecast.names import SERIES_ID, TARGET, TIMESTAMP

KNOWN_NAMES: Final = {
    SERIES_ID: (SERIES_ID, "unique_id", "item_id"),
    TIMESTAMP: (TIMESTAMP, "ds", "time"),
    TARGET: (TARGET, "y"),
}
"""What each column is called here and in other libraries: neuralforecast, gluonts and AutoGluon, darts."""


def possible(data: DataConfig, role: str) -> tuple[str, ...]:
    """Return the names that the column of a role (series_id, timestamp, target) may have: one, if it is given."""
    given: str = getattr(data.columns, role)
    return KNOWN_NAMES[role] if given == AUTO else (given,)


def recognise(names: Collection[str], data: DataConfig) -> DataConfig:
    """Return the settings with a name for each column, given those of the columns of a table.

    Our own names are taken if the table has all that are wanted, else of each role the one known name that is there.
    What is there under no known name is called as here, for the reader to miss. Raises DataError where two are there.
    """
    given = data.columns.model_dump()
    roles = [role for role in KNOWN_NAMES if given[role] == AUTO]
    if not roles:
        return data
    # In a wide table a column may be a series, whatever its name.
    wanted = [role for role in roles if role == TIMESTAMP or data.layout == "long"]
    taken = {*data.past_covariates, *data.known_covariates, *data.static_covariates, *given.values()}
    there = {role: [name for name in KNOWN_NAMES[role] if name in names and name not in taken] for role in wanted}
    ours = all(role in there[role] for role in wanted)
    unclear = {role: found for role, found in there.items() if len(found) > 1 and not ours}
    if unclear:
        raise DataError(
            "\n".join(
                f"the {role} may be in column {' or '.join(map(repr, found))}: set data.columns.{role}"
                for role, found in unclear.items()
            )
        )
    chosen = {role: role if ours or not there.get(role) else there[role][0] for role in roles}
    return load(DataConfig, data.model_dump() | {"columns": given | chosen})
