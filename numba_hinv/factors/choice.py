"""Which way a matrix is factored, and the bytes that it takes, asked for before anything is allocated.

The one file that knows all ways. Of a new one it needs the bytes, and when it is taken.
"""

import numpy as np

from ..kernels.sweeps.eliminate import Factors as Arrays
from ..runtime import memory_budget
from . import batched, segmentation
from .block_rows import BlockRows
from .checkpoints import Checkpoints
from .dense import Dense
from .elimination import Elimination, no_tick
from .lapack import Lapack
from .layers import Layers
from .segments import Segments
from .spectrum import Decomposition, Spectrum, decomposition, has_decomposition

METHODS = ("auto", "layers", "dense")
# From so many dampings of one dense matrix on they are factored by one eigendecomposition. It costs as much as 16 to 28
# factorizations (P = 300: 16, 500: 28, 1,200: 17, 3,000: 21, one thread each); then solves cost the same, and diagonals
# of the inverse next to nothing.
SPECTRUM = 24
# What a flop of the elimination costs where pivots have m rows, in flops of a large dense factorization: so much at
# least, and the second number over the square root of m (m = 20: 5, 72: 3, 272: 1.4; `asv_bench/routes.py`). A dense
# matrix of so many rows takes twice the time of its flops. And how many flops by layers are so few, a fraction of a
# millisecond, that there is nothing to gain.
_LAYER_FLOP, _NARROW, _SMALL, _FEW = 1.1, 24.0, 700.0, 1.5e6


def chosen(system, dtype, method="auto", checkpoint=False, count=1):
    """ "layers", "dense" or "spectrum": what a method comes to for so many dampings, before anything is allocated.

    With "auto" the way with fewer flops at measured rates, P^3/3 and what forming H takes for the dense one; the other
    one where memory is there for that alone. Layers on a GPU, and with checkpoints.
    """
    if not system.has_layers:
        method = "dense"
    if method == "dense" and count >= SPECTRUM:
        return "spectrum"
    if method != "auto" or checkpoint or system.on.elimination.batches:
        return "layers" if method == "auto" else method
    layers, P = system.layout.kept(_flops_of_layers), float(system.num_params)
    dense = (1.0 + _SMALL / P) * (P**3 / 3 + (0.0 if system.has_dense else 2.0 * system.num_samples * P * P))
    if layers <= _FEW:
        return "layers"
    best, other = ("dense", "layers") if dense < layers else ("layers", "dense")
    if not memory_budget.fits(num_bytes(system, dtype, best)) and memory_budget.fits(num_bytes(system, dtype, other)):
        best = other
    return best if best == "layers" else chosen(system, dtype, "dense", count=count)


def for_counts(system, count=1):
    """The method for counts below so many shifts, which do not depend on it.

    `Spectrum` where it is there already; it is not made where there is no memory for it.
    """
    if has_decomposition(system):
        return "spectrum"
    dtype = np.dtype(np.float64)
    found, available = chosen(system, dtype, count=count), memory_budget.available_bytes()
    if found == "spectrum" and available is not None and num_bytes(system, dtype, found) > available:
        return "dense"
    return found


def _flops_of_layers(layout):
    """Of the elimination layer by layer, each as what it costs."""
    m, N = layout.table["m"].astype(float), layout.table["N"].astype(float)
    cost = np.maximum(_LAYER_FLOP, _NARROW / np.sqrt(np.maximum(m, 1.0)))
    return float((cost * (m**3 / 3 + m * m * N + m * N * N)).sum())


