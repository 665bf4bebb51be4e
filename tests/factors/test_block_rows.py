"""The blocked signed Cholesky of a dense matrix, in many small blocks, against dense linear algebra."""

import numpy as np
import pytest
from scipy.linalg import qr

import numba_hinv as nh
from numba_hinv.factors import block_rows
from numba_hinv.factors.block_rows import BlockRows
from numba_hinv.factors.dense import Dense
from numba_hinv.factors.lapack import Lapack
from numba_hinv.kernels.dense.block_rows import STRIP
from numba_hinv.system.cpu import CPU

DTYPES = [np.float64, np.float32]
SIZES = [1, 2, STRIP - 1, STRIP, STRIP + 1, 2 * STRIP, 151, 299]


def indefinite(size, seed=0, negative=0.5):
    """Random eigenvectors, eigenvalues between 0.1 and 1 in modulus."""
    rng = np.random.default_rng(seed)
    vectors = qr(rng.standard_normal((size, size)))[0]
    values = rng.uniform(0.1, 1.0, size) * np.where(rng.random(size) < negative, -1.0, 1.0)
    matrix = (vectors * values) @ vectors.T
    return 0.5 * (matrix + matrix.T)


def factored(matrix, dtype=np.float64, limit=1e12, rows=STRIP, **options):
    CPU.load(np.dtype(dtype))

    def fill(start, out):
        out[...] = matrix[start : start + len(out), start:]

    return BlockRows.factorize(fill, len(matrix), np.dtype(dtype), limit, rows=rows, **options)


