"""The result of monitoring."""

import math
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from forecast.errors import listing
from forecast.monitoring.coverage import Coverage
from forecast.monitoring.drift import Span
from forecast.monitoring.freshness import Freshness
from forecast.monitoring.labels import ALARM, ALL, ANOMALY, FEW, FORECAST, IN_SAMPLE, NORMAL, RECENT
from forecast.names import CUTOFF, SERIES_ID


@dataclass(frozen=True)
class MonitorResult:
    """Result of `evaluation.monitor`: counts, metrics, alarms, drift and freshness."""

    span: Span
    as_of: datetime
    """The last evaluated step."""
    recent: datetime
    """The first step of the recent window."""
    by: str
    """Unit of the time axis: day or cutoff."""
    counts: dict[str, int]
    """Forecasts of the steps in both windows and later: rows = rows_scored + rows_not_yet_observed + rows_missing. Also
    cutoffs, series, series_unknown (not in the table; their due steps are missing), series_ended (rejects of the latest
    cutoff for score.max_age: neither forecast nor judged) and rows_recent (scored); and the exclusions:
    cutoffs_in_sample, and rows_in_sample (all rows of these cutoffs)."""
    versions: dict[str, int]
    """Number of cutoffs by the version that forecast them."""
    cutoffs: pl.DataFrame
    """Cutoffs in the windows: cutoff, model_version, trained_until (text; null: unknown), sample and rows. Cutoffs in
    sample, before the end of the training of their version, count in no other field."""
    freshness: Freshness
    coverage_80: Coverage
    bands: tuple[float, ...]
    """Nominal coverage of the intervals, widest first."""
    scores: pl.DataFrame
    """series_id, window, age, model, and sums over steps."""
    metrics: pl.DataFrame
    """group, value, window, model, and the metrics of `summarised`."""
    alarms: pl.DataFrame
    """series_id, status, mase, reference, median, deviation, limit, periods, n_steps."""
    anomalies: pl.DataFrame
    """Recent observations with a forecast, each with its verdict, anomalies first: `LatestForecasts.verdicts`."""
    anomaly_rate: float | None
    """`monitor.anomaly_rate`."""
    fva: pl.DataFrame
    """Forecast value added, of both windows: errors of overrides, model and seasonal naive, by author and segment
    (`value_added.value_added`); empty without overrides."""
    observed: int
    """Recent timestamps with both a forecast and an observation, of any series."""
    least_observed: int
    """Such timestamps needed before anything is judged."""
    drift: pl.DataFrame
    pairs: pl.DataFrame
    """Windows that champion and shadow have both forecast, in the form of `promotion.compare`."""
    shown: pl.DataFrame
    """The freshest forecast of each step of alarmed series: series_id, timestamp, cutoff, quantiles."""

    def metric(self, name: str, model: str = FORECAST, window: str = RECENT) -> float | None:
        """Return a metric over all series and ages; None where nothing was scored."""
        rows = self.metrics.filter(group=ALL, window=window, model=model)
        value = rows[name].item() if rows.height else None
        return None if value is None or math.isnan(value) else float(value)

    @property
    def coverage(self) -> str:
        """Name of the metric of the widest interval."""
        return coverage_name(self.bands[0])

    @property
    def alarmed(self) -> list[str]:
        """Series with an alarm, the worst first."""
        return self.alarms.filter(status=ALARM)[SERIES_ID].to_list()

    @property
    def judged(self) -> int:
        """Number of series with a reference."""
        return self.alarms.filter(pl.col("status").is_in([ALARM, NORMAL])).height

    @property
    def anomaly_counts(self) -> dict[str, int]:
        """Number of recent observations by verdict."""
        counts = dict.fromkeys((ANOMALY, NORMAL, FEW), 0)
        return counts | dict(self.anomalies.group_by("verdict").len().iter_rows())

    @property
    def left_out(self) -> str:
        """Number and list of the cutoffs in sample, as text; empty if there is none."""
        cutoffs = self.cutoffs.filter(sample=IN_SAMPLE)
        if cutoffs.is_empty():
            return ""
        trained = cutoffs.select("model_version", "trained_until").unique(maintain_order=True).sort("model_version")
        ends = listing(f"v{version} until {until}" for version, until in trained.rows())
        moments = listing((moment.isoformat() for moment in cutoffs[CUTOFF]), 3)
        return (
            f"{cutoffs.height:,} of {self.cutoffs.height:,} cutoffs left out: their version was trained on steps after "
            f"them ({ends}): {moments}"
        )


def coverage_name(band: float) -> str:
    """Return the name of the coverage metric of an interval.

    >>> coverage_name(0.8)
    'coverage_80'
    """
    return f"coverage_{100 * band:.6g}"
