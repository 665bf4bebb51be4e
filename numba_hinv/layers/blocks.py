"""A layer given as its derivative blocks: the public `LayerBlocks`, and how they lie in the sweeps' packed buffers.

With the layer ``z' = f(z; x)``, a = len(z'), a_in = len(z) and p = len(x), the blocks are those of arXiv:2601.06096.
Packing checks all layers at once, since there may be a hundred thousand.
"""

import functools

import numpy as np
from numpy.typing import ArrayLike

from ..kernels.dense.norm import copy_with_total
from ..kernels.dense.symmetric import symmetric_means
from ..kernels.plumbing.memory import together
from ..kernels.steps.layer_table import BLOCKS, CONVOLUTION, DENSE, GEOMETRY, ONE_POSITION, Chain
from ..kernels.sweeps.linearise import Linearisation
from ..runtime import tensors
from ..runtime.annotations import Array
from ..runtime.validation import DTYPES, as_array, as_layer, as_numbers, common_dtype
from .layout import Layout
from .window import Axis

# Entries of symmetric blocks may differ by this times the largest entry of the block: what rounding in forming them
# leaves, with digits to spare. They are replaced by their mean.
ASYMMETRY = {DTYPES[0]: 1e-10, DTYPES[1]: 1e-4}
# Layouts of chains of so many layers are kept. Of longer ones they are large, and take a small part of the time of the
# copies.
_FEW_LAYERS = 4096


class LayerBlocks:
    """First and second derivatives of one layer ``z' = f(z; x)``.

    The second derivatives are those of ``g^T f``, where g = dLoss/dz'. The layer has a states, p parameters and a_in
    incoming states: a is at least 1, p = 0 means a layer without parameters, and a_in = 0 one without incoming states.
    Arrays in float64 or float32 are kept as they are given, neither copied nor changed; `Hessian.from_blocks` checks
    their values.

    Parameters
    ----------
    Dx : (a, p) array
        The derivatives of f with respect to x.
    Dz : (a, a_in) array
        The derivatives of f with respect to z.
    Dxx : (p, p) symmetric array
        The second derivatives of ``g^T f`` with respect to x.
    Dzx : (p, a_in) array
        The mixed second derivatives, with rows for x and columns for z.
    Dzz : (a_in, a_in) symmetric array
        The second derivatives with respect to z.

    Attributes
    ----------
    Dx, Dz, Dxx, Dzx, Dzz : array
        The derivatives that were given.

    Raises
    ------
    TypeError, ValueError
        A block is not an array of real numbers, or the shapes do not fit together.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> step = nh.LayerBlocks(np.ones((2, 1)), np.eye(2), np.eye(1), np.zeros((1, 2)), np.eye(2))
    >>> nh.Hessian.from_blocks([step] * 50, np.eye(2)).factorize(0.0).inertia.positive
    50
    """

    Dx: Array
    Dz: Array
    Dxx: Array
    Dzx: Array
    Dzz: Array

    __slots__ = ("Dx", "Dz", "Dxx", "Dzx", "Dzz")

    def __init__(self, Dx: ArrayLike, Dz: ArrayLike, Dxx: ArrayLike, Dzx: ArrayLike, Dzz: ArrayLike) -> None:
        for name, block in zip(self.__slots__, (Dx, Dz, Dxx, Dzx, Dzz)):
            block = as_numbers(name, block)
            if block.ndim != 2:
                raise ValueError(f"{name}: expected a matrix, got shape {block.shape}")
            setattr(self, name, block)
        a, p = self.Dx.shape
        a_in = self.Dz.shape[1]
        if a == 0:
            raise ValueError(f"Dx: expected at least one row, that is one state, got shape {self.Dx.shape}")
        for name, shape in (("Dz", (a, a_in)), ("Dxx", (p, p)), ("Dzx", (p, a_in)), ("Dzz", (a_in, a_in))):
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"{name}: expected shape {shape}, where Dx is {self.Dx.shape} and Dz is {self.Dz.shape}, "
                    f"got {getattr(self, name).shape}"
                )

    @property
    def num_params(self) -> int:
        """Number of parameters p."""
        return self.Dx.shape[1]

    def __repr__(self) -> str:
        (a, p), a_in = self.Dx.shape, self.Dz.shape[1]
        return f"LayerBlocks(a={a}, p={p}, a_in={a_in})"


