"""The elimination of one segment on its worker, and the two halves of a solve with it.

These are the sweeps of segments on threads (`system.cpu_segments`), of a chain that has one of them. Of an elimination
the seams get P, Phi and Psi (`Relation`), of a solve a vector for each end.
"""

from typing import NamedTuple

import numpy as np

from ..factors import segmentation, stretches
from ..factors.elimination import Elimination
from ..kernels.plumbing.status import OK
from ..kernels.steps.segment_table import SEGMENT
from ..kernels.sweeps import eliminate as sweeps
from ..kernels.sweeps import multipliers
from ..runtime import threads
from ..system import cpu_segments
from ..system.scaling import Scaling, levels_of
from ..system.shifted import Shifted

_DOUBLE, _SINGLE = np.dtype(np.float64), np.dtype(np.float32)
# Levels of states up to which the scale of multipliers, and its square, are far from the ends of their dtype.
_LARGEST_LEVEL = {_DOUBLE: 100, _SINGLE: segmentation.LARGEST_LEVEL}


class Task(NamedTuple):
    """What is eliminated, besides the segment."""

    damping: float
    dtype: np.dtype
    norm: float  # of H
    exponent: int  # the matrix is 2^-exponent (H + damping I)


class Relation(NamedTuple):
    """What the seams get to know of a segment that was eliminated (docs/theory.md, section 10)."""

    P: np.ndarray  # (N, N)
    Phi: np.ndarray  # (c, N), alpha times that of the theory
    Psi: np.ndarray  # (c, c), alpha^2 times
    alpha: float
    level: int  # of the states that go out


class Pivots(NamedTuple):
    """What is told of a segment's pivots."""

    num_negative: int
    num_perturbed: int
    logabsdet: float
    is_altered: bool  # whether another damping was eliminated with


class SegmentFactors(NamedTuple):
    """The factors of a segment's layers. They are told apart from the segment, which solves need as well."""

    task: Task
    levels: tuple
    shift: float
    layers: sweeps.Factors
    Y_mu: np.ndarray
    relation: Relation
    pivots: Pivots


def num_bytes(segment, dtype):
    """(bytes that are kept of an elimination, bytes of its scratch)."""
    system, table, B = segment.system, segment.system.table, segment.system.num_samples
    N, c = segment.num_in, segment.num_out
    kept = stretches.kept_bytes(stretches.whole(table.size, system.sizes), dtype)
    kept += dtype.itemsize * (c * int(table["m"].sum()) + N * N + c * N + c * c)
    work = system.on.elimination.work_bytes(table, system.sizes, dtype)
    work += multipliers.carried_bytes(system.sizes, _largest_phi(segment), c, B, dtype)
    return kept, work + system.block_bytes(dtype, Scaling(0, (), ((0, 0),)))


def _largest_phi(segment):
    table, B = segment.system.table, segment.system.num_samples
    return int((segment.num_out * np.maximum(B * table["n_out"], table["N"])).max())


def _record(segment):
    """The `SEGMENT` of all its layers; its seams are the states that come in, then the multipliers of those after."""
    start, stop, before = segment.start, segment.stop, 0 if segment.num_in else -1
    return np.array([(start, stop, start, stop, segment.num_out, 0, before, segment.num_in)], SEGMENT)


def _matrix(segment, task, levels):
    scale = Scaling(task.exponent, (), levels)
    return Shifted(segment.system, task.damping, task.dtype, scale, norm=task.norm)


