"""Data frames and series among the arguments: read as arrays of numbers, with the names of columns in errors.

Those of pandas and polars alike, by what they have in common; neither is imported here. Dtypes that can hold missing
values are read as long as none is missing.
"""

import numbers
from typing import Any

import numpy as np

from .annotations import Array


def is_frame(value: Any) -> bool:
    """Whether a value is a data frame: a table of named columns."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def is_series(value: Any) -> bool:
    """Whether a value is one column of a table."""
    return hasattr(value, "to_numpy") and hasattr(value, "name") and not is_frame(value)


def plain(name: str, value: Any) -> Any:
    """A data frame or series as an array, float32 or integers where all columns are; everything else as it is.

    Raises
    ------
    TypeError
        A column holds something else than numbers: which, what and where.
    ValueError
        A value is missing, or two columns have one name: likewise.
    """
    if is_series(value):
        return _column(name, value, "")
    if not is_frame(value):
        return value
    labels = list(value.columns)
    repeated = next((label for at, label in enumerate(labels) if label in labels[:at]), None)
    if repeated is not None:
        raise ValueError(f"{name}: expected columns of different names, got {repeated!r} twice")
    found = [_column(name, value[label], f" in column {label!r}") for label in labels]
    return np.column_stack(found) if found else np.empty(value.shape)


def require_complete(name: str, value: Any) -> None:
    """``ValueError`` that gives the first missing value of a series or an array of objects, such as labels."""
    array = np.asarray(value)
    if is_series(value) or array.dtype == object:
        _require_all(name, array.ravel(), "")


def _column(name: str, series: Any, where: str) -> Array:
    array = np.asarray(series)
    if array.dtype.kind in "iu" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        if array.dtype.kind == "f":
            _require_all(name, array, where)
        return array
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    if array.dtype != object:
        raise TypeError(f"{name}: expected numbers{where}, got dtype {array.dtype}")
    _require_all(name, array, where)
    for row, entry in enumerate(array):
        if not isinstance(entry, (numbers.Real, np.bool_)):
            raise TypeError(
                f"{name}: expected numbers{where}, got {entry!r} at row {row}; encode categories as numbers first"
            )
    whole = all(isinstance(entry, (numbers.Integral, np.bool_)) for entry in array)
    return array.astype(np.int64 if whole else np.float64)


def _require_all(name: str, array: Array, where: str) -> None:
    """``ValueError`` where an entry is NaN, None or what a library writes for a missing value."""
    if array.dtype.kind == "f":
        missing = np.isnan(array)
    else:
        missing = np.array([_is_missing(entry) for entry in array], bool)
    if missing.any():
        raise ValueError(f"{name}: expected numbers{where} without gaps, got a missing value at row {missing.argmax()}")


def _is_missing(entry: Any) -> bool:
    # What pandas writes is neither equal to itself nor unequal.
    return entry is None or not isinstance(entry == entry, (bool, np.bool_)) or not entry == entry
