"""Normalisation layers with a learned gain: `LayerNorm` and `RMSNorm`, custom layers with derivatives in closed form.

With mean mu, ``r = (mean((z - mu)^2) + eps)^(-1/2)`` and ``h = r (z - mu)``, n features, the output is ``w h + b`` and

    dh_a/dz_j = r E_aj,    E = I - 1/n - h h^T / n,
    sum_a c_a d^2 h_a / dz_j dz_k = -r^2/n (h_k (E c)_j + h_j (E c)_k + (h . c) E_jk).

Without a mean, mu and the 1/n in E are 0.
"""

import functools
import math
from typing import Any

from numba.extending import register_jitable

from ..runtime.validation import as_flag, as_real, as_size
from .custom import Custom
from .registry import distinguish


class _Norm(Custom):
    """What the two have in common."""

    eps: float
    _cache = True

    def _build(self, features: int, eps: float, bias: bool, centred: bool, frozen: bool) -> None:
        features = as_size("features", features)
        eps = as_real("eps", eps)
        if eps < 0.0:
            raise ValueError(f"eps: expected at least 0, got {eps}")
        function, jacobian, curvature = _functions(eps, centred)
        init = (1.0,) * features + (0.0,) * (features * bias)
        super().__init__(function, features, features, len(init), init, jacobian, curvature, frozen)
        object.__setattr__(self, "eps", eps)

    def _frozen_text(self) -> str:
        return ", frozen=True" if self.frozen else ""

    def _try(self) -> None:
        """Nothing: the functions are right for every size."""


class LayerNorm(_Norm):
    """``weight * (z - mean(z)) / sqrt(var(z) + eps) + bias``, over the features of one sample. Immutable.

    It is torch.nn.LayerNorm over the last dimension: the variance is the mean squared deviation, and the parameters are
    the weight, which starts at 1, and then the bias, which starts at 0.

    Parameters
    ----------
    features : int
        The number n of features, at least 1.
    eps : float
        What is added to the variance, at least 0.
    bias : bool
        Whether there is a bias.
    frozen : bool
        Whether the net keeps the parameters as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Notes
    -----
    The derivatives cost about 20 n^2 flops per sample.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.LayerNorm(3, eps=0.0)], "mean_squared_error")
    >>> net.forward(net.init(), [[1.0, 2.0, 3.0]]).round(3)
    array([[-1.225,  0.   ,  1.225]])
    """

    def __init__(self, features: int, eps: float = 1e-5, bias: bool = True, frozen: bool = False) -> None:
        self._build(features, eps, as_flag("bias", bias), True, frozen)

    def __repr__(self) -> str:
        bias = self.num_params > self.in_features
        return f"LayerNorm({self.in_features}, eps={self.eps}, bias={bias}{self._frozen_text()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerNorm, (self.in_features, self.eps, self.num_params > self.in_features, self.frozen)


class RMSNorm(_Norm):
    """``weight * z / sqrt(mean(z^2) + eps)``, over the features of one sample. Immutable.

    It is torch.nn.RMSNorm over the last dimension. The parameters are the weight, which starts at 1.

    Parameters
    ----------
    features : int
        The number n of features, at least 1.
    eps : float
        What is added to the mean square, at least 0. The default is the machine epsilon of float64.
    frozen : bool
        Whether the net keeps the parameters as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected; the message names it.

    Notes
    -----
    The derivatives cost about 20 n^2 flops per sample.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.RMSNorm(2, eps=0.0)], "mean_squared_error")
    >>> net.forward(net.init(), [[1.0, 7.0]])
    array([[0.2, 1.4]])
    """

    def __init__(self, features: int, eps: float = 2.0**-52, frozen: bool = False) -> None:
        self._build(features, eps, False, False, frozen)

    def __repr__(self) -> str:
        return f"RMSNorm({self.in_features}, eps={self.eps}{self._frozen_text()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return RMSNorm, (self.in_features, self.eps, self.frozen)


@register_jitable
def _statistics(z, eps, centred):
    """mu and r."""
    n = z.size
    mean = 0.0
    if centred:
        for a in range(n):
            mean += z[a] / n
    # Squares of the largest difference may overflow, and those of all underflow.
    scale = math.sqrt(eps)
    for a in range(n):
        scale = max(scale, abs(z[a] - mean))
    root = math.sqrt(eps) / scale
    square = 0.0
    for a in range(n):
        h = (z[a] - mean) / scale
        square += h * h
    return mean, 1.0 / math.sqrt(square / n + root * root) / scale


@functools.cache
def _functions(eps, centred):
    """The layer's function, jacobian and curvature; the bias is there if x is long enough for one."""
    centre = 1.0 if centred else 0.0

    @register_jitable
    def norm(z, x, out):
        n = z.size
        mean, r = _statistics(z, eps, centred)
        for a in range(n):
            out[a] = x[a] * (r * (z[a] - mean))
        if x.size > n:
            for a in range(n):
                out[a] += x[n + a]

    @register_jitable
    def jacobian(z, x, Dz, Dx):
        n = z.size
        mean, r = _statistics(z, eps, centred)
        for a in range(n):
            h, weight = r * (z[a] - mean), x[a] * r / n
            for j in range(n):
                Dz[a, j] = -weight * (centre + h * (r * (z[j] - mean)))
            Dz[a, a] += x[a] * r
            Dx[a, a] = h
            if x.size > n:
                Dx[a, n + a] = 1.0

    @register_jitable
    def curvature(z, x, g, Dxx, Dzx, Dzz):
        n = z.size
        mean, r = _statistics(z, eps, centred)
        total, along = 0.0, 0.0
        for a in range(n):
            total += centre * g[a] * x[a] / n
            along += g[a] * x[a] * (r * (z[a] - mean)) / n
        scale = -r * r / n
        for j in range(n):
            h = r * (z[j] - mean)
            slope = g[j] * x[j] - total - along * h
            for k in range(n):
                h_k = r * (z[k] - mean)
                slope_k = g[k] * x[k] - total - along * h_k
                Dzz[j, k] += scale * ((h_k * slope + h * slope_k) - along * (centre + h * h_k))
            Dzz[j, j] += scale * along * n
            weight = g[j] * r / n
            for k in range(n):
                Dzx[j, k] -= weight * (centre + h * (r * (z[k] - mean)))
            Dzx[j, j] += g[j] * r

    return distinguish((norm, jacobian, curvature), eps, centred)
