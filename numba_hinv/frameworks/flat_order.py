"""The order of a flat vector of parameters, between that of a network and that of the arrays of another framework."""

import math

import numpy as np


class FlatOrder:
    """A permutation between the arrays that a framework keeps and the flat vector of a network.

    Parameters
    ----------
    paths : sequence of str
        What the arrays are called.
    shapes : sequence of tuple of int
    positions : (P,) array of int
        Of each number of the flat vector its place among the numbers of all arrays, each in row-major order, one array
        after the other.

    Raises
    ------
    ValueError
        A number of the arrays is at no place of the vector, or at more than one: the array is named.
    """

    def __init__(self, paths, shapes, positions):
        self.paths, self.shapes = tuple(paths), tuple(map(tuple, shapes))
        self.positions = np.asarray(positions, np.int64)
        self._ends = np.cumsum([math.prod(shape) for shape in self.shapes], dtype=np.int64)
        counts = np.bincount(self.positions, minlength=self.size)
        for wrong, reason in ((counts == 0, "does nothing to the outputs"), (counts > 1, "is used more than once")):
            if wrong.any():
                raise ValueError(f"its parameter {self.path_of(int(wrong.argmax()))} {reason}")
        self._places = np.empty_like(self.positions)
        self._places[self.positions] = np.arange(self.size)

    @property
    def size(self):
        """P."""
        return int(self._ends[-1]) if len(self.shapes) else 0

    def path_of(self, position):
        """What the array is called that this place among the numbers of all arrays is in."""
        return self.paths[int(np.searchsorted(self._ends, position, "right"))]

    def split(self, vector):
        """The arrays of a (P,) vector, which may be one of NumPy or of JAX."""
        numbers = vector[self._places]
        starts = [0, *self._ends.tolist()]
        return [numbers[start:end].reshape(shape) for start, end, shape in zip(starts, starts[1:], self.shapes)]

    def join(self, arrays, concatenate=np.concatenate):
        """The (P,) vector of arrays of these shapes."""
        return concatenate([array.reshape(-1) for array in arrays])[self.positions]
