"""Asset checks of a scored cutoff."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from forecast.config import ScoreConfig, ScoreOutput, SinkConfig
from forecast.data.ages import ENDED
from forecast.data.sources.frames import UNREADABLE
from forecast.errors import ConfigError, GatecastError, listing
from forecast.names import CLASS, CUTOFF, MEAN
from forecast.scoring.manifests import ForecastKey, current
from forecast.scoring.sinks.open import open_sink, open_stored
from pipelines.jobs.ledger_entry import Entry

try:
    import dagster as dg
except ImportError:
    raise ConfigError("pipelines.dagster needs: pip install 'gatecast[dagster]'") from None


CHECKS: Final = {
    "conservation": "series in = forecast + rejected, and every one that is forecast has all its steps",
    "rejects": "no more series and rows are rejected than data.max_reject_share, besides series that have ended",
    "intact": "the files, or the rows of the tables, are those that the manifest names",
    "finite": "every number of the forecasts is finite",
    "drift": "the forecasts are spread like those of the cutoffs before (a warning)",
}
_HISTORY: Final = 7
"""Earlier cutoffs with which forecasts are compared."""
_BINS: Final = 10
_DRIFT: Final = 0.25
"""Largest population stability index; larger values are commonly called a shift."""


@dataclass(frozen=True)
class Verdict:
    """Verdict of a check on a cutoff."""

    passed: bool
    text: str
    is_certain: bool = True
    """Whether the check could be made; if not, it is a warning."""


def judge(config: ScoreConfig, entry: Entry) -> dict[str, Verdict]:
    """Return the verdicts of CHECKS on the output of a score."""
    manifest = Path(entry.folder, entry.output)
    content = manifest_at(manifest)
    if content is None:
        return dict.fromkeys(CHECKS, Verdict(False, f"the manifest {manifest} can't be read"))
    output = config.output.model_copy(update={"path": str(Path(entry.folder, config.output.path))})
    checks: dict[str, Callable[[], Verdict]] = {
        "conservation": lambda: _conservation(content),
        "rejects": lambda: _rejects(content, config.data.max_reject_share),
        "intact": lambda: _intact(output, content),
        "finite": lambda: _finite(manifest, content),
        "drift": lambda: _drift(manifest, content),
    }
    return {name: _verdict_of(check) for name, check in checks.items()}


def _verdict_of(check: "Callable[[], Verdict]") -> Verdict:
    """Return the verdict of a check; an impossible check does not fail the score."""
    try:
        return check()
    except (GatecastError, KeyError, TypeError, ValueError, pa.ArrowException, *UNREADABLE) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        return Verdict(False, f"can't be checked: {reason}", is_certain=False)


def _conservation(content: dict[str, Any]) -> Verdict:
    series, rows = content["series"], content["rows"]
    is_conserved = series["in"] == series["forecast"] + series["rejected"]
    complete = rows["written"] == series["forecast"] * content["horizon"]
    return Verdict(
        is_conserved and complete,
        f"{series['in']:,} series in, {series['forecast']:,} forecast, {series['rejected']:,} rejected; "
        f"{rows['written']:,} rows, {content['horizon']:,} steps ahead",
    )


def _rejects(content: dict[str, Any], limit: float) -> Verdict:
    series, rows = content["series"], content["rows"]
    ended = content["rejects"].get(ENDED, 0)  # Not a fault of the data.
    shares = {
        "series": (series["rejected"] - ended) / max(series["in"], 1),
        "rows": rows["rejected"] / max(rows["in"], 1),
    }
    text = ", ".join(f"{share:.2%} of the {name}" for name, share in shares.items())
    return Verdict(max(shares.values()) <= limit, f"{text}; the limit is {limit:.2%}")


def _intact(output: ScoreOutput, content: dict[str, Any]) -> Verdict:
    wrong = _changed(open_sink(output).inventory(ForecastKey.of(content)), content)
    return Verdict(not wrong, f"not what the manifest says: {listing(wrong)}" if wrong else "as written")


def _changed(inventory: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Return the differences from the manifest: files, tables, or the key in a database."""
    changed = []
    for kind, values in inventory.items():
        expected = content.get(kind)
        if isinstance(values, dict):
            expected = expected or {}
            changed += [name for name in {*values, *expected} if values.get(name) != expected.get(name)]
        elif values != expected:
            changed.append(kind)
    return sorted(changed)


