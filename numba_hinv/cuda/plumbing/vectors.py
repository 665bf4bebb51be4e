"""Vectors on the device: `Vectors`, a (k, P) array with as much of NumPy's interface as solves and estimates ask of
it.
"""

import numba.cuda
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ...kernels.dense import norm
from ...kernels.dense.norm import LARGEST, LEAST
from .launch import launch
from .target import BLOCK, SIMULATED, cuda, device, kernel, largest, start_team, total

# Blocks to a row, of elementwise kernels and of reductions.
_BLOCKS = 2 if SIMULATED else 256
times_power = device(norm.times_power)


@kernel
def _combine(alpha, x, beta, y, out):
    """out <- alpha x + beta y"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[i, j] = alpha * x[i, j] + beta * y[i, j]


@kernel
def _times(x, y, out):
    """out <- x y, entry by entry"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[i, j] = x[i, j] * y[i, j]


@kernel
def _scale(x, factors, divide, out):
    """out <- each row of x times its factor, or divided by it"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[i, j] = x[i, j] / factors[i] if divide else x[i, j] * factors[i]


@kernel
def _ldexp(x, exponents, out):
    """out <- each row of x times 2^exponent"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[i, j] = times_power(float(x[i, j]), exponents[i])


@kernel
def _gather(x, index, out):
    """out[i] <- x[index[i]]; also a copy to another dtype"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[i, j] = x[index[i], j]


@kernel
def _scatter(x, index, out):
    """out[index[i]] <- x[i]"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[index[i], j] = x[i, j]


@kernel
def _fill(value, out):
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        out[i, j] = value


@kernel
def _combinations(part, basis, out):
    """out <- part @ basis"""
    i = cuda.blockIdx.y
    for j in range(cuda.grid(1), out.shape[1], cuda.gridsize(1)):
        value = 0.0
        for k in range(part.shape[1]):
            value += part[i, k] * basis[k, j]
        out[i, j] = value


@kernel
def _partial_products(x, y, exponents, out):
    """out[i, block] <- the block's part of the product of rows of x and y, both times 2^exponent; y may be one row"""
    team = start_team()
    i = cuda.blockIdx.y
    row, value = i if y.shape[0] > 1 else 0, 0.0
    for j in range(cuda.grid(1), x.shape[1], cuda.gridsize(1)):
        one, two = float(x[i, j]), float(y[row, j])
        if exponents[i] != 0:
            one, two = times_power(one, exponents[i]), times_power(two, exponents[i])
        value += one * two
    value = total(team, value)
    if team.rank == 0:
        out[i, cuda.blockIdx.x] = value


@kernel
def _partial_largest(sign, x, out):
    """out[i, block] <- the block's part of the largest entry of row i of x times the sign, and of 0"""
    team = start_team()
    i, value = cuda.blockIdx.y, 0.0
    for j in range(cuda.grid(1), x.shape[1], cuda.gridsize(1)):
        entry = sign * float(x[i, j])
        if entry > value or entry != entry:
            value = entry
    value, _ = largest(team, value, 0)
    if team.rank == 0:
        out[i, cuda.blockIdx.x] = value


