"""`forecast quickstart FILE`: what a file holds, its first forecasts, a model, a backtest, a page, and the config."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic import SecretStr

from forecast.config import (
    BacktestConfig,
    BacktestSettings,
    LedgerConfig,
    QuickstartConfig,
    RegistryConfig,
    TrainConfig,
    load,
)
from forecast.errors import ConfigError
from forecast.redaction import without_password
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_settings

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.backtesting.result import BacktestResult, Contender
    from forecast.data.discovery.layout import Layout
    from forecast.data.ingest.loaded import Loaded
    from forecast.data.panel import Panel

PANEL, FORECASTS, PAGE, SETTINGS = "panel.parquet", "forecasts.csv", "report.html", "train.yaml"
"""Files in the output folder."""

# Windows below which a difference may be chance.
_FEW_WINDOWS: Final = 20
# CPU seconds of AutoETS per fitted step, measured on one core, and the most that it may take by default.
_ETS_SECONDS: Final = 7e-4
_MOST_ETS_SECONDS: Final = 60.0


def main(argv: list[str]) -> None:
    """Run the verb."""
    if {"-h", "--help"} & {*argv}:
        print(
            "forecast quickstart FILE [KEY=VALUE ...] forecasts a file and finds out what it holds; FILE is data.path\n"
        )
    words = [f"data.path={word}" if _is_file(word) else word for word in argv]
    config, references = verb_settings(QuickstartConfig, "quickstart", words)
    console.setup()
    run(config, references)


def _is_file(word: str) -> bool:
    return not word.startswith("-") and ("=" not in word or Path(word).is_file())


class _Start(NamedTuple):
    """A file, and the settings that follow from it."""

    path: Path
    layout: "Layout"
    folder: Path
    train: TrainConfig


def run(config: QuickstartConfig, references: Mapping[str, Any] | None = None) -> None:
    """Look at the file, forecast, train, judge, and write the results; print what was done and where it is."""
    start = _look(config)
    from forecast.backtesting.result import Contender
    from forecast.checkpoints import NANO
    from forecast.data.files import locked
    from forecast.names import TRAINED
    from forecast.prediction.from_table import forecast_loaded
    from pipelines.reports.first_results import print_accuracy, write_csv, write_page

    with locked(start.folder):
        _write_settings(start, references or {})
        first, loaded = _first_forecasts(start)
        model, trained = _train(start)
        result, remark = _judge(start, config, Contender(first, loaded.panel), model)
        with console.stage("write") as stage:
            frames = {NANO: forecast_loaded(first, loaded).frame, TRAINED: forecast_loaded(model, trained).frame}
            forecasts = write_csv(frames, start.folder / FORECASTS)
            facts = {choice.role: choice.value for choice in start.layout.choices if choice.role != "series"}
            write_page(start.folder / PAGE, start.path.name, facts, forecasts, result, model, trained)
            stage.note(page=start.folder / PAGE)
    if result is not None:
        print_accuracy(result)
    if remark:
        console.say(f"Note: {remark}")
    _print_next(start)


# ---- What the file holds ----


def _look(config: QuickstartConfig) -> _Start:
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
    return _Start(path, layout, folder, load(TrainConfig, settings))


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


def _write_settings(start: _Start, references: Mapping[str, Any]) -> None:
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
    if target.exists():
        console.say(f"  {start.folder} has an earlier quick start: its {FORECASTS} and {PAGE} are replaced")
        if target.read_text(encoding="utf-8") != text:
            before = target.with_name("train.old.yaml")
            target.replace(before)
            console.say(f"  {target} was another one, and is {before} now")
    write_text_atomic(text, target)


# ---- Forecasts, training, backtest ----


def _first_forecasts(start: _Start) -> "tuple[Artifact, Loaded]":
    """Write the forecasts of the package's pretrained network; return it as a model, with the panel as it reads it."""
    from forecast.checkpoints import NANO
    from forecast.prediction.from_table import forecast_loaded
    from forecast.pretraining.zero_shot import drop_text, zero_shot, zero_shot_data
    from pipelines.jobs.reading import read_table
    from pipelines.reports.first_results import write_csv

    config = start.train
    loaded = drop_text(read_table(zero_shot_data(config.data), config.window.horizon))
    with console.stage("forecast") as stage:
        model = zero_shot(NANO, loaded, config.window, config.model)
        forecasts = forecast_loaded(model, loaded)
        write_csv({NANO: forecasts.frame}, start.folder / FORECASTS)
        stage.note(model=NANO, series=forecasts.frame["series_id"].n_unique(), file=start.folder / FORECASTS)
    return model, loaded


