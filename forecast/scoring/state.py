"""Encoder states carried over from one scoring job to the next, so that no step is encoded twice.

    .lock                                          held by the job that writes here
    phase-007/state.json                           the cutoff, the model, and which parts; written last
    phase-007/part-00003-1f2e....safetensors       states of a shard of series (`StateStore`), input digests

A model with segments of several steps has a state for each phase of the cutoff within a segment, created at the first
cutoff of that phase: an hourly job on a model with daily segments has 24 states, each continued once a day.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError

from forecast.artifact import Artifact
from forecast.data.files import file_hash, write_bytes_atomic, write_text_atomic
from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex, windows_at
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.carried_state import StateStore, advance, segments_since
from forecast.models.runtime.torch_setup import prepare
from forecast.scoring.state_digests import Digests, digest_inputs
from forecast.scoring.state_rows import StateRows

_LOG = logging.getLogger(__name__)

FORMAT_VERSION: Final = 2
CARRIED: Final = "carried"
RECOMPUTED: Final = "recomputed"
NEW: Final = "new"

_KEY: Final = "score.state"
_INDEX: Final = "state.json"
_MAX_CUTOFF: Final = 1 << 53


class StateUpdate:
    """The state of one cutoff, computed shard by shard, from the state of an earlier cutoff if there is one."""

    def __init__(self, folder: Path, artifact: Artifact, panel: Panel, cutoff: int, model_digest: str) -> None:
        self._artifact, self._panel, self._cutoff, self._model_digest = artifact, panel, cutoff, model_digest
        length = artifact.network.shape.segment_length
        self._folder = folder / f"phase-{self._clock(cutoff) % length:03d}"
        self._old = self._read()
        self._old_cutoff: int | None = None
        """The cutoff of the old state, None without a usable one."""
        self.touches = True
        """Whether the state moves to this cutoff; an older cutoff leaves it unchanged."""
        if self._old:
            before = int(self._old["cutoff_index"])
            self.touches = before <= cutoff
            if self.touches and (self._clock(cutoff) - self._clock(before)) % length:
                self._old = self._discard("is of another phase of the segments")
            elif self.touches:
                self._old_cutoff = before
        self._loaded: dict[str, StateRows] = {}
        self._hashes = {name: part["sha256"] for name, part in self._old.get("parts", {}).items()}
        self._spans: dict[str, tuple[str, str]] = {}

    def _clock(self, index: int) -> int:
        return index + int(self._panel.clock_shift_at(np.array([index]))[0])

    def _discard(self, why: str) -> dict[str, Any]:
        _LOG.warning(f"score.state: {self._folder} {why}; it is not used, and made anew from the history")
        return {}

    def _read(self) -> dict[str, Any]:
        path = self._folder / _INDEX
        if not path.exists():
            return {}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return self._discard("can't be read")
        version = index.get("format_version") if isinstance(index, dict) else None
        if version is not None and version != FORMAT_VERSION:
            return self._discard(f"has format version {version}, this program reads {FORMAT_VERSION}")
        if version is None or not _is_index(index):
            return self._discard("is damaged")
        if index["model_digest"] != self._model_digest:
            return self._discard("is of another model")
        valid_index: dict[str, Any] = index
        return valid_index

    def has(self, name: str, shard: Panel) -> bool:
        """Return whether the part of a shard exists already, or none is to be written."""
        self._spans[name] = (str(shard.series_id[0]), str(shard.series_id[-1]))
        return not self.touches or (self._folder / name).is_file()

    def rows(self, shard: Panel) -> tuple[StateStore, StateRows, dict[str, int]]:
        """Return the states of a shard for forecasting and for storage, and the number carried, recomputed and new.

        A state is recomputed from the history if its inputs have changed: after late or revised rows.
        """
        prepare()
        network = self._artifact.network
        length = network.shape.segment_length
        windows = windows_at(shard, self._cutoff)
        segments = segments_since(shard, windows, length)
        had_state = np.zeros(len(windows), np.bool_)
        is_current = np.zeros(len(windows), np.bool_)
        *old_digests, digests = self._input_digests(shard, windows)
        carried = StateStore.blank(network, shard.n_series)
        if self._old_cutoff is not None:
            old = self._old_rows(shard)
            position = np.minimum(
                np.searchsorted(old.series_id, shard.series_id[windows.series]), len(old.series_id) - 1
            )
            if len(old.series_id):
                had_state = old.series_id[position] == shard.series_id[windows.series]
            (expected,) = old_digests
            is_current[had_state] = (expected[had_state] == old.digests[position[had_state]]).all(1)
            carried.assign(windows.series[is_current], old.rows(position[is_current]))
            segments[is_current] = (self._clock(self._cutoff) - self._clock(self._old_cutoff)) // length
        data = PanelTensors.of(shard, network)
        advance(network, data, windows, segments, carried)
        had_state |= not self.touches
        counts = {
            CARRIED: int(is_current.sum()),
            RECOMPUTED: int((had_state & ~is_current).sum()),
            NEW: int((~had_state).sum()),
        }
        started = carried.rows(windows.series)
        return carried, StateRows(shard.series_id[windows.series], started, digests), counts

    def _input_digests(self, shard: Panel, windows: WindowIndex) -> Digests:
        """Return digests of the inputs of each window's state at the old cutoff, if any, and the new, [cutoff, n, 16].

        Inputs reach up to one segment before the cutoff; known covariates include the segment after that.
        """
        length = self._artifact.network.shape.segment_length
        observed, known = [], []
        for cutoff in (self._old_cutoff, self._cutoff):
            if cutoff is None:
                continue
            shift = self._clock(cutoff) - cutoff - (self._clock(cutoff - length) - (cutoff - length))
            observed.append(np.clip(cutoff - length + max(shift, 0) + 1 - shard.start, 0, shard.lengths))
            known.append(np.clip(cutoff + 1 - shard.start, 0, shard.lengths + shard.horizon) * (observed[-1] > 0))
        return digest_inputs(shard, observed, known).take(windows.series, axis=1)

    def _old_rows(self, shard: Panel) -> StateRows:
        """Return the old states of at least the series between the first and the last of a shard."""
        first, last = str(shard.series_id[0]), str(shard.series_id[-1])
        names = [name for name, part in self._old["parts"].items() if part["first"] <= last and part["last"] >= first]
        self._loaded = {name: self._loaded.get(name) or self._load(name) for name in names}
        return StateRows.concatenated(list(self._loaded.values()) or [StateRows.none(self._artifact.network)])

    def _load(self, name: str) -> StateRows:
        try:
            content = (self._folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() == self._old["parts"][name]["sha256"]:
                rows = StateRows.from_bytes(content)
                if rows.fits(self._artifact.network):
                    return rows
        except (OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError):
            pass
        self._discard(f"has lost or damaged {name}")
        return StateRows.none(self._artifact.network)

    def save(self, name: str, rows: StateRows) -> None:
        """Write the part of a shard; `publish` makes it valid."""
        if not self.touches:
            return
        content = rows.to_bytes()
        self._hashes[name] = hashlib.sha256(content).hexdigest()
        write_bytes_atomic(content, self._folder / name, key=_KEY, private=True)

    def publish(self) -> None:
        """Replace the old state by the parts of all shards."""
        if not self.touches:
            return
        parts = {
            name: {"first": first, "last": last, "sha256": self._hashes.get(name) or file_hash(self._folder / name)}
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


def _is_index(index: dict[str, Any]) -> bool:
    """Return whether parsed JSON has the fields and types of a state index."""
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
