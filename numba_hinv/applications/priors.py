"""Normal priors of a net's parameters, with a mean, and precisions by layer; those with the largest evidence.

With ``A = scale H + diag(alpha)`` the precision of the posterior, alpha_g in the group g of n_g parameters and Sigma
its inverse, the derivative of the log evidence in log alpha_g is

    1/2 (n_g - alpha_g |x_g - mean_g|^2 - alpha_g trace(Sigma_g))

and that in the logarithm of the noise variance is ``scale loss - count/2 + gamma/2``, with
``gamma = P - sum_g alpha_g trace(Sigma_g)`` (D. MacKay, Neural Computation 4, 1992). Both are exact: the traces are
sums of the diagonal of the inverse.
"""

import numpy as np

from ..certainty.inertia import best_count
from ..runtime import memory_budget
from ..system.ridge import as_ridge, sizes

# How far the logarithms of precisions may move from where they start, and the slope in one that ends the search.
_REACH, _SLOPE = 40.0, 1e-7


def as_prior(name, value, chain, first):
    """A precision or mean as (what users see, number or (P,) array): a float, an (L,), (L, 2) or (P,) array."""
    number, vector = as_ridge(name, value, chain, first)
    if not isinstance(value, (list, tuple)) and np.ndim(value) == 0:
        return number, number
    shown = list(value)
    if any(np.ndim(entry) for entry in shown):
        shown = [entry if np.ndim(entry) else (entry, entry) for entry in shown]
    return np.array(shown, np.float64), number if vector is None else vector


def groups_of(chain, first, are_pairs):
    """(group of each parameter (P,), parameters of each group, their places in an (L,) or (L, 2) array)."""
    weights, biases = sizes(chain)
    counts = np.stack([weights, biases], axis=1) if are_pairs else (weights + biases)[:, None]
    places = np.flatnonzero(counts.ravel())
    counts = counts.ravel()[places]
    return np.repeat(np.arange(places.size), counts), counts, places + first * (2 if are_pairs else 1)


def layer_name(place, are_pairs):
    """What a place in such an array is called in messages."""
    layer, part = divmod(int(place), 2) if are_pairs else (int(place), 0)
    return f"layer {layer}" + (f", {('weights', 'biases')[part]}" if are_pairs else "")


def maximise(posterior, are_pairs, noise, tick):
    """The precisions with the largest evidence: ((L,) or (L, 2) array, (P,) array, noise variance).

    posterior : Laplace
    tick : callable
        ``tick(1)`` is called after every evaluation.
    """
    from scipy.optimize import minimize

    system = posterior.hessian.system
    if posterior.factorization.method == "dense" and memory_budget.fits(24 * system.num_params**2):
        # Every step then has its own copy of it, with another diagonal.
        system.kept_dense()
    group, counts, places = groups_of(system.chain, system.first, are_pairs)
    distances = np.bincount(group, posterior.from_mean() ** 2)
    if not distances.all():
        raise _no_maximum(layer_name(places[int(np.argmin(distances))], are_pairs))
    present = np.broadcast_to(posterior.precisions, system.params.shape)
    start = np.bincount(group, np.log(present)) / counts
    if noise:
        start = np.append(start, np.log(posterior.noise_variance))
    best = {}

    def minus_evidence(u):
        noise_variance = float(np.exp(u[-1])) if noise else posterior.noise_variance
        precisions = np.exp(u[: counts.size])
        found = posterior.evidence_at(precisions[group], noise_variance)
        tick(1)
        if found is None:
            # Where there is no posterior the line search must turn back.
            return best["value"] + 1e3 * (1.0 + abs(best["value"])), np.zeros_like(u)
        value, variances = found
        traces = precisions * np.bincount(group, variances)
        slope = 0.5 * (counts - precisions * distances - traces)
        if noise:
            fit = posterior.scale_with(noise_variance) * posterior.hessian.loss
            slope = np.append(slope, fit - 0.5 * (posterior.count - (counts.sum() - traces.sum())))
        if not best or -value < best["value"]:
            best.update(value=-value, slope=slope, u=u.copy())
        return -value, -slope

    minus_evidence(start)
    if not best:
        raise np.linalg.LinAlgError(
            "prior_precision: expected a posterior precision that is positive definite to start from"
        )
    bounds = [(number - _REACH, number + _REACH) for number in start]
    options = {"maxiter": 500, "maxcor": 30, "ftol": 1e-15, "gtol": _SLOPE}
    minimize(minus_evidence, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    # Slopes are those of sums of so many terms of about 1.
    allowed = 1e-5 * np.append(counts, posterior.count if noise else [])
    worst = int(np.argmax(np.abs(best["slope"]) / allowed))
    moved = best["u"] - start
    far = np.abs(moved) > 0.9 * _REACH
    if far.any() or abs(best["slope"][worst]) > allowed[worst]:
        worst = int(np.argmax(np.abs(moved))) if far.any() else worst
        what = layer_name(places[worst], are_pairs) if worst < counts.size else "noise_variance"
        raise _no_maximum(what)
    precisions = np.exp(best["u"][: counts.size])
    shown = np.full((system.first + system.chain.p.size) * (2 if are_pairs else 1), 1.0)
    shown[places] = precisions
    noise_variance = float(np.exp(best["u"][-1])) if noise else posterior.noise_variance
    return shown.reshape(-1, 2) if are_pairs else shown, precisions[group], noise_variance


def _no_maximum(what):
    return np.linalg.LinAlgError(
        f"prior_precision: the evidence has no maximum in that of {what}: it grows until the posterior precision is no "
        "longer positive definite, or for ever; expected params at a mode, with some in that layer that are not the "
        "prior's mean, or curvature='ggn' and a loss that is convex in the outputs"
    )


def is_positive(factorization):
    """Whether no eigenvalue is known to be negative."""
    return not best_count(factorization.solver)[0]
