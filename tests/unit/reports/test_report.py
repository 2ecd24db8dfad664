import base64
import gzip
import html
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from browser import Tab, needs_chromium, tab
from plotly.offline import get_plotlyjs

from forecast.errors import OutputError
from forecast.reports import report

START = datetime(2024, 1, 1)
EVIL = "</script><script>document.title='hacked'</script>{{js}}"


def history(series: list[str], steps: int = 60, zone: str | None = None) -> pl.DataFrame:
    frame = pl.DataFrame({"series_id": pl.Series(series, dtype=pl.String)}).join(
        pl.DataFrame({"hour": range(steps)}), how="cross"
    )
    time = (pl.lit(START) + pl.duration(hours="hour")).dt.cast_time_unit("us").dt.replace_time_zone(zone)
    return frame.select("series_id", time.alias("timestamp"), (pl.col("hour") % 24).cast(pl.Float64).alias("target"))


def forecasts(series: list[str], cutoff: int = 47, horizon: int = 12, source: str = "pretrained") -> pl.DataFrame:
    frame = pl.DataFrame({"series_id": series}).join(pl.DataFrame({"step": range(1, horizon + 1)}), how="cross")
    at = pl.lit(START + timedelta(hours=cutoff)).dt.cast_time_unit("us")
    quantiles = [(pl.col("step") + level / 10).alias(f"q{level}") for level in (10, 30, 50, 70, 90)]
    times = [(at + pl.duration(hours="step")).alias("timestamp"), at.alias("cutoff")]
    return frame.with_columns(*times, *quantiles, source=pl.lit(source), model_version=pl.lit("1"))


def write(path: Path, **changes: Any) -> str:
    series = ["S2", "S10"]
    values: dict[str, Any] = {"title": "Title", "subtitle": "Subtitle", "summary": [], "facts": {}, "stages": []}
    values |= {"history": history(series), "forecasts": forecasts(series)}
    report.write_report(path, report.ReportContent(**(values | changes)))
    return path.read_text(encoding="utf-8")


def unpacked(page: str, name: str) -> Any:
    blob = re.search(rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', page)
    assert blob, f"no {name}"
    return json.loads(gzip.decompress(base64.b64decode(blob[1])))


def times(runs: list[int]) -> list[int]:
    found = runs[:1]
    for gap, count in zip(runs[1::2], runs[2::2], strict=True):
        for _ in range(count):
            found.append(found[-1] + gap)
    return found


def milliseconds(hour: float) -> int:
    return int((START - datetime(1970, 1, 1)).total_seconds() * 1000 + hour * 3_600_000)


def decisions() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "series_id": ["S2", "S10"],
            "base_loss": [1.0, 2.0],
            "tuned_loss": [0.75, float("nan")],
            "gain": [0.25, None],
            "penalty": [10.0, None],
            "blend": [0.5, 0.0],
            "reason": ["gain", "<b>too short</b>"],
            "report_base_loss": [2.0, 4.0],
            "report_tuned_loss": [1.8, 4.0],
        }
    )


