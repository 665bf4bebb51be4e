"""Solvers for many dampings of one system at once: on all cores, or in one launch on a GPU."""

from ..factors import choice
from ..runtime import threads
from ..runtime.progress import bar
from ..system.shifted import Shifted
from .solver import Solver


def solvers(system, dampings, dtype, method="auto", checkpoint=False, num_threads=None, progress=False):
    """A settled `Solver` for each damping, in their order, bitwise that of one alone but where they share a spectrum.

    A ``LinAlgError`` names the first damping that failed, with its index.
    """
    on, workers = system.on, system.on.num_workers(num_threads, len(dampings), system.reaches_blas())
    # All that they share is made here, before there are threads.
    scales = [system.scaling(damping, dtype) for damping in dampings]
    method = choice.chosen(system, dtype, method, checkpoint, len(dampings))
    choice.require(system, dtype, method, checkpoint, dict.fromkeys(scales), len(dampings), workers)
    on.load(dtype, system.table)
    blocks = choice.shared_blocks(system, dtype, method, scales)
    matrices = [Shifted(system, damping, dtype, scale, blocks[scale]) for damping, scale in zip(dampings, scales)]
    with bar(progress, len(dampings) * system.num_layers, "factorize_many", "layer") as shown:
        if on.elimination.batches and not checkpoint:
            factors, workers = choice.factorize_batch(matrices, shown.update), 1
            jobs = [_settling(*pair) for pair in zip(matrices, factors)]
        else:
            jobs = [_factorizing(matrix, method, checkpoint, shown.update) for matrix in matrices]
        return threads.run_each(jobs, workers, "dampings", "damping")


def _factorizing(matrix, method, checkpoint, update):
    def job(check):
        def tick(num_layers):
            check()
            update(num_layers)

        return Solver.factorize(matrix, method, checkpoint, tick)

    return job


def _settling(matrix, factors):
    """A job for factors that are there already, or for the error in their place."""

    def job(check):
        if isinstance(factors, Exception):
            raise factors
        return Solver(matrix, factors).settled()

    return job
