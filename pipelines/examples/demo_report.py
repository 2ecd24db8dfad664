"""The tables and the page that `forecast demo` ends with."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from forecast.checkpoints import NANO
from forecast.names import SOURCE_FINE_TUNED, SOURCE_PRETRAINED, SOURCE_SEASONAL_NAIVE
from pipelines.examples.demo import GROUP, NIGHTS, WEEKS_OF_NEW, Demo
from pipelines.jobs import console

if TYPE_CHECKING:
    import polars as pl

_SHOWN_NIGHTS: Final = 7
_SHOWN: Final = (NANO, SOURCE_FINE_TUNED, SOURCE_PRETRAINED, SOURCE_SEASONAL_NAIVE)


class Results(NamedTuple):
    """Results of the demo's jobs."""

    scores: "pl.DataFrame"
    """Of all models on the nights, with a column `group`."""
    forecasts: "pl.DataFrame"
    decisions: "pl.DataFrame"
    """Of the gate, a row for each of the first sensors."""
    new_decisions: "pl.DataFrame"
    manifests: "list[dict[str, Any]]"
    monitor_page: Path


def show(demo: Demo, results: Results) -> None:
    """Print the results and write the page."""
    import polars as pl

    from forecast.metrics.summaries import summarise
    from forecast.names import MODEL

    scores = results.scores.filter(pl.col(MODEL).is_in(_SHOWN))
    shown = [MODEL, "mase", "wql", "wape", "coverage", "n_windows"]
    summary = summarise(scores).select(shown)
    groups = summarise(scores, by=[GROUP]).select(GROUP, *shown, "n_series").sort(GROUP, "wql")
    story = tell(groups, results)
    page = demo.folder / "report.html"
    with demo.clock("report"), console.stage("report") as stage:
        _write_page(page, demo, results, summary, groups, story)
        stage.note(page=page)
    console.table(groups, f"Four weeks of nights that no model had seen (less is better): {NIGHTS} forecasts of a day")
    seconds = demo.clock.seconds
    console.table(pl.DataFrame({"stage": list(seconds), "seconds": [f"{value:.1f}" for value in seconds.values()]}))
    print("\n".join(story))
    rows, series = (sum(content[part]["in"] for content in results.manifests) for part in ("rows", "series"))
    forecast = sum(content["series"]["forecast"] for content in results.manifests)
    rejected = sum(content["series"]["rejected"] for content in results.manifests)
    print(
        f"{len(results.manifests)} nights, {rows:,} rows, {series:,} series = {forecast:,} forecast + {rejected:,} "
        f"rejected, {sum(seconds.values()):.0f} s\nreport: {page}\nmonitor: {results.monitor_page}\n"
        f"runs and models: forecast ui registry.tracking_uri={demo.uri}"
    )


def tell(groups: "pl.DataFrame", results: Results) -> list[str]:
    """Return the result in sentences, by the weighted quantile loss."""
    import polars as pl

    from forecast.finetuning.series_gate import TUNED
    from forecast.names import MODEL, REASON

    def losses(group: str) -> dict[str, float]:
        return dict(groups.filter(pl.col(GROUP) == group).select(MODEL, "wql").iter_rows())

    def change(group: str, model: str, reference: str) -> str:
        share = losses(group)[model] / losses(group)[reference] - 1
        return f"{abs(share):.1%} {'less' if share < 0 else 'more'}"

    first, new = sorted(groups[GROUP].unique(), key=lambda name: "new" in name)
    champion = SOURCE_FINE_TUNED if SOURCE_FINE_TUNED in losses(first) else SOURCE_PRETRAINED
    tuned, n_first = (results.decisions[REASON] == TUNED).sum(), results.decisions.height
    new_tuned, n_new = (results.new_decisions[REASON] == TUNED).sum(), results.new_decisions.height
    sentences = [
        f"Without training, {NANO} has {change(first, NANO, SOURCE_SEASONAL_NAIVE)} quantile loss than the "
        "same hour a week before.",
        f"The champion has {change(first, champion, SOURCE_SEASONAL_NAIVE)}, on the {n_first} sensors that it was "
        "trained on.",
    ]
    if champion == SOURCE_FINE_TUNED:
        sentences.append(
            f"Fine-tuning changed {tuned} of these {n_first} sensors: "
            f"{change(first, SOURCE_FINE_TUNED, SOURCE_PRETRAINED)} loss than before it."
        )
    sentences.append(
        f"The {n_new} new sensors are forecast from their first night, with {WEEKS_OF_NEW} weeks of history: "
        f"{change(new, champion, SOURCE_SEASONAL_NAIVE)} loss than the same hour a week before."
    )
    if not new_tuned:
        sentences.append(f"Fine-tuning changed none of the {n_new}: their gate saw no gain in {WEEKS_OF_NEW} weeks.")
    elif math.isclose(losses(new)[champion], losses(new)[SOURCE_PRETRAINED], rel_tol=1e-6):
        sentences.append(f"Fine-tuning changed {new_tuned} of the {n_new}; that version was not promoted.")
    else:
        share = change(new, champion, SOURCE_PRETRAINED)
        sentences.append(f"Fine-tuning changed {new_tuned} of the {n_new}: {share} loss than before it.")
    return sentences


def _write_page(
    page: Path, demo: Demo, results: Results, summary: "pl.DataFrame", groups: "pl.DataFrame", story: list[str]
) -> None:
    import polars as pl

    from forecast.names import CUTOFF, MODEL
    from forecast.reports.report import ReportContent, write_report
    from pipelines.jobs.lineage import lineage

    content = results.manifests[-1]
    facts = {
        "model": f"{content['model']} v{content['model_version']}",
        "digest": str(content["model_digest"])[:12],
        "nights": str(len(results.manifests)),
        "series": f"{content['series']['forecast']:,} of {content['series']['in']:,} forecast",
        "rejects": f"{sum(content['rejects'].values()):,}",
    }
    nights = results.forecasts[CUTOFF].unique().sort().tail(_SHOWN_NIGHTS)
    shown = pl.col(MODEL).is_in(_SHOWN)
    report = ReportContent(
        title="People in Auckland",
        subtitle="People who pass a sensor, by hour: forecasts of each night for the next day, and what happened",
        lead=story,
        summary=summary,
        facts=facts,
        stages=list(demo.clock.seconds.items()),
        history=pl.read_parquet(demo.later),
        forecasts=results.forecasts.filter(shown & pl.col(CUTOFF).is_in(nights.implode())),
        scores=results.scores.filter(shown),
        decisions=results.decisions,
        segments=groups.rename({GROUP: "value"}).with_columns(pl.lit("sensors").alias("segment")),
        lineage=lineage(demo.open_registry()),
    )
    write_report(page, report)
