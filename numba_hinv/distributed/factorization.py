"""The factorization of a chain in segments on a cluster: solves, inertia and log-determinant."""

import functools
import warnings
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning

from ..certainty.inertia import CONTRACTION, Inertia
from ..certainty.refinement import contraction, is_surely_below, refine
from ..certainty.solution import SolveInfo
from ..certainty.solver import BACKWARD_ERROR
from ..runtime.validation import as_flag
from . import elimination
from .parts import as_vectors
from .seams import Seams
from .vectors import Vectors, random

_DOUBLE = np.dtype(np.float64)
_EPS = float(np.finfo(np.float64).eps)
# As for one machine (`certainty.singularity`, `certainty.solution`): what counts as singular, the steps of inverse
# iteration behind error bounds, and the rounding of a residual.
_SINGULAR, _STEPS, _ROUNDING = 16.0, 4, 8.0
# Vectors of a right-hand side's size that a solve has at the same time.
_VECTORS = 6


class DistributedFactorization:
    """The inverse of ``H + damping I``, in segments on the workers of a cluster.

    `distributed.factorize` and `DistributedHessian.factorize` make it.

    Attributes
    ----------
    hessian : DistributedHessian
        The Hessian H.
    damping : float
        The damping.
    shape : (int, int)
        (P, P), where P is the number of parameters.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_hinv as nh
    >>> one, zero = np.ones((1000, 1, 1)), np.zeros((1000, 1, 1))
    >>> chain = nh.Hessian.from_blocks(Dx=one, Dz=0.5 * one, Dxx=one, Dzx=zero, Dzz=one)
    >>> from distributed import Client  # doctest: +SKIP
    >>> with Client(n_workers=2) as client:  # doctest: +SKIP
    ...     F = nh.distributed.hessian(chain, client).factorize(0.1)
    ...     print(F.inertia.positive)
    1000
    """

    hessian: Any
    damping: float
    shape: tuple[int, ...]

    def __init__(self, hessian: Any, task: Any) -> None:
        """Private: `DistributedHessian.factorize`."""
        self.hessian, self.damping, self.shape, self._task = hessian, task.damping, hessian.shape, task
        cluster, count = hessian.cluster, len(hessian.sizes)
        numbers, logarithms = list(range(count)), hessian.logarithms()
        self._factors = cluster.map(_eliminate, numbers, hessian.segments, [task] * count, logarithms)
        self._seams = cluster.submit(-1, _seams, cluster.map(_relation, self._factors))
        what = "the factorization of a segment"
        self._pivots = cluster.gather(cluster.map(_pivots, self._factors), what)
        self._summary = cluster.gather(cluster.submit(-1, Seams.summary, self._seams), what)

    def __repr__(self) -> str:
        return f"<Inverse of {self.hessian!r} + {self.damping:g} I>"

    # ---- solves -----------------------------------------------------------------------------------------------------

    def _multiply(self, x, b=None, out=None, squares=None):
        return self.hessian.multiply(x, self.damping, b, squares)

    def _substitute(self, b, out=None):
        """`Vectors` times the inverse of the factors."""
        cluster, segments, exponents = self.hessian.cluster, self.hessian.segments, None
        if self._task.dtype != _DOUBLE:
            exponents = np.frexp(b.lengths())[1]
        same = [exponents] * len(segments)
        halves = cluster.map(elimination.back, segments, self._factors, b.parts, same)
        found = cluster.submit(-1, Seams.solve, self._seams, cluster.map(_told, halves))
        known = [cluster.submit(-1, _item, found, s) for s in range(len(segments))]
        parts = cluster.map(elimination.forth, segments, self._factors, b.parts, halves, known, same)
        return Vectors(cluster, parts, b.shape)

    def _refined(self, b):
        limit = BACKWARD_ERROR[_DOUBLE]
        return refine(self._multiply, self._substitute, self.hessian.norm(), b, limit / 16, limit)

    def solve(self, b: Any, refine: bool = True, full_output: bool = False) -> Any:
        """Solve ``(H + damping I) x = b``.

        Parameters
        ----------
        b : (P,) or (P, k) array, list or dask array
            One right-hand side, or several as columns. It may be given in parts, so that no machine holds all of b or
            x: as a list of futures or arrays, or as a dask array, with one part for each segment that has as many rows
            as the segment has parameters (`DistributedHessian.sizes`).
        refine : bool
            Whether to refine the solution with true residuals, and with Krylov steps where that stalls.
        full_output : bool
            Whether to return a `SolveInfo` as well, which takes four more solves.

        Returns
        -------
        x : like b
            The solution in float64: an array, a list of futures, or a dask array whose chunks are on the workers.
        info : SolveInfo
            How accurate the solution is. Returned only with ``full_output``.

        Raises
        ------
        TypeError, ValueError
            b has another shape, or numbers that are not finite.
        MemoryError
            The vectors would not fit on a worker, which the message names.
        numpy.linalg.LinAlgError
            The matrix is singular to working precision.
        RuntimeError
            Something was lost with a worker and cannot be made again.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The backward error is above 1e-14.

        Notes
        -----
        Costs what a solve on one machine costs, divided among the workers, and a second sweep for each product with H.
        """
        is_refined, full_output = as_flag("refine", refine), as_flag("full_output", full_output)
        H = self.hessian
        b, form = as_vectors("b", b, H.cluster, H.sizes)
        k = b.shape[0]
        needed = [_VECTORS * 8 * k * size for size in H.sizes]
        H.cluster.require(needed, f"a solve with {k} right-hand sides", "solve with fewer of them at a time")
        lengths = b.lengths()
        if is_refined:
            found = self._refined(b)
            x, errors, steps, krylov = found.x, found.backward_error, found.steps, found.krylov_steps
            self._check(found)
        else:
            x, steps, krylov = self._substitute(b), 0, 0
        if is_refined and not full_output:
            return form.give(x)
        bounds: Any = None
        if full_output:
            errors, bounds = self._judge(x, b, lengths)
        x = form.give(x)
        if not full_output:
            return x
        shape = () if form.is_vector else (k,)
        return x, SolveInfo(errors.reshape(shape), bounds.reshape(shape), steps, krylov)

    __matmul__ = solve

    def _check(self, found):
        """What refinement has left: an error for a matrix that is singular, a warning for large backward errors."""
        norm, error = self.hessian.norm(), found.backward_error
        image = found.b_lengths + error * (norm * found.x_lengths + found.b_lengths)
        if (image <= _SINGULAR * _EPS * (norm + abs(self.damping)) * found.x_lengths)[found.b_lengths > 0.0].any():
            raise np.linalg.LinAlgError(
                f"damping: H + damping I is singular to working precision with damping={self.damping:g}; expected a "
                "damping further from minus an eigenvalue of H"
            )
        worst = float(error.max(initial=0.0))
        if worst > BACKWARD_ERROR[_DOUBLE]:
            warnings.warn(
                f"the solution has a backward error of {worst:.1e} after {found.steps} refinement and "
                f"{found.krylov_steps} Krylov steps; expected at most {BACKWARD_ERROR[_DOUBLE]:.0e}: H + damping I is "
                f"too ill-conditioned with damping={self.damping:g}",
                LinAlgWarning,
                stacklevel=3,
            )

    def _judge(self, x, b, b_lengths):
        """Backward errors and bounds of the relative errors."""
        norm, size = self.hessian.norm(), x.lengths()
        residual = self._multiply(x, b=b).lengths()
        rounding = _ROUNDING * _EPS * ((norm + abs(self.damping)) * size + b_lengths)
        bound = self._norm_of_inverse * (residual + rounding)
        bound = np.divide(bound, size, out=np.zeros_like(bound), where=size > 0)
        errors = np.divide(residual, norm * size + b_lengths, out=np.zeros_like(size), where=b_lengths > 0)
        return errors, np.where(bound < 1.0, bound / np.maximum(1.0 - bound, 0.5), np.inf)

    @functools.cached_property
    def _norm_of_inverse(self):
        """Twice an estimate, from below, of the 2-norm of the inverse."""
        v, smallest = random(self.hessian.cluster, "random_entries", 1, self.hessian.sizes), np.inf
        v = v / v.lengths()[:, None]
        for _ in range(_STEPS):
            v = self._refined(v).x
            length = float(v.lengths()[0])
            if not np.isfinite(length) or length == 0.0:
                break
            v = v / length
            smallest = min(smallest, float(self._multiply(v).lengths()[0]))
        return 2.0 / smallest if smallest > 0.0 else np.inf

    # ---- what the pivots tell ---------------------------------------------------------------------------------------

    @functools.cached_property
    def num_perturbed(self) -> int:
        """How many pivots had to be perturbed."""
        return sum(pivots.num_perturbed for pivots in self._pivots)

    @functools.cached_property
    def inertia(self) -> Inertia:
        """Numbers of negative, zero and positive eigenvalues of ``H + damping I``, certified by a solve: `Inertia`."""
        H, (negative, _, is_exact) = self.hessian, self._summary
        negative += sum(pivots.num_negative for pivots in self._pivots)
        arguments = CONTRACTION, self._multiply, self._substitute, H.shape[0]

        def entries(name):
            return lambda seed, size: random(H.cluster, name, seed, H.sizes)

        if is_exact and (self.num_perturbed or not any(pivots.is_altered for pivots in self._pivots)):
            is_exact = is_surely_below(*arguments, entries=entries("uniform_entries"))
            is_exact = is_exact or contraction(*arguments[1:], entries=entries("random_entries")) < CONTRACTION
        else:
            is_exact = False
        return Inertia(negative, 0, H.shape[0] - negative, bool(is_exact))

    def slogdet(self) -> tuple[float, float]:
        """Compute sign and logarithm of the magnitude of ``det(H + damping I)`` from the pivots.

        Returns
        -------
        sign : float
            1.0 or -1.0.
        logabsdet : float
            The natural logarithm of the magnitude of the determinant.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            Pivots were perturbed, so that this is the determinant of another matrix.
        """
        H, (negative, logabsdet, _) = self.hessian, self._summary
        negative += sum(pivots.num_negative for pivots in self._pivots)
        logabsdet += sum(pivots.logabsdet for pivots in self._pivots)
        if self.num_perturbed:
            warnings.warn(
                f"the determinant is that of a matrix with {self.num_perturbed} perturbed pivots; another number of "
                "segments may need none",
                LinAlgWarning,
                stacklevel=2,
            )
        return (-1.0 if negative % 2 else 1.0), logabsdet + H.shape[0] * self._task.exponent * float(np.log(2.0))


def _eliminate(s, segment, task, logarithms):
    try:
        return elimination.eliminate(segment, task, logarithms)
    except np.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(f"{error} (in segment {s})") from None


def _seams(relations):
    return Seams(relations)


def _relation(factors):
    return factors.relation


def _pivots(factors):
    return factors.pivots


def _told(half):
    return half.seams


def _item(found, s):
    return found[s]
