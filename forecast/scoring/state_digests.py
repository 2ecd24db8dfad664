"""Digests of the inputs of encoder states, of all series of a shard and of several cutoffs in one pass.

A digest is two sums, modulo 2^64, of 32-bit words times random numbers, one for each word of a series (multilinear
hashing: Carter & Wegman 1979, "Universal Classes of Hash Functions"). Two pasts that differ have the same digest with a
probability of 2^-64 at most: enough against accidents, none against an attacker. The sums of an earlier cutoff are part
of those of a later one, so the past is read once for both.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from forecast.data.panel import IntArray, Panel

Digests = npt.NDArray[np.uint8]
_Sums = npt.NDArray[np.uint64]

_N_SUMS = 2
# Words of a chunk, which the caches of a processor hold.
_CHUNK = 1 << 15


def digest_inputs(shard: Panel, n_observed: Sequence[IntArray], n_known: Sequence[IntArray]) -> npt.NDArray[np.uint8]:
    """Return digests of the first steps of each series, [cutoff, S, 16].

    For each cutoff, `n_observed` is the number of steps of target and past covariates, and `n_known` of known
    covariates, [S] both; neither falls from one cutoff to the next. A missing value is none, so that gaps at the end
    do not matter. The start of a series counts where it has any steps.
    """
    observed, known = np.array(n_observed), np.array(n_known)
    static = (_words(np.ascontiguousarray(values)) for values in (shard.static_categories, shard.static_numbers))
    sums = np.tile(_row_sums(np.hstack(list(static))), (len(observed), 1, 1))
    sums += _row_sums(_words(shard.start[:, None]), first=1) * (observed > 0)[..., None]
    begins = shard.offsets + np.arange(shard.n_series + 1) * shard.horizon
    for number, values in enumerate((np.asarray(shard.target), *np.asarray(shard.past))):
        sums += _step_sums(values, shard.offsets, observed, 2 + number)
    for number, values in enumerate(np.asarray(shard.known)):
        sums += _step_sums(values, begins, known, 3 + len(shard.past) + number)
    return sums.view(np.uint8)


def _step_sums(values: npt.NDArray[np.floating], begins: IntArray, counts: IntArray, row: int) -> _Sums:
    """Return the sums of the first `counts` values, [cutoff, S], of series that begin at `begins`, [S + 1]."""
    width = values.itemsize // 4
    begins, counts = begins * width, counts * width
    lengths = np.diff(begins)
    keys = _keys(row, int(lengths.max(initial=0)))
    # Where the words end that the sums of the first, the second, ... cutoff add.
    edges = np.concatenate([begins[:-1][None], begins[:-1] + counts]).T
    sums = np.empty((len(lengths), len(counts), _N_SUMS), np.uint64)
    first, key_lengths, chunk_keys = 0, np.zeros(0, np.int64), np.zeros((_N_SUMS, 0), np.uint64)
    while first < len(lengths):
        end = max(int(np.searchsorted(begins, begins[first] + _CHUNK, side="right")) - 1, first + 1)
        if not np.array_equal(key_lengths, lengths[first:end]):  # Mostly, all series have the same length.
            key_lengths = lengths[first:end]
            position = np.arange(key_lengths.sum()) - np.repeat(begins[first:end] - begins[first], key_lengths)
            chunk_keys = keys[:, position]
        part = np.ascontiguousarray(values[begins[first] // width : begins[end] // width])
        words = _words(part)
        words.reshape(-1, width)[np.isnan(part)] = 0
        index = (edges[first:end] - begins[first]).ravel()
        products = np.zeros(len(words) + 1, np.uint64)  # The last one lets an index be at the end.
        for number in range(_N_SUMS):
            np.multiply(words, chunk_keys[number], out=products[:-1])
            sums[first:end, :, number] = np.add.reduceat(products, index).reshape(end - first, -1)[:, :-1]
        first = end
    # Of no words, `reduceat` returns the first one after them.
    sums *= (np.diff(edges) > 0)[..., None]
    return sums.cumsum(1, dtype=np.uint64).transpose(1, 0, 2)


def _row_sums(words: npt.NDArray[np.uint64], first: int = 0) -> _Sums:
    """Return the sums of the words of each row, [row, 2]."""
    return words @ _keys(first, words.shape[1]).T


def _words(values: npt.NDArray[np.floating | np.integer]) -> npt.NDArray[np.uint64]:
    """Return the 32-bit words of values plus one, so that none is 0."""
    return values.view(np.uint32).astype(np.uint64) + np.uint64(1)


def _keys(row: int, count: int) -> npt.NDArray[np.uint64]:
    """Return the random numbers of the words of a row, [2, word]: the same in every release of NumPy."""
    return np.stack([np.random.PCG64([row, number]).random_raw(count) for number in range(_N_SUMS)])
