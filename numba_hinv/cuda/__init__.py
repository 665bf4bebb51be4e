"""The sweeps on a GPU: `numba.cuda` twins of :mod:`numba_hinv.kernels`, with the same names in neighbouring files.

Nothing here is imported before a GPU is asked for (`numba_hinv.system.processor`). Kernels are in the files named after those
of the CPU; `target` says what they are compiled for, `device` is what the operators hold and call. What the CPU does one
after the other, dampings and segments of a chain, is done at once in `together` and `segments`.
"""
