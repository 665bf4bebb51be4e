"""Pooling: means and maxima of the neighbours in a channel."""

import math
from dataclasses import dataclass

from ..kernels.steps.layer_table import AVERAGE, AVERAGE_INSIDE, MAXIMUM
from ..runtime.annotations import Pair
from ..runtime.validation import as_flag, as_size
from . import window
from .local import Local


class _Pooling(Local):
    """What poolings of any number of axes have in common; ``axes`` are their `window.Axis`."""

    num_params = 0

    channels: int

    @property
    def axes(self) -> tuple[window.Axis, ...]:
        """The axes of a channel of the input, and what the kernel does along them."""
        raise NotImplementedError

    def _check(self) -> None:
        object.__setattr__(self, "channels", as_size("channels", self.channels))
        window.check_fit(self.axes)
        for axis in self.axes:
            if 2 * axis.padding > axis.kernel:
                raise ValueError(
                    f"padding: expected at most half of the kernel, got padding={axis.padding} for "
                    f"kernel_size={axis.kernel}"
                )
            reads = axis.reads()
            if not ((reads >= 0) & (reads < axis.length)).any(axis=1).all():
                raise ValueError(
                    "dilation: expected kernels that reach the input at every position, got one with padding alone "
                    f"(kernel_size={axis.kernel}, dilation={axis.dilation}, for an input of length {axis.length}); "
                    "less padding mends that"
                )

    @property
    def window(self) -> tuple[int, ...]:
        """How the kernel is moved over the input, as fields of the layer table."""
        return window.fields(self.axes)

    @property
    def in_features(self) -> int:
        """Size of the input: ``channels`` times its positions."""
        return self.channels * math.prod(axis.length for axis in self.axes)

    @property
    def out_features(self) -> int:
        """Size of the output: ``channels`` times its positions."""
        return self.channels * math.prod(axis.places for axis in self.axes)


class _Average(_Pooling):
    count_include_pad: bool

    @property
    def operation(self) -> int:
        """Which formula of the layer table this layer is."""
        return AVERAGE if self.count_include_pad else AVERAGE_INSIDE

    @property
    def taps(self) -> int:
        """How many inputs an output reads."""
        return math.prod(axis.kernel for axis in self.axes)


class _Maximum(_Pooling):
    operation = MAXIMUM
    taps = 1


def _set(layer, as_sizes, names):
    """Check the sizes with these names; a stride of None is that of the kernel."""
    if layer.stride is None:
        object.__setattr__(layer, "stride", layer.kernel_size)
    for name in names:
        sizes = as_sizes(name, getattr(layer, name), 0 if name == "padding" else 1)
        object.__setattr__(layer, name, sizes)
    if hasattr(layer, "count_include_pad"):
        object.__setattr__(layer, "count_include_pad", as_flag("count_include_pad", layer.count_include_pad))
    layer._check()


@dataclass(frozen=True)
class AvgPool1d(window.Line, _Average):
    """Average pooling along a channel, as torch.nn.AvgPool1d. Immutable, without parameters.

    Parameters
    ----------
    channels, kernel_size, length : int
        The number of channels, the size of the kernel and the length of the input, at least 1.
    stride : int, optional
        By how many positions the kernel moves; by default its size.
    padding : int
        How many zeros to add on both sides, at most half of the kernel's size.
    count_include_pad : bool
        Whether these zeros count in the mean.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.AvgPool1d(1, 2, 4), nh.Dense(2, 2, "identity", bias=False)], "mean_squared_error")
    >>> net.forward(np.array([1.0, 0.0, 0.0, 1.0]), [[1.0, 3.0, 5.0, 5.0]])
    array([[2., 5.]])
    """

    channels: int
    kernel_size: int
    length: int
    stride: int | None = None
    padding: int = 0
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        _set(self, as_size, ("kernel_size", "length", "stride", "padding"))


@dataclass(frozen=True)
class AvgPool2d(window.Plane, _Average):
    """Average pooling over an image, as torch.nn.AvgPool2d. Immutable, without parameters.

    Parameters
    ----------
    channels : int
        The number of channels, at least 1.
    kernel_size, size : int or (int, int)
        Height and width of the kernel and of the input. One number stands for both.
    stride : int or (int, int), optional
        By how many positions the kernel moves; by default its size.
    padding : int or (int, int)
        How many zeros to add on all sides, at most half of the kernel's size.
    count_include_pad : bool
        Whether these zeros count in the mean.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.AvgPool2d(6, 2, (8, 10)).out_size
    (4, 5)
    """

    channels: int
    kernel_size: Pair
    size: Pair
    stride: Pair | None = None
    padding: Pair = (0, 0)
    count_include_pad: bool = True

    def __post_init__(self) -> None:
        _set(self, window.as_pair, ("kernel_size", "size", "stride", "padding"))


@dataclass(frozen=True)
class MaxPool1d(window.Line, _Maximum):
    """Maximum pooling along a channel, as torch.nn.MaxPool1d. Immutable, without parameters.

    A maximum is piecewise linear, so that its second derivative is 0. Where several numbers are the largest it has no
    derivatives. Then the first of them, in the order of the state, is treated as the only one, as PyTorch does, so that
    gradient and Hessian are those of one of the pieces that meet there.

    Parameters
    ----------
    channels, kernel_size, length : int
        The number of channels, the size of the kernel and the length of the input, at least 1.
    stride : int, optional
        By how many positions the kernel moves; by default its size.
    padding : int
        How many places to add on both sides, which are never the largest; at most half of the kernel's size.
    dilation : int
        The distance between the numbers that the kernel reads.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.MaxPool1d(1, 2, 4), nh.Dense(2, 2, "identity", bias=False)], "mean_squared_error")
    >>> net.forward(np.array([1.0, 0.0, 0.0, 1.0]), [[1.0, 3.0, 5.0, 5.0]])
    array([[3., 5.]])
    """

    channels: int
    kernel_size: int
    length: int
    stride: int | None = None
    padding: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        _set(self, as_size, ("kernel_size", "length", "stride", "padding", "dilation"))


@dataclass(frozen=True)
class MaxPool2d(window.Plane, _Maximum):
    """Maximum pooling over an image, as torch.nn.MaxPool2d. Immutable, without parameters.

    The second derivative is 0. Where several numbers are the largest, the first of them, row by row, is treated as the
    only one, as in `MaxPool1d`.

    Parameters
    ----------
    channels : int
        The number of channels, at least 1.
    kernel_size, size : int or (int, int)
        Height and width of the kernel and of the input. One number stands for both.
    stride : int or (int, int), optional
        By how many positions the kernel moves; by default its size.
    padding : int or (int, int)
        How many places to add on all sides, which are never the largest; at most half of the kernel's size.
    dilation : int or (int, int)
        The distance between the numbers that the kernel reads.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.MaxPool2d(6, 2, (8, 10), stride=1).out_size
    (7, 9)
    """

    channels: int
    kernel_size: Pair
    size: Pair
    stride: Pair | None = None
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        _set(self, window.as_pair, ("kernel_size", "size", "stride", "padding", "dilation"))
