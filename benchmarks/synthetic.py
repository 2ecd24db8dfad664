"""Synthetic series: points per core-second, by family and of the whole stream."""

import time

from forecast.synthetic import Stream


def main() -> None:
    """Print visible points (history and horizon) and series per second of CPU, without and with the later layers."""
    for name in Stream().families:
        print(rate(name, Stream(seed=1, shares={name: 1.0}, artefacts=False, mixing=0)))
    print(rate("all", Stream(seed=1, artefacts=False, mixing=0)))
    print(rate("all, mixed, with artefacts", Stream(seed=1, curriculum=0)))
    print(rate("the same, batches of 64", Stream(seed=1, n_series=64, curriculum=0)))


def rate(name: str, stream: Stream) -> str:
    """The speed of a stream over six batches, after one to warm up."""
    stream.batch(0)
    begin = time.process_time()
    points = sum(int(stream.batch(index).length.sum()) + stream.n_series * stream.horizon for index in range(1, 7))
    seconds = time.process_time() - begin
    return f"{name:28} {points / seconds:12,.0f} points/s {6 * stream.n_series / seconds:8,.0f} series/s"
