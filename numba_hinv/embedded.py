"""Factorize and solve inside your own compiled code: the sweeps as functions for ``@njit``, on memory made beforehand.

In Python, once, `chain` or `from_hessian` makes a `System`, a named tuple of plain arrays that holds the derivative
blocks of a chain, its factors and all scratch arrays. In compiled code, as often as you like::

    Dx, Dz, Dxx, Dzx, Dzz = embedded.blocks(system, l)      # views: fill them
    code, num_negative, num_perturbed = embedded.factorize(system, damping, 0.0)
    embedded.solve(system, b, x, 0)                         # b and x are (k, P): right-hand sides are rows

These functions do not allocate, raise, check shapes or need the interpreter's lock. A system serves one thread at a
time: parallel code makes one for each thread, puts them into a `typed_list` and indexes that in a ``prange``. What
`Hessian` and `Factorization` do around the same sweeps is left to the caller: validation, scaling of states (numbers
should be within some powers of ten of one), estimating ||H||, and deciding whether a solution is good enough.

In every process, a system must be made before compiled code that uses one is entered, since this loads the kernels. It
is so for functions with ``cache=True``, too. When this package is upgraded, Numba's cache of such functions must be
emptied so that they are compiled again, since Numba does not notice the upgrade. See ``examples/embed_in_njit.py``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import typed

from .factors.pivots import relative_pivoting
from .hessian import Hessian
from .kernels.dense.lanes import num_lanes
from .kernels.plumbing.compiled import compiled, kernel
from .kernels.plumbing.memory import matrix
from .kernels.plumbing.status import NOT_FINITE, OK, SINGULAR_PIVOT
from .kernels.steps.lanes import scratch_size
from .kernels.steps.layer_table import BLOCKS, ONE_POSITION, Chain, layer_table
from .kernels.steps.row_space import RowSpace
from .kernels.sweeps import eliminate, linearise, substitute
from .kernels.sweeps import multiply as product
from .runtime import memory_budget
from .runtime.annotations import Array, FloatType, IntArray
from .runtime.validation import as_float_dtype, as_size
from .system.cpu import CPU

__all__ = [
    "NOT_FINITE",
    "OK",
    "SINGULAR_PIVOT",
    "System",
    "blocks",
    "chain",
    "factorize",
    "factorize_and_solve",
    "from_hessian",
    "multiply",
    "nbytes",
    "solve",
    "terminal",
    "typed_list",
]

# To those who check types, compiled functions are what they are made of.
_Compiled = TypeVar("_Compiled", bound=Callable[..., Any])


class System(NamedTuple):
    """``H + damping I`` of a chain: its derivative blocks, its factors and the scratch arrays of all sweeps.

    `chain` and `from_hessian` make it, and the caller fills and reuses it. Its fields are arguments of the kernels, and
    are not meant to be used directly: `blocks` and `terminal` give the arrays to fill.

    Attributes
    ----------
    table, params, lin, row_space, pivoting, factors : array or tuple of arrays
        The layers, their parameters and derivative blocks, row spaces, thresholds of pivots in units of ||H||, and the
        factors.
    damping : (1,) array
        The damping of the factors.
    elimination, substitution, tangents, residual, correction : array or tuple of arrays
        Scratch arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system = embedded.chain([2, 2], [1, 1])
    >>> system.damping
    array([0.])
    """

    table: Array
    params: Array
    lin: linearise.Linearisation
    row_space: RowSpace
    pivoting: eliminate.Pivoting  # in units of ||H||
    factors: eliminate.Factors
    damping: Array  # (1,), that of the factors
    elimination: eliminate.Workspace
    substitution: substitute.Workspace
    tangents: tuple[Array, ...]  # scratch of products
    residual: Array  # (k, P)
    correction: Array  # (k, P)


def chain(
    states: Sequence[int] | IntArray,
    parameters: Sequence[int] | IntArray,
    num_vectors: int = 1,
    dtype: FloatType = np.float64,
) -> System:
    """Make a `System` for a chain of layers given by derivative blocks (docs/theory.md, section 7), all zero.

    Parameters
    ----------
    states : (L,) sequence of int
        How many states each layer leaves, which is how many the next one takes. The first layer takes none, since its
        incoming states are fixed.
    parameters : (L,) sequence of int
        How many parameters each layer has.
    num_vectors : int
        The largest number of right-hand sides in one call of `solve` or `multiply`.
    dtype : float64 or float32
        The dtype of all arrays, those that the caller passes included.

    Returns
    -------
    System
        The system.

    Raises
    ------
    TypeError, ValueError
        ``states`` and ``parameters`` are not such sequences, or have different lengths.
    MemoryError
        The system would not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system = embedded.chain([2, 2], [1, 1])
    >>> [block.shape for block in embedded.blocks(system, 1)]
    [(2, 1), (2, 2), (1, 1), (1, 2), (2, 2)]
    """
    n_out, p = _as_counts("states", states, 1), _as_counts("parameters", parameters, 0)
    if n_out.size != p.size:
        raise ValueError(f"parameters: expected one count a layer, that is {n_out.size}, got {p.size}")
    if not p.any():
        raise ValueError("parameters: expected at least one parameter, got 0 in all layers")
    none = np.zeros_like(p)
    n_in = np.append(0, n_out[:-1])
    one_position = [none + value for value in ONE_POSITION]
    table, sizes = layer_table(Chain(none + BLOCKS, n_in, n_out, p, none, none, none, *one_position), 1)
    dtype = as_float_dtype("dtype", dtype)
    _require(sizes, 1, num_vectors, dtype)
    lin = linearise.allocate(sizes, 1, sizes.outputs, dtype, 2)
    for block in lin:
        block[...] = 0
    params, space = (
        np.zeros(sizes.parameters, dtype),
        RowSpace(*[np.zeros(size, dtype) for size in (sizes.Q, sizes.R, 1)]),
    )
    return _system(table, sizes, params, lin, space, num_vectors, dtype)


def from_hessian(H: Hessian, num_vectors: int = 1, dtype: FloatType | None = None) -> System:
    """Make a `System` with a copy of the derivative blocks of a `Hessian`, of a net or of any chain.

    Compiled code may then change the values of layers that were given by blocks, through `blocks`. The derivatives of a
    dense layer depend on its inputs and stay as they are; only the damping can be changed. An L2 term of H is not part
    of the blocks: add ``H.l2`` to the damping.

    Parameters
    ----------
    H : Hessian
        The Hessian.
    num_vectors : int
        The largest number of right-hand sides in one call of `solve` or `multiply`.
    dtype : float64 or float32, optional
        The dtype of all arrays, by default that of H.

    Returns
    -------
    System
        The system.

    Raises
    ------
    TypeError, ValueError
        An argument is not what is expected, or H has an L2 term that is not the same for all parameters.
    MemoryError
        The system would not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> import numba_hinv as nh
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> H = net.hessian(np.zeros(3), np.eye(2), np.ones(2))
    >>> system, b, x = embedded.from_hessian(H), np.ones((1, 3)), np.empty((1, 3))
    >>> embedded.factorize(system, 0.5, 0.0)[0] == embedded.OK, embedded.solve(system, b, x, 1)
    (True, None)
    >>> np.allclose(H @ x[0] + 0.5 * x[0], b[0])
    True
    """
    if not isinstance(H, Hessian):
        raise TypeError(f"H: expected a Hessian, got {type(H).__name__}")
    if np.ndim(H.l2):
        raise ValueError(
            "H: expected one L2 term for all parameters, got one by layer; of chains given as blocks, add it to Dxx"
        )
    dtype = as_float_dtype("dtype", H.dtype if dtype is None else dtype)
    system = H.system
    _require(system.sizes, H.num_samples, num_vectors, dtype)
    params, given = system.on_host()
    lin = linearise.Linearisation(*(block.astype(dtype) for block in given))
    space = RowSpace(*(system.on.memory.take(block).astype(dtype) for block in system.row_space(np.dtype(np.float64))))
    return _system(system.table.copy(), system.sizes, params.astype(dtype), lin, space, num_vectors, dtype)


def typed_list(systems: Iterable[System]) -> Any:
    """Put systems into a container that a ``prange`` can index, one system in each iteration.

    A plain tuple of systems does not work in a ``prange``, and Numba's error does not say why.

    Parameters
    ----------
    systems : sequence of System
        At least one system, all of one dtype. Their arrays are not copied.

    Returns
    -------
    numba.typed.List
        The container.

    Raises
    ------
    TypeError, ValueError
        ``systems`` is not such a sequence.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> len(embedded.typed_list([embedded.chain([2], [1]) for _ in range(4)]))
    4
    """
    if isinstance(systems, System) or not isinstance(systems, (Sequence, typed.List)):
        raise TypeError(f"systems: expected a sequence of System, got {type(systems).__name__}")
    if not len(systems):
        raise ValueError("systems: expected at least one System, got none")
    for index, system in enumerate(systems):
        if not isinstance(system, System):
            raise TypeError(f"systems: expected System objects, got {type(system).__name__} at index {index}")
        if system.params.dtype != systems[0].params.dtype:
            raise ValueError(
                f"systems: expected one dtype, got {systems[0].params.dtype} at index 0 and {system.params.dtype} at "
                f"index {index}"
            )
    return typed.List(systems)


def _as_counts(name: str, values: Any, least: int) -> Array:
    try:
        counts = [as_size(f"{name}[{index}]", value, least) for index, value in enumerate(values)]
    except TypeError as error:
        if str(error).startswith(name):
            raise
        raise TypeError(f"{name}: expected a sequence of integers, got {type(values).__name__}") from None
    if not counts:
        raise ValueError(f"{name}: expected one count a layer, got none")
    return np.array(counts, np.int64)


def _require(sizes: Any, num_samples: int, num_vectors: int, dtype: np.dtype[Any]) -> None:
    B, dtype = num_samples, np.dtype(dtype)
    k = num_lanes(as_size("num_vectors", num_vectors, 1), dtype)
    blocks = sizes.Dx + sizes.Dz + sizes.Dxx + sizes.Dzx + sizes.Dzz + sizes.z + 3 * sizes.u + sizes.Q + sizes.R
    factors = sizes.L + sizes.scales + sizes.Y + sizes.pivots
    scratch = 2 * sizes.front + sizes.mixed + sizes.m**2 + sizes.root + sizes.root_work
    vectors = k * (2 * sizes.parameters + sizes.z + sizes.u + 5 * B * sizes.width + 2 * sizes.m)
    vectors += 5 * scratch_size(sizes, num_vectors, B, dtype)
    memory_budget.require(dtype.itemsize * (blocks + factors + scratch + vectors), "the system", "give narrower layers")


def _system(
    table: Array, sizes: Any, params: Array, lin: linearise.Linearisation, space: RowSpace, k: int, dtype: np.dtype[Any]
) -> System:
    CPU.load(dtype, table)
    B = lin.output.shape[0]
    factors = eliminate.allocate(sizes, table.size, dtype)
    for block in factors:
        block[...] = 0
    return System(
        table,
        params,
        lin,
        space,
        relative_pivoting(dtype),
        factors,
        np.zeros(1),
        eliminate.workspace(sizes, dtype),
        substitute.workspace(sizes, k, B, dtype),
        product.workspace(sizes, k, B, dtype),
        np.empty((k, sizes.parameters), dtype),
        np.empty((k, sizes.parameters), dtype),
    )


def nbytes(system: Any) -> int:
    """Compute how many bytes the arrays of a system take. To be called from Python.

    Parameters
    ----------
    system : System
        The system.

    Returns
    -------
    num_bytes : int
        The number of bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> embedded.nbytes(embedded.chain([4] * 30, [2] * 30)) > 0
    True
    """
    if isinstance(system, np.ndarray):
        return system.nbytes
    return sum(nbytes(part) for part in system if isinstance(part, (np.ndarray, tuple)))


# ---- in compiled code -----------------------------------------------------------------------------------------------

# What returns arrays counts references to them, where a `kernel` does not.
_view: Callable[[_Compiled], _Compiled] = compiled(_nrt=True)
_kernel: Callable[[_Compiled], _Compiled] = kernel


@_view
def blocks(system: System, l: int) -> tuple[Array, Array, Array, Array, Array]:
    """Give views of the derivative blocks of layer ``l``, to read or to fill. Not for dense layers.

    In the symmetric ones, both triangles must be filled. With B samples in a net, Dz consists of B blocks of
    n_out x n_in below one another, and Dzz likewise of B blocks.

    Parameters
    ----------
    system : System
        The system.
    l : int
        The layer, counted from 0.

    Returns
    -------
    Dx, Dz, Dxx, Dzx, Dzz : array
        The blocks, as in `LayerBlocks`.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system = embedded.chain([2], [1])
    >>> Dx, Dz, Dxx, Dzx, Dzz = embedded.blocks(system, 0)
    >>> Dxx[0, 0] = 3.0
    """
    layer = system.table[l]
    lin = system.lin
    B = lin.output.shape[0]
    n, n_in, p = layer.n_out, layer.n_in, layer.p
    return (
        matrix(lin.Dx, layer.Dx, B * n, p),
        matrix(lin.Dz, layer.Dz, B * n, n_in),
        matrix(lin.Dxx, layer.Dxx, p, p),
        matrix(lin.Dzx, layer.Dzx, p, B * n_in),
        matrix(lin.Dzz, layer.Dzz, B * n_in, n_in),
    )


@_view
def terminal(system: System) -> Array:
    """Give a view of the curvature of the loss with respect to the last state, to read or to fill.

    Parameters
    ----------
    system : System
        The system.

    Returns
    -------
    curvature : (a_L, a_L) array
        The curvature. For a net with B samples there are B such blocks below one another.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system = embedded.chain([2], [1])
    >>> embedded.terminal(system)[...] = np.eye(2)
    """
    n = system.lin.curvature.shape[2]
    return matrix(system.lin.curvature, 0, system.lin.curvature.shape[0] * n, n)


@_kernel
def factorize(system: System, damping: float, norm: float) -> tuple[int, int, int]:
    """Factorize ``H + damping I`` from the blocks of the system, and overwrite the factors that it had.

    Parameters
    ----------
    system : System
        The system.
    damping : float
        The damping. It must not be 0 if a dense layer has more weights per output than there are samples.
    norm : float
        About ||H||. Pivots below 1e-10 of it (1e-6 in float32) are treated as singular and perturbed. With 0.0 pivots
        are taken as they are, which is right if ``H + damping I`` is known to be positive definite.

    Returns
    -------
    code : int
        OK; or SINGULAR_PIVOT if a pivot was 0 and ``norm`` was 0.0; or NOT_FINITE if numbers were infinite or NaN.
    num_negative : int
        The number of negative eigenvalues of ``H + damping I``, exact as far as rounding allows.
    num_perturbed : int
        How many pivots were perturbed. If any were, solutions need refinement, and num_negative is uncertain.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system = embedded.chain([1], [1])
    >>> embedded.blocks(system, 0)[2][0, 0] = -3.0
    >>> embedded.factorize(system, 1.0, 0.0)
    (0, 1, 0)
    """
    pivoting = eliminate.scale_pivoting(system.pivoting, norm, damping)
    system.damping[0] = damping
    code, _ = eliminate.eliminate(
        system.table,
        0,
        system.table.size,
        system.params,
        system.lin,
        system.row_space,
        damping,
        pivoting,
        system.factors,
        system.elimination,
    )
    num_negative, num_perturbed = _count(system, damping) if code == OK else (0, 0)
    return code, num_negative, num_perturbed


@_kernel
def _count(system: System, damping: float) -> tuple[int, int]:
    """Negative and perturbed pivots of the factors."""
    num_negative, num_perturbed = 0, 0
    for l in range(system.table.size):
        layer = system.table[l]
        num_negative += layer.m - system.factors.num_positive[l]
        num_perturbed += system.factors.num_perturbed[l]
        if damping < 0.0:
            num_negative += layer.n_out * (layer.d - layer.r)
    return num_negative, num_perturbed


@_kernel
def multiply(system: System, V: Array, HV: Array) -> None:
    """Compute ``HV = V H``, without the damping.

    Parameters
    ----------
    system : System
        The system.
    V, HV : (k, P) contiguous arrays of the system's dtype
        The vectors, which are rows, and the products, which are overwritten.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system, v, Hv = embedded.chain([1], [1]), np.ones((1, 1)), np.empty((1, 1))
    >>> embedded.blocks(system, 0)[2][0, 0] = 3.0
    >>> embedded.multiply(system, v, Hv)
    >>> Hv
    array([[3.]])
    """
    _multiply(system, V, HV, 0.0, matrix(V, 0, 0, V.shape[1]))


@_kernel
def _multiply(system: System, V: Array, HV: Array, shift: float, b: Array) -> None:
    """``HV = V (H + shift I)``, or b minus that where there are rows of b."""
    dZ, dU, q, patches = system.tangents
    L = system.table.size
    product.tangents(system.table, 0, L, system.params, system.lin, V, dZ, dU, patches)
    none = matrix(HV, 0, 0, 2)
    product.adjoints(system.table, 0, L, system.params, system.lin, V, HV, dZ, dU, q, patches, shift, b, none)


@_kernel
def _substitute(system: System, b: Array, x: Array) -> None:
    substitute.substitute_back(
        system.table,
        0,
        system.table.size,
        system.params,
        system.lin,
        system.row_space,
        system.factors,
        system.damping[0],
        b,
        x,
        system.substitution,
    )
    _substitute_forth(system, b, x)


@_kernel
def _substitute_forth(system: System, b: Array, x: Array) -> None:
    substitute.substitute_forth(
        system.table,
        0,
        system.table.size,
        system.params,
        system.lin,
        system.row_space,
        system.factors,
        system.damping[0],
        b,
        x,
        system.substitution,
    )


@_kernel
def factorize_and_solve(
    system: System, damping: float, norm: float, b: Array, x: Array, refinements: int
) -> tuple[int, int, int]:
    """`factorize`, then `solve`: with one right-hand side of a positive definite chain in one sweep less.

    Parameters
    ----------
    system : System
        Of which the blocks are read and the factors overwritten.
    damping, norm : float
        As for `factorize`.
    b, x : (k, P) contiguous arrays of the system's dtype
        As for `solve`.
    refinements : int
        As for `solve`.

    Returns
    -------
    code, num_negative, num_perturbed : int
        As from `factorize`; x holds nothing of use unless the code is OK.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system, b, x = embedded.chain([1], [1]), np.ones((1, 1)), np.empty((1, 1))
    >>> embedded.blocks(system, 0)[2][0, 0] = 3.0
    >>> embedded.factorize_and_solve(system, 1.0, 0.0, b, x, 0)
    (0, 0, 0)
    >>> x
    array([[0.25]])
    """
    if b.shape[0] == 1:
        pivoting = eliminate.scale_pivoting(system.pivoting, norm, damping)
        if eliminate.eliminate_and_substitute_back(
            system.table, system.lin, damping, pivoting, system.factors, system.elimination, b, x
        ):
            system.damping[0] = damping
            _substitute_forth(system, b, x)
            _refine(system, b, x, refinements)
            return OK, 0, 0
    code, num_negative, num_perturbed = factorize(system, damping, norm)
    if code == OK:
        solve(system, b, x, refinements)
    return code, num_negative, num_perturbed


@_kernel
def solve(system: System, b: Array, x: Array, refinements: int) -> None:
    """Solve ``(H + damping I) x = b`` with the factors that `factorize` has computed.

    Parameters
    ----------
    system : System
        The system.
    b, x : (k, P) contiguous arrays of the system's dtype
        The right-hand sides, which are rows, at most ``num_vectors``; and the solutions, which are overwritten. x must
        not be b.
    refinements : int
        How many steps of iterative refinement to take, each of which costs a product with H and two sweeps. One is
        enough as a rule, and none is needed if ``H + damping I`` is well conditioned and positive definite.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_hinv import embedded
    >>> system, b, x = embedded.chain([1], [1]), np.ones((1, 1)), np.empty((1, 1))
    >>> embedded.blocks(system, 0)[2][0, 0] = 3.0
    >>> embedded.factorize(system, 1.0, 0.0)[0] == embedded.OK
    True
    >>> embedded.solve(system, b, x, 0)
    >>> x
    array([[0.25]])
    """
    _substitute(system, b, x)
    _refine(system, b, x, refinements)


@_kernel
def _refine(system: System, b: Array, x: Array, refinements: int) -> None:
    k, P = b.shape
    for _ in range(refinements):
        residual, correction = matrix(system.residual, 0, k, P), matrix(system.correction, 0, k, P)
        _multiply(system, x, residual, system.damping[0], b)
        _substitute(system, residual, correction)
        for t in range(k):
            for i in range(P):
                x[t, i] += correction[t, i]
