"""The signed Cholesky factorization against dense NumPy: reconstruction, inertia, determinant, pivots that vanish.

``factor_cases`` and ``dense_factor`` serve ``test_triangular`` as well.
"""

import numpy as np
import pytest

from numba_hinv.kernels.dense.signed_cholesky import pack_size, panel_rows, signed_cholesky, work_size
from numba_hinv.kernels.plumbing.status import NOT_FINITE, OK, SINGULAR_PIVOT

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 20, 24, 31, 32, 33, 48, 63, 64, 65, 67, 96, 100, 129, 200, 300]
KINDS = ["definite", "negative", "indefinite", "zero diagonal", "saddle", "graded", "one negative", "late"]
GUARD = 16


def guarded(shape, dtype, fill=np.nan):
    """An array inside a larger buffer, whose margins `intact` checks afterwards."""
    size = int(np.prod(shape))
    buffer = np.full(size + 2 * GUARD, 77, dtype)
    buffer[GUARD : GUARD + size] = fill
    return buffer[GUARD : GUARD + size].reshape(shape)


def intact(array):
    buffer = array
    while buffer.base is not None:
        buffer = buffer.base
    return (buffer[:GUARD] == 77).all() and (buffer[-GUARD:] == 77).all()


def symmetric(kind, m, seed=0):
    """A symmetric matrix of the kind named, float64, elements of order 1."""
    rng = np.random.default_rng([seed, m, KINDS.index(kind)])
    B = rng.standard_normal((m, m))
    S = (B + B.T) / 2
    if kind == "definite":
        return B @ B.T / m + 0.1 * np.eye(m)
    if kind == "negative":
        return -(B @ B.T / m + 0.1 * np.eye(m))
    if kind == "zero diagonal":
        np.fill_diagonal(S, 0)
        return S
    if kind == "saddle":
        h = (m + 1) // 2
        S[:h, :h] = B[:h] @ B[:h].T / m + np.eye(h)
        S[h:, h:] = 0
        return S
    if kind == "graded":
        d = np.logspace(0, -6, m)
        return S * d[:, None] * d
    if kind == "one negative":
        Q = np.linalg.qr(B)[0]
        return (Q * np.r_[-1, np.linspace(0.5, 1, m - 1)]) @ Q.T
    if kind == "late":
        D = B @ B.T / m + 0.1 * np.eye(m)
        D[-1, -1] = -1
        return D
    return S


def factor(M, tiny=0.0, perturbation=0.0):
    """Run the kernel on guarded buffers whose contents are NaN; the strict lower triangle of M must not be read."""
    m, dtype = len(M), M.dtype
    A = guarded((m, m), dtype)
    A[np.triu_indices(m)] = M[np.triu_indices(m)]
    L, work, scales = (guarded(shape, dtype) for shape in (pack_size(m), work_size(m), (m, 2)))
    pivots = guarded(2 * m, np.int32, -99)
    result = signed_cholesky(A, tiny, perturbation, L, pivots, scales, work)
    assert all(intact(array) for array in (A, L, work, scales, pivots))
    return (L, pivots, scales), result


def dense_parts(L, pivots, scales):
    """perm, U, G^{-1} (dense, block diagonal) and order."""
    m = len(scales)
    U = np.eye(m)
    rows, at = panel_rows(m), 0
    for k0 in range(0, m, rows):
        height = min(rows, m - k0)
        panel = np.asarray(L[at : at + height * (m - k0)], float).reshape(height, m - k0)
        assert (np.tril(panel[:, :height]) == 0).all()
        U[k0 : k0 + height, k0:] += panel
        at += panel.size
    assert at == len(L)
    perm = np.where(pivots[:m] < 0, ~pivots[:m], pivots[:m])
    assert sorted(perm) == sorted(pivots[m:]) == list(range(m))
    inverse = np.diag(np.asarray(scales[:, 0], float))
    k = 0
    while k < m:
        if pivots[k] < 0:
            assert pivots[k + 1] < 0 and U[k, k + 1] == 0
            inverse[k, k + 1], inverse[k + 1, k] = scales[k, 1], scales[k + 1, 1]
            k += 2
        else:
            assert scales[k, 1] == 0
            k += 1
    return perm, U, inverse, pivots[m:]


def dense_factor(L, pivots, scales):
    """F, dense: F[perm] = U^T G[:, sorted]."""
    perm, U, inverse, order = dense_parts(L, pivots, scales)
    F = np.empty_like(U)
    F[perm] = U.T @ np.linalg.inv(inverse)[:, np.argsort(order)]
    return F


