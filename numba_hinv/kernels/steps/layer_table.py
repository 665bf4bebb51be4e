"""The layer table: sizes of every layer and where its blocks lie in the packed buffers.

One record a layer, read by all the sweeps. A new kind of block gets its offset here, in `layer_table`, and nowhere
else. Sizes use the letters of docs/theory.md: B samples, n_in inputs, n_out outputs, p parameters, m (the pivot),
N = B n_in (the front that the layer hands down). A convolution is a dense layer of ``units`` outputs on the rows of its
patches, one a sample and position; a dense layer has one position, and n_out units. With d columns of ``Zt = [Z, 1]``,
Z being those rows, r = min(rows, d) and m = units r. Layers given as blocks are eliminated with all their parameters,
m = p, and have d = r = 0. Some of them are local (`local`): a row of their Dz has ``taps`` entries, and is kept so. The
parameters of a frozen layer are no unknowns: p = m = d = r = 0, whatever its kind. They lie behind those of all layers
that are not frozen in the vector that the sweeps read.
"""

import inspect
from typing import NamedTuple

import numpy as np
from numba.extending import overload

from ..dense.signed_cholesky import pack_size
from .root_front import root_size, root_work_size

# Kinds of layers: the structured ones of docs/theory.md, section 3, dense and convolution, and those of section 7, of
# which the sweeps know nothing but their derivative blocks.
DENSE, BLOCKS, CONVOLUTION = 0, 1, 2
# What a local layer does: `local` has the formulas. NO_OPERATION is what all other layers have.
NO_OPERATION, AVERAGE, AVERAGE_INSIDE, MAXIMUM, NORMALISATION, ACTIVATION = 0, 1, 2, 3, 4, 5
# One axis along which a kernel does not move, in the order of `GEOMETRY`, and the last twelve fields of `Chain` where
# a layer is neither a convolution nor local.
ONE_PLACE = 1, 1, 1, 0, 1
ONE_POSITION = *ONE_PLACE, *ONE_PLACE, NO_OPERATION, 0
# A front of more numbers than LARGE_FRONT is taken through a layer in parts of about FRONT_PART, some samples' columns
# each, which stay in a second-level cache with what is formed from them. Time of the elimination so, over that of whole
# fronts, one BLAS thread: (width, B) = (24, 64): 0.90, (8, 64): 0.83, (64, 16) and (256, 4): 1.00.
LARGE_FRONT, FRONT_PART = 2**18 - 1, 2**17
# The most parameters and incoming states of a layer whose front may be kept as a Cholesky factor. Time of `eliminate`
# without these factors over that with them, for n states and n parameters, one thread, float64 / float32: n = 4: 1.59 /
# 1.95, 8: 1.34 / 1.63, 16: 1.17 / 1.20, 32: 1.17 / 1.25, 64: 1.22 / 1.40, 128: 1.19 / 1.22, 256: 1.27 / 1.19, 500:
# 1.39 / 1.19.
ROOT_COLUMNS = 1024
# The axis along which neighbours lie side by side, then the one across, which a 1-d convolution has one place on.
GEOMETRY = (
    "length", "kernel", "stride", "padding", "dilation",
    "height", "kernel_height", "vertical_stride", "vertical_padding", "vertical_dilation",
)  # fmt: skip
# Fields that only tables with convolutions or local layers have.
_FOR_CONVOLUTIONS = *GEOMETRY, "operation", "out_length", "out_height"

LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            "kind",
            "n_in",
            "n_out",
            "bias",
            "skip",
            "function",  # address of the compiled activation of a structured layer, of a custom layer's value, of the
            # activation or the numbers (float64) of a local one
            "jacobian",  # of a custom layer's first derivatives
            "curvature",  # of a custom layer's second derivatives; 0 where it is not compiled
            "length",  # of the rows of a channel of the input, as the four that follow of convolutions and pooling
            "kernel",
            "stride",
            "padding",
            "dilation",
            "height",  # rows of a channel, and the same from row to row
            "kernel_height",
            "vertical_stride",
            "vertical_padding",
            "vertical_dilation",
            "operation",  # of a local layer
            "taps",  # entries of a row of its Dz; 0 of all other layers
            "out_length",  # positions along a row, of convolutions and pooling
            "out_height",  # and rows of them
            "positions",
            "units",
            "fan_in",  # columns of W, d without the bias
            "rows",  # B times the positions
            "p",
            "d",
            "r",
            "m",
            "N",
            "at_once",  # samples whose columns of P an inner dense layer takes through all steps before the next ones
            "held",  # parameters of a frozen layer, else 0
            "parameters",  # of W, then c, in a flat vector of unknowns
            "weights",  # the same where parameters are read, behind the unknowns if the layer is frozen
            "z",  # of a B x n_in block among those of all layers
            "u",  # of a B x n_out block of a structured layer
            "Dx",  # of the B n_out x p block of a layer given as blocks
            "Dz",  # of its B blocks n_out x n_in; of a local one, n_out x taps entries a sample, then all their columns
            "Dxx",  # of its p x p block
            "Dzx",  # of its p x B n_in block
            "Dzz",  # of its B blocks n_in x n_in; of a local one, of their diagonals
            "Q",  # of the r x fan_in block, then the r bias entries
            "R",  # of the r x rows block
            "L",  # of the packed triangular factor of the pivot
            "pivots",  # of its 2 m integers
            "scales",  # of its m x 2 scales
            "Y",  # of the m x N coupling
            "apart",  # whether the bias has a row of R of its own, although there are fewer rows than d
            "by_parameter",  # whether each parameter has a ridge of its own: there are as many rows as d then
            "rooted",  # whether the layer can be eliminated with its front as a Cholesky factor: `root_front`
        )
    ]
    + [
        ("ridge", np.float64),  # what the diagonal has beside the damping: for W,
        ("ridge_of_bias", np.float64),  # and for c beside that
    ],
    align=True,
)
# Of chains without convolutions and local layers. Another type to Numba: `for_convolutions`.
PLAIN_LAYER = np.dtype([(name, LAYER[name]) for name in LAYER.names if name not in _FOR_CONVOLUTIONS], align=True)


def for_convolutions(kernel):
    """Decorator: a kernel, with a layer for its first argument, for tables with convolutions or local layers alone.

    Sweeps over other tables compile without it, and so in much less time; it does nothing there.
    """
    arguments = ", ".join(inspect.signature(kernel).parameters)
    name = kernel.__name__
    namespace = {"kernel": kernel, "geometry": GEOMETRY[0]}
    exec(
        f"def {name}({arguments}):\n    raise NotImplementedError('for compiled code')\n"
        f"def no_{name}({arguments}):\n    pass\n"
        f"def choose({arguments}):\n    return kernel if geometry in layer.fields else no_{name}\n",
        namespace,
    )
    namespace[name].__doc__, namespace[name].__module__ = kernel.__doc__, kernel.__module__
    overload(namespace[name], jit_options={"nogil": True, "error_model": "numpy"})(namespace["choose"])
    return namespace[name]


class Sizes(NamedTuple):
    """Lengths of the packed buffers, in scalars, and of the largest blocks of any layer."""

    parameters: int
    z: int
    u: int
    Dx: int
    Dz: int
    Dxx: int
    Dzx: int
    Dzz: int
    Q: int
    R: int
    L: int
    pivots: int
    scales: int
    Y: int
    outputs: int  # n_out of the last layer
    width: int  # largest n_in or n_out
    r: int
    m: int
    patches: int  # those of one sample, or a local layer's scratch
    reflectors: int  # rows x (d + 1), where Q is not the identity
    front: int  # largest front
    mixed: int  # largest scratch of the elimination of a layer
    mixed_whole: int  # the same where E is formed whole, as on the GPU
    root: int  # largest factor of a front that is kept as one, and scratch of the step that makes it
    root_work: int