def pack(blocks, terminal, arrays=None):
    """``(Layout, Linearisation, dtype)`` for a batch of 1, in float64.

    blocks : sequence of `LayerBlocks`, or None with
    arrays : {name of a block: those of all layers}, each an array with the layers along its first axis or a sequence.
    """
    if arrays is None:
        given, n_out, p, n_in = _of_layers(as_blocks(blocks))
    else:
        stacks = _stacks(arrays)
        given, n_out, p, n_in = _of_layers(_separate(arrays)) if stacks is None else stacks
    layout = (_kept_layout if n_out.size <= _FEW_LAYERS else _layout)(*(size.tobytes() for size in (n_out, p, n_in)))
    (_, n_in, n_out, p, *_), sizes = layout.chain, layout.sizes
    if sizes.parameters == 0:
        raise ValueError("blocks: expected at least one parameter, got p = 0 in all layers")
    shape = sizes.outputs, sizes.outputs
    dtypes = {common_dtype(block) for block in given.values() if isinstance(block, np.ndarray)}
    dtypes |= {common_dtype(block) for layers in given.values() if isinstance(layers, list) for block in layers}
    if terminal is not None:
        terminal = as_array("terminal", terminal, shape, meaning=" (the states of the last layer)")
        dtypes.add(terminal.dtype)
    dtype = DTYPES[0] if DTYPES[0] in dtypes else DTYPES[1]
    names = LayerBlocks.__slots__
    *room, last = together([*(getattr(sizes, name) for name in names), sizes.outputs**2], np.float64)
    packed = dict(zip(names, room))
    for name in ("Dx", "Dz", "Dzx"):
        _copy(name, given[name], packed[name])
    for name, sides in (("Dxx", p), ("Dzz", n_in)):
        _symmetrise(name, given[name], sides, dtype, packed[name])
    if terminal is None:
        last.fill(0.0)
    else:
        _symmetrise("terminal", terminal[None], n_out[-1:], dtype, last)
    nothing = np.empty(0)
    lin = Linearisation(
        Z=np.zeros(sizes.z),
        S=nothing,
        D=nothing,
        lam=nothing,
        **packed,
        output=np.zeros((1, shape[0])),
        curvature=last.reshape(1, *shape),
    )
    return layout, lin, dtype


def _layout(*sizes):
    """`Layout` of a chain of blocks, from the bytes of n_out, p and n_in, for a batch of 1."""
    n_out, p, n_in = (np.frombuffer(size, np.int64).copy() for size in sizes)
    none = np.zeros_like(p)
    one_position = [none + value for value in ONE_POSITION]
    return Layout(Chain(none + BLOCKS, n_in, n_out, p, none, none, none, *one_position), 1)


_kept_layout = functools.lru_cache(maxsize=16)(_layout)


def as_blocks(blocks):
    """A list of `LayerBlocks` that meet."""
    try:
        blocks = list(blocks)
    except TypeError:
        raise TypeError(f"blocks: expected a sequence of LayerBlocks, got {type(blocks).__name__}") from None
    if not blocks:
        raise ValueError("blocks: expected at least one layer, got none")
    for l, block in enumerate(blocks):
        if not isinstance(block, LayerBlocks):
            raise TypeError(f"blocks: expected LayerBlocks, got {type(block).__name__} at index {l}")
    return blocks


