"""Factoring a dense matrix, definite and indefinite: the library's blocked signed Cholesky, and LAPACK's routines."""

import time

import numpy as np
from scipy.linalg import lapack

from numba_hinv.factors.block_rows import BlockRows
from numba_hinv.system.cpu import CPU

SIZES = [500, 1200, 3000]


class DenseFactors:
    param_names = ["size", "matrix", "dtype"]
    params = [SIZES, ["definite", "indefinite"], ["float64", "float32"]]

    def setup(self, size, kind, dtype):
        self.dtype = np.dtype(dtype)
        CPU.load(self.dtype)
        matrix = np.random.default_rng(0).standard_normal((size, size))
        matrix += matrix.T.copy()
        if kind == "definite":
            # The eigenvalues are within about 2.83 sqrt(size).
            matrix += 4.0 * size**0.5 * np.eye(size)
        self.matrix = matrix.astype(dtype)
        names = "potrf", "sytrf", "sytrf_lwork"
        self.potrf, self.sytrf, lwork = lapack.get_lapack_funcs(names, (self.matrix,))
        self.lwork = int(lwork(size, lower=1)[0].real)
        self.factor()

    def fill(self, start, out):
        out[...] = self.matrix[start : start + len(out), start:]

    def factor(self):
        found = BlockRows.factorize(self.fill, len(self.matrix), self.dtype, np.inf)
        assert found is not None
        return found

    def time_factor(self, size, kind, dtype):
        self.factor()

    def time_lapack(self, size, kind, dtype):
        if kind == "definite":
            assert self.potrf(self.matrix.copy().T, lower=1, clean=0, overwrite_a=1)[1] == 0
        else:
            self.sytrf(self.matrix.copy().T, lower=1, lwork=self.lwork, overwrite_a=1)

    def track_rate(self, size, kind, dtype):
        start = time.perf_counter()
        self.factor()
        return size**3 / 3 / (time.perf_counter() - start) / 1e9

    track_rate.unit = "GF/s"
