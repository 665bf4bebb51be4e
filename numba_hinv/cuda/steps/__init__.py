"""What the sweeps do at one layer on a GPU: twins of `numba_hinv.kernels.steps`."""
