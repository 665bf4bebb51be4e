"""Solutions, inertia and log-determinants against dense linear algebra, over random nets of every shape.

A solution must have a normwise backward error of 1e-14 with respect to the *independent* Hessian, and the matching
forward error. Inertia must be exact wherever the shift keeps a distance from the eigenvalues; nothing may be silently
wrong, so an answer flagged or warned about is excused only where the dense spectrum shows why.
"""

import warnings

import dense_truth
import numpy as np
import pytest
import scipy.linalg
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from problems import chain, layer, make, problems

import numba_hinv as nh
from numba_hinv.kernels.steps import layer_table as layers

# Damping relative to the norm of H, of both signs.
dampings = st.builds(lambda sign, power: sign * 10.0**power, st.sampled_from([1, 1, -1]), st.floats(-6, 0.5))


def check_everything(problem, damping, columns=2):
    H, gap = problem.hessian, problem.gap(damping)
    F = H.factorize(damping=damping)
    b = problem.right_hand_side(columns)
    x = F.solve(b)
    assert x.shape == b.shape and x.dtype == b.dtype
    assert problem.backward_error(damping, x, b) <= 1e-14

    exact = dense_truth.DenseFactors(dense_truth.shifted(problem.truth.hessian, damping))
    reference = exact.solve(b)
    # |dx| / |x| <= condition * backward error.
    assert np.linalg.norm(x - reference) <= 4e-14 * (1 + 1 / gap) * np.linalg.norm(reference)

    shifted = problem.eigenvalues + damping
    negative = int((shifted < 0).sum())
    inertia = F.inertia
    assert inertia.negative + inertia.zero + inertia.positive == problem.size
    assert not (inertia.exact and F.num_perturbed)
    if inertia.exact:
        assert (inertia.negative, inertia.zero) == (negative, 0)
        sign, logabsdet = F.slogdet()
        exact_sign, exact_logabsdet = exact.slogdet()
        assert sign == exact_sign == (-1) ** negative
        # A relative perturbation 1e-13 |H| of the matrix changes the sum of the logarithms by this much.
        sensitivity = 1e-13 * problem.norm * np.abs(1 / shifted).sum()
        assert abs(logabsdet - exact_logabsdet) <= 1e-10 * abs(exact_logabsdet) + sensitivity
    return F


@settings(max_examples=150)
@given(problems(), dampings)
def test_random_nets(problem, relative_damping):
    assume(problem.norm > 1e-8)
    damping = relative_damping * problem.norm
    assume(problem.gap(damping) > 1e-8)
    check_everything(problem, damping)


@settings(max_examples=40)
@given(problems(max_layers=4, max_width=3, max_batch=3), st.floats(-9, -6), st.sampled_from([1, -1]))
def test_tiny_dampings(problem, power, sign):
    """Few samples: every layer has parameters that later layers do not see, and 1/damping enters the elimination."""
    assume(problem.norm > 1e-8)
    damping = sign * 10.0**power * problem.norm
    assume(problem.gap(damping) > 1e-2 * 10.0**power)
    F = problem.hessian.factorize(damping=damping)
    b = problem.right_hand_side()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = F.solve(b)
    assert np.isfinite(x).all()
    error = problem.backward_error(damping, x, b)
    warned = any(issubclass(w.category, scipy.linalg.LinAlgWarning) for w in caught)
    assert error <= 1e-14 or warned
    if power > -8:
        assert not warned
    if F.inertia.exact and problem.gap(damping) > 1e-8:
        assert F.inertia.negative == (problem.eigenvalues + damping < 0).sum()


