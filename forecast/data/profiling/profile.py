"""What the series of a panel are like: lengths, gaps, zeros, kinds of demand, season and trend; and what was rejected.

Computed on the flat buffer in shards of whole series, so memory does not grow with the panel.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from forecast.data.ingest.outliers import find_outliers
from forecast.data.ingest.rejects import NO_TARGET, SHOWN, Counts, offenders
from forecast.data.panel import IntArray, Panel
from forecast.names import CLASS, REASON, SERIES_ID

Array = npt.NDArray[np.float64]

DEMAND: Final = ("smooth", "erratic", "intermittent", "lumpy")
"""Kinds of demand, easiest first."""

# Above these, demand is rare, and its size varies (Syntetos, Boylan & Croston 2005).
_RARE: Final = 1.32
_VARYING: Final = 0.49

# Steps of the moving average that is the trend of a series without season.
_WINDOW: Final = 5

_SHARD: Final = 1 << 19
"""Steps that are looked at at once: small enough for the cache, large enough for the overhead of a call."""

_TIME: Final = "%Y-%m-%d %H:%M:%S"


def profile(panel: Panel, season_length: int, classes: Sequence[str] | None = None) -> pl.DataFrame:
    """Return a row for each series, in the panel's order.

    Shares are of the observed values. Null is what a series has no answer to.

    first, last         timestamps of the first and last step
    length              steps from first to last
    observed, gaps      steps with and without a value: observed + gaps = length
    longest_gap         most missing steps in a row
    zeros, negatives    shares
    leading_zeros       steps before the first value that is not zero, gaps included; all of them if there is none
    trailing_zeros      likewise after the last one
    mean, std, min, max of the values; std with divisor `observed`
    adi                 average inter-demand interval: observed steps per value that is not zero
    cv2                 (std / mean)^2 of the values that are not zero
    demand              one of DEMAND, by whether adi > 1.32 and cv2 > 0.49 (Syntetos, Boylan & Croston, "On the
                        categorization of demand patterns", JORS 56, 2005). These three are null for series that have
                        negative values or only zeros: they are no demand.
    seasonality, trend  strength in [0, 1], see `_strengths`
    constant            all values are the same
    outliers            values that forecasts leave out of their inputs (`forecast.data.ingest.outliers`)

    Codes of `classes` have no size. In place of zeros and all that follows but `constant`, they have

    classes             how many of them the series has
    class, share        the most frequent one, the first by its code of several, and its share
    """
    if classes is None:
        return pl.concat([_profile(shard, season_length) for shard in panel.shards(_SHARD)])
    return pl.concat([_profile_of_classes(shard, classes) for shard in panel.shards(_SHARD)])


def frequencies(panel: Panel, classes: Sequence[str]) -> pl.DataFrame:
    """Return class, values, share of all observed values, and series that have it; most values first."""
    counts = pl.concat([_class_counts(shard) for shard in panel.shards(_SHARD)])
    found = counts.group_by("code").agg(pl.col("values").sum(), series=pl.len().cast(pl.Int64))
    found = found.sort("values", "code", descending=[True, False])
    name = pl.Series(CLASS, classes, dtype=pl.String).gather(found["code"])
    return found.select(name, "values", (pl.col("values") / pl.col("values").sum()).alias("share"), "series")


def _class_counts(panel: Panel) -> pl.DataFrame:
    """Return series (by number), code and values: how often each class came in each series."""
    there = np.isfinite(panel.target)
    series = np.repeat(np.arange(panel.n_series), panel.lengths)[there]
    steps = pl.DataFrame({"series": series, "code": panel.target[there].astype(np.int64)})
    return steps.group_by("series", "code").agg(pl.len().cast(pl.Int64).alias("values"))


def _profile_of_classes(panel: Panel, classes: Sequence[str]) -> pl.DataFrame:
    most = (
        _class_counts(panel)
        .sort("series", "values", "code", descending=[False, True, False])
        .group_by("series", maintain_order=True)
        .agg(pl.len().cast(pl.Int64).alias("classes"), pl.col("code", "values").first())
    )
    return pl.DataFrame(_steps(panel)).with_columns(
        most["classes"],
        pl.Series(classes, dtype=pl.String).gather(most["code"]).alias(CLASS),
        (most["values"] / pl.col("observed")).alias("share"),
        (most["classes"] == 1).alias("constant"),
    )


def _steps(panel: Panel) -> dict[str, Any]:
    """Return the columns on when each series is, and where it has no value."""
    lengths, begin = panel.lengths, panel.offsets[:-1]
    there = np.isfinite(panel.target)
    observed = _counts(there, begin)
    # Runs of missing steps lie between one observed step and the next of the same series.
    number = np.cumsum(observed) - observed
    missing = np.diff(np.flatnonzero(there), prepend=0) - 1
    missing[number] = 0
    return {
        SERIES_ID: pl.Series(panel.series_id.tolist(), dtype=pl.String),
        "first": panel.grid.timestamps(panel.start),
        "last": panel.grid.timestamps(panel.start + lengths - 1),
        "length": lengths,
        "observed": observed,
        "gaps": lengths - observed,
        "longest_gap": np.maximum.reduceat(missing, number),
    }


def _profile(panel: Panel, season_length: int) -> pl.DataFrame:
    lengths, begin = panel.lengths, panel.offsets[:-1]
    there = np.isfinite(panel.target)
    target = panel.target.astype(np.float64)
    values = np.where(there, target, 0.0)
    steps = _steps(panel)
    observed = steps["observed"]
    nonzero = np.flatnonzero(values)
    first, last = np.searchsorted(nonzero, [begin, panel.offsets[1:]])
    demands = last - first
    edges = np.append(nonzero, 0)
    leading = np.where(demands > 0, edges[first] - begin, lengths)
    trailing = np.where(demands > 0, panel.offsets[1:] - 1 - edges[last - 1], lengths)

    mean = _sums(values, begin) / observed
    deviation = np.where(there, target - np.repeat(mean, lengths), 0.0)
    squares = _sums(deviation**2, begin)
    std = np.sqrt(squares / observed)
    smallest, largest = np.fmin.reduceat(target, begin), np.fmax.reduceat(target, begin)
    constant = smallest == largest
    std[constant] = 0.0

    negative = _counts(values < 0, begin)
    is_demand = (negative == 0) & (demands > 0)
    adi, cv2 = np.full((2, len(mean)), np.nan)
    np.divide(observed, demands, out=adi, where=is_demand)
    # Of the squares about the mean of all values, take those of the zeros away, and move to the mean of the others.
    zeros = observed - demands
    spread = np.maximum(squares - zeros * mean**2, 0.0) / np.maximum(demands, 1) - (mean * adi - mean) ** 2
    np.divide(np.maximum(spread, 0.0), (mean * adi) ** 2, out=cv2, where=is_demand)

    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(constant, 0.0, 1.0 / std)
    largest_size = np.maximum(np.abs(smallest), np.abs(largest))
    rounding = (float(np.finfo(np.float32).eps) * largest_size * scale) ** 2
    seasonality, trend = _strengths(
        panel, np.where(there, deviation * np.repeat(scale, lengths), np.nan), season_length, ~constant, rounding
    )
    rare, varying = pl.col("adi") > _RARE, pl.col("cv2") > _VARYING
    return (
        pl.DataFrame(
            {
                **steps,
                "zeros": zeros / observed,
                "leading_zeros": leading,
                "trailing_zeros": trailing,
                "negatives": negative / observed,
                "mean": mean,
                "std": std,
                "min": smallest,
                "max": largest,
                "adi": adi,
                "cv2": cv2,
                "seasonality": seasonality,
                "trend": trend,
                "constant": constant,
                "outliers": np.bincount(find_outliers(panel).series, minlength=panel.n_series),
            }
        )
        .with_columns(pl.col("adi", "cv2", "seasonality", "trend").fill_nan(None))
        .with_columns(
            demand=pl.when(rare & varying)
            .then(pl.lit("lumpy"))
            .when(rare)
            .then(pl.lit("intermittent"))
            .when(varying)
            .then(pl.lit("erratic"))
            .when(pl.col("adi").is_not_null())
            .then(pl.lit("smooth"))
        )
        .select(*_COLUMNS)
    )


_COLUMNS: Final = (
    SERIES_ID, "first", "last", "length", "observed", "gaps", "longest_gap", "zeros", "leading_zeros", "trailing_zeros",
    "negatives", "mean", "std", "min", "max", "adi", "cv2", "demand", "seasonality", "trend", "constant",
    "outliers",
)  # fmt: skip


def _sums(values: Array, begin: IntArray) -> Array:
    sums: Array = np.add.reduceat(values, begin)
    return sums


def _counts(values: npt.NDArray[np.bool_], begin: IntArray) -> IntArray:
    counts: IntArray = np.add.reduceat(values, begin, dtype=np.int64)
    return counts


def _strengths(
    panel: Panel, standard: Array, season_length: int, wanted: npt.NDArray[np.bool_], rounding: Array
) -> tuple[Array, Array]:
    """Return the strengths of season and trend, [S] each, of standardised values ([N], NaN: missing).

    The series is decomposed as y = T + S + R by moving averages: T over a season (2 x m for an even one; _WINDOW steps
    without season), continued at both ends along the line between its own ends, and S the mean of y - T at each place
    of the season on the local clock. Strengths are max(0, 1 - var(R) / var(S + R)) and max(0, 1 - var(R) / var(T + R))
    (Wang, Smith & Hyndman, "Characteristic-based clustering for time series data", DMKD 13, 2006, in the form of
    Hyndman & Athanasopoulos, FPP3, 4.3). Unlike there, each variance has the divisor that makes it unbiased for white
    noise: else the m means of a few short seasons explain noise, and it would look seasonal.

    NaN for series that are not `wanted`, are shorter than two seasons (windows), or have too few values; seasonality
    also if the season is one step. A variance not above `rounding`, what float32 leaves of a value, is taken for 0.
    """
    window = season_length if season_length > 1 else _WINDOW
    season, trend = np.full((2, panel.n_series), np.nan)
    long = np.flatnonzero(wanted & (panel.lengths >= 2 * window))
    if not len(long):
        return season, trend
    lengths = panel.lengths[long]
    begin = np.cumsum(lengths) - lengths
    step = np.arange(lengths.sum()) - np.repeat(begin, lengths)
    if len(long) < panel.n_series:
        standard = standard[np.repeat(panel.offsets[long], lengths) + step]
    rest = standard - _moving_average(standard, begin, lengths, step, window)
    there = np.isfinite(rest)
    count = _counts(there, begin)
    if season_length > 1:
        phase = step % season_length
        if panel.clock_shift.any():
            phase = (step + panel.clock_shift_at(np.repeat(panel.start[long], lengths) + step)) % season_length
        place = np.repeat(np.arange(len(long)) * season_length, lengths) + phase
        size = len(long) * season_length
        counts = np.bincount(place[there], minlength=size)
        means = np.bincount(place[there], rest[there], minlength=size) / np.maximum(counts, 1)
        places = np.count_nonzero(counts.reshape(-1, season_length), axis=1)
        pattern = means[place]
    else:
        places, pattern = np.ones(len(long), dtype=np.int64), np.zeros(1)
    # The moving average takes this share of the variance of noise with it: 2 w(0) - sum of w^2.
    odd = window % 2
    taken = 1 / window if odd else 2 / window - (window - 0.5) / window**2
    spare = np.maximum(count * (1 - taken) - (places - 1), 0.0)
    remainder, detrended, deseasonalised = (
        _squares(np.where(there, part, 0.0), count, begin) for part in (rest - pattern, rest, standard - pattern)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        noise = np.where(spare >= 0.5, remainder / spare, np.nan)
        for strength, squares, free in (
            (season, detrended, count * (1 - taken)),
            (trend, deseasonalised, count - places),
        ):
            share = np.clip(1 - noise / (squares / free), 0.0, 1.0)
            share[(squares <= count * rounding[long]) & ~np.isnan(noise)] = 0.0
            strength[long] = share
    if season_length == 1:
        season[:] = np.nan
    return season, trend


def _squares(values: Array, count: IntArray, begin: IntArray) -> Array:
    """Return the sum of squares about the mean of each series, [S]; values that don't count are 0."""
    total: Array = _sums(values**2, begin) - _sums(values, begin) ** 2 / np.maximum(count, 1)
    return np.maximum(total, 0.0)


def _moving_average(values: Array, begin: IntArray, lengths: IntArray, step: IntArray, window: int) -> Array:
    """Return the centred moving average over what was observed, [N]; at both ends of a series a line continues it.

    The line has the slope between the first and the last full window. Running sums are safe here: standardised values
    are all of one size, and those of a series add up to 0.
    """
    half = window // 2
    there = np.isfinite(values)
    weight = np.zeros(len(values))
    average = np.zeros(len(values))
    inside = slice(half, len(values) - half)
    for terms, into in ((there, weight), (np.where(there, values, 0.0), average)):
        running = np.append(0.0, np.cumsum(terms, dtype=np.float64))
        sums = running[window:] - running[:-window]
        into[inside] = sums[: len(values) - 2 * half] + sums[len(sums) - (len(values) - 2 * half) :]
    with np.errstate(invalid="ignore", divide="ignore"):
        average = np.where(weight > 0.5, average / weight, np.nan)
    nearest = np.clip(step, half, np.repeat(lengths - half - 1, lengths))
    low, high = average[begin + half], average[begin + lengths - half - 1]
    slope = (high - low) / np.maximum(lengths - 2 * half - 1, 1)
    beyond = step - nearest
    ends = np.flatnonzero(beyond)
    average[ends] = average[ends - beyond[ends]] + (np.repeat(slope, lengths) * beyond)[ends]
    return average


def quality(rejects: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """Return reason, rows, series, share and examples of each reason for rejects, most rows first.

    The share is that of all rows of the table they are from (reasons of data.known_path name it). Series without an
    observed target are one reject each; their rows are what is left of `counts.rows_rejected`, so that the rows of all
    reasons add up to it and to `counts.known_rows_rejected`.
    """
    first = rejects.group_by(REASON, maintain_order=True)
    texts = {str(reason): ", ".join(offenders(part.head(SHOWN), _short)) for (reason,), part in first}
    examples = pl.DataFrame(
        {REASON: list(texts), "examples": list(texts.values())}, schema={REASON: pl.String, "examples": pl.String}
    )
    known = pl.col(REASON).str.starts_with("data.known_path: ")
    empty = pl.col(REASON) == NO_TARGET
    n_series = pl.col(SERIES_ID).drop_nulls().n_unique().cast(pl.Int64)
    table = rejects.group_by(REASON).agg(rows=pl.len().cast(pl.Int64), series=n_series)
    left = counts.rows_rejected - pl.col("rows").filter(~known & ~empty).sum()
    return (
        table.with_columns(rows=pl.when(empty).then(left).otherwise("rows"))
        .with_columns(
            share=pl.col("rows") / pl.when(known).then(max(counts.known_rows_in, 1)).otherwise(max(counts.rows_in, 1))
        )
        .join(examples, on=REASON)
        .sort("rows", REASON, descending=[True, False])
    )


def summary(profile: pl.DataFrame) -> pl.DataFrame:
    """Return what to know of the series at one glance, as texts: columns `measure` and `found`."""
    n, column = profile.height, profile.get_column
    steps, observed = int(column("length").sum()), int(column("observed").sum())

    def share(mask: pl.Series | int) -> str:
        number = mask if isinstance(mask, int) else int(mask.sum())
        return f"{number:,} ({part_of(number, n)})"

    def middle(name: str) -> str:
        known = column(name).drop_nulls()
        if known.is_empty():
            return "not known for any series"
        low, half, high = (known.quantile(level, "linear") for level in (0.25, 0.5, 0.75))
        few = "" if known.len() == n else f"; known for {share(known.len())}"
        return f"median {half:.2f}, half of the series {low:.2f} to {high:.2f}{few}"

    found = {"Series": f"{n:,}"}
    if n:
        low, high = pl.all().min().name.prefix("min_"), pl.all().max().name.prefix("max_")
        ends = profile.select("first", "last", "length", "longest_gap").select(low, high)
        edge = ends.with_columns(cs.datetime().dt.to_string(_TIME)).row(0, named=True)
        half = column("length").quantile(0.5, "lower")
        found |= {
            "Time": f"{_short(edge['min_first'])} to {_short(edge['max_last'])}",
            "Steps": f"{steps:,}, {part_of(observed, steps)} observed",
            "Length": f"{edge['min_length']:,} to {edge['max_length']:,}, median {half:,.0f}",
            "With gaps": f"{share(column('gaps') > 0)}, longest gap {edge['max_longest_gap']:,}",
            "Constant": share(column("constant")),
        }
    if n and CLASS in profile.columns:
        few, many = profile.select(pl.col("classes").min().alias("few"), pl.col("classes").max().alias("many")).row(0)
        found["Classes"] = f"{few:,} to {many:,} in a series"
    elif n:
        zeros = float((column("zeros") * column("observed")).sum())
        kinds = dict(column("demand").value_counts().iter_rows())
        demand = [f"{kind} {share(kinds[kind])}" for kind in DEMAND if kind in kinds]
        found |= {
            "Zeros": f"{part_of(zeros, observed)} of the values, in {share(column('zeros') > 0)} of the series",
            "Negatives": f"in {share(column('negatives') > 0)} of the series",
            "Outliers": f"{int(column('outliers').sum()):,} values, in {share(column('outliers') > 0)} of the series",
            "Demand": ", ".join(demand) or "none: no series is without negative values and not all zeros",
            "Seasonality": middle("seasonality"),
            "Trend": middle("trend"),
        }
    schema = {"measure": pl.String, "found": pl.String}
    return pl.DataFrame({"measure": list(found), "found": list(found.values())}, schema=schema)


def part_of(part: float, whole: float) -> str:
    """Return a share that is neither 0 nor 100 % unless it is exactly that.

    >>> [part_of(part, 10_000) for part in (0, 1, 1234, 9_999, 10_000)]
    ['0 %', '<0.1 %', '12.3 %', '>99.9 %', '100 %']
    """
    if part in (0, whole):
        return "100 %" if part else "0 %"
    share = 100 * part / whole
    return "<0.1 %" if share < 0.1 else ">99.9 %" if share > 99.9 else f"{share:.1f} %"


def _short(time: str) -> str:
    return time.removesuffix(" 00:00:00")
