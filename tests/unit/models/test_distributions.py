"""Heads that are distributions: against scipy, and at the edges of what numbers can hold."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forecast.models.heads.base import Head
from forecast.models.heads.factory import make_head
from forecast.models.heads.quantile import QuantileHead
from forecast.models.inputs.frame import Frame

DECILES = tuple(k / 10 for k in range(1, 10))
FAR = (0.001, 0.01, 0.25, 0.5, 0.8, 0.99, 0.999)
KINDS = ("normal", "student_t", "poisson", "negative_binomial")
# Arguments of each head, one row a distribution. Those of counts begin with location and divisor of the frame.
ARGUMENTS: dict[str, list[tuple[float, ...]]] = {
    "normal": [(0.0, 1.0), (-3.0, 0.01), (2.5, 40.0)],
    "student_t": [(0.0, 1.0, 2.01), (-3.0, 0.01, 2.5), (2.5, 40.0, 7.0), (1.0, 2.0, 300.0)],
    "poisson": [(0.0, 1.0, 0.02), (0.0, 1.0, 0.7), (3.0, 2.0, 4.0), (90.0, 7.0, 123.4), (8e4, 250.0, 9e4)],
    "negative_binomial": [
        (0.0, 1.0, 0.02, 0.3),
        (0.0, 1.0, 0.7, 2.0),
        (3.0, 2.0, 4.0, 0.5),
        (90.0, 7.0, 123.4, 60.0),
        (8e4, 250.0, 9e4, 1e4),
    ],
}


def scipy_of(kind: str, arguments: Sequence[float]) -> Any:
    """The distribution in units of the frame (normal, student_t) or of the target (counts)."""
    if kind == "normal":
        return stats.norm(arguments[0], arguments[1])
    if kind == "student_t":
        return stats.t(arguments[2], arguments[0], arguments[1])
    if kind == "poisson":
        return stats.poisson(arguments[2])
    mean, excess = arguments[2:]
    return stats.nbinom((mean / excess) ** 2, mean / (mean + excess**2))


def frame_units(kind: str, arguments: Sequence[float], values: np.ndarray | float) -> np.ndarray:
    location, divisor = arguments[:2] if make_head(kind, DECILES).counts else (0.0, 1.0)
    return (np.asarray(values) - location) / divisor


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_negative_log_likelihood(kind: str) -> None:
    head = make_head(kind, DECILES)
    for arguments in ARGUMENTS[kind]:
        known = scipy_of(kind, arguments)
        values = np.unique(known.ppf([1e-6, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-6]))
        expected = -(known.logpmf(values) if head.counts else known.logpdf(values))
        target = tensor(frame_units(kind, arguments, values))
        found = head.errors(tensor(arguments).expand(len(values), -1), target)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_loss_are_right(kind: str) -> None:
    head = make_head(kind, DECILES)
    for arguments in ARGUMENTS[kind]:
        target = tensor(frame_units(kind, arguments, scipy_of(kind, arguments).ppf([0.05, 0.6, 0.95])))
        scale = tensor(arguments).abs().clamp(min=1e-2)

        def loss(
            change: torch.Tensor,
            arguments: Sequence[float] = arguments,
            target: torch.Tensor = target,
            scale: torch.Tensor = scale,
        ) -> torch.Tensor:
            fixed = 2 if head.counts else 0
            moved = tensor(arguments)[fixed:] + scale[fixed:] * change
            whole = torch.cat([tensor(arguments)[:fixed], moved])
            return head.errors(whole.expand(len(target), -1), target)

        start = torch.zeros(len(arguments) - 2 * head.counts, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(loss, start, eps=1e-7, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_and_mean_are_those_of_the_distribution(kind: str) -> None:
    head, asked = make_head(kind, DECILES), tensor(FAR)
    for arguments in ARGUMENTS[kind]:
        known, made = scipy_of(kind, arguments), tensor(arguments)
        own, far = head.quantiles(made[None]), head.quantiles(made[None], asked)
        np.testing.assert_allclose(own[0], frame_units(kind, arguments, known.ppf(DECILES)), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(far[0], frame_units(kind, arguments, known.ppf(FAR)), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(head.mean(made), frame_units(kind, arguments, known.mean()), rtol=1e-9)
        # In single precision, as the network's are.
        single = head.quantiles(made[None].float())
        np.testing.assert_allclose(single[0], own[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_distribution(kind: str) -> None:
    head = make_head(kind, DECILES)
    many = torch.tensor(ARGUMENTS[kind])
    drawn = head.samples(many, 20_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (len(many), 20_000)
    assert torch.equal(drawn, head.samples(many, 20_000, torch.Generator().manual_seed(0)))
    for row, arguments in zip(drawn, ARGUMENTS[kind], strict=True):
        known = scipy_of(kind, arguments)
        values = row.double().numpy()
        if head.counts:
            values = (values * arguments[1] + arguments[0]).round()
            assert (values >= 0).all()
        for level, stated in zip(DECILES, known.ppf(DECILES), strict=True):
            # The share of draws up to a quantile: at least its level, and that without the quantile itself at most.
            slack = 5 * math.sqrt(level * (1 - level) / 20_000) + 2e-5
            assert (values <= stated + 1e-6 * abs(stated)).mean() > level - slack
            assert (values < stated - 1e-6 * abs(stated)).mean() < level + slack


@pytest.mark.parametrize("levels", [DECILES, (0.5,), (0.01, 0.3, 0.5, 0.6, 0.995)])
def test_samples_of_quantiles_are_linear_between_them_and_exponential_beyond(levels: tuple[float, ...]) -> None:
    head = QuantileHead(levels)
    stated = torch.sort(torch.randn(3, len(levels), generator=torch.Generator().manual_seed(1))).values
    drawn = head.samples(stated, 20_000, torch.Generator().manual_seed(2))
    own = torch.tensor(levels)
    torch.testing.assert_close(head.quantiles(stated, own), stated)
    if len(levels) > 1:
        torch.testing.assert_close(torch.quantile(drawn, own, dim=1).T, stated, atol=0.06, rtol=0)
        middle = head.quantiles(stated, (own[1:] + own[:-1]) / 2)
        torch.testing.assert_close(middle, (stated[:, 1:] + stated[:, :-1]) / 2)
        # As dense beyond the last quantile as between the last two.
        beyond = (stated[:, -1] - stated[:, -2]) * (1 - own[-1]) / (own[-1] - own[-2])
        half = head.quantiles(stated, 1 - (1 - own[-1:]) / 2)[:, 0] - stated[:, -1]
        torch.testing.assert_close(half, beyond * math.log(2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(drawn.mean(1), head.mean(stated), atol=0.05, rtol=0)


def frame(location: float, scale: float, spread: float) -> Frame:
    def one(value: float) -> torch.Tensor:
        return torch.full((1, 1), value)

    begun, window = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 1)
    return Frame(
        one(location), one(scale or 1.0), one(scale), begun, window, one(spread)[..., None], 0 * one(spread)[..., None]
    )


COUNTS = st.one_of(st.integers(0, 3), st.integers(0, 10_000_000))


@pytest.mark.parametrize("kind", ["poisson", "negative_binomial"])
@given(
    count=COUNTS,
    location=COUNTS,
    scale=st.sampled_from([0.0, 0.05, 1.0, 40.0, 1e4, 5e6]),
    spread=st.sampled_from([0.005, 0.3, 1.0, 20.0]),
    linear=st.floats(-50, 50, width=32),
    parameters=st.tuples(st.floats(-30, 30, width=32), st.floats(-60, 30, width=32)),
)
def test_counts_of_all_sizes_have_finite_losses_gradients_and_quantiles(
    kind: str, count: int, location: int, scale: float, spread: float, linear: float, parameters: tuple[float, float]
) -> None:
    head = make_head(kind, DECILES)
    # The scale of a window is never less than this (scaling.py), but for one of equal values.
    seen = frame(float(location), max(scale, 1e-6 * location) if scale else 0.0, spread)
    given_parameters = torch.tensor([[[parameters[: head.n_parameters]]]], requires_grad=True)
    line = torch.full((1, 1, 1), linear, requires_grad=True)
    arguments = head.arguments(given_parameters, line, seen)
    target = (torch.tensor(float(count)) - seen.location) / seen.divisor
    loss = head.errors(arguments, target[..., None])
    loss.sum().backward()
    assert loss.isfinite().all()
    for gradient in (given_parameters.grad, line.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
    quantiles = head.quantiles(arguments.detach())
    assert quantiles.isfinite().all()
    assert (quantiles.diff(dim=-1) >= 0).all()
    counts = quantiles.double() * seen.divisor + seen.location
    assert (counts > -0.5).all()
    assert head.samples(arguments.detach(), 3, torch.Generator().manual_seed(0)).isfinite().all()


def test_the_mean_of_a_count_is_positive_and_near_the_line_above_zero() -> None:
    head = make_head("poisson", DECILES)
    for value in (-1e4, -30.0, 0.0, 1e-3, 1.0, 30.0, 1e6):
        arguments = head.arguments(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1), value), frame(0.0, 1.0, 1.0))
        mean = float(arguments[..., 2])
        assert mean > 0
        assert mean == pytest.approx(max(value, 0.0), abs=0.051, rel=1e-6)


def test_a_negative_binomial_without_excess_is_poisson() -> None:
    values = np.array([0, 1, 7, 50, 100, 130])
    for excess in (1e-3, 1e-6, 1e-9):
        arguments = tensor([0.0, 1.0, 100.0, excess]).expand(6, -1)
        found = make_head("negative_binomial", DECILES).errors(arguments, tensor(values))
        np.testing.assert_allclose(found, -stats.poisson(100).logpmf(values), rtol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "student_t"])
def test_a_distribution_starts_at_the_quantiles_of_the_residuals(kind: str) -> None:
    head: Head = make_head(kind, DECILES)
    for arguments in [(0.3, 2.0, 4.0), (-5.0, 0.2, 10.0)]:
        known = scipy_of(kind, arguments)
        wanted = torch.tensor(known.ppf(head.start_levels.double())).float()
        parameters = head.init_parameters(wanted[None], 1e-3)
        made = head.arguments(parameters[None, None], torch.zeros(1, 1, 1), frame(0.0, 1.0, 1.0))
        torch.testing.assert_close(head.quantiles(made, head.start_levels)[0, 0, 0], wanted, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_can_start_where_the_skip_is_exact(kind: str) -> None:
    head = make_head(kind, (0.5,))
    parameters = head.init_parameters(torch.zeros(4, len(head.start_levels)), 1e-3)
    assert parameters.shape == (4, head.n_parameters)
    assert parameters.isfinite().all()
    assert torch.equal(head.enforce_min_gap(parameters, 0.03), parameters)
    calm = head.soft_threshold(parameters + 1, torch.tensor(1e6))
    assert not calm[:, 0].any()
    assert torch.equal(calm[:, 1:], parameters[:, 1:] + 1)
