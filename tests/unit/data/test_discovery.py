"""What a file holds is found whatever way it is written, and a file with two readings is refused with both."""

import csv
import gzip
import io
import sys
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import openpyxl
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from forecast.config import DataConfig, load
from forecast.data.discovery.frequency import default_horizon
from forecast.data.discovery.layout import Layout, discover
from forecast.data.ingest.load import load_panel
from forecast.data.read import read_panel
from forecast.data.time.frequency import Frequency
from forecast.errors import ConfigError, DataError

ROWS = 40
DAYS = [datetime(2023, 1, 20) + timedelta(days=number) for number in range(ROWS)]
MONTHS = pl.datetime_range(datetime(2020, 1, 1), datetime(2023, 4, 1), "1mo", eager=True).to_list()
NAMES = ("Köln", "Ulm")
VALUES = np.random.default_rng(0).uniform(100, 3000, (len(NAMES), ROWS)).round(2)

NUMBERS: dict[str, Callable[[float], str]] = {
    "1234.50": lambda value: f"{value:.2f}",
    "1,234.50": lambda value: f"{value:,.2f}",
    "1234,50": lambda value: f"{value:.2f}".replace(".", ","),
    "1.234,50": lambda value: f"{value:,.2f}".translate(str.maketrans(",.", ".,")),
    "$1,234.50": lambda value: f"${value:,.2f}",
    "1.234,50 €": lambda value: f"{value:,.2f} €".translate(str.maketrans(",.", ".,")),
    "1 234,50": lambda value: f"{value:,.2f}".translate(str.maketrans(",.", "\u00a0,")),
}
DAY_FORMS = (
    "%Y-%m-%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%Y%m%d",
    "%d %b %Y",
    "%b %d, %Y",
    "%d.%m.%y",
    "%Y-%m-%dT%H:%MZ",
)
MONTH_FORMS = ("%b %Y", "%B %Y", "%Y-%m", "%m/%Y", "%b-%y", "%Y%m", "%YM%m")
HEADERS = (("store", "date", "sales"), ("Filiale", "Datum", "Umsatz"), ("a", "b", "c"), ("unique_id", "ds", "y"))


def write_long(path: Path, cells: list[list[str]], separator: str, encoding: str, title: str) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(cells)
    path.write_bytes((title + text.getvalue()).encode(encoding))


def values_of(path: Path, layout: Layout) -> pl.DataFrame:
    """The panel that the settings of a layout read: from the file, or from the table where they can't."""
    if layout.obstacles:
        loaded = load_panel(layout.frame.lazy(), layout.data, layout.horizon)
    else:
        loaded = read_panel(load(DataConfig, layout.data.model_dump() | {"path": str(path)}), layout.horizon)
    assert not loaded.rejects.height
    return loaded.panel.frame()


