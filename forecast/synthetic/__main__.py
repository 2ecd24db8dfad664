"""`python -m forecast.synthetic [FILE.png]`: a picture of thirty synthetic series, three of each family."""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from forecast.synthetic.stream import Stream

stream = Stream(seed=11, n_series=512, context=256, horizon=48)
batch = stream.batch(0)
figure, axes = plt.subplots(10, 3, figsize=(11, 16))
for family, row in enumerate(axes):
    members = np.flatnonzero(batch.family == family)
    lengths = batch.length[members]
    # A short, a middling and a long one.
    for axis, member in zip(row, members[np.argsort(lengths)][[3, len(members) // 2, -2]], strict=True):
        values = np.where(batch.observed[member], batch.values[member], np.nan)
        steps = np.arange(len(values)) - stream.context
        past = slice(-stream.horizon - int(batch.length[member]), -stream.horizon)
        axis.plot(steps[past], values[past], color="#1f4e79", linewidth=0.7)
        axis.plot(steps[-stream.horizon - 1 :], values[-stream.horizon - 1 :], color="#d1495b", linewidth=0.7)
        season = "/".join(
            str(length) for length in (batch.season_length[member], batch.second_season[member]) if length
        )
        axis.set_title(f"{stream.families[family]}, season {season}", fontsize=7, pad=2)
        axis.set_yticks([])
        axis.tick_params(labelsize=5, length=1)
        axis.spines[["top", "right", "left"]].set_visible(False)
figure.tight_layout(pad=0.4)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "synthetic.png", dpi=72, pil_kwargs={"optimize": True})
