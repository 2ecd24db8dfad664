"""`forecast quickstart FILE`: what a file holds, its first forecasts, a model, a backtest, a page, and the config."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import BacktestConfig, BacktestSettings, QuickstartConfig, load
from forecast.errors import ConfigError
from forecast.redaction import without_password
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_settings
from pipelines.jobs.file_settings import FORECASTS, PAGE, SETTINGS, Start, look, write_settings

if TYPE_CHECKING:
    from forecast.artifact import Artifact
    from forecast.backtesting.result import BacktestResult, Contender
    from forecast.data.ingest.loaded import Loaded
    from forecast.data.panel import Panel

# Options of the command line whose value is the next word.
_OPTIONS: Final = ("--cfg", "--config", "--config-dir", "--overrides-env")
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
    if not argv:
        raise ConfigError("no file is given: forecast quickstart FILE [KEY=VALUE ...]")
    pairs = zip(["", *argv], argv, strict=False)
    words = [f"data.path={word}" if _is_file(word) and before not in _OPTIONS else word for before, word in pairs]
    config, references = verb_settings(QuickstartConfig, "quickstart", words)
    console.setup()
    run(config, argv, references)


def _is_file(word: str) -> bool:
    return not word.startswith("-") and ("=" not in word or Path(word).is_file())


def run(config: QuickstartConfig, words: Sequence[str], references: Mapping[str, Any]) -> None:
    """Look at the file, forecast, train, judge, and write the results; print what was done and where it is.

    `words` are the arguments of the command, `references` its settings given as references.
    """
    start = look(config)
    from forecast.data.files import locked

    with locked(start.folder):
        write_settings(start, references)
        if start.until != "look":
            first, loaded = _first_forecasts(start)
        if start.until == "train":
            _train_and_judge(start, config, first, loaded)
    _print_next(start, words)


def _train_and_judge(start: Start, config: QuickstartConfig, first: "Artifact", loaded: "Loaded") -> None:
    """Train, judge, write the forecasts of both models and the page, and print the accuracy."""
    from forecast.backtesting.result import Contender
    from forecast.checkpoints import NANO
    from forecast.names import TRAINED
    from forecast.prediction.from_table import forecast_loaded
    from pipelines.reports.first_results import print_accuracy, write_csv, write_page

    model, trained = _train(start)
    result, remark = _judge(start, config, Contender(first, loaded.panel), model)
    with console.stage("write") as stage:
        frames = {NANO: forecast_loaded(first, loaded).frame, TRAINED: forecast_loaded(model, trained).frame}
        forecasts = write_csv(frames, start.folder / FORECASTS)
        facts = {choice.role: choice.value for choice in start.layout.choices if choice.role != "series"}
        write_page(start.folder / PAGE, start.path.name, facts, forecasts, result=result, model=model, loaded=trained)
        stage.note(page=start.folder / PAGE)
    if result is not None:
        print_accuracy(result)
    if remark:
        console.say(f"Note: {remark}")


def _first_forecasts(start: Start) -> "tuple[Artifact, Loaded]":
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


def _train(start: Start) -> "tuple[Artifact, Loaded]":
    """Train and register a model; return it, with the panel as it reads it."""
    from forecast.tracking.registry import Registry
    from pipelines import train
    from pipelines.jobs.reading import load_version, read_for

    version, line = train.run(start.train)
    console.say(f"{version}: {line}")
    model = load_version(Registry(start.train.registry), version)
    return model, read_for(model, start.train.data.source())


def _judge(
    start: Start, config: QuickstartConfig, first: "Contender", model: "Artifact"
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
        few = f"few windows ({n_windows:,}), so differences may be chance" if n_windows < _FEW_WINDOWS else ""
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


def _backtest(start: Start, settings: BacktestSettings, first: "Contender") -> "BacktestResult":
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


def _print_next(start: Start, words: Sequence[str]) -> None:
    """Print where the results are, and the commands to go on with."""
    folder, registry, until = start.folder, start.train.registry, start.until
    uri = without_password(registry.tracking_uri.get_secret_value()) if registry.tracking_uri else ""
    store = f"registry.tracking_uri={shlex.quote(uri)}"
    data = f"data.path={shlex.quote(str(start.train.data.path))}"
    again = [word for word in words if not word.startswith("quickstart.until=")]
    copy = (
        f"  {shlex.join(['forecast', 'quickstart', *again])} quickstart.until=look\n" if start.layout.obstacles else ""
    )
    files = {"train": (PAGE, FORECASTS, SETTINGS), "forecast": (FORECASTS, SETTINGS), "look": (SETTINGS,)}[until]
    labels = {PAGE: "page", FORECASTS: "forecasts", SETTINGS: "config"}
    text = "\n" + "".join(f"{labels[name]:<10} {folder / name}\n" for name in files)
    text += (
        f"\nTrain{' again' * (until == 'train')}, after changes in {SETTINGS} (covariates, fit.max_minutes):\n"
        f"  forecast train --config {shlex.quote(str(folder / SETTINGS))}\n"
    )
    if until == "train":
        text += (
            f"Forecast with the trained model when the file has new rows:\n{copy}"
            f"  forecast score registry.name={registry.name} {store} registry.alias=pretrained {data} "
            f"output.path={shlex.quote(str(folder / 'scores'))}\n"
            f"See runs and models:\n  forecast ui {store}\n"
        )
    for line in text.splitlines():
        console.say(line)
