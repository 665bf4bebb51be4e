"""The gated layer, a custom layer without parameters; with an identity for a gate it is bilinear."""

import functools
from collections.abc import Callable
from typing import Any

from numba.extending import register_jitable

from ..runtime.validation import as_size
from .activations import activation_function, check_activation
from .custom import Custom
from .registry import distinguish, is_own


class Gated(Custom):
    """``z[:features] * activation(z[features:])``: one half of the input is gated by the other. Immutable.

    A gated linear unit is a dense layer followed by this one: ``Dense(n, 2 * m, "identity"), Gated(m)`` is
    ``(W z + b) * sigmoid(V z + c)``, where the rows of the dense layer's weight are those of W and then those of V. As
    a layer of its own, the dense part keeps its fast elimination: its pivot has ``2 m min(B, n + 1)`` rows, while the
    pivot of one layer that does both would have all ``2 m (n + 1)`` parameters whatever B is. With "identity" the two
    layers are the bilinear layer ``(W z + b) * (V z + c)``; with "silu" and "gelu" they are SwiGLU and GEGLU
    (N. Shazeer, arXiv:2002.05202).

    Parameters
    ----------
    features : int
        The number m of outputs; there are 2 m inputs.
    activation : str
        A registered name, as for `Dense`. With "sigmoid" this is torch.nn.GLU.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> layers = [nh.Dense(4, 12, "identity"), nh.Gated(6, "silu"), nh.Dense(6, 1, "identity")]
    >>> net = nh.Network(layers, "mean_squared_error")
    >>> net.forward(net.init(rng=0), [[1.0, 2.0, 3.0, 4.0]]).shape
    (1, 1)
    """

    activation: str

    def __init__(self, features: int, activation: str | Callable[..., Any] = "sigmoid") -> None:
        features = as_size("features", features)
        activation = check_activation(activation)
        phi = activation_function(activation)
        function, jacobian, curvature = _functions(phi)
        super().__init__(function, 2 * features, features, 0, 0.0, jacobian, curvature)
        object.__setattr__(self, "activation", activation)
        object.__setattr__(self, "_cache", is_own(phi))

    def __repr__(self) -> str:
        return f"Gated({self.out_features}, {self.activation!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Gated, (self.out_features, self.activation)

    def _try(self) -> None:
        """Nothing: the functions are right for every size."""


@functools.cache
def _functions(phi):
    """The layer's function, jacobian and curvature for the gate ``phi(u) -> (value, slope, bend)``."""

    @register_jitable
    def gate(z, x, out):
        m = out.size
        for a in range(m):
            value, _, _ = phi(z[m + a])
            out[a] = z[a] * value

    @register_jitable
    def jacobian(z, x, Dz, Dx):
        m = Dz.shape[0]
        for a in range(m):
            value, slope, _ = phi(z[m + a])
            Dz[a, a] = value
            Dz[a, m + a] = z[a] * slope

    @register_jitable
    def curvature(z, x, g, Dxx, Dzx, Dzz):
        m = g.size
        for a in range(m):
            _, slope, bend = phi(z[m + a])
            Dzz[a, m + a] += g[a] * slope
            Dzz[m + a, a] += g[a] * slope
            Dzz[m + a, m + a] += g[a] * z[a] * bend

    return distinguish((gate, jacobian, curvature), phi.__module__, phi.__qualname__)
