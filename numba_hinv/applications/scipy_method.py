"""Exact trust-region steps as a method of `scipy.optimize.minimize`."""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..hessian import Hessian
from ..runtime.annotations import Array, Tick
from ..runtime.progress import bar
from ..runtime.validation import as_array, as_real, as_size
from . import saddle
from .eigenvalues import as_hessian
from .step_rules import TrustRegion

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# As in `minimize`: a step is taken where the objective falls by at least this share of what the model promised;
# decreases below so many units of rounding cannot be seen in it; a radius so short, relative to x, leaves nothing to
# try.
_TAKEN, _ROUNDING, _SHORTEST = 1e-4, 16.0, 1e-15

_MESSAGES = {
    0: "the gradient's norm is at most gtol",
    1: "the largest number of iterations was reached",
    2: "the objective cannot be lowered further in this precision",
    3: "the callback stopped it (StopIteration)",
    4: "it came to rest, but H has {negative} negative eigenvalues, and no step along them lowers the objective",
    5: "it came to rest, but whether H has negative eigenvalues could not be found out",
    6: "no step lowers the objective",
}


def trust_region(
    fun: Callable[..., Any],
    x0: ArrayLike,
    args: tuple[Any, ...] = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    tol: float | None = None,
    gtol: float = 1e-8,
    maxiter: int = 200,
    initial_trust_radius: float = 1.0,
    progress: bool | None = None,
    **unknown: Any,
) -> "OptimizeResult":
    """Minimise by exact trust-region steps, as a method for `scipy.optimize.minimize`.

    It is passed as ``scipy.optimize.minimize(fun, x0, jac=..., hess=..., method=nh.trust_region, options={...})``, for
    any objective whose Hessian is a `Hessian`: the loss of a net, or the sum of that and a function whose second
    derivatives are a multiple of the identity. For training nets, `minimize` has more to offer.

    Parameters
    ----------
    fun, x0, args : as for `scipy.optimize.minimize`
        The objective, the start, and further arguments of the functions.
    jac : callable or True
        The gradient, as `scipy.optimize.minimize` takes it. True means that ``fun`` returns the gradient as well.
    hess : callable
        ``hess(x, *args)`` returns the `Hessian`, whose gradient and loss are not used.
    hessp, bounds, constraints : None or empty
        Not supported; SciPy passes them to every method.
    callback : callable, optional
        Called after every step with x, or with an ``intermediate_result`` if it takes an argument of that name.
    tol, gtol : float
        Stop when the 2-norm of the gradient is at most this. ``tol`` is SciPy's own name for it.
    maxiter : int
        The largest number of steps, rejected ones included.
    initial_trust_radius : float
        The radius of the first step.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.
    **unknown
        Other options, which are refused with an error that names them.

    Returns
    -------
    result : scipy.optimize.OptimizeResult
        SciPy's result, with ``num_factorizations`` and with ``negative``, the number of negative eigenvalues at the
        end, or None if they were not counted. A small gradient is a success only if none of them matters.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected, or the objective is not finite at the start.

    Notes
    -----
    Every step is the global minimum of the model in the ball (`trust_region_step`), however indefinite H is, and costs
    one to three factorizations. SciPy's own trust-exact does the same with dense arrays, in P^3 flops.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np, scipy.optimize
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> data = np.eye(2), np.array([1.0, 2.0])
    >>> found = scipy.optimize.minimize(
    ...     net.loss_and_gradient, np.zeros(3), data, jac=True, hess=net.hessian, method=nh.trust_region)
    >>> found.success, bool(found.fun < 1e-15)
    (True, True)
    """
    for name, value in {"hessp": hessp, "bounds": bounds, "constraints": constraints or None, **unknown}.items():
        if value is not None:
            raise ValueError(f"{name}: expected none with method=nh.trust_region, got {value!r}")
    for name, value in (("fun", fun), ("jac", jac), ("hess", hess)):
        if not callable(value):
            also = ", or jac=True for a fun that returns both" if name == "jac" else ""
            raise TypeError(f"{name}: expected a function of x with method=nh.trust_region{also}, got {value!r}")
    x = np.array(as_array("x0", x0, (None,)), np.float64)
    gtol, radius = as_real("gtol" if tol is None else "tol", gtol if tol is None else tol), initial_trust_radius
    if gtol < 0.0:
        raise ValueError(f"gtol: expected a number of at least 0, got {gtol}")
    if as_real("initial_trust_radius", radius) <= 0.0:
        raise ValueError(f"initial_trust_radius: expected a positive number, got {radius}")
    run = _Run(fun, jac, hess, args, TrustRegion(float(radius)))
    maxiter = as_size("maxiter", maxiter, 0)
    with bar(progress, maxiter, "trust_region", "step") as shown:
        return run.minimize(x, gtol, maxiter, _as_callback(callback), shown.update)


