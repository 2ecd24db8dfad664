"""Prepared panels that are damaged, replaced while they are read, or left half done."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forecast.config import DataConfig, SourceConfig
from forecast.data.prepared.append import append
from forecast.data.prepared.integrity import checksums, damaged_files
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.read import read_panel
from forecast.data.sources.open import Tables, fingerprint, open_tables, unchanged
from forecast.errors import DataError

FIRST = datetime(2024, 1, 1)
DATA = DataConfig(freq="1d", past_covariates=("rain",), known_covariates=("promo",), static_covariates=("city", "size"))
HORIZON = 3


def table(first: int = 0, last: int = 30, n_series: int = 6, shift: float = 0.0) -> pl.DataFrame:
    """Values of some days of some series; one in five is missing."""
    rng = np.random.default_rng(7)
    values = rng.normal(10, 3, (n_series, 60)).round(2) + shift
    rows = [
        (f"s{number}", FIRST + timedelta(days=step), values[number, step], number / 2, step % 2, f"c{number % 2}", 1.5)
        for number in range(n_series)
        for step in range(first, last)
        if (number + step) % 5
    ]
    columns = ["series_id", "timestamp", "target", "rain", "promo", "city", "size"]
    return pl.DataFrame(rows, schema=columns, orient="row", schema_overrides={"timestamp": pl.Datetime("us")})


def prepared_folder(folder: Path, frame: pl.DataFrame | None = None, fingerprint: str | None = "one") -> Path:
    prepare(Tables((table() if frame is None else frame).lazy()), DATA, HORIZON, folder, fingerprint=fingerprint)
    return folder


def content(folder: Path) -> list[Any]:
    """Return all that is in the buffers of a panel."""
    panel = open_prepared(folder, DATA, HORIZON).panel
    names = ("target", "past", "known", "offsets", "start", "static_categories", "static_numbers")
    return [panel.series_id.tolist(), *(getattr(panel, name).tobytes() for name in names)]


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage a file in one of several ways."""
    before = path.read_bytes()
    after, at = bytearray(before), int(rng.integers(len(before)))
    kind = ("bit", "bytes", "zeros", "cut", "longer", "empty")[rng.integers(6)]
    if kind == "bit":
        after[at] ^= 1 << int(rng.integers(8))
    elif kind == "bytes":
        after[at : at + 8] = rng.bytes(len(after[at : at + 8]))
    elif kind == "zeros":
        after[at:] = bytes(len(after) - at)
    elif kind == "cut":
        del after[at:]
    elif kind == "longer":
        after += rng.bytes(5)
    else:
        after = bytearray()
    path.write_bytes(after)
    return "none" if after == before else kind


def test_no_damaged_file_is_read_and_every_one_is_prepared_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = prepared_folder(tmp_path / "whole")
    expected = content(whole)
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file() and path.name != ".lock"]
    assert len(names) >= 11
    kinds = set()
    for number in range(90):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        name = names[number % len(names)]
        kind = damage(folder / name, rng)
        kinds.add(kind)
        if kind == "none":
            continue
        # White space of the index is no content.
        if name.name != "panel.json" or is_damaged_index(folder):
            with pytest.raises(DataError, match=r"prepare (the panel|it) again"):
                open_prepared(folder, DATA, HORIZON)
        prepared_folder(folder)
        assert content(folder) == expected
        assert len(list(folder.glob("data-*"))) == 1
    assert {"bit", "bytes", "zeros", "cut", "longer", "empty"} <= kinds


def is_damaged_index(folder: Path) -> bool:
    """Return whether the index says something else than the one that was written."""
    try:
        index, whole = (json.loads((path / "panel.json").read_text()) for path in (folder, folder.parent / "whole"))
    except ValueError:
        return True
    return bool(index != whole)


def without_checksums(path: Path, **changes: Any) -> None:
    """Make the index one of an earlier release, which has no hashes."""
    index = json.loads((path / "panel.json").read_text())
    for name in ("checksums", "sha256", "appended"):
        index.pop(name)
    (path / "panel.json").write_text(json.dumps(index | changes))


