"""The factorization of ``H + damping I``: solves, inertia, log-determinant. Itself the inverse, as a linear operator.

The public face of a `certainty.solver.Solver`: arguments are checked here, columns become rows, and what is promised is
compared with what was found.
"""

import functools
import operator
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from .certainty import condition, covariance, determinant, solution
from .certainty.inertia import Inertia
from .certainty.solver import Solver
from .factors import choice
from .runtime import archive, memory_budget, representation, tensors, threads
from .runtime.annotations import AnyTensor, Array, FloatArray, FloatType, Ridge
from .runtime.progress import bar, is_wanted
from .runtime.randomness import Rng, as_generator, formerly_rng_first
from .runtime.validation import as_flag, as_float_dtype, as_layer, as_size
from .system import processor
from .system.operators import SymmetricOperator
from .system.processor import require_cpu
from .system.ridge import as_ridge
from .system.shifted import Shifted

if TYPE_CHECKING:
    from .hessian import Hessian

# What files are, the version of their format, and those which `storage` reads: 4 had dense factors of LAPACK alone, and
# 6 neither images, local layers, frozen ones nor ridges.
KIND, FORMAT, READABLE = "numba_hinv factorization", 7, (4, 5, 6, 7)


def factor_dtype_of(hessian: Any, factor_dtype: FloatType | None) -> np.dtype[Any]:
    """The dtype of the factors, by default that of the Hessian."""
    return as_float_dtype("factor_dtype", hessian.dtype if factor_dtype is None else factor_dtype)


def method_of(system: Any, method: str, checkpoint: bool) -> str:
    """The method, once it is sure that it is one which a system can be factorized by."""
    if not isinstance(method, str) or method not in choice.METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, choice.METHODS))}; got {method!r}")
    if not system.has_layers and (method == "layers" or checkpoint):
        what = "method: expected 'dense' or 'auto'" if method == "layers" else "checkpoint: expected False"
        why = "a Hessian of samples in batches, which has no layers to eliminate"
        way_out = "samples in one array and one batch have them"
        if system.ridge_needs_dense:
            why = "an L2 term or damping by parameter of a layer with fewer samples than inputs"
            way_out = "one number for all weights of such a layer, and one for its biases, can be eliminated by layers"
        given = repr(method) if method == "layers" else checkpoint
        raise ValueError(f"{what} for {why}, got {given}; {way_out}")
    if method == "dense" and checkpoint:
        raise ValueError("method: expected 'layers' or 'auto' with checkpoint=True, got 'dense'")
    if method == "dense" and system.on.name != "cpu":
        raise ValueError(f"method: expected 'layers' or 'auto' for a Hessian on {system.on.name!r}, got 'dense'")
    return method


def segments_of(
    hessian: Any, num_segments: int | None, num_threads: int | None, method: str, checkpoint: bool
) -> int | None:
    """Segments that a chain is cut into at most, None where its processor is to say so."""
    if num_segments is None:
        count = None if num_threads is None else as_size("num_threads", num_threads)
        return None if checkpoint or hessian.device != "cpu" else count
    num_segments = as_size("num_segments", num_segments)
    if num_segments > 1 and (checkpoint or method == "dense" or not hessian.system.has_layers):
        given = "checkpoint=True" if checkpoint else "the dense matrix"
        raise ValueError(f"num_segments: expected 1 with {given}, which has no segments, got {num_segments}")
    return num_segments


