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
        """Give the addresses of what compiled code needs of the layer beside the layer table.

        Parameters
        ----------
        dtype : float64 or float32
            The dtype of the sweep.

        Returns
        -------
        addresses : (int, int, int)
            The addresses, 0 where none is needed.
        """
        return 0, 0, 0

    def initial_params(self, rng: np.random.Generator) -> Array:
        """Give the parameters that `Network.init` starts from.

        Parameters
        ----------
        rng : numpy.random.Generator
            The generator to draw from.

        Returns
        -------
        params : (num_params,) array
            The parameters.
        """
        return np.empty(0)
