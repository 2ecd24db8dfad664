"""The versions that a model was made from, as a tree."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipelines.jobs.version_tags import CALIBRATED, DISTILLED, FINETUNE_KIND, SERIES_TUNED, uplift_text

if TYPE_CHECKING:
    import polars as pl

    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version


def lineage(registry: "Registry", shown: int | None = None) -> "pl.DataFrame":
    """Return a row of texts for each version, behind its parent: what was changed, and how it was judged.

    The version `shown` is marked.
    """
    import polars as pl

    versions = registry.versions()
    metrics = registry.metrics(run_id for each in versions for run_id in runs_of(each))
    rows = []
    for branch, each in _branches(versions):
        found = metrics_of(each, metrics)
        how = ", ".join(each.tags[tag] for tag in (FINETUNE_KIND, CALIBRATED, DISTILLED) if tag in each.tags)
        scores = [f"{name} {value:.4f}" for name, value in found.items() if name in ("val/loss", *_judged(each))]
        if "finetune/uplift" in found:
            width = found.get("finetune/uplift_interval", float("nan"))
            per_series = uplift_text(found["finetune/uplift_per_series"], width)
            scores.append(f"uplift {found['finetune/uplift']:.2%}, per series {per_series}")
        rows.append(
            (
                f"{branch} (this one)" if each.number == shown else branch,
                f"{each.kind} ({how})" if how else each.kind,
                ", ".join(each.aliases),
                each.tags.get(SERIES_TUNED, ""),
                each.tags.get("data_digest", "")[:12],
                "\n".join(scores),
            )
        )
    return pl.DataFrame(rows, ["version", "kind", "aliases", "series tuned", "data", "metrics"], orient="row")


def _branches(versions: "Sequence[Version]") -> "Iterator[tuple[str, Version]]":
    """Yield all versions with their branch drawn, each behind its parent; the oldest first."""
    numbers = {each.number for each in versions}
    children: dict[int | None, list[Version]] = {}
    for each in reversed(versions):
        children.setdefault(each.parent if each.parent in numbers else None, []).append(each)

    def below(parent: int | None, stem: str) -> "Iterator[tuple[str, Version]]":
        own = children.get(parent, [])
        for position, each in enumerate(own, 1):
            last = position == len(own)
            gone = f" (v{each.parent} is deleted)" if parent is None and each.parent else ""
            knee = "" if parent is None else "└─ " if last else "├─ "
            yield f"{stem}{knee}v{each.number}{gone}", each
            yield from below(each.number, stem if parent is None else stem + ("   " if last else "│  "))

    return below(None, "")


def runs_of(version: "Version") -> list[str]:
    """Return the runs that made and judged a version."""
    from forecast.backtesting.result import BACKTEST_RUN

    return [version.run_id, version.tags.get(BACKTEST_RUN, "")]


def metrics_of(version: "Version", metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the metrics of the runs of a version."""
    return {name: value for run_id in runs_of(version) for name, value in metrics.get(run_id, {}).items()}


def _judged(version: "Version") -> list[str]:
    return [f"backtest/{version.kind}/{name}" for name in ("mase", "wql", "log_loss")]


def parent_of(version: "Version") -> str:
    """Return the version that a version was made from, empty without one."""
    return f"v{version.parent}" if version.parent else ""


def created_at(version: "Version") -> str:
    """Return when a version was registered, in UTC."""
    return datetime.fromtimestamp(version.created / 1000, UTC).strftime("%Y-%m-%d %H:%M")
