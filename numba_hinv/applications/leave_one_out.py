"""What a net would predict for each sample if it had been trained without it, by one exact step instead of training.

For squared errors and a linear net it is the classical hat matrix, and exact. In general it is one Newton step on the
loss of the other samples, in which the removed ones' curvature is taken as Gauss-Newton (docs/theory.md, section 14).
Beirami et al., On optimal generalizability in parametric learning, NeurIPS 2017, and Giordano et al., A Swiss army
infinitesimal jackknife, AISTATS 2019, have such steps for models whose Hessian is at hand.
"""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgWarning

from ..network import Network
from ..runtime import axes, representation
from ..runtime.annotations import Array, BoolArray, Curvature, Data, FloatArray, IntArray, Method, Ridge
from ..runtime.progress import bar
from ..runtime.validation import as_flag, as_real
from . import output_covariance
from .groups import as_groups
from .minimize import minimize
from .removal import Removal, verify
from .training_set import TrainingSet

# A sample is relied on where another step would move its predictions by at most this share of the change, and its
# length is at most this share of the first one's. Of 756 samples left out of 43 small nets, most of them with about as
# many parameters as samples, 83 % had predictions within 5 % of the change that training again brought; 53 % pass, and
# one of these was further off. With 5 and 10 %, 67 % pass, and 12 are further off.
_ERROR, _CONTRACTION = 0.02, 0.05
# Leverages up to which they are relied on: with that proof, and without it.
_VERIFIED, _UNVERIFIED = 0.99, 0.2
# Samples up to which steps are verified by default: the cost grows with their square.
_MOST_VERIFIED = 1000
# Exact steps of `refit="trust-region"`, and iterations of training again; the gradient at which that is done, and up to
# which it is a minimum, relative to the gradient that it begins with.
_FEW_STEPS, _MANY_STEPS, _GOAL, _SMALL = 5, 1000, 1e-7, 1e-4
# Samples that a warning names.
_NAMED = 10


class LeaveOneOut:
    """Predictions for each sample by a net trained without it, which `leave_one_out` computes.

    Attributes
    ----------
    predictions : (B, n_L) array
        The outputs of the net for each sample if that sample, or its group, were not in the training data.
    losses : (B,) array
        The loss of each sample at these predictions.
    fitted_losses : (B,) array
        The loss of each sample at the outputs of the net as it is.
    leverage : (B,) array
        The largest eigenvalue of ``A_i C_i`` for the sample's group, which says how much the fit of its outputs depends
        on their own targets. For a linear net with one output and squared errors this is the diagonal of the hat
        matrix.
    errors : (B,) array
        How much one more step would change each prediction. It is NaN if that was not checked or if training again did
        not end in a minimum, and 0 if training again did.
    reliable : (B,) array of bool
        Whether the prediction for the sample's group can be relied on.
    refitted : (B,) array of bool
        Whether the prediction was found by training again.
    groups : (B,) array of int
        The group of every sample.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> fit = nh.minimize(net, np.zeros(3), X, y, l2=0.1, gtol=1e-10)
    >>> found = nh.leave_one_out(net, fit.x, X, y, l2=0.1)
    >>> found.predictions.shape, found.score > fit.fun
    ((3, 1), True)
    """

    def __init__(
        self,
        predictions: FloatArray,
        losses: FloatArray,
        fitted_losses: FloatArray,
        leverage: FloatArray,
        errors: FloatArray,
        reliable: BoolArray,
        refitted: BoolArray,
        groups: IntArray,
    ) -> None:
        """Private: `leave_one_out`."""
        self.predictions: FloatArray = predictions
        self.losses: FloatArray = losses
        self.fitted_losses: FloatArray = fitted_losses
        self.leverage: FloatArray = leverage
        self.errors: FloatArray = errors
        self.reliable: BoolArray = reliable
        self.refitted: BoolArray = refitted
        self.groups: IntArray = groups

    @property
    def score(self) -> float:
        """The mean of ``losses``, which estimates the loss of the net on new samples, without an L2 term."""
        return float(self.losses.mean())

    def __repr__(self) -> str:
        what = f"{self.losses.size} samples"
        count = int(self.groups.max()) + 1
        if count < self.losses.size:
            what += f" in {count} groups"
        return f"<Leave-one-out of {what}: score {self.score:.4g}, {int(self.reliable.sum())} reliable>"

    def _repr_html_(self) -> str:
        facts = {
            "samples": self.losses.size, "groups": int(self.groups.max()) + 1, "score": self.score,
            "loss of the fit": float(self.fitted_losses.mean()), "largest leverage": float(self.leverage.max()),
            "reliable": int(self.reliable.sum()), "trained again": int(self.refitted.sum()),
        }  # fmt: skip
        return representation.table("LeaveOneOut", facts)

    def plot(self, ax: Any = None, **kwargs: Any) -> Any:
        """Draw each sample's loss without it over its loss with it, for which matplotlib must be installed.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default the axes of a new figure.
        **kwargs
            Further arguments of `matplotlib.axes.Axes.scatter`.

        Returns
        -------
        ax : matplotlib.axes.Axes
            The axes drawn in.
        """
        ax = axes.given_or_new(ax)
        both = np.concatenate([self.fitted_losses, self.losses[np.isfinite(self.losses)]])
        ax.plot([both.min(), both.max()], [both.min(), both.max()], color="0.7", linewidth=1, zorder=0)
        points = ax.scatter(self.fitted_losses, self.losses, **{"c": self.leverage, "s": 18, **kwargs})
        ax.figure.colorbar(points, ax=ax, label="leverage")
        bad = ~self.reliable
        ax.scatter(
            self.fitted_losses[bad],
            self.losses[bad],
            s=60,
            facecolors="none",
            edgecolors="tab:red",
            label=f"not reliable ({bad.sum()})",
        )
        ax.set(xlabel="loss of the sample, trained with it", ylabel="trained without it")
        if bad.any():
            ax.legend()
        return ax


