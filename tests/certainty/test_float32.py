"""float32 throughout: the parameters' type decides, results are float32, and the last digit of it is right.

The truth is computed in extended precision from the same float32 numbers. u = 2^-24 is the unit roundoff.
"""

import warnings

import dense_truth
import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import GOLDEN, Problem, chain, golden, problems
from test_layer_blocks import dense, random_chain

import numba_hinv as nh
from numba_hinv.certainty.solver import Solver

u = 2.0**-24


def single(problem):
    """The same net with everything rounded to float32."""
    y = problem.y if problem.loss == "softmax_cross_entropy" else problem.y.astype(np.float32)
    return Problem(problem.layers, problem.loss, problem.params.astype(np.float32), problem.X.astype(np.float32), y)


def rounding(problem):
    """Unit roundoffs that a chain of dot products of this net's lengths may accumulate, to first order."""
    lengths = [d["in_features"] + d["out_features"] + 8 for d in problem.layers]
    return 2 * sum(lengths) * u


@given(problems())
def test_values_and_derivatives(problem):
    problem = single(problem)
    t, net = problem.truth, problem.net
    tolerance = rounding(problem)
    args = problem.params, problem.X, problem.y
    output, gradient = net.forward(*args[:2]), net.gradient(*args)
    assert output.dtype == gradient.dtype == np.float32
    # Errors of one layer are magnified by the weights of the later ones.
    growth = np.prod([max(1.0, np.linalg.norm(W, 2) + 1) for W, _ in net.unpack(problem.params)])
    assert np.abs(output - t.output).max() <= tolerance * growth * max(1.0, np.abs(t.output).max())
    assert abs(net.loss(*args) - t.value) <= tolerance * growth * max(1.0, abs(t.value))
    scale = max(1.0, np.abs(t.gradient).max())
    assert np.abs(gradient - t.gradient).max() <= tolerance * growth**2 * scale
    H = problem.hessian
    assert H.dtype == np.float32 and H.gradient.dtype == np.float32
    v = problem.right_hand_side().astype(np.float32)
    product = H @ v
    assert product.dtype == np.float32
    error = np.linalg.norm(product - t.hessian @ v)
    assert error <= tolerance * growth**2 * max(1.0, problem.norm) * np.linalg.norm(v)


@pytest.mark.parametrize("name", GOLDEN)
def test_solutions_of_the_golden_nets(name):
    problem = single(golden(name)[0])
    b = problem.right_hand_side(2).astype(np.float32)
    for relative_damping in (0.3, 1e-2, -0.1):
        damping = np.float32(relative_damping * problem.norm)
        F = problem.hessian.factorize(damping=damping)
        x = F.solve(b)
        assert x.dtype == np.float32 and F.dtype == np.float32
        assert problem.backward_error(damping, x, b) <= rounding(problem)
        if problem.gap(damping) > 1e-3 and F.inertia.exact:
            assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()


@given(problems(), st.floats(-3, 0), st.sampled_from([1, 1, -1]))
def test_solutions_of_random_nets(problem, power, sign):
    problem = single(problem)
    assume(problem.norm > 1e-3)
    damping = np.float32(sign * 10.0**power * problem.norm)
    assume(problem.gap(damping) > 1e-4)
    b = problem.right_hand_side().astype(np.float32)
    x = problem.hessian.factorize(damping=damping).solve(b)
    assert x.dtype == np.float32
    assert problem.backward_error(damping, x, b) <= rounding(problem)


def test_refinement_reaches_the_last_digit():
    """With the residual in float64 the solution is the correctly rounded one up to an ulp or two, for which a residual
    in float32 does not suffice: it would leave condition * u."""
    worst = 0.0
    for seed in range(5):
        problem = single(chain(4, 6, batch=3, seed=seed))
        damping = np.float32(1e-2 * problem.norm)
        b = problem.right_hand_side().astype(np.float32)
        x = problem.hessian.factorize(damping=damping).solve(b)
        worst = max(worst, problem.backward_error(damping, x, b))
    # Rounding x to float32 alone leaves up to u.
    assert worst <= 2 * u


