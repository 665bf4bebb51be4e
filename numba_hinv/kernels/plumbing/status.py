"""Status codes that kernels return.

A kernel never raises: it returns one of these integers, and `factors.elimination` turns it into an error.
"""

OK = 0
SINGULAR_PIVOT = 1
NOT_FINITE = 2
