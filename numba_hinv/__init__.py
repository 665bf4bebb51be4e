"""Exact solves with the Hessian of a deep net, in time and memory linear in its depth."""

import importlib.util
from typing import TYPE_CHECKING, Any, overload

from numpy.typing import ArrayLike

from .runtime import compilation_cache, compile_notice
from .runtime.annotations import AnyTensor, Data, FloatArray

compilation_cache.prepare()
compile_notice.listen()

# ruff: noqa: E402 - nothing may be compiled or loaded before that.
from . import cuda as _cuda  # noqa: F401, I001 - makes device="cuda" known
from . import distributed, embedded, losses
from ._version import __version__
from .applications.eigenvalues import eigenvalues, eigenvalues_in
from .applications.hypergradient import Hypergradient, hypergradient
from .applications.influence import Influence, influence
from .applications.laplace import Laplace
from .applications.leave_one_out import LeaveOneOut, leave_one_out
from .applications.minimize import minimize
from .applications.scipy_method import trust_region
from .applications.spectral_density import SpectralDensity, spectral_density
from .applications.trust_region import TrustRegionStep, trust_region_step
from .certainty.inertia import Inertia
from .certainty.solution import SolveInfo
from .factorization import Factorization
from .frameworks.jax import from_equinox, from_flax
from .frameworks.sklearn import from_sklearn
from .frameworks.torch import from_torch
from .hessian import Hessian
from .layers.activations import activation_names, register_activation
from .layers.batch_norm import BatchNorm
from .layers.blocks import LayerBlocks
from .layers.convolution import Conv1d, Conv2d
from .layers.custom import Custom
from .layers.dense import Dense
from .layers.elementwise import Activation
from .layers.external import External
from .layers.gated import Gated
from .layers.loss import Loss
from .layers.losses import loss_names, register_loss
from .layers.norms import LayerNorm, RMSNorm
from .layers.pooling import AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d
from .network import Network
from .runtime.compile_notice import set_compile_notice
from .runtime.progress import set_progress
from .storage import load


@overload
def solve(
    network: Network,
    params: ArrayLike,
    X: Data,
    y: ArrayLike | None,
    b: AnyTensor,
    damping: float,
    progress: bool | None = None,
) -> AnyTensor: ...


@overload
def solve(
    network: Network,
    params: ArrayLike,
    X: Data,
    y: ArrayLike | None,
    b: ArrayLike,
    damping: float,
    progress: bool | None = None,
) -> FloatArray: ...


def solve(
    network: Network,
    params: ArrayLike,
    X: Data,
    y: ArrayLike | None,
    b: Any,
    damping: float,
    progress: bool | None = None,
) -> Any:
    """Solve ``(H + damping I) x = b``, where H is the Hessian of a net's loss.

    In one call, the loss is linearised, its Hessian factorized, and the solution computed and refined.

    Parameters
    ----------
    network : Network
        The net.
    params : (P,) array
        The parameters at which the Hessian is taken.
    X : (B, in_features) array
        The samples, one in each row.
    y : array
        The targets, as `Network.gradient` takes them.
    b : (P,) or (P, k) array
        One right-hand side, or several as columns.
    damping : float
        The number that is added to the diagonal of H.
    progress : bool, optional
        Show progress bars, for which tqdm must be installed; by default what `set_progress` says.

    Returns
    -------
    x : array of the shape of b
        The solution.

    See Also
    --------
    Network.hessian : The Hessian as an operator, for more than one solve.
    Hessian.factorize : The factorization, with its errors.
    Factorization.solve : The solve, with its errors and its warning.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> nh.solve(net, np.zeros(3), X, y, np.ones(3), damping=0.5).round(3)
    array([ 0.433,  0.433, -0.062])
    """
    H = network.hessian(params, X, y, progress=progress)
    return H.factorize(damping, progress=progress).solve(b, progress=progress)


# Estimators of scikit-learn, which is imported when one of them is asked for.
_ESTIMATORS = "NetClassifier", "NetRegressor"


if TYPE_CHECKING:
    from .frameworks.sklearn_estimators import NetClassifier as NetClassifier
    from .frameworks.sklearn_estimators import NetRegressor as NetRegressor
else:

    def __getattr__(name: str) -> Any:
        if name not in _ESTIMATORS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            import sklearn  # noqa: F401 - what follows needs it
        except ImportError:
            raise ImportError(
                f"{name}: expected scikit-learn to be installed (pip install 'numba_hinv[sklearn]'), got none"
            ) from None
        from .frameworks import sklearn_estimators

        return getattr(sklearn_estimators, name)


def __dir__() -> list[str]:
    is_there = importlib.util.find_spec("sklearn") is not None
    return sorted([*__all__, *(_ESTIMATORS if is_there else ())])


__all__ = [
    "Activation",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "Custom",
    "Dense",
    "External",
    "Factorization",
    "Gated",
    "Hessian",
    "Hypergradient",
    "Inertia",
    "Influence",
    "Laplace",
    "LayerBlocks",
    "LayerNorm",
    "LeaveOneOut",
    "Loss",
    "MaxPool1d",
    "MaxPool2d",
    "Network",
    "RMSNorm",
    "SolveInfo",
    "SpectralDensity",
    "TrustRegionStep",
    "__version__",
    "activation_names",
    "distributed",
    "eigenvalues",
    "eigenvalues_in",
    "embedded",
    "from_equinox",
    "from_flax",
    "from_sklearn",
    "from_torch",
    "hypergradient",
    "influence",
    "leave_one_out",
    "load",
    "loss_names",
    "losses",
    "minimize",
    "register_activation",
    "register_loss",
    "set_compile_notice",
    "set_progress",
    "solve",
    "spectral_density",
    "trust_region",
    "trust_region_step",
]
