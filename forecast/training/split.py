"""Training steps and validation windows of a panel."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from forecast.config import FitConfig, ModelConfig
from forecast.data.holdout import Holdout, plan_holdout
from forecast.data.ingest.categories import with_trained_categories
from forecast.data.ingest.classes import with_trained_classes
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, held_out_windows, usable_lengths

if TYPE_CHECKING:
    from forecast.training.ranks import Ranks

log = logging.getLogger(__name__)

# Most validation windows, a sample that is the same at each validation; and the fewest, which may be closer to each
# other than a horizon.
_CHECKS, _LEAST_CHECKS = 4_096, 512


class Split(NamedTuple):
    """Steps of a panel for training, windows for validation, and the hold-out."""

    trained_until: int
    """Grid index of the last step before the hold-out."""
    usable: IntArray
    """[S], steps of each series before the hold-out."""
    train_lengths: IntArray
    """[S], steps of each series for training, before the validation windows."""
    validation: WindowIndex
    """The windows that stop the training and choose the skip."""
    candidates: WindowIndex
    """All windows that `validation` is sampled from."""
    plan: Holdout
    """Number and length of the held-out windows."""


@dataclass(frozen=True)
class TrainingData:
    """A panel, the device of its training, and its split."""

    panel: Panel
    device: torch.device
    split: Split
    ranks: "Ranks | None" = None
    """The processes that train together; None for one process."""


def split_panel(panel: Panel, horizon: int, fit: FitConfig) -> Split:
    """Return the split of a panel into training steps, validation windows and hold-out."""
    plan = plan_holdout(panel.lengths, horizon, holdout=fit.holdout_windows, validation=fit.validation_windows)
    trained_until = panel.last_index - plan.holdout_windows * horizon
    usable = usable_lengths(panel, trained_until)
    candidates, train_lengths = held_out_windows(
        usable,
        horizon=plan.validation_steps,
        n_windows=plan.validation_windows,
        at_least=_LEAST_CHECKS,
    )
    return Split(trained_until, usable, train_lengths, _sample(candidates, fit.seed), candidates, plan)


def training_data(loaded: Loaded, horizon: int, model: ModelConfig, fit: FitConfig) -> Loaded:
    """Return a panel as `fit` trains on it: with the classes and categories that occur in training steps.

    Raises DataError if head and target do not fit together.
    """
    data = loaded.data
    panel, categories = with_trained_classes(loaded.panel, loaded.categories, data.columns.target, model.head)
    panel, categories = with_trained_categories(panel, categories, data, split_panel(panel, horizon, fit).train_lengths)
    return replace(loaded, panel=panel, categories=categories)


def _sample(validation: WindowIndex, seed: int) -> WindowIndex:
    """Return a sample of at most `_CHECKS` windows."""
    if len(validation) <= _CHECKS:
        return validation
    log.info("fit: of %d validation windows, %d are used", len(validation), _CHECKS)
    return validation[np.sort(np.random.default_rng(seed).choice(len(validation), _CHECKS, replace=False))]
