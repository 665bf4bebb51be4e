"""Estimators of scikit-learn: nets that are trained by exact steps, with a prior and uncertainty from the evidence.

The training is `numba_hinv.applications.evidence`; here are scikit-learn's conventions. Needs the extra `sklearn`.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, ndtri, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from ..applications import evidence
from ..layers.dense import Dense
from ..layers.targets import as_weights
from ..network import Network
from ..runtime import frames
from ..runtime.annotations import Array, Curvature, FloatArray
from ..runtime.validation import as_flag, as_real, as_size

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # before scikit-learn 1.6

    def validate_data(estimator: Any, *args: Any, **options: Any) -> Any:
        """The method that it was."""
        return estimator._validate_data(*args, **options)


_Estimator = TypeVar("_Estimator", bound="_NetEstimator")


class _NetEstimator(BaseEstimator):
    """What both estimators share: the net, its scaled inputs, training, and outputs with their covariance."""

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (16,),
        activation: str = "tanh",
        *,
        alpha: float | Literal["evidence"] = "evidence",
        standardize: bool = True,
        curvature: Curvature = "ggn",
        max_iter: int = 200,
        tol: float = 1e-8,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.alpha = alpha
        self.standardize = standardize
        self.curvature = curvature
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def _fit(
        self: _Estimator, X: Array, y: Array, num_outputs: int, loss: str, sample_weight: ArrayLike | None
    ) -> _Estimator:
        """Train on checked samples, whose targets are as the net wants them."""
        weights = as_weights("sample_weight", sample_weight, X.shape[0])
        alpha, standardize = self._checked_alpha(), as_flag("standardize", self.standardize)
        max_iter = as_size("max_iter", self.max_iter)
        if not weights.any():
            raise ValueError("sample_weight: expected weights with a positive sum, got all sample weights zero")
        # Samples of weight 0 are none.
        X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        self._scale_inputs = StandardScaler().fit(X, sample_weight=weights) if standardize else None
        y = self._scaled_targets(y, weights, standardize)
        self.network_ = self._network(X.shape[1], num_outputs, loss)
        start = self.network_.init(int(check_random_state(self.random_state).randint(2**31 - 1)))
        l2 = None if alpha is None else self._l2(alpha, weights.sum(), num_outputs)
        trained = evidence.train(
            self.network_, start, self._scaled(X), y, l2, self.curvature,
            None if sample_weight is None else weights,
            as_real("tol", self.tol), max_iter,
        )  # fmt: skip
        if not trained.is_converged:
            reason = trained.message if alpha is not None else f"{trained.message}, or the prior still moves"
            warnings.warn(
                f"max_iter: expected enough steps for training to converge, got {self.max_iter} ({reason}); raise "
                "max_iter or tol, or give alpha a number",
                ConvergenceWarning, stacklevel=3,
            )  # fmt: skip
        self.params_, self.laplace_ = trained.params, trained.posterior
        self.alpha_ = trained.l2 / self._l2(1.0, weights.sum(), num_outputs)
        # Where the start is a minimum already, scikit-learn's convention is 1.
        self.n_iter_ = max(1, trained.num_iterations)
        return self

    def _checked_alpha(self) -> float | None:
        """None for "evidence"."""
        if isinstance(self.alpha, str):
            if self.alpha != "evidence":
                raise ValueError(f"alpha: expected 'evidence' or a number of at least 0, got {self.alpha!r}")
            return None
        alpha = as_real("alpha", self.alpha)
        if alpha < 0.0:
            raise ValueError(f"alpha: expected 'evidence' or a number of at least 0, got {alpha}")
        return alpha

    def _network(self, num_inputs: int, num_outputs: int, loss: str) -> Network:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if isinstance(sizes, (tuple, list, np.ndarray)) else [sizes]
        sizes = [num_inputs, *(as_size("hidden_layer_sizes", size) for size in sizes)]
        hidden = [Dense(before, after, self.activation) for before, after in zip(sizes, sizes[1:])]
        return Network([*hidden, Dense(sizes[-1], num_outputs, "identity")], loss)

    def _scaled_targets(self, y: Array, weights: Array, standardize: bool) -> Array:
        return y

    def _scaled(self, X: Array) -> Array:
        return X if self._scale_inputs is None else self._scale_inputs.transform(X)

    def _checked(self, X: Any) -> Array:
        """New samples as the net takes them."""
        check_is_fitted(self)
        frames.plain("X", X)
        return self._scaled(validate_data(self, X, dtype=np.float64, reset=False))

    def _outputs(self, X: Array) -> tuple[Array, Array | None]:
        """(means (n, k), covariances (n, k, k) or None) of the net's outputs for checked samples."""
        if self.laplace_ is None:
            return self.network_.forward(self.params_, X), None
        return self.laplace_.predict(X)

    @property
    def log_evidence_(self) -> float:
        """Logarithm of the evidence of the fitted net, by which nets may be compared; of the scaled targets."""
        check_is_fitted(self)
        if self.laplace_ is None:
            raise AttributeError("alpha: expected a positive number or 'evidence' for an evidence, got 0")
        return self.laplace_.log_evidence()


