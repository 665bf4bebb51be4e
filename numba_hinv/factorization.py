"""The factorization of ``H + damping I``: solves, inertia, log-determinant. Itself the inverse, as a linear operator.

Kernels return status codes; this file is where they become errors.
"""

import collections
import copy
import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgWarning
from scipy.sparse.linalg import LinearOperator

from . import checkpoints, columns, condition, covariance, determinant, processor, storage, threads
from .chunks import chunks
from .kernels import eliminate, status
from .kernels.layers import BLOCKS
from .probe import random_entries
from .progress import bar
from .refinement import backward_error, contraction, is_surely_below, refine
from .scaling import lengths, lengths_of, row_exponents
from .validation import as_flag, as_float_dtype, as_layer, as_real, check_finite

# Layers whose scales are looked through at a time.
_LOOKED_THROUGH = 4096
_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Static pivoting, in units of ||H||: a scale relative to the pivot's own front would cascade (design, section 3).
# Pivots below _PERTURBATION become +- as much. Pivots below _ENLARGED that would take more than _GROWTH from the next
# front are enlarged, since its rounding would drown the small eigenvalues; larger ones come after a perturbed pivot, are
# right, and must cancel. Of 1,754 shifts at or near eigenvalues of trailing blocks, these left none above a backward
# error of 1e-15, with 9 Krylov steps at most, and no inertia wrong. Without _GROWTH: 27 steps, and one wrong but flagged.
_PERTURBATION = {_DOUBLE: 1e-10, _SINGLE: 1e-6}
_GROWTH = {_DOUBLE: 1e12, _SINGLE: 1e6}
_ENLARGED = 1e-2
# H + damping I itself counts as singular where its smallest singular value is below this many units of roundoff of ||H||.
_SINGULAR_MATRIX = 16.0
# A solve that enlarges a random vector by this over ||H|| makes singularity worth a closer look: of a vector of P entries,
# 1 / sqrt(P) lies in the null space, where the factors of a singular matrix give 1e14 or more over ||H||.
_EXPLODED = 1e8
# The pivots have the signs of the eigenvalues where refinement with the factors contracts by this. That they are large
# does not show it: the triangular factors are not bounded, and an eigenvalue can be far below the smallest pivot. Of
# 122,000 shifts at distances of 1e-13 to 1e-2 ||H|| from an eigenvalue, in both precisions, 12,109 had a wrong inertia,
# with an estimate of the contraction of 0.88 or more; bounds by the smallest pivot had called 175 of them exact.
_CONTRACTION = 0.5
# Where the damping is below this times ||H|| and solves fail, a factorization with this damping comes to their help: of
# 65 solves at 1e-10 to 1e-12 ||H|| that Krylov steps could not mend, it mended 29, in 2 to 29 steps; 1e-9 took more steps.
_RESCUE = {_DOUBLE: 1e-8, _SINGLE: 1e-4}
# Rounding of a residual, in units of roundoff of ||H + damping I|| ||x|| + ||b||.
_RESIDUAL_ROUNDING = 8.0
# Right-hand sides whose largest entries are outside 2^+- this are scaled.
_LARGEST_EXPONENT = 100
_BACKWARD_ERROR = {_DOUBLE: 1e-14, _SINGLE: 1e-7}
# Relative error of log-determinants above which there is a warning.
_LOG_DETERMINANT = {_DOUBLE: 1e-10, _SINGLE: 1e-4}
# Relative error of covariances above which there is a warning.
_COVARIANCE = {_DOUBLE: 1e-8, _SINGLE: 1e-3}


class Inertia(NamedTuple):
    """Number of negative, zero and positive eigenvalues.

    ``exact`` is False where pivots had to be perturbed, or where rounding may have changed the sign of one.
    """

    negative: int
    zero: int
    positive: int
    exact: bool


class SolveInfo(NamedTuple):
    """What is known of the solutions of one `Factorization.solve`, per column of b (0-dimensional for a vector b).

    ``backward_error`` is ``||b - (H + damping I) x|| / (||H|| ||x|| + ||b||)``. ``error_bound`` bounds
    ``||x - exact x|| / ||exact x||``, by that residual and its own rounding times an estimate of
    ``||(H + damping I)^-1||``. All norms are 2-norms, those of matrices estimates from below that seldom miss by more
    than a factor of 2, which the bound allows for.
    """

    backward_error: np.ndarray
    error_bound: np.ndarray
    refinement_steps: int  # the most that a column took
    krylov_steps: int  # likewise


class Pivots(NamedTuple):
    """What is kept of the pivots of every layer even where their factors are not, (L,) each."""

    num_positive: np.ndarray
    num_perturbed: np.ndarray
    logabsdet: np.ndarray
    growth: np.ndarray
    smallest: np.ndarray  # smallest and largest scale: 1 / sqrt(the largest pivot), 1 / sqrt(the smallest)
    largest: np.ndarray

    @classmethod
    def allocate(cls, num_layers):
        counts = (np.empty(num_layers, np.int64) for _ in range(2))
        return cls(*counts, *(np.empty(num_layers) for _ in range(4)))

    def fill(self, segment, table, factors, take):
        """Take those of a segment from its factors; ``take`` makes them NumPy arrays."""
        for array, found in zip(self, (factors.num_positive, factors.num_perturbed, factors.logabsdet, factors.growth)):
            array[segment.start : segment.stop] = take(found)[: segment.stop - segment.start]
        self.smallest[segment.start : segment.stop], self.largest[segment.start : segment.stop] = np.inf, 0.0
        # Layers without parameters have no pivot.
        layers = segment.start + np.flatnonzero(table["m"][segment.start : segment.stop])
        for start in range(0, layers.size, _LOOKED_THROUGH):
            part = layers[start : start + _LOOKED_THROUGH]
            first = table["scales"][part] - table["scales"][segment.start]
            sizes = np.abs(take(factors.scales[first[0] : first[-1] + 2 * table["m"][part[-1]]]))
            self.largest[part] = np.maximum.reduceat(sizes, first - first[0])
            # The second column is zero but for 2 x 2 pivots.
            sizes[1::2] = np.inf
            sizes[sizes == 0.0] = np.inf
            self.smallest[part] = np.minimum.reduceat(sizes, first - first[0])