SHAPES = {
    "one sample": chain(4, 5, batch=1),
    "one sample, plain": chain(4, 5, batch=1, skip=False),
    "fewer samples than columns": chain(4, 4, batch=3),
    "as many samples as inputs": chain(4, 4, batch=4),
    "as many samples as columns": chain(4, 4, batch=5),
    "more samples than columns": chain(4, 4, batch=11),
    "no bias, as many samples as columns": chain(4, 4, bias=False, batch=4),
    "width 1": chain(1, 12, out=1, loss="mean_squared_error", batch=1),
    "width 1, many samples": chain(1, 12, out=1, loss="binary_cross_entropy", batch=6),
    "single layer": make([layer(6, 4, "identity")], batch=5),
    "single layer, one sample": make([layer(6, 4, "tanh")], batch=1),
    "single layer, with skip": make([layer(4, 4, "sin", skip=True)], "mean_squared_error", batch=3),
    "smallest net": make([layer(1, 1, "softplus", bias=False)], "mean_squared_error", batch=1),
    "bottleneck": make([layer(6, 1), layer(1, 6), layer(6, 1), layer(1, 5, "identity")], batch=4),
    "wide then narrow": make([layer(2, 12, "gelu"), layer(12, 2, "silu"), layer(2, 3, "identity")], batch=7),
    "narrow then wide": make([layer(12, 2, "sigmoid"), layer(2, 12, "softplus"), layer(12, 2, "sin")], batch=3),
    "nonlinear end": make([layer(3, 4), layer(4, 4, "gelu", skip=True), layer(4, 4, "tanh", skip=True)], batch=4),
    "relu": chain(4, 5, activation="relu", batch=3),
    "mixed skips and biases": make(
        [layer(4, 4, "silu", False, True), layer(4, 4), layer(4, 4, "sin", True, True), layer(4, 2, "identity", False)],
        "binary_cross_entropy",
        batch=5,
    ),
    "exploding": chain(4, 6, batch=3, gain=3.0),
    "vanishing": chain(4, 6, batch=3, skip=False, gain=0.2),
}


@pytest.mark.parametrize("relative_damping", [1.1, 1e-3, -1e-2])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, relative_damping):
    problem = SHAPES[name]
    damping = relative_damping * problem.norm
    assert problem.gap(damping) > 1e-8
    F = check_everything(problem, damping, columns=3)
    assert F.inertia.exact
    # Refinement could hide a fault of the elimination or of the substitution: look at the bare sweeps as well.
    b = problem.right_hand_side(3)
    x = F.solve(b, refine=False)
    positive_definite = relative_damping > 1
    assert problem.backward_error(damping, x, b) <= (1e-14 if positive_definite else 1e-10)
    for k in range(3):
        x = F.solve(b[:, k], refine=False)
        assert problem.backward_error(damping, x, b[:, k]) <= (1e-14 if positive_definite else 1e-10)


@pytest.mark.parametrize("activation", sorted(dense_truth.ACTIVATIONS))
@pytest.mark.parametrize("loss", sorted(dense_truth.LOSSES))
def test_every_activation_with_every_loss(activation, loss):
    layers = [layer(3, 4, activation), layer(4, 4, activation, skip=True), layer(4, 3, activation)]
    problem = make(layers, loss, batch=4)
    for relative_damping in (0.5, 1e-3, -0.01):
        check_everything(problem, relative_damping * problem.norm)


@settings(max_examples=30)
@given(problems(max_layers=4), st.integers(0, 10**6))
@example(problem=chain(3, 4, batch=2), draw=5)
def test_inertia_between_close_eigenvalues(problem, draw):
    """Sylvester's law: exact counts at shifts anywhere in the spectrum."""
    eigenvalues, norm = problem.eigenvalues, problem.norm
    assume(norm > 1e-8)
    wide = np.flatnonzero(np.diff(eigenvalues) > 1e-6 * norm)
    assume(len(wide))
    k = wide[draw % len(wide)]
    damping = -(eigenvalues[k] + eigenvalues[k + 1]) / 2
    assume(abs(damping) > 1e-6 * norm)
    F = problem.hessian.factorize(damping=damping)
    if F.inertia.exact:
        assert (F.inertia.negative, F.inertia.zero, F.inertia.positive) == (k + 1, 0, problem.size - k - 1)


