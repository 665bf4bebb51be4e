"""What all systems are: symmetric matrices H of P parameters with a product, a norm, and a dense form that is kept.

`system.System` is the chain of one batch of samples, `total.Total` a weighted sum of such.
"""

import abc
import math
import threading

import numpy as np

from ..runtime import threads
from ..runtime.probes import random_signs
from .lanczos import norm_from_below

# Where a product overflows between the layers, the vectors are divided by 2 to this power first.
_SMALLER = 600


class Matrix(abc.ABC):
    """H, a symmetric matrix with ``l2`` times the identity in it. Immutable; what it computes once, it keeps.

    Attributes
    ----------
    params : (P,) array
        In float64, where the processor has them.
    l2 : float
    gradient : (P,) NumPy array or None
    on : processor
    has_layers : bool
        Whether H can be eliminated layer by layer.
    ridge : (P,) array or None
        What is on the diagonal of H beside the blocks and ``l2``: L2 terms that are not the same for all parameters.
    first : int
        The number that the first layer has in the net: of the frozen layers before it, H knows nothing.
    """

    has_layers = False

    def __init__(self, params, l2, gradient, on, norm=None, first=0, ridge=None):
        self.ridge = ridge
        self.params, self.l2, self.gradient, self.on, self.first = params, l2, gradient, on, first
        self._norm = norm
        self._begin()

    def _begin(self):
        self._dense, self._making = None, threading.Lock()

    @property
    def num_params(self):
        """P."""
        return self.params.size

    @abc.abstractmethod
    def multiply(self, rows, scale=None, shift=0.0, b=None, check=threads.no_check, out=None, squares=None):
        """rows (H + (shift - l2) I) in float64, rows (k, P), H scaled as ``scale`` says; b minus that if b is given.

        Then the squared norms of what is returned and of rows are added to ``squares`` (k, 2) where that is cheap.
        """

    @abc.abstractmethod
    def jobs(self):
        """Functions that each give one of `parts`, to be called on any thread."""

    def parts(self):
        """Pairs (weight, `system.System`) of which this is the sum, one after the other."""
        return (job() for job in self.jobs())

    @abc.abstractmethod
    def dense(self, out=None, num_threads=None, check=threads.no_check, progress=False):
        """H as a (P, P) array of float64, exactly symmetric, the same bits on any number of threads.

        Parameters
        ----------
        out : (P, P) C-contiguous array of float64, optional
            Where H is written.
        num_threads : int, optional
            By default one a core.
        check : callable
            Called now and then, between compiled calls of some milliseconds; what it raises ends the work.
        progress : bool

        Raises
        ------
        MemoryError
            H would not fit; nothing has been allocated.
        numpy.linalg.LinAlgError
            H overflows.
        """

    @property
    def has_dense(self):
        """Whether `kept_dense` is made already."""
        return self._dense is not None

    def kept_dense(self, progress=False):
        """H as `dense` gives it, made once for all factorizations that need it; not to be written to."""
        if self._dense is None:
            with self._making:
                if self._dense is None:
                    self._dense = self.dense(progress=progress)
        return self._dense

    # ---- products ---------------------------------------------------------------------------------------------------

    def multiply_dense(self, rows, k, shift, check, b=None, out=None):
        """What `multiply` gives, by way of `kept_dense`, H being scaled by ``2^-k``."""
        check()
        found = np.matmul(rows, self.kept_dense(), out=out)
        if k:
            np.ldexp(found, -k, out=found)
        shift -= float(np.ldexp(self.l2, -k))
        if shift:
            found += shift * rows
        return found if b is None else np.subtract(b, found, out=found)

    @property
    def is_dense_cheaper(self):
        """Whether products by `kept_dense` cost less than those by samples: 2 P^2 flops for a vector against 6 P B."""
        return self.num_params <= 3 * self.num_samples

    def apply(self, rows, check=threads.no_check, out=None):
        """rows H in float64, rows (k, P)."""
        if self.has_dense and self.is_dense_cheaper:
            return self.multiply_dense(rows, 0, self.l2, check, out=out)
        return self.multiply(rows, shift=self.l2, check=check, out=out)

    def apply_smaller(self, rows, check=threads.no_check):
        """The same by way of shorter vectors: adjoints may overflow on the way to layers that do not feel them."""
        return np.ldexp(self.apply(np.ldexp(rows, -_SMALLER), check), _SMALLER)

    def norm(self):
        """Estimate of the 2-norm of H from below (`lanczos`); computed once, always from the same start."""
        if self._norm is None:
            for start in self._starts():
                v = self.on.memory.vectors(start)
                found = norm_from_below(self._multiplier(v), v)
                if found != 0.0:
                    break
            if not math.isfinite(found):
                raise np.linalg.LinAlgError("params, X, y: the Hessian overflows")
            self._norm = found
        return self._norm

    def _starts(self):
        """Vectors (1, P) rich in leading eigenvectors: the gradient, and random signs for where that shows nothing."""
        if self.gradient is not None:
            slope = self.gradient.astype(np.float64, copy=False)[None]
            # That of the L2 term is rich in nothing.
            term = self.l2 if self.ridge is None else self.l2 + self.ridge
            yield slope - term * self.on.memory.take(self.params) if np.any(term) else slope
        yield random_signs(0, self.num_params)

    @property
    def ridge_needs_dense(self):
        """Whether it is for its ridge that the matrix has no layers to eliminate."""
        return False

    def bare(self):
        """This matrix without its ridge."""
        return self if self.ridge is None else self.with_ridge(None)

    @abc.abstractmethod
    def with_ridge(self, ridge):
        """The same with another ridge, which is (P,) or None; its norm is estimated anew."""

    def moved_dense(self, ridge):
        """`kept_dense` with another ridge, a copy."""
        before, after = (0.0 if one is None else one for one in (self.ridge, ridge))
        found = self.kept_dense().copy()
        found[np.diag_indices_from(found)] += after - before
        return found

    def _add_ridge(self, k, rows, is_residual, product):
        """product <- product + 2^-k rows ridge, or minus that of a residual."""
        if self.ridge is not None:
            term = rows * np.ldexp(self.ridge, -k)
            np.subtract(product, term, out=product) if is_residual else np.add(product, term, out=product)
        return product

    def _multiplier(self, like):
        """``multiply(v, out)`` by H of vectors like this one, with scratch of its own."""
        return lambda v, out: self.apply(v, out=out)
