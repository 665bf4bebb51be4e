"""Windows: how a kernel is moved over the axes of a channel, and the sizes that result."""

from typing import Any, NamedTuple

import numpy as np

from ..kernels.steps.layer_table import ONE_PLACE, places
from ..runtime.annotations import Array
from ..runtime.validation import as_size


class Axis(NamedTuple):
    """One axis of a channel and what a kernel does along it."""

    length: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def places(self) -> int:
        """At how many places the kernel is applied."""
        return places(*self)

    def reads(self) -> Array:
        """The elements that the kernel reads at each place, (places, kernel); those of the padding are out of range."""
        return np.arange(self.places)[:, None] * self.stride + np.arange(self.kernel) * self.dilation - self.padding


class Line:
    """Of layers whose kernel moves along the positions of a channel, with a ``length``."""

    length: Any
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any = 1

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of a channel of the input, and what the kernel does along them."""
        return (Axis(self.length, self.kernel_size, self.stride, self.padding, self.dilation),)

    @property
    def out_length(self) -> int:
        """How many positions the output has."""
        return self.axes[0].places


class Plane:
    """Of layers whose kernel moves over the rows and columns of a channel, with a ``size``."""

    size: Any
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any = (1, 1)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of a channel of the input, and what the kernel does along them."""
        return tuple(map(Axis, self.size, self.kernel_size, self.stride, self.padding, self.dilation))

    @property
    def out_size(self) -> tuple[int, ...]:
        """Height and width of the output."""
        return tuple(axis.places for axis in self.axes)


def as_pair(name, value, least=1):
    """``value`` for the two axes of an image: an int stands for both."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: expected one integer or two, of rows and of columns, got {value!r}")
        return tuple(as_size(name, size, least) for size in value)
    return (as_size(name, value, least),) * 2


def check_fit(axes):
    """``ValueError`` where a kernel is larger than the padded input that it is moved over."""
    for axis in axes:
        reach, padded = axis.dilation * (axis.kernel - 1) + 1, axis.length + 2 * axis.padding
        if reach > padded:
            raise ValueError(
                f"kernel_size: expected a kernel that fits into the padded input of length {padded}, "
                f"got one that reaches over {reach} (kernel_size={axis.kernel}, dilation={axis.dilation}); "
                "a smaller kernel or more padding fits"
            )


def fields(axes):
    """The axes as the layer table has them: the last one first, then the one across it, if there is one."""
    return *axes[-1], *(axes[0] if len(axes) == 2 else ONE_PLACE)
