"""An external layer with parameters that tests of nets share: outputs ``x[1] sin(x[0] Z)``, whose derivatives are
known.
"""

import numpy as np

import numba_hinv as nh


def value(Z, x):
    return np.sin(x[0] * Z) * x[1]


def jacobian(Z, x):
    Dz = (x[0] * x[1] * np.cos(x[0] * Z))[:, :, None] * np.eye(Z.shape[1])
    return Dz, np.stack([Z * np.cos(x[0] * Z) * x[1], np.sin(x[0] * Z)], axis=2)


def curvature(Z, x, G):
    s, c = np.sin(x[0] * Z), np.cos(x[0] * Z)
    mixed = (G * Z * c).sum()
    Dxx = np.array([[-(G * Z**2 * s * x[1]).sum(), mixed], [mixed, 0.0]])
    Dzx = np.stack([G * (c - x[0] * Z * s) * x[1], G * x[0] * c], axis=1)
    return Dxx, Dzx, (-G * x[0] ** 2 * x[1] * s)[:, :, None] * np.eye(Z.shape[1])


def twist(features):
    """The layer, with so many inputs and outputs."""
    return nh.External(value, jacobian, curvature, in_features=features, out_features=features, num_params=2,
                       init=(1.0, 0.5))  # fmt: skip
