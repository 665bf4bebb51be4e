"""Influence of every training sample on the loss of every test sample, with the exact inverse of the Hessian.

P. Koh and P. Liang, Understanding black-box predictions via influence functions, ICML 2017.
"""

import warnings

import numpy as np
from scipy.linalg import LinAlgWarning

from ..certainty import solution
from ..certainty.inertia import best_count
from ..factors import choice
from ..layers.samples import Samples
from ..layers.targets import as_weights
from ..network import Network
from ..runtime import columns, memory_budget, threads
from ..runtime.progress import bar
from ..runtime.validation import as_real
from ..system.batches import batch_size_for
from ..system.scaling import lengths


class Influence:
    """Influences of training samples on test samples. Made by `influence`; an array to NumPy: ``np.asarray(found)``.

    Attributes
    ----------
    values : (B, T) array
        ``values[i, j]`` is the first-order change of the loss of test sample j if training sample i were left out.
    factorization : Factorization
        The inverse that they were computed with.
    """

    def __init__(self, factorization, gradient_of, shares, num_threads):
        """Private: `influence`."""
        self._shares = shares
        self.factorization = factorization
        self._gradient_of = gradient_of
        self._num_threads = num_threads
        self._self_influence = None

    def __repr__(self):
        return f"<Influences of {self.shape[0]} training samples on {self.shape[1]} test samples>"

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype, copy=True if copy is None else copy)

    @property
    def shape(self):
        return self.values.shape

    @property
    def self_influence(self):
        """(B,) array: the first-order change of each training sample's own loss if it were left out.

        Of large values are samples that the others do not explain, such as those with a wrong label. Computed at the
        first use, for one solve a training sample.
        """
        if self._self_influence is None:
            F = self.factorization
            own = np.empty(F.hessian.num_samples)

            def take(start, stop, gradients, solutions, check):
                own[start:stop] = np.einsum("kp,kp->k", gradients, solutions) * self._shares[start:stop]

            _solve_in_blocks(F, self._gradient_of, own.size, take, self._num_threads, False)
            self._self_influence = own
        return self._self_influence


def influence(
    net, params, X, y, X_test, y_test, damping, l2=0.0, curvature="hessian", num_threads=None, progress=False,
    batch_size=None, keep_bytes=None, sample_weight=None,
):  # fmt: skip
    """Influence of every training sample on the loss of every test sample.

    With ``A = H + damping I``, H being the Hessian of the mean loss over the B training samples and its L2 term, and
    g the gradients of one sample's loss,

        values[i, j] = g_test[j]^T A^-1 g[i] / B.

    That is the change of test sample j's loss, to first order, if training sample i were left out and the parameters
    minimised again: positive where sample i helps. The other samples keep their weight of 1/B, and the L2 term its own.
    Prediction and truth agree where ``params`` is a minimum of ``net.loss(params, X, y, l2)`` and ``damping`` is 0 or
    tiny.

    Parameters
    ----------
    net : Network
    params : (P,) array
    X, y : the training samples, as for `Network.gradient`
        Arrays, perhaps on a disk: batches from a loader have no order that says which sample is which.
    X_test, y_test : T test samples, likewise
    damping : float
        Added to H, and no part of the loss: where H is singular or params are not quite at a minimum.
    l2 : float
        Weight of the term ``l2/2 ||params||^2`` that the loss was minimised with.
    curvature : "hessian" or "ggn"
        As for `Network.hessian`.
    num_threads : int, optional
        At most so many blocks of test samples at the same time; by default one a core, or as many as leave BLAS its
        own threads. The answer is the same for every number.
    progress : bool
        Show a progress bar, for which tqdm must be installed.
    batch_size, keep_bytes : int, optional
        As for `Network.hessian`. Where H is factored as one dense matrix, many samples are read in batches by default.
    sample_weight : (B,) array, optional
        Of the training samples, as for `Network.gradient`: they have w[i] / sum(w) in place of 1/B above. Where the
        loss weighs classes, the loss of a sample is its term in the sum, so with the weight of its class.

    Returns
    -------
    Influence
        Holds the (B, T) matrix, and the influence of each training sample on itself.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described; it is named.
    numpy.linalg.LinAlgError
        H + damping I is singular.
    MemoryError
        Factors, matrix and the blocks at work would not fit; there are no more of the latter for more test samples.
    ImportError
        A progress bar is asked for and tqdm is not there.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        H + damping I has negative eigenvalues, or may have some, so that the parameters are no minimum;
        or a solution is inaccurate, as
        for `Factorization.solve`.

    Notes
    -----
    One factorization; per test sample a gradient, a refined solve and a forward sweep of tangents, whose inner products
    with the gradients of the losses in the outputs are those of all training samples' gradients with the solution.
    """
    if not isinstance(net, Network):
        raise TypeError(f"net: expected a Network, got {type(net).__name__}")
    damping = as_real("damping", damping)
    if y is None:
        raise TypeError(
            "y: expected targets of the samples of an array X, got None; batches from a loader have no order that says "
            "which sample is which"
        )
    if sample_weight is not None:
        sample_weight = as_weights("sample_weight", sample_weight, None)
    model, options = net.model, {"curvature": curvature, "l2": l2, "keep_bytes": keep_bytes}
    options["sample_weight"] = sample_weight
    H = net.hessian(params, X, y, batch_size=batch_size, **options)
    size = batch_size_for(model)
    if H.system.has_layers and H.num_samples > size and choice.chosen(H.system, H.system.params.dtype) == "dense":
        # Then nothing needs the blocks of all samples at the same time, and their tangents would take much memory.
        H = net.hessian(params, X, y, batch_size=size, **options)
    train = Samples(model, X, y, size if batch_size is None else batch_size, sample_weight)
    X_test = model.check_X(X_test, np.float64, "X_test")
    y_test = model.check_y(y_test, X_test.shape[0], np.float64, "y_test")
    F = H.factorize(damping, np.float64)
    negative, is_certain = best_count(F.solver)
    if negative or not is_certain:
        found = f"{negative} negative eigenvalues" if is_certain else "eigenvalues too close to 0 to know their signs"
        cause = "params are no minimum of the loss" if is_certain else "params may be no minimum of the loss"
        warnings.warn(
            f"H + damping I has {found} with damping={damping:g}: {cause}, where influences do not predict what "
            "leaving samples out does; expected a trained net, or a larger damping",
            LinAlgWarning,
            stacklevel=2,
        )

    def gradient_at(x, target):
        return model.linearise(H.system.params, x, target.each_once(), 1, model.num_terms)[2]

    B, T = H.num_samples, X_test.shape[0]
    matrix = f"the influences of B = {B} training samples on {T} test samples"
    memory_budget.require(8 * B * T, matrix, "take fewer test samples at a time")
    slopes, weights = _output_gradients(H.system, model, train)
    shares = weights * (model.num_terms / model.normaliser(H.total_weight))
    found = Influence(F, lambda i: gradient_at(*train.one(i)), shares, num_threads)
    found.values = np.empty((B, T))

    def take(start, stop, gradients, solutions, check):
        first = 0
        for weight, part in H.system.parts():
            stop_at = first + part.num_samples
            tangents = part.output_tangents(solutions, check)
            np.einsum("kia,ia->ik", tangents, slopes[first:stop_at], out=found.values[first:stop_at, start:stop])
            first = stop_at

    def test_gradient(i):
        return gradient_at(X_test[i : i + 1], y_test[i : i + 1])

    _solve_in_blocks(F, test_gradient, T, take, num_threads, progress)
    return found


