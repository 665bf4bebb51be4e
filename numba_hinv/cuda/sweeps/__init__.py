"""The sweeps on a GPU: twins of `numba_hinv.kernels.sweeps`, and what only a GPU does, wide layers and segments."""
