"""Encoder states of some series, and the file that holds them."""

import json
from dataclasses import dataclass

import numpy as np
import safetensors.torch
import torch

from forecast.data.panel import IntArray, Names, as_names
from forecast.models.network.carried_state import StateStore
from forecast.models.network.ensemble import Forecaster
from forecast.scoring.state_digests import Digests


@dataclass(frozen=True)
class StateRows:
    """States of some series, sorted by id."""

    series_id: Names
    carried: StateStore
    digests: Digests
    """[S, 16], hashes of the inputs of each state."""

    @classmethod
    def none(cls, network: Forecaster) -> "StateRows":
        """Return the states of no series."""
        return cls(as_names([]), StateStore.blank(network, 0), np.zeros((0, 16), np.uint8))

    @classmethod
    def concatenated(cls, parts: list["StateRows"]) -> "StateRows":
        """Return the states of all parts, in this order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.series_id for part in parts]),
            StateStore(*(torch.cat(values) for values in zip(*(part.carried for part in parts), strict=True))),
            np.concatenate([part.digests for part in parts]),
        )

    def to_bytes(self) -> bytes:
        """Return the states as bytes of a safetensors file."""
        names = np.frombuffer(json.dumps(self.series_id.tolist()).encode(), np.uint8)
        tensors = {
            **{name: values.contiguous() for name, values in self.carried._asdict().items()},
            "digests": torch.from_numpy(self.digests),
            "series_id": torch.from_numpy(names.copy()),
        }
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes) -> "StateRows":
        """Return states from the bytes of `to_bytes`. Raises KeyError, ValueError, SafetensorError."""
        tensors = safetensors.torch.load(content)
        names = json.loads(tensors.pop("series_id").numpy().tobytes())
        digests = tensors.pop("digests").numpy()
        return cls(as_names(names), StateStore(**tensors), digests)

    def fits(self, network: Forecaster) -> bool:
        """Return whether the shapes and types are those of the states of a network."""
        n_series, blank = len(self.series_id), StateStore.blank(network, 0)
        return (
            all(isinstance(name, str) for name in self.series_id.tolist())
            and self.digests.dtype == np.uint8
            and self.digests.shape == (n_series, 16)
            and all(
                values.shape == (n_series, *expected.shape[1:]) and values.dtype == expected.dtype
                for values, expected in zip(self.carried, blank, strict=True)
            )
        )

    def rows(self, position: IntArray) -> StateStore:
        """Return the states at some positions."""
        index = torch.from_numpy(position)
        return StateStore(*(values[index] for values in self.carried))
