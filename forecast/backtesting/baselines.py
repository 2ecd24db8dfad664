"""Statistical baselines of backtests: models of each series alone, by statsforecast (gatecast[baselines])."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError
from forecast.names import AUTO_ETS, THETA

Array = npt.NDArray[np.float64]

FITTED = {AUTO_ETS: "AutoETS", THETA: "DynamicOptimizedTheta"}
"""Baselines that are fitted to each series at each cutoff, and the models of statsforecast that they are.

AutoETS: exponential smoothing, the states chosen by AICc (Hyndman, Koehler, Snyder & Grose 2002, IJF 18).
DynamicOptimizedTheta: Fiorucci, Pellegrini, Louzada, Petropoulos & Koehler 2016, IJF 32.
"""

_CHUNK = 8
"""Series that a process takes at a time."""


def check(baselines: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """Return those of the baselines that are fitted.

    Raises ConfigError if statsforecast is not there, or the target is one of classes.
    """
    fitted = [name for name in baselines if name in FITTED]
    if fitted and classes is not None:
        raise ConfigError(f"backtest.baselines: {', '.join(fitted)} forecast numbers, and the target is one of classes")
    if fitted and find_spec("statsforecast") is None:
        raise ConfigError(f"backtest.baselines: {', '.join(fitted)} need: pip install 'gatecast[baselines]'")
    return fitted


@contextmanager
def processes(n_jobs: int) -> Iterator[Executor | None]:
    """Yield a pool of so many fresh processes; None for one: this process does the work itself."""
    if n_jobs == 1:
        yield None
        return
    # Not a fork: torch and Polars have threads here.
    with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
        yield pool


def fitted_forecasts(
    name: str,
    panel: Panel,
    windows: WindowIndex,
    *,
    horizon: int,
    season: int,
    levels: Sequence[float],
    history: int,
    pool: Executor | None = None,
) -> tuple[Array, list[str]]:
    """Return quantiles of a baseline, [n, horizon, level], and why each window has none (NaN then), "" where it has.

    Each is fitted to the latest `history` steps up to the cutoff, from the first value among them on. Missing steps are
    interpolated, those at the end are the last value. A quantile of level q is a bound of the central interval of
    level |2 q - 1|, the median is the point forecast; where simulated bounds cross it, they are put in order
    (Chernozhukov, Fernandez-Val & Galichon 2010, Econometrica 78).
    """
    fit = partial(fitted, name, horizon=horizon, season=season, levels=tuple(levels))
    histories = _histories(panel, windows, history)
    made = pool.map(fit, histories, chunksize=_CHUNK) if pool else map(fit, histories)
    quantiles, reasons = np.full((len(windows), horizon, len(levels)), np.nan), [""] * len(windows)
    for row, found in enumerate(made):
        if isinstance(found, str):
            reasons[row] = found
        else:
            quantiles[row] = found
    return quantiles, reasons


def _histories(panel: Panel, windows: WindowIndex, history: int) -> Iterator[Array]:
    """Yield the latest steps of each window without gaps; empty where it holds no value."""
    for series, cutoff in zip(windows.series.tolist(), windows.cutoff.tolist(), strict=True):
        begin, end = int(panel.offsets[series]), int(panel.offsets[series + 1])
        first = max(cutoff + 1 - history, 0)
        seen = panel.target[begin + first : min(begin + cutoff + 1, end)].astype(np.float64)
        there = np.flatnonzero(np.isfinite(seen))
        at = np.arange(there[0] if len(there) else cutoff + 1 - first, cutoff + 1 - first)
        yield np.interp(at, there, seen[there]) if len(there) else np.zeros(0)


def fitted(name: str, history: Array, *, horizon: int, season: int, levels: Sequence[float]) -> Array | str:
    """Return the quantiles of one series, [horizon, level], or why there are none."""
    from statsforecast import models

    if not len(history):
        return "no value in the steps that it is fitted to"
    central = {level: round(100 * abs(2 * level - 1), 6) for level in levels if level != 0.5}
    try:
        # Whatever stops it on one series must not stop the others.
        made = getattr(models, FITTED[name])(season_length=season).forecast(
            y=history, h=horizon, level=sorted(set(central.values()))
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    columns = [
        made["mean"] if level == 0.5 else made[f"{'lo' if level < 0.5 else 'hi'}-{central[level]}"] for level in levels
    ]
    quantiles: Array = np.sort(np.stack(columns, axis=-1), axis=-1)
    return quantiles if np.isfinite(quantiles).all() else "its forecast is not finite"
