"""Rolling origins: the forecasts a version, or one made anew on the way, would have made, scored beside baselines."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import polars as pl

from forecast.artifact import Artifact
from forecast.backtesting.baselines import check, fitted_forecasts, processes
from forecast.config import BacktestSettings, FinetuneSettings
from forecast.data.files import parquet_blocks
from forecast.data.ingest.categories import with_codes
from forecast.data.panel import Panel
from forecast.data.profiling.profile import profile
from forecast.data.sources.frames import column
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError, DataError, listing
from forecast.finetuning.finetune import finetune
from forecast.metrics.scores import midpoints, score_classes, score_points, score_windows
from forecast.metrics.seasonal_naive import future_values, last_values, seasonal_naive_errors
from forecast.metrics.summaries import (
    confusion,
    coverage_by_interval,
    coverage_by_level,
    error_by_step,
    macro_f1,
    summarise,
    wins,
)
from forecast.names import (
    CLASS,
    CRPS,
    CUTOFF,
    LOG_LOSS,
    MEAN,
    MODEL,
    NAIVE,
    REASON,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    STEP,
    TARGET,
    TIMESTAMP,
)
from forecast.prediction.naive import mean_of_naive, naive_forecasts, within_support
from forecast.prediction.one_pass import BATCH_SIZE
from forecast.prediction.postprocess import stated_columns
from forecast.prediction.predict import predict
from forecast.scoring.state import check_model
from forecast.training.fit import fit

# Windows that are forecast, scored and written together, about.
_BLOCK = 16 * BATCH_SIZE
# Equal shares of a distribution whose midpoints the CRPS is taken over.
_POINTS = 100
_N_WINDOWS = 4

BACKTEST_RUN = "backtest_run"
"""Tag of a version: the run that holds its latest backtest."""

SCORES: Final = "scores"
FORECASTS: Final = "forecasts"

SEGMENTS: Final = ("length", "volume", "intermittency")
"""What series are grouped by, besides their static covariates; all as they are at the first cutoff.

