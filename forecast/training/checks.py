"""Checks of settings and panel before a training begins."""

import multiprocessing

import numpy as np
import torch

from forecast.config import CLASS_HEADS, COUNT_HEADS, POSITIVE_HEADS, FitConfig, ModelConfig, WindowConfig
from forecast.data.holdout import Holdout
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import WindowIndex
from forecast.errors import ConfigError, DataError, listing
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.markov import MAX_TABLE


def check_model(panel: Panel, shape: NetworkShape, model: ModelConfig, fit: FitConfig) -> None:
    """Raise ConfigError or DataError if settings of the model contradict each other or the panel."""
    if model.decoder == "segment" and shape.segment_length >= shape.horizon:
        raise ConfigError(
            f"model.decoder: segment has nothing to do where one segment ({shape.segment_length} steps) covers "
            f"window.horizon ({shape.horizon}); set a smaller model.segment_length, or model.decoder=direct"
        )
    if fit.ensemble > 1 and model.head not in ("quantile", *CLASS_HEADS):
        raise ConfigError(
            f"fit.ensemble: the mean of several networks is one of quantiles or of probabilities; set "
            f"model.head=quantile (given: {model.head}), or fit.ensemble=1"
        )
    if model.head in POSITIVE_HEADS:
        _check_positive(panel, model)
    if model.skip and shape.n_classes**2 * shape.horizon > MAX_TABLE:
        raise ConfigError(
            f"model.skip: with {shape.n_classes:,} classes and window.horizon={shape.horizon} its tables hold "
            f"{shape.n_classes**2 * shape.horizon:,} numbers, and may hold {MAX_TABLE:,}; lower window.horizon, or set "
            "model.skip=false"
        )


def device_of(config: FitConfig) -> torch.device:
    """Return the device that `fit.accelerator` names. Raises ConfigError if there is none."""
    there = torch.cuda.is_available()
    if config.accelerator == "gpu" and not there:
        raise ConfigError("fit.accelerator: gpu asked for, but torch finds none here; set fit.accelerator=cpu or auto")
    device = torch.device("cuda" if there and config.accelerator != "cpu" else "cpu")
    if config.precision == "bf16-mixed" and device.type == "cpu":
        raise ConfigError(
            "fit.precision: bf16-mixed is several times slower than 32-true on a CPU; set fit.precision=32-true"
        )
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(f"fit.devices: {config.devices} asked for, but torch finds {torch.cuda.device_count()} GPUs")
    if config.devices > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            "fit.devices: each process of the training imports the script that was run, which must not train again "
            'there; put what it does under `if __name__ == "__main__":`'
        )
    return device


def check_inputs(panel: Panel, limits: IntArray, validation: WindowIndex, plan: Holdout, window: WindowConfig) -> None:
    """Raise DataError for a panel without windows to train or validate on."""
    # The closed-form solution is fitted on full horizons, if there are any.
    steps = plan.validation_steps
    full = steps == window.horizon
    if len(validation) and (not full or (limits > steps).any()):
        return
    longest = int(panel.lengths.max())
    needed = (plan.holdout_windows + 2) * steps + 1 if full else 2
    change = "lower window.horizon or fit.holdout_windows" if full else "give more rows"
    raise DataError(
        f"no series is long enough to train and validate on: the longest of {panel.n_series:,} has {longest:,} "
        f"steps, and {plan.holdout_windows} held-out windows, one validation window and one of history need "
        f"{needed:,}; {change}"
    )


def _check_positive(panel: Panel, model: ModelConfig) -> None:
    counts = model.head in COUNT_HEADS
    negative, fractional, names, total = 0, 0, list[str](), 0
    for shard in panel.shards():
        below, between = shard.target < 0, counts & np.isfinite(shard.target) & (shard.target % 1 != 0)
        negative, fractional = negative + int(below.sum()), fractional + int(between.sum())
        total += int(np.isfinite(shard.target).sum())
        bad = np.flatnonzero(below | between)
        names += shard.series_id[np.unique(np.searchsorted(shard.offsets, bad, side="right") - 1)].tolist()
    if names:
        wrong = f"{negative:,} are negative" + (f" and {fractional:,} fractional" if counts else "")
        raise DataError(
            f"model.head={model.head} is for {'counts' if counts else 'values of 0 and more'}, but of {total:,} "
            f"targets {wrong}, in {len(names):,} of {panel.n_series:,} series: {listing(names)}; set "
            f"model.head=quantile, normal or student_t, or give {'whole numbers' if counts else 'none below 0'}"
        )
