"""Ratios of costs that benchmarks measure, beside the committed ones of ratios.json; lower is better.

The machines are shared, so seconds do not compare from one run to another, and ratios within a run do.
"""

import json
from pathlib import Path
from typing import Final

TOLERANCE: Final = 0.1
"""Share by which a ratio may be higher than the committed one."""
_FILE = Path(__file__).with_suffix(".json")
_measured: dict[str, float] = {}


def keep(name: str, ratio: float) -> None:
    """Keep a ratio for `report`; of several of the same name, the last."""
    _measured[name] = ratio


def report(*, record: bool = False) -> bool:
    """Print the ratios beside the committed ones, and commit them with `record`; return whether none has regressed."""
    if not _measured:
        return True
    committed: dict[str, float] = json.loads(_FILE.read_text())
    regressed = []
    print("\n== ratios, committed and now")
    for name, ratio in sorted(_measured.items()):
        before = committed.get(name)
        worse = before is not None and ratio > (1 + TOLERANCE) * before
        regressed += [name] if worse else []
        change = "new" if before is None else f"{before:.3f}"
        print(f"{name:60} {change:>7} {ratio:7.3f}{'  REGRESSED' if worse else ''}")
    if record:
        ratios = {name: round(ratio, 3) for name, ratio in (committed | _measured).items()}
        _FILE.write_text(json.dumps(dict(sorted(ratios.items())), indent=1) + "\n")
    elif regressed:
        print(f"{len(regressed)} of {len(_measured)} ratios are more than {TOLERANCE:.0%} above the committed ones")
    return record or not regressed
