import base64
import gzip
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from plotly.offline import get_plotlyjs

from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.rejects import Counts
from forecast.data.profiling.profile import profile
from forecast.reports import profile_page as module
from forecast.reports.profile_page import profile_page

EVIL = "</script><script>document.title='hacked'</script>{{js}} & \""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def dirty(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded], weekly: Callable[..., dict[str, np.ndarray]]
) -> Loaded:
    """Five series: one with gaps, one rare, one flat, one with a bad name; and rows that are refused."""
    series = weekly(2, 70)
    series["gaps"] = weekly(1, 60)["s00"]
    series["gaps"][10:20] = np.nan
    series["rare"] = np.where(np.arange(50) % 9 == 0, 3.0, 0.0)
    series["flat"] = np.full(20, 5.0)
    series[EVIL] = np.arange(30.0) - 4
    rows = table(series)
    extra = {
        "series_id": ["flat", EVIL, None],
        "timestamp": [datetime(2024, 1, 1), datetime(2024, 1, 3, 7), datetime(2024, 1, 5)],
        "target": [99.0, 1.5, 1.0],
    }
    return loaded(pl.concat([rows, pl.DataFrame(extra, schema=rows.schema)]), 1, max_reject_share=1.0, path=EVIL)


def made(loaded: Loaded, missing: pl.DataFrame | None = None) -> str:
    assert loaded.data.season_length is not None
    return profile_page(loaded, profile(loaded.panel, loaded.data.season_length), missing)


def content(page: str) -> dict[str, Any]:
    blob = re.search(r'<script type="text/plain" id="page">([A-Za-z0-9+/=]*)</script>', page)
    assert blob
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(blob[1])))
    return found


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr[ >].*?</tr>", page.replace(get_plotlyjs(), ""))
    return [[html.unescape(cell) for cell in re.sub(r"<[^>]+>", "\0", row).split("\0") if cell] for row in rows]


def test_the_tables_say_where_the_rows_went_without_javascript(dirty: Loaded) -> None:
    page, counts = made(dirty), dirty.counts
    found = cells(page)
    assert ["Kept", f"{counts.rows_kept:,}"] in found
    assert ["Rejected", f"{counts.rows_rejected:,}"] in found
    assert ["Read", f"{counts.rows_in:,}"] in found
    assert counts.rows_in == counts.rows_kept + counts.rows_rejected
    assert ["off-grid timestamp", "1", "1", "0.3 %", f"{EVIL} at 2024-01-03 07:00:00 (1.5)"] in found
    assert ["With gaps", "1 (16.7 %), longest gap 10"] in found
    assert "data.known_path" not in page.replace(get_plotlyjs(), "")


def test_the_rows_of_data_known_path_are_counted_apart(dirty: Loaded) -> None:
    counts = Counts(
        rows_in=9, rows_kept=9, known_rows_in=6, known_rows_kept=3, known_rows_rejected=2, known_rows_unused=1
    )
    found = cells(made(replace(dirty, counts=counts)))
    assert ["Of series that are not in the panel", "1"] in found
    assert ["Read", "6"] in found


def test_a_table_without_rejects_says_so(weekly_loaded: Loaded) -> None:
    assert "None: every row was used." in made(weekly_loaded)


def test_missing_cells_are_summed_by_covariate(dirty: Loaded) -> None:
    missing = pl.DataFrame(
        {
            "series_id": ["s00", "rare", "s00"],
            "covariate": ["promo", "promo", EVIL],
            "missing_history": [5, 30, 2],
        }
    )
    found = cells(made(dirty, missing))
    steps = int(dirty.panel.lengths.sum())
    assert ["promo", "2", f"35 ({100 * 35 / steps:.1f} %)", "rare, s00"] in found
    assert [EVIL, "1", f"2 ({100 * 2 / steps:.1f} %)", "s00"] in found
    assert "None: all are there" in made(dirty, missing.clear())
    assert "known covariates</h2>" not in made(dirty, None)


def test_histograms_count_every_series_once(dirty: Loaded) -> None:
    charts = {chart["title"]: chart for chart in content(made(dirty))["charts"]}
    assert list(charts) == ["Length", "Missing steps", "Zeros", "Demand", "Season", "Trend"]
    assert sum(charts["Length"]["counts"]) == sum(charts["Zeros"]["counts"]) == 6
    assert sum(charts["Missing steps"]["counts"]) == 1
    demand = charts["Demand"]
    assert dict(zip(demand["labels"], demand["counts"], strict=True)) == {"smooth": 4, "intermittent": 1, "none": 1}
    assert charts["Season"]["note"].startswith("Not known for 1 series")
    assert sum(charts["Season"]["counts"]) == 5
    for chart in charts.values():
        assert "edges" not in chart or len(chart["edges"]) == len(chart["counts"]) + 1


