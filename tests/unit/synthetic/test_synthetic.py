"""The stream of synthetic series: what a batch holds, and that it can be drawn again."""

from itertools import islice

import numpy as np
import pytest
from scipy.signal import lfilter

from forecast.errors import ConfigError
from forecast.synthetic import SeriesBatch, Stream
from forecast.synthetic.artefacts import hold, spoil
from forecast.synthetic.components import Layout, autoregress, standardise
from forecast.synthetic.families import FAMILIES
from forecast.synthetic.families.arima import filter_seasons
from forecast.synthetic.families.calendar import dates_of
from forecast.synthetic.mixing import mix


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


@pytest.fixture(scope="module")
def plain() -> SeriesBatch:
    """A batch without artefacts and mixtures."""
    return Stream(seed=1, n_series=1200, context=200, horizon=24, artefacts=False, mixing=0).batch(0)


def test_every_batch_has_all_families_in_their_shares_shuffled() -> None:
    stream = Stream(seed=5, n_series=64, context=60, horizon=8)
    share = np.asarray(list(stream.shares.values()))
    for batch in islice(stream.batches(), 3):
        count = np.bincount(batch.family, minlength=len(FAMILIES))
        assert (np.abs(count - 64 * share / share.sum()) < 1).all()
        assert count.min() > 0
        assert (np.diff(batch.family) < 0).sum() > 10  # not one family after another


def test_values_are_finite_and_fill_the_history_and_the_horizon(plain: SeriesBatch) -> None:
    assert np.isfinite(plain.values).all()
    steps = np.arange(224)
    assert np.array_equal(plain.observed, steps >= 200 - plain.length[:, None])
    assert (plain.values[~plain.observed] == 0).all()
    assert plain.length.min() >= 8
    assert plain.length.max() <= 200
    constant = np.ptp(np.where(plain.observed, plain.values, plain.values[:, -1:]), axis=1) == 0
    assert constant.mean() < 0.03


def test_low_frequencies_have_the_larger_share_and_short_histories(plain: SeriesBatch) -> None:
    seasons = {int(season): (plain.season_length == season).mean() for season in np.unique(plain.season_length)}
    assert seasons[1] > 0.15
    assert seasons[4] > 0.1
    assert seasons[12] > 0.15
    assert np.median(plain.length[plain.season_length == 4]) < 60
    second = plain.second_season > 0
    assert second.any()
    assert (plain.second_season[second] % plain.season_length[second] == 0).all()
    assert set(plain.season_length[plain.family == list(FAMILIES).index("calendar")]) <= {5, 7, 12, 24, 48, 52, 96}


