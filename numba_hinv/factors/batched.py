"""Eliminations of several dampings at the same time, of the chain as one or of all its segments together.

Of several dampings on processors that ``batches``, of segments on all; `segmentation` has the mathematics of the cut.
"""

import itertools

import numpy as np

from ..kernels.plumbing.status import OK
from ..kernels.sweeps.eliminate import Factors as Arrays
from ..kernels.sweeps.eliminate import Pivoting
from ..kernels.sweeps.linearise import Linearisation
from . import segmentation, stretches
from .elimination import no_tick
from .layers import Layers
from .pivots import Pivots
from .segments import SegmentArrays, Segments


def eliminate(eliminations, plan, tick):
    """Eliminate for matrices of one system in one precision, scaled alike: `Factors`, or a ``LinAlgError``, for each.

    With a ``plan`` (`segmentation.plan`) the chain is cut in segments. Those matrices to which that brings pivots that
    had to be perturbed are then eliminated as one segment.
    """
    matrix, count = eliminations[0].matrix, len(eliminations)
    system, dtype = matrix.system, matrix.dtype
    on, table, levels = system.on, matrix.table, matrix.scale.levels_by_layer(system.num_layers)
    if plan is not None and np.abs(levels).max() > segmentation.LARGEST_LEVEL:
        plan = None
    arrays = on.elimination.allocate(system.sizes, table.size, dtype, count)
    if plan is None:
        work = on.elimination.workspace(table, system.sizes, dtype, count)
        found = _sweep(eliminations, None, arrays, None, work, tick)
        return [_whole(E, arrays, t, found[t]) for t, E in enumerate(eliminations)]
    kept, results = _eliminate_in_segments(eliminations, plan, arrays, levels, tick), []
    for t, E in enumerate(eliminations):
        factors = None if kept[t] is None else _in_segments(E, plan, kept[t], levels)
        if factors is None or factors.num_perturbed:
            own = Arrays(*[array.reshape(1, array.size) for array in _row(on, arrays, t)])
            work = on.elimination.workspace(table, system.sizes, dtype, 1)
            factors = _whole(E, own, 0, _sweep([E], None, own, None, work, no_tick)[0])
        results.append(factors)
    return results


def _row(on, arrays, t):
    return Arrays(*[on.memory.row(array, t) for array in arrays])


def _whole(elimination, arrays, t, found):
    """`Layers` with row t of the arrays; a ``LinAlgError`` where the elimination has failed."""
    code, layer = found
    if code != OK:
        return elimination.not_finite(layer)
    return Layers.of_arrays(elimination, _row(elimination.matrix.system.on, arrays, t))


def _in_segments(elimination, plan, kept, levels):
    """`Segments`, the pivots of the seams among those of the layers before them."""
    matrix = elimination.matrix
    system = matrix.system
    pivots = Pivots.allocate(system.num_layers)
    (whole,) = stretches.whole(system.num_layers, system.sizes)
    pivots.fill(whole, system.table, kept.layers, system.on.memory.take)
    _add_seams(system.on, pivots, plan, kept.seams, segmentation.scales(plan, matrix.hessian_norm, levels), levels)
    return Segments(elimination, pivots, plan, kept)


def _seam_blocks(on, plan, copies, dtype):
    """An uninitialised `Linearisation` of the seams of so many dampings."""
    shapes = dict.fromkeys(("Z", "S", "D", "lam"), 1) | {"output": (1, 1), "curvature": (1, 1, 1)}
    shapes |= {name: copies * getattr(plan.sizes, name) for name in ("Dx", "Dz", "Dxx", "Dzx", "Dzz")}
    return Linearisation(**{name: on.memory.empty(shape, dtype) for name, shape in shapes.items()})


