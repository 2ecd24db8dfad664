"""`python -m forecast.synthetic FILE.png`: a picture of thirty synthetic series, three of each family."""

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from forecast.synthetic.stream import SeriesBatch, Stream


def main(path: Path) -> None:
    """Write the picture: histories blue, horizons red; of each family a short, a middling and a long series."""
    stream = Stream(seed=11, n_series=512, context=256, horizon=48, curriculum=0)
    batch = stream.batch(0)
    figure, axes = plt.subplots(len(stream.families), 3, figsize=(11, 14))
    for family, row in enumerate(axes):
        members = np.flatnonzero(batch.family == family)
        members = members[np.argsort(batch.length[members], kind="stable")]
        for axis, member in zip(row, members[[4, len(members) // 2, -2]], strict=True):
            draw(axis, batch, int(member), stream)
    figure.tight_layout(pad=0.4)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=72)
    Image.open(buffer).convert("RGB").quantize(24).save(path, optimize=True)


def draw(axis: Axes, batch: SeriesBatch, member: int, stream: Stream) -> None:
    """Draw one series of a batch."""
    values = np.where(batch.observed[member], batch.values[member], np.nan)
    steps = np.arange(len(values)) - stream.context
    past = slice(stream.context - int(batch.length[member]), stream.context)
    axis.plot(steps[past], values[past], color="#1f4e79", linewidth=0.8)
    axis.plot(steps[past.stop - 1 :], values[past.stop - 1 :], color="#d1495b", linewidth=0.8)
    seasons = [batch.season_length[member], batch.second_season[member]]
    season = " and ".join(str(length) for length in seasons if length > 1) or "none"
    axis.set_title(f"{stream.families[batch.family[member]]}; season: {season}", fontsize=8, pad=2)
    axis.set_yticks([])
    axis.tick_params(labelsize=6, length=1)
    axis.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {__doc__}")
    main(Path(sys.argv[1]))
