"""The gather against a loop that reads the panel one step at a time."""

import functools
import warnings
import zoneinfo
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.models.inputs import batch as module
from forecast.models.inputs.batch import Batch, PanelTensors

HORIZON = 3
LENGTHS = {"a": 30, "b": 1, "c": 12, "d": 2, "e": 17}
NEW_YORK = "America/New_York"
HOUR = timedelta(hours=1)
Load = Callable[..., Loaded]
Table = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def panel(table: Table, loaded: Load) -> Panel:
    """Series that start and end at different times, with gaps; known covariates reach past the end of some."""
    rng = np.random.default_rng(0)
    late = {"b": 4, "c": 11, "d": 28, "e": 3}
    target = {name: rng.normal(size=length) for name, length in LENGTHS.items()}
    target["a"][[3, 4, 20]] = np.nan
    target["e"][[1, 8]] = np.nan
    ahead = {"a": HORIZON, "b": 1, "c": HORIZON, "d": 0, "e": 2}
    target = {name: np.append(values, [np.nan] * ahead[name]) for name, values in target.items()}
    columns = {
        name: {key: rng.normal(size=len(values)) for key, values in target.items()} for name in ("p", "q", "k", "l")
    }
    columns["p"]["a"][5] = columns["k"]["c"][2] = np.nan
    columns = {name: {key: pl.Series(v).fill_nan(None) for key, v in by.items()} for name, by in columns.items()}
    statics = {"kind": {name: [name] * len(v) for name, v in target.items()}}
    statics["size"] = {name: [float(len(v))] * len(v) for name, v in target.items()}
    return loaded(
        table(target, late=late, **columns, **statics),
        HORIZON,
        past_covariates=["p", "q"],
        known_covariates=["k", "l"],
        static_covariates=["kind", "size"],
        max_reject_share=0.5,
    ).panel


def reference(
    panel: Panel, series: int, first_origin: int, limit: int, *, context: int, span: int, horizon: int
) -> dict[str, np.ndarray]:
    """One window, a step at a time. NaN where there is nothing."""
    length, offset = int(panel.lengths[series]), int(panel.offsets[series])
    rows: dict[str, list[np.ndarray]] = {"target": [], "past": [], "known": []}
    for step in range(first_origin - context + 1, first_origin + span + horizon):
        seen = 0 <= step < min(limit, length)
        rows["target"].append(panel.target[offset + step] if seen else np.float32(np.nan))
        rows["past"].append(panel.past[:, offset + step] if seen else np.full(2, np.nan, np.float32))
        begin = offset + series * panel.horizon
        held = panel.known[:, begin + step] if 0 <= step < length + panel.horizon else np.full(2, np.nan, np.float32)
        column = min(int(panel.start[series]) + step - panel.calendar_start, panel.calendar.shape[1] - 1)
        known = np.concatenate([held, panel.calendar[:, column]]) if step >= 0 else np.zeros(2 + len(panel.calendar))
        rows["known"].append(known)
    return {name: np.array(values, dtype=np.float32) for name, values in rows.items()}


def gather(panel: Panel, series: list[int], first: list[int], limit: list[int], **sizes: int) -> Batch:
    return PanelTensors(panel).gather(torch.tensor(series), torch.tensor(first), torch.tensor(limit), **sizes)


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], dict[str, int]]:
    sizes = {
        "context": draw(st.integers(1, 12)),
        "span": draw(st.integers(1, 6)),
        "horizon": draw(st.integers(1, HORIZON)),
    }
    window = st.integers(0, len(LENGTHS) - 1).flatmap(
        lambda s: st.tuples(st.just(s), st.integers(-8, list(LENGTHS.values())[s] + 8), st.integers(0, 40))
    )
    return draw(st.lists(window, min_size=1, max_size=6)), sizes


@given(windows())
@settings(max_examples=150)
def test_gather_equals_reading_step_by_step(
    panel: Panel, drawn: tuple[list[tuple[int, int, int]], dict[str, int]]
) -> None:
    picked, sizes = drawn
    batch = gather(panel, *(list(column) for column in zip(*picked, strict=True)), **sizes)
    last = panel.calendar.shape[1]
    for row, (series, first, limit) in enumerate(picked):
        expected = reference(panel, series, first, limit, **sizes)
        np.testing.assert_array_equal(batch.observed[row], np.isfinite(expected["target"]))
        np.testing.assert_array_equal(batch.target[row], np.nan_to_num(expected["target"]))
        np.testing.assert_array_equal(batch.past[row], expected["past"])
        # The panel has no calendar more than a horizon behind its end: nothing is forecast from there.
        begin = int(panel.start[series]) - panel.calendar_start + first - sizes["context"] + 1
        within = np.arange(begin, begin + len(expected["known"])) < last
        np.testing.assert_array_equal(batch.known[row][within], expected["known"][within])


