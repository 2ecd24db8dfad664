"""The skip of classes: transition frequencies after the latest class and the class one season back."""

from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Pseudo-observations at the overall frequencies, in each row of a table and in each window.
_PRIOR = 2.0
# Shares of each part to try; validation chooses.
_SHARES = (0.0, 0.5, 1.0)
# Elements in memory while shares are compared.
_MAX_ELEMENTS = 20_000_000
MAX_TABLE = 50_000_000
"""Most elements of the tables of all steps of the horizon."""


class ClassSkip(nn.Module):
    """Log-probabilities of each step's class: log f + a log P/f + b log S/f + c log g/f, normalised.

    f are the frequencies of training, P those after the latest class, a table for each step of the horizon, S those one
    season after a class, and g the frequencies in the window. P alone is a Markov chain; together they are a naive
    Bayes classifier (Hand & Yu 2001, International Statistical Review 69) whose shares are tempered. Parts that are
    missing in the window do not contribute.
    """

    frequency: Tensor
    latest: Tensor
    season: Tensor
    share: Tensor
    """a, b and c."""
    season_index: Tensor

    def __init__(self, *, n_classes: int, context: int, horizon: int, season: int, tables: bool) -> None:
        super().__init__()
        self.n_classes = n_classes
        ahead = torch.arange(horizon)
        self.register_buffer("frequency", torch.full((n_classes,), 1.0 / n_classes).log())
        self.register_buffer("latest", torch.zeros(horizon if tables else 0, n_classes, n_classes))
        has_season = tables and 1 < season <= context
        self.register_buffer("season", torch.zeros(n_classes if has_season else 0, n_classes))
        self.register_buffer("share", torch.zeros(3))
        self.register_buffer("season_index", context - season + ahead % season, persistent=False)

    def forward(self, window: Float[Tensor, "*axes context"]) -> Float[Tensor, "*axes horizon class"]:
        """Return log-probabilities from codes, -1 where not observed, oldest first."""
        parts = self._parts(window)
        return self._combine(parts, self.share)

    def _combine(self, parts: list[Tensor], share: Tensor) -> Tensor:
        evidence = torch.stack([weight * part for weight, part in zip(share, parts, strict=True)]).sum(0)
        return torch.log_softmax(self.frequency + evidence, dim=-1)

    def _parts(self, window: Tensor) -> list[Tensor]:
        """Return the log-ratios of latest class, season and window, each [..., horizon, class]."""
        horizon = len(self.season_index)
        zeros = self.frequency.new_zeros(*window.shape[:-1], horizon, self.n_classes)
        parts = [zeros, zeros, zeros]
        if len(self.season):
            code = window[..., self.season_index]
            parts[1] = self.season[code.clamp(min=0).long()] * (code >= 0)[..., None]
        if len(self.latest):
            code, observed = latest_class(window)
            parts[0] = self.latest[:, code].movedim(0, -2) * observed[..., None, None]
            prior = self.frequency.exp() * _PRIOR
            count = class_counts(window, self.n_classes) + prior
            log_ratio = (count / count.sum(-1, keepdim=True)).log() - self.frequency
            parts[2] = log_ratio[..., None, :].expand_as(zeros)
        return parts

    @torch.no_grad()
    def fit(
        self,
        window: Float[Tensor, "sample context"],
        target: Float[Tensor, "sample horizon"],
        observed: Float[Tensor, "sample horizon"],
    ) -> None:
        """Set frequencies and transition tables by counting."""
        valid, code = observed > 0, target.long()
        count = torch.bincount(code[valid], minlength=self.n_classes).double() + 1.0
        frequency = count / count.sum()
        self.frequency.copy_(frequency.log())
        if not len(self.latest):
            return
        last, has_last = latest_class(window)
        for step in range(len(self.latest)):
            rows = valid[:, step] & has_last
            self.latest[step] = self._table(last[rows], code[rows, step], frequency)
        if len(self.season):
            previous = window[:, self.season_index].long()
            rows = valid & (previous >= 0)
            self.season.copy_(self._table(previous[rows], code[rows], frequency))

    def _table(self, previous: Tensor, following: Tensor, frequency: Tensor) -> Tensor:
        """Return log-ratios of each class after each class: transition probability over frequency."""
        n = self.n_classes
        count = torch.bincount(previous * n + following, minlength=n * n).view(n, n) + _PRIOR * frequency
        return (count / count.sum(-1, keepdim=True)).log() - frequency.log()

    @torch.no_grad()
    def choose(
        self,
        window: Float[Tensor, "sample context"],
        target: Float[Tensor, "sample horizon"],
        observed: Float[Tensor, "sample horizon"],
    ) -> None:
        """Set the shares to those with the least log-loss."""
        if not len(self.latest):
            return
        season = _SHARES if len(self.season) else (0.0,)
        candidates = self.share.new_tensor(list(product(_SHARES, season, _SHARES)))
        loss = torch.zeros(len(candidates), dtype=torch.float64, device=window.device)
        size = max(1, _MAX_ELEMENTS // (4 * target.shape[1] * self.n_classes))
        for first in range(0, len(window), size):
            part = slice(first, first + size)
            parts, code = self._parts(window[part]), target[part].long()[..., None]
            for number, share in enumerate(candidates):
                log_probability = self._combine(parts, share).gather(-1, code)[..., 0]
                loss[number] -= (log_probability * observed[part]).double().sum()
        self.share.copy_(candidates[loss.argmin()])


def latest_class(window: Float[Tensor, "*axes context"]) -> tuple[Int[Tensor, "*axes"], Tensor]:
    """Return the last observed code of each window, 0 where there is none, and whether there is one."""
    position = torch.where(window >= 0, torch.arange(window.shape[-1], device=window.device), -1).amax(-1)
    code = window.gather(-1, position.clamp(min=0)[..., None])[..., 0]
    return code.clamp(min=0).long(), position >= 0


def class_counts(window: Float[Tensor, "*axes context"], n_classes: int) -> Float[Tensor, "*axes class"]:
    """Return the number of observations of each class in each window."""
    count = window.new_zeros(*window.shape[:-1], n_classes + 1)
    count.scatter_add_(-1, window.long() + 1, torch.ones_like(window))
    return count[..., 1:]
