"""A registry: names, the functions behind them, and the addresses of their compiled forms.

Activations and losses have one each. The sweeps call a function by its address, so that one compiled sweep serves
every combination of registered functions and its compiled form can be cached on disk.
"""

import numba
from numba.extending import register_jitable


class Registry:
    """Functions by name; ``noun`` is what error messages call them."""

    def __init__(self, noun):
        self.noun = noun
        self._entries = {}
        self._compiled = {}

    def decorator(self, name, **attributes):
        """A decorator that registers a function, with its attributes, under ``name``."""
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {type(name).__name__}")

        def register(function):
            if not callable(function):
                raise TypeError(f"function: expected a function for the {self.noun} {name!r}, got {function!r}")
            # Not a dispatcher: closures over plain functions can be cached on disk, over dispatchers they cannot.
            scalar_function = register_jitable(getattr(function, "py_func", function))
            self._entries[name] = {"function": scalar_function, **attributes}
            self._compiled = {key: form for key, form in self._compiled.items() if key[0] != name}
            return function

        return register

    def names(self):
        return sorted(self._entries)

    def get(self, name):
        """The entry of ``name``: a dictionary with ``function`` and the attributes it was registered with."""
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise ValueError(f"{self.noun}: expected one of {', '.join(self.names())}; got {name!r}") from None

    def address(self, name, dtype, build):
        """Address of ``build(function, numba scalar type, cache)``, compiled at its first use."""
        key = name, str(dtype)
        if key not in self._compiled:
            function = self.get(name)["function"]
            self._compiled[key] = build(function, numba.from_dtype(dtype), is_own(function))
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
    return function.__module__.partition(".")[0] == __name__.partition(".")[0]
