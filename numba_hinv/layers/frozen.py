"""Frozen layers: which they are, the parameters that the net holds for them, and which come before all others."""

import copy

import numpy as np

from ..runtime.validation import as_copy, as_layer


def with_frozen(layer, frozen):
    """The layer itself where it is as ``frozen`` says already, else a copy that is."""
    if layer.frozen == frozen:
        return layer
    other = copy.copy(layer)
    object.__setattr__(other, "frozen", frozen)
    return other


def as_held(frozen_params, layers):
    """The parameters of the frozen layers, in float64 and read-only, once it is sure that there are as many as that."""
    count = sum(layer.num_params for layer in layers if layer.frozen)
    if frozen_params is None:
        if count:
            raise ValueError(
                f"frozen_params: expected the {count} parameters of the frozen layers, got None; or build the net "
                "without frozen layers, and take what net.freeze(params, layers) returns"
            )
        frozen_params = np.empty(0)
    meaning = " (the parameters of the frozen layers)"
    held, _ = as_copy("frozen_params", frozen_params, (count,), np.float64, meaning)
    held.flags.writeable = False
    return held


def num_leading(layers):
    """How many layers come before the first one with parameters that are not frozen; 0 where none of them is frozen."""
    count = 0
    while count < len(layers) and (layers[count].frozen or layers[count].num_params == 0):
        count += 1
    return count if any(layer.frozen for layer in layers[:count]) else 0


def as_choice(layers, chosen):
    """(L,) booleans: the layers that an index, a slice, a sequence of indices or L booleans choose."""
    flags, L = np.zeros(len(layers), bool), len(layers)
    if isinstance(chosen, slice):
        flags[chosen] = True
        return flags
    if np.ndim(chosen) == 0:
        chosen = (chosen,)
    chosen = list(chosen)
    if len(chosen) == L and all(isinstance(flag, (bool, np.bool_)) for flag in chosen):
        return np.array(chosen, bool)
    for index in chosen:
        flags[as_layer("layers", index, L)] = True
    return flags


def trainable(layers):
    """Which of all parameters are no frozen layer's, (P + F,) booleans."""
    return np.repeat([not layer.frozen for layer in layers], [layer.num_params for layer in layers])