def _finite(manifest: Path, content: dict[str, Any]) -> Verdict:
    if "files" not in content:
        return Verdict(True, "rows of tables are not read")
    try:
        numbers = _forecasts(manifest, content).select(pl.selectors.float()).collect()
    except (GatecastError, *UNREADABLE) as error:
        return Verdict(False, f"can't be read: {error}")
    bad = numbers.select(pl.sum_horizontal(pl.all().is_finite().not_().fill_null(True).sum())).item()
    return Verdict(bad == 0, f"{bad:,} of {numbers.height * numbers.width:,} numbers are not finite")


def _drift(manifest: Path, content: dict[str, Any]) -> Verdict:
    if "files" not in content:
        return Verdict(True, "rows of tables are not read")
    frame = _forecasts(manifest, content).collect()
    history = list(_earlier(manifest, content, frame.columns))
    if not history:
        return Verdict(True, "there is no cutoff before that it can be compared with")
    psi = stability(frame, pl.concat(history, how="diagonal_relaxed"))
    against = f"population stability index {psi:.3f} against {len(history)} cutoff(s) before; the limit is {_DRIFT}"
    return Verdict(psi <= _DRIFT, against)


def _earlier(manifest: Path, content: dict[str, Any], columns: list[str]) -> Iterator[pl.DataFrame]:
    """Yield the existing forecasts of earlier cutoffs with the same columns."""
    names = sorted(manifest.parent.glob("*.json"))
    earlier = [earlier_content for path in names[: names.index(manifest)] if (earlier_content := manifest_at(path))]
    before = current(earlier_content for earlier_content in earlier if earlier_content.get("model") == content["model"])
    for earlier_content in [
        earlier_content for earlier_content in before if earlier_content[CUTOFF] != content[CUTOFF]
    ][-_HISTORY:]:
        with suppress(KeyError, GatecastError, *UNREADABLE):
            rows = _forecasts(manifest, earlier_content).collect()
            if (MEAN in rows.columns) == (MEAN in columns):
                yield rows


def _forecasts(manifest: Path, content: dict[str, Any]) -> pl.LazyFrame:
    sink = open_stored(SinkConfig(path=str(manifest.parents[1])), [content])
    return pl.concat(sink.forecasts(content), how="diagonal_relaxed")


def stability(frame: pl.DataFrame, history: pl.DataFrame) -> float:
    """Return the population stability index of forecasts, over deciles of finite means in the history, or classes.

    The index is sum((p - q) ln(p / q)) over the bins, with half a forecast added to each bin.
    """
    if MEAN in history.columns:
        frame, history = (part.filter(pl.col(MEAN).is_finite()) for part in (frame, history))
        edges = [history[MEAN].quantile(step / _BINS) for step in range(1, _BINS)]
        of = pl.col(MEAN).cut(sorted({edge for edge in edges if edge is not None}))
    else:
        of = pl.col(CLASS)
    counted = (part.group_by(of.cast(pl.String).alias("bin")).len() for part in (frame, history))
    counts = [Counter(dict(rows.iter_rows())) for rows in counted]
    bins = counts[0].keys() | counts[1].keys()
    p, q = ([(count[bin_index] + 0.5) / (count.total() + 0.5 * len(bins)) for bin_index in bins] for count in counts)
    return sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))


def summary_of(name: str, verdicts: Sequence[tuple[str, Verdict]]) -> dg.AssetCheckResult:
    """Return one check result for all partitions of a run; it names the failed ones."""
    failed = [(key, verdict) for key, verdict in verdicts if not verdict.passed]
    lines = [f"{key}: {verdict.text}" for key, verdict in failed or verdicts[-1:]]
    is_warning = name == "drift" or not any(verdict.is_certain for _, verdict in failed)
    return dg.AssetCheckResult(
        check_name=name,
        passed=not failed,
        severity=dg.AssetCheckSeverity.WARN if is_warning else dg.AssetCheckSeverity.ERROR,
        description="; ".join(lines[:5]),
        metadata={"partitions": len(verdicts), "failed": [key for key, _ in failed]},
    )


def manifest_at(path: Path) -> dict[str, Any] | None:
    """Return the content of a manifest, None if it can't be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
