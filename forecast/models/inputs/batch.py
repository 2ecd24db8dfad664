"""The panel on a device, and the one gather that makes a batch of windows."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from forecast.data.ingest.outliers import NO_INPUT, NO_TARGET, outlier_mask
from forecast.data.panel import RESOLUTION, Panel
from forecast.models.inputs.transform import to_model
from forecast.names import MAX_MAGNITUDE

# The share of a device's free memory that a panel may fill; the remainder is for the network and its batches.
_DEVICE_SHARE = 0.5
PANEL_BUFFERS: Final = (
    "offsets",
    "start",
    "lengths",
    "target",
    "outlier",
    "past",
    "known",
    "calendar",
    "clock_shift",
    "static_categories",
    "static_numbers",
    "horizon",
    "calendar_start",
)
"""What `PanelTensors` holds of a panel, the target in float64; `horizon` and `calendar_start` are numbers."""
_LEAST_UNIT = MAX_MAGNITUDE / torch.finfo(torch.float32).max


class Batch(NamedTuple):
    """Windows of `context + span - 1 + horizon` steps: `span` consecutive origins, the first after `context` steps."""

    target: Float[Tensor, "batch time"]
    """0 where not observed."""
    observed: Bool[Tensor, "batch time"]
    past: Float[Tensor, "batch time past"]
    """NaN where missing."""
    known: Float[Tensor, "batch time known"]
    """NaN where missing; the user's columns, then the calendar's. Zero where `there` is not."""
    there: Bool[Tensor, "batch time"]
    """Whether the step exists: not before the start of a series, nor in an hour that the clock skips."""
    static_categories: Int[Tensor, "batch categorical"]
    static_numbers: Float[Tensor, "batch numeric"]
    outcome: Float[Tensor, "batch time"] | None = None
    """Targets including outliers, NaN where missing; None if they are `target` where `observed`. Outliers are targets
    but no inputs."""
    level: Float[Tensor, " batch"] | None = None
    """Level subtracted from the target of each window, float64; None if nothing was (`PanelTensors`)."""
    weight: Float[Tensor, "batch time"] | None = None
    """What an error at each step counts, on average 1; None if each counts the same."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `change` applied to each tensor."""
        return Batch(*(None if values is None else change(values) for values in self))  # type: ignore[arg-type]

    def rows(self, index: Int[Tensor, " row"] | slice) -> "Batch":
        """Return some of the windows."""
        return self.map(lambda values: values[index])

    def since(self, step: int) -> "Batch":
        """Return the windows without their first steps."""
        return self.steps(slice(step, None))

    def steps(self, steps: slice) -> "Batch":
        """Return some neighbouring steps of the windows."""
        timeless = self.static_categories, self.static_numbers, self.level
        return self.map(lambda values: values if any(values is tensor for tensor in timeless) else values[:, steps])

    def expand(self, count: int) -> "Batch":
        """Return one window repeated `count` times."""
        return self.map(lambda values: values.expand(count, *values.shape[1:]))

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs of a network, by name."""
        return dict(zip(self._fields[:7], self[:7], strict=True))


class PanelTensors:
    """A panel's buffers as tensors, on a device or, where they are too large for it, on the host.

    Windows are views: memory does not depend on their number. On the host the buffers are those of the panel, never
    written to, so that a memory-mapped panel may be larger than the memory.

    Where a panel holds its target in float64, because float32 has not enough digits for the level of some series, the
    first value of a window of such a series is subtracted in float64 (`Batch.level`); the difference fits into float32.
    Outliers (`forecast.data.ingest.outliers`) are hidden from the inputs.
    """

    def __init__(
        self,
        panel: Panel,
        device: torch.device | str = "cpu",
        *,
        unit: float = 0.0,
        levels: bool = True,
        outliers: bool = True,
    ) -> None:
        self.unit = unit
        """Unit of the logarithmic scale on which batches hold the target; 0 for a linear scale."""
        self.levels = levels and panel.target.dtype == np.float64
        """Whether levels are subtracted from windows: not for distributions of the target itself."""
        # `outliers` are hidden from the inputs, except for classes, whose codes have no size.
        self.device = torch.device(device)
        """The device of batches."""
        # In units of `unit`, values may exceed the range of float32.
        self._wide = 0 < unit < _LEAST_UNIT
        self.horizon = panel.horizon
        self.calendar_start = panel.calendar_start
        self.n_calendar = panel.calendar.shape[0]
        n_bytes = panel.target.nbytes + panel.past.nbytes + panel.known.nbytes
        self._home = self.device if n_bytes <= _DEVICE_SHARE * _free_memory(self.device) else torch.device("cpu")

        def put(values: np.ndarray) -> Tensor:
            return _shared(values).to(self._home)

        self.offsets = put(panel.offsets)
        self.start = put(panel.start)
        self.lengths = put(panel.lengths)
        self.target = put(panel.target)
        mask = outlier_mask(panel, unit) if outliers else None
        self.outlier = None if mask is None else put(mask)
        self.past = put(panel.past)
        self.weight = put(_normalised(panel.weight)) if len(panel.weight) else None
        self.known = put(panel.known)
        self.calendar = put(panel.calendar)
        self.clock_shift = put(panel.clock_shift) if panel.clock_shift.any() else None
        self.static_categories = put(panel.static_categories)
        self.static_numbers = put(panel.static_numbers)

    @classmethod
    def of_buffers(cls, buffers: Mapping[str, Tensor], network: Any) -> Self:
        """Return a panel of tensors on the host, by the names of PANEL_BUFFERS, for a trace of what forecasts it."""
        panel = cls.__new__(cls)
        panel.unit = network.shape.unit
        panel.levels = not network.head.positive
        panel.device = panel._home = torch.device("cpu")
        panel._wide = True
        panel.weight = None
        panel.n_calendar = network.shape.n_calendar
        for name in PANEL_BUFFERS:
            setattr(panel, name, buffers[name])
        return panel

    @classmethod
    def of(cls, panel: Panel, network: Any, device: torch.device | str = "cpu") -> Self:
        """Return the panel on the target scale of the network."""
        shape = network.shape
        return cls(panel, device, unit=shape.unit, levels=not network.head.positive, outliers=not shape.n_classes)

    def __deepcopy__(self, memo: object) -> "PanelTensors":
        """Return this object: the buffers never change, and copies of a module may share them."""
        return self

    def gather(
        self,
        series: Int[Tensor, " batch"],
        first_origin: Int[Tensor, " batch"],
        limit: Int[Tensor, " batch"],
        *,
        context: int,
        span: int,
        horizon: int,
    ) -> Batch:
        """Return the windows whose first origin is step `first_origin` of `series`, on the device.

        Targets and past covariates from step `limit` on are hidden, whatever the panel holds there.
        """
        begin = torch.full_like(first_origin, 1 - context)
        return self.stretch(series, first_origin, limit, begin, context + span - 1 + horizon)

    def stretch(
        self,
        series: Int[Tensor, " batch"],
        origin: Int[Tensor, " batch"],
        limit: Int[Tensor, " batch"],
        begin: Int[Tensor, " batch"],
        time: int,
    ) -> Batch:
        """Return `time` steps of each series as `gather` does, from `begin` on, counted from step `origin`."""
        series, origin, limit, begin = (values.to(self._home) for values in (series, origin, limit, begin))
        first, ahead, present = self._steps(series, origin, begin, time)
        consecutive = not _traces() and (self.clock_shift is None or bool((ahead.diff(dim=1) == 1).all()))
        valid = present & (ahead >= -first[:, None])
        visible = valid & (ahead < (torch.minimum(limit, self.lengths[series]) - first)[:, None])
        offset = self.offsets[series] + first

        def windows(buffer: Tensor, begin: Tensor) -> Tensor:
            return _windows(buffer, begin, ahead, consecutive=consecutive)

        values = windows(self.target[None], offset)[0].masked_fill(~visible, torch.nan)
        outlier = None
        if self.outlier is not None:
            outlier = windows(self.outlier[None], offset)[0]
            values = values.masked_fill(outlier >= NO_TARGET, torch.nan)
            hidden = outlier == NO_INPUT
            outlier = hidden if _traces() or bool((visible & hidden).any()) else None
        level = _levels(values) if self.levels else None
        target = to_model(values.double() if self._wide else values, self.unit)
        if level is not None:
            level = to_model(level, self.unit)
            target = target - level[:, None]
        target = target.float()
        observed = torch.isfinite(target)
        outcome = None
        if outlier is not None:
            outcome, observed = target, observed & ~outlier

        past = windows(self.past, offset).masked_fill(~visible, torch.nan)
        known = self._calendar(self.start[series] - self.calendar_start + first, ahead, consecutive=consecutive)
        if len(self.known):
            # Each series has `self.horizon` more steps of known covariates than of the target.
            covered = valid & (ahead < (self.lengths[series] + self.horizon - first)[:, None])
            columns = windows(self.known, offset + series * self.horizon).masked_fill(~covered, torch.nan)
            known = torch.cat([columns, known])
        if _traces() or self._home.type != "cpu" or not valid.all():
            known = known.masked_fill(~valid, 0.0)
        batch = Batch(
            target=target.masked_fill(~observed, 0.0),
            observed=observed,
            past=past.permute(1, 2, 0),
            known=known.permute(1, 2, 0),
            there=valid,
            static_categories=self.static_categories[series],
            static_numbers=self.static_numbers[series],
            outcome=outcome,
            level=level,
            weight=None if self.weight is None else windows(self.weight, offset)[0].masked_fill(~visible, 0.0),
        )
        return batch.map(lambda values: values.to(self.device))

    def _calendar(
        self, begin: Int[Tensor, " batch"], ahead: Int[Tensor, "row time"], *, consecutive: bool
    ) -> Float[Tensor, "row batch time"]:
        """Return the calendar at some columns; one window for all on a host, where all are of the same timestamps."""
        one_window = self._home.type == "cpu" and not _traces()
        if one_window and (begin == begin[:1]).all() and (ahead == ahead[:1]).all():
            return _windows(self.calendar, begin[:1], ahead[:1], consecutive=consecutive).expand(-1, len(begin), -1)
        return _windows(self.calendar, begin, ahead, consecutive=consecutive)

    def steps(
        self,
        series: Int[Tensor, " batch"],
        first_origin: Int[Tensor, " batch"],
        first_position: Int[Tensor, " batch"],
        time: int,
    ) -> Int[Tensor, "batch time"]:
        """Return the step of the series at each of `time` positions (0 is the first origin)."""
        first, ahead, _ = self._steps(series, first_origin, first_position, time)
        return first[:, None] + ahead

    def _steps(
        self,
        series: Int[Tensor, " batch"],
        first_origin: Int[Tensor, " batch"],
        first_position: Int[Tensor, " batch"],
        time: int,
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, "row time"], Bool[Tensor, "row time"]]:
        """Return the first of `time` steps of each series, how far each is ahead of it, and whether it exists.

        The last two have one row if it is the same for all series. Positions (0 is the first origin) are hours (or
        minutes) of the local clock, so that one season back is the same time of day across clock changes: a skipped
        hour has no step, and a repeated hour counts once.
        """
        positions = torch.arange(time, device=self._home)[None]
        if self.clock_shift is None:
            return first_origin + first_position, positions, torch.ones_like(positions, dtype=torch.bool)
        step = first_origin[:, None] + first_position[:, None] + positions
        start = self.start[series, None] - self.calendar_start
        reference = self._shift_at(start + first_origin[:, None])
        local_step = step + reference - self._shift_at(start + step)
        present = local_step + self._shift_at(start + local_step) == step + reference
        return local_step[:, 0], local_step - local_step[:, :1], present

    def _shift_at(self, column: Tensor) -> Tensor:
        assert self.clock_shift is not None
        return self.clock_shift[_inside(column, self.clock_shift.shape[0])]

    def horizon_positions(
        self, series: Int[Tensor, " batch"], cutoff: Int[Tensor, " batch"], horizon: int
    ) -> Tensor | None:
        """Return the position after the cutoff (0 is the first) of each of the next `horizon` steps, [batch, horizon].

        None if positions are consecutive. Where clocks skip an hour in the horizon, the last position occurs twice.
        """
        if self.clock_shift is None:
            return None
        column = (self.start[series.to(self._home)] - self.calendar_start + cutoff.to(self._home))[:, None]
        ahead = torch.arange(1, horizon + 1, device=self._home)
        position = ahead + self._shift_at(column + ahead) - self._shift_at(column)
        return (position - 1).clamp(0, horizon - 1).to(self.device)


def _normalised(weight: np.ndarray) -> np.ndarray:
    """Return weights whose mean, of those above 0, is 1, [1, N]: their unit does not matter; 0 where missing."""
    weight = np.nan_to_num(np.asarray(weight), nan=0.0).astype(np.float64)
    counted = weight[weight > 0]
    return (weight / counted.mean() if len(counted) else weight).astype(np.float32)


def _free_memory(device: torch.device) -> float:
    """Return the free bytes of a device; infinite for the host, which pages memory-mapped files."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def _levels(values: Float[Tensor, "batch time"]) -> Float[Tensor, " batch"] | None:
    """Return the level to subtract from each window (float64): its first value if float32 is too coarse, else 0.

    None if no window needs it.
    """
    observed = torch.isfinite(values)
    low, high = values.masked_fill(~observed, torch.inf).amin(1), values.masked_fill(~observed, -torch.inf).amax(1)
    rounding = torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    needed = (rounding > RESOLUTION * (high - low)) & observed.any(1)
    if not _traces() and not needed.any():
        return None
    first = values.gather(1, observed.int().argmax(1, keepdim=True))[:, 0]
    return torch.where(needed, first, 0.0)


