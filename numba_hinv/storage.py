"""Saving a factorization and loading it again: the file format, and every check of a file that is not to be trusted.

A file is an npz archive of plain arrays: ``header`` (JSON, as bytes), the arrays that it describes, and ``digest``, the
SHA-256 of all that. Nothing in it is code, and nothing in it is believed: shapes and types are compared with what the
header's chain implies before anything is read, and whatever the sweeps use as an index is checked. A new field means a
new `FORMAT`; older formats may be read, never guessed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import zipfile
from typing import NamedTuple

import numpy as np

from .runtime import memory_budget
from .layers.convolution import Conv1d
from .layers.dense import Dense
from .kernels.sweeps.eliminate import Factors
from .kernels.steps.layer_table import BLOCKS, CONVOLUTION, DENSE, ONE_POSITION, Chain, layer_table
from .kernels.sweeps.linearise import Linearisation
from .system.scaling import Scaling

FORMAT = 4
_KIND = "numba_hinv factorization"
# Layers that are plain data. Others are code, which a file does not hold.
_LAYERS = {"Dense": Dense, "Conv1d": Conv1d}
# A header is about 100 bytes a layer; this much is a million layers.
_LARGEST_HEADER = 1 << 28
# No buffer may be so long that offsets into it overflow.
_LARGEST_COUNT = 1 << 58


class _Array(NamedTuple):
    dtype: np.dtype
    shape: tuple


def save(path, factorization):
    """Write ``factorization`` to ``path``, completely or not at all."""
    path = _as_path(path)
    if factorization.checkpoint:
        raise ValueError("checkpoint: expected a factorization with all its factors to save, got one with checkpoint=True")
    # Files hold the factors of the chain as one segment.
    hessian, F = factorization.hessian, factorization._joined() if factorization._is_cut() else factorization
    header = {
        "kind": _KIND,
        "format": FORMAT,
        "chain": {name: values.tolist() for name, values in hessian._chain._asdict().items()},
        "network": _describe_network(hessian.network),
        "dtype": str(hessian.dtype),
        "factor_dtype": str(F.factor_dtype),
        "num_samples": hessian.num_samples,
        "loss": hessian.loss,
        "curvature": hessian.curvature,
        "l2": hessian.l2,
        "norm": hessian.norm(),
        "damping": F.damping,
        "shift": F._shift,
        "matrix_exponent": F._scale.matrix,
        "state_exponents": list(F._scale.states),
        "levels": [list(level) for level in F._scale.levels],
    }
    arrays = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    params, lin = hessian._on_host()
    arrays |= {"params": params, "logarithms": hessian._state_logarithms()}
    if hessian.gradient is not None:
        arrays["gradient"] = hessian.gradient
    arrays |= {f"blocks_{name}": block for name, block in lin._asdict().items()}
    arrays |= {f"factors_{name}": hessian._processor.take(block) for name, block in F._factors._asdict().items()}
    arrays["digest"] = _digest(arrays)
    partial = f"{path}.{secrets.token_hex(8)}.partial"
    try:
        with open(partial, "xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def load(path):
    """Load a factorization that `Factorization.save` wrote.

    Runs no code from the file. The net's activations and loss are looked up by name: those that the user registered
    must have been registered again, as the same functions. Where the Hessian came from blocks, or the net has layers
    other than `Dense` and `Conv1d`, the factorization works as it did, and ``hessian.network`` is None.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    Factorization
        Its solves are bitwise those of the one that was saved, on the same machine.

    Raises
    ------
    ValueError
        The file is no such file, is truncated or altered, has another format version, or refers to an activation or a
        loss that is not registered. The message says which.
    TypeError, OSError, MemoryError
        ``path`` is not a path, cannot be read, or the arrays would not fit.
    """
    with open(_as_path(path), "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(archive)
        except MemoryError:
            raise
        except _Refusal as refusal:
            raise ValueError(str(refusal)) from None
        except Exception as error:
            # The archive's own bookkeeping, once altered, leads zipfile to errors of a dozen kinds.
            raise ValueError(str(_refusal(f"is truncated, altered, or no npz archive ({error!r})"))) from None


class _Refusal(Exception):
    """Why a file is refused."""


def _refusal(reason):
    return _Refusal(f"path: expected a file written by Factorization.save, got one that {reason}")


def _as_path(path):
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected a file name, got {path!r}") from None


def _digest(arrays):
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if name != "digest":
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
            digest.update(array.reshape(-1).view(np.uint8))
    return np.frombuffer(digest.digest(), np.uint8)


def _read(archive):
    size = archive.getinfo("header.npy").file_size
    if size > _LARGEST_HEADER:
        raise _refusal(f"has a header of {size:,} bytes")
    arrays = {"header": _member(archive, "header", np.dtype(np.uint8))}
    header = _parse(arrays["header"].tobytes())
    try:
        chain, network, table, sizes, scale = _describe(header)
    except (KeyError, TypeError, OverflowError, AttributeError, IndexError) as error:
        raise _refusal(f"has a malformed header ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise _refusal(f"cannot be used here: {error}") from None
    expected = _expected(header, table, sizes)
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    if names != {"header", *expected} or len(archive.namelist()) != len(names):
        raise _refusal(f"has other arrays than it should: {', '.join(sorted(names ^ {'header', *expected}))}")
    num_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape, dtype=object)) for array in expected.values())
    # Before memory is asked for: a header that lies about sizes is refused, whatever it asks for.
    stored = sum(info.file_size for info in archive.infolist())
    if num_bytes > stored:
        raise _refusal(f"should hold {num_bytes:,} bytes of arrays and holds {stored:,}")
    memory_budget.require(num_bytes, "the saved factorization")
    for name, array in expected.items():
        arrays[name] = _member(archive, name, array.dtype, array.shape)
    if not np.array_equal(_digest(arrays), arrays["digest"]):
        raise _refusal("was altered: its checksum does not match")
    _check_values(arrays, table)
    return _assemble(header, chain, network, scale, arrays)


def _parse(text):
    try:
        header = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except (ValueError, RecursionError) as error:
        raise _refusal(f"has a header that is not JSON ({error})") from None
    if not isinstance(header, dict) or header.get("kind") != _KIND:
        raise _refusal("holds something else")
    if header.get("format") != FORMAT:
        raise _refusal(f"has format {header.get('format')!r}; this version reads format {FORMAT}")
    return header


def _describe_network(network):
    """A net of layers that are plain data in the header's terms; None for others."""
    if network is None or not all(type(layer) in _LAYERS.values() for layer in network.layers):
        return None
    layers = [[type(layer).__name__, *dataclasses.astuple(layer)] for layer in network.layers]
    return {"layers": layers, "loss_name": network.loss_name}


