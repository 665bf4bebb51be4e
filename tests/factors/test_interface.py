"""The interface of factors is enough: eigenvalues of the dense matrix, a way of factoring that the library does not
know.
"""

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh
from numba_hinv.certainty.solver import Solver
from numba_hinv.factors.interface import Factors
from numba_hinv.runtime import threads
from numba_hinv.system.shifted import Shifted


class Eigenvalues(Factors):
    """Eigenvalues and eigenvectors of the dense matrix."""

    method = "eigenvalues"

    def __init__(self, matrix):
        self.matrix = matrix
        A = matrix.multiply(np.eye(matrix.size))
        self.values, self.vectors = np.linalg.eigh(0.5 * (A + A.T))

    @property
    def nbytes(self):
        return self.values.nbytes + self.vectors.nbytes

    @property
    def num_negative(self):
        return int((self.values < 0).sum())

    def sweep(self, b, x, check):
        x[...] = ((b @ self.vectors) / self.values) @ self.vectors.T

    def square_root(self, rows, check=threads.no_check):
        return (rows / np.sqrt(self.values)) @ self.vectors.T

    def log_pivots(self):
        return float(np.log(np.abs(self.values)).sum()) + self.matrix.size * self.matrix.scale.matrix * np.log(2.0)

    def rounding_of_pivots(self):
        return self.matrix.size * np.finfo(float).eps * self.matrix.norm / np.abs(self.values).min()

    def has_tiny_pivots(self, threshold):
        sizes = np.abs(self.values)
        return bool(sizes.min() < threshold**2 * sizes.max())

    def layer_of_smallest_pivot(self):
        return 0

    def covariance_workspace(self, layer, num_kept, purpose):
        return None

    def diagonal(self, noise, work, tick):
        return (self.vectors**2 / self.values).sum(axis=1)


def factorized(H, damping):
    matrix = Shifted(H.system, damping, np.dtype(np.float64))
    return nh.Factorization(H, Solver(matrix, Eigenvalues(matrix)).settled())


@pytest.mark.parametrize("damping", [0.3, -0.02])
@pytest.mark.parametrize("gain", [1.0, 1e-60])
def test_a_way_of_factoring_from_outside(damping, gain):
    """Solutions, inertia, determinants and variances are those of the layers' factors, by the same promises."""
    problem = chain(4, 5, batch=3)
    blocks = [problem.hessian.blocks(l) for l in range(problem.hessian.num_layers)]
    for block in blocks:
        for name in ("Dxx", "Dzx", "Dzz"):
            setattr(block, name, gain * getattr(block, name))
    H = nh.Hessian.from_blocks(blocks, gain * problem.hessian.terminal)
    damping *= H.norm()
    ours, theirs = factorized(H, damping), H.factorize(damping)
    b = np.random.default_rng(0).standard_normal((H.shape[0], 3))
    x, info = ours.solve(b, full_output=True)
    assert info.backward_error.max() <= 1e-14
    np.testing.assert_allclose(x, theirs.solve(b), rtol=1e-9, atol=1e-11 * np.abs(x).max())
    assert ours.inertia == theirs.inertia and ours.slogdet() == pytest.approx(theirs.slogdet(), rel=1e-12)
    np.testing.assert_allclose(ours.diagonal(), theirs.diagonal(), rtol=1e-8)
    assert ours.condition() == pytest.approx(theirs.condition(), rel=1e-6)
    if ours.inertia.negative:
        with pytest.raises(np.linalg.LinAlgError, match="negative"):
            ours.sample(rng=0)
    else:
        assert ours.sample(4, rng=0).shape == (4, H.shape[0])


def test_singular_matrices_are_found_by_the_same_rules():
    H = chain(3, 4, batch=2).hessian
    at = np.linalg.eigvalsh(H.todense())[-1]
    with pytest.raises(np.linalg.LinAlgError, match="singular to working precision"):
        factorized(H, -at)