def _traces() -> bool:
    """Return whether an ONNX graph is being made, which must hold for all panels."""
    return torch.onnx.is_in_onnx_export()


def _inside(index: Int[Tensor, "*axes"], size: int) -> Int[Tensor, "*axes"]:
    """Return the index, moved to the nearest entry of a buffer of this size; in a trace, the size is a tensor."""
    return torch.minimum(index.clamp(min=0), torch.as_tensor(size - 1)) if _traces() else index.clamp(0, size - 1)


def _shared(values: np.ndarray) -> Tensor:
    """Return a tensor that shares the array's memory on the host, read-only or not. It must not be written to."""
    if values.ndim and values.strides[-1] != values.itemsize:
        values = np.ascontiguousarray(values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(values)


def _windows(
    buffer: Float[Tensor, "row entry"],
    begin: Int[Tensor, " batch"],
    ahead: Int[Tensor, "line time"],
    *,
    consecutive: bool,
) -> Float[Tensor, "row batch time"]:
    """Return the entries of each row `ahead` of `begin`; outside the buffer an arbitrary one, which is to be masked.

    `consecutive` says whether each is one step after the one before.
    """
    size, length = buffer.shape[1], ahead.shape[1]
    if buffer.numel() == 0:
        return buffer.new_zeros(len(buffer), begin.shape[0], length)
    if _traces():
        return buffer[:, _inside(begin[:, None] + ahead, size)]
    if not consecutive or size < length or bool((begin < 0).any()) or bool((begin > size - length).any()):
        return buffer[:, _inside(begin[:, None] + ahead, size)]
    # One flat view of all rows (those of a shard have other series in between), so that windows are rows of it:
    # selecting along an inner axis would copy the whole view first.
    row = buffer.stride(0)
    flat = buffer.as_strided(((len(buffer) - 1) * row + size,), (1,))
    rows = torch.arange(len(buffer), device=begin.device)[:, None] * row
    windows = flat.unfold(0, length, 1).index_select(0, (rows + begin).flatten())
    return windows.view(len(buffer), len(begin), length)
