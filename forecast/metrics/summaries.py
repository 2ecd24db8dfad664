"""Scores summarised by model, step, level and class."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from forecast.names import (
    BASELINES,
    CLASS,
    CRPS,
    CUTOFF,
    LOG_LOSS,
    MEAN,
    MODEL,
    SERIES_ID,
    SOURCE_FINE_TUNED,
    SOURCE_PRETRAINED,
    STEP,
    TARGET,
    WEIGHT,
    class_column,
    quantile_column,
)

# Ratios of sums over all steps of all windows: of two columns of scores.
_RATIOS: Final = {
    "wql": ("pinball", "abs_target"),
    CRPS: (CRPS, "n_steps"),
    "wape": ("abs_error", "abs_target"),
    "bias": ("error", "abs_target"),
    "coverage": ("covered", "n_steps"),
}

_ORDER = (*BASELINES, SOURCE_PRETRAINED, SOURCE_FINE_TUNED)


def by_model(frame: pl.DataFrame, *more_columns: str) -> pl.DataFrame:
    """Return rows sorted by model, baselines first, then by `more_columns`."""
    rank = pl.col(MODEL).replace_strict(_ORDER, range(len(_ORDER)), default=len(_ORDER), return_dtype=pl.Int32)
    return frame.sort(rank, MODEL, *more_columns)


def summarise(scores: pl.DataFrame | pl.LazyFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return one row per model and per value of the columns `by`, which come first.

    For numbers, means over windows (mase, smape, rmsse) and ratios of sums over all steps of all windows:

    wql         sum pinball / sum |y| (weighted quantile loss: Wang et al. 2019, "Deep Factors", ICML)
    wape        sum |y - q50| / sum |y|
    bias        sum (mean - y) / sum |y|, of the mean forecast (q50 if there is none, although the median of a skewed
                distribution lies below its mean); `me` is sum (mean - y) / steps, in units of the target
    coverage    share of steps inside the outermost interval; `width` is the sum of its widths / sum |y|
    crps        mean over steps (`score_points`), where scored

    `n_undefined` windows have no MASE and no RMSSE (a constant or too short past), and are left out of their means. For
    classes, log_loss, brier and accuracy, means over all steps. A lazy frame is read in blocks.

    Scores with a weight per window also have each mean and ratio with the windows counted by it, as w_mase, w_wql, ...:
    a weighted mean over windows, or a ratio of weighted sums. Multiplying all weights by a number changes nothing.
    """
    frame = scores.lazy()
    names = frame.collect_schema().names()
    steps = pl.col("n_steps").sum()
    counts = [pl.col(SERIES_ID).n_unique().alias("n_series"), pl.len().cast(pl.Int64).alias("n_windows")]
    weighted: list[pl.Expr] = []
    if LOG_LOSS in names:
        ratios = {LOG_LOSS: (LOG_LOSS, "n_steps"), "brier": ("brier", "n_steps"), "accuracy": ("correct", "n_steps")}
        means = [(pl.col(part).sum() / pl.col(whole).sum()).alias(name) for name, (part, whole) in ratios.items()]
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
        ratios = {name: sums for name, sums in _RATIOS.items() if sums[0] in names}
        weighted = [_weighted_mean(name) for name in ("mase", "rmsse")]
        counts.append(pl.col("mase").is_nan().sum().alias("n_undefined"))
    if WEIGHT in names:
        weighted += [
            ((pl.col(part) * pl.col(WEIGHT)).sum() / (pl.col(whole) * pl.col(WEIGHT)).sum()).alias(f"w_{name}")
            for name, (part, whole) in ratios.items()
        ]
        means += [pl.when(value.is_finite()).then(value) for value in weighted]
    summary = frame.group_by(*by, MODEL).agg(*means, *counts).collect(engine="streaming")
    return by_model(summary, *by).sort(*by, maintain_order=True) if by else by_model(summary)


def _weighted_mean(name: str) -> pl.Expr:
    """Return the mean of a score over the windows that have it, counted by their weights."""
    weight = pl.col(WEIGHT).filter(pl.col(name).is_not_nan())
    return ((pl.col(name).fill_nan(0.0) * pl.col(WEIGHT)).sum() / weight.sum()).alias(f"w_{name}")


