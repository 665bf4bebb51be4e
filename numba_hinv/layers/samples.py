"""The samples of a data set, batch by batch: from arrays in memory or on disk, or from whatever gives batches.

`Samples` checks what it reads and cuts it into batches of one size, whatever the size of those that it is given. It can
be gone through again, and notices where other samples come then.
"""

import numpy as np

# What arrays that lie on a disk say about how they lie there: those of h5py, zarr and dask, of PyTables, of tensorstore.
_PARTED = ("chunks", "chunkshape", "chunk_layout")
# Factors of the words of a sample's fingerprint; odd, so that no bit of a word is lost.
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


class Samples:
    """Batches ``(X, y)`` of ``batch_size`` samples, the last one of the rest, checked and in float64.

    Parameters
    ----------
    model : Model
        What the samples are for.
    X : array, or batches
        Anything with a shape that can be sliced, such as an array of NumPy, a `numpy.memmap`, or a data set of h5py or
        zarr. Where y is None, something that gives pairs ``(X, y)`` each time it is gone through: a list of them, a
        DataLoader, or a function that returns a generator.
    y : array, optional
        Targets of the samples of X.
    batch_size : int

    Attributes
    ----------
    num_samples : int or None
        None until batches have been gone through once.
    """

    def __init__(self, model, X, y, batch_size):
        self.model, self.batch_size = model, batch_size
        self._X, self._y = X, y
        self._known = None
        self.num_samples = None
        if y is not None:
            self.num_samples = _num_samples(X, y)
        elif not callable(X):
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

    @property
    def arrays(self):
        """X and y, as they were given."""
        return self._X, self._y

    @property
    def are_in_memory(self):
        """Whether they are arrays that do not lie on a disk."""
        return self._y is not None and is_in_memory(self._X) and is_in_memory(self._y)

    def some(self, indices):
        """Samples of arrays, (k,) integers in any order, as a batch."""
        if self.are_in_memory:
            runs = [indices]
        else:
            # What lies on a disk is read in slices, which everything understands.
            runs = [slice(run[0], run[-1] + 1) for run in np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)]
        X = [self.model.check_X(self._X[run], np.float64, "X") for run in runs]
        y = [self.model.check_y(self._y[run], part.shape[0], np.float64) for run, part in zip(runs, X)]
        return _joined(list(zip(X, y)))

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
        """Pairs ``(X, y)``; ``ValueError`` where they are not those of the first time, in whatever order."""
        count, mark = 0, 0
        for X, y in _cut(self._given(), self.batch_size):
            count += X.shape[0]
            mark = (mark + fingerprint(X, y)) % (1 << 64)
            yield X, y
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
        model = self.model
        if self._y is None:
            source = self._X() if callable(self._X) else self._X
            for index, batch in enumerate(source):
                X, y = _as_pair(batch, index)
                X = model.check_X(X, np.float64, f"X of batch {index}")
                yield X, model.check_y(y, X.shape[0], np.float64, f"y of batch {index}")
            return
        for start in range(0, self.num_samples, self.batch_size):
            stop = min(start + self.batch_size, self.num_samples)
            X = model.check_X(self._X[start:stop], np.float64, f"X[{start}:{stop}]")
            yield X, model.check_y(self._y[start:stop], stop - start, np.float64, f"y[{start}:{stop}]")


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


def _as_pair(batch, index):
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"X: expected batches that are pairs (X, y), got {type(batch).__name__} as batch {index}")
    return batch


def _cut(batches, size):
    """The same samples in batches of ``size``."""
    held, count = [], 0
    for X, y in batches:
        while X.shape[0]:
            wanted = size - count
            held.append((X[:wanted], y[:wanted]))
            count += held[-1][0].shape[0]
            X, y = X[wanted:], y[wanted:]
            if count == size:
                yield _joined(held)
                held, count = [], 0
    if held:
        yield _joined(held)


def _joined(pairs):
    return pairs[0] if len(pairs) == 1 else tuple(np.concatenate(parts) for parts in zip(*pairs))


def fingerprint(X, y):
    """A number of 64 bits that depends on the samples of a batch and not on their order."""
    total = np.zeros(X.shape[0], np.uint64)
    for array in (X, y):
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
