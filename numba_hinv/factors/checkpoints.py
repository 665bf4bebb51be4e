"""Factors of one stretch of layers at a time: the others are made again, bit for bit, from the fronts that are kept."""

import collections

from . import stretches
from .elimination import no_tick
from .layers import Layers
from .pivots import Pivots


class Checkpoints(Layers):
    """Those of about sqrt(L) of the L layers, with the fronts between stretches of as many.

    Parameters
    ----------
    elimination : Elimination
    pivots : Pivots
    stretches : list of Stretch
    held : (int, kernels.sweeps.eliminate.Factors)
        The stretch whose factors are in memory, and these.
    fronts : list
        The packed front that each stretch leaves; None for the first.
    """

    solves_at_once = False

    def __init__(self, elimination, pivots, stretches, held, fronts):
        super().__init__(elimination, pivots, stretches, None)
        self.fronts = fronts
        # Taken by one solve at a time.
        self.held = collections.deque([held], maxlen=1)

    @staticmethod
    def cut(layout, dtype):
        return stretches.cut(layout.table, layout.sizes, dtype)

    @classmethod
    def eliminate(cls, elimination, tick=no_tick):
        matrix, system = elimination.matrix, elimination.matrix.system
        on, parts = system.on, system.layout.kept(cls.cut, matrix.dtype)
        fronts = [None] * len(parts)
        arrays = stretches.allocate(parts, system.sizes, matrix.dtype, on.elimination.allocate)
        work = on.elimination.workspace(system.table, system.sizes, matrix.dtype)
        pivots = Pivots.allocate(system.num_layers)
        for index in reversed(range(len(parts))):
            stretch = parts[index]
            elimination.eliminate(stretch, arrays, work, tick)
            pivots.fill(stretch, system.table, arrays, on.memory.take)
            if index:
                fronts[index] = on.elimination.pack(stretch.front, work, stretch.start % 2)
        return cls(elimination, pivots, parts, (0, arrays), fronts)

    def __getstate__(self):
        take = self.matrix.system.on.memory.take
        fronts = [front if front is None else take(front) for front in self.fronts]
        # Factors are made again where they are needed.
        return {**self.__dict__, "held": collections.deque(maxlen=1), "fronts": fronts}

    def __setstate__(self, state):
        self.__dict__.update(state)
        put = self.matrix.system.on.memory.put
        self.fronts = [front if front is None else put(front) for front in self.fronts]

    def to_arrays(self):
        raise ValueError(
            "checkpoint: expected a factorization with all its factors to save, got one with checkpoint=True"
        )

    def _borrow(self):
        """(index of a stretch or None, arrays): for one solve alone, to be given back through ``held``."""
        try:
            return self.held.pop()
        except IndexError:
            # Another thread has them.
            on, sizes, dtype = self.matrix.system.on, self.matrix.system.sizes, self.matrix.dtype
            needed = stretches.kept_bytes(self.stretches, dtype)
            on.memory.require(needed, "another solve with checkpoints", "solve on one thread at a time")
            return None, stretches.allocate(self.stretches, sizes, dtype, on.elimination.allocate)

    def visit(self, indices):
        system = self.matrix.system
        held, arrays = self._borrow()
        work = None
        for index in indices:
            stretch = self.stretches[index]
            if index != held:
                if work is None:
                    work = system.on.elimination.workspace(system.table, system.sizes, self.matrix.dtype)
                if index < len(self.stretches) - 1:
                    n = self.stretches[index + 1].front
                    system.on.elimination.unpack(self.fronts[index + 1], n, work, stretch.stop % 2)
                self.elimination.eliminate(stretch, arrays, work)
                held = index
            yield stretch, arrays
        self.held.append((held, arrays))
