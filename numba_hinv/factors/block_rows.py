"""The blocked signed Cholesky ``A = R^T diag(sigma) R`` of a dense matrix, on all cores: its arrays, and its stages.

Interchanges stay within the blocks on the diagonal, so that A is read and written as a Cholesky factorization does it,
at the rate of matrix products. Of a positive definite matrix R is as large as its diagonal says. Of others it can be
larger without limit, where a block is nearly singular that the matrix is not: how much is watched, and beyond a limit
the factorization gives up. `kernels.dense.block_rows` has the layout and what a job does.
"""

import functools

import numpy as np

from ..kernels.dense import block_rows as kernels
from ..kernels.dense.signed_cholesky import pack_size, signed_cholesky, work_size
from ..kernels.plumbing.status import OK
from ..runtime import threads

# Rows of a block row, a multiple of `kernels.STRIP`. GF/s on one core with 96 / 192 / 240, definite matrices in
# float64, P = 500: 34 / 38 / 38, 1,200: 40 / 42 / 42, 3,000: 41 / 45 / 44; AVX-512, where LAPACK's potrf had 32, 32,
# 41.
ROWS = 240
# Strips of a job, some tenths of a millisecond.
_STRIPS = 5
_FINITE = np.finfo(float).max
# Matrices with fewer rows than this are factored sooner than threads are started.
_WORTH_THREADS = 800