length and volume are thirds of the series, by their steps and by the mean of |y|; intermittency is `demand` of
`profile`, the classes of Syntetos, Boylan & Croston (2005).
"""
_THIRDS: Final = ("low", "middle", "high")

Progress = Callable[[float, str], None]
"""Told the share of the work done, and a few words."""


class Contender(NamedTuple):
    """A model, and the panel as it reads it."""

    artifact: Artifact
    panel: Panel


@dataclass(frozen=True, repr=False)
class BacktestResult:
    """Scores and forecasts of all models on the same windows: the large tables in files, the others here."""

    folder: Path
    """Holds scores.parquet and forecasts.parquet."""
    summary: pl.DataFrame
    """One row per model (`metrics.summarise`)."""
    steps: pl.DataFrame
    """model, step, and the scores at each step of the horizon (`metrics.error_by_step`)."""
    levels: pl.DataFrame
    """model, level, and the coverage of each quantile (`metrics.coverage_by_level`)."""
    intervals: pl.DataFrame
    """model, level, coverage and width of each central interval (`metrics.coverage_by_interval`)."""
    segments: pl.DataFrame
    """segment, value, model, and the columns of `summary`, for each of `backtest.segments`."""
    wins: pl.DataFrame
    """model, baseline, and on what share of the series the model is better (`metrics.wins`)."""
    failures: pl.DataFrame
    """series_id, cutoff, model, reason: baselines that could not be fitted, and have no row for this window."""
    skipped: pl.DataFrame
    """series_id, reason: series without a scored window."""
    confusion: pl.DataFrame | None = None
    """model, target, class, n: how often each class was the most probable one where another came."""
    temporary: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)
    """The folder, if it goes with this object."""

    def __repr__(self) -> str:
        metric = "mase" if "mase" in self.summary.columns else self.summary.columns[-1]
        parts = [
            f"{model} {value:.4g}" for model, value in self.summary.select("model", metric).drop_nulls().iter_rows()
        ]
        return f"BacktestResult({metric}: {', '.join(parts)}; {self.skipped.height:,} series skipped)"

    def scan(self, table: Literal["scores", "forecasts"]) -> pl.LazyFrame:
        """Return one of the large tables as it lies in its file."""
        return pl.scan_parquet(self.folder / f"{table}.parquet", glob=False, hive_partitioning=False)

    @property
    def cutoffs(self) -> pl.Series:
        """Read the cutoffs of the windows, oldest first."""
        return self.scan(SCORES).select(pl.col(CUTOFF).unique().sort()).collect(engine="streaming")[CUTOFF]

    @property
    def scores(self) -> pl.DataFrame:
        """Read series_id, cutoff, model, and the columns of `metrics.score_windows` or of `metrics.score_classes`.

        Heads of targets of 0 and more have crps (`metrics.score_points`).
        """
        return self.scan(SCORES).collect()

    @property
    def forecasts(self) -> pl.DataFrame:
        """Read series_id, timestamp, cutoff, step, model, target, mean, and one column per quantile.

        Of classes class, the most probable one, and one column per class in place of mean and quantiles.
        """
        return self.scan(FORECASTS).collect()

    def tables(self) -> dict[str, pl.DataFrame]:
        """Return the small tables by their names: all but those in files."""
        names = ("summary", "steps", "levels", "intervals", "segments", "wins", "failures", "skipped")
        found = {name: getattr(self, name) for name in names}
        return found if self.confusion is None else {**found, "confusion": self.confusion}


def rolling_cutoffs(
    panel: Panel, *, horizon: int, settings: BacktestSettings, trained_until: int | None = None
) -> list[int]:
    """Return the grid indices of the cutoffs, oldest first, all with a full horizon in the panel.

    Raises ConfigError for given ones that are not on its grid or not within it; DataError if the panel is too short, or
    a model that has seen the steps up to `trained_until` knows what lies behind one of them.
    """
    last, what = panel.last_index - horizon, "backtest.cutoffs"
    if settings.cutoffs is not None:
        cutoffs = sorted(_indices(panel, settings.cutoffs))
        outside = [cutoff for cutoff in cutoffs if not int(panel.start.min()) <= cutoff <= last]
        if outside:
            begin, end = panel.grid.timestamps(np.array([panel.start.min(), last])).to_list()
            raise ConfigError(
                f"{what}: {len(outside)} of {len(cutoffs)} have no history or no full horizon of {horizon} steps in "
                f"the panel ({_moments(panel, outside)}); give some from {begin} to {end}"
            )
    else:
        what = "backtest.n_windows"
        step, first = settings.step_size or horizon, int(panel.start.min())
        # As many as there are by default, of those that the model has not seen.
        unseen = (last - max(first, trained_until or first)) // step + 1
        count = settings.n_windows or min(_N_WINDOWS, max(unseen, 1))
        cutoffs = [last - k * step for k in reversed(range(count))]
        if cutoffs[0] < int(panel.start.min()):
            raise DataError(
                f"{count} windows {step} steps apart begin before the panel does; lower backtest.n_windows or "
                "backtest.step_size"
            )
    seen = [cutoff for cutoff in cutoffs if trained_until is not None and cutoff < trained_until]
    if seen:
        until = panel.grid.timestamps(np.array([trained_until]))[0]
        change = "lower backtest.n_windows" if settings.cutoffs is None else f"give later {what}"
        raise DataError(
            f"the model was trained on data up to {until}, and {len(seen)} of {len(cutoffs)} cutoffs lie before that "
            f"({_moments(panel, seen)}): their scores would flatter it; {change}, or train with a larger "
            "fit.holdout_windows (backtest.refit=scratch trains anew at each cutoff)"
        )
    return cutoffs


def _indices(panel: Panel, moments: Sequence[datetime]) -> list[int]:
    found = [panel.grid.floor(moment) for moment in moments]
    own = panel.grid.clock(np.array(found))
    off = [moment for moment, clock in zip(moments, own.tolist(), strict=True) if panel.grid.clock_of(moment) != clock]
    if off:
        raise ConfigError(
            f"backtest.cutoffs: {len(off)} of {len(moments)} are no timestamps of the panel, which is on {panel.grid}: "
            f"{listing(map(str, off))}"
        )
    if len(set(found)) < len(found):
        raise ConfigError("backtest.cutoffs: must not repeat")
    return found


def _moments(panel: Panel, cutoffs: Sequence[int]) -> str:
    return listing(panel.grid.timestamps(np.array(cutoffs)).to_list())


def backtest(
    contenders: dict[str, Contender],
    settings: BacktestSettings,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> BacktestResult:
    """Return the scores of models (by name; all of one horizon and frequency) beside baselines.

    Each model forecasts as it would have in scoring from the first cutoff: with the weights of its final fit, if all
    that these have seen lies before. With `refit` it is not they that are judged, but what is made from
    the first of them at the cutoffs (`pretrained`, `fine_tuned`). Windows without an observed target, or without
    history, are skipped. Forecasts and scores are written to `folder` (a temporary one when None) block by block.

    Raises ConfigError if the models can't be compared or a setting does not fit them, DataError if the panel is too
    short or was seen in training, OutputError if nothing can be written.
    """
    first, panel = next(iter(contenders.values()))
    _check_alike(contenders)
    fitted = check(settings.baselines, first.classes)
    _check_settings(contenders, settings)
    judged = [artifact.trained_until for artifact, _ in contenders.values()]
    seen = {"never": max(judged), "finetune": first.base().trained_until, "scratch": None}[settings.refit]
    cutoffs = rolling_cutoffs(panel, horizon=first.horizon, settings=settings, trained_until=seen)
    groups = _segments(first, panel, cutoffs[0], settings.segments)
    temporary = None if folder else tempfile.TemporaryDirectory(prefix="gatecast-")
    folder = folder or Path(str(temporary and temporary.name))
    scored = np.zeros(panel.n_series, dtype=bool)
    failures: list[pl.DataFrame] = []
    with (
        processes(settings.n_jobs if fitted else 1) as pool,
        parquet_blocks(folder / f"{SCORES}.parquet") as write_scores,
        parquet_blocks(folder / f"{FORECASTS}.parquet") as write_forecasts,
    ):
        done = 0
        for own, models in _rounds(contenders, settings, cutoffs):
            size = max(1, _BLOCK // len(own))
            for begin in range(0, panel.n_series, size):
                end = min(begin + size, panel.n_series)
                block = _block(models, begin, end, own, settings, fitted, pool)
                if block is not None:
                    scored[begin + block.series] = True
                    write_scores(block.scores)
                    write_forecasts(block.forecasts)
                    failures.append(block.failures)
                if progress:
                    share = (done + len(own) * end / panel.n_series) / len(cutoffs)
                    progress(share, f"{_moments(panel, own[-1:])}, {end:,} series")
            done += len(own)
        if not scored.any():
            raise DataError(
                "no series has both history and observations behind the cutoffs; check data.path and the cutoffs "
                "(backtest.n_windows, backtest.cutoffs)"
            )
    return _result(folder, temporary, groups, panel, scored, pl.concat(failures))


def _result(
    folder: Path,
    temporary: "tempfile.TemporaryDirectory[str] | None",
    groups: pl.DataFrame,
    panel: Panel,
    scored: np.ndarray,
    failures: pl.DataFrame,
) -> BacktestResult:
    """Return what follows from the files, which are read in blocks."""
    scores, forecasts = (pl.scan_parquet(folder / f"{name}.parquet", glob=False) for name in (SCORES, FORECASTS))
    summary = summarise(scores)
    found = None
    if LOG_LOSS in summary.columns:
        found = confusion(forecasts)
        summary = summary.join(macro_f1(found), on=MODEL, maintain_order="left")
        first_columns = [MODEL, LOG_LOSS, "brier", "accuracy", "macro_f1"]
        summary = summary.select(*first_columns, pl.exclude(first_columns))
    parts = [
        summarise(scores.join(groups.lazy().select(SERIES_ID, value=column(name)), on=SERIES_ID), by=["value"]).select(
            pl.lit(name).alias("segment"), pl.all()
        )
        for name in groups.columns[1:]
    ]
    absent = panel.series_id[~scored].tolist()
    skipped = {SERIES_ID: absent, REASON: ["no history or no observation at any cutoff"] * len(absent)}
    return BacktestResult(
        folder=folder,
        summary=summary,
        steps=error_by_step(forecasts),
        levels=coverage_by_level(forecasts),
        intervals=coverage_by_interval(forecasts),
        segments=pl.concat(parts) if parts else pl.DataFrame(schema={"segment": pl.String, "value": pl.String}),
        wins=wins(scores),
        failures=failures,
        skipped=pl.DataFrame(skipped, schema={SERIES_ID: pl.String, REASON: pl.String}),
        confusion=found,
        temporary=temporary,
    )


# --- what is asked for


def _check_alike(contenders: dict[str, Contender]) -> None:
    first, panel = next(iter(contenders.values()))
    for name, (artifact, other) in contenders.items():
        ours, theirs = _what_it_forecasts(artifact, other), _what_it_forecasts(first, panel)
        if ours != theirs or not np.array_equal(other.series_id, panel.series_id):
            raise ConfigError(
                f"{name} forecasts {ours}, the others {theirs}: they can't be compared; register it under another "
                "registry.name"
            )


def _what_it_forecasts(artifact: Artifact, panel: Panel) -> str:
    if artifact.classes is None:
        what = f"quantiles {', '.join(f'{level:g}' for level in artifact.model.quantile_levels)}"
    else:
        what = f"classes {', '.join(artifact.classes)}"
    return f"{what} of {artifact.horizon} steps on {panel.grid} for {panel.n_series:,} series"


def _check_settings(contenders: dict[str, Contender], settings: BacktestSettings) -> None:
    """Raise ConfigError for what does not fit the models."""
    for artifact, _ in contenders.values():
        if settings.one_pass:
            check_model(artifact, "backtest.one_pass")
        context = artifact.network.shape.context_length
        if settings.window_length is not None and settings.window_length < context + artifact.horizon:
            raise ConfigError(
                f"backtest.window_length: {settings.window_length} steps are less than the context ({context}) and the "
                f"horizon ({artifact.horizon}) of the model together; give {context + artifact.horizon} or more"
            )
    data, classes = contenders[next(iter(contenders))].artifact.data, next(iter(contenders.values())).artifact.classes
    known = (*data.static_covariates, *(SEGMENTS if classes is None else SEGMENTS[:1]))
    unknown = [name for name in settings.segments if name not in known]
    if unknown:
        raise ConfigError(f"backtest.segments: {', '.join(unknown)} unknown; there are: {', '.join(known)}")


def _segments(artifact: Artifact, panel: Panel, cutoff: int, names: Sequence[str]) -> pl.DataFrame:
    """Return series_id and the group of each series in each segment, as text."""
    columns: dict[str, Any] = {SERIES_ID: panel.series_id.tolist()}
    static = artifact.data.static_covariates
    coded = [name for name in static if name in artifact.categories]
    described = [name for name in names if name not in static]
    if described:
        found = profile(
            panel.between(int(panel.start.min()), cutoff), artifact.network.shape.season_length, artifact.classes
        )
        if artifact.classes is None:
            size = _volumes(panel.between(int(panel.start.min()), cutoff))
            found = found.with_columns(volume=size).rename({"demand": "intermittency"})
        known = pl.DataFrame(columns, schema={SERIES_ID: pl.String}).join(found, on=SERIES_ID, how="left")
    for name in names:
        if name in coded:
            values = ("not seen in training", *artifact.categories[name])
            columns[name] = [values[code] for code in panel.static_categories[:, coded.index(name)].tolist()]
        elif name in static:
            number = [other for other in static if other not in coded].index(name)
            columns[name] = _thirds(panel.static_numbers[:, number].astype(np.float64), "missing")
        elif name == "intermittency":
            columns[name] = known[name].fill_null("no demand").to_list()
        else:
            columns[name] = _thirds(known[name].cast(pl.Float64).fill_null(np.nan).to_numpy(), "no history")
    return pl.DataFrame(columns, schema_overrides=dict.fromkeys(columns, pl.String))


def _volumes(panel: Panel) -> np.ndarray:
    """Return the mean of |y| of each series, [S]."""
    there = np.isfinite(panel.target)
    sums = np.add.reduceat(np.where(there, np.abs(panel.target), 0.0).astype(np.float64), panel.offsets[:-1])
    means: np.ndarray = sums / np.add.reduceat(there, panel.offsets[:-1], dtype=np.int64)
    return means


def _thirds(values: np.ndarray, missing: str) -> list[str]:
    """Return in which third of the series each value is, with its bounds; equal values are in the same one."""
    there = np.isfinite(values)
    names = np.full(len(values), missing, dtype=object)
    found, position, count = np.unique(values[there], return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2  # The middle rank of those that are equal.
    third = (len(_THIRDS) * middle / max(there.sum(), 1)).astype(int)
    for number, name in enumerate(_THIRDS):
        inside = found[third == number]
        if len(inside):
            names[np.flatnonzero(there)[third[position] == number]] = f"{name}: {inside[0]:.6g} to {inside[-1]:.6g}"
    return [str(name) for name in names]


# --- models on the way


def _rounds(
    contenders: dict[str, Contender], settings: BacktestSettings, cutoffs: list[int]
) -> Iterator[tuple[list[int], dict[str, Contender]]]:
    """Yield cutoffs that are scored together, and the models they are scored with."""
    every = len(cutoffs) if settings.refit == "never" else settings.refit_every or 1
    for first in range(0, len(cutoffs), every):
        part, models = cutoffs[first : first + every], contenders
        if settings.refit != "never":
            models = _refitted(contenders, settings, part[0])
        models = {name: Contender(each.for_cutoff(part[0]), panel) for name, (each, panel) in models.items()}
        yield from ((own, models) for own in ([part] if settings.window_length is None else [[c] for c in part]))


def _refitted(contenders: dict[str, Contender], settings: BacktestSettings, cutoff: int) -> dict[str, Contender]:
    """Return what is made from the first contender of the data up to a cutoff; nothing behind it is read.

    What is known of the future (known covariates, calendar) is known here too.
    """
    artifact, panel = next(iter(contenders.values()))
    length = settings.window_length
    seen = panel.between(int(panel.start.min()) if length is None else cutoff - length + 1, cutoff)
    base, tuning = artifact.base().uncalibrated(), settings.finetune
    kinds = {other.bank.kind for other, _ in contenders.values() if other.bank}
    try:
        if not seen.n_series:
            raise DataError("no series has a value there")
        if settings.refit == "scratch":
            base = fit(
                seen,
                data=artifact.data,
                categories=artifact.categories,
                window=artifact.window,
                model=artifact.model,
                fit=settings.fit.model_copy(update={"holdout_windows": 0}),
            ).artifact
            seen, panel = (with_codes(part, artifact.categories, base.categories, base.data) for part in (seen, panel))
            if tuning == FinetuneSettings() and kinds:
                tuning = FinetuneSettings.model_validate({"kind": min(kinds)})
        models = {SOURCE_PRETRAINED: Contender(base, panel)}
        if settings.refit == "finetune" or kinds:
            tuned = finetune(base, seen, tuning.model_copy(update={"holdout_windows": 0})).artifact
            models[SOURCE_FINE_TUNED] = Contender(tuned, panel)
    except DataError as error:
        raise DataError(
            f"backtest.refit={settings.refit} at {_moments(panel, [cutoff])}: {error}; or begin with a later cutoff "
            "(backtest.n_windows, backtest.cutoffs)"
        ) from error
    return models


# --- forecasts and scores


class _Block(NamedTuple):
    """The windows of some neighbouring series."""

    series: np.ndarray
    """[n], counted from the first of them."""
    scores: pl.DataFrame
    forecasts: pl.DataFrame
    failures: pl.DataFrame


def _block(
    models: dict[str, Contender],
    begin: int,
    end: int,
    cutoffs: list[int],
    settings: BacktestSettings,
    fitted: list[str],
    pool: Executor | None,
) -> _Block | None:
    """Return the forecasts of series `begin` up to `end` at some cutoffs, scored; None if none can be."""
    first, whole = next(iter(models.values()))
    horizon, levels, season = first.horizon, first.model.quantile_levels, first.network.shape.season_length
    panel = whole.rows(begin, end)
    at = [windows_at(panel, cutoff) for cutoff in cutoffs]
    windows = WindowIndex(np.concatenate([part.series for part in at]), np.concatenate([part.cutoff for part in at]))
    windows = windows[windows.series.argsort(kind="stable")]
    # What is seen before the one cutoff of a sliding window.
    length = settings.window_length
    history = panel if length is None else panel.since(cutoffs[0] - length + 1)
    usable = np.isfinite(future_values(panel, windows, horizon)).any(1) & np.isfinite(last_values(history, windows))
    windows = windows[np.flatnonzero(usable)]
    if not len(windows):
        return None
    # Beside the pinball loss at a few levels: what it is over the whole distribution, where one of the models states it
    # for targets that are often 0.
    positive = [artifact for artifact, _ in models.values() if artifact.network.head.positive]
    points = _POINTS * bool(positive)
    # Baselines keep to the values that targets can have, as far as a model says which these are.
    bounded = positive[0] if positive else first
    actual = future_values(panel, windows, horizon)
    # One yardstick for all kinds of windows: errors of the whole history up to the cutoff.
    scale, root_scale = seasonal_naive_errors(panel, windows, season)
    scores, forecasts, failures = [], [], [_failures(panel, windows, NAIVE, [""] * len(windows))]

    def judge(
        name: str, stated: np.ndarray, mean: np.ndarray | None, dense: np.ndarray | None, rows: np.ndarray
    ) -> None:
        own, came = windows[rows], actual[rows]
        if first.classes is not None:
            found, mean = score_classes(came, stated[rows]), None
        else:
            mean = (stated[..., list(levels).index(0.5)] if mean is None else mean)[rows]
            found = score_windows(
                came, stated[rows], levels=levels, scale=scale[rows], root_scale=root_scale[rows], mean=mean
            )
            found |= {} if dense is None else {CRPS: score_points(came, dense[rows])}
        scores.append(_scores(panel, own, name, found))
        forecasts.append(_long(panel, own, came, name, stated[rows], mean, first))

    every = np.arange(len(windows))
    for baseline in settings.baselines:
        name: str = baseline
        if name in fitted:
            asked = sorted({*levels, *midpoints(points)})
            made, reasons = fitted_forecasts(
                name,
                history,
                windows,
                horizon=horizon,
                season=season,
                levels=asked,
                history=settings.baseline_history,
                pool=pool,
            )
            made = within_support(bounded, made)
            stated, dense = (made[..., [asked.index(q) for q in some]] for some in (levels, midpoints(points)))
            solved = np.flatnonzero([not reason for reason in reasons])
            judge(name, stated, None, dense if points else None, solved)
            failures.append(_failures(panel, windows, name, reasons))
        else:
            lag = 1 if name == NAIVE else season
            stated = naive_forecasts(bounded, history, windows, season=lag)
            points_of_naive = naive_forecasts(bounded, history, windows, season=lag, points=points) if points else None
            judge(name, stated, None, points_of_naive, every)
    for name, (artifact, other) in models.items():
        shard = other.rows(begin, end)
        stated, mean = _ladder(artifact, shard, history, windows, 0, one_pass=settings.one_pass)
        points_of_model = None
        if points:
            points_of_model, _ = _ladder(artifact, shard, history, windows, points, one_pass=settings.one_pass)
        judge(name, stated, mean, points_of_model, every)
    return _Block(windows.series, pl.concat(scores), pl.concat(forecasts), pl.concat(failures))


def _ladder(
    artifact: Artifact, panel: Panel, history: Panel, windows: WindowIndex, points: int, *, one_pass: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return forecasts as scoring makes them, and their means: where the model gives nothing, seasonal naive speaks."""
    predicted = predict(artifact, panel, windows, points=points, one_pass=one_pass)
    stated, mean = predicted.tuned.astype(np.float64), predicted.tuned_mean.copy()
    silent = np.flatnonzero(~np.isfinite(stated).all((1, 2)))
    stated[silent] = naive_forecasts(artifact, history, windows[silent], points=points)
    mean[silent] = mean_of_naive(artifact, stated[silent])
    return stated, mean