def num_bytes(
    system, dtype, method="layers", checkpoint=False, scales=(), num_kept=1, num_working=1, num_segments=None
):
    """Bytes of so many factorizations of a system, at most ``num_working`` of them at work, at their peak.

    Parameters
    ----------
    system : System
    dtype : numpy.dtype
        Of the factors.
    method : str
        What `chosen` gives.
    checkpoint : bool
    scales : iterable of Scaling
        Those for which blocks have to be made.
    num_segments : int, optional
        Into which a chain is cut, at most.
    """
    if method == "dense":
        kept, work = Dense.num_bytes(system, dtype)
        return num_kept * kept + num_working * work + _dense_bytes(system)
    if method == "spectrum":
        kept, shared, work = Spectrum.num_bytes(system)
        return num_kept * kept + (0 if has_decomposition(system) else shared + work + _dense_bytes(system))
    plan = None if checkpoint else segmentation.plan(system, num_segments)
    if plan is not None:
        kept, work = Segments.num_bytes(system, dtype, plan)
    else:
        kept, work = (Checkpoints if checkpoint else Layers).num_bytes(system, dtype)
    if system.on.elimination.batches and not checkpoint:
        num_working = num_kept
    return num_kept * kept + num_working * work + sum(system.block_bytes(dtype, scale) for scale in scales)


def _dense_bytes(system):
    return 0 if system.has_dense else 8 * system.num_params**2


def require(system, dtype, method="layers", checkpoint=False, scales=(), num_kept=1, num_working=1, num_segments=None):
    """``MemoryError`` where they would not fit; the message says what would need less."""
    sizes, count = system.sizes, "a factorization" if num_kept == 1 else f"{num_kept} factorizations"
    purpose = (
        f"{count} of the dense matrix of P = {system.num_params} parameters"
        if method in ("dense", "spectrum")
        else f"{count} for B = {system.num_samples} samples, {system.num_layers} layers of up to "
        f"{sizes.width} units (pivots of up to {sizes.m} rows)"
    )
    needed = num_bytes(system, dtype, method, checkpoint, scales, num_kept, num_working, num_segments)
    try:
        system.on.memory.require(needed, purpose)
    except MemoryError as error:
        if not system.has_layers:
            raise
        other = "dense" if method == "layers" else "layers"
        ways = [("factor_dtype='float32'", np.dtype(np.float32), method, checkpoint)]
        if not system.on.elimination.batches:
            ways += [(f"method={other!r}", dtype, other, False), ("checkpoint=True", dtype, "layers", True)]
        found = [(way, num_bytes(system, *how, scales, num_kept, num_working)) for way, *how in ways]
        less = [f"{way} would need {count:,} bytes" for way, count in found if count < needed]
        if num_kept > 1:
            less.append("fewer dampings at a time need less")
        if less:
            raise MemoryError("; ".join([str(error), *less])) from None
        raise


def shared_blocks(system, dtype, method, scales):
    """What `Shifted` matrices of one system share, made before there are threads: blocks by scale, or None for each."""
    if method in ("dense", "spectrum"):
        decomposition(system) if method == "spectrum" else system.kept_dense()
        return dict.fromkeys(scales)
    return {scale: system.blocks(dtype, scale) for scale in dict.fromkeys(scales)}


def factorize(matrix, method="auto", checkpoint=False, tick=no_tick, num_segments=None):
    """`Factors` of a `Shifted` matrix.

    Parameters
    ----------
    matrix : Shifted
    method : "auto", "layers", "dense" or "spectrum"
    checkpoint : bool
        Whether most factors are made again in every solve.
    tick : callable
        ``tick(n)`` is called after every n layers and may raise.
    num_segments : int, optional
        Into which a long chain of small fronts is cut, at most; by default as many as its processor takes by itself.

    Raises
    ------
    numpy.linalg.LinAlgError
        The elimination needs a nonzero damping, or met numbers that are not finite.
    MemoryError
        They would not fit; nothing has been allocated.
    """
    method = chosen(matrix.system, matrix.dtype, method, checkpoint)
    if method == "dense":
        return _dense(matrix, None, tick)
    if method == "spectrum":
        require(matrix.system, matrix.dtype, method)
        factors = Spectrum.factorize(matrix.as_dense())
        tick(matrix.system.num_layers)
        return factors
    plan = None if checkpoint else segmentation.plan(matrix.system, num_segments)
    return _run(Elimination.of(matrix), Checkpoints if checkpoint else Layers, tick, plan, num_segments)