def _eliminate_in_segments(eliminations, plan, arrays, levels, tick):
    """`SegmentArrays` of each elimination, with rows of the arrays that are given; None where that has failed."""
    matrix, count = eliminations[0].matrix, len(eliminations)
    system, dtype = matrix.system, matrix.dtype
    on, table, (params, _, space) = system.on, matrix.table, matrix.blocks()
    Y_mu = on.memory.empty((count, plan.Y), dtype)
    work = on.elimination.workspace(table, system.sizes, dtype, count * plan.count, plan)
    guess = dtype.type(np.ldexp(1.0, segmentation.GUESS))
    alpha = segmentation.scales(plan, matrix.hessian_norm, levels).astype(dtype)
    on.segments.start(plan.records, count, alpha, guess, work)
    found = _sweep(eliminations, plan, arrays, Y_mu, work, tick)
    seams, runs = segmentation.seams_together(plan, count)
    lin = _seam_blocks(on, plan, count, dtype)
    seam_work = on.elimination.workspace(seams, plan.sizes, dtype, count, by_blocks=True)
    on.segments.form_seams(table, plan.records, count, seams, alpha, guess, work, lin, seam_work)
    lengths = {name: getattr(plan.sizes, name) for name in stretches.PACKED}
    together = plan.sizes._replace(**{name: count * length for name, length in lengths.items()})
    seam_arrays = on.elimination.allocate(together, seams.size, dtype)
    # Seams are on the scale of the Hessian in their states: the smallest of them.
    scale = np.ldexp(1.0, -2 * int(levels.max()))
    pivotings = [
        Pivoting(scale * E.pivoting.singular, scale * E.pivoting.perturbation, np.inf, 0.0) for E in eliminations
    ]
    batch = Arrays(*[array.reshape(1, array.size) for array in seam_arrays])
    steps = [(runs, pivotings)]
    seam_found = on.elimination.runs(seams, steps, params, lin, space, [0.0], batch, None, seam_work, no_tick)
    # Those of the seams are the same for all.
    Dx, Dz = (on.memory.part(array, slice(0, array.size // count)) for array in (lin.Dx, lin.Dz))

    def part(name, array, t):
        length = lengths.get(name, plan.count - 1)
        return on.memory.part(array, slice(t * length, (t + 1) * length))

    return [
        SegmentArrays(
            _row(on, arrays, t),
            on.memory.row(Y_mu, t),
            Arrays(*[part(name, array, t) for name, array in seam_arrays._asdict().items()]),
            Dx,
            Dz,
        )
        if found[t][0] == OK and seam_found[t][0] == OK
        else None
        for t in range(count)
    ]


def _sweep(eliminations, plan, arrays, Y_mu, work, tick):
    """``(status, layer)`` of each elimination, the first of its segments that is not `OK`."""
    matrix, count = eliminations[0].matrix, len(eliminations)
    on, table, (params, lin, space) = matrix.system.on, matrix.table, matrix.blocks()
    bounds = (0, table.size) if plan is None else plan.bounds
    loads = (1.0,) if plan is None else plan.loads
    shifts, queues = [E.shift for E in eliminations], []
    for part in zip(bounds[:-1], bounds[1:], loads):
        queues.append(eliminations[0].runs(*part))
    steps = []
    for pieces in itertools.zip_longest(*queues):
        # A segment of fewer runs than others has nothing left to do.
        pieces = [(start, start, 0) if piece is None else piece for piece, start in zip(pieces, bounds)]
        pivotings = [E.pivoting_at(level) for E in eliminations for _, _, level in pieces]
        steps.append(([(start, stop) for start, stop, _ in pieces], pivotings))
    if plan is not None:
        steps = [(plan.runs(ends), pivotings) for ends, pivotings in steps]
        results = on.elimination.runs(table, steps, params, lin, space, shifts, arrays, Y_mu, work, tick)
        return [_first_failure(results[t * plan.count : (t + 1) * plan.count]) for t in range(count)]
    found = [(OK, 0)] * count
    for ((start, stop),), pivotings in steps:
        results = on.elimination.layers(table, start, stop, params, lin, space, shifts, pivotings, arrays, work)
        found = [_first_failure(pair) for pair in zip(found, results)]
        if all(code != OK for code, _ in found):
            break
        tick(count * (stop - start))
    return found


def _first_failure(results):
    """The first of some ``(status, layer)`` that is not `OK`."""
    return next((result for result in results if result[0] != OK), (OK, 0))


def _add_seams(on, pivots, plan, seams, alpha, levels):
    """Let the pivots of the layers before the seams count for those of the seams as well.

    Of the 2 c pivots of a seam c are negative, for its multipliers.
    """
    found = Pivots.allocate(plan.count - 1)
    found.fill(stretches.whole(plan.count - 1, plan.sizes)[0], plan.seams, seams, on.memory.take)
    behind = np.array(plan.bounds[1:-1])
    layers, c, level = behind - 1, plan.records["c"][:-1], levels[behind]
    pivots.num_positive[layers] += found.num_positive - c
    pivots.num_perturbed[layers] += found.num_perturbed
    pivots.logabsdet[layers] += found.logabsdet - 2 * c * np.log(alpha[:-1])
    # The rows of Y of a seam are in the states of the seam before.
    growth = np.ldexp(found.growth, 2 * (np.append(0, level[:-1]) - levels[layers]))
    pivots.growth[layers] = np.maximum(pivots.growth[layers], growth)
    pivots.smallest[layers] = np.minimum(pivots.smallest[layers], np.ldexp(found.smallest, -level))
    pivots.largest[layers] = np.maximum(pivots.largest[layers], np.ldexp(found.largest, -level))
