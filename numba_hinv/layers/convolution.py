"""The 1-d convolution: a description, without parameters. The sweeps read it through the layer table."""

from dataclasses import dataclass

from ..runtime.validation import as_flag, as_size
from .activations import check_activation


@dataclass(frozen=True)
class Conv1d:
    """1-d convolution: ``output = activation(W * input + c)``, plus ``input`` with a skip. Immutable.

    ``W * input`` is the cross-correlation that torch calls a convolution: element (a, t) is the sum over channels and
    k of ``W[a, channel, k] input[channel, stride t + dilation k - padding]``, the input being 0 outside. States lie channels
    first, (channels, length) row-major, as torch flattens them; parameters are W, (out_channels, in_channels,
    kernel_size) row-major, then c, (out_channels,).

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        At least 1.
    length : int
        Positions of the input.
    activation : str
        As in `Dense`.
    bias : bool
        Whether the layer has c.
    skip : bool
        Whether the input is added to the output, which must have its shape.
    stride, padding, dilation : int
        As in torch; padding is by zeros, on both sides.
    frozen : bool
        Whether the parameters are held by the net instead of being unknowns (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        The argument that is wrong is named.

    Notes
    -----
    Eliminated as a dense layer of d = in_channels kernel_size + 1 columns on the B out_length rows of its patches
    (docs/theory.md, section 3): its pivot has out_channels min(B out_length, d) rows, its coupling B in_channels length columns.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> layers = [nh.Conv1d(1, 4, 5, 32, stride=2), nh.Conv1d(4, 4, 3, 14, padding=1, skip=True)]
    >>> net = nh.Network([*layers, nh.Dense(4 * 14, 3, "identity")], loss="mean_squared_error")
    >>> net.forward(net.init(seed=0), np.ones((6, 32))).shape
    (6, 3)
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    length: int
    activation: str = "tanh"
    bias: bool = True
    skip: bool = False
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    frozen: bool = False

    def __post_init__(self):
        set_field = object.__setattr__
        for name in ("in_channels", "out_channels", "kernel_size", "length", "stride", "padding", "dilation"):
            set_field(self, name, as_size(name, getattr(self, name), least=0 if name == "padding" else 1))
        for name in ("bias", "skip", "frozen"):
            set_field(self, name, as_flag(name, getattr(self, name)))
        set_field(self, "activation", check_activation(self.activation))
        reach, padded = self.dilation * (self.kernel_size - 1) + 1, self.length + 2 * self.padding
        if reach > padded:
            raise ValueError(
                f"kernel_size: expected a kernel that fits into the padded input of length {padded}, "
                f"got one that reaches over {reach} (kernel_size={self.kernel_size}, dilation={self.dilation})"
            )
        if self.skip and (self.in_channels, self.length) != (self.out_channels, self.out_length):
            raise ValueError(
                f"skip: expected an output of the shape of the input for a layer with a skip, got ({self.in_channels}, "
                f"{self.length}) and ({self.out_channels}, {self.out_length})"
            )

    @property
    def out_length(self):
        """Positions of the output."""
        return (self.length + 2 * self.padding - self.dilation * (self.kernel_size - 1) - 1) // self.stride + 1

    @property
    def in_features(self):
        """``in_channels * length``."""
        return self.in_channels * self.length

    @property
    def out_features(self):
        """``out_channels * out_length``."""
        return self.out_channels * self.out_length

    @property
    def num_params(self):
        """Number of parameters: ``out_channels * (in_channels * kernel_size + bias)``."""
        return self.out_channels * (self.in_channels * self.kernel_size + self.bias)

    @property
    def weight_shape(self):
        """Shape of W: ``(out_channels, in_channels, kernel_size)``."""
        return self.out_channels, self.in_channels, self.kernel_size