def _dense(matrix, shift, tick, certain=False):
    """`Dense` factors, LAPACK's where these would not do; with ``certain`` such as have no fallback."""
    require(matrix.system, matrix.dtype, "dense")
    factors = Dense.factorize(matrix.as_dense(), shift, certain, lambda: tick(0))
    if factors is None:
        factors = _lapack(matrix, shift)
    tick(matrix.system.num_layers)
    return factors


def _lapack(matrix, shift):
    system = matrix.system
    memory_budget.require(
        sum(Lapack.num_bytes(system, matrix.dtype)),
        f"interchanges over the dense matrix of P = {system.num_params} parameters, for damping={matrix.damping:g},",
    )
    return Lapack.factorize(matrix, shift)


def again(factors, matrix=None, shift=None, growth=None, is_static=None):
    """Factors of the same kind with another matrix, damping of the elimination, limit on growth, or a chain's pivoting.

    They have no fallback: those of a chain in segments are made of the chain as one, dense ones of the same matrix by
    LAPACK, and so are others where their own pivoting would leave a doubt.
    """
    if isinstance(factors, Spectrum) and growth is None:
        matrix = matrix or factors.matrix
        return Spectrum(matrix, matrix.eps if shift is None else shift, factors.shared)
    if isinstance(factors, (Dense, Lapack, Spectrum)):
        if matrix is None and shift is None:
            return _lapack(factors.matrix, None)
        return _dense(matrix or factors.matrix, shift, no_tick, certain=True)
    way = Checkpoints if isinstance(factors, Checkpoints) else Layers
    is_static = factors.elimination.is_static if is_static is None else is_static
    return _run(Elimination.of(matrix or factors.matrix, shift, growth, is_static), way, no_tick)


def _run(elimination, way, tick, plan=None, num_segments=None):
    matrix = elimination.matrix
    system, checkpoint, scales = matrix.system, way is Checkpoints, () if matrix.has_blocks else (matrix.scale,)
    require(system, matrix.dtype, "layers", checkpoint, scales, num_segments=num_segments)
    system.on.load(matrix.dtype, system.table)
    if checkpoint or (plan is None and not system.on.elimination.batches):
        return way.eliminate(elimination, tick)
    (found,) = batched.eliminate([elimination], plan, tick)
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
        plan = segmentation.plan(matrices[0].system)
        results = batched.eliminate([found[at] for at in alike], plan, tick) if alike else []
        for at, result in zip(alike, results):
            found[at] = result
    return found


def from_arrays(matrix, header, arrays):
    """`Factors` of a matrix from what `Factors.to_arrays` gave, and perhaps more."""
    matrix.system.on.load(matrix.dtype, matrix.system.table)
    if header.get("method") == "dense":
        return _dense_from_arrays(matrix.as_dense(), header, arrays)
    arrays = Arrays(*(arrays[f"factors_{name}"] for name in Arrays._fields))
    return Layers.of_arrays(Elimination.of(matrix, float(header["shift"])), arrays)


def _dense_from_arrays(matrix, header, arrays):
    shift = float(header["shift"])
    if "num_eigenvalues" in header:
        return Spectrum(matrix, shift, Decomposition(arrays["factors_values"], arrays["factors_vectors"].T))
    if "block_rows" not in header:
        return Lapack(matrix, shift, arrays["factors_array"].T, arrays["factors_pivots"])
    names = BlockRows.shapes(matrix.size, header["block_rows"], matrix.dtype)
    kept = {name: arrays[f"factors_{name}"] for name in names}
    return Dense(matrix, shift, BlockRows(matrix.size, header["block_rows"], kept, float(header["growth"])))
