"""Chains whose Hessian in the parameters is ill-conditioned although the lifted system is not.

Truths: Riccati's recursion in extended precision, sparse LU of the lifted system, and H from its definition in decimal
arithmetic of 220 digits, in which nothing that occurs here is singular.
"""

import decimal
import pickle
import warnings
from decimal import Decimal

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
from test_layer_blocks import lifted, random_chain

import numba_hinv as nh
from numba_hinv.certainty import lifted as lifted_system
from numba_hinv.factors import choice

DIGITS = decimal.Context(prec=220, Emin=-999999, Emax=999999)
DRIVE, STEP = np.array([[0.0], [1.0]]), np.array([[1.5, 1.0], [0.0, 0.5]])


def controlled(A, B, num_steps):
    """Half of the squares of all controls and states of z' = A z + B u, from z = 0: (blocks, terminal)."""
    n, p = B.shape
    blocks = [nh.LayerBlocks(B, A[:, :a], np.eye(p), np.zeros((p, a)), np.eye(a)) for a in (0, *[n] * (num_steps - 1))]
    return blocks, np.eye(n)


def riccati(A, B, b, damping=0.0):
    """(controls that minimise that, damped, minus b^T u, log-determinant) by dynamic programming, for one control.

    b : (num_steps, k)
    """
    A, b = A.astype(np.longdouble), b.astype(np.longdouble)
    B, P = B[:, 0].astype(np.longdouble), np.eye(len(A), dtype=np.longdouble)
    q, gains, logabsdet = np.zeros((len(A), b.shape[1]), np.longdouble), [], 0.0
    for force in b[::-1]:
        weight = 1.0 + damping + B @ P @ B
        logabsdet += np.log(weight)
        K, k = B @ P @ A / weight, (force - B @ q) / weight
        gains.append((K, k))
        # The cost to go, 1/2 z^T P z + q^T z, with the state's own square.
        q, P = A.T @ (q + np.outer(P @ B, k)), np.eye(len(A)) + A.T @ P @ (A - np.outer(B, K))
    z, controls = np.zeros_like(q), []
    for K, k in gains[::-1]:
        u = k - K @ z
        controls.append(u)
        z = A @ z + np.outer(B, u)
    return np.array(controls), float(logabsdet)


def decimals(array):
    return np.array([Decimal(float(x)) for x in np.ravel(array)], object).reshape(np.shape(array))


