"""The GPU as the operators see it: twin of `processor.Cpu`, with the same methods over the kernels of this package.

Arrays of the sweeps are device arrays with the offsets and layouts of the CPU's, vectors are `Rows`. All work goes to
one stream, in order.
"""

import numba.cuda
import numpy as np

from ..kernels.plumbing.status import OK
from ..kernels.steps import segment_table
from ..kernels.steps.layer_table import BLOCKS, block_sizes, layer_table
from ..kernels.steps.row_space import RowSpace
from ..kernels.sweeps.eliminate import Factors
from ..kernels.sweeps.linearise import Linearisation
from ..layers.losses import get_loss
from ..runtime import threads
from ..runtime.validation import as_columns, check_finite
from ..system.processor import CPU, is_on_device
from .plumbing import arrays
from .plumbing.launch import launch, spread
from .plumbing.rows import Rows, to_host
from .plumbing.target import BLOCK, LANES, PLAIN_SHARED, SIMULATED
from .steps import row_space
from .sweeps import eliminate, linearise, multiply, panels, segments, substitute, wide, wide_substitute

# Bytes of shared memory that kernels have of their own: `Team.pad`, and what the driver keeps for itself.
RESERVED_SHARED = 16 * BLOCK + 1024


class Device:
    """One GPU and a stream on it."""

    name = "cuda"
    # Right-hand sides that are solved at the same time, a block each.
    column_block = 64
    # Eliminations of many dampings, and of all segments of a chain, are one launch.
    batches = True
    # Fewer segments, or shorter ones, do not pay: in flops, for one sample and layers that are square, a layer costs a
    # segment twice as much as a chain, and a seam four times as much. The simulator sees any.
    fewest_segments, shortest_segment = (2, 2) if SIMULATED else (4, 16)

    def __init__(self, stream=0):
        if not numba.cuda.is_available():
            raise RuntimeError(
                "device: 'cuda' needs an NVIDIA GPU and its driver, and numba-cuda finds none: "
                f"{_why_not_available()}; expected device='cpu' on this machine"
            )
        self.stream = stream
        self._tables = []

    def __reduce__(self):
        # A stream belongs to its process.
        return Device, ()

    @classmethod
    def for_array(cls, array):
        """On the stream of an array's ``__cuda_array_interface__``, or on the default stream."""
        stream = (getattr(array, "__cuda_array_interface__", None) or {}).get("stream")
        # 1 and 2 are the default streams, legacy and of a thread.
        if stream is None or stream == 1:
            return cls()
        return cls(numba.cuda.per_thread_default_stream() if stream == 2 else numba.cuda.external_stream(stream))

    def load(self, dtype):
        """Nothing: kernels are compiled where they are launched first."""

    def num_workers(self, num_threads, num_jobs, reach_blas):
        """One: what runs at the same time is in one launch."""
        threads.num_workers(num_threads, num_jobs, reach_blas)
        return 1

    def require(self, num_bytes, purpose):
        """``MemoryError`` if ``num_bytes`` for ``purpose`` are not free on the device."""
        free = numba.cuda.current_context().get_memory_info().free
        if num_bytes > free:
            raise MemoryError(
                f"{purpose} would need {num_bytes:,} bytes ({num_bytes / 2**30:.2f} GiB) on the GPU, {free:,} are free"
            )

    def put(self, array):
        """A device array with the numbers of a NumPy array; one that is on the device as it is."""
        if is_on_device(array):
            return array
        return numba.cuda.to_device(np.ascontiguousarray(array), stream=self.stream)

    def take(self, array):
        """A NumPy array with the numbers of a device array."""
        return to_host(array, self.stream)

    def rows(self, array):
        return Rows.of(array, self.stream)

    def empty_rows(self, shape, dtype):
        return Rows.empty(shape, dtype, self.stream)

    def empty(self, shape, dtype):
        """An uninitialised array on the device."""
        return numba.cuda.device_array(shape, dtype, stream=self.stream)

    def row(self, array, t):
        """Row t of a matrix on the device, in its memory."""
        return self.part(array.reshape(array.size), slice(t * array.shape[1], (t + 1) * array.shape[1]))

    def part(self, array, where):
        """A slice of an array on the device, in its memory."""
        return array[where] if where.start < where.stop else self.empty(0, array.dtype)

    def as_rows(self, array):
        """Vectors for the sweeps in the memory of a (k, P) array on the device."""
        return Rows(array, self.stream)

    def _launch(self, kernel, grid, *arguments, shared=0):
        launch(kernel, grid, self.stream, *arguments, shared=shared)

    def as_columns(self, name, value, num_rows, default_dtype):
        """`validation.as_columns`, and the same of arrays on the device."""
        if not is_on_device(value):
            return as_columns(name, value, num_rows, default_dtype)
        if len(value.shape) not in (1, 2) or value.shape[0] != num_rows:
            raise ValueError(f"{name}: expected shape ({num_rows},) or ({num_rows}, k), got {tuple(value.shape)}")
        array = arrays.as_array(name, value, value.shape, None, self.stream)
        dtype = np.result_type(array.dtype, default_dtype)
        width = array.size // num_rows if array.size else value.shape[-1]
        return arrays.Columns(array.reshape(num_rows, width), self.stream), dtype

    def empty_columns(self, like, shape, dtype):
        """An uninitialised (P, k) array on the side of the given one."""
        if isinstance(like, arrays.Columns):
            return arrays.Columns.empty(shape, dtype, self.stream)
        return np.empty(shape, dtype)

    def place(self, array, start, stop):
        """None: rows are `Rows`, never a part of an array of columns."""

    def result(self, found, shape):
        """A (P, k) array as the caller gets it."""
        return (found.array if isinstance(found, arrays.Columns) else found).reshape(shape)

    def zero(self, array):
        """Fill an array with zeros."""
        if array.size:
            Rows(array.reshape(1, array.size), self.stream)[0] = 0.0

    def astype(self, array, dtype):
        """A copy of an array in another dtype."""
        if not array.size:
            return self.empty(array.shape, dtype)
        flat = Rows(array.reshape(1, array.size), self.stream).astype(dtype)
        return flat.data_on_device.reshape(array.shape)

    def ldexp(self, array, exponents):
        """A copy of an array times powers of two; exponents, an int or a NumPy array, are those of its entries."""
        # Made on the host, once for a factorization of a net whose states are scaled.
        return self.put(np.ldexp(self.take(array), exponents))

    def _table(self, table):
        """A layer table on the device; the last few are kept."""
        for host, found in self._tables:
            if host is table:
                return found
        found = self.put(table)
        self._tables = [*self._tables[-3:], (table, found)]
        return found

    def as_params(self, model, params):
        """A copy of the parameters on the device, in float64, and the dtype that they were given in."""
        if not is_on_device(params):
            work, dtype = CPU.as_params(model, params)
            return self.put(work), dtype
        meaning = " (the parameters of all layers)"
        given = arrays.as_array("params", params, (model.num_params,), None, self.stream, meaning)
        return self.astype(given, np.float64), np.dtype(given.dtype)

    def as_samples(self, model, X):
        if not is_on_device(X):
            return CPU.as_samples(model, X)
        meaning, shape = " (samples x inputs of the first layer)", (None, int(model.chain.n_in[0]))
        X = arrays.as_array("X", X, shape, np.dtype(np.float64), self.stream, meaning)
        if X.shape[0] == 0:
            raise ValueError("X: expected at least one sample, got an empty batch")
        return X

    def as_targets(self, model, y, num_samples):
        if not is_on_device(y):
            return CPU.as_targets(model, y, num_samples)
        if get_loss(model.loss_name)["targets"] == "labels":
            # One number a sample, and all of them have to be looked at.
            return CPU.as_targets(model, arrays.take_labels(y, self.stream), num_samples)
        outputs, given = int(model.chain.n_out[-1]), np.dtype(np.float64)
        shape = (num_samples,) if outputs == 1 and len(y.shape) == 1 else (num_samples, outputs)
        y = arrays.as_array("y", y, shape, given, self.stream, " (samples x outputs of the last layer)")
        return y.reshape(num_samples, outputs)

    def linearise(self, model, params, X, targets):
        """(`Linearisation`, loss, gradient, layer table and sizes) of a net.

        ``params`` is on the device, X and targets are here or there.
        """
        names = [layer.activation for layer in model.layers]
        distinct = sorted(set(names))
        indices = np.array([distinct.index(name) for name in names])
        table, sizes = layers = layer_table(model.chain, X.shape[0], (indices, 0, 0))
        B, n = X.shape[0], int(table["n_out"][-1])
        shapes = dict.fromkeys(("S", "D", "lam"), sizes.u) | dict.fromkeys(("Dx", "Dz", "Dxx", "Dzx", "Dzz"), 0)
        shapes |= {"Z": sizes.z, "output": (B, n), "curvature": (B, n, n)}
        lin = Linearisation(**{name: self.empty(shape, np.float64) for name, shape in shapes.items()})
        lin.Z[: X.size].copy_to_device(self.put(X).reshape(X.size), stream=self.stream)
        records = self._table(table)
        runs = list(wide.runs(wide.wide_products(table, B), 0, table.size))
        for first, last, alone in reversed(runs):
            if alone:
                outputs = int(table["n_out"][first])
                self._launch(linearise.wide_forward_kernel(distinct), outputs, records, first, params, lin)
            else:
                self._launch(linearise.forward_kernel(distinct), 1, records, first, last, params, lin)
        check_finite("params, X: the net's output", self.take(lin.output))
        count = B if get_loss(model.loss_name)["mean_over"] == "samples" else B * n
        values, slope = self.empty(B, np.float64), self.empty((B, n), np.float64)
        self._launch(
            linearise.terminal_kernel(model.loss_name), -(-B // BLOCK), 1.0 / count, self.put(targets), lin.output,
            slope, lin.curvature, values,
        )
        value = float(self.take(values).sum())
        if not np.isfinite(value):
            raise ValueError(f"params, X, y: expected a finite loss, got {value}")
        G, gradient = self.empty((2, B * sizes.width), np.float64), self.empty(params.size, np.float64)
        G[table.size % 2, : B * n].copy_to_device(slope.reshape(B * n), stream=self.stream)
        for first, last, alone in runs:
            if not alone:
                self._launch(linearise.backward, 1, records, first, last, params, lin, gradient, G)
                continue
            inputs, outputs = (int(table[name][first]) for name in ("n_in", "n_out"))
            self._launch(linearise.wide_slopes, spread(B * outputs), records, first, lin, G)
            self._launch(linearise.wide_gradient, spread(inputs * outputs), records, first, lin, gradient)
            if first > 0:
                self._launch(linearise.wide_inputs, -(-inputs // LANES), records, first, params, lin, G)
        gradient = self.take(gradient)
        check_finite("params, X, y: the gradient", gradient)
        return lin, value, gradient, layers

    def span(self, table, sizes, lin):
        """`RowSpace` of the inputs of all layers, in float64."""
        space = RowSpace(self.empty(sizes.Q, np.float64), self.empty(sizes.R, np.float64))
        work = self.empty((table.size, 2 * sizes.reflectors + 1), np.float64)
        self._launch(row_space.span, table.size, self._table(table), lin, space, work)
        return space

    def span_bytes(self, table, sizes):
        """Bytes of scratch that `span` takes."""
        return 8 * table.size * (2 * sizes.reflectors + 1)

    def multiply_workspace(self, sizes, num_vectors, num_samples, dtype):
        """Arrays (dZ, dU, q) for the two sweeps of a product; a row a vector."""
        return (
            self.empty((num_vectors, sizes.z + num_samples * sizes.outputs), dtype),
            self.empty((num_vectors, sizes.u), dtype),
            self.empty((num_vectors, 2, num_samples * sizes.width), dtype),
        )

    def tangents(self, table, start, stop, params, lin, V, scratch):
        (dZ, dU, _), k, records, B = scratch, V.shape[0], self._table(table), lin.output.shape[0]
        for l, last, alone in reversed(list(wide.runs(wide.wide_products(table, B), start, stop))):
            n = int(table["n_out"][l])
            if not alone:
                self._launch(multiply.tangents, k, records, l, last, params, lin, V, dZ, dU)
            elif table["kind"][l] == BLOCKS:
                self._launch(multiply.wide_blocks_tangents, (spread(B * n), k), records, l, lin, V, dZ)
            else:
                self._launch(multiply.wide_tangents, (n, k), records, l, params, lin, V, dZ, dU)

    def output_tangents(self, scratch, shape):
        """Those of the outputs, (k, B, n_L), as `tangents` has left them; a NumPy array."""
        dZ = self.take(scratch[0])
        return dZ[:, dZ.shape[1] - shape[1] * shape[2] :].reshape(shape)

    def adjoints(self, table, start, stop, params, lin, V, HV, scratch, shift=0.0, b=None, squares=None):
        self._adjoints(table, start, stop, params, lin, V, HV, scratch)
        if start == 0:
            if shift:
                HV.add_multiple(shift, V)
            if b is not None:
                np.subtract(b, HV, out=HV)

    def _adjoints(self, table, start, stop, params, lin, V, HV, scratch):
        (dZ, dU, q), k, records, B = scratch, V.shape[0], self._table(table), lin.output.shape[0]
        for l, last, alone in wide.runs(wide.wide_products(table, B), start, stop):
            if not alone:
                self._launch(multiply.adjoints, k, records, l, last, params, lin, V, HV, dZ, dU, q)
                continue
            n_in, n, p = (int(table[name][l]) for name in ("n_in", "n_out", "p"))
            if last == table.size:
                self._launch(multiply.wide_start, (1, k), records, lin, dZ, q)
            if table["kind"][l] == BLOCKS:
                rows = max(p, B * n_in)
                self._launch(multiply.wide_blocks_adjoints, (spread(rows), k), records, l, lin, V, HV, dZ, q)
                continue
            self._launch(multiply.wide_nu, (spread(B * n), k), records, l, lin, dU, q)
            self._launch(multiply.wide_product, (spread(p), k), records, l, lin, HV, dZ, dU)
            if l > 0:
                self._launch(multiply.wide_adjoints, (-(-n_in // LANES), k), records, l, params, lin, V, dU, q)

    def allocate_factors(self, sizes, num_layers, dtype, count=None):
        """Uninitialised `Factors`; with ``count``, a row for each of so many factorizations."""
        dtypes = {"pivots": np.int32, "num_positive": np.int64, "num_perturbed": np.int64}
        dtypes |= {"logabsdet": np.float64, "growth": np.float64}
        lengths = [getattr(sizes, name, num_layers) for name in Factors._fields]
        shapes = lengths if count is None else [(count, length) for length in lengths]
        return Factors(*[self.empty(shape, dtypes.get(name, dtype)) for name, shape in zip(Factors._fields, shapes)])

    def num_blocks(self):
        """Thread blocks that run at the same time, one on each multiprocessor."""
        return 3 if SIMULATED else numba.cuda.get_current_device().MULTIPROCESSOR_COUNT

    def start_segments(self, records, count, alpha, guess, work):
        """Let the elimination of all segments of so many dampings start from its guess of the curvature at their ends."""
        self._launch(
            segments.start_segments, (count, records.size), self.put(records), self.put(alpha), guess, work.places,
            work.front, work.carried,
        )

    def form_seams(self, table, records, count, seams, alpha, guess, work, lin, seam_work):
        """The blocks of the seams, and the front that their chain starts with, of so many dampings."""
        self._launch(
            segments.form_seams, (count, records.size), self._table(table), self.put(records), self._table(seams),
            self.put(alpha), guess, work.places, work.front, work.carried, lin, seam_work.front,
        )

    def shared_limit(self):
        """Bytes of shared memory that a block may ask for."""
        if SIMULATED:
            return PLAIN_SHARED
        return numba.cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN

    def _level(self, places, dtype):
        """What of a front fits into shared memory: (level, `Places`, bytes of shared, scalars of global memory)."""
        room = self.shared_limit() - RESERVED_SHARED
        for level in reversed(range(eliminate.LEVELS)):
            found, shared, rest = places(level)
            if shared * dtype.itemsize <= room or level == 0:
                return level, found, shared * dtype.itemsize, rest

    def _parts(self, table, sizes, dtype, cut=None, by_blocks=False):
        """(level, `Places`, bytes of shared) of narrow fronts, `wide.Places`, scalars of global memory for both.

        ``by_blocks``, and where the chain is cut, all layers count as narrow.
        """
        if cut is not None or by_blocks:
            coupling, phi, psi = int((table["m"] * table["N"]).max()), 0, 0
            if cut is not None:
                phi, psi, sizes = cut.phi, cut.psi, sizes._replace(mixed_whole=max(sizes.mixed_whole, cut.mixed))
            level, found, shared, rest = self._level(
                lambda level: eliminate.places(sizes, coupling, level, phi, psi), dtype
            )
            return level, found, shared, None, rest
        # z counts B n_in numbers a layer.
        num_samples = sizes.z // int(table["n_in"].sum())
        blocks, is_wide = block_sizes(table, num_samples), wide.wide_fronts(table, num_samples)
        blocks["coupling"] = table["m"] * table["N"]
        narrow, broad = (
            {name: int(values[those].max(initial=0)) for name, values in blocks.items()}
            for those in (~is_wide, is_wide)
        )
        local = sizes._replace(m=narrow["m"], front=narrow["front"], mixed_whole=narrow["mixed_whole"])
        level, found, shared, rest = self._level(
            lambda level: eliminate.places(local, narrow["coupling"], level), dtype
        )
        if level < eliminate.LEVELS - 1:
            # Fronts in global memory lie where those of wide layers do.
            found = found._replace(front_size=sizes.front)
        at, scratch = wide.places(broad["m"], broad["coupling"], broad["mixed_whole"]) if is_wide.any() else (None, 0)
        return level, found, shared, at, max(rest, scratch)

    def elimination_workspace(self, table, sizes, dtype, num_rows=1, cut=None, by_blocks=False):
        """Scratch of `eliminate`, a row a damping and segment of a chain that may be cut (`factors.segmentation`)."""
        *parts, scratch = self._parts(table, sizes, dtype, cut, by_blocks)
        carried = 1 if cut is None else 2 * cut.phi + cut.psi
        return eliminate.Workspace(
            self.empty((num_rows, 2 * sizes.front), dtype), self.empty((num_rows, carried), dtype),
            self.empty((num_rows, scratch + 1), dtype), *parts,
        )

    def elimination_bytes(self, table, sizes, dtype, cut=None, by_blocks=False):
        """Bytes of global memory that `elimination_workspace` takes for one damping."""
        carried, rows = (1, 1) if cut is None else (2 * cut.phi + cut.psi, cut.count)
        scratch = self._parts(table, sizes, dtype, cut, by_blocks)[-1] + 1
        return rows * dtype.itemsize * (2 * sizes.front + carried + scratch)

    def eliminate(self, table, start, stop, params, lin, space, damping, pivoting, factors, work):
        """``(status, layer)`` of `eliminate` for one damping and segment."""
        batch = Factors(*[array.reshape(1, array.size) for array in factors])
        return self.eliminate_layers(table, start, stop, params, lin, space, [damping], [pivoting], batch, work)[0]

    def eliminate_layers(self, table, start, stop, params, lin, space, dampings, pivotings, factors, work):
        """``(status, layer)`` of every damping: all at a time in the narrow layers, one by one in the wide ones.

        The first status of each that is not `OK`; once all have failed, none goes on to the next run of layers.
        """
        count, records, found = len(dampings), self._table(table), [(OK, start)] * len(dampings)
        results, notes = self.empty((count, 2), np.int64), self.empty(panels.NOTES, np.float64)
        is_wide = wide.wide_fronts(table, lin.output.shape[0])
        there = np.array(dampings, params.dtype)
        pivotings_there = self.put(np.array(pivotings, np.float64))
        for first, last, alone in wide.runs(is_wide, start, stop):
            if alone:
                for t in range(count):
                    wide.eliminate(
                        self.stream, table, records, first, params, lin, space, there[t], pivotings_there[t],
                        Factors(*[self.row(array, t) for array in factors]), work.front[t], work.scratch[t], work.wide,
                        notes, results[t : t + 1],
                    )
                ended = self.take(results).tolist()
            else:
                runs = segment_table.whole(table, first, last)
                ended = self.eliminate_runs(table, runs, params, lin, space, dampings, pivotings, factors, None, work)
            found = [new if old[0] == OK else old for old, new in zip(found, ended)]
            if all(code != OK for code, _ in found):
                break
        return found

    def eliminate_runs(self, table, runs, params, lin, space, dampings, pivotings, factors, Y_mu, work):
        """``(status, layer)`` of every damping and run by a block each: those of one damping follow one another."""
        dtype, grid = np.dtype(params.dtype), (len(dampings), runs.size)
        results = self.empty((grid[0] * grid[1], 2), np.int64)
        self._launch(
            eliminate.eliminate_kernel(dtype, work.level), grid, self._table(table), self.put(runs), params, lin, space,
            self.put(np.array(dampings, dtype)), self.put(np.array(pivotings, np.float64)), factors,
            self.empty((grid[0], 1), dtype) if Y_mu is None else Y_mu, work.places, work.front, work.carried,
            work.scratch, results, shared=work.shared,
        )
        return self.take(results).tolist()

    def pack(self, n, work, index):
        """The symmetric n x n front ``index`` of a workspace, kept."""
        size = work.front.shape[1] // 2
        kept = self.empty(n * n, work.front.dtype)
        kept.copy_to_device(work.front.reshape(2 * size)[index * size : index * size + n * n], stream=self.stream)
        return kept

    def unpack(self, kept, n, work, index):
        """The inverse of `pack`."""
        size = work.front.shape[1] // 2
        work.front.reshape(2 * size)[index * size : index * size + n * n].copy_to_device(kept, stream=self.stream)

    def substitution_workspace(self, sizes, num_vectors, num_samples, dtype):
        """Scratch of the two sweeps of a solve."""
        k, width = num_vectors, num_samples * sizes.width
        return substitute.Workspace(
            self.empty((k, 2, width), dtype), self.empty((k, width), dtype), self.empty((k, 2, sizes.m), dtype),
            self.empty((k, num_samples * sizes.r + 1), dtype),
        )

    def substitute_back(self, table, start, stop, params, lin, space, factors, damping, b, x, work):
        for first, last, alone in wide.runs(wide.wide_solves(table), start, stop):
            if alone:
                if last == table.size:
                    self.zero(work.state)
                wide_substitute.substitute_back(
                    self.stream, table, self._table(table), first, params, lin, space, factors,
                    self.put(np.array([damping], b.dtype)), b, x, work,
                )
            else:
                self.substitute_runs(
                    True, table, segment_table.whole(table, first, last), params, lin, space, factors,
                    None, damping, b, x, None, work,
                )

    def substitute_forth(self, table, start, stop, params, lin, space, factors, damping, b, x, work):
        for first, last, alone in reversed(list(wide.runs(wide.wide_solves(table), start, stop))):
            if alone:
                wide_substitute.substitute_forth(
                    self.stream, table, self._table(table), first, params, lin, space, factors,
                    self.put(np.array([damping], b.dtype)), b, x, work,
                )
            else:
                self.substitute_runs(
                    False, table, segment_table.whole(table, first, last), params, lin, space, factors,
                    None, damping, b, x, None, work,
                )

    def substitute_runs(self, back, table, runs, params, lin, space, factors, Y_mu, damping, b, x, seams, work):
        """The sweep ``back`` or forth over the layers of all runs; ``seams`` as the kernel has it, where there are some."""
        Y_mu = self.empty(1, b.dtype) if Y_mu is None else Y_mu
        seams = self.empty((b.shape[0], 1), b.dtype) if seams is None else seams
        kernel = substitute.substitute_back if back else substitute.substitute_forth
        self._launch(
            kernel, (b.shape[0], runs.size), self._table(table), self.put(runs), params, lin, space, factors, Y_mu,
            self.put(np.array([damping], b.dtype)), b, x, seams, work,
        )


def _why_not_available():
    try:
        return str(numba.cuda.cuda_error()).strip().replace("\n", " ") or "no device"
    except Exception as error:
        return str(error).strip()
