"""Gatecast: recurrent forecasting for every series you own.

    import forecast as fc

    base = fc.train(table, horizon=168, data={"freq": "1h"}).artifact
    tuned = fc.finetune(base, table).artifact
    print(fc.backtest(tuned, table).summary)
    result = fc.forecast(tuned, table)        # result.frame, result.rejects

Tables are Polars, pandas or Arrow frames, or paths, with the columns series_id, timestamp and target, or
unique_id, ds and y.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecast.api import (
        aggregate,
        attention,
        backtest,
        calibrate,
        distil,
        explain,
        finetune,
        forecast,
        load,
        monitor,
        prepare,
        pretrained,
        read_scores,
        reconcile,
        sample_paths,
        train,
        tune,
        write_plan,
    )

__all__ = [
    "aggregate",
    "attention",
    "backtest",
    "calibrate",
    "compare",
    "distil",
    "explain",
    "finetune",
    "forecast",
    "load",
    "monitor",
    "prepare",
    "pretrained",
    "read_scores",
    "reconcile",
    "sample_paths",
    "train",
    "tune",
    "write_plan",
]


def __getattr__(name: str) -> Any:
    # Importing the package must stay cheap: torch comes with the first use of a function.
    if name in __all__:
        from forecast import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
