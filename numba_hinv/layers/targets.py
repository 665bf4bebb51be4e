"""Targets of a batch, each with its weight: what the terminal of a network reads."""

import numpy as np

from ..runtime.validation import as_array, as_labels


class Targets:
    """Targets of B samples and the weights that multiply their losses. Slices are of both.

    Attributes
    ----------
    values : (B, t) array
        Labels as numbers, t = 1, or what the loss compares the outputs with.
    weights : (B,) array of float64
        1 where none are given; 0 for labels that are to be ignored.
    """

    def __init__(self, values, weights):
        self.values, self.weights = values, weights
        # `Model.total_weight`, once it is known.
        self.total = None

    def __len__(self):
        return self.weights.size

    def __getitem__(self, part):
        return Targets(self.values[part], self.weights[part])

    def astype(self, dtype):
        """The same, with values in ``dtype``."""
        return Targets(self.values.astype(dtype, copy=False), self.weights)

    def each_once(self):
        """The same samples, all with a weight of 1, but for ignored ones, of 0 as before."""
        return Targets(self.values, (self.weights != 0.0).astype(np.float64))

    @staticmethod
    def concatenate(parts):
        """The targets of several batches as those of one."""
        values, weights = zip(*((part.values, part.weights) for part in parts))
        return Targets(np.concatenate(values), np.concatenate(weights))


def as_weights(name, given, num_samples, may_be_negative=False):
    """Weights (B,) of samples in float64, ones for None; ``ValueError`` where one is negative and must not be.

    Where ``num_samples`` is None, they may be of any number.
    """
    if given is None:
        return np.ones(num_samples)
    weights = as_array(name, given, (num_samples,), np.float64, " (one weight a sample)")
    if not may_be_negative and weights.size and weights.min() < 0.0:
        i = int(weights.argmin())
        raise ValueError(
            f"{name}: expected weights of at least 0, got {weights[i]:g} at index {i}; Network.hessian alone takes "
            "negative ones, to remove samples"
        )
    return weights


def with_labels(name, y, weights, num_classes, ignored, dtype):
    """`Targets` of labels; those that are ``ignored`` have a weight of 0."""
    labels = as_labels(name, y, weights.size, num_classes, ignored)
    if ignored is not None:
        is_ignored = labels == ignored
        labels, weights = np.where(is_ignored, 0, labels), np.where(is_ignored, 0.0, weights)
    return Targets(labels.astype(dtype).reshape(-1, 1), weights)