def _of_layers(blocks):
    """({name: list of arrays}, n_out, p, n_in) of layers that meet."""
    n_out, p, n_in = np.array([(*block.Dx.shape, block.Dz.shape[1]) for block in blocks], np.int64).T.copy()
    apart = np.flatnonzero(n_in[1:] != n_out[:-1])
    if apart.size:
        l = int(apart[0]) + 1
        raise ValueError(
            f"blocks: expected layer {l} to take the {n_out[l - 1]} states of layer {l - 1}, got a Dz of shape "
            f"{blocks[l].Dz.shape}"
        )
    return {name: [getattr(block, name) for block in blocks] for name in LayerBlocks.__slots__}, n_out, p, n_in


def _stacks(arrays):
    """({name: (L, m, n) array}, n_out, p, n_in) of equal layers; None where one of the arrays is a sequence."""
    stacks = {name: tensors.plain(array) for name, array in arrays.items()}
    if not all(isinstance(stack, np.ndarray) and stack.ndim == 3 for stack in stacks.values()):
        return None
    stacks = {name: as_numbers(name, stack) for name, stack in stacks.items()}
    L, a, p = stacks["Dx"].shape
    a_in = stacks["Dz"].shape[2] if L == 1 else a
    if L == 0 or a == 0:
        raise ValueError(f"Dx: expected at least one layer, of at least one state, got shape {stacks['Dx'].shape}")
    for name, shape in (("Dz", (a, a_in)), ("Dxx", (p, p)), ("Dzx", (p, a_in)), ("Dzz", (a_in, a_in))):
        if stacks[name].shape != (L, *shape):
            raise ValueError(
                f"{name}: expected shape {(L, *shape)}, where Dx is {(L, a, p)} (layers, states, parameters), got "
                f"{stacks[name].shape}"
            )
    sizes = (np.full(L, size, np.int64) for size in (a, p, a_in))
    return stacks, *sizes


def _separate(arrays):
    """The layers of which the arrays are given one by one, in sequences."""
    layers = {}
    for name, given in arrays.items():
        try:
            layers[name] = list(given)
        except TypeError:
            raise TypeError(
                f"{name}: expected an array with the layers along its first axis, or a sequence of matrices, got "
                f"{type(given).__name__}"
            ) from None
        if len(layers[name]) != len(layers["Dx"]):
            raise ValueError(
                f"{name}: expected {len(layers['Dx'])} matrices, as many as Dx has, got {len(layers[name])}"
            )
    return as_blocks(LayerBlocks(*blocks) for blocks in zip(*layers.values()))


def _flat(given):
    """The numbers of a stack or of a list of arrays, one after the other, in float64 or float32; perhaps a view."""
    if isinstance(given, list):
        return np.concatenate([array.ravel() for array in given]).astype(np.float64, copy=False)
    flat = np.ascontiguousarray(given, common_dtype(given)).ravel()
    # Another type to Numba, for which the kernels would be compiled again.
    return flat if flat.flags.writeable and flat.flags.aligned else flat.copy()


def _copy(name, given, out):
    """out <- the numbers of all blocks."""
    if not np.isfinite(copy_with_total(_flat(given), out)):
        _check_finite(name, given)


def _symmetrise(name, given, sides, dtype, out):
    """out <- the mean of each square block and its transpose; ``ValueError`` for one that is far from symmetric."""
    found = np.empty((sides.size, 2))
    symmetric_means(_flat(given).astype(np.float64, copy=False), sides, out, found)
    difference, largest = found.T
    if not np.isfinite(largest).all():
        _check_finite(name, given)
    wrong = np.flatnonzero(difference > ASYMMETRY[dtype] * largest)
    if wrong.size:
        argument, place = ("terminal", "") if name == "terminal" else ("blocks", f" of layer {wrong[0]}")
        raise ValueError(
            f"{argument}: expected {name}{place} to be symmetric, got entries that differ by "
            f"{difference[wrong[0]]:.1e} from those across the diagonal"
        )