def test_a_panel_of_an_earlier_release_is_opened_and_its_structure_is_checked(tmp_path: Path) -> None:
    folder = prepared_folder(tmp_path)
    expected = content(folder)
    without_checksums(folder)
    assert content(folder) == expected
    buffers = next(folder.glob("data-*"))

    def store(name: str, change: Callable[[np.ndarray], None]) -> None:
        values = np.load(buffers / f"{name}.npy")
        change(values)
        np.save(buffers / f"{name}.npy", values)

    offsets, start = np.load(buffers / "offsets.npy"), np.load(buffers / "start.npy")
    for name, at, value, message in [
        ("offsets", 1, -7, "no step"),
        ("offsets", -1, 10**9, "offsets go from 0 to 1,000,000,000"),
        ("start", 2, 2**55, "no times"),
        ("start", 2, -(2**62), "no times"),
        ("series_id", 1, ord("9"), "out of order"),
        ("series_id", 1, 0xFF, "damaged"),
        ("series_id_ends", 3, 1, "out of order|no panel|damaged"),
    ]:
        kept = (buffers / f"{name}.npy").read_bytes()
        store(name, lambda values, at=at, value=value: values.__setitem__(at, value))
        with pytest.raises(DataError, match=message):
            open_prepared(folder, DATA, HORIZON)
        (buffers / f"{name}.npy").write_bytes(kept)
    assert np.load(buffers / "offsets.npy").tolist() == offsets.tolist()
    assert np.load(buffers / "start.npy").tolist() == start.tolist()
    assert content(folder) == expected
    assert not prepare(Tables(table().lazy()), DATA, HORIZON, folder, fingerprint="one").reused
    assert "checksums" in json.loads((folder / "panel.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"horizon": "3"},
        {"folder": "../elsewhere"},
        {"grid": {}},
        {"counts": {"rows": 1}},
        {"categories": {"city": 3}},
        {"data": {"freq": 7}},
        {"horizon": 4},
        {"files": []},
    ],
)
def test_an_index_that_describes_no_panel_is_an_error_of_the_data(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = prepared_folder(tmp_path)
    without_checksums(folder, **changes)
    with pytest.raises(DataError, match=r"damaged|holds no panel"):
        open_prepared(folder, DATA, HORIZON)


def test_checksums_are_by_block_and_name_the_file(tmp_path: Path) -> None:
    size = (1 << 22) * 2 + 5
    (tmp_path / "large").write_bytes(bytes(size))
    (tmp_path / "small").write_bytes(b"")
    sums = checksums(tmp_path)
    assert {name: len(values) for name, values in sums.items()} == {"large": 3, "small": 0}
    assert damaged_files(tmp_path, sums) == []
    with (tmp_path / "large").open("r+b") as file:
        file.seek(size - 2)
        file.write(b"1")
    assert damaged_files(tmp_path, sums) == ["large"]


def test_damaged_parts_of_an_interrupted_preparation_are_made_again(tmp_path: Path) -> None:
    def stop(text: str) -> None:
        if text.startswith("part 3"):
            raise KeyboardInterrupt

    tables, folder = Tables(table().lazy()), tmp_path / "panel"
    with pytest.raises(KeyboardInterrupt):
        prepare(tables, DATA, HORIZON, folder, fingerprint="one", chunk_rows=30, progress=stop)
    part = next((folder / ".parts").glob("*/00000"))
    target = next(part.glob("data-*/target.npy"))
    target.write_bytes(target.read_bytes()[:-4] + b"\1\2\3\4")
    prepare(tables, DATA, HORIZON, folder, fingerprint="one", chunk_rows=30)
    assert content(folder) == content(prepared_folder(tmp_path / "other"))


def test_what_kills_left_is_removed_whatever_runs_next(tmp_path: Path) -> None:
    def litter(folder: Path) -> None:
        for name in (".data-123", ".parts/append/00000", ".parts/ab12/00001"):
            (folder / name).mkdir(parents=True)
            (folder / name / "target.npy").write_bytes(b"x" * 1000)
        (folder / ".panel.json.77.tmp").write_text("{")

    def names(folder: Path) -> list[str]:
        return sorted(path.name if path.name[:5] != "data-" else "data" for path in folder.iterdir())

    folder = prepared_folder(tmp_path / "panel")
    whole = names(folder)
    litter(folder)
    assert prepare(Tables(table().lazy()), DATA, HORIZON, folder, fingerprint="one").reused
    assert names(folder) == whole
    litter(folder)
    append(folder, Tables(table(30, 35).lazy()), SourceConfig())
    assert names(folder) == whole
    litter(folder)
    prepared_folder(folder, fingerprint="two")
    assert names(folder) == whole
    (folder / "panel.json").unlink()
    litter(folder)
    (folder / "data-2023").mkdir()  # Not one of ours.
    prepared_folder(folder, fingerprint="three")
    assert (folder / "data-2023").is_dir()
    (folder / "data-2023").rmdir()
    assert names(folder) == whole


def test_a_panel_is_opened_beside_jobs_that_replace_it(tmp_path: Path) -> None:
    folder = prepared_folder(tmp_path / "panel", fingerprint=None)
    others = [table(n_series=2), table(n_series=3)]
    ends = {
        len(open_prepared(prepared_folder(tmp_path / str(n), one), DATA, HORIZON).panel.target)
        for n, one in enumerate(others)
    }
    ends.add(len(open_prepared(folder, DATA, HORIZON).panel.target))
    done = threading.Event()

    def replace_it() -> None:
        try:
            for number in range(12):
                prepared_folder(folder, others[number % 2], fingerprint=None)
        finally:
            done.set()

    writer = threading.Thread(target=replace_it)
    writer.start()
    lengths = []
    while not done.is_set():
        panel = open_prepared(folder, DATA, HORIZON).panel
        assert panel.offsets[-1] == len(panel.target)
        lengths.append(len(panel.target))
    writer.join()
    assert lengths
    assert set(lengths) <= ends


def write(frame: pl.DataFrame, folder: Path, kind: str) -> Path:
    """Write a table as a file, or as a folder of files."""
    folder.mkdir()
    if kind == "csv":
        frame.write_csv(folder / "rows.csv")
        return folder / "rows.csv"
    if kind == "parquet":
        frame.write_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    for (name,), part in frame.group_by("series_id"):
        part.write_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_a_source_that_is_replaced_while_it_is_read_gives_no_panel(tmp_path: Path, kind: str) -> None:
    old, new = (write(table(shift=shift), tmp_path / str(shift), kind) for shift in (0.0, 1000.0))
    data = DATA.model_copy(update={"path": str(old)})
    folder = tmp_path / "panel"

    def replace_source(text: str) -> None:
        if text.startswith("part 3"):
            for file in [new] if new.is_file() else sorted(new.iterdir()):
                file.replace(old if old.is_file() else old / file.name)

    def run(progress: Callable[[str], None]) -> None:
        with unchanged(data) as check_source:
            key = fingerprint(data)
            prepare(
                open_tables(data),
                data,
                HORIZON,
                folder,
                fingerprint=key,
                chunk_rows=30,
                progress=progress,
                check_source=check_source,
            )

    with pytest.raises(DataError, match=r"were replaced, changed or removed while they were read"):
        run(replace_source)
    assert not (folder / "panel.json").exists()
    run(lambda _: None)
    assert (np.nanmin(open_prepared(folder, data, HORIZON).panel.target)) > 900
    assert not (folder / ".parts").exists()


def test_files_that_change_are_told_by_who_reads_or_appends_them(tmp_path: Path) -> None:
    path = write(table(30, 35), tmp_path / "later", "csv")
    data = DATA.model_copy(update={"path": str(path)})
    assert read_panel(data, HORIZON).panel.n_series == 6
    folder = prepared_folder(tmp_path / "panel")
    before = content(folder)

    def append_late() -> None:
        with unchanged(data) as check_source:
            tables = open_tables(data)
            os.utime(path, ns=(1, 1))
            append(folder, tables, SourceConfig(), check_source=check_source)

    def fail_late() -> None:
        with unchanged(data):
            path.unlink()
            raise AssertionError("a consequence")

    for read in (append_late, fail_late):
        with pytest.raises(DataError, match=r"1 files were replaced.*rows\.csv"):
            read()
        assert content(folder) == before


def test_a_file_that_is_added_to_a_folder_does_not_matter(tmp_path: Path) -> None:
    folder = write(table(), tmp_path / "rows", "folder")
    with unchanged(DATA.model_copy(update={"path": str(folder)})) as check_source:
        table().write_parquet(folder / "late.parquet")
        check_source()
    assert (folder / "late.parquet").is_file()


def test_what_is_appended_again_is_counted_once(tmp_path: Path) -> None:
    later = table(28, 40)
    bad = later.head(1).with_columns(pl.col("timestamp") + timedelta(minutes=30))
    first, second = pl.concat([later, bad]), table(40, 42)
    source = SourceConfig(max_reject_share=1.0)
    folder = prepared_folder(tmp_path)

    def add(frame: pl.DataFrame, **settings: Any) -> tuple[Any, ...]:
        done = append(folder, Tables(frame.lazy()), source, **settings)
        return done.reused, done.loaded.counts, done.loaded.rejects.rows(), content(folder)

    once = add(first)
    assert once[0] is False
    assert once[1].rows_rejected == len(once[2]) == 1
    index = (folder / "panel.json").stat().st_mtime_ns
    for frame in (first, first.sample(fraction=1.0, shuffle=True, seed=1)):
        assert add(frame) == (True, *once[1:])
    assert (folder / "panel.json").stat().st_mtime_ns == index
    twice = add(second)
    assert twice[1].rows_in == once[1].rows_in + second.height
    # An earlier one again, behind another: nothing is new, nothing is counted.
    assert add(first)[1:] == twice[1:]
    assert add(second) == (False, *twice[1:])
    assert add(second) == (True, *twice[1:])
    # The panel that is prepared again has forgotten what was appended.
    prepared_folder(folder, fingerprint="two")
    assert add(first)[1:] == once[1:]


def test_refused_revisions_that_are_appended_again_are_counted_once(tmp_path: Path) -> None:
    folder = prepared_folder(tmp_path)
    revised = table(20, 32, shift=1.0)
    source = SourceConfig(max_reject_share=1.0)
    first, again = (append(folder, Tables(revised.lazy()), source, revisions="refuse") for _ in range(2))
    assert first.loaded.rejects.height == table(20, 30).height
    assert again.loaded.rejects.equals(first.loaded.rejects)
    assert again.loaded.counts == first.loaded.counts
    assert again.revisions.height == first.revisions.height
