"""Parameters of losses, such as where Huber's turns: what they may be, and how compiled losses get them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runtime.validation import as_array, as_flag, as_real


@dataclass(frozen=True)
class Parameter:
    """Declaration of a parameter of a loss: its default and the values that it may have. Immutable.

    Parameters
    ----------
    default : float or bool
        The default. With a bool the parameter is a switch, which is True or False and is passed to the compiled loss as
        1 or 0.
    low, high : float
        The least and the largest value.
    is_open : bool
        Whether these two are themselves excluded.
    per_output : bool
        Whether the parameter may also be an array (n,) with one number for each output.

    Raises
    ------
    TypeError, ValueError
        The default is not such a value.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> delta = nh.losses.Parameter(1.0, low=0.0, is_open=True)
    """

    default: float
    low: float = -math.inf
    high: float = math.inf
    is_open: bool = False
    per_output: bool = True

    def __post_init__(self) -> None:
        self.check("default", self.default)

    @property
    def is_switch(self) -> bool:
        """Whether the parameter is a switch, which is True or False."""
        return isinstance(self.default, bool)

    def check(self, name: str, given: Any) -> Any:
        """Check a value of the parameter.

        Parameters
        ----------
        name : str
            The name of the parameter, for messages.
        given : object
            The value.

        Returns
        -------
        value : float, tuple of float or bool
            The value as it is kept.

        Raises
        ------
        TypeError, ValueError
            ``given`` is not such a value.
        """
        if self.is_switch:
            return as_flag(name, given)
        if self.per_output and not isinstance(given, str) and np.ndim(_on_host(given)):
            value = tuple(as_array(name, _on_host(given), (None,), np.float64, " (one number an output)").tolist())
        else:
            value = as_real(name, given)
        for number in value if isinstance(value, tuple) else (value,):
            inside = self.low < number < self.high if self.is_open else self.low <= number <= self.high
            if not inside:
                raise ValueError(f"{name}: expected numbers {self._range()}, got {number:g}")
        return value

    def _range(self) -> str:
        least, most = ("above", "below") if self.is_open else ("of at least", "at most")
        limits = [f"{word} {limit:g}" for word, limit in ((least, self.low), (most, self.high)) if math.isfinite(limit)]
        return " and ".join(limits) or "that are finite"


def _on_host(given):
    """Tensors of PyTorch, which may be on a device or be differentiated, as they are without."""
    return given.detach().cpu().numpy() if hasattr(given, "detach") else given


def pack(values, num_outputs):
    """What a compiled loss reads: (number of parameters, number of outputs), every one a row.

    Parameters
    ----------
    values : dict
        Checked values by name, in the order of their declaration.
    """
    packed = np.empty((len(values), num_outputs))
    for row, (name, value) in zip(packed, values.items()):
        if isinstance(value, tuple) and len(value) != num_outputs:
            raise ValueError(
                f"{name}: expected one number, or one for each of the {num_outputs} outputs, got {len(value)} numbers"
            )
        row[:] = value
    return packed


def declared(parameters):
    """Declarations of a loss's parameters, each a `Parameter` or a default, as a dict of the former."""
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters: expected a dict of names and defaults, got {type(parameters).__name__}")
    found = {}
    for name, given in parameters.items():
        if not isinstance(name, str) or not name.isidentifier() or name in ("name", "reduction", "ignore_index"):
            raise ValueError(f"parameters: expected names that are free for a parameter, got {name!r}")
        if isinstance(given, Parameter):
            found[name] = given
        else:
            found[name] = Parameter(given if isinstance(given, bool) else as_real(f"parameters: {name}", given))
    return found
