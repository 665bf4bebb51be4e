"""Which norm of this library a function is, told by its values."""

import numpy as np

from ..layers.norms import LayerNorm, RMSNorm

# Of the states at which it is tried: the smaller ones show what is added to the variance.
_SCALES = 1.0, 30.0, 1e-3
_ROUNDING = 1e-9
_LARGEST_EPS = 0.1


def norm_of(function, piece):
    """The norm that a function is, and the places of its parameters in the order of the norm; None where it is none.

    function : ``function(state, x)``, x being the parameters at ``piece.positions``.
    """
    n, p = piece.source.size, piece.positions.size
    if n < 2 or piece.target.size != n or p not in (n, 2 * n):
        return None
    rng = np.random.default_rng(0)
    states, x = [scale * rng.standard_normal(n) for scale in _SCALES], rng.standard_normal(p)
    values = None
    for eps in _small_constants(piece.equations):
        values = values or [np.asarray(function(state, x)) for state in states]
        # The bias may come first: where its array does.
        for places in (np.arange(p), np.roll(np.arange(p), -n)):
            for kind in (LayerNorm, RMSNorm) if p == n else (LayerNorm,):
                expected = (_norm(kind, state, x[places[:n]], x[places[n:]], eps) for state in states)
                if all(map(_is_near, values, expected)):
                    layer = LayerNorm(n, eps, p > n) if kind is LayerNorm else RMSNorm(n, eps)
                    return layer, piece.positions[places]
    return None


def _small_constants(equations):
    """The numbers among the inputs of equations that may be what a norm adds to the variance."""
    given = [each for equation in equations for each in equation.inputs if isinstance(each, (np.ndarray, np.generic))]
    return dict.fromkeys(float(each) for each in given if each.size == 1 and 0.0 < each < _LARGEST_EPS)


def _norm(kind, z, weight, bias, eps):
    if kind is LayerNorm:
        z = z - z.mean()
    output = weight * z / np.sqrt(np.mean(z * z) + eps)
    return output + bias if bias.size else output


def _is_near(one, two):
    return np.abs(one - two).max() <= _ROUNDING * np.abs(two).max()
