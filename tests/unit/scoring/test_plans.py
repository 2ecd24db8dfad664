"""Plans: the files that people open in a spreadsheet have the numbers of the forecasts, and ids stay text."""

from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import openpyxl
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from forecast import api
from forecast.config import ScoreConfig, ScoreOutput, ScoreSettings, load
from forecast.data import spreadsheets
from forecast.data.ingest.loaded import Loaded
from forecast.data.spreadsheets import write_sheet
from forecast.errors import ConfigError, OutputError
from forecast.names import quantile_columns
from forecast.scoring.job import ScoreJob
from forecast.scoring.plans import write_plan_of
from forecast.training.result import FitResult
from pipelines.jobs.job import describe

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
ODD_IDS = [
    "00123",
    "1E5",
    "=SUM(A1:A9)",
    "+49 30",
    "-1",
    "@cmd",
    "01.02.2024",
    "TRUE",
    "a,b\"c'",
    "_x0041_",
    "\x1b[2J",
    " x ",
]


def job(fitted: FitResult, loaded: Loaded, folder: Path, **output: Any) -> ScoreJob:
    settings = ScoreOutput.model_validate({"path": str(folder), "latest": False, **output})
    return ScoreJob(fitted.artifact, loaded, ScoreSettings(shard_size=3), settings, NAMES)


def cells(file: Path) -> tuple[list[Any], list[list[Any]]]:
    header, *rows = openpyxl.load_workbook(file, read_only=True).worksheets[0].iter_rows(values_only=True)
    return list(header), [list(row) for row in rows]


