"""Dampings and L2 terms by layer: numbers, one a layer, pairs for weights and biases, or one a parameter.

All of them are the diagonal of a matrix that is added to H, a *ridge*: a vector of P numbers. Where it is the same in
all weights of a layer and in all its biases, and so for every layer, H with it can be eliminated by layers
(docs/theory.md, section 15); so it can where it is not, if a layer has as many samples as inputs or is given as blocks.
"""

import numpy as np

from ..kernels.steps.layer_table import BLOCKS
from ..runtime.validation import as_array, as_real

_FORMS = "a number, one number or pair (weights, biases) a layer, or one number a parameter"


def as_ridge(name, value, chain, first=0):
    """What an argument says, as (number, vector): the multiple of the identity, and the (P,) array or None beside it.

    Parameters
    ----------
    chain : Chain
    first : int
        Layers before those of the chain, which have entries of their own that do not matter.
    """
    if not isinstance(value, (list, tuple)) and np.ndim(value) == 0:
        return as_real(name, value), None
    num_layers, P = first + chain.p.size, int(chain.p.sum())
    entries = list(value)
    if len(entries) == num_layers:
        vector = _by_layer(name, entries[first:], chain, first)
    elif len(entries) == P and np.ndim(entries[0]) == 0:
        vector = as_array(name, entries, (P,), np.float64).copy()
    else:
        raise ValueError(f"{name}: expected {_FORMS}, that is {num_layers} or {P} of them, got {len(entries)}")
    if (vector == vector[0]).all():
        return float(vector[0]), None
    return 0.0, vector


def slopes(value, vector, chain, first=0):
    """Derivatives of ``vector . ridge`` in the entries of an argument that `as_ridge` takes, in its form.

    A number, (L,) or (P,) numbers; (L, 2) where some layer has a pair, a number then counting as two that are alike.
    """
    if not isinstance(value, (list, tuple)) and np.ndim(value) == 0:
        return float(vector.sum())
    entries, num_layers = list(value), first + chain.p.size
    if len(entries) != num_layers:
        return vector.copy()
    ends = np.cumsum(np.stack(sizes(chain), axis=1).ravel())
    found = np.zeros((num_layers, 2))
    found[first:] = np.reshape([part.sum() for part in np.split(vector, ends[:-1])], (-1, 2))
    return found if any(np.ndim(entry) for entry in entries) else found.sum(axis=1)


def _by_layer(name, entries, chain, first):
    weights, biases = sizes(chain)
    pairs = np.empty((len(entries), 2))
    for l, entry in enumerate(entries):
        where = f"{name}: layer {l + first}"
        if np.ndim(entry) == 0:
            pairs[l] = as_real(where, entry)
            continue
        if np.shape(entry) != (2,):
            raise ValueError(f"{where}: expected a number or a pair (weights, biases), got shape {np.shape(entry)}")
        if chain.kind[l] == BLOCKS and chain.p[l] and entry[0] != entry[1]:
            raise ValueError(f"{where}: expected one number, since this layer has no biases to tell apart, got {entry}")
        pairs[l] = [as_real(where, number) for number in entry]
    counts = np.stack([weights, biases], axis=1)
    return np.repeat(pairs.ravel(), counts.ravel())


def sizes(chain):
    """(weights, biases) of every layer, (L,) each; of layers given as blocks all parameters count as weights."""
    biases = np.where((chain.p > 0) & (chain.bias == 1), chain.n_out // chain.positions(), 0)
    return chain.p - biases, biases


def pairs_of(chain, vector):
    """((L, 2) array of a ridge for weights and biases, (L,) array of whether it differs within them: then 0 there)."""
    pairs, by_parameter, start = np.zeros((chain.p.size, 2)), np.zeros(chain.p.size, bool), 0
    for l, counts in enumerate(np.stack(sizes(chain), axis=1).tolist()):
        for part, count in enumerate(counts):
            values = vector[start : start + count]
            by_parameter[l] |= count > 0 and bool((values != values[0]).any())
            pairs[l, part] = values[0] if count else pairs[l, 0]
            start += count
    pairs[by_parameter] = 0.0
    return pairs, by_parameter
