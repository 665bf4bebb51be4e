"""Factorizations of ``H + damping I`` for many dampings at once: `factorize_many`."""

import numpy as np

from .runtime import columns, threads
from .factorization import Factorization, factor_dtype_of, require_memory
from .kernels.dense import product
from .runtime.progress import bar
from .runtime.validation import as_array, as_flag

# Blocks with fewer rows and columns than this never reach BLAS (`kernels.product`).
_BLAS_SIZE = 192


def factorize_many(hessian, dampings, factor_dtype=None, checkpoint=False, num_threads=None, progress=False):
    """`Hessian.factorize_many`."""
    dampings = as_array("dampings", dampings, (None,), np.float64).tolist()
    dtype = factor_dtype_of(hessian, factor_dtype)
    checkpoint = as_flag("checkpoint", checkpoint)
    workers = hessian._processor.num_workers(num_threads, len(dampings), reaches_blas(hessian))
    # All that factorizations share is made here, before there are threads.
    scales = [hessian._scaling(damping, dtype) for damping in dampings]
    require_memory(hessian, checkpoint, dtype, dict.fromkeys(scales), len(dampings), workers)
    hessian._processor.load(dtype)
    blocks = {scale: hessian._blocks(dtype, scale) for scale in dict.fromkeys(scales)}
    with bar(progress, len(dampings) * hessian._table.size, "factorize_many", "layer") as shown:
        if hessian._processor.eliminates_together and not checkpoint:
            jobs = _eliminate_together(hessian, dampings, dtype, scales, blocks, shown.update)
            return run_each(jobs, 1, "dampings", "damping")

        def job_of(damping, scale):
            def job(check):
                def tick(num_layers):
                    check()
                    shown.update(num_layers)

                return Factorization(hessian, damping, dtype, checkpoint, blocks[scale], tick)

            return job

        return run_each([job_of(*pair) for pair in zip(dampings, scales)], workers, "dampings", "damping")


def _eliminate_together(hessian, dampings, dtype, scales, blocks, tick):
    """Eliminate for all dampings that are scaled alike at once; jobs that give the factorizations, or what has failed."""

    def begin(damping, scale):
        try:
            return Factorization._unfactored(hessian, damping, dtype, blocks[scale])
        except np.linalg.LinAlgError as error:
            return error

    found = [begin(*pair) for pair in zip(dampings, scales)]
    for scale in blocks:
        alike = [at for at, F in enumerate(found) if scales[at] == scale and isinstance(F, Factorization)]
        errors = hessian._processor.eliminate_together([found[at] for at in alike], True, tick) if alike else []
        for at, error in zip(alike, errors):
            found[at] = error or found[at]

    def job_of(F):
        def job(check):
            if isinstance(F, Exception):
                raise F
            F._finish()
            return F

        return job

    return [job_of(F) for F in found]


def run_each(jobs, workers, name, single):
    """`threads.run` of one job an entry of ``name``: a ``LinAlgError`` about a ``single`` one says which entry it was."""
    try:
        return threads.run(jobs, workers)
    except threads.JobFailed as failure:
        error = failure.__cause__
        if isinstance(error, np.linalg.LinAlgError):
            reason = str(error).removeprefix(f"{single}: ")
            raise np.linalg.LinAlgError(f"{name}: at index {failure.index}: {reason}") from None
        raise error from None


def reaches_blas(hessian):
    """Whether the elimination has products that are large enough for BLAS."""
    return max(int(hessian._table["m"].max()), hessian.num_samples * hessian._sizes.width) >= _BLAS_SIZE


def solves_reach_blas(hessian):
    """Whether solves and products have products that are large enough for BLAS."""
    table, B = hessian._table, hessian.num_samples
    m, N, n_in, n_out = (table[name].astype(float) for name in ("m", "N", "n_in", "n_out"))
    block = columns.largest_block(hessian.shape[0])
    largest = max((m * np.maximum(m, N)).max(), (n_in * n_out * B).max(), (table["m"] * B * n_out).max())
    return largest * block >= product.BLAS_WORK or largest >= product.GEMV_WORK
