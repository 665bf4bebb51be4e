"""A matrix and its factors, joined: refined solves, other factors that come to their help, and what is certain.

`Solver` knows of the matrix its products, norm and damping, and of the factors their interface; neither nets nor ways
of factoring.
"""

import contextlib

import numpy as np

from ..factors import choice
from ..runtime import threads
from ..system.shifted import Shifted
from . import inertia, lifted, perturbation, singularity
from .refinement import contraction, is_surely_below, refine

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Where the damping is below this times ||H|| and solves fail, a factorization with this damping comes to their help.
# Of 65 solves at 1e-10 to 1e-12 ||H|| that Krylov steps could not mend, it mended 29, in 2 to 29 steps; with 1e-9 they
# took more steps.
_RESCUE = {_DOUBLE: 1e-8, _SINGLE: 1e-4}
# Of a chain of blocks with a pivot below this times ||H||, products with H say little: it is lifted if it can be.
_HIDDEN = {_DOUBLE: 1e-8, _SINGLE: 1e-4}
# What refinement is to reach, by the precision of the solution.
BACKWARD_ERROR = {_DOUBLE: 1e-14, _SINGLE: 1e-7}


def _nothing():
    """No rescue."""


class Solver:
    """Solves with ``2^-k (H + damping I)``, refined on the true residual.

    Parameters
    ----------
    matrix : Shifted
    factors : Factors
        Of the matrix, or of one close to it.
    """

    def __init__(self, matrix, factors):
        self.matrix, self.factors = matrix, factors
        self._rescuer = self._contraction = self._is_exact = self._inverse_norm = None
        self._correction, self._is_corrected = None, False
        self._is_lifted, self.stage_rounding = None, None
        # None where this solver decides by itself: one that held itself would stay in memory, factors and all, until
        # the garbage collector comes by.
        self._decider, self._is_decided = None, False

    def __getstate__(self):
        forgotten = {"_rescuer": None, "_correction": None, "_is_corrected": False}
        return {**self.__dict__, **forgotten, "_decider": None, "_is_decided": False}

    @classmethod
    def factorize(cls, matrix, method="auto", checkpoint=False, tick=choice.no_tick, num_segments=None):
        """That of a matrix with the factors that `choice.factorize` makes, settled."""
        factors = choice.factorize(matrix, method, checkpoint, tick, num_segments)
        is_dense = method == "auto" and factors.method == "dense" and matrix.system.has_layers
        if is_dense and matrix.system.is_of_blocks and factors.has_tiny_pivots(_HIDDEN[matrix.dtype] ** 0.5):
            try:
                by_layers = choice.factorize(matrix, "layers")
                solver = cls(by_layers.matrix, by_layers)._as_lifted()
            except (MemoryError, np.linalg.LinAlgError):
                solver = None
            if solver is not None:
                return solver
        return cls(factors.matrix, factors).settled()

    def settled(self):
        """This solver, or its fallback where the factors show the matrix to be singular.

        Whether factors with a fallback tell the inertia is asked when it is needed: see `decided`. The solver of a
        chain in which products with H say little is lifted if its pivots are certain on their own scales.
        ``LinAlgError`` where the matrix is singular to working precision.
        """
        lifted_solver = self._as_lifted()
        if lifted_solver is not None:
            return lifted_solver
        if not singularity.is_suspect(self):
            return self
        if self.factors.has_fallback and not self.is_exact():
            return self.whole().settled()
        try:
            singularity.check(self)
        except np.linalg.LinAlgError:
            if not self.factors.has_fallback:
                raise
            whole = self.whole()
            singularity.check(whole)
            return whole
        return self

    def decided(self):
        """This solver, or its settled fallback where the factors do not tell the inertia for certain; found out once.

        Where there is no memory for the fallback it is this solver, whose inertia is not certain.
        """
        if not self._is_decided:
            self._is_decided = True
            if self.factors.has_fallback and not self.is_exact():
                with contextlib.suppress(MemoryError):
                    self._decider = self.whole().settled()
        return self if self._decider is None else self._decider

    def _as_lifted(self):
        """This solver, or one with pivots as they are, if `is_lifted`; else None."""
        solver = self
        if self.factors.lifts and self.factors.num_perturbed:
            try:
                solver = self.with_factors(is_static=False)
            except (MemoryError, np.linalg.LinAlgError):
                return None
        if solver.is_lifted():
            return solver
        self.stage_rounding = solver.stage_rounding
        return None

    def is_lifted(self):
        """Whether solutions are refined, and all else is judged, on the lifted system: see `certainty.lifted`.

        So where a pivot is too small beside ||H|| for products with H to say much of it, and yet larger than its
        rounding, as three random vectors at most show up to a chance of 1e-6. A solve with another one must succeed: of
        pivots that vanish although the matrix is far from singular, it is the products that know better.
        """
        if self._is_lifted is None:
            factors, matrix = self.factors, self.matrix
            self._is_lifted = bool(
                factors.lifts
                and not factors.num_perturbed
                and factors.has_pivots_below(_HIDDEN[matrix.dtype] * matrix.norm)
            )
            if self._is_lifted:
                maps = lifted.maps(factors)
                self._is_lifted = is_surely_below(inertia.CONTRACTION, *maps, matrix.size)
                if self._is_lifted:
                    self._is_lifted = lifted.solves(factors, BACKWARD_ERROR[_DOUBLE])
                else:
                    self.stage_rounding = contraction(*maps, matrix.size)
        return self._is_lifted

    def whole(self):
        """The solver with the fallback of these factors; this one where there is none."""
        if not self.factors.has_fallback:
            return self
        return self.with_factors() if self._decider is None else self._decider

    def with_factors(self, **changes):
        """The solver of the same matrix with factors that are made again, as `choice.again` says."""
        return Solver(self.matrix, choice.again(self.factors, **changes))

    def nearby(self, distance):
        """The solver of the matrix plus ``distance`` times the identity, scaled alike."""
        matrix = self.matrix.nearby(distance)
        return Solver(matrix, choice.again(self.factors, matrix, shift=matrix.eps))

    def widened(self):
        """The settled solver of the same matrix with factors in float64."""
        matrix = Shifted(self.matrix.system, self.matrix.damping, _DOUBLE)
        return Solver(matrix, choice.again(self.factors, matrix)).settled()

    # ---- solves -----------------------------------------------------------------------------------------------------

    def refine(self, rows, dtype, check=threads.no_check, offset=0.0, b_lengths=None, out=None, scratch=None):
        """`Refined` solutions; those of ``2^-k (H + damping I) + offset I`` with the factors at hand."""
        limit = BACKWARD_ERROR[dtype]
        if self.is_lifted():
            return lifted.refine(self.factors, rows, limit / 16, limit, check, offset, b_lengths)
        # What is left after one cycle is for the fallback, with all that may come to its help.
        rescue = _nothing if self.factors.has_fallback else self._rescue if self._can_be_rescued() else None

        def multiply(rows, b=None, out=None, squares=None):
            return self.matrix.multiply(rows, check, b, offset, out, squares)

        def substitute(rows, out=None):
            return self.factors.substitute(rows, check, out)

        norm = self.matrix.hessian_norm
        refined = refine(multiply, substitute, norm, rows, limit / 16, limit, rescue, b_lengths, out, scratch)
        if self.factors.has_fallback and refined.backward_error.max(initial=0.0) > limit and self._rescue():
            return self._rescuer.refine(rows, dtype, check, offset, b_lengths, out, scratch)
        return refined

    def inverse(self, rows):
        """rows (k, P) of float64 times the inverse of the scaled matrix, refined."""
        return self.refine(rows, _DOUBLE).x

    def _larger_damping(self):
        return _RESCUE[self.matrix.dtype] * self.matrix.norm

    def _can_be_rescued(self):
        return self.factors.num_perturbed or abs(self.matrix.eps) < self._larger_damping()

    def _rescue(self):
        """The sweeps of other factors, for what these cannot solve; None where there is no memory for them.

        With a tiny damping, those of a larger one: they are wrong by much in the eigenvalues near zero, but by nearly
        the same for all of them, so that a few Krylov steps remove it, where the rounding errors of a tiny damping are
        ||H|| / damping times as large as usual, and all different. Else factors without the limit on growth, which may
        have misjudged states of which some samples explode and others do not. The fallback, where there is one.
        """
        if self._rescuer is None:
            larger, eps = self._larger_damping(), self.matrix.eps
            try:
                if self.factors.has_fallback:
                    self._rescuer = self.whole()
                elif abs(eps) < larger:
                    self._rescuer = self.with_factors(shift=float(np.copysign(larger, eps)))
                else:
                    self._rescuer = self.with_factors(growth=np.inf)
            except (MemoryError, np.linalg.LinAlgError):
                return None
        return self._rescuer.factors.substitute

    # ---- the factors without what perturbed pivots have changed -----------------------------------------------------

    def correction(self):
        """`perturbation.correction` of the factors, or None; computed once."""
        if not self._is_corrected:
            self._correction, self._is_corrected = perturbation.correction(self), True
        return self._correction

    def corrected(self, rows):
        """`Factors.substitute`, and what perturbed pivots have taken from it."""
        found, correction = self.factors.substitute(rows), self.correction()
        return found if correction is None else found + correction.substitute(rows)

    def num_negative_pivots(self):
        """The number of negative pivots of the factors that decide it; whether it is certain is not asked."""
        return self.decided().factors.num_negative

    def num_negative(self):
        """Negative eigenvalues by the pivots, as they would be unperturbed."""
        correction = self.correction()
        return self.factors.num_negative + (0 if correction is None else correction.num_negative())

    # ---- what is certain, each computed once ------------------------------------------------------------------------

    def _maps(self):
        """(multiply, solve) such that ``multiply(solve(b), b=b)`` is b times I - A A'^-1, or a matrix similar to it."""
        return lifted.maps(self.factors) if self.is_lifted() else (self.matrix.multiply, self.factors.substitute)

    def mismatch(self, rows):
        """rows times I - A A'^-1, A' being the factors' matrix without what perturbed pivots have changed.

        Or times a matrix that is similar to it.
        """
        multiply, solve = self._maps()
        return multiply(solve(rows) if self.is_lifted() else self.corrected(rows), b=rows)

    def surely_contracts(self, limit):
        """Whether one solve or a few show that `contraction` is below the limit, where that is not known yet."""
        return self._contraction is None and is_surely_below(limit, *self._maps(), self.matrix.size)

    def contraction(self):
        """How far the factors' matrix is from the true one, relatively: `refinement.contraction`."""
        if self._contraction is None:
            self._contraction = contraction(*self._maps(), self.matrix.size)
        return self._contraction

    def is_exact(self):
        """Whether the pivots have the signs of the eigenvalues for certain: `inertia.is_exact`."""
        if self._is_exact is None:
            self._is_exact = inertia.is_exact(self)
        return self._is_exact

    def is_positive(self):
        """Whether H + damping I is positive definite for certain."""
        return self.num_negative_pivots() == 0 and self.decided().is_exact()

    def norm_of_inverse(self):
        """Twice an estimate, from below, of the 2-norm of the inverse."""
        if self._inverse_norm is None:
            smallest = singularity.smallest_singular_value(self, 4)
            self._inverse_norm = 2.0 / smallest if smallest > 0.0 else np.inf
        return self._inverse_norm
