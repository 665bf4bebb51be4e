"""Eliminations of several dampings in one launch, of one chain or of all its segments; solves in all segments at once.

What `Factorization` does layer by layer on the CPU, on a device; `segments` has the mathematics of the cut.
"""

import itertools
from typing import NamedTuple

import numpy as np

from ..factors import segmentation as checkpoints
from ..kernels.sweeps.eliminate import Factors
from ..kernels.sweeps.linearise import Linearisation
from ..kernels.steps.row_space import RowSpace
from ..kernels.plumbing.status import OK
from .sweeps import segments, substitute
from .plumbing.rows import Rows


class InSegments(NamedTuple):
    """The factors of a chain that was eliminated in segments."""

    bounds: tuple
    factors: Factors
    Y_mu: np.ndarray
    seams: Factors  # those of the chain of seams
    Dx: np.ndarray  # of that chain, with its Dz
    Dz: np.ndarray

    def map(self, function):
        """The same with another kind of arrays."""
        factors, seams = (Factors(*map(function, part)) for part in (self.factors, self.seams))
        return InSegments(self.bounds, factors, function(self.Y_mu), seams, function(self.Dx), function(self.Dz))

    @property
    def nbytes_beside(self):
        """Bytes beyond those of `factors`."""
        return sum(array.size * np.dtype(array.dtype).itemsize for array in (self.Y_mu, *self.seams, self.Dx, self.Dz))


def kept_bytes(plan, dtype):
    """`InSegments.nbytes_beside`."""
    sizes, count = plan.sizes, plan.count - 1
    scalars = plan.Y + sizes.L + sizes.scales + sizes.Y + sizes.Dx + sizes.Dz
    return dtype.itemsize * scalars + 4 * sizes.pivots + 32 * count


def _seam_blocks(on, plan, copies, dtype):
    """An uninitialised `Linearisation` of the seams of so many dampings."""
    shapes = dict.fromkeys(("Z", "S", "D", "lam"), 1) | {"output": (1, 1), "curvature": (1, 1, 1)}
    shapes |= {name: copies * getattr(plan.sizes, name) for name in ("Dx", "Dz", "Dxx", "Dzx", "Dzz")}
    return Linearisation(**{name: on._empty(shape, dtype) for name, shape in shapes.items()})


def seam_bytes(on, plan, dtype):
    """Bytes that the elimination of the seams takes at work."""
    blocks = sum(getattr(plan.sizes, name) for name in ("Dxx", "Dzx", "Dzz"))
    return dtype.itemsize * blocks + on.elimination_bytes(plan.seams, plan.sizes, dtype, by_blocks=True)


def eliminate(on, factorizations, may_cut, tick):
    """Eliminate the layers for factorizations of one Hessian in one precision, scaled alike; all get their factors.

    With ``may_cut``, long chains are cut in segments (`segments.cut`). Those factorizations to which that brings pivots
    that had to be perturbed are then eliminated as one segment. Returns a ``LinAlgError`` or None for each.
    """
    first = factorizations[0]
    hessian, dtype, count = first.hessian, first.factor_dtype, len(factorizations)
    table, levels = hessian._table, first._scale.levels_by_layer(hessian._table.size)
    plan = on.segments(table, hessian.num_samples) if may_cut else None
    if plan is not None and np.abs(levels).max() > segments.LARGEST_LEVEL:
        plan = None
    factors = on.allocate_factors(hessian._sizes, table.size, dtype, count)
    if plan is None:
        work = on.elimination_workspace(table, hessian._sizes, dtype, count)
        found = _sweep(on, factorizations, None, factors, None, work, tick)
        return [_keep_whole(on, F, factors, t, found[t]) for t, F in enumerate(factorizations)]
    kept = _eliminate_in_segments(on, factorizations, plan, factors, levels, tick)
    errors = [None] * count
    for t, F in enumerate(factorizations):
        if kept[t] is not None:
            F._keep(kept[t])
            _add_seams(on, F._pivots, plan, kept[t].seams, segments.scales(plan, F._hessian_norm, levels), levels)
        if kept[t] is None or F.num_perturbed:
            own = Factors(*[array.reshape(1, array.size) for array in _row(on, factors, t)])
            work = on.elimination_workspace(table, hessian._sizes, dtype)
            found = _sweep(on, [F], None, own, None, work, _no_tick)
            errors[t] = _keep_whole(on, F, own, 0, found[0])
    return errors


