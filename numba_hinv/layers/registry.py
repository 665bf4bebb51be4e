"""A registry: names, the functions behind them, and the addresses of their compiled forms.

Activations and losses have one each. The sweeps call a function by its address, so that one compiled sweep serves
every combination of registered functions and its compiled form can be cached on disk.
"""

import numba
import numpy as np
from numba.extending import register_jitable

from .aliases import resolve
from .trial import check_function, gist, plain_function


class Registry:
    """Functions by name; ``noun`` is what error messages call them, ``aliases`` the names that they have elsewhere."""

    def __init__(self, noun, aliases):
        self.noun = noun
        self.aliases = aliases
        self._entries = {}
        self._compiled = {}

    def decorator(self, name, arguments, check, **attributes):
        """A decorator that registers a function of these ``arguments``, with its attributes, under ``name``.

        ``check(function)`` raises where it must not be. This package's own functions are left to the tests: importing
        it compiles nothing.
        """
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {type(name).__name__}")

        def register(function):
            check_function("function", function, arguments)
            # Not a dispatcher: closures over plain functions can be cached on disk, over dispatchers they cannot.
            plain = plain_function(function)
            if not is_own(plain):
                check(plain)
            self._entries[name] = {"function": register_jitable(plain), **attributes}
            self._compiled = {key: form for key, form in self._compiled.items() if key[0] != name}
            return function

        return register

    def names(self):
        return sorted(self._entries)

    def resolve(self, given):
        """The name under which is registered what is meant: see `aliases.resolve`."""
        return resolve(self.noun, given, self._entries, self.aliases)

    def get(self, name):
        """The entry of ``name``: a dictionary with ``function`` and the attributes it was registered with."""
        found = self._entries.get(name) if isinstance(name, str) else None
        return self._entries[self.resolve(name)] if found is None else found

    def address(self, name, dtype, build):
        """Address of ``build(function, numba scalar type, cache)``, compiled at its first use."""
        key = name, np.dtype(dtype)
        if key not in self._compiled:
            function = self.get(name)["function"]
            try:
                self._compiled[key] = build(function, numba.from_dtype(dtype), is_own(function))
            except numba.core.errors.NumbaError as error:
                # It was tried with float64 when it was registered.
                raise TypeError(
                    f"{self.noun}: expected a function that Numba compiles for {dtype}, too; got {name!r}, of which "
                    f"Numba says: {gist(error)}. Without that it works for float64 alone"
                ) from error
        return self._compiled[key].address


def distinguish(functions, *constants):
    """``functions``, closures over these constants, under names that contain them.

    Objects that two processes have cached may have equal symbols, for Numba numbers functions of one name in the order
    in which a process compiles them. A third process that loads both calls the code of one in place of the other's.
    """
    for function in functions:
        function.__qualname__ += "_" + "_".join(map(str, constants))
    return functions


def is_own(function):
    """Whether a function is this package's: only then may its compiled form be cached on disk.

    Numba would not notice that a user's function has changed.
    """
    return (function.__module__ or "").partition(".")[0] == __name__.partition(".")[0]
