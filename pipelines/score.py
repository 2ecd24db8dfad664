"""`forecast score`: a registered model and a panel -> forecasts, rejects and a manifest."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from forecast.config import ScoreConfig
from pipelines import console
from pipelines.compose import verb_config

if TYPE_CHECKING:
    from forecast.output import Output
    from forecast.registry import Version


def main(argv: list[str]) -> None:
    """Run the verb."""
    config = verb_config(ScoreConfig, "score", argv)
    console.setup()
    version, line, _ = run(config)
    print(f"{version} ({version.kind}): {line}")


def run(config: ScoreConfig) -> "tuple[Version, str, Output]":
    """Forecast every series and write the output; return the version, a line about it, and the files."""
    from forecast.data.io import check_writable
    from forecast.output import write_output
    from forecast.predict import forecast
    from forecast.registry import Registry
    from pipelines.shared import log_data, log_missing, open_version, read_for

    begun = time.monotonic()
    folder = Path(config.output.path)
    check_writable(folder)
    registry = Registry(config.registry)
    # Resolved once: the alias may move while the job runs.
    version, artifact = open_version(registry, config.registry.alias)
    loaded = read_for(artifact, config.data)
    with registry.run("score", config, {"version": str(version.number)}) as run:
        data_digest = log_data(run, loaded)
        cutoff = None if config.score.cutoff is None else loaded.panel.grid.floor(config.score.cutoff)
        log_missing(run, loaded, horizon=artifact.horizon, cutoff=loaded.panel.last_index if cutoff is None else cutoff)
        with console.stage("score") as stage:
            forecasting = time.monotonic()
            made = forecast(artifact, loaded.panel, cutoff=cutoff, model_version=str(version.number))
            seconds = time.monotonic() - forecasting
            stage.note(series=loaded.panel.n_series, rows=made.frame.height)
        names = {
            "model": version.name,
            "model_version": str(version.number),
            "model_digest": version.digest,
            "data_digest": data_digest,
        }
        with console.stage("write") as stage:
            output = write_output(folder, artifact, loaded, made, versions=names)
            stage.note(folder=folder)
        content = output.content
        run.metrics(
            {
                **{f"score/series_{name}": count for name, count in content["series"].items()},
                **{f"score/source/{name}": count for name, count in content["sources"].items()},
                "score/rows": content["rows"]["written"],
                "score/seconds_forecasting": seconds,
                "score/series_per_second": loaded.panel.n_series / max(seconds, 1e-9),
            }
        )
        run.json(content, "manifest.json")
    series = content["series"]
    line = (
        f"cutoff {content['cutoff']}, {series['in']:,} series = {series['forecast']:,} forecast + "
        f"{series['rejected']:,} rejected, {content['rows']['written']:,} rows, "
        f"{sum(content['rejects'].values()):,} rejects, {output.forecasts}, "
        f"{time.monotonic() - begun:.1f} s"
    )
    return version, line, output
