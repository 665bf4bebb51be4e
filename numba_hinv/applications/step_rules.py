"""Rules of `minimize`: how a step is made, and how the next radius or damping follows from what the step gained.

A rule has ``curvature``, the matrix that it wants; ``scale_name`` and ``scale``, its radius or damping; ``propose(H)``,
which gives a step, the decrease that the quadratic model promises and the negative eigenvalues of H (NaN where unknown),
and sets ``num_factorizations``; and ``judge(gain)``, the decrease of the loss in units of what was promised.
"""

import numpy as np

from .trust_region import trust_region_step

# Length of a step to which the trust region is met in training.
_RADIUS_RTOL = 0.05
# A damping so large, relative to ||H||, leaves nothing to try.
_LARGEST_DAMPING = 1e15
# Eigenvalues that a saddle-free step turns, at most.
_SADDLE_FREE_CAP = 30


class TrustRegion:
    """Steps of `trust_region_step`; the radius follows the gain ratio."""

    curvature, scale_name = "hessian", "radius"

    def __init__(self, start):
        self.scale, self.multiplier, self.length, self.on_boundary = start or 1.0, None, 0.0, False

    def propose(self, H, gradient=None):
        """(step, decrease of the model, negative eigenvalues of H or NaN where unknown); by default H's gradient."""
        try:
            answer = trust_region_step(H, self.scale, gradient, multiplier=self.multiplier, rtol=_RADIUS_RTOL)
        except np.linalg.LinAlgError:
            self.num_factorizations = 0
            return None, 0.0, np.nan
        self.multiplier, self.on_boundary = answer.multiplier, answer.on_boundary
        self.num_factorizations = answer.num_factorizations
        self.length = float(np.linalg.norm(answer.step))
        return answer.step, answer.predicted_decrease, np.nan if answer.multiplier else 0

    def judge(self, gain):
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
                return p, decrease, self.negative
            self.scale *= 4.0
        return None, 0.0, np.nan

    def judge(self, gain):
        if gain > 0.0:
            self.scale *= max(1.0 / 3.0, 1.0 - (2.0 * min(gain, 1.0) - 1.0) ** 3)
            self.growth = 2.0
        else:
            self.scale *= self.growth
            self.growth *= 2.0


class LevenbergMarquardt(Damped):
    """``-(G + damping I)^-1 gradient``, G being the Gauss-Newton matrix."""

    curvature = "ggn"
    negative = np.nan

    def step(self, H, F):
        return -F.solve(H.gradient)


class SaddleFree(Damped):
    """``-(|H| + damping I)^-1 gradient``, exact but on eigenvalues between -damping and 0, which are not turned.

    (Y. Dauphin et al., "Identifying and attacking the saddle point problem in high-dimensional non-convex
    optimization", NeurIPS 2014.) Inertia says how many are below -damping, and Lanczos on F finds them.
    """

    curvature = "hessian"

    def step(self, H, F):
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        p = -F.solve(H.gradient)
        self.negative = count = F.solver.factors.num_negative
        if count == 0:
            return p
        size = H.shape[0]
        if count > min(_SADDLE_FREE_CAP, size // 2):
            return None
        operator = LinearOperator((size, size), matvec=F.solve, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, count, which="SA", tol=1e-8, v0=H.gradient + 1e-3 * np.abs(p), maxiter=20)
        except ArpackError:
            return None
        if not (values < 0.0).all():
            return None
        # F has 1 / (value + damping) where 1 / (|value| + damping) is wanted.
        wanted = 1.0 / (2.0 * self.scale - 1.0 / values)
        return p - vectors @ ((wanted - values) * (vectors.T @ H.gradient))
