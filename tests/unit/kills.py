"""Scoring jobs, each killed in place of one of the moments at which it puts something on the disk."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from forecast import artifact as artifacts
from forecast.config import ScoreOutput, ScoreSettings, SourceConfig
from forecast.data.files import locked
from forecast.scoring.job import ScoreJob


def killed_at(
    moments: Sequence[int], model: Path, panel: Path, folder: Path, names: Mapping[str, str], state: str | None = None
) -> list[int]:
    """Return the exit codes of jobs, the first of which has not come to `moments[0]`, and so on.

    The output of each is in `folder`, below its moment and `out`; the state that it carries on beside it, in `state`.
    """
    given = json.dumps([list(moments), str(model), str(panel), str(folder), dict(names), state])
    done = subprocess.run([sys.executable, __file__, given], capture_output=True, text=True, check=False)
    codes = [int(line) for line in done.stdout.split()]
    assert len(codes) == len(moments), done.stderr
    return codes


def _main(moments: list[int], model: str, panel: str, folder: str, names: dict[str, str], state: str | None) -> None:
    for moment in moments:
        # A child by fork: imports are done once.
        child = os.fork()
        if not child:
            _kill_at(moment)
            found = artifacts.load(Path(model))
            loaded = found.open(SourceConfig(path=panel))
            own = Path(folder, str(moment))
            carried = None if state is None else str(own / state)
            settings = ScoreSettings(shard_size=3, state=carried)
            with ExitStack() as locks:
                for path in filter(None, (str(own / "out"), carried)):
                    locks.enter_context(locked(Path(path)))
                ScoreJob(found, loaded, settings, ScoreOutput(path=str(own / "out")), names).write(
                    loaded.panel.last_index
                )
            os._exit(0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _kill_at(moment: int) -> None:
    real, left = os.fsync, [moment]

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync  # type: ignore[assignment]


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