def _no_tick(num_layers):
    """Nobody waits for progress."""


def _nothing():
    """No rescue."""


def segments_of(hessian, dtype, checkpoint):
    """`checkpoints.Segment` of the chain: one, or those between the checkpoints."""
    table, sizes = hessian._table, hessian._sizes
    return checkpoints.cut(table, sizes, dtype) if checkpoint else checkpoints.whole(table, sizes)


def factor_nbytes(hessian, factor_dtype, checkpoint):
    """`Hessian.nbytes_to_factorize`."""
    dtype = factor_dtype_of(hessian, factor_dtype)
    checkpoint = as_flag("checkpoint", checkpoint)
    return _nbytes(hessian, checkpoint, dtype, [hessian._scaling(0.0, dtype)], 1, 1)


def factor_dtype_of(hessian, factor_dtype):
    """The dtype of the factors, by default that of the Hessian."""
    return as_float_dtype("factor_dtype", hessian.dtype if factor_dtype is None else factor_dtype)


def _nbytes(hessian, checkpoint, dtype, scales, num_kept, num_working):
    on = hessian._processor
    kept = checkpoints.kept_bytes(segments_of(hessian, dtype, checkpoint), dtype)
    if on.eliminates_together and not checkpoint:
        beside, work = on.bytes_together(hessian, dtype)
        kept, num_working = kept + beside, num_kept
    else:
        work = on.elimination_bytes(hessian._table, hessian._sizes, dtype)
    kept += 8 * hessian._table.size * len(Pivots._fields)
    return num_kept * kept + num_working * work + sum(hessian._block_bytes(dtype, scale) for scale in scales)


def require_memory(hessian, checkpoint, dtype, scales, num_kept=1, num_working=1):
    """``MemoryError`` where so many factorizations, at most ``num_working`` of them at a time, would not fit."""
    sizes, count = hessian._sizes, "a factorization" if num_kept == 1 else f"{num_kept} factorizations"
    hessian._processor.require(
        _nbytes(hessian, checkpoint, dtype, scales, num_kept, num_working),
        f"{count} for B = {hessian.num_samples} samples, {hessian._table.size} layers of up to "
        f"{sizes.width} units (pivots of up to {sizes.m} rows)",
    )


