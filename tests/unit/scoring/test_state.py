"""The state that nightly jobs carry on: what it is made of, when it is not used, and what a kill leaves of it."""

import hashlib
import json
import logging
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from kills import killed_at

from forecast.artifact import Artifact
from forecast.config import ScoreConfig, ScoreOutput, ScoreSettings, SourceConfig, load
from forecast.data.files import locked
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import Tables
from forecast.errors import ConfigError, OutputError
from forecast.models.adapters.bank import HEAD, AdapterBank
from forecast.scoring.job import ScoreJob
from forecast.scoring.manifests import ForecastKey
from forecast.scoring.parts import Output
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
LAST = datetime(2024, 1, 1) + timedelta(days=159)
"""The last row of most series."""


def score(
    artifact: Artifact,
    found: Loaded | pl.DataFrame,
    folder: Path,
    cutoff: datetime | None = None,
    names: dict[str, str] = NAMES,
    **settings: Any,
) -> Output:
    """Score a panel, or a table, as of a cutoff: nothing after it is there yet."""
    if isinstance(found, pl.DataFrame):
        cutoff = cutoff or found["timestamp"].max()  # type: ignore[assignment]
        found = artifact.read(found.filter(pl.col("timestamp") <= cutoff).lazy())
    given = {"shard_size": 3, "state": str(folder / "state")} | settings
    with ExitStack() as stack:
        for name in ("out", "state"):
            stack.enter_context(locked(folder / name))
        job = ScoreJob(artifact, found, ScoreSettings(**given), ScoreOutput(path=str(folder / "out")), names)
        return job.write(found.panel.last_index if cutoff is None else found.panel.grid.floor(cutoff))


def numbers(output: Output) -> np.ndarray:
    """The forecasts of one cutoff, by series and step."""
    folder = output.manifest.parents[1] / "forecasts" / ForecastKey.of(output.content).folder
    return (
        pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in sorted(folder.iterdir())])
        .select("mean", pl.col("^q.*$"))
        .to_numpy()
    )


def counts(carried: int, new: int, recomputed: int) -> dict[str, int]:
    return {"carried": carried, "new": new, "recomputed": recomputed}