def solved(found, X):
    X = X.copy()
    found.forward(X)
    found.multiply_signs(X)
    found.backward(X)
    return X


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("negative", [0.0, 0.1, 0.5, 1.0])
def test_against_dense_linear_algebra(size, negative, dtype):
    """Solutions, the factor itself, signs, determinants."""
    matrix = indefinite(size, size, negative).astype(dtype)
    found, rows = factored(matrix, dtype), 2 * STRIP if size > 200 else STRIP
    again = factored(matrix, dtype, rows=rows)
    exact = matrix.astype(np.float64)
    values, eps = np.linalg.eigvalsh(exact), np.finfo(dtype).eps
    growth = max(1.0, found.growth)
    for one in (found, again):
        assert one.num_negative == (values < 0).sum()
        logabsdet = one.arrays["logarithms"].sum()
        assert abs(logabsdet - np.linalg.slogdet(exact)[1]) <= 100 * eps * growth * size
        X = np.random.default_rng(1).standard_normal((3, size)).astype(dtype)
        x = solved(one, X).astype(np.float64)
        assert np.abs(x @ exact - X).max() <= 20 * eps * growth * np.abs(x).sum(axis=1).max()
        assert one.pivot_sizes().min() > 0
    # R^-T of the unit vectors, as rows, is R^-1.
    inverse = np.eye(size, dtype=dtype)
    found.forward(inverse)
    inverse = inverse.astype(np.float64)
    product = (inverse * found.signs(np.float64)) @ inverse.T @ exact
    np.testing.assert_allclose(product, np.eye(size), rtol=0, atol=200 * eps * growth * size)
    R = np.linalg.inv(inverse)
    ends = range(STRIP, size, STRIP)
    largest = max(((R**2)[:end, end : end + STRIP].sum(axis=0).max() for end in ends), default=0.0)
    assert found.growth == pytest.approx(largest, rel=1e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_on_any_number_of_threads(monkeypatch, dtype):
    monkeypatch.setattr(block_rows, "_WORTH_THREADS", 0)
    for negative in (0.0, 0.5):
        matrix = indefinite(600, 3, negative)
        one, *others = [factored(matrix, dtype, num_threads=count) for count in (1, 2, 5)]
        for other in others:
            assert other.growth == one.growth
            for name, array in one.arrays.items():
                np.testing.assert_array_equal(other.arrays[name], array, err_msg=name)


def test_what_a_job_raises_ends_the_work(monkeypatch):
    """On threads, too: no one waits for those that are gone."""
    monkeypatch.setattr(block_rows, "_WORTH_THREADS", 0)
    for count in (1, 3):
        for last in (0, 7, 20):
            calls = []

            def check():
                calls.append(1)
                if len(calls) > last:
                    raise FloatingPointError("enough")

            with pytest.raises(FloatingPointError, match="enough"):
                factored(indefinite(300), check=check, num_threads=count)
            assert len(calls) <= last + count


def saddle(size, corner=0.0, smallest=0.5):
    """[[corner I, B], [B^T, 0]], singular values of B from ``smallest`` to 1."""
    half = size // 2
    one, two = (qr(np.random.default_rng(seed).standard_normal((half, half)))[0] for seed in (0, 1))
    B = (one * np.geomspace(smallest, 1.0, half)) @ two
    return np.block([[corner * np.eye(half), B], [B.T, np.zeros((half, half))]])


def with_nan(size):
    matrix = indefinite(size)
    matrix[size - 1, size - 2] = matrix[size - 2, size - 1] = np.nan
    return matrix


HALF = np.kron([[0.0, 1.0], [1.0, 0.0]], np.eye(72))


@pytest.mark.parametrize(
    "matrix",
    [HALF, saddle(144), saddle(144, 1e-14), np.zeros((100, 100)), with_nan(100), with_nan(40)],
    ids=["exchange", "saddle", "almost a saddle", "zero", "NaN", "NaN in one block"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gives_up_where_interchanges_within_blocks_are_not_enough(matrix, dtype):
    assert factored(matrix, dtype) is None


def of_matrix(matrix):
    """The Hessian that is this matrix: one layer, whose state does not move."""
    size = len(matrix)
    return nh.Hessian.from_blocks(
        [nh.LayerBlocks(np.zeros((1, size)), np.zeros((1, 0)), matrix, np.zeros((size, 0)), np.zeros((0, 0)))]
    )


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(block_rows, "ROWS", STRIP)


# Damping, and whether the blocked factors are to be had, have a fallback that need not be asked, or are not.
CHECKED = {
    "definite": (indefinite(150) @ indefinite(150), 0.0, Dense, False),
    "indefinite": (indefinite(150), 0.01, Dense, False),
    "negative": (indefinite(150), -2.0, Dense, False),
    "exchange": (HALF, 0.0, Lapack, False),
    "exchange, damped a little": (HALF, 1e-12, Lapack, False),
    "exchange, damped": (HALF, 1e-6, Dense, True),
    "saddle": (saddle(144), 0.0, Lapack, False),
    "saddle with a corner": (saddle(144, 1e-5), 0.0, Dense, True),
    "small eigenvalues lost behind a corner": (saddle(144, 1e-8, 1e-10), 0.0, Lapack, False),
    "exact zeros": (np.kron(np.eye(30), [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 0.0, Dense, False),
}


@pytest.mark.filterwarnings("ignore::scipy.linalg.LinAlgWarning")
@pytest.mark.parametrize("name", CHECKED)
def test_every_promise_where_confined_interchanges_may_break_it(small_blocks, name):
    """Solutions, exact inertia, determinants, conditions and variances, by whichever factors."""
    matrix, damping, expected, has_fallback = CHECKED[name]
    F = of_matrix(matrix).factorize(damping, method="dense")
    assert type(F.solver.factors) is expected and F.solver.factors.has_fallback == has_fallback
    A = matrix + damping * np.eye(len(matrix))
    values, condition = np.linalg.eigvalsh(A), np.linalg.cond(A)
    assert F.inertia == ((values < 0).sum(), 0, (values > 0).sum(), True)
    b = np.random.default_rng(0).standard_normal((len(A), 3))
    x, info = F.solve(b, full_output=True)
    norms = np.linalg.norm(A, 2) * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
    assert (np.linalg.norm(A @ x - b, axis=0) <= 1e-14 * norms).all() and info.backward_error.max() <= 1e-14
    assert F.slogdet()[0] == np.linalg.slogdet(A)[0]
    assert F.slogdet()[1] == pytest.approx(np.linalg.slogdet(A)[1], rel=1e-9, abs=1e-9 * condition)
    assert F.condition() == pytest.approx(np.linalg.cond(A, 1), rel=0.75)
    inverse = np.linalg.inv(A)
    allowed = 1e-12 * condition * np.abs(inverse).max()
    np.testing.assert_allclose(F.diagonal(), inverse.diagonal(), rtol=0, atol=allowed)
    np.testing.assert_allclose(F.blocks(0), inverse, rtol=0, atol=allowed)


@pytest.mark.parametrize("kind", ["definite", "zero rows", "saddle"])
def test_singular_matrices_are_named(small_blocks, kind):
    matrix = indefinite(150)
    if kind == "zero rows":
        matrix[60:70], matrix[:, 60:70] = 0.0, 0.0
    elif kind == "saddle":
        matrix = saddle(144)
        matrix[:, 143] = matrix[143] = 0.0
    else:
        matrix = matrix @ np.diag((np.arange(150) > 3).astype(float)) @ matrix
    with pytest.raises(np.linalg.LinAlgError, match="singular to working precision"):
        of_matrix(0.5 * (matrix + matrix.T)).factorize(0.0, method="dense")
