"""An activation as a layer of its own, for places where no layer before it can take it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import DTypeLike

from ..kernels.steps.layer_table import ACTIVATION, ONE_PLACE
from ..runtime.validation import as_size
from .activations import activation_address, check_activation
from .local import Local


@dataclass(frozen=True)
class Activation(Local):
    """``activation(z)`` of every number of the state. Immutable, without parameters.

    `Dense`, `Conv1d` and `Conv2d` have an activation of their own, at no cost. This one is for what comes after
    pooling, a norm, or another activation.

    Parameters
    ----------
    features : int
        Numbers of the state.
    activation : str
        As in `Dense`.

    Raises
    ------
    TypeError, ValueError
        The argument that is wrong is named.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> layers = [nh.Conv2d(1, 4, 3, 8, "identity"), nh.AvgPool2d(4, 2, 6), nh.Activation(36, "sigmoid")]
    >>> nh.Network(layers, "mean_squared_error").num_params
    40
    """

    features: int
    activation: str | Callable[..., Any] = "tanh"

    operation = ACTIVATION
    taps = 1
    num_params = 0
    window: ClassVar[tuple[int, ...]] = (*ONE_PLACE, *ONE_PLACE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", as_size("features", self.features))
        object.__setattr__(self, "activation", check_activation(self.activation))

    @property
    def in_features(self) -> int:
        """``features``."""
        return self.features

    out_features = in_features

    def addresses(self, dtype: DTypeLike) -> tuple[int, int, int]:
        """The address of the compiled activation."""
        return activation_address(self.activation, dtype), 0, 0
