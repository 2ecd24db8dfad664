"""Next-character prediction: what an autoregressive decoder of classes is for."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import forecast as fc

SENTENCE = "the small black cat sleeps under a warm stove while rain falls on old roofs and birds sing"
WORDS = SENTENCE.split(" ")
HORIZON, LENGTH, CUTOFFS = 6, 300, range(240, 294, 6)
START = datetime(2024, 1, 1)


def text(rng: np.random.Generator) -> str:
    """Words in any order."""
    written = ""
    while len(written) < LENGTH:
        written += WORDS[rng.integers(len(WORDS))] + " "
    return written[:LENGTH]


def share_of_language(samples: list[str]) -> float:
    """Return the share of three neighbouring characters that some two words have."""
    pairs = " ".join(f"{one} {other}" for one in WORDS for other in WORDS)
    known = {pairs[k : k + 3] for k in range(len(pairs) - 2)}
    found = [sample[k : k + 3] in known for sample in samples for k in range(HORIZON - 2)]
    return float(np.mean(found))


@pytest.mark.trains
def test_paths_of_characters_are_words_and_their_marginals_beat_counting() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    times = [START + timedelta(hours=step) for step in range(LENGTH)]
    table = pl.concat(
        pl.DataFrame({"series_id": f"text {i}", "timestamp": times, "target": list(text(rng))}) for i in range(8)
    )
    data = {"freq": "1h", "calendar": False, "season_length": 1}
    size = {"hidden_size": 24, "decoder_size": 24, "dropout": 0.0, "segment_length": 1, "n_paths": 32}
    fit: dict[str, Any] = {"holdout_windows": 10, "validation_windows": 5, "accelerator": "cpu", "batch_size": 32}
    learning = {"origins": 6, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 100}
    loss, models = {}, {}
    for steps in (0, 100):
        models[steps] = fc.train(
            table,
            horizon=HORIZON,
            context_length=HORIZON,
            data=data,
            model={"head": "categorical", "decoder": "autoregressive", **size},
            fit={**fit, **learning, "max_steps": steps},
        ).artifact
        summary = fc.backtest(models[steps], table, n_windows=9).summary
        loss[steps] = summary.filter(model="pretrained")["log_loss"].item()
    # Without training it is the closed form: what is counted after the latest character.
    assert loss[100] < 0.97 * loss[0]

    paths, alone = [], []
    for step in CUTOFFS:
        cutoff = START + timedelta(hours=step)
        sampled = fc.sample_paths(models[100], table, n=32, cutoff=cutoff)
        paths += sampled.group_by("series_id", "path").agg(pl.col("value").str.join())["value"].to_list()
        marginals = fc.forecast(models[100], table, cutoff=cutoff).frame
        columns = [name for name in marginals.columns if name.startswith("p_")]
        stated = marginals.select(columns).to_numpy().cumsum(1)
        drawn = (rng.random((32, len(stated), 1)) > stated / stated[:, -1:]).sum(-1)
        characters = np.array([name.removeprefix("p_") for name in columns])[drawn].reshape(32, -1, HORIZON)
        alone += ["".join(sample) for sample in characters.reshape(-1, HORIZON)]
    # Each step drawn by itself from the same marginals gives letters, but no words.
    assert len(paths) == len(alone)
    assert share_of_language(paths) > 2 * share_of_language(alone)
    assert share_of_language(paths) > 0.6
