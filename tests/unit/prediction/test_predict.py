"""Forecasts of panels."""

import dataclasses
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact
from forecast.config import ModelConfig, WindowConfig
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.windows import BATCH_SIZE, WindowIndex
from forecast.errors import DataError
from forecast.models.adapters.bank import AdapterBank
from forecast.models.inputs.shape import NetworkShape
from forecast.models.linear.ridge import seasonal_solution
from forecast.models.network.forecaster import RecurrentForecaster
from forecast.prediction.from_table import example, forecast, forecast_frame
from forecast.prediction.predict import predict
from forecast.training.result import FitResult

Table, Load = Callable[..., pl.DataFrame], Callable[..., Loaded]
QUANTILES = [f"q{k}0" for k in range(1, 10)]


@pytest.fixture(scope="module")
def mixed(table: Table, loaded: Load) -> tuple[pl.DataFrame, Loaded]:
    """Series in all states at the end, step 99, of the panel; the covariates of `trained`."""
    rng = np.random.default_rng(5)
    series = {
        "alive": 10 + rng.normal(size=100),
        "constant": np.full(100, 4.0),
        "dead": 10 + rng.normal(size=40),
        "died_young": np.array([3.0, 5.0]),
        "gappy": np.where(rng.random(100) < 0.6, np.nan, rng.normal(size=100)),
        "late": rng.normal(size=30),
        "newborn": np.array([7.0]),
        "never": np.full(10, np.nan),
    }
    series["gappy"][[0, -1]] = 1.0
    columns = {
        "rain": {name: np.zeros(len(values)) for name, values in series.items()},
        "promo": {name: np.zeros(len(values)) for name, values in series.items()},
        "city": {name: ["paris"] * len(values) for name, values in series.items()},
        "size": {name: np.ones(len(values)) for name, values in series.items()},
    }
    made = table(series, late={"late": 70, "newborn": 99}, **columns)
    kinds = {"past_covariates": ["rain"], "known_covariates": ["promo"], "static_covariates": ["city", "size"]}
    return made, loaded(made, 7, {"city": ("oslo", "rome")}, max_reject_share=0.5, **kinds)


def rows_of(panel: Panel, name: str) -> slice:
    row = panel.series_id.tolist().index(name)
    return slice(int(panel.offsets[row]), int(panel.offsets[row + 1]))


def test_every_series_is_forecast_or_rejected(trained: FitResult, mixed: tuple[pl.DataFrame, Loaded]) -> None:
    made_table, found = mixed
    names = set(made_table["series_id"])
    first = int(found.panel.start.min())
    for step in (99, 80, 70, 69, 1, 0):
        made = forecast(trained.artifact, found.panel, cutoff=first + step, model_version="v1")
        ours, refused = set(made.frame["series_id"]), {*made.rejects["series_id"], *found.rejects["series_id"]}
        assert not ours & refused
        assert ours | refused == names
        assert made.frame.height == 7 * len(ours)
        assert made.rejects["series_id"].is_unique().all()
    assert refused == {"late", "newborn", "never"}


def test_the_frame_has_its_columns_in_order_and_no_gaps(trained: FitResult, mixed: tuple[pl.DataFrame, Loaded]) -> None:
    made = forecast(trained.artifact, mixed[1].panel, model_version="v7").frame
    keys = ["series_id", "timestamp", "cutoff", "step", "mean"]
    assert made.columns == [*keys, *QUANTILES, "source", "model_version"]
    assert made.equals(made.sort("series_id", "step"))
    assert made.null_count().sum_horizontal().item() == 0
    numbers = made.select("mean", *QUANTILES).to_numpy()
    assert np.isfinite(numbers).all()
    assert (np.diff(numbers[:, 1:]) >= 0).all()
    assert (numbers[:, 0] >= numbers[:, 1]).all()
    assert (numbers[:, 0] <= numbers[:, -1]).all()
    assert (made["timestamp"] - made["cutoff"] == made["step"].cast(pl.Duration("us")) * 86_400_000_000).all()
    assert made["cutoff"].unique().to_list() == [datetime(2024, 1, 1) + timedelta(days=99)]
    assert set(made["model_version"]) == {"v7"}


