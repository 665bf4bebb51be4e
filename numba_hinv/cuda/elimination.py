"""Eliminations on a GPU: factors, scratch, and launches of the sweeps; twin of `system.cpu.CpuElimination`."""

import numba.cuda
import numpy as np

from ..kernels.plumbing.status import OK
from ..kernels.steps import segment_table
from ..kernels.steps.layer_table import block_sizes
from ..kernels.steps.row_space import RowSpace
from ..kernels.sweeps.eliminate import Factors
from .plumbing.launch import Launcher
from .plumbing.target import PLAIN_SHARED, RESERVED_SHARED, SIMULATED
from .steps import row_space
from .sweeps import eliminate, panels, wide


class DeviceElimination:
    """What `factors` calls to factor."""

    # Eliminations of many dampings, and of all segments of a chain, are one launch.
    batches = True

    def __init__(self, memory):
        self.memory = memory
        self._launch = Launcher(memory.stream)

    def span(self, layout, lin):
        """`RowSpace` of the inputs of all layers, in float64."""
        table, sizes = layout.table, layout.sizes
        # No ridge: dampings by layer are for the CPU alone.
        space = RowSpace(*[self.memory.empty(size, np.float64) for size in (sizes.Q, sizes.R, 1)])
        work = self.memory.empty((table.size, 2 * sizes.reflectors + 1), np.float64)
        self._launch(row_space.span, table.size, self.memory.table(table), lin, space, work)
        return space

    def allocate(self, sizes, num_layers, dtype, count=None):
        """Uninitialised `Factors`; with ``count``, a row for each of so many factorizations."""
        dtypes = {"pivots": np.int32, "num_positive": np.int64, "num_perturbed": np.int64}
        dtypes |= {"logabsdet": np.float64, "growth": np.float64}
        lengths = [getattr(sizes, name, num_layers) for name in Factors._fields]
        shapes = lengths if count is None else [(count, length) for length in lengths]
        empty = self.memory.empty
        return Factors(*[empty(shape, dtypes.get(name, dtype)) for name, shape in zip(Factors._fields, shapes)])

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

    def _parts(self, table, sizes, dtype, plan=None, by_blocks=False):
        """(level, `Places`, bytes of shared) of narrow fronts, `wide.Places`, scalars of global memory for both.

        ``by_blocks``, and where the chain is cut, all layers count as narrow.
        """
        if plan is not None or by_blocks:
            coupling, phi, psi = int((table["m"] * table["N"]).max()), 0, 0
            if plan is not None:
                phi, psi, sizes = plan.phi, plan.psi, sizes._replace(mixed_whole=max(sizes.mixed_whole, plan.mixed))
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

    def workspace(self, table, sizes, dtype, num_rows=1, plan=None, by_blocks=False):
        """Scratch of `eliminate`, a row a damping and segment of a chain that may be cut (`factors.segmentation`)."""
        *parts, scratch = self._parts(table, sizes, dtype, plan, by_blocks)
        carried = 1 if plan is None else 2 * plan.phi + plan.psi
        return eliminate.Workspace(
            self.memory.empty((num_rows, 2 * sizes.front), dtype), self.memory.empty((num_rows, carried), dtype),
            self.memory.empty((num_rows, scratch + 1), dtype), *parts,
        )

    def work_bytes(self, table, sizes, dtype, plan=None, by_blocks=False):
        """Bytes of global memory that `workspace` takes for one damping."""
        carried, rows = (1, 1) if plan is None else (2 * plan.phi + plan.psi, plan.count)
        scratch = self._parts(table, sizes, dtype, plan, by_blocks)[-1] + 1
        return rows * dtype.itemsize * (2 * sizes.front + carried + scratch)

    def eliminate(self, table, start, stop, params, lin, space, damping, pivoting, factors, work):
        """``(status, layer)`` of `eliminate` for one damping and segment."""
        batch = Factors(*[array.reshape(1, array.size) for array in factors])
        return self.layers(table, start, stop, params, lin, space, [damping], [pivoting], batch, work)[0]

    def layers(self, table, start, stop, params, lin, space, dampings, pivotings, factors, work):
        """``(status, layer)`` of every damping: all at a time in the narrow layers, one by one in the wide ones.

        The first status of each that is not `OK`; once all have failed, none goes on to the next run of layers.
        """
        memory, count, found = self.memory, len(dampings), [(OK, start)] * len(dampings)
        records = memory.table(table)
        results, notes = memory.empty((count, 2), np.int64), memory.empty(panels.NOTES, np.float64)
        is_wide = wide.wide_fronts(table, lin.output.shape[0])
        there = np.array(dampings, params.dtype)
        pivotings_there = memory.put(np.array(pivotings, np.float64))
        for first, last, alone in wide.runs(is_wide, start, stop):
            if alone:
                for t in range(count):
                    wide.eliminate(
                        memory.stream, table, records, first, params, lin, space, there[t], pivotings_there[t],
                        Factors(*[memory.row(array, t) for array in factors]), work.front[t], work.scratch[t],
                        work.wide, notes, results[t : t + 1],
                    )
                ended = memory.take(results).tolist()
            else:
                runs = segment_table.whole(table, first, last)
                ended = self._run(table, runs, params, lin, space, dampings, pivotings, factors, None, work)
            found = [new if old[0] == OK else old for old, new in zip(found, ended)]
            if all(code != OK for code, _ in found):
                break
        return found

    def runs(self, table, steps, params, lin, space, dampings, factors, Y_mu, work, tick):
        """``(status, layer)`` of every damping and segment: those of one damping follow one another.

        ``steps`` are ``(runs, pivotings)``, a run a segment, each a launch; once all dampings have failed there are no
        more. ``tick(num_layers)`` is told what is done.
        """
        count, found = len(dampings), None
        for runs, pivotings in steps:
            ended = self._run(table, runs, params, lin, space, dampings, pivotings, factors, Y_mu, work)
            found = ended if found is None else [new if old[0] == OK else old for old, new in zip(found, ended)]
            codes = np.array([code for code, _ in found]).reshape(count, runs.size)
            if (codes != OK).any(axis=1).all():
                break
            tick(count * int((runs["stop"] - runs["start"]).sum()))
        return found

    def _run(self, table, runs, params, lin, space, dampings, pivotings, factors, Y_mu, work):
        """``(status, layer)`` of every damping and run by a block each: those of one damping follow one another."""
        memory, dtype, grid = self.memory, np.dtype(params.dtype), (len(dampings), runs.size)
        results = memory.empty((grid[0] * grid[1], 2), np.int64)
        self._launch(
            eliminate.eliminate_kernel(dtype, work.level), grid, memory.table(table), memory.put(runs), params, lin,
            space, memory.put(np.array(dampings, dtype)), memory.put(np.array(pivotings, np.float64)), factors,
            memory.empty((grid[0], 1), dtype) if Y_mu is None else Y_mu, work.places, work.front, work.carried,
            work.scratch, results, shared=work.shared,
        )
        return memory.take(results).tolist()

    def pack(self, n, work, index):
        """The symmetric n x n front ``index`` of a workspace, kept."""
        size = work.front.shape[1] // 2
        kept, front = self.memory.empty(n * n, work.front.dtype), work.front.reshape(2 * size)
        kept.copy_to_device(front[index * size : index * size + n * n], stream=self.memory.stream)
        return kept

    def unpack(self, kept, n, work, index):
        """The inverse of `pack`."""
        size = work.front.shape[1] // 2
        front = work.front.reshape(2 * size)
        front[index * size : index * size + n * n].copy_to_device(kept, stream=self.memory.stream)
