"""Settings of a training that follow from a file, and their file: the first stage of `forecast quickstart`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import SecretStr

from forecast.config import LedgerConfig, QuickstartConfig, RegistryConfig, TrainConfig, load
from forecast.errors import ConfigError
from pipelines.jobs import console

if TYPE_CHECKING:
    from forecast.data.discovery.layout import Layout

PANEL: Final = "panel.parquet"
FORECASTS: Final = "forecasts.csv"
PAGE: Final = "report.html"
SETTINGS: Final = "train.yaml"
"""Files in the output folder of a quick start; so are the three above."""


class Start(NamedTuple):
    """A file, and the settings that follow from it."""

    path: Path
    layout: "Layout"
    folder: Path
    train: TrainConfig
    until: str
    """The last stage, as quickstart.until."""


def look(config: QuickstartConfig) -> Start:
    """Return the layout of the file and the settings of its training, and print the choices."""
    from forecast.data.discovery.layout import discover
    from forecast.data.files import check_writable, write_parquet_atomic

    if config.data.path is None:
        raise ConfigError("data.uri: the quick start reads a file; `forecast train` reads a database")
    path = Path(config.data.path)
    name = path.name.split(".")[0] or "table"
    folder = Path(config.output.path or Path("quickstart") / name)
    with console.stage("look") as stage:
        layout = discover(str(path), config.data)
        stage.note(series=layout.n_series, steps=layout.steps)
    check_writable(folder)
    horizon = config.window.horizon or layout.horizon
    _print_layout(path, layout, config.window.horizon)
    table = path
    if layout.obstacles:
        table = folder / PANEL
        write_parquet_atomic(layout.frame, table)
        console.say(f"  copied to {table}, which all commands read: {'; '.join(layout.obstacles)}")
    registry = config.registry.model_dump()
    registry["tracking_uri"] = config.registry.tracking_uri or SecretStr(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    if config.registry.name == RegistryConfig().name:
        registry["name"] = _model_name(name)
    ledger = config.ledger.uri or SecretStr(f"sqlite:///{folder.resolve() / 'gatecast.db'}")
    settings = {
        "data": layout.data.model_dump() | {"path": str(table.resolve())},
        "window": {"horizon": horizon, "context_length": config.window.context_length},
        "model": config.model.model_dump(),
        "fit": config.fit.model_dump() | _holdout(config, layout, horizon),
        "registry": registry,
        "ledger": LedgerConfig(uri=ledger).model_dump(),
    }
    return Start(path, layout, folder, load(TrainConfig, settings), config.quickstart.until)


def _model_name(name: str) -> str:
    """Return a file name as the name of a registered model."""
    return "".join(sign if sign.isalnum() or sign in "_-" else "_" for sign in name)


def _holdout(config: QuickstartConfig, layout: "Layout", horizon: int) -> dict[str, int]:
    """Return the setting that holds out one horizon where the default is none, if series are long enough."""
    import numpy as np

    from forecast.data.holdout import plan_holdout

    lengths = np.array([layout.steps])
    holdout, validation = config.fit.holdout_windows, config.fit.validation_windows
    planned = plan_holdout(lengths, horizon, holdout=holdout, validation=validation).holdout_windows
    room = layout.steps >= 3 * horizon  # One horizon held out, one to validate and one to fit.
    return {"holdout_windows": 1} if holdout == "auto" and not planned and room else {}


def _print_layout(path: Path, layout: "Layout", horizon: int | None) -> None:
    console.say(f"{path}: {layout.description}")
    for choice in layout.choices:
        value, reason = choice.value, choice.reason
        if choice.role == "horizon" and horizon is not None:
            value, reason = f"{horizon:,} steps", "as set"
        change = "" if reason.startswith("as set") else f" (change: {choice.setting}=...)"
        console.say(f"  {choice.role:<10} {value}: {reason}{change}")
    if layout.others:
        from forecast.errors import listing

        names = listing(map(repr, layout.others), limit=10)
        console.say(f"  left out   {names}: possible covariates (data.known_covariates, data.past_covariates)")


def write_settings(start: Start, references: Mapping[str, Any]) -> None:
    """Write train.yaml, with what differs from the defaults; a different one is kept as train.old.yaml."""
    import yaml

    from forecast.data.files import write_text_atomic
    from pipelines.jobs.references import with_references, without_secrets
    from pipelines.jobs.settings_text import escaped

    values = without_secrets(TrainConfig, escaped(start.train.model_dump(mode="json", exclude_defaults=True)))
    comments = [f"# {choice.role}: {choice.value}; {choice.reason}" for choice in start.layout.choices]
    header = "\n".join(["# forecast train --config takes this file as it is.", *comments])
    text = f"{header}\n{yaml.safe_dump(with_references(values, references), sort_keys=False, allow_unicode=True)}"
    target = start.folder / SETTINGS
    earlier = [name for name in (FORECASTS, PAGE) if (start.folder / name).exists()]
    if earlier and start.until != "look":
        console.say(f"  {start.folder} has an earlier quick start: {' and '.join(earlier)} will be replaced")
    if target.exists() and _without_comments(target.read_text(encoding="utf-8")) != _without_comments(text):
        before = target.with_name("train.old.yaml")
        target.replace(before)
        console.say(f"  {target} was another one, and is {before} now")
    write_text_atomic(text, target)


def _without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]
