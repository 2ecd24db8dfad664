"""`make bench`: every measurement in turn, or those named: `python -m benchmarks step data`."""

import importlib
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NAMES = ("data", "step", "m4_hourly")

for name in sys.argv[1:] or NAMES:
    if name not in NAMES:
        sys.exit(f"no benchmark {name}; there are: {', '.join(NAMES)}")
    print(f"== {name}")
    importlib.import_module(f"benchmarks.{name}").main()
