"""Random probe vectors for estimates; the same every time, so that answers are reproducible."""

import functools

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0.5 * (5.0**0.5 - 1.0)
# So many entries are drawn in less time than a generator takes to be made; they are kept.
_FEW = 1 << 13


def random_signs(seed: int, size: int) -> NDArray[np.float64]:
    """Entries +-1 as one row, (1, size): as good as normal numbers for estimates, and drawn much faster."""
    return _kept_signs(seed, size).copy() if size <= _FEW else _signs(seed, size)


def _signs(seed: int, size: int) -> NDArray[np.float64]:
    random_bytes = np.random.default_rng(seed).bytes(size // 8 + 1)
    signs = np.unpackbits(np.frombuffer(random_bytes, np.uint8), count=size).astype(np.float64)
    signs *= -2.0
    signs += 1.0
    return signs.reshape(1, size)


_kept_signs = functools.lru_cache(maxsize=64)(_signs)


def random_entries(seed: int, size: int) -> NDArray[np.float64]:
    """Signs with magnitudes from 0.5 to 1.5 that repeat nowhere, (1, size).

    Half of all signs are orthogonal to a vector with two entries of one size, such as the null vector of a feature that
    is constant: where one direction must not be missed, they will not do.
    """
    return random_signs(seed, size) * (0.5 + np.arange(size) * _GOLDEN % 1.0)


def uniform_entries(seed: int, size: int) -> NDArray[np.float64]:
    """Independent entries, uniform with mean 0 and variance 1, (1, size): for bounds that hold with a known chance."""
    entries = np.random.default_rng(seed).random((1, size))
    entries -= 0.5
    entries *= 12.0**0.5
    return entries
