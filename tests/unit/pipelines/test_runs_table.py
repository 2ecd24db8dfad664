"""The table of runs fits the terminal, and says of each run how it ended."""

import io
from contextlib import redirect_stdout
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pipelines.jobs.ledger_entry import Entry
from pipelines.jobs.runs_table import print_runs

START = datetime(2024, 4, 2, 1, 30, tzinfo=UTC)


def entry(number: int = 1, **more: object) -> Entry:
    texts = dict.fromkeys(("model", "mlflow", "host", "output", "folder", "process", "notice", "error"), "")
    rest = {"attempt": 1, "failures": 0, "ended": START, "seconds": 61.25, "pid": 7, "exit_code": 0, "status": "done"}
    return Entry(**{"id": number, "flow": "score", "config": {}, "started": START, **texts, **rest, **more})  # type: ignore[arg-type]


def lines(capsys: pytest.CaptureFixture[str], entries: list[Entry], width: int) -> list[str]:
    print_runs(entries, width)
    return capsys.readouterr().out.splitlines()


FAILED = entry(
    12,
    status="failed",
    exit_code=3,
    dataset="/srv/tables/weekly/sales-of-all-stores.parquet",
    model="weekly-sales v14",
    schedule="monday",
    cutoff="2024-04-01T00:00:00",
    error="data.path: the table ends on 2024-03-25,\n  before the cutoff 2024-04-01",
)


@given(
    width=st.integers(20, 250),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), min_size=5, max_size=5),
    number=st.integers(1, 10**7),
)
def test_no_line_is_longer_than_the_terminal(width: int, texts: list[str], number: int) -> None:
    names = ("dataset", "model", "schedule", "error", "cutoff")
    out = io.StringIO()
    with redirect_stdout(out):
        print_runs([FAILED, entry(number, **dict(zip(names, texts, strict=True)))], width)
    shown = out.getvalue().splitlines()
    assert len([line for line in shown if line.strip()]) >= 3
    assert max(cell_len(line) for line in shown) <= width
    assert "12" in out.getvalue()
    assert str(number) in out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 300])
def test_exit_code_and_error_are_shown_at_each_width(capsys: pytest.CaptureFixture[str], width: int) -> None:
    shown = lines(capsys, [FAILED, entry(11)], width)
    (row,) = (line for line in shown if "failed" in line)
    cells = row.replace("│", " ").split()
    assert cells[0] == "12"
    assert "3" in cells
    assert "data.path:" in row
    if width == 300:
        assert "before the cutoff 2024-04-01" in row
        assert "weekly-sales v14" in row
        assert "monday" in row


def test_all_cutoffs_of_a_backfill_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    days = [f"2024-03-{day:02d}T00:00:00" for day in (3, 1, 2)]
    few = entry(config={"score": {"cutoffs": days}}, cutoff="2024-03-01T00:00:00..2024-03-03T00:00:00")
    assert "2024-03-01, 2024-03-02, 2024-03-03" in lines(capsys, [few], 120)[3]
    month = [f"2024-03-{day:02d}T00:00:00" for day in range(1, 32)]
    many = entry(config={"score": {"cutoffs": month}})
    assert "31: 2024-03-01 .. 2024-03-31" in lines(capsys, [many], 120)[3]


def test_the_width_is_that_of_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (50, 90):
        monkeypatch.setenv("COLUMNS", str(columns))
        print_runs([FAILED])
        assert max(map(cell_len, capsys.readouterr().out.splitlines())) <= columns
