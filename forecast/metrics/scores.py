"""Metrics and the seasonal-naive baseline, each with its formula.

Scores are kept per (series, cutoff, model) as sums and counts, so that any group of them can be summarised exactly.
"""

from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import polars as pl

from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.names import (
    BASELINES,
    CLASS,
    CUTOFF,
    MEAN,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    STEP,
    TARGET,
    class_column,
    quantile_column,
)

Array = npt.NDArray[np.floating]

MODEL = "model"
LOG_LOSS = "log_loss"
CRPS = "crps"
SCORE_COLUMNS = (
    *("mase", "smape", "rmsse", "abs_error", "square_error", "pinball", "abs_target", "error", "covered", "width"),
    "n_steps",
)
_ORDER = (*BASELINES, SOURCE_PRETRAINED, SOURCE_FINE_TUNED)


def _by_shard(panel: Panel, windows: WindowIndex) -> Iterator[tuple[IntArray, Panel, WindowIndex]]:
    """Yield the shards that hold a window's series: numbers of the windows, the shard, and its windows."""
    order = np.argsort(windows.series, kind="stable")
    sorted_series, first = windows.series[order], 0
    for shard in panel.shards():
        last = first + shard.n_series
        chosen = order[slice(*np.searchsorted(sorted_series, [first, last]))]
        if len(chosen):
            yield chosen, shard, WindowIndex(windows.series[chosen] - first, windows.cutoff[chosen])
        first = last


def _seasonal_differences(panel: Panel, season: int) -> Array:
    """Return y[t] - y[t - season] at each step of the flat buffer, [N]; NaN where either is missing or not there."""
    target = panel.target.astype(np.float64)
    step = np.arange(len(target)) - np.repeat(panel.offsets[:-1], panel.lengths)
    lagged = np.full_like(target, np.nan)
    lagged[season:] = target[: len(target) - season]
    lagged[step < season] = np.nan
    return target - lagged


def _up_to(panel: Panel, windows: WindowIndex, values: Array) -> Array:
    """Return the sum of `values` ([N]) from the start of each window's series up to its cutoff, [n].

    Not by running sums: the digits of small series would be lost behind large ones.
    """
    begin = panel.offsets[windows.series]
    end = begin + np.clip(windows.cutoff + 1, 0, panel.lengths[windows.series])
    edges = np.stack([begin, end], axis=1).ravel()
    sums = np.add.reduceat(np.append(values, 0.0), edges)[::2]
    return np.where(end > begin, sums, 0.0)