class Exact:
    """H + damping I of a chain in decimals, its inertia, log-determinant and solutions, by L D L^T."""

    def __init__(self, blocks, terminal, damping, b):
        with decimal.localcontext(DIGITS):
            self.matrix = self._matrix(blocks, terminal, damping)
            A, x, d = self.matrix.copy(), decimals(b), []
            for k in range(len(A)):
                d.append(A[k, k])
                ratios = A[k + 1 :, k] / d[-1]
                A[k + 1 :, k + 1 :] -= ratios[:, None] * A[k, k + 1 :]
                x[k + 1 :] -= ratios * x[k]
            for k in reversed(range(len(A))):
                x[k] = (x[k] - sum(A[k, k + 1 :] * x[k + 1 :])) / d[k]
            self.x, self.negative = x, sum(pivot < 0 for pivot in d)
            self.logabsdet = float(sum(abs(pivot).ln() for pivot in d))

    @staticmethod
    def _matrix(blocks, terminal, damping):
        ends = np.cumsum([0, *(block.num_params for block in blocks)])
        H = np.full((ends[-1], ends[-1]), Decimal(0))
        dz = np.full((0, ends[-1]), Decimal(0))
        for block, start, end in zip(blocks, ends, ends[1:]):
            H[start:end, start:end] += decimals(block.Dxx)
            next_dz = np.full((block.Dx.shape[0], ends[-1]), Decimal(0))
            if dz.size:
                coupling = decimals(block.Dzx) @ dz
                H[start:end] += coupling
                H[:, start:end] += coupling.T
                H += dz.T @ decimals(block.Dzz) @ dz
                next_dz += decimals(block.Dz) @ dz
            next_dz[:, start:end] += decimals(block.Dx)
            dz = next_dz
        return H + dz.T @ decimals(terminal) @ dz + np.diag([Decimal(damping)] * len(H))

    def error(self, x):
        """Of a solution, relative, in the 2-norm."""
        with decimal.localcontext(DIGITS):
            difference = (decimals(x) - self.x).astype(float)
        return np.linalg.norm(difference) / np.linalg.norm(self.x.astype(float))

    def componentwise_backward_error(self, x, b):
        """The same whatever the scaling of H, x and b."""
        with decimal.localcontext(DIGITS):
            x, b = decimals(x), decimals(b)
            return float(max(abs(b - self.matrix @ x) / (abs(self.matrix) @ abs(x) + abs(b))))


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("num_steps", [10, 50, 100, 200])
def test_unstable_chain(num_steps, damping):
    """||H|| is 2e35 at 100 steps, the smallest eigenvalue at least 1: all is right, and nothing is warned of."""
    b = np.random.default_rng(num_steps).standard_normal((num_steps, 3))
    exact, expected = riccati(STEP, DRIVE, b, damping)
    H = nh.Hessian.from_blocks(*controlled(STEP, DRIVE, num_steps))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F = H.factorize(damping)
        x, info = F.solve(b, full_output=True)
        sign, logabsdet = F.slogdet()
        diagonal = F.diagonal()
    assert F.inertia == (0, 0, num_steps, True) and F.num_perturbed == 0 and H.count_below(0.5) == 0
    error = np.linalg.norm((x - exact).astype(float), axis=0) / np.linalg.norm(exact.astype(float), axis=0)
    assert np.abs(x - exact).max() < 1e-14 and (error <= info.error_bound).all() and info.backward_error.max() <= 1e-15
    if num_steps >= 50:
        assert info.error_bound.max() < 1e-12
    assert sign == 1.0 and logabsdet == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(F.solve(b, refine=False), exact.astype(float), rtol=0, atol=1e-13)
    inverse = riccati(STEP, DRIVE, np.eye(num_steps), damping)[0].astype(float)
    np.testing.assert_allclose(diagonal, inverse.diagonal(), rtol=1e-12)
    np.testing.assert_allclose(F.blocks(3), inverse[3:4, 3:4], rtol=1e-12)
    H_1 = np.linalg.norm(H.todense(), 1)
    assert F.condition() == pytest.approx(H_1 * np.linalg.norm(inverse, 1), rel=0.5)


def test_kept_in_other_ways(tmp_path):
    """From a file and a pickle the same bits; with checkpoints, and with factors in float32, the same digits."""
    H = nh.Hessian.from_blocks(*controlled(STEP, DRIVE, 60))
    b = np.random.default_rng(0).standard_normal((60, 2))
    F = H.factorize(0.0)
    x = F.solve(b)
    F.save(tmp_path / "f")
    for other in (H.factorize(0.0, checkpoint=True), nh.load(tmp_path / "f"), pickle.loads(pickle.dumps(F))):
        tolerance = 1e-14 if other.checkpoint else 0.0
        np.testing.assert_allclose(other.solve(b), x, rtol=0, atol=tolerance * np.abs(x).max())
        assert other.inertia == F.inertia == (0, 0, 60, True)
    one, other = H.factorize_many([0.0, 0.5])
    np.testing.assert_array_equal(one.solve(b), x)
    np.testing.assert_array_equal(other.solve(b), H.factorize(0.5).solve(b))
    narrow = H.factorize(0.0, factor_dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(narrow.solve(b) - x).max() < 1e-14 and narrow.inertia == F.inertia
        assert narrow.slogdet()[1] == pytest.approx(F.slogdet()[1], rel=1e-4)


def test_solutions_that_are_not_refined():
    """Factors in float32 leave their own rounding, which is what backward errors and bounds then say."""
    H = nh.Hessian.from_blocks(*controlled(STEP, DRIVE, 60))
    b = np.random.default_rng(0).standard_normal((60, 2))
    x, info = H.factorize(0.0, factor_dtype="float32").solve(b, refine=False, full_output=True)
    exact = riccati(STEP, DRIVE, b)[0]
    error = np.linalg.norm((x - exact).astype(float), axis=0) / np.linalg.norm(exact.astype(float), axis=0)
    assert (1e-10 < error).all() and (error <= info.error_bound).all()
    assert (1e-10 < info.backward_error).all() and (info.backward_error < 1e-5).all()


def test_a_chain_whose_solutions_stay_wrong_is_not_lifted(monkeypatch):
    """Whatever its pivots say: products with H then have the last word, for which this one is singular."""
    # Of 100 stages it is by rounding that their estimate of the smallest singular value shows it, or does not.
    H, refine = nh.Hessian.from_blocks(*controlled(STEP, DRIVE, 150)), lifted_system.refine
    assert H.factorize(0.0).solver.is_lifted()
    monkeypatch.setattr(lifted_system, "refine", lambda *args: refine(*args)._replace(backward_error=np.ones(1)))
    with pytest.raises(np.linalg.LinAlgError, match="singular to working precision"):
        H.factorize(0.0)


def test_against_sparse_lu_of_the_lifted_system():
    """Three states, two controls and barrier terms; both unknowns and equations of the lifted system scaled to 1."""
    rng = np.random.default_rng(3)
    A, B = np.diag([1.6, -1.3, 0.4]) + 0.2 * rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    for barrier in (0.0, 1e15):
        blocks, terminal = controlled(A, B, 80)
        for block in blocks[::3]:
            block.Dxx = block.Dxx + np.diag([barrier, 0.0])
        system, P = lifted(blocks, terminal, 0.0)
        scales = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(np.abs(system).max(axis=1).toarray()[:, 0], 1.0)))
        b = rng.standard_normal((P, 2))
        right = scales @ np.vstack([b, np.zeros((system.shape[0] - P, 2))])
        expected = (scales @ scipy.sparse.linalg.splu((scales @ system @ scales).tocsc()).solve(right))[:P]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            F = nh.Hessian.from_blocks(blocks, terminal).factorize(0.0)
            x = F.solve(b)
        assert F.inertia == (0, 0, P, True)
        # Controls behind a barrier of 1e15 are 1e-15 themselves, and right to as many digits as the others.
        np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-12 / max(barrier, 1.0))


