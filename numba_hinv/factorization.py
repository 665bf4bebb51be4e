"""The factorization of ``H + damping I``: solves, inertia, log-determinant. Itself the inverse, as a linear operator.

Kernels return status codes; this file is where they become errors.
"""

import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgWarning
from scipy.sparse.linalg import LinearOperator

from . import memory_budget
from .kernels import binding, eliminate, status, substitute
from .refinement import contraction, refine
from .validation import as_flag, as_float_dtype, as_real, as_right_hand_sides

# Right-hand sides per blocked pass.
BLOCK = 32
# Flops per compiled call of the elimination, so that Ctrl-C is heard in between.
_CHUNK_FLOPS = 4e9
# Static pivoting, in units of ||H||: a scale relative to the pivot's own front would cascade (design, section 3).
# Pivots below _PERTURBATION become +- as much. Pivots below _ENLARGED that would take more than _GROWTH from the next
# front are enlarged, since its rounding would drown the small eigenvalues; larger ones come after a perturbed pivot, are
# right, and must cancel. Of 8,911 shifts at or near eigenvalues of trailing blocks, these left one solution above a
# backward error of 1e-14 (with a warning) and no inertia silently wrong.
_PERTURBATION = 1e-10
_ENLARGED = 1e-2
_GROWTH = 1e10
# H + damping I itself counts as singular where its smallest singular value is below this many units of roundoff of ||H||.
_SINGULAR_MATRIX = 16.0
# Pivots above this many units of roundoff of the largest front have their sign for certain; otherwise the contraction
# of refinement decides.
_SAFE = 1e3
_CONTRACTION = 0.5
_BACKWARD_ERROR = {np.dtype(np.float64): 1e-14, np.dtype(np.float32): 1e-7}


class Inertia(NamedTuple):
    """Number of negative, zero and positive eigenvalues.

    ``exact`` is False where pivots had to be perturbed, or where rounding may have changed the sign of one.
    """

    negative: int
    zero: int
    positive: int
    exact: bool