def relative_pivoting(dtype):
    """How factors in ``dtype`` are pivoted, in units of the norm of the matrix."""
    return eliminate.Pivoting(_PERTURBATION[dtype], _PERTURBATION[dtype], _GROWTH[dtype], _ENLARGED)


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
    checkpoint : bool
        Whether the factors of all but a few layers are made again in every solve.
    nbytes : int
        Bytes that the factors take, with the checkpoints.
    """

    def __init__(self, hessian, damping, factor_dtype=None, checkpoint=False, blocks=None, tick=_no_tick):
        """Private: `Hessian.factorize`.

        ``blocks`` are those of `Hessian._blocks`, if at hand. ``tick(n)`` is called after every n layers and may raise.
        """
        self._begin(hessian, damping, factor_dtype, checkpoint, blocks)
        self._eliminate(tick=tick, may_cut=True)
        self._finish()

    def _begin(self, hessian, damping, factor_dtype, checkpoint, blocks):
        self._prepare(hessian, damping, factor_dtype, checkpoint)
        self._rescale(hessian._scaling(self.damping, self.factor_dtype))
        self._shift = self._choose_shift()
        self._kept_blocks = blocks

    @classmethod
    def _unfactored(cls, hessian, damping, factor_dtype, blocks):
        """One that `together.eliminate` gives its factors; then comes `_finish`."""
        factorization = cls.__new__(cls)
        factorization._begin(hessian, damping, factor_dtype, False, blocks)
        factorization._set_pivoting()
        return factorization

    def _finish(self):
        """``LinAlgError`` where the elimination has shown that the matrix is singular.

        Segments are given up for the whole chain where that has happened, or where their pivots do not tell the inertia.
        """
        if self._is_cut() and not self._is_exact():
            self._join()
        if self._is_suspect():
            try:
                self._check_nonsingular()
            except np.linalg.LinAlgError:
                if not self._is_cut():
                    raise
                self._join()
                self._check_nonsingular()

    @classmethod
    def _restore(cls, hessian, damping, factor_dtype, scale, shift, factors):
        """The factorization of these parts, which `storage` has read from a file."""
        factorization = cls.__new__(cls)
        factorization._prepare(hessian, damping, factor_dtype, False)
        factorization._rescale(scale)
        factorization._shift, factorization._contraction = float(shift), None
        factorization._keep(factors)
        hessian._processor.load(factorization.factor_dtype)
        return factorization

    def _prepare(self, hessian, damping, factor_dtype, checkpoint):
        super().__init__(hessian.dtype, hessian.shape)
        self.hessian = hessian
        self.damping = as_real("damping", damping)
        self.factor_dtype = factor_dtype_of(hessian, factor_dtype)
        self.checkpoint = as_flag("checkpoint", checkpoint)
        self._exact = self._inverse_norm = self._rescuer = self._kept_blocks = self._determinant = None
        # Without checkpoints: `eliminate.Factors`, or, of a chain in segments, what the processor keeps in their place.
        self._factors = None
        self._segments = segments_of(hessian, self.factor_dtype, checkpoint)
        self._fronts = [None] * len(self._segments)

    def _rescale(self, scale):
        # From here on everything is about 2^-k (H + damping I), k = scale.matrix, and its norm.
        self._scale = scale
        # What is eliminated and multiplied with is the Hessian of the loss without its L2 term.
        self._eps = float(np.ldexp(self.damping + self.hessian.l2, -scale.matrix))
        self._hessian_norm = float(np.ldexp(self.hessian.norm(), -scale.matrix))
        self._norm = self._hessian_norm + float(np.ldexp(abs(self.damping), -scale.matrix))

    def __getstate__(self):
        # The table holds addresses of compiled functions, which are others in another process.
        state = {**self.__dict__, "_rescuer": None, "_kept_blocks": None, "_segments": None}
        if len(self._segments) > 1:
            state["_held"] = collections.deque(maxlen=1)
        else:
            state["_factors"] = self._map_factors(self.hessian._processor.take)
        state["_fronts"] = [front if front is None else self.hessian._processor.take(front) for front in self._fronts]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._segments = segments_of(self.hessian, self.factor_dtype, self.checkpoint)
        put = self.hessian._processor.put
        self._fronts = [front if front is None else put(front) for front in self._fronts]
        if len(self._segments) == 1:
            self._factors = self._map_factors(put)

    def _map_factors(self, function):
        return self._factors.map(function) if self._is_cut() else eliminate.Factors(*map(function, self._factors))

    def __repr__(self):
        return f"<Inverse of {self.hessian!r} + {self.damping:g} I>"

    def _choose_shift(self):
        """The damping that is eliminated with: a tiny one for 0 where the elimination divides by it."""
        table = self.hessian._table
        outside = table["r"] < table["d"]
        if self._eps != 0.0 or not outside.any():
            return self._eps
        # Parameters that no sample sees meet the rest only through lam and the states that come in.
        alone = outside & (table["units"] > table["rows"])
        alone[0] = outside[0]
        if alone.any():
            layer = table[np.flatnonzero(alone)[0]]
            raise np.linalg.LinAlgError(
                f"damping: H is singular, and damping is 0: layer {np.flatnonzero(alone)[0]} has {layer['d']} weights "
                f"per output and {layer['rows']} samples of its input, so that part of its parameters does not act on the "
                "loss; expected a nonzero damping"
            )
        return _PERTURBATION[_DOUBLE] * self._hessian_norm

    def _eliminate(self, growth=None, tick=_no_tick, may_cut=False):
        """With ``may_cut``, a device may eliminate segments of the chain at the same time."""
        hessian, segments = self.hessian, self._segments
        sizes = hessian._sizes
        scales = [] if self._kept_blocks else [self._scale]
        require_memory(hessian, self.checkpoint, self.factor_dtype, scales)
        on = hessian._processor
        on.load(self.factor_dtype)
        self._set_pivoting(growth)
        if on.eliminates_together and not self.checkpoint:
            (error,) = on.eliminate_together([self], may_cut, tick)
            if error is not None:
                raise error
            return
        self._fronts = [None] * len(segments)
        factors = checkpoints.allocate(segments, sizes, self.factor_dtype, on.allocate_factors)
        work = on.elimination_workspace(hessian._table, sizes, self.factor_dtype)
        pivots = Pivots.allocate(hessian._table.size)
        for index in reversed(range(len(segments))):
            segment = segments[index]
            self._eliminate_segment(segment, factors, work, tick)
            pivots.fill(segment, hessian._table, factors, on.take)
            if index:
                self._fronts[index] = on.pack(segment.front, work, segment.start % 2)
        self._pivots = pivots
        if len(segments) == 1:
            self._factors = factors
        else:
            self._held = collections.deque([(0, factors)], maxlen=1)

    def _set_pivoting(self, growth=None):
        relative = relative_pivoting(self.factor_dtype)
        if growth is not None:
            relative = relative._replace(limit=growth)
        self._pivoting = eliminate.scale_pivoting(relative, self._hessian_norm, self._shift)
        self._contraction = None

    def _pivoting_at(self, level):
        """The `Pivoting` of layers of this level (`Scaling`)."""
        with np.errstate(over="ignore"):
            return self._pivoting._replace(limit=float(np.ldexp(self._pivoting.limit, -2 * level)))

    def _keep(self, factors):
        """Take the factors of all layers, and what is known of their pivots."""
        pivots = Pivots.allocate(self.hessian._table.size)
        whole = checkpoints.whole(self.hessian._table, self.hessian._sizes)[0]
        pivots.fill(whole, self.hessian._table, getattr(factors, "factors", factors), self.hessian._processor.take)
        self._factors, self._pivots, self._contraction = factors, pivots, None

    def _is_cut(self, factors=None):
        """Whether these factors, by default its own, are those of a chain that was eliminated in segments."""
        return not isinstance(factors or self._factors, (eliminate.Factors, type(None)))

    def _joined(self):
        """The factorization of the same matrix by the chain as one segment."""
        other = Factorization.__new__(Factorization)
        other.__dict__.update(self.__dict__)
        other._join()
        return other

    def _join(self):
        """Become that factorization."""
        self._exact = self._inverse_norm = self._rescuer = self._determinant = self._factors = None
        self._eliminate()

    def _blocks(self):
        """What the sweeps read of the Hessian, scaled and in their precision."""
        if self._kept_blocks is None:
            self._kept_blocks = self.hessian._blocks(self.factor_dtype, self._scale)
        return self._kept_blocks

    def _runs(self, start, stop):
        """``(first, last, level)`` of runs of layers start..stop-1 for one compiled call, last ones first."""
        table = self.hessian._table[start:stop]
        m, N, n_out = (table[name].astype(float) for name in ("m", "N", "n_out"))
        a = np.where(table["kind"] == BLOCKS, self.hessian.num_samples * n_out, 0.0)
        flops = m**3 / 3 + m * m * N + m * N * N + a * (m + N) * (2 * a + m + N)
        levels = dict(self._scale.levels)
        cuts = [first - start for first in levels if start < first < stop]
        for first, last in reversed(chunks(flops, cuts)):
            yield start + first, start + last, levels[max(at for at in levels if at <= start + first)]

    def _not_finite(self, layer):
        return np.linalg.LinAlgError(
            f"damping: the elimination of layer {layer} met numbers that are not finite with damping="
            f"{self.damping:g} in {self.factor_dtype}; expected a damping of larger magnitude"
        )

    def _eliminate_segment(self, segment, factors, work, tick=_no_tick):
        """Eliminate its layers, with the front that comes into it in ``work``; ``LinAlgError`` if that fails."""
        params, lin, space = self._blocks()
        start, table = segment.start, segment.table(self.hessian._table)
        for first, last, level in self._runs(start, segment.stop):
            code, layer = self.hessian._processor.eliminate(
                table, first - start, last - start, params, lin, space, self._shift, self._pivoting_at(level), factors,
                work,
            )
            if code != status.OK:
                raise self._not_finite(start + layer)
            tick(last - first)

    def _borrow(self):
        """(index of a segment or None, factors): for one solve alone, to be given back through ``self._held``."""
        try:
            return self._held.pop()
        except IndexError:
            # Another thread has them.
            sizes, on = self.hessian._sizes, self.hessian._processor
            on.require(checkpoints.kept_bytes(self._segments, self.factor_dtype), "another solve with checkpoints")
            return None, checkpoints.allocate(self._segments, sizes, self.factor_dtype, on.allocate_factors)

    def _visit(self, indices):
        """The segments of these indices with their factors, one after the other."""
        if len(self._segments) == 1:
            for _ in indices:
                yield self._segments[0], self._factors
            return
        held, factors = self._borrow()
        on = self.hessian._processor
        work = on.elimination_workspace(self.hessian._table, self.hessian._sizes, self.factor_dtype)
        for index in indices:
            segment = self._segments[index]
            if index != held:
                if index < len(self._segments) - 1:
                    n = self._segments[index + 1].front
                    on.unpack(self._fronts[index + 1], n, work, segment.stop % 2)
                self._eliminate_segment(segment, factors, work)
                held = index
            yield segment, factors
        self._held.append((held, factors))

    @property
    def nbytes(self):
        kept = checkpoints.kept_bytes(self._segments, self.factor_dtype)
        return kept + (self._factors.nbytes_beside if self._is_cut() else 0)

    @property
    def num_perturbed(self):
        return int(self._pivots.num_perturbed.sum())

    def _num_free(self):
        """Parameters that no sample sees: their pivot is the damping itself."""
        table = self.hessian._table
        return int((table["units"] * (table["d"] - table["r"])).sum())

    def _num_negative(self):
        negative = int((self.hessian._table["m"] - self._pivots.num_positive).sum())
        return negative + (self._num_free() if self._shift < 0 else 0)

    @property
    def inertia(self):
        negative = self._num_negative()
        return Inertia(negative, 0, self.shape[0] - negative, self._is_exact())

    def _is_exact(self):
        """Whether the pivots have the signs of the eigenvalues: none perturbed, and rounding too small to turn one."""
        if self.num_perturbed or self._shift != self._eps:
            return False
        if self._exact is None:
            self._exact = self._is_certified()
        return self._exact

    def _rounding_of_pivots(self):
        """Bound of the pivots' relative rounding errors: that of the largest front, over the smallest pivot.

        Of a pivot's own error alone: what it does to later ones, and so to eigenvalues, can be larger by any factor.
        """
        if self.num_perturbed or self._shift != self._eps:
            return np.inf
        # On the Hessian's own scale, that of the parameters.
        levels = self._scale.levels_by_layer(self.hessian._table.size)
        growth = float(np.ldexp(self._pivots.growth, 2 * levels).max())
        if self._num_free():
            # What the parameters that no sample sees take from the fronts: (1/eps) lam lam^T, and as many times that as
            # patches share a state.
            _, lin, _ = self._blocks()
            is_structured = self.hessian._table["kind"] != BLOCKS
            layers = self.hessian._table[is_structured]
            kernel = self.hessian._chain.kernel[is_structured]
            lam = np.maximum.reduceat(np.abs(self.hessian._processor.take(lin.lam)), layers["u"]) * np.sqrt(kernel)
            largest = float(np.ldexp(lam, levels[is_structured]).max())
            growth += largest**2 * self.hessian._sizes.front**0.5 / abs(self._eps)
        smallest = 1.0 / float(self._pivots.largest.max()) ** 2
        return np.finfo(self.factor_dtype).eps * (self._norm + growth) / smallest

    def _is_certified(self):
        """Whether refinement contracts, so that the inertia is that of ``H + damping I`` even if pivots were perturbed.

        One solve as a rule shows it; only where it does not, the contraction itself is estimated.
        """
        if self._contraction is None and is_surely_below(_CONTRACTION, self._multiply, self._substitute, self.shape[0]):
            return True
        return bool(self._factor_error() < _CONTRACTION)

    def _factor_error(self):
        """`contraction` of refinement with these factors: how far their matrix is from H + damping I, relatively."""
        if self._contraction is None:
            self._contraction = contraction(self._multiply, self._substitute, self.shape[0])
        return self._contraction

    def slogdet(self):
        """Sign and logarithm of the magnitude of ``det(H + damping I)``.

        Returns
        -------
        sign : float
            1.0 or -1.0.
        logabsdet : float
            The sign of the determinant is that of ``inertia`` where ``inertia.exact`` is True, and not to be trusted
            elsewhere.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            ``logabsdet`` may be off by more than 1e-10 (1e-4 with factors in float32) of it, or of 1 where it is less;
            the message says by how much.

        Notes
        -----
        Free in float64 where no pivot is small. Else one to six solves; and where these show that digits are missing,
        factors in float64 if these are in float32, for the time of this call and where there is memory for them, and
        in float64 eight factorizations with dampings beside this one (`numba_hinv.determinant`). Computed once.
        """
        tolerance = _LOG_DETERMINANT[self.factor_dtype]
        if self._determinant is None:
            self._determinant = determinant.determinant(self, tolerance)
        sign, logabsdet, uncertainty = self._determinant
        if not determinant.is_within(tolerance, logabsdet, uncertainty):
            warnings.warn(
                f"the log-determinant {logabsdet:.6g} may be off by about {uncertainty:.1e}; expected at most "
                f"{tolerance:.0e}, relative: H + damping I is too ill-conditioned with damping={self.damping:g}",
                LinAlgWarning,
                stacklevel=2,
            )
        return sign, logabsdet

    def _log_pivots(self):
        logabsdet = float(self._pivots.logabsdet.sum())
        free = self._num_free()
        if free:
            logabsdet += free * float(np.log(abs(self._shift)))
        if self._scale.matrix:
            logabsdet += self.shape[0] * (self._scale.matrix * float(np.log(2.0)))
        return logabsdet

    def _widened(self):
        """The factorization of the same matrix in float64."""
        return Factorization(self.hessian, self.damping, np.float64, self.checkpoint)

    def _beside(self, distance):
        """The factorization of ``2^-k (H + damping I) + distance I``, scaled like this one."""
        other = copy.copy(self)
        other._eps = other._shift = self._eps + distance
        other._exact = other._inverse_norm = other._rescuer = other._determinant = None
        other._eliminate()
        return other

    def diagonal(self, progress=False):
        """The diagonal of ``(H + damping I)^-1``: variances, where that is positive definite.

        By one recursion over the layers (design, section 3, "What it gives for free"), in time linear in depth.

        Parameters
        ----------
        progress : bool
            Show a progress bar, for which tqdm must be installed.

        Returns
        -------
        diagonal : (P,) array

        Warns
        -----
        scipy.linalg.LinAlgWarning
            An entry may be off by more than 1e-8 (1e-3 with factors in float32) of it or, where H + damping I is
            indefinite, of the norm of its column of the inverse; the message says by how much.

        Raises
        ------
        numpy.linalg.LinAlgError
            Numbers that are not finite.
        MemoryError
            It would not fit; nothing has been allocated.

        Notes
        -----
        Not refined. Where H + damping I is positive definite, that hardly matters: nothing cancels, and no random
        matrix, conditions up to 1e9, lost more digits than rounding of H costs. Where it is indefinite, pivots near
        zero amplify rounding: of 138 random ones, the median error was 4e-14 at conditions of 1e2 to 1e4, 1e-10 at 1e4
        to 1e6 and 1e-7 at 1e6 to 1e8. Of 1,500 random matrices the error was above 1e-8 in 332, all of which were
        warned of, as were 48 with errors below 1e-9. ``solve`` with unit vectors is refined, and gives single columns.

        Costs two to six factorizations where layers are large, eleven where they have a dozen parameters; twice that
        where the matrix is indefinite. That includes three solves that judge it.

        See Also
        --------
        blocks : of the inverse, for one layer.
        """
        return covariance.diagonal(self, _COVARIANCE[self.factor_dtype], progress)

    def blocks(self, l, progress=False):
        """The diagonal block of ``(H + damping I)^-1`` for the parameters of layer ``l``: their covariance.

        Parameters
        ----------
        l : int
            From 0; negative from the end.
        progress : bool
            Show a progress bar, for which tqdm must be installed.

        Returns
        -------
        block : (p, p) symmetric array
            In the order of the flat parameter vector.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            As for `diagonal`; entries off the diagonal are judged by the roots of the scales of their row and column.

        Raises
        ------
        TypeError, IndexError
            ``l`` is not an integer, or there is no such layer.
        numpy.linalg.LinAlgError, MemoryError
            As for `diagonal`.

        Notes
        -----
        Costs the recursion of `diagonal` up to layer l, once, about 6 p^2 (m + N) flops and 5 p^2 numbers for the block, and
        six solves that judge it.
        """
        l = as_layer("l", l, self.hessian.num_layers)
        return covariance.block(self, l, _COVARIANCE[self.factor_dtype], progress)

    def sample(self, rng, n=None, num_threads=None, progress=False):
        """Samples of the normal distribution with mean 0 and covariance ``(H + damping I)^-1``.

        Parameters
        ----------
        rng : int or numpy.random.Generator
            A seed, or the generator to draw from.
        n : int, optional
            How many; by default one, without an axis of its own.
        num_threads : int, optional
            As for `solve`; changes no bit.
        progress : bool
            Show a progress bar, for which tqdm must be installed.

        Returns
        -------
        samples : (n, P) or (P,) array

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The variance in some direction may be off by more than 1e-8 (1e-3 with factors in float32), relatively.

        Raises
        ------
        numpy.linalg.LinAlgError
            H + damping I is not positive definite: the message gives its inertia.
        TypeError, ValueError
            ``rng`` or ``n`` is not what is expected.
        MemoryError
            They would not fit; nothing has been allocated.

        Notes
        -----
        A square root of the inverse, applied to standard normal numbers: exactly that law, up to rounding. Half a solve
        each, and six solves, once, for the warning.
        """
        return covariance.sample(self, rng, n, _COVARIANCE[self.factor_dtype], num_threads, progress)

    def save(self, path):
        """Write the factorization, with its Hessian and net, to a file that `load` reads.

        An npz archive of plain arrays with a checksum; no pickle. Written completely or not at all.

        Parameters
        ----------
        path : str or os.PathLike
            The name is taken as it is. An existing file is replaced.

        Raises
        ------
        TypeError, OSError
            ``path`` is not a path, or cannot be written.
        """
        storage.save(path, self)

    def condition(self):
        """Estimate of the condition number ``||A||_1 ||A^-1||_1`` of ``A = H + damping I``.

        By `scipy.sparse.linalg.onenormest` on both factors, with one column and a fixed start, so that the answer is
        always the same. A lower bound, seldom by more than a factor of 3.

        Returns
        -------
        condition : float

        Notes
        -----
        About five products with H and five solves, in general; each solve is refined.
        """
        size = self.shape[0]
        return condition.one_norm(self._multiply, size) * condition.one_norm(self._refined_inverse, size)

    def _refined_inverse(self, rows):
        return self._refine(rows, np.dtype(np.float64)).x

    def solve(self, b, refine=True, full_output=False, num_threads=None, progress=False):
        """Solve ``(H + damping I) x = b``.

        Parameters
        ----------
        b : (P,) or (P, k) array
        refine : bool
            Whether to refine on the residual in float64, to a normwise backward error
            ``||b - (H + damping I) x|| / (||H|| ||x|| + ||b||)`` near machine precision. Without it, the answer of the
            two sweeps alone.
        full_output : bool
            Whether to return what is known of the solution, too.
        num_threads : int, optional
            Right-hand sides are solved in blocks, of 16 where there are many parameters, at most so many blocks at a
            time; by default one a core, or as many as leave BLAS its own threads (`Hessian.factorize_many`). The answer
            is the same for every number.
        progress : bool
            Show a progress bar, for which tqdm must be installed.

        Returns
        -------
        x : array of the shape of b
            In the wider dtype of b and the parameters, and in Fortran order: every solution is contiguous.
        info : SolveInfo
            Only with ``full_output``.

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
        ImportError
            A progress bar is asked for and tqdm is not there.

        Notes
        -----
        Reads the factors twice, and the blocks once a refinement step. A b in Fortran order is read where it lies; of
        others each thread has a copy of a block. ``full_output`` costs one product more a column
        and, once for a factorization, four refined solves that estimate the norm of the inverse.
        """
        refine, full_output = as_flag("refine", refine), as_flag("full_output", full_output)
        on = self.hessian._processor
        given, dtype = on.as_columns("b", b, self.shape[0], self.dtype)
        x, count = on.empty_columns(given, given.shape, dtype), given.shape[1]
        # What all blocks use is made before there are threads.
        self._blocks()
        if full_output:
            self._norm_of_inverse()
        buffers = columns.Buffers()
        with bar(progress, count, "solve", "column") as shown:

            def solve_block(start, stop, check):
                squares = np.zeros(stop - start)
                rows = columns.gather(given, start, stop, buffers, check, squares)
                out, scratch = on.place(x, start, stop), None
                if out is not None and refine:
                    scratch = buffers.rows("residual", out.shape)
                b_lengths = lengths_of(rows, squares)
                if not np.isfinite(b_lengths).all():
                    check_finite("b", given)
                rows, known = self._solve_rows(rows, b_lengths, dtype, refine, full_output, check, out, scratch)
                columns.scatter(rows, x, start)
                shown.update(stop - start)
                return known

            if self.checkpoint:
                # Each block would have to make the factors again.
                found = columns.run(solve_block, given.shape, 1, max(count, 1))
            else:
                workers = on.num_workers(num_threads, max(count, 1), self.hessian._solves_reach_blas())
                found = columns.run(solve_block, given.shape, workers, on.column_block)
        errors = np.concatenate([known.backward_error for known in found] or [np.empty(0)])
        bounds = np.concatenate([known.error_bound for known in found] or [np.empty(0)])
        steps = max((known.refinement_steps for known in found), default=0)
        krylov_steps = max((known.krylov_steps for known in found), default=0)
        if refine:
            self._warn(errors.max(initial=0.0), steps, krylov_steps, dtype)
        shape = tuple(b.shape) if processor.is_on_device(b) else np.shape(b)
        x = on.result(x, shape)
        if not full_output:
            return x
        shape = shape[1:]
        return x, SolveInfo(errors.reshape(shape), bounds.reshape(shape), steps, krylov_steps)

    def _solve_rows(self, rows, b_lengths, dtype, refine, full_output, check, out=None, scratch=None):
        """(solutions of a block of right-hand sides, `SolveInfo`), both by rows.

        The entries are finite, their norms ``b_lengths`` may have overflowed. ``out`` and ``scratch``, of the shape of
        rows, may be written to; the solutions are in ``out`` as a rule.
        """
        rows = self.hessian._processor.rows(rows)
        exponents = np.zeros(rows.shape[0], np.int32)
        if not (np.abs(np.frexp(b_lengths)[1]) <= _LARGEST_EXPONENT).all() or not np.isfinite(b_lengths).all():
            exponents = row_exponents(rows)
            rows = np.ldexp(rows, -exponents[:, None])
            b_lengths = lengths(rows)
        errors, bounds, steps, krylov_steps = np.empty(rows.shape[0]), np.empty(rows.shape[0]), 0, 0
        if refine:
            refined = self._refine(rows, dtype, check, 0.0, b_lengths, out, scratch)
            x, errors, steps, krylov_steps, x_lengths, _ = refined
            self._check_solution(refined)
        else:
            x = self._substitute(rows, check, out)
            x_lengths = lengths(x)
        if full_output:
            errors, bounds = self._judge(x, rows)
        exponents -= self._scale.matrix
        if exponents.any():
            with np.errstate(over="ignore", under="ignore"):
                np.ldexp(x, exponents[:, None], out=x)
                x_lengths = np.ldexp(x_lengths, exponents)
        # No entry is larger than the norm; where that is too large or not a number, the entries are looked through.
        most = np.finfo(dtype).max
        if not (x_lengths <= most).all() and not max(x.max(initial=0.0), -x.min(initial=0.0)) <= most:
            raise np.linalg.LinAlgError(f"b: the solution overflows, with damping={self.damping:g}")
        return x, SolveInfo(errors, bounds, steps, krylov_steps)

    def _refine(self, rows, dtype, check=threads.no_check, offset=0.0, b_lengths=None, out=None, scratch=None):
        """`Refined` solutions; those of ``2^-k (H + damping I) + offset I`` with the factors at hand."""
        limit = _BACKWARD_ERROR[dtype]
        can_rescue = self.num_perturbed or abs(self._eps) < _RESCUE[self.factor_dtype] * self._norm
        rescue = self._rescue if can_rescue else None
        if self._is_cut():
            # What is left after one cycle is for the chain as one segment, with all that may come to its help.
            rescue = _nothing

        def multiply(rows, b=None, out=None, squares=None):
            return self._multiply(rows, check, b, offset, out, squares)

        def substitute(rows, out=None):
            return self._substitute(rows, check, out)

        norm = self._hessian_norm
        refined = refine(multiply, substitute, norm, rows, limit / 16, limit, rescue, b_lengths, out, scratch)
        if self._is_cut() and refined.backward_error.max(initial=0.0) > limit and self._rescue():
            return self._rescuer._refine(rows, dtype, check, offset, b_lengths, out, scratch)
        return refined

    def _rescue(self):
        """The sweeps of another factorization, for what this one cannot solve; None where there is no memory for it.

        With a tiny damping, that of a larger one: it is wrong by much in the eigenvalues near zero, but by nearly the
        same for all of them, so that a few Krylov steps remove it, where the rounding errors of a tiny damping are
        ||H|| / damping times as large as usual, and all different. Else one without the limit on growth, which may have
        misjudged states of which some samples explode and others do not. Of a chain in segments, that of the chain as one.
        """
        if self._rescuer is None:
            larger = _RESCUE[self.factor_dtype] * self._norm
            is_tiny = abs(self._eps) < larger
            try:
                if self._is_cut():
                    rescuer = self._joined()
                else:
                    rescuer = copy.copy(self)
                    if is_tiny:
                        rescuer._shift = float(np.copysign(larger, self._eps))
                    rescuer._eliminate(None if is_tiny else np.inf)
            except (MemoryError, np.linalg.LinAlgError):
                return None
            self._rescuer = rescuer
        return self._rescuer._substitute

    def _check_solution(self, refined):
        """``LinAlgError`` where a solution is so large that it shows the matrix to be singular."""
        size, b_lengths = refined.x_lengths, refined.b_lengths
        image = b_lengths + refined.backward_error * (self._hessian_norm * size + b_lengths)
        shown = np.divide(image, size, out=np.full_like(image, np.inf), where=image > 0)
        if shown.min(initial=np.inf) <= _SINGULAR_MATRIX * np.finfo(np.float64).eps * self._norm:
            self._raise_singular(shown.min())

    def _judge(self, x, b):
        """Backward error, and bound of the relative error, of each row of x."""
        residual, size, b_lengths = self._multiply(x, b=b), lengths(x), lengths(b)
        rounding = _RESIDUAL_ROUNDING * np.finfo(float).eps * (self._norm * size + b_lengths)
        error = self._norm_of_inverse() * (lengths(residual) + rounding)
        # Of x first, then of the exact solution, which is smaller than x by the error at most.
        error = np.divide(error, size, out=np.zeros_like(error), where=size > 0)
        error = np.where(error < 1.0, error / np.maximum(1.0 - error, 0.5), np.inf)
        return backward_error(self._hessian_norm, size, b_lengths, lengths(residual)), error

    def _norm_of_inverse(self):
        """Twice an estimate, from below, of the 2-norm of the inverse; computed once."""
        if self._inverse_norm is None:
            smallest = self._smallest_singular_value(4)
            self._inverse_norm = 2.0 / smallest if smallest > 0.0 else np.inf
        return self._inverse_norm

    def _warn(self, worst, steps, krylov_steps, dtype):
        if worst > _BACKWARD_ERROR[dtype]:
            narrow = self.factor_dtype == np.float32 and self.hessian.dtype == np.float64
            advice = " for factors in float32" if narrow else ""
            warnings.warn(
                f"the solution has a backward error of {worst:.1e} after {steps} refinement and "
                f"{krylov_steps} Krylov steps; expected at most {_BACKWARD_ERROR[dtype]:.0e}: H + damping I is "
                f"too ill-conditioned{advice} with damping={self.damping:g}",
                LinAlgWarning,
                stacklevel=3,
            )

    def _multiply(self, rows, check=threads.no_check, b=None, offset=0.0, out=None, squares=None):
        """rows times ``2^-k (H + damping I) + offset I``; b minus that where b is given."""
        return self.hessian._multiply(rows, self._scale, self._eps + offset, b, check, out, squares)

    def _pieces(self, segment, num_vectors, back):
        """Runs of the segment's layers for one compiled call of a solve, in the order of the sweep."""
        layers, B = self.hessian._table[segment.start : segment.stop], self.hessian.num_samples
        m, N, n_in, n_out, fan_in, p = (
            layers[name].astype(float) for name in ("m", "N", "n_in", "n_out", "fan_in", "p")
        )
        through = np.where(layers["kind"] == BLOCKS, 2 * n_out * (n_in + p), 2 * n_out * fan_in)
        flops = num_vectors * (m * m + 2 * m * N + B * through + 16 * p) + m * m + 2 * m * N
        pieces = chunks(flops)
        return pieces[::-1] if back else pieces

    def _substitute(self, rows, check=threads.no_check, out=None):
        """The two sweeps: rows (k, P) times the factors' inverse, in their precision."""
        on = self.hessian._processor
        kept, narrow = self._factors, self.factor_dtype != np.float64
        b = rows = on.rows(rows)
        if narrow:
            exponents = row_exponents(rows)[:, None]
            b = np.ldexp(rows, -exponents, out=on.empty_rows(rows.shape, self.factor_dtype), casting="same_kind")
        x = np.empty_like(b) if narrow or out is None else out
        if self._is_cut(kept):
            on.substitute_in_segments(self, kept, b, x, check)
        else:
            self._sweep(b, x, check)
        if narrow:
            x = x.astype(np.float64)
            np.ldexp(x, exponents, out=x)
        return x

    def _sweep(self, b, x, check):
        """Both sweeps, layer after layer, from b to x in the precision of the factors."""
        hessian, on = self.hessian, self.hessian._processor
        params, lin, space = self._blocks()
        work = on.substitution_workspace(hessian._sizes, b.shape[0], hessian.num_samples, self.factor_dtype)
        sweep, back = on.substitute_back, True
        order = list(range(len(self._segments)))
        for segment, factors in self._visit(order[::-1] + order):
            table = segment.table(hessian._table)
            for start, stop in self._pieces(segment, b.shape[0], back):
                check()
                sweep(table, start, stop, params, lin, space, factors, self._shift, b, x, work)
            if segment.start == 0:
                sweep, back = on.substitute_forth, False

    def _is_suspect(self):
        """Whether H + damping I may be singular: a pivot was perturbed, or is tiny and one solve explodes."""
        if self.num_perturbed or self._eps == 0.0:
            return True
        smallest = self._pivots.smallest.min()
        if not smallest < np.finfo(self.factor_dtype).eps ** 0.25 * self._pivots.largest.max():
            return False
        probe = random_entries(1, self.shape[0])
        return not lengths(self._substitute(probe))[0] * self._norm < _EXPLODED * lengths(probe)[0]

    def _check_nonsingular(self):
        """``LinAlgError`` where the smallest singular value, by inverse iteration, is at the roundoff of ||H||."""
        smallest = self._smallest_singular_value(3)
        if smallest <= _SINGULAR_MATRIX * np.finfo(np.float64).eps * self._norm:
            self._raise_singular(smallest)

    def _raise_singular(self, smallest):
        layer = int(np.argmax(self._pivots.largest))
        raise np.linalg.LinAlgError(
            f"damping: H + damping I is singular to working precision with damping={self.damping:g}: its smallest "
            f"singular value is about {np.ldexp(smallest, self._scale.matrix):.1e} where ||H|| is "
            f"{self.hessian.norm():.1e}, by the pivot of layer {layer}; expected a damping further from minus an "
            "eigenvalue of H"
        )

    def _smallest_singular_value(self, num_steps):
        """Estimate from above by inverse iteration, always from the same start."""
        v = random_entries(1, self.shape[0])
        v /= lengths(v)
        smallest = np.inf
        for _ in range(num_steps):
            v = self._refined_inverse(v)
            length = lengths(v)[0]
            if not np.isfinite(length) or length == 0.0:
                break
            v /= length
            smallest = min(smallest, float(lengths(self._multiply(v))[0]))
        return smallest

    def dot(self, x):
        """``solve(x)``; of an array on the device, one on the device."""
        return self.solve(x) if processor.is_on_device(x) else super().dot(x)

    def __matmul__(self, x):
        return self.dot(x) if processor.is_on_device(x) else super().__matmul__(x)

    def _matvec(self, b):
        return self.solve(b.reshape(-1)).reshape(b.shape)

    def _matmat(self, B):
        return self.solve(B)

    def _adjoint(self):
        return self

    _transpose = _adjoint
