"""Embedding tables of covariates that hold codes, and their rows of values that training has not drawn."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from forecast.models.network.forecaster import RecurrentForecaster


def category_rows(network: RecurrentForecaster) -> list[Float[Tensor, "value feature"]]:
    """Return a copy of the embedding table of each covariate that holds codes; row 0 is the unseen value."""
    return [table.detach().clone() for table in _tables(network)]


@torch.no_grad()
def share_unseen(network: RecurrentForecaster, untrained: Sequence[Float[Tensor, "value feature"]]) -> bool:
    """Give values that training has not drawn the row of the unseen value; return whether there were any.

    `untrained` is `category_rows` before the training: rows that still equal it were not drawn.
    """
    changed = False
    for table, initial in zip(_tables(network), untrained, strict=True):
        same = (table == initial).all(1)
        table[same] = table[0].clone()
        changed = changed or bool(same[1:].any())
    return changed


def _tables(network: RecurrentForecaster) -> list[Tensor]:
    modules = [*network.embeddings, *network.past_embeddings.values(), *network.known_embeddings.values()]
    return [table.weight for table in modules if isinstance(table, nn.Embedding)]
