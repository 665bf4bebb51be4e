"""Loading a factorization that `Factorization.save` wrote, and every check of a file that is not to be trusted.

`runtime.archive` has the file, the objects give and take their arrays. Here is what a header must say, which arrays it
implies, and that whatever the sweeps use as an index lies within bounds. A new field means a new
`factorization.FORMAT`; older formats may be read (`factorization.READABLE`), never guessed.
"""

import os
from typing import Any

import numpy as np

from .certainty.solver import Solver
from .factorization import KIND, READABLE, Factorization
from .factors import choice
from .factors.block_rows import BlockRows
from .hessian import Hessian
from .kernels.dense.block_rows import STRIP
from .kernels.steps.layer_table import (
    ACTIVATION,
    BLOCKS,
    CONVOLUTION,
    DENSE,
    NO_OPERATION,
    ONE_POSITION,
    Chain,
    layer_table,
)
from .kernels.sweeps.eliminate import Factors
from .kernels.sweeps.linearise import Linearisation
from .layers.loss import Loss
from .layers.model import PLAIN
from .network import Network
from .runtime import archive
from .runtime.annotations import Array
from .system.ridge import pairs_of
from .system.scaling import Scaling
from .system.shifted import Shifted
from .system.system import System
from .system.total import Total

# Layers that are plain data. Others are code, which a file does not hold.
_LAYERS = {layer.__name__: layer for layer in PLAIN}
# Fields of a `Chain` that came with format 7, and what they are of chains before it.
_NEW_FIELDS = dict(list(zip(Chain._fields[-len(ONE_POSITION) :], ONE_POSITION))[5:])
# No buffer may be so long that offsets into it overflow.
_LARGEST_COUNT = 1 << 58


def load(path: str | os.PathLike[str]) -> Factorization:
    """Load a factorization that `Factorization.save` has written.

    No code from the file is run. The net's activations and loss are looked up by name, so that those which you have
    registered must be registered again, as the same functions, before. If the Hessian was made from blocks, or if the
    net has layers that are code (layer norms, gated, custom and external layers), the factorization works as before,
    but ``hessian.network`` is None.

    Parameters
    ----------
    path : str or os.PathLike
        The file.

    Returns
    -------
    Factorization
        The factorization. On the same machine, its solves are those of the saved one bit for bit.

    Raises
    ------
    ValueError
        The file was not written by `Factorization.save`, is truncated or altered, has another format version, or refers
        to an activation or a loss that is not registered. The message says which.
    TypeError, OSError, MemoryError
        ``path`` is not a path, cannot be read, or the arrays would not fit.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> import tempfile, os
    >>> F = net.hessian(np.zeros(3), X, y).factorize(0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     F.save(os.path.join(folder, "factors.npz"))
    ...     G = nh.load(os.path.join(folder, "factors.npz"))
    >>> np.array_equal(F.solve(np.ones(3)), G.solve(np.ones(3)))
    True
    """
    with archive.opened(path) as file:
        header, raw = archive.read_header(file, KIND, READABLE)
        try:
            chain, network, table, sizes, scale = _describe(header)
        except (KeyError, TypeError, OverflowError, AttributeError, IndexError) as error:
            raise archive.refusal(f"has a malformed header ({type(error).__name__}: {error})") from None
        except ValueError as error:
            raise archive.refusal(f"cannot be used here: {error}") from None
        expected = _expected(header, table, sizes)
        if network is not None and network.frozen_params.size:
            expected["frozen"] = np.dtype(np.float64), network.frozen_params.shape
        arrays = archive.read_arrays(file, raw, expected)
        _check_values(header, arrays, table)
        _check_apart(chain, arrays.get("ridge"), table, header)
        if "frozen" in arrays:
            network = Network(network.layers, network.loss_definition, arrays["frozen"])
        return _assemble(header, chain, network, scale, arrays)


