"""Tables where people keep them: files, Delta Lake, S3 and databases give the same rows; failures say what to do."""

import gzip
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
import services
from polars.testing import assert_frame_equal
from services import PASSWORD, PASSWORD_IN_URI, S3, free_port

from forecast.config import DataConfig, SourceConfig
from forecast.data.sources.frames import collect
from forecast.data.sources.open import Tables, fingerprint, open_tables
from forecast.errors import ConfigError, DataError, GatecastError

HOURS = 50
MOMENTS = pl.datetime_range(
    datetime(2024, 3, 30, tzinfo=UTC), datetime(2024, 4, 1, 1, tzinfo=UTC), "1h", time_zone="UTC", eager=True
)
IDS = ["007", "7", 'ü, "x"']
TABLE = pl.DataFrame(
    {
        "series_id": [name for name in IDS for _ in range(HOURS)],
        "timestamp": pl.concat([MOMENTS] * len(IDS)),
        "target": [None if k % 11 == 0 else k / 8 for k in range(len(IDS) * HOURS)],
        "promotion": [k % 7 == 0 for k in range(len(IDS) * HOURS)],
        "price": [None if k < 60 else k * 0.25 for k in range(len(IDS) * HOURS)],
        "shelf": [k % 5 for k in range(len(IDS) * HOURS)],
        "weather": [["sun", "rain, or snow", None][k % 3] for k in range(len(IDS) * HOURS)],
    }
)
QUERY = f"select {', '.join(TABLE.columns)} from panel"


class Services(NamedTuple):
    postgresql: str
    """URI with the password."""
    s3: S3


@pytest.fixture(scope="session")
def running() -> Iterator[Services]:
    with services.postgresql() as uri, services.s3() as s3:
        with_password = uri.replace("me@", f"me:{PASSWORD_IN_URI}@")
        _fill_postgresql(with_password)
        yield Services(with_password, s3)


def _fill_postgresql(uri: str) -> None:
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("raw", TABLE.to_arrow(), temporary=True)
        cursor.execute(
            "create table panel as select series_id, timestamp, target::numeric(12, 3), promotion, price::real, "
            "shelf::smallint, weather::varchar(20) from raw"
        )
        connection.commit()


