"""The Laplace approximation: a normal posterior at the mode, with the exact Hessian or the Gauss-Newton matrix.

D. MacKay, Neural Computation 4 (1992): the posterior of a net's parameters, given data and a normal prior, is close to
the normal distribution around its mode whose precision is the Hessian of the negative log posterior; its determinant
gives the evidence, by which priors and nets can be compared on the training data alone.

The library's losses are means, of `count` terms, which samples have as often as their weights say; the negative
log-likelihood is their sum, times 1/(2 noise_variance) for squared errors. With ``s = count`` (1 where the loss is a
sum; either over 2 noise_variance) it is ``s loss + constant``, and the precision of the posterior is ``s H +
prior_precision I = s (H + prior_precision/s I)``: what `Hessian.factorize` is for.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgWarning

from ..certainty import covariance
from ..certainty.inertia import best_count
from ..factorization import Factorization
from ..factors import spectrum
from ..hessian import Hessian
from ..layers.samples import Samples
from ..layers.targets import as_weights
from ..network import Network
from ..runtime import representation
from ..runtime.annotations import Array, Curvature, Data, FloatArray, FloatType, Ridge, Tick
from ..runtime.progress import bar
from ..runtime.randomness import Rng
from ..runtime.validation import as_flag, as_real
from . import output_covariance
from .priors import as_prior, is_positive, maximise

# Relative accuracy of the variances that `fit_prior` sums.
_TRACE = 1e-4
# The search for a maximum takes steps of this factor in the prior precision, at most so many either way.
_FACTOR, _STEPS = 4.0, 20
_TOLERANCE = 1e-8


class Laplace:
    """The Laplace approximation: a normal posterior of the parameters of a trained net.

    The normal distribution has its mean at ``params``, which should be a mode of the posterior, and the inverse of the
    Hessian of minus the log posterior there as covariance.

    Parameters
    ----------
    net : Network
        The net. Its loss decides the likelihood: "softmax_cross_entropy" is that of labels, "binary_cross_entropy" that
        of independent zeros and ones, and "mean_squared_error" a normal one with ``noise_variance``. The value of any
        other loss for a sample is taken as minus the logarithm of the likelihood of that sample.
    params : (P,) array
        The parameters where the posterior is the largest: those of a net trained on this loss with
        ``l2 = prior_precision / s``, where s is `scale`.
    X, y : as for `Network.gradient`
        The training data: arrays in memory or on a disk, or batches.
    prior_precision : float, or sequence
        The prior of every parameter is normal with this precision, which is positive. It may also be one number for
        each layer, one pair (weights, biases) for each layer, or a (P,) array (docs/priors.md).
    curvature : "hessian" or "ggn"
        As for `Network.hessian`. If the loss is convex in the outputs, as all losses of the library but gaussian_nll
        are, the Gauss-Newton matrix is positive semidefinite, so that there is a posterior at any parameters.
    noise_variance : float, optional
        The variance of the targets about the outputs, for "mean_squared_error" only; 1 by default.
    factor_dtype : float64 or float32, optional
        As for `Hessian.factorize`.
    batch_size, keep_bytes : int, optional
        As for `Network.hessian`.
    progress : bool, optional
        Show progress bars of the pass over the training data and of the factorization, for which tqdm must be
        installed; by default what `set_progress` says.
    sample_weight : (B,) array, optional
        As for `Network.gradient`: how many observations each sample stands for, in the likelihood and in `scale`.
    prior_mean : float, or sequence
        The mean of the prior, in the forms of ``prior_precision``; 0 by default. ``params`` should have been trained
        with that prior; the L2 term of this library's own training has a mean of 0.

    Attributes
    ----------
    hessian : Hessian
        The Hessian of the mean loss, linearised once.
    factorization : Factorization
        The inverse of ``H + (prior_precision / scale) I``. The precision of the posterior is ``scale`` times that
        matrix.
    scale : float
        The factor that turns the mean loss into the negative log-likelihood.
    prior_precision : float, or (L,), (L, 2) or (P,) array
        The prior precision that was given, or the one that `fit_prior` has found.
    prior_mean : float, or (L,), (L, 2) or (P,) array
        The prior mean that was given.
    noise_variance : float or None
        The noise variance that was given, or the one that `fit_prior` has found. None for losses other than
        "mean_squared_error".
    precisions : float or (P,) array
        The prior precision of every parameter.

    Raises
    ------
    numpy.linalg.LinAlgError
        The precision of the posterior is not positive definite; the message gives its inertia and says what to do.
        If rounding leaves that undecided, and no pivot is negative, there is a `scipy.linalg.LinAlgWarning` instead.
    TypeError, ValueError
        An argument is not what is expected.

    Notes
    -----
    Costs one linearisation and one factorization. For a training set of more samples than a minibatch has, the latter
    is that of the dense matrix: P^3/3 flops, the cost of forming H, and memory for P^2 numbers.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(1, 1, "identity")], "mean_squared_error")
    >>> x = np.array([[-1.0], [0.0], [1.0]])
    >>> laplace = nh.Laplace(net, np.array([2.0, 0.0]), x, 2 * x, prior_precision=1.0)
    >>> laplace.variances()
    array([0.33333333, 0.25      ])
    """

    def __init__(
        self,
        net: Network,
        params: ArrayLike,
        X: Data,
        y: ArrayLike | None = None,
        prior_precision: Ridge = 1.0,
        curvature: Curvature = "hessian",
        noise_variance: float | None = None,
        factor_dtype: FloatType | None = None,
        batch_size: int | None = None,
        keep_bytes: int | None = None,
        progress: bool | None = None,
        sample_weight: ArrayLike | None = None,
        prior_mean: Ridge = 0.0,
    ) -> None:
        if not isinstance(net, Network):
            raise TypeError(f"net: expected a Network, got {type(net).__name__}")
        if sample_weight is not None:
            sample_weight = as_weights("sample_weight", sample_weight, None)
        self.network: Network = net
        self._factor_dtype = factor_dtype
        self.hessian: Hessian = net.hessian(
            params, X, y, curvature, batch_size=batch_size, keep_bytes=keep_bytes, progress=progress,
            sample_weight=sample_weight,
        )  # fmt: skip
        # Observations, and what the sum of their losses is divided by.
        self._count = self.hessian.total_weight * net.model.num_terms
        self._normaliser = net.model.normaliser(self.hessian.total_weight)
        if net.loss_name == "mean_squared_error":
            noise_variance = 1.0 if noise_variance is None else _as_positive("noise_variance", noise_variance)
        elif noise_variance is not None:
            raise ValueError(
                f"noise_variance: expected None with the loss {net.loss_name}, which has no noise, "
                f"got {noise_variance!r}"
            )
        if net.loss_name == "binary_cross_entropy" and not _are_binary(net.model, X, y):
            raise ValueError("y: expected 0 and 1, for the evidence to be a probability, got other numbers")
        self.noise_variance: float | None = noise_variance
        chain = self.hessian.system.chain, self.hessian.system.first
        self.prior_precision: float | FloatArray
        self.precisions: float | FloatArray
        self.prior_mean: float | FloatArray
        self.prior_precision, self.precisions = as_prior("prior_precision", prior_precision, *chain)
        self.prior_mean, self._mean = as_prior("prior_mean", prior_mean, *chain)
        if not np.all(self.precisions > 0.0):
            raise ValueError(f"prior_precision: expected a positive number, got {np.min(self.precisions)}")
        self._eigenvalues = None
        self._set_factorization(self._factorize(self.precisions / self.scale, progress))

    def __repr__(self) -> str:
        noise = "" if self.noise_variance is None else f", noise_variance={self.noise_variance:g}"
        return f"Laplace({self.hessian!r}, prior_precision={self._precision_text()}{noise})"

    def _repr_html_(self) -> str:
        H, F = self.hessian, self.factorization
        facts = {
            "network": self.network, "parameters": H.shape[0], "samples": H.num_samples, "curvature": H.curvature,
            "prior precision": self._precision_text(), "noise variance": self.noise_variance, "scale": self.scale,
            "factored by": F.method, "memory of the factors": representation.memory(F.nbytes),
        }  # fmt: skip
        return representation.table("Laplace", facts)

    def _precision_text(self) -> str:
        return f"{self.prior_precision:g}" if np.ndim(self.prior_precision) == 0 else "by layer"

    @property
    def scale(self) -> float:
        return self.scale_with(self.noise_variance)

    @property
    def count(self) -> float:
        """The number of observations, over which the noise variance is a mean."""
        return self._count

    def scale_with(self, noise_variance: float | None) -> float:
        """Compute what `scale` would be with another noise variance.

        Parameters
        ----------
        noise_variance : float or None
            The noise variance; None for losses that have none.

        Returns
        -------
        scale : float
            The factor that turns the mean loss into the negative log-likelihood.
        """
        return self._normaliser / (1.0 if noise_variance is None else 2.0 * noise_variance)

    def _factorize(self, damping: Any, progress: bool | None = None) -> Factorization:
        if np.ndim(damping) == 0:
            return self.hessian.factorize(damping, self._factor_dtype, progress=progress)
        return Factorization.compute(self.hessian, 0.0, self._factor_dtype, progress=progress, dampings=damping)

    def from_mean(self) -> FloatArray:
        """Compute the difference of the parameters and the mean of the prior.

        Returns
        -------
        difference : (P,) array
            The parameters minus the mean of the prior.
        """
        return self.hessian.system.params - self._mean

    def evidence_at(self, precisions: Array, noise_variance: float | None) -> tuple[float, FloatArray] | None:
        """Compute the log evidence and the posterior variances with another prior.

        Parameters
        ----------
        precisions : (P,) array
            The prior precision of every parameter.
        noise_variance : float or None
            The noise variance; None for losses that have none.

        Returns
        -------
        found : (float, (P,) array) or None
            The log evidence and the variances; None if the precision of the posterior is not positive definite.
        """
        scale = self.scale_with(noise_variance)
        try:
            factorization = self._factorize(precisions / scale)
        except np.linalg.LinAlgError:
            return None
        if not is_positive(factorization):
            return None
        return self._log_evidence(precisions, noise_variance, factorization), factorization.diagonal() / scale

    def _set_factorization(self, factorization: Factorization) -> None:
        negative, is_certain = best_count(factorization.solver)
        if negative or not is_certain:
            found = f"{negative} negative and {factorization.shape[0] - negative} positive eigenvalues"
            message = (
                "prior_precision: expected a posterior precision that is positive definite, got "
                f"{found if is_certain else 'eigenvalues too close to 0 to count the negative ones for certain'} with "
                f"prior_precision={self._precision_text()}: {self._why_indefinite(is_certain)}"
            )
            if negative:
                raise np.linalg.LinAlgError(message)
            warnings.warn(message, LinAlgWarning, stacklevel=3)
        self.factorization = factorization

    def _why_indefinite(self, is_certain: bool) -> str:
        """What may have made negative eigenvalues, and the way out."""
        if not is_certain:
            return "take a larger prior precision, or factors in float64"
        if self.hessian.curvature == "ggn":
            return (
                f"the loss {self.network.loss_name} is not convex in the outputs, so that the Gauss-Newton matrix has "
                "negative eigenvalues. Take a larger prior precision, or a loss that is convex"
            )
        return (
            "params are not at a mode. Train further, take curvature='ggn' if the loss is convex in the outputs, or a "
            "larger prior precision"
        )

    def log_evidence(self, progress: bool | None = None) -> float:
        """Compute the logarithm of the evidence ``p(y | X)`` in the Laplace approximation.

        It is ``log p(y | X, params) + log p(params) + P/2 log(2 pi) - 1/2 log det(posterior precision)`` with all
        constants, so that different nets can be compared. At the mode of a linear net with squared errors it is exact.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        log_evidence : float
            The log evidence, under the assumption that ``params`` is a mode; `decrement` says how far it is from one.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            Some digits of the log-determinant are uncertain (`Factorization.slogdet`).
        """
        return self._log_evidence(self.precisions, self.noise_variance, self.factorization, progress)

    def _log_evidence(
        self,
        precisions: float | Array,
        noise_variance: float | None,
        factorization: Factorization,
        progress: bool | None = None,
    ) -> float:
        size, scale = self.hessian.shape[0], self.scale_with(noise_variance)
        log_likelihood = -scale * cast(float, self.hessian.loss)
        if noise_variance is not None:
            log_likelihood -= 0.5 * self._count * np.log(2.0 * np.pi * noise_variance)
        precisions = np.broadcast_to(precisions, size)
        log_prior = 0.5 * float(np.log(precisions).sum() - precisions @ self.from_mean() ** 2)
        return float(log_likelihood + log_prior - 0.5 * (size * np.log(scale) + factorization.slogdet(progress)[1]))

    def decrement(self, progress: bool | None = None) -> float:
        """Compute by how many nats a Newton step would increase the log posterior, by its quadratic model.

        This is half the squared Newton decrement, ``1/2 g^T (posterior precision)^-1 g``, where g is the gradient. It
        costs one solve.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        decrement : float
            The increase; 0 at a mode.
        """
        gradient = (
            self.scale * cast(Array, self.hessian.gradient).astype(np.float64) + self.precisions * self.from_mean()
        )
        return float(0.5 * (gradient @ self.factorization.solve(gradient, progress=progress)) / self.scale)

    def fit_prior(
        self, noise: bool = False, per_layer: bool | Literal["pairs"] = False, progress: bool | None = None
    ) -> "Laplace":
        """Set the prior precision to a maximum of the evidence, while parameters and curvature stay as they are.

        D. MacKay's condition, ``prior_precision ||params||^2 = gamma``, is solved by bisection and interpolation of the
        logarithm of the precision, starting from the present value. Here
        ``gamma = P - prior_precision trace(posterior covariance)`` is the number of well-determined parameters, and the
        trace comes from the exact diagonal of the inverse.

        Parameters
        ----------
        noise : bool
            Whether to set the noise variance of "mean_squared_error" as well, to ``|residuals|^2 / (count - gamma)``.
        per_layer : bool or "pairs"
            Whether each layer gets a precision of its own, which makes `prior_precision` an (L,) array. With "pairs"
            the weights and the biases of each layer get one each, which makes it (L, 2). Entries that belong to no
            parameter are 1.
        progress : bool, optional
            Show a progress bar of the values tried, for which tqdm must be installed; by default what `set_progress`
            says.

        Returns
        -------
        Laplace
            The object itself, so that one can write ``laplace.fit_prior().log_evidence()``.

        Raises
        ------
        numpy.linalg.LinAlgError
            There is no maximum: the evidence grows without end, or until the precision of the posterior is no longer
            positive definite, as happens if ``params`` are not at a mode. Then nothing is changed.
        TypeError, ValueError
            ``noise`` is not a bool, or is True for a loss other than "mean_squared_error"; or ``per_layer`` is not one
            of the three.

        Notes
        -----
        If the Hessian has negative eigenvalues, the evidence goes to infinity as the precision becomes singular, which
        is no maximum and is not returned. The mode moves with the prior: train again with the precision found, and fit
        again, until the precision stays the same. Costs a factorization and a diagonal for each of about ten values;
        or, if H is factored as one dense matrix, its eigenvalues once, which give gamma for every value. With
        ``per_layer``, L-BFGS maximises over the logarithms of the precisions, with exact slopes, which costs a
        factorization and a diagonal for each of a few dozen steps.
        """
        if as_flag("noise", noise) and self.noise_variance is None:
            raise ValueError(f"noise: expected False with the loss {self.network.loss_name}, which has no noise")
        if not isinstance(per_layer, (bool, np.bool_)) and per_layer != "pairs":
            raise ValueError(f"per_layer: expected True, False or 'pairs', got {per_layer!r}")
        with bar(progress, None, "fit_prior", "value") as shown:
            if per_layer:
                found = maximise(self, per_layer == "pairs", noise, shown.update)
            else:
                precision, noise_variance = self._common_optimum(noise, shown.update)
                found = precision, precision, noise_variance
            return self._set_prior(*found)

    def _common_optimum(self, noise: bool, tick: Tick) -> tuple[float, float | None]:
        """(prior precision, noise variance) with the largest evidence, the former being that of all parameters."""
        from scipy.optimize import brentq

        start = float(np.mean(np.log(self.precisions / self.scale)))
        seen = {}

        def slope(log_damping: float) -> float | None:
            if log_damping not in seen:
                seen[log_damping] = self._slope(float(np.exp(log_damping)), noise)
                tick(1)
            return seen[log_damping]

        low, high = self._bracket(slope, start)
        if low < high:
            low = brentq(slope, low, high, xtol=_TOLERANCE, rtol=1e-14)
        return self._optimum(float(np.exp(low)), noise)

    def _set_prior(
        self, prior_precision: float | FloatArray, precisions: float | FloatArray, noise_variance: float | None
    ) -> "Laplace":
        before = self.prior_precision, self.precisions, self.noise_variance
        self.prior_precision, self.precisions, self.noise_variance = prior_precision, precisions, noise_variance
        try:
            self._set_factorization(self._factorize(precisions / self.scale))
        except np.linalg.LinAlgError:
            self.prior_precision, self.precisions, self.noise_variance = before
            raise
        return self

    def _bracket(self, slope: Callable[[float], Any], start: float) -> tuple[float, float]:
        """Logarithms of dampings between which the slope falls through 0; the nearest ones at hand, downwards first."""
        step = np.log(_FACTOR)
        here = slope(start)
        if here == 0.0:
            return start, start
        at = start
        for _ in range(_STEPS if here < 0.0 else 0):
            below = slope(at - step)
            if below is None:
                break
            if below >= 0.0:
                return at - step, at
            at -= step
        at = start
        for _ in range(_STEPS if self.from_mean().any() else 0):
            if slope(at) > 0.0 >= slope(at + step):
                return at, at + step
            at += step
        raise np.linalg.LinAlgError(
            "prior_precision: the evidence has no maximum in it: it grows until the posterior precision is no longer "
            "positive definite, or for ever; expected params at a mode that are not all 0, or curvature='ggn' "
            "and a loss that is convex in the outputs"
        )

    def _gamma(self, damping: float) -> float | None:
        """The number of well-determined parameters; None where the precision is not positive definite."""
        values = self._spectrum()
        if values is not None:
            shifted = values + damping
            return float((values / shifted).sum()) if shifted[0] > 0.0 else None
        try:
            factorization = self._factorize(damping)
        except np.linalg.LinAlgError:
            return None
        if best_count(factorization.solver)[0]:
            return None
        variances = covariance.diagonal(factorization.solver, factorization.dtype, _TRACE)
        return self.hessian.shape[0] - damping * float(variances.sum())

    def _spectrum(self) -> Array | None:
        """All eigenvalues of H, in ascending order, where it is factored as one dense matrix; else None."""
        if self._eigenvalues is None and self.factorization.method == "dense":
            with contextlib.suppress(MemoryError):
                self._eigenvalues = spectrum.eigenvalues(self.hessian.system)
        return self._eigenvalues

    def _slope(self, damping: float, noise: bool) -> float | None:
        """Twice the derivative of the log evidence in that of the damping; None where there is no evidence."""
        gamma = self._gamma(damping)
        if gamma is None:
            return None
        scale = self.scale
        if noise:
            if gamma >= self._count:
                return gamma
            scale = self.scale_with(self._best_noise(gamma))
        return gamma - damping * scale * float(self.from_mean() @ self.from_mean())

    def _best_noise(self, gamma: Any) -> float:
        return self._normaliser * self.hessian.loss / (self._count - gamma)

    def _optimum(self, damping: float, noise: bool) -> tuple[float, float | None]:
        """(prior precision, noise variance) at a damping where the slope vanishes."""
        noise_variance = self._best_noise(self._gamma(damping)) if noise else self.noise_variance
        return damping * self.scale_with(noise_variance), noise_variance

    def sample(self, n: int | None = None, *, rng: Rng = None, progress: bool | None = None) -> FloatArray:
        """Draw parameters from the posterior.

        Parameters
        ----------
        n : int, optional
            How many samples to draw; by default one, without an axis of its own.
        rng : int, numpy.random.Generator or None
            A seed, or the generator to draw from, given by name only. By default samples are different each time.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        samples : (n, P) or (P,) array
            The samples, one in each row.

        See Also
        --------
        Factorization.sample : The cost and the warning.
        """
        samples = self.factorization.sample(n, rng=rng, progress=progress)
        samples *= self.scale**-0.5
        samples += self.hessian.system.params.astype(samples.dtype, copy=False)
        return samples

    def variances(self, progress: bool | None = None) -> FloatArray:
        """Compute the exact posterior variance of every parameter, by `Factorization.diagonal`.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        variances : (P,) array
            The variances.
        """
        return self.factorization.diagonal(progress) / self.scale

    def predict(self, X: ArrayLike, progress: bool | None = None) -> tuple[FloatArray, FloatArray]:
        """Compute mean and covariance of the net's outputs, which are linearised in the parameters.

        Parameters
        ----------
        X : (n, in_features) array
            New samples, one in each row.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        mean : (n, n_L) array
            The outputs of the net with the parameters ``params``; for classification these are logits.
        covariance : (n, n_L, n_L) array
            For the outputs of each sample, ``J (posterior covariance) J^T``, where J is their Jacobian: how uncertain
            the parameters leave them. Targets of "mean_squared_error" vary about the outputs by ``noise_variance`` in
            addition.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            Solutions are inaccurate (`Factorization.solve`).

        Notes
        -----
        Costs one solve for every output of every sample, several at a time, without refinement if at least ten digits
        remain right. For many samples and one dense matrix, it costs the square root of the inverse, which is P^3
        flops, and a pass of P tangents.
        """
        net, params = self.network, self.hessian.system.params
        X = net.model.check_X(X, np.float64)
        mean = net.model.forward(params, X)
        members = np.arange(len(X))[:, None]
        with bar(progress, len(X), "predict", "sample") as shown:
            cov = output_covariance.of_samples(
                self.factorization, net.model, params, lambda indices: X[indices], members, tick=shown.update
            )
        cov /= self.scale
        dtype = self.hessian.dtype
        return mean.astype(dtype, copy=False), cov.astype(dtype, copy=False)


def _are_binary(model: Any, X: Data, y: ArrayLike | None) -> bool:
    """Whether all targets are 0 or 1."""
    if y is not None:
        return bool(np.isin(y, (0, 1)).all())
    return all(np.isin(targets.values, (0, 1)).all() for _, targets in Samples(model, X, None, 1 << 16))


def _as_positive(name: str, value: Any) -> float:
    number = as_real(name, value)
    if number <= 0.0:
        raise ValueError(f"{name}: expected a positive number, got {number}")
    return number