def _describe(header):
    """The chain, the net (or None), the layer table and the scaling that a header states."""
    from .network import Network

    num_samples = header["num_samples"]
    if type(num_samples) is not int or not 0 < num_samples < 1 << 40:
        raise ValueError(f"num_samples is {num_samples!r}")
    for name in ("norm", "damping", "shift", "l2"):
        if type(header[name]) not in (int, float) or not np.isfinite(header[name]):
            raise ValueError(f"{name} is {header[name]!r}")
    loss = header["loss"]
    if loss is not None and (type(loss) not in (int, float) or not np.isfinite(loss)):
        raise ValueError(f"loss is {loss!r}")
    for name in ("dtype", "factor_dtype"):
        if header[name] not in ("float64", "float32"):
            raise ValueError(f"{name} is {header[name]!r}")
    if header["curvature"] not in ("hessian", "ggn"):
        raise ValueError(f"curvature is {header['curvature']!r}")
    chain = _as_chain(header["chain"])
    network = header["network"]
    if network is not None:
        layers = [_LAYERS[name](*fields) for name, *fields in network["layers"]]
        network = Network(layers, network["loss_name"])
        if not all(np.array_equal(one, other) for one, other in zip(network._chain, chain)):
            raise ValueError("network and chain are different")
    units = num_samples * (chain.n_in + chain.n_out + 1.0) + chain.p
    if (units * units).sum() > _LARGEST_COUNT:
        raise ValueError(f"num_samples is {num_samples}: more bytes than can be counted")
    table, sizes = layer_table(chain, num_samples)
    states, levels = header["state_exponents"], [tuple(level) for level in header["levels"]]
    numbers = [header["matrix_exponent"], *states, *(number for level in levels for number in level)]
    if any(type(number) is not int or abs(number) > 1 << 30 for number in numbers):
        raise ValueError("an exponent is not an integer")
    if len(states) not in (0, table.size + 1):
        raise ValueError("state_exponents has a wrong length")
    firsts = [first for first, _ in levels]
    if firsts[0] != 0 or firsts != sorted(set(firsts)) or firsts[-1] >= table.size:
        raise ValueError("levels are out of order")
    return chain, network, table, sizes, Scaling(header["matrix_exponent"], tuple(states), tuple(levels))


