"""The versions of a model as a tree."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pipelines.jobs.version_tags import CALIBRATED, DISTILLED, FINETUNE_KIND, SERIES_TUNED, uplift_text

if TYPE_CHECKING:
    import polars as pl

    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version

_LABELS: Final = {"MASE": "mase", "WQL": "wql", "log-loss": "log_loss"}
"""Metrics that rank versions."""


def lineage(registry: "Registry", marked: int | None = None) -> "pl.DataFrame":
    """Return a row of texts for each version, below its parent: its changes and its metrics.

    The version `marked` is labelled as this one.
    """
    import polars as pl

    versions = registry.versions()
    metrics = registry.metrics(run_id for version in versions for run_id in runs_of(version))
    rows = []
    for branch, version in _branches(versions):
        values = metrics_of(version, metrics)
        changes = ", ".join(version.tags[tag] for tag in (FINETUNE_KIND, CALIBRATED, DISTILLED) if tag in version.tags)
        scores = [f"{name} {value:.4f}" for name, value in values.items() if name in ("val/loss", *_judged(version))]
        if "finetune/uplift" in values:
            width = values.get("finetune/uplift_interval", float("nan"))
            per_series = uplift_text(values["finetune/uplift_per_series"], width)
            scores.append(f"uplift {values['finetune/uplift']:.2%}, per series {per_series}")
        rows.append(
            (
                f"{branch} (this one)" if version.number == marked else branch,
                f"{version.kind} ({changes})" if changes else version.kind,
                ", ".join(version.aliases),
                version.tags.get(SERIES_TUNED, ""),
                version.tags.get("data_digest", "")[:12],
                "\n".join(scores),
            )
        )
    return pl.DataFrame(rows, ["version", "kind", "aliases", "series tuned", "data", "metrics"], orient="row")


def _branches(versions: "Sequence[Version]") -> "Iterator[tuple[str, Version]]":
    """Yield all versions with the text of their branch, below their parent, oldest first."""
    numbers = {version.number for version in versions}
    children: dict[int | None, list[Version]] = {}
    for version in reversed(versions):
        children.setdefault(version.parent if version.parent in numbers else None, []).append(version)

    def below(parent: int | None, stem: str) -> "Iterator[tuple[str, Version]]":
        siblings = children.get(parent, [])
        for position, version in enumerate(siblings, 1):
            last = position == len(siblings)
            deleted = f" (v{version.parent} is deleted)" if parent is None and version.parent else ""
            knee = "" if parent is None else "└─ " if last else "├─ "
            yield f"{stem}{knee}v{version.number}{deleted}", version
            yield from below(version.number, stem if parent is None else stem + ("   " if last else "│  "))

    return below(None, "")


def runs_of(version: "Version") -> list[str]:
    """Return the runs that created and evaluated a version."""
    from forecast.names import BACKTEST_RUN

    return [version.run_id, version.tags.get(BACKTEST_RUN, "")]


def metrics_of(version: "Version", metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return the metrics of the runs of a version."""
    return {name: value for run_id in runs_of(version) for name, value in metrics.get(run_id, {}).items()}


def _judged(version: "Version") -> list[str]:
    return [f"backtest/{version.kind}/{name}" for name in _LABELS.values()]


@dataclass(frozen=True)
class Accuracy:
    """Result of the latest backtest of a version."""

    metrics: Mapping[str, float]
    """Metrics by their labels; empty without a backtest."""
    data: str
    """Name and digest of the data; empty if unknown."""

    @property
    def rank(self) -> float:
        """The metric to sort by: MASE, or log-loss for classes; infinity without one."""
        return next(iter(self.metrics.values()), math.inf)

    def text(self, label: str) -> str:
        """Return a metric as text, empty without it."""
        return f"{self.metrics[label]:.4f}" if label in self.metrics else ""


def accuracy_of(registry: "Registry", versions: "Sequence[Version]") -> dict[int, Accuracy]:
    """Return the accuracy of each version by its number."""
    from forecast.names import BACKTEST_RUN

    run_ids = {version.number: version.tags.get(BACKTEST_RUN, "") for version in versions}
    outcomes = registry.outcomes(run_ids.values()) if any(run_ids.values()) else {}
    accuracy = {}
    for version in versions:
        outcome = outcomes.get(run_ids[version.number])
        logged = outcome.metrics if outcome else {}
        names = {label: f"backtest/{version.kind}/{name}" for label, name in _LABELS.items()}
        values = {label: logged[name] for label, name in names.items() if math.isfinite(logged.get(name, math.nan))}
        accuracy[version.number] = Accuracy(values, outcome.data if outcome else "")
    return accuracy


def parent_of(version: "Version") -> str:
    """Return the parent of a version as text, empty without one."""
    return f"v{version.parent}" if version.parent else ""


def created_at(version: "Version") -> str:
    """Return the time of a version's registration, in UTC."""
    return datetime.fromtimestamp(version.created / 1000, UTC).strftime("%Y-%m-%d %H:%M")
