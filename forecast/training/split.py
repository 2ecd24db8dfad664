"""Training and held-out windows of a panel."""

import logging
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from forecast.config import FitConfig, ModelConfig
from forecast.data.holdout import Holdout, plan_holdout
from forecast.data.ingest.categories import with_trained_categories
from forecast.data.ingest.classes import with_trained_classes
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex, held_out_windows, usable_lengths

log = logging.getLogger(__name__)

# Windows of validation that are used at most, a sample that is the same at each validation; and at least, if need be
# closer to each other than a horizon.
_CHECKS, _LEAST_CHECKS = 4_096, 512


class Split(NamedTuple):
    """What of a panel is not trained on."""

    trained_until: int
    """Grid index of the last step that training may see."""
    validation: WindowIndex
    """The windows that stop the training and choose the skip."""
    limits: IntArray
    """[S], the first so many steps of each series are trained on."""
    every: WindowIndex
    """All windows that `validation` is taken from."""
    plan: Holdout
    """How many windows are held out, and how many steps of them are looked at."""


def split_panel(panel: Panel, horizon: int, fit: FitConfig) -> Split:
    """Return the validation windows of a training, and what lies before them."""
    plan = plan_holdout(panel.lengths, horizon, holdout=fit.holdout_windows, validation=fit.validation_windows)
    trained_until = panel.last_index - plan.holdout_windows * horizon
    every, limits = held_out_windows(
        usable_lengths(panel, trained_until),
        horizon=plan.validation_steps,
        n_windows=plan.validation_windows,
        at_least=_LEAST_CHECKS,
    )
    return Split(trained_until, _sampled(every, fit.seed), limits, every, plan)


def training_data(loaded: Loaded, horizon: int, model: ModelConfig, fit: FitConfig) -> Loaded:
    """Return a panel as `fit` trains on it: with the classes, and the categories of covariates, that training sees.

    Raises DataError if head and target do not fit together.
    """
    data = loaded.data
    panel, categories = with_trained_classes(loaded.panel, loaded.categories, data.columns.target, model.head)
    panel, categories = with_trained_categories(panel, categories, data, split_panel(panel, horizon, fit).limits)
    return replace(loaded, panel=panel, categories=categories)


def _sampled(validation: WindowIndex, seed: int) -> WindowIndex:
    """Return as many of the windows as are used."""
    if len(validation) <= _CHECKS:
        return validation
    log.info("fit: of %d validation windows, %d are used", len(validation), _CHECKS)
    return validation[np.sort(np.random.default_rng(seed).choice(len(validation), _CHECKS, replace=False))]
