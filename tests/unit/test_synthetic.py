"""The stream of synthetic series: what a batch holds, and that it can be drawn again."""

from itertools import islice

import numpy as np
import pytest

from forecast.errors import ConfigError
from forecast.synthetic import Stream


def test_a_batch_is_the_same_bytes_whatever_was_drawn_before() -> None:
    stream = Stream(seed=3, n_series=16, context=80, horizon=16)
    drawn = list(islice(stream.batches(), 3))
    stream.batch(500)
    resumed = next(Stream(seed=3, n_series=16, context=80, horizon=16).batches(start=2))
    for again in (resumed, stream.batch(2)):
        assert all(old.tobytes() == new.tobytes() for old, new in zip(drawn[2], again, strict=True))
    others = [drawn[0], drawn[1], stream.batch(500), Stream(seed=4, n_series=16, context=80, horizon=16).batch(2)]
    assert not any(np.array_equal(other.values, drawn[2].values) for other in others)


def test_sizes_and_shares_are_checked() -> None:
    with pytest.raises(ConfigError, match="horizon: must be at least 1"):
        Stream(horizon=0)
    with pytest.raises(ConfigError, match="synthetic series waves; there are"):
        Stream(shares={"waves": 1.0})
    with pytest.raises(ConfigError, match="one must be positive"):
        Stream(shares={"walks": 0.0})
