"""Solves with the signed Cholesky factor against dense NumPy, inside guarded buffers."""

import numpy as np
import pytest
from test_signed_cholesky import KINDS, SIZES, dense_factor, factor, guarded, intact, symmetric

from numba_hinv.kernels.dense.triangular import backward_rows, backward_vectors, forward_rows, forward_vectors


def copy(X):
    out = guarded(X.shape, X.dtype)
    out[...] = X
    return out


def backward_error(F, x, b):
    """Largest componentwise backward error of the columns x of F x = b."""
    F, x, b = (np.asarray(array, float) for array in (F, x, b))
    scale = abs(F) @ abs(x) + abs(b)
    return (abs(F @ x - b) / np.where(scale > 0, scale, 1)).max(initial=0)


def cases():
    for m in [*SIZES, 0]:
        for kind in KINDS:
            if not (m < 2 and kind in ("zero diagonal", "saddle")):
                yield m, kind


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("m, kind", list(cases()))
def test_solves(m, kind, dtype):
    rng = np.random.default_rng(m)
    factors, _ = factor(symmetric(kind, m).astype(dtype)) if m else factor(np.empty((0, 0), dtype))
    # dense_factor inverts the 2x2 blocks of G^{-1}, equilibrated and so well conditioned, which costs a few eps.
    F = dense_factor(*factors)
    bound = 4 * (m + 10) * np.finfo(dtype).eps
    for n in (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100):
        K = copy(rng.standard_normal((m, n)).astype(dtype))
        B = K.copy()
        work = guarded((m, n), dtype)
        forward_rows(*factors, K, work)
        assert intact(K) and intact(work)
        assert backward_error(F, K, B) <= bound
        K[...] = B
        backward_rows(*factors, K, work)
        assert intact(K) and intact(work)
        assert backward_error(F.T, K, B) <= bound
    for k in range(1, 10):
        X = copy(rng.standard_normal((k, m)).astype(dtype))
        B = X.copy()
        work = guarded((k, m), dtype)
        forward_vectors(*factors, X, work)
        assert intact(X) and intact(work)
        assert backward_error(F, X.T, B.T) <= bound
        X[...] = B
        backward_vectors(*factors, X, work)
        assert intact(X) and intact(work)
        assert backward_error(F.T, X.T, B.T) <= bound