def _as_chain(fields):
    """The `Chain` of a header, once it is sure that it is one."""
    if set(fields) != set(Chain._fields):
        raise ValueError(f"chain has the fields {', '.join(fields)}")
    for name, values in fields.items():
        if type(values) is not list or any(type(value) is not int or not 0 <= value < 1 << 31 for value in values):
            raise ValueError(f"{name} of the chain is not a list of sizes")
    lengths = {len(values) for values in fields.values()}
    if lengths != {len(fields["kind"])} or lengths == {0}:
        raise ValueError("chain has fields of different lengths")
    chain = Chain(**{name: np.array(values, np.int64) for name, values in fields.items()})
    is_convolution, is_structured = chain.kind == CONVOLUTION, chain.kind != BLOCKS
    flags = np.concatenate([chain.bias, chain.skip])
    is_known = np.isin(chain.kind, (DENSE, BLOCKS, CONVOLUTION))
    if not is_known.all() or (flags > 1).any() or (flags[np.tile(~is_structured, 2)] != 0).any():
        raise ValueError("chain has a layer of an unknown kind")
    geometry = np.array([chain.length, chain.kernel, chain.stride, chain.padding, chain.dilation])
    if (geometry[[0, 1, 2, 4]] < 1).any() or (geometry.T != ONE_POSITION)[~is_convolution].any():
        raise ValueError("chain has a convolution of impossible size")
    positions = chain.positions()
    if (positions < 1).any() or (chain.n_in % chain.length).any() or (chain.n_out % positions).any():
        raise ValueError("chain has a convolution of impossible size")
    p = (chain.n_out // positions).astype(float) * (chain.n_in // chain.length * chain.kernel + chain.bias)
    if (chain.p != p)[is_structured].any() or (chain.n_out < 1).any() or (chain.n_in[1:] != chain.n_out[:-1]).any():
        raise ValueError("layers of the chain do not meet")
    keeps_shape = (chain.n_in == chain.n_out) & (chain.length == positions)
    if (chain.skip > keeps_shape).any() or (chain.n_in < 1)[is_structured].any():
        raise ValueError("chain has a layer of impossible size")
    return chain


def _expected(header, table, sizes):
    """Type and shape of every array."""
    B, L, P, n = header["num_samples"], table.size, sizes.parameters, sizes.outputs
    wide, narrow = np.dtype(np.float64), np.dtype(header["factor_dtype"])
    counts = np.dtype(np.int64)
    blocks = {"Z": (sizes.z,), "output": (B, n), "curvature": (B, n, n)}
    blocks |= dict.fromkeys(("S", "D", "lam"), (sizes.u,))
    blocks |= {name: (getattr(sizes, name),) for name in ("Dx", "Dz", "Dxx", "Dzx", "Dzz")}
    factors = {name: _Array(narrow, (getattr(sizes, name),)) for name in ("L", "scales", "Y")}
    factors["pivots"] = _Array(np.dtype(np.int32), (sizes.pivots,))
    factors |= {name: _Array(counts, (L,)) for name in ("num_positive", "num_perturbed")}
    factors |= {name: _Array(wide, (L,)) for name in ("logabsdet", "growth")}
    gradient = {} if header["loss"] is None else {"gradient": _Array(np.dtype(header["dtype"]), (P,))}
    return {
        "params": _Array(wide, (P,)),
        **gradient,
        "logarithms": _Array(wide, (L + 1,)),
        **{f"blocks_{name}": _Array(wide, blocks[name]) for name in Linearisation._fields},
        **{f"factors_{name}": factors[name] for name in Factors._fields},
        "digest": _Array(np.dtype(np.uint8), (32,)),
    }


def _member(archive, name, dtype, shape=None):
    """One array; refused before it is read if it is not of that type and shape."""
    with archive.open(f"{name}.npy") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found_shape, is_fortran, found_dtype = read(file)
        except Exception as error:
            # NumPy's parser of these headers lets errors of several kinds through.
            raise _refusal(f"has a malformed array {name!r} ({error!r})") from None
        is_header = len(found_shape) == 1 and found_shape[0] < _LARGEST_HEADER
        is_right = is_header if shape is None else found_shape == shape
        # A one-dimensional array may carry either order.
        if found_dtype != dtype or not is_right or (is_fortran and len(found_shape) > 1):
            expected = "" if shape is None else f" {shape}"
            raise _refusal(
                f"has an array {name!r} of {found_dtype} {found_shape}, where {dtype}{expected} belongs"
            )
        data = file.read()
    if len(data) != dtype.itemsize * int(np.prod(found_shape, dtype=object)):
        raise _refusal(f"has an array {name!r} of a wrong length")
    # Copied, so that it can be written to and is aligned: the sweeps are compiled for such arrays.
    return np.frombuffer(data, dtype).reshape(found_shape).copy()


def _check_values(arrays, table):
    """What the sweeps index with lies within bounds, and numbers are finite."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _refusal(f"has numbers in {name!r} that are not finite")
    m = table["m"]
    for name in ("num_positive", "num_perturbed"):
        if ((arrays[f"factors_{name}"] < 0) | (arrays[f"factors_{name}"] > m)).any():
            raise _refusal(f"has a {name} out of range")
    # Both halves of each layer's pivots are permutations of 0..m-1; those of 2 x 2 blocks, pairs, are complemented.
    layer = np.repeat(np.arange(m.size), m)
    first = np.repeat(np.cumsum(m) - m, m)
    at = np.repeat(table["pivots"], m) + np.arange(m.sum()) - first
    pivots = arrays["factors_pivots"].astype(np.int64)
    order, complemented = pivots[at + m[layer]], pivots[at] < 0
    rows = np.where(complemented, ~pivots[at], pivots[at])
    for values in (rows, order):
        if ((values < 0) | (values >= m[layer])).any() or (np.bincount(first + values, minlength=m.sum()) != 1).any():
            raise _refusal("has pivots that are no permutation")
    pairs = np.flatnonzero(complemented)
    starts = np.flatnonzero(np.diff(pairs, prepend=-2) != 1)
    starts = np.union1d(starts, np.flatnonzero(np.diff(layer[pairs], prepend=-1) != 0))
    if (np.diff(np.append(starts, pairs.size)) % 2).any():
        raise _refusal("has half a 2 x 2 pivot")


def _assemble(header, chain, network, scale, arrays):
    from .factorization import Factorization
    from .hessian import Hessian

    lin = Linearisation(*(arrays[f"blocks_{name}"] for name in Linearisation._fields))
    hessian = Hessian(
        chain, arrays["params"], lin, header["dtype"], header["loss"], arrays.get("gradient"), network,
        curvature=header["curvature"], l2=float(header["l2"]),
    )
    hessian._norm, hessian._logarithms = float(header["norm"]), arrays["logarithms"]
    factors = Factors(*(arrays[f"factors_{name}"] for name in Factors._fields))
    return Factorization._restore(hessian, header["damping"], header["factor_dtype"], scale, header["shift"], factors)