def forecasts(ids: Sequence[str], stamps: Sequence[datetime], zone: str | None = None) -> pl.DataFrame:
    rows = [
        (name, moment, stamps[0], step, 1000 * i + step + 0.25, 1e-7 * step, 1e9 + i, "pretrained", "m", "3")
        for i, name in enumerate(ids)
        for step, moment in enumerate(stamps[1:], 1)
    ]
    names = ["series_id", "timestamp", "cutoff", "step", "mean", "q10", "q90", "source", "model_name", "model_version"]
    frame = pl.DataFrame(rows, names, orient="row")
    return frame if zone is None else frame.with_columns(pl.col("timestamp", "cutoff").dt.convert_time_zone(zone))


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_a_plan_has_the_forecasts_of_the_latest_cutoff(
    kind: str, trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    written = job(trained, weekly_loaded, tmp_path, format=kind)
    for cutoff in (weekly_loaded.panel.last_index, weekly_loaded.panel.last_index - 1):
        written.write(cutoff)
    file = Path(str(written.write_plan()))
    assert file == tmp_path / "plans" / f"m.{kind}"
    expected = api.read_scores(tmp_path, latest=True)
    quantiles = quantile_columns(expected.columns)
    first = ["series", "date", "forecast", f"low_{quantiles[0]}", f"high_{quantiles[-1]}", "source", "model", "version"]
    if kind == "csv":
        plan = pl.read_csv(file, try_parse_dates=True, schema_overrides={"version": pl.String})
    else:
        header, rows = cells(file)
        plan = pl.DataFrame(rows, header, orient="row")
        assert {type(row[1]) for row in rows} == {datetime}
        assert rows[0][1].time() == datetime.min.time()
        plan = plan.with_columns(pl.col("date", "cutoff").dt.date())
    assert plan.columns[:10] == [*first, "cutoff", "step"]
    assert plan.height == weekly_loaded.panel.n_series * 7
    names = {
        "series": "series_id",
        "date": "timestamp",
        "forecast": "mean",
        first[3]: quantiles[0],
        first[4]: quantiles[-1],
    }
    found = plan.rename(names | {"version": "model_version", "model": "model_name"})
    wanted = expected.select(found.columns).with_columns(pl.col("timestamp", "cutoff").dt.date())
    assert_frame_equal(found, wanted, check_dtypes=False, rel_tol=1e-15, abs_tol=0)


@pytest.mark.parametrize("value", ["mean", "q90"])
def test_wide_is_long_pivoted(value: str, trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    written = job(trained, weekly_loaded, tmp_path, format="xlsx", layout="wide", value=value)
    written.write(weekly_loaded.panel.last_index)
    header, rows = cells(Path(str(written.write_plan())))
    expected = api.read_scores(tmp_path)
    wide = expected.pivot("step", index="series_id", values=value, maintain_order=True)
    assert [row[0] for row in rows] == wide["series_id"].to_list()
    for row, numbers in zip(rows, wide.drop("series_id").iter_rows(), strict=True):
        assert row[1:8] == pytest.approx(numbers, rel=1e-15)  # Workbooks have 16 digits.
    assert header[0] == "series"
    assert header[8:] == ["source", "model", "version", "cutoff", "value"]
    assert header[1:8] == expected["timestamp"].unique().sort().to_list()
    sources = expected.group_by("series_id", maintain_order=True).agg(pl.col("source").first())["source"].to_list()
    assert [row[8:11] for row in rows] == [[source, "m", "3"] for source in sources]
    assert {row[12] for row in rows} == {value}


def test_a_plan_is_written_again_only_if_it_changes(trained: FitResult, weekly_loaded: Loaded, tmp_path: Path) -> None:
    last = weekly_loaded.panel.last_index
    written = job(trained, weekly_loaded, tmp_path, format="csv")
    written.write(last - 1)
    file = Path(str(written.write_plan()))
    edited = file.read_text().replace("m", "n")
    file.write_text(edited)
    written.write(last - 1)
    assert written.write_plan() is None
    assert file.read_text() == edited
    written.write(last)
    assert written.write_plan() == str(file)
    assert pl.read_csv(file)["cutoff"].unique().to_list() != pl.read_csv(edited.encode())["cutoff"].unique().to_list()
    other = job(trained, weekly_loaded, tmp_path, format="xlsx")
    assert not other.write(last).content.get("format")
    assert other.write_plan() == str(file.with_suffix(".xlsx"))
    assert not file.exists(), "a plan of the other format grows old"
    assert job(trained, weekly_loaded, tmp_path).write_plan() is None


@pytest.mark.parametrize("layout", ["long", "wide"])
def test_ids_stay_text_in_a_workbook(layout: Any, tmp_path: Path) -> None:
    frame = forecasts(sorted(ODD_IDS), [datetime(2024, 1, day) for day in (1, 2, 3)])
    api.write_plan(frame, tmp_path / "plan.xlsx", layout=layout)
    sheet = openpyxl.load_workbook(tmp_path / "plan.xlsx").worksheets[0]
    column = list(sheet["A"][1:])
    assert {cell.data_type for cell in column} <= {"s", "inlineStr"}
    texts = [openpyxl.utils.escape.unescape(cell.value) for cell in column]
    assert list(dict.fromkeys(texts)) == sorted(ODD_IDS)


def test_csv_runs_no_formula_and_keeps_all_other_text(tmp_path: Path) -> None:
    api.write_plan(forecasts(sorted(ODD_IDS), [datetime(2024, 1, 1), datetime(2024, 1, 2)]), tmp_path / "plan.csv")
    plan = pl.read_csv(tmp_path / "plan.csv", schema_overrides={"series": pl.String})
    guarded = {name: f"'{name}" for name in ("=SUM(A1:A9)", "+49 30", "-1", "@cmd")}
    assert plan["series"].to_list() == [guarded.get(name, name) for name in sorted(ODD_IDS)]
    assert plan["forecast"].to_list() == [1000 * i + 1.25 for i in range(len(ODD_IDS))]
    assert plan["date"].to_list() == ["2024-01-02"] * len(ODD_IDS)


def test_hours_are_local_and_a_repeated_hour_has_its_offset(tmp_path: Path) -> None:
    stamps = [
        datetime(2024, 10, 26, 22 + hour, tzinfo=ZoneInfo("UTC"))
        if hour < 2
        else datetime(2024, 10, 27, hour - 2, tzinfo=ZoneInfo("UTC"))
        for hour in range(5)
    ]
    frame = forecasts(["a"], stamps, "Europe/Berlin")
    api.write_plan(frame, tmp_path / "long.csv")
    assert pl.read_csv(tmp_path / "long.csv")["date"].to_list() == [
        "2024-10-27 01:00:00",
        "2024-10-27 02:00:00",
        "2024-10-27 02:00:00",
        "2024-10-27 03:00:00",
    ]
    api.write_plan(frame, tmp_path / "wide.xlsx", layout="wide")
    assert cells(tmp_path / "wide.xlsx")[0][1:5] == [
        datetime(2024, 10, 27, 1),
        "2024-10-27 02:00:00+02:00",
        "2024-10-27 02:00:00+01:00",
        datetime(2024, 10, 27, 3),
    ]


def test_what_does_not_fit_on_a_sheet_is_refused_before_work(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreadsheets, "MAX_ROWS", 56)
    with pytest.raises(ConfigError, match=r"56 rows and .* 55 rows below its header .* output.layout=wide"):
        job(trained, weekly_loaded, tmp_path, format="xlsx")
    job(trained, weekly_loaded, tmp_path, format="xlsx", layout="wide")
    job(trained, weekly_loaded, tmp_path, format="csv")
    with pytest.raises(ConfigError, match=r"output.value: the forecasts have no 'q55'; there are: mean, q10"):
        job(trained, weekly_loaded, tmp_path, format="csv", layout="wide", value="q55")
    monkeypatch.setattr(spreadsheets, "MAX_ROWS", 57)
    job(trained, weekly_loaded, tmp_path, format="xlsx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layout": "wide"}, "layout is that of format"), ({"format": "csv", "value": "q90"}, "value is that of layout")],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(ScoreConfig, {"data": {"path": "p"}, "output": {"path": "o", **settings}})


