"""The errors that a user can cause, and the exit code of each.

A message says what is wrong, how many, which (up to five), and what to change. Any other exception is an internal error
(a bug) and shows a traceback with exit code 1.
"""

from collections.abc import Iterable

from forecast.redaction import printable, redacted


class GatecastError(Exception):
    """Base of all errors that a user can fix. Secrets and control characters are removed from the text."""

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(
            *(
                printable(redacted(argument), lines=True) if isinstance(argument, str) else argument
                for argument in arguments
            )
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
    """The tracking server or registry does not answer, or lacks what was requested."""

    exit_code = 4


class EngineError(GatecastError):
    """A cluster or another process of a training does not answer, or tasks failed on all attempts."""

    exit_code = 10


class GateRefused(GatecastError):
    """A promotion was refused: the challenger did not pass the gate."""

    exit_code = 5


class OutputError(GatecastError):
    """The output could not be written."""

    exit_code = 6


class LedgerError(GatecastError):
    """The run ledger does not answer, or the same job is already running."""

    exit_code = 7


class ThresholdBreached(GatecastError):
    """A monitored metric is beyond its threshold."""

    exit_code = 8


class RolledBack(GatecastError):
    """The champion was worse than its shadow, and was rolled back."""

    exit_code = 9


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Return the first `limit` items as one line of text, with the number of omitted items.

    >>> listing(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    names = [printable(str(item)) for item in items]
    n_more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {n_more:,} more" if n_more > 0 else "")
