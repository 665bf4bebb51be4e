"""The Hessian of a net's loss as a SciPy linear operator; `Hessian.factorize` gives its inverse."""

import numpy as np
from scipy.sparse.linalg import LinearOperator

from . import memory_budget
from .factorization import Factorization
from .kernels import multiply, row_space
from .kernels.linearise import Linearisation
from .validation import as_right_hand_sides

# Vectors per blocked pass of the sweeps: enough for matrix kernels to run at speed, few enough for their tangents to fit.
BLOCK = 32
_POWER_STEPS = 8


class Hessian(LinearOperator):
    """Hessian H of a net's loss in its parameters, (P, P) and symmetric. Made by `Network.hessian`.

    A `scipy.sparse.linalg.LinearOperator`: ``H @ v`` costs about 6 B P multiply-adds and H is never stored.

    Attributes
    ----------
    loss : float
    gradient : (P,) array
        Of the loss, at the parameters that the Hessian was taken at.
    dtype : numpy.dtype
        That of the parameters. Products are computed in float64 in any case.
    """

    def __init__(self, network, params, lin, loss, gradient):
        super().__init__(gradient.dtype, (params.size, params.size))
        self.network = network
        self.loss = loss
        self.gradient = gradient
        self._params = params
        self._lin = lin
        self._prepare()

    def _prepare(self):
        # The table holds addresses of compiled functions, so that it is made anew in another process.
        self._table, self._sizes = self.network._table(self._lin.output.shape[0], np.float64)
        self._norm = None
        self._views = {}

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in ("_table", "_sizes", "_norm", "_views"):
            del state[name]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._prepare()

    def __repr__(self):
        return f"<Hessian of {self.network!r}, B = {self.num_samples}, {self.dtype}>"

    @property
    def num_samples(self):
        """B, the samples that the loss is the mean over."""
        return self._lin.output.shape[0]

    def factorize(self, damping, factor_dtype=None):
        """Factorize ``H + damping I`` (design, section 3).

        Parameters
        ----------
        damping : float
            Any real; negative is a shift. 0 works where H is nonsingular.
        factor_dtype : float64 or float32, optional
            Precision of the factors, by default that of the parameters. Solves are refined in float64 all the same.

        Returns
        -------
        Factorization

        Raises
        ------
        numpy.linalg.LinAlgError
            ``H + damping I`` is singular to working precision; the layer is named.
        MemoryError
            The factors would not fit; nothing has been allocated.
        ValueError, TypeError
            ``damping`` is not a finite real number.

        Notes
        -----
        Per layer, with m = n_out min(B, d) and N = B n_in: m^3/3 + m^2 N + m N^2 flops and m^2/2 + m N numbers kept.
        """
        return Factorization(self, damping, factor_dtype)

    def todense(self):
        """H as a (P, P) array, by P products."""
        P = self.shape[0]
        memory_budget.require(8 * P * P, f"the dense Hessian of P = {P} parameters")
        dense = np.empty((P, P), np.float64)
        for start in range(0, P, BLOCK):
            rows = np.zeros((min(BLOCK, P - start), P))
            rows[np.arange(rows.shape[0]), start + np.arange(rows.shape[0])] = 1.0
            dense[start : start + BLOCK] = self._multiply(rows)
        dense += dense.T.copy()
        dense *= 0.5
        return dense.astype(self.dtype, copy=False)

    def norm(self):
        """Estimate of the 2-norm of H from below, by power steps from a fixed start; computed once."""
        if self._norm is None:
            v = np.random.default_rng(0).standard_normal((1, self.shape[0]))
            length = np.linalg.norm(v)
            for _ in range(_POWER_STEPS):
                v = self._multiply(v / length)
                length = np.linalg.norm(v)
                if length == 0.0 or not np.isfinite(length):
                    break
            self._norm = float(length)
        return self._norm

    def _matvec(self, v):
        return self._matmat(v.reshape(-1, 1)).reshape(v.shape)

    def _matmat(self, V):
        rows, dtype = as_right_hand_sides("v", V, self.shape[0], self.dtype)
        product = np.empty_like(rows)
        for start in range(0, rows.shape[0], BLOCK):
            product[start : start + BLOCK] = self._multiply(rows[start : start + BLOCK])
        return product.T.astype(dtype, order="C", copy=False)

    def _adjoint(self):
        return self

    _transpose = _adjoint

    def _multiply(self, rows):
        """rows H in float64, rows (k, P)."""
        product = np.empty_like(rows)
        scratch = multiply.workspace(self._sizes, rows.shape[0], self.num_samples, rows.dtype)
        multiply.multiply_hessian(self._table, self._params, self._lin, rows, product, *scratch)
        return product

    def _blocks(self, dtype):
        """(params, Linearisation, RowSpace) that the elimination reads, in ``dtype``; made once."""
        if dtype not in self._views:
            if dtype == np.float64:
                space = row_space.RowSpace(np.empty(self._sizes.Q), np.empty(self._sizes.R))
                scratch = row_space.workspace(self._sizes, self.num_samples, np.dtype(np.float64))
                row_space.span(self._table, self._lin, space, scratch)
                self._views[dtype] = self._params, self._lin, space
            else:
                params, lin, space = self._blocks(np.dtype(np.float64))
                self._views[dtype] = (
                    params.astype(dtype),
                    Linearisation(*(block.astype(dtype) for block in lin)),
                    row_space.RowSpace(*(block.astype(dtype) for block in space)),
                )
        return self._views[dtype]
