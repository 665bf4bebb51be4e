"""Training with exact second-order steps: `minimize`. The rules that make a step and judge it are in `step_rules`."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..hessian import Hessian
from ..layers.samples import is_in_memory
from ..layers.targets import as_weights
from ..network import Network
from ..runtime import frames, tensors
from ..runtime.annotations import Array, Data, Ridge
from ..runtime.progress import bar
from ..runtime.randomness import Rng, as_generator, formerly_seed
from ..runtime.validation import as_array, as_flag, as_real, as_size
from . import auto_steps, geodesic, saddle
from . import warmup as lbfgs_warmup
from .step_rules import LevenbergMarquardt, SaddleFree, TrustRegion

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# A step is taken where the loss falls by at least this share of what the model promised.
_TAKEN = 1e-4
# Decreases of the loss below so many units of rounding cannot be seen in it; then the gradient's norm decides.
_LOSS_ROUNDING = 16.0
# A step so short, relative to the parameters, leaves nothing to try.
_SHORTEST = 1e-15

_MESSAGES = {
    0: "the gradient's norm is at most gtol",
    1: "the loss fell by at most ftol, relative",
    2: "the loss cannot be lowered further in this precision",
    3: "the loss has reached its target",
    4: "the largest number of iterations was reached",
    5: "the time limit was reached",
    6: "the callback stopped it (StopIteration)",
    7: "it was interrupted (KeyboardInterrupt); x is the best that it had",
    8: "no step lowers the loss",
    9: "it came to rest, but H has {negative} negative eigenvalues, and no step along them lowers the loss by more",
    10: "it came to rest, but whether H has negative eigenvalues could not be found out",
}
_SUCCESS = (0, 1, 2, 3)


_METHODS: dict[str, Any] = {
    "trust-region": TrustRegion,
    "levenberg-marquardt": LevenbergMarquardt,
    "saddle-free": SaddleFree,
}


@formerly_seed
def minimize(
    net: Network,
    params: ArrayLike,
    X: Data,
    y: ArrayLike | None = None,
    method: Literal["auto", "trust-region", "levenberg-marquardt", "saddle-free"] = "auto",
    l2: Ridge = 0.0,
    batch_size: int | None = None,
    rng: Rng = 0,
    gtol: float = 1e-8,
    ftol: float = 0.0,
    loss_target: float | None = None,
    max_iterations: int = 200,
    time_limit: float | None = None,
    radius: float | None = None,
    damping: float | None = None,
    callback: Callable[["OptimizeResult"], object] | None = None,
    progress: bool | None = None,
    warmup: Literal["auto", "l-bfgs"] | None = "auto",
    sample_weight: ArrayLike | None = None,
    acceleration: bool = True,
) -> "OptimizeResult":
    """Train a net: by L-BFGS first, and then by exact second-order steps.

    Parameters
    ----------
    net : Network
        The net.
    params : (P,) array
        The parameters to start from, which are not modified. Training is done in float64 whatever their dtype.
    X, y : as for `Network.gradient`
        The training samples. If they come in batches, every step takes all batches.
    method : str
        One of four. "auto" takes Levenberg-Marquardt for squared errors if the loss after the warm-up is at most a
        hundredth of that of the best constant. If each step takes all samples, it then tries a Newton step every 15
        iterations; where H is positive definite and that step lowers the loss as predicted, the trust region takes
        over, since it converges quadratically. In all other cases "auto" takes the trust region from the beginning.
        If ``radius`` is given, it takes the trust region; if ``damping`` is given, Levenberg-Marquardt for squared
        errors and the saddle-free method for other losses.

        "trust-region" goes to the global minimiser of the quadratic model in a ball (`trust_region_step`), which is
        found from the eigenvalues of H for up to 200 parameters, and otherwise from factorizations, by layers or dense
        (`Hessian.factorize`). After a rejected step, what was computed of H is used again.

        "levenberg-marquardt" takes the Gauss-Newton matrix with a damping, and ``acceleration``.

        "saddle-free" steps by ``-(|H| + damping I)^-1 gradient``. Directions whose curvature is below -damping are
        found by inertia and by Lanczos on the inverse, and the sign of their curvature is reversed. If there are more
        than 30 (or P / 2) of them, or if Lanczos does not find them all, the damping is raised. Directions whose
        curvature lies between -damping and 0 are only damped.
    l2 : float, or sequence
        Weight of the term ``l2/2 ||params||^2``, as for `Network.gradient`.
    batch_size : int, optional
        How many samples to take in a step, by default all. Samples are shuffled again before every epoch, and gtol and
        loss_target are checked once in an epoch, with all samples.
    rng : int, numpy.random.Generator or None
        For the shuffling, a seed, by default always the same one, or the generator to draw from. With None the order is
        different each time.
    gtol : float
        Stop when the 2-norm of the gradient is at most this.
    ftol : float
        Stop when a step lowers the loss by at most this times the loss; 0 means never. It is used only if each step
        takes all samples.
    loss_target : float, optional
        Stop when the loss is at most this.
    max_iterations : int
        The largest number of steps, rejected ones included.
    time_limit : float, optional
        The largest number of seconds, which is checked between steps.
    radius, damping : float, optional
        The first radius of the trust region, by default 1, or the first damping of the other methods, by default
        1e-3 ||H||.
    callback : callable, optional
        Called after every step with a `scipy.optimize.OptimizeResult` that has x, fun, jac and nit. It may raise
        StopIteration to end the training.
    progress : bool, optional
        Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.
    warmup : "auto", "l-bfgs" or None
        How to come near a minimum before the first exact step. "l-bfgs" runs SciPy's L-BFGS until the loss falls by
        less than 1 per cent in 20 iterations, for at most 1,000 iterations. "auto" does so if no radius or damping is
        given and each step takes all samples. None means no warm-up.
    sample_weight : (B,) array, optional
        As for `Network.gradient`. With ``batch_size``, the loss of a step is the weighted mean over its own samples,
        and samples of weight 0 are left out.
    acceleration : bool
        Whether Levenberg-Marquardt adds a second-order term to its steps that keeps the outputs on a straight line
        (geodesic acceleration), wherever that term is at most 0.375 of the step. It takes one solve with the same
        factors, a gradient, and two evaluations of the net at a hundredth of the step to either side, whose central
        difference is the second derivative of the outputs.

    Returns
    -------
    result : scipy.optimize.OptimizeResult
        It has ``x``, ``fun`` and ``jac`` (of all samples), ``success``, ``status``, ``message``, ``nit``, ``nfev``,
        ``njev``, ``nhev`` and ``num_factorizations``. ``method`` is the method of the last step. ``negative`` is the
        number of negative eigenvalues of H at x that matter, or None if they were not counted. ``warmup_iterations`` is
        the number of iterations of L-BFGS, which are not in ``nit`` or ``history``.

        ``history`` is a dict of arrays with one entry for each iteration: ``loss`` and ``gradient_norm`` where the step
        started; ``radius`` or ``damping``; ``taken``; ``seconds`` from the start of the training to the end of the
        step; ``factorizations`` that the step took, where an eigendecomposition counts as one; and ``negative``, the
        number of negative eigenvalues of the factorized matrix, NaN if it is not known. If steps of both kinds were
        made, there are both ``radius`` and ``damping``, which are NaN for steps of the other kind.

        A KeyboardInterrupt ends the training, and what was reached is returned (status 7).

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected, or the loss is not finite at the start.
    MemoryError
        A factorization would not fit.

    Notes
    -----
    A step to a point where the loss or its gradient is not finite is rejected. When the decrease of the loss is below
    its rounding errors, steps are taken as long as they lower the norm of the gradient; then training ends with
    success.

    Before training ends because the gradient is small or the loss cannot be lowered, the negative eigenvalues of H (of
    all samples) are counted by the inertia of one factorization. An eigenvalue matters if it is below -1e-8 ||H|| and
    makes a slope above gtol within a step that is as long as the parameters, or 1 if that is longer. If there are such
    eigenvalues, a step of `trust_region_step` goes down from the saddle and training goes on. If no such step lowers
    the loss, training ends without success (status 9; status 10 if the eigenvalues cannot be counted). The same is done
    where ftol would end the training, and a step down must then lower the loss by more than ftol times the loss.

    For 1-8-1 tanh units, 60 points of a curve and l2=1e-6, from two starts, Levenberg-Marquardt with acceleration took
    118 and 144 steps after L-BFGS to a gradient of 1e-8; without it, or with the other methods, 150 steps came to 5e-2
    to 3e-4.

    References
    ----------
    M. Transtrum and J. Sethna, arXiv:1201.5885, 2012 (geodesic acceleration). Y. Dauphin et al., NeurIPS 2014
    (saddle-free).

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> fit = nh.minimize(net, net.init(rng=0), X, y, l2=0.01, gtol=1e-10)
    >>> fit.success, bool(np.linalg.norm(fit.jac) <= 1e-10)
    (True, True)
    """
    if not isinstance(net, Network):
        raise TypeError(f"net: expected a Network, got {type(net).__name__}")
    if not isinstance(method, str) or method not in ("auto", *_METHODS):
        raise ValueError(f"method: expected one of {', '.join(map(repr, ('auto', *_METHODS)))}, got {method!r}")
    acceleration, given = as_flag("acceleration", acceleration), {"radius": radius, "damping": damping}
    for name, value in given.items():
        if value is not None and method != "auto" and name != _METHODS[method].scale_name:
            raise ValueError(f"{name}: expected None with method={method!r}, got {value!r}")
    if radius is not None and damping is not None:
        raise ValueError(f"damping: expected None with a radius, got {damping!r}")
    start = damping if radius is None else radius
    bounds = {"gtol": gtol, "ftol": ftol, **given, "time_limit": time_limit}
    for name, value in bounds.items():
        if value is not None and (as_real(name, value) < 0.0 or (value == 0.0 and name in given)):
            raise ValueError(f"{name}: expected a number {'above' if name in given else 'of at least'} 0, got {value}")
    if loss_target is not None:
        loss_target = as_real("loss_target", loss_target)
    max_iterations = as_size("max_iterations", max_iterations, 0)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: expected something to call, got {type(callback).__name__}")
    dtype = as_array("params", params, (net.num_params,)).dtype
    params = np.array(params, np.float64)
    if batch_size is not None:
        batch_size = as_size("batch_size", batch_size)
    if y is not None and is_in_memory(X):
        X = as_array("X", X, (None, net.layers[0].in_features), np.float64)
        y = np.asarray(frames.plain("y", tensors.plain(y)))
        sample_weight = None if sample_weight is None else as_weights("sample_weight", sample_weight, X.shape[0])
    elif batch_size is not None:
        raise ValueError(f"batch_size: expected None for samples that are read in batches already, got {batch_size}")
    batches = _Batches(net.model, X, y, sample_weight, batch_size, as_generator("rng", rng))
    if warmup == "auto":
        warmup = "l-bfgs" if batches.size is None and start is None else None
    if warmup is not None and (not isinstance(warmup, str) or warmup not in lbfgs_warmup.METHODS):
        raise ValueError(f"warmup: expected 'auto', 'l-bfgs' or None, got {warmup!r}")
    if warmup and batches.size is not None:
        raise ValueError(f"warmup: expected None or 'auto' with batch_size, got {warmup!r}")
    with bar(progress, max_iterations, "minimize", "step") as shown:
        run = _Run(net, params, batches, l2, acceleration)
        status = run.warm_up(gtol, loss_target, time_limit, callback) if warmup and max_iterations else None
        run.is_auto = method == "auto"
        run.follow(run.best_method(**given) if run.is_auto else method, start)
        if status is None:
            status = run.loop(gtol, ftol, loss_target, max_iterations, time_limit, callback, shown)
    return run.result(status, dtype)


class _Batches:
    """All samples, or a part of them at a time, shuffled anew in every epoch."""

    def __init__(self, model: Any, X: Any, y: Any, weights: Any, size: int | None, rng: np.random.Generator) -> None:
        self.all, self.rng = {"X": X, "y": y, "sample_weight": weights}, rng
        self.size = None if size is None or size >= X.shape[0] else size
        self.order = np.arange(0)
        if self.size is not None:
            # A mean over samples of weight 0 would be none.
            targets = model.check_y(y, X.shape[0], np.float64, weights=weights)
            self.order = np.flatnonzero(model.counts(targets))
        self.at = self.order.size

    def next(self) -> dict[str, Any]:
        """Arguments of `Network.loss` by name."""
        if self.size is None:
            return self.all
        if self.at >= self.order.size:
            self.rng.shuffle(self.order)
            self.at = 0
        chosen = self.order[self.at : self.at + self.size]
        self.at += self.size
        return {name: None if array is None else array[chosen] for name, array in self.all.items()}

    def is_epoch(self) -> bool:
        """Whether the next batch begins an epoch."""
        return self.size is not None and self.at >= self.order.size


class _Run:
    """The state of a training run; what is in ``params`` is always a point that was accepted."""

    def __init__(self, net: Network, params: Array, batches: _Batches, l2: Ridge, acceleration: bool) -> None:
        self.net, self.params, self.batches, self.l2, self.acceleration = net, params, batches, l2, acceleration
        self.began = time.perf_counter()
        self.nfev = self.njev = self.nhev = self.nit = self.num_factorizations = 0
        self.rows: list[tuple[Any, ...]] = []
        self.negative: int | None = None
        self.is_auto = False
        self.rule: Any = None
        # Where these raise, the start is to blame.
        self.fun, self.jac = self.evaluate()
        self.batch = batches.next()
        self.H: Any = None
        self.warmup_iterations = 0

    def follow(self, method: str, start: float | None = None) -> None:
        """Make steps by the rule of a method from now on."""
        self.rule = _METHODS[method](start)
        if self.acceleration and method == "levenberg-marquardt":
            self.rule.bend = self.bend

    def best_method(self, radius: float | None, damping: float | None) -> str:
        """What "auto" comes to, here."""
        self.nfev += 1
        loss = self.net.loss(self.params, **self.batches.all)
        return auto_steps.method_for(self.net, self.batches.all, loss, radius, damping)

    def try_newton(self) -> None:
        """Go over to the trust region where Newton's method converges."""
        if self.rule.name != "levenberg-marquardt" or not self.nit or self.nit % auto_steps.TRY_EVERY:
            return

        def evaluate(params: Array) -> tuple[float, Array]:
            self.nfev, self.njev = self.nfev + 1, self.njev + 1
            return self.net.loss_and_gradient(params, **self.batch, l2=self.l2)

        self.nhev, self.num_factorizations = self.nhev + 1, self.num_factorizations + 1
        H = self.net.hessian(self.params, **self.batch, l2=self.l2)
        converges, length = auto_steps.newton_converges(H, self.params, evaluate)
        if converges:
            self.follow("trust-region", 2.0 * length)
            self.H = H

    def warm_up(
        self, gtol: float, loss_target: float | None, time_limit: float | None, callback: Callable[..., Any] | None
    ) -> int | None:
        """Come near a minimum by L-BFGS; the status if training ends there."""

        def evaluate(params: Array) -> tuple[float, Array]:
            self.nfev, self.njev = self.nfev + 1, self.njev + 1
            try:
                return self.net.loss_and_gradient(params, **self.batch, l2=self.l2)
            except ValueError:
                return np.inf, np.zeros_like(params)

        def tick(params: Array, loss: float, gradient: Array) -> None:
            self.params, self.fun, self.jac = params, loss, gradient
            self.warmup_iterations += 1
            if callback is not None:
                self.call(callback)

        def is_enough(params: Array, loss: float, gradient: Array) -> bool:
            is_late = time_limit is not None and time.perf_counter() - self.began >= time_limit
            is_low = loss_target is not None and loss <= loss_target
            return bool(is_late or is_low or np.linalg.norm(gradient) <= gtol)

        if np.linalg.norm(self.jac) <= gtol:
            # It may be a saddle, which L-BFGS does not leave.
            return None
        try:
            lbfgs_warmup.lbfgs(evaluate, self.params, is_enough, tick)
        except StopIteration:
            return 6
        except KeyboardInterrupt:
            return 7
        return None

    def evaluate(self) -> tuple[float, Array]:
        """Loss and gradient of all samples."""
        self.nfev, self.njev = self.nfev + 1, self.njev + 1
        return self.net.loss_and_gradient(self.params, **self.batches.all, l2=self.l2)

    def linearise(self, params: Array) -> Any:
        self.njev, self.nhev = self.njev + 1, self.nhev + 1
        return self.net.hessian(params, **self.batch, curvature=self.rule.curvature, l2=self.l2)

    def bend(self, H: Hessian, step: Array) -> Array:
        return geodesic.bending(self.net, self.params, step, **self.batch, total_weight=H.total_weight)

    def loss(self, params: Array) -> float:
        """Of the batch; infinite where it is not finite."""
        self.nfev += 1
        try:
            return self.net.loss(params, **self.batch, l2=self.l2)
        except ValueError:
            return np.inf

    def loop(
        self,
        gtol: float,
        ftol: float,
        loss_target: float | None,
        max_iterations: int,
        time_limit: float | None,
        callback: Callable[..., Any] | None,
        shown: Any,
    ) -> int:
        """The status that it ended with."""
        try:
            self.H = self.linearise(self.params)
            while True:
                status = self.at_rest(0, gtol, max_iterations) if np.linalg.norm(self.jac) <= gtol else None
                if status is not None:
                    return status
                if loss_target is not None and self.fun <= loss_target:
                    return 3
                if self.nit >= max_iterations:
                    return 4
                if time_limit is not None and time.perf_counter() - self.began >= time_limit:
                    return 5
                if self.is_auto and self.batches.size is None:
                    self.try_newton()
                before = self.fun
                status = self.iterate()
                if callback is not None:
                    self.call(callback)
                shown.update(1)
                if status == 8:
                    return status
                if ftol and self.batches.size is None and 0.0 < before - self.fun <= ftol * abs(before):
                    status = 1
                if status is not None:
                    status = self.at_rest(status, gtol, max_iterations, ftol * abs(before))
                if status is not None:
                    return status
        except StopIteration:
            return 6
        except KeyboardInterrupt:
            return 7

    def at_rest(self, status: int, gtol: float, max_iterations: int, least: Any = 0.0) -> int | None:
        """The status to end with; None after a step down from a saddle, by more than ``least`` and rounding."""
        is_at_hand = self.batches.size is None and self.rule.curvature == "hessian"
        try:
            H: Any = self.H if is_at_hand else self.net.hessian(self.params, **self.batches.all, l2=self.l2)
            self.negative = saddle.negative_eigenvalues(H, self.params, max(gtol, np.linalg.norm(H.gradient)))
            self.num_factorizations += 1
            if not self.negative or self.nit >= max_iterations:
                return 4 if self.negative else status if self.negative == 0 else 10
            start = self.rule.scale if self.rule.scale_name == "radius" else 1.0
            least = max(least, _LOSS_ROUNDING * _rounding(H.loss))
            trial, radius, count = saddle.way_down(H, self.params, start, self.full_loss, least)
            there = None if trial is None else self.linearise(trial)
        except (MemoryError, ValueError):
            return 10
        self.num_factorizations += count
        if there is None:
            return 9
        self.rows.append(
            (
                H.loss,
                np.linalg.norm(H.gradient),
                True,
                time.perf_counter() - self.began,
                count + 1,
                self.negative,
                self.rule.scale_name,
                self.rule.scale,
            )
        )
        self.nit, self.params, self.H, self.negative = self.nit + 1, trial, there, None
        if self.batches.size is None:
            self.fun, self.jac = there.loss, there.gradient
        else:
            self.fun, self.jac = self.evaluate()
        if self.rule.scale_name == "radius":
            self.rule.scale, self.rule.multiplier = radius, None
        return None

    def full_loss(self, params: Array) -> float:
        """Of all samples; infinite where it is not finite."""
        self.nfev += 1
        try:
            return self.net.loss(params, **self.batches.all, l2=self.l2)
        except ValueError:
            return np.inf

    def call(self, callback: Callable[..., Any]) -> None:
        from scipy.optimize import OptimizeResult

        callback(OptimizeResult(x=self.params.copy(), fun=self.fun, jac=self.jac.copy(), nit=self.nit))

    def iterate(self) -> int | None:
        """One step, taken or rejected; the status if it was the last."""
        H, rule = self.H, self.rule
        p, predicted, negative = rule.propose(H)
        scale, status, taken, there = rule.scale, None, False, None
        self.num_factorizations += rule.num_factorizations
        size = np.linalg.norm(H.gradient)
        if p is None or not np.linalg.norm(p) > _SHORTEST * np.linalg.norm(self.params):
            status = 8 if p is None or size > 0.0 and predicted > _LOSS_ROUNDING * _rounding(H.loss) else 2
        else:
            trial = self.params + p
            loss = self.loss(trial)
            rounding = _LOSS_ROUNDING * _rounding(H.loss)
            blind = predicted <= rounding
            gain = (H.loss - loss) / predicted if predicted > 0.0 and np.isfinite(loss) else -1.0
            if gain > _TAKEN or (blind and loss <= H.loss + rounding):
                try:
                    there = self.linearise(trial)
                except ValueError:
                    gain = -1.0
            taken = there is not None and (not blind or np.linalg.norm(there.gradient) < size)
            if blind and not taken and self.batches.size is None:
                status = 2
            rule.judge(1.0 if blind and taken else gain if taken else min(gain, 0.0))
        self.rows.append(
            (
                H.loss,
                size,
                taken,
                time.perf_counter() - self.began,
                rule.num_factorizations,
                negative,
                rule.scale_name,
                scale,
            )
        )
        self.nit += 1
        # It was counted at a point that is left.
        self.negative = None if taken else self.negative
        if self.batches.size is None:
            if taken:
                self.params, self.H = trial, there
                self.fun, self.jac = self.H.loss, self.H.gradient
            return status
        if taken:
            self.params = trial
        if self.batches.is_epoch():
            self.fun, self.jac = self.evaluate()
        self.batch = self.batches.next()
        self.H = self.linearise(self.params)
        return None

    def result(self, status: Any, dtype: np.dtype[Any]) -> "OptimizeResult":
        from scipy.optimize import OptimizeResult

        if self.batches.size is not None:
            self.fun, self.jac = self.evaluate()
        names = "loss", "gradient_norm", "taken", "seconds", "factorizations", "negative"
        *table, kinds, scales = list(zip(*self.rows)) if self.rows else [()] * (len(names) + 2)
        history = {name: np.array(column, bool if name == "taken" else float) for name, column in zip(names, table)}
        for name in dict.fromkeys((*kinds, self.rule.scale_name)):
            history[name] = np.array([scale if kind == name else np.nan for kind, scale in zip(kinds, scales)], float)
        return OptimizeResult(
            x=self.params.astype(dtype), fun=self.fun, jac=self.jac.astype(dtype), success=status in _SUCCESS,
            status=status, message=_MESSAGES[status].format(negative=self.negative), nit=self.nit, nfev=self.nfev,
            njev=self.njev, nhev=self.nhev,
            num_factorizations=self.num_factorizations, history=history, warmup_iterations=self.warmup_iterations,
            method=self.rule.name, negative=self.negative,
        )  # fmt: skip


def _rounding(loss: float) -> float:
    return np.finfo(float).eps * abs(loss)
