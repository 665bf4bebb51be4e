"""Vectors that no machine has as a whole: `Vectors`, with as much of NumPy's interface as refinement asks of it.

They have a part for every segment, a future of rows (k, P_s) of float64. A part is never written to, so that it can be
made again from what it was made of: what changes `Vectors` gives them other parts.
"""

import math

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from ..runtime import probes
from ..system import scaling


class Vectors(NDArrayOperatorsMixin):
    """k vectors of P numbers, a (k, P) array over a cluster.

    Parameters
    ----------
    cluster : Cluster
    parts : list of futures
    shape : (int, int)
    """

    ndim, dtype = 2, np.dtype(np.float64)

    def __init__(self, cluster, parts, shape):
        self.cluster, self.parts, self.shape = cluster, parts, shape

    @property
    def size(self):
        return self.shape[0] * self.shape[1]

    def _map(self, function, *others, count=None):
        """Those that a function makes of every part, with parts of others, or what is the same for all."""
        columns = [other.parts if isinstance(other, Vectors) else [other] * len(self.parts) for other in others]
        parts = self.cluster.map(function, self.parts, *columns)
        return Vectors(self.cluster, parts, (self.shape[0] if count is None else count, self.shape[1]))

    def _sum(self, function, *others):
        """The sum over all parts of what a function makes of each."""
        return sum(self.cluster.gather(self._map(function, *others).parts, "a part of a vector"))

    def _places(self, index):
        return np.atleast_1d(np.arange(self.shape[0])[index])

    def __getitem__(self, index):
        places = self._places(index)
        if np.array_equal(places, np.arange(self.shape[0])):
            return Vectors(self.cluster, self.parts, self.shape)
        return self._map(_take, places, count=places.size)

    def __setitem__(self, index, value):
        self.parts = self._map(_put, self._places(index), value).parts

    def lengths(self):
        """2-norm of each row, (k,), without overflow or underflow inside."""
        found = self.cluster.gather(self._map(scaling.lengths).parts, "a part of a vector")
        return np.array([math.hypot(*column) for column in zip(*found)])

    def combine(self, alpha, beta, rows):
        """``self <- alpha self + beta rows``."""
        self.parts = self._map(_combine, alpha, beta, rows).parts

    def __array_function__(self, function, types, arguments, options):
        if function is np.empty_like:
            return Vectors(self.cluster, self.parts, self.shape)._resized(options.get("shape"))
        if function is np.inner:
            basis, row = arguments
            return basis._sum(np.inner, row)
        if function is np.concatenate:
            (given,) = arguments
            parts = [self.cluster.submit(s, _stack, *own) for s, own in enumerate(zip(*(one.parts for one in given)))]
            return Vectors(self.cluster, parts, (sum(one.shape[0] for one in given), self.shape[1]))
        return NotImplemented

    def _resized(self, shape):
        return self if shape is None else self._map(_resized, shape[0], count=shape[0])

    def __array_ufunc__(self, ufunc, method, *inputs, out=(None,), **options):
        if method != "__call__":
            return NotImplemented
        if ufunc is np.matmul:
            part, basis = inputs
            return basis._map(_combinations, part, count=part.shape[0])
        one, two = inputs
        found = one._map(ufunc, two) if isinstance(one, Vectors) else two._map(_swapped, ufunc, one)
        if out[0] is None:
            return found
        out[0].parts = found.parts
        return out[0]


def _take(part, places):
    return part[places]


def _put(part, places, value):
    part = part.copy()
    part[places] = value
    return part


def _combine(part, alpha, beta, other):
    return alpha * part + beta * other


def _combinations(part, factors):
    return factors @ part


def _stack(*parts):
    return np.concatenate(parts)


def _resized(part, count):
    return np.zeros((count, part.shape[1]))


def _swapped(part, function, first):
    return function(first, part)


def random(cluster, function, seed, sizes):
    """`Vectors` whose parts are probes of `runtime.probes`, from seeds of their own."""
    parts = [cluster.submit(s, _probe, function, [seed, s], size) for s, size in enumerate(sizes)]
    return Vectors(cluster, parts, (1, sum(sizes)))


def _probe(name, seed, size):
    return getattr(probes, name)(int(np.random.SeedSequence(seed).generate_state(1)[0]), size)