def _check_finite(name, given):
    """``ValueError`` that gives the place of a number that is not finite; nothing where a sum has overflowed."""
    for l, array in enumerate(given):
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            place = tuple(int(i) for i in bad[0])
            raise ValueError(
                f"blocks: expected finite numbers, got {array[place]} in {name} of layer {l} at index {place}"
            )


def symmetrise(square, tolerance):
    """Give each of (k, n, n) of float64 the mean with its transpose, in place.

    Returns the indices of those far from symmetric, and by how much entries of all differ from those across.
    """
    means, found = np.empty(square.size), np.empty((square.shape[0], 2))
    symmetric_means(np.ascontiguousarray(square).ravel(), np.full(*square.shape[:2]), means, found)
    square[...] = means.reshape(square.shape)
    return np.flatnonzero(found[:, 0] > tolerance * found[:, 1]), found[:, 0]


def block_diagonal(blocks):
    """(B, m, n) blocks as one (B m, B n) matrix."""
    B, m, n = blocks.shape
    matrix = np.zeros((B, m, B, n), blocks.dtype)
    matrix[np.arange(B), :, np.arange(B)] = blocks
    return matrix.reshape(B * m, B * n)


def unpack(table, params, lin, l, dtype, l2=0.0):
    """Layer ``l`` of a chain as `LayerBlocks` in ``dtype``, with ``l2``, a number or vector, on the diagonal of Dxx."""
    layer = table[as_layer("l", l, table.size)]
    p = int(layer["p"])
    if layer["held"] and layer["kind"] != BLOCKS:
        # As if it were not frozen, without what its parameters do.
        layer = layer.copy()
        layer["p"], layer["d"] = layer["held"], layer["fan_in"] + layer["bias"]
    expand = {DENSE: _expand_dense, CONVOLUTION: _expand_convolution, BLOCKS: _expand_blocks}[int(layer["kind"])]
    Dx, Dz, Dxx, Dzx, Dzz = expand(layer, lin.output.shape[0], params, lin)
    Dx, Dxx, Dzx = Dx[:, :p], Dxx[:p, :p], Dzx[:p]
    Dxx = Dxx + l2 * np.eye(Dxx.shape[0])
    if layer["N"] == 0:
        Dz, Dzx, Dzz = Dz[:, :0], Dzx[:, :0], Dzz[:0, :0]
    return LayerBlocks(*(block.astype(dtype) for block in (Dx, Dz, Dxx, Dzx, Dzz)))


def _view(buffer, start, *shape):
    return buffer[start : start + int(np.prod(shape))].reshape(shape)


def _expand_blocks(layer, B, params, lin):
    n, n_in, p, taps = (int(layer[name]) for name in ("n_out", "n_in", "p", "taps"))
    if taps:
        Dz, Dzz = np.zeros((B, n, n_in)), np.zeros((B, n_in, n_in))
        values, columns = _view(lin.Dz, layer["Dz"], 2, B, n, taps)
        for k in range(taps):
            Dz[(*np.ogrid[:B, :n], columns[..., k].astype(np.int64))] += values[..., k]
        Dzz[:, np.arange(n_in), np.arange(n_in)] = _view(lin.Dzz, layer["Dzz"], B, n_in)
    else:
        Dz, Dzz = _view(lin.Dz, layer["Dz"], B, n, n_in), _view(lin.Dzz, layer["Dzz"], B, n_in, n_in)
    return (
        _view(lin.Dx, layer["Dx"], B * n, p),
        block_diagonal(Dz),
        _view(lin.Dxx, layer["Dxx"], p, p),
        _view(lin.Dzx, layer["Dzx"], p, B * n_in),
        block_diagonal(Dzz),
    )


