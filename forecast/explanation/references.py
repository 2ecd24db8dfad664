"""References of attributions: windows spread over the panel, baselines from them, and interpolated embeddings."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from forecast.data.panel import Panel
from forecast.data.windows import WindowIndex
from forecast.models.inputs.shape import NetworkShape


def spread_windows(panel: Panel, cutoff: int, count: int, shape: NetworkShape) -> WindowIndex:
    """Return `count` windows evenly spread over all series up to grid index `cutoff`, with full context if possible."""
    last = np.minimum(cutoff - panel.start, panel.lengths - 1)
    available = np.where(last >= 0, np.maximum(last - shape.context_length + 2, 1), 0)
    ends = np.cumsum(available)
    chosen = np.unique(np.linspace(0, ends[-1] - 1, count).astype(np.int64))
    series = np.searchsorted(ends, chosen, side="right")
    back = chosen - (ends - available)[series]
    return WindowIndex(series, last[series] - back)


def mean_baseline(
    inputs: Tensor, values: Tensor, references: Tensor, has_begun: Tensor | None, coded: Sequence[int] = ()
) -> Tensor:
    """Return the mean of each column over the reference windows; `inputs` for codes, and where `values` are missing."""
    present = torch.isfinite(references)
    if has_begun is not None:
        present &= has_begun[..., None]
    flat, count = torch.where(present, references, 0.0).flatten(0, -2), present.flatten(0, -2).sum(0)
    mean = torch.where(count > 0, flat.sum(0) / count.clamp(min=1), inputs)
    unchanged = ~torch.isfinite(values)
    if coded:
        is_code = torch.zeros(inputs.shape[-1], dtype=torch.bool)
        is_code[: len(coded)] = torch.tensor(coded) > 0
        unchanged = unchanged | is_code
    return torch.where(unchanged, inputs, mean)


def interpolation_hook(shares: dict[str, Tensor], name: str, column: int, codes: Tensor) -> Callable[..., Tensor]:
    """Return a hook that interpolates the output of an embedding between the mean over `codes` and its own value."""

    def interpolate(table: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(table, nn.Embedding)
        mean = table.weight[codes].mean(0) if len(codes) else torch.zeros_like(table.weight[0])
        share = shares[name][..., column]
        if share.ndim == 2:  # Past covariates end with the context.
            share = share[:, : arguments[0].shape[1]]
        return mean + share[..., None] * (output - mean)

    return interpolate
