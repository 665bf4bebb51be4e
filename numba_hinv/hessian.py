"""The Hessian of a chain of layers as a SciPy linear operator; `Hessian.factorize` gives its inverse."""

import numpy as np
from scipy.sparse.linalg import LinearOperator

from . import columns, layer_blocks, many, processor, scaling, threads
from .chunks import chunks
from .factorization import Factorization, factor_nbytes
from .kernels.layers import layer_table
from .kernels.linearise import Linearisation
from .kernels.row_space import RowSpace
from .probe import random_signs
from .progress import bar
from .scaling import lengths
from .validation import as_real, check_finite

# On 60 small nets these reached 0.74 of the norm at least, 0.97 in the median.
_POWER_STEPS = 4
# Where a count of eigenvalues is uncertain, the shifts around it that are tried, in units of ||H||.
_BESIDE = (1e-10, 1e-8, 1e-6)
# Where a product overflows between the layers, the vectors are divided by 2 to this power first.
_SMALLER = 600


class Hessian(LinearOperator):
    """Hessian H of a net's loss in its parameters, (P, P) and symmetric.

    Made by `Network.hessian`, or by `Hessian.from_blocks` for any chain whose derivatives are at hand. A
    `scipy.sparse.linalg.LinearOperator`: ``H @ v`` costs about 6 B P multiply-adds for a net, and H is never stored.

    Attributes
    ----------
    loss : float or None
        None, as the gradient and the network, where H was made from blocks.
    gradient : (P,) array or None
        Of the loss, at the parameters that the Hessian was taken at.
    network : Network or None
    curvature : str
        "hessian", or "ggn" where this is the Gauss-Newton matrix in its place.
    l2 : float
        The multiple of the identity that an L2 term has added; part of H.
    device : str
        "cpu", or "cuda" where the derivative blocks lie on a GPU and everything is computed there.
    num_layers : int
        L.
    dtype : numpy.dtype
        That of the parameters. Products are computed in float64 in any case.
    """

    def __init__(
        self, chain, params, lin, dtype, loss=None, gradient=None, network=None, layers=None,
        curvature="hessian", l2=0.0, on=processor.CPU,
    ):
        super().__init__(np.dtype(dtype), (params.size, params.size))
        self.network = network
        self.curvature = curvature
        self.l2 = l2
        self.loss = loss
        self.gradient = gradient
        self._chain = chain
        self._params = params
        self._lin = lin
        self._norm = self._logarithms = None
        self._processor = on
        self._prepare(layers)

    @classmethod
    def from_blocks(cls, blocks, terminal=None, device="cpu"):
        """The Hessian of any chain ``z_l = f_l(z_{l-1}; x_l)`` from the derivatives of its layers (design, section 4).

        Parameters
        ----------
        blocks : sequence of LayerBlocks
            First layer first. The states that layer l takes are as many as layer l - 1 leaves; those of the first layer
            are fixed, so that its Dz, Dzx and Dzz do not matter.
        terminal : (a_L, a_L) symmetric array, optional
            Curvature of the loss in the last state; 0 by default.
        device : "cpu" or "cuda"
            As for `Network.hessian`.

        Returns
        -------
        Hessian
            In the parameters of all layers, first layer first; float32 where all blocks are.

        Raises
        ------
        TypeError, ValueError
            The layers do not meet, or a block is not finite or not symmetric: which one.

        Notes
        -----
        The blocks are copied. With a states, p parameters and a_in incoming states, a factorization costs about
        2 a^2 (p + a_in) + a (p + a_in)^2 + p^3/3 + p^2 a_in + p a_in^2 flops a layer.
        """
        on = processor.get(device)
        chain, lin, dtype = layer_blocks.pack(blocks, terminal)
        params = np.zeros(int(chain.p.sum()))
        on.require(sum(block.nbytes for block in (params, *lin)), f"the derivative blocks of {chain.p.size} layers")
        return cls(chain, on.put(params), Linearisation(*map(on.put, lin)), dtype, on=on)

    def _prepare(self, layers=None):
        # The table and its sizes follow from the chain, so that they are not pickled.
        self._table, self._sizes = layers or layer_table(self._chain, self.num_samples)
        self._processor.load(np.dtype(np.float64))
        self._spaces, self._known_runs = {}, {}
        self._last_scaled = self._last_narrow = (None,)

    def __getstate__(self):
        # The norm and the logarithms stay: factors belong to the scaling that they were made with.
        state = self.__dict__.copy()
        for name in ("_table", "_sizes", "_spaces", "_known_runs", "_last_scaled", "_last_narrow"):
            del state[name]
        state["_params"], state["_lin"] = self._on_host()
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        on = self._processor
        self._params, self._lin = on.put(self._params), Linearisation(*map(on.put, self._lin))
        self._prepare()

    def _on_host(self):
        """(params, Linearisation) as NumPy arrays."""
        on = self._processor
        return on.take(self._params), Linearisation(*map(on.take, self._lin))

    def __repr__(self):
        if self.network is None:
            where = "" if self.device == "cpu" else f", on {self.device}"
            return f"<Hessian of a chain of {self.num_layers} layers, {self.shape[0]} parameters, {self.dtype}{where}>"
        name = "Hessian" if self.curvature == "hessian" else "Gauss-Newton matrix"
        l2 = f", l2 = {self.l2:g}" if self.l2 else ""
        where = "" if self.device == "cpu" else f", on {self.device}"
        return f"<{name} of {self.network!r}, B = {self.num_samples}{l2}, {self.dtype}{where}>"

    @property
    def device(self):
        return self._processor.name

    @property
    def num_layers(self):
        return self._table.size

    @property
    def num_samples(self):
        """B, the samples that the loss is the mean over."""
        return self._lin.output.shape[0]

    @property
    def terminal(self):
        """Curvature of the loss in the last state, (B n_L, B n_L), block diagonal over the samples."""
        return layer_blocks.block_diagonal(self._processor.take(self._lin.curvature)).astype(self.dtype, copy=False)

    def blocks(self, l):
        """The derivatives of layer ``l`` as `LayerBlocks`: what the elimination is about, whatever structure it uses.

        ``Hessian.from_blocks([H.blocks(l) for l in range(H.num_layers)], H.terminal)`` is H again. The states of B
        samples follow one another; the first layer takes none (a_in = 0).

        Parameters
        ----------
        l : int
            From 0; negative from the end.

        Raises
        ------
        TypeError, IndexError
            ``l`` is not an integer, or there is no such layer.

        Notes
        -----
        Takes 8 (a + a_in + p) (a_in + p) bytes, a = B n_out and a_in = B n_in.
        """
        return layer_blocks.unpack(self._table, *self._on_host(), l, self.dtype, self.l2)

    def factorize(self, damping, factor_dtype=None, checkpoint=False, progress=False):
        """Factorize ``H + damping I`` (design, section 3).

        Parameters
        ----------
        damping : float
            Any real; negative is a shift. 0 works where H is nonsingular.
        factor_dtype : float64 or float32, optional
            Precision of the factors, by default that of the parameters. Solves are refined in float64 all the same.
        checkpoint : bool
            Keep the factors of about sqrt(L) of the L layers, and make the rest again in every solve, from fronts kept
            at every sqrt(L)-th layer. The answers are the same, bit for bit (on a GPU, of a chain that would be cut in
            segments, up to rounding). Every solve, and every step of its
            refinement, then costs two eliminations more, for all right-hand sides of a call together.
        progress : bool
            Show a progress bar, for which tqdm must be installed.

        Returns
        -------
        Factorization

        Raises
        ------
        numpy.linalg.LinAlgError
            ``H + damping I`` is singular to working precision; the layer is named.
        MemoryError
            The factors would not fit; nothing has been allocated.
        ValueError, TypeError
            ``damping`` is not a finite real number.
        ImportError
            A progress bar is asked for and tqdm is not there.

        See Also
        --------
        factorize_many : for many dampings. factor_nbytes : the memory that it takes.

        Notes
        -----
        Per layer, with m = n_out min(B, d) and N = B n_in: m^3/3 + m^2 N + m N^2 flops and m^2/2 + m N numbers kept. On a
        GPU, long chains with fronts of at most 96 rows are eliminated in segments at the same time, which takes more flops in
        all, and keeps up to m max(N) numbers more a layer.
        """
        with bar(progress, self._table.size, "factorize", "layer") as shown:
            return Factorization(self, damping, factor_dtype, checkpoint, tick=shown.update)

    def factorize_many(self, dampings, factor_dtype=None, checkpoint=False, num_threads=None, progress=False):
        """Factorize ``H + damping I`` for many dampings at once, on all cores, or in one launch on a GPU.

        Parameters
        ----------
        dampings : (k,) array
        factor_dtype, checkpoint : as for `factorize`
        num_threads : int, optional
            At most so many dampings at the same time; by default as many as this process has cores. Pivots of about 190
            rows or more go to BLAS, which has threads of its own: then as many at the same time as leave every one its
            BLAS threads, so with OPENBLAS_NUM_THREADS=1 (set before Python starts) one a core.
        progress : bool
            Show a progress bar, for which tqdm must be installed.

        Returns
        -------
        list of Factorization
            Each bitwise that of `factorize`, in the order of the dampings.

        Raises
        ------
        numpy.linalg.LinAlgError
            One of the matrices is singular: the first such damping and its index are named, and nothing is returned.
        MemoryError
            They would not fit all together; nothing has been allocated.
        ValueError, TypeError
            ``dampings`` is not an array of finite real numbers.

        Notes
        -----
        Norm, row spaces and scaled blocks are computed once. Each elimination at work needs its workspace, two fronts and
        a few blocks, beside the factors that are kept. On a GPU all are at work at the same time, and the memory of their
        factors is given back with the last of them.
        """
        return many.factorize_many(self, dampings, factor_dtype, checkpoint, num_threads, progress)

    @property
    def factor_nbytes(self):
        """Bytes that ``factorize`` takes at its peak, as `nbytes_to_factorize` gives them for its defaults."""
        return self.nbytes_to_factorize()

    def nbytes_to_factorize(self, factor_dtype=None, checkpoint=False):
        """Bytes that `factorize` takes at its peak, beyond what this Hessian has in memory already.

        Factors, two fronts and the workspace of one layer, and what factorizations of this Hessian share: row spaces, and
        scaled or narrower copies of the derivative blocks. A few vectors of P numbers, for estimates and solves, come and
        go at other times and are not counted.

        Parameters
        ----------
        factor_dtype, checkpoint : as for `factorize`

        Returns
        -------
        num_bytes : int

        Notes
        -----
        Allocates none of it. Costs the five products with H of a first factorization, once.
        """
        return factor_nbytes(self, factor_dtype, checkpoint)

    def count_below(self, t):
        """How many eigenvalues of H are less than ``t``, exactly.

        By Sylvester's law from the signs of the pivots of ``H - t I``. Refinement with the factors must contract, which
        shows that rounding has changed no sign; where it does not, the counts at two shifts closely around ``t`` must
        agree.

        Parameters
        ----------
        t : float

        Returns
        -------
        count : int

        Raises
        ------
        numpy.linalg.LinAlgError
            An eigenvalue is too close to ``t`` to say on which side it lies, or H is too ill-conditioned there.
        TypeError, ValueError
            ``t`` is not a finite real number.

        See Also
        --------
        numba_hinv.eigenvalues_in, numba_hinv.spectral_density : the eigenvalues themselves, and their histogram.

        Notes
        -----
        Costs one factorization and one solve, in doubt a dozen; at worst, fourteen factorizations. "Exactly" rests on
        two estimates, of a norm and of a spectral radius, which random vectors make: thousands of random cases with
        shifts on and near eigenvalues of H and of its trailing blocks have found no wrong count.
        """
        t = as_real("t", t)
        count, reason = self._certified_count(t)
        if count is not None:
            return count
        for distance in _BESIDE:
            counts = {self._certified_count(t + side * distance * (self.norm() + abs(t)))[0] for side in (-1, 1)}
            if len(counts) == 1 and None not in counts:
                return counts.pop()
        raise np.linalg.LinAlgError(
            f"t: the eigenvalues below t={t:g} cannot be counted for certain: {reason}; expected a t further from an "
            f"eigenvalue of H (||H|| is {self.norm():.1e})"
        )

    def _certified_count(self, t):
        """(count, why not): the eigenvalues below t, or None and the reason."""
        try:
            factorization = Factorization(self, -t, np.float64)
            inertia = factorization.inertia
            if inertia.exact or (factorization.num_perturbed and factorization._is_certified()):
                return inertia.negative, ""
            if factorization.num_perturbed:
                # Without the limit on growth some pivots may need no perturbation.
                factorization._eliminate(np.inf)
                if factorization._is_certified():
                    return factorization.inertia.negative, ""
        except np.linalg.LinAlgError as error:
            return None, str(error).removeprefix("damping: ")
        return None, "a pivot has the size of rounding errors"

    def todense(self):
        """H as a (P, P) array, by P products."""
        P = self.shape[0]
        processor.CPU.require(8 * P * P, f"the dense Hessian of P = {P} parameters")
        dense = np.empty((P, P), np.float64)
        for start in range(0, P, columns.SHORT_BLOCK):
            rows = np.zeros((min(columns.SHORT_BLOCK, P - start), P))
            rows[np.arange(rows.shape[0]), start + np.arange(rows.shape[0])] = 1.0
            dense[start : start + columns.SHORT_BLOCK] = self._product(rows, self.dtype)
        dense += dense.T.copy()
        dense *= 0.5
        return dense.astype(self.dtype, copy=False)

    def norm(self):
        """Estimate of the 2-norm of H from below, by power steps; computed once, always from the same start."""
        if self._norm is None:
            # The gradient is rich in the leading eigenvectors; the random part is there for where it vanishes.
            v = random_signs(0, self.shape[0])
            v /= self.shape[0] ** 0.5
            if self.gradient is not None:
                # That of the L2 term is rich in nothing.
                slope = (self.gradient - self.l2 * self._processor.take(self._params))[None]
                steepness = lengths(slope)[0]
                if steepness > 0.0:
                    # Twice, so that the two cannot cancel.
                    v += slope / (0.5 * steepness)
            v /= lengths(v)
            v = self._processor.rows(v)
            product = np.empty_like(v)
            scratch = self._processor.multiply_workspace(self._sizes, 1, self.num_samples, v.dtype)
            for _ in range(_POWER_STEPS):
                self._sweep(self._params, self._lin, v, product, scratch, self.l2)
                v, product = product, v
                length = lengths(v)[0]
                if length == 0.0 or not np.isfinite(length):
                    break
                v /= length
            if not np.isfinite(length):
                raise np.linalg.LinAlgError("params, X, y: the Hessian overflows")
            self._norm = float(length)
        return self._norm

    def _state_logarithms(self):
        """How far the parameters move the states (`scaling.state_logarithms`), (L + 1,); computed once."""
        if self._logarithms is None:
            on, v = self._processor, self._processor.rows(random_signs(3, self.shape[0]))
            scratch = on.multiply_workspace(self._sizes, 1, self.num_samples, v.dtype)
            for start, stop in self._runs(1):
                on.tangents(self._table, start, stop, self._params, self._lin, v, scratch)
            self._logarithms = scaling.state_logarithms(self._table, on.take(scratch[0]).ravel(), self._lin.output.size)
        return self._logarithms

    def _output_tangents(self, rows, check=threads.no_check):
        """How the outputs move with the parameters, (k, B, n_L): the Jacobian times rows (k, P) of float64."""
        on, k = self._processor, rows.shape[0]
        scratch = on.multiply_workspace(self._sizes, k, self.num_samples, rows.dtype)
        for start, stop in self._runs(k):
            check()
            on.tangents(self._table, start, stop, self._params, self._lin, on.rows(rows), scratch)
        return on.output_tangents(scratch, (k, *self._lin.output.shape))

    def dot(self, x):
        """H @ x; of an array on the device, one on the device."""
        if not processor.is_on_device(x):
            return super().dot(x)
        return self._processor.result(self._matmat(x), x.shape)

    def __matmul__(self, x):
        return self.dot(x) if processor.is_on_device(x) else super().__matmul__(x)

    def _matvec(self, v):
        return self._matmat(v.reshape(-1, 1)).reshape(v.shape)

    def _matmat(self, V):
        on = self._processor
        V, dtype = on.as_columns("v", V, self.shape[0], self.dtype)
        product = on.empty_columns(V, V.shape, dtype)

        buffers = columns.Buffers()

        def multiply_block(start, stop, check):
            rows = columns.gather(V, start, stop, buffers, check)
            out = on.place(product, start, stop)
            columns.scatter(self._product(rows, dtype, check, out, V), product, start)

        workers = on.num_workers(None, V.shape[1], self._solves_reach_blas())
        columns.run(multiply_block, V.shape, workers, on.column_block)
        return product

    def _adjoint(self):
        return self

    _transpose = _adjoint

    def _product(self, rows, dtype, check=threads.no_check, out=None, given=None):
        """`_apply`; ``LinAlgError`` where ``dtype`` cannot hold it.

        ``ValueError`` where v is not finite: rows are of ``given``.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            product = self._apply(rows, check, out)
            is_finite = np.isfinite(product.sum())
            if not is_finite:
                if given is not None and not np.isfinite(lengths(rows)).all():
                    check_finite("v", given)
                # Adjoints may overflow on the way to layers that do not feel them.
                product = np.ldexp(self._apply(np.ldexp(rows, -_SMALLER), check), _SMALLER)
                is_finite = np.isfinite(product.sum())
            fits = dtype == np.float64 and is_finite
            if not fits:
                largest = np.finfo(dtype).max
                fits = product.max(initial=0.0) <= largest and product.min(initial=0.0) >= -largest
        if not fits:
            raise np.linalg.LinAlgError(f"v: the product with the Hessian overflows {dtype}")
        return product

    def _apply(self, rows, check=threads.no_check, out=None):
        """rows H in float64, rows (k, P)."""
        return self._multiply(rows, shift=self.l2, check=check, out=out)

    def _multiply(self, rows, scale=None, shift=0.0, b=None, check=threads.no_check, out=None, squares=None):
        """rows (H + (shift - l2) I) in float64, rows (k, P), H scaled as ``scale`` says; b minus that if b is given.

        Then the squared norms of what is returned and of rows are added to ``squares`` (k, 2) where that is cheap.
        """
        rows = self._processor.rows(rows)
        product = np.empty_like(rows) if out is None else out
        scratch = self._processor.multiply_workspace(self._sizes, rows.shape[0], self.num_samples, rows.dtype)
        params, lin = (self._params, self._lin) if scale is None else self._scaled(scale)
        self._sweep(params, lin, rows, product, scratch, shift, b, check, squares)
        return product

    def _sweep(self, params, lin, rows, product, scratch, shift=0.0, b=None, check=threads.no_check, squares=None):
        runs = self._runs(rows.shape[0])
        for start, stop in runs:
            check()
            self._processor.tangents(self._table, start, stop, params, lin, rows, scratch)
        for start, stop in reversed(runs):
            check()
            self._processor.adjoints(self._table, start, stop, params, lin, rows, product, scratch, shift, b, squares)

    def _solves_reach_blas(self):
        return many.solves_reach_blas(self)

    def _runs(self, num_vectors):
        """Layers for one compiled call of a product with so many vectors."""
        found = self._known_runs.get(num_vectors)
        if found is None:
            flops = 6.0 * num_vectors * self.num_samples * self._table["p"]
            found = self._known_runs[num_vectors] = chunks(flops + 16.0 * num_vectors * self._table["p"])
        return found

    def _scaling(self, damping, dtype):
        """The `Scaling` of ``H + damping I`` for sweeps in ``dtype``."""
        return scaling.choose(self._state_logarithms(), self._table["skip"], self.norm() + abs(damping), dtype)

    def _scaled(self, scale):
        """(params, Linearisation) of the scaled problem in float64; the last one made is kept."""
        if scale.matrix == 0 and not scale.states:
            return self._params, self._lin
        key, *blocks = self._last_scaled
        if key != scale:
            blocks = scaling.scale_blocks(
                scale, self._table, self.num_samples, self._params, self._lin, self._processor.ldexp
            )
            self._last_scaled = scale, *blocks
        return blocks

    def _row_space(self, dtype):
        """`RowSpace` of the layers' inputs in ``dtype``; made once."""
        if dtype not in self._spaces:
            if dtype == np.float64:
                self._spaces[dtype] = self._processor.span(self._table, self._sizes, self._lin)
            else:
                space = self._row_space(np.dtype(np.float64))
                self._spaces[dtype] = RowSpace(*(self._processor.astype(block, dtype) for block in space))
        return self._spaces[dtype]

    def _block_bytes(self, dtype, scale):
        """Bytes that `_blocks` has to allocate."""
        lin, scalars = self._lin, self._sizes.Q + self._sizes.R
        num_bytes = 0 if np.dtype(np.float64) in self._spaces else 8 * scalars
        if (scale.matrix or scale.states) and self._last_scaled[0] != scale:
            num_bytes += sum(block.nbytes for block in lin) - lin.Z.nbytes - lin.output.nbytes
            num_bytes += self._params.nbytes if scale.states else 0
        if dtype != np.float64:
            num_bytes += 0 if dtype in self._spaces else dtype.itemsize * scalars
            if self._last_narrow[0] != scale:
                num_bytes += dtype.itemsize * (self._params.size + sum(block.size for block in lin))
        return num_bytes

    def _blocks(self, dtype, scale):
        """(params, Linearisation, RowSpace) that the sweeps of a factorization read, in ``dtype``."""
        params, lin = self._scaled(scale)
        if dtype != np.float64:
            key, *blocks = self._last_narrow
            if key != scale:
                astype = self._processor.astype
                blocks = astype(params, dtype), Linearisation(*(astype(block, dtype) for block in lin))
                self._last_narrow = scale, *blocks
            params, lin = blocks
        return params, lin, self._row_space(dtype)