@pytest.fixture
def place(running: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The services, in a folder of one's own, with the credentials of S3 in the environment."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "PG"))]:
        monkeypatch.delenv(name)
    for name, value in running.s3.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return running


def write(path: str, table: pl.DataFrame = TABLE) -> str:
    """Write a table, by its name: a file, a folder of store=7 folders, or Delta Lake; there or in S3."""
    remote = path.startswith("s3://")
    local = Path("upload") / path.removeprefix("s3://") if remote else Path(path)
    if path.endswith("delta"):
        options = {"aws_allow_http": "true", **{k.lower(): v for k, v in os.environ.items() if k.startswith("AWS_")}}
        table.write_delta(path, mode="overwrite", storage_options=options if remote else None)
        return path
    local.parent.mkdir(parents=True, exist_ok=True)
    if path.endswith("hive"):
        table.write_parquet(local, partition_by="series_id", mkdir=True)
    elif path.endswith("parts"):
        local.mkdir(parents=True)
        for number, part in enumerate(table.iter_slices(40)):
            part.write_parquet(local / f"{number}.parquet")
        (local / "_SUCCESS").touch()
    elif path.endswith("parquet"):
        table.write_parquet(local)
    elif path.endswith("csv"):
        table.write_csv(local)
    elif path.endswith("csv.gz"):
        local.write_bytes(gzip.compress(table.write_csv().encode()))
    else:
        table.write_ipc(local)
    if remote:
        from pyarrow import fs

        bucket = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"])
        fs.copy_files(str(local.absolute()), path.removeprefix("s3://"), destination_filesystem=bucket)
        shutil.rmtree("upload")
    return path


def rows(found: pl.LazyFrame) -> pl.DataFrame:
    """Return the rows, sorted and in the types of TABLE: text and databases have fewer of them."""
    time = pl.col("timestamp")
    if found.collect_schema()["timestamp"] == pl.String:
        time = time.str.to_datetime(time_unit="us", time_zone="UTC")
    whole = found.select(*TABLE.columns).with_columns(time)
    return collect(whole.cast(dict(TABLE.schema)).sort("series_id", "timestamp"))  # type: ignore[arg-type]


KINDS = ["a.parquet", "a.csv", "a.csv.gz", "a.arrow", "parts", "hive", "delta"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", [*KINDS, *(f"s3://panels/rows/{kind}" for kind in KINDS)])
def test_files_give_the_same_rows_wherever_they_are(name: str) -> None:
    data = DataConfig(path=write(name))
    first = fingerprint(data)
    tables = open_tables(data)
    assert_frame_equal(rows(tables.rows), TABLE)
    one = pl.col("series_id") == "007"
    assert_frame_equal(rows(tables.rows.filter(one)), TABLE.filter(one))
    assert fingerprint(data) == first


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "pattern", ["s3://panels/glob/*/a.parquet", "s3://panels/glob/**/?.parquet", "s3://panels/glob"]
)
def test_a_glob_in_s3_is_what_it_is_on_a_disk(pattern: str) -> None:
    for number, part in enumerate(TABLE.iter_slices(70)):
        write(f"s3://panels/glob/{number}/a.parquet", part)
        write(f"glob/{number}/a.parquet", part)
    assert_frame_equal(rows(open_tables(DataConfig(path=pattern)).rows), TABLE)
    assert_frame_equal(rows(open_tables(DataConfig(path=pattern.removeprefix("s3://panels/"))).rows), TABLE)


def test_postgresql_gives_the_same_rows(place: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig.model_validate({"uri": place.postgresql, "query": QUERY})
    found = open_tables(data).rows
    assert found.collect_schema() == TABLE.schema | {"price": pl.Float32, "shelf": pl.Int16}
    assert_frame_equal(rows(found), TABLE)
    assert_frame_equal(rows(found), TABLE)  # The query has run once; its rows stay.
    assert fingerprint(data) is None

    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    data = DataConfig.model_validate(
        {"uri": place.postgresql.replace(f":{PASSWORD_IN_URI}", ""), "query": QUERY + " -- all\n;"}
    )
    assert_frame_equal(rows(open_tables(data).rows), TABLE)


@pytest.mark.usefixtures("place")
def test_sqlite_gives_the_same_rows() -> None:
    with sqlite3.connect("panel.db") as connection:
        connection.execute(f"create table panel ({', '.join(TABLE.columns)})")
        values = TABLE.with_columns(pl.col("timestamp").dt.to_string("iso")).iter_rows()
        connection.executemany(f"insert into panel values ({', '.join('?' * TABLE.width)})", values)
    for uri in ("sqlite:///panel.db", f"sqlite:///{Path('panel.db').absolute()}"):
        data = DataConfig.model_validate({"uri": uri, "query": QUERY})
        assert_frame_equal(rows(open_tables(data).rows), TABLE)


def test_covariates_may_come_from_tables_of_another_kind(place: Services) -> None:
    known, static = TABLE.select("timestamp", "price").head(HOURS), pl.DataFrame({"series_id": IDS, "size": [1, 2, 3]})
    data = DataConfig.model_validate(
        {
            "uri": place.postgresql,
            "query": QUERY,
            "known_path": write("s3://panels/known/a.parquet", known),
            "known_covariates": ["price"],
            "static_path": write("static.csv", static),
            "static_covariates": ["size"],
        }
    )
    tables = open_tables(data)
    assert tables.known is not None
    assert tables.static is not None
    assert_frame_equal(collect(tables.known), known)
    assert_frame_equal(collect(tables.static), static)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "name", ["a.parquet", "parts", "delta", "s3://panels/prints/parts", "s3://panels/prints/delta"]
)
def test_the_fingerprint_changes_with_the_table(name: str) -> None:
    data = SourceConfig(path=write(name))
    first = fingerprint(data)
    assert first == fingerprint(data)
    if name.endswith("delta"):
        write(name, TABLE.head(3))
    else:
        write(name.replace("parts", "parts/more.parquet"), TABLE.head(3))
    assert fingerprint(data) not in (first, None)
    assert fingerprint(data) != fingerprint(SourceConfig(path=name, known_path=write("known.parquet")))


# What does not work.


def refusal(error: type[GatecastError], **data: Any) -> str:
    with pytest.raises(error) as caught:
        open_tables(DataConfig.model_validate(data))
    assert caught.value.__cause__ is None or not any(secret in repr(caught.value.__cause__) for secret in SECRETS)
    return str(caught.value)


SECRETS = (PASSWORD, PASSWORD_IN_URI, "wr0ng", "s3cr:t", "@pw")


def change(uri: str, *, password: str = PASSWORD_IN_URI, port: str = "", database: str = "postgres") -> str:
    start, _, rest = uri.replace(PASSWORD_IN_URI, password).rpartition(":")
    return f"{start}:{port or rest.partition('/')[0]}/{database}"


POSTGRESQL_REFUSES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "wrong password": (lambda uri: change(uri, password="wr0ng"), QUERY, "password authentication failed for user"),
    "no password": (lambda uri: uri.replace(f":{PASSWORD_IN_URI}", ""), QUERY, "no password supplied; set PGPASSWORD"),
    "no database": (lambda uri: change(uri, database="nowhere"), QUERY, 'database "nowhere" does not exist'),
    "no server": (lambda uri: change(uri, port=str(free_port())), QUERY, "Connection refused"),
    "no host": (lambda _: f"postgresql://me:{PASSWORD_IN_URI}@host.invalid/x", QUERY, "host.invalid"),
    "unknown option": (lambda uri: uri + "?wrong=1", QUERY, 'invalid URI query parameter: "wrong"'),
    "syntax error": (lambda uri: uri, "selec 1", 'syntax error at or near "selec"; LINE 1: selec 1'),
    "no table": (lambda uri: uri, "select * from missing", 'relation "missing" does not exist'),
    "error on the way": (lambda uri: uri, "select 1 / (9999 - n) from generate_series(1, 9999) n", "division by zero"),
    "no rows": (lambda uri: uri, f"{QUERY} where false", "data.query returns no rows"),
    "no columns": (lambda uri: uri, "select", "data.query returns no columns; it has to be a SELECT"),
    "a change": (lambda uri: uri, "delete from panel", "cannot execute DELETE in a read-only transaction"),
    "a name twice": (lambda uri: uri, "select 'a' series_id, 1 target, 2 target", "target"),
    "type": (lambda uri: uri, "select '{}'::jsonb target, 'a' series_id", "jsonb"),
    "infinity": (lambda uri: uri, "select 'infinity'::timestamp t", "infinite dates or timestamps in the column 't'"),
    "infinite day": (lambda uri: uri, "select '-infinity'::date d", "infinite dates or timestamps in the column 'd'"),
}  # fmt: skip


