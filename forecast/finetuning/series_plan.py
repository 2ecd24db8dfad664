"""What a fine-tuning of series does, before the work begins: the series, their windows, and all it depends on."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from forecast.artifact import Artifact
from forecast.config import JobShare, TuningSettings
from forecast.data.panel import IntArray, Panel
from forecast.data.windows import usable_lengths
from forecast.environment import gatecast_version
from forecast.errors import ConfigError
from forecast.finetuning.checkpoint import GroupStore
from forecast.finetuning.eligibility import is_long_enough, requested_series, training_end_of, tuning_settings
from forecast.finetuning.groups import TuningWork
from forecast.finetuning.result import NOT_SELECTED, TOO_SHORT, UNCHANGED
from forecast.finetuning.series_tuning import group_size
from forecast.models.inputs.batch import PanelTensors


@dataclass(frozen=True)
class SeriesPlan:
    """The series of a fine-tuning, and the work on them."""

    work: TuningWork
    data: PanelTensors
    trained_until: int
    usable: IntArray
    """[series of the panel], steps that a fit may use."""
    reason: np.ndarray
    """[series of the panel], why a series is not judged; empty for those that are."""
    digests: dict[str, str]
    """A hash of the data of each series."""

    @classmethod
    def of(cls, artifact: Artifact, panel: Panel, settings: TuningSettings, device: str) -> Self:
        """Return the plan. Raises ConfigError for an unknown or empty selection, DataError if all are too short."""
        on_device = artifact.on(device)
        trained_until = training_end_of(artifact, panel, settings.holdout_windows)
        usable = usable_lengths(panel, trained_until)
        data = PanelTensors.of(panel, artifact.network, device)
        requested = requested_series(on_device, panel, data, usable, settings)
        too_short = ~is_long_enough(artifact, usable, settings)
        digests, digests_before = _digests(panel, usable), artifact.bank.seen if artifact.bank else {}
        unchanged = [digests_before.get(name) == digest for name, digest in digests.items()]
        reason = np.select([~requested, too_short, np.array(unchanged)], [NOT_SELECTED, TOO_SHORT, UNCHANGED], "")
        chosen = np.flatnonzero(reason == "")
        has_final = settings.final and (artifact.final is not None or trained_until < panel.last_index)
        size = group_size(artifact.network, settings, device)
        work = TuningWork(artifact, panel, chosen, usable[chosen], settings, device, size, has_final)
        return cls(work, data, trained_until, usable, reason, digests)

    def store(self) -> GroupStore | None:
        """Return the store in finetune.checkpoint, None without it."""
        return None if self.work.settings.checkpoint is None else self.shared_store(None)

    def shared_store(self, share: JobShare | None) -> GroupStore:
        """Return the store that all shares of a job write into. Raises ConfigError without finetune.checkpoint."""
        work = self.work
        if work.settings.checkpoint is None:
            raise ConfigError("finetune.checkpoint: missing; give the folder that all shards write into")
        key: dict[str, Any] = {
            **tuning_settings(work.artifact, work.panel, work.settings),
            "series": hashlib.sha256(work.series.tobytes()).hexdigest()[:16],
            "group": work.size,
            "device": work.device,
            "gatecast": gatecast_version(),
        }
        return GroupStore(Path(work.settings.checkpoint), key, share)


def _digests(panel: Panel, usable: IntArray) -> dict[str, str]:
    """Return a hash of the data of each series: target and covariates up to the usable length."""
    digests = {}
    # Slices of an array cost less than those of a memory-mapped file.
    target, past, known = (np.asarray(values) for values in (panel.target, panel.past, panel.known))
    for row, name in enumerate(panel.series_id.tolist()):
        steps = slice(panel.offsets[row], panel.offsets[row] + usable[row])
        known_steps = slice(steps.start + row * panel.horizon, steps.stop + row * panel.horizon)
        hasher = hashlib.blake2b(panel.start[row : row + 1].tobytes(), digest_size=8)
        for values in (target[steps], past[:, steps], known[:, known_steps]):
            hasher.update(values.tobytes())
        digests[name] = hasher.hexdigest()
    return digests
