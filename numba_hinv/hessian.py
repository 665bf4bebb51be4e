"""The Hessian of a chain of layers as a SciPy linear operator; `Hessian.factorize` gives its inverse."""

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .certainty import counts, many
from .factorization import Factorization, factor_dtype_of, method_of
from .factors import choice
from .kernels.sweeps.linearise import Linearisation
from .layers import blocks as layer_blocks
from .layers import per_sample
from .runtime import columns, memory_budget, representation, threads
from .runtime.annotations import Array, Check, FloatArray, FloatType, IntArray, Method, Ridge
from .runtime.progress import bar
from .runtime.validation import as_array, as_flag, as_layer, as_real, check_finite
from .system import processor, total
from .system.operators import SymmetricOperator
from .system.processor import require_cpu
from .system.scaling import lengths
from .system.system import System

if TYPE_CHECKING:
    from .network import Network

# One kind of block of all layers.
Stack: TypeAlias = ArrayLike | Sequence[ArrayLike] | None


class Hessian(SymmetricOperator):
    """The Hessian H of a net's loss with respect to its parameters, a symmetric (P, P) operator.

    `Network.hessian` makes it for a net, and `Hessian.from_blocks` for any chain of layers whose derivatives are known.
    It is a `scipy.sparse.linalg.LinearOperator`: ``H @ v`` costs about 6 B P multiply-adds for a net, and H is never
    stored.

    Attributes
    ----------
    loss : float or None
        The loss at the parameters where the Hessian was taken. None if H was made from blocks, in which case there is
        no gradient and no network either.
    gradient : (P,) array or None
        The gradient of the loss at the same parameters.
    network : Network or None
        The net whose loss this is the Hessian of.
    curvature : str
        "hessian", or "ggn" if this is the Gauss-Newton matrix in place of the Hessian.
    l2 : float or (P,) array
        What an L2 term has added to the diagonal; it is part of H. An array if it is not the same for all parameters.
    device : str
        "cpu", or "cuda" if the derivative blocks are stored on a GPU and everything is computed there.
    total_weight : float or None
        The sum of the weights of the samples, each times the weight of its class; without weights, the number of
        samples.
    num_layers : int
        L, the number of layers, frozen ones included.
    dtype : numpy.dtype
        The dtype of the parameters. Products are computed in float64 in any case.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> H = net.hessian(np.zeros(3), X, y)
    >>> H.shape, H.loss
    ((3, 3), 7.0)
    >>> H.todense().round(3)
    array([[1.333, 0.667, 1.333],
           [0.667, 1.333, 1.333],
           [1.333, 1.333, 2.   ]])
    >>> (H @ np.ones(3)).round(3)
    array([3.333, 3.333, 4.667])
    """

    _operand = "v"
    _dense = (
        "todense() is its array (for SciPy's trust-exact and dogleg: "
        "hess=lambda params: net.hessian(params, X, y).todense())"
    )

    def __init__(
        self,
        system: Any,
        dtype: DTypeLike,
        loss: float | None = None,
        network: "Network | None" = None,
        curvature: str = "hessian",
        total_weight: float | None = None,
    ) -> None:
        """Private: `Network.hessian` and `Hessian.from_blocks`."""
        super().__init__(np.dtype(dtype), (system.num_params, system.num_params))
        self.system: Any = system
        self.network: Network | None = network
        self.curvature: str = curvature
        self.loss: float | None = loss
        self.total_weight: float | None = total_weight

    @classmethod
    def from_blocks(
        cls,
        blocks: Sequence[layer_blocks.LayerBlocks] | None = None,
        terminal: ArrayLike | None = None,
        device: str = "cpu",
        *,
        Dx: Stack = None,
        Dz: Stack = None,
        Dxx: Stack = None,
        Dzx: Stack = None,
        Dzz: Stack = None,
    ) -> "Hessian":
        """Make the Hessian of any chain ``z_l = f_l(z_{l-1}; x_l)`` from the derivatives of its layers.

        Parameters
        ----------
        blocks : sequence of LayerBlocks
            The layers, first layer first. Layer l takes as many states as layer l - 1 leaves. The states that come into
            the first layer are fixed, so that its Dz, Dzx and Dzz do not matter.
        terminal : (a_L, a_L) symmetric array, optional
            Curvature of the loss with respect to the last state; 0 by default.
        device : "cpu" or "cuda"
            As for `Network.hessian`.
        Dx, Dz, Dxx, Dzx, Dzz : (L, a, p), (L, a, a), (L, p, p), (L, p, a), (L, a, a) arrays, or sequences of matrices
            The blocks of all layers, named as in `LayerBlocks`, in place of ``blocks``. For layers of one size, arrays
            are the fastest way.

        Returns
        -------
        Hessian
            The Hessian with respect to the parameters of all layers, first layer first; float32 if all blocks are.

        Raises
        ------
        TypeError, ValueError
            A layer does not take as many states as the one before it leaves, or a block is not finite or not symmetric;
            the message says which. Or both blocks and arrays are given, or only some of the arrays.

        Notes
        -----
        The mathematics is in docs/theory.md, section 7. The blocks are copied, in one pass that also checks them. For
        a layer with a states, p parameters and a_in incoming states, a factorization costs about
        2 a^2 (p + a_in) + a (p + a_in)^2 + p^3/3 + p^2 a_in + p a_in^2 flops.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> one, zero = np.ones((50, 1, 1)), np.zeros((50, 1, 1))
        >>> H = nh.Hessian.from_blocks(Dx=one, Dz=one, Dxx=one, Dzx=zero, Dzz=one, terminal=[[1.0]])
        >>> H.factorize(0.0).inertia.positive
        50
        """
        on, arrays = processor.get(device), {"Dx": Dx, "Dz": Dz, "Dxx": Dxx, "Dzx": Dzx, "Dzz": Dzz}
        missing = [name for name, array in arrays.items() if array is None]
        if blocks is None and missing:
            raise TypeError(f"blocks: expected LayerBlocks, or all of Dx, Dz, Dxx, Dzx and Dzz, got no {missing[0]}")
        if blocks is not None and len(missing) < len(arrays):
            raise TypeError("blocks: expected LayerBlocks, or Dx, Dz, Dxx, Dzx and Dzz in their place, got both")
        layout, lin, dtype = layer_blocks.pack(blocks, terminal, arrays if blocks is None else None)
        params = np.zeros(layout.sizes.parameters)
        num_bytes = sum(block.nbytes for block in (params, *lin))
        what = f"the derivative blocks of {layout.table.size} layers"
        on.memory.require(num_bytes, what, "give narrower layers, or fewer samples in them")
        lin = Linearisation(*map(on.memory.put, lin))
        return cls(System(layout.chain, on.memory.put(params), lin, layout=layout, on=on), dtype)

    @classmethod
    def combine(cls, hessians: Iterable["Hessian"], weights: ArrayLike | None = None) -> "Hessian":
        """Make the weighted sum of Hessians of one net at the same parameters, such as those of two batches.

        Parameters
        ----------
        hessians : sequence of Hessian
            The Hessians, all on the CPU. Their derivative blocks are shared, not copied.
        weights : (k,) array, optional
            The weight of each Hessian. By default its share of the samples, each of which counts with its own weight,
            so that the sum is the Hessian of the mean loss over all samples; 1 if the loss is a sum over samples.
            ``H1 + H2`` is the plain sum, with weights of 1.

        Returns
        -------
        Hessian
            The weighted sum. Its loss, gradient and l2 are weighted sums, too. It is factored by ``method="dense"``.

        Raises
        ------
        TypeError, ValueError
            The Hessians are not of one net, at the same parameters and with one curvature, or the weights are not
            finite.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
        >>> X, y = np.eye(2), np.ones(2)
        >>> parts = [net.hessian(np.zeros(3), X[i : i + 1], y[i : i + 1]) for i in range(2)]
        >>> nh.Hessian.combine(parts).todense()
        array([[1., 0., 1.],
               [0., 1., 1.],
               [1., 1., 2.]])
        """
        hessians = list(hessians)
        if not hessians:
            raise ValueError("hessians: expected at least one Hessian, got none")
        for index, hessian in enumerate(hessians):
            if not isinstance(hessian, Hessian):
                raise TypeError(f"hessians: expected Hessians, got {type(hessian).__name__} at index {index}")
            if not _same_frozen(hessian.network, hessians[0].network):
                raise ValueError(f"hessians: expected the same frozen parameters in all, got others at index {index}")
            for name in ("dtype", "curvature"):
                if getattr(hessian, name) != getattr(hessians[0], name):
                    raise ValueError(f"hessians: expected the same {name} in all, got others at index {index}")
        if weights is None:
            weights = _shares(hessians)
        shares: list[float] = as_array("weights", weights, (len(hessians),), np.float64).tolist()
        first, losses = hessians[0], [hessian.loss for hessian in hessians]
        system = total.weighted_sum(shares, [hessian.system for hessian in hessians], first.dtype)
        known = [value for value in losses if value is not None]
        loss = sum(map(operator.mul, shares, known)) if len(known) == len(losses) else None
        totals = [hessian.total_weight for hessian in hessians if hessian.total_weight is not None]
        total_weight = sum(totals) if len(totals) == len(hessians) else None
        return cls(system, first.dtype, loss, first.network, first.curvature, total_weight)

    def __add__(self, other: Any) -> Any:
        """The plain sum, which can be factorized; with an operator that is no Hessian, SciPy's lazy sum."""
        return Hessian.combine([self, other], (1.0, 1.0)) if isinstance(other, Hessian) else super().__add__(other)

    def __repr__(self) -> str:
        where = "" if self.device == "cpu" else f", on {self.device}"
        if self.network is None:
            return f"<Hessian of a chain of {self.num_layers} layers, {self.shape[0]} parameters, {self.dtype}{where}>"
        name = "Hessian" if self.curvature == "hessian" else "Gauss-Newton matrix"
        l2 = f", l2 = {self.l2:g}" if self.system.l2 else ", l2 by layer" if self.system.ridge is not None else ""
        return f"<{name} of {self.network!r}, B = {self.num_samples}{l2}, {self.dtype}{where}>"

    def _repr_html_(self) -> str:
        gradient = self.gradient
        facts = {
            "network": self.network, "parameters": self.shape[0], "layers": self.num_layers,
            "samples": None if self.network is None else self.num_samples, "loss": self.loss,
            "norm of the gradient": None if gradient is None else float(np.linalg.norm(gradient)),
            "L2 term": (self.system.l2 or None) if self.system.ridge is None else "by layer", "dtype": self.dtype,
            "device": self.device,
        }  # fmt: skip
        name = "Hessian" if self.curvature == "hessian" else "Gauss-Newton matrix"
        return representation.table(name, facts)

    @property
    def gradient(self) -> FloatArray | None:
        return self.system.gradient

    @property
    def l2(self) -> float | FloatArray:
        return self.system.l2 if self.system.ridge is None else self.system.ridge.copy()

    def _l2_of(self, index: int) -> Any:
        """What the L2 term adds to the diagonal for one of the layers with blocks: a number or a vector."""
        if self.system.ridge is None:
            return self.system.l2
        entry = self.system.table[index]
        return self.system.ridge[entry["parameters"] : entry["parameters"] + entry["p"]]

    @property
    def device(self) -> str:
        return self.system.on.name

    @property
    def num_layers(self) -> int:
        return self.system.first + self.system.num_layers

    @property
    def num_samples(self) -> int:
        """B, the number of samples in the loss."""
        return self.system.num_samples

    @property
    def terminal(self) -> FloatArray:
        """Curvature of the loss with respect to the last state, (B n_L, B n_L), block diagonal over the samples."""
        self._require_layers("the terminal's curvature")
        curvature = self.system.on.memory.take(self.system.lin.curvature)
        return layer_blocks.block_diagonal(curvature).astype(self.dtype, copy=False)

    def blocks(self, l: int) -> layer_blocks.LayerBlocks:
        """Give the derivatives of layer ``l`` as `LayerBlocks`, without the structure that the library makes use of.

        ``Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)`` is H again. The states of the B
        samples follow one another; the first layer takes none (a_in = 0).

        Parameters
        ----------
        l : int
            The layer, counted from 0, or from the end if negative.

        Returns
        -------
        LayerBlocks
            The derivative blocks of the layer.

        Raises
        ------
        TypeError, IndexError
            ``l`` is not an integer, or there is no such layer.
        ValueError
            H is a sum over batches, or this layer and all layers before it are frozen.

        Notes
        -----
        Takes 8 (a + a_in + p) (a_in + p) bytes, where a = B n_out and a_in = B n_in.
        """
        self._require_layers("derivative blocks")
        first, index = self.system.first, as_layer("l", l, self.num_layers)
        if index < first:
            raise ValueError(
                f"l: expected a layer from {first} to {self.num_layers - 1}, since those before it are frozen and have "
                f"no derivative blocks; got {l}"
            )
        l2 = self._l2_of(index - first)
        params, lin = self.system.on_host()
        return layer_blocks.unpack(self.system.table, params, lin, index - first, self.dtype, l2)

    def _require_layers(self, what: str) -> None:
        if not self.system.has_layers:
            raise ValueError(f"H: expected a Hessian of samples in one batch for {what}, got a sum over batches")

    def factorize(
        self,
        damping: Ridge,
        factor_dtype: FloatType | None = None,
        checkpoint: bool = False,
        progress: bool | None = None,
        method: Method = "auto",
        num_threads: int | None = None,
        num_segments: int | None = None,
    ) -> Factorization:
        """Factorize ``H + damping I``, which makes its inverse an operator (docs/theory.md, section 3).

        Parameters
        ----------
        damping : float, or sequence
            Any real number: a negative one is a shift, and 0 works if H is nonsingular. It may also be one number for
            each layer, one pair (weights, biases) for each layer, or a (P,) array, which is a diagonal in place of
            ``damping I`` (docs/priors.md). A diagonal that differs within the weights or within the biases of a layer
            needs ``method="dense"``.
        factor_dtype : float64 or float32, optional
            Precision of the factors, by default that of the parameters. Solves are refined in float64 all the same.
        checkpoint : bool
            Keep the factors of about sqrt(L) of the L layers only, and compute the others again in every solve, from
            fronts kept at every sqrt(L)-th layer. The answers are the same, bit for bit (up to rounding on a GPU, for a
            chain that would otherwise be cut into segments). Every solve, and every step of its refinement, then costs
            two eliminations more, for all right-hand sides of a call together.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.
        method : "auto", "layers" or "dense"
            "layers" eliminates layer by layer, in time and memory linear in depth. "dense" forms H and factors it
            on all cores, whatever the number of samples, in P^3/3 flops; H takes 8 P^2 bytes, each factorization half
            as many, and a matrix that needs interchanges over all rows another 8 P^2. It is meant for data sets rather
            than minibatches. "auto" chooses the one with less work, and ``F.method`` says which that was. Both give the
            same answers with the same guarantees. On a GPU, and with ``checkpoint``, only "layers" is available.
        num_threads : int, optional
            How many threads work on one elimination by layers, by default one. With more, a long chain with fronts of
            at most 96 rows is cut into as many segments, which are eliminated, and solved with, at the same time. That
            is up to three times as much work, and needs one more solve and one more product to certify the inertia:
            with two threads it took longer than with one (docs/theory.md, section 10). A dense matrix is factored on at
            most so many threads, by default one for each core.
        num_segments : int, optional
            Into how many segments such a chain is cut at most, by default ``num_threads``. Answers differ with the
            number of segments in rounding only, and do not depend on the number of threads.

        Returns
        -------
        Factorization
            The inverse of ``H + damping I`` as an operator.

        Raises
        ------
        numpy.linalg.LinAlgError
            ``H + damping I`` is singular to working precision; the message names the layer.
        MemoryError
            The factors would not fit; nothing has been allocated.
        ValueError, TypeError
            ``damping`` is not a finite real number, ``method`` is not one of the three or is not available here, or
            ``num_threads`` or ``num_segments`` is not a positive integer.
        ImportError
            A progress bar is asked for and tqdm is not installed.

        See Also
        --------
        factorize_many : The same for many dampings at once.
        factor_nbytes : The memory that it takes.

        Notes
        -----
        With m = n_out min(B, d) and N = B n_in, a layer takes m^3/3 + m^2 N + m N^2 flops and its factors m^2/2 + m N
        numbers, where d is the number of columns of its weight and bias. On a GPU, long chains with fronts of at most
        96 rows are eliminated in segments at the same time, which takes more flops in all, and keeps up to m max(N)
        more numbers for each layer.
        """
        return Factorization.compute(
            self, damping, factor_dtype, checkpoint, progress, method, num_threads, num_segments
        )

    def factorize_many(
        self,
        dampings: ArrayLike,
        factor_dtype: FloatType | None = None,
        checkpoint: bool = False,
        num_threads: int | None = None,
        progress: bool | None = None,
        method: Method = "auto",
    ) -> list[Factorization]:
        """Factorize ``H + damping I`` for many dampings at once, on all cores, or in one launch on a GPU.

        Parameters
        ----------
        dampings : (k,) array
            The dampings, each one number.
        factor_dtype, checkpoint : as for `factorize`
            The precision of the factors, and whether only some of them are kept.
        num_threads : int, optional
            How many dampings to work on at the same time at most; by default as many as this process has cores. Pivots
            of about 190 rows or more are handed to BLAS, which has threads of its own. Then the default is as many as
            leave each damping its BLAS threads, which with OPENBLAS_NUM_THREADS=1 (set before Python starts) is one for
            each core.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.
        method : "auto", "layers" or "dense"
            As for `factorize`.

        Returns
        -------
        list of Factorization
            One for each damping, in their order, the same as that of `factorize` bit for bit. But 24 or more of the
            dense matrix share one eigendecomposition, which is as much work as some twenty factorizations, and agree
            with those of `factorize` up to rounding.

        Raises
        ------
        numpy.linalg.LinAlgError
            One of the matrices is singular: the message names the first such damping and its index, and nothing is
            returned.
        MemoryError
            There is no room for all of them together; nothing has been allocated.
        ValueError, TypeError
            ``dampings`` is not an array of finite real numbers.

        Notes
        -----
        Norm, row spaces and scaled blocks are computed once. Each elimination at work needs a workspace of its own, two
        fronts and a few blocks, beside the factors that are kept. On a GPU all are at work at the same time, and the
        memory of their factors is freed together with the last of them.
        """
        dampings = as_array("dampings", dampings, (None,), np.float64).tolist()
        dtype, checkpoint = factor_dtype_of(self, factor_dtype), as_flag("checkpoint", checkpoint)
        method = method_of(self.system, method, checkpoint)
        found = many.solvers(self.system, dampings, dtype, method, checkpoint, num_threads, progress)
        return [Factorization(self, solver, checkpoint) for solver in found]

    @property
    def factor_nbytes(self) -> int:
        """How many bytes ``factorize`` takes at its peak with its default arguments (`nbytes_to_factorize`)."""
        return self.nbytes_to_factorize()

    def nbytes_to_factorize(
        self, factor_dtype: FloatType | None = None, checkpoint: bool = False, method: Method = "auto"
    ) -> int:
        """Compute how many bytes `factorize` takes at its peak, beyond what this Hessian has in memory already.

        They are the factors, two fronts and the workspace of one layer, and what all factorizations of this Hessian
        share: row spaces, and scaled or narrower copies of the derivative blocks. The few vectors of P numbers that
        estimates and solves need for a while are not counted.

        Parameters
        ----------
        factor_dtype, checkpoint, method : as for `factorize`
            The arguments that `factorize` would be called with.

        Returns
        -------
        num_bytes : int
            The number of bytes.

        Notes
        -----
        Allocates none of them. The first call costs the five products with H that a first factorization needs, which
        are then not needed again.
        """
        dtype, checkpoint = factor_dtype_of(self, factor_dtype), as_flag("checkpoint", checkpoint)
        method = choice.chosen(self.system, dtype, method_of(self.system, method, checkpoint), checkpoint)
        return choice.num_bytes(self.system, dtype, method, checkpoint, [self.system.scaling(0.0, dtype)])

    @overload
    def count_below(self, t: float, num_threads: int | None = None, progress: bool | None = None) -> int: ...

    @overload
    def count_below(
        self, t: Sequence[float] | Array, num_threads: int | None = None, progress: bool | None = None
    ) -> IntArray: ...

    def count_below(self, t: Any, num_threads: int | None = None, progress: bool | None = None) -> Any:
        """Count exactly how many eigenvalues of H are less than ``t``, for one number or for many at once.

        By Sylvester's law, the signs of the pivots of ``H - t I`` give the count. Refinement with the factors must
        contract, which shows that rounding has changed no sign; where it does not, the counts at two shifts closely
        around ``t`` must agree.

        Parameters
        ----------
        t : float or (k,) array
            The number, or the numbers, below which eigenvalues are counted.
        num_threads : int, optional
            For an array, how many numbers to work on at the same time at most; by default one for each core, as for
            `factorize_many`. The counts do not depend on it.
        progress : bool, optional
            For an array, show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        count : int, or (k,) array of int
            The number of eigenvalues below each ``t``.

        Raises
        ------
        numpy.linalg.LinAlgError
            An eigenvalue is too close to ``t`` to say on which side it lies, or H is too ill-conditioned there. For an
            array, the message gives the index of the first such number.
        MemoryError
            The factorizations at work would not fit.
        TypeError, ValueError
            ``t`` is neither a finite real number nor an array of these.
        ImportError
            A progress bar is asked for and tqdm is not installed.

        See Also
        --------
        numba_hinv.eigenvalues_in : The eigenvalues themselves.
        numba_hinv.spectral_density : Their histogram, whose edges may be eigenvalues.

        Notes
        -----
        Costs one factorization and one solve, in doubtful cases a dozen solves, and at worst fourteen factorizations.
        24 or more numbers for an H that is factored as one dense matrix share one eigendecomposition. "Exactly" rests
        on two estimates with random vectors, of a norm and of a spectral radius: thousands of random cases with shifts
        on and near eigenvalues of H and of its trailing blocks have found no wrong count.

        Examples
        --------
        >>> import numba_hinv as nh, numpy as np
        >>> H = nh.Hessian.from_blocks([nh.LayerBlocks(np.ones((1, 3)), np.ones((1, 0)), np.diag([-1.0, 2.0, 3.0]),
        ...                                            np.ones((3, 0)), np.eye(0))])
        >>> H.count_below(0.0)
        1
        >>> H.count_below([0.0, 2.5, 4.0])
        array([1, 2, 3])
        """
        if not isinstance(t, (list, tuple)) and not getattr(t, "ndim", 0):
            return counts.below(self.system, as_real("t", t))
        shifts = as_array("t", t, (None,), np.float64).tolist()
        found = counts.at_all(self.system, shifts, counts.below, "t", num_threads, progress, unit="number")
        return np.array(found, np.int64)

    def todense(self, num_threads: int | None = None, progress: bool | None = None) -> FloatArray:
        """Compute H as an array.

        Parameters
        ----------
        num_threads : int, optional
            How many threads to use, by default one for each core. The result does not depend on it, bit for bit.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        array : (P, P) array
            H, exactly symmetric, computed in float64 and returned in the dtype of the parameters.

        Raises
        ------
        numpy.linalg.LinAlgError, MemoryError
            H overflows, or would not fit; in the latter case nothing has been allocated.

        Notes
        -----
        The mathematics is in docs/theory.md, section 13. Costs about B P^2 flops at the rate of matrix products, and
        8 P^2 bytes. Where P products with H cost less, H is computed by these.
        """
        dense = self.system.dense(num_threads=num_threads, progress=progress)
        if self.dtype != np.float64:
            self._require_fit(dense, self.dtype)
        return dense.astype(self.dtype, copy=False)

    def diagonal(self, progress: bool | None = None) -> FloatArray:
        """Compute the diagonal of H, exact up to rounding.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        diagonal : (P,) array
            The diagonal, in the dtype of the parameters.

        Raises
        ------
        ValueError
            H is on a GPU.
        numpy.linalg.LinAlgError
            The diagonal overflows.

        Notes
        -----
        Costs about 6 n^3 flops for each sample and each layer of width n, on one core, and never forms H.
        """
        system = self.system
        require_cpu(system.on, "the diagonal of H")
        if system.has_dense:
            found = system.kept_dense().diagonal().copy()
        else:
            with (
                bar(progress, system.num_samples, "diagonal", " samples") as shown,
                np.errstate(over="ignore", invalid="ignore"),
            ):
                found = np.zeros(self.shape[0])
                for share, part in system.parts():
                    found += share * per_sample.diagonal(part.table, part.weights, part.lin)
                    shown.update(part.num_samples)
                found += self.system.l2 + (0.0 if system.ridge is None else system.ridge)
        self._require_fit(found, self.dtype)
        return found.astype(self.dtype, copy=False)

    def trace(self, progress: bool | None = None) -> float:
        """Compute the trace of H, which is the sum of its eigenvalues, from the `diagonal`.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        trace : float
            The trace.
        """
        return float(self.diagonal(progress).sum(dtype=np.float64))

    def block(self, l: int, k: int | None = None, progress: bool | None = None) -> FloatArray:
        """Compute the block of H for the parameters of layer ``l`` (rows) and of layer ``k`` (columns).

        Parameters
        ----------
        l, k : int
            The layers, counted from 0, or from the end if negative. By default ``k = l``, which gives a block on the
            diagonal; it is exactly symmetric.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        block : (p_l, p_k) array
            The block, in the order of the flat vector of parameters and in their dtype.

        Raises
        ------
        TypeError, IndexError
            ``l`` or ``k`` is not an integer, or there is no such layer.
        MemoryError
            The block would not fit; nothing has been allocated.

        See Also
        --------
        blocks : The derivatives of one layer.
        Factorization.blocks : Blocks of the inverse.

        Notes
        -----
        Costs as many products with H as the smaller of the two layers has parameters, of 6 B P flops each.
        """
        sizes = np.append(np.zeros(self.system.first, np.int64), self.system.chain.p)
        l = as_layer("l", l, sizes.size)
        k = l if k is None else as_layer("k", k, sizes.size)
        ends = np.cumsum(sizes)
        of = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes)]
        few, many = (l, k) if sizes[l] <= sizes[k] else (k, l)
        count, P = int(sizes[few]), self.shape[0]
        memory_budget.require(
            8 * (count * int(sizes[many]) + 2 * P * columns.SHORT_BLOCK),
            f"the block of {count} x {sizes[many]} parameters",
        )
        found = np.empty((count, int(sizes[many])))
        with bar(progress, count, "block", "column") as shown:
            for start in range(0, count, columns.SHORT_BLOCK):
                stop = min(start + columns.SHORT_BLOCK, count)
                unit = np.zeros((P, stop - start))
                unit[of[few].start + np.arange(start, stop), np.arange(stop - start)] = 1.0
                found[start:stop] = (self @ unit)[of[many]].T
                shown.update(stop - start)
        if l == k:
            found = 0.5 * (found + found.T)
        return (found if few == l else found.T).astype(self.dtype)

    def norm(self) -> float:
        """Estimate the 2-norm of H from below by a few products, which are done once and always start the same way.

        Returns
        -------
        norm : float
            The estimate.
        """
        return self.system.norm()

    @property
    def _is_on_device(self) -> bool:
        return self.device != "cpu"

    def _of_device(self, x: Any) -> Any:
        return self.system.on.columns.result(self._matmat(x), x.shape)

    def _matvec(self, v: Array) -> Array:
        return self._matmat(v.reshape(-1, 1)).reshape(v.shape)

    def _matmat(self, V: Array) -> Array:
        on = self.system.on
        V, dtype = on.columns.as_columns("v", V, self.shape[0], self.dtype)
        product = on.columns.empty(V, V.shape, dtype)

        buffers = columns.Buffers()

        def multiply_block(start: int, stop: int, check: Check) -> None:
            rows = columns.gather(V, start, stop, buffers, check)
            out = on.columns.place(product, start, stop)
            columns.scatter(self._product(rows, dtype, check, out, V), product, start)

        workers = on.num_workers(None, V.shape[1], self.system.solves_reach_blas())
        columns.run(multiply_block, V.shape, workers, on.columns.block)
        return product

    def _product(
        self,
        rows: Array,
        dtype: np.dtype[Any],
        check: Check = threads.no_check,
        out: Array | None = None,
        given: Array | None = None,
    ) -> Array:
        """`System.apply`; ``LinAlgError`` where ``dtype`` cannot hold it.

        ``ValueError`` where v is not finite: rows are of ``given``.
        """
        apply = self.system.apply
        with np.errstate(over="ignore", invalid="ignore"):
            product = apply(rows, check, out)
            is_finite = np.isfinite(product.sum())
            if not is_finite:
                if given is not None and not np.isfinite(lengths(rows)).all():
                    check_finite("v", given)
                product = self.system.apply_smaller(rows, check)
                is_finite = np.isfinite(product.sum())
        if dtype != np.float64 or not is_finite:
            self._require_fit(product, dtype)
        return product

    @staticmethod
    def _require_fit(product: Array, dtype: np.dtype[Any]) -> None:
        """``LinAlgError`` where some of these numbers are beyond ``dtype``."""
        largest = np.finfo(dtype).max
        with np.errstate(over="ignore", invalid="ignore"):
            fits = product.max(initial=0.0) <= largest and product.min(initial=0.0) >= -largest
        if not fits:
            raise np.linalg.LinAlgError(f"v: the product with the Hessian overflows {dtype}")


def _same_frozen(one: Any, other: Any) -> bool:
    """Whether two networks, or None, hold the same parameters of frozen layers."""
    ours, theirs = (np.empty(0) if network is None else network.frozen_params for network in (one, other))
    return np.array_equal(ours, theirs)


def _shares(hessians: list[Hessian]) -> Array:
    """What makes the weighted sum of Hessians of some samples each that of all samples."""
    network = hessians[0].network
    if network is not None and network.loss_definition.reduction == "sum":
        return np.ones(len(hessians))
    counts = [h.num_samples if h.total_weight is None else h.total_weight for h in hessians]
    return np.array(counts, float) / np.sum(counts)