@pytest.mark.parametrize("case", POSTGRESQL_REFUSES)
def test_what_postgresql_refuses_is_told_without_the_password(place: Services, case: str, capfd: Any) -> None:
    make, query, expected = POSTGRESQL_REFUSES[case]
    message = refusal(DataError, uri=make(place.postgresql), query=query)
    assert expected in message
    assert "\n" not in message
    assert not [secret for secret in SECRETS if secret in message]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("password", ["s3cr:t/@pw", "wr0ng word", "wr0ng@pw", "wr0ng#x", "1/wr0ng", "1?wr0ng"])
def test_a_password_that_is_not_encoded_is_refused_unseen(place: Services, password: str) -> None:
    message = refusal(ConfigError, uri=change(place.postgresql, password=password), query=QUERY)
    assert "%2F %40" in message
    assert not [secret for secret in (*SECRETS, password) if secret in message]


def test_numeric_and_time_types_of_postgresql(place: Services) -> None:
    query = (
        "select 12345.678::numeric a, 'NaN'::numeric b, null::numeric c, 1::bigint d, true e, date '2024-02-29' f, "
        "timestamptz '2024-01-01 00:00+05:30' g, timestamp '2024-01-01 00:00' h, 'x'::char(3) i, 1.5::real j"
    )
    found = collect(open_tables(DataConfig.model_validate({"uri": place.postgresql, "query": query})).rows)
    assert found.dtypes == [
        *[pl.Float64] * 3, pl.Int64, pl.Boolean, pl.Date, pl.Datetime("us", "UTC"), pl.Datetime("us"), pl.String,
        pl.Float32,
    ]  # fmt: skip
    a, b, c, *_, g, h, i, _ = found.row(0)
    assert a == float(Decimal("12345.678"))
    assert b != b  # noqa: PLR0124
    assert c is None
    assert g == datetime(2023, 12, 31, 18, 30, tzinfo=UTC)
    assert h == datetime(2024, 1, 1)
    assert i == "x  "