def _failures(panel: Panel, windows: WindowIndex, name: str, reasons: list[str]) -> pl.DataFrame:
    return pl.DataFrame({**_keys(panel, windows, name), REASON: pl.Series(reasons, dtype=pl.String)}).filter(
        pl.col(REASON) != ""
    )


def _keys(panel: Panel, windows: WindowIndex, name: str) -> dict[str, pl.Series]:
    return {
        SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String),
        CUTOFF: panel.grid.timestamps(panel.start[windows.series] + windows.cutoff),
        MODEL: pl.repeat(name, len(windows), dtype=pl.String, eager=True),
    }


def _scores(panel: Panel, windows: WindowIndex, name: str, scored: dict[str, np.ndarray]) -> pl.DataFrame:
    return pl.DataFrame({**_keys(panel, windows, name), **scored})


def _long(
    panel: Panel,
    windows: WindowIndex,
    actual: np.ndarray,
    name: str,
    stated: np.ndarray,
    mean: np.ndarray | None,
    artifact: Artifact,
) -> pl.DataFrame:
    n, horizon = actual.shape
    target = pl.Series(actual.ravel()).fill_nan(None)
    centre = {} if mean is None else {MEAN: pl.Series(mean.ravel())}
    if artifact.classes is not None:
        names = pl.Series(artifact.classes, dtype=pl.String)
        target = names.gather(target.cast(pl.Int64))
        centre = {CLASS: names.gather(stated.argmax(-1).ravel())}
    at = (panel.start[windows.series] + windows.cutoff)[:, None] + np.arange(horizon + 1)
    each = np.repeat(np.arange(n), horizon)
    return pl.DataFrame(
        {
            SERIES_ID: pl.Series(panel.series_id[windows.series].tolist(), dtype=pl.String).gather(each),
            TIMESTAMP: panel.grid.timestamps(at[:, 1:].ravel()),
            CUTOFF: panel.grid.timestamps(at[:, 0]).gather(each),
            STEP: np.tile(np.arange(1, horizon + 1, dtype=np.int32), n),
            MODEL: pl.repeat(name, n * horizon, dtype=pl.String, eager=True),
            TARGET: target,
            **centre,
            **{column: stated[..., k].ravel() for k, column in enumerate(stated_columns(artifact))},
        }
    )
