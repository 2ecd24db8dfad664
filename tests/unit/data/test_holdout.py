"""How much of a panel is held out follows from what there is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecast.data.holdout import plan_gate, plan_holdout
from forecast.data.windows import held_out_windows


@pytest.mark.parametrize(
    ("length", "horizon", "expected"),
    [
        (8760, 168, (4, 4, 168)),
        (54, 6, (1, 1, 6)),
        (28, 8, (0, 1, 8)),
        (37, 12, (0, 1, 12)),
        (24, 12, (0, 1, 7)),
        (1565, 13, (4, 4, 13)),
        (2, 3, (0, 1, 1)),
    ],
)
def test_as_much_as_leaves_seventy_percent(length: int, horizon: int, expected: tuple[int, int, int]) -> None:
    assert plan_holdout(np.array([length, length, 1]), horizon) == expected


@given(
    lengths=st.lists(st.integers(2, 3000), min_size=1, max_size=9),
    horizon=st.integers(1, 200),
    more=st.integers(0, 500),
)
def test_there_is_validation_and_something_before_it_and_more_data_hold_no_less_out(
    lengths: list[int], horizon: int, more: int
) -> None:
    panel = np.array(lengths)
    plan = plan_holdout(panel, horizon)
    usable = panel.max() - plan.holdout_windows * horizon
    windows, limits = held_out_windows(np.array([usable]), horizon=plan.validation_steps, n_windows=1)
    assert len(windows) == 1
    assert limits[0] >= 1
    typical = np.median(panel)
    held_out = plan.holdout_windows * horizon + plan.validation_windows * plan.validation_steps
    assert held_out <= max(0.3 * typical, min(horizon, typical - 1))
    longer = plan_holdout(panel + more, horizon)
    assert longer[:2] >= plan[:2]


def test_numbers_that_are_set_stay() -> None:
    assert plan_holdout(np.array([60]), 6, holdout=4, validation=2) == (4, 2, 6)
    assert plan_holdout(np.array([600]), 6, validation=20) == (4, 20, 6)
    assert plan_holdout(np.array([600]), 6, holdout=0) == (0, 4, 6)
    assert plan_gate(np.array([60]), 6, gate=4, report=2) == (4, 2)


@pytest.mark.parametrize(
    ("length", "expected"), [(8000, (14, 2)), (600, (5, 2)), (400, (4, 2)), (48, (2, 1)), (1, (2, 1)), (110, (4, 1))]
)
def test_a_gate_has_two_windows_to_four_and_more_of_long_series(length: int, expected: tuple[int, int]) -> None:
    assert plan_gate(np.array([length]), 6) == expected
