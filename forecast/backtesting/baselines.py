"""Statistical baselines of backtests: local models, one per series, by statsforecast (gatecast[baselines])."""

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
"""Baselines that are fitted to each series at each cutoff, with their class names in statsforecast.

AutoETS: exponential smoothing, the states chosen by AICc (Hyndman, Koehler, Snyder & Grose 2002, IJF 18).
DynamicOptimizedTheta: Fiorucci, Pellegrini, Louzada, Petropoulos & Koehler 2016, IJF 32.
"""

_CHUNK = 8
"""Series per task of a process."""


def check_baselines(baselines: Sequence[str], classes: Sequence[str] | None) -> list[str]:
    """Return the baselines that are fitted to each series.

    Raises ConfigError if there are any and statsforecast is not installed, or the target is one of classes.
    """
    fitted = [name for name in baselines if name in FITTED]
    if fitted and classes is not None:
        raise ConfigError(f"backtest.baselines: {', '.join(fitted)} forecast numbers, and the target is one of classes")
    if fitted and find_spec("statsforecast") is None:
        raise ConfigError(f"backtest.baselines: {', '.join(fitted)} need: pip install 'gatecast[baselines]'")
    return fitted


@contextmanager
def processes(n_jobs: int) -> Iterator[Executor | None]:
    """Yield a pool of `n_jobs` spawned processes; None for one job, which runs in this process."""
    if n_jobs == 1:
        yield None
        return
    # Forking is not safe: torch and Polars run threads in this process.
    with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
        yield pool


def forecast_baseline(
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
    """Return quantiles of a baseline, [n, horizon, level], and per window the reason for having none (then NaN), or "".

    The model is fitted to the latest `history` steps up to the cutoff, from the first observed value among them.
    Missing steps are interpolated; missing steps at the end repeat the last value. The quantile of level q is a bound
    of the central interval of level |2 q - 1|, the median is the point forecast; crossing quantiles are sorted
    (Chernozhukov, Fernandez-Val & Galichon 2010, Econometrica 78).
    """
    fit = partial(fit_and_forecast, name, horizon=horizon, season=season, levels=tuple(levels))
    histories = _histories(panel, windows, history)
    results = pool.map(fit, histories, chunksize=_CHUNK) if pool else map(fit, histories)
    quantiles, reasons = np.full((len(windows), horizon, len(levels)), np.nan), [""] * len(windows)
    for row, result in enumerate(results):
        if isinstance(result, str):
            reasons[row] = result
        else:
            quantiles[row] = result
    return quantiles, reasons


def _histories(panel: Panel, windows: WindowIndex, history: int) -> Iterator[Array]:
    """Yield the latest steps of each window with gaps interpolated; empty if no value is observed."""
    for series, cutoff in zip(windows.series.tolist(), windows.cutoff.tolist(), strict=True):
        begin, end = int(panel.offsets[series]), int(panel.offsets[series + 1])
        first = max(cutoff + 1 - history, 0)
        values = panel.target[begin + first : min(begin + cutoff + 1, end)].astype(np.float64)
        observed = np.flatnonzero(np.isfinite(values))
        steps = np.arange(observed[0] if len(observed) else cutoff + 1 - first, cutoff + 1 - first)
        yield np.interp(steps, observed, values[observed]) if len(observed) else np.zeros(0)


def fit_and_forecast(name: str, history: Array, *, horizon: int, season: int, levels: Sequence[float]) -> Array | str:
    """Return the quantiles of one series, [horizon, level], or the reason for having none."""
    from statsforecast import models

    if not len(history):
        return "no value in the steps that it is fitted to"
    central = {level: round(100 * abs(2 * level - 1), 6) for level in levels if level != 0.5}
    try:
        # A failure on one series must not stop the others.
        forecast = getattr(models, FITTED[name])(season_length=season).forecast(
            y=history, h=horizon, level=sorted(set(central.values()))
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    columns = [
        forecast["mean"] if level == 0.5 else forecast[f"{'lo' if level < 0.5 else 'hi'}-{central[level]}"]
        for level in levels
    ]
    quantiles: Array = np.sort(np.stack(columns, axis=-1), axis=-1)
    return quantiles if np.isfinite(quantiles).all() else "its forecast is not finite"
