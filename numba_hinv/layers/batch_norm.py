"""Batch normalisation as it is after training: by means and variances that are constants."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..kernels.steps.layer_table import NORMALISATION, ONE_PLACE
from ..runtime.annotations import Array
from ..runtime.validation import as_array, as_flag, as_real, as_size
from .local import Local


@dataclass(frozen=True)
class BatchNorm(Local):
    """Batch norm at prediction time: ``weight * (z - mean) / sqrt(variance + eps) + bias``. Immutable.

    There is one number of each for every channel. It is torch.nn.BatchNorm1d and BatchNorm2d in eval mode: means and
    variances are the constants that training has left, so that samples do not affect one another. The parameters are
    the weight, which starts at 1, and then the bias, which starts at 0, both (channels,).

    Parameters
    ----------
    mean, variance : (channels,) array
        The constants. Variances are at least 0.
    positions : int
        How many numbers a channel has, which lie side by side: the positions of the convolution before it, or 1 after a
        dense layer.
    eps : float
        What is added to the variances, at least 0. All of ``variance + eps`` must be positive.
    affine : bool
        Whether there are a weight and a bias.
    frozen : bool
        Whether the net keeps these as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Notes
    -----
    The Hessian is taken with respect to this weight and this bias, which are not merged into those of the layer before.
    The pivot of the layer has one row for each of its 2 channels parameters.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.BatchNorm([1.0, 2.0], [4.0, 9.0], eps=0.0)], "mean_squared_error")
    >>> net.forward(net.init(), [[5.0, 5.0]])
    array([[2., 1.]])
    """

    mean: Sequence[float] | Array
    variance: Sequence[float] | Array
    positions: int = 1
    eps: float = 1e-5
    affine: bool = True
    frozen: bool = False

    operation = NORMALISATION
    taps = 1

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        mean = as_array("mean", self.mean, (None,), np.float64, " (channels)")
        if mean.size == 0:
            raise ValueError("mean: expected at least one channel, got none")
        variance = as_array("variance", self.variance, mean.shape, np.float64, " (channels)")
        set_field(self, "positions", as_size("positions", self.positions))
        set_field(self, "eps", as_real("eps", self.eps))
        set_field(self, "affine", as_flag("affine", self.affine))
        set_field(self, "frozen", as_flag("frozen", self.frozen))
        if self.eps < 0.0:
            raise ValueError(f"eps: expected at least 0, got {self.eps}")
        if (variance < 0.0).any() or not (variance + self.eps > 0.0).all():
            raise ValueError(
                f"variance: expected at least 0, and more with eps=0, got {variance.min()} with eps={self.eps:g}"
            )
        set_field(self, "mean", tuple(mean.tolist()))
        set_field(self, "variance", tuple(variance.tolist()))
        # The compiled code reads them here for as long as the layer lives.
        set_field(self, "_constants", np.concatenate([mean, 1.0 / np.sqrt(variance + self.eps)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchNorm, (self.mean, self.variance, self.positions, self.eps, self.affine, self.frozen)

    def __repr__(self) -> str:
        frozen = ", frozen=True" if self.frozen else ""
        return (
            f"BatchNorm(channels={len(self.mean)}, positions={self.positions}, eps={self.eps:g}, "
            f"affine={self.affine}{frozen})"
        )

    @property
    def in_features(self) -> int:
        """Size of the input: the number of channels times ``positions``."""
        return len(self.mean) * self.positions

    out_features = in_features

    @property
    def num_params(self) -> int:
        """Number of parameters: two for each channel, or none."""
        return 2 * len(self.mean) * self.affine

    @property
    def window(self) -> tuple[int, ...]:
        """Fields of the layer table that describe the positions."""
        return self.positions, *ONE_PLACE[1:], *ONE_PLACE

    def addresses(self, dtype: DTypeLike) -> tuple[int, int, int]:
        """Give the address of the means and of the reciprocal standard deviations, for the layer table.

        Parameters
        ----------
        dtype : float64 or float32
            The dtype of the sweep.

        Returns
        -------
        addresses : (int, int, int)
            The address, and two zeros.
        """
        return self._constants.ctypes.data, 0, 0

    def initial_params(self, rng: np.random.Generator) -> Array:
        """Give weights of 1 and biases of 0.

        Parameters
        ----------
        rng : numpy.random.Generator
            Not used.

        Returns
        -------
        params : (num_params,) array
            The parameters.
        """
        return np.repeat([1.0, 0.0], self.num_params // 2)