class BlockRows:
    """R, sigma, and what is known of both.

    Parameters
    ----------
    size : int
        P, rows of the matrix.
    rows : int
        Of a block row.
    arrays : dict of str to array
        What `shapes` says.

    Attributes
    ----------
    growth : float
        The largest sum of squares of a column of R right of the diagonal blocks: no more than A has on its diagonal,
        where A is positive definite. Infinity where the factorization gave up.
    """

    def __init__(self, size, rows, arrays, growth=0.0):
        self.size, self.rows, self.arrays, self.growth = size, rows, arrays, growth
        self.count = -(-size // rows)

    @staticmethod
    def shapes(size, rows, dtype):
        """Type and shape of every array, by name: R in block rows, and what `signed_cholesky` makes of every block."""
        count, wide = -(-size // rows), np.dtype(np.float64)
        return {
            "rows": (dtype, (kernels.block_offset(size, rows, count),)),
            "L": (dtype, (count * pack_size(rows),)),
            "pivots": (np.dtype(np.int32), (2 * size,)),
            "scales": (dtype, (size, 2)),
            "num_negative": (np.dtype(np.int64), (count,)),
            "logarithms": (wide, (count,)),
        }

    @staticmethod
    def num_bytes(size, dtype):
        """(bytes that are kept, bytes of scratch)."""
        rows = ROWS
        shapes = BlockRows.shapes(size, rows, dtype).values()
        kept = sum(dtype.itemsize * int(np.prod(shape, dtype=object)) for dtype, shape in shapes)
        scratch = work_size(rows) + threads.available_cores() * rows * kernels.STRIP
        return kept, dtype.itemsize * (kernels.packed_size(size, rows) + scratch) + 8 * size

    @classmethod
    def factorize(cls, fill, size, dtype, limit, check=threads.no_check, rows=None, num_threads=None):
        """Those of a matrix, or None where a block is singular, numbers are not finite, or R grows beyond a limit.

        Parameters
        ----------
        fill : callable
            ``fill(start, out)`` writes rows of the matrix from ``start`` on, in the columns from there on.
        size : int
        dtype : numpy.dtype
        limit : float
            Of `growth`, where a pivot is negative.
        check : callable
            Called between jobs; what it raises ends the work.
        rows : int, optional
            Of a block row; a multiple of `kernels.STRIP`.
        num_threads : int, optional
            By default one a core. Changes no bit.
        """
        rows = rows or ROWS
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in cls.shapes(size, rows, dtype).items()}
        # Of this the last block may leave a part unused, and files hold numbers.
        arrays["L"].fill(0.0)
        found = cls(size, rows, arrays)
        workers = threads.num_workers(1 if size < _WORTH_THREADS else num_threads, found.count * found.count, False)
        threads.run_stages(_Making(found, fill, limit, workers).stages(), workers, check)
        return found if np.isfinite(found.growth) else None

    def bounds(self, k):
        """(first, last + 1) of the rows of block row k."""
        return k * self.rows, min((k + 1) * self.rows, self.size)

    def block_row(self, k):
        """Block row k, from the diagonal block on, (its rows, size - its first row)."""
        start, stop = self.bounds(k)
        at = kernels.block_offset(self.size, self.rows, k)
        return self.arrays["rows"][at : at + (stop - start) * (self.size - start)].reshape(stop - start, -1)

    def block(self, k):
        """(L, pivots, scales) of diagonal block k, as `signed_cholesky` has them."""
        start, stop = self.bounds(k)
        at = k * pack_size(self.rows)
        L = self.arrays["L"][at : at + pack_size(stop - start)]
        return L, self.arrays["pivots"][2 * start : 2 * stop], self.arrays["scales"][start:stop]

    @property
    def nbytes(self):
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def num_negative(self):
        return int(self.arrays["num_negative"].sum())

    def pivot_sizes(self):
        """About the moduli of the pivots' eigenvalues, (P,), in the order of the rows from which they come."""
        sizes, place = np.empty(self.size), np.empty(self.size, np.int64)
        for k in range(self.count):
            start, stop = self.bounds(k)
            _, pivots, scales = self.block(k)
            order = pivots[: stop - start]
            place[start:stop] = start + np.where(order < 0, ~order, order)
            sizes[place[start:stop]] = 1.0 / (scales.astype(float) ** 2).sum(axis=1)
        return sizes

    def signs(self, dtype):
        """sigma, (P,)."""
        sigma = np.ones(self.size, dtype)
        for k, negative in enumerate(self.arrays["num_negative"]):
            stop = self.bounds(k)[1]
            sigma[stop - negative : stop] = -1.0
        return sigma

    def forward(self, X, check=threads.no_check, first=0):
        """x <- R^-T x for each row of X (count, P), C-contiguous, that is zero left of block ``first``."""
        work = np.empty(2 * self.rows * len(X), X.dtype)
        for k in range(first, self.count):
            check()
            kernels.forward(self.arrays["rows"], self.rows, k, *self.block(k), X, work)

    def backward(self, X, check=threads.no_check):
        """x <- R^-1 x for each row of X (count, P), C-contiguous."""
        work = np.empty(2 * self.rows * len(X), X.dtype)
        for k in reversed(range(self.count)):
            check()
            kernels.backward(self.arrays["rows"], self.rows, k, *self.block(k), X, work)

    def multiply_signs(self, X):
        """x <- sigma x for each row of X."""
        for k, negative in enumerate(self.arrays["num_negative"]):
            if negative:
                stop = self.bounds(k)[1]
                part = X[:, stop - negative : stop]
                np.negative(part, out=part)


class _Making:
    """The factorization of one matrix: the stages, of jobs that may run at the same time, and what they share."""

    def __init__(self, found, fill, limit, workers):
        dtype, rows = found.arrays["rows"].dtype, found.rows
        self.found, self.fill, self.limit = found, fill, limit
        self.packed = np.empty(kernels.packed_size(found.size, rows), dtype)
        self.sums = np.zeros(found.size)
        self.pivot_work = np.empty(work_size(rows), dtype)
        self.free = [np.empty(rows * kernels.STRIP, dtype) for _ in range(workers)]
        self.largest = []

    def stages(self):
        found = self.found
        yield [functools.partial(self._fill, k) for k in range(found.count)]
        for k in range(found.count):
            if not self._factor_block(k):
                found.growth = np.inf
                return
            stop = found.bounds(k)[1]
            pieces = range(0, -(-(found.size - stop) // kernels.STRIP), _STRIPS)
            yield [functools.partial(self._solve, k, first) for first in pieces]
            found.growth = max(self.largest, default=found.growth)
            # Where all pivots are positive nothing grows, but numbers may overflow.
            is_definite = not found.arrays["num_negative"][: k + 1].any()
            if not found.growth <= (_FINITE if is_definite else self.limit):
                found.growth = np.inf
                return
            yield [
                functools.partial(self._update, k, i, first)
                for i in range(k + 1, found.count)
                for first in range((i - k - 1) * found.rows // kernels.STRIP, pieces.stop, _STRIPS)
            ]

    def _fill(self, k):
        self.fill(self.found.bounds(k)[0], self.found.block_row(k))

    def _factor_block(self, k):
        """Whether the block is finite and not singular."""
        found = self.found
        block = found.block_row(k)
        square = block[:, : len(block)]
        status, negative, _, logarithm = signed_cholesky(square, 0.0, 0.0, *found.block(k), self.pivot_work)
        square[...] = 0.0
        found.arrays["num_negative"][k], found.arrays["logarithms"][k] = negative, logarithm
        return status == OK and np.isfinite(logarithm)

    def _solve(self, k, first):
        found = self.found
        last = min(first + _STRIPS, -(-(found.size - found.bounds(k)[1]) // kernels.STRIP))
        work = self.free.pop()
        largest = kernels.solve_columns(
            found.arrays["rows"],
            found.size,
            found.rows,
            k,
            first,
            last,
            self._num_positive(k),
            *found.block(k),
            self.packed,
            self.sums,
            work,
        )
        self.free.append(work)
        self.largest.append(largest)

    def _update(self, k, i, first):
        found = self.found
        last = min(first + _STRIPS, -(-(found.size - found.bounds(k)[1]) // kernels.STRIP))
        kernels.update(
            found.arrays["rows"], found.size, found.rows, k, i, first, last, self._num_positive(k), self.packed
        )

    def _num_positive(self, k):
        return self.found.rows - int(self.found.arrays["num_negative"][k])