def _expand_dense(layer, B, params, lin):
    """Of ``Z' = phi(Z W^T + c) (+ Z)``, parameters in their flat order: W row by row, then c."""
    n, n_in, d = (int(layer[name]) for name in ("n_out", "n_in", "d"))
    W = _view(params, layer["weights"], n, n_in)
    Z = _view(lin.Z, layer["z"], B, n_in)
    S, D, lam = (_view(block, layer["u"], B, n) for block in (lin.S, lin.D, lin.lam))
    Zt = np.hstack([Z, np.ones((B, d - n_in))])
    eye, eye_in = np.eye(n), np.eye(d, n_in)
    by_row = np.arange(n * d).reshape(n, d)
    flat = np.concatenate([by_row[:, :n_in].ravel(), by_row[:, n_in:].ravel()])
    Dx = np.einsum("ia,ab,ij->iabj", S, eye, Zt).reshape(B * n, n * d)
    Dxx = np.einsum("ia,ab,ij,ik->ajbk", D, eye, Zt, Zt).reshape(n * d, n * d)
    Dzx = np.einsum("ia,ij,ak->ajik", D, Zt, W) + np.einsum("ia,jk->ajik", lam, eye_in)
    skip = np.eye(n) if layer["skip"] else 0.0
    Dz = S[:, :, None] * W + skip
    Dzz = np.einsum("ia,aj,ak->ijk", D, W, W)
    return (
        Dx[:, flat],
        block_diagonal(Dz),
        Dxx[np.ix_(flat, flat)],
        Dzx.reshape(n * d, B * n_in)[flat],
        block_diagonal(Dzz),
    )


def _expand_convolution(layer, B, params, lin):
    """Of the same on patches: with G, which gathers those of one sample, J_i = diag(S_i) (W (x) I) G, and so on."""
    n, T, w, n_in, p = (int(layer[name]) for name in ("units", "positions", "fan_in", "n_in", "p"))
    geometry = [int(layer[name]) for name in GEOMETRY]
    across, down = Axis(*geometry[:5]), Axis(*geometry[5:])
    # Of each axis, whether element e is what number k of the kernel reads at a place: (places, kernel, elements).
    x, y = (axis.reads()[..., None] == np.arange(axis.length) for axis in (across, down))
    one = np.einsum("vhe,pkf->hkvpef", y.astype(float), x.astype(float))
    one = one.reshape(down.kernel * across.kernel, T, down.length * across.length)
    channels = w // one.shape[0]
    G = np.einsum("cd,kte->cktde", np.eye(channels), one).reshape(w, T, n_in)
    W = _view(params, layer["weights"], n, w)
    Z = _view(lin.Z, layer["z"], B, n_in)
    S, D, lam = (_view(block, layer["u"], B, n, T) for block in (lin.S, lin.D, lin.lam))
    Zt = np.einsum("jts,is->ijt", G, Z)
    A = np.einsum("aj,jts->ats", W, G)
    eye = np.eye(n)
    # Of U in the parameters: W first, then c.
    Ux = np.zeros((B, n, T, p))
    Ux[..., : n * w] = np.einsum("ab,ijt->iatbj", eye, Zt).reshape(B, n, T, n * w)
    Ux[..., n * w :] = eye[:, None, : p - n * w]
    Dx = (S[..., None] * Ux).reshape(B * n * T, p)
    Dxx = np.einsum("iat,iatx,iaty->xy", D, Ux, Ux)
    Dzx = np.einsum("iat,iatx,ats->xis", D, Ux, A)
    Dzx[: n * w] += np.einsum("iat,jts->ajis", lam, G).reshape(n * w, B, n_in)
    skip = np.eye(n_in) if layer["skip"] else 0.0
    Dz = np.einsum("iat,ats->iats", S, A).reshape(B, n * T, n_in) + skip
    Dzz = np.einsum("iat,ats,atu->isu", D, A, A)
    return Dx, block_diagonal(Dz), Dxx, Dzx.reshape(p, B * n_in), block_diagonal(Dzz)
