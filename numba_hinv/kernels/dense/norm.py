"""2-norms of rows, without overflow or underflow inside, and sums, of vectors and
of many numbers at once, which tell whether all are finite."""

import math

from ..plumbing.compiled import kernel, reassociated, shared

# Norms within these bounds have squares, and sums of squares, that are exact to rounding.
LEAST, LARGEST = 1e-140, 1e150


@shared
def times_power(x, exponent):
    """x 2^exponent, in two steps, of which each is a power of two that exists."""
    half = int(exponent) // 2
    return math.ldexp(math.ldexp(x, half), int(exponent) - half)


@reassociated
def squared_norm(x):
    """Square of the 2-norm, float64, which may overflow."""
    total = 0.0
    for j in range(x.size):
        total += x[j] * x[j]
    return total


@reassociated
def total(x):
    """Sum of the entries, float64: not finite where one is not."""
    found = 0.0
    for j in range(x.size):
        found += x[j]
    return found


@reassociated
def products(x, y):
    """(x . y, y . y), float64, which may overflow."""
    between, square = 0.0, 0.0
    for j in range(y.size):
        between += x[j] * y[j]
        square += y[j] * y[j]
    return between, square


@reassociated
def combine(alpha, x, beta, y):
    """x <- alpha x + beta y; returns the square of its 2-norm."""
    square = 0.0
    for j in range(x.size):
        value = alpha * x[j] + beta * y[j]
        x[j] = value
        square += value * value
    return square


@reassociated
def copy_with_total(x, out):
    """out <- x; returns the `total`."""
    found = 0.0
    for j in range(x.size):
        value = x[j]
        out[j] = value
        found += value
    return found


@kernel
def extremes(x):
    """(the smallest entry, the largest) of numbers that are no NaNs; infinities where there are none."""
    least, most = math.inf, -math.inf
    for j in range(x.size):
        least, most = min(least, x[j]), max(most, x[j])
    return least, most


@kernel
def row_norms(rows, out):
    """out[i] <- 2-norm of ``rows[i]``, float64; not finite where the row is not."""
    for i in range(rows.shape[0]):
        x = rows[i]
        norm = math.sqrt(squared_norm(x))
        if not LEAST < norm < LARGEST:
            top = 0.0
            for j in range(x.size):
                top = max(top, abs(x[j]))
            if 0.0 < top < math.inf:
                # By a power of two, so that the scaling is exact.
                exponent = math.frexp(top)[1]
                total = 0.0
                for j in range(x.size):
                    scaled = times_power(x[j], -exponent)
                    total += scaled * scaled
                norm = math.ldexp(math.sqrt(total), exponent)
        out[i] = norm