class NetRegressor(RegressorMixin, _NetEstimator):
    """Regression with a net of dense layers, trained by exact second-order steps, that knows how sure it is.

    Squared errors, least by L-BFGS and then exact trust-region steps (`minimize`); the prior and the noise variance by
    the evidence; predictive standard deviations by the Laplace approximation (`Laplace`). For data sets and nets whose
    Hessian can be formed: up to some thousands of parameters, and any number of samples.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of the hidden layers; ``()`` for a linear model.
    activation : str
        Of the hidden layers, by any name that `Dense` takes ("tanh", "relu", "logistic", ...).
    alpha : "evidence" or float
        Strength of the L2 term, in the units of scikit-learn's ``MLPRegressor``, but that intercepts are penalised,
        too, and the targets are the scaled ones. By default it is where the evidence of the training data is the
        largest (D. MacKay, Neural Computation 4, 1992), of two maxima that are searched for, and there is nothing to
        tune. With 0 there is no posterior, and no uncertainty.
    standardize : bool
        Whether every input and target is scaled to a mean of 0 and a variance of 1 for training, as the prior supposes
        them to be.
    curvature : "ggn" or "hessian"
        Of the posterior, as for `Laplace`. The first goes with outputs linearised in the parameters.
    max_iter : int
        Exact steps, at most, with each of the priors that are tried, some ten as a rule.
    tol : float
        Training ends where the gradient's norm is at most this.
    random_state : int, RandomState or None
        Of the first parameters.

    Attributes
    ----------
    network_ : Network
    params_ : (P,) array
    laplace_ : Laplace or None
        The posterior, for the scaled samples.
    alpha_ : float
        The one that was given or found.
    log_evidence_ : float
        Of the training data, with scaled targets; to compare nets with.
    noise_variance_ : float or (n_outputs,) array
        Of the targets, in their own units, squared.
    n_iter_ : int
        Iterations of L-BFGS and exact steps, for all priors that were tried.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Raises
    ------
    TypeError, ValueError
        An argument or the data are not what is expected; of a data frame, the column is named.
    numpy.linalg.LinAlgError
        With ``curvature="hessian"``: training has not ended at a minimum.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        Training has not converged.

    Notes
    -----
    A step costs about B P^2 + P^3/3 flops, P being the number of parameters and B that of samples; a prior that is
    tried about 4 P^3 more. Predicting means costs a pass of the net; standard deviations, a solve of P^2 flops a
    sample.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_hinv as nh
    >>> X = np.linspace(-2, 2, 40).reshape(-1, 1)
    >>> y = np.sin(2 * X[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(40)
    >>> model = nh.NetRegressor((4,), random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.95)
    True
    >>> lower, upper = model.predict_interval([[0.5], [6.0]])
    >>> bool(upper[0] - lower[0] < upper[1] - lower[1])
    True
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "NetRegressor":
        """Train on samples X (B, n_features) and targets y (B,) or (B, n_outputs); returns the estimator.

        sample_weight : (B,) array, at least 0: how often each sample counts.
        """
        frames.plain("X", X)
        y = frames.plain("y", y)
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        self._is_flat = y.ndim == 1
        y = y.astype(np.float64).reshape(X.shape[0], -1)
        self._fit(X, y, y.shape[1], "mean_squared_error", sample_weight)
        noise = self.laplace_.noise_variance if self.laplace_ is not None else np.nan
        noise_variance = noise * self._target_scale**2
        self.noise_variance_: Any = float(noise_variance[0]) if self._is_flat else noise_variance
        return self

    def _scaled_targets(self, y: Array, weights: Array, standardize: bool) -> Array:
        self._target_mean, self._target_scale = np.zeros(y.shape[1]), np.ones(y.shape[1])
        if standardize:
            scaler = StandardScaler().fit(y, sample_weight=weights)
            self._target_mean, self._target_scale = scaler.mean_, scaler.scale_
        return (y - self._target_mean) / self._target_scale

    @staticmethod
    def _l2(alpha: float, total_weight: float, num_outputs: int) -> float:
        """The weight of the L2 term beside a mean over all elements; scikit-learn sums halves over the outputs."""
        return 2.0 * alpha / (total_weight * num_outputs)

    def _shaped(self, values: Array) -> Array:
        return values[:, 0] if self._is_flat else values

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """The mean of the targets of X (n, n_features): (n,) or (n, n_outputs), as y was.

        With ``return_std``, a pair of that and `predict_std`, as regressors of scikit-learn that know it have it.
        """
        if return_std:
            return self._mean_and_std(X, True)
        inputs = self._checked(X)
        return self._in_units(self.network_.forward(self.params_, inputs))

    def predict_std(self, X: ArrayLike, include_noise: bool = True) -> FloatArray:
        """Standard deviation of the targets of X, in the shape of `predict`.

        It has two parts: what the training data leave uncertain of the net, and, with ``include_noise``, the noise of
        targets about it.
        """
        return self._mean_and_std(X, as_flag("include_noise", include_noise))[1]

    def _in_units(self, outputs: Array) -> Array:
        """Means of the targets in their own units, in the shape of `predict`, from outputs of the net."""
        return self._shaped(outputs * self._target_scale + self._target_mean)

    def _mean_and_std(self, X: Any, include_noise: bool) -> tuple[FloatArray, FloatArray]:
        outputs, covariance = self._outputs(self._checked(X))
        if covariance is None:
            raise ValueError("alpha: expected a positive number or 'evidence' for an uncertainty, got 0")
        variance = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0.0)
        if include_noise:
            variance = variance + self.laplace_.noise_variance
        return self._in_units(outputs), self._shaped(np.sqrt(variance) * self._target_scale)

    def predict_interval(
        self, X: ArrayLike, coverage: float = 0.95, include_noise: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper bounds that the targets of X lie within with the given probability, each as `predict`.

        Those of a normal distribution, as the Laplace approximation has it, with the same mass outside on both sides.
        """
        coverage = as_real("coverage", coverage)
        if not 0.0 < coverage < 1.0:
            raise ValueError(f"coverage: expected a number between 0 and 1, got {coverage}")
        mean, std = self._mean_and_std(X, as_flag("include_noise", include_noise))
        half = ndtri(0.5 + 0.5 * coverage) * std
        return mean - half, mean + half

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _more_tags(self) -> dict[str, bool]:
        # What these were before scikit-learn 1.6.
        return {"multioutput": True}


