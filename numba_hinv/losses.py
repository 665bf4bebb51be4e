"""Losses with their options, for ``nh.Network(layers, loss)``: their definitions and the shapes of their targets.

Each function returns a `Loss`. Names and definitions are those of PyTorch 2 unless a function says otherwise. Below, z
is an output of the net, t its target and r = z - t. ``reduction="mean"`` is the mean over all targets, or over all
samples if targets are labels, where each counts with the weight of its sample; ``reduction="sum"`` is the weighted sum.
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
        The weights w of the classes, at least 0. In the mean, the sum is divided by the sum of the weights of the
        labels, each times the weight of its sample.
    label_smoothing : float
        From 0 to 1. The loss of a sample becomes ``-(1 - label_smoothing) w[label] log p[label] - label_smoothing / n
        sum_c w[c] log p[c]``. The mean is divided by the same number as without smoothing.
    ignore_index : int, optional
        Samples with this label, which may lie outside of 0..n-1, do not count, neither in the sum nor in what the mean
        is divided by. PyTorch's default is -100; here no label is ignored by default.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected. A wrong length of class_weights is found when the network is made.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(4, 3, "identity")], nh.losses.softmax_cross_entropy(class_weights=[1.0, 2.0, 0.5]))
    """
    options = {"class_weights": class_weights, "label_smoothing": label_smoothing}
    return Loss("softmax_cross_entropy", reduction, ignore_index, **options)


def mean_squared_error(reduction: str = "mean") -> Loss:
    """Squared error ``r^2``, without a factor 1/2, for targets (B, n).

    Parameters
    ----------
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

    Raises
    ------
    ValueError
        ``reduction`` is neither "mean" nor "sum".

    Examples
    --------
    >>> import numba_hinv as nh
    >>> nh.losses.mean_squared_error(reduction="sum")
    Loss('mean_squared_error', reduction='sum')
    """
    return Loss("mean_squared_error", reduction)


def binary_cross_entropy(pos_weight: ArrayLike = 1.0, reduction: str = "mean") -> Loss:
    """Cross-entropy of targets t from 0 to 1, (B, n), and logits z: ``-pos_weight t log p - (1 - t) log(1 - p)``.

    Here p is the logistic function of z.

    Parameters
    ----------
    pos_weight : float or (n,) array
        The weight of the first term, at least 0. The mean is divided by the number of targets, whatever this weight is.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

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
    """Huber's loss: ``r^2 / 2`` where ``|r| <= delta``, else ``delta (|r| - delta / 2)``, for targets (B, n).

    Its curvature is 1 where ``|r| <= delta`` and 0 elsewhere.

    Parameters
    ----------
    delta : float or (n,) array
        Where the loss becomes linear; positive.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

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
    """Smooth absolute error: ``r^2 / (2 beta)`` where ``|r| < beta``, else ``|r| - beta / 2``, for targets (B, n).

    Its curvature is ``1 / beta`` where ``|r| < beta`` and 0 elsewhere. With ``beta=0`` the loss is ``|r|``, whose
    curvature is 0.

    Parameters
    ----------
    beta : float or (n,) array
        Where the loss becomes linear; at least 0.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

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
    """Minus the log-likelihood of counts t, (B, n), without the terms that do not depend on z: ``exp(z) - t z``.

    Parameters
    ----------
    log_input : bool
        Whether outputs are the logarithms of rates. If they are the rates themselves, the loss is
        ``z - t log(z + eps)``, which is not defined where ``z + eps`` is negative.
    full : bool
        Whether to add Stirling's approximation of ``log t!`` where t > 1: ``t log t - t + log(2 pi t) / 2``.
    eps : float
        A small number, at least 0, which is used only if outputs are rates.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

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
    """Minus the log-likelihood of normal targets t, (B, m), whose means and log-variances the net predicts.

    Of the 2 m outputs, the first m are the means and the last m the natural logarithms s of the variances, in the same
    order. The loss is ``(s + r^2 exp(-s)) / 2``. PyTorch takes variances instead, and raises those below 1e-6 to that
    number; here there is no such bound. The loss is not convex in the outputs, so that the Gauss-Newton matrix may have
    negative eigenvalues.

    Parameters
    ----------
    full : bool
        Whether to add ``log(2 pi) / 2``.
    reduction : "mean" or "sum"
        Whether the loss is the mean over the B m targets or the sum over them.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

    Raises
    ------
    TypeError, ValueError
        An option is not what is expected. An odd number of outputs is found when the network is made.

    Examples
    --------
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(3, 2, "identity")], nh.losses.gaussian_nll())
    >>> net.loss([0.0] * 8, [[1.0, 2.0, 3.0]], [2.0])
    2.0
    """
    return Loss("gaussian_nll", reduction, full=full)


def quantile(quantile: ArrayLike = 0.5, reduction: str = "mean") -> Loss:
    """The pinball loss: ``quantile * -r`` where ``r <= 0``, else ``(1 - quantile) r``, for targets (B, n).

    It is that of ``sklearn.metrics.mean_pinball_loss``. Its curvature is 0 everywhere, so that H comes from the second
    derivatives of the net alone, and the Gauss-Newton matrix is 0.

    Parameters
    ----------
    quantile : float or (n,) array
        Which quantile to predict, between 0 and 1. Several outputs may predict several quantiles of one number, which
        the targets then repeat.
    reduction : "mean" or "sum"
        Whether the loss is the mean or the sum over samples.

    Returns
    -------
    Loss
        The loss, which `Network` takes.

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