class Vectors(NDArrayOperatorsMixin):
    """k vectors of P numbers on the device, a (k, P) array.

    The sums, products and scalings of NumPy that `refinement` and `factorization` use work on them; arrays of NumPy are
    copied to the device where they meet them. Reductions are NumPy arrays. Indexing takes rows.
    """

    ndim = 2

    def __init__(self, data, stream=0):
        self.data_on_device, self.stream = data, stream
        self.shape, self.dtype = tuple(data.shape), np.dtype(data.dtype)

    @classmethod
    def empty(cls, shape, dtype, stream=0):
        return cls(numba.cuda.device_array(shape, dtype, stream=stream), stream)

    @classmethod
    def of(cls, array, stream=0):
        """Those of a NumPy array, or `Vectors` as they are."""
        if isinstance(array, Vectors):
            return array
        return cls(numba.cuda.to_device(np.ascontiguousarray(array), stream=stream), stream)

    @property
    def size(self):
        return self.shape[0] * self.shape[1]

    def __array__(self, dtype=None, copy=None):
        array = to_host(self.data_on_device, self.stream)
        return array if dtype is None else array.astype(dtype, copy=False)

    def _launch(self, kernel, *arguments):
        blocks = max(1, min(_BLOCKS, -(-self.shape[1] // BLOCK)))
        launch(kernel, (blocks, self.shape[0]), self.stream, *arguments)
        return self

    def _like(self, shape=None, dtype=None):
        return Vectors.empty(shape or self.shape, dtype or self.dtype, self.stream)

    def _to_device(self, array):
        return numba.cuda.to_device(np.ascontiguousarray(array), stream=self.stream)

    def _places(self, index):
        return np.atleast_1d(np.arange(self.shape[0], dtype=np.int64)[index])

    def __getitem__(self, index):
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(self.shape[0])
            return Vectors(self.data_on_device[start : max(start, stop)], self.stream)
        places = self._places(index)
        return self._like((places.size, self.shape[1]))._gather(self, places)

    def _gather(self, x, places):
        return self._launch(_gather, x, self._to_device(places), self)

    def __setitem__(self, index, value):
        places = self._places(index)
        if isinstance(value, (int, float)):
            value = self._like((places.size, self.shape[1]))._launch_fill(value)
        value = Vectors.of(value, self.stream)
        value._launch(_scatter, value, self._to_device(places), self)

    def _launch_fill(self, value):
        return self._launch(_fill, float(value), self)

    def astype(self, dtype):
        return self._like(dtype=dtype)._gather(self, np.arange(self.shape[0], dtype=np.int64))

    def copy(self):
        return self.astype(self.dtype)

    def _reduced(self, kernel, *arguments):
        blocks = max(1, min(_BLOCKS, -(-self.shape[1] // (4 * BLOCK))))
        parts = numba.cuda.device_array((self.shape[0], blocks), np.float64, stream=self.stream)
        launch(kernel, (blocks, self.shape[0]), self.stream, *arguments, parts)
        return to_host(parts, self.stream)

    def _products(self, other, exponents=None):
        if exponents is None:
            exponents = np.zeros(self.shape[0], np.int32)
        return self._reduced(_partial_products, self, other, self._to_device(exponents.astype(np.int32))).sum(axis=1)

    def lengths(self):
        """2-norm of each row, (k,), without overflow or underflow inside."""
        found = np.sqrt(self._products(self))
        if ((LEAST < found) & (found < LARGEST)).all():
            return found
        tops = np.maximum(self.max(axis=1, initial=0.0), -self.min(axis=1, initial=0.0))
        exponents = np.where((tops > 0.0) & (tops < np.inf), np.frexp(tops)[1], 0)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ldexp(np.sqrt(self._products(self, -exponents)), exponents)

    def max(self, axis=None, initial=0.0):
        """Largest entry, or that of each row, at least 0."""
        found = self._reduced(_partial_largest, 1.0, self)
        return found.max(axis=1, initial=initial) if axis == 1 else found.max(initial=initial)

    def min(self, axis=None, initial=0.0):
        """Smallest entry, or that of each row, at most 0."""
        found = -self._reduced(_partial_largest, -1.0, self)
        return found.min(axis=1, initial=initial) if axis == 1 else found.min(initial=initial)

    def sum(self):
        ones = self._like((1, self.shape[1]))._launch_fill(1.0)
        return float(self._products(ones).sum())

    def __array_function__(self, function, types, arguments, options):
        if function is np.empty_like:
            return self._like(**options)
        if function is np.inner:
            # Of k rows and one row.
            basis, row = (Vectors.of(argument, self.stream) for argument in arguments)
            return basis._products(row)[:, None]
        return NotImplemented

    def __array_ufunc__(self, ufunc, method, *inputs, out=(None,), casting=None):
        if method != "__call__":
            return NotImplemented
        out = out[0]
        if ufunc is np.matmul:
            part, basis = inputs
            out = self._like((part.shape[0], basis.shape[1]))
            return out._launch(_combinations, self._to_device(part), basis, out)
        if out is None:
            out = self._like()
        one, two = inputs
        if ufunc is np.ldexp:
            exponents = np.broadcast_to(np.ravel(two).astype(np.int32), self.shape[:1])
            return out._launch(_ldexp, one, self._to_device(exponents), out)
        if ufunc in (np.add, np.subtract):
            one, two = Vectors.of(one, self.stream), Vectors.of(two, self.stream)
            return out._launch(_combine, 1.0, one, 1.0 if ufunc is np.add else -1.0, two, out)
        if ufunc is np.multiply and getattr(one, "shape", ()) == getattr(two, "shape", ()):
            return out._launch(_times, Vectors.of(one, self.stream), Vectors.of(two, self.stream), out)
        if ufunc in (np.multiply, np.divide):
            if ufunc is np.multiply and not isinstance(one, Vectors):
                one, two = two, one
            factors = np.broadcast_to(np.ravel(np.asarray(two, np.float64)), self.shape[:1])
            return out._launch(_scale, one, self._to_device(factors), ufunc is np.divide, out)
        return NotImplemented

    def add_multiple(self, factor, rows):
        """``self += factor * rows``."""
        self.combine(1.0, factor, rows)

    def combine(self, alpha, beta, rows):
        """``self <- alpha self + beta rows``."""
        self._launch(_combine, float(alpha), self, float(beta), rows, self)


def to_host(array, stream):
    """A NumPy array with the numbers of a device array."""
    found = array.copy_to_host(stream=stream)
    if stream:
        stream.synchronize()
    return found
