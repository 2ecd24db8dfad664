"""`make bench`: every measurement in turn, or those named: `python -m benchmarks step data`.

`make bench-accuracy` and `make bench-race` are `python -m benchmarks accuracy` and `race`, which take
arguments, and long; so do `finetune`, `calibrate`, `small_panels`, `pretrained`, `covariates`,
`new_series`, `anomalies`, `stock_outs`, `horizons`, `cold`, `what_if`, `weights` and `gpu`.
"""

import importlib
import os
import sys
from itertools import takewhile

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NAMES = (
    *("data", "step", "score", "backtest", "synthetic"),
    *("accuracy", "race", "finetune", "calibrate", "small_panels", "pretrained", "covariates", "new_series"),
    *("anomalies", "stock_outs", "horizons", "cold", "what_if", "weights", "gpu"),
)
TAKE_ARGUMENTS = NAMES[5:]

names = list(takewhile(NAMES.__contains__, sys.argv[1:])) or (list(NAMES[:5]) if not sys.argv[1:] else [])
given = sys.argv[1 + len(names) :]
if given and names[-1:] not in [[name] for name in TAKE_ARGUMENTS]:
    sys.exit(f"no benchmark {given[0]}; there are: {', '.join(NAMES)}")
for name in names:
    print(f"== {name}")
    importlib.import_module(f"benchmarks.{name}").main(*(given if name in TAKE_ARGUMENTS else ()))
