"""Eigenpairs nearest to a shift: SciPy's eigsh on the inverse of ``H - shift I``, then Rayleigh and Ritz.

From fixed starts, so that the answers are the same every time.
"""

import inspect
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from ..runtime import memory_budget, threads
from ..runtime.probes import random_entries

# Where H - shift I is singular, the distances that the shift moves, in units of ||H||.
_BESIDE = (0.0, 1e-8, -1e-8, 1e-6, -1e-6, 1e-4)
# What eigsh draws where it meets an invariant subspace; older versions do not ask.
_DRAWS = {"rng": 0} if "rng" in inspect.signature(eigsh).parameters else {}
# Of eigsh: of the inverse's eigenvalues, relative.
_TOLERANCE = 1e-13
_MAX_RESTARTS = 30
_POLISH_STEPS = 3


class Pairs(NamedTuple):
    """Approximate eigenpairs, values ascending, vectors orthonormal."""

    values: np.ndarray  # (k,)
    vectors: np.ndarray  # (P, k)
    residuals: np.ndarray  # (k,): ||H v - value v||, which an eigenvalue lies within of the value


def basis_size(k, size):
    """Vectors that eigsh keeps for k eigenpairs."""
    return min(size, 2 * k + 20)


def nearest(hessian, shift, k, known=None, check=threads.no_check):
    """`Pairs` of at most k eigenvalues nearest to ``shift``: those that Lanczos finds.

    Of an eigenvalue of high multiplicity that may be one vector, with others beyond it. Where the basis would span all
    of the space, H is made dense, and nothing is missed.

    Parameters
    ----------
    hessian : Hessian
    shift : float
    k : int
    known : (P, j) array, optional
        Orthonormal eigenvectors; others are looked for.
    check : callable
        Called before every solve; may raise.

    Raises
    ------
    numpy.linalg.LinAlgError
        No shift close by can be solved with.
    """
    size = hessian.shape[0]
    if known is None and basis_size(k, size) == size:
        return densely(hessian, shift, k)
    memory_budget.require(
        8 * size * (basis_size(k, size) + 4 * k),
        f"the basis for k = {k} eigenvectors of {size} parameters",
        "take a smaller k",
    )
    for distance in _BESIDE:
        at = shift + distance * (hessian.norm() + abs(shift) or 1.0)
        try:
            return _lanczos(hessian, hessian.factorize(-at, np.float64), k, known, check)
        except np.linalg.LinAlgError as error:
            reason = str(error).removeprefix("damping: ")
    raise np.linalg.LinAlgError(f"near: expected a shift that Lanczos works with, got {shift:g}: {reason}")


def densely(hessian, shift, k):
    """`Pairs` of the k eigenvalues nearest to ``shift``, by P products and a dense decomposition."""
    values, vectors = np.linalg.eigh(hessian @ np.eye(hessian.shape[0]))
    return rayleigh_ritz(hessian, vectors[:, nearest_first(values, shift)[:k]])


def rayleigh_ritz(hessian, vectors):
    """`Pairs` of H in the span of the columns."""
    vectors, _ = np.linalg.qr(vectors)
    images = hessian @ vectors
    products = vectors.T @ images
    values, rotation = np.linalg.eigh(0.5 * (products + products.T))
    vectors, images = vectors @ rotation, images @ rotation
    return Pairs(values, vectors, np.linalg.norm(images - vectors * values, axis=0))


def nearest_first(values, shift):
    """The order of the values by their distance to the shift."""
    return np.argsort(np.abs(values - shift), kind="stable")


def _lanczos(hessian, F, k, known, check):
    size = hessian.shape[0]

    def project(V):
        return V if known is None else V - known @ (known.T @ V)

    def multiply(V):
        check()
        # Up to a power of two, which does not matter here, the inverse; what solves miss shows in the residuals.
        images = np.asarray(F.solver.inverse(np.ascontiguousarray(project(V).T))).T
        if not np.isfinite(images).all():
            raise np.linalg.LinAlgError("solutions are not finite")
        return project(images)

    operator = LinearOperator(
        (size, size), matvec=lambda v: multiply(v.reshape(size, 1)).ravel(), matmat=multiply, dtype=np.float64
    )
    start = project(random_entries(5 if known is None else 6 + known.shape[1], size).T).ravel()
    try:
        _, vectors = eigsh(
            operator, k, v0=start, ncv=basis_size(k, size), maxiter=_MAX_RESTARTS, tol=_TOLERANCE, **_DRAWS
        )
    except ArpackNoConvergence as stopped:
        vectors = stopped.eigenvectors
    except ArpackError as error:
        # Of few distinct eigenvalues: there is nothing that a restart could filter out.
        raise np.linalg.LinAlgError(f"Lanczos failed: {error}") from None
    if not vectors.size:
        return Pairs(np.empty(0), np.empty((size, 0)), np.empty(0))
    # The sums over the basis lose digits, which inverse iteration finds again.
    best = None
    for _ in range(_POLISH_STEPS):
        vectors = operator.matmat(vectors)
        vectors /= np.linalg.norm(vectors, axis=0)
        pairs = rayleigh_ritz(hessian, vectors)
        if best is not None and not pairs.residuals.max() < best.residuals.max():
            break
        best, vectors = pairs, pairs.vectors
        if best.residuals.max() <= _TOLERANCE * hessian.norm():
            break
    return best