def seasonal_naive_errors(panel: Panel, windows: WindowIndex, season: int) -> tuple[Array, Array]:
    """Return mean absolute and root mean square seasonal difference up to each cutoff, 2 x [n]; NaN for none."""
    absolute, square = np.full((2, len(windows)), np.nan)
    for chosen, shard, own in _by_shard(panel, windows):
        differences = _seasonal_differences(shard, season)
        there = np.isfinite(differences)
        values = np.where(there, differences, 0.0)
        count = _up_to(shard, own, there.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            absolute[chosen] = _up_to(shard, own, np.abs(values)) / count
            square[chosen] = _up_to(shard, own, values**2) / count
    return absolute, np.sqrt(square)


SEASONS_BACK = 4
"""How far seasonal naive looks back."""


def seasonal_naive(panel: Panel, windows: WindowIndex, *, horizon: int, season: int, levels: Sequence[float]) -> Array:
    """Return the last season repeated, with normal quantiles, [n, horizon, level]; NaN where a series has no value yet.

    One season back is the same time on the local clock. A missing value of the last season is taken from the season
    before (up to SEASONS_BACK), then from the last observed value. Quantiles spread by sigma * sqrt(seasons ahead),
    sigma the root mean square seasonal difference (Hyndman & Athanasopoulos, FPP3, 5.5).
    """
    point = _last_season(panel, windows, horizon, season)
    _, sigma = seasonal_naive_errors(panel, windows, season)
    deviates = np.array([NormalDist().inv_cdf(level) for level in levels])
    seasons_ahead = -(-np.arange(1, horizon + 1) // season)
    spread = np.nan_to_num(sigma)[:, None] * np.sqrt(seasons_ahead)[None]
    quantiles: Array = point[..., None] + spread[..., None] * deviates
    return quantiles


def seasonal_naive_classes(panel: Panel, windows: WindowIndex, *, horizon: int, season: int, n_classes: int) -> Array:
    """Return probabilities around the class of the last season, [n, horizon, class]; NaN where a series has none yet.

    That class has the share of steps up to the cutoff that were of the class one season before, (hits + 1) / (steps +
    2); the rest goes to the others by how often they came, (count + 1) / (steps + classes). So no class is impossible.
    """
    point = _last_season(panel, windows, horizon, season)
    hit, count = np.empty(len(windows)), np.empty((len(windows), n_classes))
    for chosen, shard, own in _by_shard(panel, windows):
        differences = _seasonal_differences(shard, season)
        hits, steps = (_up_to(shard, own, values) for values in (differences == 0.0, np.isfinite(differences)))
        hit[chosen] = (hits + 1) / (steps + 2)
        for code in range(n_classes):
            count[chosen, code] = _up_to(shard, own, shard.target == code)
    frequency = (count + 1) / (count.sum(1, keepdims=True) + n_classes)
    seen = np.isfinite(point)
    is_point = np.arange(n_classes) == point[..., None]
    others = np.where(is_point, 0.0, frequency[:, None])
    others *= (1 - hit)[:, None, None] / others.sum(-1, keepdims=True)
    return np.where(seen[..., None], np.where(is_point, hit[:, None, None], others), np.nan)


def _last_season(panel: Panel, windows: WindowIndex, horizon: int, season: int) -> Array:
    """Return the point forecast of seasonal naive, [n, horizon]."""
    ahead = np.arange(1, horizon + 1)
    seasons_ahead = -(-ahead // season)
    begin, begun = panel.offsets[windows.series], panel.start[windows.series][:, None]
    last = np.minimum(windows.cutoff, panel.lengths[windows.series] - 1)

    point = np.full((len(windows), horizon), np.nan)
    for back in range(SEASONS_BACK):
        step = windows.cutoff[:, None] + (ahead - season * (seasons_ahead + back))[None]
        step += panel.clock_shift_at(begun + windows.cutoff[:, None] + ahead) - panel.clock_shift_at(begun + step)
        inside = (step >= 0) & (step <= last[:, None])
        values = panel.target[np.where(inside, begin[:, None] + step, 0)]
        point = np.where(np.isnan(point) & inside, values, point)
    return np.where(np.isnan(point), last_values(panel, windows)[:, None], point)


def last_values(panel: Panel, windows: WindowIndex) -> Array:
    """Return the last observed value up to each cutoff; NaN where there is none, [n]."""
    found = np.full(len(windows), np.nan, dtype=np.float32)
    for chosen, shard, own in _by_shard(panel, windows):
        observed = np.isfinite(shard.target)
        latest = np.maximum.accumulate(np.where(observed, np.arange(len(observed)), -1))
        begin = shard.offsets[own.series]
        end = begin + np.minimum(own.cutoff, shard.lengths[own.series] - 1)
        at = latest[np.maximum(end, 0)]
        found[chosen] = np.where((end >= begin) & (at >= begin), shard.target[at], np.nan)
    return found


def future_values(panel: Panel, windows: WindowIndex, horizon: int) -> Array:
    """Return the observed targets after each cutoff, NaN where there is none, [n, horizon]."""
    step = windows.cutoff[:, None] + np.arange(1, horizon + 1)
    inside = (step >= 0) & (step < panel.lengths[windows.series][:, None])
    values = panel.target[np.where(inside, panel.offsets[windows.series][:, None] + step, 0)]
    return np.where(inside, values, np.nan).astype(np.float64)


def score_windows(
    actual: Array,
    quantiles: Array,
    *,
    levels: Sequence[float],
    scale: Array,
    root_scale: Array,
    mean: Array | None = None,
) -> dict[str, Array]:
    """Return per-window scores of forecasts [n, horizon, level] of `actual` [n, horizon] (NaN: not observed), each [n].

    `scale` and `root_scale` are those of `seasonal_naive_errors`. `mean` is the mean forecast, [n, horizon], q50 where
    None.

    mase        mean |y - q50| / scale, scale = in-sample mean |y[t] - y[t - season]| (Hyndman & Koehler 2006, "Another
                look at measures of forecast accuracy", IJF 22); NaN where scale is 0
    smape       mean 200 |y - q50| / (|y| + |q50|), 0 where both are 0 (Makridakis, Spiliotis & Assimakopoulos 2020,
                "The M4 Competition", IJF 36)
    rmsse       sqrt(mean (y - q50)^2) / root_scale, root_scale^2 = in-sample mean (y[t] - y[t - season])^2 (Makridakis,
                Spiliotis & Assimakopoulos 2022, "M5 accuracy competition", IJF 38, there with season 1); NaN where it
                is 0
    pinball     sum over steps of the mean over levels of 2 max(level e, (level - 1) e), e = y - q
    covered     steps with the actual inside the outermost interval; `width` the sum of its widths
    error       sum of mean - y; abs_error, square_error, abs_target sums of |y - q50|, (y - q50)^2 and |y|
    """
    observed = np.isfinite(actual)
    count = observed.sum(1)
    truth = np.where(observed, actual, 0.0)
    median = quantiles[..., list(levels).index(0.5)]
    miss = np.where(observed, np.abs(truth - median), 0.0)
    size = np.abs(truth) + np.abs(median)
    relative = np.divide(200.0 * miss, size, out=np.zeros_like(miss), where=size > 0)
    deviation = truth[..., None] - quantiles
    weights = np.asarray(levels)
    loss = 2.0 * np.maximum(weights * deviation, (weights - 1.0) * deviation).mean(-1)
    lower, upper = quantiles[..., 0], quantiles[..., -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mase": np.where(scale > 0, miss.sum(1) / count / scale, np.nan),
            "smape": relative.sum(1) / count,
            "rmsse": np.where(root_scale > 0, np.sqrt((miss**2).sum(1) / count) / root_scale, np.nan),
            "abs_error": miss.sum(1),
            "square_error": (miss**2).sum(1),
            "pinball": (loss * observed).sum(1),
            "abs_target": np.abs(truth).sum(1),
            "error": np.where(observed, (median if mean is None else mean) - truth, 0.0).sum(1),
            "covered": ((truth >= lower) & (truth <= upper) & observed).sum(1),
            "width": ((upper - lower) * observed).sum(1),
            "n_steps": count,
        }


def midpoints(count: int) -> tuple[float, ...]:
    """Return the levels in the middle of `count` equal shares.

    >>> midpoints(2)
    (0.25, 0.75)
    """
    return tuple((k + 0.5) / count for k in range(count))


def score_points(actual: Array, points: Array) -> Array:
    """Return the sum over steps of the CRPS of forecasts that are given by `points`, each window, [n].

    crps        mean over the points of 2 max(level e, (level - 1) e), e = y - point, whose levels (k - 1/2) / K are the
                midpoints of K equal shares: the integral of the pinball loss over all levels, which is the continuous
                ranked probability score (Gneiting & Raftery 2007, JASA 102; Laio & Tamea 2007, HESS 11). For counts it
                is the ranked probability score. Defined for any distribution, a certain one included (there it is the
                absolute error), in the units of the target, so that models of all heads and seasonal naive compare.
    """
    observed = np.isfinite(actual)
    deviation = np.where(observed, actual, 0.0)[..., None] - points
    levels = np.array(midpoints(points.shape[-1]))
    loss = 2.0 * np.maximum(levels * deviation, (levels - 1.0) * deviation).mean(-1)
    total: Array = (loss * observed).sum(1)
    return total


def score_classes(actual: Array, probabilities: Array) -> dict[str, Array]:
    """Return per-window scores of probabilities [n, horizon, class] of the codes `actual` [n, horizon], each [n].

    log_loss    sum over steps of -log p of the class that came (the logarithmic score, Good 1952)
    brier       sum over steps of the sum over classes of (p - [it came])^2 (Brier 1950)
    correct     steps at which the most probable class came
    """
    observed = np.isfinite(actual)
    code = np.where(observed, actual, 0).astype(np.int64)
    likelihood = np.take_along_axis(probabilities, code[..., None], -1)[..., 0]
    tiny = np.finfo(np.float32).tiny
    brier = np.square(probabilities).sum(-1) + 1.0 - 2.0 * likelihood
    return {
        "log_loss": (-np.log(np.maximum(likelihood, tiny)) * observed).sum(1),
        "brier": (brier * observed).sum(1),
        "correct": ((probabilities.argmax(-1) == code) & observed).sum(1),
        "n_steps": observed.sum(1),
    }


def by_model(frame: pl.DataFrame, *then: str) -> pl.DataFrame:
    """Return rows in the order in which models are shown, baselines first, and by the columns `then` within."""
    rank = pl.col(MODEL).replace_strict(_ORDER, range(len(_ORDER)), default=len(_ORDER), return_dtype=pl.Int32)
    return frame.sort(rank, MODEL, *then)


def summarise(scores: pl.DataFrame | pl.LazyFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return one row per model, and per value of the columns `by`, which come first.

    Of numbers: means over windows (mase, smape, rmsse) and ratios of sums, over all steps of all windows:

    wql         sum pinball / sum |y| (weighted quantile loss: Wang et al. 2019, "Deep Factors", ICML)
    wape        sum |y - q50| / sum |y|
    bias        sum (mean - y) / sum |y|, of the mean forecast (q50 where a forecast states none: of skewed targets the
                median lies below the mean without being wrong); `me` is sum (mean - y) / steps, in units of the target
    coverage    share of steps inside the outermost interval; `width` is the sum of its widths / sum |y|
    crps        mean over steps (`score_points`), where scored

    `n_undefined` windows have no MASE and no RMSSE (a constant or too short past), and are left out of their means. Of
    classes: log_loss, brier and accuracy, means over all steps. A lazy frame is read in blocks.
    """
    frame = scores.lazy()
    names = frame.collect_schema().names()
    steps = pl.col("n_steps").sum()
    counts = [pl.col(SERIES_ID).n_unique().alias("n_series"), pl.len().cast(pl.Int64).alias("n_windows")]
    if LOG_LOSS in names:
        means = [
            (pl.col(LOG_LOSS).sum() / steps).alias(LOG_LOSS),
            (pl.col("brier").sum() / steps).alias("brier"),
            (pl.col("correct").sum() / steps).alias("accuracy"),
        ]
    else:
        size = pl.col("abs_target").sum()
        means = [
            pl.col("mase").drop_nans().mean(),
            pl.col("smape").mean(),
            pl.col("rmsse").drop_nans().mean(),
            (pl.col("pinball").sum() / size).alias("wql"),
            *([(pl.col(CRPS).sum() / steps).alias(CRPS)] if CRPS in names else []),
            (pl.col("abs_error").sum() / size).alias("wape"),
            (pl.col("error").sum() / size).alias("bias"),
            (pl.col("error").sum() / steps).alias("me"),
            (pl.col("covered").sum() / steps).alias("coverage"),
            (pl.col("width").sum() / size).alias("width"),
        ]
        counts.append(pl.col("mase").is_nan().sum().alias("n_undefined"))
    found = frame.group_by(*by, MODEL).agg(*means, *counts).collect(engine="streaming")
    return by_model(found, *by).sort(*by, maintain_order=True) if by else by_model(found)


def confusion(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return model, target, class, n: how often each class was the most probable one where another came."""
    counts = _observed(forecasts).group_by(MODEL, TARGET, CLASS).agg(pl.len().alias("n"))
    return by_model(counts.collect(engine="streaming"), TARGET, CLASS)


def macro_f1(counts: pl.DataFrame) -> pl.DataFrame:
    """Return model, macro_f1 from `confusion`: the mean over the classes that came or were forecast of their F1.

    F1 = 2 hits / (times forecast + times it came) (van Rijsbergen 1979).
    """
    came, said = (counts.group_by(MODEL, pl.col(name).alias("name")).agg(pl.col("n").sum()) for name in (TARGET, CLASS))
    hits = counts.filter(pl.col(TARGET) == pl.col(CLASS)).select(MODEL, pl.col(CLASS).alias("name"), hits="n")
    each = pl.concat([came, said]).group_by(MODEL, "name").agg(pl.col("n").sum())
    each = each.join(hits, on=[MODEL, "name"], how="left")
    return each.group_by(MODEL).agg((2 * pl.col("hits").fill_null(0) / pl.col("n")).mean().alias("macro_f1"))


def error_by_step(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return step, model and scores at each step of the horizon, over observed targets.

    mae and rmse of q50, me (mean of the mean forecast - y, of q50 - y where there is no column of means), pinball (mean
    over levels, twice), coverage and width (mean) of the outermost interval; of classes error_rate, the share of steps
    whose most probable class did not come.
    """
    frame = _observed(forecasts)
    names = frame.collect_schema().names()
    if CLASS in names:
        scored = [(pl.col(TARGET) != pl.col(CLASS)).mean().alias("error_rate")]
    else:
        levels, error = quantile_levels(names), pl.col("q50") - pl.col(TARGET)
        ordered = sorted(levels, key=levels.__getitem__)
        lower, upper = pl.col(ordered[0]), pl.col(ordered[-1])
        scored = [
            error.abs().mean().alias("mae"),
            error.pow(2).mean().sqrt().alias("rmse"),
            (pl.col(MEAN if MEAN in names else "q50") - pl.col(TARGET)).mean().alias("me"),
            pl.mean_horizontal(_pinball(*level) for level in levels.items()).mean().alias("pinball"),
            pl.col(TARGET).is_between(lower, upper).mean().alias("coverage"),
            (upper - lower).mean().alias("width"),
        ]
    return by_model(frame.group_by(MODEL, STEP).agg(*scored).collect(engine="streaming"), STEP)


def coverage_by_level(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return model, level, coverage: the share of observed targets at or below each quantile (ideally the level).

    And pinball, the mean of 2 max(level e, (level - 1) e), e = y - q (Koenker & Bassett 1978, Econometrica 46). Of
    classes, the share of times that a class came whose probability was in each tenth, against its mean there.
    """
    observed = _observed(forecasts)
    names = observed.collect_schema().names()
    if CLASS in names:
        each = observed.unpivot(
            [name for name in names if name.startswith(class_column(""))],
            index=[MODEL, TARGET],
            variable_name="name",
            value_name="level",
        )
        tenth = (pl.col("level") * 10).floor().clip(upper_bound=9)
        came = (pl.col("name") == class_column("") + pl.col(TARGET)).mean().alias("coverage")
        found = each.group_by(MODEL, tenth.alias("tenth")).agg(pl.col("level").mean(), came)
        return by_model(found.collect(engine="streaming"), "level").drop("tenth")
    levels = quantile_levels(names)
    shares = [(pl.col(TARGET) <= pl.col(name)).mean().alias(f"coverage {name}") for name in levels]
    losses = [_pinball(name, level).mean().alias(f"pinball {name}") for name, level in levels.items()]
    wide = observed.group_by(MODEL).agg(*shares, *losses).collect(engine="streaming")
    long = pl.concat(
        wide.select(
            MODEL,
            pl.lit(level).alias("level"),
            pl.col(f"coverage {name}").alias("coverage"),
            pl.col(f"pinball {name}").alias("pinball"),
        )
        for name, level in levels.items()
    )
    return by_model(long, "level")


def coverage_by_interval(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return model, level, coverage, width: of each central interval that the quantiles hold, over observed targets.

    coverage is the share of targets inside (ideally the level), width the mean in units of the target. Interval of
    level 0.8: from q10 to q90.
    """
    observed = _observed(forecasts)
    names = quantile_levels(observed.collect_schema().names())
    pairs = {
        round(1 - 2 * level, 9): (name, quantile_column(1 - level))
        for name, level in names.items()
        if level < 0.5 and quantile_column(1 - level) in names
    }
    scored = [
        aggregate
        for lower, upper in pairs.values()
        for aggregate in (
            pl.col(TARGET).is_between(pl.col(lower), pl.col(upper)).mean().alias(f"coverage {lower}"),
            (pl.col(upper) - pl.col(lower)).mean().alias(f"width {lower}"),
        )
    ]
    wide = observed.group_by(MODEL).agg(*scored).collect(engine="streaming")
    long = [
        wide.select(
            MODEL,
            pl.lit(level).alias("level"),
            pl.col(f"coverage {lower}").alias("coverage"),
            pl.col(f"width {lower}").alias("width"),
        )
        for level, (lower, _) in pairs.items()
    ]
    schema = {MODEL: pl.String, "level": pl.Float64, "coverage": pl.Float64, "width": pl.Float64}
    return by_model(pl.concat([pl.DataFrame(schema=schema), *long]), "level")


def quantile_levels(columns: Sequence[str]) -> dict[str, float]:
    """Return the quantile columns with their levels.

    >>> quantile_levels(["step", "q2.5", "q50"])
    {'q2.5': 0.025, 'q50': 0.5}
    """
    quantiles = [name for name in columns if name[0] == "q" and name[1:].replace(".", "").isdigit()]
    return {name: round(float(name[1:]) / 100, 9) for name in quantiles}


def _observed(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.LazyFrame:
    return forecasts.lazy().filter(pl.col(TARGET).is_not_null())


def _pinball(name: str, level: float) -> pl.Expr:
    error = pl.col(TARGET) - pl.col(name)
    return 2 * pl.max_horizontal(level * error, (level - 1) * error)


def wins(scores: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return model, baseline, and on what share of the series the model is better, over windows that both have.

    mase        of the series with one, the share on which its mean is lower; null if there are none
    pinball     share on which its sum is lower
    n_series    series that both have forecast; `n_mase` those with a MASE

    Of classes log_loss and brier in place of the two, by their sums. Equal is not better.
    """
    frame = scores.lazy()
    present = frame.select(pl.col(MODEL).unique()).collect(engine="streaming")[MODEL].to_list()
    classes = LOG_LOSS in frame.collect_schema().names()
    metrics = [LOG_LOSS, "brier"] if classes else ["mase", "pinball"]
    keys = [SERIES_ID, CUTOFF]
    pairs = []
    for model in (name for name in present if name not in BASELINES):
        for baseline in (name for name in BASELINES if name in present):
            ours, theirs = (frame.filter(pl.col(MODEL) == name).select(*keys, *metrics) for name in (model, baseline))
            # A MASE is not there for both or for none: its scale is the same.
            totals = (
                ours.join(theirs, on=keys, suffix="_other")
                .group_by(SERIES_ID)
                .agg(pl.all().exclude(keys).fill_nan(None).sum(), defined=pl.col(metrics[0]).is_not_nan().any())
            )
            better = [
                pl.col(name).lt(pl.col(f"{name}_other")).filter(pl.col("defined") | (name != "mase")).mean().alias(name)
                for name in metrics
            ]
            counted = [pl.len().cast(pl.Int64).alias("n_series")]
            counted += [] if classes else [pl.col("defined").sum().cast(pl.Int64).alias("n_mase")]
            named = [pl.lit(model).alias(MODEL), pl.lit(baseline).alias("baseline")]
            found = totals.select(*better, *counted).collect(engine="streaming")
            pairs.append(found.select(*named, pl.all()))
    return by_model(pl.concat(pairs))
