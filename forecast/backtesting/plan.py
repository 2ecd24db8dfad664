"""The plan of a backtest: its models, cutoffs and blocks, checked before work begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from forecast.artifact import Artifact
from forecast.backtesting.baselines import check_baselines
from forecast.backtesting.cutoffs import rolling_cutoffs
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings
from forecast.data.panel import Panel
from forecast.data.windows import BATCH_SIZE
from forecast.errors import ConfigError
from forecast.prediction.cutoffs import check_model
from forecast.segments import SEGMENTS

_WINDOWS: Final = 2 * BATCH_SIZE
"""Approximate number of windows in a block: full batches, and blocks for all cores with some thousand series."""
_WINDOWS_OF_A_PASS: Final = 16 * BATCH_SIZE
"""The same if the cutoffs of a series are one row of a batch."""
_WINDOWS_OF_FITS: Final = BATCH_SIZE // 2
"""The same if baselines are fitted, which takes most of the time."""


class Block(NamedTuple):
    """Some neighbouring series at cutoffs that are scored together."""

    number: int
    cutoffs: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class BacktestPlan:
    """What a backtest compares, and where."""

    contenders: dict[str, Contender]
    settings: BacktestSettings
    cutoffs: list[int]
    """Grid indices, oldest first."""
    fitted: list[str]
    """Baselines that are fitted to each series (`check_baselines`)."""

    @classmethod
    def of(cls, contenders: dict[str, Contender], settings: BacktestSettings) -> "BacktestPlan":
        """Return the plan. Raises ConfigError and DataError as `backtest`."""
        contenders = _on_common_series(contenders)
        first_model, panel, _ = next(iter(contenders.values()))
        _check_alike(contenders)
        fitted = check_baselines(settings.baselines, first_model.classes)
        _check_settings(contenders, settings)
        trained_until = [artifact.trained_until for artifact, *_ in contenders.values()]
        last_seen = {"never": max(trained_until), "finetune": first_model.base().trained_until, "scratch": None}[
            settings.refit
        ]
        cutoffs = rolling_cutoffs(panel, horizon=first_model.horizon, settings=settings, trained_until=last_seen)
        return cls(contenders, settings, cutoffs, fitted)

    @property
    def horizon(self) -> int:
        """Number of steps of a forecast."""
        return next(iter(self.contenders.values())).artifact.horizon

    @property
    def panel(self) -> Panel:
        """The panel as the first model reads it."""
        return next(iter(self.contenders.values())).panel

    def blocks(self, groups: Sequence[list[int]], first: int) -> Iterator[Block]:
        """Yield the blocks of groups of cutoffs that are scored together, numbered from `first`."""
        n_series, n_windows = self.panel.n_series, _WINDOWS_OF_FITS if self.fitted else _WINDOWS
        if self.settings.one_pass:
            n_windows = _WINDOWS_OF_A_PASS
        for cutoffs in groups:
            size = max(1, n_windows // len(cutoffs))
            for begin in range(0, n_series, size):
                yield Block(first, tuple(cutoffs), begin, min(begin + size, n_series))
                first += 1


def _on_common_series(contenders: dict[str, Contender]) -> dict[str, Contender]:
    """Return models and panels of the same series: one that was never available is in no panel with data.available."""
    panels = [panel for _, panel, _ in contenders.values()]
    names = panels[0].series_id
    for panel in panels[1:]:
        names = np.intersect1d(names, panel.series_id)
    if not any(len(panel.available) for panel in panels) or all(panel.n_series == len(names) for panel in panels):
        return contenders
    return {
        name: contender._replace(panel=contender.panel.take(np.searchsorted(contender.panel.series_id, names)))
        for name, contender in contenders.items()
    }


def _check_alike(contenders: dict[str, Contender]) -> None:
    first, panel, _ = next(iter(contenders.values()))
    for name, (artifact, contender_panel, _) in contenders.items():
        description, expected = _what_it_forecasts(artifact, contender_panel), _what_it_forecasts(first, panel)
        if description != expected or not np.array_equal(contender_panel.series_id, panel.series_id):
            raise ConfigError(
                f"{name} forecasts {description}, the others {expected}: they can't be compared; register it under "
                "another registry.name"
            )


def _what_it_forecasts(artifact: Artifact, panel: Panel) -> str:
    if artifact.classes is None:
        target = f"quantiles {', '.join(f'{level:g}' for level in artifact.model.quantile_levels)}"
    else:
        target = f"classes {', '.join(artifact.classes)}"
    return f"{target} of {artifact.horizon} steps on {panel.grid} for {panel.n_series:,} series"


def _check_settings(contenders: dict[str, Contender], settings: BacktestSettings) -> None:
    """Raise ConfigError for settings that do not fit the models."""
    for artifact, *_ in contenders.values():
        if settings.one_pass:
            check_model(artifact, "backtest.one_pass")
        context = artifact.network.shape.context_length
        if settings.window_length is not None and settings.window_length < context + artifact.horizon:
            raise ConfigError(
                f"backtest.window_length: {settings.window_length} steps are less than the context ({context}) and the "
                f"horizon ({artifact.horizon}) of the model together; give {context + artifact.horizon} or more"
            )
    data, classes = contenders[next(iter(contenders))].artifact.data, next(iter(contenders.values())).artifact.classes
    segments = (*data.static_covariates, *(SEGMENTS if classes is None else SEGMENTS[:1]))
    unknown = [name for name in settings.segments if name not in segments]
    if unknown:
        raise ConfigError(f"backtest.segments: {', '.join(unknown)} unknown; there are: {', '.join(segments)}")
