"""Training on tiny panels: what it keeps, and what it must not touch."""

import dataclasses
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact, load
from forecast.config import FinetuneSettings, FitConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.time.context import default_context
from forecast.data.time.frequency import Frequency
from forecast.data.windows import WindowIndex, held_out_windows, usable_lengths
from forecast.errors import ConfigError, DataError
from forecast.finetuning.finetune import finetune
from forecast.metrics.seasonal_naive import future_values, seasonal_naive, seasonal_naive_errors
from forecast.models.inputs.batch import PanelTensors
from forecast.models.network import panel_statistics
from forecast.models.network.ensemble import members_of
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.models.network.losses import validation_loss
from forecast.prediction.predict import predict
from forecast.training import linear_skip, member, skips
from forecast.training.best_weights import BestWeights
from forecast.training.budget import Budget
from forecast.training.result import FitResult
from forecast.training.split import split_panel
from forecast.training.teacher import Teacher
from forecast.training.trainer import TrainingJob
from forecast.training.trainer import train as run_training

LEARNING: dict[str, Any] = {"max_steps": 40, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
Train, Load = Callable[..., FitResult], Callable[..., Loaded]
Table, Weekly = Callable[..., pl.DataFrame], Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def plain(table: Table, loaded: Load, weekly: Weekly) -> Loaded:
    return loaded(table(weekly(8, 140, seed=3)), 7)


@pytest.fixture(scope="module")
def closed_form(train: Train, plain: Loaded) -> FitResult:
    return train(plain)


def state(artifact: Artifact) -> dict[str, torch.Tensor]:
    return artifact.network.state_dict()


def validation_errors(artifact: Artifact, found: Loaded) -> tuple[float, float]:
    """Mean absolute scaled error on the held-out validation windows, of the model and of seasonal naive."""
    panel = found.panel
    usable = usable_lengths(panel, artifact.trained_until)
    windows, _ = held_out_windows(usable, horizon=7, n_windows=4)
    median = predict(artifact, panel, windows).base[..., 4]
    naive = seasonal_naive(panel, windows, horizon=7, season=7, levels=(0.5,))[..., 0]
    actual, (scale, _) = future_values(panel, windows, 7), seasonal_naive_errors(panel, windows, 7)
    model, baseline = (np.nanmean(np.abs(actual - made) / scale[:, None]) for made in (median, naive))
    return float(model), float(baseline)


def test_the_closed_form_beats_seasonal_naive_on_validation(closed_form: FitResult, plain: Loaded) -> None:
    model, naive = validation_errors(closed_form.artifact, plain)
    assert model < 0.95 * naive


def test_the_closed_form_equals_seasonal_naive_where_that_is_perfect(train: Train, table: Table, loaded: Load) -> None:
    rng = np.random.default_rng(0)
    found = loaded(table({f"s{i}": np.tile(rng.normal(10, 3, 7), 20) for i in range(4)}), 7)
    windows, _ = held_out_windows(found.panel.lengths, horizon=7, n_windows=4)
    median = predict(train(found).artifact, found.panel, windows).base[..., 4]
    np.testing.assert_allclose(median, future_values(found.panel, windows, 7), atol=0.05)


def walks(n: int, length: int, *, drift: float, seed: int) -> dict[str, np.ndarray]:
    """Random walks whose steps spread by 1."""
    rng = np.random.default_rng(seed)
    return {f"s{i}": np.cumsum(drift + rng.normal(size=length)) for i in range(n)}


@pytest.mark.parametrize("drift", [1.0, -0.5])
def test_a_drift_that_all_series_share_is_forecast_at_every_step(
    train: Train, table: Table, loaded: Load, drift: float
) -> None:
    found = loaded(table(walks(12, 200, drift=drift, seed=0)), 7, calendar=False)
    result = train(found, model={"transform": "none"})
    assert result.summary["skip_penalty"] != "prior"
    windows, _ = held_out_windows(found.panel.lengths, horizon=7, n_windows=4)
    median = predict(result.artifact, found.panel, windows).base[..., 4]
    last = found.panel.target[found.panel.offsets[windows.series] + windows.cutoff]
    np.testing.assert_allclose((median - last[:, None]).mean(0), drift * np.arange(1, 8), rtol=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_random_walks_are_forecast_as_their_last_value(train: Train, table: Table, loaded: Load, seed: int) -> None:
    found = loaded(table(walks(8, 160, drift=0.0, seed=seed)), 7, calendar=False)
    result = train(found, model={"transform": "none"})
    assert (result.summary["skip"], result.summary["skip_penalty"]) == ("last/anchor", "prior")
    assert not result.artifact.network.skip.any()


def test_a_pattern_that_no_prior_has_is_fitted(closed_form: FitResult, train: Train, plain: Loaded) -> None:
    assert closed_form.summary["skip_penalty"] != "prior"
    assert closed_form.artifact.network.skip[:-1].any()
    without = train(plain, model={"skip": False, "anchor": closed_form.artifact.network.shape.anchor})
    assert without.summary["skip_penalty"] == "prior"
    assert float(closed_form.summary["val/loss"]) < 0.95 * float(without.summary["val/loss"])


@pytest.mark.parametrize("seed", range(3))
def test_a_line_that_the_latest_weeks_have_outdated_is_mixed_with_what_is_not_fitted(
    train: Train, table: Table, loaded: Load, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # Half way, what deviates from the season no longer lasts.
    rng = np.random.default_rng(seed)
    series = {}
    for number in range(8):
        deviation = np.zeros(280)
        for step in range(1, 280):
            deviation[step] = (0.95 if step < 150 else 0.3) * deviation[step - 1] + rng.normal()
        series[f"s{number}"] = np.tile(rng.normal(0, 3, 7), 40) + deviation
    found = loaded(table(series), 7, calendar=False)
    unseen, _ = held_out_windows(found.panel.lengths, horizon=7, n_windows=6)
    actual = future_values(found.panel, unseen, 7)

    def result() -> tuple[float, float]:
        made = train(found, holdout_windows=6, validation_windows=6, model={"transform": "none"})
        median = predict(made.artifact, found.panel, unseen).base[..., 4]
        return float(made.summary["skip_share"]), float(np.abs(median - actual).mean())

    share, error = result()
    monkeypatch.setattr(linear_skip, "stack", lambda best, *_: best)
    whole, alone = result()
    assert 0 < share < whole == 1
    assert error < 0.97 * alone


def test_a_mixture_has_the_least_loss_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        parts = torch.from_numpy(rng.normal(size=(3, 40)))
        aim = torch.from_numpy(rng.dirichlet(np.ones(3))) @ parts + 0.3 * torch.from_numpy(rng.normal(size=40))

        def loss(shares: torch.Tensor) -> float:
            return float((shares @ parts - aim).square().sum())  # noqa: B023

        found = skips.stacking_weights(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), loss)
        every = [(a / 20, b / 20, (20 - a - b) / 20) for a in range(21) for b in range(21 - a)]
        least = min(loss(torch.tensor(shares, dtype=torch.float64)) for shares in every)
        assert float(found.sum()) == pytest.approx(1.0)
        assert (found >= 0).all()
        assert loss(found) == pytest.approx(least, rel=1e-2)


@pytest.mark.parametrize("classes", [False, True])
def test_in_the_end_validation_is_fitted_on_too_and_what_is_held_out_is_not(
    train: Train, table: Table, loaded: Load, monkeypatch: pytest.MonkeyPatch, classes: bool
) -> None:
    monkeypatch.setattr(linear_skip, "stack", lambda best, *_: best)  # Shares of a mixture would move as well.
    wave = np.sin(np.arange(160) * 2 * np.pi / 12) + 0.1 * np.random.default_rng(0).normal(size=160)
    head = {"head": "categorical"} if classes else {"transform": "none"}

    def skip(changed: slice) -> tuple[torch.Tensor, list[Any]]:
        values = wave.copy()
        values[changed] += 0.05 * np.random.default_rng(1).normal(size=len(values[changed]))
        given = table({"a": np.round(1.4 * values) if classes else values})
        found = train(loaded(given, 7, calendar=False), holdout_windows=1, validation_windows=4, model=head)
        choice = [found.summary[name] for name in ("skip", "skip_penalty", "skip_constant") if name in found.summary]
        return state(found.artifact)["class_skip.latest" if classes else "skip"], choice

    (plain, chosen), (validation, again), (split_panel, _) = (
        skip(slice(0, 0)),
        skip(slice(125, 153)),
        skip(slice(153, 160)),
    )
    assert chosen == again
    torch.testing.assert_close(plain, split_panel, rtol=0, atol=0)
    assert not torch.equal(plain, validation)


@pytest.mark.filterwarnings("error")
def test_one_window_of_validation_takes_the_better_line(train: Train, table: Table, loaded: Load) -> None:
    # It has no standard error. No prior knows of a wave of twelve days.
    wave = np.sin(np.arange(120) * 2 * np.pi / 12) + 0.1 * np.random.default_rng(0).normal(size=120)
    found = loaded(table({"a": wave}), 7, calendar=False)
    result = train(found, validation_windows=1, model={"transform": "none"})
    assert result.summary["validation_windows"] == 1
    assert result.summary["skip_penalty"] != "prior"


@pytest.mark.filterwarnings("error")
def test_a_context_of_one_step_has_no_deviation_and_forecasts_its_value(train: Train, plain: Loaded) -> None:
    artifact = train(plain, context=1).artifact
    made = predict(artifact, plain.panel, WindowIndex(np.arange(8), np.full(8, 130))).base
    last = plain.panel.target[plain.panel.offsets[:-1] + 130]
    np.testing.assert_array_equal(made, np.broadcast_to(last[:, None, None], made.shape))


def test_without_steps_the_closed_form_is_kept(closed_form: FitResult) -> None:
    assert not closed_form.artifact.network.output.weight.any()
    assert closed_form.summary["steps"] == closed_form.summary["best_step"] == 0
    assert [step for step, _ in closed_form.curve] == [0]


@pytest.mark.parametrize("learning_rate", [5e-3, 10.0])
@pytest.mark.trains
def test_a_trained_model_is_never_worse_than_the_closed_form(
    train: Train, plain: Loaded, closed_form: FitResult, learning_rate: float
) -> None:
    result = train(plain, max_steps=15, learning_rate=learning_rate)
    loss = result.summary["val/loss"]
    assert isinstance(loss, float)
    assert result.summary["val/loss_closed_form"] == closed_form.summary["val/loss_closed_form"]
    assert loss <= float(closed_form.summary["val/loss"])
    assert loss <= min(values["val/loss"] for _, values in result.curve if "val/loss" in values)
    if result.summary["best_step"] == 0:
        for name, values in state(closed_form.artifact).items():
            assert torch.equal(values, state(result.artifact)[name]), name
    else:
        assert result.artifact.network.output.weight.any()


@pytest.mark.trains
def test_training_lowers_the_loss_where_there_is_something_to_learn(train: Train, table: Table, loaded: Load) -> None:
    # A known covariate moves the target: the linear skip can't see it, the network can.
    rng = np.random.default_rng(0)
    promo = {f"s{i}": rng.integers(0, 2, 140).astype(float) for i in range(8)}
    series = {name: 20 + 5 * flags + 0.3 * rng.normal(size=140) for name, flags in promo.items()}
    found = loaded(table(series, promo=promo), 7, known_covariates=["promo"], calendar=False)
    result = train(found, max_steps=80, batch_size=16, learning_rate=2e-2, validation_every=20, ema_decay=0.9)
    closed, trained = result.summary["val/loss_closed_form"], result.summary["val/loss"]
    assert isinstance(trained, float)
    assert isinstance(closed, float)
    assert trained < 0.6 * closed


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("cell", "threads"), [("lstm", 1), ("lstm", 2), ("gru", 1), ("rnn", 1)], indirect=["threads"])
@pytest.mark.trains
def test_the_same_seed_gives_the_same_weights_bit_by_bit(train: Train, weekly_loaded: Loaded, cell: str) -> None:
    """On one machine: another processor rounds otherwise, and gives other weights."""
    first, second = (
        train(weekly_loaded, max_steps=6, validation_every=3, model={"cell": cell, "dropout": 0.2}) for _ in range(2)
    )
    assert first.artifact.digest() == second.artifact.digest()
    assert first.curve == second.curve
    for name, values in state(first.artifact).items():
        assert torch.equal(values, state(second.artifact)[name]), name


def test_another_seed_gives_other_weights(train: Train, weekly_loaded: Loaded) -> None:
    first, second = (train(weekly_loaded, max_steps=3, seed=seed).artifact.network.summary.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_the_holdout_is_not_touched(train: Train, weekly_loaded: Loaded) -> None:
    trained = train(weekly_loaded, **LEARNING)
    assert isinstance(trained.summary["best_step"], int)
    assert trained.summary["best_step"] > 0
    panel = weekly_loaded.panel
    steps = np.arange(len(panel.target)) - np.repeat(panel.offsets[:-1], panel.lengths)
    index = steps + np.repeat(panel.start, panel.lengths)
    held = index > trained.artifact.trained_until
    assert trained.artifact.trained_until == index.max() - 28
    changed = dataclasses.replace(
        weekly_loaded,
        panel=dataclasses.replace(
            panel,
            target=np.where(held, np.float32(1e4) - panel.target, panel.target),
            past=np.where(held, np.float32(1e4), panel.past),
        ),
    )
    assert train(changed, **LEARNING).artifact.digest() == trained.artifact.digest()
    # The validation windows only choose; the step before them is fitted on.
    inside = index == trained.artifact.trained_until - 28
    target = np.where(inside, panel.target + 1, panel.target)
    seen = dataclasses.replace(weekly_loaded, panel=dataclasses.replace(panel, target=target))
    assert train(seen, **LEARNING).artifact.digest() != trained.artifact.digest()


def test_the_artifact_says_what_it_was_trained_on(trained: FitResult, weekly_loaded: Loaded) -> None:
    artifact = trained.artifact
    assert artifact.kind == "pretrained"
    assert artifact.data == weekly_loaded.data
    assert artifact.grid == weekly_loaded.panel.grid
    assert artifact.categories == {"city": ("oslo", "rome")}
    assert (artifact.window.context_length, artifact.window.horizon) == (28, 7)
    assert not artifact.network.training


def test_covariates_are_standardised_on_what_training_may_see(trained: FitResult, weekly_loaded: Loaded) -> None:
    panel, network = weekly_loaded.panel, trained.artifact.network
    usable = usable_lengths(panel, trained.artifact.trained_until)
    _, limits = held_out_windows(usable, horizon=7, n_windows=4)
    seen = np.concatenate([panel.past[0, a : a + n] for a, n in zip(panel.offsets[:-1], limits, strict=True)])
    assert float(network.covariate_mean[0]) == pytest.approx(float(seen.mean()), abs=1e-5)
    assert float(network.covariate_scale[0]) == pytest.approx(float(seen.std()), rel=1e-4)
    ahead = panel.offsets[:-1] + 7 * np.arange(panel.n_series)
    known = np.concatenate([panel.known[0, a : a + n] for a, n in zip(ahead, limits, strict=True)])
    assert float(network.covariate_mean[1]) == pytest.approx(float(known.mean()), abs=1e-5)
    assert float(network.covariate_mean[2]) == pytest.approx(3.5)


def test_blocks_of_steps_change_no_moment(
    train: Train, trained: FitResult, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panel_statistics, "_BLOCK", 50)
    blocks = train(weekly_loaded).artifact.network
    for name in ("covariate_mean", "covariate_scale"):
        expected = getattr(trained.artifact.network, name)
        torch.testing.assert_close(getattr(blocks, name), expected, rtol=1e-6, atol=1e-6)


# --- covariates that hold codes

EFFECTS = np.array([0.0, 6.0, -3.0, 9.0, -8.0])


@pytest.fixture(scope="module")
def events(table: Table, loaded: Load) -> Loaded:
    """Series that a known covariate of five values moves up and down."""
    rng = np.random.default_rng(0)
    codes = {f"s{i}": rng.integers(1, 6, 140).astype(float) for i in range(8)}
    series = {name: 20 + EFFECTS[code.astype(int) - 1] + 0.3 * rng.normal(size=140) for name, code in codes.items()}
    weather = {name: rng.integers(1, 3, 140).astype(float) for name in codes}
    found = loaded(
        table(series, event=codes, weather=weather),
        7,
        known_covariates=["event"],
        past_covariates=["weather"],
        calendar=False,
    )
    # A derived row comes after those of the columns.
    panel = dataclasses.replace(found.panel, past=np.concatenate([found.panel.past, found.panel.target[None]]))
    values = {"event": tuple("abcde"), "weather": ("dry", "wet")}
    data = found.data.model_copy(update={"rolling": ("mean_3",)})
    return dataclasses.replace(found, panel=panel, data=data, categories=values)


@pytest.fixture(scope="module")
def event_model(train: Train, events: Loaded) -> FitResult:
    return train(events, max_steps=150, batch_size=16, learning_rate=2e-2, validation_every=25, ema_decay=0.9)


@pytest.mark.trains
def test_a_known_category_that_moves_the_target_is_learnt(event_model: FitResult, events: Loaded) -> None:
    shape = event_model.artifact.network.shape
    assert (shape.past_categories, shape.known_categories, shape.category_sizes) == ((2, 0), (5,), ())
    loss, closed = event_model.summary["val/loss"], event_model.summary["val/loss_closed_form"]
    assert isinstance(loss, float)
    assert isinstance(closed, float)
    assert loss < 0.25 * closed
    # Each event moves the forecast of its step to where the target is on such days.
    known, windows = events.panel.known, WindowIndex(np.arange(8), np.full(8, 130))
    made = []
    for code in range(1, 6):
        third = np.arange(known.shape[1]) % (140 + 7) == 133
        panel = dataclasses.replace(events.panel, known=np.where(third, np.float32(code), known))
        made.append(predict(event_model.artifact, panel, windows).base[:, 2, 4].mean())
    np.testing.assert_allclose(made, 20 + EFFECTS, atol=2.8)


@pytest.mark.parametrize("code", [0.0, np.nan])
def test_values_never_seen_and_missing_ones_give_a_forecast_in_between(
    event_model: FitResult, events: Loaded, code: float
) -> None:
    panel = dataclasses.replace(
        events.panel,
        known=np.full_like(events.panel.known, code),
        past=np.stack([np.full_like(events.panel.past[0], code), events.panel.past[1]]),
    )
    made = predict(event_model.artifact, panel, WindowIndex(np.arange(8), np.full(8, 130))).base
    assert np.isfinite(made).all()
    assert (np.abs(made[..., 4] - 20) < 20).all()


def test_a_model_with_codes_survives_its_folder_bit_by_bit(
    event_model: FitResult, events: Loaded, tmp_path: Path
) -> None:
    event_model.artifact.save(tmp_path)
    stored = load(tmp_path)
    assert stored.network.shape == event_model.artifact.network.shape
    windows = WindowIndex(np.arange(8), np.arange(100, 140, 5))
    before, after = (predict(a, events.panel, windows).base for a in (event_model.artifact, stored))
    np.testing.assert_array_equal(before, after)


def test_several_covariates_of_codes_are_trained_and_each_changes_the_forecast(
    train: Train, table: Table, loaded: Load
) -> None:
    rng = np.random.default_rng(0)
    names = [f"s{i}" for i in range(8)]
    codes = {column: {name: rng.integers(1, 4, 140).astype(float) for name in names} for column in "abcd"}
    size = {name: rng.normal(size=140) for name in names}
    series = {}
    for name in names:
        known = 4 * codes["a"][name] - 3 * codes["b"][name] + 2 * size[name]
        past = sum(np.roll(codes[column][name], 1) for column in "cd")
        series[name] = 20 + known + past + 0.3 * rng.normal(size=140)
    found = loaded(
        table(series, size=size, **codes),
        7,
        known_covariates=["a", "size", "b"],
        past_covariates=["c", "d"],
        calendar=False,
    )
    found = dataclasses.replace(found, categories=dict.fromkeys("abcd", ("x", "y", "z")))
    result = train(found, **LEARNING, batch_size=16)
    shape = result.artifact.network.shape
    assert (shape.past_categories, shape.known_categories) == ((3, 3), (3, 0, 3))
    assert float(result.summary["val/loss"]) < float(result.summary["val/loss_closed_form"])
    windows = WindowIndex(np.arange(8), np.full(8, 130))
    before = predict(result.artifact, found.panel, windows).base
    for field, row in (("known", 0), ("known", 1), ("known", 2), ("past", 0), ("past", 1)):
        values = getattr(found.panel, field).copy()
        values[row] = values[row] % 3 + 1
        panel = dataclasses.replace(found.panel, **{field: values})
        assert (predict(result.artifact, panel, windows).base != before).any(axis=(1, 2)).all(), (field, row)


@pytest.mark.parametrize(
    ("freq", "season", "horizon", "length", "expected"),
    [
        ("1h", 24, 24, 5000, 336),  # two weeks
        ("1m", 1440, 6, 20_000, 2880),  # two days
        ("1m", 1440, 6, 4800, 2880),
        ("15m", 96, 96, 330, 192),
        ("1w", 52, 13, 104, 104),
        ("1h", 168, 24, 5000, 336),
        ("15m", 96, 96, 50_000, 960),  # ten days: whole ones, up to a thousand steps
        ("1d", 7, 28, 400, 56),
        ("1w", 52, 13, 900, 104),
        ("1mo", 12, 12, 200, 60),  # five years, which are smoothed
        ("1q", 4, 8, 30, 20),
        ("1y", 1, 6, 29, 20),
        ("1d", 7, 28, 90, 56),
        ("1d", 1, 3, 1000, 32),
        ("1h", 24, 48, 60, 96),  # two horizons, though series are short
    ],
)
def test_default_context_holds_the_longer_cycle(
    freq: str, season: int, horizon: int, length: int, expected: int
) -> None:
    assert default_context(Frequency.parse(freq), season, horizon, length, rows=length + 60) == expected


@pytest.mark.parametrize(
    ("freq", "season", "horizon", "length", "rows", "expected"),
    [
        ("1m", 1440, 6, 352, 400, 211),
        ("1m", 1440, 6, 2960, 3008, 1024),  # two days, but hardly more
        ("1m", 1440, 60, 20, 500, 120),  # two horizons
        ("1m", 1440, 60, 20, 90, 90),
        ("5m", 288, 12, 400, 496, 240),
        ("1h", 24, 4, 15, 47, 9),  # not two days
        ("1h", 24, 4, 45, 47, 24),  # but one
        ("1w", 52, 4, 40, 72, 24),
        ("1d", 7, 1, 1, 9, 2),
        ("1d", 7, 1, 1, 1, 1),
    ],
)
def test_default_context_is_no_longer_than_series_that_hold_no_two_seasons(
    freq: str, season: int, horizon: int, length: int, rows: int, expected: int
) -> None:
    assert default_context(Frequency.parse(freq), season, horizon, length, rows) == expected <= rows


_SCHEDULERS: dict[str, dict[str, str]] = {
    "slurm": {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "nightly"},
    "srun": {
        **dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"), "4"),
        **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "1"),
    },
    "torchrun": {
        "TORCHELASTIC_RUN_ID": "x",
        **dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), "0"),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
    },
    "kubeflow": {
        "KUBERNETES_PORT": "tcp://10.0.0.1",
        "MASTER_ADDR": "master",
        "MASTER_PORT": "1",
        "RANK": "1",
        "WORLD_SIZE": "2",
    },
    "lsf": {
        **dict.fromkeys(("LSB_JOBID", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_RANK"), "2"),
        "LSB_DJOB_RANKFILE": "/no/such/file",
    },
}


@pytest.mark.parametrize("scheduler", _SCHEDULERS)
def test_one_device_trains_alike_whatever_a_scheduler_has_in_the_environment(
    train: Train, weekly_loaded: Loaded, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    alone = train(weekly_loaded, max_steps=2)
    for name, value in _SCHEDULERS[scheduler].items():
        monkeypatch.setenv(name, value)
    scheduled = train(weekly_loaded, max_steps=2)
    assert (scheduled.summary["steps"], scheduled.curve) == (2, alone.curve)


def test_progress_ends_at_one(train: Train, plain: Loaded) -> None:
    told: list[float] = []
    train(plain, max_steps=10, progress=lambda done, _: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1.0


# --- refusals


def test_nothing_to_train_on_says_how_much_is_needed(train: Train, table: Table, loaded: Load) -> None:
    found = loaded(table({"a": np.arange(40.0), "b": np.arange(30.0)}), 7)
    with pytest.raises(DataError, match=r"the longest of 2 has 40 steps, .* need 43; lower window.horizon"):
        train(found)
    assert train(loaded(table({"a": np.random.default_rng(0).normal(size=43)}), 7)).artifact.trained_until > 0


def test_constant_series_alone_can_be_trained_on(train: Train, table: Table, loaded: Load) -> None:
    found = loaded(table({"a": np.full(80, 3.0), "b": np.zeros(80)}), 7)
    artifact = train(found, max_steps=2).artifact
    windows, _ = held_out_windows(found.panel.lengths, horizon=7, n_windows=1)
    made = predict(artifact, found.panel, windows).base
    assert (made[0] == 3.0).all()
    assert (made[1] == 0.0).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(train: Train, plain: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"fit.accelerator: gpu asked for"):
        train(plain, accelerator="gpu")


def test_half_precision_on_a_cpu_is_refused(train: Train, plain: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"fit.precision: bf16-mixed .* set fit.precision=32-true"):
        train(plain, precision="bf16-mixed")


def test_a_segment_that_does_not_divide_the_context_is_refused(train: Train, plain: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"5 does not divide window.context_length \(28\)"):
        train(plain, model={"segment_length": 5})


# --- going on after a kill


class Killed(Exception):
    pass


def killed_at(share: float) -> Callable[[float, str], None]:
    def progress(done: float, _: str) -> None:
        if done >= share:
            raise Killed

    return progress


KILLED: dict[str, Any] = {"max_steps": 24, "validation_every": 6, "learning_rate": 2e-2, "patience": 3}


@pytest.mark.parametrize("settings", [{}, {"ema_decay": 0.0}], ids=["averaged", "raw"])
@pytest.mark.parametrize("share", [0.7, 0.4, 0.1])
def test_a_training_that_was_killed_goes_on_to_the_same_model(
    train: Train, weekly_loaded: Loaded, tmp_path: Path, share: float, settings: dict[str, Any]
) -> None:
    known = {**KILLED, **settings, "model": {"dropout": 0.2}}
    undisturbed = train(weekly_loaded, **known)
    with pytest.raises(Killed):
        train(weekly_loaded, **known, checkpoint=str(tmp_path), progress=killed_at(share))
    assert any(tmp_path.iterdir()) == (share > 0.25)
    resumed = train(weekly_loaded, **known, checkpoint=str(tmp_path))
    assert resumed.artifact.digest() == undisturbed.artifact.digest()
    assert resumed.curve == undisturbed.curve
    for name in ("val/loss", "best_step", "steps"):
        assert resumed.summary[name] == undisturbed.summary[name]
    assert not any(tmp_path.iterdir())


def test_a_training_whose_state_can_not_be_written_goes_on_with_a_warning(
    train: Train, weekly_loaded: Loaded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = train(weekly_loaded, **KILLED)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        result = train(weekly_loaded, **KILLED, checkpoint=str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.artifact.digest() == undisturbed.artifact.digest()
    assert not any(tmp_path.iterdir())
    warnings = [record.getMessage() for record in caplog.records if "fit.checkpoint" in record.getMessage()]
    assert len(warnings) == 4
    assert all(f"can't write {tmp_path}" in text and "goes on" in text for text in warnings)


def test_a_training_that_was_killed_at_its_very_end_takes_no_further_step(
    train: Train, weekly_loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patience stops it long before the steps are used up.
    known = {**KILLED, "max_steps": 1000, "learning_rate": 10.0, "patience": 2}
    undisturbed = train(weekly_loaded, **known)
    assert int(undisturbed.summary["steps"]) < 1000
    with monkeypatch.context() as patched:
        patched.setattr(member, "select_soft_threshold", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(weekly_loaded, **known, checkpoint=str(tmp_path))
    resumed = train(weekly_loaded, **known, checkpoint=str(tmp_path))
    assert resumed.artifact.digest() == undisturbed.artifact.digest()
    assert resumed.curve == undisturbed.curve


@pytest.fixture
def cut_short(train: Train, weekly_loaded: Loaded, tmp_path: Path) -> dict[str, Any]:
    """The settings of a training that was killed, with its folder."""
    known = {**KILLED, "checkpoint": str(tmp_path)}
    with pytest.raises(Killed):
        train(weekly_loaded, **known, progress=killed_at(0.4))
    return known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 1e-2}, r"fit.learning_rate was 0.02, is 0.01; choose another folder"),
        ({"seed": 1}, r"fit.seed was 0, is 1"),
        ({"model": {"hidden_size": 16}}, r"model.hidden_size was 8, is 16"),
        ({"context": 14}, r"window.context_length was 28, is 14"),
    ],
)
def test_another_training_does_not_go_on_from_it(
    train: Train, weekly_loaded: Loaded, cut_short: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"fit.checkpoint: .* holds another training, .*{said}"):
        train(weekly_loaded, **cut_short | change)


def test_other_data_does_not_go_on_from_it(train: Train, weekly_loaded: Loaded, cut_short: dict[str, Any]) -> None:
    other = dataclasses.replace(weekly_loaded.panel, target=weekly_loaded.panel.target + 1)
    with pytest.raises(ConfigError, match=r'panel was "\w+\.\.\., is "\w+\.\.\.; choose another folder'):
        train(dataclasses.replace(weekly_loaded, panel=other), **cut_short)


def test_a_damaged_state_is_refused(train: Train, weekly_loaded: Loaded, cut_short: dict[str, Any]) -> None:
    (path,) = Path(cut_short["checkpoint"]).iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"fit.checkpoint: .* is not readable .* delete it"):
        train(weekly_loaded, **cut_short)


# --- budgets


def test_the_clock_ends_a_training_whatever_the_steps_say(train: Train, plain: Loaded) -> None:
    result = train(plain, max_steps=10**9, max_minutes=0.02, validation_every=10**9, patience=100)
    step, last = result.curve[-1]
    assert 0 < int(result.summary["steps"]) < 10**9
    # A validation ends it, whenever it comes.
    assert (step, set(last)) == (result.summary["steps"], {"val/loss"})


def test_the_steps_end_a_training_whatever_the_clock_says(train: Train, plain: Loaded) -> None:
    assert train(plain, max_steps=7, max_minutes=1e6).summary["steps"] == 7


def test_a_run_that_is_gone_on_from_has_spent_its_share_of_the_minutes() -> None:
    budget = Budget(100, 1.0)
    budget.resume(45.0)
    assert 0.75 <= budget.spent(0) < 0.76
    assert budget.spent(90) == 0.9
    budget.resume(45.0)
    assert budget.spent(0) == 1.0


# --- several processes


@pytest.fixture(scope="module")
def numeric(weekly_table: pl.DataFrame, loaded: Load) -> Loaded:
    """Without categories, which training hides at random: processes draw other random numbers than one alone."""
    return loaded(
        weekly_table,
        7,
        past_covariates=["rain"],
        known_covariates=["promo"],
        static_covariates=["size"],
        calendar=False,
    )


@pytest.fixture(scope="module")
def on_one_and_two(train: Train, numeric: Loaded) -> tuple[FitResult, FitResult]:
    """The same training in one process and in two, on a logarithmic scale, against a clock, and with a teacher."""
    # So many minutes that those before the first step do not change its rate.
    known: dict[str, Any] = {**KILLED, "max_minutes": 1e6, "model": {"transform": "log"}}
    tutor = train(numeric, model={"transform": "log", "hidden_size": 4}).artifact.network
    known["teacher"] = Teacher(tutor, 0.3, "")
    return train(numeric, **known, batch_size=8), train(numeric, **known, batch_size=4, devices=2)


@pytest.mark.trains
def test_two_processes_train_as_one_with_batches_of_twice_the_size(on_one_and_two: tuple[FitResult, FitResult]) -> None:
    # That the weights of both processes stayed equal is asserted in the training itself.
    one, two = on_one_and_two
    assert two.artifact.network.shape.unit > 0
    assert [step for step, _ in two.curve] == [step for step, _ in one.curve]
    for (step, expected), (_, values) in zip(one.curve, two.curve, strict=True):
        assert values == pytest.approx(expected, rel=1e-2), step
    assert two.summary["best_step"] == one.summary["best_step"] == 24
    assert float(two.summary["val/loss"]) < 0.99 * float(two.summary["val/loss_closed_form"])
    for name in ("val/loss", "val/loss_closed_form"):
        assert two.summary[name] == pytest.approx(one.summary[name], rel=1e-3)


@pytest.mark.trains
def test_two_processes_forecast_what_one_does(on_one_and_two: tuple[FitResult, FitResult], numeric: Loaded) -> None:
    windows = WindowIndex(np.arange(8), numeric.panel.lengths - 1)
    one, two = (predict(result.artifact, numeric.panel, windows).base for result in on_one_and_two)
    np.testing.assert_allclose(two, one, rtol=1e-2)


def test_a_network_is_not_trained_on_another_scale_than_its_own(train: Train, numeric: Loaded) -> None:
    network = train(numeric, model={"transform": "log"}).artifact.network
    assert isinstance(network, RecurrentForecaster)
    lengths = numeric.panel.lengths
    windows = WindowIndex(np.arange(8), lengths - 8)
    config = FitConfig(max_steps=1, origins=2, accelerator="cpu", holdout_windows=4, validation_windows=4)
    job = TrainingJob(network, config, numeric.panel, lengths, windows, Budget(1, None))
    with pytest.raises(AssertionError, match="another scale"):
        run_training(job, PanelTensors(numeric.panel), BestWeights(network, 1.0, 1, None), None)


# --- ensembles

# On one scale for all: quantiles are averaged on that of the model.
MEMBERS: dict[str, Any] = {**LEARNING, "model": {"transform": "none"}}


@pytest.fixture(scope="module")
def ensemble(train: Train, weekly_loaded: Loaded) -> FitResult:
    return train(weekly_loaded, **MEMBERS, ensemble=3)


def test_an_ensemble_forecasts_the_mean_of_what_its_members_would_alone(
    train: Train, ensemble: FitResult, weekly_loaded: Loaded
) -> None:
    windows = WindowIndex(np.arange(8), weekly_loaded.panel.lengths - 1)
    alone = [train(weekly_loaded, **MEMBERS, seed=seed).artifact for seed in range(3)]
    each = [predict(artifact, weekly_loaded.panel, windows).base for artifact in alone]
    made = predict(ensemble.artifact, weekly_loaded.panel, windows).base
    np.testing.assert_allclose(made, np.mean(each, axis=0), rtol=1e-5, atol=1e-4)
    assert (np.diff(made, axis=-1) >= 0).all()
    assert not np.allclose(each[0], each[1])
    assert ensemble.summary["steps"] == 120
    assert float(ensemble.summary["val/loss"]) < float(ensemble.summary["val/loss_closed_form"])


def test_what_validation_judges_has_not_been_fitted_on_it(
    train: Train, ensemble: FitResult, weekly_loaded: Loaded
) -> None:
    alone = train(weekly_loaded, **MEMBERS)
    for result in (alone, ensemble):
        network, panel = result.validation_artifact.network, weekly_loaded.panel
        windows = split_panel(panel, 7, FitConfig(holdout_windows=4, validation_windows=4)).validation
        data = PanelTensors(panel, unit=network.shape.unit)
        assert validation_loss(network, data, windows) == pytest.approx(result.summary["val/loss"], rel=1e-6)
        for before, after in zip(members_of(network), members_of(result.artifact.network), strict=True):
            changed = {
                name
                for name, values in after.state_dict().items()
                if not torch.equal(values, before.state_dict()[name])
            }
            assert "skip" in changed, "the line of the model has seen these windows"
            assert changed <= {"skip", "log_scale", "mean_shift"}


def test_members_share_one_scale_and_only_quantiles_are_averaged(train: Train, weekly_loaded: Loaded) -> None:
    logarithmic = train(weekly_loaded, ensemble=2, model={"transform": "log"}).artifact
    units = {member.shape.unit for member in members_of(logarithmic.network)}
    assert len(units) == 1
    assert units.pop() > 0
    with pytest.raises(ConfigError, match=r"fit.ensemble: .*; set model.head=quantile \(given: normal\)"):
        train(weekly_loaded, ensemble=2, model={"head": "normal"})


def test_an_ensemble_survives_its_folder_and_is_fine_tuned_like_one_network(
    ensemble: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    settings = FinetuneSettings(min_gain=0, min_windows_better=0, gate_windows=2, report_windows=1, origins=32)
    tuned = finetune(ensemble.artifact, weekly_loaded.panel, settings).artifact
    digest = tuned.save(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "bank.safetensors",
        "coupling.safetensors",
        "final-bank.safetensors",
        "member-02.safetensors",
        "member-03.safetensors",
        "model.safetensors",
    ]
    stored = load(tmp_path)
    assert stored.digest() == digest
    assert stored.base().digest() == ensemble.artifact.digest()
    windows = WindowIndex(np.arange(8), weekly_loaded.panel.lengths - 1)
    before, after = (predict(artifact, weekly_loaded.panel, windows) for artifact in (tuned, stored))
    assert after.is_tuned.any()
    np.testing.assert_array_equal(before.tuned, after.tuned)
    np.testing.assert_array_equal(before.base, after.base)


def test_an_ensemble_that_was_killed_keeps_the_members_it_has(
    train: Train, ensemble: FitResult, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(weekly_loaded, **MEMBERS, ensemble=3, checkpoint=str(tmp_path), progress=killed_at(0.5))
    assert len(list(tmp_path.iterdir())) == 2
    resumed = train(weekly_loaded, **MEMBERS, ensemble=3, checkpoint=str(tmp_path))
    assert resumed.artifact.digest() == ensemble.artifact.digest()
    assert resumed.curve == ensemble.curve
    assert not any(tmp_path.iterdir())


def test_the_last_solve_changes_the_skip_alone(trained: FitResult) -> None:
    # What the network was trained with stays.
    before, after = (made.network.state_dict() for made in (trained.validation_artifact, trained.artifact))
    changed = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert "skip" in changed
    assert changed <= {"skip", "mean_shift"}