def leave_one_out(
    net: Network,
    params: ArrayLike,
    X: Data,
    y: ArrayLike | None,
    l2: Ridge = 0.0,
    curvature: Curvature = "hessian",
    groups: ArrayLike | None = None,
    damping: float = 0.0,
    refit: bool | Literal["trust-region"] = False,
    check: bool | None = None,
    method: Method = "auto",
    num_threads: int | None = None,
    progress: bool | None = None,
    batch_size: int | None = None,
    keep_bytes: int | None = None,
) -> LeaveOneOut:
    """Predict each sample as the net would if it were trained again without that sample.

    Training again means to minimise the mean loss of the other samples, with the same weight of the L2 term, starting
    from ``params``. One factorization gives an approximation for every sample, which is exact for a linear net with
    squared errors.

    Parameters
    ----------
    net : Network
        The net that was trained.
    params : (P,) array
        A minimum of ``net.loss(params, X, y, l2)``. If the gradient is not quite 0 there, this is taken into account.
    X, y : as for `Network.gradient`
        The training samples as arrays, in memory or on a disk. Batches from a loader are not accepted, since their
        order does not say which sample is which.
    l2 : float, or sequence
        Weight of the term ``l2/2 ||params||^2`` that the loss was minimised with, as for `Network.gradient`.
    curvature : "hessian" or "ggn"
        As for `Network.hessian`.
    groups : int or (B,) array, optional
        Leave out groups instead of single samples: a number of folds of consecutive samples, or an array that gives
        all samples of a group the same label (integers or strings). There must be at least two groups.
    damping : float
        A number to add to H if H is singular. It is no part of the loss.
    refit : False, True or "trust-region"
        What to do about groups whose prediction is not reliable. False only warns. True trains again without each of
        them, by `minimize` from ``params``: by L-BFGS first and then exact steps. "trust-region" takes at most 5 exact
        trust-region steps instead. If training converges, the group is reliable.
    check : bool, optional
        Whether to verify each prediction by the gradient of the loss of the other samples at the predicted parameters.
        By default this is done for up to 1,000 samples in memory.
    method : "auto", "layers" or "dense"
        As for `Hessian.factorize`.
    num_threads : int, optional
        How many blocks of samples to work on at the same time at most; by default one for each core. The answer does
        not depend on it.
    progress : bool, optional
        Show a progress bar of the verified predictions, for which tqdm must be installed; by default what
        `set_progress` says.
    batch_size, keep_bytes : int, optional
        As for `Network.hessian`. If H is factored as one dense matrix, many samples are read in batches by default.

    Returns
    -------
    LeaveOneOut
        The predictions, their losses and whether they are reliable.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described; the message names it.
    numpy.linalg.LinAlgError
        H is singular; an L2 term or a damping helps.
    MemoryError
        The factors, the covariances of the outputs or the blocks at work would not fit.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        Some samples are not reliable; the message names them. Or H has negative eigenvalues, so that ``params`` are no
        minimum, and no sample is reliable.

    See Also
    --------
    influence : The effect of each sample on the losses of others.

    Notes
    -----
    Let J_i be the Jacobian of the outputs of sample i, r_i and C_i the gradient and the curvature of its loss with
    respect to them, with the factor 1/B of the mean, and ``A_i = J_i A^-1 J_i^T``. Then the outputs move by
    ``(I - A_i C_i)^-1 (A_i r_i + q_i)``. If k of B samples are left out, (B - k)/B times the loss of the others, which
    is a mean over B - k, is their part of the mean over B and an L2 term of weight ``l2 (1 - k/B)``. So A is the
    Gauss-Newton matrix, plus ``1 - k/B`` times all other parts of H and of the L2 term, where the second derivatives
    of the layers are taken to be the same for every sample, plus the damping. q_i is what the L2 term and the gradient
    at ``params`` contribute (docs/theory.md, section 14).

    A sample is reliable if its leverage is at most 0.99 and one more step would move its predictions by at most 2 % of
    the change and be at most 5 % as long as the first step in the norm of A. Without verification it is reliable if its
    leverage is at most 0.2. What no step can see is another minimum at which training again would end.

    Costs one factorization, and about as much again for the covariances, for every size of groups. Verifying takes a
    gradient of all samples and two solves for each group. Groups of k samples take memory for ``(k n_L)^2`` numbers
    each.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(1, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[-1.0], [0.0], [1.0]]), np.array([-2.0, 0.3, 2.0])
    >>> found = nh.leave_one_out(net, np.array([2.0, 0.1]), X, y)
    >>> found.leverage.round(3)
    array([0.833, 0.333, 0.833])
    >>> bool(abs(found.predictions[1, 0]) < 1e-12)
    True
    """
    damping = as_real("damping", damping)
    if not isinstance(refit, (bool, np.bool_)) and refit != "trust-region":
        raise ValueError(f"refit: expected True, False or 'trust-region', got {refit!r}")
    check = None if check is None else as_flag("check", check)
    data = TrainingSet(net, params, X, y, curvature, l2, batch_size, keep_bytes, method, progress=progress)
    if data.model.loss.counts_differ:
        raise ValueError(
            f"net: expected a loss whose samples all count alike in the mean, got {net.loss_definition!r}; take "
            f"reduction='sum' and "
            "an l2 as many times as large as what the mean divides by"
        )
    B, n = data.num_samples, net.layers[-1].out_features
    groups = as_groups(groups, B)
    if groups.count < 2:
        raise ValueError("groups: expected at least two groups, so that samples are left to train on, got one")
    if check is None:
        check = B <= _MOST_VERIFIED and data.samples.are_in_memory
    outputs, r, C = data.terminals()
    changes, errors = np.empty((B, n)), np.full((B, n), np.nan)
    leverage, is_reliable = np.empty(B), np.zeros(B, bool)
    for _, members in groups.by_size:
        u, error, amount, is_good = _of_one_size(data, members, r, C, damping, method, check, num_threads, progress)
        changes[members], leverage[members], is_reliable[members] = u, amount[:, None], is_good[:, None]
        if check:
            errors[members] = error
    predictions, refitted = outputs + changes, np.zeros(B, bool)
    if refit:
        _refit(data, groups, l2, refit, predictions, is_reliable, refitted, progress)
    if not is_reliable.all():
        _warn(groups, leverage, is_reliable, bool(refit))
    losses, fitted = data.own_losses(predictions), data.own_losses(outputs)
    sizes = np.where(refitted, np.where(is_reliable, 0.0, np.nan), np.linalg.norm(errors, axis=1))
    dtype = data.hessian.dtype
    return LeaveOneOut(
        predictions.astype(dtype, copy=False), losses, fitted, leverage, sizes, is_reliable, refitted, groups.labels
    )


