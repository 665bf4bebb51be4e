"""Layers of which each output reads a few of the inputs: what pooling, normalisation and activations have in common."""

import numpy as np
from numpy.typing import DTypeLike

from ..runtime.annotations import Array


class Local:
    """A layer whose derivatives `numba_hinv.kernels.steps.local` knows: few entries a row, whatever its size.

    Attributes
    ----------
    in_features, out_features, num_params : int
    window : tuple of int
        How a kernel is moved over the input: fields of the layer table.
    operation : int
        Which of the formulas there it is.
    taps : int
        How many inputs an output reads.
    frozen : bool
        As of `Dense`.
    """

    frozen: bool = False
    _constants: Array

    def addresses(self, dtype: DTypeLike) -> tuple[int, int, int]:
        """Addresses of what the compiled code needs beside the layer table, for parameters of a dtype."""
        return 0, 0, 0

    def initial_params(self, rng: np.random.Generator) -> Array:
        """Parameters to start from, (num_params,)."""
        return np.empty(0)