def test_no_window_crosses_into_another_series(panel: Panel) -> None:
    other = PanelTensors(panel)
    row = panel.series_id.tolist().index("c")
    inside = (torch.arange(len(panel.target)) >= panel.offsets[row]) & (
        torch.arange(len(panel.target)) < panel.offsets[row + 1]
    )
    other.target, other.past = torch.where(inside, other.target, 1e6), torch.where(inside, other.past, 1e6)
    sizes = {"context": 20, "span": 4, "horizon": 3}
    for first in range(-5, 20):
        at = (torch.tensor([row]), torch.tensor([first]), torch.tensor([100]))
        assert max(float(other.gather(*at, **sizes).target.max()), 0) < 1e3
        assert float(other.gather(*at, **sizes).past.nan_to_num(0.0).max()) < 1e3


def test_what_lies_at_or_behind_the_limit_is_hidden(panel: Panel) -> None:
    batch = gather(panel, [0], [9], [10], context=10, span=5, horizon=3)
    assert batch.observed[0, :10].sum() == 8  # Two of the first ten steps are gaps.
    assert not batch.observed[0, 10:].any()
    assert not batch.target[0, 10:].any()
    assert batch.past[0, 10:].isnan().all()
    assert batch.known[0, 10:].isfinite().all()


def test_steps_before_the_start_are_masked(panel: Panel) -> None:
    batch = gather(panel, [1], [0], [1], context=4, span=1, horizon=2)
    assert batch.observed[0].tolist() == [False, False, False, True, False, False]
    assert batch.target[0, 3] == panel.target[panel.offsets[1]]
    assert not batch.known[0, :3].any()
    assert batch.past[0, :3].isnan().all()
    assert batch.there[0].tolist() == [False, False, False, True, True, True]


def test_a_cutoff_behind_the_end_sees_a_gap_and_the_calendar(table: Table, loaded: Load) -> None:
    panel = loaded(table({"long": np.arange(20.0), "short": np.arange(5.0)}), 3).panel
    batch = gather(panel, [1], [19], [20], context=18, span=1, horizon=3)
    assert batch.target[0].tolist() == [2.0, 3.0, 4.0, *[0.0] * 18]
    assert batch.observed[0].tolist() == [True] * 3 + [False] * 18
    torch.testing.assert_close(batch.known[0], torch.from_numpy(panel.calendar[:, 2:23].T), rtol=0, atol=0)


def test_windows_of_the_same_timestamps_share_one_calendar(table: Table, loaded: Load) -> None:
    panel = loaded(table({"early": np.arange(30.0), "late": np.arange(26.0)}, late={"late": 4}), 3).panel
    same, different = (gather(panel, [0, 1], [20, b], [21, b + 1], context=6, span=1, horizon=3) for b in (16, 17))
    assert same.known.stride(0) == 0
    for batch, begins in ((same, (15, 15)), (different, (15, 16))):
        for known, begin in zip(batch.known, begins, strict=True):
            torch.testing.assert_close(known, torch.from_numpy(panel.calendar[:, begin : begin + 9].T), rtol=0, atol=0)


def test_static_covariates_are_those_of_the_series(panel: Panel) -> None:
    batch = gather(panel, [4, 0], [3, 3], [9, 9], context=2, span=1, horizon=1)
    assert batch.static_categories[:, 0].tolist() == [5, 1]
    assert batch.static_numbers[:, 0].tolist() == [19.0, 33.0]


# --- where the buffers lie

EVERYWHERE = ([0, 2, 4, 1, 3, 2], [9, 3, 20, 0, 1, -4], [20, 9, 40, 1, 2, 5])
SIZES = {"context": 8, "span": 4, "horizon": 3}


def mapped(panel: Panel, folder: Path) -> Panel:
    """The panel with its buffers in files, mapped read-only."""
    arrays = {}
    for name in ("offsets", "start", "target", "past", "known", "calendar", "static_categories", "static_numbers"):
        np.save(folder / f"{name}.npy", getattr(panel, name))
        arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
    return replace(panel, **arrays)


