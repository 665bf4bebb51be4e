"""Groups of samples that are left out together: none, folds, or those with equal labels."""

from typing import NamedTuple

import numpy as np

from ..runtime.validation import as_size


class Groups(NamedTuple):
    """A partition of B samples into G groups. Made by `as_groups`."""

    labels: np.ndarray  # (B,) integers from 0 to G - 1: the group of every sample
    by_size: list  # pairs (groups (g,), their samples (g, k), ascending): all groups of one size k, for every size

    @property
    def count(self):
        """G."""
        return int(self.labels.max()) + 1

    @property
    def are_single(self):
        """Whether every sample is a group of its own."""
        return self.count == self.labels.size


def as_groups(groups, num_samples):
    """`Groups` of so many samples: each alone (None), folds of neighbours (an int), or those with equal labels."""
    order = np.arange(num_samples)
    if groups is None:
        return Groups(order, [(order, order[:, None])])
    if np.ndim(groups) == 0:
        folds = as_size("groups", groups)
        if folds > num_samples:
            raise ValueError(f"groups: expected at most as many folds as there are samples, {num_samples}, got {folds}")
        sizes = np.full(folds, num_samples // folds)
        sizes[: num_samples % folds] += 1
        return _with_sizes(np.repeat(np.arange(folds), sizes))
    array = np.asarray(groups)
    if array.shape != (num_samples,):
        raise ValueError(
            f"groups: expected a label for each of {num_samples} samples, or a number of folds, got an array of shape "
            f"{array.shape}"
        )
    if array.dtype.kind not in "iubUS":
        raise TypeError(f"groups: expected labels that are integers or strings, got dtype {array.dtype}")
    return _with_sizes(np.unique(array, return_inverse=True)[1].reshape(-1))


def _with_sizes(labels):
    counts, order = np.bincount(labels), np.argsort(labels, kind="stable")
    starts, by_size = np.cumsum(counts) - counts, []
    for size in np.unique(counts):
        chosen = np.flatnonzero(counts == size)
        by_size.append((chosen, order[starts[chosen][:, None] + np.arange(size)]))
    return Groups(labels, by_size)