@hypothesis_settings(max_examples=25)
@given(
    st.sampled_from((";", "\t", ",", "|")),
    st.sampled_from(sorted(NUMBERS)),
    st.sampled_from([*((form, DAYS) for form in DAY_FORMS), *((form, MONTHS) for form in MONTH_FORMS)]),
    st.sampled_from(("utf-8", "utf-8-sig", "cp1252", "utf-16")),
    st.sampled_from(HEADERS),
    st.booleans(),
    st.sampled_from(("", "Report of sales\n", "Sales\n\n")),
)
def test_a_file_gives_its_values_back_in_any_style(
    tmp_path_factory: pytest.TempPathFactory,
    separator: str,
    number: str,
    times: tuple[str, list[datetime]],
    encoding: str,
    header: tuple[str, ...],
    indexed: bool,
    title: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "style.csv"
    form, moments = times
    rows = [
        [name, f"{moment:{form}}", NUMBERS[number](value)]
        for name, series in zip(NAMES, VALUES, strict=True)
        for moment, value in zip(moments, series, strict=True)
    ]
    cells = [list(header), *rows]
    if indexed:
        cells = [["", *header], *([str(place), *row] for place, row in enumerate(rows))]
    write_long(path, cells, separator, encoding, title)
    layout = discover(str(path), DataConfig())
    frame = values_of(path, layout)
    assert frame["series_id"].unique(maintain_order=True).to_list() == sorted(NAMES)
    assert frame["timestamp"].dt.replace_time_zone(None).to_list() == [*moments, *moments]
    np.testing.assert_allclose(frame["target"].to_numpy().reshape(VALUES.shape), VALUES, rtol=1e-6)


@pytest.mark.parametrize("form", ["%b %Y", "%Y-%m"])
@pytest.mark.parametrize("per_time", [False, True])
def test_a_column_per_series_and_a_column_per_time_give_their_values_back(
    tmp_path: Path, form: str, per_time: bool
) -> None:
    times = [f"{moment:{form}}" for moment in MONTHS]
    wide = pl.DataFrame({"Month": times, **dict(zip(NAMES, VALUES, strict=True))})
    if per_time:
        wide = pl.DataFrame({"city": NAMES, **{time: VALUES[:, place] for place, time in enumerate(times)}})
    wide.write_csv(tmp_path / "wide.csv")
    layout = discover(str(tmp_path / "wide.csv"), DataConfig())
    frame = values_of(tmp_path / "wide.csv", layout)
    assert frame["timestamp"].to_list() == [*MONTHS, *MONTHS]
    np.testing.assert_allclose(frame["target"].to_numpy().reshape(VALUES.shape), VALUES, rtol=1e-6)
    assert layout.n_series == len(NAMES)


def test_an_excel_file_with_a_title_and_two_columns_that_name_the_series(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Sales of 2023"])
    book.active.append([])
    book.active.append(["City", "Item", "Day", "Sold"])
    for name, series in zip(NAMES, VALUES, strict=True):
        for day, value in zip(DAYS, series, strict=True):
            book.active.append([name, "tea", day, value])
            book.active.append([name, "coffee", day, 2 * value])
    book.save(tmp_path / "report.xlsx")
    layout = discover(str(tmp_path / "report.xlsx"), DataConfig())
    frame = values_of(tmp_path / "report.xlsx", layout)
    tea = frame.filter(pl.col("series_id").str.ends_with("tea"))
    assert frame["series_id"].n_unique() == 4
    np.testing.assert_allclose(tea["target"].to_numpy().reshape(VALUES.shape), VALUES, rtol=1e-6)


def test_a_workbook_without_the_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openpyxl.Workbook().save(tmp_path / "book.xlsx")
    with pytest.raises(DataError, match="no sheet has a header and rows"):
        discover(str(tmp_path / "book.xlsx"), DataConfig())
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"pip install 'gatecast\[excel\]'"):
        discover(str(tmp_path / "book.xlsx"), DataConfig())


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("year,month,load", lambda hour, value: f"{2000 + hour // 12},{hour % 12 + 1},{value}"),
        ("date,hour,load", lambda hour, value: f"{1 + hour // 24}/01/2023,{hour % 24},{value}"),
        ("date,time,load", lambda hour, value: f"2023-01-{1 + hour // 24:02d},{hour % 24}:00,{value}"),
        ("date,hour,load", lambda hour, value: f"2023-01-{1 + hour // 24:02d},{hour % 24}:00-{hour % 24}:59,{value}"),
        ("year,month,day,hour,load", lambda hour, value: f"2023,1,{1 + hour // 24},{hour % 24},{value}"),
        ("year,quarter,load", lambda hour, value: f"{2000 + hour // 4},{hour % 4 + 1},{value}"),
    ],
)
def test_times_in_several_columns_are_one_time(tmp_path: Path, header: str, row: Callable[[int, float], str]) -> None:
    lines = [header, *(row(hour, value) for hour, value in enumerate(VALUES[0]))]
    (tmp_path / "parts.csv").write_text("\n".join(lines))
    layout = discover(str(tmp_path / "parts.csv"), DataConfig())
    frame = values_of(tmp_path / "parts.csv", layout)
    assert layout.data.freq == {"year,month,load": "1mo", "year,quarter,load": "1q"}.get(header, "1h")
    np.testing.assert_allclose(frame["target"].to_numpy(), VALUES[0], rtol=1e-6)


LONG = [
    f"{day:%Y-%m-%d},{name},{value}"
    for name, series in zip(NAMES, VALUES, strict=True)
    for day, value in zip(DAYS, series, strict=True)
]


def lines(header: str, row: Callable[[str, int], str]) -> str:
    return "\n".join([header, *(row(line, place) for place, line in enumerate(LONG))])


