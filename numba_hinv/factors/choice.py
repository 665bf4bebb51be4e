"""Which way a matrix is factored, and the bytes that it takes, asked for before anything is allocated.

The one file that knows all ways. Of a new one it needs the bytes, and when it is taken.
"""

import numpy as np

from ..kernels.sweeps.eliminate import Factors as Arrays
from . import batched, segmentation
from .checkpoints import Checkpoints
from .elimination import Elimination, no_tick
from .layers import Layers
from .segments import Segments


def num_bytes(system, dtype, checkpoint=False, scales=(), num_kept=1, num_working=1):
    """Bytes of so many factorizations of a system, at most ``num_working`` of them at work, at their peak.

    Parameters
    ----------
    system : System
    dtype : numpy.dtype
        Of the factors.
    checkpoint : bool
    scales : iterable of Scaling
        Those for which blocks have to be made.
    """
    plan = segmentation.plan(system) if system.on.batches and not checkpoint else None
    if plan is not None:
        kept, work = Segments.num_bytes(system, dtype, plan)
    else:
        kept, work = (Checkpoints if checkpoint else Layers).num_bytes(system, dtype)
    if system.on.batches and not checkpoint:
        num_working = num_kept
    return num_kept * kept + num_working * work + sum(system.block_bytes(dtype, scale) for scale in scales)


def require(system, dtype, checkpoint=False, scales=(), num_kept=1, num_working=1):
    """``MemoryError`` where they would not fit."""
    sizes, count = system.sizes, "a factorization" if num_kept == 1 else f"{num_kept} factorizations"
    system.on.require(
        num_bytes(system, dtype, checkpoint, scales, num_kept, num_working),
        f"{count} for B = {system.num_samples} samples, {system.num_layers} layers of up to "
        f"{sizes.width} units (pivots of up to {sizes.m} rows)",
    )


def factorize(matrix, checkpoint=False, tick=no_tick):
    """`Factors` of a `Shifted` matrix.

    Parameters
    ----------
    matrix : Shifted
    checkpoint : bool
        Whether most factors are made again in every solve.
    tick : callable
        ``tick(n)`` is called after every n layers and may raise.

    Raises
    ------
    numpy.linalg.LinAlgError
        The elimination needs a nonzero damping, or met numbers that are not finite.
    MemoryError
        They would not fit; nothing has been allocated.
    """
    return _run(Elimination.of(matrix), Checkpoints if checkpoint else Layers, tick, may_cut=True)


def again(factors, matrix=None, shift=None, growth=None):
    """Factors of the same kind with another matrix, damping of the elimination, or limit on growth.

    Those of a chain in segments are made of the chain as one: their fallback.
    """
    way = Checkpoints if isinstance(factors, Checkpoints) else Layers
    return _run(Elimination.of(matrix or factors.matrix, shift, growth), way, no_tick, may_cut=False)


def _run(elimination, way, tick, may_cut):
    matrix = elimination.matrix
    system, checkpoint = matrix.system, way is Checkpoints
    require(system, matrix.dtype, checkpoint, () if matrix.has_blocks else (matrix.scale,))
    system.on.load(matrix.dtype)
    if checkpoint or not system.on.batches:
        return way.eliminate(elimination, tick)
    (found,) = batched.eliminate([elimination], may_cut, tick)
    if isinstance(found, Exception):
        raise found
    return found


def factorize_batch(matrices, tick=no_tick):
    """`Factors`, or a ``LinAlgError``, for each of many matrices of one system, on a processor that ``batches``.

    Those that are scaled alike are eliminated in one launch.
    """

    def begin(matrix):
        try:
            return Elimination.of(matrix)
        except np.linalg.LinAlgError as error:
            return error

    found = [begin(matrix) for matrix in matrices]
    for scale in dict.fromkeys(matrix.scale for matrix in matrices):
        alike = [
            at for at, matrix in enumerate(matrices) if matrix.scale == scale and isinstance(found[at], Elimination)
        ]
        results = batched.eliminate([found[at] for at in alike], True, tick) if alike else []
        for at, result in zip(alike, results):
            found[at] = result
    return found


def from_arrays(matrix, header, arrays):
    """`Factors` of a matrix from what `Factors.to_arrays` gave, and perhaps more."""
    matrix.system.on.load(matrix.dtype)
    arrays = Arrays(*(arrays[f"factors_{name}"] for name in Arrays._fields))
    return Layers.of_arrays(Elimination.of(matrix, float(header["shift"])), arrays)
