"""Trust-region steps of small nets by the eigenvalues of a dense H, which serve every radius."""

import numpy as np

from ..factors.spectrum import decomposition
from .trust_region import TrustRegionStep, secular_root

# Parameters up to which eigenvalues cost no more than the two or three factorizations of a step and what else it takes:
# one thread, processor time of a step with its dense H: P = 151, 4 ms against 6; 247, 9 against 9; 682, 73 against 35.
MOST_PARAMETERS = 200
# Eigenvalues up to this, relative to the largest, count as flat: rounding makes their gradients.
_FLAT = 1e-10
# In the hard case, those so far apart are one.
_POLE = 1e-14


class SpectralModel:
    """As `QuadraticModel`, of at most `MOST_PARAMETERS` parameters, on the CPU: one factorization serves all radii."""

    def __init__(self, H, gradient=None):
        self.H, self.gradient = H, H.gradient if gradient is None else gradient
        self.num_factorizations = 1
        self.values, self.vectors = decomposition(H.system)
        self.norm = max(np.abs(self.values).max(), np.finfo(float).tiny)
        self.weights = self.gradient @ self.vectors
        self.num_negative = int((self.values < -_FLAT * self.norm).sum())

    def step(self, radius, multiplier=None, rtol=1e-10):
        """`TrustRegionStep`, which is exact whatever ``rtol``; a guess of the multiplier is of no use."""
        values = np.where(np.abs(self.values) <= _FLAT * self.norm, _FLAT * self.norm, self.values)
        mu = secular_root(values, self.weights, radius)
        shifted, is_pole = values + mu, values + mu <= _POLE * self.norm
        p = np.divide(-self.weights, shifted, out=np.zeros_like(values), where=~is_pole)
        length = np.linalg.norm(p)
        is_hard = bool(is_pole.any()) and length < radius
        if is_hard:
            room = np.sqrt(radius - length) * np.sqrt(radius + length)
            lowest = int(np.argmin(values))
            p[lowest] = np.copysign(room, -self.weights[lowest])
        decrease = float(-self.weights @ p - 0.5 * self.values @ (p * p))
        count, self.num_factorizations = self.num_factorizations, 0
        step = self.vectors @ p
        if not (np.isfinite(decrease) and np.isfinite(step).all()):
            raise np.linalg.LinAlgError(f"radius: the step or what it promises overflows, with radius={radius:g}")
        return TrustRegionStep(step, float(mu), decrease, is_hard, mu > 0.0, count)
