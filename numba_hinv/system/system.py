"""A chain of layers as a linear system: its table, derivative blocks and row spaces, products with H, and ||H||.

A shift and a scaling of it is a `shifted.Shifted`. `System` knows neither nets nor factors, and reaches memory and
compiled sweeps through its processor alone.
"""

import math

import numpy as np

from ..kernels.dense import product
from ..kernels.dense.norm import total
from ..kernels.steps.layer_table import BLOCKS
from ..kernels.steps.row_space import RowSpace
from ..kernels.sweeps.linearise import BENDING, Linearisation
from ..layers.layout import Layout
from ..runtime import columns, threads
from ..runtime.chunks import chunks
from ..runtime.probes import random_signs
from . import dense, scaling
from .cpu import CPU
from .matrix import Matrix
from .ridge import pairs_of

# By this power of two a direction is shrunk along which the states would move beyond the largest number.
_SHRINKING = 500
# Blocks with fewer rows and columns than this never reach BLAS (`kernels.dense.product`).
_BLAS_SIZE = 192
_DOUBLE = np.dtype(np.float64)


class System(Matrix):
    """H, as the sweeps see it: the Hessian of a chain's loss, with ``l2`` times the identity.

    Parameters
    ----------
    chain : Chain
    weights : (P + F,) array
        The parameters that the sweeps read, in float64, where the processor has them: the P unknowns, then those of
        frozen layers.
    lin : Linearisation
        The derivative blocks of all layers, likewise.
    l2 : float
        The multiple of the identity that is part of H and not of the blocks.
    gradient : (P,) NumPy array, optional
        Of the loss, L2 term included: a good start for the estimate of the norm.
    layout : Layout, optional
        By default that of the chain, without compiled functions.
    on : processor
        Where the arrays lie and the sweeps run.
    norm : float, optional
        `norm`, where it is known.
    logarithms : (L + 1,) array, optional
        `state_logarithms`, likewise.
    first, ridge
        As `Matrix` has them. H can be eliminated by layers where the ridge is by layer (`ridge.pairs_of`), or the
        layer has at least as many samples as inputs.
    """

    is_of_blocks: bool  # whether all layers are given as derivative blocks, and none is local

    def __init__(
        self, chain, weights, lin, l2=0.0, gradient=None, layout=None, on=CPU, norm=None, logarithms=None,
        first=0, ridge=None,
    ):  # fmt: skip
        super().__init__(_unknowns(chain, weights), l2, gradient, on, norm, first, ridge)
        self.chain, self.weights = chain, weights
        self.lin = lin
        self._logarithms = logarithms
        self._prepare(layout)

    def _prepare(self, layout=None):
        # It follows from the chain and the ridge, so that it is not pickled.
        self.has_layers = True
        if layout is None or self.ridge is not None:
            pairs, by_parameter = (None, None) if self.ridge is None else pairs_of(self.chain, self.ridge)
            layout = Layout(self.chain, self.num_samples, ridge=pairs, by_parameter=by_parameter)
            self.has_layers = not (layout.table["by_parameter"] & (layout.table["r"] < layout.table["d"])).any()
        self.layout, self.table, self.sizes = layout, layout.table, layout.sizes
        self.is_of_blocks = layout.kept(_is_of_blocks)
        self.on.load(_DOUBLE)
        self._spaces = {}
        self._last_scaled = self._last_narrow = (None,)

    def __getstate__(self):
        # The norm and the logarithms stay: factors belong to the scaling that they were made with.
        state = self.__dict__.copy()
        for name in ("layout", "table", "sizes", "_spaces", "_last_scaled", "_last_narrow", "_dense", "_making"):
            del state[name]
        del state["params"]
        state["weights"], state["lin"] = self.on_host()
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.weights, self.lin = self.on.memory.put(self.weights), Linearisation(*map(self.on.memory.put, self.lin))
        self.params = _unknowns(self.chain, self.weights)
        self._begin()
        self._prepare()

    def to_arrays(self):
        """(plain data, named NumPy arrays) of which a file is made."""
        weights, lin = self.on_host()
        header = {
            "chain": {name: values.tolist() for name, values in self.chain._asdict().items()},
            "num_samples": self.num_samples,
            "l2": self.l2,
            "first": self.first,
            "norm": self.norm(),
        }
        arrays = {"params": weights, "logarithms": self.state_logarithms()}
        if self.gradient is not None:
            arrays["gradient"] = self.gradient
        if self.ridge is not None:
            header["apart"], arrays["ridge"] = self.table["apart"].tolist(), self.ridge
        return header, arrays | {f"blocks_{name}": block for name, block in lin._asdict().items()}

    def on_host(self):
        """(weights, Linearisation) as NumPy arrays."""
        return self.on.memory.take(self.weights), Linearisation(*map(self.on.memory.take, self.lin))

    @property
    def num_samples(self):
        """B, the samples that the loss is the mean over."""
        return self.lin.output.shape[0]

    @property
    def num_layers(self):
        """L."""
        return self.table.size

    @property
    def largest_batch(self):
        """Samples of the largest of `parts`."""
        return self.num_samples

    def jobs(self):
        """Functions that each give a pair (weight, `System`) of which this is the sum: itself."""
        yield lambda: (1.0, self)

    def with_bending(self, share):
        """The same with this share of the layers' second derivatives: with 0, the Gauss-Newton matrix. On the CPU."""
        lin = self.lin._replace(**{name: share * getattr(self.lin, name) for name in BENDING})
        options = {"first": self.first, "ridge": self.ridge}
        return System(self.chain, self.weights, lin, self.l2, self.gradient, self.layout, self.on, **options)

    def reaches_blas(self):
        """Whether the elimination has products that are large enough for BLAS."""
        return max(self.sizes.m, self.num_samples * self.sizes.width) >= _BLAS_SIZE

    def solves_reach_blas(self):
        """Whether solves and products have products that are large enough for BLAS."""
        largest = self.layout.kept(_largest_product)
        return largest * columns.largest_block(self.num_params) >= product.BLAS_WORK or largest >= product.GEMV_WORK

    def num_free(self):
        """Parameters that no sample sees: what they have of a pivot is the damping itself."""
        return self.layout.kept(_num_free)

    def free(self):
        """Those of every layer, (L,)."""
        return self.layout.kept(_free)

    # ---- products ---------------------------------------------------------------------------------------------------

    def dense(self, out=None, num_threads=None, check=threads.no_check, progress=False):
        return dense.dense(self, out, num_threads, check, progress)

    def multiply(self, rows, scale=None, shift=0.0, b=None, check=threads.no_check, out=None, squares=None):
        rows = self.on.memory.vectors(rows)
        product = np.empty_like(rows) if out is None else out
        scratch = self.on.products.workspace(self.sizes, rows.shape[0], self.num_samples, rows.dtype)
        params, lin = (self.weights, self.lin) if scale is None else self.scaled(scale)
        # The squares of a residual are asked for where they are cheap.
        squares = None if self.ridge is not None else squares
        self._sweep(params, lin, rows, product, scratch, shift, b, check, squares)
        return self._add_ridge(0 if scale is None else scale.matrix, rows, b is not None, product)

    def with_ridge(self, ridge):
        found = System(
            self.chain, self.weights, self.lin, self.l2, self.gradient, on=self.on, logarithms=self._logarithms,
            first=self.first, ridge=ridge,
        )  # fmt: skip
        if self.has_dense:
            found._dense = self.moved_dense(ridge)
        if np.array_equal(found.table["apart"], self.table["apart"]):
            # The row spaces are the same.
            found._spaces = self._spaces
        return found

    @property
    def ridge_needs_dense(self):
        return not self.has_layers

    def table_at(self, k):
        """The layer table of ``2^-k H``: its ridge is scaled, too."""
        if self.ridge is None or not k:
            return self.table
        table = self.table.copy()
        for name in ("ridge", "ridge_of_bias"):
            table[name] = np.ldexp(table[name], -k)
        return table

    def _sweep(self, params, lin, rows, product, scratch, shift=0.0, b=None, check=threads.no_check, squares=None):
        runs = self._runs(rows.shape[0])
        for start, stop in runs:
            check()
            self.on.products.tangents(self.table, start, stop, params, lin, rows, scratch)
        for start, stop in reversed(runs):
            check()
            self.on.products.adjoints(self.table, start, stop, params, lin, rows, product, scratch, shift, b, squares)

    def output_tangents(self, rows, check=threads.no_check):
        """How the outputs move with the parameters, (k, B, n_L): the Jacobian times rows (k, P) of float64."""
        on, k = self.on, rows.shape[0]
        scratch = on.products.workspace(self.sizes, k, self.num_samples, rows.dtype)
        for start, stop in self._runs(k):
            check()
            on.products.tangents(self.table, start, stop, self.weights, self.lin, on.memory.vectors(rows), scratch)
        return on.products.output_tangents(scratch, (k, *self.lin.output.shape))

    def _runs(self, num_vectors):
        """Layers for one compiled call of a product with so many vectors."""
        return self.layout.kept(_runs_of_product, num_vectors)

    def _multiplier(self, like):
        if self.ridge is not None:
            return super()._multiplier(like)
        scratch = self.on.products.workspace(self.sizes, like.shape[0], self.num_samples, like.dtype)
        return lambda v, out: self._sweep(self.weights, self.lin, v, out, scratch, self.l2)

    # ---- what factorizations read -----------------------------------------------------------------------------------

    def state_logarithms(self):
        """How far the parameters move the states (`scaling.state_logarithms`), (L + 1,); computed once."""
        if self._logarithms is None:
            on, signs = self.on, random_signs(3, self.num_params)
            for shrinking in (0, _SHRINKING):
                # Sums of inputs near the largest number overflow: smaller parameters move the states by less.
                v = on.memory.vectors(np.ldexp(signs, -shrinking) if shrinking else signs)
                scratch = on.products.workspace(self.sizes, 1, self.num_samples, v.dtype)
                for start, stop in self._runs(1):
                    on.products.tangents(self.table, start, stop, self.weights, self.lin, v, scratch)
                tangents = on.memory.take(scratch[0]).ravel()
                logarithms = scaling.state_logarithms(self.layout.kept(_starts_of_states), tangents)
                if math.isfinite(total(logarithms)):
                    break
            else:
                raise np.linalg.LinAlgError("params, X, y: the derivatives of the net's states overflow")
            self._logarithms = logarithms + shrinking
        return self._logarithms

    def scaling(self, damping, dtype):
        """The `Scaling` of ``H + damping I`` for sweeps in ``dtype``."""
        return scaling.choose(self.state_logarithms(), self.table["skip"], self.norm() + abs(damping), dtype)

    def scaled(self, scale):
        """(params, Linearisation) of the scaled problem in float64; the last one made is kept."""
        if scale.matrix == 0 and not scale.states:
            return self.weights, self.lin
        key, *blocks = self._last_scaled
        if key != scale:
            ldexp = self.on.memory.ldexp
            blocks = scaling.scale_blocks(scale, self.table, self.num_samples, self.weights, self.lin, ldexp)
            self._last_scaled = scale, *blocks
        return blocks

    def row_space(self, dtype):
        """`RowSpace` of the layers' inputs in ``dtype``; made once."""
        if dtype not in self._spaces:
            if dtype == np.float64:
                self._spaces[dtype] = self.on.elimination.span(self.layout, self.lin)
            else:
                space = self.row_space(np.dtype(np.float64))
                self._spaces[dtype] = RowSpace(*(self.on.memory.astype(block, dtype) for block in space))
        return self._spaces[dtype]

    def blocks(self, dtype, scale):
        """(params, Linearisation, RowSpace) that the sweeps of a factorization read, in ``dtype``."""
        params, lin = self.scaled(scale)
        if dtype != np.float64:
            key, *blocks = self._last_narrow
            if key != scale:
                astype = self.on.memory.astype
                blocks = astype(params, dtype), Linearisation(*(astype(block, dtype) for block in lin))
                self._last_narrow = scale, *blocks
            params, lin = blocks
        space = self.row_space(dtype)
        if self.table["by_parameter"].any():
            space = space._replace(ridge=np.ldexp(self.ridge, -scale.matrix).astype(dtype))
        return params, lin, space

    def block_bytes(self, dtype, scale):
        """Bytes that `blocks` has to allocate."""
        lin, scalars = self.lin, self.sizes.Q + self.sizes.R
        num_bytes = 0 if np.dtype(np.float64) in self._spaces else 8 * scalars
        if (scale.matrix or scale.states) and self._last_scaled[0] != scale:
            num_bytes += sum(block.nbytes for block in lin) - lin.Z.nbytes - lin.output.nbytes
            num_bytes += self.weights.nbytes if scale.states else 0
        if self.table["by_parameter"].any():
            num_bytes += (8 + dtype.itemsize) * self.num_params
        if dtype != np.float64:
            num_bytes += 0 if dtype in self._spaces else dtype.itemsize * scalars
            if self._last_narrow[0] != scale:
                num_bytes += dtype.itemsize * (self.weights.size + sum(block.size for block in lin))
        return num_bytes


def _is_of_blocks(layout):
    return bool(((layout.table["kind"] == BLOCKS) & (layout.table["taps"] == 0)).all())


def _largest_product(layout):
    """Multiply-adds of the largest product of a solve with one vector."""
    table, B = layout.table, layout.num_samples
    m, N, n_in, n_out = (table[name].astype(float) for name in ("m", "N", "n_in", "n_out"))
    return max((m * np.maximum(m, N)).max(), (n_in * n_out * B).max(), (table["m"] * B * n_out).max())


def _free(layout):
    return layout.table["units"] * (layout.table["d"] - layout.table["r"])


def _num_free(layout):
    return int(layout.kept(_free).sum())


def _runs_of_product(layout, num_vectors):
    p = layout.table["p"]
    flops = 6.0 * num_vectors * layout.num_samples * (p + layout.table["held"])
    return chunks(flops + 16.0 * num_vectors * p)


def _starts_of_states(layout):
    """Where the tangents of each layer's input, and of the output, start among those of all, (L + 1,)."""
    return np.append(layout.table["z"], layout.sizes.z)


def _unknowns(chain, weights):
    """Those of the parameters that the sweeps read which belong to no frozen layer."""
    return weights[: int(chain.p.sum())] if chain.held.any() else weights