def test_float32_parameters_take_data_of_any_type():
    problem = chain(4, 3, batch=3, loss="mean_squared_error")
    params, b = problem.params.astype(np.float32), problem.right_hand_side()
    x = nh.solve(problem.net, params, problem.X, problem.y, b.astype(np.float32), damping=0.1)
    assert x.dtype == np.float32
    ints = nh.solve(problem.net, params, problem.X, problem.y, np.ones(problem.size, int), damping=0.1)
    assert ints.dtype == np.float32
    # A float64 right-hand side asks for a float64 answer, which float32 factors reach by refinement.
    t = dense_truth.differentiate(problem.layers, problem.loss, params, problem.X, problem.y)
    wide = nh.solve(problem.net, params, problem.X, problem.y, b, damping=0.1)
    assert wide.dtype == np.float64
    assert dense_truth.backward_error(t.hessian, 0.1, wide, b) <= 1e-14


def test_float64_parameters_with_float32_data_stay_float64():
    problem = chain(4, 3, batch=3, loss="mean_squared_error")
    X, y = problem.X.astype(np.float32), problem.y.astype(np.float32)
    b = problem.right_hand_side().astype(np.float32)
    x = nh.solve(problem.net, problem.params, X, y, b, damping=0.1)
    assert x.dtype == np.float64
    t = dense_truth.differentiate(problem.layers, problem.loss, problem.params, X, y)
    assert dense_truth.backward_error(t.hessian, 0.1, x, b) <= 1e-14


def test_initial_parameters_can_be_converted():
    net = nh.Network([nh.Dense(3, 3), nh.Dense(3, 2, "identity")], "mean_squared_error")
    params = net.init(rng=0).astype(np.float32)
    X, y = np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    assert net.forward(params, X).dtype == np.float32
    assert np.isfinite(net.loss(params, X, y))


@pytest.mark.filterwarnings("ignore")
def test_a_numerically_singular_system_is_not_silent():
    """Damping below float32's resolution: the answer is right, or warned about, or refused."""
    problem = single(chain(4, 5, batch=2))
    damping = 1e-9 * problem.norm
    b = problem.right_hand_side().astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            x = problem.hessian.factorize(damping=damping).solve(b)
        except np.linalg.LinAlgError:
            return
    assert np.isfinite(x).all()
    warned = any(issubclass(w.category, scipy.linalg.LinAlgWarning) for w in caught)
    assert warned or problem.backward_error(damping, x, b) <= rounding(problem)


def test_determinant_and_inertia():
    problem = single(chain(4, 5, batch=6))
    # Not 1.0: the eigenvalue of largest magnitude is negative, and -norm lies on it.
    for relative_damping in (1.1, 0.1, -0.1):
        damping = np.float32(relative_damping * problem.norm)
        F = problem.hessian.factorize(damping=damping)
        assert problem.gap(float(damping)) > 1e-4 and F.inertia.exact
        shifted = problem.eigenvalues + float(damping)
        sign, logabsdet = F.slogdet()
        assert F.inertia.negative == (shifted < 0).sum() and sign == (-1) ** int((shifted < 0).sum())
        sensitivity = rounding(problem) * problem.norm * np.abs(1 / shifted).sum()
        assert abs(logabsdet - np.log(np.abs(shifted)).sum()) <= sensitivity


# ---- factors in float32: what they say of themselves near eigenvalues ------------------------------------------------


def one_layer(matrix):
    """H is this matrix: one layer that acts on no state."""
    p = len(matrix)
    return nh.Hessian.from_blocks(
        [nh.LayerBlocks(np.zeros((1, p)), np.zeros((1, 0)), matrix, np.zeros((p, 0)), np.zeros((0, 0)))]
    )


def cholesky_of_ones(n, signs=None):
    """L diag(signs) L^T, L = I with -1 below the diagonal: pivots of +-1, and a smallest eigenvalue of about 4^-n."""
    L = np.eye(n) - np.tril(np.ones((n, n)), -1)
    return (L if signs is None else L * signs) @ L.T


def test_large_pivots_do_not_make_an_inertia_certain():
    """One eigenvalue is negative, by 2.2e-10 ||H||; the smallest pivot of the factors is about 0.9."""
    H = one_layer(cholesky_of_ones(15))
    F, wide = (H.factorize(-2.51e-8, factor_dtype=dtype) for dtype in ("float32", "float64"))
    assert (wide.inertia.negative, wide.inertia.exact) == (1, True)
    assert F.solver.factors.pivots.largest.max() < 2.0
    assert not F.inertia.exact or F.inertia.negative == 1
    assert not F.inertia.exact