class Factorization(LinearOperator):
    """Inverse of ``H + damping I``. Made by `Hessian.factorize`.

    A `scipy.sparse.linalg.LinearOperator`: ``F @ b`` is ``F.solve(b)``.

    Attributes
    ----------
    hessian : Hessian
    damping : float
    inertia : Inertia
        Of ``H + damping I``, by Sylvester's law from the signs of the pivots.
    num_perturbed : int
        Pivots that were singular to working precision and were perturbed.
    nbytes : int
        Bytes that the factors take.
    """

    def __init__(self, hessian, damping, factor_dtype=None):
        super().__init__(hessian.dtype, hessian.shape)
        self.hessian = hessian
        self.damping = as_real("damping", damping)
        self.factor_dtype = as_float_dtype("factor_dtype", hessian.dtype if factor_dtype is None else factor_dtype)
        self._exact = None
        self._shift = self._choose_shift()
        self._eliminate()
        if self._is_suspect():
            self._check_nonsingular()

    def __repr__(self):
        return f"<Inverse of {self.hessian!r} + {self.damping:g} I>"

    def _choose_shift(self):
        """The damping that is eliminated with: a tiny one for 0 where the elimination divides by it."""
        table = self.hessian._table
        outside = table["r"] < table["d"]
        if self.damping != 0.0 or not outside.any():
            return self.damping
        # Parameters that no sample sees meet the rest only through lam and the states that come in.
        B = self.hessian.num_samples
        alone = outside & (table["n_out"] > B)
        alone[0] = outside[0]
        if alone.any():
            layer = table[np.flatnonzero(alone)[0]]
            raise np.linalg.LinAlgError(
                f"damping: H is singular, and damping is 0: layer {np.flatnonzero(alone)[0]} has {layer['d']} weights "
                f"per output and {B} samples, so that part of its parameters does not act on the loss; "
                "expected a nonzero damping"
            )
        return _PERTURBATION * self.hessian.norm()

    def _eliminate(self):
        hessian = self.hessian
        sizes, table = hessian._sizes, hessian._table
        itemsize = self.factor_dtype.itemsize
        floats = sizes.L + sizes.scales + sizes.Y + 2 * sizes.front + sizes.mixed + sizes.m**2
        memory_budget.require(
            itemsize * floats + 4 * sizes.pivots,
            f"a factorization for B = {hessian.num_samples} samples, {table.size} layers of up to "
            f"{sizes.width} units (pivots of up to {sizes.m} rows)",
        )
        binding.load(self.factor_dtype)
        params, lin, space = hessian._blocks(self.factor_dtype)
        self._factors = eliminate.allocate(sizes, table.size, self.factor_dtype)
        scale = hessian.norm() + abs(self._shift)
        perturbation = _PERTURBATION * scale
        # Pivots as small as a small damping are what that damping asks for.
        singular = min(perturbation, 0.25 * abs(self._shift)) if self._shift else perturbation
        pivoting = eliminate.Pivoting(singular, perturbation, _GROWTH * scale, _ENLARGED * scale)
        code, layer = self._sweep(params, lin, space, pivoting)
        if code != status.OK:
            raise np.linalg.LinAlgError(
                f"damping: the elimination of layer {layer} met numbers that are not finite with damping="
                f"{self.damping:g} in {self.factor_dtype}; expected a damping of larger magnitude"
            )

    def _sweep(self, params, lin, space, pivoting):
        table = self.hessian._table
        work = eliminate.workspace(self.hessian._sizes, self.factor_dtype)
        m, N = table["m"].astype(float), table["N"].astype(float)
        flops = np.cumsum((m**3 / 3 + m * m * N + m * N * N)[::-1])
        stop = table.size
        for done in np.unique(np.append(np.searchsorted(flops, np.arange(_CHUNK_FLOPS, flops[-1], _CHUNK_FLOPS)), stop)):
            start = table.size - int(done)
            code, layer = eliminate.eliminate(
                table, start, stop, params, lin, space, self._shift, pivoting, self._factors, work
            )
            if code != status.OK:
                return code, layer
            stop = start
        return status.OK, 0

    @property
    def nbytes(self):
        return sum(array.nbytes for array in self._factors)

    @property
    def num_perturbed(self):
        return int(self._factors.num_perturbed.sum())

    @property
    def inertia(self):
        table = self.hessian._table
        free = int((table["n_out"] * (table["d"] - table["r"])).sum())
        negative = int((table["m"] - self._factors.num_positive).sum()) + (free if self._shift < 0 else 0)
        return Inertia(negative, 0, self.shape[0] - negative, self._is_exact())

    def _is_exact(self):
        """Whether the pivots have the signs of the eigenvalues: none perturbed, and rounding too small to turn one."""
        if self.num_perturbed or self._shift != self.damping:
            return False
        if self._exact is None:
            hessian, roundoff = self.hessian, np.finfo(self.factor_dtype).eps
            growth = hessian.norm() + abs(self.damping) + float(self._factors.growth.max())
            if (hessian._table["r"] < hessian._table["d"]).any():
                # What the parameters that no sample sees take from the fronts: (1/eps) lam lam^T.
                growth += float(np.abs(hessian._lin.lam).max()) ** 2 * hessian._sizes.front**0.5 / abs(self.damping)
            smallest = 1.0 / float(np.square(self._factors.scales, dtype=float).max())
            self._exact = (
                _SAFE * roundoff * growth < smallest
                or contraction(self._multiply, self._substitute, self.shape[0]) < _CONTRACTION
            )
        return self._exact

    def slogdet(self):
        """Sign and logarithm of the magnitude of ``det(H + damping I)``.

        Returns
        -------
        sign : float
            1.0 or -1.0.
        logabsdet : float
            Not to be trusted where ``inertia.exact`` is False: refinement does not repair it.
        """
        table = self.hessian._table
        free = int((table["n_out"] * (table["d"] - table["r"])).sum())
        logabsdet = float(self._factors.logabsdet.sum())
        if free:
            logabsdet += free * float(np.log(abs(self._shift)))
        return -1.0 if self.inertia.negative % 2 else 1.0, logabsdet

    def solve(self, b, refine=True):
        """Solve ``(H + damping I) x = b``.

        Parameters
        ----------
        b : (P,) or (P, k) array
        refine : bool
            Whether to refine on the residual in float64, to a normwise backward error
            ``||b - (H + damping I) x|| / (||H|| ||x|| + ||b||)`` near machine precision. Without it, the answer of the
            two sweeps alone.

        Returns
        -------
        x : array of the shape of b
            In the wider dtype of b and the parameters.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The backward error stays above 1e-14 (1e-7 for float32 answers); the message gives it.

        Raises
        ------
        TypeError, ValueError
            b is not a finite real array of that shape.
        numpy.linalg.LinAlgError
            The solution overflows.

        Notes
        -----
        Reads the factors twice, and the blocks once a refinement step.
        """
        rows, dtype = as_right_hand_sides("b", b, self.shape[0], self.dtype)
        x = np.empty_like(rows)
        for start in range(0, rows.shape[0], BLOCK):
            block = rows[start : start + BLOCK]
            if as_flag("refine", refine):
                refined = self._refine(block, dtype)
                x[start : start + BLOCK] = refined.x
                self._warn(refined, dtype)
            else:
                x[start : start + BLOCK] = self._substitute(block)
        if not np.isfinite(x).all():
            raise np.linalg.LinAlgError("b: the solution overflows")
        x = x.T.astype(dtype, order="C", copy=False)
        return x.reshape(np.shape(b))

    def _refine(self, rows, dtype):
        limit = _BACKWARD_ERROR[dtype]
        goal = limit / 16
        norm = self.hessian.norm() + abs(self.damping)
        return refine(self._multiply, self._substitute, norm, rows, goal, limit)

    def _warn(self, refined, dtype):
        worst = refined.backward_error.max(initial=0.0)
        if worst > _BACKWARD_ERROR[dtype]:
            warnings.warn(
                f"the solution has a backward error of {worst:.1e} after {refined.steps} refinement and "
                f"{refined.krylov_steps} Krylov steps; expected at most {_BACKWARD_ERROR[dtype]:.0e}: H + damping I is "
                f"too ill-conditioned for damping={self.damping:g}",
                LinAlgWarning,
                stacklevel=3,
            )

    def _multiply(self, rows):
        """rows (H + damping I)."""
        product = self.hessian._multiply(rows)
        if self.damping != 0.0:
            product += self.damping * rows
        return product

    def _substitute(self, rows):
        """The two sweeps: rows (k, P) times the factors' inverse, in their precision."""
        hessian = self.hessian
        params, lin, space = hessian._blocks(self.factor_dtype)
        b = np.ascontiguousarray(rows, self.factor_dtype)
        x = np.empty_like(b)
        work = substitute.workspace(hessian._sizes, b.shape[0], hessian.num_samples, self.factor_dtype)
        table = hessian._table
        arguments = table, 0, table.size, params, lin, space, self._factors, self._shift, b, x, work
        substitute.substitute_back(*arguments)
        substitute.substitute_forth(*arguments)
        return x.astype(np.float64, copy=False)

    def _is_suspect(self):
        """Whether H + damping I may be singular: a perturbed pivot, or one tiny beside the largest."""
        if self.num_perturbed or self.damping == 0.0:
            return True
        scales = np.abs(self._factors.scales[::2])
        scales = scales[scales > 0]
        if not scales.size:
            return False
        return scales.min() < np.finfo(self.factor_dtype).eps ** 0.4 * scales.max()

    def _check_nonsingular(self):
        """``LinAlgError`` where the smallest singular value, by inverse iteration, is at the roundoff of ||H||."""
        v = np.random.default_rng(1).standard_normal((1, self.shape[0]))
        norm = self.hessian.norm() + abs(self.damping)
        smallest = np.inf
        for _ in range(3):
            v = refine(self._multiply, self._substitute, norm, v, 1e-15, 1e-14).x
            length = np.linalg.norm(v)
            if not np.isfinite(length) or length == 0.0:
                break
            v /= length
            smallest = min(smallest, float(np.linalg.norm(self._multiply(v))))
        if smallest <= _SINGULAR_MATRIX * np.finfo(np.float64).eps * norm:
            layer = int(np.argmax([np.abs(block).max(initial=0.0) for block in self._scales_by_layer()]))
            raise np.linalg.LinAlgError(
                f"damping: H + damping I is singular to working precision with damping={self.damping:g}: its smallest "
                f"singular value is about {smallest:.1e} where ||H|| is {self.hessian.norm():.1e}, by the pivot of "
                f"layer {layer}; expected a damping further from minus an eigenvalue of H"
            )

    def _scales_by_layer(self):
        return np.split(self._factors.scales, self.hessian._table["scales"][1:])

    def _matvec(self, b):
        return self.solve(b.reshape(-1)).reshape(b.shape)

    def _matmat(self, B):
        return self.solve(B)

    def _adjoint(self):
        return self

    _transpose = _adjoint
