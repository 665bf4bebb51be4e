"""Signed rank updates against NumPy, and the mirror of a triangle."""

import numpy as np
import pytest

from numba_hinv.kernels.dense.rank_update import mirror, signed_rank_update

DTYPES = [np.float64, np.float32]


def check(m, n, num_positive, dtype, strided, seed):
    rng = np.random.default_rng(seed)
    whole_y = rng.standard_normal((m + 2, n + 9)).astype(dtype)
    whole_p = rng.standard_normal((n + 2, n + 40)).astype(dtype)
    y = whole_y[1 : m + 1, 4 : n + 4] if strided else whole_y[:m, :n].copy()
    p = whole_p[1 : n + 1, 20 : n + 20] if strided else whole_p[:n, :n].copy()
    before, guard, exact = p.astype(np.float64), whole_p.copy(), y.astype(np.float64)
    signed_rank_update(y, num_positive, p)
    sigma = np.where(np.arange(m) < num_positive, 1.0, -1.0)
    expected = before - (exact.T * sigma) @ exact
    bound = (m + 4) * np.finfo(dtype).eps * (abs(before) + abs(exact.T) @ abs(exact))
    assert (abs(np.triu(p - expected)) <= bound).all()
    if strided:
        guard[1 : n + 1, 20 : n + 20] = p
        np.testing.assert_array_equal(guard, whole_p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strided", [False, True])
def test_small(dtype, strided):
    rng = np.random.default_rng(5)
    for m in range(20):
        for n in (*range(19), 24, 25, 33, 49, 64):
            for num_positive in {0, m, int(rng.integers(0, m + 1))}:
                check(m, n, num_positive, dtype, strided, seed=(m, n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strided", [False, True])
def test_up_to_blas(dtype, strided):
    for m, n, num_positive in [(1, 700, 1), (100, 90, 60), (300, 200, 299), (150, 400, 0), (260, 270, 130)]:
        check(m, n, num_positive, dtype, strided, seed=m)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mirror(dtype):
    for n in (0, 1, 2, 7, 31, 32, 33, 64, 100, 257):
        whole = np.random.default_rng(n).standard_normal((n + 2, n + 11)).astype(dtype)
        p, guard = whole[1 : n + 1, 5 : n + 5], whole.copy()
        upper = np.triu(p)
        mirror(p)
        np.testing.assert_array_equal(p, upper + np.triu(upper, 1).T)
        guard[1 : n + 1, 5 : n + 5] = p
        np.testing.assert_array_equal(guard, whole)
