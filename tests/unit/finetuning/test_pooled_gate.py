"""The gate that pools the evidence, on panels whose gains are known."""

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from forecast.config import FinetuneSettings
from forecast.finetuning.gate import Choice, choose_strict
from forecast.finetuning.pooled_gate import choose_pooled

Array = npt.NDArray[np.float64]
SETTINGS = FinetuneSettings()
STRICT = FinetuneSettings(gate="strict")


def panel(gain: Array, noise: float = 0.05, windows: int = 4, shock: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
    """Losses of a base and of its candidates [S, windows, candidate], which gain [S, candidate] but for noise.

    A shock is what all series gain on a window, or lose.
    """
    rng = np.random.default_rng(seed)
    level = rng.lognormal(sigma=1.0, size=(len(gain), 1))
    base = level * rng.lognormal(sigma=0.2, size=(len(gain), windows))
    saved = gain[:, None] + noise * rng.normal(size=(len(gain), windows, gain.shape[1]))
    saved = saved + shock * rng.normal(size=(1, windows, 1))
    return base, base[..., None] * (1 - saved)


def pool(base: Array, candidates: Array, max_harm: float = 0.1, judged: npt.NDArray[np.bool_] | None = None) -> Choice:
    cluster = np.broadcast_to(np.arange(base.shape[1]), base.shape)
    every = np.ones(len(base), dtype=bool) if judged is None else judged
    return choose_pooled(base, candidates, cluster, every, SETTINGS.model_copy(update={"max_harm": max_harm}))


@pytest.mark.parametrize("seed", range(5))
def test_a_panel_of_noise_keeps_the_base(seed: int) -> None:
    """Though some of many series are better on all their windows, by chance."""
    base, candidates = panel(np.zeros((400, 6)), seed=seed)
    assert choose_strict(base, candidates, STRICT.model_copy(update={"min_gain": 0.0})).chosen.mean() > 0.1
    choice = pool(base, candidates)
    assert choice.chosen.mean() < 0.03
    assert np.abs(choice.posterior_gain).mean() < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_gain_in_common_is_taken_by_nearly_all(seed: int) -> None:
    base, candidates = panel(np.full((400, 1), 0.03), seed=seed)
    assert choose_strict(base, candidates, STRICT).chosen.mean() < 0.2
    choice = pool(base, candidates)
    assert choice.chosen.mean() > 0.95
    assert np.abs(choice.posterior_gain - 0.03).mean() < np.abs(choice.gain - 0.03).mean() / 2


@pytest.mark.parametrize("seed", range(5))
def test_of_a_mixed_panel_the_right_series_are_chosen(seed: int) -> None:
    gains = np.where(np.arange(400) < 100, 0.15, -0.03)[:, None]
    choice = pool(*panel(gains, noise=0.08, seed=seed))
    assert choice.chosen[:100].mean() > 0.9
    assert choice.chosen[100:].mean() < 0.05
    # What is expected of those is what they gain.
    assert choice.posterior_gain[:100].mean() == pytest.approx(0.15, abs=0.04)


def test_the_better_candidate_is_taken_by_those_that_it_suits() -> None:
    gains = np.where(np.arange(200)[:, None] < 100, [[0.10, 0.02]], [[0.02, 0.10]])
    choice = pool(*panel(gains, noise=0.03))
    assert (choice.strength[:100] == 0).mean() > 0.95
    assert (choice.strength[100:] == 1).mean() > 0.95


def test_the_posterior_lies_between_a_series_and_its_panel_and_harm_is_calibrated() -> None:
    rng = np.random.default_rng(1)
    gains = rng.normal(0.02, 0.05, size=(4000, 1))
    base, candidates = panel(gains, noise=0.1)
    choice = pool(base, candidates)
    error = choice.posterior_gain - gains[:, 0]
    assert np.square(error).mean() < np.square(choice.gain - gains[:, 0]).mean() / 1.3
    for low in (0.0, 0.2, 0.4, 0.6):
        here = (choice.harm_probability >= low) & (choice.harm_probability < low + 0.2)
        assert (gains[here, 0] < 0).mean() == pytest.approx(choice.harm_probability[here].mean(), abs=0.06)


def test_what_all_series_have_in_common_on_a_window_is_no_evidence_of_each() -> None:
    """A panel that gained on four weeks because these were odd ones has shown four weeks, not 400 series."""
    chosen = {}
    for shock in (0.0, 0.05):
        parts = [pool(*panel(np.zeros((400, 1)), noise=0.02, shock=shock, seed=seed)) for seed in range(20)]
        chosen[shock] = np.array([part.chosen.mean() for part in parts])
    assert chosen[0.0].max() < 0.02
    assert (chosen[0.05] > 0.5).mean() <= 0.25


def test_neither_order_nor_other_series_without_evidence_matter() -> None:
    rng = np.random.default_rng(2)
    base, candidates = panel(rng.normal(0.02, 0.05, size=(50, 3)), noise=0.1)
    choice, order = pool(base, candidates), rng.permutation(50)
    turned = pool(base[order], candidates[order])
    assert (turned.strength == choice.strength[order]).all()
    assert (turned.chosen == choice.chosen[order]).all()
    np.testing.assert_allclose(turned.posterior_gain, choice.posterior_gain[order], rtol=1e-9)
    # A constant series, one without an observation, one with a single window, and one that is not judged.
    odd = np.array([[0.0] * 4, [np.nan] * 4, [np.nan, np.nan, np.nan, 1.0], [1.0] * 4])
    more = pool(
        np.concatenate([base, odd]),
        np.concatenate([candidates, np.repeat(odd[..., None], 3, axis=2) * 0.1]),
        judged=np.append(np.ones(53, dtype=bool), False),
    )
    np.testing.assert_array_equal(more.posterior_gain[:50], choice.posterior_gain)
    assert not more.chosen[50:].any()
    assert np.isnan(more.posterior_gain[50:]).all()
    assert more.gain[50] == 0.0


def test_a_candidate_that_is_not_finite_is_not_chosen() -> None:
    base, candidates = panel(np.full((40, 2), 0.1), noise=0.01)
    candidates[0, 1, 0], candidates[1, 2, 1] = np.nan, np.inf
    candidates[2] = np.nan
    choice = pool(base, candidates)
    assert choice.strength[:2].tolist() == [1, 0]
    assert choice.chosen.tolist() == [True, True, False, *[True] * 37]


def test_a_window_without_an_observation_speaks_for_neither() -> None:
    base, candidates = panel(np.full((40, 1), 0.1), noise=0.02)
    base[0, 1] = np.nan
    candidates[0, 1] = np.nan
    missing = pool(base, candidates)
    candidates[0, 1] = 100.0
    np.testing.assert_array_equal(pool(base, candidates).posterior_gain, missing.posterior_gain)
    assert missing.gain[0] == pytest.approx(1 - np.nansum(candidates[0, [0, 2, 3], 0]) / np.nansum(base[0]))


@pytest.mark.parametrize("windows", [2, 4])
def test_a_series_alone_is_judged_by_its_own_windows_held_against_no_gain(windows: int) -> None:
    def alone(saved: float, noise: float = 0.0) -> Choice:
        losses = 1 - saved + noise * np.where(np.arange(windows) % 2, 1.0, -1.0)
        return pool(np.ones((1, windows)), losses[None, :, None])

    for saved in (0.02, 0.3):
        assert 0 < alone(saved).posterior_gain[0] < saved
    assert alone(0.3).posterior_gain[0] > alone(0.02).posterior_gain[0]
    assert alone(0.02, noise=0.2).harm_probability[0] > 0.3
    assert not alone(0.02, noise=0.2).chosen[0]
    assert not alone(-0.1).chosen[0]
    assert not alone(0.001).chosen[0]


def test_more_risk_is_more_series() -> None:
    gains = np.random.default_rng(3).normal(0.01, 0.04, size=(400, 2))
    base, candidates = panel(gains, noise=0.1)
    counts = []
    for max_harm in (0.02, 0.1, 0.3, 0.5):
        choice = pool(base, candidates, max_harm)
        assert (choice.harm_probability[choice.chosen] <= max_harm).all()
        counts.append(int(choice.chosen.sum()))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_bounds_of_the_strict_gate_mean_that_gate() -> None:
    assert FinetuneSettings().gate == "pooled"
    assert FinetuneSettings(min_gain=0.1).gate == FinetuneSettings(min_windows_better=0.5).gate == "strict"
    for settings in (FinetuneSettings(), FinetuneSettings(min_gain=0.1)):
        assert FinetuneSettings.model_validate(settings.model_dump()) == settings
    with pytest.raises(ValidationError, match=r"gate=pooled does not look at min_gain: set gate=strict"):
        FinetuneSettings(gate="pooled", min_gain=0.1)
