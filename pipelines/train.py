"""`forecast train`: table -> panel -> model, registered as `pretrained`."""

from typing import TYPE_CHECKING, Final

from forecast.config import TrainConfig
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version
    from forecast.training.result import Summary

# Fewer validation windows than this get a remark.
_FEW_WINDOWS = 20


_SPEED: Final = (
    *("ranks", "windows_per_second", "forecasts_per_second", "gpu_busy_share", "gpu_peak_gib", "resumed_at_step"),
)
"""Entries of the summary that the log shows, if they exist."""


@recorded(TrainConfig)
def main(config: TrainConfig) -> None:
    """Run the verb, or rank 0's share of it with the other processes of a launcher."""
    from forecast.training.ranks import joined

    with joined(config.fit) as ranks:
        if ranks is not None and not ranks.leads:
            _serve(config)
            return
        version, line = run(config)
        note(model=str(version), output=str(version))
    print(f"{version} ({version.kind}): {line}")


def _serve(config: TrainConfig) -> None:
    """Train for rank 0, without registry and ledger."""
    from forecast.training.fit import fit
    from pipelines.jobs.reading import read_table

    loaded = read_table(config.data, config.window.horizon)
    fit(
        loaded.panel,
        data=loaded.data,
        categories=loaded.categories,
        window=config.window,
        model=config.model,
        fit=config.fit,
    )


def run(config: TrainConfig) -> "tuple[Version, str]":
    """Train, log and register; return the version and a line about it."""
    import polars as pl

    from forecast.names import PRETRAINED
    from forecast.reports import diagnostic_figures
    from forecast.training.fit import fit
    from pipelines import report
    from pipelines.jobs.reading import open_registry, read_table, with_init
    from pipelines.jobs.registration import Registration
    from pipelines.jobs.run_logging import log_data, log_profile
    from pipelines.jobs.version_tags import final_fit_text

    registry = open_registry(config)
    registry.check_runs()
    config, init, tags = with_init(config)
    loaded = read_table(config.data, config.window.horizon)
    with registry.run("train", config) as run:
        data_digest = log_data(run, loaded, "training")
        log_profile(run, loaded)
        with console.stage("train") as stage:
            result = fit(
                loaded.panel,
                data=loaded.data,
                categories=loaded.categories,
                window=config.window,
                model=config.model,
                fit=config.fit,
                init=init,
                progress=lambda share, text: stage.update(f"{share:.0%}, {text}"),
            )
            summary = result.summary
            stage.note(
                steps=summary["steps"], val_loss=summary["val/loss"], closed_form=summary["val/loss_closed_form"]
            )
            stage.note(**{name: summary[name] for name in _SPEED if name in summary})
        artifact = result.artifact
        registration = Registration(
            registry, run, artifact, config, data_digest, alias=PRETRAINED, tags=tags, metrics=summary
        )
        with console.stage("register") as stage, registration:
            run.curve(result.curve)
            run.tags({name: value for name, value in summary.items() if isinstance(value, str)})
            run.figure(diagnostic_figures.loss_curves(result.curve), "plots/loss.png")
            recoded_panel, sampled = _log_forecasts(run, loaded, artifact)
            version = registration.register()
            points = [(name, step, value) for step, values in result.curve for name, value in values.items()]
            loss = pl.DataFrame(points, ["model", "step", "loss"], orient="row")
            report.log(run, "train", version, artifact, recoded_panel, {"forecasts": sampled}, loss=loss)
            stage.note(version=str(version))
    counts = loaded.counts
    return version, (
        f"{counts.series_kept:,} series, {counts.rows_in:,} rows, {loaded.rejects.height:,} rejects, validation loss "
        f"{summary['val/loss']:.4f} (closed form alone {summary['val/loss_closed_form']:.4f}) on "
        f"{_checked(summary)}{_shared(summary)}{final_fit_text(artifact)}, run {run.id}"
    )


def _log_forecasts(run: "Run", loaded: "Loaded", artifact: "Artifact") -> "tuple[Loaded, pl.DataFrame]":
    """Log forecasts of the last validation targets; return the panel with the model's categories, and a sample."""
    import numpy as np

    from forecast.data.ingest.loaded import recode
    from forecast.data.panel import is_among
    from forecast.prediction.from_table import forecast
    from forecast.reports import figures
    from pipelines.jobs.run_logging import pick
    from pipelines.reports import content

    # The last targets used by validation, of the series in the page and the figure. One of them reaches the cutoff.
    recoded_panel = recode(loaded, artifact.categories)
    panel, cutoff = recoded_panel.panel, artifact.trained_until - artifact.horizon
    ids = panel.series_id.tolist()
    sample, latest = pick(ids), ids[int((panel.start + panel.lengths).argmax())]
    logged = {*pick(ids, max(1, content.LOGGED // artifact.horizon)), *sample, latest}
    part = panel.take(np.flatnonzero(is_among(ids, logged)))
    forecasts = forecast(artifact, part, cutoff=cutoff, max_age=None)
    history = part.frame(np.flatnonzero(is_among(part.series_id, sample)), artifact.classes)
    sampled = content.sample_rows(forecasts.frame.lazy())[0]
    run.table(sampled, "forecasts.parquet")
    run.figure(figures.sample_forecasts(history, forecasts.frame, sample), "plots/sample_forecasts.png")
    return recoded_panel, sampled


def _shared(summary: "Summary") -> str:
    """Return a text on the pretrained network's share in the forecasts."""
    share, blend = (float(summary.get(f"pretrained_{name}", 0)) for name in ("share", "blend"))
    moved = f" ({blend:.0%} of the way to what it was trained to here)" if blend else ""
    return f", of it {share:.0%} the pretrained network{moved}" if share else ""


def _checked(summary: "Summary") -> str:
    """Return a text on the validation windows, and the horizons held out for a backtest."""
    windows, held_out = int(summary["validation_windows"]), int(summary["holdout_windows"])
    remark = " (few: what was chosen may be chance)" if windows < _FEW_WINDOWS else ""
    held_out_text = (
        f"{held_out} horizon{'s' * (held_out != 1)} held out" if held_out else "nothing held out for a backtest"
    )
    return f"{windows:,} window{'s' * (windows != 1)} of {summary['validation_steps']} steps{remark}, {held_out_text}"
