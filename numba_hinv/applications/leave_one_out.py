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
    """Predictions without each sample. Made by `leave_one_out`.

    Attributes
    ----------
    predictions : (B, n_L) array
        Outputs of the net for each sample without that sample, or without its group, in the training data.
    losses : (B,) array
        The loss of each sample at these.
    fitted_losses : (B,) array
        The loss of each sample at the outputs of the net as it is.
    leverage : (B,) array
        The largest eigenvalue of ``A_i C_i``, of the sample's group: how much the fit of its outputs rests on their own
        targets. The diagonal of the hat matrix, for a linear net of one output and squared errors.
    errors : (B,) array
        The length of what one more step would add to each prediction; NaN where that was not asked for, or where
        training again did not end in a minimum, and 0 where it did.
    reliable : (B,) array of bool
        Whether the step bears the removal of the sample's group.
    refitted : (B,) array of bool
        Whether the prediction is that of training again.
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
        """The mean of ``losses``: what the loss of the net, without an L2 term, is to be expected on new samples."""
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
            By default that of a new figure.
        **kwargs
            For `matplotlib.axes.Axes.scatter`.

        Returns
        -------
        ax : matplotlib.axes.Axes
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
    """What the net would predict for each sample if it were trained again without it.

    Training again means: minimise the mean loss of the other samples, with the same weight of the L2 term, from where
    the net is. One factorization gives an approximation for every sample, which is exact for a linear net and squared
    errors.

    Parameters
    ----------
    net : Network
    params : (P,) array
        A minimum of ``net.loss(params, X, y, l2)``. Where the gradient is not quite 0 there, the step allows for it.
    X, y : the training samples, as for `Network.gradient`
        Arrays, perhaps on a disk: batches from a loader have no order that says which sample is which.
    l2 : float, or sequence
        Weight of the term ``l2/2 ||params||^2`` that the loss was minimised with, as for `Network.gradient`.
    curvature : "hessian" or "ggn"
        As for `Network.hessian`.
    groups : int or (B,) array, optional
        Leave out groups instead of single samples: so many folds of consecutive samples, or all samples with the same
        label (integers or strings). At least two groups.
    damping : float
        Added to H, and no part of the loss: where H is singular.
    refit : False, True or "trust-region"
        What to do about groups that the step does not bear: nothing but a warning; train again without each of them, by
        `minimize` from ``params``; or take at most 5 exact trust-region steps of it. Where these converge, the group is
        reliable.
    check : bool, optional
        Whether to verify each step by the gradient of the others' loss where it ends. By default for up to 1,000
        samples in memory.
    method : "auto", "layers" or "dense"
        As for `Hessian.factorize`.
    num_threads : int, optional
        Of blocks of samples at the same time; by default one a core. The answer is the same for every number.
    progress : bool, optional
        Show a progress bar of the verified steps, for which tqdm must be installed; by default what
        `set_progress` says.
    batch_size, keep_bytes : int, optional
        As for `Network.hessian`. Where H is factored as one dense matrix, many samples are read in batches by default.

    Returns
    -------
    LeaveOneOut

    Raises
    ------
    TypeError, ValueError
        An argument is not as described; it is named.
    numpy.linalg.LinAlgError
        H is singular: give an L2 term or a damping.
    MemoryError
        Factors, covariances of outputs or the blocks at work would not fit.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        Some samples are not reliable: they are named. Or H has negative eigenvalues, so that params are no minimum, and
        no sample is reliable.

    See Also
    --------
    influence : the effect of each sample on the losses of others.

    Notes
    -----
    With ``A_i = J_i A^-1 J_i^T``, J_i being the Jacobian of sample i's outputs, and r_i and C_i gradient and curvature
    of its loss in these, with the mean's 1/B inside, the outputs move by ``(I - A_i C_i)^-1 (A_i r_i + q_i)``. For k
    samples left out of B, the others' loss with a mean over B - k is, times (B - k)/B, their part of the mean over B
    and an L2 term of weight ``l2 (1 - k/B)``. So A is the Gauss-Newton matrix and ``1 - k/B`` times what H and the L2
    term have beside it (the layers' second derivatives of a sample being taken as the average ones), plus the damping;
    q_i is what the L2 term and the gradient at params contribute (docs/theory.md, section 14).

    A sample is reliable if its leverage is at most 0.99, another step would move its predictions by at most 2 % of the
    change, and be at most 5 % as long as the first in the norm of A; unverified, if its leverage is at most 0.2. What
    no step can see is a second minimum to which training again goes.

    Costs a factorization, and once more about as much for the covariances; one of each for every size of groups.
    Verifying takes a gradient of all samples and two solves for each group. Groups of k samples take ``(k n_L)^2``
    numbers each.

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
