"""Custom layers outside of a net: what their compiled forms compute, and derivatives by contour integrals beside them.

The contour integral of `test_derivatives`, in one variable and in two: a function that is analytic and plain Python is
run on complex numbers, so that its derivatives come from its values alone. And the golden files of nets with custom
layers.
"""

import ctypes
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np

import numba_hinv as nh

DATA = Path(__file__).parent / "data" / "custom"


def swish(z, x, out):
    for a in range(z.size):
        out[a] = z[a] / (1.0 + math.exp(-x[0] * z[a])) + x[1] * z[0]


@numba.njit
def pendulum(z, x, out):
    """A step of a driven pendulum; angle and speed; length, friction and torque. The third input is ignored."""
    angle, speed = z[0], z[1]
    force = x[2] * math.tanh(speed) - math.sin(angle) / x[0] - x[1] * speed * abs(speed)
    out[0] = angle + 0.1 * speed
    out[1] = speed + 0.1 * force


MAKERS = {
    "Dense": nh.Dense,
    "Gated": nh.Gated,
    "LayerNorm": nh.LayerNorm,
    "RMSNorm": nh.RMSNorm,
    "swish": lambda features: nh.Custom(swish, features, features, 2, init=[1.0, 0.1]),
    "pendulum": lambda: nh.Custom(pendulum, 3, 2, 3, init=1.0),
}


@functools.cache
def golden(name):
    """(Network, arrays) of a golden file."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = SimpleNamespace(**{key: file[key] for key in file.files})
    layers = [MAKERS[kind](*arguments) for kind, *arguments in json.loads(str(arrays.layers))]
    return nh.Network(layers, str(arrays.loss)), arrays


def evaluate(layer, z, x, g, dtype=np.float64, columns=None):
    """out, Dz, Dx, and Dxx, Dzx, Dzz (float64 only) for one sample, as the sweeps compute them.

    The second derivatives are added to ones, which are taken off again; Dzx lies in a matrix of ``columns`` columns.
    """
    n, m, p = layer.in_features, layer.out_features, layer.num_params
    columns = columns or n
    z, x, g = (np.array(value, dtype) for value in (z, x, g))
    result = SimpleNamespace(out=np.full(m, np.nan, dtype), Dz=np.zeros((m, n), dtype), Dx=np.zeros((m, p), dtype))
    work = np.full(layer.work_size + 1, np.nan, dtype)
    value, jacobian, curvature = layer.addresses(np.dtype(dtype))
    _call(value, [z, x, result.out], [n, m, p])
    _call(jacobian, [z, x, result.Dz, result.Dx, work], [n, m, p])
    assert bool(curvature) == (np.dtype(dtype) == np.float64)
    if curvature:
        result.Dxx, result.Dzz = np.ones((p, p)), np.ones((n, n))
        wide = np.ones((p, columns))
        _call(curvature, [z, x, g, result.Dxx, wide, result.Dzz, work], [n, m, p, columns])
        assert (wide[:, n:] == 1.0).all()
        result.Dxx, result.Dzx, result.Dzz = result.Dxx - 1, wide[:, :n] - 1, result.Dzz - 1
    assert np.isnan(work[-1])
    return result


def _call(address, arrays, sizes):
    kinds = [ctypes.c_void_p] * len(arrays) + [ctypes.c_int64] * len(sizes)
    ctypes.CFUNCTYPE(None, *kinds)(address)(*[array.ctypes.data for array in arrays], *sizes)


def contour(function, z, x, g, radius=0.1, points=24):
    """The same by contour integrals: ``function(z, x, out)`` is run on complex numbers in Python."""
    n, p = len(z), len(x)
    turns = np.exp(2j * np.pi * np.arange(points) / points)
    origin = np.concatenate([z, x]).astype(complex)

    def run(u):
        out = np.zeros(len(g), complex)
        function(u[:n].copy(), u[n:].copy(), out)
        return out

    unit = radius * np.eye(n + p)
    singles = np.array([[run(origin + t * unit[i]) for t in turns] for i in range(n + p)])
    jacobian = np.einsum("ita,t->ai", singles, 1 / turns).real / points / radius
    hessian = np.diag(np.einsum("ita,t,a->i", singles, turns**-2, g).real) * 2 / points / radius**2
    for i in range(n + p):
        for j in range(i):
            grid = np.array([[run(origin + s * unit[i] + t * unit[j]) for t in turns] for s in turns])
            mixed = np.einsum("sta,s,t,a->", grid, 1 / turns, 1 / turns, g).real / points**2 / radius**2
            hessian[i, j] = hessian[j, i] = mixed
    return SimpleNamespace(
        out=run(origin).real,
        Dz=jacobian[:, :n],
        Dx=jacobian[:, n:],
        Dxx=hessian[n:, n:],
        Dzx=hessian[n:, :n],
        Dzz=hessian[:n, :n],
    )


def assert_close(ours, truth, tolerance, names=("out", "Dz", "Dx", "Dxx", "Dzx", "Dzz")):
    """Every block to ``tolerance``, relative to its largest entry or 1."""
    for name in names:
        a, b = getattr(ours, name), getattr(truth, name)
        assert a.shape == b.shape, name
        if b.size:
            assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max()), name
