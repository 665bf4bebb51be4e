"""Multilayer perceptrons of scikit-learn as networks of this library. Needs the extra `sklearn`."""

import numpy as np

from ..layers.dense import Dense
from ..network import Network
from ..runtime.validation import as_array, as_numbers

_ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
# What scikit-learn calls the loss and the last activation, which losses of this library contain.
_LOSSES = {
    ("log_loss", "softmax"): "softmax_cross_entropy",
    ("log_loss", "logistic"): "binary_cross_entropy",
    ("squared_error", "identity"): "mean_squared_error",
}


def from_sklearn(model, X=None, y=None):
    """The network of a fitted ``MLPClassifier`` or ``MLPRegressor``, and its parameters.

    With data it also gives the targets as the network wants them, and the L2 term of scikit-learn as damping::

        net, params, X, y, damping = nh.from_sklearn(model, X, y)
        step = nh.solve(net, params, X, y, net.gradient(params, X, y), damping)

    Parameters
    ----------
    model : sklearn.neural_network.MLPClassifier or MLPRegressor
        Fitted. It is not changed, and later changes of it do not reach what was returned.
    X : (B, n_features) array, optional
        Samples, not sparse. X and y come together or not at all.
    y : (B,) or (B, n_outputs) array, optional
        Targets as ``model.fit`` takes them: classes, indicators of several labels, or numbers.

    Returns
    -------
    network : Network
        With the last activation in the loss: its outputs are what goes into softmax or the logistic function.
    params : (P,) array
        In the dtype of ``model.coefs_``. Per layer the transpose of ``coefs_``, row by row, then ``intercepts_``.
    X : (B, n_features) array
        With data only, as the two that follow: in the dtype of ``params``.
    y : array
        Positions in ``model.classes_`` where there are more than two classes, otherwise (B, n_outputs) numbers.
    damping : float
        ``alpha / (B scale)``; see below.

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    TypeError, ValueError
        ``model`` is something else, is not fitted, or has a loss or an activation that this library lacks; or the data
        do not fit it.

    Notes
    -----
    On a batch of B samples the gradient that scikit-learn follows is that of

        ``scale * network.loss(params, X, y) + alpha / (2 B) * (sum of the squared weights)``

    where scale is n_outputs for several labels, n_outputs / 2 for a regressor and 1 otherwise: scikit-learn sums over
    the outputs where this library averages, and halves squared errors. (The ``loss_`` that a regressor of several
    outputs reports is another: there alone scikit-learn averages over the outputs.) The Hessian of that is scale times
    ``H + damping I``, with one difference: damping acts on the intercepts too, which scikit-learn does not penalise.
    There is no place for ``sample_weight``. In training, B is the size of a mini-batch, whatever that of the data.
    """
    _check(model)
    activation = _lookup("activation", _ACTIVATIONS, model.activation)
    # Regressors of older versions have a loss of one kind and no name for it that can be set.
    loss = _lookup("loss and output activation", _LOSSES, (model.loss, model.out_activation_))
    last = len(model.coefs_) - 1
    layers = [
        Dense(*weight.shape, "identity" if l == last else activation) for l, weight in enumerate(model.coefs_)
    ]
    network = Network(layers, loss)
    params = np.concatenate(
        [part.ravel() for weight, bias in zip(model.coefs_, model.intercepts_) for part in (weight.T, bias)]
    )
    if X is None and y is None:
        return network, params
    if X is None or y is None:
        raise ValueError(f"{'X' if X is None else 'y'}: expected both X and y or neither, got None")
    X = as_array("X", X, (None, layers[0].in_features), params.dtype, " (samples x inputs of the model)")
    if X.shape[0] == 0:
        raise ValueError("X: expected at least one sample, got an empty batch")
    scale = {"softmax_cross_entropy": 1.0, "binary_cross_entropy": 1.0, "mean_squared_error": 0.5}[loss]
    if loss != "softmax_cross_entropy":
        scale *= layers[-1].out_features
    return network, params, X, _targets(model, loss, y, X), float(model.alpha) / (X.shape[0] * scale)


def _check(model):
    try:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
    except ImportError:
        raise ImportError(
            "model: expected scikit-learn to be installed (pip install 'numba_hinv[sklearn]'), got a model without it"
        ) from None
    if not isinstance(model, (MLPClassifier, MLPRegressor)):
        raise TypeError(f"model: expected an MLPClassifier or an MLPRegressor, got {type(model).__name__}")
    if not hasattr(model, "coefs_"):
        raise ValueError(f"model: expected a fitted {type(model).__name__}, got one without coefs_; call fit first")


def _lookup(noun, known, name):
    if name not in known:
        raise ValueError(f"model: expected {noun} to be one of {', '.join(map(str, known))}; got {name}")
    return known[name]


def _targets(model, loss, y, X):
    """``y`` as the network wants it."""
    B, outputs = X.shape[0], model.n_outputs_
    if loss == "mean_squared_error":
        shape = (B,) if outputs == 1 and np.ndim(y) == 1 else (B, outputs)
        return as_array("y", y, shape, X.dtype, " (samples x outputs of the model)").reshape(B, outputs)
    if loss == "binary_cross_entropy" and outputs > 1:
        indicators = as_numbers("y", np.asarray(y) + 0)
        if indicators.shape != (B, outputs) or not np.isin(indicators, (0, 1)).all():
            raise ValueError(f"y: expected ({B}, {outputs}) zeros and ones, got shape {indicators.shape}")
        return indicators.astype(X.dtype)
    labels = np.asarray(y)
    if labels.shape not in ((B,), (B, 1)):
        raise ValueError(f"y: expected shape ({B},), one class a sample, got {labels.shape}")
    labels = labels.ravel()
    unknown = np.flatnonzero(~np.isin(labels, model.classes_))
    if unknown.size:
        i = int(unknown[0])
        raise ValueError(f"y: expected classes that the model was fitted to, got {labels[i]!r} at index {i}")
    positions = np.searchsorted(model.classes_, labels)
    return positions.astype(X.dtype).reshape(B, 1) if loss == "binary_cross_entropy" else positions
