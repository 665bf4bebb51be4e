"""Influence of every training sample on the loss of every test sample, with the exact inverse of the Hessian.

P. Koh and P. Liang, Understanding black-box predictions via influence functions, ICML 2017.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..certainty import solution
from ..factorization import Factorization
from ..layers.targets import as_weights
from ..network import Network
from ..runtime import columns, memory_budget, representation, threads
from ..runtime.annotations import Array, Check, Curvature, Data, FloatArray, Ridge
from ..runtime.progress import bar
from ..runtime.validation import as_flag, as_real
from ..system.scaling import lengths
from . import output_covariance
from .groups import as_groups
from .removal import Removal
from .training_set import TrainingSet


class Influence:
    """Influences of training samples on test samples, which `influence` computes.

    NumPy takes it for the array of its values: ``np.asarray(found)``.

    Attributes
    ----------
    values : (G, T) array
        ``values[i, j]`` is the predicted change of the loss of test sample j if training sample i, or the i-th group of
        samples, were left out. G is the number of groups, by default the number B of samples.
    shape : (int, int)
        The shape of ``values``.
    factorization : Factorization
        The inverse that the values were computed with.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> fit = nh.minimize(net, np.zeros(3), X, y, l2=0.1, gtol=1e-10)
    >>> found = nh.influence(net, fit.x, X, y, X, y, damping=0.0, l2=0.1)
    >>> int(found.self_influence.argmax()), found.shape
    (2, (3, 3))
    """

    values: FloatArray

    def __init__(
        self, factorization: Factorization, data: Any, groups: Any, leverage: bool, num_threads: int | None
    ) -> None:
        """Private: `influence`."""
        self.factorization: Factorization = factorization
        self._data, self._groups, self._leverage, self._num_threads = data, groups, leverage, num_threads
        self._self_influence: FloatArray | None = None

    def __repr__(self) -> str:
        what = "training samples" if self._groups.are_single else "groups of training samples"
        return f"<Influences of {self.shape[0]} {what} on {self.shape[1]} test samples>"

    def _repr_html_(self) -> str:
        facts = {"groups": self._groups.count, "test samples": self.shape[1], "with leverage": self._leverage}
        if self._groups.are_single:
            facts = {"training samples" if name == "groups" else name: value for name, value in facts.items()}
        facts |= {
            "largest": float(self.values.max(initial=-np.inf)),
            "smallest": float(self.values.min(initial=np.inf)),
        }
        return representation.table("Influence", {**facts, "factorization": self.factorization})

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype, copy=True if copy is None else copy)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def self_influence(self) -> FloatArray:
        """The predicted change (G,) of the loss of each training sample, or group of them, if it were left out.

        It is large for samples that the others do not explain, such as those with a wrong label. It is computed at its
        first use, from the covariances of the outputs (docs/theory.md, section 14).
        """
        if self._self_influence is None:
            own = np.empty(self._groups.count)
            outputs, r, C = self._data.terminals()
            slopes = self._data.own_slopes(outputs)
            C = C if self._leverage else np.zeros_like(C)
            for chosen, members, removal in _removals(
                self.factorization, self._data, self._groups, r, C, self._num_threads
            ):
                own[chosen] = np.einsum("gkn,gkn->g", slopes[members], removal.change())
            self._self_influence = own
        return self._self_influence


def influence(
    net: Network,
    params: ArrayLike,
    X: Data,
    y: ArrayLike | None,
    X_test: ArrayLike,
    y_test: ArrayLike,
    damping: float,
    l2: Ridge = 0.0,
    curvature: Curvature = "hessian",
    num_threads: int | None = None,
    progress: bool | None = None,
    batch_size: int | None = None,
    keep_bytes: int | None = None,
    groups: ArrayLike | None = None,
    leverage: bool = False,
    sample_weight: ArrayLike | None = None,
) -> Influence:
    """Compute the influence of every training sample, or group of them, on the loss of every test sample.

    With ``A = H + damping I``, where H is the Hessian of the mean loss over the B training samples and of its L2 term,
    and with the gradients g of the loss of single samples,

        values[i, j] = g_test[j]^T A^-1 g[i] / B.

    This is, to first order, how much the loss of test sample j would change if training sample i were left out and the
    loss minimised again. It is positive if sample i helps. The other samples keep their weight of 1/B, and the L2 term
    its own weight. The prediction is right to first order if ``params`` is a minimum of ``net.loss(params, X, y, l2)``
    and ``damping`` is 0 or tiny. What it leaves out is of second order: a sample that is left out takes its own part of
    the curvature with it. With ``leverage=True`` the change is that of a Newton step on the loss of the other samples,
    in which this part of the curvature is replaced by its Gauss-Newton matrix. Then, for the outputs of the sample or
    group, with their covariance ``J A^-1 J^T`` and the gradient r and curvature C of the loss with respect to them, r
    becomes ``(I - C J A^-1 J^T)^-1 r`` (docs/theory.md, section 14).

    Parameters
    ----------
    net : Network
        The net that was trained.
    params : (P,) array
        The parameters that training has found.
    X, y : as for `Network.gradient`
        The training samples as arrays, in memory or on a disk. Batches from a loader are not accepted, since their
        order does not say which sample is which.
    X_test, y_test : as for `Network.gradient`
        The T test samples as arrays.
    damping : float
        A number to add to H if H is singular or if ``params`` are not quite at a minimum. It is no part of the loss.
    l2 : float, or sequence
        Weight of the term ``l2/2 ||params||^2`` that the loss was minimised with, as for `Network.gradient`.
    curvature : "hessian" or "ggn"
        As for `Network.hessian`.
    num_threads : int, optional
        How many blocks of test samples to work on at the same time at most; by default one for each core, or as many as
        leave BLAS its own threads. The answer does not depend on it.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.
    batch_size, keep_bytes : int, optional
        As for `Network.hessian`. If H is factored as one dense matrix, many samples are read in batches by default.
    groups : int or (B,) array, optional
        Leave out groups instead of single samples, as for `leave_one_out`. To first order, the influence of a group is
        the sum of those of its samples.
    leverage : bool
        Whether to take into account the leverage of what is left out, as described above.
    sample_weight : (B,) array, optional
        The weights w of the training samples, as for `Network.gradient`: they have w[i] / sum(w) in place of 1/B above.
        If the loss gives weights to classes, the loss of a sample is its term in the sum, with the weight of its class.

    Returns
    -------
    Influence
        The (B, T) matrix, or one with a row for each group, and the influence of each training sample on itself.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described; the message names it.
    numpy.linalg.LinAlgError
        H + damping I is singular.
    MemoryError
        The factors, the matrix and the blocks at work would not fit. More test samples do not need more such blocks.
    ImportError
        A progress bar is asked for and tqdm is not installed.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        H + damping I has negative eigenvalues, or may have some, so that the parameters are no minimum; or a solution
        is inaccurate, as for `Factorization.solve`.

    Notes
    -----
    Costs one factorization and, for each test sample, a gradient, a refined solve and a forward sweep of tangents. The
    inner products of these tangents with the gradients of the losses with respect to the outputs are those of the
    solution with the gradients of all training samples. The leverages cost about one more factorization.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> fit = nh.minimize(net, np.zeros(3), X, y, l2=0.1, gtol=1e-10)
    >>> found = nh.influence(net, fit.x, X, y, [[1.0, 0.5]], [2.5], damping=0.0, l2=0.1)
    >>> found.values.shape
    (3, 1)
    """
    damping, leverage = as_real("damping", damping), as_flag("leverage", leverage)
    if sample_weight is not None:
        sample_weight = as_weights("sample_weight", sample_weight, None)
    data = TrainingSet(
        net, params, X, y, curvature, l2, batch_size, keep_bytes, sample_weight=sample_weight, progress=progress
    )
    model, system, groups = data.model, data.hessian.system, as_groups(groups, data.num_samples)
    X_test = model.check_X(X_test, np.float64, "X_test")
    y_test = model.check_y(y_test, X_test.shape[0], np.float64, "y_test")
    F, _ = data.factorize(
        damping, "auto", "influences do not predict what leaving samples out does", 2, progress=progress
    )
    found = Influence(F, data, groups, leverage, num_threads)
    T, whose = X_test.shape[0], "B = {} training samples" if groups.are_single else "{} groups of training samples"
    matrix = f"the influences of {whose.format(groups.count)} on {T} test samples"
    memory_budget.require(8 * groups.count * T, matrix, "take fewer test samples at a time")
    found.values = np.zeros((groups.count, T))
    _, slopes, C = data.terminals()
    if leverage:
        for _, members, removal in _removals(F, data, groups, slopes, C, num_threads):
            slopes[members] = removal.slopes(removal.change())

    def take(start: int, stop: int, gradients: Array, solutions: Array, check: Check) -> None:
        first = 0
        for weight, part in system.parts():
            some = slice(first, first + part.num_samples)
            tangents = part.output_tangents(solutions, check)
            if groups.are_single:
                np.einsum("kia,ia->ik", tangents, slopes[some], out=found.values[some, start:stop])
            else:
                each = np.einsum("kia,ia->ik", tangents, slopes[some])
                np.add.at(found.values[:, start:stop], groups.labels[some], each)
            first = some.stop

    def test_gradient(i: int) -> Array:
        return model.linearise(data.params, X_test[i : i + 1], y_test[i : i + 1].each_once(), 1, model.num_terms)[2]

    _solve_in_blocks(F, test_gradient, T, take, num_threads, progress)
    return found


def _removals(
    F: Factorization, data: TrainingSet, groups: Any, r: Array, C: Array, num_threads: int | None
) -> Iterator[tuple[Array, Array, Removal]]:
    """(groups, samples, `Removal`) of all groups of one size, for every size; to first order where C is 0."""
    for chosen, members in groups.by_size:
        A = output_covariance.of_training(F, data, members, num_threads)
        yield chosen, members, Removal(A, r[members], C[members])


def _solve_in_blocks(
    F: Factorization,
    gradient_of: Callable[[int], Array],
    count: int,
    take: Callable[..., None],
    num_threads: int | None,
    progress: bool | None,
) -> None:
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

        def job(start: int, stop: int, check: Check) -> Any:
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
