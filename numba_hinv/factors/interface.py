"""The interface of all ways of factoring: what the rest of the library may ask of factors, and nothing else.

A new way is a class with the methods that are abstract here, in a file of its own; `choice` says when it is taken.
"""

import abc

import numpy as np

from ..runtime import threads
from ..system.scaling import row_exponents

# What may be done where the inverse's diagonal, or a block of it, would not fit.
LESS_OF_INVERSE = "take F.blocks of smaller layers, or F.solve with some unit vectors at a time"


class Factors(abc.ABC):
    """The factors of a `Shifted` matrix, which they know as ``matrix``.

    Attributes
    ----------
    matrix : Shifted
    method : str
        "layers" or "dense", as `choice.chosen` has it.
    is_altered : bool
        Whether another damping than the matrix's was eliminated with, so that these are the factors of another matrix.
    num_negative, num_perturbed : int
        Pivots that are negative, and pivots that were perturbed.
    nbytes : int
        Bytes that are kept.
    has_fallback : bool
        Whether `choice.again` gives other factors of this matrix, slower and more certain, which are to be asked where
        these do not certify something, and for all that is not among the abstract methods.
    solves_at_once : bool
        Whether solves with blocks of columns may run at the same time.
    lifts : bool
        Whether there are sweeps over the lifted system: `residuals` and `trajectory`.
    """

    has_fallback = False
    solves_at_once = True
    lifts = False

    is_altered = False
    num_perturbed = 0

    @property
    @abc.abstractmethod
    def method(self):
        """Its name among `choice.METHODS`."""

    @property
    @abc.abstractmethod
    def num_negative(self):
        """How many pivots are negative."""

    @property
    @abc.abstractmethod
    def nbytes(self):
        """Bytes that are kept."""

    @abc.abstractmethod
    def sweep(self, b, x, check):
        """x <- the inverse of the factors' matrix times b, both rows (k, P) in the precision of the factors."""

    @abc.abstractmethod
    def log_pivots(self):
        """The logarithm of the magnitude of the determinant of ``H + damping I`` itself, unscaled, from the pivots."""

    @abc.abstractmethod
    def rounding_of_pivots(self):
        """Bound of the pivots' relative rounding errors; infinity where none is known, or they are not the matrix's."""

    @abc.abstractmethod
    def has_tiny_pivots(self, threshold):
        """Whether a pivot is below the square of the threshold times another one."""

    @abc.abstractmethod
    def layer_of_smallest_pivot(self):
        """The index of the layer."""

    def prepare(self):
        """Make what solves on several threads share, before there are threads."""

    def substitute(self, rows, check=threads.no_check, out=None):
        """rows (k, P) of float64 times the factors' inverse, in float64; in ``out`` where that can be."""
        on, dtype = self.matrix.system.on, self.matrix.dtype
        narrow = dtype != np.float64
        b = rows = on.memory.vectors(rows)
        if narrow:
            exponents = row_exponents(rows)[:, None]
            b = np.ldexp(rows, -exponents, out=on.memory.empty_vectors(rows.shape, dtype), casting="same_kind")
        x = np.empty_like(b) if narrow or out is None else out
        self.sweep(b, x, check)
        if narrow:
            x = x.astype(np.float64)
            np.ldexp(x, exponents, out=x)
        return x

    # ---- where factors lift -----------------------------------------------------------------------------------------

    def has_pivots_below(self, size):
        """Whether a pivot's magnitude is below ``size``."""
        raise NotImplementedError(f"{type(self).__name__} does not lift")

    def residuals(self, b, x, z, offset=0.0, check=threads.no_check):
        """(y, backward errors) of points with parameters x (k, P) and states z, for right-hand sides b (k, P).

        y (k, P) is ``F^-1`` times the residual, F being the factor of ``F diag(sigma) F^T``, the factors' matrix, to
        which ``offset`` times the identity is added.
        """
        raise NotImplementedError(f"{type(self).__name__} does not lift")

    def trajectory(self, y, check=threads.no_check):
        """(x, z): parameters ``F^-T sigma y`` (k, P), and the states that they lead to."""
        raise NotImplementedError(f"{type(self).__name__} does not lift")

    # ---- what ways with a fallback may leave to it ------------------------------------------------------------------

    def square_root(self, rows, check=threads.no_check):
        """rows (k, P) times S^T, where S S^T is the inverse of the matrix, all pivots being positive."""
        raise NotImplementedError(f"{type(self).__name__} has no square root")

    def covariance_workspace(self, layer, num_kept, purpose):
        """Scratch of `diagonal` (layer None) or `block`; ``MemoryError`` where it and so many numbers would not fit."""
        raise NotImplementedError(f"{type(self).__name__} has no covariances")

    def diagonal(self, noise, work, tick):
        """The diagonal of the inverse, (P,).

        Rounding is imitated by relative changes of ``noise``, where the way has steps that it could enter; ``work`` is
        what `covariance_workspace` gave, and ``tick(n)`` is to be called once n layers are done.
        """
        raise NotImplementedError(f"{type(self).__name__} has no covariances")

    def block(self, layer, work, tick):
        """The block of the inverse for one layer's parameters, (p, p)."""
        raise NotImplementedError(f"{type(self).__name__} has no covariances")

    def outputs(self, tick=None):
        """The covariance of the chain's last state, (N, N), by a recursion; None of a way that does not visit states.

        ``tick(n)`` is to be called once n layers are done.
        """
        return None

    def to_arrays(self):
        """(plain data, named NumPy arrays), from which `choice.from_arrays` makes the factors again."""
        raise NotImplementedError(f"{type(self).__name__} is not saved")
