import logging
from collections.abc import Iterator

import pytest

from pipelines.jobs import console


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Undo the set-up of a command afterwards."""
    root = logging.getLogger()
    before, level = root.handlers, root.level
    root.handlers = []
    yield
    root.handlers, root.level = before, level


def test_a_stage_ends_with_one_line_of_counts_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()
    with console.stage("read") as stage:
        stage.update("half")  # too soon for a log
        stage.note(rows=1234567, val_loss=0.123456)
        stage.note(version="flights v1")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO read: rows 1,234,567, val loss 0.1235, version flights v1 (0.0 s)")


def test_a_stage_that_fails_leaves_the_line_to_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()
    with pytest.raises(ValueError, match="x"), console.stage("read"):
        raise ValueError("x")
    assert capsys.readouterr().err == ""


def test_libraries_are_quiet_until_something_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()
    library = logging.getLogger("pytorch_lightning.utilities")
    library.setLevel(logging.INFO)
    library.warning("advert")
    library.error("broken")
    logging.getLogger("forecast.training.fit").info("ours")
    written = [line.split()[-1] for line in capsys.readouterr().err.splitlines()]
    assert written == ["broken", "ours"]
