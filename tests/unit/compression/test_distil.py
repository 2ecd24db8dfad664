"""Small models that learn from large ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.compression.distil import DistilResult, distil
from forecast.config import DistilSettings, FitConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.windows import WindowIndex, windows_at
from forecast.errors import ConfigError, DataError
from forecast.metrics.seasonal_naive import future_values
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import window_sizes
from forecast.prediction.predict import predict
from forecast.training.result import FitResult
from forecast.training.teacher import Teacher

QUICK = FitConfig(
    holdout_windows=4,
    validation_windows=4,
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


@pytest.mark.trains
def test_a_student_is_smaller_and_both_are_judged_on_what_neither_has_seen(
    student: DistilResult, teacher: Artifact
) -> None:
    small_model, comparison = student.artifact, student.comparison
    assert isinstance(small_model.network, RecurrentForecaster)
    assert (small_model.model.hidden_size, small_model.model.num_layers) == (6, 1)
    assert comparison["model"].to_list() == ["teacher", "student"]
    large, small = comparison.rows(named=True)
    assert small["parameters"] < 0.6 * large["parameters"]
    assert small["bytes"] < 0.6 * large["bytes"]
    assert small["n_windows"] == large["n_windows"] > 0
    assert large["wql"] < small["wql"] < 2 * large["wql"]
    assert student.summary["val/loss"] < student.summary["val/loss_closed_form"]  # type: ignore[operator]
    assert small_model.parent_digest == teacher.digest()
    assert small_model.trained_until == teacher.trained_until
    assert f"({large['parameters']:,})" in student.line


class Lesson(NamedTuple):
    head: QuantileHead
    quantiles: Tensor
    """What the teacher forecasts, [series, 1, horizon, quantile]."""
    errors: Callable[[Tensor], Tensor]
    """The loss of other quantiles, [series, 1, horizon]."""


@pytest.fixture(scope="module", params=[None, (0.025, 0.25, 0.5, 0.9, 0.99)], ids=["deciles", "unequal"])
def lesson(request: pytest.FixtureRequest, train: Callable[..., FitResult], weekly_loaded: Loaded) -> Lesson:
    levels = {} if request.param is None else {"quantile_levels": request.param}
    network = train(weekly_loaded, model=levels).artifact.network
    assert isinstance(network, RecurrentForecaster)
    assert isinstance(network.head, QuantileHead)
    panel, origins = weekly_loaded.panel, torch.zeros(1, dtype=torch.long)
    windows = windows_at(panel, panel.last_index - 20)
    series, cutoff = torch.from_numpy(windows.series), torch.from_numpy(windows.cutoff)
    data = PanelTensors(panel, unit=network.shape.unit)
    batch = data.gather(series, cutoff, cutoff + 1, **window_sizes(network, 1))
    with torch.no_grad():
        output = network(batch, origins)

    def errors(quantiles: Tensor) -> Tensor:
        return Teacher(network, 0.5, "").errors(network, batch, origins, output._replace(arguments=quantiles))[0]

    return Lesson(network.head, output.quantiles, errors)


def test_the_loss_against_a_teacher_is_least_for_each_of_its_quantiles(lesson: Lesson) -> None:
    least = lesson.errors(lesson.quantiles)
    apart = float(lesson.quantiles.diff(dim=-1).mean())
    for place in range(len(lesson.head.levels)):
        for share in (-0.5, -0.01, 0.01, 0.5):
            moved = lesson.quantiles.clone()
            moved[..., place] += share * apart
            assert (lesson.errors(moved) > least).all(), (place, share)


def test_what_can_not_tell_windows_apart_learns_the_mixture_of_their_distributions(lesson: Lesson) -> None:
    # The gradient of a quantile is how much lies below it, less its level. At the quantiles of the mixture of all steps
    # of all series there is none; these would be too wide where what is learnt from has no tails.
    levels = lesson.head.levels
    mixture = lesson.head.quantiles(lesson.quantiles, (torch.arange(2000) + 0.5) / 2000)
    same = mixture.flatten().quantile(levels).requires_grad_()
    lesson.errors(same.expand_as(lesson.quantiles)).mean().backward()
    assert same.grad is not None
    np.testing.assert_allclose(levels + same.grad * len(levels) / 2, levels, atol=0.01)


@pytest.mark.trains
def test_a_student_that_only_learns_from_its_teacher_covers_as_much(
    train: Callable[..., FitResult], table: Callable[..., pl.DataFrame], loaded: Callable[..., Loaded]
) -> None:
    rng = np.random.default_rng(0)
    noise = {f"s{number:02d}": 10 + rng.normal(size=140) * (1 + number % 4) for number in range(24)}
    found = loaded(table(noise), 7, calendar=False)
    quick = QUICK.model_copy(update={"learning_rate": 1e-2, "max_steps": 60})
    model = {"hidden_size": 16, "decoder_size": 8, "transform": "none"}
    large = train(found, model=model, **quick.model_dump(exclude={"accelerator"}, exclude_unset=True)).artifact
    small = distil(large, found.panel, DistilSettings(hidden_size=4, weight=1.0), quick).artifact
    windows = WindowIndex(np.tile(np.arange(24), 4), np.repeat(139 - 7 * np.arange(1, 5), 24))
    actual = future_values(found.panel, windows, 7)

    def coverage(artifact: Artifact) -> float:
        stated = predict(artifact, found.panel, windows).tuned
        return float(((stated[..., 0] <= actual) & (actual <= stated[..., -1])).mean())

    assert abs(coverage(small) - coverage(large)) < 0.03


@pytest.mark.trains
def test_more_weight_brings_the_student_nearer_to_its_teacher(teacher: Artifact, weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    last = panel.lengths[:, None] - 8 - np.arange(20)
    windows = WindowIndex(np.repeat(np.arange(8), 20), last.ravel())
    lesson = predict(teacher, panel, windows).tuned
    longer = QUICK.model_copy(update={"max_steps": 60})
    off = []
    for weight in (0.0, 1.0):
        small = distil(teacher, panel, DistilSettings(hidden_size=6, weight=weight), longer).artifact
        off.append(np.abs(predict(small, panel, windows).tuned - lesson).mean())
    assert off[1] < 0.6 * off[0]


def test_what_can_not_be_distilled_is_told(
    train: Callable[..., FitResult], teacher: Artifact, weekly_loaded: Loaded
) -> None:
    panel = weekly_loaded.panel
    with pytest.raises(DataError, match=r"distil.n_windows=5 cutoffs that neither has seen, and there are 4"):
        distil(teacher, panel, DistilSettings(n_windows=5), QUICK)
    model: dict[str, Any] = {"decoder": "autoregressive", "n_paths": 4}
    with pytest.raises(ConfigError, match=r"neither of classes nor autoregressive"):
        distil(train(weekly_loaded, model=model).artifact, panel, DistilSettings(), QUICK)
