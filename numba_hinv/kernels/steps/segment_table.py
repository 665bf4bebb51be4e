"""The records of segments that the sweeps on several segments at the same time take: `SEGMENT`."""

import numpy as np

# A run of layers of a segment.
SEGMENT = np.dtype(
    [
        (name, np.int64)
        for name in (
            "start",  # layers of the run
            "stop",
            "first",  # layers of the segment
            "end",
            "c",  # states in which it ends, 0 for the last segment
            "Y",  # of Y_mu: that of a layer starts c times as many rows on as there are rows of pivots before it
            "before",  # of y of the seam before the segment, among the parameters of all seams; -1 for the first one
            "after",  # of mu of the seam after it
        )
    ],
    align=True,
)


def whole(table, start, stop):
    """Layers start..stop-1 of a chain that is one segment."""
    return np.array([(start, stop, 0, table.size, 0, 0, -1, 0)], SEGMENT)