def _describe(header: dict[str, Any]) -> Any:
    """The chain, the net (or None), the layer table and the scaling that a header states."""
    num_samples = header["num_samples"]
    if type(num_samples) is not int or not 0 < num_samples < 1 << 40:
        raise ValueError(f"num_samples is {num_samples!r}")
    for name in ("norm", "damping", "shift", "l2"):
        if type(header[name]) not in (int, float) or not np.isfinite(header[name]):
            raise ValueError(f"{name} is {header[name]!r}")
    for name, value in ("loss", header["loss"]), ("total_weight", header.get("total_weight")):
        if value is not None and (type(value) not in (int, float) or not np.isfinite(value)):
            raise ValueError(f"{name} is {value!r}")
    for name in ("dtype", "factor_dtype"):
        if header[name] not in ("float64", "float32"):
            raise ValueError(f"{name} is {header[name]!r}")
    if header["curvature"] not in ("hessian", "ggn"):
        raise ValueError(f"curvature is {header['curvature']!r}")
    chain = _as_chain({"held": [0] * len(header["chain"]["kind"]), **header["chain"]}, header["format"])
    first = header.get("first", 0)
    if type(first) is not int or not 0 <= first < 1 << 31:
        raise ValueError(f"first is {first!r}")
    if header.get("method", "layers") not in ("layers", "dense"):
        raise ValueError(f"method is {header['method']!r}")
    if type(header.get("is_total", False)) is not bool or (header.get("is_total") and header.get("method") != "dense"):
        raise ValueError(f"is_total is {header['is_total']!r}")
    if header.get("method") == "dense":
        _check_dense(header, int(chain.p.sum()))
    network = header["network"]
    if network is not None:
        layers = [_LAYERS[name](*fields) for name, *fields in network["layers"]]
        # Before format 6 losses had no options.
        is_plain = "loss_name" in network
        loss = network["loss_name"] if is_plain else Loss.from_description(network["loss"])
        # Before format 7 no layer was frozen. The values are in the file, behind the header.
        frozen_params = np.zeros(sum(layer.num_params for layer in layers if layer.frozen))
        network = Network(layers, loss, frozen_params)
        head = network.model.head
        is_same = all(np.array_equal(one, other) for one, other in zip(head.chain, chain))
        if not is_same or header.get("first", 0) != head.first:
            raise ValueError("network and chain are different")
    units = num_samples * (chain.n_in + chain.n_out * (chain.taps + 1.0) + 1.0) + chain.p
    if (units * units).sum() > _LARGEST_COUNT:
        raise ValueError(f"num_samples is {num_samples}: more bytes than can be counted")
    ridges, apart = header.get("ridges", []), header.get("apart", [0] * chain.kind.size)
    if not set(ridges) <= {"ridge", "dampings", "l2"} or (ridges and "ridge" not in ridges):
        raise ValueError(f"ridges is {ridges!r}")
    if len(apart) != chain.kind.size or any(type(flag) is not int or flag not in (0, 1) for flag in apart):
        raise ValueError("apart is no list of flags")
    table, sizes = layer_table(chain, num_samples, ridge=np.array([[0.0, flag] for flag in apart]))
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


def _check_dense(header: dict[str, Any], P: int) -> None:
    """What the header says of dense factors: eigenvalues, blocks, or LAPACK's, without pivots only in format 4."""
    if "num_eigenvalues" in header:
        if header["num_eigenvalues"] != P:
            raise ValueError(f"num_eigenvalues is {header['num_eigenvalues']!r}")
        return
    if "block_rows" not in header:
        if header["num_pivots"] not in (0, P):
            raise ValueError(f"num_pivots is {header['num_pivots']!r}")
        return
    rows, growth = header["block_rows"], header["growth"]
    if type(rows) is not int or not 0 < rows < 1 << 16 or rows % STRIP:
        raise ValueError(f"block_rows is {rows!r}")
    if type(growth) not in (int, float) or not 0.0 <= growth < np.inf:
        raise ValueError(f"growth is {growth!r}")


