"""A training before its first step: checked inputs, resolved settings, and checkpoints."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.config import Config, DataConfig, FitConfig, ModelConfig, SourceConfig, WindowConfig
from forecast.data.ingest.categories import with_trained_categories
from forecast.data.ingest.classes import with_trained_classes
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.environment import gatecast_version
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Forecaster
from forecast.models.network.panel_statistics import is_nonnegative
from forecast.pretraining.pretrained_network import PretrainedNetwork, model_for
from forecast.training.checkpoint import Checkpoint
from forecast.training.checks import check_inputs, check_model, device_of
from forecast.training.defaults import context_length_of, shape_of, with_size
from forecast.training.member_fit import MemberFit
from forecast.training.ranks import Ranks
from forecast.training.split import TrainingData, split_panel
from forecast.training.teacher import Teacher

log = logging.getLogger(__name__)

# Series whose content is compared between processes.
_COMPARED = 1_000


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A training whose inputs are checked and whose settings are resolved."""

    training: TrainingData
    data: DataConfig
    categories: dict[str, tuple[str, ...]]
    """Values that occur in training steps."""
    window: WindowConfig
    """With the length of the context."""
    model: ModelConfig
    fit: FitConfig
    shape: NetworkShape
    checkpoints: Sequence[Checkpoint | None]
    """One for each network of the ensemble; None without `fit.checkpoint`."""
    trained_until: int
    """Grid index of the last step that the model or its pretrained network may have been trained on."""
    init: PretrainedNetwork | None
    teacher: Teacher | None

    def artifact(self, network: Forecaster) -> Artifact:
        """Return the model of a network."""
        return Artifact(
            network=network,
            data=self.data,
            window=self.window,
            model=self.model,
            categories=self.categories,
            grid=self.training.panel.grid,
            trained_until=self.trained_until,
        )

    def member_fit(self) -> MemberFit | None:
        """Return the training of the pretrained member; None without one, or if no window has all its targets."""
        plan = self.training.split.plan
        tunes = self.fit.init_steps and self.model.init and self.model.head == "quantile" and not self.teacher
        if not tunes or plan.validation_steps < self.window.horizon:
            return None
        return MemberFit(self.training.panel, self.training.split.train_lengths, self.fit)

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of the networks."""
        for checkpoint in self.checkpoints:
            if checkpoint is not None:
                checkpoint.remove()


def set_up(
    panel: Panel,
    *,
    data: DataConfig,
    categories: dict[str, tuple[str, ...]],
    window: WindowConfig,
    model: ModelConfig,
    fit: FitConfig,
    init: PretrainedNetwork | None,
    teacher: Teacher | None,
    ranks: Ranks | None = None,
) -> Setup:
    """Return the training that `fit` describes; arguments and errors are those of `forecast.training.fit.fit`."""
    device = device_of(fit)
    model = model_for(init, model, window.horizon)
    panel, categories = with_trained_classes(panel, categories, data.columns.target, model.head)
    split = split_panel(panel, window.horizon, fit)
    limits = split.train_lengths
    check_inputs(panel, limits, split.candidates, split.plan, window)
    if split.plan.validation_steps < window.horizon and fit.max_steps:
        log.info("fit: no network is trained: of a typical series, no window has all %d targets", window.horizon)
        fit = fit.model_copy(update={"max_steps": 0})
    if teacher is None:  # A teacher reads the same codes.
        panel, categories = with_trained_categories(panel, categories, data, limits)
    groups = {"data": data, "categories": categories, "window": window, "model": model, "init": init}
    checkpoints = _checkpoints(panel, device, fit, **groups, teacher=teacher, ranks=ranks)
    context = context_length_of(panel, limits, data, window)
    fit, model = with_size(fit, model, window.horizon, limits)
    shape = shape_of(panel, data, categories, window, model, context)
    shape = replace(shape, nonnegative=not shape.n_classes and is_nonnegative(panel, limits))
    check_model(panel, shape, model, fit)
    return Setup(
        training=TrainingData(panel, device, split, ranks),
        data=data,
        categories=categories,
        window=WindowConfig(context_length=context, horizon=window.horizon),
        model=model,
        fit=fit,
        shape=shape,
        checkpoints=checkpoints,
        trained_until=max(split.trained_until, _seen_until(init, panel, split.validation)),
        init=init,
        teacher=teacher,
    )


def _checkpoints(panel: Panel, device: torch.device, fit: FitConfig, **groups: Any) -> list[Checkpoint | None]:
    """Return the checkpoint of each network's training; None without `fit.checkpoint`."""
    if not (fit.checkpoint and fit.max_steps):
        return [None] * fit.ensemble
    settings = _settings(panel, device, fit=fit, **groups)
    names = ["training", *(f"training-{number:02d}" for number in range(2, fit.ensemble + 1))]
    return [Checkpoint(Path(fit.checkpoint), settings, name=name) for name in names]


def _settings(
    panel: Panel, device: torch.device, *, fit: FitConfig, ranks: Ranks | None, **groups: Any
) -> dict[str, Any]:
    """Return all settings that a training depends on, by path: a checkpoint resumes only with the same ones."""
    source = set(SourceConfig.model_fields)
    settings: dict[str, Any] = {"panel": panel.digest(), "device": device.type}
    if ranks is not None:
        settings["ranks"] = ranks.size
    # The device and the number of processes count, not the settings accelerator and launcher.
    groups["fit"] = fit.model_copy(update={"checkpoint": None, "accelerator": "auto"})
    for group, config in ((group, config) for group, config in groups.items() if config is not None):
        if isinstance(config, Teacher | PretrainedNetwork):
            values = config.digests
        else:
            values = (
                config if isinstance(config, dict) else config.model_dump(mode="json", exclude=source | {"launcher"})
            )
        settings |= {f"{group}.{name}": value for name, value in values.items()}
    return settings


def facts_of(panel: Panel, **groups: Config) -> dict[str, str]:
    """Return what all processes of a training must have alike, by name: versions, settings, and the panel.

    Of the panel, the numbers of series and steps, and the content of a thousand series.
    """
    series = np.unique(np.linspace(0, panel.n_series - 1, min(panel.n_series, _COMPARED)).astype(np.int64))
    facts = {
        "the version of gatecast": gatecast_version(),
        "the panel": f"{panel.n_series} {len(panel.target)} {panel.take(series).digest()}",
    }
    for group, config in groups.items():
        values = config.model_dump(mode="json", exclude={*SourceConfig.model_fields, "init", "checkpoint"})
        facts |= {f"{group}.{name}": json.dumps(value) for name, value in values.items()}
    return facts


def _seen_until(init: PretrainedNetwork | None, panel: Panel, validation: WindowIndex) -> int:
    """Return the last step of a panel that a network may have been trained on; warn if validation contains it."""
    if init is None:
        return int(panel.start.min()) - 1
    last = init.last_index(panel)
    first = int((panel.start[validation.series] + validation.cutoff).min()) + 1
    if last >= first:
        stamps = panel.grid.timestamps(np.array([last, first]))
        log.warning(
            "model.init: %s has seen values until %s, and validation begins at %s: if these were of the same series, "
            "its share here is too high",
            init.name,
            *stamps,
        )
    return last