def _eliminate_in_segments(on, factorizations, plan, factors, levels, tick):
    """`InSegments` of each factorization, its factors being rows of those given; None where that has failed."""
    first = factorizations[0]
    hessian, dtype, count = first.hessian, first.factor_dtype, len(factorizations)
    table, (params, _, space), grid = hessian._table, first._blocks(), (count, plan.count)
    Y_mu = on._empty((count, plan.Y), dtype)
    work = on.elimination_workspace(table, hessian._sizes, dtype, count * plan.count, plan)
    records, guess = on.put(plan.records), dtype.type(np.ldexp(1.0, segments.GUESS))
    alpha = on.put(segments.scales(plan, first._hessian_norm, levels).astype(dtype))
    on._launch(segments.start_segments, grid, records, alpha, guess, work.places, work.front, work.carried)
    found = _sweep(on, factorizations, plan, factors, Y_mu, work, tick)
    seams, runs = segments.seams_together(plan, count)
    lin = _seam_blocks(on, plan, count, dtype)
    seam_work = on.elimination_workspace(seams, plan.sizes, dtype, count, by_blocks=True)
    on._launch(
        segments.form_seams, grid, on._table(table), records, on._table(seams), alpha, guess, work.places, work.front,
        work.carried, lin, seam_work.front,
    )
    lengths = {name: getattr(plan.sizes, name) for name in checkpoints.PACKED}
    together = plan.sizes._replace(**{name: count * length for name, length in lengths.items()})
    seam_factors = on.allocate_factors(together, seams.size, dtype)
    # Seams are on the scale of the Hessian in their states: the smallest of them.
    scale = np.ldexp(1.0, -2 * int(levels.max()))
    pivotings = [
        (scale * F._pivoting.singular, scale * F._pivoting.perturbation, np.inf, 0.0) for F in factorizations
    ]
    batch = Factors(*[array.reshape(1, array.size) for array in seam_factors])
    seam_found = on.eliminate_runs(seams, runs, params, lin, space, [0.0], pivotings, batch, None, seam_work)
    # Those of the seams are the same for all.
    Dx, Dz = (on.part(array, slice(0, array.size // count)) for array in (lin.Dx, lin.Dz))

    def part(name, array, t):
        length = lengths.get(name, plan.count - 1)
        return on.part(array, slice(t * length, (t + 1) * length))

    return [
        InSegments(
            plan.bounds, _row(on, factors, t), on.row(Y_mu, t),
            Factors(*[part(name, array, t) for name, array in seam_factors._asdict().items()]), Dx, Dz,
        )
        if found[t][0] == OK and seam_found[t][0] == OK else None
        for t in range(count)
    ]


def _no_tick(num_layers):
    """Counted already."""


def _keep_whole(on, factorization, factors, t, found):
    """Give it row t of the factors; a ``LinAlgError`` where the elimination has failed."""
    code, layer = found
    if code != OK:
        return factorization._not_finite(layer)
    factorization._keep(_row(on, factors, t))
    return None


def _row(on, factors, t):
    return Factors(*[on.row(array, t) for array in factors])


def _sweep(on, factorizations, plan, factors, Y_mu, work, tick):
    """Run by run through all segments: ``(status, layer)`` of each factorization, the first that is not `OK`."""
    first, count = factorizations[0], len(factorizations)
    table, (params, lin, space) = first.hessian._table, first._blocks()
    bounds = (0, table.size) if plan is None else plan.bounds
    shifts, found = [F._shift for F in factorizations], [(OK, 0)] * count
    queues = [first._runs(start, stop) for start, stop in zip(bounds[:-1], bounds[1:])]
    for pieces in itertools.zip_longest(*queues):
        # A segment of fewer runs than others has nothing left to do.
        pieces = [(start, start, 0) if piece is None else piece for piece, start in zip(pieces, bounds)]
        ends = [(start, stop) for start, stop, _ in pieces]
        pivotings = [F._pivoting_at(level) for F in factorizations for _, _, level in pieces]
        if plan is None:
            results = on.eliminate_layers(table, *ends[0], params, lin, space, shifts, pivotings, factors, work)
        else:
            runs = plan.runs(ends)
            results = on.eliminate_runs(table, runs, params, lin, space, shifts, pivotings, factors, Y_mu, work)
        for t in range(count):
            for result in results[t * len(pieces) : (t + 1) * len(pieces)]:
                if found[t][0] == OK and result[0] != OK:
                    found[t] = result
        if all(code != OK for code, _ in found):
            break
        tick(count * sum(stop - start for start, stop in ends))
    return found


def _add_seams(on, pivots, plan, seams, alpha, levels):
    """Let the pivots of the layers before the seams count for those of the seams as well.

    Of the 2 c pivots of a seam c are negative, for its multipliers.
    """
    found = type(pivots).allocate(plan.count - 1)
    found.fill(checkpoints.whole(plan.seams[:-1], plan.sizes)[0], plan.seams, seams, on.take)
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


def _runs(factorization, plan, num_vectors, back):
    """Run by run through all segments, in the order of a sweep: their records."""
    spans = [checkpoints.Segment(start, stop, (), 0) for start, stop in zip(plan.bounds[:-1], plan.bounds[1:])]
    queues = [factorization._pieces(span, num_vectors, back) for span in spans]
    for pieces in itertools.zip_longest(*queues):
        # A segment of fewer runs than others has nothing left to do.
        done = [0 if back else span.stop - span.start for span in spans]
        pieces = [(end, end) if piece is None else piece for piece, end in zip(pieces, done)]
        yield plan.runs([(span.start + start, span.start + stop) for span, (start, stop) in zip(spans, pieces)])


def substitute_in_segments(on, factorization, kept, b, x, check):
    """Both sweeps of a solve, x <- b (k, P) times the factors' inverse: all segments, the seams, all segments again."""
    hessian, dtype, k = factorization.hessian, factorization.factor_dtype, b.shape[0]
    table, (params, lin, space), shift = hessian._table, factorization._blocks(), factorization._shift
    plan = on.segments(table, hessian.num_samples, kept.bounds)
    work = on.substitution_workspace(hessian._sizes, k * plan.count, hessian.num_samples, dtype)
    size = plan.sizes.parameters
    right, found = on._empty((k, size), dtype), on._empty((k, size), dtype)
    for runs in _runs(factorization, plan, k, True):
        check()
        on.substitute_runs(
            substitute.substitute_back, table, runs, params, lin, space, kept.factors, kept.Y_mu, shift, b, x, right, work
        )
    nothing = on._empty(1, dtype)
    short = Linearisation(*[nothing] * 4, kept.Dx, kept.Dz, *[nothing] * 3, on._empty((1, 1), dtype), lin.curvature)
    seam_work = on.substitution_workspace(plan.sizes, k, 1, dtype)
    runs = segments.whole(plan.seams[:-1], 0, plan.count - 1)
    for kernel in (substitute.substitute_back, substitute.substitute_forth):
        on.substitute_runs(
            kernel, plan.seams, runs, params, short, RowSpace(nothing, nothing), kept.seams, None, 0.0,
            Rows(right, on.stream), Rows(found, on.stream), None, seam_work,
        )
    for runs in _runs(factorization, plan, k, False):
        check()
        on.substitute_runs(
            substitute.substitute_forth, table, runs, params, lin, space, kept.factors, kept.Y_mu, shift, b, x, found,
            work,
        )
