"""Pretrained networks that models start from: of the package, or of a registered version."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import torch

from forecast.artifact import Artifact
from forecast.checkpoints import card_of, names
from forecast.config import ModelConfig, is_version
from forecast.data.panel import Panel
from forecast.errors import ConfigError, listing
from forecast.models.network.ensemble import members_of
from forecast.models.universal.checkpoint import read_checkpoint
from forecast.models.universal.forecaster import UniversalForecaster
from forecast.models.universal.forecasting import MAX_HORIZON
from forecast.models.universal.network import UniversalNetwork


@dataclass(frozen=True)
class PretrainedNetwork:
    """A pretrained network and its origin."""

    network: UniversalNetwork
    name: str
    """Display name: `gatecast-nano-1`, or a version, `loads v3`."""
    checkpoint: str
    """Name and SHA-256 of the package's network from which it was trained, or which it is."""
    digest: str = ""
    """Digest of the version; empty for a network of the package."""
    trained_until: datetime | None = None
    """Timestamp of the last real value seen in training; None if trained on synthetic series only."""

    @property
    def digests(self) -> dict[str, str]:
        """Digests that the result of a training depends on."""
        return {"digest": self.digest}

    def check_horizon(self, horizon: int) -> None:
        """Raise ConfigError for a horizon that is too long for the network."""
        if horizon > MAX_HORIZON:
            raise ConfigError(
                f"{self.name} forecasts {MAX_HORIZON:,} steps at most, and window.horizon is {horizon:,}; set a "
                "shorter one, or put the rows together to longer steps (data.freq, data.aggregate)"
            )

    def last_index(self, panel: Panel) -> int:
        """Return the grid index of the last step of a panel that is not after `trained_until`.

        If the whole panel is later, that is the step before its first.
        """
        first = int(panel.start.min()) - 1
        if self.trained_until is None:
            return first
        stamps = panel.grid.timestamps(np.arange(first + 1, panel.last_index + 1)).dt.replace_time_zone(None)
        return first + int((stamps <= self.trained_until.replace(tzinfo=None)).sum())


def of_package(name: str) -> PretrainedNetwork:
    """Return the network of the package called `name`. Raises ConfigError for an unknown name."""
    network, card = read_checkpoint(card_of(name))
    return PretrainedNetwork(network, card["name"], f"{card['name']} {card['sha256']}")


def of_model(artifact: Artifact, name: str) -> PretrainedNetwork:
    """Return the pretrained network in a model with display name `name`, with its evaluated weights.

    Raises ConfigError for a model without a pretrained network.
    """
    base = artifact.base()
    member = next((part for part in members_of(base.network) if isinstance(part, UniversalForecaster)), None)
    if member is None:
        raise ConfigError(
            f"model.init: {name} was trained on its panel alone: there is no pretrained network in it; take a version "
            "that forecast models add has registered, that finetune.kind=global has made of one, or whose training "
            f"gave it a share; or one of {listing(names())}, none"
        )
    # Unchanged weights, as after `forecast models add` or in an ensemble, have not been trained on the panel.
    until = None if _is_unchanged(member) else base.trained_until_timestamp
    return PretrainedNetwork(member.network, name, member.shape.checkpoint, artifact.digest(), until)


def _is_unchanged(member: UniversalForecaster) -> bool:
    """Return whether the weights equal those of the package."""
    name = member.shape.checkpoint.partition(" ")[0]
    if name not in names():
        return False
    published = of_package(name).network.state_dict()
    return all(torch.equal(values, published[key]) for key, values in member.network.state_dict().items())


def model_for(init: PretrainedNetwork | None, model: ModelConfig, horizon: int) -> ModelConfig:
    """Return the settings of a model that starts from the network `init`; `model` unchanged if that is None.

    Their `init` names the network of the package from which the version was trained, for retraining from scratch.
    Raises ConfigError if the settings name a version without its network, or its forecasts can't be averaged.
    """
    if init is None:
        if model.init is not None and is_version(model.init):
            raise ConfigError(
                f"model.init={model.init}: a version is looked up by forecast train and forecast tune; in Python, "
                "give its model: fc.train(..., init=fc.load(folder))"
            )
        return model
    init.check_horizon(horizon)
    if model.head != "quantile" or model.decoder == "autoregressive":
        raise ConfigError(
            f"model.init: {init.name} forecasts quantiles, which have no mean with those of head={model.head}, "
            f"decoder={model.decoder}; set model.head=quantile and another decoder, or model.init=none"
        )
    return model.model_copy(update={"init": init.checkpoint.partition(" ")[0]})
