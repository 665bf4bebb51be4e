"""Rules of `minimize`: how a step is made, and how the next radius or damping follows from what the step gained.

A rule has ``curvature``, the matrix that it wants; ``scale_name`` and ``scale``, its radius or damping; ``propose(H)``,
which gives a step, the decrease that the quadratic model promises and the negative eigenvalues of H (NaN where
unknown), and sets ``num_factorizations``; and ``judge(gain)``, the decrease of the loss in units of what was promised.
"""

import numpy as np

from ..factors.spectrum import decomposition
from .spectral_model import MOST_PARAMETERS, SpectralModel
from .trust_region import QuadraticModel

# Length of a step to which the trust region is met in training.
_RADIUS_RTOL = 0.05
# A damping so large, relative to ||H||, leaves nothing to try.
_LARGEST_DAMPING = 1e15
# Eigenvalues that a saddle-free step turns, at most.
_SADDLE_FREE_CAP = 30
# Half the geodesic acceleration, relative to the step, up to which it is added: in Transtrum and Sethna's words,
# alpha = 0.75.
_BENDING = 0.375


def _is_small(H):
    """Whether the eigenvalues of a dense H cost no more than its factorizations."""
    return H.shape[0] <= MOST_PARAMETERS and H.device == "cpu"


class TrustRegion:
    """Steps of `trust_region_step`, for small nets by eigenvalues; the radius follows the gain ratio.

    After a rejected step, what is known of H serves the next one, of a smaller radius.
    """

    name, curvature, scale_name = "trust-region", "hessian", "radius"
    model = None

    def __init__(self, start):
        self.scale, self.multiplier, self.length, self.on_boundary = start or 1.0, None, 0.0, False

    def propose(self, H, gradient=None):
        """(step, decrease of the model, negative eigenvalues of H or NaN where unknown); by default H's gradient."""
        try:
            if self.model is None or self.model.H is not H:
                self.model = (SpectralModel if _is_small(H) else QuadraticModel)(H, gradient)
            answer = self.model.step(self.scale, self.multiplier, _RADIUS_RTOL)
        except np.linalg.LinAlgError:
            self.num_factorizations, self.model = 0, None
            return None, 0.0, np.nan
        self.multiplier, self.on_boundary = answer.multiplier, answer.on_boundary
        self.num_factorizations = answer.num_factorizations
        self.length = float(np.linalg.norm(answer.step))
        negative = getattr(self.model, "num_negative", np.nan if answer.multiplier else 0)
        return answer.step, answer.predicted_decrease, negative

    def judge(self, gain):
        if gain > 0.0:
            self.model = None
        if not gain >= 0.25:
            # The step that failed may have been an interior one.
            self.scale = 0.25 * min(self.length, self.scale)
            self.multiplier = None
        elif gain > 0.75 and self.on_boundary:
            self.scale *= 2.0
            self.multiplier *= 0.5


class Damped:
    """Damped steps; the damping follows the gain ratio by Nielsen's rule.

    H. Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05, Technical University of Denmark.
    """

    scale_name = "damping"

    def __init__(self, start):
        self.scale, self.growth = start, 2.0

    def propose(self, H):
        if self.scale is None:
            self.scale = 1e-3 * H.norm() or 1e-3
        self.num_factorizations = 0
        while self.scale <= _LARGEST_DAMPING * max(H.norm(), 1e-300):
            self.num_factorizations += 1
            try:
                F = H.factorize(self.scale, np.float64)
            except np.linalg.LinAlgError:
                self.scale *= 4.0
                continue
            p = self.step(H, F)
            if p is not None:
                decrease = -float(H.gradient @ p) - 0.5 * float(p @ (H @ p))
                return self.accelerate(H, F, p), decrease, self.negative
            self.scale *= 4.0
        return None, 0.0, np.nan

    def accelerate(self, H, F, p):
        """The step to take, by the factors that p was made with."""
        return p

    def judge(self, gain):
        if gain > 0.0:
            self.scale *= max(1.0 / 3.0, 1.0 - (2.0 * min(gain, 1.0) - 1.0) ** 3)
            self.growth = 2.0
        else:
            self.scale *= self.growth
            self.growth *= 2.0


class LevenbergMarquardt(Damped):
    """``-(G + damping I)^-1 gradient`` with the Gauss-Newton matrix G, and geodesic acceleration where that is small.

    ``bend(H, step)`` is the gradient that `geodesic.bending` gives, or None for steps without.
    """

    bend = None

    name, curvature = "levenberg-marquardt", "ggn"
    negative = np.nan

    def step(self, H, F):
        return -F.solve(H.gradient)

    def accelerate(self, H, F, p):
        """The step along a parabola whose outputs go straight, to second order; p itself where that bends too much."""
        if self.bend is None:
            return p
        try:
            half = -0.5 * F.solve(self.bend(H, p))
        except ValueError:
            return p
        return p + half if np.linalg.norm(half) <= _BENDING * np.linalg.norm(p) else p


class SaddleFree(Damped):
    """``-(|H| + damping I)^-1 gradient``, exact but on eigenvalues between -damping and 0, which are not turned.

    (Y. Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization", NeurIPS 2014.) Inertia says how many are below -damping, and Lanczos on F finds them.
    """

    name, curvature = "saddle-free", "hessian"
    # The H whose lowest eigenvalues are known, those, and their vectors: after a rejected step they are not looked for
    # again, the damping being larger.
    known = None, None, None

    def step(self, H, F):
        p = -F.solve(H.gradient)
        self.negative = count = F.solver.num_negative_pivots()
        if count == 0:
            return p
        values, vectors = self.lowest(H, F, count, H.gradient + 1e-3 * np.abs(p))
        if values is None:
            return None
        # F has 1 / (value + damping) where 1 / (|value| + damping) is wanted.
        change = 1.0 / (self.scale - values) - 1.0 / (self.scale + values)
        return p - vectors @ (change * (vectors.T @ H.gradient))

    def lowest(self, H, F, count, start):
        """(the lowest eigenvalues of H, so many, vectors), or (None, None)."""
        known, values, vectors = self.known
        if known is not H or len(values) < count:
            values, vectors = decomposition(H.system) if _is_small(H) else _below(H, F, count, self.scale, start)
            if values is None:
                return None, None
            self.known = H, values, vectors
        return values[:count], vectors[:, :count]

    def judge(self, gain):
        super().judge(gain)
        if gain > 0.0:
            self.known = SaddleFree.known


def _below(H, F, count, damping, start):
    """(eigenvalues of H below -damping, ascending, vectors), so many, by Lanczos on F; (None, None) if that fails."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    size = H.shape[0]
    if count > min(_SADDLE_FREE_CAP, size // 2):
        return None, None
    operator = LinearOperator((size, size), matvec=F.solve, dtype=np.float64)
    try:
        values, vectors = eigsh(operator, count, which="SA", tol=1e-8, v0=start, maxiter=20)
    except ArpackError:
        return None, None
    if not (values < 0.0).all():
        return None, None
    values = 1.0 / values - damping
    order = np.argsort(values)
    return values[order], vectors[:, order]
