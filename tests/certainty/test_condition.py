"""`Factorization.condition` and what `solve(full_output=True)` says, against extended precision."""

import dense_truth
import numpy as np
import pytest
from problems import chain, layer, make

import numba_hinv as nh
from numba_hinv.certainty.condition import one_norm, one_norm_of_inverse

CASES = {
    "few samples": chain(4, 5, batch=2),
    "many samples": chain(3, 4, batch=8, loss="mean_squared_error"),
    "plain gelu": chain(3, 5, activation="gelu", skip=False, batch=3, gain=1.5),
    "ragged": make([layer(3, 5, "silu"), layer(5, 2), layer(2, 3, "identity")], "binary_cross_entropy", batch=4),
    "one parameter": make([layer(1, 1, "sin", bias=False)], "mean_squared_error", batch=3),
    "two parameters": make([layer(1, 1, "sin")], "mean_squared_error", batch=3),
}
DAMPINGS = [1.3, 0.1, 1e-3, 1e-5, 1e-7, 1e-9, -0.03, -1e-3, -1e-6]


@pytest.mark.parametrize("name", CASES)
def test_condition(name):
    p = CASES[name]
    for relative_damping in DAMPINGS:
        damping = relative_damping * p.norm
        if p.gap(damping) < 1e-10:
            continue
        A = dense_truth.shifted(p.truth.hessian, damping)
        inverse = dense_truth.DenseFactors(A).solve(np.eye(p.size))
        exact = float(np.abs(A).sum(axis=0).max() * np.abs(inverse).sum(axis=0).max())
        F = p.hessian.factorize(damping)
        estimate = F.condition()
        # From below, up to the rounding of the inverse.
        assert exact / 2 <= estimate <= exact * (1 + 1e-13 * exact + 1e-12), (relative_damping, estimate / exact)
        assert F.condition() == estimate