@given(problems(max_layers=3, max_width=4))
def test_inertia_agrees_with_cholesky(problem):
    """Positive definite if and only if the damping exceeds minus the smallest eigenvalue."""
    assume(problem.norm > 1e-8)
    smallest = problem.eigenvalues[0]
    above = -smallest + 1e-4 * problem.norm
    F = problem.hessian.factorize(damping=above)
    assert F.inertia.negative == 0 and F.slogdet()[0] == 1
    below = -smallest - 1e-4 * problem.norm
    if abs(below) > 1e-6 * problem.norm and problem.gap(below) > 1e-8:
        F = problem.hessian.factorize(damping=below)
        assert F.inertia.negative >= 1 or not F.inertia.exact


def test_solving_the_newton_system():
    """b = -gradient: the step that second-order training takes."""
    problem = chain(4, 6, batch=6)
    damping = -2 * problem.eigenvalues[0]
    H = problem.hessian
    x = H.factorize(damping=damping).solve(-H.gradient)
    assert problem.backward_error(damping, x, -H.gradient) <= 1e-14
    assert x @ H.gradient < 0
    before = problem.net.loss(problem.params, problem.X, problem.y)
    assert problem.net.loss(problem.params + 0.1 * x, problem.X, problem.y) < before


def test_unrefined_solutions_are_already_close():
    """The elimination itself is accurate: refinement is for the last digits, not for the first."""
    for seed in range(8):
        problem = chain(4, 6, batch=1 + seed, seed=seed)
        damping = 0.1 * problem.norm
        b = problem.right_hand_side()
        x = problem.hessian.factorize(damping=damping).solve(b, refine=False)
        assert problem.backward_error(damping, x, b) <= 1e-12


def test_one_call_form():
    problem = chain(4, 5, batch=2)
    b = problem.right_hand_side(2)
    x = nh.solve(problem.net, problem.params, problem.X, problem.y, b, damping=0.1)
    y = problem.hessian.factorize(damping=0.1).solve(b)
    np.testing.assert_array_equal(x, y)


def test_scaled_right_hand_sides():
    problem = chain(3, 4, batch=2)
    F = problem.hessian.factorize(damping=0.1)
    b = problem.right_hand_side()
    x = F.solve(b)
    for scale in (2.0**-500, 2.0**-60, 2.0**60, 2.0**500):
        assert np.abs(F.solve(scale * b) / scale - x).max() <= 1e-12 * np.abs(x).max()
    np.testing.assert_array_equal(F.solve(np.zeros(problem.size)), 0.0)
    mixed = np.column_stack([b, np.zeros_like(b), 1e-30 * b])
    assert problem.backward_error(0.1, F.solve(mixed)[:, [0, 2]], mixed[:, [0, 2]]) <= 1e-14
    np.testing.assert_array_equal(F.solve(mixed)[:, 1], 0.0)


# (width, depth, batch, skip, FRONT_PART, samples taken at once)
PARTS = [
    *[(4, 4, 7, True, 1, 1), (4, 4, 7, False, 300, 4), (3, 5, 6, True, 200, 6)],
    *[(3, 4, 5, True, 90, 3), (2, 3, 9, False, 100, 3)],
]


@pytest.mark.parametrize("relative_damping", [1.1, 1e-3, -1e-2])
@pytest.mark.parametrize("width, depth, batch, skip, part, at_once", PARTS)
def test_fronts_in_parts(width, depth, batch, skip, part, at_once, relative_damping, monkeypatch):
    """Fronts go through a layer some samples' columns at a time; here small ones do, too."""
    monkeypatch.setattr(layers, "LARGE_FRONT", 0)
    monkeypatch.setattr(layers, "FRONT_PART", part)
    problem = chain(width, depth, batch=batch, skip=skip)
    damping = relative_damping * problem.norm
    assert (problem.hessian.system.table["at_once"][:-1] == at_once).all()
    assert problem.gap(damping) > 1e-8
    check_everything(problem, damping)