def test_the_series_come_back_from_the_page(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html")
    meta = unpacked(page, "page")
    assert meta["ids"] == ["S2", "S10"]
    assert meta["bands"] == [0.8, 0.4]
    [first, second] = unpacked(page, "chunk-0")
    assert first == second
    assert times(first["t"]) == [milliseconds(hour) for hour in range(60)]
    assert first["y"] == [float(hour % 24) for hour in range(60)]
    [forecast] = first["f"]
    assert forecast["c"] == milliseconds(47)
    assert times(forecast["t"]) == [milliseconds(47 + step) for step in range(1, 13)]
    assert forecast["q"] == [step + 5.0 for step in range(1, 13)]
    assert forecast["b"][0] == [[step + 1.0 for step in range(1, 13)], [step + 9.0 for step in range(1, 13)]]
    assert meta["models"][forecast["m"]]["label"] == "Pretrained"


def test_what_json_has_no_number_for_becomes_null_and_the_rest_keeps_six_digits(tmp_path: Path) -> None:
    values = [float("nan"), None, float("inf"), 1 / 3, 123456.789, 1e18]
    frame = history(["S2"], steps=6).with_columns(target=pl.Series(values, strict=False))
    made = forecasts(["S2"], cutoff=5, horizon=2).with_columns(q50=pl.Series([float("-inf"), 2 / 3], dtype=pl.Float32))
    [series] = unpacked(write(tmp_path / "report.html", history=frame, forecasts=made), "chunk-0")
    assert series["y"] == [None, None, None, 0.333333, 123457.0, 1e18]
    assert series["f"][0]["q"] == [None, 0.666667]


def test_irregular_times_and_the_hour_that_comes_twice_survive(tmp_path: Path) -> None:
    zone = "America/New_York"
    days = pl.Series([datetime(2024, 1, 31), datetime(2024, 2, 29), datetime(2024, 3, 31)], dtype=pl.Datetime("us"))
    monthly = pl.DataFrame(
        {"series_id": ["M"] * 3, "timestamp": days.dt.replace_time_zone(zone), "target": [1.0, 2.0, 3.0]}
    )
    start = pl.datetime(2024, 11, 3, 4, time_zone="UTC")
    hours = (
        pl.select(pl.datetime_range(start, start + pl.duration(hours=3), "1h")).to_series().dt.convert_time_zone(zone)
    )
    autumn = pl.DataFrame({"series_id": ["H"] * 4, "timestamp": hours, "target": [0.0, 1.0, 2.0, 3.0]})
    made = forecasts(["M"]).clear().with_columns(pl.col("timestamp", "cutoff").dt.replace_time_zone(zone))
    page = write(tmp_path / "report.html", history=pl.concat([monthly, autumn]), forecasts=made)
    hourly, calendar = unpacked(page, "chunk-0")
    # 0:00, 1:00 (summer), 1:00 (winter), 2:00 on the wall.
    assert [time - hourly["t"][0] for time in times(hourly["t"])] == [0, 3_600_000, 3_600_000, 7_200_000]
    assert times(calendar["t"]) == [milliseconds(24 * day) for day in (30, 59, 90)]
    assert unpacked(page, "page")["clock"] == f"Local time ({zone})"


def test_only_history_near_a_forecast_is_kept(tmp_path: Path) -> None:
    made = pl.concat([forecasts(["S2"], cutoff=999), forecasts(["S2"], cutoff=1011)])
    [series] = unpacked(write(tmp_path / "report.html", history=history(["S2"], 3000), forecasts=made), "chunk-0")
    assert times(series["t"]) == [milliseconds(hour) for hour in range(1000 - 168, 1024)]
    assert [forecast["c"] for forecast in series["f"]] == [milliseconds(999), milliseconds(1011)]


def test_a_column_model_tells_variants_of_a_series_apart(tmp_path: Path) -> None:
    parts = [forecasts(["S2"]).with_columns(model=pl.lit(name)) for name in ("fine_tuned", "seasonal_naive")]
    page = write(tmp_path / "report.html", forecasts=pl.concat(parts))
    assert [model["label"] for model in unpacked(page, "page")["models"]] == ["Seasonal naive", "Fine-tuned"]
    assert [len(series["f"]) for series in unpacked(page, "chunk-0")] == [2, 0]


def test_series_are_packed_in_chunks_that_together_hold_all(tmp_path: Path) -> None:
    ids = [f"S{n}" for n in range(250)]
    page = write(tmp_path / "report.html", history=history(ids, 50), forecasts=forecasts(ids, horizon=2))
    assert unpacked(page, "page")["ids"] == ids
    assert [len(unpacked(page, f"chunk-{n}")) for n in range(3)] == [100, 100, 50]
    assert all(series["y"] and series["f"] for n in range(3) for series in unpacked(page, f"chunk-{n}"))


def test_text_from_data_never_becomes_markup(tmp_path: Path) -> None:
    rejects = pl.DataFrame({"series_id": [EVIL], "timestamp": [None], "reason": [EVIL], "value": [None]})
    page = write(
        tmp_path / "report.html",
        title=EVIL,
        subtitle=EVIL,
        summary=[{"model": EVIL, EVIL: EVIL}],
        facts={EVIL: EVIL},
        stages=[(EVIL, 1.0)],
        history=history([EVIL]),
        forecasts=forecasts([EVIL], source=EVIL),
        decisions=decisions().with_columns(series_id=pl.lit(EVIL), reason=pl.lit(EVIL)),
        rejects=rejects,
    )
    assert EVIL not in page
    assert "hacked'</script>" not in page
    assert page.count(html.escape(EVIL)) == 11
    assert unpacked(page, "page")["ids"] == [EVIL]


def test_the_page_names_no_other_place(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", decisions=decisions(), summary=[{"model": "pretrained", "mase": 1.0}])
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r'id="(page|chunk-\d+)">[^<]*<', "", own))
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]*(?:src|href)=(?!\"data:,\")", own)
    assert "default-src 'none'" in own
    assert not re.findall(r"\{\{\w+\}\}", own)


