"""Forecasts against what came since: accuracy by age, segment and time beside seasonal naive, and who stands out.

Of each step the forecast, the observation and what seasonal naive would have said at the same cutoff are scored; only
sums are kept, so that memory does not grow with the number of cutoffs, and any group of them is exact. Nothing after
the last step that is looked at is used: the panel is cut there.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.artifact import Artifact
from forecast.config import AlarmSettings, MonitorSettings, SinkConfig
from forecast.data.io import column
from forecast.data.load import Loaded
from forecast.data.panel import IntArray, Panel
from forecast.data.profile import profile
from forecast.data.sinks import open_sink
from forecast.data.windows import WindowIndex
from forecast.drift import Span, cycles, drift
from forecast.errors import ConfigError, DataError, listing
from forecast.frequency import DAY
from forecast.metrics import MODEL, future_values, score_windows, seasonal_naive, seasonal_naive_errors
from forecast.names import (
    CHAMPION,
    CUTOFF,
    MEAN,
    OBSERVED_UNTIL,
    SERIES_ID,
    SHADOW,
    SOURCE_SEASONAL_NAIVE,
    STEP,
    TIMESTAMP,
    quantile_column,
)
from forecast.selection import static_frame
from forecast.significance import count_blocks

Array = npt.NDArray[np.floating]

FORECAST: Final = "forecast"
"""In the column `model`: what was forecast, besides SOURCE_SEASONAL_NAIVE."""
RECENT: Final = "recent"
HISTORY: Final = "history"
"""In the column `window`."""
ALARM: Final = "alarm"
NORMAL: Final = "normal"
NO_SCALE: Final = "no scale"
FEW: Final = "few observations"
NO_REFERENCE: Final = "no reference"
"""In the column `status` of alarms: the first two are judged."""
ALL: Final = "all"
AGE: Final = "age"
TIME: Final = "time"
"""In the column `group`, besides the names of segments."""

BUILT_IN: Final = ("length", "volume", "demand")
"""Segments of any panel: thirds of the series by steps and by mean size, and kinds of demand (`data.profile`)."""
_MOST_VALUES: Final = 50
_OTHERS: Final = "others"
_MAD: Final = 1.4826
"""Of a normal distribution, the standard deviation over the median absolute deviation."""
_FEW_PERIODS: Final = 4
"""Periods of a reference of which the distance that is an alarm is twice that of many: few may be calm by chance."""
_FEW_STEPS: Final = 4
"""Weeks, months or longer steps that are recent."""
_BLOCK: Final = 1 << 20
"""Steps that are scored at once."""
_SHOWN: Final = 200
"""Alarmed series whose forecasts are kept to be looked at."""


@dataclass(frozen=True)
class Check:
    """A threshold and what was found."""

    key: str
    """Of `monitor.thresholds`."""
    what: str
    found: float | None
    """None: nothing to judge, or too little."""
    limit: float

    @property
    def breached(self) -> bool:
        """Whether it is beyond its limit; what is not judged is not."""
        if self.found is None or math.isnan(self.found):
            return False
        return self.found < self.limit if self.key.startswith("min_") else self.found > self.limit

    def __str__(self) -> str:
        """Return it as people write it.

        >>> str(Check("max_mase", "MASE", 1.23456, 1))
        'MASE 1.235, monitor.thresholds.max_mase=1'
        """
        found = "not judged" if self.found is None else f"{self.found:.4g}"
        return f"{self.what} {found}, monitor.thresholds.{self.key}={self.limit:g}"


@dataclass(frozen=True)
class Monitored:
    """What was found."""

    span: Span
    as_of: datetime
    """The last step that was looked at."""
    recent: datetime
    """The first step of the recent window."""
    by: str
    """What is over time: day or cutoff."""
    counts: dict[str, int]
    """rows = rows_scored + rows_not_yet_observed + rows_missing: forecasts of the steps in both windows and later ones.
    Also cutoffs, series, series_unknown (not in the table, their due steps are missing) and rows_recent (scored)."""
    versions: dict[str, int]
    """Cutoffs by the version that made them."""
    bands: tuple[float, ...]
    """Coverage that the intervals should have, widest first."""
    scores: pl.DataFrame
    """series_id, window, age, model, and sums over steps."""
    metrics: pl.DataFrame
    """group, value, window, model, and the metrics of `summarised`."""
    alarms: pl.DataFrame
    """series_id, status, mase, reference, median, deviation, limit, periods, n_steps."""
    observed: int
    """Recent steps, by their time, that are forecast and observed, of any series."""
    least_observed: int
    """Of these, how many it takes to judge."""
    drift: pl.DataFrame
    pairs: pl.DataFrame
    """Windows that champion and shadow both forecast, as `gate.compare` takes them."""
    shown: pl.DataFrame
    """The freshest forecast of each step of alarmed series: series_id, timestamp, cutoff, quantiles."""

    def metric(self, name: str, model: str = FORECAST, window: str = RECENT) -> float | None:
        """Return a metric over all series and ages; None where nothing was scored."""
        found = self.metrics.filter(group=ALL, window=window, model=model)
        value = found[name].item() if found.height else None
        return None if value is None or math.isnan(value) else float(value)

    @property
    def coverage(self) -> str:
        """The metric of the widest interval."""
        return coverage_name(self.bands[0])

    @property
    def alarmed(self) -> list[str]:
        """Series with an alarm, the worst first."""
        return self.alarms.filter(status=ALARM)[SERIES_ID].to_list()

    @property
    def judged(self) -> int:
        """Series that are held against a reference."""
        return self.alarms.filter(pl.col("status").is_in([ALARM, NORMAL])).height


def coverage_name(band: float) -> str:
    """Return the metric of an interval.

    >>> coverage_name(0.8)
    'coverage_80'
    """
    return f"coverage_{100 * band:.6g}"


class Written:
    """Forecasts that scoring has written, by cutoff, the earliest first."""

    def __init__(self, scores: SinkConfig, group: str = "scores") -> None:
        files = sorted((Path(scores.path) / "manifests").glob(f"{CUTOFF}=*.json"))
        self.contents = sorted(map(_read, files), key=lambda content: _utc(_moment(content)))
        if not files:
            raise DataError(
                f"{group}.path={scores.path}: no forecasts (it has no manifests); give the output.path of a "
                "forecast score that is done"
            )
        self.path = scores.path
        self._sink = open_sink(scores, group)

    def rows(self, content: Mapping[str, Any], series: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield the forecasts of a cutoff by series and step, of some series or all."""
        found = 0
        for part in self._sink.forecasts(content):
            kept = part if series is None else part.filter(pl.col(SERIES_ID).is_in(list(series)))
            frame = kept.sort(SERIES_ID, STEP).collect()
            found += frame.height
            yield frame
        if series is None and found != content["rows"]["written"]:
            raise DataError(
                f"{self.path}: the cutoff {content[CUTOFF]} has {found:,} rows, its manifest says "
                f"{content['rows']['written']:,}; score it again (score.cutoff={content[CUTOFF]} score.force=true)"
            )

    def levels(self, contents: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
        """Return the quantile levels that all these cutoffs have. Raises DataError for classes."""
        common: set[str] | None = None
        for content in contents:
            part = next(iter(self._sink.forecasts(content)), None)
            if part is not None:
                names = {name for name in part.collect_schema() if name[0] == "q" and name[1:2].isdigit()}
                common = names if common is None else common & names
        if not common or quantile_column(0.5) not in common:
            raise DataError(f"{self.path}: these are forecasts of classes; forecast monitor scores numbers")
        return tuple(sorted(float(name[1:]) / 100 for name in common))


class _Cutoff(NamedTuple):
    """A cutoff of a folder, by its place on the grid."""

    place: int
    content: Mapping[str, Any]

    @property
    def horizon(self) -> int:
        return int(self.content["horizon"])

    @property
    def version(self) -> str:
        return str(self.content["model_version"])


class _Part(NamedTuple):
    """Forecasts of n series that are in the panel, and what came."""

    panel: Panel
    """A shard that has them."""
    windows: WindowIndex
    quantiles: Array
    """[n, horizon, level]"""
    actual: Array
    """[n, horizon], NaN where nothing was observed, or may be seen."""
    mean: Array | None = None
    """[n, horizon], the mean forecasts."""

    @property
    def series_id(self) -> pl.Series:
        return pl.Series(self.panel.series_id[self.windows.series].tolist(), dtype=pl.String)


def monitor(
    artifact: Artifact,
    loaded: Loaded,
    written: Written,
    shadow: Written | None,
    settings: MonitorSettings,
    *,
    backtest: pl.DataFrame | None = None,
    judged: tuple[str, str] | None = None,
) -> Monitored:
    """Return what the observations in a panel, which ends at `settings.as_of`, say about forecasts.

    `artifact` says how the panel was read. `backtest` has series_id and mase of the version that made the latest
    forecasts, a row per window.
    `judged` are the versions of champion and shadow that are compared where both have forecast. Raises DataError for
    forecasts that do not fit the panel, and if there are none that may be looked at; ConfigError for unknown segments.
    """
    panel, season = loaded.panel, loaded.data.season_length
    assert season is not None
    horizon = max(int(content["horizon"]) for content in written.contents)
    recent, end = settings.recent or _default_recent(panel, season, horizon), panel.last_index
    span = Span(end - recent - (settings.history or 4 * recent) + 1, end - recent + 1, end)
    cutoffs = _within(_seen(written, panel, settings.as_of), span, panel, written)
    others = {} if shadow is None or judged is None else {each.place: each for each in _placed(shadow, panel)}
    both = {
        each.place: others[each.place]
        for each in cutoffs
        if each.place in others and judged == (each.version, others[each.place].version)
    }
    champions = [each for each in cutoffs if each.place in both]
    reach = _reach(champions, list(both.values()), panel, span.last, settings.rollback_blocks)
    levels = written.levels([each.content for each in cutoffs])
    if shadow is not None and both:
        theirs = shadow.levels([each.content for each in both.values()])
        levels = tuple(level for level in levels if level in theirs)
    segments = _segments(artifact, loaded, settings.segments)
    ages = _ages(settings.ages, horizon)

    counts = Counter(dict.fromkeys(("rows", "rows_scored", "rows_not_yet_observed", "rows_missing", "rows_recent"), 0))
    unknown: set[str] = set()
    observed: set[int] = set()
    tables: dict[str, pl.DataFrame] = {}
    pairs = [_no_pairs(panel)]
    for cutoff in cutoffs:
        other = both.get(cutoff.place)
        for part in _parts(written, cutoff, panel, span, levels, counts, unknown):
            at = cutoff.place + 1 + np.flatnonzero(np.isfinite(part.actual).any(0))
            observed.update(at[at >= span.recent].tolist())
            steps = _steps(part, cutoff, span, levels, season, ages, settings.by)
            for name, (keys, models) in _TABLES.items():
                made = steps.filter(pl.col(MODEL).is_in(models)).group_by(keys).agg(_SUMS.sum())
                tables[name] = pl.concat([tables[name], made]) if name in tables else made
            if other is not None:
                pairs.append(_window_scores(part, levels, season, reach, CHAMPION))
        tables = {
            name: table.group_by(_TABLES[name][0], maintain_order=True).agg(_SUMS.sum())
            for name, table in tables.items()
        }
        if other is not None and shadow is not None:
            for part in _parts(shadow, other, panel, span, levels, Counter(), set()):
                pairs.append(_window_scores(part, levels, season, reach, SHADOW))
    due = counts["rows_scored"] + counts["rows_not_yet_observed"] + counts["rows_missing"]
    assert counts["rows"] == due, "a forecast was lost"
    scores = tables["scores"].sort(_TABLES["scores"][0]).with_columns(pl.col(AGE).replace_strict(dict(enumerate(ages))))
    alarms = _alarms(tables["days"], settings.alarms, backtest, recent)
    named = alarms.filter(status=ALARM)[SERIES_ID].to_list()
    return Monitored(
        span=span,
        as_of=panel.grid.timestamps(np.array([end]))[0],
        recent=panel.grid.timestamps(np.array([span.recent]))[0],
        by=settings.by,
        counts={
            "cutoffs": len(cutoffs),
            "series": tables["scores"][SERIES_ID].n_unique(),
            "series_unknown": len(unknown),
            **counts,
        },
        versions=dict(Counter(each.version for each in cutoffs)),
        bands=tuple(band for band, _, _ in _bands(levels)),
        scores=scores,
        metrics=_metrics(scores, tables[TIME], segments, list(ages)),
        alarms=alarms,
        observed=len(observed),
        least_observed=min(settings.alarms.min_steps, recent),
        drift=drift(panel, loaded.data, loaded.categories, cycles(panel, loaded.data, span)),
        pairs=pl.concat(pairs),
        shown=_freshest(written, cutoffs, named[:_SHOWN], levels, panel, span),
    )


def _default_recent(panel: Panel, season: int, horizon: int) -> int:
    """Return the steps of the recent window: a season up to a week, or a horizon if that is longer.

    Of weeks and longer steps, whose season is a year, a few steps.
    """
    frequency = panel.grid.frequency
    if frequency.base == "microsecond":
        week = max(1, 7 * DAY // frequency.size)
    elif frequency.base == "business day" or (frequency.base == "day" and frequency.size < 7):
        week = frequency.season_length
    else:
        return _FEW_STEPS
    return max(min(season, week), horizon)


def checks(found: Monitored, settings: MonitorSettings, reference: Mapping[str, float | None]) -> list[Check]:
    """Return the thresholds that are set, and what was found for each.

    `reference` are the metrics of the version's backtest.
    """
    limits = settings.thresholds
    enough = found.counts["rows_recent"] >= settings.min_steps and found.observed >= found.least_observed
    wql = found.metric("wql")

    def over(name: str, base: float | None) -> tuple[str, float | None]:
        return f"WQL over that {name}", wql / base if wql is not None and base else None

    values: dict[str, tuple[str, float | None]] = {
        "max_wql_naive": over("of seasonal naive", found.metric("wql", SOURCE_SEASONAL_NAIVE)),
        "max_wql_backtest": over("in the backtest", reference.get("wql")),
        "max_mase": ("MASE", found.metric("mase")),
        "min_coverage": (f"coverage of {100 * found.bands[0]:g} %", found.metric(found.coverage)),
        "max_coverage": (f"coverage of {100 * found.bands[0]:g} %", found.metric(found.coverage)),
        "max_psi": _largest(
            found.drift,
            "PSI beyond chance",
            pl.when(pl.col("psi") > pl.col("psi_chance"))
            .then("psi")
            .otherwise(pl.when(pl.col("psi").is_not_null()).then(0.0)),
        ),
        "max_missing": _largest(found.drift, "growth of missing values", pl.col("missing") - pl.col("missing_before")),
        "max_unseen": _largest(found.drift, "unseen values", pl.col("unseen")),
        "max_alarmed": ("share of judged series with an alarm", _alarmed(found.alarms)),
        "min_judged": ("share of series that are judged", _judged(found)),
    }
    return [
        Check(key, what, value if enough else None, limit)
        for key, (what, value) in values.items()
        if (limit := getattr(limits, key)) is not None
    ]


def summarised(sums: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return metrics from sums over steps, by `keys`; null where they are not defined.

    mase            mean |y - q50| / scale over the steps of series with a scale, the mean seasonal difference up to the
                    cutoff (`metrics.score_windows`, a step at a time)
    wql, wape, bias sums of pinball loss, |y - q50| and mean - y over the sum of |y|; bias is that of the mean forecast
    coverage_80     share of steps inside the interval that should hold 80 %; likewise the others
    """
    series = [pl.col(SERIES_ID).n_unique().alias("n_series")] if SERIES_ID in sums.columns else []
    grouped = sums.group_by(keys, maintain_order=True).agg(_SUMS.sum(), *series)
    size, steps = pl.col("abs_target"), pl.col("n_steps")
    made = {
        "mase": pl.col("scaled") / pl.col("n_scaled"),
        "wql": pl.col("pinball") / size,
        "wape": pl.col("abs_error") / size,
        "bias": pl.col("error") / size,
        **{
            name.replace("covered", "coverage"): pl.col(name) / steps
            for name in grouped.columns
            if name.startswith("covered_")
        },
    }
    finite = [pl.when(value.is_finite()).then(value).alias(name) for name, value in made.items()]
    return grouped.select(*keys, *finite, "n_steps", *(["n_series"] if series else []))


# ---- Forecasts ----

_SUMS: Final = pl.col("^(scaled|n_scaled|abs_error|pinball|abs_target|error|n_steps|covered_.*)$")
_TABLES: Final[dict[str, tuple[list[str], list[str]]]] = {
    "scores": ([SERIES_ID, "window", AGE, MODEL], [FORECAST, SOURCE_SEASONAL_NAIVE]),
    "days": ([SERIES_ID, "window", "day", AGE], [FORECAST]),
    TIME: ([TIME, MODEL], [FORECAST, SOURCE_SEASONAL_NAIVE]),
}
"""What is kept of all cutoffs: sums by these keys, of these models."""


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        _moment(content)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{manifest} can't be read ({error}); delete it, and score its cutoff again") from None
    return content


def _moment(content: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(content[CUTOFF])


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _placed(written: Written, panel: Panel) -> list[_Cutoff]:
    """Return the cutoffs by grid index. Raises DataError for those that are on another grid."""
    moments = [_moment(content) for content in written.contents]
    zoned = {moment.tzinfo is not None for moment in moments}
    if zoned != {panel.grid.time_zone is not None}:
        theirs = "have" if True in zoned else "have no"
        raise DataError(
            f"{written.path}: the cutoffs of these forecasts {theirs} time zone, unlike the table; give the table that "
            "they were made from (data.path)"
        )
    dtype = pl.Datetime("us", "UTC" if True in zoned else None)
    index = panel.grid.index(pl.Series([_utc(moment) for moment in moments]).cast(dtype))
    off = [moment for moment, at in zip(moments, index.to_list(), strict=True) if at is None]
    if off:
        raise DataError(
            f"{written.path}: {len(off):,} of {len(moments):,} cutoffs are not at the steps of the table, which are "
            f"every {panel.grid.frequency}: {listing(off)}; give the table that they were made from (data.path)"
        )
    return [_Cutoff(at, content) for at, content in zip(index.to_list(), written.contents, strict=True)]


def _seen(written: Written, panel: Panel, as_of: datetime | None) -> list[_Cutoff]:
    """Return the cutoffs that may be looked at. Raises DataError if there is none."""
    cutoffs = _placed(written, panel)
    seen = cutoffs if as_of is None else [each for each in cutoffs if each.place <= panel.grid.floor(as_of)]
    if not seen:
        raise DataError(
            f"monitor.as_of={as_of} is before the first of {len(cutoffs):,} cutoffs in {written.path}, "
            f"{_moment(cutoffs[0].content)}; set a later one"
        )
    return seen


def maker(written: Written, panel: Panel, as_of: datetime | None) -> str:
    """Return the version that has made the latest forecasts that may be looked at. Raises DataError as `monitor`."""
    return _seen(written, panel, as_of)[-1].version


def _within(cutoffs: Sequence[_Cutoff], span: Span, panel: Panel, written: Written) -> list[_Cutoff]:
    """Return the cutoffs with a step in the windows or after them. Raises DataError if there is none."""
    kept = [each for each in cutoffs if each.place + each.horizon >= span.first]
    if not kept:
        last, begin = _moment(cutoffs[-1].content), panel.grid.timestamps(np.array([span.first]))[0]
        raise DataError(
            f"{written.path}: the latest of {len(cutoffs):,} cutoffs is {last}, whose forecasts end before {begin}, "
            "where what is looked at begins; score later cutoffs, or raise monitor.history"
        )
    return kept


def _parts(
    written: Written,
    cutoff: _Cutoff,
    panel: Panel,
    span: Span,
    levels: Sequence[float],
    counts: Counter[str],
    unknown: set[str],
) -> Iterator[_Part]:
    """Yield the forecasts of a cutoff beside what came, and count where its rows go; gather series not in the panel."""
    horizon, columns = cutoff.horizon, [quantile_column(level) for level in levels]
    at = cutoff.place + np.arange(1, horizon + 1)
    inside, seen = at >= span.first, at <= span.last
    for frame in written.rows(cutoff.content):
        _check_steps(frame, cutoff, panel, written.path)
        ids = frame[SERIES_ID].gather_every(horizon)
        place = pl.Series(panel.series_id.tolist(), dtype=pl.String).search_sorted(ids).to_numpy()
        place = np.minimum(place, panel.n_series - 1)
        known = panel.series_id[place] == ids.to_numpy()
        unknown.update(ids.filter(pl.Series(~known)).to_list())
        n_unknown = int((~known).sum())
        counts["rows"] += len(ids) * int(inside.sum())
        counts["rows_not_yet_observed"] += len(ids) * int((inside & ~seen).sum())
        counts["rows_missing"] += n_unknown * int((inside & seen).sum())
        quantiles = frame.select(columns).to_numpy().reshape(len(ids), horizon, len(levels)).astype(np.float64)
        mean = frame[MEAN].to_numpy().reshape(len(ids), horizon).astype(np.float64)
        rows, size = np.flatnonzero(known), max(1, _BLOCK // horizon)
        for block in (rows[first : first + size] for first in range(0, len(rows), size)):
            begin = int(place[block].min())
            shard = panel.rows(begin, int(place[block].max()) + 1)
            windows = WindowIndex(place[block] - begin, cutoff.place - shard.start[place[block] - begin])
            actual = future_values(shard, windows, horizon)
            actual[:, ~(inside & seen)] = np.nan
            there = np.isfinite(actual)
            counts["rows_scored"] += int(there.sum())
            counts["rows_missing"] += int((~there[:, inside & seen]).sum())
            counts["rows_recent"] += int(there[:, at >= span.recent].sum())
            yield _Part(shard, windows, quantiles[block], actual, mean[block])


def _check_steps(frame: pl.DataFrame, cutoff: _Cutoff, panel: Panel, path: str) -> None:
    """Raise DataError for forecasts that are not of each step of the grid after the cutoff."""
    horizon = cutoff.horizon
    step = pl.int_range(pl.len()).mod(horizon) + 1
    whole = frame.height % horizon == 0 and frame.select((pl.col(STEP) == step).all()).item()
    if not whole:
        raise DataError(
            f"{path}: the forecasts of the cutoff {cutoff.content[CUTOFF]} are not {horizon:,} steps of each series; "
            f"score it again (score.cutoff={cutoff.content[CUTOFF]} score.force=true)"
        )
    index = panel.grid.index(frame[TIMESTAMP])
    wrong = int((index != frame[STEP].cast(pl.Int64) + cutoff.place).fill_null(value=True).sum())
    if wrong:
        raise DataError(
            f"{path}: {wrong:,} of {frame.height:,} forecasts of the cutoff {cutoff.content[CUTOFF]} are at other "
            f"moments than the steps of the table, which are every {panel.grid.frequency}; give the table that they "
            "were made from (data.path)"
        )


# ---- Scores ----


def _bands(levels: Sequence[float]) -> list[tuple[float, int, int]]:
    """Return the coverage that central intervals should have, widest first, and the places of their levels."""
    named = {round(level, 6): place for place, level in enumerate(levels)}
    pairs = [(low, place, named.get(round(1 - low, 6))) for low, place in named.items() if low < 0.5]
    return [(round(1 - 2 * low, 6), below, above) for low, below, above in pairs if above is not None]


def _steps(
    part: _Part, cutoff: _Cutoff, span: Span, levels: Sequence[float], season: int, ages: Mapping[str, int], by: str
) -> pl.DataFrame:
    """Return a row for each observed step and model: the columns that tables are made by, and what is summed."""
    horizon = part.actual.shape[1]
    row, step = np.nonzero(np.isfinite(part.actual))
    actual = part.actual[row, step][:, None]
    scale, root = seasonal_naive_errors(part.panel, part.windows, season)
    naive = seasonal_naive(part.panel, part.windows, horizon=horizon, season=season, levels=levels)
    at = cutoff.place + 1 + np.arange(horizon)
    moments, now = (_wall(part.panel, index) for index in (at, np.array([cutoff.place])))
    day = moments.dt.truncate("1d")
    age = np.searchsorted(np.array(list(ages.values())), np.arange(1, horizon + 1))
    keys = {
        SERIES_ID: part.series_id.gather(row),
        "window": pl.Series(np.where(at >= span.recent, RECENT, HISTORY).tolist()).gather(step),
        AGE: pl.Series(age).gather(step),
        TIME: day.gather(step) if by == "day" else now.gather(np.zeros(len(step), dtype=np.int64)),
        "day": day.gather(step),
    }
    frames = []
    for model, quantiles, means in ((FORECAST, part.quantiles, part.mean), (SOURCE_SEASONAL_NAIVE, naive, None)):
        stated = quantiles[row, step]
        there = np.isfinite(stated).all(1)
        scored = score_windows(
            actual,
            stated[:, None],
            levels=levels,
            scale=scale[row],
            root_scale=root[row],
            mean=None if means is None else means[row, step][:, None],
        )
        values = {
            "scaled": np.nan_to_num(scored["mase"]),
            "n_scaled": np.isfinite(scored["mase"]).astype(np.int64),
            **{name: scored[name] for name in ("abs_error", "pinball", "abs_target", "error", "n_steps")},
            **{
                f"covered_{100 * band:.6g}": (
                    (actual[:, 0] >= stated[:, low]) & (actual[:, 0] <= stated[:, high])
                ).astype(np.int64)
                for band, low, high in _bands(levels)
            },
        }
        frames.append(
            pl.DataFrame(keys | {MODEL: pl.repeat(model, len(row), eager=True)} | values).filter(pl.Series(there))
        )
    return pl.concat(frames)


def _wall(panel: Panel, index: IntArray) -> pl.Series:
    """Return the timestamps of grid indices as the clock on the wall has them."""
    return panel.grid.timestamps(index).dt.replace_time_zone(None)


def _reach(champion: Sequence[_Cutoff], shadow: Sequence[_Cutoff], panel: Panel, end: int, blocks: int) -> int:
    """Return how many steps after each cutoff champion and shadow are compared on: as many as both have forecast.

    Fewer where these are of less than `blocks` stretches of time without a target in common up to grid index `end`: the
    most that give as many, for forecasts of the same steps are no evidence of their own.
    """
    begin = np.array([each.place for each in champion if each.place < end], dtype=np.int64)
    horizon = min((each.horizon for each in (*champion, *shadow)), default=1)
    frequency = panel.grid.frequency
    day = max(1, DAY // frequency.size) if frequency.sub_daily else 1

    def count(steps: int) -> int:
        return count_blocks(begin, np.maximum(np.minimum(begin + steps, end), begin + day))

    return next((steps for steps in range(horizon, 0, -1) if count(steps) >= blocks), horizon)


def _window_scores(part: _Part, levels: Sequence[float], season: int, steps: int, model: str) -> pl.DataFrame:
    """Return a row for each series with an observed step among the first `steps`, as `gate.compare` takes it."""
    actual = part.actual[:, :steps]
    scale, root = seasonal_naive_errors(part.panel, part.windows, season)
    seen = np.flatnonzero(np.isfinite(actual).any(1))
    scored = score_windows(
        actual[seen],
        part.quantiles[seen, :steps],
        levels=levels,
        scale=scale[seen],
        root_scale=root[seen],
        mean=None if part.mean is None else part.mean[seen, :steps],
    )
    series = part.windows.series[seen]
    cutoff = part.panel.start[series] + part.windows.cutoff[seen]
    last = steps - np.isfinite(actual[seen, ::-1]).argmax(1)
    return pl.DataFrame(
        {
            SERIES_ID: part.series_id.gather(seen),
            CUTOFF: part.panel.grid.timestamps(cutoff),
            OBSERVED_UNTIL: part.panel.grid.timestamps(cutoff + last),
            MODEL: pl.repeat(model, len(seen), dtype=pl.String, eager=True),
            **scored,
        }
    )


def _no_pairs(panel: Panel) -> pl.DataFrame:
    """Return the table of `_window_scores` without a row."""
    nothing = WindowIndex(np.zeros(0, np.int64), np.zeros(0, np.int64))
    return _window_scores(_Part(panel.rows(0, 1), nothing, np.zeros((0, 1, 1)), np.zeros((0, 1))), (0.5,), 1, 1, "")


def _ages(given: Sequence[int] | None, horizon: int) -> dict[str, int]:
    """Return the last step of each group of ages, by its name; the groups hold the whole horizon.

    >>> _ages(None, 12), _ages((1, 3), 4)
    ({'1-3': 3, '4-6': 6, '7-9': 9, '10-12': 12}, {'1': 1, '2-3': 3, '4': 4})
    """
    quarters = [-(-horizon * quarter // 4) for quarter in (1, 2, 3, 4)]
    last = sorted({min(step, horizon) for step in given or quarters} | {horizon})
    first = [1, *(step + 1 for step in last[:-1])]
    return {f"{low}-{high}" if low < high else f"{high}": high for low, high in zip(first, last, strict=True)}


def _metrics(scores: pl.DataFrame, time: pl.DataFrame, segments: pl.DataFrame, ages: Sequence[str]) -> pl.DataFrame:
    keys = ["group", "value", "window", MODEL]
    ordered = scores.with_columns(pl.col(AGE).cast(pl.Enum(ages))).sort(AGE, maintain_order=True)
    parts = [
        scores.with_columns(group=pl.lit(ALL), value=pl.lit("")),
        ordered.with_columns(group=pl.lit(AGE), value=pl.col(AGE).cast(pl.String)),
        time.sort(TIME, MODEL).with_columns(
            group=pl.lit(TIME), value=pl.col(TIME).dt.to_string("%Y-%m-%d %H:%M:%S"), window=pl.lit(ALL)
        ),
    ]
    joined = scores.join(segments, on=SERIES_ID, maintain_order="left")
    parts += [
        joined.sort(column(name), maintain_order=True).with_columns(group=pl.lit(name), value=column(name))
        for name in segments.columns
        if name != SERIES_ID
    ]
    return pl.concat([summarised(part, keys) for part in parts], how="diagonal")


# ---- Segments ----


def _segments(artifact: Artifact, loaded: Loaded, asked: Sequence[str] | None) -> pl.DataFrame:
    """Return series_id and a column of text for each segment."""
    static = list(artifact.data.static_covariates)
    chosen = list(asked) if asked is not None else static or list(BUILT_IN)
    if foreign := [name for name in chosen if name not in (*static, *BUILT_IN)]:
        raise ConfigError(
            f"monitor.segments: {len(foreign):,} of {len(chosen):,} are no static covariates of the model: "
            f"{listing(foreign)}; there are {listing([*static, *BUILT_IN], 20)}"
        )
    frame = static_frame(artifact, loaded.panel)
    if not {*chosen} <= {*static}:
        found = profile(loaded.panel, 1)
        own = found.select(SERIES_ID, "length", volume=pl.col("mean").abs(), demand=pl.col("demand").fill_null("none"))
        frame = frame.join(own.select(SERIES_ID, *(set(chosen) - set(static))), on=SERIES_ID, maintain_order="left")
    # Methods of a series take a name such as ^a.*$ for a pattern.
    values = {name: frame[name].alias("value") for name in chosen}
    columns = [
        (_thirds if found.dtype.is_numeric() else _frequent)(found).alias(name) for name, found in values.items()
    ]
    return pl.DataFrame([frame[SERIES_ID], *columns])


def _thirds(values: pl.Series) -> pl.Series:
    """Return in which third each number is, as text."""
    numbers = values.drop_nulls().to_numpy().astype(np.float64)
    if not len(numbers):
        return pl.repeat("missing", len(values), eager=True).alias(values.name)
    inner = np.quantile(numbers, [1 / 3, 2 / 3], method="lower").tolist()
    edges = sorted({*inner} - {numbers.max()})
    low, high = [numbers.min(), *edges], [*edges, numbers.max()]
    labels = [f"{k}: {first:.4g} to {last:.4g}" for k, (first, last) in enumerate(zip(low, high, strict=True), 1)]
    place = pl.Series(np.searchsorted(edges, values.fill_null(numbers.min()).to_numpy(), side="left"))
    named = pl.Series(labels).gather(place)
    return (
        named.to_frame("name")
        .select(pl.when(values.is_not_null()).then("name").otherwise(pl.lit("missing")))
        .to_series()
        .alias(values.name)
    )


def _frequent(values: pl.Series) -> pl.Series:
    """Return the values that most series have; the others are called so."""
    texts = values.fill_null("missing")
    kept = texts.value_counts(sort=True).head(_MOST_VALUES)[values.name]
    return (
        texts.to_frame()
        .select(
            pl.when(pl.col(values.name).is_in(kept.implode()))
            .then(values.name)
            .otherwise(pl.lit(_OTHERS))
            .alias(values.name)
        )
        .to_series()
    )


# ---- Alarms ----


def _alarms(days: pl.DataFrame, settings: AlarmSettings, backtest: pl.DataFrame | None, recent: int) -> pl.DataFrame:
    """Return each series with what its recent MASE is held against, alarms first.

    Like is compared with like: its reference is the MASE of the days of its history by forecasts of the same age, each
    age as often as among the recent steps. Where the ages with enough days have too few recent steps, it is the windows
    of its backtest, for all recent steps. An alarm is above `ratio` times the median, above the median by `deviations`
    robust deviations, and above `least`. `recent` are the steps of the window, of which no more can be asked for.
    """
    least_steps = min(settings.min_steps, recent)
    sums = pl.col("scaled", "n_scaled", "n_steps").sum()
    now = days.filter(window=RECENT).group_by(SERIES_ID, AGE).agg(sums)
    every = now.group_by(SERIES_ID).agg(sums)
    scored = days.filter(window=HISTORY).with_columns(score=pl.col("scaled") / pl.col("n_scaled"))
    by_age = _robust(scored.filter(pl.col("score").is_finite()), [SERIES_ID, AGE])
    by_age = by_age.filter(pl.col("periods") >= settings.min_periods)
    weight = pl.col("n_scaled")
    alike = now.join(by_age, on=[SERIES_ID, AGE]).group_by(SERIES_ID)
    mean = [((pl.col(name) * weight).sum() / weight.sum()).alias(name) for name in ("median", "deviation")]
    own = alike.agg(sums, *mean, pl.col("periods").min()).filter(pl.col("n_steps") >= least_steps)
    own = own.filter(pl.col("n_scaled") > 0).with_columns(reference=pl.lit(HISTORY))
    tested = pl.DataFrame({SERIES_ID: [], "score": []}, schema={SERIES_ID: pl.String, "score": pl.Float64})
    if backtest is not None:
        tested = backtest.select(SERIES_ID, pl.col("mase").fill_nan(None).alias("score")).drop_nulls()
    other = every.join(_robust(tested, [SERIES_ID]).filter(pl.col("periods") >= 2), on=SERIES_ID)
    other = other.join(own, on=SERIES_ID, how="anti").with_columns(reference=pl.lit("backtest"))
    judged = pl.concat([own, other], how="diagonal_relaxed")
    none = every.join(judged, on=SERIES_ID, how="anti")
    found = pl.concat([judged, none], how="diagonal_relaxed")
    usual = pl.col("median")
    wider = 1 + _FEW_PERIODS / pl.col("periods")
    limit = pl.when(usual.is_not_null()).then(
        pl.max_horizontal(
            usual * (1 + (settings.ratio - 1) * wider),
            usual + settings.deviations * _MAD * pl.col("deviation") * wider,
            pl.lit(settings.least),
        )
    )
    status = (
        pl.when(pl.col("mase").is_null())
        .then(pl.lit(NO_SCALE))
        .when(pl.col("n_steps") < least_steps)
        .then(pl.lit(FEW))
        .when(pl.col("limit").is_null())
        .then(pl.lit(NO_REFERENCE))
        .when(pl.col("mase") > pl.col("limit"))
        .then(pl.lit(ALARM))
        .otherwise(pl.lit(NORMAL))
    )
    found = found.with_columns((pl.col("scaled") / pl.col("n_scaled")).fill_nan(None).alias("mase"), limit=limit)
    columns = [SERIES_ID, "status", "mase", "reference", "median", "deviation", "limit", "periods", "n_steps"]
    excess = pl.col("mase") / pl.col("limit")
    order = [pl.col("status") != ALARM, -excess, pl.col(SERIES_ID)]
    return found.with_columns(status=status).sort(order, nulls_last=True).select(columns)


def _robust(scores: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return median and median absolute deviation of the scores by `keys`, and how many there are."""
    score = pl.col("score")
    return scores.group_by(keys).agg(
        score.median().alias("median"), (score - score.median()).abs().median().alias("deviation"), periods=pl.len()
    )


def _alarmed(alarms: pl.DataFrame) -> float | None:
    judged = alarms.filter(pl.col("status").is_in([ALARM, NORMAL]))
    return float((judged["status"] == ALARM).mean()) if judged.height else None  # type: ignore[arg-type]


def _judged(found: Monitored) -> float | None:
    """Return the share of the series with a scale that are judged; None where there is none."""
    scaled = found.alarms.filter(pl.col("status") != NO_SCALE)
    if not scaled.height:
        return None
    return float(scaled["status"].is_in([ALARM, NORMAL]).mean())  # type: ignore[arg-type]


def _largest(drift: pl.DataFrame, what: str, value: pl.Expr) -> tuple[str, float | None]:
    """Return the largest value over all columns, and which one has it."""
    found = drift.select("column", value.alias("value")).drop_nulls().sort("value", descending=True)
    return (what, None) if found.is_empty() else (f"{what} of {found['column'][0]}", float(found["value"][0]))


def _freshest(
    written: Written,
    cutoffs: Sequence[_Cutoff],
    series: Sequence[str],
    levels: Sequence[float],
    panel: Panel,
    span: Span,
) -> pl.DataFrame:
    """Return the forecast of each step in the windows from the latest cutoff before it, of some series."""
    columns = [SERIES_ID, TIMESTAMP, CUTOFF, *(quantile_column(level) for level in levels)]
    first, last = panel.grid.timestamps(np.array([span.first, span.last])).to_list()
    parts = []
    for cutoff in cutoffs if series else cutoffs[:1]:
        now = panel.grid.timestamps(np.array([cutoff.place])).alias(CUTOFF)
        for frame in written.rows(cutoff.content, series):
            local = pl.col(TIMESTAMP).cast(now.dtype)
            dated = frame.with_columns(local, pl.lit(now.item()).cast(now.dtype).alias(CUTOFF))
            parts.append(dated.select(columns).filter(pl.col(TIMESTAMP).is_between(first, last)))
    return (
        pl.concat(parts)
        .sort(SERIES_ID, TIMESTAMP, CUTOFF)
        .unique([SERIES_ID, TIMESTAMP], keep="last", maintain_order=True)
    )
