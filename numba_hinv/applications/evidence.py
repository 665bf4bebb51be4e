"""Training with a prior that the evidence chooses: training and `Laplace.fit_prior` in turns, until neither moves.

D. MacKay, "Bayesian interpolation", Neural Computation 4 (1992): the strength of the prior is where the evidence is the
largest, with the parameters at the mode that this strength leads to.
"""

from typing import NamedTuple

import numpy as np

from .laplace import Laplace
from .minimize import minimize

# Turns at most, and the relative change of the L2 term's weight that ends them.
_TURNS, _SETTLED = 30, 1e-4
# Noise variances are at least this share of the targets' mean square: data without noise would lead to 0.
_LEAST_NOISE = 1e-6
# The L2 term's weight, in units of ||H||: beyond this nothing is left of the parameters, or factors are not exact.
_LEAST_L2, _MOST_L2 = 1e-9, 1e3
# Where the search starts: the evidence has several maxima, of smooth nets that leave much to noise and of busy ones.
# Pairs: the L2 term's weight in units of ||H||, and the noise variance as a share of the targets' mean square. On the
# 442 samples of scikit-learn's diabetes data (10-16-1, ||H|| = 7), weights of 0.05 to 1, and of 0.03 and less, led to
# log evidences of -361 to -383 and of -491, and to R^2 of 0.42 to 0.46 and of 0.15 on a fourth that was left out.
_STARTS = (5e-2, 0.3), (1e-3, 0.01)
# Turns move the logarithm of the weight ever less, by a factor that two of them show: the limit is aimed at, by at most
# so many times the step of one.
_LONGEST = 10.0


class Trained(NamedTuple):
    """Answer of `train`."""

    params: np.ndarray  # (P,) in float64
    l2: float  # the weight of the L2 term that they were trained with
    posterior: Laplace | None  # around params, with the prior that l2 stands for; None where l2 is 0
    num_iterations: int  # of L-BFGS and of exact steps, in all turns
    is_converged: bool  # whether the last training ended with success, and the prior stayed
    message: str  # why the last training ended


def train(net, params, X, y, l2=None, curvature="ggn", sample_weight=None, gtol=1e-8, max_iterations=200):
    """Train a net by L-BFGS and exact steps, and approximate its posterior there.

    Parameters
    ----------
    net : Network
        Of a loss that is minus the logarithm of a likelihood, as `Laplace` says.
    params : (P,) array
        The start.
    X, y, sample_weight
        As for `Network.gradient`; all samples are taken in every step.
    l2 : float, optional
        Weight of the L2 term, at least 0; by default the one with the largest evidence.
    curvature : "hessian" or "ggn"
        Of the posterior.
    gtol, max_iterations
        As for `minimize`, in every turn.

    Returns
    -------
    Trained

    Raises
    ------
    numpy.linalg.LinAlgError
        With curvature "hessian": params are not at a minimum, and there is no posterior.
    """
    run = _Run(net, X, y, curvature, sample_weight, {"gtol": gtol, "max_iterations": max_iterations})
    if l2 is not None:
        result = run.train(params, l2, "l-bfgs")
        return run.answer(result, l2, run.noise_for(result.x, l2) if l2 else None, True)
    run.measure(params)
    found = [run.search(params, share * run.norm, noise * run.size) for share, noise in _STARTS]
    return max(found, key=lambda trained: trained.posterior.log_evidence())._replace(num_iterations=run.num_iterations)


def _stretch(at, step, last):
    """What to multiply a step with, by the secant through the last one, which was ``last[1]`` at ``last[0]``."""
    if last is None or at == last[0]:
        return 1.0
    slope = (step - last[1]) / (at - last[0])
    return min(max(-1.0 / slope, 0.5), _LONGEST) if slope < 0.0 else 1.0


class _Run:
    """The data, and what is counted over all turns."""

    def __init__(self, net, X, y, curvature, sample_weight, options):
        self.net, self.data = net, {"X": X, "y": y, "sample_weight": sample_weight}
        self.curvature, self.options = curvature, options
        self.has_noise = net.loss_name == "mean_squared_error"
        # The scale of noise variances, of targets that may all be 0.
        self.size = (float(np.mean(np.square(y))) or 1.0) if self.has_noise else 1.0
        self.num_iterations = 0

    def train(self, params, l2, warmup):
        result = minimize(self.net, params, **self.data, l2=l2, warmup=warmup, **self.options)
        self.num_iterations += result.nit + result.warmup_iterations
        return result

    def posterior(self, params, l2, noise):
        """`Laplace` with the prior that an L2 term stands for, given the noise variance."""
        scale = self.scale / (2.0 * noise if self.has_noise else 1.0)
        noise = noise if self.has_noise else None
        return Laplace(
            self.net, params, **self.data, prior_precision=l2 * scale, curvature=self.curvature, noise_variance=noise
        )

    def measure(self, params):
        """Find out what weights and posteriors are scaled by."""
        H = self.net.hessian(params, **self.data, curvature="ggn")
        self.scale, self.norm = self.net.model.normaliser(H.total_weight), H.norm() or 1.0

    def search(self, params, l2, noise):
        """`Trained` at a maximum of the evidence, near the one that it starts from."""
        warmup, last, is_settled = "l-bfgs", None, False
        for _ in range(_TURNS):
            params, warmup = self.train(params, l2, warmup).x, None
            wanted, noise = self.better(params, l2, noise)
            at, step = np.log(l2), np.log(wanted / l2)
            is_settled = abs(step) <= _SETTLED
            if is_settled:
                break
            l2 = self.within(np.exp(at + _stretch(at, step, last) * step))
            last = at, step
        return self.answer(self.train(params, l2, None), l2, noise, is_settled)

    def within(self, l2):
        return float(np.clip(l2, _LEAST_L2 * self.norm, _MOST_L2 * self.norm))

    def better(self, params, l2, noise):
        """(weight of the L2 term, noise variance) with the largest evidence; the same where there is no maximum."""
        try:
            found = self.posterior(params, l2, noise)
            if self.has_noise and found.hessian.loss <= _LEAST_NOISE * self.size:
                return l2, _LEAST_NOISE * self.size
            found.fit_prior(noise=self.has_noise)
        except np.linalg.LinAlgError:
            return l2, noise
        if self.has_noise:
            noise = max(found.noise_variance, _LEAST_NOISE * self.size)
        return self.within(found.prior_precision / found.scale), noise

    def noise_for(self, params, l2):
        """The noise variance with the largest evidence, for a given weight of the L2 term."""
        self.measure(params)
        if not self.has_noise:
            return None
        found = self.posterior(params, l2, self.size)
        gamma = params.size - found.prior_precision * float(found.variances().sum())
        count = found.scale * 2.0 * self.size
        noise = found.hessian.loss * count / max(count - gamma, 1e-3 * count)
        return max(noise, _LEAST_NOISE * self.size)

    def answer(self, result, l2, noise, is_settled):
        posterior = self.posterior(result.x, l2, noise) if l2 else None
        is_converged = bool(result.success and is_settled)
        return Trained(result.x, l2, posterior, self.num_iterations, is_converged, result.message)