def test_a_plan_is_no_part_of_the_identity_of_a_job() -> None:
    plain, plan = (
        load(ScoreConfig, {"data": {"path": "p"}, "output": {"path": "o", **settings}})
        for settings in ({}, {"format": "xlsx", "layout": "wide", "value": "q90"})
    )
    assert describe("score", plain, {}).config_digest == describe("score", plan, {}).config_digest


def test_frames_that_are_no_plan_are_refused(tmp_path: Path) -> None:
    days = [datetime(2024, 1, day) for day in range(1, 5)]
    several = pl.concat([forecasts(["a"], days), forecasts(["a"], days[1:])])
    with pytest.raises(ConfigError, match="one cutoff and model; there are 2"):
        api.write_plan(several, tmp_path / "plan.csv", layout="wide")
    with pytest.raises(ConfigError, match="a column for each of 3 steps, but series have 2, 3"):
        api.write_plan(forecasts(["a", "b"], days).head(5), tmp_path / "plan.csv", layout="wide")
    with pytest.raises(ConfigError, match=r"must end with .csv or .xlsx"):
        api.write_plan(several, tmp_path / "plan.ods")
    long = pl.DataFrame({"series_id": ["x" * 32_768]})
    with pytest.raises(OutputError, match="1 rows have more than the 32,767 characters in series_id"):
        write_sheet(long, tmp_path / "show.xlsx")
    assert not list(tmp_path.iterdir())


def test_classes_and_samples(tmp_path: Path) -> None:
    days = [datetime(2024, 1, 1), datetime(2024, 1, 2)]
    frame = forecasts(["a"], days).drop("mean", "q10", "q90")
    frame = frame.with_columns(
        pl.lit("rain").alias("class"), pl.lit(0.75).alias("p_rain"), pl.lit(1.0).alias("sample_000")
    )
    write_plan_of(frame, tmp_path / "plan.csv")
    plan = pl.read_csv(tmp_path / "plan.csv")
    assert plan.row(0, named=True)["forecast"] == "rain"
    assert {"p_rain"} == {name for name in plan.columns if name.startswith(("p_", "sample"))}
    write_plan_of(frame, tmp_path / "plan.csv", "wide")
    assert pl.read_csv(tmp_path / "plan.csv").row(0)[:2] == ("a", "rain")
    assert pl.read_csv(tmp_path / "plan.csv").columns[1] == str(date(2024, 1, 2))


def test_a_killed_job_leaves_nothing_beside_the_next_plan(
    trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    written = job(trained, weekly_loaded, tmp_path, format="xlsx")
    written.write(weekly_loaded.panel.last_index)
    (tmp_path / "plans" / ".sheet-old").mkdir(parents=True)
    (tmp_path / "plans" / ".m.xlsx.host.1.tmp").touch()
    written.write_plan()
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == [".m.xlsx.key", "m.xlsx"]