def changed_chain(rng, kind):
    """(blocks, terminal, damping) of a random chain, definite or not, made hard in one of four ways."""
    blocks, terminal = random_chain(int(rng.integers(1 << 30)), int(rng.integers(2, 12)))
    if rng.random() < 0.5:
        for block in blocks:
            p, root = block.num_params, rng.standard_normal([sum(block.Dzx.shape)] * 2)
            W = root @ root.T
            block.Dxx, block.Dzx, block.Dzz = W[:p, :p], W[:p, p:], W[p:, p:]
        terminal = terminal @ terminal.T
    dampings = [0.0, 0.1, -0.3]
    if kind == "unstable":
        gain = 10 ** rng.uniform(0.3, 1.5)
        for block in blocks:
            block.Dz = gain * block.Dz
    elif kind != "barrier":
        H = nh.Hessian.from_blocks(blocks, terminal).todense()
        k = int(rng.integers(len(H))) if kind == "trailing" else 0
        distance = rng.choice([-1.0, 1.0]) * 10 ** rng.uniform(-16, -6) * np.linalg.norm(H, 2)
        dampings = rng.choice(-np.linalg.eigvalsh(H[k:, k:]), 1) + distance
    if kind == "barrier" or (kind == "trailing" and rng.random() < 0.3):
        for block in blocks:
            weights = 10 ** rng.uniform(10, 18, block.num_params) * (rng.random(block.num_params) < 0.4)
            block.Dxx = block.Dxx + np.diag(weights)
    return blocks, terminal, float(rng.choice(dampings))


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["barrier", "unstable", "near", "trailing"])
def test_random_chains(kind, count):
    """Barrier terms, unstable states, dampings near eigenvalues of H, and near those of its trailing blocks."""
    rng, num_lifted, refused = np.random.default_rng(0), 0, 0
    for _ in range(count):
        blocks, terminal, damping = changed_chain(rng, kind)
        H = nh.Hessian.from_blocks(blocks, terminal)
        b = rng.standard_normal(H.shape[0])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                F = H.factorize(damping)
            except np.linalg.LinAlgError:
                refused += 1
                continue
            if not F.solver.is_lifted():
                continue
            num_lifted += 1
            x, info = F.solve(b, full_output=True)
            warned_of_x = len(caught) > 0
            sign, logabsdet = F.slogdet()
            warned_of_determinant = len(caught) > warned_of_x
        exact = Exact(blocks, terminal, damping, b)
        assert F.inertia == (exact.negative, 0, len(b) - exact.negative, True)
        assert sign == (-1) ** exact.negative
        assert exact.error(x) <= info.error_bound
        assert warned_of_determinant or abs(logabsdet - exact.logabsdet) <= 1e-10 * max(1.0, abs(exact.logabsdet))
        if kind in ("barrier", "unstable"):
            assert not warned_of_x
        if kind == "barrier":
            assert exact.componentwise_backward_error(x, b) < 1e-13 and not warned_of_determinant
    assert num_lifted > count // 5
    if kind in ("barrier", "unstable"):
        assert refused <= count // 100


