"""The `forecast` command: a table of verbs, and how errors end.

Nothing heavy is imported here or at the top of a verb's module: `--help` has to be instant.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Final

from forecast.errors import ConfigError, GatecastError
from forecast.redaction import shown

# verb: (module:function, what it does); the function takes the arguments after the verb.
VERBS: Final = {
    "train": ("pipelines.train:main", "train a model on a panel and register it"),
    "pretrain": ("pipelines.pretrain:main", "train a network for any series on synthetic ones"),
    "tune": ("pipelines.tune:main", "search for the settings of a training"),
    "finetune": ("pipelines.finetune:main", "fine-tune a registered model for each series"),
    "backtest": ("pipelines.backtest:main", "judge a registered model on past cutoffs"),
    "calibrate": ("pipelines.calibrate:main", "shift a model's quantiles until they cover what they say"),
    "distil": ("pipelines.distil:main", "train a small model on the forecasts of a large one"),
    "explain": ("pipelines.explain:main", "say what a forecast is made of"),
    "promote": ("pipelines.promote:main", "make the challenger the champion, if it earned it"),
    "refresh": ("pipelines.refresh:main", "fine-tune, backtest and promote in one go"),
    "score": ("pipelines.score:main", "write the forecasts of a registered model"),
    "scores": ("pipelines.scores:main", "list or show what was scored, and where it comes from"),
    "reconcile": ("pipelines.reconcile:main", "make the forecasts of series and of their sums add up"),
    "monitor": ("pipelines.monitor:main", "judge the forecasts by what came since, and roll back what is worse"),
    "report": ("pipelines.report:main", "put a version, a run or forecasts into a page that works offline"),
    "schedule": ("pipelines.schedule:main", "run verbs when they are due, and catch up what was missed"),
    "runs": ("pipelines.runs:main", "list, show or retry what ran"),
    "models": ("pipelines.models:main", "list, show, compare, export, roll back or delete registered models"),
    "server": ("pipelines.server:main", "run MLflow's server on PostgreSQL, for a team"),
    "ui": ("pipelines.ui:main", "open the web page of runs and models"),
    "data": ("pipelines.data:main", "write an example panel"),
    "replay": ("pipelines.replay:main", "replay weeks of nightly work, and what goes wrong in them"),
    "demo": ("pipelines.demo:main", "run all of it on an example panel"),
}

INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code: that of the error (`forecast.errors`), 130 on an interrupt."""
    # Threads that wait by spinning slow each other down many times where the cores are shared. Read when torch is
    # imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.excepthook = _print_traceback
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if verb in ("-h", "--help", "help"):
            print(_help())
        elif verb == "--version":
            print(f"gatecast {version('gatecast')}")
        else:
            _function(verb)(rest)
    except GatecastError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a defect of ours without secrets."""
    print(shown("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _function(verb: str) -> Callable[[list[str]], None]:
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(VERBS)}"
        raise ConfigError(f"unknown verb {verb!r}; {hint}")
    module, function = VERBS[verb][0].split(":")
    found: Callable[[list[str]], None] = getattr(importlib.import_module(module), function)
    return found


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {about}" for verb, (_, about) in VERBS.items())
    return f"""usage: forecast VERB [KEY=VALUE ...] [--cfg job] [--help]

{verbs}

`forecast VERB --help` lists the settings of a verb.
Exit codes: 0 done, 2 config, 3 data, 4 model or registry, 5 promotion refused, 6 output, 7 run ledger,
8 a threshold of the monitor breached, 9 champion rolled back, 1 a defect of ours."""


if __name__ == "__main__":
    sys.exit(main())
