"""Files of plain arrays that are not to be trusted: written completely or not at all, checked before they are believed.

A file is an npz archive: ``header`` (JSON, as bytes), the arrays that it describes, and ``digest``, the SHA-256 of all
that. Nothing in it is code. Whoever reads one says which arrays the header implies; shapes, types and sizes are
compared with that before anything is read.
"""

import contextlib
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import memory_budget
from .annotations import Array

# A header is about 100 bytes a layer; this much is a million layers.
_LARGEST_HEADER = 1 << 28


class Refusal(Exception):
    """Why a file is refused."""


def refusal(reason: str) -> Exception:
    """The `Refusal` of a file that ``reason``: "is truncated", "holds something else"."""
    return Refusal(f"path: expected a file written by Factorization.save, got one that {reason}")


def write(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Write a header of plain data and named arrays, completely or not at all.

    Raises
    ------
    TypeError, OSError
        ``path`` is not a path, or cannot be written.
    """
    path = _as_path(path)
    arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays}
    arrays["digest"] = digest(arrays)
    partial = f"{path}.{secrets.token_hex(8)}.partial"
    try:
        with open(partial, "xb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """The archive at ``path``; a `Refusal`, and whatever an altered archive leads to, becomes a ``ValueError``."""
    with open(_as_path(path), "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except MemoryError:
            raise
        except Refusal as reason:
            raise ValueError(str(reason)) from None
        except Exception as error:
            # The archive's own bookkeeping, once altered, leads zipfile to errors of a dozen kinds.
            raise ValueError(str(refusal(f"is truncated, altered, or no npz archive ({error!r})"))) from None


def _as_path(path: str | os.PathLike[str]) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected a file name, got {path!r}") from None


def digest(arrays: dict[str, Array]) -> Array:
    """The checksum of all arrays but that of this name."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        if name != "digest":
            array = np.ascontiguousarray(arrays[name])
            found.update(f"{name} {array.dtype.str} {array.shape};".encode())
            found.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(found.digest(), np.uint8)


def read_header(archive: zipfile.ZipFile, kind: str, versions: Sequence[int]) -> tuple[dict[str, Any], Array]:
    """(the header of this kind and one of these format versions, its bytes)."""
    size = archive.getinfo("header.npy").file_size
    if size > _LARGEST_HEADER:
        raise refusal(f"has a header of {size:,} bytes")
    raw = _member(archive, "header", np.dtype(np.uint8))
    try:
        header = json.loads(raw.tobytes(), parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except (ValueError, RecursionError) as error:
        raise refusal(f"has a header that is not JSON ({error})") from None
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise refusal("holds something else")
    if header.get("format") not in versions:
        readable = " and ".join(map(str, versions))
        raise refusal(f"has format {header.get('format')!r}; this version reads format {readable}")
    return header, raw


def read_arrays(archive: zipfile.ZipFile, raw_header: Array, expected: dict[str, Any]) -> dict[str, Array]:
    """The arrays of these names, ``(dtype, shape)`` each, that the file must hold beside its header, by name.

    Asked for is memory for all of them, and never more than the file holds.
    """
    expected = {**expected, "digest": (np.dtype(np.uint8), (32,))}
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    if names != {"header", *expected} or len(archive.namelist()) != len(names):
        raise refusal(f"has other arrays than it should: {', '.join(sorted(names ^ {'header', *expected}))}")
    num_bytes = sum(dtype.itemsize * int(np.prod(shape, dtype=object)) for dtype, shape in expected.values())
    # Before memory is asked for: a header that lies about sizes is refused, whatever it asks for.
    stored = sum(info.file_size for info in archive.infolist())
    if num_bytes > stored:
        raise refusal(f"should hold {num_bytes:,} bytes of arrays and holds {stored:,}")
    memory_budget.require(num_bytes, "the saved factorization", "save one with factor_dtype='float32', or free memory")
    arrays = {"header": raw_header}
    arrays |= {name: _member(archive, name, dtype, shape) for name, (dtype, shape) in expected.items()}
    if not np.array_equal(digest(arrays), arrays["digest"]):
        raise refusal("was altered: its checksum does not match")
    return arrays


def _member(archive: zipfile.ZipFile, name: str, dtype: Any, shape: Any = None) -> Array:
    """One array; refused before it is read if it is not of that type and shape."""
    with archive.open(f"{name}.npy") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found_shape, is_fortran, found_dtype = read(file)
        except Exception as error:
            # NumPy's parser of these headers lets errors of several kinds through.
            raise refusal(f"has a malformed array {name!r} ({error!r})") from None
        is_header = len(found_shape) == 1 and found_shape[0] < _LARGEST_HEADER
        is_right = is_header if shape is None else found_shape == shape
        # A one-dimensional array may carry either order.
        if found_dtype != dtype or not is_right or (is_fortran and len(found_shape) > 1):
            expected = "" if shape is None else f" {shape}"
            raise refusal(f"has an array {name!r} of {found_dtype} {found_shape}, where {dtype}{expected} belongs")
        data = file.read()
    if len(data) != dtype.itemsize * int(np.prod(found_shape, dtype=object)):
        raise refusal(f"has an array {name!r} of a wrong length")
    # Copied, so that it can be written to and is aligned: the sweeps are compiled for such arrays.
    return np.frombuffer(data, dtype).reshape(found_shape).copy()
