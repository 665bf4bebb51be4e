"""Trials of a user's functions before anything relies on them, with errors that say what is wrong with which argument.

Compiled sweeps check no bounds, and an exception cannot leave them. So every function of a user is first called with
random input and bounds checks, and the derivatives that it claims are compared with differences.
"""

import functools
import inspect
import types as python_types

import numba
import numpy as np
from numba import types

# Steps of differences; where functions bend too much for the first, the second may still tell.
_STEPS = 2.0**-8, 2.0**-13
# What rounding may do to values, relative to the largest of them: it is far less in float64, but a function may compute
# in float32 inside.
_ROUNDING = 8 * float(np.finfo(np.float32).eps)


def plain_function(function):
    """The Python function behind a compiled one; what is not compiled is returned as it is."""
    return getattr(function, "py_func", function)


def check_function(name, function, arguments):
    """``TypeError`` unless the argument ``name`` is a function that can be called with so many arguments."""
    plain = plain_function(function)
    if not isinstance(plain, python_types.FunctionType):
        raise TypeError(f"{name}: expected a function {name}({arguments}), plain or @njit, got {function!r}")
    signature = inspect.signature(plain)
    try:
        signature.bind(*arguments.split(", "))
    except TypeError:
        given = f"{plain.__name__}({', '.join(signature.parameters)})"
        raise TypeError(f"{name}: expected a function {name}({arguments}), got {given}") from None


def compiled(name, function, *examples):
    """``function``, compiled with bounds checks, and the Numba type of what it returns for arguments like these.

    It is called with them, so that arguments may have defaults; what that raises is for later calls to show.
    """
    checked = _checked(plain_function(function))
    try:
        checked(*examples)
    except Exception as error:
        _check_compiled(name, checked, error)
    return checked, checked.nopython_signatures[-1].return_type


def _check_compiled(name, checked, error):
    """``TypeError`` if a call has raised this error for want of a compiled form."""
    if isinstance(error, numba.core.errors.NumbaError) or not checked.overloads:
        raise TypeError(
            f"{name}: expected a function that Numba compiles in nopython mode, got {checked.__name__}, of which "
            f"Numba says: {gist(error)}"
        ) from error


@functools.lru_cache(maxsize=64)
def _checked(plain):
    return numba.njit(boundscheck=True, error_model="numpy")(plain)


def is_real(numba_type):
    """Whether values of this type become a float without loss: also integers and truth values."""
    return isinstance(numba_type, (types.Float, types.Integer, types.Boolean))


def attempt(name, function, inputs, outputs):
    """Call ``function`` on arrays with bounds checks; what goes wrong is an error about the argument ``name``.

    ``inputs`` maps the names of the arrays that it may only read, which come first, to the arrays.
    """
    checked, arrays = _checked(plain_function(function)), (*inputs.values(), *outputs)
    before = {argument: array.copy() for argument, array in inputs.items()}
    try:
        checked(*arrays)
    except Exception as error:
        _check_compiled(name, checked, error)
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(
            f"{name}: expected {checked.__name__} to work on arrays of shapes {shapes}; got {type(error).__name__}: "
            f"{error}"
        ) from error
    check_unchanged(name, checked.__name__, inputs, before)


def check_unchanged(name, function_name, inputs, before):
    """``ValueError`` unless the arrays of ``inputs``, by name, are equal to those of ``before``."""
    for argument, array in inputs.items():
        if not np.array_equal(array, before[argument]):
            raise ValueError(f"{name}: expected {function_name} to leave {argument} as it is; got it changed")


class Fenced:
    """``array``, of this shape, between fences of so many NaN.

    Bounds are checked in a function that is tried, but not in compiled ones that it calls: these may write out of
    bounds, without harm here, and ``intact()`` is False then. What they read there is NaN.
    """

    def __init__(self, shape, fence):
        size = int(np.prod(shape))
        memory = np.full(size + 2 * fence, np.nan)
        self._fences = memory[:fence], memory[fence + size :]
        self.array = memory[fence : fence + size].reshape(shape)

    def intact(self):
        return all(np.isnan(fence).all() for fence in self._fences)


def unwritten(first, second):
    """Where two calls, whose arrays held different numbers before, have left different ones: (k, ndim) indices."""
    return np.argwhere(~((first == second) | (np.isnan(first) & np.isnan(second))))


def check_symmetric(name, argument, matrix):
    """``ValueError`` unless a square matrix is symmetric, up to rounding; one that is not finite passes."""
    if not (matrix.size and np.isfinite(matrix).all()):
        return
    difference = np.abs(matrix - matrix.T)
    a, b = divmod(int(difference.argmax()), len(matrix))
    if difference[a, b] > 1e-12 * np.abs(matrix).max():
        raise ValueError(
            f"{name}: expected a symmetric {argument}, got an asymmetric one: {matrix[a, b]:.6g} in entry ({a}, {b}), "
            f"{matrix[b, a]:.6g} in entry ({b}, {a})"
        )


def gist(error):
    """The innermost complaint of a Numba error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for k in reversed(range(len(lines))):
        if lines[k].startswith("No implementation of function") and k + 1 < len(lines):
            return f"no implementation of {lines[k + 1].removeprefix('>>> ')}"
    return " ".join(lines[1:3]) if len(lines) > 1 else "".join(lines) or type(error).__name__


class Evidence:
    """What differences at many points say of a claimed derivative.

    A point is judged where differences of two steps agree, which beside a kink they do not. One that contradicts the
    claim may still be an accident, several are none.
    """

    def __init__(self):
        self.judged = self.wrong = 0
        self.first = None

    def add(self, judged, wrong, describe):
        """Count a point; ``describe()`` tells of its contradiction, if there is one."""
        self.judged += bool(judged)
        self.wrong += bool(wrong)
        if wrong and self.first is None:
            self.first = describe()

    @property
    def refutes(self):
        """Whether the claim is wrong."""
        return self.wrong > 1 or self.wrong == self.judged > 0


def compare(function, claimed):
    """Claimed derivatives of ``function(t)``, a vector, at t = 0, and differences of it.

    Returns
    -------
    judged, wrong : arrays of bool
        Which of ``claimed`` the differences can judge, and which of them they contradict.
    slopes : array
        The differences.
    """
    judged, wrong = np.zeros((2, claimed.size), bool)
    slopes = np.full(claimed.size, np.nan)
    for step in _STEPS:
        far, near, here, after, beyond = (function(t * step) for t in (-1.0, -0.5, 0.0, 0.5, 1.0))
        with np.errstate(all="ignore"):
            wide, narrow = (beyond - far) / (2 * step), (after - near) / step
            found = narrow + (narrow - wide) / 3
            error = np.abs(narrow - wide)
            noise = _ROUNDING * np.abs([far, beyond]).max() / step
            scale = np.maximum(np.abs(claimed), np.abs(found))
            # Slopes of the two sides: of a kink between, the difference that is near is off by half of theirs.
            turn = np.abs((after - here) - (here - near)) / (0.5 * step)
            # False as well where anything is infinite or NaN.
            clear = ~judged & (error <= 0.02 * scale + noise) & (scale < np.inf)
            wrong |= clear & (np.abs(claimed - found) > 1e-3 * scale + 10 * error + noise + turn)
        slopes[clear] = found[clear]
        judged |= clear
        if judged.all():
            break
    return judged, wrong, slopes
