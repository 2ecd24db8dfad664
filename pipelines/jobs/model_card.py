"""The card of a version: what it forecasts, from which data, how well, and how to use it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.tracking.run import Run

_SETTINGS: Final = ("fit.", "finetune.", "calibrate.", "distil.", "rollback.")
"""Settings of the job that become params of its model, beside those stored with the model."""
OF_MODEL: Final = frozenset(
    {
        "val/loss",
        *(f"finetune/{name}" for name in ("uplift", "uplift_per_series", "uplift_interval", "share_improved")),
        *(f"calibrate/{name}" for name in ("error_after", "pinball_after")),
        *(f"distil/student/{name}" for name in ("mase", "wql", "coverage")),
    }
)
"""Metrics that MLflow lists with a model; the others of its job are about the run."""
_MOST: Final = 100
"""Most params that MLflow takes in one call."""


def model_params(artifact: "Artifact", settings: Mapping[str, str]) -> dict[str, str]:
    """Return the params of a model: its settings with `auto` resolved, and those of its job."""
    from forecast.tracking.run_store import flat
    from forecast.tracking.texts import PARAM_LENGTH, shortened

    data = artifact.data.model_dump(mode="json", include={"freq", "season_length", "time_zone", "holidays"})
    groups = {
        "window": artifact.window.model_dump(mode="json"),
        "model": artifact.model.model_dump(mode="json"),
        "data": data,
    }
    params = {**dict(flat(groups)), **{name: text for name, text in settings.items() if name.startswith(_SETTINGS)}}
    kept = {name: shortened(text, PARAM_LENGTH, "config.json") for name, text in params.items() if text != "null"}
    return dict(list(kept.items())[:_MOST])


def card(artifact: "Artifact", run: "Run", name: str, tags: Mapping[str, str], metrics: Mapping[str, Any]) -> str:
    """Return the card of a version that is not backtested yet."""
    from forecast.tracking.cards import version_card

    data = run.settings.get(run.data.name, "").replace(run.data.digest, run.data.digest[:8]) if run.data else ""
    final = artifact.final
    until = f"until {artifact.trained_until_timestamp}" + (
        f"; final fit until {final.trained_until_timestamp}" if final else ""
    )
    rows = {
        "Data": ", ".join(filter(None, [data, until])),
        "Steps": f"every {artifact.data.freq}, season of {artifact.data.season_length:,}",
        "Model": _model(artifact, tags),
    }
    if artifact.classes:
        rows["Classes"] = f"{len(artifact.classes):,}: {', '.join(artifact.classes[:10])}"
    if (loss := metrics.get("val/loss")) is not None:
        rows["Validation loss"] = f"{loss:.4f}"
    if (uplift := metrics.get("finetune/uplift")) is not None:
        rows["Uplift"] = f"{uplift:.2%} over its parent on windows that neither fitting nor gate has seen"
    purpose = (
        f"Forecasts {artifact.horizon:,} steps of {artifact.data.freq} from the last "
        f"{artifact.window.context_length:,} steps of a series."
    )
    return version_card(purpose, rows, name)


def _model(artifact: "Artifact", tags: Mapping[str, str]) -> str:
    from pipelines.jobs.version_tags import CALIBRATED, CHECKPOINT, DISTILLED, FINETUNE_KIND, SERIES_TUNED

    model = artifact.model
    parts = [
        f"{model.cell.upper()}, {model.num_layers} x {model.hidden_size} units, {model.head.replace('_', ' ')} output",
        *([f"with the pretrained network {tags[CHECKPOINT]}"] if CHECKPOINT in tags else []),
        *([f"{tags[SERIES_TUNED]} series fine-tuned ({tags[FINETUNE_KIND]})"] if FINETUNE_KIND in tags else []),
        *([f"calibrated ({tags[CALIBRATED]})"] if CALIBRATED in tags else []),
        *(["distilled"] if DISTILLED in tags else []),
        *([f"from v{tags['parent_version']}"] if "parent_version" in tags else []),
    ]
    return ", ".join(parts)


def accuracy_text(rows: Mapping[str, Mapping[str, Any]], model: str, level: float, data: str) -> str:
    """Return the accuracy of a model in a backtest, beside seasonal naive, as text.

    `rows` are the metrics of all models, `level` is that of the outermost interval, `data` names the data.
    """
    judged, naive = rows[model], rows.get("seasonal_naive", {})
    labels = {"MASE": "mase", "WQL": "wql", "log-loss": "log_loss", "accuracy": "accuracy"}
    parts = []
    for label, name in labels.items():
        if judged.get(name) is not None:
            reference = naive.get(name)
            beside = "" if reference is None else f" (seasonal naive {reference:.4f})"
            parts.append(f"{label} {judged[name]:.4f}{beside}")
    if judged.get("coverage") is not None:
        parts.append(f"the {level:.0%} interval covers {judged['coverage']:.1%}")
    windows = f"{judged['n_windows']:,} windows of {judged['n_series']:,} series"
    return f"{', '.join(parts)}; {windows} of {data}"
