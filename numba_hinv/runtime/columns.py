"""Many columns at a time: vectors (P, k) as the sweeps take them, in blocks of rows, block after block on all cores.

Blocks are the same whatever the number of threads, so that results are, too. Arrays in Fortran order, as results are,
have their columns as rows already; others are turned round a block at a time.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ..kernels.dense.microkernel import pointer, transpose, vector_columns
from ..kernels.dense.norm import squared_norm
from ..kernels.plumbing.compiled import kernel
from ..kernels.plumbing.memory import vector
from . import threads
from .annotations import Array, Check

# Two cache lines of a row of a C-contiguous array: one at a time is read a third more slowly. At most half of the
# columns, so that two cores have something to do.
BLOCK, LEAST_BLOCK = 16, 4
# Columns of at most so many numbers stay in cache, where fewer calls count for more.
_SHORT, SHORT_BLOCK = 1 << 15, 32
# Rows of an array that are turned round at a time, in the columns of a block: what is read once and written in pieces.
_PIECE = 1 << 9
# Rows that one compiled call turns round. Ctrl-C is heard between two: memory that is touched for the first time can
# cost twenty times as much as other memory.
_CALL = 1 << 17
# Below so many numbers, threads cost more than they bring.
_WORTH_THREADS = 1 << 15
# What `_turn` takes where nobody asks for squared norms.
_NO_SQUARES = np.empty(0)

_Compiled = TypeVar("_Compiled", bound=Callable[..., Any])
# To those who check types, a kernel is what it is made of.
_kernel: Callable[[_Compiled], _Compiled] = kernel


def run(job: Callable[..., Any], shape: tuple[int, int], workers: int, block: int | None = None) -> list[Any]:
    """Results of ``job(start, stop, check)`` of all blocks of columns of a (P, k) array, in order."""
    num_rows, num_columns = shape
    block = block or block_of(num_rows, num_columns)
    if num_rows * num_columns < _WORTH_THREADS:
        workers = 1
    starts = range(0, num_columns, block)
    jobs = [lambda check, at=at: job(at, min(at + block, num_columns), check) for at in starts]
    try:
        return threads.run(jobs, workers)
    except threads.JobFailed as failure:
        raise failure.__cause__ from None


def block_of(num_rows: int, num_columns: int) -> int:
    """Columns per block."""
    most = largest_block(num_rows)
    return most if most == SHORT_BLOCK else min(most, max(LEAST_BLOCK, -(-num_columns // 2)))


def largest_block(num_rows: int) -> int:
    """Columns per block, of many."""
    return BLOCK if num_rows > _SHORT else SHORT_BLOCK


class Buffers(threading.local):
    """Arrays (k, P) of float64 that a thread uses for one block after the other: new memory costs as much as a pass."""

    def rows(self, name: str, shape: tuple[int, int]) -> Array:
        """The array of this name, uninitialised."""
        array = self.__dict__.get(name)
        if array is None or array.size < shape[0] * shape[1]:
            array = self.__dict__[name] = np.empty(shape[0] * shape[1])
        return array[: shape[0] * shape[1]].reshape(shape)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialised (P, k) array whose columns are contiguous."""
    return np.empty(shape[::-1], dtype).T


def gather(array: Array, start: int, stop: int, buffers: Buffers, check: Check, squares: Array = _NO_SQUARES) -> Array:
    """Columns of an array as rows in float64, (k, P); not to be written to: they may be the array's own.

    Where they are turned round, their squared norms are added to ``squares`` (k,), if that is given.
    """
    if not isinstance(array, np.ndarray):
        return array.gather(start, stop)
    if array.flags.f_contiguous:
        return array.T[start:stop].astype(np.float64, copy=False)
    rows = buffers.rows("gathered", (stop - start, array.shape[0]))
    for first in range(0, array.shape[0], _CALL):
        last = min(first + _CALL, array.shape[0])
        check()
        if array.dtype == np.float64:
            _turn(array, start, first, last, rows, squares)
        else:
            rows[:, first:last] = array[first:last, start:stop].T
    return rows


def place(array: Array, start: int, stop: int) -> Array | None:
    """Where rows of float64 may be written for `scatter` to find them in place; None if that is nowhere."""
    return array.T[start:stop] if array.dtype == np.float64 else None


def scatter(rows: Array, array: Array, start: int) -> None:
    """Rows to columns of an array of `empty`, from ``start`` on."""
    if not isinstance(array, np.ndarray):
        array.scatter(rows, start)
        return
    rows, to = np.asarray(rows), array.T[start : start + rows.shape[0]]
    if not np.may_share_memory(rows, to):
        to[...] = rows


@_kernel
def _turn(array: Array, start: int, begin: int, end: int, rows: Array, squares: Array) -> None:
    """rows[:, begin:end] <- the transpose of those rows of columns start, ... of a C-contiguous array.

    The squared norms of what is written are added to ``squares``, (k,) or empty.
    """
    k, P = rows.shape
    unit = vector_columns(pointer(rows, 0))
    whole = k - k % unit
    for first in range(begin, end, _PIECE):
        last = min(first + _PIECE, end)
        count = (last - first) - (last - first) % unit
        if whole and count:
            source = pointer(array, first * array.shape[1] + start)
            transpose(count, whole, source, array.shape[1], pointer(rows, first), P)
        for t in range(k):
            for i in range(first + count if t < whole else first, last):
                rows[t, i] = array[i, start + t]
        for t in range(squares.size):
            squares[t] += squared_norm(vector(rows, t * P + first, last - first))
