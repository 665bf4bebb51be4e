"""Custom layers: a function of one sample and its derivatives; the sweeps call the compiled forms by address."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import carray, types
from numpy.typing import DTypeLike

from ..kernels.plumbing.disk_cache import callback
from ..runtime.annotations import Array
from ..runtime.validation import as_array, as_flag, as_real, as_size
from . import autodiff
from .trial import attempt, check_function, check_symmetric, gist, plain_function, unwritten


@dataclass(frozen=True, repr=False)
class Custom:
    """A layer of your own: ``function(z, x, out)`` for one sample, differentiated automatically. Immutable.

    Parameters
    ----------
    function : callable
        A plain or ``@njit`` function. It reads z (in_features,), the input of the layer, and x (num_params,), its
        parameters, and writes all entries of out (out_features,). It is compiled in nopython mode, for arrays of floats
        and for arrays of hyper-dual numbers (`numba_hinv.layers.autodiff`). Loops, branches, calls, slices, reshapes
        and ``empty_like`` are allowed, but arithmetic, comparisons and functions must be scalar (the functions are
        those of ``math`` and their namesakes in NumPy, ``**``, abs, and max and min of two numbers). Division by zero
        gives an infinity. The function cannot raise an exception; it returns NaN where there is no value. At a kink,
        the slope is that of one side (0 for abs) and the curvature is 0.
    in_features, out_features : int
        The numbers of inputs and outputs, at least 1.
    num_params : int
        The number of parameters, which may be 0.
    init : float, array of shape (num_params,), or callable
        The parameters that `Network.init` starts from. A callable is given a ``numpy.random.Generator`` and returns
        such an array.
    jacobian : callable, optional
        ``jacobian(z, x, Dz, Dx)`` sets Dz (out_features, in_features) and Dx (out_features, num_params), which are zero
        before, to the derivatives of out with respect to z and x. It is compiled for arrays of floats only.
    curvature : callable, optional
        ``curvature(z, x, g, Dxx, Dzx, Dzz)`` adds the second derivatives of ``g . out``, where g is (out_features,), to
        Dxx (num_params, num_params), Dzx (num_params, in_features) and Dzz (in_features, in_features): to all entries,
        also to those below the diagonal.
    frozen : bool
        Whether the net keeps the parameters as constants instead of training them (docs/frozen_layers.md).

    Raises
    ------
    TypeError
        An argument is of the wrong kind, or a function cannot be compiled, perhaps only for hyper-dual numbers.
    ValueError
        A size is wrong, or a trial with random input shows that a function reads or writes out of bounds, raises,
        leaves entries of out unwritten, changes its inputs or returns an asymmetric curvature.

    Notes
    -----
    For each sample, first derivatives cost (p + n_in) / 4 evaluations on numbers of ten scalars, and second derivatives
    (p + n_in)^2 / 8. The derivative blocks of the layer are dense and its pivot has all p = num_params rows, so that
    parameters that multiply the input as a matrix are better put into a `Dense` layer before or after this one. The
    first use of a function compiles it, which takes a few seconds; layers with the same functions share the compiled
    code, whatever their sizes.

    Pickling stores the functions as pickle does, which is by name for plain functions.

    Examples
    --------
    >>> import math
    >>> import numba_hinv as nh
    >>> def swish(z, x, out):
    ...     for i in range(z.size):
    ...         out[i] = z[i] / (1.0 + math.exp(-x[0] * z[i]))
    >>> nh.Custom(swish, in_features=8, out_features=8, num_params=1, init=1.0)
    Custom(swish, in_features=8, out_features=8, num_params=1)
    """

    function: Callable[..., Any]
    in_features: int
    out_features: int
    num_params: int = 0
    init: float | Sequence[float] | Array | Callable[[np.random.Generator], Any] = 0.0
    jacobian: Callable[..., Any] | None = None
    curvature: Callable[..., Any] | None = None
    frozen: bool = False

    _cache = False

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        check_function("function", self.function, "z, x, out")
        for name, least in (("in_features", 1), ("out_features", 1), ("num_params", 0)):
            set_field(self, name, as_size(name, getattr(self, name), least))
        set_field(self, "init", as_init(self.init, self.num_params))
        set_field(self, "frozen", as_flag("frozen", self.frozen))
        for name, arguments in (("jacobian", "z, x, Dz, Dx"), ("curvature", "z, x, g, Dxx, Dzx, Dzz")):
            if getattr(self, name) is not None:
                check_function(name, getattr(self, name), arguments)
        self._try()

    def __repr__(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, num_params={self.num_params}"
        return f"Custom({self.function.__name__}, {sizes}{', frozen=True' if self.frozen else ''})"

    def initial_params(self, rng: np.random.Generator) -> Array:
        """Give the parameters that `Network.init` starts from.

        Parameters
        ----------
        rng : numpy.random.Generator
            The generator that ``init`` is called with, if it is a callable.

        Returns
        -------
        params : (num_params,) array
            The parameters.
        """
        return initial_params(self.init, self.num_params, rng)

    def addresses(self, dtype: DTypeLike) -> tuple[int, int, int]:
        """Give the addresses of the compiled value, Jacobian and curvature, for the layer table.

        Parameters
        ----------
        dtype : float64 or float32
            The dtype of the sweep.

        Returns
        -------
        addresses : (int, int, int)
            The addresses. The last two are 0 for float32, since Hessians are taken in float64.
        """
        forms = _forms(self.function, self.jacobian, self.curvature, self._cache)
        scalar = numba.from_dtype(dtype)
        kinds = ("value", "jacobian", "curvature") if scalar == types.float64 else ("value", "jacobian")
        return tuple(forms.address(kind, scalar) for kind in kinds) + (0,) * (3 - len(kinds))

    @property
    def work_size(self) -> int:
        """How many scalars of workspace the compiled derivatives need.

        If the layer is frozen, that includes the derivatives with respect to the parameters.
        """
        n_in, n_out, p = self.in_features, self.out_features, self.num_params
        return autodiff.work_size(n_in, n_out, p) + self.frozen * p * (n_out + p + n_in)

    def _try(self) -> None:
        """Call every function once with bounds checks, then compile what the sweeps will call."""
        n_in, n_out, p = self.in_features, self.out_features, self.num_params
        rng = np.random.default_rng(0)
        z, g = rng.standard_normal(n_in), rng.standard_normal(n_out)
        x = self.initial_params(rng)
        # Entries that are written are the same whatever they held before.
        first, second = np.full(n_out, 0.75), np.full(n_out, -0.5)
        attempt("function", self.function, {"z": z, "x": x}, [first])
        attempt("function", self.function, {"z": z, "x": x}, [second])
        left = unwritten(first, second)
        if left.size:
            raise ValueError(
                f"function: expected {self.function.__name__}(z, x, out) to write all of out, whatever it held before; "
                f"got entry {left[0, 0]} of {n_out} unwritten or different in a second call"
            )
        if self.jacobian is not None:
            attempt("jacobian", self.jacobian, {"z": z, "x": x}, [np.zeros((n_out, n_in)), np.zeros((n_out, p))])
        if self.curvature is not None:
            Dxx, Dzx, Dzz = np.zeros((p, p)), np.zeros((p, n_in)), np.zeros((n_in, n_in))
            attempt("curvature", self.curvature, {"z": z, "x": x, "g": g}, [Dxx, Dzx, Dzz])
            for name, block in (("Dxx", Dxx), ("Dzz", Dzz)):
                check_symmetric("curvature", name, block)
        try:
            self.addresses(np.dtype(np.float64))
        except numba.core.errors.NumbaError as error:
            raise TypeError(
                "function: expected scalar arithmetic that can be differentiated (numba_hinv.layers.autodiff), or "
                f"jacobian and curvature as well; got {self.function.__name__}, of which Numba says: {gist(error)}"
            ) from error


def as_init(init, num_params):
    """The argument ``init`` of a layer: a callable, a float, or a tuple of as many floats as there are parameters."""
    if callable(init):
        return init
    if np.ndim(init) == 0:
        return as_real("init", init)
    return tuple(float(value) for value in as_array("init", init, (num_params,)))


def initial_params(init, num_params, rng):
    """The parameters that ``init`` stands for."""
    start = init(rng) if callable(init) else init
    if np.ndim(start) == 0:
        return np.full(num_params, as_real("init", start))
    return as_array("init", start, (num_params,), np.float64, " (num_params)")


@functools.cache
def _forms(function, jacobian, curvature, cache):
    return _Forms(function, jacobian, curvature, cache)


class _Forms:
    """The compiled forms of a triple of functions, each made at its first use and kept for as long as the process runs.

    cache : whether they come from Numba's disk cache (`registry.is_own`).
    """

    def __init__(self, function, jacobian, curvature, cache):
        self.cache = cache
        function, jacobian, curvature = (self._compilable(given) for given in (function, jacobian, curvature))
        self.functions = {
            "value": function,
            "jacobian": jacobian or autodiff.jacobian_of(function),
            "curvature": curvature or autodiff.curvature_of(function),
        }
        self.builders = {
            "value": _value,
            "jacobian": _jacobian if jacobian else _jacobian_in_workspace,
            "curvature": _curvature if curvature else _curvature_in_workspace,
        }
        self.compiled = {}

    def _compilable(self, function):
        """What compiled code can call: a closure over a dispatcher could not be cached on disk."""
        if function is None or self.cache:
            return function
        return numba.njit(error_model="numpy")(plain_function(function))

    def address(self, kind, scalar):
        key = kind, scalar
        if key not in self.compiled:
            # Two threads may both compile; only one result is ever used.
            self.compiled.setdefault(key, self.builders[kind](self.functions[kind], scalar, self.cache))
        return self.compiled[key].address


def _value(function, scalar, cache):
    """``(z, x, out, n_in, n_out, p)``."""
    array, size = types.CPointer(scalar), types.int64

    @callback(types.void(*[array] * 3, *[size] * 3), cache)
    def value(z, x, out, n_in, n_out, p):
        function(carray(z, (n_in,)), carray(x, (p,)), carray(out, (n_out,)))

    return value


def _jacobian(function, scalar, cache):
    """``(z, x, Dz, Dx, work, n_in, n_out, p)``; Dz and Dx hold zeros at entry."""
    array, size = types.CPointer(scalar), types.int64

    @callback(types.void(*[array] * 5, *[size] * 3), cache)
    def jacobian(z, x, Dz, Dx, work, n_in, n_out, p):
        function(carray(z, (n_in,)), carray(x, (p,)), carray(Dz, (n_out, n_in)), carray(Dx, (n_out, p)))

    return jacobian


def _jacobian_in_workspace(function, scalar, cache):
    array, size = types.CPointer(scalar), types.int64

    @callback(types.void(*[array] * 5, *[size] * 3), cache)
    def jacobian(z, x, Dz, Dx, work, n_in, n_out, p):
        function(
            carray(z, (n_in,)),
            carray(x, (p,)),
            carray(Dz, (n_out, n_in)),
            carray(Dx, (n_out, p)),
            carray(work, (autodiff.STRIDE * (p + n_in + n_out),)),
        )

    return jacobian


def _curvature(function, scalar, cache):
    """``(z, x, g, Dxx, Dzx, Dzz, work, n_in, n_out, p, row stride of Dzx)``; adds to Dxx, Dzx and Dzz."""
    array, size = types.CPointer(scalar), types.int64

    @callback(types.void(*[array] * 7, *[size] * 4), cache)
    def curvature(z, x, g, Dxx, Dzx, Dzz, work, n_in, n_out, p, stride):
        function(
            carray(z, (n_in,)),
            carray(x, (p,)),
            carray(g, (n_out,)),
            carray(Dxx, (p, p)),
            carray(Dzx, (p, stride))[:, :n_in],
            carray(Dzz, (n_in, n_in)),
        )

    return curvature


def _curvature_in_workspace(function, scalar, cache):
    array, size = types.CPointer(scalar), types.int64

    @callback(types.void(*[array] * 7, *[size] * 4), cache)
    def curvature(z, x, g, Dxx, Dzx, Dzz, work, n_in, n_out, p, stride):
        function(
            carray(z, (n_in,)),
            carray(x, (p,)),
            carray(g, (n_out,)),
            carray(Dxx, (p, p)),
            carray(Dzx, (p, stride))[:, :n_in],
            carray(Dzz, (n_in, n_in)),
            carray(work, (autodiff.STRIDE * (p + n_in + n_out),)),
        )

    return curvature