def test_charts_without_anything_to_show_say_why(
    table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    charts = {chart["title"]: chart for chart in content(made(loaded(table({"a": [1.0, 2]}), 1)))["charts"]}
    assert [title for title, chart in charts.items() if "counts" not in chart] == [
        "Missing steps",
        "Zeros",
        "Season",
        "Trend",
    ]
    assert all(chart["note"] for chart in charts.values() if "counts" not in chart)
    yearly = loaded(table({"a": range(12)}), 1, season_length=1)
    assert {chart["title"]: chart["note"] for chart in content(made(yearly))["charts"]}["Season"].endswith(
        "there is none."
    )


def test_series_that_stand_out_are_drawn_with_their_gaps(dirty: Loaded) -> None:
    examples = content(made(dirty))["examples"]
    assert len({example["name"] for example in examples}) == len(examples)
    by_why = {example["why"].split(":")[0]: example for example in examples}
    assert by_why["Longest"]["name"] == "s00"
    assert by_why["Rarest demand"]["name"] == "rare"
    gaps = by_why["Most gaps"]
    assert (gaps["name"], gaps["why"]) == ("gaps", "Most gaps: 10 of 60 steps are missing")
    assert [value is None for value in gaps["y"]] == [10 <= step < 20 for step in range(60)]
    assert gaps["t"][1:] == [86_400_000, 59]


def test_of_long_series_the_last_steps_are_drawn(dirty: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_STEPS", 25)
    longest = content(made(dirty))["examples"][0]
    assert len(longest["y"]) == 25
    assert longest["why"].endswith("the last 25 are drawn")


def test_the_table_holds_the_worst_series_and_says_what_is_left_out(
    dirty: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(made(dirty))
    assert whole["columns"][0] == "series_id"
    assert [row[0] for row in whole["rows"]] == ["gaps", "flat", "rare", EVIL, "s00", "s01"]
    assert whole["rows"][0][1:6] == ["2024-01-01", "2024-02-29", 60, 10, 10]
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    page = made(dirty)
    assert [row[0] for row in content(page)["rows"]] == ["gaps", "flat"]
    assert "the other 4 are in profile.parquet" in page


def test_text_from_data_never_becomes_markup_and_nothing_is_loaded(dirty: Loaded) -> None:
    page = made(dirty)
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert EVIL not in own
    assert "hacked'</script>" not in own
    assert own.count(html.escape(EVIL)) >= 2
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r'id="page">[^<]*<', "", own))
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]*(?:src|href)=(?!\"data:,\")", own)
    assert "default-src 'none'" in own
    assert not re.findall(r"\{\{(?!js)\w+\}\}", own)


def test_passwords_are_not_shown_and_the_page_is_the_same_twice(dirty: Loaded) -> None:
    data = dirty.data.model_validate(
        dirty.data.model_dump() | {"path": None, "uri": "postgresql://me:secret@host/db", "query": "select 1"}
    )
    page = made(replace(dirty, data=data))
    assert "postgresql://me:***@host/db" in page
    assert "secret@" not in page
    assert page == made(replace(dirty, data=data))


def test_the_page_of_classes_shows_how_often_each_one_comes(loaded: Callable[..., Loaded]) -> None:
    days = [datetime(2024, 1, day) for day in range(1, 5)]
    frames = [
        pl.DataFrame({"series_id": name, "timestamp": days[: len(states)], "target": states})
        for name, states in {"a": ["up", "up", "<b>", "up"], "b": ["idle", "up"]}.items()
    ]
    found = loaded(pl.concat(frames), 1)
    page = profile_page(found, profile(found.panel, 7, found.classes), None)
    rows = cells(page)
    assert ["up", "4", "66.7 %", "2"] in rows
    assert ["<b>", "1", "16.7 %", "1"] in rows
    told = page.replace(get_plotlyjs(), "")
    assert not any(word in told.split("<script")[0] for word in ("Zeros", "Demand", "Seasonality"))
    drawn = content(page)
    assert drawn["columns"][-3:] == ["classes", "class", "share"]
    assert sorted(row[-3:] for row in drawn["rows"]) == [[2, "idle", 0.5], [2, "up", 0.75]]
    assert [chart["title"] for chart in drawn["charts"]] == ["Length", "Missing steps"]
    assert drawn["examples"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser_all_is_drawn_and_the_table_is_searched_and_sorted(dirty: Loaded, tmp_path: Path) -> None:
    # Each action waits for what it should bring about; the last one reached is written down.
    script = """
    <script>
    (async () => {
      const root = document.documentElement.dataset;
      const until = async (test) => { while (!test()) await new Promise((done) => setTimeout(done, 20)); };
      const act = async (name, action, test) => { action(); await until(test); root.reached = name; };
      const section = document.getElementById("series");
      const first = () => section.querySelector("tbody td").textContent;
      await until(() => root.drawn === "6" && document.querySelectorAll("#charts .trace.bars").length === 6);
      await act("worst", () => {}, () => first() === "gaps");
      await act("sort", () => section.querySelectorAll("th button")[3].click(), () => first() === "s00");
      await act("turn", () => section.querySelectorAll("th button")[3].click(), () => first() === "flat");
      const search = section.querySelector("input");
      await act("search", () => { search.value = "intermitt"; search.dispatchEvent(new Event("input")); },
        () => first() === "rare" && section.querySelectorAll("tbody tr").length === 1);
    })();
    </script>
    """
    path = tmp_path / "profile.html"
    path.write_text(made(dirty).replace("</body>", f"{script}</body>"), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=10000 --window-size=1200,900"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'user'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    dom = re.sub(r"<script.*?</script>", "", done.stdout.decode(), flags=re.DOTALL)
    assert re.findall(r' data-reached="(\w+)"', dom) == ["search"]
    assert "<title>Data profile" in dom
    assert dom.count('class="trace scatter') >= 5
