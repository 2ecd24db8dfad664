"""The head that `model.head` names."""

from collections.abc import Sequence

from forecast.models.heads.base import Head
from forecast.models.heads.categorical import BernoulliHead, CategoricalHead
from forecast.models.heads.counts import NegativeBinomialHead, PoissonHead
from forecast.models.heads.gaussian import NormalHead, StudentTHead
from forecast.models.heads.quantile import QuantileHead
from forecast.models.heads.tweedie import TweedieHead

_HEADS: dict[str, type[Head]] = {
    "quantile": QuantileHead,
    "normal": NormalHead,
    "student_t": StudentTHead,
    "poisson": PoissonHead,
    "negative_binomial": NegativeBinomialHead,
    "bernoulli": BernoulliHead,
}


def make_head(kind: str, levels: Sequence[float], *, power: float = 1.5, n_classes: int = 0) -> Head:
    """Return the head that `model.head` names; `power` is that of a Tweedie, `n_classes` of a categorical one."""
    if kind == "tweedie":
        return TweedieHead(levels, power)
    return CategoricalHead(levels, n_classes) if kind == "categorical" else _HEADS[kind](levels)