class NetClassifier(ClassifierMixin, _NetEstimator):
    """Classification with a net of dense layers, trained by exact second-order steps; probabilities are averaged.

    Cross-entropy, least by L-BFGS and then exact trust-region steps (`minimize`); the prior by the evidence;
    probabilities averaged over the posterior of the Laplace approximation (`Laplace`), so that far from the training
    data they are nearer to each other than those of one net. For data sets and nets whose Hessian can be formed: up to
    some thousands of parameters, and any number of samples.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of the hidden layers; ``()`` for a linear model.
    activation : str
        Of the hidden layers, by any name that `Dense` takes ("tanh", "relu", "logistic", ...).
    alpha : "evidence" or float
        Strength of the L2 term, in the units of scikit-learn's ``MLPClassifier``, but that intercepts are penalised,
        too. By default it is where the evidence of the training data is the largest (D. MacKay, Neural Computation 4,
        1992), of two maxima that are searched for, and there is nothing to tune. With 0 there is no posterior, and no
        uncertainty.
    standardize : bool
        Whether every input is scaled to a mean of 0 and a variance of 1 for training, as the prior supposes
        them to be.
    curvature : "ggn" or "hessian"
        Of the posterior, as for `Laplace`. The first goes with outputs linearised in the parameters.
    max_iter : int
        Exact steps, at most, with each of the priors that are tried, some ten as a rule.
    tol : float
        Training ends where the gradient's norm is at most this.
    random_state : int, RandomState or None
        Of the first parameters.

    Attributes
    ----------
    network_ : Network
    params_ : (P,) array
    laplace_ : Laplace or None
        The posterior, for the scaled samples.
    alpha_ : float
        The one that was given or found.
    log_evidence_ : float
        Of the training data; to compare nets with.
    classes_ : (n_classes,) array
        Labels, of any kind that sorts, such as strings.
    n_iter_ : int
        Iterations of L-BFGS and exact steps, for all priors that were tried.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Raises
    ------
    TypeError, ValueError
        An argument or the data are not what is expected; of a data frame, the column is named.
    numpy.linalg.LinAlgError
        With ``curvature="hessian"``: training has not ended at a minimum.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        Training has not converged.

    Notes
    -----
    Two classes are one output with the logistic function, more are one output each with softmax. Costs are those of
    `NetRegressor`; predicting takes a solve of P^2 flops for every sample and output.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_hinv as nh
    >>> X = np.random.default_rng(0).standard_normal((60, 2))
    >>> y = np.where((X**2).sum(axis=1) < 1.2, "inside", "outside")
    >>> model = nh.NetClassifier((8,), random_state=0).fit(X, y)
    >>> model.predict([[0.0, 0.0], [2.0, 2.0]])
    array(['inside', 'outside'], dtype='<U7')
    """

    classes_: Array

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "NetClassifier":
        """Train on samples X (B, n_features) and labels y (B,); returns the estimator.

        sample_weight : (B,) array, at least 0: how often each sample counts.
        """
        frames.plain("X", X)
        if y is not None:
            frames.require_complete("y", y)
        X, y = validate_data(self, X, y, dtype=np.float64)
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if self.classes_.size < 2:
            raise ValueError(f"y: expected labels of at least two classes, got one class alone, {self.classes_[0]!r}")
        if self.classes_.size == 2:
            return self._fit(X, labels.astype(np.float64).reshape(-1, 1), 1, "binary_cross_entropy", sample_weight)
        return self._fit(X, labels, self.classes_.size, "softmax_cross_entropy", sample_weight)

    @staticmethod
    def _l2(alpha: float, total_weight: float, num_outputs: int) -> float:
        return alpha / total_weight

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of each sample of X (n, n_features), (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> FloatArray:
        """Probabilities of the classes, (n, n_classes), in the order of ``classes_``.

        The average over the posterior, by D. MacKay's approximation (Neural Computation 4, 1992): logits are divided by
        ``sqrt(1 + pi/8 variance)``; of more than two classes, those about their mean, since no more than their
        differences matter.
        """
        logits, covariance = self._outputs(self._checked(X))
        if self.classes_.size == 2:
            if covariance is not None:
                logits = logits / np.sqrt(1.0 + np.pi / 8.0 * np.maximum(covariance[:, :, 0], 0.0))
            positive = expit(logits[:, 0])
            return np.stack([expit(-logits[:, 0]), positive], axis=1)
        if covariance is not None:
            logits = logits - logits.mean(axis=1, keepdims=True)
            across = covariance.mean(axis=1)
            variance = np.diagonal(covariance, axis1=1, axis2=2) - 2.0 * across + across.mean(axis=1, keepdims=True)
            logits = logits / np.sqrt(1.0 + np.pi / 8.0 * np.maximum(variance, 0.0))
        return softmax(logits, axis=1)
