"""The dense matrix H of a system (docs/theory.md, section 13), chunk of samples by chunk, on all cores.

`Assembler` holds what the chunks have in common; `add` adds one of them to H, whose upper triangle alone is right until
`finish`. Chunks, and the pieces of H that threads take, are the same whatever the number of threads.
"""

import numpy as np

from ..kernels.steps.assembly_table import assembly, curve_flops
from ..kernels.sweeps import assemble
from ..runtime import memory_budget, threads
from .processor import CPU

# Numbers of what a chunk leaves for all threads, and of the scratch of each: 32 MB.
BUDGET = 1 << 22
# Samples of a chunk, at most: more of them do not pay any more. MEASURE
CHUNK = 512
# Flops of one compiled call, some milliseconds: Ctrl-C is heard between two, and threads are all busy to the end.
_CALL = 2e8
# Rows of H that one call completes.
_ROWS = 256


class Assembler:
    """What all chunks of samples of a chain have in common.

    Parameters
    ----------
    table, params, lin : as those of a `System`, on the host
    """

    def __init__(self, table, params, lin, num_threads=None):
        self.table, self.params, self.lin = table, params, lin
        self.plan = assembly(table, lin.output.shape[0], BUDGET, CHUNK, assemble.SLICE_ROWS)
        self._calls = self._runs(self.plan.flops * self.plan.chunk)
        self._samples = self._runs(np.full(self.plan.chunk, curve_flops(table) + 1.0))
        reach_blas = bool(np.maximum(table["n_in"], table["n_out"]).max() >= 192)
        self.workers = threads.num_workers(num_threads, max(len(self._calls), len(self._samples)), reach_blas)
        self._scratch = []

    @staticmethod
    def _runs(flops):
        """Ends of consecutive runs of about `_CALL` flops."""
        run = (np.cumsum(flops) // _CALL).astype(int)
        bounds = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(flops)]
        return list(zip(bounds[:-1], bounds[1:]))

    @property
    def num_bytes(self):
        """Bytes beside H."""
        return 8 * (self.plan.kept + self.workers * self.plan.scratch)

    def allocate(self):
        CPU.load(np.dtype(np.float64))
        self._kept = np.empty(self.plan.kept)
        self._scratch = [np.empty(self.plan.scratch) for _ in range(self.workers)]
        assemble.prepare(self.table, self.plan.places, self.params, self.lin, self._kept)

    def add(self, begin, end, H, fresh, check=threads.no_check):
        """Add what samples begin..end-1 have in H; set H where nothing was added before."""
        self._run([lambda scratch, run=run: self._curve(begin, end, run, scratch) for run in self._samples], check)
        self._run([lambda scratch, run=run: self._rows(begin, end, run, H, fresh, scratch) for run in self._calls], check)

    def _run(self, jobs, check):
        def guarded(job):
            def run(wanted):
                wanted()
                check()
                scratch = self._scratch.pop()
                try:
                    job(scratch)
                finally:
                    self._scratch.append(scratch)

            return run

        try:
            threads.run([guarded(job) for job in jobs], self.workers)
        except threads.JobFailed as failure:
            raise failure.__cause__ from None

    def _curve(self, begin, end, run, scratch):
        plan, (first, last) = self.plan, run
        last = min(last, end - begin)
        work = scratch[: plan.curve]
        assemble.curve(self.table, plan.places, self.params, self.lin, self._kept, begin, first, last, work)

    def _rows(self, begin, end, run, H, fresh, scratch):
        plan = self.plan
        bounds = np.cumsum([plan.tangents, plan.tangents, plan.mixed, plan.rows, plan.sums, plan.patches])
        parts = np.split(scratch[: bounds[-1]], bounds[:-1])
        assemble.assemble(
            self.table, plan.places, plan.cuts, plan.pieces[run[0] : run[1]], begin, end - begin, self.params, self.lin,
            self._kept, H, fresh, *parts,
        )

    def finish(self, H, l2, check=threads.no_check):
        """Add what is not a sum over samples, and the lower triangle."""
        P = H.shape[0]
        assemble.add_constant(self.table, self.plan.places, self.lin, l2, H)
        starts = range(0, P, _ROWS)
        self._run([lambda _, at=at: assemble.complete(at, min(_ROWS, P - at), H) for at in starts], check)


def dense(system, out=None, num_threads=None, check=threads.no_check):
    """H of a `System` as a (P, P) array of float64, exactly symmetric; not finite where that overflows."""
    params, lin = system.on_host()
    P, B = system.num_params, system.num_samples
    assembler = Assembler(system.table, params, lin, num_threads)
    memory_budget.require(8 * P * P * (out is None) + assembler.num_bytes, f"the dense Hessian of P = {P} parameters")
    H = np.empty((P, P)) if out is None else out
    assembler.allocate()
    for begin in range(0, B, assembler.plan.chunk):
        assembler.add(begin, min(begin + assembler.plan.chunk, B), H, begin == 0, check)
    assembler.finish(H, system.l2, check)
    return H
