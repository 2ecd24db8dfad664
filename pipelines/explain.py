"""`forecast explain`: a registered model, a table and a series -> the effect of each input on its forecast."""

from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import ExplainConfig
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    from forecast.explanation.result import Explanation
    from forecast.tracking.versions import Version

# Most inputs in the printed table.
_SHOWN = 20


@recorded(ExplainConfig)
def main(config: ExplainConfig) -> None:
    """Run the verb."""
    version, explanation, run_id = run(config)
    console.table(explanation.summary.head(_SHOWN))
    console.say(f"{version} ({version.kind}): {explanation.line}, run {run_id}")


def run(config: ExplainConfig) -> "tuple[Version, Explanation, str]":
    """Explain a forecast, log it, and write it; return the version, the explanation, and the run."""
    from forecast.data.files import check_writable, write_parquet_atomic
    from forecast.explanation.explain import explain
    from forecast.names import CUTOFF
    from forecast.reports import figures
    from forecast.tracking.registry import Registry
    from pipelines.jobs.reading import open_with_data
    from pipelines.jobs.run_logging import log_data

    if config.output.path:
        check_writable(Path(config.output.path))
    registry = Registry(config.registry)
    version, artifact, loaded = open_with_data(registry, config.registry.alias, config.data, [config.explain.cutoff])
    with registry.run("explain", config, {"version": str(version.number)}) as run:
        log_data(run, loaded, "evaluation", version)
        with console.stage("explain") as stage:
            explanation = explain(artifact, loaded.panel, config.explain)
            stage.note(inputs=explanation.summary.height)
        tables = {"explanation": explanation.frame, "summary": explanation.summary}
        if explanation.attention is not None:
            tables["attention"] = explanation.attention
        numbers = {"forecast": explanation.forecast, "baseline": explanation.baseline, "error": explanation.error}
        run.metrics({f"explain/{name}": value for name, value in numbers.items() if value is not None})
        figure = figures.explanation(explanation.frame, explanation.summary, explanation.line)
        run.figure(figure, "plots/explanation.png")
        for name, table in tables.items():
            run.table(table, f"{name}.parquet")
        if config.output.path:
            folder = Path(config.output.path)
            for name, table in tables.items():
                write_parquet_atomic(table, folder / f"{name}.parquet")
            figure.savefig(folder / "explanation.png")
            note(output=str(folder))
        note(cutoff=str(explanation.frame[CUTOFF][0]))
        run.label(version, [explanation.frame[CUTOFF][0].isoformat()])
    return version, explanation, run.id
