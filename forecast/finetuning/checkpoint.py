"""Finished groups of series in `finetune.checkpoint`: a file for each group and pass."""

import logging
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from forecast.config import JobShare
from forecast.errors import OutputError, listing
from forecast.models.runtime.state_file import read_state, write_state

_LOG = logging.getLogger(__name__)

TRIAL: Final = "trial"
FIT: Final = "fit"
"""The two passes, as named in files. The first takes most of the time."""
_VERBS: Final = {TRIAL: "tried", FIT: "fitted"}


class GroupStore:
    """Groups that are finished, of one job or of all shares of it.

    `settings` are all that the content depends on. With a `share`, a file that can't be written is an error, because
    the commit needs all of them; without, a restart repeats its group.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], share: JobShare | None = None) -> None:
        self._folder, self._settings, self._share = folder, settings, share

    def _path(self, stage: str, number: int) -> Path:
        return self._folder / f"{stage}-{number:05d}.safetensors"

    def has(self, stage: str, number: int) -> bool:
        """Return whether a group is finished."""
        return self._path(stage, number).exists()

    def read(self, stage: str, number: int, **inputs: str) -> dict[str, Tensor] | None:
        """Return a finished group, None if it is not.

        `inputs` are what it depends on besides the settings. Raises ConfigError if it belongs to another job.
        """
        path = self._path(stage, number)
        if not path.exists():
            return None
        return read_state(path, self._settings | inputs, key="finetune.checkpoint", job="fine-tuning")[0]

    def write(self, stage: str, number: int, tensors: dict[str, Tensor], **inputs: str) -> None:
        """Write a group atomically. Raises OutputError for a share; else a full disk causes a warning only."""
        state = {"shard": str(self._share)} if self._share else {}
        try:
            write_state(self._path(stage, number), tensors, self._settings | inputs, state)
        except OutputError as error:
            if self._share:
                raise
            _LOG.warning("finetune.checkpoint: %s; the job goes on, a restart does this group again", error)

    def check_complete(self, stage: str, count: int) -> None:
        """Raise OutputError that names what is missing, if some of `count` groups are not finished."""
        missing = [number for number in range(count) if not self.has(stage, number)]
        if missing:
            raise OutputError(
                f"finetune.checkpoint: {len(missing):,} of {count:,} groups of series in {self._folder} are not "
                f"{_VERBS[stage]}: {self.owners(missing, count)}; run these with the settings of this commit, and "
                "commit again"
            )

    def owners(self, numbers: list[int], count: int) -> str:
        """Return the shares that have some of `count` groups, as text; the numbers of the groups if none is known."""
        share = self._share or self._any_share()
        if share is None:
            return f"groups {listing(numbers)}"
        shares = [JobShare(index, share.count) for index in range(share.count)]
        return f"shards {listing([each for each in shares if set(each.of(count)) & set(numbers)])}"

    def _any_share(self) -> JobShare | None:
        """Return the share that wrote one of the files, None if no share did."""
        for stage in (FIT, TRIAL):
            for path in sorted(self._folder.glob(f"{stage}-*.safetensors"))[:1]:
                state = read_state(path, None, key="finetune.checkpoint", job="fine-tuning")[1]
                if text := state.get("shard"):
                    index, count = map(int, text.split("/"))
                    return JobShare(index, count)
        return None


def clear_checkpoint(folder: Path) -> None:
    """Delete all groups of a folder."""
    for stage in (TRIAL, FIT):
        for path in folder.glob(f"{stage}-*"):
            path.unlink(missing_ok=True)
