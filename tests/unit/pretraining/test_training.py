from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecast.errors import ArtifactError, ConfigError
from forecast.models.universal.checkpoint import read_checkpoint, write_checkpoint
from forecast.models.universal.network import LEVELS, MEDIAN, Shape
from forecast.pretraining.batches import HORIZON, Pool, Series
from forecast.pretraining.loss import pinball
from forecast.pretraining.training import STABLE, Progress, Run, Schedule
from forecast.pretraining.validation import validate

SHAPE = Shape(hidden_size=8, input_size=8, state_size=8)
SCHEDULE = Schedule(steps=10, batch_size=4, n_origins=2, n_steps=4)
CPU = torch.device("cpu")


def draw(index: int, n: int = 32) -> Series:
    """Return walks with a season, most of them shorter than the window."""
    random = np.random.default_rng(index)
    steps = np.arange(128 + HORIZON)
    season = random.choice([1, 4, 12], n)
    values = random.normal(size=(n, len(steps))).cumsum(1) + 3 * np.sin(2 * np.pi * steps / season[:, None])
    begin = 128 - random.integers(10, 128, n)
    return Series(values.astype(np.float32), steps >= begin[:, None], season, np.zeros(n, np.int64))


def train(folder: Path, schedule: Schedule, stop: int | None = None) -> Run:
    """Train in a folder, going on from what is there; at a report of step `stop` it is cut off."""
    run = Run(SHAPE, schedule, CPU)
    run.resume(folder, key="output.path")

    def report(progress: Progress) -> None:
        if progress.step == stop:
            raise KeyboardInterrupt

    try:
        run.train(Pool(draw, 0, draws=2, steps_per_draw=3), folder, 2, report)
    except KeyboardInterrupt:
        assert stop is not None
    return run


def weights(run: Run) -> torch.Tensor:
    parts = (*run.network.parameters(), *run.average.parameters())
    return torch.cat([part.detach().flatten() for part in parts])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, SCHEDULE)


def test_a_run_that_was_cut_off_ends_at_the_same_weights(whole: tuple[Path, Run], tmp_path: Path) -> None:
    train(tmp_path, SCHEDULE, stop=4)
    resumed = train(tmp_path, SCHEDULE)
    assert (resumed.step, resumed.series) == (10, 40)
    assert torch.equal(weights(resumed), weights(whole[1]))


def test_a_finished_run_is_prolonged_from_before_its_rate_fell(tmp_path: Path) -> None:
    train(tmp_path, SCHEDULE)
    assert (tmp_path / STABLE).exists()
    longer = train(tmp_path, SCHEDULE._replace(steps=20))
    (tmp_path / "straight").mkdir()
    straight = train(tmp_path / "straight", SCHEDULE._replace(steps=20))
    assert longer.step == 20
    assert torch.equal(weights(longer), weights(straight))


def test_a_folder_with_other_settings_is_refused(whole: tuple[Path, Run]) -> None:
    with pytest.raises(ConfigError, match=r"output.path: .*learning_rate was 0.002, is 0.1"):
        train(whole[0], SCHEDULE._replace(learning_rate=0.1))


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    rate = Schedule(steps=1000, learning_rate=1.0, warmup=100).rate
    assert rate(0) == pytest.approx(0.01)
    assert rate(99) == rate(799) == 1
    assert 0 < rate(999) < rate(900) < rate(801) < 1
    assert rate(1000) == 0


def test_batches_depend_on_the_step_alone_and_hold_what_comes_after_each_origin() -> None:
    pool, other = Pool(draw, 0), Pool(draw, 0)
    other.batch(70, 4, 2, 4)
    first, again = pool.batch(5, 16, 3, 6), other.batch(5, 16, 3, 6)
    assert torch.equal(first.window.values, again.window.values)
    assert first.target.equal(again.target) or torch.equal(first.target.nan_to_num(), again.target.nan_to_num())
    values, context = first.window.values, first.window.values.shape[1]
    at = first.origins[:, None] + first.ahead
    inside = at < context
    known = inside & ~first.target.isnan()
    assert torch.equal(first.target[known], values[:, at.clamp(max=context - 1)][known])
    assert known.any()
    assert not torch.equal(first.target.nan_to_num(), pool.batch(6, 16, 3, 6).target.nan_to_num())


def test_the_loss_is_least_at_the_targets_and_ignores_unknown_ones() -> None:
    batch = Pool(draw, 0).batch(0, 8, 2, 4)
    network = Run(SHAPE, SCHEDULE, CPU).network
    forecast = network(batch.window, batch.origins, batch.ahead)
    usual = pinball(forecast, batch.target, batch.origins)
    level = forecast.history.centre[..., None]
    exact = (batch.target - level).nan_to_num()[..., None].expand(-1, -1, -1, len(LEVELS))
    assert 0 <= pinball(forecast._replace(quantiles=exact), batch.target, batch.origins).item() < 0.01 < usual.item()
    missing = torch.full_like(batch.target, torch.nan)
    assert pinball(forecast, missing, batch.origins).item() == 0
    usual.backward()
    assert all(torch.isfinite(part.grad).all() for part in network.parameters() if part.grad is not None)


@pytest.mark.trains
def test_training_improves_on_the_network_that_has_learnt_nothing(tmp_path: Path) -> None:
    schedule = Schedule(steps=120, batch_size=32, n_origins=4, n_steps=8, warmup=10)
    run = Run(Shape(hidden_size=16, input_size=16, state_size=16), schedule, CPU)
    before = validate(run.network.eval(), draw(99, 128))
    after = validate(run.train(Pool(draw, 0), tmp_path, 60, lambda _: None), draw(99, 128))
    assert after["validation/wql"] < before["validation/wql"]
    assert 0.65 < after["validation/coverage"] < 0.95


def test_a_checkpoint_is_read_as_it_was_written_and_refused_once_it_is_changed(
    whole: tuple[Path, Run], tmp_path: Path
) -> None:
    facts: dict[str, Any] = {"steps": 10}
    card = write_checkpoint(whole[1].average, tmp_path, "small", facts)
    network, content = read_checkpoint(card)
    assert content["steps"] == 10
    assert content["levels"][MEDIAN] == 0.5
    for name, value in whole[1].average.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    tensors = card.with_suffix(".safetensors")
    damaged = bytearray(tensors.read_bytes())
    damaged[-1] ^= 1
    tensors.write_bytes(bytes(damaged))
    with pytest.raises(ArtifactError, match="SHA-256"):
        read_checkpoint(card)
    tensors.unlink()
    with pytest.raises(ArtifactError, match="can't read the checkpoint"):
        read_checkpoint(card)
