"""Fronts kept as Cholesky factors: one layer's step against dense algebra, and chains whose fronts are not definite."""

import numpy as np
import pytest
from numba import njit

from numba_hinv import embedded
from numba_hinv.kernels.dense.microkernel import pointer
from numba_hinv.kernels.dense.signed_cholesky import pack_size, signed_cholesky, work_size
from numba_hinv.kernels.steps.root_front import (
    FACTORED,
    GROWTH,
    LOGABSDET,
    REST,
    root_of,
    root_size,
    root_step,
    root_work_size,
    rounded,
)
from numba_hinv.system.cpu import CPU

SIZES = [(4, 4, 4), (8, 8, 8), (16, 16, 16), (20, 20, 20), (32, 32, 32), (5, 3, 7), (13, 1, 2), (9, 30, 17), (6, 4, 0),
         (70, 33, 45), (3, 70, 1), (1, 1, 1), (24, 25, 48)]  # fmt: skip


@njit
def _root_of(n, P, U, work):
    root_of(n, pointer(P, 0), pointer(U, 0), pointer(work, 0))


@njit
def _root_step(n, p, n_in, with_vector, damping, tiny, limit, most, U, blocks, g, L, scales, Y, y, nu, work):
    Dx, Dz, Dxx, Dzx, Dzz = blocks
    root_step(
        n, p, n_in, with_vector, damping, tiny, limit, most, pointer(U, 0), pointer(Dx, 0), pointer(Dz, 0),
        pointer(Dxx, 0), pointer(Dzx, 0), pointer(Dzz, 0), pointer(g, 0), pointer(L, 0), pointer(scales, 0),
        pointer(Y, 0), pointer(y, 0), pointer(nu, 0), pointer(work, 0),
    )  # fmt: skip


class Step:
    """One layer with random blocks, its front P, and what `root_step` writes, everything else being NaN."""

    def __init__(self, n, p, n_in, dtype, shift=0.3):
        CPU.load(np.dtype(dtype), embedded.chain([1], [1]).table)
        rng = np.random.default_rng(n + 7 * p)

        def definite(size, by):
            A = rng.standard_normal((size, size))
            return A @ A.T / max(size, 1) + by * np.eye(size)

        self.sizes, self.dtype, self.damping = (n, p, n_in), dtype, 0.1
        self.P, B = definite(n, 0.3), definite(p + n_in, shift)
        blocks = rng.standard_normal((n, p)), rng.standard_normal((n, n_in)), B[:p, :p], B[:p, p:], B[p:, p:]
        self.blocks = tuple(np.ascontiguousarray(block, dtype) for block in blocks)
        self.g, self.v = rng.standard_normal(p), rng.standard_normal(n)
        nan = {"U": root_size(max(n, n_in)), "L": pack_size(p), "y": p}
        for name, size in nan.items():
            setattr(self, name, np.full(size, np.nan, dtype))
        self.scales, self.Y = np.full((p, 2), np.nan, dtype), np.full((p, n_in), np.nan, dtype)
        self.work = np.full(max(root_work_size(n, p, n_in), root_work_size(n, n, 0)), np.nan, dtype)
        # Below the diagonal nothing is certain.
        front = np.where(np.tri(n, k=-1, dtype=bool), np.nan, self.P)
        _root_of(n, front.astype(dtype), self.U, self.work)
        assert self.work[FACTORED] == 1
        self.nu = np.zeros(max(n, n_in), dtype)
        self.nu[:n] = np.linalg.solve(self.root(n).T, self.v)

    def root(self, n):
        """U, as it is now."""
        return np.triu(self.U[: rounded(n) ** 2].reshape(rounded(n), rounded(n))[:n, :n]).astype(float)

    def run(self, with_vector=0, tiny=0.0, limit=np.inf, most=np.inf):
        """Whether the layer was factored."""
        scalars = [self.dtype(value) for value in (self.damping, tiny, limit, most)]
        _root_step(
            *self.sizes, with_vector, *scalars, self.U, self.blocks, self.g.astype(self.dtype), self.L, self.scales,
            self.Y, self.y, self.nu, self.work,
        )  # fmt: skip
        return self.work[FACTORED] == 1

    def truth(self):
        """M, K and what the inputs contribute to the next front, in float64."""
        n, p, n_in = self.sizes
        Dx, Dz, Dxx, Dzx, Dzz = (block.astype(float) for block in self.blocks)
        M = Dxx + self.damping * np.eye(p) + Dx.T @ self.P @ Dx
        return M, Dzx + Dx.T @ self.P @ Dz, Dzz + Dz.T @ self.P @ Dz


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", SIZES)
def test_one_layer(sizes, dtype):
    """The factor, Y, the next front, the determinant, and the sweep back of one right-hand side.

    A Cholesky factorization of size k has a backward error of at most (k + 1) eps times the product of the factors.
    """
    n, p, n_in = sizes
    step = Step(n, p, n_in, dtype)
    assert step.run(with_vector=1)
    M, K, C = step.truth()
    F = np.linalg.cholesky(M)
    Y = np.linalg.solve(F, K)
    scale = np.abs(M).max() + np.abs(C).max(initial=0.0)
    bound = 4 * (n + p + n_in + 1) * np.finfo(dtype).eps * scale
    by_inverse = bound * np.linalg.norm(np.linalg.inv(F), 2)
    assert np.abs(step.Y - Y).max(initial=0.0) < by_inverse * (1 + np.linalg.norm(Y))
    U = step.root(n_in)
    assert np.abs(U.T @ U - (C - Y.T @ Y)).max(initial=0.0) < bound * (1 + np.linalg.norm(Y))
    # The packed factor and its scales, as `signed_cholesky` writes them.
    L, pivots, scales = np.zeros(pack_size(p)), np.zeros(2 * p, np.int32), np.zeros((p, 2))
    _, _, _, logabsdet = signed_cholesky(M.copy(), 0.0, 0.0, L, pivots, scales, np.empty(work_size(p)))
    assert (pivots[:p] == np.arange(p)).all()
    assert np.abs(step.L - L).max() < by_inverse * np.abs(scales).max() * (1 + np.abs(L).max())
    np.testing.assert_allclose(step.scales, scales, rtol=by_inverse * np.linalg.norm(np.linalg.inv(F), 2), atol=0)
    found = float(step.work[LOGABSDET]) + float(step.work[REST])
    assert abs(found - logabsdet) < p * by_inverse * np.linalg.norm(np.linalg.inv(F), 2)
    assert abs(step.work[GROWTH] - (Y**2).sum(1).max(initial=0.0)) < 2 * by_inverse * (1 + np.linalg.norm(Y)) ** 2
    y = np.linalg.solve(F, step.g + step.blocks[0].T @ step.v)
    assert np.abs(step.y - y).max() < 10 * by_inverse * (1 + np.linalg.norm(y)) * np.linalg.norm(np.linalg.inv(F), 2)
    v = step.blocks[1].T @ step.v - Y.T @ y
    assert np.abs(U.T @ step.nu[:n_in] - v).max(initial=0.0) < 100 * by_inverse * (1 + np.linalg.norm(y)) * (
        1 + np.linalg.norm(Y)
    ) * np.linalg.norm(np.linalg.inv(F), 2)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (20, 20, 20), (9, 30, 17)])
