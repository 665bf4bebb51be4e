"""Estimators of scikit-learn: nets trained by L-BFGS and then exact steps, with a prior from the evidence.

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
        """Logarithm of the evidence of the training data with scaled targets, by which nets can be compared."""
        check_is_fitted(self)
        if self.laplace_ is None:
            raise AttributeError("alpha: expected a positive number or 'evidence' for an evidence, got 0")
        return self.laplace_.log_evidence()


class NetRegressor(RegressorMixin, _NetEstimator):
    """Regression with a net of dense layers that says how certain its predictions are.

    Squared errors are minimised by L-BFGS first and then by exact second-order steps (`minimize`). The prior and the
    noise variance maximise the evidence, and predictive standard deviations come from the Laplace approximation
    (`Laplace`). It is for nets whose Hessian can be formed, which is up to some thousands of parameters, and for any
    number of samples.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        The number of units of each hidden layer; ``()`` for a linear model.
    activation : str
        The activation of the hidden layers, by any name that `Dense` takes ("tanh", "relu", "logistic", ...).
    alpha : "evidence" or float
        Strength of the L2 term, in the units of scikit-learn's ``MLPRegressor``; but intercepts are penalised as well,
        and targets are scaled. By default it is chosen so that the evidence of the training data is the largest
        (D. MacKay, Neural Computation 4, 1992), among two maxima that are searched for, so that there is nothing to
        tune. With 0 there is no posterior, and no uncertainty.
    standardize : bool
        Whether every input and target is scaled to a mean of 0 and a variance of 1 for training, which the prior
        assumes.
    curvature : "ggn" or "hessian"
        The curvature of the posterior, as for `Laplace`. The former agrees with outputs that are linearised in the
        parameters.
    max_iter : int
        The largest number of exact steps with each of the priors that are tried, of which there are some ten as a rule.
    tol : float
        Training ends when the norm of the gradient is at most this.
    random_state : int, RandomState or None
        The seed or generator of the first parameters.

    Attributes
    ----------
    network_ : Network
        The net.
    params_ : (P,) array
        The trained parameters.
    laplace_ : Laplace or None
        The posterior, for the scaled samples. None if ``alpha`` is 0.
    alpha_ : float
        The strength of the L2 term that was given or found.
    log_evidence_ : float
        The logarithm of the evidence of the training data with scaled targets, by which nets can be compared.
    noise_variance_ : float or (n_outputs,) array
        The variance of the noise of the targets, in the square of their own units.
    n_iter_ : int
        The number of iterations of L-BFGS and of exact steps, for all priors that were tried.
    n_features_in_, feature_names_in_ : int, array of str
        As for every estimator of scikit-learn.

    Raises
    ------
    TypeError, ValueError
        An argument or the data are not what is expected. For a data frame, the message names the column.
    numpy.linalg.LinAlgError
        With ``curvature="hessian"``, training has not ended at a minimum.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        Training has not converged.

    Notes
    -----
    A step costs about B P^2 + P^3/3 flops, where P is the number of parameters and B that of samples, and each prior
    that is tried about 4 P^3 more. Predicting means costs a pass of the net; standard deviations cost a solve of P^2
    flops for each sample.

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
        """Train the net.

        Parameters
        ----------
        X : (B, n_features) array
            The samples, one in each row.
        y : (B,) or (B, n_outputs) array
            The targets.
        sample_weight : (B,) array, optional
            How often each sample counts, at least 0; 1 by default.

        Returns
        -------
        NetRegressor
            The estimator itself.
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
        """Predict the means of the targets.

        Parameters
        ----------
        X : (n, n_features) array
            New samples, one in each row.
        return_std : bool
            Whether to return `predict_std` as well, as scikit-learn's own regressors with uncertainty do.

        Returns
        -------
        mean : (n,) or (n, n_outputs) array
            The means, of the shape that y had in `fit`.
        std : array of the same shape
            The standard deviations. Returned only with ``return_std``.
        """
        if return_std:
            return self._mean_and_std(X, True)
        inputs = self._checked(X)
        return self._in_units(self.network_.forward(self.params_, inputs))

    def predict_std(self, X: ArrayLike, include_noise: bool = True) -> FloatArray:
        """Predict the standard deviations of the targets.

        They have two parts: how uncertain the training data leave the outputs of the net, and, with ``include_noise``,
        the noise of targets about these.

        Parameters
        ----------
        X : (n, n_features) array
            New samples, one in each row.
        include_noise : bool
            Whether to include the noise of the targets.

        Returns
        -------
        std : (n,) or (n, n_outputs) array
            The standard deviations, in the shape of `predict`.
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
        """Predict bounds between which the targets lie with a given probability.

        They are those of a normal distribution, as the Laplace approximation has it, with equal probabilities below and
        above.

        Parameters
        ----------
        X : (n, n_features) array
            New samples, one in each row.
        coverage : float
            The probability, between 0 and 1.
        include_noise : bool
            Whether to include the noise of the targets.

        Returns
        -------
        lower, upper : (n,) or (n, n_outputs) array
            The bounds, each in the shape of `predict`.
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
    """Classification with a net of dense layers, with probabilities that are averaged over the posterior.

    Cross-entropy is minimised by L-BFGS first and then by exact second-order steps (`minimize`), and the prior
    maximises the evidence. Probabilities are averaged over the posterior of the Laplace approximation (`Laplace`), so
    that far from the training data they are closer to one another than those of a single net. It is for nets whose
    Hessian can be formed, which is up to some thousands of parameters, and for any number of samples.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        The number of units of each hidden layer; ``()`` for a linear model.
    activation : str
        The activation of the hidden layers, by any name that `Dense` takes ("tanh", "relu", "logistic", ...).
    alpha : "evidence" or float
        Strength of the L2 term, in the units of scikit-learn's ``MLPClassifier``; but intercepts are penalised as well.
        By default it is chosen so that the evidence of the training data is the largest (D. MacKay, Neural Computation
        4, 1992), among two maxima that are searched for, so that there is nothing to tune. With 0 there is no
        posterior, and no uncertainty.
    standardize : bool
        Whether every input is scaled to a mean of 0 and a variance of 1 for training, which the prior assumes.
    curvature : "ggn" or "hessian"
        The curvature of the posterior, as for `Laplace`. The former agrees with outputs that are linearised in the
        parameters.
    max_iter : int
        The largest number of exact steps with each of the priors that are tried, of which there are some ten as a rule.
    tol : float
        Training ends when the norm of the gradient is at most this.
    random_state : int, RandomState or None
        The seed or generator of the first parameters.

    Attributes
    ----------
    network_ : Network
        The net.
    params_ : (P,) array
        The trained parameters.
    laplace_ : Laplace or None
        The posterior, for the scaled samples. None if ``alpha`` is 0.
    alpha_ : float
        The strength of the L2 term that was given or found.
    log_evidence_ : float
        The logarithm of the evidence of the training data, by which nets can be compared.
    classes_ : (n_classes,) array
        The labels, sorted. They may be of any kind that can be sorted, such as strings.
    n_iter_ : int
        The number of iterations of L-BFGS and of exact steps, for all priors that were tried.
    n_features_in_, feature_names_in_ : int, array of str
        As for every estimator of scikit-learn.

    Raises
    ------
    TypeError, ValueError
        An argument or the data are not what is expected. For a data frame, the message names the column.
    numpy.linalg.LinAlgError
        With ``curvature="hessian"``, training has not ended at a minimum.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        Training has not converged.

    Notes
    -----
    For two classes the net has one output, with the logistic function; for more, it has one output for each, with
    softmax. Costs are those of `NetRegressor`; predicting takes a solve of P^2 flops for every sample and output.

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
        """Train the net.

        Parameters
        ----------
        X : (B, n_features) array
            The samples, one in each row.
        y : (B,) array
            The labels.
        sample_weight : (B,) array, optional
            How often each sample counts, at least 0; 1 by default.

        Returns
        -------
        NetClassifier
            The estimator itself.
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
        """Predict the most probable class of each sample.

        Parameters
        ----------
        X : (n, n_features) array
            New samples, one in each row.

        Returns
        -------
        labels : (n,) array
            The classes.
        """
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> FloatArray:
        """Predict the probabilities of the classes, averaged over the posterior.

        The average is D. MacKay's approximation (Neural Computation 4, 1992): logits are divided by
        ``sqrt(1 + pi/8 variance)``. For more than two classes, the mean of the logits is subtracted before, since only
        their differences matter.

        Parameters
        ----------
        X : (n, n_features) array
            New samples, one in each row.

        Returns
        -------
        probabilities : (n, n_classes) array
            The probabilities, in the order of ``classes_``.
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
