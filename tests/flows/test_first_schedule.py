"""The page "From a CSV to a schedule", run as it stands: 300 weekly series to scheduled weeks, one late, one wrong."""

import re
import shlex
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flow import Done, forecast, succeed

import forecast as library
from pipelines.jobs.ledger import Ledger
from pipelines.jobs.ledger_entry import Entry

PAGE = Path(library.__file__).parents[1] / "docs" / "first_schedule.md"
QUICK = {"train": ["fit.max_steps=0", "model.hidden_size=8", "fit.accelerator=cpu"]}
"""Settings that the test adds to a command."""
FIRST, LAST, HORIZON = datetime(2022, 1, 3), datetime(2024, 3, 25), 8
STORES = 300


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def tables() -> dict[str, pl.DataFrame]:
    """Return the three tables, with the sales of weeks to come: each store has a cycle, a year, and promotions."""
    rng = np.random.default_rng(0)
    n = (LAST - FIRST).days // 7 + 1 + 4 + HORIZON
    weeks = np.arange(n)
    names = [f"store-{number:03d}" for number in range(STORES)]
    stamps = pl.datetime_range(FIRST, FIRST + timedelta(weeks=n - 1), "1w", eager=True).dt.date()
    size = rng.uniform(100, 900, STORES).round()
    promotion = (rng.random((STORES, n)) < 0.15).astype(int)
    period, phase = 4 + np.arange(STORES) % 9, rng.uniform(0, 6, STORES)
    cycle = 1 + 0.35 * np.sin(2 * np.pi * weeks / period[:, None] + phase[:, None])
    year = 1 + 0.25 * np.sin(2 * np.pi * weeks / 52)
    lift = 1 + rng.uniform(0.3, 0.6, STORES)[:, None] * promotion
    sales = (size * rng.uniform(0.8, 1.2, STORES))[:, None] * cycle * year * lift
    sales *= np.exp(rng.normal(0, 0.08, sales.shape))
    keys = {"store": np.repeat(names, n), "week": pl.concat([stamps] * STORES)}
    region = np.array(["north", "east", "south"])[rng.integers(0, 3, STORES)]
    return {
        "sales": pl.DataFrame({**keys, "sales": sales.ravel().round(1)}),
        "promotions": pl.DataFrame({**keys, "promotion": promotion.ravel()}),
        "stores": pl.DataFrame({"store": names, "region": region, "size": size}),
    }


@pytest.fixture
def sales(store: str, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """The sales of all weeks, in a folder with the tables and the schedule of the page."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    named = tables()
    for name, table in named.items():
        table.write_csv(f"{name}.csv")
    arrive(named["sales"], LAST)
    Path("conf").mkdir()
    (schedule,) = blocks("yaml")
    Path("conf/schedule.yaml").write_text(schedule, encoding="utf-8")
    return named["sales"]


def arrive(sales: pl.DataFrame, last: datetime, factor: float = 1.0) -> None:
    """Write the sales up to a week, that week multiplied by a factor."""
    target, is_last = pl.col("sales"), pl.col("week") == last.date()
    table = sales.filter(pl.col("week") <= last.date())
    table.with_columns(pl.when(is_last).then(target * factor).otherwise(target)).write_csv("sales.csv")


def run_page() -> dict[str, Done]:
    """Run the commands of the page in order; return how they ended, by their verbs."""
    commands = [shlex.split(line)[1:] for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return {words[0]: succeed(*words, *QUICK.get(words[0], ())) for words in commands}


def scheduler(moment: str) -> list[Entry]:
    """Run what is due at a moment; return the runs of it, earliest first."""
    ledger = Ledger("sqlite:///gatecast.db")
    before = {entry.started for entry in ledger.entries(every=True)}
    done = forecast("schedule", "run", f"schedule.now={moment}")
    assert done.code == 0, done.err
    return [entry for entry in reversed(ledger.entries(every=True)) if entry.started not in before]


def ends(entries: list[Entry]) -> list[tuple[str, str, str]]:
    return [(entry.schedule, entry.slot[:10], entry.status) for entry in entries]


@pytest.mark.usefixtures("inline_jobs")
def test_the_page_from_raw_tables_to_scheduled_weeks(sales: pl.DataFrame) -> None:
    headers = [block.splitlines()[0] for block in blocks("csv")]
    assert headers == [Path(f"{name}.csv").read_text().splitlines()[0] for name in ("sales", "promotions", "stores")]
    done = run_page()
    assert "sales v2 is champion" in done["promote"].out
    assert "9 cutoffs 2024-01-29T00:00:00 to 2024-03-25T00:00:00" in done["score"].out
    assert "data.known_path=" in done["score"].err

    # Two weeks, of which one was missed: both are forecast, and the latest is judged.
    arrive(sales, LAST + timedelta(weeks=2))
    runs = scheduler("2024-04-15T05:30")
    assert ends(runs) == [
        ("forecasts", "2024-04-07", "done"),
        ("forecasts", "2024-04-14", "done"),
        ("watch", "2024-04-14", "done"),
    ]
    assert [run.cutoff[:10] for run in runs] == ["2024-04-01", "2024-04-08", "2024-04-08"]

    # A week that comes late is waited for.
    assert ends(scheduler("2024-04-22T04:30")) == [("forecasts", "2024-04-21", "waiting")]
    arrive(sales, LAST + timedelta(weeks=3))
    runs = scheduler("2024-04-22T08:30")
    assert ends(runs) == [("forecasts", "2024-04-21", "done"), ("watch", "2024-04-21", "done")]
    assert [run.cutoff[:10] for run in runs] == ["2024-04-15", "2024-04-15"]
    forecasts = library.read_scores("scores", latest=True)
    assert forecasts.height == STORES * HORIZON
    assert forecasts["cutoff"].unique().to_list() == [datetime(2024, 4, 15)]
    assert forecasts["timestamp"].min() == datetime(2024, 4, 22)

    # A week that is wrong by 5x is a breach.
    arrive(sales, LAST + timedelta(weeks=4), factor=5.0)
    score, watch = scheduler("2024-04-29T05:30")
    assert (score.status, watch.status, watch.exit_code) == ("done", "failed", 8)
    assert "max_alarmed" in watch.error
    assert len(sorted(Path("watch").glob("as_of=*"))) == 3

    shown = succeed("runs", "list", "runs.schedule=watch").out
    assert "8" in next(line for line in shown.splitlines() if "failed" in line).replace("│", " ").split()