def test_what_is_not_definite_is_left_as_it_was(sizes):
    """Where the pivot or the next front is indefinite, and where a pivot is smaller than asked for."""
    for shift, limits in ((-30.0, {}), (0.3, {"tiny": 1e6}), (0.3, {"limit": 1e-3, "most": 1e9})):
        step = Step(*sizes, np.float64, shift)
        before = step.U.copy()
        assert not step.run(**limits)
        np.testing.assert_array_equal(step.U, before)
    # Pivots may be that small where nothing large comes of them.
    assert Step(*sizes, np.float64).run(limit=1e-3, most=1e-9)


def test_a_front_without_a_factor():
    """Indefinite ones, singular ones, and such as hold NaN or infinity above the diagonal."""
    work, U = np.empty(root_work_size(20, 20, 0)), np.empty(root_size(20))
    for spoil in (-1.0, 0.0, np.nan, np.inf):
        P = np.eye(20)
        P[13, 13] = spoil
        _root_of(20, P, U, work)
        assert work[FACTORED] == 0, spoil
    P = np.eye(20)
    P[3, 17] = np.nan
    _root_of(20, P, U, work)
    assert work[FACTORED] == 0


def _chain(depth, n, indefinite, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    system = embedded.chain([n] * depth, [n] * depth, 1, dtype)
    for l in range(depth):
        blocks = embedded.blocks(system, l)
        B = rng.standard_normal((2 * n, 2 * n)) / np.sqrt(2 * n)
        B = B @ B.T + (0.1 - 2.0 * (l in indefinite)) * np.eye(2 * n)
        size = n if l else 0
        parts = rng.standard_normal((n, n)), rng.standard_normal((n, size)), B[:n, :n], B[:n, n:], B[n:, n:]
        for view, part in zip(blocks, parts):
            view[...] = part[: view.shape[0], : view.shape[1]] / (np.sqrt(n) if part is parts[1] else 1)
    embedded.terminal(system)[...] = np.eye(n)
    return system


@pytest.mark.parametrize("indefinite", [(), (11,), (0,), (5, 6), tuple(range(12)), (11, 3)])
@pytest.mark.parametrize("n", [3, 8, 20])
def test_chains_with_indefinite_layers_have_the_factors_of_matrices(n, indefinite):
    """Against the same chain with no front kept as a factor: inertia, determinant, and solutions."""
    system = _chain(12, n, indefinite)
    plain = system._replace(table=system.table.copy(), factors=type(system.factors)(*map(np.copy, system.factors)))
    assert system.table["rooted"].all()
    plain.table["rooted"] = False
    b = np.random.default_rng(1).standard_normal((1, 12 * n))
    x, expected = np.empty_like(b), np.empty_like(b)
    assert embedded.factorize(system, 0.01, 0.0) == embedded.factorize(plain, 0.01, 0.0)
    ours, theirs = system.factors.logabsdet, plain.factors.logabsdet
    np.testing.assert_array_equal(system.factors.num_positive, plain.factors.num_positive)
    assert abs(ours.sum() - theirs.sum()) < 1e-9
    embedded.solve(system, b, x, 2)
    embedded.solve(plain, b, expected, 2)
    product, rows = np.empty_like(b), np.eye(b.size)
    norm = 0.0
    for row in rows:
        embedded.multiply(system, row[None], product)
        norm = max(norm, np.abs(product).sum())
    for solution in (x, expected):
        embedded.multiply(system, solution, product)
        error = np.abs(b - product - 0.01 * solution).max()
        assert error < 1e-14 * (np.abs(b).max() + norm * np.abs(solution).max())