def confusion(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return model, target, class, n: the number of steps per actual class (target) and most probable class."""
    counts = _observed(forecasts).group_by(MODEL, TARGET, CLASS).agg(pl.len().alias("n"))
    return by_model(counts.collect(engine="streaming"), TARGET, CLASS)


def macro_f1(counts: pl.DataFrame) -> pl.DataFrame:
    """Return model, macro_f1 from `confusion`: the mean F1 over the classes that are actual or forecast at least once.

    F1 = 2 hits / (times forecast + times actual) (van Rijsbergen 1979).
    """
    actual, predicted = (
        counts.group_by(MODEL, pl.col(name).alias("name")).agg(pl.col("n").sum()) for name in (TARGET, CLASS)
    )
    hits = counts.filter(pl.col(TARGET) == pl.col(CLASS)).select(MODEL, pl.col(CLASS).alias("name"), hits="n")
    counts_by_class = pl.concat([actual, predicted]).group_by(MODEL, "name").agg(pl.col("n").sum())
    counts_by_class = counts_by_class.join(hits, on=[MODEL, "name"], how="left")
    return counts_by_class.group_by(MODEL).agg((2 * pl.col("hits").fill_null(0) / pl.col("n")).mean().alias("macro_f1"))


def error_by_step(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return step, model and scores at each step of the horizon, over observed targets.

    mae and rmse of q50, me (mean of mean forecast - y, or of q50 - y without a column of means), pinball (twice the
    mean over levels), coverage and mean width of the outermost interval; for classes error_rate, the share of steps
    whose most probable class is not the actual one.
    """
    frame = _observed(forecasts)
    names = frame.collect_schema().names()
    if CLASS in names:
        metrics = [(pl.col(TARGET) != pl.col(CLASS)).mean().alias("error_rate")]
    else:
        levels, error = quantile_levels(names), pl.col("q50") - pl.col(TARGET)
        ordered = sorted(levels, key=levels.__getitem__)
        lower, upper = pl.col(ordered[0]), pl.col(ordered[-1])
        metrics = [
            error.abs().mean().alias("mae"),
            error.pow(2).mean().sqrt().alias("rmse"),
            (pl.col(MEAN if MEAN in names else "q50") - pl.col(TARGET)).mean().alias("me"),
            pl.mean_horizontal(_pinball(*level) for level in levels.items()).mean().alias("pinball"),
            pl.col(TARGET).is_between(lower, upper).mean().alias("coverage"),
            (upper - lower).mean().alias("width"),
        ]
    return by_model(frame.group_by(MODEL, STEP).agg(*metrics).collect(engine="streaming"), STEP)


def coverage_by_level(forecasts: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return model, level, coverage, pinball: the share of observed targets at or below each quantile, and its loss.

    Ideally coverage is the level. Pinball is the mean of 2 max(level e, (level - 1) e), e = y - q (Koenker & Bassett
    1978, Econometrica 46). For classes there is no pinball: probabilities are binned in tenths, level is their mean in
    a bin, coverage the frequency of the class there.
    """
    observed = _observed(forecasts)
    names = observed.collect_schema().names()
    if CLASS in names:
        probabilities = observed.unpivot(
            [name for name in names if name.startswith(class_column(""))],
            index=[MODEL, TARGET],
            variable_name="name",
            value_name="level",
        )
        tenth = (pl.col("level") * 10).floor().clip(upper_bound=9)
        frequency = (pl.col("name") == class_column("") + pl.col(TARGET)).mean().alias("coverage")
        reliability = probabilities.group_by(MODEL, tenth.alias("tenth")).agg(pl.col("level").mean(), frequency)
        return by_model(reliability.collect(engine="streaming"), "level").drop("tenth")
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
    """Return model, level, coverage, width of each central interval between forecast quantiles, over observed targets.

    coverage is the share of targets inside (ideally the level), width the mean in units of the target. The interval of
    level 0.8 is that from q10 to q90.
    """
    observed = _observed(forecasts)
    names = quantile_levels(observed.collect_schema().names())
    pairs = {
        round(1 - 2 * level, 9): (name, quantile_column(1 - level))
        for name, level in names.items()
        if level < 0.5 and quantile_column(1 - level) in names
    }
    metrics = [
        aggregate
        for lower, upper in pairs.values()
        for aggregate in (
            pl.col(TARGET).is_between(pl.col(lower), pl.col(upper)).mean().alias(f"coverage {lower}"),
            (pl.col(upper) - pl.col(lower)).mean().alias(f"width {lower}"),
        )
    ]
    wide = observed.group_by(MODEL).agg(*metrics).collect(engine="streaming")
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
    """Return the names of the quantile columns among `columns`, with their levels.

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
    """Return model, baseline, and the share of series on which the model is better, over windows that both have.

    mase        share of the series with a MASE on which its mean is lower; null if there are none
    pinball     share on which its sum is lower
    n_series    number of series that both have forecast; `n_mase` of those with a MASE

    For classes, log_loss and brier instead of the two, by their sums. Ties do not count as better.
    """
    frame = scores.lazy()
    present = frame.select(pl.col(MODEL).unique()).collect(engine="streaming")[MODEL].to_list()
    classes = LOG_LOSS in frame.collect_schema().names()
    metrics = [LOG_LOSS, "brier"] if classes else ["mase", "pinball"]
    keys = [SERIES_ID, CUTOFF]
    pairs = []
    for model in (name for name in present if name not in BASELINES):
        for baseline in (name for name in BASELINES if name in present):
            model_scores, baseline_scores = (
                frame.filter(pl.col(MODEL) == name).select(*keys, *metrics) for name in (model, baseline)
            )
            # Model and baseline have the same MASE scale: both have a MASE, or neither.
            totals = (
                model_scores.join(baseline_scores, on=keys, suffix="_other")
                .group_by(SERIES_ID)
                .agg(pl.all().exclude(keys).fill_nan(None).sum(), defined=pl.col(metrics[0]).is_not_nan().any())
            )
            better = [
                pl.col(name).lt(pl.col(f"{name}_other")).filter(pl.col("defined") | (name != "mase")).mean().alias(name)
                for name in metrics
            ]
            counts = [pl.len().cast(pl.Int64).alias("n_series")]
            counts += [] if classes else [pl.col("defined").sum().cast(pl.Int64).alias("n_mase")]
            labels = [pl.lit(model).alias(MODEL), pl.lit(baseline).alias("baseline")]
            shares = totals.select(*better, *counts).collect(engine="streaming")
            pairs.append(shares.select(*labels, pl.all()))
    return by_model(pl.concat(pairs))
