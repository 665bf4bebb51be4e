"""After perturbed pivots: diagonals, blocks, determinants and samples are those of the matrix, not of its factors."""

import warnings

import numpy as np
import pytest
from problems import chain
from scipy.linalg import LinAlgWarning

import numba_hinv as nh


def nearly_dependent(noise, columns=4):
    """(Hessian, its dense matrix) of a linear net whose last input is the sum of the first two but for noise."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, columns))
    X[:, -1] = X[:, 0] + X[:, 1] + noise * rng.standard_normal(500)
    net = nh.Network([nh.Dense(columns, 1, "identity", bias=False)], "mean_squared_error")
    H = net.hessian(net.init(0), X, rng.standard_normal((500, 1)))
    # The Hessian in twice the precision, which the inverse needs half of.
    wide = X.astype(np.longdouble)
    return H, 2.0 * (wide.T @ wide) / 500


def inverse_of(A):
    """The inverse, refined in extended precision."""
    inverse = np.linalg.inv(A.astype(float)).astype(np.longdouble)
    for _ in range(4):
        inverse = inverse + inverse @ (np.eye(len(A)) - A @ inverse)
    return inverse


def quietly(job):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        return job()


@pytest.mark.parametrize("noise", [1e-5, 2e-6])
def test_nearly_dependent_inputs(noise):
    """To what rounding of H leaves: u ||H|| ||H^-1||, as solves do."""
    H, A = nearly_dependent(noise)
    F = H.factorize(0.0, method="layers")
    assert F.num_perturbed == 1
    inverse = inverse_of(A)
    condition = np.linalg.norm(A.astype(float), 2) * np.linalg.norm(inverse.astype(float), 2)
    left = 50 * np.finfo(float).eps * float(condition)
    assert left < 0.05
    exact = np.diag(inverse).astype(float)
    np.testing.assert_allclose(quietly(F.diagonal), exact, rtol=left)
    np.testing.assert_allclose(quietly(lambda: F.blocks(0)), inverse.astype(float), rtol=left, atol=left * exact.max())
    sign, logabsdet = quietly(F.slogdet)
    assert sign == 1.0 and abs(logabsdet + np.linalg.slogdet(inverse.astype(float))[1]) < left
    # The map from normal numbers to samples, squared, is the covariance.
    root = F.solver.correction().sample(F.solver.factors.square_root(np.eye(4)))
    covariance = np.ldexp(root.T @ root, -F.solver.matrix.scale.matrix)
    np.testing.assert_allclose(covariance, inverse.astype(float), rtol=left, atol=left * exact.max())
    samples = quietly(lambda: F.sample(20000, rng=0))
    np.testing.assert_allclose(samples.var(axis=0), exact, rtol=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_stage_singular_systems(seed):
    """A well conditioned, on an eigenvalue of a trailing block: pivots that are perturbed by less than fronts round."""
    problem = chain(4, 4, batch=3, seed=seed)
    dense = problem.truth.hessian.astype(float)
    start = problem.offsets()[2]
    trailing = np.linalg.eigvalsh(dense[start:, start:])
    gaps = np.abs(trailing[:, None] - problem.eigenvalues).min(axis=1)
    damping = -float(trailing[np.argmax(gaps)])
    F = problem.hessian.factorize(damping, method="layers")
    assert F.num_perturbed
    A = dense + damping * np.eye(problem.size)
    inverse = np.linalg.inv(A)
    assert F.solver.num_negative() == (np.linalg.eigvalsh(A) < 0.0).sum()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        error = np.abs(F.diagonal() - np.diag(inverse)) / np.linalg.norm(inverse, axis=0)
    assert error.max() < 1e-8 or found
    sign, logabsdet = F.slogdet()
    expected = np.linalg.slogdet(A)
    assert sign == expected[0] and abs(logabsdet - expected[1]) < 1e-9 * abs(expected[1])


def test_nothing_is_corrected_where_no_pivot_was_perturbed():
    F = chain(3, 3, batch=4).hessian.factorize(10.0)
    assert F.num_perturbed == 0 and F.solver.correction() is None
    assert F.solver.num_negative() == F.inertia.negative