def residual(M, factor, num_negative):
    """Largest element of |M - F sigma F^T| over that of |F| |F|^T (which bounds the rounding) and over |M|."""
    F = dense_factor(*factor)
    sigma = np.ones(len(M))
    sigma[len(M) - num_negative :] = -1
    error = abs(np.asarray(M, float) - (F * sigma) @ F.T).max()
    return error / (abs(F) @ abs(F).T).max(), error / abs(M).max()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", SIZES)
def test_reconstruction(m, kind, dtype):
    M = symmetric(kind, m).astype(dtype)
    factors, (status, num_negative, num_perturbed, logabsdet) = factor(M)
    if kind in ("zero diagonal", "saddle") and m < 2:
        return
    assert (status, num_perturbed) == (OK, 0)
    eps = np.finfo(dtype).eps
    relative, normwise = residual(M, factors, num_negative)
    assert relative <= 4 * m * eps
    assert normwise <= 40 * m * eps
    values = np.linalg.eigvalsh(M.astype(float))
    if abs(values).min() > 100 * m * eps * abs(values).max():
        assert num_negative == (values < 0).sum()
        expected = np.log(abs(values)).sum()
        assert abs(logabsdet - expected) <= 100 * m * eps * abs(values).max() / abs(values).min() + 1e-12 * m


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_definite_is_never_reordered(dtype):
    for m in SIZES:
        (_, pivots, scales), (status, num_negative, _, _) = factor(symmetric("definite", m).astype(dtype))
        assert (status, num_negative) == (OK, 0)
        assert (pivots == np.r_[:m, :m]).all() and (scales[:, 1] == 0).all()


def plain_pivots(M):
    """The pivot rule, written out without panels: the permutation, 2x2 blocks as one's complement."""
    A, alpha, m, k = M.copy(), (1 + np.sqrt(17)) / 8, len(M), 0
    perm = np.arange(m)

    def swap(p, q):
        for array in (A, A.T, perm):
            array[[p, q]] = array[[q, p]]

    while k < m:
        size, d, w = 1, A[k, k], A[k, k + 1 :]
        colmax = abs(w).max(initial=0)
        definite = d > 0 and (np.diag(A)[k + 1 :] >= w**2 / d).all()
        if abs(d) < alpha * colmax and not definite:
            q = k + 1 + abs(w).argmax()
            rowmax = abs(np.delete(A[q, k:], q - k)).max()
            if abs(d) * rowmax < alpha * colmax**2:
                size = 1 if abs(A[q, q]) >= alpha * rowmax else 2
                swap(k + size - 1, q)
        D, W = A[k : k + size, k : k + size], A[k : k + size, k + size :]
        A[k + size :, k + size :] -= W.T @ np.linalg.solve(D, W)
        if size == 2:
            perm[k : k + 2] = ~perm[k : k + 2]
        k += size
    return perm


@pytest.mark.parametrize("kind", KINDS)
def test_pivot_rule(kind):
    for m in (2, 6, 17, 40, 61):
        for seed in range(8):
            M = symmetric(kind, m, seed)
            (_, pivots, _), _ = factor(M)
            assert (pivots[:m] == plain_pivots(M)).all()


@pytest.mark.parametrize("kind", ["definite", "zero diagonal", "late"])
def test_widest_panels(kind):
    m = 801
    assert panel_rows(m) > panel_rows(300) > panel_rows(50)
    M = symmetric(kind, m)
    factors, (status, num_negative, num_perturbed, _) = factor(M)
    assert (status, num_perturbed) == (OK, 0)
    assert max(residual(M, factors, num_negative)) <= 4 * m * np.finfo(float).eps
    assert num_negative == (np.linalg.eigvalsh(M) < 0).sum()


def test_definite_is_cholesky():
    for m in SIZES:
        M = symmetric("definite", m)
        F = dense_factor(*factor(M)[0])
        assert np.allclose(F, np.linalg.cholesky(M), rtol=0, atol=1e-12)


def test_empty():
    assert factor(np.empty((0, 0)))[1] == (OK, 0, 0, 0.0)
    assert pack_size(0) == 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("m", [1, 2, 9, 40])
def test_zero_matrix(m, dtype):
    Z = np.zeros((m, m), dtype)
    assert factor(Z)[1][0] == SINGULAR_PIVOT
    assert factor(Z, 1e-3, 0.0)[1][0] == SINGULAR_PIVOT
    factors, (status, num_negative, num_perturbed, logabsdet) = factor(Z, 0.0, 1e-2)
    assert (status, num_negative, num_perturbed) == (OK, 0, m)
    assert logabsdet == pytest.approx(m * np.log(1e-2))
    assert np.allclose(dense_factor(*factors), 0.1 * np.eye(m), rtol=1e-6)


