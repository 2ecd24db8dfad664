"""The `forecast` command: it runs a verb, and translates errors into exit codes.

Neither this module nor the top of a verb's module imports heavy packages: `--help` must be instant.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

from forecast.environment import gatecast_version, is_score_only
from forecast.errors import ConfigError, GatecastError
from forecast.imports import without_collection
from forecast.redaction import shown
from pipelines.verbs import VERBS

INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code: that of the error (`forecast.errors`), 130 on an interrupt."""
    # Spinning threads slow each other down many times on shared cores. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.excepthook = _print_traceback
    verb, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if verb in ("-h", "--help", "help"):
            print(_help())
        elif verb == "--version":
            print(f"gatecast {gatecast_version()}")
        else:
            function_of(verb)(arguments)
    except GatecastError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if not is_score_only():
            raise
        print(
            "error: this is gatecast-score, which only scores bundles (forecast score bundle=PATH), and this needs "
            f"{error.name}, too: pip install {error.name}; or install the whole product instead: pip uninstall "
            "gatecast-score && pip install gatecast",
            file=sys.stderr,
        )
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an internal error without secrets."""
    print(shown("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def function_of(verb: str) -> Callable[[list[str]], None]:
    """Return the function of a verb, which takes the arguments after it. Raises ConfigError for an unknown verb."""
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(VERBS)}"
        raise ConfigError(f"unknown verb {verb!r}; {hint}")
    module, function = VERBS[verb].function.split(":")
    with without_collection():
        function_object: Callable[[list[str]], None] = getattr(importlib.import_module(module), function)
    return function_object


def _help() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.about}" for name, verb in VERBS.items())
    return f"""usage: forecast VERB [KEY=VALUE ...] [--cfg job] [--help]

{verbs}

`forecast VERB --help` lists the settings of a verb.
Exit codes: 0 success, 2 config, 3 data, 4 model or registry, 5 promotion refused, 6 output, 7 run ledger,
8 a threshold of the monitor breached, 9 champion rolled back, 10 workers failed, 1 an internal error."""


if __name__ == "__main__":
    sys.exit(main())