def test_the_ladder_goes_down_to_the_last_value(trained: FitResult, mixed: tuple[pl.DataFrame, Loaded]) -> None:
    panel = mixed[1].panel
    made = forecast(trained.artifact, panel, max_age=None).frame
    source = dict(made.select("series_id", "source").unique().iter_rows())
    alive = ("alive", "constant", "gappy", "late", "newborn")
    assert source == dict.fromkeys(alive, "pretrained") | {"dead": "last_value", "died_young": "last_value"}
    for name, value in {"dead": panel.target[rows_of(panel, "dead")][-1], "died_young": 5.0}.items():
        assert made.filter(series_id=name)["q50"].to_list() == pytest.approx([float(value)] * 7)


def test_an_empty_context_leaves_what_stood_up_to_four_seasons_ago(
    train: Callable[..., FitResult], weekly_loaded: Loaded, mixed: tuple[pl.DataFrame, Loaded]
) -> None:
    artifact, panel = train(weekly_loaded, context=14).artifact, mixed[1].panel
    # "dead" ends at step 39: of the four weeks up to step 55, one and a half are left.
    made = forecast(artifact, panel, cutoff=int(panel.start.min()) + 55, max_age=None).frame.filter(series_id="dead")
    assert set(made["source"]) == {"seasonal_naive"}
    expected = panel.target[rows_of(panel, "dead")][[35, 36, 37, 38, 39, 33, 34]]
    assert made["q50"].to_list() == pytest.approx(expected.tolist())


def test_constant_series_are_forecast_exactly(trained: FitResult, mixed: tuple[pl.DataFrame, Loaded]) -> None:
    made = forecast(trained.artifact, mixed[1].panel).frame
    numbers = made.filter(series_id="constant").select("mean", *QUANTILES).to_numpy()
    np.testing.assert_allclose(numbers, 4.0, rtol=1e-7)
    assert (numbers[:, 1:] == 4.0).all()
    # One observation says nothing about how much a series varies.
    newborn = made.filter(series_id="newborn")
    assert (newborn["q90"] > newborn["q10"]).all()


def test_a_series_is_forecast_the_same_alone_as_among_others(trained: FitResult, weekly_table: pl.DataFrame) -> None:
    together = forecast_frame(trained.artifact, weekly_table).frame
    end = weekly_table["timestamp"].max()
    assert isinstance(end, datetime)
    # The short one ends with the others, as s06 and s07 do.
    for name in ("s00", "s03", "s07"):
        alone = forecast_frame(trained.artifact, weekly_table.filter(series_id=name), cutoff=end).frame
        numbers = [frame.select("mean", *QUANTILES).to_numpy() for frame in (alone, together.filter(series_id=name))]
        np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-5)


