"""The dense layer: a description, without parameters. The sweeps read it through the layer table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..runtime.validation import as_flag, as_size
from .activations import check_activation


@dataclass(frozen=True)
class Dense:
    """Dense layer: ``output = activation(W input + c)``, plus ``input`` with a skip. Immutable.

    Parameters
    ----------
    in_features, out_features : int
        The numbers of inputs and outputs, at least 1. With ``skip`` they must be equal.
    activation : str or callable
        One of "identity", "tanh", "sigmoid", "softplus", "silu", "gelu" (the exact one, with erf), "sin" and "relu"
        (whose second derivative is taken as 0), or a name given to `register_activation`. Names and functions of other
        libraries ("ReLU", "swish", ``np.tanh``, ``torch.nn.functional.silu``) are understood as well.
    bias : bool
        Whether the layer has a bias c.
    skip : bool
        Whether the input is added to the output.
    frozen : bool
        Whether the net keeps the parameters as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.Dense(64, 8, "tanh").num_params
    520
    """

    in_features: int
    out_features: int
    activation: str | Callable[..., Any] = "tanh"
    bias: bool = True
    skip: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for name in ("in_features", "out_features"):
            set_field(self, name, as_size(name, getattr(self, name)))
        for name in ("bias", "skip", "frozen"):
            set_field(self, name, as_flag(name, getattr(self, name)))
        set_field(self, "activation", check_activation(self.activation))
        if self.skip and self.in_features != self.out_features:
            raise ValueError(
                "skip: expected in_features == out_features for a layer with a skip, "
                f"got in_features={self.in_features} and out_features={self.out_features}"
            )

    @property
    def num_params(self) -> int:
        """Number of parameters: ``out_features * (in_features + bias)``."""
        return self.out_features * (self.in_features + self.bias)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of W: ``(out_features, in_features)``."""
        return self.out_features, self.in_features
