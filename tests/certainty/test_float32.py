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

import numba_hinv as nh

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
    params = net.init(seed=0).astype(np.float32)
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