def test_nets_with_barrier_terms():
    """Blocks of nets, of several samples, with weights that are held by barriers."""
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        net = nh.Network([nh.Dense(2, 3), nh.Dense(3, 2), nh.Dense(2, 1, "identity")], "mean_squared_error")
        given = net.hessian(net.init(batch), rng.standard_normal((batch, 2)), rng.standard_normal((batch, 1)))
        blocks = [given.blocks(l) for l in range(3)]
        for block in blocks:
            block.Dxx = block.Dxx + np.diag(
                10 ** rng.uniform(10, 18, block.num_params) * (rng.random(block.num_params) < 0.3)
            )
        H, b = nh.Hessian.from_blocks(blocks, given.terminal), rng.standard_normal(given.shape[0])
        for damping in (0.5, -0.01):
            exact = Exact(blocks, given.terminal, damping, b)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                F = H.factorize(damping)
                x, (sign, logabsdet) = F.solve(b), F.slogdet()
            assert F.solver.is_lifted() and F.inertia == (exact.negative, 0, len(b) - exact.negative, True)
            assert exact.componentwise_backward_error(x, b) < 1e-13
            assert logabsdet == pytest.approx(exact.logabsdet, rel=1e-12) and sign == (-1) ** exact.negative


def test_singular_chains_are_refused():
    """One control twice, in an unstable chain: its pivot is rounding on its own stage's scale, whatever ||H|| is."""
    blocks, terminal = controlled(STEP, DRIVE, 60)
    twice = np.full((2, 2), 1 / 3)
    blocks[20] = nh.LayerBlocks(0.7 * np.hstack([DRIVE, DRIVE]), STEP, twice, np.zeros((2, 2)), np.eye(2))
    with pytest.raises(np.linalg.LinAlgError, match="singular to working precision.* from 0 below"):
        nh.Hessian.from_blocks(blocks, terminal).factorize(0.0)
    # Nearly twice: what is said is the rounding that was found.
    found = []
    for apart in (1e-15, 1e-14, 1e-8):
        near = twice + np.diag([0.0, apart])
        blocks[20] = nh.LayerBlocks(blocks[20].Dx, STEP, near, np.zeros((2, 2)), np.eye(2))
        try:
            F = nh.Hessian.from_blocks(blocks, terminal).factorize(0.0)
        except np.linalg.LinAlgError as error:
            found.append(float(str(error).split("some pivot by about ")[1].split()[0]))
    assert len(found) == 2 and 5e-3 < min(found) <= max(found) <= 1.0
    b = np.random.default_rng(0).standard_normal(61)
    exact = Exact(blocks, terminal, 0.0, b)
    x, info = F.solve(b, full_output=True)
    assert F.inertia == (0, 0, 61, True) and exact.error(x) <= info.error_bound < 1e-4


def test_an_inertia_that_is_not_certain_says_so():
    """Where the stages cannot certify it, nothing is claimed silently: an error, or inertia.exact is False."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        blocks, terminal, _ = changed_chain(rng, "unstable")
        for block in blocks:
            block.Dz = block.Dz * 100.0
        H = nh.Hessian.from_blocks(blocks, terminal)
        try:
            F = H.factorize(0.0)
        except np.linalg.LinAlgError:
            continue
        negative = Exact(blocks, terminal, 0.0, np.ones(H.shape[0])).negative
        assert not F.inertia.exact or F.inertia.negative == negative


def test_dense_factors_give_way_to_layers():
    """Many states and few controls: the dense way takes less work, and would call H singular."""
    rng = np.random.default_rng(0)
    A, B = 0.12 * rng.standard_normal((100, 100)), rng.standard_normal((100, 1))
    H = nh.Hessian.from_blocks(*controlled(A, B, 200))
    assert choice.chosen(H.system, np.dtype(np.float64)) == "dense"
    b = rng.standard_normal((200, 1))
    F = H.factorize(0.0)
    assert F.method == "layers" and F.inertia == (0, 0, 200, True)
    exact = riccati(A, B, b)[0]
    assert np.linalg.norm((F.solve(b) - exact).astype(float)) < 1e-12 * np.linalg.norm(exact.astype(float))
    with pytest.raises(np.linalg.LinAlgError, match="singular"):
        H.factorize(0.0, method="dense")
