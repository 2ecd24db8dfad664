"""Small models that learn from large ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from forecast.artifact import Artifact
from forecast.config import DistilSettings, FitConfig
from forecast.data.load import Loaded
from forecast.data.windows import windows_at
from forecast.distil import DistilResult, distil
from forecast.errors import ConfigError, DataError
from forecast.fit import FitResult
from forecast.models.batch import PanelTensors
from forecast.models.ensemble import Ensemble
from forecast.models.losses import window_sizes
from forecast.models.module import Teacher
from forecast.models.recurrent import RecurrentForecaster
from forecast.predict import predict

QUICK = FitConfig(
    max_steps=40,
    batch_size=8,
    origins=8,
    learning_rate=2e-2,
    ema_decay=0.9,
    validation_every=10,
    patience=100,
    accelerator="cpu",
)


@pytest.fixture(scope="module")
def teacher(train: Callable[..., FitResult], weekly_loaded: Loaded) -> Artifact:
    learning = {"max_steps": 40, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
    return train(weekly_loaded, model={"hidden_size": 24, "num_layers": 2}, ensemble=2, **learning).artifact


@pytest.fixture(scope="module")
def student(teacher: Artifact, weekly_loaded: Loaded) -> DistilResult:
    return distil(teacher, weekly_loaded.panel, DistilSettings(hidden_size=6, weight=0.9), QUICK)


def test_a_student_is_smaller_and_both_are_judged_on_what_neither_has_seen(
    student: DistilResult, teacher: Artifact
) -> None:
    made, comparison = student.artifact, student.comparison
    assert isinstance(made.network, RecurrentForecaster)
    assert (made.model.hidden_size, made.model.num_layers) == (6, 1)
    assert comparison["model"].to_list() == ["teacher", "student"]
    large, small = comparison.rows(named=True)
    assert small["parameters"] < 0.6 * large["parameters"]
    assert small["bytes"] < 0.6 * large["bytes"]
    assert small["n_windows"] == large["n_windows"] > 0
    assert large["wql"] < small["wql"] < 2 * large["wql"]
    assert student.summary["val/loss"] < student.summary["val/loss_closed_form"]  # type: ignore[operator]
    assert made.parent_digest == teacher.digest()
    assert made.trained_until == teacher.trained_until
    assert f"({large['parameters']:,})" in student.line


def test_the_loss_against_a_teacher_is_least_for_the_teacher_itself(teacher: Artifact, weekly_loaded: Loaded) -> None:
    assert isinstance(teacher.network, Ensemble)
    panel, members = weekly_loaded.panel, list(teacher.network.members)
    windows = windows_at(panel, panel.last_index - 20)
    series, cutoff = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
    origins = torch.zeros(1, dtype=torch.long)
    own = members[0]
    assert isinstance(own, RecurrentForecaster)
    batch = PanelTensors(panel, unit=own.shape.unit).gather(series, cutoff, cutoff + 1, **window_sizes(own, 1))
    found = Teacher(own, 0.5, "")

    @torch.no_grad()
    def loss(shift: float) -> float:
        output = own(batch, origins)
        moved = output._replace(arguments=output.arguments + shift)
        errors, weight = found.errors(own, batch, origins, moved)
        return float((errors * weight).sum() / weight.sum())

    losses = {shift: loss(shift) for shift in (-0.3, -0.05, 0.0, 0.05, 0.3)}
    assert min(losses, key=lambda shift: losses[shift]) == 0.0
    assert losses[0.3] > losses[0.05]


def test_more_weight_brings_the_student_nearer_to_its_teacher(teacher: Artifact, weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    windows = windows_at(panel, panel.last_index)
    told = predict(teacher, panel, windows).tuned
    off = []
    for weight in (0.0, 1.0):
        made = distil(teacher, panel, DistilSettings(hidden_size=6, weight=weight), QUICK).artifact
        off.append(np.abs(predict(made, panel, windows).tuned - told).mean())
    assert off[1] < off[0]


def test_what_can_not_be_distilled_is_told(
    train: Callable[..., FitResult], teacher: Artifact, weekly_loaded: Loaded
) -> None:
    panel = weekly_loaded.panel
    with pytest.raises(DataError, match=r"distil.n_windows=5 cutoffs that neither has seen, and there are 4"):
        distil(teacher, panel, DistilSettings(n_windows=5), QUICK)
    model: dict[str, Any] = {"decoder": "autoregressive", "n_paths": 4}
    with pytest.raises(ConfigError, match=r"neither of classes nor autoregressive"):
        distil(train(weekly_loaded, model=model).artifact, panel, DistilSettings(), QUICK)