def eliminate(segment, task, logarithms):
    """`SegmentFactors` of a `Segment`, ``logarithms`` being those of its states."""
    most, largest = _LARGEST_LEVEL[task.dtype], float(logarithms.max())
    if not largest <= most:
        raise np.linalg.LinAlgError(
            f"pieces: expected a chain whose parameters move its states by up to 2^{most} in {task.dtype}, got "
            f"2^{largest:.0f}; scale the states of each layer"
        )
    # States that hardly move matter as little.
    logarithms = np.maximum(logarithms, -most)
    system, dtype, (start, stop) = segment.system, task.dtype, (segment.start, segment.stop)
    system.on.load(dtype, system.table)
    # The entry goes with the first layer.
    levels = levels_of(np.append(logarithms[:1], logarithms) if start else logarithms)
    matrix = _matrix(segment, task, levels)
    elimination = Elimination.of(matrix)
    table, c, record = matrix.table, segment.num_out, _record(segment)
    arrays = system.on.elimination.allocate(system.sizes, table.size, dtype)
    Y_mu = np.empty(c * int(table["m"].sum()), dtype)
    work = cpu_segments.Workspace(
        sweeps.workspace(system.sizes, dtype),
        multipliers.carried(system.sizes, _largest_phi(segment), c, system.num_samples, dtype),
    )
    level = round(float(logarithms[-1]))
    alpha = float(np.ldexp(1.0, int(np.frexp(matrix.hessian_norm)[1]) - 2 - 2 * level)) if c else 1.0
    guess = dtype.type(np.ldexp(1.0, segmentation.GUESS))
    system.on.segments.start(record, 1, np.array([alpha], dtype), guess, [work])
    params, lin, space = matrix.blocks()
    batch, steps = sweeps.Factors(*([array] for array in arrays)), []
    for first, last, at in elimination.runs(start, stop):
        run = record.copy()
        run["start"], run["stop"] = first, last
        steps.append((run, [elimination.pivoting_at(at)]))
    ((code, layer),) = system.on.elimination.runs(
        table, steps, params, lin, space, [elimination.shift], batch, [Y_mu], [work]
    )
    if code != OK:
        raise elimination.not_finite(layer)
    half, N = start % 2, segment.num_in
    # Sweeps leave the upper triangle of a front.
    upper = np.triu(work.layers.front[half, : N * N].reshape(N, N))
    relation = Relation(
        upper + np.triu(upper, 1).T,
        work.carried.phi[half, : c * N].reshape(c, N).copy(),
        work.carried.psi.copy(),
        alpha,
        level,
    )
    pivots = _pivots(matrix, elimination.shift, arrays, start, stop)
    return SegmentFactors(task, levels, elimination.shift, arrays, Y_mu, relation, pivots)


def _pivots(matrix, shift, arrays, start, stop):
    system, here = matrix.system, slice(start, stop)
    free, dampings = system.free(), matrix.dampings(shift)
    negative = int((matrix.table["m"][here] - arrays.num_positive[here]).sum()) + int(free[dampings < 0.0].sum())
    logabsdet = float(arrays.logabsdet[here].sum())
    logabsdet += float((free[free > 0] * np.log(np.abs(dampings[free > 0]))).sum())
    return Pivots(negative, int(arrays.num_perturbed[here].sum()), logabsdet, shift != matrix.eps)


class Half(NamedTuple):
    """A solve on its way back: what it has made of the right-hand side, and what it tells the seams."""

    x: np.ndarray  # (k, P), in the dtype of the factors
    seams: np.ndarray  # (k, N + c)


def _substitute(back, segment, factors, b, x, seams):
    system, matrix = segment.system, _matrix(segment, factors.task, factors.levels)
    params, lin, space = matrix.blocks()
    work = system.on.substitution.workspaces(system.sizes, b.shape[0], system.num_samples, matrix.dtype, 1)
    arguments = (params, lin, space, factors.layers, factors.Y_mu, factors.shift, b, x, seams, work)
    system.on.substitution.runs(back, matrix.table, [_record(segment)], *arguments, threads.no_check)


def _narrowed(factors, b, exponents):
    """b, each row times 2 to minus its exponent, in the dtype of the factors."""
    if exponents is None:
        return np.ascontiguousarray(b, factors.task.dtype)
    return np.ldexp(b, -exponents[:, None]).astype(factors.task.dtype)


def back(segment, factors, b, exponents=None):
    """The first half of a solve with rows b (k, P)."""
    b = _narrowed(factors, b, exponents)
    x, seams = np.empty_like(b), np.zeros((b.shape[0], segment.num_in + segment.num_out), b.dtype)
    _substitute(True, segment, factors, b, x, seams)
    return Half(x, seams.astype(np.float64))


def forth(segment, factors, b, half, seams, exponents=None):
    """The second half: the solution in float64, ``seams`` (k, N + c) being the states that come in and multipliers."""
    b, x = _narrowed(factors, b, exponents), half.x.copy()
    _substitute(False, segment, factors, b, x, np.ascontiguousarray(seams, b.dtype))
    x = x.astype(np.float64)
    up = -factors.task.exponent if exponents is None else exponents[:, None] - factors.task.exponent
    return np.ldexp(x, up, out=x) if np.any(up) else x
