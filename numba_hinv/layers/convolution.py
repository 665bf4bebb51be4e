"""Convolutions: descriptions, without parameters. The sweeps read them through the layer table."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..runtime.annotations import Pair
from ..runtime.validation import as_flag, as_size
from . import window
from .activations import check_activation


class _Convolution:
    """What convolutions of any number of axes have in common; ``axes`` are their `window.Axis`."""

    in_channels: int
    out_channels: int
    bias: bool
    skip: bool
    activation: str | Callable[..., Any]

    @property
    def axes(self) -> tuple[window.Axis, ...]:
        """The axes of a channel of the input, and what the kernel does along them."""
        raise NotImplementedError

    def _check(self) -> None:
        set_field = object.__setattr__
        for name in ("in_channels", "out_channels"):
            set_field(self, name, as_size(name, getattr(self, name)))
        for name in ("bias", "skip", "frozen"):
            set_field(self, name, as_flag(name, getattr(self, name)))
        set_field(self, "activation", check_activation(self.activation))
        window.check_fit(self.axes)
        shapes = (
            (self.in_channels, *(axis.length for axis in self.axes)),
            (self.out_channels, *(axis.places for axis in self.axes)),
        )
        if self.skip and shapes[0] != shapes[1]:
            raise ValueError(
                "skip: expected an output of the shape of the input for a layer with a skip, "
                f"got {shapes[0]} and {shapes[1]}"
            )

    @property
    def window(self) -> tuple[int, ...]:
        """How the kernel is moved over the input, as fields of the layer table."""
        return window.fields(self.axes)

    @property
    def in_features(self) -> int:
        """Size of the input: ``in_channels`` times its positions."""
        return self.in_channels * math.prod(axis.length for axis in self.axes)

    @property
    def out_features(self) -> int:
        """Size of the output: ``out_channels`` times its positions."""
        return self.out_channels * math.prod(axis.places for axis in self.axes)

    @property
    def num_params(self) -> int:
        """Number of parameters: ``out_channels * (in_channels * elements of the kernel + bias)``."""
        return math.prod(self.weight_shape) + self.out_channels * self.bias

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of W: ``(out_channels, in_channels, kernel_size)``, where an image's kernel has two sizes."""
        return self.out_channels, self.in_channels, *(axis.kernel for axis in self.axes)


@dataclass(frozen=True)
class Conv1d(window.Line, _Convolution):
    """1-d convolution: ``output = activation(W * input + c)``, plus ``input`` with a skip. Immutable.

    ``W * input`` is the cross-correlation that PyTorch calls a convolution: element (a, t) is the sum over channels and
    k of ``W[a, channel, k] input[channel, stride t + dilation k - padding]``, where the input is 0 outside of its
    positions. States have their channels first, as (channels, length) in row-major order, which is how PyTorch flattens
    them. The parameters are W, (out_channels, in_channels, kernel_size) in row-major order, and then c,
    (out_channels,).

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
        The numbers of channels of input and output and the size of the kernel, at least 1.
    length : int
        How many positions the input has.
    activation : str
        As in `Dense`.
    bias : bool
        Whether the layer has a bias c.
    skip : bool
        Whether the input is added to the output, which must then have the same shape.
    stride, padding, dilation : int
        As in PyTorch. Padding is by zeros, on both sides.
    frozen : bool
        Whether the net keeps the parameters as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Notes
    -----
    The layer is eliminated as a dense layer of d = in_channels kernel_size + 1 columns that acts on the B out_length
    rows of its patches (docs/theory.md, section 3): its pivot has out_channels min(B out_length, d) rows, and its
    coupling B in_channels length columns.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> layers = [nh.Conv1d(1, 4, 5, 32, stride=2), nh.Conv1d(4, 4, 3, 14, padding=1, skip=True)]
    >>> net = nh.Network([*layers, nh.Dense(4 * 14, 3, "identity")], loss="mean_squared_error")
    >>> net.forward(net.init(rng=0), np.ones((6, 32))).shape
    (6, 3)
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    length: int
    activation: str | Callable[..., Any] = "tanh"
    bias: bool = True
    skip: bool = False
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    frozen: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "length", "stride", "padding", "dilation"):
            size = as_size(name, getattr(self, name), least=0 if name == "padding" else 1)
            object.__setattr__(self, name, size)
        self._check()


@dataclass(frozen=True)
class Conv2d(window.Plane, _Convolution):
    """2-d convolution: ``output = activation(W * input + c)``, plus ``input`` with a skip. Immutable.

    This is `Conv1d` for images: element (a, y, x) of ``W * input`` is the sum over channels, h and k of
    ``W[a, channel, h, k] input[channel, stride[0] y + dilation[0] h - padding[0], stride[1] x + dilation[1] k -
    padding[1]]``, where the input is 0 outside of the image. States have their channels first, as (channels, height,
    width) in row-major order, which is how PyTorch flattens them, so that a `Dense` layer may follow directly. The
    parameters are W, (out_channels, in_channels, kernel height, kernel width) in row-major order, and then c,
    (out_channels,).

    Parameters
    ----------
    in_channels, out_channels : int
        The numbers of channels of input and output, at least 1.
    kernel_size, size : int or (int, int)
        Height and width of the kernel and of the input. One number stands for both.
    activation, bias, skip : as for `Conv1d`
        The activation, whether there is a bias, and whether the input is added to the output.
    stride, padding, dilation : int or (int, int)
        As in PyTorch. Padding is by zeros, on all sides.
    frozen : bool
        As in `Conv1d`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Notes
    -----
    The layer is eliminated as a dense layer of d = in_channels kernel_size[0] kernel_size[1] + 1 columns that acts on
    the rows of its patches, which are B times the positions of the output (docs/theory.md, section 3).
    docs/convolutions.md says when elimination by layers pays, and when the dense matrix does.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> layers = [nh.Conv2d(1, 6, 3, 8, padding=1), nh.AvgPool2d(6, 2, 8), nh.Conv2d(6, 16, 3, 4)]
    >>> net = nh.Network([*layers, nh.Dense(16 * 2 * 2, 10, "identity")], loss="softmax_cross_entropy")
    >>> net.forward(net.init(rng=0), np.ones((5, 8 * 8))).shape
    (5, 10)
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    size: Pair
    activation: str | Callable[..., Any] = "tanh"
    bias: bool = True
    skip: bool = False
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    frozen: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "size", "stride", "padding", "dilation"):
            pair = window.as_pair(name, getattr(self, name), least=0 if name == "padding" else 1)
            object.__setattr__(self, name, pair)
        self._check()
