"""Where the sweeps run, by name: the CPU (`system.cpu`), or its twin on a GPU (`numba_hinv.cuda.device`).

A `System` holds one of the two and reaches memory and compiled sweeps through it alone, so that scaling, pivoting,
refinement, certificates and determinants are the same code for both. Another kind of device is a class with the parts
of `system.cpu.Cpu` that its own package gives to `register`.
"""

from typing import Any

# What opens a processor on the stream of an array, by name.
_OPENERS: dict[str, Any] = {}


def register(name, opener):
    """Let ``device=name`` mean what ``opener(like)`` returns, a twin of `Cpu` on the stream of the array ``like``."""
    _OPENERS[name] = opener


def get(name, like=None):
    """The processor of this name; on the stream of the array ``like``, if that says one."""
    if not isinstance(name, str) or name not in _OPENERS:
        raise ValueError(f"device: expected {' or '.join(map(repr, sorted(_OPENERS)))}, got {name!r}")
    return _OPENERS[name](like)


def require_cpu(on, what):
    """``ValueError`` where a Hessian is on a GPU and this is not done there."""
    if on.name != "cpu":
        raise ValueError(
            f"device: expected 'cpu' for {what}, got a Hessian on {on.name!r}; "
            "a factorization that is saved on one is loaded on the other"
        )


def is_on_device(array):
    """Whether an array is one of CuPy, torch or Numba on a GPU (or in Numba's simulator of one)."""
    return hasattr(array, "__cuda_array_interface__") or getattr(array, "__cuda_ndarray__", False) is True
