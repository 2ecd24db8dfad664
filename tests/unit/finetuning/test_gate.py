"""The two gates, on hand-made losses."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from scipy import stats

from forecast.config import FinetuneSettings
from forecast.errors import GateRefused
from forecast.finetuning.gate import choose_strict
from forecast.promotion import Verdict, compare, judge

SETTINGS = FinetuneSettings(min_gain=0.1, min_windows_better=0.75)
BASE = np.full((1, 4), 1.0)


def one(*candidates: list[float]) -> np.ndarray:
    """Losses of one series, [1, windows, strengths], from a list of windows per strength."""
    return np.array(candidates).T[None]


def test_the_strength_with_the_least_loss_is_chosen() -> None:
    found = choose_strict(BASE, one([0.9] * 4, [0.5] * 4, [0.7] * 4), SETTINGS)
    assert (found.strength[0], found.gain[0], found.chosen[0]) == (1, 0.5, True)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ([0.89, 0.89, 0.89, 0.89], True),
        ([0.91, 0.91, 0.91, 0.91], False),  # too little
        ([0.0, 0.0, 1.0, 1.2], False),  # better on half of the windows
        ([0.5, 0.5, 0.5, 1.2], True),  # better on three of four
        ([0.9, 0.9, 0.9, 4.0], False),  # worse in sum
        ([1.0, 1.0, 1.0, 1.0], False),
    ],
)
def test_a_series_leaves_the_base_for_enough_gain_on_enough_windows(losses: list[float], chosen: bool) -> None:
    found = choose_strict(BASE, one(losses), SETTINGS)
    assert bool(found.chosen[0]) is chosen
    assert found.gain[0] == pytest.approx(1 - sum(losses) / 4)


def test_a_candidate_that_is_not_finite_is_not_chosen() -> None:
    found = choose_strict(BASE, one([math.nan, 0.1, 0.1, 0.1], [0.8] * 4, [math.inf, 0.0, 0.0, 0.0]), SETTINGS)
    assert (found.strength[0], bool(found.chosen[0])) == (1, True)
    found = choose_strict(BASE, one([math.nan] * 4, [math.inf] * 4), SETTINGS)
    assert not found.chosen[0]


@pytest.mark.parametrize("least", [0.5, 0.75, 1.0])
@pytest.mark.parametrize(
    ("base", "losses", "chosen"),
    [
        ([1.0, math.nan, 1.0, 1.0], [0.75, math.nan, 0.75, 0.75], True),  # a closed week
        ([1.0, math.nan, 1.0, 1.0], [0.75, 0.0, 0.75, 0.75], True),  # whatever stands there
        ([math.nan, math.nan, 1.0, 1.0], [math.nan, math.nan, 0.75, 0.75], True),
        ([1.0, math.nan, 1.0, 1.0], [0.95, math.nan, 0.95, 0.95], False),  # too little
        ([1.0, math.nan, 1.0, 1.0], [1.1, math.nan, 1.1, 0.4], False),  # better on one of three
        ([math.nan, math.nan, math.nan, 1.0], [math.nan, math.nan, math.nan, 0.1], False),  # one window says too little
        ([math.nan] * 4, [math.nan] * 4, False),
        ([1.0, 0.0, 1.0, 1.0], [0.75, 0.0, 0.75, 0.75], True),  # nothing to gain on there
        ([1.0, 0.0, 1.0, 1.0], [0.5, 0.1, 1.2, 1.1], False),
    ],
)
def test_a_window_without_an_observation_speaks_for_neither(
    base: list[float], losses: list[float], chosen: bool, least: float
) -> None:
    settings = SETTINGS.model_copy(update={"min_windows_better": least})
    found = choose_strict(np.array([base]), one(losses), settings)
    assert bool(found.chosen[0]) is chosen
    observed = ~np.isnan(base)
    total = np.array(base)[observed].sum()
    gain = 1 - np.array(losses)[observed].sum() / total if total else 0.0
    assert found.gain[0] == pytest.approx(gain)


def test_a_base_without_loss_can_not_be_gained_on() -> None:
    found = choose_strict(np.zeros((1, 4)), one([0.0] * 4, [1.0] * 4), SETTINGS)
    assert (found.gain[0], bool(found.chosen[0])) == (0.0, False)


def test_series_are_decided_one_by_one() -> None:
    together = np.concatenate([one([0.5] * 4, [0.9] * 4), one([2.0] * 4, [1.0] * 4), one([0.95] * 4, [0.6] * 4)])
    found = choose_strict(np.ones((3, 4)), together, SETTINGS)
    assert found.strength.tolist() == [0, 1, 1]
    assert found.chosen.tolist() == [True, False, True]


# --- challenger against champion


def scores(model: str, mase: list[float], wql: list[float], cutoffs: int = 1) -> pl.DataFrame:
    """Scores of one series per number, with |y| summing to 1 in each window."""
    n = len(mase)
    return pl.concat(
        pl.DataFrame(
            {
                "series_id": [f"s{i}" for i in range(n)],
                "cutoff": [cutoff] * n,
                "model": [model] * n,
                "mase": mase,
                "smape": [1.0] * n,
                "rmsse": mase,
                "abs_error": [1.0] * n,
                "pinball": wql,
                "abs_target": [1.0] * n,
                "error": [0.0] * n,
                "covered": [1] * n,
                "width": [1.0] * n,
                "n_steps": [1] * n,
            }
        )
        for cutoff in range(cutoffs)
    )


def test_a_better_challenger_is_let_through_with_the_numbers() -> None:
    both = pl.concat([scores("new", [0.8, 0.9], [0.4, 0.6]), scores("old", [1.0, 1.2], [0.5, 0.7])])
    verdict = compare(both, "new", "old")
    assert verdict.metrics["MASE"] == pytest.approx((0.85, 1.1))
    assert verdict.metrics["WQL"] == pytest.approx((0.5, 0.6))
    assert (verdict.incumbent, verdict.n_windows, verdict.blocks) == ("old", 2, 1)
    assert math.isnan(verdict.p_value)
    assert str(verdict).endswith("of old on 2 windows (1 block of time)")
    assert "MASE 0.8500 against 1.1000" in str(verdict)


@pytest.mark.parametrize(
    ("mase", "wql", "named"),
    [([1.1, 1.3], [0.4, 0.6], "worse than old in MASE:"), ([0.8, 0.9], [0.9, 0.9], "worse than old in WQL:")],
)
def test_a_challenger_that_is_worse_in_either_is_refused(mase: list[float], wql: list[float], named: str) -> None:
    both = pl.concat([scores("new", mase, wql), scores("old", [1.0, 1.2], [0.5, 0.7])])
    with pytest.raises(GateRefused, match=named):
        compare(both, "new", "old")


@pytest.mark.parametrize(
    ("mase", "wql", "through"),
    [
        (1.0005, 0.9, True),  # hardly worse in one, better in the other
        (1.0005, 1.0, False),  # hardly worse, for nothing
        (1.0005, 0.9995, False),  # hardly worse, for hardly anything
        (1.002, 0.5, False),
    ],
)
def test_hardly_worse_in_one_is_let_through_for_a_gain_in_the_other(mase: float, wql: float, through: bool) -> None:
    both = pl.concat([scores("fine_tuned", [mase] * 4, [wql] * 4), scores("champion", [1.0] * 4, [1.0] * 4)])
    if through:
        assert compare(both, "fine_tuned", "champion").metrics["WQL"][0] == pytest.approx(wql)
    else:
        with pytest.raises(GateRefused, match="is worse than champion in MASE"):
            compare(both, "fine_tuned", "champion")


def test_an_equal_challenger_is_let_through() -> None:
    both = pl.concat([scores("new", [1.0, 2.0], [0.5, 0.5]), scores("old", [1.0, 2.0], [0.5, 0.5])])
    verdict = compare(both, "new", "old")
    assert verdict.metrics["MASE"][0] == verdict.metrics["MASE"][1]
    assert math.isnan(verdict.p_value)


def nights(better: list[float], series: int = 30, last: list[int] | None = None) -> pl.DataFrame:
    """Nightly scores of two versions; the new one is `better` by so much each night, on all series about alike.

    With `last` the targets of the cutoffs are observed up to that day.
    """
    rng = np.random.default_rng(0)
    first = datetime(2024, 3, 25)
    parts = []
    for number, gain in enumerate(better):
        base = 1 + 0.1 * rng.random(series)
        for name, mase in (("old", base), ("new", base - gain)):
            part = scores(name, mase.tolist(), mase.tolist()).with_columns(cutoff=first + timedelta(days=number))
            if last is not None:
                part = part.with_columns(observed_until=first + timedelta(days=last[number]))
            parts.append(part)
    return pl.concat(parts)


def test_the_test_is_over_cutoffs_whatever_series_there_are() -> None:
    better = [0.3, 0.2, 0.4, 0.1, 0.3]
    found = [compare(nights(better, series), "new", "old") for series in (1, 2, 300)]
    expected = stats.ttest_1samp(better, 0, alternative="greater").pvalue
    assert [verdict.p_value for verdict in found] == pytest.approx([expected] * 3)
    assert {verdict.blocks for verdict in found} == {5}
    assert str(found[0]).endswith(f"on 5 windows (5 blocks of time, p = {expected:.3g})")


def test_cutoffs_whose_targets_are_of_one_day_are_one_block() -> None:
    verdict = compare(nights([0.3, 0.2, 0.4, 0.1, 0.3], series=150, last=[5] * 5), "new", "old")
    assert verdict.blocks == 1
    assert math.isnan(verdict.p_value)
    for last, blocks in ([2, 3, 4, 5, 6], 3), ([1, 2, 3, 4, 5], 5), ([3, 4, 5, 5, 5], 2):
        assert compare(nights([0.3, 0.2, 0.4, 0.1, 0.3], last=last), "new", "old").blocks == blocks


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_the_last_targets_of_a_backtest_say_which_cutoffs_overlap(zone: str | None) -> None:
    """In the night to 31 March the clocks change."""
    table = nights([0.3, 0.2, 0.4, 0.1, 0.3, 0.2, 0.1, 0.2]).with_columns(pl.col("cutoff").dt.replace_time_zone(zone))
    table = table.with_columns(pl.col("model").replace({"old": "seasonal_naive", "new": "pretrained"}))
    moments = table["cutoff"].unique().sort()
    for days, blocks in ((1, 8), (2, 4), (5, 2)):
        until = [datetime.fromisoformat(str(moment)) for moment in moments.dt.offset_by(f"{days}d")]
        assert judge(table, "pretrained", until).blocks == blocks
    assert judge(table, "pretrained").blocks == 8


def test_only_windows_of_both_count() -> None:
    more = scores("new", [0.9, 0.9, 50.0], [0.5] * 3, cutoffs=2)
    verdict = compare(pl.concat([more, scores("old", [1.0, 1.0], [0.5, 0.5])]), "new", "old")
    assert (verdict.n_windows, verdict.metrics["MASE"]) == (2, pytest.approx((0.9, 1.0)))
    with pytest.raises(GateRefused, match=r"no backtest window in common"):
        compare(more, "new", "old")


def test_series_without_a_mase_are_judged_by_the_others_or_by_wql_alone() -> None:
    both = pl.concat([scores("new", [0.9, math.nan], [0.5, 0.5]), scores("old", [1.0, math.nan], [0.5, 0.6])])
    assert compare(both, "new", "old").metrics["MASE"] == pytest.approx((0.9, 1.0))
    undefined = pl.concat([scores("new", [math.nan] * 2, [0.4, 0.4]), scores("old", [math.nan] * 2, [0.5, 0.5])])
    verdict = compare(undefined, "new", "old")
    assert isinstance(verdict, Verdict)
    assert math.isnan(verdict.metrics["MASE"][0])
    with pytest.raises(GateRefused, match=r"worse than new in WQL"):
        compare(undefined, "old", "new")


def test_the_first_champion_has_to_beat_its_rival() -> None:
    equal = pl.concat([scores("new", [1.0, 1.0], [0.5, 0.5]), scores("old", [1.0, 1.0], [0.5, 0.5])])
    assert compare(equal, "new", "old").metrics["MASE"] == (1.0, 1.0)
    with pytest.raises(GateRefused, match="new does not beat old"):
        compare(equal, "new", "old", must_beat=True)


# --- a fine-tuned challenger against its base


def losses(model: str, loss: list[float]) -> pl.DataFrame:
    """Scores of classes, of one series per number."""
    made = pl.DataFrame({"series_id": [f"s{i}" for i in range(len(loss))], "log_loss": loss})
    return made.with_columns(cutoff=0, model=pl.lit(model), brier=0.5, correct=1, n_steps=2)


@pytest.mark.parametrize("made", [losses, lambda model, loss: scores(model, loss, loss)])
def test_a_fine_tuned_challenger_that_is_worse_than_its_base_is_refused(
    made: Callable[[str, list[float]], pl.DataFrame],
) -> None:
    naive, base = made("seasonal_naive", [2.0, 2.0]), made("pretrained", [1.0, 1.0])
    for tuned, refused in ([0.9, 1.2], True), ([0.9, 1.0], False), ([1.0, 1.0], False):
        found = pl.concat([naive, base, made("fine_tuned", tuned)])
        if refused:
            with pytest.raises(GateRefused, match=r"fine_tuned is worse than pretrained in (log-loss|MASE and WQL): "):
                judge(found, "fine_tuned")
        else:
            assert judge(found, "fine_tuned").incumbent == "seasonal_naive"
    # Whether its base is in the backtest or not, the champion comes first.
    champion = made("champion", [0.8, 0.8])
    with pytest.raises(GateRefused, match="fine_tuned is worse than champion"):
        judge(pl.concat([naive, base, champion, made("fine_tuned", [0.9, 0.9])]), "fine_tuned")
    worse = pl.concat([naive, made("fine_tuned", [0.9, 1.2])])
    assert judge(worse, "fine_tuned").incumbent == "seasonal_naive"
    assert judge(pl.concat([naive, base]), "pretrained").incumbent == "seasonal_naive"