def _train(start: _Start) -> "tuple[Artifact, Loaded]":
    """Train and register a model; return it, with the panel as it reads it."""
    from forecast.tracking.registry import Registry
    from pipelines import train
    from pipelines.jobs.reading import load_version, read_for

    version, line = train.run(start.train)
    console.say(f"{version}: {line}")
    model = load_version(Registry(start.train.registry), version)
    return model, read_for(model, start.train.data.source())


def _judge(
    start: _Start, config: QuickstartConfig, first: "Contender", model: "Artifact"
) -> "tuple[BacktestResult | None, str]":
    """Return the scores at past cutoffs, and a remark on what they do not show.

    The trained model is judged on the horizons that it has not seen. Without any, only the others are.
    """
    from forecast.backtesting.backtest import backtest
    from forecast.checkpoints import NANO
    from forecast.errors import DataError

    baselines, remark = _baselines(config, first.panel)
    settings = config.backtest.model_copy(update={"baselines": baselines})
    if first.panel.last_index - model.trained_until >= model.horizon:
        result = _backtest(start, settings, first)
        n_windows = int(result.summary["n_windows"].max())  # type: ignore[arg-type]
        few = f"{n_windows:,} windows are few, so differences may be chance" if n_windows < _FEW_WINDOWS else ""
        return result, "; ".join(filter(None, (few, remark)))
    steps = start.layout.steps
    short = (
        f"the trained model could not be judged: a typical series has {steps:,} steps, too few to hold out a horizon "
        f"of {model.horizon:,} and to train on the rest (change: window.horizon={max(1, steps // 4)})"
    )
    try:
        with console.stage("backtest"):
            result = backtest({NANO: first}, settings.model_copy(update={"n_windows": 1}))
    except DataError:
        return None, f"{short}; nor could {NANO}: no series has a horizon behind a cutoff"
    return result, "; ".join(filter(None, (short, remark)))


def _backtest(start: _Start, settings: BacktestSettings, first: "Contender") -> "BacktestResult":
    """Return the scores of the trained version beside those of the pretrained network of the package."""
    from forecast.checkpoints import NANO
    from pipelines import backtest

    config = {
        "data": start.train.data.source().model_dump(exclude_defaults=True),
        "backtest": settings.model_dump(),
        "registry": start.train.registry.model_dump() | {"alias": "pretrained"},
        "ledger": start.train.ledger.model_dump(),
    }
    return backtest.run(load(BacktestConfig, config), {NANO: first})[2]


def _baselines(config: QuickstartConfig, panel: "Panel") -> tuple[tuple[str, ...], str]:
    """Return the baselines of the backtest, and a remark if AutoETS is left out.

    By default seasonal naive, and AutoETS if it is installed and takes about a minute at most.
    """
    from importlib.util import find_spec

    from forecast.names import AUTO_ETS, SOURCE_SEASONAL_NAIVE

    settings = config.backtest
    if settings.baselines != BacktestSettings().baselines:
        return settings.baselines, ""
    if find_spec("statsforecast") is None:
        return (SOURCE_SEASONAL_NAIVE,), "AutoETS is left out: it needs pip install 'gatecast[baselines]'"
    n_windows = settings.n_windows or (len(settings.cutoffs) if settings.cutoffs else 4)
    steps = float(panel.lengths.clip(max=settings.baseline_history).sum()) * n_windows
    if steps * _ETS_SECONDS > _MOST_ETS_SECONDS:
        return (SOURCE_SEASONAL_NAIVE,), (
            f"AutoETS is left out: it would take about {steps * _ETS_SECONDS / 60:.0f} minutes "
            f"(backtest.baselines=[{SOURCE_SEASONAL_NAIVE},{AUTO_ETS}] adds it)"
        )
    return (SOURCE_SEASONAL_NAIVE, AUTO_ETS), ""


def _print_next(start: _Start) -> None:
    """Print where the results are, and the commands to go on with."""
    folder, registry = start.folder, start.train.registry
    uri = without_password(registry.tracking_uri.get_secret_value()) if registry.tracking_uri else ""
    store = f"registry.tracking_uri={shlex.quote(uri)}"
    data = f"data.path={shlex.quote(str(start.train.data.path))}"
    text = (
        f"\npage       {folder / PAGE}\nforecasts  {folder / FORECASTS}\nconfig     {folder / SETTINGS}\n\n"
        f"Train again, after changes in {SETTINGS} (covariates, fit.max_minutes):\n"
        f"  forecast train --config {folder / SETTINGS}\n"
        "Forecast with the trained model when the file has new rows:\n"
        f"  forecast score registry.name={registry.name} {store} registry.alias=pretrained {data} "
        f"output.path={folder / 'scores'}\n"
        "See runs and models:\n"
        f"  forecast ui {store}"
    )
    for line in text.splitlines():
        console.say(line)