def test_the_tables_are_there_without_javascript(tmp_path: Path) -> None:
    summary = pl.DataFrame(
        {
            "model": ["seasonal_naive", "pretrained"],
            "mase": [1.25, 1.0],
            "coverage80": [0.7512, 0.8],
            "n_windows": [1200, 1200],
        }
    )
    rejects = pl.DataFrame(
        {"series_id": ["A", "A", "B"], "reason": ["off-grid timestamp", "duplicate key", "duplicate key"]}
    )
    page = write(
        tmp_path / "report.html",
        summary=summary,
        rejects=rejects,
        facts={"Rows": "1,234"},
        stages=[("Read", 1.5), ("Write", 0.25)],
    )
    rows = [
        re.sub(r"<[^>]+>", "|", row)
        for row in re.findall(r"<tr>.*?</tr>|<tr class=.*?</tr>", page.replace(get_plotlyjs(), ""))
    ]
    cells = [[cell for cell in row.split("|") if cell] for row in rows]
    assert ["Model", "MASE", "Coverage of 80 %", "Windows"] in cells
    assert ["Seasonal naive", "1.250", "75.1 %", "1,200"] in cells
    assert ["Pretrained", "1.000", "\N{MINUS SIGN}20 %", "80.0 %", "1,200"] in cells
    assert ["duplicate key", "2", "2", "A"] in cells
    assert ["Total", "1.75"] in cells
    assert "<dt>Rows</dt><dd>1,234</dd>" in page
    assert '<td class="number best">1.000' in page


def test_decisions_scores_and_lines_are_in_the_page(tmp_path: Path) -> None:
    scores = pl.DataFrame({"series_id": ["S2", "S2", "S10"], "model": "pretrained", "mase": [1.0, 2.0, float("nan")]})
    page = write(
        tmp_path / "report.html",
        decisions=decisions(),
        scores=scores,
        error_by_step=pl.DataFrame({"step": [2, 1], "model": ["pretrained"] * 2, "mae": [4.0, 3.0]}),
        calibration=pl.DataFrame({"model": ["fine_tuned"], "level": [0.1], "coverage": [0.125]}),
    )
    meta = unpacked(page, "page")
    assert meta["decisions"]["columns"][-1] == "uplift"
    assert meta["decisions"]["rows"][1] == ["S10", 2.0, None, None, None, 0.0, "<b>too short</b>", 4.0, 4.0, 0.0]
    assert meta["gain"] == [0.25, None]
    assert meta["uplift"] == [0.1, None]
    assert meta["verdicts"] == [
        "Fine-tuned, gain at the gate 25.0 %, uplift later 10.0 %",
        "Base kept: <b>too short</b>",
    ]
    assert meta["score"] == [1.5, None]
    assert meta["steps"] == [{"label": "Pretrained", "colour": "#3577dc", "x": [1, 2], "y": [3.0, 4.0]}]
    assert meta["calibration"] == [{"label": "Fine-tuned", "colour": "#e07b1a", "x": [10.0], "y": [12.5]}]


def sections() -> dict[str, Any]:
    """What a report may have besides series and decisions."""
    shares = {"coverage_before": [0.7, 0.5], "coverage_after": [0.8, 0.75]}
    widths = {"width_before": [2.0, 0.0], "width_after": [3.0, 1.0]}
    return {
        "error_by_step": pl.DataFrame({"step": [1, 2], "model": ["pretrained"] * 2, "mae": [3.0, 4.0]}),
        "calibration": pl.DataFrame({"model": ["pretrained"], "level": [0.1], "coverage": [0.125]}),
        "calibrated": pl.DataFrame({"model": ["after", "before"], "level": [0.9, 0.9], "coverage": [0.89, 0.7]}),
        "coverage": pl.DataFrame(
            {"by": ["all", "city"], "value": ["", EVIL], "level": 0.8, "n": 48, **shares, **widths}
        ),
        "loss": pl.DataFrame({"model": ["train/loss", "val/loss"], "step": [10, 10], "loss": [0.5, 0.25]}),
        "lineage": pl.DataFrame({"version": ["v1", "\u2514\u2500 v2 (this one)"], "aliases": ["pretrained", EVIL]}),
        "settings": {EVIL: {"fit.seed": "7", "data.path": EVIL}},
    }