def test_counts_are_whole_numbers_and_other_families_have_either_sign(plain: SeriesBatch) -> None:
    counts = plain.family == list(FAMILIES).index("counts")
    values = plain.values[counts]
    assert (values >= 0).all()
    assert np.array_equal(values, np.rint(values))
    assert (values == 0).mean() > 0.2
    grown = plain.family == list(FAMILIES).index("growth")
    negative = (np.where(plain.observed, plain.values, 0).sum(1) < 0)[grown].mean()
    assert 0.35 < negative < 0.65


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "growth"])
def test_families_have_the_season_that_they_claim(name: str) -> None:
    """The autocorrelation of differences at the season is above that half a season off, in the mean of many series."""
    batch = Stream(seed=2, n_series=300, context=200, horizon=24, shares={name: 1.0}, artefacts=False, mixing=0).batch(
        0
    )
    at, off = [], []
    for values, season in zip(batch.values, batch.season_length, strict=True):
        if season in (7, 12, 24):
            change = np.diff(values[-160:].astype(np.float64))
            change = np.clip(change / (change.std() + 1e-9), -3, 3)
            at.append(np.mean(change[season:] * change[:-season]))
            off.append(np.mean(change[season // 2 :] * change[: -(season // 2)]))
    assert len(at) > 40
    assert np.mean(at) > np.mean(off) + 0.05


def test_growth_is_smooth_and_goes_on() -> None:
    """Yearly levels: the drift of the past says where the future goes, in most series."""
    batch = Stream(
        seed=3, n_series=600, context=60, horizon=8, shares={"growth": 1.0}, artefacts=False, mixing=0
    ).batch(0)
    rows = batch.values[(batch.season_length == 1) & (batch.length >= 12)].astype(np.float64)
    drift, step = rows[:, 59] - rows[:, 49], np.abs(np.diff(rows[:, 49:60])).mean(1)
    future = rows[:, 67] - rows[:, 59]
    assert (np.sign(drift) == np.sign(future)).mean() > 0.65
    assert np.median(np.abs(drift) / (10 * step)) > 0.5  # mostly one way


def test_artefacts_take_values_away_and_outliers_come_late() -> None:
    clean = Stream(seed=7, n_series=300, context=120, horizon=16, artefacts=False)
    spoilt = Stream(seed=7, n_series=300, context=120, horizon=16, curriculum=10)
    before, after = clean.batch(0), spoilt.batch(0)
    lost = before.observed & ~after.observed
    assert 0.002 < lost.mean() < 0.1
    assert (after.observed <= before.observed).all()
    first = np.take_along_axis(after.observed, 120 - after.length[:, None], 1)
    assert first.all()
    assert (after.observed[:, :120].sum(1) >= after.length // 2).all()
    counts = after.family == list(FAMILIES).index("counts")
    assert np.array_equal(after.values[counts], np.rint(after.values[counts]))
    layout = Layout(np.full(400, 24), np.zeros(400, int), np.full(400, 100), 20, 120)
    walks = np.random.default_rng(0).standard_normal((400, 120))
    largest = [
        np.abs(spoil(np.random.default_rng(1), walks, layout, np.zeros(400, bool), outliers)[0]).max(1)
        for outliers in (0.0, 1.0)
    ]
    assert (largest[0] < 5).all()
    assert 0.02 < (largest[1] > 5).mean() < 0.2


def test_held_sensors_repeat_the_last_value() -> None:
    values = np.arange(8.0)[None]
    held = np.isin(np.arange(8), [2, 3, 6])[None]
    assert hold(values, held).tolist() == [[0, 1, 1, 1, 4, 5, 5, 7]]


def test_mixtures_keep_lengths_and_the_unit_of_their_first_series() -> None:
    random = np.random.default_rng(0)
    history = random.integers(10, 60, 200)
    layout = Layout(random.choice([4, 7], 200), np.zeros(200, int), history, 8, 68)
    values = np.where(layout.visible, 100 + random.standard_normal((200, 68)), np.nan)
    mixed = np.arange(200) < 100
    out = mix(random, values, layout, mixed, np.ones(200, bool))
    assert np.array_equal(np.isfinite(out), layout.visible)  # partners cover the whole history
    assert np.array_equal(out[100:], values[100:], equal_nan=True)
    assert not np.array_equal(out[:100], values[:100], equal_nan=True)
    assert np.allclose(np.nanmean(out[:, :60], 1), np.nanmean(values[:, :60], 1))


def test_the_future_does_not_move_the_past_of_a_standardised_series() -> None:
    layout = Layout(np.ones(3, int), np.zeros(3, int), np.array([10, 20, 30]), 8, 40)
    values = np.random.default_rng(0).standard_normal((3, 40))
    changed = values.copy()
    changed[:, 32:] += 1e3
    assert np.array_equal(standardise(values, layout)[:, :32], standardise(changed, layout)[:, :32])


def test_seasonal_filter_is_the_recursion() -> None:
    random = np.random.default_rng(0)
    shocks, weight, moving = random.standard_normal((2, 30)), np.array([[0.8], [0.5]]), np.array([[0.0], [-0.3]])
    out = filter_seasons(shocks, np.array([4, 7]), weight, moving)
    for row, season in enumerate((4, 7)):
        for step in range(season, 30):
            expected = (
                weight[row, 0] * out[row, step - season]
                + shocks[row, step]
                + moving[row, 0] * shocks[row, step - season]
            )
            assert out[row, step] == pytest.approx(expected, abs=1e-12)


def test_autoregression_is_the_recursion() -> None:
    random = np.random.default_rng(0)
    shocks, weights = random.standard_normal((3, 40)), np.array([[0.5, 0.2], [1.2, -0.5], [0.9, 0]])
    for row in range(3):
        expected = lfilter([1], [1, *-weights[row]], shocks[row])
        assert autoregress(shocks, weights)[row] == pytest.approx(expected, abs=1e-10)


def test_calendar_dates_are_days_weeks_or_months() -> None:
    layout = Layout(np.array([5, 7, 12, 52, 24]), np.zeros(5, int), np.full(5, 80), 20, 100)
    dates = dates_of(np.random.default_rng(0), layout)
    weekday = (dates.astype(np.int64) + 3) % 7
    assert weekday[0].max() < 5
    assert (np.diff(dates[1]).astype(int) == 1).all()
    assert (np.diff(dates[2].astype("M8[M]")).astype(int) == 1).all()
    assert (np.diff(dates[3]).astype(int) == 7).all()
    assert np.diff(dates[4]).astype(int).sum() == 99 // 24
