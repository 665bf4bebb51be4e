"""The dense matrix H of a system (docs/theory.md, section 13), chunk of samples by chunk, on all cores.

An `Assembler` adds what its samples have in H to the upper triangle, so that H of many batches is a sum, and `finish`
does the rest. Chunks, and the pieces of H that threads take, are the same whatever the number of threads, and every
number of H is summed in the order of the samples: so is the result. Where products with H cost less (tiny problems, or
few parameters that act through many states), `by_products` makes H of those.
"""

import numpy as np

from ..kernels.dense import product
from ..kernels.steps.assembly_table import assembly, curve_flops
from ..kernels.steps.layer_table import BLOCKS
from ..kernels.sweeps import assemble
from ..runtime import columns, memory_budget, threads
from ..runtime.progress import bar
from .cpu import CPU

# Numbers of what a chunk leaves for all threads, and of the scratch of each: 32 MB.
BUDGET = 1 << 22
# Samples of a chunk, at most. Microseconds of one core a sample with 62 / 120 / 225 / 450 of them, 64-16x20-10: 1420,
# 1310, 1230, 1200; with 225 / 450 / 900, 64-8x10-10: 49, 47, 47.
CHUNK = 512
# Flops of one compiled call, some milliseconds: Ctrl-C is heard between two, and threads are all busy to the end.
_CALL = 2e8
# Rows of H that one call completes.
_ROWS = 256
# Microseconds of H by products, and of assembling it: for a start, for each layer, for each number of H, for each piece
# of H, and for 1000 flops. Within a third of what was measured for P = 40 to 9,000 and B = 1 to 1,800.
_PRODUCTS = {"start": 50.0, "number": 0.008, "flops": 0.05}
_ASSEMBLY = {"start": 200.0, "layer": 20.0, "number": 0.003, "piece": 0.1, "flops": 0.04}
# Fewer parameters than this, and parameters times samples: there is no need to ask.
_TINY, _TINY_WORK = 160, 4096


class Assembler:
    """What the samples of a batch have in the dense matrix.

    Parameters
    ----------
    table, params, lin : as those of a `System`, on the host
    """

    def __init__(self, table, params, lin, num_threads=None):
        self.table, self.params, self.lin = table, params, lin
        self.num_params = int(table["p"].sum())
        self.plan = assembly(table, lin.output.shape[0], BUDGET, CHUNK, assemble.SLICE_ROWS)
        self._calls = _runs(self.plan.flops * self.plan.chunk)
        self._samples = _runs(np.full(self.plan.chunk, curve_flops(table) + 1.0))
        n_in, n, width = table["n_in"], table["n_out"], self.plan.places["width"]
        reach_blas = int((np.maximum(n_in, n) * n.max() * np.maximum(width, n_in)).max()) >= product.BLAS_WORK
        self.workers = threads.num_workers(num_threads, max(len(self._calls), len(self._samples)), reach_blas)

    @property
    def num_bytes(self):
        """Bytes beside H."""
        return 8 * (self.plan.kept + self.workers * self.plan.scratch)

    def is_affordable(self):
        """Whether it keeps to the budget, or at least has more than one sample in a chunk."""
        return max(self.plan.kept, self.plan.scratch) <= 2 * BUDGET or self.plan.chunk > 1

    def seconds(self):
        """Of one core, estimated."""
        B, L = self.lin.output.shape[0], self.table.size
        own = self.plan.places["groups"] * np.arange(L, 0, -1)
        flops = B * (self.plan.flops.sum() + curve_flops(self.table))
        return _seconds(_ASSEMBLY, layer=L, number=self.num_params**2, piece=int(own.sum()), flops=flops / 1e3)

    def add(self, H, fresh, check=threads.no_check, tick=lambda samples: None):
        """Add to the upper triangle of H what all samples have in it; set it where nothing was there before."""
        CPU.load(np.dtype(np.float64))
        kept, scratch = np.empty(self.plan.kept), [np.empty(self.plan.scratch) for _ in range(self.workers)]
        places, B, size = self.plan.places, self.lin.output.shape[0], self.plan.chunk
        assemble.prepare(self.table, places, self.params, self.lin, kept)
        for begin in range(0, B, size):
            count = min(size, B - begin)
            self.add_chunk(begin, count, kept, H, fresh and begin == 0, scratch, check)
            tick(count)
        assemble.add_constant(self.table, self.lin, H)

    def add_chunk(self, begin, count, kept, H, fresh, scratch, check=threads.no_check):
        """The same of ``count`` samples from ``begin`` on; kept and scratch are of as many numbers as `plan` says."""
        table, plan = self.table, self.plan
        common = self.params, self.lin, kept
        bounds = np.cumsum([plan.tangents, plan.tangents, plan.mixed, plan.rows, plan.sums, plan.patches])

        def back(run, work):
            first, last = run[0], min(run[1], count)
            assemble.curve(table, plan.places, *common, begin, first, last, work[: plan.curve])

        def rows(run, work):
            pieces, parts = plan.pieces[run[0] : run[1]], np.split(work[: bounds[-1]], bounds[:-1])
            assemble.assemble(table, plan.places, plan.cuts, pieces, begin, count, *common, H, fresh, *parts)

        for job, runs in ((back, self._samples), (rows, self._calls)):
            _run(job, runs, self.workers, check, scratch)