def _as_chain(fields: dict[str, Any], version: int) -> Chain:
    """The `Chain` of a header of some version of the format, once it is sure that it is one."""
    if version < 7:
        fields = fields | {name: [value] * len(fields["kind"]) for name, value in _NEW_FIELDS.items()}
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
    is_local = chain.taps > 0
    geometry = np.array(chain[-len(ONE_POSITION) :])
    # All but the paddings are at least 1.
    is_small = (np.delete(geometry[:10], (3, 8), axis=0) < 1).any()
    if is_small or (geometry.T != ONE_POSITION)[~(is_convolution | is_local)].any():
        raise ValueError("chain has a convolution of impossible size")
    is_unknown = (chain.operation > ACTIVATION) | ((chain.operation != NO_OPERATION) != is_local)
    if is_unknown.any() or (is_local & is_structured).any():
        raise ValueError("chain has a layer of an unknown kind")
    (out_length, out_height), size = chain.out_shape(), chain.length * chain.height
    if (out_length < 1).any() or (out_height < 1).any() or (chain.n_in % size).any():
        raise ValueError("chain has a convolution of impossible size")
    # As floats, which do not overflow.
    if (is_convolution & (out_length.astype(float) * out_height > chain.n_out)).any():
        raise ValueError("chain has a convolution of impossible size")
    positions = chain.positions()
    if (chain.n_out % positions).any():
        raise ValueError("chain has a convolution of impossible size")
    fan_in = (chain.n_in // size).astype(float) * chain.kernel * chain.kernel_height
    p = (chain.n_out // positions).astype(float) * (fan_in + chain.bias)
    all_params = np.where(chain.held > 0, chain.held, chain.p)
    if (all_params != p)[is_structured].any() or ((chain.held > 0) & (chain.p > 0)).any():
        raise ValueError("layers of the chain do not meet their numbers of parameters")
    if (chain.n_out < 1).any() or (chain.n_in[1:] != chain.n_out[:-1]).any():
        raise ValueError("layers of the chain do not meet")
    keeps_shape = (chain.n_in == chain.n_out) & (chain.length == out_length) & (chain.height == out_height)
    if (chain.skip > keeps_shape).any() or (chain.n_in < 1)[is_structured].any():
        raise ValueError("chain has a layer of impossible size")
    return chain


def _expected(header: dict[str, Any], table: Array, sizes: Any) -> dict[str, Any]:
    """Type and shape of every array."""
    B, L, P, n = header["num_samples"], table.size, sizes.parameters, sizes.outputs
    held = 0 if header.get("is_total") else int(table["held"].sum())
    wide, narrow = np.dtype(np.float64), np.dtype(header["factor_dtype"])
    counts = np.dtype(np.int64)
    common: dict[str, Any] = {
        "params": (wide, (P + held,)),
        **{name: (wide, (P,)) for name in header.get("ridges", [])},
    }
    if header["loss"] is not None:
        common["gradient"] = np.dtype(header["dtype"]), (P,)
    if header.get("is_total"):
        common["dense"] = wide, (P, P)
    else:
        blocks = {"Z": (sizes.z,), "output": (B, n), "curvature": (B, n, n)}
        blocks |= dict.fromkeys(("S", "D", "lam"), (sizes.u,))
        blocks |= {name: (getattr(sizes, name),) for name in ("Dx", "Dz", "Dxx", "Dzx", "Dzz")}
        common["logarithms"] = wide, (L + 1,)
        common |= {f"blocks_{name}": (wide, blocks[name]) for name in Linearisation._fields}
    if "num_eigenvalues" in header:
        return {**common, "factors_values": (wide, (P,)), "factors_vectors": (wide, (P, P))}
    if "block_rows" in header:
        shapes = BlockRows.shapes(P, header["block_rows"], narrow)
        return {**common, **{f"factors_{name}": shape for name, shape in shapes.items()}}
    if header.get("method") == "dense":
        pivots = np.dtype(np.int32), (header["num_pivots"],)
        return {**common, "factors_array": (narrow, (P, P)), "factors_pivots": pivots}
    factors = {name: (narrow, (getattr(sizes, name),)) for name in ("L", "scales", "Y")}
    factors["pivots"] = (np.dtype(np.int32), (sizes.pivots,))
    factors |= {name: (counts, (L,)) for name in ("num_positive", "num_perturbed")}
    factors |= {name: (wide, (L,)) for name in ("logabsdet", "growth")}
    return {**common, **{f"factors_{name}": factors[name] for name in Factors._fields}}


def _check_values(header: dict[str, Any], arrays: dict[str, Array], table: Array) -> None:
    """What the sweeps index with lies within bounds, and numbers are finite."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise archive.refusal(f"has numbers in {name!r} that are not finite")
    for layer in table[table["taps"] > 0] if "blocks_Dz" in arrays else ():
        size = header["num_samples"] * int(layer["n_out"]) * int(layer["taps"])
        columns = arrays["blocks_Dz"][int(layer["Dz"]) + size :][:size]
        if ((columns < 0) | (columns >= layer["n_in"]) | (columns != np.rint(columns))).any():
            raise archive.refusal("has columns of a layer out of range")
    if "factors_values" in arrays:
        return
    if "factors_array" in arrays:
        _check_interchanges(arrays["factors_pivots"], len(arrays["factors_array"]))
        return
    if "factors_rows" in arrays:
        P, rows = table["p"].sum(), header["block_rows"]
        starts = np.arange(0, P, rows)
        m, pivots = np.minimum(rows, P - starts), 2 * starts
    else:
        m, pivots = table["m"], table["pivots"]
    for name in ("num_positive", "num_perturbed", "num_negative"):
        counts = arrays.get(f"factors_{name}", np.zeros(1, np.int64))
        if ((counts < 0) | (counts > m)).any():
            raise archive.refusal(f"has a {name} out of range")
    _check_permutations(arrays["factors_pivots"].astype(np.int64), m, pivots)


def _check_apart(chain: Chain, ridge: Array | None, table: Array, header: dict[str, Any]) -> None:
    """The biases that are kept apart are those which the ridge keeps apart: sizes follow from it."""
    pairs, by_parameter = None, False
    if ridge is not None and not header.get("is_total"):
        pairs, by_parameter = pairs_of(chain, ridge)
    found = layer_table(chain, header["num_samples"], ridge=pairs)[0]
    if not np.array_equal(found["apart"], table["apart"]):
        raise archive.refusal("has a ridge that does not belong to its factors")
    if (by_parameter & (found["r"] < found["d"])).any() and header.get("method") != "dense":
        raise archive.refusal("has a ridge by parameter, which its factors by layers cannot have")


def _check_permutations(pivots: Array, m: Any, starts: Any) -> None:
    """Both halves of pivots of m rows are permutations of 0..m-1; those of 2 x 2 blocks, pairs, are complemented."""
    block = np.repeat(np.arange(m.size), m)
    first = np.repeat(np.cumsum(m) - m, m)
    at = np.repeat(starts, m) + np.arange(m.sum()) - first
    order, complemented = pivots[at + m[block]], pivots[at] < 0
    rows = np.where(complemented, ~pivots[at], pivots[at])
    for values in (rows, order):
        if ((values < 0) | (values >= m[block])).any() or (np.bincount(first + values, minlength=m.sum()) != 1).any():
            raise archive.refusal("has pivots that are no permutation")
    pairs = np.flatnonzero(complemented)
    starts = np.flatnonzero(np.diff(pairs, prepend=-2) != 1)
    starts = np.union1d(starts, np.flatnonzero(np.diff(block[pairs], prepend=-1) != 0))
    if (np.diff(np.append(starts, pairs.size)) % 2).any():
        raise archive.refusal("has half a 2 x 2 pivot")


def _check_interchanges(pivots: Array, size: int) -> None:
    """LAPACK's interchanges are rows from 1 on, negative in pairs that name one row."""
    if ((np.abs(pivots.astype(np.int64)) < 1) | (np.abs(pivots.astype(np.int64)) > size)).any():
        raise archive.refusal("has pivots out of range")
    pairs = np.flatnonzero(pivots < 0)
    one, two = pairs[::2], pairs[1::2]
    if one.size != two.size or (two != one + 1).any() or (pivots[one] != pivots[two]).any():
        raise archive.refusal("has half a 2 x 2 pivot")


def _assemble(
    header: dict[str, Any], chain: Chain, network: Network | None, scale: Scaling, arrays: dict[str, Array]
) -> Factorization:
    common = float(header["l2"]), arrays.get("gradient")
    norm, params, first = float(header["norm"]), arrays["params"], header.get("first", 0)
    if header.get("is_total"):
        options: Any = {"norm": norm, "dense": arrays["dense"], "first": first, "ridge": arrays.get("ridge")}
        system: Any = Total(chain, params, None, header["num_samples"], *common, **options)
    else:
        lin = Linearisation(*(arrays[f"blocks_{name}"] for name in Linearisation._fields))
        logarithms = arrays["logarithms"]
        system = System(
            chain, params, lin, *common, norm=norm, logarithms=logarithms, first=first, ridge=arrays.get("ridge")
        )
    total_weight = header.get("total_weight")
    of_hessian = system.with_ridge(arrays.get("l2")) if "dampings" in arrays else system
    hessian = Hessian(of_hessian, header["dtype"], header["loss"], network, header["curvature"], total_weight)
    factors = choice.from_arrays(
        Shifted(system, float(header["damping"]), np.dtype(header["factor_dtype"]), scale), header, arrays
    )
    return Factorization(hessian, Solver(factors.matrix, factors), dampings=arrays.get("dampings"))
