"""Chains that are cut in segments, all of them eliminated at the same time, on a GPU; twin of `system.cpu_segments`."""

import numba.cuda

from .plumbing.launch import Launcher
from .plumbing.target import SIMULATED
from .sweeps import segments


class DeviceSegments:
    """When a cut pays, and the launches beside those of the eliminations of segments and seams."""

    # Fewer segments, or shorter ones, do not pay: in flops, for one sample and layers that are square, a layer costs a
    # segment twice as much as a chain, and a seam four times as much. The simulator sees any.
    fewest, shortest, least = (2, 2, 0.0) if SIMULATED else (4, 16, 0.0)

    # Segments are of the same number of flops, as those of the chain as one.
    carrying = 0.0, 0.0

    def __init__(self, memory):
        self.memory = memory
        self._launch = Launcher(memory.stream)

    def num_blocks(self):
        """Thread blocks that run at the same time, one on each multiprocessor."""
        return 3 if SIMULATED else numba.cuda.get_current_device().MULTIPROCESSOR_COUNT

    def start(self, records, count, alpha, guess, work):
        """Let all segments, for so many dampings, start from the guess of the curvature at their ends."""
        put = self.memory.put
        self._launch(
            segments.start_segments, (count, records.size), put(records), put(alpha), guess, work.places, work.front,
            work.carried,
        )

    def form_seams(self, table, records, count, seams, alpha, guess, work, lin, seam_work):
        """The blocks of the seams, and the front that their chain starts with, of so many dampings."""
        put, on_device = self.memory.put, self.memory.table
        self._launch(
            segments.form_seams, (count, records.size), on_device(table), put(records), on_device(seams), put(alpha),
            guess, work.places, work.front, work.carried, lin, seam_work.front,
        )