def test_perturbed_pivots_keep_their_sign():
    # 0 takes the sign of the trace.
    for last, zero in ((-2.0, -1.0), (-0.5, 1.0)):
        M = np.diag([1.0, 1e-12, -1e-12, 0.0, last])
        factors, result = factor(M, 1e-10, 1e-4)
        assert result[:3] == (OK, 2 + (zero < 0), 3)
        F = dense_factor(*factors)
        signs = np.repeat([1, -1], [5 - result[1], result[1]])
        assert np.allclose((F * signs) @ F.T, np.diag([1.0, 1e-4, -1e-4, zero * 1e-4, last]), rtol=1e-14, atol=0)
    assert factor(M, 1e-10, 0.0)[1][0] == SINGULAR_PIVOT
    assert factor(M, 1e-13, 0.0)[1][0] == SINGULAR_PIVOT
    M[3, 3] = 1.0
    assert factor(M, 1e-13, 0.0)[1][:3] == (OK, 2, 0)


def test_perturbed_two_by_two():
    """Eigenvalues of the block: one large, or both tiny."""
    for b, d, expected in ((1e-12, 0.0, (OK, 1, 2)), (1.0, 0.0, (OK, 1, 0))):
        M = np.array([[d, b], [b, d]])
        factors, result = factor(M, 1e-10, 1e-4)
        assert result[:3] == expected
        F = dense_factor(*factors)
        e = 1e-4 if expected[2] else 1.0
        assert np.allclose((F * [1, -1]) @ F.T, [[0, e], [e, 0]], rtol=0, atol=1e-15)
    M = np.array([[0.0, 1e-6, 1e-3], [1e-6, 0.0, 1.0], [1e-3, 1.0, 3e6]])
    for tiny in (0.0, 1e-7, 1e-4):
        factors, result = factor(M, tiny, 0.5)
        assert result[0] == OK
        if not result[2]:
            assert residual(M, factors, result[1])[0] < 1e-14


def test_perturbation_adds_to_the_diagonal():
    """A singular definite matrix: what is factored is M plus the perturbation at the last pivot."""
    for m in (5, 8, 16, 40):
        B = np.random.default_rng(m).standard_normal((m, m - 1))
        M = B @ B.T
        factors, (status, num_negative, num_perturbed, _) = factor(M, 1e-8, 1e-3)
        assert (status, num_perturbed) == (OK, 1)
        F = dense_factor(*factors)
        sigma = np.ones(m)
        sigma[m - num_negative :] = -1
        difference = abs((F * sigma) @ F.T - M)
        assert np.allclose(np.sort(difference.ravel())[-1], 1e-3, rtol=1e-6)
        assert np.sort(difference.ravel())[-2] < 1e-11


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    for m in (1, 2, 8, 9, 33, 70):
        for kind in ("definite", "indefinite"):
            for i, j in {(0, 0), (0, m - 1), (m // 2, m - 1), (m - 1, m - 1), (m // 3, m // 3)}:
                M = symmetric(kind, m)
                M[i, j] = M[j, i] = bad
                assert factor(M, 1e-12, 1e-8)[1][0] == NOT_FINITE


@pytest.mark.parametrize(
    "dtype, scale", [(np.float64, 1e150), (np.float64, 1e-150), (np.float32, 1e18), (np.float32, 1e-18)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_scales(kind, dtype, scale):
    for m in (2, 3, 8, 21, 40, 70):
        if kind == "graded" and dtype == np.float32:
            continue
        M = (symmetric(kind, m) * scale).astype(dtype)
        factors, (status, num_negative, _, logabsdet) = factor(M)
        assert status == OK
        relative, normwise = residual(M, factors, num_negative)
        eps = np.finfo(dtype).eps
        assert relative <= 4 * m * eps and normwise <= 40 * m * eps
        plain = factor(symmetric(kind, m).astype(dtype))[1]
        assert num_negative == plain[1]
        tolerance = 1e-9 if dtype == np.float64 else 1e-2
        assert logabsdet == pytest.approx(plain[3] + m * np.log(scale), rel=tolerance)


def test_badly_scaled_two_by_two():
    """Blocks whose diagonal is tiny on one side and huge on the other are split without loss of digits."""
    for a, b, c in ((1e-12, 1.0, 1e8), (0.0, 1.0, 1e12), (0.0, 1e-90, 1e90), (-1e-3, 1.0, 2.0), (0.0, -1.0, 0.0)):
        M = np.array([[a, b, 0.0], [b, c, 10 * c], [0.0, 10 * c, 0.0]])[:2, :2]
        factors, (status, num_negative, _, logabsdet) = factor(M)
        assert (status, num_negative) == (OK, 1)
        F = dense_factor(*factors)
        back = (F * [1, -1]) @ F.T
        assert abs(back - M).max() <= 8e-16 * abs(F).max() ** 2


def test_deterministic():
    for kind in KINDS:
        M = symmetric(kind, 77)
        first, second = factor(M)[0], factor(M)[0]
        assert all((a == b).all() for a, b in zip(first, second))