def test_calibration_loss_versions_and_settings_are_in_the_page(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", **sections())
    meta = unpacked(page, "page")
    assert [(line["label"], line["y"]) for line in meta["calibrated"]] == [
        ("Before calibration", [70.0]),
        ("After calibration", [89.0]),
    ]
    assert [(line["label"], line["y"]) for line in meta["loss"]] == [("Training", [0.5]), ("Validation", [0.25])]
    assert EVIL not in page
    for cells in (
        ["All", "", "80.0 %", "70.0 %", "80.0 %", "+50 %", "48"],
        ["city", html.escape(EVIL), "80.0 %", "50.0 %", "75.0 %", "\u2013", "48"],
        ["v1", "pretrained"],
        ["\u2514\u2500 v2 (this one)", html.escape(EVIL)],
        ["fit.seed", "7"],
    ):
        assert re.search("".join(f"<td[^>]*>{re.escape(cell)}</td>" for cell in cells), page), cells


def test_what_there_is_nothing_of_has_no_section(tmp_path: Path) -> None:
    own = write(tmp_path / "report.html").replace(get_plotlyjs(), "")
    shown = re.findall(r'<section id="(\w+)" class="card">', own)
    assert not shown
    drawn = unpacked(own, "page")
    assert [drawn[name] for name in ("steps", "calibration", "calibrated", "loss")] == [None] * 4
    assert "decisions" not in drawn


def test_each_series_has_the_score_of_the_best_model_that_forecasts_it(tmp_path: Path) -> None:
    scores = pl.DataFrame(
        {
            "series_id": ["S2", "S2", "S10"],
            "model": ["pretrained", "fine_tuned", "pretrained"],
            "mase": [3.0, 1.0, 2.0],
        }
    )
    meta = unpacked(write(tmp_path / "report.html", scores=scores), "page")
    assert meta["score"] == [1.0, 2.0]
    assert meta["scored"] == "the model that forecasts it"


def test_a_report_without_any_series_can_be_written(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", history=history([]), forecasts=forecasts(["S2"]).clear())
    assert unpacked(page, "page")["ids"] == []
    assert 'id="chunk-0"' not in page


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one.html", decisions=decisions()) == write(tmp_path / "two.html", decisions=decisions())


def test_a_failed_write_leaves_the_old_report_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        write(tmp_path / "file" / "report.html")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        write(tmp_path / "report.html")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "report.html"]


# ---- In a browser ----


def traces(tab: Tab) -> int:
    return int(tab.run("document.querySelectorAll('#chart .trace.scatter').length"))


@needs_chromium
def test_a_link_opens_its_series_and_cutoff_and_nothing_is_loaded(tmp_path: Path) -> None:
    made = [
        forecasts(["S2", "S10"], cutoff=cutoff, source=name)
        for cutoff in (35, 47)
        for name in ("fine_tuned", "seasonal_naive")
    ]
    page, address = tmp_path / "report.html", f"#series=S10&cutoff={milliseconds(35)}"
    write(page, forecasts=pl.concat(made), decisions=decisions(), **sections())
    with tab() as opened:
        opened.open(page, "S10", address)
        dom = opened.markup
        # Two intervals of the best model (an area has two edges), the actual, two medians and the other cutoff.
        assert traces(opened) == 8
        # Hours 0 to 47 of the actual are drawn as one path, which has a point for each.
        drawn = "document.querySelector('#chart').data.map(({ name, y }) => [name ?? '', y])"
        lines = dict(opened.run(drawn))
        assert lines["Actual"] == [float(hour % 24) for hour in range(60)]
        assert lines["Fine-tuned"] == [step + 5.0 for step in range(1, 13)]
        paths = "[...document.querySelectorAll('#chart path.js-line')].map((path) => path.getAttribute('d'))"
        assert all(path.startswith("M") and "L" in path for path in opened.run(paths))
        opened.resize(390)
        opened.until("document.querySelector('#chart svg').clientWidth < 390")
        right = (
            "Math.max(...[...document.querySelectorAll('section, svg')].map((e) => e.getBoundingClientRect().right))"
        )
        assert opened.run(right) <= 390, "nothing reaches out of a narrow window"
        ink = "document.querySelector('#chart').data.find(({ name }) => name === 'Actual').line.color"
        light = opened.run(ink)
        opened.resize(1280, scheme="dark")
        opened.until(f"{ink} !== {json.dumps(light)}")
        assert not opened.errors
        assert opened.requests == [page.as_uri()]
    assert '<h3 id="name">S10</h3>' in dom
    assert "Base kept: &lt;b&gt;too short" in dom
    assert re.search(r'id="errors"[^>]*>[^<]*over 12 known steps', dom)
    assert 'class="trace bars' in dom
    for name in ("decisions", "calibrated", "loss", "steps", "calibration"):
        assert f'id="{name}" class="card">' in dom, name


@needs_chromium
def test_2000_series_open_and_names_stay_text(tmp_path: Path) -> None:
    ids = [f"S{n}" for n in range(2000)] + [EVIL]
    page = tmp_path / "report.html"
    write(page, history=history(ids, 60), forecasts=forecasts(ids), title=EVIL)
    with tab() as opened:
        opened.open(page, "S1987", "#series=S1987")
        assert opened.run("document.querySelectorAll('.item').length") < 50, "the list holds only what is in sight"
        opened.run(f"location.hash = new URLSearchParams({{ series: {json.dumps(EVIL)} }})")
        opened.until(f"document.documentElement.dataset.drawn === {json.dumps(EVIL)}")
        assert opened.run("document.title") == EVIL
        assert not opened.errors


@needs_chromium
def test_search_keys_buttons_and_sorting_work(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    scores = pl.DataFrame({"series_id": ["S2", "S10"], "model": "pretrained", "mase": [1.0, 2.0]})
    write(page, decisions=decisions(), scores=scores)
    item, first = "document.querySelectorAll('.item')", "document.querySelector('#decisions tbody td').textContent"
    lines, head = "document.querySelectorAll('#chart .trace.scatter').length", "#decisions th button"
    steps = [
        ("$('next').click()", "drawn() === 'S10' && $('next').disabled"),
        ("pressed('ArrowLeft')", "drawn() === 'S2' && $('previous').disabled"),
        ("location.hash = '#series=S10'", "drawn() === 'S10'"),
        ("$('order').value = 'name'; changed($('order'), 'change')", "drawn() === 'S2'"),
        (
            "$('order').value = 'score'; changed($('order'), 'change')",
            f"drawn() === 'S10' && {item}[0].title === 'S10'",
        ),
        ("$('search').value = 's2'; changed($('search'), 'input')", f"{item}.length === 1"),
        (f"{item}[0].click()", "drawn() === 'S2'"),
        ("document.querySelectorAll('#legend button')[2].click()", f"{lines} === before - 4"),
        (f"document.querySelector('{head}').click()", f"{first} === 'S2'"),
        (f"document.querySelector('{head}').click()", f"{first} === 'S10'"),
        ("document.querySelector('#decisions .open').click()", "drawn() === 'S10'"),
        ("location.hash = '#series=absent'", "!$('notice').hidden"),
    ]
    with tab() as opened:
        opened.open(page, "S2")
        opened.run(
            "var $ = (id) => document.getElementById(id), drawn = () => document.documentElement.dataset.drawn;"
            "var pressed = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));"
            f"var changed = (from, what) => from.dispatchEvent(new Event(what)), before = {lines};"
        )
        for act, test in steps:
            opened.run(f"void ({act.replace('; ', ', ')})")
            opened.until(test)
        assert opened.run("$('notice').textContent") == "This report has no series absent."
        assert not opened.errors


def test_classes_are_told_by_their_probabilities_and_confusions(tmp_path: Path) -> None:
    names = pl.Series(["clear", "rain"])
    past = history(["S2"]).with_columns(target=names.gather([hour % 2 for hour in range(60)]))
    share = pl.Series([0.75] * 12)
    made = forecasts(["S2"]).select("series_id", "timestamp", "cutoff", "step", "source", "model_version")
    made = made.with_columns(p_clear=share, p_rain=1 - share, **{"class": pl.lit("clear")})
    counts = pl.DataFrame(
        {"model": "pretrained", "target": ["clear", "rain"], "class": ["clear", "clear"], "n": [9, 3]}
    )
    scores = pl.DataFrame({"series_id": ["S2"], "model": ["pretrained"], "log_loss": [6.0], "n_steps": [12]})
    summary = [{"model": "seasonal_naive", "log_loss": 0.6, "accuracy": 0.5}]
    summary += [{"model": "pretrained", "log_loss": 0.5, "accuracy": 0.75}]
    page = write(
        tmp_path / "report.html", history=past, forecasts=made, confusion=counts, scores=scores, summary=summary
    )
    meta = unpacked(page, "page")
    assert [each["label"] for each in meta["classes"]] == ["clear", "rain"]
    assert (meta["score"], meta["metric"]) == ([0.5], "Log-loss")
    (series,) = unpacked(page, "chunk-0")
    assert series["y"] == [hour % 2 for hour in range(60)]
    assert series["f"][0]["q"] == [0] * 12
    assert series["f"][0]["p"] == [[0.75] * 12, [0.25] * 12]
    assert "Which class was forecast when" in page
    assert '<td class="number">9</td>' in page
    assert page.count('class="number best"') == 2
