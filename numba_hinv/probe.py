"""Random probe vectors for estimates; the same every time, so that answers are reproducible."""

import numpy as np


def random_signs(seed, size):
    """Entries +-1 as one row, (1, size): as good as normal numbers for estimates, and drawn much faster."""
    random_bytes = np.random.default_rng(seed).bytes(size // 8 + 1)
    signs = np.unpackbits(np.frombuffer(random_bytes, np.uint8), count=size).astype(np.float64)
    signs *= -2.0
    signs += 1.0
    return signs.reshape(1, size)
