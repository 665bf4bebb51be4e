"""Vectors as callers of a cluster have them, in columns: arrays here, or a part for every segment.

Parts are futures or arrays, in a list, or the chunks of a dask array. What comes in one form goes out in it.
"""

import math

import numpy as np

from ..runtime import tensors
from ..runtime.validation import as_columns
from .vectors import Vectors


class Form:
    """How vectors were given.

    Attributes
    ----------
    kind : "array", "parts" or "chunks"
    is_vector : bool
        Whether there is one, without an axis for columns.
    """

    def __init__(self, kind, is_vector, sizes):
        self.kind, self.is_vector, self.sizes = kind, is_vector, sizes

    def give(self, vectors):
        """`Vectors` in this form."""
        cluster = vectors.cluster
        parts = cluster.map(_as_columns, vectors.parts, [self.is_vector] * len(self.sizes))
        if self.kind == "parts":
            return parts
        if self.kind == "array":
            return np.concatenate(cluster.gather(parts, "a part of the result"))
        import dask.array

        tail = () if self.is_vector else (vectors.shape[0],)
        chunks = [dask.array.from_delayed(part, (size, *tail), np.float64) for part, size in zip(parts, self.sizes)]
        return dask.array.concatenate(chunks)


def as_vectors(name, given, cluster, sizes):
    """(`Vectors`, `Form`) of an argument, the segments having so many parameters."""
    P = sum(sizes)
    if hasattr(given, "to_delayed") and hasattr(given, "rechunk"):
        if given.ndim not in (1, 2) or given.shape[0] != P:
            raise ValueError(f"{name}: expected shape ({P},) or ({P}, k), got {given.shape}")
        if given.ndim == 2:
            given = given.rechunk({0: tuple(sizes), 1: given.shape[1]})
        else:
            given = given.rechunk({0: tuple(sizes)})
        kind, parts = "chunks", cluster.client.compute(list(given.to_delayed().ravel()))
        shapes = [(size, *given.shape[1:]) for size in sizes]
    elif isinstance(given, (list, tuple)) and len(given) == len(sizes) and all(map(_is_part, given)):
        kind, parts = "parts", list(given)
        shapes = cluster.gather(cluster.map(np.shape, parts), f"a part of {name}")
    else:
        columns, _ = as_columns(name, tensors.plain(given), P, np.float64)
        is_vector = np.ndim(given) == 1
        ends = np.cumsum(sizes)[:-1]
        kind, parts = "array", np.split(np.asarray(columns, np.float64), ends)
        if is_vector:
            parts = [part[:, 0] for part in parts]
        shapes = [part.shape for part in parts]
    tails = {tuple(shape[1:]) for shape in shapes}
    for s, (shape, size) in enumerate(zip(shapes, sizes)):
        if len(shape) not in (1, 2) or shape[0] != size or len(tails) > 1:
            raise ValueError(
                f"{name}: expected a part of shape ({size},) or ({size}, k) for segment {s}, with one k for all, got "
                f"{tuple(shape)}"
            )
    tail = tails.pop()
    rows = cluster.map(_as_rows, parts, [name] * len(sizes))
    return Vectors(cluster, rows, (math.prod(tail), P)), Form(kind, not tail, sizes)


def _is_part(given):
    return hasattr(given, "key") or np.ndim(given) > 0


def _as_rows(part, name):
    part = np.asarray(part, np.float64)
    if not np.isfinite(part).all():
        raise ValueError(f"{name}: expected finite numbers, got {part[~np.isfinite(part)][0]}")
    return np.ascontiguousarray(part.reshape(part.shape[0], -1).T)


def _as_columns(rows, is_vector):
    return rows[0] if is_vector else np.ascontiguousarray(rows.T)
