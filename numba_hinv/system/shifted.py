"""``2^-k (H + damping I)``: the matrix that is eliminated, and multiplied with when solutions are refined."""

import numpy as np

from ..runtime import threads
from .scaling import by_power


class Shifted:
    """A `System` with a damping, scaled by powers of two for sweeps in ``dtype``. Immutable.

    Everything about it, products, norms and the damping ``eps``, is about ``2^-k (H + damping I)``.

    Parameters
    ----------
    system : System
    damping : float
    dtype : numpy.dtype
        Of the factors; products are in float64.
    scale : Scaling, optional
        By default the one that the system chooses for this damping.
    blocks : tuple, optional
        Those of `System.blocks`, where they are at hand.
    eps : float, optional
        In place of what damping and L2 term say, for a matrix close to that one.
    is_dense : bool
        Whether it is multiplied with as one dense matrix, which the system keeps.
    norm : float, optional
        Of all of H, where the system has a part of its layers; by default that of the system.

    Attributes
    ----------
    eps : float
        The multiple of the identity that the blocks lack: of damping and L2 term, scaled.
    hessian_norm, norm : float
        Estimates of ``2^-k ||H||`` and of an upper bound of ``2^-k ||H + damping I||``.
    """

    def __init__(self, system, damping, dtype, scale=None, blocks=None, eps=None, is_dense=False, norm=None):
        self.system = system
        self.damping = damping
        self.dtype = dtype
        self.scale = system.scaling(damping, dtype) if scale is None else scale
        k = self.scale.matrix
        self.eps = by_power(damping + system.l2, -k) if eps is None else eps
        self.hessian_norm = by_power(system.norm() if norm is None else norm, -k)
        self.norm = self.hessian_norm + by_power(abs(damping), -k)
        self._blocks, self._table = blocks, None
        self._is_dense = is_dense

    def __getstate__(self):
        return {**self.__dict__, "_blocks": None, "_table": None}

    def to_arrays(self):
        """(plain data, named NumPy arrays) of which a file is made, beside those of the system."""
        return {"factor_dtype": str(self.dtype), "damping": self.damping, **self.scale.to_header()}, {}

    @property
    def table(self):
        """The layer table that the sweeps read, its ridge scaled as this matrix is."""
        if self._table is None:
            self._table = self.system.table_at(self.scale.matrix)
        return self._table

    def dampings(self, shift):
        """What is on the diagonal of every layer for its weights, in place of ``eps`` one that is ``shift``, (L,)."""
        return shift + self.table["ridge"]

    def smallest_damping(self, shift):
        """The smallest number but 0 on the diagonal, without its sign, in place of ``eps`` one that is ``shift``."""
        sizes = np.abs(self.dampings(shift))
        if self.table["by_parameter"].any():
            sizes = np.abs(shift + np.ldexp(self.system.ridge, -self.scale.matrix))
        return float(sizes[sizes > 0.0].min(initial=np.inf))

    @property
    def size(self):
        """P."""
        return self.system.num_params

    def nearby(self, distance):
        """This plus ``distance`` times the identity, scaled alike."""
        return Shifted(
            self.system, self.damping, self.dtype, self.scale, self._blocks, self.eps + distance, self._is_dense
        )

    def as_dense(self):
        """The same matrix, multiplied with in the way that costs less where H is kept as one dense matrix."""
        is_dense = self.system.is_dense_cheaper
        return Shifted(self.system, self.damping, self.dtype, self.scale, self._blocks, self.eps, is_dense)

    @property
    def has_blocks(self):
        """Whether `blocks` are made already."""
        return self._blocks is not None

    def blocks(self):
        """(params, Linearisation, RowSpace), scaled and in ``dtype``: what the sweeps read."""
        if self._blocks is None:
            self._blocks = self.system.blocks(self.dtype, self.scale)
        return self._blocks

    def multiply(self, rows, check=threads.no_check, b=None, offset=0.0, out=None, squares=None):
        """rows times ``2^-k (H + damping I) + offset I``; b minus that where b is given."""
        if self._is_dense:
            return self.system.multiply_dense(rows, self.scale.matrix, self.eps + offset, check, b, out)
        return self.system.multiply(rows, self.scale, self.eps + offset, b, check, out, squares)
