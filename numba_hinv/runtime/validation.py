"""Checks of arguments. Every message names the argument, what was given and what was expected.

Nothing here modifies what it is given: arrays are converted to contiguous ones of the working dtype where that is safe.
"""

import math
import operator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..kernels.dense.norm import copy_with_total, total
from . import frames, tensors
from .annotations import Array

# None is any length.
Shape: TypeAlias = tuple[int | None, ...]
DTYPES = (np.dtype(np.float64), np.dtype(np.float32))


def as_size(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int of at least ``least``."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return value


def as_layer(name: str, value: Any, num_layers: int) -> int:
    """The index, from 0, of one of so many layers; negative ``value`` from the end."""
    try:
        index = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if not -num_layers <= index < num_layers:
        raise IndexError(f"{name}: expected a layer from 0 to {num_layers - 1}, got {index}")
    return index % num_layers


def as_flag(name: str, value: Any) -> bool:
    """``value`` as a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def as_real(name: str, value: Any) -> float:
    """``value`` as a finite float."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name}: expected a real number ({error})") from None
    if array.ndim != 0 or array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected a real number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def as_float_dtype(name: str, dtype: Any) -> np.dtype[Any]:
    """``dtype`` as one of float64 and float32."""
    try:
        dtype = np.dtype(dtype)
    except Exception:
        # NumPy parses strings as lists of types, and lets through whatever its parser and Python's raise.
        raise TypeError(f"{name}: expected float64 or float32, got {dtype!r}") from None
    if dtype not in DTYPES:
        raise TypeError(f"{name}: expected float64 or float32, got {dtype}")
    return dtype


def as_numbers(name: str, value: Any) -> Array:
    """``value`` as an array of real numbers of any shape."""
    array = value if type(value) is np.ndarray else _as_plain(name, value)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise TypeError(f"{name}: expected an array of real numbers (float64 or float32), got dtype {array.dtype}")
    return array


def _as_plain(name: str, value: Any) -> Array:
    """A tensor, a frame, a sequence or the like as an array of whatever dtype."""
    value = frames.plain(name, tensors.plain(value))
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers ({error})") from None
    if np.ma.is_masked(value):
        raise ValueError(f"{name}: expected an array of numbers, got one with masked entries")
    return array


def common_dtype(array: Array) -> np.dtype[Any]:
    """The working dtype of an array: float32 stays, everything else becomes float64."""
    return DTYPES[1] if array.dtype == DTYPES[1] else DTYPES[0]


def as_array(name: str, value: Any, shape: Shape, dtype: DTypeLike | None = None, meaning: str = "") -> Array:
    """``value`` as a finite contiguous array of the given shape; None in ``shape`` is any length.

    Converted to ``dtype`` (by default: float32 stays, all else becomes float64); copied only where that is needed.
    """
    array = _for_kernels(name, value, shape, dtype, meaning)
    if not math.isfinite(total(array.ravel())):
        check_finite(name, array)
    return array


def as_copy(name: str, value: Any, shape: Shape, dtype: DTypeLike, meaning: str = "") -> tuple[Array, np.dtype[Any]]:
    """(a copy of what `as_array` gives, in ``dtype``; the dtype that it has by default), made in one pass."""
    array = _for_kernels(name, value, shape, None, meaning)
    copied = np.empty(array.shape, dtype)
    if not math.isfinite(copy_with_total(array.ravel(), copied.ravel())):
        check_finite(name, array)
    return copied, array.dtype


def _for_kernels(name: str, value: Any, shape: Shape, dtype: DTypeLike | None, meaning: str) -> Array:
    """`as_array`, before it is known to be finite."""
    array = as_numbers(name, value)
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name}: expected shape ({wanted}){meaning}, got {array.shape}")
    dtype = np.dtype(dtype or common_dtype(array))
    if array.dtype == dtype:
        array = np.ascontiguousarray(array)
    else:
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype)
    # Another type to Numba, for which every kernel would be compiled again.
    return array if array.flags.writeable and array.flags.aligned else array.copy()


def check_finite(name: str, array: Array) -> None:
    """``ValueError`` that gives the place of the first NaN or infinity."""
    # The sum of finite numbers can overflow, so that only a finite sum settles it without a second pass.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):
            return
    bad = ~np.isfinite(array)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        where = place[0] if len(place) == 1 else place
        raise ValueError(f"{name}: expected finite numbers, got {array[place]} at index {where}")


def as_labels(
    name: str, value: Any, num_samples: int, num_classes: int, ignored: int | None = None
) -> NDArray[np.int64]:
    """Integer labels (B,) in 0..num_classes-1 as an int64 array; one number beside these may be ``ignored``."""
    try:
        array = value if type(value) is np.ndarray else np.asarray(frames.plain(name, tensors.plain(value)))
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of integer labels ({error})") from None
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer labels, got dtype {array.dtype}")
    if array.shape != (num_samples,):
        raise ValueError(f"{name}: expected shape ({num_samples},), one label a sample, got {array.shape}")
    is_wrong = (array < 0) | (array >= num_classes)
    if ignored is not None:
        is_wrong &= array != ignored
    if np.count_nonzero(is_wrong):
        i = int(is_wrong.argmax())
        raise ValueError(f"{name}: expected labels from 0 to {num_classes - 1}, got {array[i]} at index {i}")
    return array.astype(np.int64)


def as_columns(name: str, value: Any, num_rows: int, default_dtype: np.dtype[Any]) -> tuple[Array, np.dtype[Any]]:
    """``value`` (P,) or (P, k) as (P, k), in C or Fortran order and of float64 or float32, and the answer's dtype.

    That its entries are finite is for the caller to see to, where it reads them anyway.
    """
    array = as_numbers(name, value)
    if array.ndim not in (1, 2) or array.shape[0] != num_rows:
        raise ValueError(f"{name}: expected shape ({num_rows},) or ({num_rows}, k), got {array.shape}")
    dtype = np.result_type(array.dtype, default_dtype) if array.dtype.kind == "f" else default_dtype
    dtype = np.dtype(np.float32) if dtype == np.float16 else dtype
    array = array.reshape(num_rows, -1 if array.size else array.shape[-1])
    flags = array.flags
    if not (array.dtype in DTYPES and flags.forc and flags.behaved):
        with np.errstate(over="ignore"):
            array = np.require(array, common_dtype(array), ["F" if flags.f_contiguous else "C", "A", "W"])
    return array, np.dtype(dtype)