class Chain(NamedTuple):
    """What the sweeps must know of a chain's layers beside the batch: (L,) int64 arrays."""

    kind: np.ndarray  # DENSE, BLOCKS or CONVOLUTION
    n_in: np.ndarray
    n_out: np.ndarray
    p: np.ndarray  # parameters that are unknowns
    bias: np.ndarray  # 0 or 1, as skip; both 0 for BLOCKS
    skip: np.ndarray
    held: np.ndarray  # parameters of a frozen layer, else 0
    length: np.ndarray  # of a channel's rows; this and the next are `ONE_POSITION` but for convolutions, local layers
    kernel: np.ndarray
    stride: np.ndarray
    padding: np.ndarray
    dilation: np.ndarray
    height: np.ndarray  # rows of a channel
    kernel_height: np.ndarray
    vertical_stride: np.ndarray
    vertical_padding: np.ndarray
    vertical_dilation: np.ndarray
    operation: np.ndarray
    taps: np.ndarray

    def out_shape(self):
        """(positions along a row, rows of them) at which each layer's kernel is applied, two (L,) arrays."""
        return (
            places(self.length, self.kernel, self.stride, self.padding, self.dilation),
            places(
                self.height, self.kernel_height, self.vertical_stride, self.vertical_padding, self.vertical_dilation
            ),
        )

    def positions(self):
        """Where each layer's weights are applied, (L,): once but for convolutions."""
        out_length, out_height = self.out_shape()
        return np.where(self.kind == CONVOLUTION, out_length * out_height, 1)

    def fan_in(self):
        """Numbers that each unit of a structured layer reads at a position, (L,)."""
        return self.n_in // (self.length * self.height) * self.kernel * self.kernel_height


