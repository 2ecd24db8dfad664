import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser import needs_chromium, tab
from flow import HORIZON, NAME, SERIES, Store, refuse, succeed
from plotly.offline import get_plotlyjs

from forecast.config import RegistryConfig
from forecast.names import BACKTEST_RUN
from forecast.tracking.registry import Registry


def report(store: Store, *arguments: object) -> Path:
    succeed("report", f"registry.name={NAME}", f"output.path={store.folder / 'page'}", *arguments)
    return store.folder / "page" / "report.html"


def page_of(registry: Registry, run_id: str, folder: Path) -> Path:
    return registry.fetch(run_id, "report.html", folder)


def unpacked(page: Path, name: str = "page") -> Any:
    blob = re.search(rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', page.read_text())
    assert blob, f"no {name}"
    return json.loads(gzip.decompress(base64.b64decode(blob[1])))


def sections(page: Path) -> list[str]:
    """Return the headings of what is in the page, without those that its script fills."""
    own = page.read_text().replace(get_plotlyjs(), "")
    return re.findall(r'<section id="\w+" class="card"><h2>(.*?)</h2>', own)


def test_a_version_has_its_backtest_fine_tuning_and_training(promoted: Store) -> None:
    page = report(promoted, "registry.alias=champion", f"data.path={promoted.table}")
    assert sections(page) == [
        "Accuracy",
        "Where the models are better",
        "Versions",
        "Rejected rows and series",
        "Settings and data",
    ]
    meta = unpacked(page)
    assert meta["ids"] == SERIES
    assert [model["label"] for model in meta["models"]][-2:] == ["Pretrained", "Fine-tuned"]
    assert meta["scored"] == "Fine-tuned"
    assert len(meta["decisions"]["rows"]) == len(SERIES)
    assert [line["label"] for line in meta["loss"]] == ["Training", "Validation"]
    assert all(len(line["x"]) == len(set(line["x"])) for line in meta["loss"])
    assert len(meta["steps"][0]["x"]) == HORIZON
    assert meta["calibrated"] is None
    series = unpacked(page, "chunk-0")[0]
    # Two cutoffs of each model, and all the history that is near.
    assert len(series["f"]) == 2 * len(meta["models"])
    assert len(series["y"]) == 168 + 2 * HORIZON
    text = page.read_text()
    assert "v2 (this one)" in text
    assert "<dt>trained until</dt><dd>2024-01-17 23:00:00</dd>" in text
    assert "final fit until" not in text, "it has none"
    assert [f"{job}, run " in text for job in ("Backtest", "Fine-tuning", "Training")] == [True] * 3
    assert "fit.max_steps</td>" in text


def test_jobs_log_the_same_page_of_their_run(promoted: Store) -> None:
    registry = Registry(RegistryConfig(name=NAME, tracking_uri=promoted.uri))
    trained, tuned = registry.resolve(1), registry.resolve(2)
    jobs = {"Training": trained.run_id, "Fine-tuning": tuned.run_id, "Backtest": tuned.tags[BACKTEST_RUN]}
    for title, run_id in jobs.items():
        page = report(promoted, f"report.run={run_id}", f"data.path={promoted.table}")
        logged = page_of(registry, run_id, promoted.folder / run_id)
        assert f"<title>{title} of {NAME} v" in page.read_text()
        names = {"ids", "models", "steps", "calibration", "score", "loss", "decisions"}
        one, other = ({name: unpacked(found).get(name) for name in names} for found in (page, logged))
        assert one == other
        assert unpacked(page, "chunk-0") == unpacked(logged, "chunk-0")
    # Without the table, the backtest tells what came at its windows.
    backtest = unpacked(report(promoted, f"report.run={jobs['Backtest']}"), "chunk-0")
    assert len(backtest[0]["y"]) == 2 * HORIZON
    assert "no run of this store" in refuse(2, "report", f"registry.name={NAME}", "report.run=x", "output.path=page")


def test_a_calibrated_version_shows_what_it_has_changed(promoted: Store) -> None:
    fine = "calibrate.step_size=1", "calibrate.holdout_windows=0"
    succeed("calibrate", f"registry.name={NAME}", "registry.alias=pretrained", f"data.path={promoted.table}", *fine)
    page = report(promoted, "registry.alias=3")
    meta = unpacked(page)
    assert [line["label"] for line in meta["calibrated"]] == ["Before calibration", "After calibration"]
    assert '<th scope="col" class="number">Held before</th>' in page.read_text()
    # The forecasts are those of the training, and nothing is there to judge them by.
    assert meta["ids"] == SERIES
    assert (meta["steps"], meta["calibration"]) == (None, None)
    assert "decisions" not in meta


@needs_chromium
def test_forecasts_are_shown_beside_what_came_and_those_before_them(promoted: Store) -> None:
    cutoffs = "score.cutoffs=2024-01-15..2024-01-18/1d"
    promoted.score(None, cutoffs, output="scores")
    scores = f"report.scores={promoted.folder / 'scores'}"
    page = report(promoted, scores, f"data.path={promoted.table}", "report.cutoffs=3")
    meta = unpacked(page)
    assert meta["ids"] == SERIES
    assert all(score > 0 for score in meta["score"])
    (series, *_) = unpacked(page, "chunk-0")
    assert len(series["f"]) == 3
    made = pl.concat(
        pl.read_parquet(file, hive_partitioning=False)
        for file in sorted(promoted.folder.glob("scores/forecasts/2024-01-18*/*.parquet"))
    ).filter(series_id=SERIES[7])
    with tab() as opened:
        opened.open(page, SERIES[7], f"#series={SERIES[7]}")
        drawn = dict(opened.run("document.querySelector('#chart').data.map(({ name, y }) => [name ?? '', y])"))
        assert opened.run("document.querySelector('#name').textContent") == SERIES[7]
        assert not opened.errors
        assert opened.requests == [page.as_uri()]
    (line,) = (drawn[name] for name in ("Pretrained", "Fine-tuned") if name in drawn)
    assert line == pytest.approx(made["q50"].to_list(), rel=1e-5)
    # Two earlier cutoffs, each with a gap behind it.
    assert drawn["Other cutoffs"].count(None) == 2
    assert len(drawn["Other cutoffs"]) == 2 * (HORIZON + 1)

    meta = unpacked(report(promoted, scores, "report.cutoff=2024-01-16"))
    assert meta["steps"] is None, "without a table nobody knows what came"
    error = refuse(3, "report", scores, "report.cutoff=2024-02-01", "output.path=page")
    assert "the cutoff 2024-02-01 00:00:00 is not there; it has 4, 2024-01-15 00:00:00 to 2024-01-18 00:00:00" in error
    assert "no manifests" in refuse(3, "report", "report.scores=absent", "output.path=page")
    assert "give one of registry.alias" in refuse(2, "report", "output.path=page")