def test_more_windows_than_a_batch_are_all_forecast(trained: FitResult, weekly_loaded: Loaded) -> None:
    panel = weekly_loaded.panel
    cutoffs = np.tile(np.arange(30, 150), 5)
    assert len(cutoffs) > BATCH_SIZE
    found = predict(trained.artifact, panel, WindowIndex(np.repeat(np.arange(5), 120), cutoffs)).base
    assert found.shape == (600, 7, 9)
    for row in (0, 511, 512, 599):
        alone = predict(trained.artifact, panel, WindowIndex(np.array([row // 120]), cutoffs[row : row + 1])).base
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-5)
    assert predict(trained.artifact, panel, WindowIndex(cutoffs[:0], cutoffs[:0])).base.shape == (0, 7, 9)


def test_a_cutoff_in_the_past_uses_nothing_behind_it(trained: FitResult, mixed: tuple[pl.DataFrame, Loaded]) -> None:
    panel = mixed[1].panel
    cutoff = int(panel.start.min()) + 75
    steps = np.arange(len(panel.target)) - np.repeat(panel.offsets[:-1], panel.lengths)
    behind = steps + np.repeat(panel.start, panel.lengths) > cutoff
    changed = dataclasses.replace(
        panel,
        target=np.where(behind, np.float32(1e6), panel.target),
        past=np.where(behind, np.float32(-1e6), panel.past),
    )
    made = [forecast(trained.artifact, p, cutoff=cutoff).frame for p in (panel, changed)]
    assert made[0].equals(made[1])
    inside = dataclasses.replace(panel, target=np.where(behind, panel.target, panel.target + steps.astype(np.float32)))
    assert not made[0].equals(forecast(trained.artifact, inside, cutoff=cutoff).frame)


def test_a_cutoff_behind_the_end_or_before_the_start_is_refused(trained: FitResult, weekly_table: pl.DataFrame) -> None:
    with pytest.raises(DataError, match=r"ends at 2024-06-08.* before the cutoff 2024-06-09.*score.cutoff"):
        forecast_frame(trained.artifact, weekly_table, cutoff=datetime(2024, 6, 9))
    with pytest.raises(DataError, match=r"no series has begun by the cutoff 2023-12-31"):
        forecast_frame(trained.artifact, weekly_table, cutoff=datetime(2023, 12, 31))
    made = forecast_frame(trained.artifact, weekly_table, cutoff=datetime(2024, 6, 8, 12)).frame
    assert made["cutoff"][0] == datetime(2024, 6, 8)


def test_the_example_is_a_table_the_model_can_read(trained: FitResult) -> None:
    table, made = example(trained.artifact)
    again = forecast_frame(trained.artifact, table)
    assert made.height == 7
    assert again.frame.equals(made)
    assert again.rejects.is_empty()


# --- a horizon over which clocks change

NEW_YORK = zoneinfo.ZoneInfo("America/New_York")


@pytest.mark.parametrize("change", [datetime(2024, 3, 10, 7), datetime(2024, 11, 3, 6)])
@pytest.mark.parametrize("hours_before", [3, 20, 25, 36])
def test_a_daily_pattern_stays_on_the_local_clock(
    table: Table, loaded: Load, change: datetime, hours_before: int
) -> None:
    # The network repeats the last day: what it says of an hour is that hour of the day before.
    start = change - timedelta(hours=hours_before + 100)
    hours = table(
        {"a": np.zeros(101)}, start=start, every=timedelta(hours=1), time_zone="America/New_York"
    ).with_columns(target=pl.col("timestamp").dt.hour().cast(pl.Float64))
    found = loaded(hours, 48, freq="1h", calendar=False)
    shape = NetworkShape(
        context_length=72,
        horizon=48,
        season_length=24,
        n_past=0,
        n_known=0,
        n_calendar=0,
        category_sizes=(),
        n_static_numbers=0,
    )
    network = RecurrentForecaster(shape, ModelConfig(hidden_size=2)).eval()
    network.skip.copy_(seasonal_solution(72, 48, 24))
    artifact = Artifact(
        network=network,
        data=found.data,
        window=WindowConfig(context_length=72, horizon=48),
        model=ModelConfig(hidden_size=2),
        categories={},
        grid=found.panel.grid,
        trained_until=0,
    )
    made = forecast(artifact, found.panel).frame
    first = (start + timedelta(hours=101)).replace(tzinfo=UTC)
    moments = [(first + timedelta(hours=k)).astimezone(NEW_YORK) for k in range(48)]
    assert made["timestamp"].to_list() == moments
    expected = [float(moment.hour) for moment in moments]
    # The last position serves twice where an hour is skipped on the way: the window ends there.
    kept = 47 if change.month == 3 else 48
    np.testing.assert_allclose(made["q50"].to_numpy()[:kept], expected[:kept], atol=1e-4)


def test_a_model_that_gives_no_finite_forecast_of_a_series_falls_back(
    trained: FitResult, weekly_loaded: Loaded
) -> None:
    artifact, panel = trained.artifact, weekly_loaded.panel
    bank = AdapterBank("head", ["s01"], {"weight": torch.full((1, 1 + 7 + 8, 7), torch.inf), "width": torch.ones(1)})
    made = forecast(artifact.with_bank(bank, trained_until=0, parent_digest="x"), panel).frame
    assert set(made["source"]) == {"pretrained"}
    assert made.drop("source").equals(forecast(artifact, panel).frame.drop("source"))


@pytest.mark.parametrize("one_pass", [False, True])
def test_a_device_that_fails_leaves_the_network_where_it_was(
    trained: FitResult, weekly_loaded: Loaded, one_pass: bool
) -> None:
    # Tensors of the device `meta` hold no values: weights that went there would be lost.
    artifact, panel = trained.artifact, weekly_loaded.panel
    windows = WindowIndex(np.arange(8), panel.lengths - 1)
    before = predict(artifact, panel, windows, one_pass=one_pass).tuned
    with pytest.raises(RuntimeError, match="meta"):
        predict(artifact, panel, windows, one_pass=one_pass, device="meta")
    assert {values.device.type for values in artifact.network.state_dict().values()} == {"cpu"}
    np.testing.assert_array_equal(predict(artifact, panel, windows, one_pass=one_pass).tuned, before)


def test_a_model_on_another_device_is_a_copy(trained: FitResult) -> None:
    artifact = trained.artifact
    assert artifact.on("cpu") is artifact
    assert {values.device.type for values in artifact.on("meta").network.state_dict().values()} == {"meta"}
    assert {values.device.type for values in artifact.network.state_dict().values()} == {"cpu"}
