"""How often functions are compiled: once for all constants that callers write, where Numba would for each."""

import numba
import numpy as np

from numba_hinv.kernels.plumbing.compiled import compiled


def calls(decorate):
    """(function, one that calls it with constants and with a variable), of which the first is decorated."""

    @decorate
    def add(number, x, flag):
        for j in range(x.size):
            x[j] += number if flag else -number

    @numba.njit
    def call(number, x):
        add(1, x, True)
        add(20, x, False)
        add(number, x, number > 0)

    return add, call


def test_constants_do_not_compile_functions_again():
    for decorate, count in ((compiled(no_cpython_wrapper=True), 1), (numba.njit, 3)):
        add, call = calls(decorate)
        x = np.zeros(2)
        call(300, x)
        assert x.tolist() == [281.0, 281.0] and len(add.signatures) == count
        call(-300, x)
        assert x.tolist() == [562.0, 562.0] and len(add.signatures) == count