def _runs(flops):
    """Ends of consecutive runs of about `_CALL` flops."""
    run = (np.cumsum(flops) // _CALL).astype(int)
    bounds = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(flops)]
    return list(zip(bounds[:-1], bounds[1:]))


def _run(job, runs, workers, check, scratch):
    """``job(run, one of scratch)`` for all runs, on threads."""
    free = list(scratch)

    def one(run, wanted):
        wanted()
        check()
        work = free.pop()
        try:
            job(run, work)
        finally:
            free.append(work)

    try:
        threads.run([lambda wanted, run=run: one(run, wanted) for run in runs], workers)
    except threads.JobFailed as failure:
        raise failure.__cause__ from None


def finish(table, places, H, l2, workers, check=threads.no_check):
    """Add l2 to the diagonal, and fill in what `Assembler.add` leaves out: the lower triangle."""
    assemble.complete_diagonal(table, places, l2, H)
    P = H.shape[0]
    starts = [(at, min(_ROWS, P - at)) for at in range(0, P, _ROWS)]
    _run(lambda run, _: assemble.complete(*run, H), starts, workers, check, [None] * workers)


def _seconds(model, **counts):
    return 1e-6 * (model["start"] + sum(model[name] * count for name, count in counts.items()))


def _assembler(system, num_threads):
    """The `Assembler` of a system; None where products with H cost less, or on a GPU, which is fast at these."""
    P, B, table = system.num_params, system.num_samples, system.table
    if system.on.name != CPU.name or (P < _TINY and P * B < _TINY_WORK):
        return None
    n, n_in, p, N, rows = (table[name].astype(float) for name in ("n_out", "n_in", "p", "N", "rows"))
    taps = table["taps"]
    states = np.where(taps > 0, N + 2.0 * B * n * taps, N * (n_in + 2.0 * n))
    blocks = 4.0 * B * n * p + 2.0 * p * p + 4.0 * p * N + 2.0 * states
    flops = P * float(np.where(table["kind"] == BLOCKS, blocks, 12.0 * rows * p).sum())
    limit = _seconds(_PRODUCTS, number=P * P, flops=flops / 1e3)
    if _seconds(_ASSEMBLY, layer=table.size, number=P * P) >= limit:
        return None
    found = Assembler(table, system.weights, system.lin, num_threads)
    return found if found.is_affordable() and found.seconds() < limit else None


def dense(system, out=None, num_threads=None, check=threads.no_check, progress=False):
    """H of a `System`, as `System.dense` says."""
    P = system.num_params
    found = _assembler(system, num_threads)
    num_bytes = 8 * P * P * (out is None) + (found.num_bytes if found else 0)
    what = f"the dense Hessian of P = {P} parameters"
    memory_budget.require(num_bytes, what, "take H @ v, which needs no more than vectors")
    H = np.empty((P, P)) if out is None else out
    if found:
        with bar(progress, system.num_samples, "assemble", " samples") as shown:
            found.add(H, True, check, shown.update)
        return _completed(system, found, H, check, progress)
    return by_products(system, H, check, progress)


def total(matrix, out=None, num_threads=None, check=threads.no_check, progress=False):
    """H of a `total.Total`, whose terms are added one after the other, as `Matrix.dense` says."""
    P, found = matrix.num_params, None
    memory_budget.require(8 * P * P * (out is None) + 16 * BUDGET, f"the dense Hessian of P = {P} parameters")
    H = np.empty((P, P)) if out is None else out
    with bar(progress, matrix.num_samples, "assemble", " samples") as shown:
        for weight, system in matrix.parts():
            fresh = found is None
            found = Assembler(system.table, system.weights, weighted(system.lin, weight), num_threads)
            if not found.is_affordable():
                return by_products(matrix, H, check, progress)
            found.add(H, fresh, check, shown.update)
    return _completed(matrix, found, H, check, progress)


def _completed(matrix, assembler, H, check, progress):
    """H of a matrix, of which an `Assembler` has added all samples."""
    finish(assembler.table, assembler.plan.places, H, matrix.l2, assembler.workers, check)
    if matrix.ridge is not None:
        H[np.diag_indices_from(H)] += matrix.ridge
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(H.sum()):
            return H
    # Numbers may overflow on the way to where they do not matter.
    return by_products(matrix, H, check, progress)


def weighted(lin, weight):
    """The `Linearisation` of ``weight`` times the loss."""
    names = "D", "lam", "Dxx", "Dzx", "Dzz", "curvature"
    return lin if weight == 1.0 else lin._replace(**{name: weight * getattr(lin, name) for name in names})


def by_products(system, H, check=threads.no_check, progress=False):
    """H <- the products of a system with the unit vectors, made symmetric."""
    P = system.num_params
    with bar(progress, P, "multiply", " columns") as shown, np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, P, columns.SHORT_BLOCK):
            count = min(columns.SHORT_BLOCK, P - start)
            rows = np.zeros((count, P))
            rows[np.arange(count), start + np.arange(count)] = 1.0
            found = system.apply(rows, check)
            if not np.isfinite(found.sum()):
                found = system.apply_smaller(rows, check)
            H[start : start + count] = found
            if not np.isfinite(H[start : start + count]).all():
                raise np.linalg.LinAlgError("v: the product with the Hessian overflows float64")
            shown.update(count)
        H += H.T.copy()
        H *= 0.5
    return H
