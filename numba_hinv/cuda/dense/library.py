"""cuBLAS through CuPy, where that is installed: products and triangular solves of large fronts.

Matrices are row-major, a buffer, where they start in it, and the stride of their rows; to cuBLAS, which reads columns,
they are their own transposes.
"""

import functools
import importlib.util

import numpy as np

from ..plumbing.target import SIMULATED

# cublas_v2.h
_AS_IT_IS, _TRANSPOSED, _RIGHT, _LOWER, _UNIT = 0, 1, 1, 0, 1


def cublas(dtype):
    """`Cublas` for a dtype, or None where CuPy is not installed."""
    return _cublas(np.dtype(dtype).char)


@functools.cache
def _cublas(letter):
    if SIMULATED or importlib.util.find_spec("cupy") is None:
        return None
    import cupy
    from cupy_backends.cuda.libs import cublas as functions

    return Cublas(functions, cupy.cuda.device.get_cublas_handle, cupy.cuda.ExternalStream, letter)


def _address(array, at):
    return array.__cuda_array_interface__["data"][0] + at * array.dtype.itemsize


class Cublas:
    """The routines of one precision, on the caller's stream; not called for nothing, where strides would be 0."""

    def __init__(self, functions, handle, stream, letter):
        prefix = {"d": "d", "f": "s"}[letter]
        self._gemm, self._trsm, self._syrk = (getattr(functions, prefix + name) for name in ("gemm", "trsm", "syrk"))
        self._handle, self._stream, self._dtype = handle, stream, np.dtype(letter)

    def _scalar(self, value):
        """A number on the host, which is read when a routine is called."""
        return np.array(value, self._dtype)

    def gemm(self, transposed, stream, m, n, k, alpha, A, A_at, lda, B, B_at, ldb, beta, C, C_at, ldc):
        """C (m x n) <- alpha op(A) B + beta C."""
        if 0 in (m, n):
            return
        alpha, beta = self._scalar(alpha), self._scalar(beta)
        with self._stream(int(stream)):
            self._gemm(
                self._handle(), _AS_IT_IS, _TRANSPOSED if transposed else _AS_IT_IS, n, m, k, alpha.ctypes.data,
                _address(B, B_at), ldb, _address(A, A_at), lda, beta.ctypes.data, _address(C, C_at), ldc,
            )

    def solve_upper_transposed(self, stream, m, n, U, U_at, K, K_at):
        """K (m x n) <- U^{-T} K, U unit upper triangular."""
        if 0 in (m, n):
            return
        one = self._scalar(1)
        with self._stream(int(stream)):
            self._trsm(
                self._handle(), _RIGHT, _LOWER, _TRANSPOSED, _UNIT, n, m, one.ctypes.data, _address(U, U_at), m,
                _address(K, K_at), n,
            )

    def rank_update(self, stream, m, n, alpha, Y, Y_at, P, P_at):
        """P (n x n) <- alpha Y^T Y + P, Y (m x n); the upper triangle."""
        if 0 in (m, n):
            return
        alpha, one = self._scalar(alpha), self._scalar(1)
        with self._stream(int(stream)):
            self._syrk(
                self._handle(), _LOWER, _AS_IT_IS, n, m, alpha.ctypes.data, _address(Y, Y_at), n, one.ctypes.data,
                _address(P, P_at), n,
            )