def _output_gradients(system, model, samples):
    """Gradients of the loss in the samples' outputs, (B, n_L), and the samples' weights (B,)."""
    found, weights = np.empty((system.num_samples, model.layers[-1].out_features)), np.empty(system.num_samples)
    if system.has_layers:
        ((_, targets),) = samples.cut_anew(system.num_samples)
        return model.terminal(system.lin.output, targets)[1], targets.weights
    first = 0
    for (weight, part), (_, targets) in zip(system.parts(), samples):
        count = len(targets)
        slope = model.terminal(part.lin.output, targets, None, count * model.num_terms)[1]
        found[first : first + count], weights[first : first + count] = weight * slope, targets.weights
        first += count
    return found, weights


def _solve_in_blocks(F, gradient_of, count, take, num_threads, progress):
    """``take(start, stop, gradients, solutions, check)`` of every block of samples, whose gradients are rows."""
    system = F.hessian.system
    P, chain = system.num_params, system.chain
    tangents = int(chain.n_in.sum() + chain.n_out.sum() + 2 * max(chain.n_in.max(), chain.n_out.max()))
    dtype, block = np.dtype(np.float64), min(columns.block_of(P, count), count)
    workers = threads.num_workers(num_threads, -(-count // block), system.solves_reach_blas())
    # Gradients, solutions, residuals and products; tangents.
    memory_budget.require(
        8 * workers * block * (6 * P + system.largest_batch * (tangents + int(chain.n_out[-1]))),
        f"the solves for {workers} blocks of {block} samples at the same time",
        "take num_threads=1",
    )
    with bar(progress, count, "influence", "sample") as shown:

        def job(start, stop, check):
            gradients = np.empty((stop - start, P))
            for i in range(start, stop):
                check()
                gradients[i - start] = gradient_of(i)
            solutions, known = solution.solve_rows(F.solver, gradients, lengths(gradients), dtype, True, False, check)
            take(start, stop, gradients, solutions, check)
            shown.update(stop - start)
            return known

        found = columns.run(job, (P, count), workers, block)
    errors = [known.backward_error.max() for known in found]
    steps, krylov_steps = (max(known[at] for known in found) for at in (2, 3))
    solution.warn(F.solver, max(errors), steps, krylov_steps, dtype, stacklevel=3)