def matrices_and_spectra(rng, count):
    """(H, its eigenvalues) of every kind: nets in both precisions, chains of blocks, and factors of ones."""
    for k in range(count):
        if k % 3 == 0:
            n = int(rng.integers(5, 31))
            matrix = cholesky_of_ones(n, rng.choice([1.0, 1.0, -1.0], n) if k % 2 else None)
            yield one_layer(matrix), np.linalg.eigvalsh(matrix)
        elif k % 3 == 1:
            chain_of_blocks = random_chain(int(rng.integers(1 << 30)), int(rng.integers(2, 20)))
            matrix = dense(*chain_of_blocks)
            yield nh.Hessian.from_blocks(*chain_of_blocks), np.linalg.eigvalsh(matrix)
        else:
            problem = chain(
                int(rng.integers(1, 5)),
                int(rng.integers(2, 6)),
                skip=bool(rng.random() < 0.5),
                batch=int(rng.integers(1, 6)),
                activation=str(rng.choice(["tanh", "gelu", "sin"])),
                seed=int(rng.integers(1 << 30)),
            )
            problem = single(problem) if k % 2 else problem
            yield problem.hessian, problem.eigenvalues


def inertias_near_eigenvalues(rng, num_matrices, num_shifts):
    """(inertias in both precisions, wrong ones that were said to be exact, those beyond 1e-4 ||H|| that were not)."""
    found = np.zeros(3, int)
    for H, eigenvalues in matrices_and_spectra(rng, num_matrices):
        norm = np.abs(eigenvalues).max()
        for k in range(num_shifts):
            offset = 10.0 ** rng.uniform(-12, -7 if k % 3 else -3) * rng.choice([-1, 1])
            t = rng.choice(eigenvalues) + offset * norm
            gap = np.abs(eigenvalues - t).min() / norm
            if gap < 1e-13:
                continue
            for dtype in (np.float32, np.float64):
                try:
                    inertia = H.factorize(-t, factor_dtype=dtype).inertia
                except np.linalg.LinAlgError:
                    continue
                is_right = inertia.negative == (eigenvalues < t).sum()
                found += 1, inertia.exact and not is_right, gap > 1e-4 and not inertia.exact
    return found


def test_inertias_near_eigenvalues():
    """Bounds by the smallest pivot called 8 of them exact that were wrong."""
    count, wrong, doubted = inertias_near_eigenvalues(np.random.default_rng(0), 45, 24)
    assert count > 1500 and wrong == 0 and doubted == 0


@pytest.mark.slow
def test_many_inertias_near_eigenvalues():
    count, wrong, doubted = inertias_near_eigenvalues(np.random.default_rng(1), 900, 32)
    assert count > 40_000 and wrong == 0 and doubted == 0


def log_determinants(rng, num_matrices, num_shifts):
    """(log-determinants, errors above 1e-4 without a warning, warnings), factors in float32."""
    found = np.zeros(3, int)
    for H, eigenvalues in matrices_and_spectra(rng, num_matrices):
        norm = np.abs(eigenvalues).max()
        for k in range(num_shifts):
            t = rng.choice(eigenvalues) + 10.0 ** rng.uniform(-7, -2) * rng.choice([-1, 1]) * norm
            shifted = eigenvalues - t
            if np.abs(shifted).min() < 1e-8 * norm:
                continue
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    logabsdet = H.factorize(-t, factor_dtype=np.float32).slogdet()[1]
                except np.linalg.LinAlgError:
                    continue
            truth = np.log(np.abs(shifted)).sum()
            found += 1, not caught and abs(logabsdet - truth) > 1e-4 * max(abs(truth), 1.0), len(caught)
    return found


def test_log_determinants_keep_their_promise():
    """A bound by the smallest pivot hid 3 errors. Factors in float64 give what those in float32 miss, where there had
    been 740 warnings."""
    count, missed, warned = log_determinants(np.random.default_rng(2), 60, 20)
    assert count > 1000 and missed == 0 and warned <= 0.01 * count


@pytest.mark.slow
def test_many_log_determinants_keep_their_promise():
    count, missed, warned = log_determinants(np.random.default_rng(3), 2400, 24)
    assert count > 50_000 and missed == 0 and warned <= 0.01 * count


def test_log_determinants_without_memory_for_float64(monkeypatch):
    """What the factors in float32 say, and a warning of how far it may be off."""

    def no_memory(solver):
        raise MemoryError

    monkeypatch.setattr(Solver, "widened", no_memory)
    matrix = cholesky_of_ones(15)
    with pytest.warns(scipy.linalg.LinAlgWarning, match="log-determinant"):
        one_layer(matrix).factorize(3e-8, factor_dtype="float32").slogdet()