def places(length, kernel, stride, padding, dilation):
    """At how many places along an axis a kernel fits into its padded input: at least 1 if it does."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def layer_table(chain, num_samples, addresses=(0, 0, 0), ridge=None, by_parameter=None):
    """The table of a chain for a batch of ``num_samples``, and the `Sizes` of the buffers it points into.

    Parameters
    ----------
    chain : Chain
    num_samples : int
        B.
    addresses : (3, L) int64 array, optional
        Of the compiled functions of each layer: function, jacobian and curvature. Only linearising needs them.
    ridge : (L, 2) array, optional
        What the diagonal of H has beside any damping, for W and for c of every structured layer; by default 0.
    by_parameter : (L,) array of bool, optional
        Layers for which a vector says that instead (`RowSpace.ridge`), a number a parameter; by default none.
    """
    B, L = num_samples, chain.n_in.size
    n_in, n_out, p = chain.n_in, chain.n_out, chain.p
    is_structured, is_convolution = chain.kind != BLOCKS, chain.kind == CONVOLUTION
    is_local = chain.taps > 0
    table = np.zeros(L, LAYER if (is_convolution | is_local).any() else PLAIN_LAYER)
    positions, (out_length, out_height) = chain.positions(), chain.out_shape()
    units, fan_in, rows = n_out // positions, chain.fan_in(), B * positions
    d = np.where(is_structured & (chain.held == 0), fan_in + chain.bias, 0)
    ridge = np.zeros((L, 2)) if ridge is None else ridge
    # A bias with a damping of its own stays out of the row space, whose complement has that of the weights.
    apart = (ridge[:, 0] != ridge[:, 1]) & (chain.bias == 1) & (rows < d)
    r = np.where(apart, np.minimum(rows, fan_in) + 1, np.minimum(rows, d))
    m = np.where(is_structured, units * r, p)
    # The first layer hands no front down: nothing comes before it.
    N = B * n_in
    N[0] = 0
    front = B * B * n_out * np.maximum(n_in, n_out)
    parts = np.where(front > LARGE_FRONT, np.minimum(B, front // FRONT_PART), 1)
    functions = zip(("function", "jacobian", "curvature"), addresses)
    shapes = {"positions": positions, "units": units, "fan_in": fan_in, "rows": rows, "d": d, "r": r, "m": m, "N": N}
    shapes |= {"at_once": (B + parts - 1) // parts, "out_length": out_length, "out_height": out_height}
    for name, value in (*chain._asdict().items(), *functions, *shapes.items()):
        if name in table.dtype.names:
            table[name] = value
    distinct, which = np.unique(m, return_inverse=True)
    packed = np.array([pack_size(int(size)) for size in distinct])[which]
    buffers = {
        "parameters": p,
        "z": B * n_in,
        "u": np.where(is_structured, B * n_out, 0),
        "Dx": np.where(is_structured, 0, B * n_out * p),
        "Dz": np.where(is_structured, 0, B * n_out * np.where(is_local, 2 * chain.taps, n_in)),
        "Dxx": np.where(is_structured, 0, p * p),
        "Dzx": np.where(is_structured, 0, p * B * n_in),
        "Dzz": np.where(is_structured, 0, B * n_in * np.where(is_local, 1, n_in)),
        # With as many rows as d, Q is the identity and is not stored.
        "Q": np.where(r < d, r * d, 0),
        "R": r * rows,
        "L": packed,
        "pivots": 2 * m,
        "scales": 2 * m,
        "Y": m * N,
    }
    totals = {}
    for name, sizes in buffers.items():
        ends = np.cumsum(sizes)
        table[name] = ends - sizes
        totals[name] = int(ends[-1])
    table["apart"], table["ridge"] = apart, ridge[:, 0]
    table["by_parameter"] = False if by_parameter is None else by_parameter
    table["rooted"] = (
        (B == 1) & (chain.kind == BLOCKS) & ~is_local & (m > 0) & (np.maximum(n_out, m + N) <= ROOT_COLUMNS)
    ) & ~table["by_parameter"].astype(bool)
    table["ridge_of_bias"] = (ridge[:, 1] - ridge[:, 0]) * chain.bias
    table["weights"] = np.where(chain.held > 0, p.sum() + np.cumsum(chain.held) - chain.held, table["parameters"])
    maxima = {name: int(values.max()) for name, values in block_sizes(table, B).items()}
    return table, Sizes(**totals, outputs=int(n_out[-1]), **maxima)


def block_sizes(table, num_samples):
    """What `Sizes` has the maxima of, for each layer of a chain's table: {name: (L,) array}."""
    B, is_structured, is_convolution = num_samples, table["kind"] != BLOCKS, table["kind"] == CONVOLUTION
    names = "n_in", "n_out", "p", "r", "m", "N", "d", "rows", "fan_in", "positions", "units"
    n_in, n_out, p, r, m, N, d, rows, fan_in, positions, units = (table[name] for name in names)
    P_columns, E_columns, from_pivot = B * n_out, N.copy(), m * B * n_out
    if table["kind"][-1] == DENSE:
        # The loss's own curvature is block diagonal over the samples and is kept so.
        P_columns[-1], E_columns[-1] = n_out[-1], n_in[-1] if table.size > 1 else 0
        from_pivot[-1] = r[-1] * (B + n_out[-1] ** 2)
    front = np.maximum(B * n_out * P_columns, N * N)
    beside_E = np.where(is_convolution, fan_in * np.maximum(positions, units), 0)
    whole = np.maximum.reduce([m * N, B * n_out * E_columns + beside_E, from_pivot, fan_in**2 + positions**2])
    whole = np.where(is_structured, whole, np.maximum(B * n_out * (p + N), m * N))
    # A dense layer's (R (x) I) V, beside V and E of some samples' columns; the last one's E is that of one sample.
    at_once, in_parts = table["at_once"], np.where(N > 0, n_out * n_in, 0)
    if B > 1:
        columns = at_once * (np.where(N > 0, n_in, 0) + np.where(at_once < B, n_out, 0))
        in_parts = B * n_out * (m + columns)
    in_parts[-1] = max(n_out[-1] * n_in[-1], from_pivot[-1])
    in_parts = np.maximum.reduce([in_parts, m * N, np.where((r < d) & (N > 0), n_in**2, 0)])
    rooted = table["rooted"] > 0
    return {
        "width": np.maximum(n_in, n_out),
        "r": r,
        "m": m,
        "patches": np.where(is_convolution, fan_in * positions, 2 * n_out * (table["taps"] + (table["taps"] > 0))),
        "reflectors": np.where(r < d, rows * (d + 1), 0),
        "front": front,
        "mixed": np.where(table["kind"] == DENSE, in_parts, whole),
        "mixed_whole": whole,
        "root": np.where(rooted, root_size(np.maximum(n_in, n_out)), 0),
        "root_work": np.where(rooted, np.maximum(root_work_size(n_out, m, N), root_work_size(n_out, n_out, 0)), 0),
    }
