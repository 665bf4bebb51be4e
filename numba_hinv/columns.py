"""Many columns at a time: vectors (P, k) as the sweeps take them, in blocks of rows, block after block on all cores.

Blocks are the same whatever the number of threads, so that results are, too.
"""

import numpy as np
from numba import njit

from . import threads

# Enough for the sweeps' products, few enough for a block's vectors to be read from memory in one piece: 64 bytes.
BLOCK = 8
# Columns of at most so many numbers stay in cache, where fewer calls count for more.
_SHORT, SHORT_BLOCK = 1 << 15, 32
# Numbers per piece of what is done in pieces.
_PIECE = 1 << 15
# Below so many numbers, threads cost more than they bring.
_WORTH_THREADS = 1 << 15


def run(job, shape, workers, block=None):
    """Results of ``job(start, stop, check)`` of all blocks of columns of a (P, k) array, in order."""
    num_rows, num_columns = shape
    block = block or block_of(num_rows)
    if num_rows * num_columns < _WORTH_THREADS:
        workers = 1
    starts = range(0, num_columns, block)
    jobs = [lambda check, at=at: job(at, min(at + block, num_columns), check) for at in starts]
    try:
        return threads.run(jobs, workers)
    except threads.JobFailed as failure:
        raise failure.__cause__ from None


def block_of(num_rows):
    """Columns per block."""
    return BLOCK if num_rows > _SHORT else SHORT_BLOCK


def gather(array, start, stop):
    """Columns of a contiguous array as rows in float64."""
    if not isinstance(array, np.ndarray):
        return array.gather(start, stop)
    if array.shape[1] == 1:
        return np.ascontiguousarray(array.reshape(1, -1), np.float64)
    rows = np.empty((stop - start, array.shape[0]))
    for first in range(0, array.shape[0], _PIECE):
        _gather(array, start, first, min(first + _PIECE, array.shape[0]), rows)
    return rows


def scatter(rows, array, start):
    """Rows to columns of an array, from ``start`` on."""
    if not isinstance(array, np.ndarray):
        array.scatter(rows, start)
        return
    rows = np.asarray(rows)
    if array.shape[1] == 1:
        array[:, 0] = rows[0]
    else:
        for first in range(0, array.shape[0], _PIECE):
            _scatter(rows, start, first, min(first + _PIECE, array.shape[0]), array)


def add_multiple(factor, rows, to):
    """``to += factor * rows``, without a temporary array of their size."""
    if not isinstance(to, np.ndarray):
        to.add_multiple(factor, rows)
        return
    for row, sum_row in zip(rows, to):
        for at in range(0, row.size, _PIECE):
            sum_row[at : at + _PIECE] += factor * row[at : at + _PIECE]


@njit(cache=True, nogil=True)
def _gather(array, start, first, last, rows):
    for i in range(first, last):
        for t in range(rows.shape[0]):
            rows[t, i] = array[i, start + t]


@njit(cache=True, nogil=True)
def _scatter(rows, start, first, last, array):
    for i in range(first, last):
        for t in range(rows.shape[0]):
            array[i, start + t] = rows[t, i]