def test_a_read_only_memory_mapped_panel_is_not_copied(panel: Panel, tmp_path: Path) -> None:
    on_disk = mapped(panel, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = PanelTensors(on_disk)
    for name in ("target", "past", "known", "calendar", "static_numbers"):
        array = getattr(on_disk, name)
        assert not array.flags.writeable
        assert np.shares_memory(getattr(tensors, name).numpy(), array), name
    made = tensors.gather(*map(torch.tensor, EVERYWHERE), **SIZES)
    for ours, theirs in zip(made, gather(panel, *EVERYWHERE, **SIZES), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_shard_gives_the_windows_of_the_whole_panel_and_is_not_copied(panel: Panel) -> None:
    shard = panel.rows(1, 4)
    tensors = PanelTensors(shard)
    for name in ("target", "past", "known"):
        assert np.shares_memory(getattr(tensors, name).numpy(), getattr(panel, name)), name
    for first in range(-3, 14):
        whole = gather(panel, [1, 2, 3], [first] * 3, [9, 9, 9], **SIZES)
        part = tensors.gather(torch.arange(3), torch.full((3,), first), torch.full((3,), 9), **SIZES)
        for ours, theirs in zip(part, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("device", ["meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_panel_too_large_for_the_device_stays_on_the_host(
    panel: Panel, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tensors of "meta" have a device and a shape, but no values.
    monkeypatch.setattr(module, "_free_memory", lambda _: 0.0)
    tensors = PanelTensors(panel, device)
    assert tensors.target.device.type == "cpu"
    made = tensors.gather(*map(torch.tensor, EVERYWHERE), **SIZES)
    for ours, theirs in zip(made.inputs.values(), gather(panel, *EVERYWHERE, **SIZES).inputs.values(), strict=True):
        assert ours.device.type == device
        assert ours.shape == theirs.shape
        if device != "meta":
            torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0, equal_nan=True)


# --- time zones whose clocks change

SPRING, AUTUMN = datetime(2024, 3, 10, 7), datetime(2024, 11, 3, 6)  # In UTC; 02:00 to 03:00, and 02:00 back to 01:00.


@pytest.fixture(scope="module")
def hourly(table: Table, loaded: Load) -> Callable[[datetime], Panel]:
    @functools.cache
    def panel_around(change: datetime) -> Panel:
        # The second series starts after the change. The value of a step is its number.
        series = {"a": np.arange(240.0), "b": 1000 + np.arange(60.0)}
        made = table(series, start=change - 120 * HOUR, every=HOUR, late={"b": 150}, time_zone=NEW_YORK)
        return loaded(made, 24, freq="1h").panel

    return panel_around


def local(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC).astimezone(zoneinfo.ZoneInfo(NEW_YORK)).replace(tzinfo=None)


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
@pytest.mark.parametrize("first", [95, 110, 118, 119, 120, 121, 130, 150, 200])
def test_windows_follow_the_local_clock(hourly: Callable[[datetime], Panel], change: datetime, first: int) -> None:
    panel = hourly(change)
    sizes = {"context": 48, "span": 5, "horizon": 24}
    batch = gather(panel, [0], [first], [240], **sizes)
    begin = change - 120 * HOUR
    origin = local(begin + first * HOUR)
    steps_at: dict[datetime, set[int]] = {}
    for step in range(240):
        steps_at.setdefault(local(begin + step * HOUR), set()).add(step)
    for position in range(76):
        at = origin + (position - 47) * HOUR
        steps = steps_at.get(at, set())
        if not steps:
            # Before the start, or an hour that the clock skips.
            assert not batch.observed[0, position], at
        else:
            assert batch.observed[0, position], at
            assert float(batch.target[0, position]) in steps, at
    # No window looks past its origin, or takes its last step from elsewhere.
    assert batch.target[0, 47] == first
    assert (batch.target[0, :48] <= first).all()


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
def test_each_series_has_its_own_clock_reference(hourly: Callable[[datetime], Panel], change: datetime) -> None:
    panel, sizes = hourly(change), {"context": 48, "span": 1, "horizon": 24}
    together = gather(panel, [0, 1, 0], [119, 20, 200], [240, 60, 240], **sizes)
    for row, (series, first, limit) in enumerate([(0, 119, 240), (1, 20, 60), (0, 200, 240)]):
        alone = gather(panel, [series], [first], [limit], **sizes)
        assert torch.equal(together.target[row], alone.target[0])
        assert torch.equal(together.known[row], alone.known[0])


@pytest.mark.parametrize("change", [SPRING, AUTUMN])
@pytest.mark.parametrize("cutoff", [90, 96, 97, 110, 118, 119, 120, 150])
def test_horizon_positions_are_hours_of_the_local_clock(
    hourly: Callable[[datetime], Panel], change: datetime, cutoff: int
) -> None:
    begin = change - 120 * HOUR
    found = PanelTensors(hourly(change)).horizon_positions(torch.tensor([0]), torch.tensor([cutoff]), 24)
    assert found is not None
    for ahead in range(1, 25):
        passed = local(begin + (cutoff + ahead) * HOUR) - local(begin + cutoff * HOUR)
        assert int(found[0, ahead - 1]) == min(max(passed // HOUR - 1, 0), 23), ahead


def test_horizon_positions_are_in_order_where_clocks_never_change(panel: Panel, hourly: Callable[..., Panel]) -> None:
    assert PanelTensors(panel).horizon_positions(torch.tensor([0]), torch.tensor([3]), 3) is None
    found = PanelTensors(hourly(SPRING)).horizon_positions(torch.tensor([1]), torch.tensor([4]), 24)
    assert found is not None
    assert found[0].tolist() == list(range(24))