@pytest.mark.parametrize(
    ("text", "roles", "others"),
    [
        pytest.param(
            lines(
                "date,shop,revenue,customers,promo", lambda line, n: f"{line},{n * 7 % 13},{'yes' if n % 3 else 'no'}"
            ),
            ("date", "shop", "revenue"),
            ("customers", "promo"),
            id="the name decides between two targets",
        ),
        pytest.param(
            lines("date,shop,q,area,weekday", lambda line, n: f"{line},{7 if 'Ulm' in line else 9},{n % ROWS % 7}"),
            ("date", "shop", "q"),
            ("area", "weekday"),
            id="attributes of a series and of a day are no targets",
        ),
        pytest.param(
            lines("date,shop,sales,shop_code", lambda line, _: f"{line},{17 if 'Ulm' in line else 23}"),
            ("date", "shop", "sales"),
            ("shop_code",),
            id="one of two names of a series",
        ),
        pytest.param(
            lines("ordered,shop,sales,date", lambda line, n: f"{line},{DAYS[n % ROWS]:%d.%m.%Y}"),
            ("date", "shop", "sales"),
            ("ordered",),
            id="one of two dates, by its name",
        ),
        pytest.param(
            lines("year,shop,sales", lambda line, n: f"{1950 + n % ROWS},{line.split(',', 1)[1]}"),
            ("year", "shop", "sales"),
            (),
            id="years",
        ),
        pytest.param(
            lines("Date,Dept,close,volume", lambda line, n: f"{line},{n * 7 % 13}"),
            ("Date", "Dept", "close"),
            ("volume",),
            id="capitals",
        ),
        pytest.param(
            lines("date,shop,sales", lambda line, _: line) + "\nTotal,,9",
            ("date", "shop", "sales"),
            (),
            id="a total below",
        ),
        pytest.param(
            lines("date,shop,sales", lambda line, n: line if n % 9 else line.rpartition(",")[0] + ",-"),
            ("date", "shop", "sales"),
            (),
            id="dashes for missing numbers",
        ),
    ],
)
def test_columns_get_their_roles_by_evidence(
    tmp_path: Path, text: str, roles: tuple[str, ...], others: tuple[str, ...]
) -> None:
    (tmp_path / "roles.csv").write_text(text, encoding="utf-8")
    layout = discover(str(tmp_path / "roles.csv"), DataConfig())
    columns = layout.data.columns
    assert (columns.timestamp, columns.series_id, columns.target) == roles
    assert layout.others == others
    assert layout.n_series == len(NAMES)
    assert read_panel(layout.data.model_copy(update={"path": str(tmp_path / "roles.csv")}), 1).panel.n_series == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a,b\n", "a header without rows"),
        ("Dear all,\nplease find nothing below\nbest\n", "no table with two columns"),
        (
            lines("date,shop,sales", lambda line, n: "DD.MM.YYYY,name,EUR" if n == 0 else line),
            "the header has two rows",
        ),
        (",sales,sales\ndate,a,b\n2020-01-01,1,2\n", "'sales'\\); if the file has several header rows"),
        ("\n".join(LONG), "line 1 looks like data"),
        (lines("date,shop,a,b", lambda line, n: f"{line},{n * n}"), "'a', 'b'\\); set data.columns.target"),
        (
            lines("date,shop,sales", lambda line, _: line) + "\n" + "\n".join(LONG[:30]),
            "of them in all columns; remove",
        ),
        (
            lines("date,sales", lambda line, n: f"{line.split(',')[0]},{n}"),
            "data.columns.series_id; or, .* data.aggregate=sum",
        ),
        (lines("shop,sales", lambda line, _: line.split(",", 1)[1]), "no column holds times"),
        (lines("date,shop", lambda line, _: line.rpartition(",")[0]), "no column holds numbers"),
        (
            "date,y\n" + "\n".join(f"{day:02d}/02/2020,{day}" for day in range(1, 13)),
            "1 February 2020 .* or 2 January 2020 .* set data.timestamp_format='%d/%m/%Y' or",
        ),
        (
            "date;y\n" + "\n".join(f"2020-01-{day:02d};1.{day + 200}" for day in range(1, 29)),
            "'1.201' may be 1.201 or 1,201 .* set data.decimal",
        ),
        ("a,b\n1,2\n3,4,5\n", "other numbers of fields"),
    ],
)
def test_a_file_without_one_reading_is_refused_with_what_to_set(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "refused.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        discover(str(tmp_path / "refused.csv"), DataConfig())


@pytest.mark.parametrize(
    ("settings", "freq"), [({"timestamp_format": "%d/%m/%Y"}, "1d"), ({"timestamp_format": "%m/%d/%Y"}, "1mo")]
)
def test_a_setting_decides_between_two_readings(tmp_path: Path, settings: dict[str, object], freq: str) -> None:
    (tmp_path / "two.csv").write_text("date,y\n" + "\n".join(f"{day:02d}/02/2020,{day}" for day in range(1, 13)))
    assert discover(str(tmp_path / "two.csv"), load(DataConfig, settings)).data.freq == freq


def test_steps_decide_between_two_readings(tmp_path: Path) -> None:
    months = "\n".join(f"01/{month % 12 + 1:02d}/{2015 + month // 12},{month}" for month in range(30))
    (tmp_path / "firsts.csv").write_text(f"date,y\n{months}")
    layout = discover(str(tmp_path / "firsts.csv"), DataConfig())
    assert (layout.data.timestamp_format, layout.data.freq) == ("%d/%m/%Y", "1mo")


def test_single_events_are_put_together_where_a_setting_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    hours = np.sort(rng.uniform(0, 24 * 60, 500))
    events = "\n".join(f"{datetime(2023, 1, 1) + timedelta(hours=hour)},{hour % 5:.0f}" for hour in hours)
    (tmp_path / "events.csv").write_text(f"when,amount\n{events}")
    with pytest.raises(DataError, match=r"data\.freq=1d data\.aggregate=sum"):
        discover(str(tmp_path / "events.csv"), DataConfig())
    layout = discover(str(tmp_path / "events.csv"), load(DataConfig, {"freq": "1d", "aggregate": "sum"}))
    assert (layout.data.freq, layout.steps) == ("1d", 60)


def test_a_row_per_year_and_a_column_per_month_is_one_series(tmp_path: Path) -> None:
    values = VALUES.reshape(-1)[:72].reshape(6, 12)
    months = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
    table = pl.DataFrame({"Year": range(2000, 2006), **{name: values[:, place] for place, name in enumerate(months)}})
    table.write_csv(tmp_path / "months.csv")
    frame = values_of(tmp_path / "months.csv", discover(str(tmp_path / "months.csv"), DataConfig()))
    np.testing.assert_allclose(frame["target"].to_numpy(), values.reshape(-1), rtol=1e-6)
    assert (
        frame["timestamp"].to_list()
        == pl.datetime_range(datetime(2000, 1, 1), datetime(2005, 12, 1), "1mo", eager=True).to_list()
    )


def test_lines_that_end_with_a_separator_or_a_carriage_return_are_read(tmp_path: Path) -> None:
    text = "day;sales;\n" + "\n".join(f"{day:%d.%m.%Y};{n};" for n, day in enumerate(DAYS, 7))
    for name, content in {"trailing.csv": text, "mac.csv": text.replace("\n", "\r")}.items():
        (tmp_path / name).write_bytes(content.encode())
        frame = values_of(tmp_path / name, discover(str(tmp_path / name), DataConfig()))
        assert frame["target"].to_list() == [*range(7, 7 + ROWS)]


def test_the_content_tells_the_kind_of_a_file(tmp_path: Path) -> None:
    table = pl.DataFrame({"item_id": ["a"] * ROWS, "ds": DAYS, "y": VALUES[0]})
    table.write_parquet(tmp_path / "table.csv")
    assert discover(str(tmp_path / "table.csv"), DataConfig()).description == "Parquet"
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(table.write_csv().encode()))
    layout = discover(str(tmp_path / "table.csv.gz"), DataConfig())
    assert values_of(tmp_path / "table.csv.gz", layout).height == ROWS
    with zipfile.ZipFile(tmp_path / "table.zip", "w") as archive:
        archive.writestr("table.csv", table.write_csv())
    assert values_of(tmp_path, discover(str(tmp_path / "table.zip"), DataConfig())).height == ROWS
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="neither text nor Excel"):
        discover(str(tmp_path / "noise.csv"), DataConfig())


@pytest.mark.parametrize(
    ("freq", "length", "horizon"),
    [
        ("1h", 2000, 24),
        ("15m", 9000, 96),
        ("1d", 400, 14),
        ("1w", 200, 13),
        ("1mo", 20, 5),
        ("1mo", 90, 12),
        ("1y", 3, 1),
    ],
)
def test_the_default_horizon_follows_from_frequency_and_length(freq: str, length: int, horizon: int) -> None:
    assert default_horizon(Frequency.parse(freq), np.array([length, length]))[0] == horizon