def symmetric_matrix(rng):
    """Full, with given eigenvalues, of low rank, graded, tridiagonal or bipartite, of up to 80 rows; a damping
    added.
    """
    n, kind = int(rng.integers(2, 81)), rng.integers(6)
    if kind == 0:
        A = rng.standard_normal((n, n))
    elif kind == 1:
        rotation = np.linalg.qr(rng.standard_normal((n, n)))[0]
        A = rotation * (10 ** rng.uniform(-8, 0, n) * rng.choice([-1, 1], n)) @ rotation.T
    elif kind == 2:
        J = rng.standard_normal((max(1, n // 3), n)) * 10 ** rng.uniform(-2, 2, n)
        A = J.T @ J
    elif kind == 3:
        u = rng.standard_normal(n)
        A = np.diag(10 ** rng.uniform(-6, 0, n)) + np.outer(u, u)
    elif kind == 4:
        A = np.diag(rng.standard_normal(n)) + np.diag(rng.standard_normal(n - 1), 1)
    else:
        A = np.zeros((n, n))
        A[: n // 2, n // 2 :] = rng.standard_normal((n // 2, n - n // 2)) * 10 ** rng.uniform(-3, 3, (n // 2, 1))
    A = 0.5 * (A + A.T)
    return A + rng.choice([-1, 1]) * 10 ** rng.uniform(-9, 0) * np.abs(np.linalg.eigvalsh(A)).max() * np.eye(n)


@pytest.mark.parametrize("num_cases", [2000, pytest.param(20000, marks=pytest.mark.slow)])
def test_condition_of_many_matrices(num_cases):
    """What is promised of the estimates, of matrices of every kind, with an inverse of either precision."""
    rng = np.random.default_rng(num_cases)
    for case in range(num_cases):
        A = symmetric_matrix(rng)
        inverse = np.linalg.inv(A)
        exact = np.abs(A).sum(axis=0).max() * np.abs(inverse).sum(axis=0).max()
        # Solves with factors in float32, where these mean anything, are wrong by a part in 1e7 of the condition.
        error = 0.1 * rng.standard_normal(A.shape) * (case % 2)
        approximate = inverse * (1.0 + error)

        def multiply(rows):
            return rows @ A

        found = one_norm(multiply, len(A)) * one_norm_of_inverse(multiply, lambda rows: rows @ approximate, len(A))
        assert found <= exact * (1.0 + 1e-14 * exact + 1e-10)
        if not case % 2:
            assert found >= exact / 2


@pytest.mark.parametrize("name", CASES)
def test_condition_with_factors_in_float32(name):
    p = CASES[name]
    for relative_damping in DAMPINGS[:5]:
        damping = relative_damping * p.norm
        if p.gap(damping) > 1e-5:
            wide = p.hessian.factorize(damping).condition()
            assert p.hessian.factorize(damping, "float32").condition() == pytest.approx(wide, rel=1e-6)


def test_condition_beyond_the_range_of_numbers():
    p = CASES["few samples"]
    H = p.hessian
    assert H.factorize(1e200).condition() == pytest.approx(1.0)
    assert H.factorize(-1e300).condition() == pytest.approx(1.0)


def test_condition_leaves_random_generators_alone():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    CASES["few samples"].hessian.factorize(0.1).condition()
    assert np.random.random() == expected


@pytest.mark.parametrize("factor_dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_full_output(name, factor_dtype):
    """The bound holds for the true error, in extended precision, and says something: within 1e4 of the condition's."""
    p = CASES[name]
    b = p.right_hand_side(3)
    for relative_damping in DAMPINGS:
        damping = relative_damping * p.norm
        if p.gap(damping) < 1e-10 or (factor_dtype == "float32" and p.gap(damping) < 1e-5):
            continue
        F = p.hessian.factorize(damping, factor_dtype)
        x, info = F.solve(b, full_output=True)
        assert isinstance(info, nh.SolveInfo)
        np.testing.assert_array_equal(x, F.solve(b))
        assert info.backward_error.shape == info.error_bound.shape == (3,)
        exact = dense_truth.DenseFactors(dense_truth.shifted(p.truth.hessian, damping)).solve(b)
        for k in range(3):
            error = float(np.linalg.norm(x[:, k] - exact[:, k]) / np.linalg.norm(exact[:, k]))
            # The truth's own error is that of 64 bits of mantissa; the Hessian's rounding counts as backward error.
            assert error <= info.error_bound[k] + 1e-18 / p.gap(damping), (relative_damping, k)
            assert info.error_bound[k] <= 1e-13 / p.gap(damping)
            true = p.backward_error(damping, x[:, k], b[:, k])
            assert true <= info.backward_error[k] + 1e-15
            assert info.backward_error[k] <= max(2 * true, 2e-15)
        assert info.backward_error.max() <= 1e-14
        assert 0 <= info.refinement_steps <= 10 and 0 <= info.krylov_steps <= 20


def test_shapes_of_full_output():
    p = CASES["few samples"]
    F = p.hessian.factorize(0.1)
    _, info = F.solve(p.right_hand_side(), full_output=True)
    assert info.backward_error.shape == info.error_bound.shape == ()
    x, info = F.solve(np.zeros((p.size, 0)), full_output=True)
    assert x.shape == (p.size, 0) and info.backward_error.shape == (0,)
    x, info = F.solve(np.zeros(p.size), full_output=True)
    assert not x.any() and info.backward_error == 0 and info.error_bound == 0


def test_full_output_without_refinement():
    """Where the sweeps alone are poor, that is what is reported."""
    p = CASES["many samples"]
    b = p.right_hand_side()
    F = p.hessian.factorize(1e-5 * p.norm, factor_dtype="float32")
    x, info = F.solve(b, refine=False, full_output=True)
    true = p.backward_error(F.damping, x, b)
    assert true > 1e-12 and 0.5 * true <= info.backward_error <= 2 * true
    assert info.refinement_steps == info.krylov_steps == 0
    exact = dense_truth.DenseFactors(dense_truth.shifted(p.truth.hessian, F.damping)).solve(b)
    assert np.linalg.norm(x - exact) <= info.error_bound * np.linalg.norm(exact)


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_full_output_of_a_wrong_type(value):
    with pytest.raises(TypeError, match="full_output"):
        CASES["few samples"].hessian.factorize(0.1).solve(CASES["few samples"].right_hand_side(), full_output=value)
