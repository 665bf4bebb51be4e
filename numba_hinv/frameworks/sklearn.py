"""Multilayer perceptrons of scikit-learn as networks of this library. Needs the extra `sklearn`."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..layers.dense import Dense
from ..layers.targets import as_weights
from ..network import Network
from ..runtime.annotations import Array, Data
from ..runtime.validation import as_array, as_numbers

_ACTIVATIONS = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
# What scikit-learn calls the loss and the last activation, which losses of this library contain.
_LOSSES = {
    ("log_loss", "softmax"): "softmax_cross_entropy",
    ("log_loss", "logistic"): "binary_cross_entropy",
    ("squared_error", "identity"): "mean_squared_error",
    ("poisson", "exp"): "poisson",
}
# What makes scikit-learn's gradient of this library's, but for the number of outputs that a mean is over.
_SCALES = {"softmax_cross_entropy": 1.0, "binary_cross_entropy": 1.0, "mean_squared_error": 0.5, "poisson": 1.0}


def from_sklearn(model: Any, X: Any = None, y: Any = None, sample_weight: ArrayLike | None = None) -> Any:
    """Convert a fitted ``MLPClassifier`` or ``MLPRegressor``, or a Pipeline that ends in one, into a network.

    With data it also returns the targets in the form that the network takes, and the L2 term of scikit-learn as a
    damping::

        net, params, X, y, damping = nh.from_sklearn(model, X, y)
        step = nh.solve(net, params, X, y, net.gradient(params, X, y), damping)

    Parameters
    ----------
    model : sklearn.neural_network.MLPClassifier or MLPRegressor, or sklearn.pipeline.Pipeline
        The fitted model. It is not changed, and later changes of it do not affect what was returned. For a Pipeline,
        the network is that of the last step, and takes what the steps before make of X. These are no part of the net,
        so that parameters, Hessian and penalty are those that were trained. Therefore a Pipeline needs data; new
        samples are transformed by ``model[:-1].transform(X)``.
    X : (B, n_features) array, optional
        Samples, not sparse, as the model or Pipeline takes them. X and y must be given together or not at all.
    y : (B,) or (B, n_outputs) array, optional
        Targets as ``model.fit`` takes them: classes, indicators of several labels, or numbers.
    sample_weight : (B,) array, optional
        As ``model.fit`` takes it; give it to ``network.loss`` as well. Here only the damping depends on it.

    Returns
    -------
    network : Network
        The network. Its last activation is part of the loss: the outputs are the arguments of softmax, of the logistic
        function or, for ``loss="poisson"``, of the exponential.
    params : (P,) array
        The parameters, in the dtype of ``model.coefs_``: for each layer the transpose of ``coefs_``, row by row, and
        then ``intercepts_``.
    X : (B, n_features) array
        The samples after the steps of a Pipeline, in the dtype of ``params``. This and what follows is returned only if
        data were given.
    y : array
        Positions in ``model.classes_`` if there are more than two classes, otherwise (B, n_outputs) numbers.
    damping : float
        ``alpha / (B scale)``, where B is the sum of the weights if there are any; see the notes.

    Raises
    ------
    ImportError
        scikit-learn is not installed.
    TypeError, ValueError
        ``model`` is something else, is not fitted, or has a loss or an activation that this library lacks; or the data
        do not match it.

    Notes
    -----
    On a batch of B samples the gradient that scikit-learn follows is that of

        ``scale * network.loss(params, X, y) + alpha / (2 B) * (sum of the squared weights)``

    where scale is n_outputs for several labels and for ``loss="poisson"``, n_outputs / 2 for other regressors and 1
    otherwise: scikit-learn sums over the outputs where this library averages, and halves squared errors. To the Poisson
    loss scikit-learn adds the mean of ``y log y - y``, summed over the outputs, which no gradient sees. (The ``loss_``
    that a regressor of several outputs reports is another: there alone scikit-learn averages over the outputs.) The
    Hessian of that is scale times ``H + damping I``, with one difference: damping acts on the intercepts too, which
    scikit-learn does not penalise. With ``sample_weight``, which scikit-learn takes from version 1.7 on, both divide by
    the sum of the weights, which B then stands for. In training, B is the size of a mini-batch, whatever that of the
    data.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> from sklearn.neural_network import MLPRegressor
    >>> X = np.linspace(-1.0, 1.0, 50)[:, None]
    >>> model = MLPRegressor(hidden_layer_sizes=4, activation="tanh", solver="lbfgs", max_iter=2000, random_state=0)
    >>> model = model.fit(X, X[:, 0] ** 2)
    >>> net, params, X, y, damping = nh.from_sklearn(model, X, X[:, 0] ** 2)
    >>> net.num_params, y.shape
    (13, (50, 1))
    """
    model, X = _last_step(model, X)
    _check(model)
    activation = _lookup("activation", _ACTIVATIONS, model.activation)
    # Regressors of older versions have a loss of one kind and no name for it that can be set.
    loss = _lookup("loss and output activation", _LOSSES, (model.loss, model.out_activation_))
    last = len(model.coefs_) - 1
    activations = [activation] * last + ["identity"]
    layers = [Dense(weight.shape[0], weight.shape[1], name) for weight, name in zip(model.coefs_, activations)]
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
    scale = _SCALES[loss]
    if loss != "softmax_cross_entropy":
        scale *= layers[-1].out_features
    weight = float(as_weights("sample_weight", sample_weight, X.shape[0]).sum())
    if not weight > 0.0:
        raise ValueError(f"sample_weight: expected weights with a positive sum, got {weight:g}")
    return network, params, X, _targets(model, loss, y, X), float(model.alpha) / (weight * scale)


def _check(model: Any) -> None:
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


def _last_step(model: Any, X: Data) -> tuple[Any, Any]:
    """The model at the end of a Pipeline, and what its other steps make of X; all else as it is."""
    # Not to import scikit-learn, which is missing where there is no such model either.
    if type(model).__name__ != "Pipeline" or not hasattr(model, "steps"):
        best = getattr(model, "best_estimator_", None)
        if best is not None:
            raise TypeError(f"model: expected a model, got {type(model).__name__}; give its best_estimator_")
        return model, X
    last, before = model[-1], model[:-1]
    _check(last)
    if all(step is None or step == "passthrough" for _, step in before.steps):
        return last, X
    if X is None:
        raise ValueError(
            "X: expected data with a Pipeline, whose steps make the inputs of its net, got None; give X and y, or "
            "model[-1] for the net behind these steps"
        )
    transformed = before.transform(X)
    if hasattr(transformed, "toarray"):
        raise TypeError("X: expected a Pipeline that makes dense arrays, got a sparse one; try sparse_output=False")
    return last, transformed


def _lookup(noun: str, known: dict[Any, str], name: Any) -> str:
    if name not in known:
        raise ValueError(f"model: expected {noun} to be one of {', '.join(map(str, known))}; got {name}")
    return known[name]


def _targets(model: Any, loss: str, y: Any, X: Array) -> Array:
    """``y`` as the network wants it."""
    B, outputs = X.shape[0], model.n_outputs_
    if loss in ("mean_squared_error", "poisson"):
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