S3_REFUSES = {
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wr0ng"}, "s3://panels/a.csv", "refuses access to the bucket 'panels'"),
    "wrong key": ({"AWS_ACCESS_KEY_ID": "AKIANOBODY"}, "s3://panels", "check the credentials (AWS_ACCESS_KEY_ID"),
    "no server": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://panels/a.csv", "does not answer; check AWS_"),
    "no bucket": ({}, "s3://nobody/a.parquet", "there is no bucket 'nobody' at http://127.0.0.1"),
    "no bucket for a glob": ({}, "s3://nobody/*.parquet", "there is no bucket 'nobody'"),
    "no file": ({}, "s3://panels/nothing.parquet", "no such file or folder in the bucket 'panels'"),
    "nothing that matches": ({}, "s3://panels/nothing*.parquet", "no such file or folder in the bucket 'panels'"),
    "no name": ({}, "s3://", "give a path, or s3://bucket/folder"),
    "another store": ({}, "gs://panels/a.parquet", "give a path, or s3://bucket/folder"),
}  # fmt: skip


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", S3_REFUSES)
def test_what_s3_refuses_is_told_without_the_secret(case: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    environment, path, expected = S3_REFUSES[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    message = refusal(DataError, path=path)
    assert expected in message
    assert message.startswith(f"data.path={path}")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in message
    assert capfd.readouterr() == ("", "")
    write("a.parquet")
    assert refusal(DataError, path="a.parquet", static_path=path, static_covariates=["x"]).startswith(
        f"data.static_path={path}"
    )


def test_a_damaged_file_in_s3_is_named(place: Services) -> None:
    from pyarrow import fs

    path = write("s3://panels/damaged/parts")
    bucket = fs.S3FileSystem(endpoint_override=place.s3.endpoint)
    for name in ("1", "3"):
        with bucket.open_output_stream(f"panels/damaged/parts/{name}.parquet") as file:
            file.write(b"PAR1 half a file")
    message = refusal(DataError, path=path)
    assert "2 of 4 files can't be read (truncated or damaged?)" in message
    assert f"{path}/1.parquet (" in message
    assert f"{path}/3.parquet (" in message


@pytest.mark.usefixtures("place")
def test_a_damaged_delta_lake_table_is_refused() -> None:
    write("delta")
    log = next(Path("delta/_delta_log").glob("*.json"))
    log.write_text("{nonsense")
    assert "the Delta Lake table data.path=delta can't be read" in refusal(DataError, path="delta")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("package", "extra", "data"),
    [
        ("deltalake", "delta", {"path": "delta"}),
        ("adbc_driver_postgresql", "sql", {"uri": "postgresql://me@127.0.0.1/x", "query": QUERY}),
    ],
)
def test_a_missing_package_is_named(
    package: str, extra: str, data: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("delta")
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'gatecast[{extra}]'" in refusal(ConfigError, **data)


def test_a_config_does_not_show_the_password(place: Services) -> None:
    data = DataConfig.model_validate({"uri": place.postgresql, "query": QUERY})
    for shown in (repr(data), str(data), data.model_dump_json(), repr(open_tables(data)), str(Tables)):
        assert not [secret for secret in SECRETS if secret in shown]
