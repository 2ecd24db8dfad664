"""Counts and times of a scoring job, for MLflow and the terminal."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.errors import GatecastError
from forecast.names import metric_name

if TYPE_CHECKING:
    from forecast.scoring.parts import Output
    from forecast.tracking.run import Run


def _totals(outputs: "list[Output]") -> Counter[str]:
    """Return the counts of all manifests, summed over the cutoffs, by names for MLflow such as rejects/bad row."""
    totals: Counter[str] = Counter()
    for content in (output.content for output in outputs):
        totals.update(rows=content["rows"]["written"], carried_forward=content["carried_forward"])
        for group in ("series", "sources", "rejects", "bounded", "state"):
            totals.update({f"{group}/{metric_name(name)}": count for name, count in content[group].items()})
        if overrides := content.get("overrides"):
            rejected = sum(overrides["rejected"].values())
            totals.update({f"overrides/{name}": overrides[name] for name in ("applied", "without_forecast", "expired")})
            totals.update({"overrides/rejected": rejected})
    return totals


def _of(group: str, totals: Counter[str]) -> dict[str, int]:
    """Return the counts of a group, by name."""
    start = f"{group}/"
    return {name.removeprefix(start): count for name, count in sorted(totals.items()) if name.startswith(start)}


def log_scores(run: "Run", outputs: "list[Output]", failed: dict[str, GatecastError], seconds: float) -> None:
    """Log counts, seconds and shares over all cutoffs of the job, and every manifest."""
    totals = _totals(outputs)
    spent: Counter[str] = Counter()
    for output in outputs:
        spent.update(output.seconds)
    n_series = [output.content["series"]["in"] for output in outputs if not output.was_complete]
    run.metrics(
        {
            **{f"score/{name}": count for name, count in totals.items()},
            **{f"score/share/{name}": n / totals["series/forecast"] for name, n in _of("sources", totals).items()},
            **{f"score/seconds/{stage}": value for stage, value in spent.items()},
            "score/seconds/job": seconds,
            "score/series_per_second": sum(n_series) / max(spent["all"], 1e-9),
            "score/cutoffs_written": len(n_series),
            "score/cutoffs_done_before": len(outputs) - len(n_series),
            "score/cutoffs_failed": len(failed),
        }
    )
    run.json([output.content for output in outputs], "manifests.json")
    if failed:
        run.json({cutoff: str(error) for cutoff, error in failed.items()}, "failed.json")


def summary_line(outputs: "list[Output]", folder: Path, seconds: float) -> str:
    """Return a line about the completed cutoffs; empty without any."""
    from forecast.data.ages import ENDED

    if not outputs:
        return ""
    totals, n_done = _totals(outputs), sum(output.was_complete for output in outputs)
    first, last = outputs[0].content["cutoff"], outputs[-1].content["cutoff"]
    series, state = _of("series", totals), _of("state", totals)
    ended = _of("rejects", totals).get(ENDED, 0)
    parts = [
        f"cutoff {first}" if len(outputs) == 1 else f"{len(outputs):,} cutoffs {first} to {last}",
        f"{series['in']:,} series = {series['forecast']:,} forecast + {series['rejected']:,} rejected"
        + (f" ({ended:,} ended)" if ended else ""),
        *(f"{count:,} {source}" for source, count in _of("sources", totals).items()),
        f"{totals['rows']:,} rows",
        f"{sum(_of('rejects', totals).values()):,} rejects",
        *_overrides(_of("overrides", totals)),
        *([", ".join(f"state {name} {count:,}" for name, count in state.items())] if state else []),
        *(f"{count:,} values moved to output.{bound}" for bound, count in _of("bounded", totals).items()),
        *([f"{n_done:,} done before"] if 0 < n_done < len(outputs) else []),
        "all done before, nothing was written" if n_done == len(outputs) else f"{folder}",
        f"{seconds:.1f} s",
    ]
    return ", ".join(parts)


def _overrides(counts: dict[str, int]) -> list[str]:
    """Return what became of overrides as texts, nothing without any."""
    if not counts:
        return []
    others = [
        f"{counts[name]:,} {text}"
        for name, text in (("rejected", "rejected"), ("expired", "expired"), ("without_forecast", "without a forecast"))
        if counts[name]
    ]
    return [f"{counts['applied']:,} values overridden" + (f" (overrides: {', '.join(others)})" if others else "")]
