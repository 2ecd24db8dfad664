"""Recognition of the columns of a panel by their names, where the config does not name them."""

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
"""Names of each column here and in other libraries: neuralforecast, gluonts and AutoGluon, darts."""


def possible_names(data: DataConfig, role: str) -> tuple[str, ...]:
    """Return the possible names of the column of a role (series_id, timestamp, target): one, if the config names it."""
    name: str = getattr(data.columns, role)
    return KNOWN_NAMES[role] if name == AUTO else (name,)


def recognise(names: Collection[str], data: DataConfig) -> DataConfig:
    """Return the settings with a name for each column, recognised among the column names of a table.

    The names of this package are used if the table has all required ones; otherwise, each role gets the one known name
    in the table, or the name of this package if there is none (the reader then reports a missing column). Raises
    DataError if a role has two candidates.
    """
    configured = data.columns.model_dump()
    roles = [role for role in KNOWN_NAMES if configured[role] == AUTO]
    if not roles:
        return data
    # In a wide table a column may be a series, whatever its name.
    required = [role for role in roles if role == TIMESTAMP or data.layout == "long"]
    covariates = {*data.past_covariates, *data.side_columns("known"), *data.side_columns("static")}
    assigned = {*covariates, *configured.values()}
    candidates = {
        role: [name for name in KNOWN_NAMES[role] if name in names and name not in assigned] for role in required
    }
    has_standard_names = all(role in candidates[role] for role in required)
    unclear = {role: matches for role, matches in candidates.items() if len(matches) > 1 and not has_standard_names}
    if unclear:
        raise DataError(
            "\n".join(
                f"the {role} may be in column {' or '.join(map(repr, matches))}: set data.columns.{role}"
                for role, matches in unclear.items()
            )
        )
    recognised = {
        role: role if has_standard_names or not candidates.get(role) else candidates[role][0] for role in roles
    }
    return load(DataConfig, data.model_dump() | {"columns": configured | recognised})
