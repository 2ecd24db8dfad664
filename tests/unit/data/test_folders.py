"""The lock of a folder: one job, and no file of anybody else is touched."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from forecast.data.files import locked
from forecast.errors import OutputError


def _symbolic(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nobody"))


def _hard(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_symbolic, _dangling, _hard, _pipe, _folder])
def test_a_lock_that_is_no_file_of_its_own_is_refused(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    folder.mkdir()
    make(folder / ".lock", victim)
    with pytest.raises(OutputError, match=r"can't lock .*out: .*\.lock: .*; remove it, or choose another score\.state"):
        locked(folder, "score.state").__enter__()
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nobody").exists()


def test_a_lock_says_who_has_it_and_is_empty_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(OutputError, match=rf"another job is writing into .*process {os.getpid()} on"):
            locked(tmp_path).__enter__()
    assert (tmp_path / ".lock").read_text() == ""
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text()