def test_a_week_of_nights_forecasts_what_a_state_made_at_once_does(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    artifact, table = trained.artifact, weekly_table
    # s05 begins during the week, s07 has stopped long ago.
    born = LAST - timedelta(days=3)
    table = table.filter((pl.col("series_id") != "s05") | (pl.col("timestamp") >= born))
    found = [score(artifact, table, tmp_path, LAST - timedelta(days=k)) for k in range(6, -1, -1)]
    assert [one.content["state"] for one in found] == [
        counts(0, 7, 0), counts(7, 0, 0), counts(7, 0, 0), counts(7, 1, 0), *[counts(8, 0, 0)] * 3,
    ]  # fmt: skip
    once = score(artifact, table, tmp_path / "once")
    assert once.content["state"] == counts(0, 8, 0)
    assert (once.content["sources"], once.content["data_digest"]) == (
        found[-1].content["sources"],
        found[-1].content["data_digest"],
    )
    np.testing.assert_allclose(numbers(found[-1]), numbers(once), rtol=1e-5, atol=1e-5)
    without = score(artifact, table, tmp_path / "without", state=None)
    assert without.content["state"] == {}
    assert without.content["key"] != once.content["key"]
    assert np.abs(numbers(without) - numbers(once)).max() > 1e-3
    # Nothing is left but the last state.
    index = json.loads((tmp_path / "state/phase-000/state.json").read_text())
    assert {path.name for path in (tmp_path / "state/phase-000").iterdir()} == {"state.json", *index["parts"]}
    assert index["cutoff"] == LAST.isoformat()


def test_revised_and_late_rows_are_recomputed_and_what_comes_within_the_last_segment_is_not(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    def at(name: str, back: int) -> pl.Expr:
        return (pl.col("series_id") == name) & (pl.col("timestamp") == LAST - timedelta(days=back))

    table = weekly_table.filter(~at("s02", 5))
    # A row of s03 is missing, and of s04 the target of the cutoff, which is not in the state yet.
    early = table.filter(~at("s03", 9)).with_columns(target=pl.when(~at("s04", 1)).then("target"))
    score(trained.artifact, early, tmp_path, LAST - timedelta(days=1))
    late = (
        table.with_columns(target=pl.when(at("s01", 30)).then(pl.col("target") + 1).otherwise("target"))
        .with_columns(rain=pl.when(at("s06", 20)).then(7.0).otherwise("rain"))
        .with_columns(promo=pl.when(at("s00", 2)).then(1 - pl.col("promo")).otherwise("promo"))
    )
    found = score(trained.artifact, late, tmp_path)
    assert found.content["state"] == counts(4, 0, 4)
    once = score(trained.artifact, late, tmp_path / "once")
    np.testing.assert_allclose(numbers(found), numbers(once), rtol=1e-5, atol=1e-5)


def test_a_series_that_has_stopped_is_carried_and_goes_on(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    last = pl.col("timestamp") > LAST - timedelta(days=10)
    table = weekly_table.filter((pl.col("series_id") != "s02") | ~last | (pl.col("timestamp") == LAST))
    table = table.with_columns(pl.col("rain", "promo").fill_null(0.0))
    for back in (4, 3, 2):
        found = score(trained.artifact, table, tmp_path, LAST - timedelta(days=back))
    assert found.content["state"] == counts(8, 0, 0)
    again = score(trained.artifact, table, tmp_path)
    assert again.content["state"] == counts(8, 0, 0)
    once = score(trained.artifact, table, tmp_path / "once")
    np.testing.assert_allclose(numbers(again), numbers(once), rtol=1e-5, atol=1e-5)


def test_an_older_cutoff_is_recomputed_and_leaves_the_state_alone(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    score(trained.artifact, weekly_table, tmp_path)
    index = tmp_path / "state/phase-000/state.json"
    before = index.read_bytes()
    found = trained.artifact.read(weekly_table.lazy())
    old = score(trained.artifact, found, tmp_path, LAST - timedelta(days=40))
    assert old.content["state"] == counts(0, 0, old.content["series"]["forecast"])
    assert index.read_bytes() == before
    then = score(trained.artifact, found, tmp_path / "then", LAST - timedelta(days=40))
    np.testing.assert_allclose(numbers(old), numbers(then), rtol=1e-5, atol=1e-5)
    # The same cutoff again, from the state alone: the same bits.
    first = numbers(score(trained.artifact, found, tmp_path))
    again = score(trained.artifact, found, tmp_path, force=True)
    assert again.content["state"] == counts(8, 0, 0)
    np.testing.assert_array_equal(numbers(again), first)


def bank(kind: str) -> AdapterBank:
    """Changes of s01."""
    if kind == HEAD:
        return AdapterBank(kind, ["s01"], {"weight": torch.full((1, 1 + 7 + 8, 7), 0.1), "width": torch.ones(1)})
    shape = {"bias": (1, 7, 9), "embedding": (1, 128)}.get(kind, (1, 1))
    return AdapterBank(kind, ["s01"], {kind: torch.full(shape, 0.1), "blend": torch.ones(1)})


@pytest.mark.parametrize("kind", [HEAD, "bias", "embedding"])
def test_a_fine_tuned_series_goes_on_too(
    trained: FitResult, weekly_loaded: Loaded, weekly_table: pl.DataFrame, tmp_path: Path, kind: str
) -> None:
    tuned = trained.artifact.with_bank(bank(kind), trained_until=0, parent_digest="x")
    score(tuned, weekly_table, tmp_path, LAST - timedelta(days=2))
    made = score(tuned, weekly_loaded, tmp_path)
    assert made.content["sources"] == {"fine_tuned": 1, "pretrained": 7}
    assert made.content["state"] == counts(8, 0, 0)
    once = score(tuned, weekly_loaded, tmp_path / "once")
    np.testing.assert_allclose(numbers(made), numbers(once), rtol=1e-5, atol=1e-5)
    base = score(trained.artifact, weekly_loaded, tmp_path / "base")
    changed = np.abs(numbers(once) - numbers(base)).reshape(8, -1).max(1) > 1e-3
    assert changed.tolist() == [False, True, *[False] * 6]


def damage(folder: Path) -> None:
    part = sorted(folder.glob("part-*"))[1]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)


def reformat(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def cut(folder: Path) -> None:
    (folder / "state.json").write_text('{"format_ver')


@pytest.mark.parametrize(
    ("what", "names", "expected", "message"),
    [
        (None, {"model_digest": "other"}, counts(0, 8, 0), "is of another model"),
        (reformat, {}, counts(0, 8, 0), "has format version 99, this program reads 2"),
        (cut, {}, counts(0, 8, 0), "can't be read"),
        (damage, {}, counts(5, 3, 0), "has lost or damaged part-00001-"),
    ],
)
def test_a_state_that_can_not_be_used_is_made_anew_and_that_is_said(
    trained: FitResult,
    weekly_table: pl.DataFrame,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: Callable[[Path], None] | None,
    names: dict[str, str],
    expected: dict[str, int],
    message: str,
) -> None:
    score(trained.artifact, weekly_table, tmp_path, LAST - timedelta(days=1))
    if what:
        what(tmp_path / "state/phase-000")
    with caplog.at_level(logging.WARNING):
        found = score(trained.artifact, weekly_table, tmp_path, names=NAMES | names)
    assert found.content["state"] == expected
    assert message in caplog.text
    assert "it is not used, and made anew from the history" in caplog.text
    # From then on it is used again.
    again = score(trained.artifact, weekly_table, tmp_path, names=NAMES | names, force=True)
    assert again.content["state"] == counts(8, 0, 0)


INDEX_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {name}": lambda index, name=name: index.pop(name) for name in ("cutoff_index", "parts", "model_digest")},
    **{
        f"{name} is {value!r}": lambda index, name=name, value=value: index.update({name: value})
        for name in ("cutoff_index", "parts", "model_digest")
        for value in (None, "x", [1], {"a": 1}, 1.5, 10**30, True)
        if not (name == "model_digest" and value == "x")
    },
    "a part is null": lambda index: index["parts"].update({next(iter(index["parts"])): None}),
    "a part elsewhere": lambda index: index["parts"].update({"../part": next(iter(index["parts"].values()))}),
    **{
        f"no {name} of parts": lambda index, name=name: [part.pop(name) for part in index["parts"].values()]
        for name in ("sha256", "first", "last")
    },
}


def test_no_index_that_is_not_whole_is_a_traceback(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    score(trained.artifact, weekly_table, tmp_path)
    path = tmp_path / "state/phase-000/state.json"
    whole = path.read_bytes()
    for name, change in INDEX_CHANGES.items():
        index = json.loads(whole)
        change(index)
        path.write_text(json.dumps(index))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            result = score(trained.artifact, weekly_table, tmp_path, force=True)
        assert result.content["state"] == counts(0, 8, 0), name
        assert "it is not used, and made anew from the history" in caplog.text, name
        assert path.read_bytes() == whole, name
    for content in (b"[]", b"7", b"null", b"[" * 100_000, b"\xff\xfe", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert score(trained.artifact, weekly_table, tmp_path, force=True).content["state"] == counts(0, 8, 0)
        assert path.read_bytes() == whole


def test_a_part_whose_hash_is_right_and_whose_content_is_not_is_made_anew(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    score(trained.artifact, weekly_table, tmp_path)
    folder = tmp_path / "state/phase-000"
    whole = (folder / "state.json").read_bytes()
    name = sorted(json.loads(whole)["parts"])[1]
    part = (folder / name).read_bytes()
    tensors = safetensors.torch.load(part)
    n_tried = 0
    for field, values in tensors.items():
        for other in (
            None,
            values[:1],
            values[None],
            values.double() if values.is_floating_point() else values.float(),
        ):
            changed = {key: kept.contiguous() for key, kept in tensors.items() if key != field}
            if other is not None:
                if other.dtype == values.dtype and (other.shape == values.shape or field == "series_id"):
                    continue  # Names are their bytes, in whatever shape.
                changed[field] = other.contiguous()
            content = safetensors.torch.save(changed)
            index = json.loads(whole)
            index["parts"][name]["sha256"] = hashlib.sha256(content).hexdigest()
            (folder / "state.json").write_text(json.dumps(index))
            (folder / name).write_bytes(content)
            result = score(trained.artifact, weekly_table, tmp_path, force=True).content["state"]
            assert result == counts(5, 3, 0), (field, other)
            assert (folder / name).read_bytes() == part
            n_tried += 1
    assert n_tried > 15


def test_cutoffs_within_a_segment_have_a_state_each(
    train: Callable[..., FitResult], weekly_loaded: Loaded, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    artifact = train(weekly_loaded, model={"segment_length": 7, "hidden_size": 8}).artifact
    found = [score(artifact, weekly_table, tmp_path, LAST - timedelta(days=k)) for k in range(8, -1, -1)]
    assert [one.content["state"] for one in found] == [*[counts(0, 8, 0)] * 7, *[counts(8, 0, 0)] * 2]
    assert len(list((tmp_path / "state").glob("phase-*"))) == 7
    once = score(artifact, weekly_table, tmp_path / "once")
    np.testing.assert_allclose(numbers(found[-1]), numbers(once), rtol=1e-5, atol=1e-5)


def test_a_state_is_refused_where_it_can_not_be(
    train: Callable[..., FitResult], trained: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    tuned = trained.artifact.with_bank(bank("lora"), trained_until=0, parent_digest="x")
    with pytest.raises(ConfigError, match=r"score.state: .*finetune.kind=lora .*one of head, bias, embedding$"):
        score(tuned, weekly_loaded, tmp_path)
    artifact = train(weekly_loaded, model={"attention": True}).artifact
    with pytest.raises(ConfigError, match=r"score.state: attention .*; leave score.state out, or train .*attention=f"):
        score(artifact, weekly_loaded, tmp_path)
    with pytest.raises(ValueError, match="state and runtime=onnx are both given"):
        ScoreSettings(state="x", runtime="onnx")
    config = {"data": {"path": "x"}, "output": {"path": "out"}, "score": {"state": "./out"}}
    with pytest.raises(ConfigError, match=r"score.state and output.path are the same folder"):
        load(ScoreConfig, config)
    with locked(tmp_path, "score.state"), pytest.raises(OutputError, match=r"another job .* another score.state$"):  # noqa: SIM117
        with locked(tmp_path, "score.state"):
            pass


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file, of manifests without the time at which they were written."""
    return {str(path.relative_to(folder)): _lasting(path) for path in folder.rglob("*") if path.is_file()}


def _lasting(path: Path) -> bytes:
    if path.parent.name != "manifests":
        return path.read_bytes()
    return json.dumps(json.loads(path.read_text()) | {"written_at": None}).encode()


def test_a_kill_at_any_moment_leaves_a_state_that_goes_on_as_if_nothing_had_been(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    """While parts are written (4), just before and after the state is put in place (15, 17), within the output (19)."""
    artifact = trained.artifact
    artifact.save(tmp_path / "model")
    prepare(Tables(weekly_table.lazy()), artifact.data, 7, tmp_path / "panel")
    opened = artifact.open(SourceConfig(path=str(tmp_path / "panel")))
    kills = [4, 15, 17, 19, 99]
    for kill in kills:
        score(artifact, weekly_table, tmp_path / str(kill), LAST - timedelta(days=1))
    codes = killed_at(kills, tmp_path / "model", tmp_path / "panel", tmp_path, NAMES, state="state")
    assert codes == [*[-signal.SIGKILL] * (len(kills) - 1), 0]
    undisturbed = files(tmp_path / "99")
    assert json.loads((tmp_path / "99/state/phase-000/state.json").read_text())["cutoff"] == LAST.isoformat()
    moved = set()
    for kill in kills[:-1]:
        folder = tmp_path / str(kill)
        index = json.loads((folder / "state/phase-000/state.json").read_text())
        moved.add(index["cutoff"])
        assert all((folder / "state/phase-000" / name).exists() for name in index["parts"])
        again = score(artifact, opened, folder)
        assert not again.was_complete
        assert files(folder) == undisturbed, kill
    assert moved == {LAST.isoformat(), (LAST - timedelta(days=1)).isoformat()}


def test_a_state_whose_output_was_not_written_gives_the_same_output(
    trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    """As when a database goes away just then: the next try begins at the state of its own cutoff."""
    score(trained.artifact, weekly_table, tmp_path, LAST - timedelta(days=1))
    once = replace(score(trained.artifact, weekly_table, tmp_path))
    (tmp_path / "out/manifests").rename(tmp_path / "gone")
    for path in tmp_path.glob("out/*/2024-06-08*/*"):
        path.unlink()
    again = score(trained.artifact, weekly_table, tmp_path)
    assert again.content["state"] == counts(8, 0, 0)
    assert again.content["files"] == once.content["files"]
