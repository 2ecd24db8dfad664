"""`make bench`: every measurement in turn, or those named: `python -m benchmarks step data`.

At the end come the ratios that are more than a tenth above those of ratios.json, if any, with exit code 1. With
`--record` before the names, the ratios of this run are written there.

`make bench-accuracy` and `make bench-race` are `python -m benchmarks accuracy` and `race`, which take
arguments, and long; so do `finetune`, `calibrate`, `small_panels`, `pretrained`, `covariates`,
`new_series`, `anomalies`, `stock_outs`, `horizons`, `cold`, `what_if`, `weights`, `gpu` and `memory`.
"""

import importlib
import os
import sys
from itertools import takewhile

from benchmarks import ratios

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NAMES = (
    *("data", "step", "score", "backtest", "synthetic"),
    *("accuracy", "race", "finetune", "calibrate", "small_panels", "pretrained", "covariates", "new_series"),
    *("anomalies", "stock_outs", "horizons", "cold", "what_if", "weights", "gpu", "memory", "start"),
)
TAKE_ARGUMENTS = NAMES[5:]

record = sys.argv[1:2] == ["--record"]
arguments = sys.argv[2:] if record else sys.argv[1:]
names = list(takewhile(NAMES.__contains__, arguments)) or (list(NAMES[:5]) if not arguments else [])
given = arguments[len(names) :]
if given and names[-1:] not in [[name] for name in TAKE_ARGUMENTS]:
    sys.exit(f"no benchmark {given[0]}; there are: {', '.join(NAMES)}")
for name in names:
    print(f"== {name}")
    importlib.import_module(f"benchmarks.{name}").main(*(given if name in TAKE_ARGUMENTS else ()))
sys.exit(0 if ratios.report(record=record) else 1)
