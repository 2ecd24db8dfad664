"""A messy file to forecasts, a backtest, a page and a config, in one command."""

import shutil
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flow import refuse, succeed

from forecast.checkpoints import NANO
from forecast.config import RegistryConfig
from forecast.names import PRETRAINED
from forecast.tracking.registry import Registry

# The closed form: the way through all stages is tested here, not the training.
QUICK = ("fit.max_steps=0", "model.init=none", "backtest.baselines=[seasonal_naive]", "fit.accelerator=cpu")


def write_months(path: Path, steps: int) -> None:
    """Three series of months, as a German program writes them."""
    rng, rows = np.random.default_rng(0), []
    months = pl.date_range(pl.date(2015, 1, 1), pl.date(2040, 1, 1), "1mo", eager=True)[:steps]
    for name in ("Köln", "Ulm", "Hof"):
        values = 2000 + 500 * np.sin(np.arange(steps) * np.pi / 6) + rng.normal(0, 50, steps)
        rows += [
            f"{name};{month:%d.%m.%Y};{f'{value:,.2f}'.translate(str.maketrans(',.', '.,'))}"
            for month, value in zip(months, values, strict=True)
        ]
    path.write_bytes("\n".join(["Umsätze je Stadt", "Stadt;Monat;Umsatz", *rows]).encode("cp1252"))


def start(folder: Path, store_template: Path, steps: int) -> Path:
    """Write the file, and an empty store where the quick start would make it: that takes seconds."""
    write_months(folder / "umsatz.csv", steps)
    out = folder / "quickstart" / "umsatz"
    out.mkdir(parents=True)
    shutil.copy(store_template, out / "mlflow.db")
    return out


def test_a_file_becomes_forecasts_a_judged_model_and_a_config_that_trains_it_again(
    tmp_path: Path, store_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = start(tmp_path, store_template, steps=72)
    done = succeed("quickstart", "umsatz.csv", *QUICK)
    assert (
        "series     'Stadt', 3: it makes the rows of a 'Monat' unique (change: data.columns.series_id=...)" in done.out
    )
    assert "copied to quickstart/umsatz/panel.parquet" in done.out
    assert all(label in done.out for label in ("seasonal naive", f"{NANO}, without training", "trained on this file"))

    forecasts = pl.read_csv(out / "forecasts.csv", try_parse_dates=True)
    assert forecasts.group_by("model").len().sort("model").rows() == [(NANO, 36), ("trained", 36)]
    assert forecasts["timestamp"].min() == date(2021, 1, 1)
    assert forecasts.select(pl.col("^q\\d+$").is_finite().all()).row(0) == (True,) * 9
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "umsatz.csv" in page
    assert "Trained on this table" in page

    (command,) = (line.split() for line in done.lines if line.startswith("  forecast train"))
    succeed(*command[1:])
    uri = f"sqlite:///{out / 'mlflow.db'}"
    versions = Registry(RegistryConfig(name="umsatz", tracking_uri=uri)).versions()
    assert [version.digest for version in versions] == [versions[0].digest] * 2
    assert {version.number for version in versions if PRETRAINED in version.aliases} == {2}
    assert not (tmp_path / "gatecast.db").exists()


def test_a_file_too_short_to_judge_the_model_has_forecasts_and_a_second_run_says_what_it_replaces(
    tmp_path: Path, store_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = start(tmp_path, store_template, steps=20)
    (out / "train.yaml").write_text("window: {horizon: 3}\n")
    done = succeed("quickstart", "umsatz.csv", "window.horizon=12", *QUICK)
    assert "the trained model could not be judged: a typical series has 20 steps" in done.out
    assert "(change: window.horizon=5)" in done.out
    assert pl.read_csv(out / "forecasts.csv").height == 2 * 3 * 12
    assert "train.yaml was another one, and is quickstart/umsatz/train.old.yaml now" in done.out
    assert (out / "train.old.yaml").read_text() == "window: {horizon: 3}\n"


def test_a_look_writes_the_settings_and_the_copy_of_the_table_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for n_months in (24, 25):
        write_months(tmp_path / "umsatz.csv", n_months)
        done = succeed("quickstart", "umsatz.csv", "output.path=out", "quickstart.until=look")
        assert pl.read_parquet("out/panel.parquet").height == 3 * n_months
    assert sorted(path.name for path in Path("out").glob("[!.]*")) == ["panel.parquet", "train.yaml"]
    assert "forecast train --config out/train.yaml" in done.out


def test_a_file_that_holds_no_panel_or_does_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.csv").write_text("Dear all,\nnothing here\nreally nothing\n")
    assert "no table with two columns" in refuse(3, "quickstart", "notes.csv")
    assert "no such file" in refuse(3, "quickstart", "missing.csv")
    assert "no file is given" in refuse(2, "quickstart")
    assert "fit.max_stepz" in refuse(2, "quickstart", "notes.csv", "fit.max_stepz=4")
    assert not Path("quickstart/missing").exists()