class Factorization(SymmetricOperator):
    """The inverse of ``H + damping I``, which `Hessian.factorize` makes.

    It is a `scipy.sparse.linalg.LinearOperator`: ``F @ b`` is ``F.solve(b)``.

    Attributes
    ----------
    hessian : Hessian
        The Hessian H.
    damping : float or (P,) array
        The damping; an array if it is not the same for all parameters.
    inertia : Inertia
        The numbers of negative, zero and positive eigenvalues of ``H + damping I``, by Sylvester's law from the signs
        of the pivots.
    num_perturbed : int
        How many pivots were singular to working precision and were perturbed.
    method : str
        How the matrix was factored: "layers" or "dense".
    checkpoint : bool
        Whether the factors of all but a few layers are computed again in every solve.
    factor_dtype : numpy.dtype
        The precision of the factors.
    nbytes : int
        How many bytes the factors take, checkpoints included.

    Examples
    --------
    >>> import numba_hinv as nh, numpy as np
    >>> net = nh.Network([nh.Dense(2, 1, "identity")], "mean_squared_error")
    >>> X, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.array([1.0, 2.0, 4.0])
    >>> H = net.hessian(np.zeros(3), X, y)
    >>> F = H.factorize(damping=0.5)
    >>> x = F.solve(H.gradient)
    >>> np.allclose(H @ x + 0.5 * x, H.gradient)
    True
    >>> F.inertia.positive, F.slogdet()[0]
    (3, 1.0)
    """

    _operand, _dense = "b", "todense() is its array"
    solver: Any

    def __init__(
        self, hessian: "Hessian", solver: Any, checkpoint: bool = False, dampings: Array | None = None
    ) -> None:
        """Private: `Hessian.factorize`."""
        super().__init__(hessian.dtype, hessian.shape)
        self.hessian: Hessian = hessian
        self.checkpoint: bool = checkpoint
        self.solver, self._dampings = solver, dampings
        self._determinant: determinant.Determinant | None = None

    @classmethod
    def compute(
        cls,
        hessian: "Hessian",
        damping: Ridge,
        factor_dtype: FloatType | None = None,
        checkpoint: bool = False,
        progress: bool | None = None,
        method: str = "auto",
        num_threads: int | None = None,
        num_segments: int | None = None,
        dampings: Array | None = None,
    ) -> "Factorization":
        """Factorize a Hessian, which is what `Hessian.factorize` calls.

        Parameters
        ----------
        hessian : Hessian
            The Hessian H.
        damping : float, or sequence
            As for `Hessian.factorize`.
        factor_dtype, checkpoint, progress, method, num_threads, num_segments : as for `Hessian.factorize`
            How to factorize it.
        dampings : (P,) array, optional
            A diagonal to add beside ``damping``, which then is a number.

        Returns
        -------
        Factorization
            The inverse of ``H + damping I`` as an operator.
        """
        system = hessian.system
        if dampings is None:
            damping, dampings = as_ridge("damping", damping, system.chain, system.first)
        if dampings is not None:
            require_cpu(system.on, "a damping by layer")
            system = system.with_ridge(dampings if system.ridge is None else dampings + system.ridge)
        dtype, checkpoint = factor_dtype_of(hessian, factor_dtype), as_flag("checkpoint", checkpoint)
        method = method_of(system, method, checkpoint)
        num_segments = segments_of(hessian, num_segments, num_threads, method, checkpoint)
        with threads.limited(num_threads):
            if is_wanted(progress) and choice.chosen(system, dtype, method, checkpoint) == "dense":
                # With a bar of its own, since it may take longer than to factor it.
                choice.require(system, dtype, "dense")
                system.kept_dense(progress)
            with bar(progress, hessian.num_layers, "factorize", "layer") as shown:
                matrix = Shifted(system, damping, dtype)
                solver = Solver.factorize(matrix, method, checkpoint, shown.update, num_segments)
        return cls(hessian, solver, checkpoint, dampings)

    def __repr__(self) -> str:
        return f"<Inverse of {self.hessian!r} + {self._added_text()}>"

    @property
    def num_perturbed(self) -> int:
        return self.solver.factors.num_perturbed

    @property
    def method(self) -> str:
        return self.solver.factors.method

    @property
    def factor_dtype(self) -> np.dtype[Any]:
        return self.solver.matrix.dtype

    @property
    def nbytes(self) -> int:
        return self.solver.factors.nbytes

    def _repr_html_(self) -> str:
        facts = {
            "inverse of": f"{self.hessian!r} + {self._added_text()}", "factored by": self.method,
            "precision of the factors": self.factor_dtype, "negative pivots": self.solver.factors.num_negative,
            "perturbed pivots": self.num_perturbed, "memory of the factors": representation.memory(self.nbytes),
            "made again in every solve": self.checkpoint or None,
        }  # fmt: skip
        return representation.table("Factorization", facts)

    def _added_text(self) -> str:
        return f"{self.damping:g} I" if self._dampings is None else "damping by layer"

    @property
    def damping(self) -> float | FloatArray:
        return self.solver.matrix.damping if self._dampings is None else self._dampings.copy()

    @property
    def inertia(self) -> Inertia:
        solver = self.solver.decided()
        negative = solver.factors.num_negative
        return Inertia(negative, 0, self.shape[0] - negative, solver.is_exact())

    def todense(self, progress: bool | None = None) -> FloatArray:
        """Compute ``(H + damping I)^-1`` as an array.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        array : (P, P) array
            The inverse, exactly symmetric, in the dtype of the parameters.

        Raises
        ------
        MemoryError
            The inverse would not fit; nothing has been allocated.

        See Also
        --------
        diagonal, blocks : Parts of the inverse, without computing the rest.
        solve : The better way where the inverse is only multiplied with vectors.

        Notes
        -----
        Costs P solves, with their refinement and its warning, and 24 P^2 bytes.
        """
        P = self.shape[0]
        memory_budget.require(24 * P * P, f"the dense inverse of P = {P} parameters", "take F.solve, or F.diagonal()")
        found = self.solve(np.eye(P), progress=progress)
        return (0.5 * (found + found.T)).astype(self.dtype, copy=False)

    def slogdet(self, progress: bool | None = None) -> tuple[float, float]:
        """Compute the sign and the logarithm of the magnitude of ``det(H + damping I)``.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        sign : float
            1.0 or -1.0, which follows from ``inertia``: it is certain only if ``inertia.exact`` is True.
        logabsdet : float
            The natural logarithm of the magnitude of the determinant.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The relative error of ``logabsdet`` (the absolute one if it is less than 1) may be above 1e-10, or 1e-4
            with factors in float32; the message says by how much it may be off.

        Notes
        -----
        Costs nothing in float64 if no pivot is small. Otherwise it takes one to six solves and, if digits are missing,
        one factorization in float64, for which there must be memory, or eight factorizations with nearby dampings
        (docs/theory.md, section 9.6). The work is done once.
        """
        if self._determinant is None:
            with bar(progress, None, "slogdet", "step") as shown:
                self._determinant = determinant.determinant(self.solver, shown.update)
        determinant.warn(self.solver, self._determinant, stacklevel=3)
        return self._determinant.sign, self._determinant.logabsdet

    def diagonal(self, progress: bool | None = None) -> FloatArray:
        """Compute the diagonal of ``(H + damping I)^-1``: variances, if that is positive definite.

        This takes one recursion over the layers (docs/theory.md, section 6), in time linear in their number L.

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
        numpy.linalg.LinAlgError
            Some entries are not finite.
        MemoryError
            The recursion would not fit into memory; nothing has been allocated.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The error of an entry may be above 1e-8 (1e-3 with factors in float32), relative to the entry or, if
            H + damping I is indefinite, to the norm of its column of the inverse; the message says by how much it may
            be off.

        See Also
        --------
        blocks : The block of one layer.
        solve : With unit vectors, it gives single columns, which are refined.

        Notes
        -----
        The diagonal is not refined. That hardly matters if H + damping I is positive definite; if it is indefinite,
        pivots near zero amplify rounding (docs/theory.md, section 9.6).

        Costs as much as two to six factorizations if layers are large, and eleven if they have a dozen parameters;
        twice that if the matrix is indefinite. That includes three solves that estimate the error.
        """
        return covariance.diagonal(self.solver, self.dtype, progress=progress)

    def blocks(self, l: int, progress: bool | None = None) -> FloatArray:
        """Compute the diagonal block of ``(H + damping I)^-1`` for the parameters of layer ``l``: their covariance.

        Parameters
        ----------
        l : int
            The layer, counted from 0, or from the end if negative.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        block : (p, p) symmetric array
            The block, in the order of the flat vector of parameters; empty for a frozen layer.

        Raises
        ------
        TypeError, IndexError
            ``l`` is not an integer, or there is no such layer.
        numpy.linalg.LinAlgError, MemoryError
            As for `diagonal`.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            As for `diagonal`. The error of an entry off the diagonal is taken relative to the geometric mean of the
            scales of its row and its column.

        Notes
        -----
        Costs the recursion of `diagonal` up to layer l, which is done once, about 6 p^2 (m + N) flops and memory for
        5 p^2 numbers for the block, and six solves that estimate the error.
        """
        l = as_layer("l", l, self.hessian.num_layers) - self.solver.matrix.system.first
        if l < 0 or not self.solver.matrix.system.chain.p[l]:
            return np.empty((0, 0), self.dtype)
        return covariance.block(self.solver, l, self.dtype, progress)

    @formerly_rng_first
    def sample(
        self, n: int | None = None, *, rng: Rng = None, num_threads: int | None = None, progress: bool | None = None
    ) -> FloatArray:
        """Draw samples of the normal distribution with mean 0 and covariance ``(H + damping I)^-1``.

        Parameters
        ----------
        n : int, optional
            How many samples to draw; by default one, without an axis of its own.
        rng : int, numpy.random.Generator or None
            A seed, or the generator to draw from, given by name only. By default samples are different each time.
        num_threads : int, optional
            As for `solve`. The samples do not depend on it, bit for bit.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        samples : (n, P) or (P,) array
            The samples, one in each row.

        Raises
        ------
        numpy.linalg.LinAlgError
            H + damping I is not positive definite; the message gives its inertia.
        TypeError, ValueError
            ``rng`` or ``n`` is not what is expected.
        MemoryError
            The samples would not fit; nothing has been allocated.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The relative error of the variance in some direction may be above 1e-8 (1e-3 with factors in float32).

        Notes
        -----
        A square root of the inverse is applied to standard normal numbers, so that up to rounding the samples have
        exactly this distribution. Costs half a solve for each sample and, once, six solves for the warning.
        """
        rng, count = as_generator("rng", rng), 1 if n is None else as_size("n", n, 0)
        samples = covariance.sample(self.solver, rng, count, self.dtype, num_threads, progress)
        return samples[0] if n is None else samples

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the factorization, with its Hessian and net, to a file that `load` reads.

        The file is an npz archive of plain arrays with a checksum, without pickles. It is written completely or not at
        all.

        Parameters
        ----------
        path : str or os.PathLike
            Where to write; no suffix is added. An existing file is replaced.

        Raises
        ------
        TypeError, OSError
            ``path`` is not a path, or cannot be written.
        """
        # Files hold the factors of the chain as one.
        factors, matrix, hessian = self.solver.whole().factors, self.solver.matrix, self.hessian
        found = [matrix.system.to_arrays(), matrix.to_arrays(), factors.to_arrays()]
        network = None if hessian.network is None else hessian.network.describe()
        header = {"kind": KIND, "format": FORMAT, "network": network, "dtype": str(hessian.dtype)}
        if network is not None and hessian.network is not None and hessian.network.frozen_params.size:
            found.append(({}, {"frozen": hessian.network.frozen_params}))
        ridges = {"dampings": self._dampings, "l2": None if self._dampings is None else hessian.system.ridge}
        found.append(({}, {name: ridge for name, ridge in ridges.items() if ridge is not None}))
        header["ridges"] = sorted({"ridge", "dampings", "l2"} & {name for _, arrays in found for name in arrays})
        header |= {"loss": hessian.loss, "curvature": hessian.curvature, "total_weight": hessian.total_weight}
        archive.write(path, *(functools.reduce(operator.or_, parts) for parts in zip((header, {}), *found)))

    def condition(self, progress: bool | None = None) -> float:
        """Estimate the condition number ``||A||_1 ||A^-1||_1`` of ``A = H + damping I`` in the 1-norm.

        Up to rounding the estimate is a lower bound, whatever the precision of the factors. In every case tried it was
        at least half of the condition number (`numba_hinv.certainty.condition`), and with at most 16 parameters it is
        exact. The condition number in the 2-norm, in which backward errors are measured, is at most the one in the
        1-norm and at least that one over the number of parameters. The answer is always the same.

        Parameters
        ----------
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        condition : float
            The estimate.

        Notes
        -----
        Costs about thirty solves, six at a time, and as many products with H. Each solve is refined.
        """
        inverse: Callable[[Array], Any] = self.solver.inverse
        size, multiply = self.shape[0], self.solver.matrix.multiply
        back = None if self.solver.is_lifted() else multiply
        with bar(progress, None, "condition", "step") as shown:

            def counted(rows: Array) -> Any:
                found = inverse(rows)
                shown.update(1)
                return found

            return condition.one_norm(multiply, size) * condition.one_norm_of_inverse(back, counted, size)

    @overload
    def solve(
        self,
        b: AnyTensor,
        refine: bool = True,
        full_output: Literal[False] = False,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> AnyTensor: ...

    @overload
    def solve(
        self,
        b: ArrayLike,
        refine: bool = True,
        full_output: Literal[False] = False,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> FloatArray: ...

    @overload
    def solve(
        self,
        b: AnyTensor,
        refine: bool = True,
        *,
        full_output: Literal[True],
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> tuple[AnyTensor, solution.SolveInfo]: ...

    @overload
    def solve(
        self,
        b: ArrayLike,
        refine: bool = True,
        *,
        full_output: Literal[True],
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> tuple[FloatArray, solution.SolveInfo]: ...

    def solve(
        self,
        b: Any,
        refine: bool = True,
        full_output: bool = False,
        num_threads: int | None = None,
        progress: bool | None = None,
    ) -> Any:
        """Solve ``(H + damping I) x = b``.

        Parameters
        ----------
        b : (P,) or (P, k) array
            One right-hand side, or several as columns. It may be a PyTorch tensor on any device.
        refine : bool
            Whether to refine the solution with residuals in float64, until its normwise backward error
            ``||b - (H + damping I) x|| / (||H|| ||x|| + ||b||)`` is near machine precision. Without refinement, the
            answer is that of the two sweeps of substitution alone. For a chain given as blocks in which rounding of
            products with H exceeds the smallest pivots (unstable dynamics, barrier terms), the residual is that of the
            lifted system in controls, states and multipliers (docs/theory.md, section 11).
        full_output : bool
            Whether to return the errors and the refinement steps of the solution as well.
        num_threads : int, optional
            Right-hand sides are solved in blocks, of 16 if there are many parameters, and this is how many blocks are
            solved at the same time at most; by default one for each core, or as many as leave BLAS its own threads
            (`Hessian.factorize_many`). The answer does not depend on it.
        progress : bool, optional
            Show a progress bar, for which tqdm must be installed; by default what `set_progress` says.

        Returns
        -------
        x : array of the shape of b
            The solution, in the wider dtype of b and the parameters, and in Fortran order, so that every column is
            contiguous. If b is a tensor, a tensor with its dtype and on its device, which autograd treats as a constant
            (docs/pytorch.md shows how to differentiate through a solve).
        info : SolveInfo
            The errors and the numbers of refinement steps. Returned only with ``full_output``.

        Raises
        ------
        TypeError, ValueError
            b is not a finite real array of that shape.
        numpy.linalg.LinAlgError
            The solution overflows.
        ImportError
            A progress bar is asked for and tqdm is not installed.

        Warns
        -----
        scipy.linalg.LinAlgWarning
            The backward error stays above 1e-14 (1e-7 for float32 answers); the message gives it.

        Notes
        -----
        Reads the factors twice, and the derivative blocks once in every refinement step. A b in Fortran order is not
        copied; otherwise each thread copies the block of columns that it works on. ``full_output`` costs one more
        product for each column and, once for a factorization, four refined solves that estimate the norm of the
        inverse.
        """
        refine, full_output = as_flag("refine", refine), as_flag("full_output", full_output)
        solver, on = self.solver, self.hessian.system.on
        tensor, b = b, tensors.plain(b, self._is_on_device)
        given, dtype = on.columns.as_columns("b", b, self.shape[0], self.dtype)
        with threads.limited(num_threads):
            x, info = solution.solve(solver, given, dtype, refine, full_output, num_threads, progress)
        if refine:
            worst = max(info.backward_error.tolist(), default=0.0)
            solution.warn(solver, worst, info.refinement_steps, info.krylov_steps, dtype, stacklevel=3)
        shape = tuple(b.shape) if processor.is_on_device(b) else np.shape(b)
        x = tensors.like(on.columns.result(x, shape), tensor)
        if not full_output:
            return x
        errors, bounds = info.backward_error.reshape(shape[1:]), info.error_bound.reshape(shape[1:])
        return x, info._replace(backward_error=errors, error_bound=bounds)

    @property
    def _is_on_device(self) -> bool:
        return self.hessian.device != "cpu"

    def _of_device(self, x: Any) -> Any:
        return self.solve(x)

    def _matvec(self, b: Array) -> Array:
        return self.solve(b.reshape(-1)).reshape(b.shape)

    def _matmat(self, B: Array) -> Array:
        return self.solve(B)
