"""What arguments and results are, for those who read signatures and for programs that check types."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]
FloatArray: TypeAlias = NDArray[np.floating[Any]]
IntArray: TypeAlias = NDArray[np.integer[Any]]
BoolArray: TypeAlias = NDArray[np.bool_]

# Samples: an array, perhaps on a disk, or what gives batches each time it is gone through.
Data: TypeAlias = ArrayLike | Iterable[Any] | Callable[[], Iterable[Any]]
# A number, or one number or pair (weights, biases) a layer, or one number a parameter.
Ridge: TypeAlias = float | Sequence[float | Sequence[float]] | Array

FloatType: TypeAlias = type[np.float64] | type[np.float32] | np.dtype[Any] | Literal["float64", "float32"]
Curvature: TypeAlias = Literal["hessian", "ggn"]
Method: TypeAlias = Literal["auto", "layers", "dense"]
# One axis, or two, of a window.
Pair: TypeAlias = int | tuple[int, int]

# Called between compiled calls, and may raise to end the work; called with what has been done since the last time.
Check: TypeAlias = Callable[[], None]
Tick: TypeAlias = Callable[[int], object]


class Tensor(Protocol):
    """A tensor of PyTorch, which need not be installed for this."""

    def detach(self) -> Any: ...

    def is_floating_point(self) -> bool: ...


AnyTensor = TypeVar("AnyTensor", bound=Tensor)


class Layer(Protocol):
    """What all layers have in common."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def num_params(self) -> int: ...

    @property
    def frozen(self) -> bool: ...


class Unflatten(Protocol):
    """The way from a flat vector of parameters to a model of JAX with these, and back."""

    def __call__(self, vector: Any) -> Any: ...

    def flatten(self, tree: Any) -> Any: ...
