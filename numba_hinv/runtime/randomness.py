"""Random generators among the arguments, called ``rng`` as in SPEC 7 of Scientific Python; the name was ``seed``."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

Rng: TypeAlias = int | np.integer | np.random.Generator | None

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def as_generator(name: str, value: Rng) -> np.random.Generator:
    """``value`` as a `numpy.random.Generator`: itself, a new one from a seed, or for None one that nobody can foresee.

    Raises
    ------
    TypeError, ValueError
        It is none of these.
    """
    try:
        return np.random.default_rng(value)
    except (TypeError, ValueError) as error:
        expected = f"{name}: expected None, a seed or a numpy.random.Generator, got {value!r}"
        raise type(error)(f"{expected} ({error})") from None


def formerly_seed(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a function with the argument ``rng`` take it by its former name as well, with a ``DeprecationWarning``."""
    position = list(inspect.signature(function).parameters).index("rng")

    @functools.wraps(function)
    def renamed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if "seed" in kwargs:
            if "rng" in kwargs or len(args) > position:
                raise TypeError(f"seed: expected rng alone, which has taken its place in {function.__name__}, got both")
            warnings.warn(
                f"seed: expected rng, which has taken its place in {function.__name__} and will be the only name in a "
                "later version; got seed",
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs["rng"] = kwargs.pop("seed")
        return function(*args, **kwargs)

    return renamed


def formerly_rng_first(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a method ``sample(n, *, rng)`` be called in its former order ``sample(rng, n)``, with a warning likewise.

    Two arguments without names, or a generator in place of a number, are that order; one integer is ``n``.
    """

    @functools.wraps(method)
    def reordered(*args: Any, **kwargs: Any) -> _Result:
        given = args[1:]
        if len(given) == 2 or (len(given) == 1 and isinstance(given[0], np.random.Generator)):
            warnings.warn(
                "rng: expected it by name, as in sample(n, rng=rng), got it as the first argument, which is n now",
                DeprecationWarning,
                stacklevel=2,
            )
            kwargs = {**dict(zip(("rng", "n"), given)), **kwargs}
            args = args[:1]
        return method(*args, **kwargs)

    return reordered