def _as_callback(callback: Callable[..., Any] | None) -> Callable[["OptimizeResult"], Any]:
    """A function of an OptimizeResult."""
    if callback is None:
        return lambda result: None
    if "intermediate_result" in inspect.signature(callback).parameters:
        return lambda result: callback(intermediate_result=result)
    return lambda result: callback(np.copy(result.x))


class _Run:
    """The objective, and what was counted."""

    def __init__(self, fun: Any, jac: Any, hess: Any, args: tuple[Any, ...], rule: TrustRegion) -> None:
        self.fun, self.jac, self.hess, self.args, self.rule = fun, jac, hess, args, rule
        self.nfev = self.njev = self.nhev = self.num_factorizations = 0
        self.negative = None

    def value(self, x: Array) -> float:
        """Infinite where it is not finite, or where the library refuses it for that."""
        self.nfev += 1
        try:
            value = self.fun(x, *self.args)
        except ValueError:
            return np.inf
        if isinstance(value, tuple):
            raise TypeError(f"fun: expected a number, got {len(value)} things; give jac=True where one is the gradient")
        value = float(value)
        return value if np.isfinite(value) else np.inf

    def gradient(self, x: Array) -> Array:
        self.njev += 1
        return as_array("jac", self.jac(x, *self.args), x.shape, np.float64)

    def hessian(self, x: Array) -> Hessian:
        self.nhev += 1
        found = as_hessian(self.hess(x, *self.args))
        if found.shape[0] != x.size:
            raise ValueError(f"hess: expected a Hessian of {x.size} parameters, as x0 has, got {found.shape[0]}")
        return found

    def minimize(
        self, x: Array, gtol: float, maxiter: int, callback: Callable[["OptimizeResult"], Any], tick: Tick
    ) -> "OptimizeResult":
        value, status, nit = self.value(x), None, 0
        if not np.isfinite(value):
            # What it says there is the reason.
            self.fun(x, *self.args)
            raise ValueError(f"x0: expected a finite objective, got {value}")
        gradient, H = self.gradient(x), self.hessian(x)
        while True:
            is_small = np.linalg.norm(gradient) <= gtol
            if is_small:
                self.negative = saddle.negative_eigenvalues(H, x, max(gtol, np.linalg.norm(gradient)))
                self.num_factorizations += 1
                status = {0: 0, None: 5}.get(self.negative)
            if status is None and nit >= maxiter:
                status = 1
            if status is not None:
                break
            step, predicted, _ = self.rule.propose(H, gradient)
            self.num_factorizations += self.rule.num_factorizations
            rounding = _ROUNDING * np.finfo(float).eps * abs(value)
            is_blind = predicted <= rounding
            if step is None or not np.linalg.norm(step) > _SHORTEST * np.linalg.norm(x):
                status = 4 if is_small else self.at_rest(H, x, gradient) if is_blind else 6
                break
            trial = x + step
            fell = value - self.value(trial)
            gain = fell / predicted if predicted > 0.0 else -1.0
            slope: Any = self.gradient(trial) if gain > _TAKEN or (is_blind and fell >= -rounding) else None
            taken = slope is not None and (not is_blind or np.linalg.norm(slope) < np.linalg.norm(gradient))
            self.rule.judge(1.0 if is_blind and taken else gain if taken else min(gain, 0.0))
            nit += 1
            tick(1)
            if taken:
                x, value, gradient, H = trial, value - fell, slope, self.hessian(trial)
            elif is_blind:
                status = 4 if is_small else self.at_rest(H, x, gradient)
            try:
                callback(self.result(x, value, gradient, nit))
            except StopIteration:
                status = 3
            if status is not None:
                break
        return self.result(x, value, gradient, nit, status)

    def at_rest(self, H: Hessian, x: Array, gradient: Array) -> int:
        """The status where the objective cannot be lowered in this precision: a success at a minimum alone."""
        self.negative = saddle.negative_eigenvalues(H, x, np.linalg.norm(gradient))
        self.num_factorizations += 1
        return {0: 2, None: 5}.get(self.negative, 4)

    def result(self, x: Array, value: float, gradient: Array, nit: int, status: int | None = None) -> "OptimizeResult":
        from scipy.optimize import OptimizeResult

        found = OptimizeResult(x=x.copy(), fun=value, jac=gradient.copy(), nit=nit)
        if status is not None:
            found.update(
                success=status in (0, 2), status=status, message=_MESSAGES[status].format(negative=self.negative),
                nfev=self.nfev, njev=self.njev, nhev=self.nhev, num_factorizations=self.num_factorizations,
                negative=self.negative,
            )  # fmt: skip
        return found
