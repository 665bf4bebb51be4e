"""The samples of a data set, batch by batch: from arrays in memory or on disk, or from whatever gives batches.

`Samples` checks what it reads and cuts it into batches of one size, whatever the size of those that it is given. It can
be gone through again, and notices where other samples come then.
"""

import numpy as np

from .targets import Targets, as_weights

# What arrays that lie on a disk say about how they lie there: those of h5py, zarr and dask, of PyTables, of
# tensorstore.
_PARTED = ("chunks", "chunkshape", "chunk_layout")
# Factors of the words of a sample's fingerprint; odd, so that no bit of a word is lost.
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


class Samples:
    """Batches (X, `Targets`) of ``batch_size`` samples, the last one of the rest, checked and in float64.

    Parameters
    ----------
    model : Model
        What the samples are for.
    X : array, or batches
        Anything with a shape that can be sliced, such as an array of NumPy, a `numpy.memmap`, or a data set of h5py or
        zarr. Where y is None, something that gives pairs ``(X, y)``, or triples with weights, each time it is gone
        through: a list of them, a DataLoader, or a function that returns a generator.
    y : array, optional
        Targets of the samples of X.
    batch_size : int
    weights : array, optional
        Of the samples of X; ones by default.
    may_be_negative : bool
        Whether weights may.

    Attributes
    ----------
    num_samples : int or None
        None until batches have been gone through once.
    """

    def __init__(self, model, X, y, batch_size, weights=None, may_be_negative=False):
        self.model, self.batch_size = model, batch_size
        self._X, self._y, self._weights, self._may_be_negative = X, y, weights, may_be_negative
        self._known = None
        self.num_samples = None
        if y is not None:
            self.num_samples = _num_samples(X, y)
            if weights is not None and np.shape(weights) != (self.num_samples,):
                raise ValueError(
                    f"sample_weight: expected shape ({self.num_samples},) (one weight a sample), got "
                    f"{np.shape(weights)}"
                )
        elif weights is not None:
            raise TypeError(
                "sample_weight: expected None for samples in batches, which give theirs as triples (X, y, weights), "
                f"got {type(weights).__name__}"
            )
        if y is None and not callable(X):
            if not hasattr(X, "__iter__") or hasattr(X, "shape"):
                raise TypeError(
                    f"y: expected targets, or X to give pairs (X, y) of batches, got y=None and X of type "
                    f"{type(X).__name__}"
                )
            if iter(X) is X:
                raise TypeError(
                    f"X: expected batches that can be gone through again (a list, a DataLoader, or a function that "
                    f"returns a generator), got {type(X).__name__}, which is used up after the first time"
                )

    def cut_anew(self, batch_size):
        """The same samples in batches of another size."""
        return Samples(self.model, self._X, self._y, batch_size, self._weights, self._may_be_negative)

    def unweighted(self):
        """The same samples, all with a weight of 1, but for ignored ones, of 0."""
        return Samples(self.model, self._X, self._y, self.batch_size)

    @property
    def are_in_memory(self):
        """Whether they are arrays that do not lie on a disk."""
        return self._y is not None and is_in_memory(self._X) and is_in_memory(self._y)

    def some(self, indices):
        """Samples of arrays, (k,) integers in any order, as a batch."""
        if self.are_in_memory:
            return self._part(indices, len(indices), "")
        # What lies on a disk is read in slices, which everything understands.
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
        return _joined([self._slice(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _slice(self, start, stop):
        return self._part(slice(start, stop), stop - start, f"[{start}:{stop}]")

    def _part(self, part, count, where):
        X = self.model.check_X(self._X[part], np.float64, f"X{where}")
        weights = None if self._weights is None else self._weights[part]
        return X, self._targets(self._y[part], weights, count, where)

    def _targets(self, y, weights, count, where):
        weights = as_weights(f"sample_weight{where}", weights, count, self._may_be_negative)
        return self.model.check_y(y, count, np.float64, f"y{where}", weights)

    def count(self):
        """How many samples there are; batches are gone through for it, the first time."""
        if self.num_samples is None:
            for _ in self:
                pass
        return self.num_samples

    @property
    def come_in_order(self):
        """Whether batches are the same each time, as slices of arrays are; a loader may shuffle."""
        return self._y is not None

    def __iter__(self):
        """Pairs (X, `Targets`); ``ValueError`` where they are not those of the first time, in whatever order."""
        count, mark = 0, 0
        for X, targets in _cut(self._given(), self.batch_size):
            count += X.shape[0]
            mark = (mark + fingerprint(X, targets.values, targets.weights.reshape(-1, 1))) % (1 << 64)
            yield X, targets
        if count == 0:
            raise ValueError("X: expected at least one batch of samples, got none")
        self.num_samples = count
        if self._known is None:
            self._known = count, mark
        elif self._known != (count, mark):
            raise ValueError(
                f"X: expected the same samples each time, got {self._known[0]:,} the first time and {count:,} other "
                "ones now; expected a loader without random changes that drops no samples (drop_last=False), in any "
                "order"
            )

    def _given(self):
        """What is read, checked."""
        if self._y is None:
            source = self._X() if callable(self._X) else self._X
            for index, batch in enumerate(source):
                X, y, *weights = _as_parts(batch, index)
                X = self.model.check_X(X, np.float64, f"X of batch {index}")
                yield X, self._targets(y, weights[0] if weights else None, X.shape[0], f" of batch {index}")
            return
        for start in range(0, self.num_samples, self.batch_size):
            yield self._slice(start, min(start + self.batch_size, self.num_samples))


def _num_samples(X, y):
    """How many samples two sliceable arrays have."""
    for name, array in (("X", X), ("y", y)):
        if not hasattr(array, "shape") or not len(array.shape):
            raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
    if X.shape[0] == 0:
        raise ValueError("X: expected at least one sample, got an empty batch")
    if y.shape[0] != X.shape[0]:
        raise ValueError(f"y: expected targets of {X.shape[0]:,} samples, as X has, got {y.shape[0]:,}")
    return X.shape[0]


def _as_parts(batch, index):
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise TypeError(
            f"X: expected batches that are pairs (X, y), or triples with weights, got {type(batch).__name__} as batch "
            f"{index}"
        )
    return batch


def _cut(batches, size):
    """The same samples in batches of ``size``."""
    held, count = [], 0
    for X, targets in batches:
        while X.shape[0]:
            wanted = size - count
            held.append((X[:wanted], targets[:wanted]))
            count += held[-1][0].shape[0]
            X, targets = X[wanted:], targets[wanted:]
            if count == size:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(pairs):
    if len(pairs) == 1:
        return pairs[0]
    inputs, targets = zip(*pairs)
    return np.concatenate(inputs), Targets.concatenate(targets)


def fingerprint(*arrays):
    """A number of 64 bits that depends on the samples of a batch and not on their order."""
    total = np.zeros(arrays[0].shape[0], np.uint64)
    for array in arrays:
        words = np.ascontiguousarray(array).view(np.uint64)
        # Powers of an odd number, so that no two places of a sample count alike.
        factors = np.multiply.accumulate(np.full(words.shape[1], _FACTOR))
        total = (total ^ (total >> np.uint64(31))) * _MIX + (words ^ (words >> np.uint64(29))) @ factors
    total ^= total >> np.uint64(30)
    total *= _MIX
    return int((total ^ (total >> np.uint64(27))).sum(dtype=np.uint64))


def is_in_memory(X):
    """Whether X is to be taken as it is, rather than read a part at a time."""
    return not (isinstance(X, np.memmap) or any(hasattr(X, name) for name in _PARTED))
