"""Losses with their options, for ``nh.Network(layers, loss)``: what each is, and how outputs and targets lie.

Each function returns a `Loss`. Names and definitions are those of PyTorch 2 unless something else is said. Below, z is
an output of the net, t its target and r = z - t. ``reduction="mean"`` is over all targets (of labels, over the
samples), each with the weight of its sample; ``reduction="sum"`` is the weighted sum.
"""

from numpy.typing import ArrayLike

from .layers.loss import Loss
from .layers.loss_parameters import Parameter

__all__ = [
    "Parameter",
    "binary_cross_entropy",
    "gaussian_nll",
    "huber",
    "mean_squared_error",
    "poisson",
    "quantile",
    "smooth_l1",
    "softmax_cross_entropy",
]


def softmax_cross_entropy(
    class_weights: ArrayLike = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Loss:
    """Cross-entropy of labels (B,) and the softmax p of n outputs: ``-w[label] log p[label]``.

    Parameters
    ----------
    class_weights : float or (n,) array
        w, at least 0. The mean is divided by the sum of the labels' weights (each times that of its sample).
    label_smoothing : float
        From 0 to 1. The loss of a sample becomes ``-(1 - label_smoothing) w[label] log p[label] - label_smoothing / n
        sum_c w[c] log p[c]``; what the mean is divided by stays.
    ignore_index : int, optional
        A label, perhaps beyond 0..n-1, whose samples do not count, in the mean neither. PyTorch's default is -100; here
        there is none.
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected; class_weights of a wrong length when the network is made.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(4, 3, "identity")], nh.losses.softmax_cross_entropy(class_weights=[1.0, 2.0, 0.5]))
    """
    options = {"class_weights": class_weights, "label_smoothing": label_smoothing}
    return Loss("softmax_cross_entropy", reduction, ignore_index, **options)


def mean_squared_error(reduction: str = "mean") -> Loss:
    """``r^2``, without a factor 1/2; targets (B, n).

    Parameters
    ----------
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    ValueError
        ``reduction`` is neither of these.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.losses.mean_squared_error(reduction="sum")
    Loss('mean_squared_error', reduction='sum')
    """
    return Loss("mean_squared_error", reduction)


def binary_cross_entropy(pos_weight: ArrayLike = 1.0, reduction: str = "mean") -> Loss:
    """Cross-entropy of targets t from 0 to 1, (B, n), and logits z: ``-pos_weight t log p - (1 - t) log(1 - p)``.

    Parameters
    ----------
    pos_weight : float or (n,) array
        At least 0. The mean is divided by the number of targets, whatever this is.
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.losses.binary_cross_entropy(pos_weight=3.0)
    Loss('binary_cross_entropy', pos_weight=3.0)
    """
    return Loss("binary_cross_entropy", reduction, pos_weight=pos_weight)


def huber(delta: ArrayLike = 1.0, reduction: str = "mean") -> Loss:
    """``r^2 / 2`` where ``|r| <= delta``, else ``delta (|r| - delta / 2)``; targets (B, n).

    The curvature is 1 in the middle and 0 outside of it.

    Parameters
    ----------
    delta : float or (n,) array
        Positive.
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(1, 1, "identity")], nh.losses.huber(delta=2.0))
    >>> net.loss([0.0, 0.0], [[1.0]], [5.0])
    8.0
    """
    return Loss("huber", reduction, delta=delta)


def smooth_l1(beta: ArrayLike = 1.0, reduction: str = "mean") -> Loss:
    """``r^2 / (2 beta)`` where ``|r| < beta``, else ``|r| - beta / 2``; targets (B, n).

    The curvature is ``1 / beta`` in the middle and 0 outside of it. With ``beta=0`` it is ``|r|``, of curvature 0.

    Parameters
    ----------
    beta : float or (n,) array
        At least 0.
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.losses.smooth_l1(beta=[0.5, 1.0])
    Loss('smooth_l1', beta=(0.5, 1.0))
    """
    return Loss("smooth_l1", reduction, beta=beta)


def poisson(log_input: bool = True, full: bool = False, eps: float = 1e-8, reduction: str = "mean") -> Loss:
    """Minus the log-likelihood of counts t, (B, n), without what does not depend on z: ``exp(z) - t z``.

    Parameters
    ----------
    log_input : bool
        Whether outputs are the logarithms of rates. Where they are rates, the loss is ``z - t log(z + eps)``, and there
        is none where ``z + eps`` is negative.
    full : bool
        Add Stirling's approximation of ``log t!`` where t > 1: ``t log t - t + log(2 pi t) / 2``.
    eps : float
        At least 0; only where outputs are rates.
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.losses.poisson(full=True)
    Loss('poisson', full=True)
    """
    return Loss("poisson", reduction, log_input=log_input, full=full, eps=eps)


def gaussian_nll(full: bool = False, reduction: str = "mean") -> Loss:
    """Minus the log-likelihood of normal targets t, (B, m), of which the net gives mean and log-variance.

    Of 2 m outputs, the first m are the means and the last m the natural logarithms s of the variances, in the same
    order: ``(s + r^2 exp(-s)) / 2``. PyTorch takes variances, which it makes at least 1e-6; here there is no such
    bound. Not convex in the outputs: the Gauss-Newton matrix may have negative eigenvalues.

    Parameters
    ----------
    full : bool
        Add ``log(2 pi) / 2``.
    reduction : "mean" or "sum"
        The mean is over the B m targets.

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected; an odd number of outputs when the network is made.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(3, 2, "identity")], nh.losses.gaussian_nll())
    >>> net.loss([0.0] * 8, [[1.0, 2.0, 3.0]], [2.0])
    2.0
    """
    return Loss("gaussian_nll", reduction, full=full)


def quantile(quantile: ArrayLike = 0.5, reduction: str = "mean") -> Loss:
    """The pinball loss, ``quantile * -r`` where ``r <= 0``, else ``(1 - quantile) r``; targets (B, n).

    As ``sklearn.metrics.mean_pinball_loss`` has it. Its curvature is 0 everywhere: H is what the net's own second
    derivatives make of the slopes, and the Gauss-Newton matrix is 0.

    Parameters
    ----------
    quantile : float or (n,) array
        Between 0 and 1. Several outputs may be several quantiles of a number that is repeated in the targets.
    reduction : "mean" or "sum"

    Returns
    -------
    Loss

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(2, 3, "identity")], nh.losses.quantile([0.1, 0.5, 0.9]))
    """
    return Loss("quantile", reduction, quantile=quantile)
