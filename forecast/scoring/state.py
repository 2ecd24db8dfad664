"""The state that a nightly job carries on: for each series, what its encoder needs to see no step twice.

    .lock                                          held by the job that writes here
    phase-007/state.json                           the cutoff, the model, and which parts; written last
    phase-007/part-00003-1f2e....safetensors       states of a shard of series (`StateStore`), digests of their inputs

A model that takes in segments of several steps has a state for each phase of the cutoff in a segment, made when a
cutoff of that phase first comes: an hourly job on a model that takes in days has 24, and each goes on once a day.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError

from forecast.artifact import Artifact
from forecast.data.files import write_bytes_atomic, write_text_atomic
from forecast.data.panel import IntArray, Names, Panel, TargetArray, as_names
from forecast.data.windows import windows_at
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.models.runtime.torch_setup import prepare

_LOG = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
CARRIED: Final = "carried"
RECOMPUTED: Final = "recomputed"
NEW: Final = "new"

_KEY: Final = "score.state"
_INDEX: Final = "state.json"
_MAX_CUTOFF: Final = 1 << 53

Digests = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """The state of some series, sorted."""

    series_id: Names
    carried: StateStore
    digests: Digests
    """[S, 16], of what went in."""

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        names = np.frombuffer(json.dumps(self.series_id.tolist()).encode(), np.uint8)
        tensors = {
            **{name: values.contiguous() for name, values in self.carried._asdict().items()},
            "digests": torch.from_numpy(self.digests),
            "series_id": torch.from_numpy(names.copy()),
        }
        return safetensors.torch.save(tensors)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Rows":
        """Return what `to_bytes` wrote. Raises KeyError, ValueError, SafetensorError."""
        tensors = safetensors.torch.load(content)
        names = json.loads(tensors.pop("series_id").numpy().tobytes())
        digests = tensors.pop("digests").numpy()
        return cls(as_names(names), StateStore(**tensors), digests)


class Update:
    """The state of one cutoff, made shard by shard from that of an earlier one, as far as there is one."""

    def __init__(self, folder: Path, artifact: Artifact, panel: Panel, cutoff: int, model_digest: str) -> None:
        self._artifact, self._panel, self._cutoff, self._model_digest = artifact, panel, cutoff, model_digest
        length = artifact.network.shape.segment_length
        self._folder = folder / f"phase-{self._clock(cutoff) % length:03d}"
        self._old = self._read()
        self._before: int | None = None
        """The cutoff of the old state, None if there is none to go on from."""
        self.touches = True
        """Whether the state moves to this cutoff: one that is older leaves it alone."""
        if self._old:
            before = int(self._old["cutoff_index"])
            self.touches = before <= cutoff
            if self.touches and (self._clock(cutoff) - self._clock(before)) % length:
                self._old = self._unused("is of another phase of the segments")
            elif self.touches:
                self._before = before
        self._loaded: dict[str, Rows] = {}
        self._hashes = {name: part["sha256"] for name, part in self._old.get("parts", {}).items()}
        self._spans: dict[str, tuple[str, str]] = {}

    def _clock(self, index: int) -> int:
        return index + int(self._panel.clock_shift_at(np.array([index]))[0])

    def _unused(self, why: str) -> dict[str, Any]:
        _LOG.warning(f"score.state: {self._folder} {why}; it is not used, and made anew from the history")
        return {}

    def _read(self) -> dict[str, Any]:
        path = self._folder / _INDEX
        if not path.exists():
            return {}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return self._unused("can't be read")
        version = index.get("format_version") if isinstance(index, dict) else None
        if version is not None and version != FORMAT_VERSION:
            return self._unused(f"has format version {version}, this program reads {FORMAT_VERSION}")
        if version is None or not _is_index(index):
            return self._unused("is damaged")
        if index["model_digest"] != self._model_digest:
            return self._unused("is of another model")
        known: dict[str, Any] = index
        return known

    def has(self, name: str, shard: Panel) -> bool:
        """Return whether the part of a shard is there already, and is to be kept."""
        self._spans[name] = (str(shard.series_id[0]), str(shard.series_id[-1]))
        return not self.touches or (self._folder / name).is_file()

    def rows(self, shard: Panel) -> tuple[StateStore, Rows, dict[str, int]]:
        """Return the pasts of a shard's series, their state, and how many were carried on, recomputed, and new.

        A series is recomputed from its history if that is not what went in: if a row came late, or was revised.
        """
        prepare()
        network = self._artifact.network
        length = network.shape.segment_length
        windows = windows_at(shard, self._cutoff)
        carried = StateStore.blank(network, shard.n_series)
        segments = segments_since(shard, windows, length)
        known = np.zeros(len(windows), np.bool_)
        same = np.zeros(len(windows), np.bool_)
        if self._before is not None:
            old = self._old_rows(shard)
            at = np.minimum(np.searchsorted(old.series_id, shard.series_id[windows.series]), len(old.series_id) - 1)
            if len(old.series_id):
                known = old.series_id[at] == shard.series_id[windows.series]
            expected = self._digests(shard, windows.series[known], self._before)
            same[known] = (expected == old.digests[at[known]]).all(1)
            kept = torch.from_numpy(windows.series[same])
            for values, found in zip(carried, old.carried, strict=True):
                values[kept] = found[torch.from_numpy(at[same])]
            segments[same] = (self._clock(self._cutoff) - self._clock(self._before)) // length
        data = PanelTensors.of(shard, network)
        advance(network, data, windows, segments, carried)
        known |= not self.touches
        counts = {CARRIED: int(same.sum()), RECOMPUTED: int((known & ~same).sum()), NEW: int((~known).sum())}
        begun = StateStore(*(values[torch.from_numpy(windows.series)] for values in carried))
        digests = self._digests(shard, windows.series, self._cutoff)
        return carried, Rows(shard.series_id[windows.series], begun, digests), counts

    def _digests(self, shard: Panel, series: IntArray, cutoff: int) -> Digests:
        """Return a hash of what of some series is in their state of a cutoff, [n, 16].

        That is up to one segment before the cutoff, but known covariates of the segment after that, too.
        """
        length = self._artifact.network.shape.segment_length
        shift = self._clock(cutoff) - cutoff - (self._clock(cutoff - length) - (cutoff - length))
        seen = np.clip(cutoff - length + max(shift, 0) + 1 - shard.start, 0, shard.lengths)
        ahead = np.clip(cutoff + 1 - shard.start, 0, shard.lengths + shard.horizon) * (seen > 0)
        first = shard.offsets + np.arange(shard.n_series + 1) * shard.horizon
        observed = np.concatenate([shard.target[None], shard.past]) if len(shard.past) else shard.target[None]
        observed, stated = np.asarray(observed), np.asarray(shard.known)  # A slice of a memory map takes long.
        digests = np.empty((len(series), 16), dtype=np.uint8)
        for row, number in enumerate(series.tolist()):
            begin, known = int(shard.offsets[number]), int(first[number])
            static = shard.static_categories[number].tobytes() + shard.static_numbers[number].tobytes()
            hasher = hashlib.blake2b(static, digest_size=16)
            if seen[number]:
                hasher.update(shard.start[number].tobytes())
            hasher.update(_up_to_the_last(observed[:, begin : begin + seen[number]]))
            hasher.update(_up_to_the_last(stated[:, known : known + ahead[number]]))
            digests[row] = np.frombuffer(hasher.digest(), dtype=np.uint8)
        return digests

    def _old_rows(self, shard: Panel) -> Rows:
        """Return the old state of the series from the first to the last of a shard, and perhaps of more."""
        first, last = str(shard.series_id[0]), str(shard.series_id[-1])
        names = [name for name, part in self._old["parts"].items() if part["first"] <= last and part["last"] >= first]
        self._loaded = {name: self._loaded.get(name) or self._load(name) for name in names}
        parts = list(self._loaded.values()) or [self._none()]
        carried = StateStore(*(torch.cat(values) for values in zip(*(part.carried for part in parts), strict=True)))
        return Rows(
            np.concatenate([part.series_id for part in parts]),
            carried,
            np.concatenate([part.digests for part in parts]),
        )

    def _none(self) -> Rows:
        return Rows(as_names([]), StateStore.blank(self._artifact.network, 0), np.zeros((0, 16), np.uint8))

    def _load(self, name: str) -> Rows:
        try:
            content = (self._folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() == self._old["parts"][name]["sha256"]:
                rows = Rows.from_bytes(content)
                if self._fits(rows):
                    return rows
        except (OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError):
            pass
        self._unused(f"has lost or damaged {name}")
        return self._none()

    def _fits(self, rows: Rows) -> bool:
        """Return whether rows that were read are a state of this model."""
        n_series = len(rows.series_id)
        blank = StateStore.blank(self._artifact.network, n_series)
        return (
            all(isinstance(name, str) for name in rows.series_id.tolist())
            and rows.digests.dtype == np.uint8
            and rows.digests.shape == (n_series, 16)
            and all(
                values.shape == none.shape and values.dtype == none.dtype
                for values, none in zip(rows.carried, blank, strict=True)
            )
        )

    def save(self, name: str, rows: Rows) -> None:
        """Write the part of a shard; it counts once it is published."""
        if not self.touches:
            return
        content = rows.to_bytes()
        self._hashes[name] = hashlib.sha256(content).hexdigest()
        write_bytes_atomic(content, self._folder / name, key=_KEY, private=True)

    def publish(self) -> None:
        """Put the parts of all shards in place of the old state."""
        if not self.touches:
            return
        parts = {
            name: {"first": first, "last": last, "sha256": self._hashes.get(name) or self._hash(name)}
            for name, (first, last) in self._spans.items()
        }
        moment = self._panel.grid.timestamps(np.array([self._cutoff]))[0]
        content = {
            "format_version": FORMAT_VERSION,
            "model_digest": self._model_digest,
            "cutoff": moment.isoformat(),
            "cutoff_index": self._cutoff,
            "parts": parts,
        }
        if content != self._old:
            write_text_atomic(json.dumps(content, indent=1) + "\n", self._folder / _INDEX, key=_KEY, private=True)
        for path in self._folder.iterdir():
            if path.name != _INDEX and path.name not in parts and not path.is_dir():
                path.unlink()

    def _hash(self, name: str) -> str:
        with (self._folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _is_index(index: dict[str, Any]) -> bool:
    """Return whether what was read as JSON has all that the index of a state has."""
    cutoff, parts = index.get("cutoff_index"), index.get("parts")
    return (
        isinstance(index.get("model_digest"), str)
        and type(cutoff) is int
        and abs(cutoff) < _MAX_CUTOFF
        and isinstance(parts, dict)
        and all(
            Path(name).name == name
            and isinstance(part, dict)
            and all(isinstance(part.get(field), str) for field in ("first", "last", "sha256"))
            for name, part in parts.items()
        )
    )


def _up_to_the_last(values: TargetArray) -> bytes:
    """Return the values up to the last step that has any: a series that has stopped ends later once it goes on."""
    if not values.size:
        return b""
    if np.isnan(values[:, -1]).all():
        values = values[:, : 1 + int(np.flatnonzero(~np.isnan(values).all(0)).max(initial=-1))]
    return str(values.shape).encode() + values.tobytes()