def _of_one_size(
    data: TrainingSet,
    members: Array,
    r: Array,
    C: Array,
    damping: Any,
    method: Method,
    check: bool,
    num_threads: int | None,
    progress: bool | None,
) -> tuple[Array, Array | None, Array, Array]:
    """(changes of the outputs, their errors or None, leverages, whether they are reliable) of groups of one size."""
    # A mean over fewer samples weighs the L2 term less against their sum; a sum does not.
    share = 0.0 if data.model.loss.reduction == "sum" else members.shape[1] / data.num_samples
    l2 = data.hessian.l2
    less = share * l2
    consequence = "predictions do not predict what leaving samples out does"
    F, is_minimum = data.factorize(damping - less, method, consequence, 3, share=1.0 - share, progress=progress)
    t = less * data.params - data.gradient
    q = data.tangents(F.solve(t, progress=progress)[None])[0] if t.any() else np.zeros_like(r)
    A = output_covariance.of_training(F, data, members, num_threads)
    removal = Removal(A, r[members], C[members])
    u, leverage, error = removal.change(q[members]), removal.leverage(), None
    is_good = np.isfinite(u).all(axis=(1, 2)) & (leverage <= (_VERIFIED if check else _UNVERIFIED)) & is_minimum
    if check:
        error, contraction = verify(F, data, members, removal, u, t, l2 - less, num_threads, progress)
        size, missing = (np.sqrt((part**2).sum(axis=(1, 2))) for part in (u, error))
        is_good &= (missing <= _ERROR * size) & (contraction <= _CONTRACTION)
    return u, error, leverage, is_good


