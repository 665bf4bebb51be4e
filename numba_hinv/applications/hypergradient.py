"""Hypergradients: how the loss on other samples depends on what training was given, through the minimum it led to.

By the implicit function theorem, with one solve with the exact Hessian: J. Larsen, L. Hansen, C. Svarer and M. Ohlsson,
"Design and regularization of neural networks: the optimal use of a validation set", IEEE NNSP 1996; Y. Bengio,
"Gradient-based optimization of hyperparameters", Neural Computation 12 (2000).
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgWarning

from ..factorization import Factorization
from ..layers import loss_targets, per_sample
from ..layers.targets import as_weights
from ..network import Network
from ..runtime import memory_budget, representation, tensors
from ..runtime.annotations import Array, Method, Ridge
from ..runtime.progress import bar
from ..runtime.validation import as_array, as_numbers, as_real, check_finite
from ..system import ridge
from .training_set import TrainingSet

# Relative to the parameters: a Newton step as long as this says that training stopped too early for six digits or so.
_FAR = 1e-5
_NAMES = "l2", "sample_weight", "X", "y"


class Hypergradient(NamedTuple):
    """Gradient of a validation loss with respect to what training was given, which `hypergradient` computes.

    Attributes
    ----------
    loss : float
        The loss on the validation samples.
    gradient : float, array or tuple of these
        The gradient: a float or an array, or a tuple of these in the order in which they were asked for.
    adjoint : (P,) array
        u, which is ``(H + damping I)^-1`` times the gradient of the validation loss.
    newton_step : (P,) array
        The step from the parameters to the minimum of the quadratic model of the training loss.
    factorization : Factorization
        The inverse of ``H + damping I``.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> fit = nh.minimize(net, np.zeros(3), X, y, l2=0.1, gtol=1e-10)
    >>> found = nh.hypergradient(net, fit.x, (X, y), (X + 0.1, y), "l2", l2=0.1)
    >>> round(found.gradient, 4)
    0.7179
    """

    loss: float
    gradient: Any
    adjoint: np.ndarray
    newton_step: np.ndarray
    factorization: Factorization

    def __repr__(self) -> str:
        return representation.line(type(self).__name__, self._asdict())

    def _repr_html_(self) -> str:
        return representation.table(type(self).__name__, self._asdict())


def hypergradient(
    net: Network,
    params: ArrayLike,
    train: tuple[Any, Any],
    validation: tuple[Any, Any] | Callable[[Array], tuple[Any, Any]],
    with_respect_to: Any = "l2",
    l2: Ridge = 0.0,
    sample_weight: ArrayLike | None = None,
    damping: float = 0.0,
    method: Method = "auto",
    batch_size: int | None = None,
    keep_bytes: int | None = None,
    progress: bool | None = None,
) -> Hypergradient:
    """Compute the gradient of a validation loss with respect to weight decay, weights or data of the training.

    Training leads to a minimum of ``F(params; phi) = net.loss(params, X, y, l2, sample_weight)``, where phi is anything
    that F depends on: the L2 term, the weights of the samples, their inputs or targets. The minimum moves with phi, and
    the validation loss V at the minimum has the gradient

        dV/dphi = -(d/dphi (u . grad F)),    (H + damping I) u = grad V,

    in which H is the Hessian of F and u is held fixed. One solve serves all of phi, however large it is. Nothing is
    trained again, and nothing is approximated: the mixed derivatives of F are exact, too.

    Parameters
    ----------
    net : Network
        The net that was trained.
    params : (P,) array
        A minimum of the training loss, where its gradient is small, such as `minimize` finds.
    train : (X, y)
        The training samples as arrays, as for `Network.gradient`, in memory or on a disk.
    validation : (X, y) or callable
        Other samples, whose mean loss without an L2 term is V; or a function ``validation(params)`` that returns V and
        its gradient (P,) with respect to the parameters.
    with_respect_to : "l2", "sample_weight", "X", "y", callable, or a tuple of these
        What the gradient is taken with respect to. A callable ``product(params, u)`` is for anything else that F may
        depend on: it returns the derivative of ``u . grad F(params; phi)`` with respect to phi, of any shape, which is
        a vector-Jacobian product of the gradient of F; the result is minus that. If inputs or targets are themselves
        functions of phi, take "X" or "y" and multiply these gradients by the derivative of that function.
    l2 : float, or one number or pair (weights, biases) for each layer, or (P,) array
        Weight of the term ``l2/2 ||params||^2`` that the training loss was minimised with.
    sample_weight : (B,) array, optional
        The weights of the training samples that the training loss was minimised with; ones by default.
    damping : float
        A number to add to H if H is singular. It is no part of the loss.
    method : str
        As for `Hessian.factorize`.
    batch_size, keep_bytes : int, optional
        As for `Network.hessian`.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    Hypergradient
        The gradient and what it was computed from, in float64. For "l2" the gradient has the form of ``l2``: a float,
        (L,), (L, 2) if some layer has a pair, or (P,). For "sample_weight" it is (B,), for "X" it is (B, n), for "y" it
        has the shape of y, and for a callable that of what the callable returns.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described, or "y" is asked for where y has integer labels, which have no derivative.
    numpy.linalg.LinAlgError
        H + damping I is singular: without an L2 term there may be no single minimum, and a damping is needed.
    MemoryError
        The factors would not fit, or the blocks of 256 samples for "X".

    Warns
    -----
    scipy.linalg.LinAlgWarning
        ``params`` are not a minimum: a Newton step from them would be longer than 1e-5 of their length, or
        H + damping I has negative eigenvalues or may have some. Or the solve is inaccurate, as for
        `Factorization.solve`.

    See Also
    --------
    influence : The first-order effect of leaving a sample out on each test sample.

    Notes
    -----
    Costs one factorization, a solve with two right-hand sides, and about two gradients for each thing asked for. The
    error is of the order of the Newton step, which is returned as ``newton_step``. The first use of "y" compiles the
    loss for numbers that carry derivatives, which takes some seconds; for that, a loss of your own must consist of
    arithmetic on single entries.

    Examples
    --------
    The mean of two numbers, with weight decay: its minimum is ``2 mean / (2 + l2)``, and V is ``(minimum - 3)^2``.

    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(1, 1, "identity", bias=False)], "mean_squared_error")
    >>> train, validation = (np.ones((2, 1)), np.array([1.0, 2.0])), (np.ones((1, 1)), np.array([3.0]))
    >>> found = nh.hypergradient(net, [1.0], train, validation, ("l2", "y"), l2=1.0)
    >>> print(f"{found.gradient[0]:.6f}", found.gradient[1].round(6))
    1.333333 [-1.333333 -1.333333]
    """
    X, y = _as_pair("train", train)
    several = isinstance(with_respect_to, (tuple, list))
    asked = tuple(with_respect_to) if several else (with_respect_to,)
    for what in asked:
        if not callable(what) and not (isinstance(what, str) and what in _NAMES):
            names = ", ".join(map(repr, _NAMES))
            raise ValueError(f"with_respect_to: expected {names}, a function, or a tuple of these, got {what!r}")
    # In float64, whatever they are given in: so are the gradients.
    params, damping = as_numbers("params", params).astype(np.float64), as_real("damping", damping)
    # Beside the gradients: the samples, the validation samples, the factorization and the solve.
    with bar(progress, 4 + len(asked), "hypergradient", "step") as shown:
        data = TrainingSet(net, params, X, y, "hessian", l2, batch_size, keep_bytes, method, sample_weight)
        if "y" in asked and net.model.loss.has_labels:
            raise ValueError("with_respect_to: expected no 'y' where y has labels, which are whole numbers, got 'y'")
        shown.update(1)
        loss, slope = _validation_loss(net, data.params, validation)
        shown.update(1)
        consequence = "the validation loss does not move with the minimum as the hypergradient says"
        F, _ = data.factorize(damping, method, consequence, stacklevel=2)
        shown.update(1)
        u, step = F.solve(np.stack([slope, -data.gradient], axis=1)).T
        u = np.ascontiguousarray(u)
        shown.update(1)
        _warn_of_distance(data, step)
        found = _Mixed(data, u, l2, as_weights("sample_weight", sample_weight, data.num_samples, True))
        gradients: list[Any] = []
        for what in asked:
            gradients.append(-found.of(what, y))
            shown.update(1)
    return Hypergradient(loss, tuple(gradients) if several else gradients[0], u, step, F)


def _as_pair(name: str, given: Any) -> Any:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        got = f"{len(given)} things" if isinstance(given, (tuple, list)) else type(given).__name__
        raise TypeError(f"{name}: expected a pair (X, y), got {got}")
    return given


def _validation_loss(net: Network, params: Array, validation: Any) -> tuple[float, Array]:
    """The loss on the validation samples, and its gradient (P,)."""
    if not callable(validation):
        return net.loss_and_gradient(params, *_as_pair("validation", validation))
    given = validation(params.copy())
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        got = type(given).__name__
        raise TypeError(f"validation: expected a function that returns a loss and its gradient, got {got} from it")
    loss = as_real("validation: its loss", tensors.plain(given[0]))
    return loss, as_array("validation: its gradient", given[1], params.shape, np.float64)


def _warn_of_distance(data: TrainingSet, step: Array) -> None:
    length, size = float(np.linalg.norm(step)), float(np.linalg.norm(data.params))
    if length > _FAR * max(size, np.finfo(float).tiny):
        warnings.warn(
            "params: expected a minimum of the training loss, got a gradient of norm "
            f"{np.linalg.norm(data.gradient):.1e}, from which a Newton step leads as far as {length:.1e} "
            f"(||params|| is "
            f"{size:.1e}); hypergradients are wrong by about as much, relatively. Train to a smaller gradient, "
            f"with the "
            "same l2 and sample_weight",
            LinAlgWarning,
            stacklevel=3,
        )


class _Mixed:
    """Derivatives of ``u . grad F`` in what F depends on, u and the parameters being held fixed."""

    def __init__(self, data: TrainingSet, u: Array, l2: Ridge, weights: Array) -> None:
        self.data, self.model, self.u, self.l2, self.weights = data, data.model, u, l2, weights
        self._tangents: Any = None

    def of(self, what: Any, y: Any) -> Any:
        if what == "l2":
            head = self.model.head
            return ridge.slopes(self.l2, self.data.params * self.u, head.chain, head.first)
        if what == "sample_weight":
            return self._sample_weight()
        if what == "X":
            return self._inputs()
        if what == "y":
            found = self._targets()
            return found[:, 0] if np.ndim(y) == 1 else found
        found = np.asarray(tensors.plain(what(self.data.params.copy(), self.u.copy())), np.float64)
        check_finite("with_respect_to: what the function returns", found)
        return found

    @property
    def tangents(self) -> Array:
        """How the outputs of each sample move with the parameters along u, (B, n)."""
        if self._tangents is None:
            (self._tangents,) = self.data.tangents(self.u.reshape(1, -1))
        return self._tangents

    def _batches(self, samples: Any) -> Iterator[tuple[slice, Array, Any]]:
        """(part of the samples, inputs, `Targets`) of each batch."""
        start = 0
        for X, targets in samples:
            yield slice(start, start + len(targets)), X, targets
            start += len(targets)

    def _sample_weight(self) -> Array:
        """F is a weighted mean: a weight counts for its sample, and in what the sum is divided by."""
        model, found, counts = self.model, np.empty(self.data.num_samples), np.empty(self.data.num_samples)
        for part, X, targets in self._batches(self.data.samples.unweighted()):
            # A sample of weight 0 may have no loss at all.
            slopes = model.loss_at(model.forward(self.data.params, X), targets, None, 1.0)[1]
            found[part] = np.einsum("ia,ia->i", slopes, self.tangents[part])
            counts[part] = model.counts(targets)
        if model.loss.reduction == "sum":
            return found
        # u . grad F, without the L2 term.
        some = self.weights != 0.0
        of_loss = float(self.weights[some] @ found[some]) / self.data.normaliser
        return (found - model.num_terms * counts * of_loss) / self.data.normaliser

    def _inputs(self) -> Array:
        model = self.model
        width = int(model.chain.n_in[0])
        memory_budget.require(8 * self.data.num_samples * width, f"the gradient in {self.data.num_samples} inputs")
        found = np.empty((self.data.num_samples, width))
        for part, X, targets in self._batches(self.data.samples):
            found[part] = per_sample.input_slopes_along(
                model, self.data.params, X, targets, self.u, self.data.normaliser
            )
        return found

    def _targets(self) -> Array:
        model, found = self.model, np.empty((self.data.num_samples, self.model.num_targets))
        for part, X, targets in self._batches(self.data.samples):
            outputs = model.forward(self.data.params, X)
            pulled = loss_targets.pulled(model.loss, model.loss_parameters, outputs, targets, self.tangents[part])
            found[part] = targets.weights[:, None] * pulled / self.data.normaliser
        return found
