"""Matrix products against NumPy: random shapes and strides, edges of tiles, NaN in C, and guard bands around C."""

import os
import subprocess
import sys

import numpy as np
import pytest

from numba_hinv.kernels.dense import product

DTYPES = [np.float64, np.float32]
KINDS = {
    "nn": (product.multiply, False, False),
    "tn": (product.multiply_tn, True, False),
    "nt": (product.multiply_nt, False, True),
    "tn_upper": (product.multiply_tn_upper, True, False),
}


def window(rng, rows, columns, dtype, strided):
    """A random matrix, as a window of a larger array where strided; returns (matrix, the whole array)."""
    if not strided:
        whole = rng.standard_normal((rows, columns)).astype(dtype)
        return whole, whole
    whole = rng.standard_normal((rows + 3, columns + 37)).astype(dtype)
    return whole[1 : rows + 1, 18 : 18 + columns], whole


def check(kind, m, n, k, dtype, strided, alpha, beta, seed):
    multiply, transposed_a, transposed_b = KINDS[kind]
    rng = np.random.default_rng(seed)
    a, _ = window(rng, *((k, m) if transposed_a else (m, k)), dtype, strided)
    b, _ = window(rng, *((n, k) if transposed_b else (k, n)), dtype, strided)
    c, whole = window(rng, m, n, dtype, strided)
    if beta == 0:
        c[...] = np.nan
    guard, c_before = whole.copy(), c.astype(np.float64)
    left, right = (a.T if transposed_a else a).astype(np.float64), (b.T if transposed_b else b).astype(np.float64)
    multiply(alpha, a, b, beta, c)

    expected = alpha * (left @ right)
    # k products and sums, the two scalings, and the rounding of alpha and beta themselves to the dtype.
    bound = abs(alpha) * (abs(left) @ abs(right))
    if beta != 0:
        expected += beta * c_before
        bound += abs(beta * c_before)
    error, allowed = abs(c - expected), (k + 4) * np.finfo(dtype).eps * bound
    if kind == "tn_upper":
        error, allowed = np.triu(error), np.triu(allowed)
        error[np.tril_indices(m, -1)] = 0
    assert (error <= allowed).all()
    if strided:
        guard[1 : m + 1, 18 : 18 + n] = c
        np.testing.assert_array_equal(guard, whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_edge(kind, dtype):
    rng = np.random.default_rng(1)
    for m in range(19):
        for n in (*range(20), 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 65):
            if kind == "tn_upper":
                n = m
            k = int(rng.integers(0, 40))
            alpha, beta = rng.choice([1.0, -1.0, 0.3]), rng.choice([0.0, 1.0, -0.7])
            check(kind, m, n, k, dtype, bool(rng.integers(2)), alpha, beta, seed=(m, n, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strided", [False, True])
def test_shapes_up_to_blas(kind, dtype, strided):
    shapes = [
        (1, 300, 200),
        (2, 500, 77),
        (8, 8, 1000),
        (64, 65, 66),
        (129, 70, 33),
        (1, 2000, 1500),
        (5, 1700, 1300),
        (200, 210, 220),
        (301, 33, 500),
        (320, 321, 322),
    ]
    for m, n, k in shapes:
        if kind == "tn_upper":
            m = n = min(n, 400)
        for beta in (0.0, -0.5):
            check(kind, m, n, k, dtype, strided, 1.5, beta, seed=7)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_sizes(kind):
    for m, n, k in [(0, 5, 3), (5, 0, 3), (5, 5, 0), (0, 0, 0)]:
        if kind == "tn_upper":
            m = n
        for beta in (0.0, 2.0):
            check(kind, m, n, k, np.float64, False, 1.0, beta, seed=0)


@pytest.mark.parametrize("kind", ["nn", "tn", "nt"])
def test_one_row_of_any_stride(kind):
    """NumPy gives an axis of length one any stride; BLAS would refuse it."""
    multiply, transposed_a, transposed_b = KINDS[kind]
    rng = np.random.default_rng(3)
    for n in (5, 2000):
        x, matrix, y = rng.standard_normal(n), rng.standard_normal((n, n)), np.empty(n)
        row = np.lib.stride_tricks.as_strided(x, (1, n), (0, 8))
        a = np.ascontiguousarray(row.T) if transposed_a else row
        multiply(1.0, a, matrix, 0.0, np.lib.stride_tricks.as_strided(y, (1, n), (0, 8)))
        expected = x @ (matrix.T if transposed_b else matrix)
        bound = abs(x) @ abs(matrix.T if transposed_b else matrix)
        assert (abs(y - expected) <= (n + 4) * np.finfo(float).eps * bound).all()


@pytest.mark.parametrize("kind", ["nn", "tn", "nt"])
def test_not_finite_values_stay_visible(kind):
    multiply = KINDS[kind][0]
    for bad in (np.nan, np.inf):
        for n in (3, 8, 50):
            a, b, c = np.ones((n, n)), np.ones((n, n)), np.zeros((n, n))
            a[n - 1, n - 1] = bad
            multiply(1.0, a, b, 1.0, c)
            assert not np.isfinite(c[n - 1]).any() and np.isfinite(c[: n - 1]).all()


@pytest.mark.parametrize(
    "cpu", [("generic", ""), ("haswell", "+avx2,+fma,+avx,+sse4.2,+sse4.1,+ssse3,+sse3"), ("host", None)]
)
def test_other_vector_widths(cpu, tmp_path):
    """The edge tests again in a process that compiles for a narrower CPU, and in one with an empty cache."""
    name, features = cpu
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    if features is not None:
        machine = os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
        if machine.lower() not in ("x86_64", "amd64") and name != "generic":
            pytest.skip("another architecture")
        environment.update(NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "every_edge and float64"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
