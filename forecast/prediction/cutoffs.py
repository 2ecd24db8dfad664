"""Checks of the cutoff of a forecast, and the windows that end there."""

from typing import TYPE_CHECKING

import numpy as np

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError, DataError, listing

if TYPE_CHECKING:
    from forecast.artifact import Artifact


def check_cutoff(panel: Panel, cutoff: int | None, key: str = "score.cutoff") -> int:
    """Return `cutoff`, or the latest step of the panel when None, as a grid index.

    Raises DataError, which names the setting `key`, if the panel ends before the cutoff or begins after it.
    """
    last = panel.last_index
    cutoff = last if cutoff is None else cutoff
    if cutoff > last:
        end, requested = panel.grid.timestamps(np.array([last, cutoff])).to_list()
        raise DataError(
            f"the panel ends at {end}, before the cutoff {requested}; wait for the data, or set an earlier {key}"
        )
    if cutoff < panel.start.min():
        cutoff_time = panel.grid.timestamps(np.array([cutoff]))[0]
        raise DataError(f"no series has begun by the cutoff {cutoff_time}; set a later {key}")
    return cutoff


def latest_windows(panel: Panel, cutoff: int | None) -> tuple[int, WindowIndex]:
    """Return the grid index of `cutoff`, the latest step of the panel when None, and the windows that end there."""
    cutoff = check_cutoff(panel, cutoff)
    return cutoff, windows_at(panel, cutoff)


def check_model(artifact: "Artifact", key: str = "score.state") -> None:
    """Raise ConfigError, which names the setting `key`, for a model whose encoder state can't be carried over runs."""
    from forecast.models.adapters.bank import HEAD
    from forecast.models.adapters.stacked import FROZEN

    trained = artifact.network.shape.horizon
    if artifact.horizon > trained:
        raise ConfigError(
            f"{key}: states reach as far as the horizon that the model is trained for, {trained:,} steps, and "
            f"{artifact.horizon:,} are wanted; leave {key} out, or give a horizon of {trained:,} or less"
        )
    if artifact.model.attention:
        raise ConfigError(
            f"{key}: attention looks at every step of the context again, and this model has it; leave {key} out, or "
            "train a model with model.attention=false"
        )
    if artifact.bank and artifact.bank.kind not in (HEAD, *FROZEN):
        raise ConfigError(
            f"{key}: fine-tuning of finetune.kind={artifact.bank.kind} gives series encoders of their own, whose "
            f"states are not kept; leave {key} out, or fine-tune with one of {listing((HEAD, *FROZEN))}"
        )