def _refit(
    data: TrainingSet,
    groups: Any,
    l2: Ridge,
    refit: bool | str,
    predictions: Array,
    is_reliable: Array,
    refitted: Array,
    progress: bool | None,
) -> None:
    """Train again without the groups that are not reliable, and take what comes out."""
    few: dict[str, Any] = {"method": "trust-region", "max_iterations": _FEW_STEPS, "warmup": None}
    options: dict[str, Any] = few if refit == "trust-region" else {"max_iterations": _MANY_STEPS}
    bad = np.unique(groups.labels[~is_reliable])
    with bar(progress, bad.size, "refit", "group") as shown:
        for label in bad:
            members = np.flatnonzero(groups.labels == label)
            rest = data.without(members)
            start = float(np.linalg.norm(data.net.gradient(data.params, *rest, l2)))
            found = minimize(data.net, data.params, rest[0], rest[1], l2=l2, gtol=_GOAL * start, **options)
            predictions[members] = data.model.forward(found.x, data.inputs(members))
            # A success may also be a loss that cannot be lowered, far from a minimum.
            is_minimum = found.status != 9 and np.linalg.norm(found.jac) <= _SMALL * start
            is_reliable[members], refitted[members] = is_minimum, True
            shown.update(1)


def _warn(groups: Any, leverage: Array, is_reliable: Array, is_refitted: bool) -> None:
    bad = np.flatnonzero(~is_reliable)
    worst = bad[np.argsort(-leverage[bad], kind="stable")][:_NAMED]
    names = ", ".join(f"{i} ({leverage[i]:.2f})" for i in worst) + (", ..." if bad.size > _NAMED else "")
    way_out = (
        "training again without them did not end in a minimum"
        if is_refitted
        else "refit=True trains again without them, refit='trust-region' takes a few exact steps"
    )
    warnings.warn(
        f"the predictions of {bad.size} of {is_reliable.size} samples are not reliable, with the leverages in "
        f"brackets: {names}; expected steps that the net bears, with leverages well below 1: {way_out}",
        LinAlgWarning,
        stacklevel=3,
    )
