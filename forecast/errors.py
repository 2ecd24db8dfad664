"""The errors a user can cause, and the exit code of each.

A message says what is wrong, how many, which (up to five), and what to change. Anything else that escapes is a
defect of ours and shows a traceback with exit code 1.
"""

from collections.abc import Iterable

from forecast.redaction import printable, redacted


class GatecastError(Exception):
    """Base of every error that is the user's to mend. Its text has no secrets, and nothing that controls a terminal."""

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(
            *(printable(redacted(each), lines=True) if isinstance(each, str) else each for each in arguments)
        )


class ConfigError(GatecastError):
    """A setting is unknown, missing, out of range, or contradicts another."""

    exit_code = 2


class DataError(GatecastError):
    """The input table can't be used, or too much of it was rejected."""

    exit_code = 3


class ArtifactError(GatecastError):
    """A model folder is damaged, incompatible or of an unknown format."""

    exit_code = 4


class RegistryError(GatecastError):
    """The tracking server or registry does not answer, or lacks what was asked for."""

    exit_code = 4


class GateRefused(GatecastError):
    """A promotion was refused: the challenger did not earn it."""

    exit_code = 5


class OutputError(GatecastError):
    """The output could not be written."""

    exit_code = 6


class LedgerError(GatecastError):
    """The run ledger does not answer, or says that the same job is under way."""

    exit_code = 7


class ThresholdBreached(GatecastError):
    """What is monitored is beyond a threshold."""

    exit_code = 8


class RolledBack(GatecastError):
    """The champion was worse than its shadow, and was rolled back."""

    exit_code = 9


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Return the first `limit` items as text in one line, with a count of the others.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = [printable(str(item)) for item in items]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
