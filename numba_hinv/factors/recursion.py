"""The covariance recursion over the layers, with factors that are visited stretch by stretch.

`numba_hinv.kernels.sweeps.covariance` does it for a run of layers; here are its scratch, its runs, and their order.
"""

import numpy as np

from ..kernels.steps.layer_table import BLOCKS
from ..kernels.sweeps import covariance
from ..runtime import memory_budget
from ..runtime.chunks import chunks
from .interface import LESS_OF_INVERSE


def workspace(matrix, layer, num_kept, purpose):
    """Scratch for the diagonal (layer None) or the block of a layer; ``MemoryError`` where it would not fit."""
    table = matrix.system.table if layer is None else matrix.system.table[: layer + 1]
    wanted = "diagonal" if layer is None else "block"
    return _allocate(matrix, table, wanted, num_kept, purpose, LESS_OF_INVERSE)


def _allocate(matrix, table, wanted, num_kept, purpose, way_out):
    system = matrix.system
    lengths = covariance.work_sizes(table, system.sizes, system.num_samples, wanted)
    memory_budget.require(matrix.dtype.itemsize * sum(lengths) + 8 * num_kept, purpose, way_out)
    return covariance.workspace(lengths, matrix.dtype)


def propagate(factors, stop, noise, diagonal, work, tick):
    """The recursion over layers 0..stop-1; yields every stretch with its arrays, and that of layer ``stop``."""
    matrix, shift = factors.matrix, factors.elimination.shift
    system, (params, lin, space) = matrix.system, matrix.blocks()
    wanted = [index for index, stretch in enumerate(factors.stretches) if stretch.start <= stop]
    for stretch, arrays in factors.visit(wanted):
        part = stretch.table(matrix.table)
        num_layers = min(stretch.stop, stop) - stretch.start
        flops = _flops(system, part[:num_layers], diagonal.size > 0)
        for first, last in chunks(flops) if num_layers else []:
            covariance.propagate(part, first, last, params, lin, space, arrays, shift, noise, diagonal, work)
            tick(last - first)
        yield stretch, arrays


def block(factors, layer, work, tick):
    """The block of the inverse for one layer's parameters, (p, p) in float64."""
    matrix, shift = factors.matrix, factors.elimination.shift
    system, (_, lin, space) = matrix.system, matrix.blocks()
    p = int(system.table[layer]["p"])
    found = np.empty((p, p), matrix.dtype)
    for stretch, arrays in propagate(factors, layer, 0.0, np.empty(0, matrix.dtype), work, tick):
        if stretch.start <= layer < stretch.stop:
            at = layer - stretch.start
            covariance.covariance(stretch.table(matrix.table), at, lin, space, arrays, shift, found, work)
    return found.astype(np.float64)


def outputs(factors, tick):
    """The covariance of the chain's last state, (B n_L, B n_L) in float64: that of the outputs of all samples."""
    matrix = factors.matrix
    system, (params, lin, space) = matrix.system, matrix.blocks()
    last, size = system.num_layers - 1, lin.output.size
    purpose = f"the covariance of {size} outputs"
    work = _allocate(matrix, system.table, "outputs", 2 * size * size, purpose, "take method='dense', or fewer samples")
    found = np.empty((size, size), matrix.dtype)
    for stretch, arrays in propagate(factors, last, 0.0, np.empty(0, matrix.dtype), work, tick):
        if stretch.stop > last:
            covariance.outputs(stretch.table(matrix.table), params, lin, space, arrays, found, work)
    return found.astype(np.float64, copy=False)


def _flops(system, layers, is_diagonal):
    """Of each layer's step of the recursion."""
    m, N, n_in, n_out, units, r, d, rows = (
        layers[name].astype(float) for name in ("m", "N", "n_in", "n_out", "units", "r", "d", "rows")
    )
    a = system.num_samples * n_out
    per_row = np.where(layers["kind"] == BLOCKS, 2 * a * (m + n_in), 2 * rows * (r + d) * units)
    flops = 2 * m**3 + 5 * m * m * N + 2 * m * N * N + (m + N + a) * (per_row + 32 * a)
    if is_diagonal:
        flops += np.where(r < d, units * (r * (2 * N * (rows + 4) + 6 * r * d) + 4 * rows * rows * d), 0.0)
    return flops
