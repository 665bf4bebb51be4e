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
    """Apply an activation to every number of the state. Immutable, without parameters.

    `Dense`, `Conv1d` and `Conv2d` have activations of their own, at no extra cost. This layer is for an activation
    after pooling, after a norm or after another activation.

    Parameters
    ----------
    features : int
        How many numbers the state has.
    activation : str
        As in `Dense`.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

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
        """Size of the input, which is ``features``."""
        return self.features

    out_features = in_features

    def addresses(self, dtype: DTypeLike) -> tuple[int, int, int]:
        """Give the address of the compiled activation, for the layer table.

        Parameters
        ----------
        dtype : float64 or float32
            The dtype of the sweep.

        Returns
        -------
        addresses : (int, int, int)
            The address, and two zeros.
        """
        return activation_address(self.activation, dtype), 0, 0
