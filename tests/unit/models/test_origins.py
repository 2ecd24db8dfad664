"""The origins that fine-tuning is fitted on: each once, as far apart as said, wherever segments begin."""

import pytest
import torch

from forecast.models.adapters.origins import chunking, origin_stride
from forecast.models.inputs.shape import NetworkShape


def shape(context: int, horizon: int, segment: int) -> NetworkShape:
    return NetworkShape(
        context_length=context,
        horizon=horizon,
        season_length=1,
        n_past=0,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
        segment_length=segment,
    )


@pytest.mark.parametrize(
    ("context", "segment", "every"), [(168, 24, 1), (168, 24, 8), (168, 24, 24), (168, 24, 48), (56, 1, 5), (6, 1, 7)]
)
@pytest.mark.parametrize("n_steps", [5, 100, 512])
def test_windows_have_every_so_many_steps_up_to_the_last_as_an_origin_once(
    context: int, segment: int, every: int, n_steps: int
) -> None:
    parts = chunking(shape(context, 48, segment), n_steps, every)
    assert parts.step % segment == 0
    origins = torch.arange(0, parts.span, parts.step)
    chunks = parts.span * torch.arange(parts.chunks)
    steps = (chunks[:, None, None] + parts.phases[:, None] + origins).flatten()
    ago = parts.total - 1 - steps
    assert sorted(ago.tolist()) == list(range(0, parts.total, every))
    assert n_steps <= parts.total < n_steps + parts.span


@pytest.mark.parametrize(
    ("horizon", "segment", "expected"),
    [(48, 24, 24), (168, 24, 96), (28, 1, 14), (28, 7, 14), (13, 1, 7), (2, 1, 1), (1, 24, 1)],
)
def test_origins_are_about_half_the_horizon_apart(horizon: int, segment: int, expected: int) -> None:
    assert origin_stride(shape(168, horizon, segment)) == expected
