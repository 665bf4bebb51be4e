"""Plain arithmetic on single pivots and 2x2 blocks: what the signed Cholesky and the elimination do on every device.

One definition each: CPU kernels compile it as `shared` says, CUDA kernels through ``device(...)`` (`cuda.dense`'s file
of the same name), and to Python and to the simulator these are plain functions. Which entries of a matrix are read, by
which thread, and where results go is the kernels' own affair.
"""

import math

import numpy as np

from ..plumbing.compiled import shared

# Bunch and Kaufman's constant, which balances the growth of a 1x1 against that of a 2x2 step.
ALPHA = (1.0 + math.sqrt(17.0)) / 8.0
MAX_FLOAT = float(np.finfo(np.float64).max)
# What `choice` may say.
STAY, EXCHANGE, PAIR = range(3)


@shared
def stays_nonnegative(s, w, inverse):
    """Whether the diagonal entry s of the rest is not negative after a pivot d > 0 with w in its row, 1 / d given."""
    return s >= w * (w * inverse)


@shared
def is_weak(d, colmax):
    """Whether the 1x1 pivot d is too small against the largest modulus of the rest of its row to be taken unseen."""
    return abs(d) < ALPHA * colmax


@shared
def choice(d, colmax, e, rowmax):
    """Bunch and Kaufman's choice between a weak pivot d, the diagonal entry e, and the 2x2 block of both.

    colmax and rowmax are the largest moduli off the diagonal in the rows of d and e; colmax is at the place of e.
    """
    if not abs(d) < ALPHA * colmax * (colmax / rowmax):
        return STAY
    return PAIR if abs(e) < ALPHA * rowmax else EXCHANGE


@shared
def replacement(value, perturbation):
    """What a pivot that is singular to working precision becomes."""
    return -perturbation if value < 0 else perturbation


@shared
def eigen(a, b, c):
    """Eigenvalues of [[a, b], [b, c]], larger modulus first, and the unit eigenvector (cosine, sine) of the first.

    LAPACK's dlaev2.
    """
    total, difference, twice = a + c, a - c, b + b
    large, little = (a, c) if abs(a) > abs(c) else (c, a)
    root = math.hypot(difference, twice)
    if total != 0:
        sign = math.copysign(1.0, total)
        first = 0.5 * (total + sign * root)
        second = (large / first) * little - (b / first) * b
    else:
        sign, first, second = 1.0, 0.5 * root, -0.5 * root
    side = 1.0 if difference >= 0 else -1.0
    along = difference + side * root
    if abs(along) > abs(twice):
        t = -twice / along
        sine = 1 / math.sqrt(1 + t * t)
        cosine = t * sine
    elif twice == 0:
        cosine, sine = 1.0, 0.0
    else:
        t = -along / twice
        cosine = 1 / math.sqrt(1 + t * t)
        sine = t * cosine
    if sign == side:
        cosine, sine = -sine, cosine
    return first, second, cosine, sine


@shared
def split_block(a, b, c, tiny, perturbation):
    """Take the block [[a, b], [b, c]] = G diag(sigma) G^T apart.

    Returns (number of replaced eigenvalues, -1 where one is singular and may not be replaced; whether the first and
    whether the second sigma is negative; two factors of |det|; (p, q, r) with [[p, q], [q, r]] the inverse of the
    block; G^{-1} row by row), twelve numbers. A block of which nothing is replaced is equilibrated before it is
    diagonalised, so that G is accurate entry by entry however differently a and c are scaled.
    """
    ratio = max(abs(c / b), 1.0) if abs(c) >= abs(a) else min(abs(b / a), 1.0)
    x, y = a / b * ratio, c / b / ratio
    det = x * y - 1
    count = 0
    big, small, cosine, sine = 1.0, 1.0, 1.0, 0.0
    # The smaller eigenvalue is at least |det| over the norm of the block.
    if not abs(det) * abs(b) * (abs(b) / (abs(a) + abs(b) + abs(c))) > tiny:
        big, small, cosine, sine = eigen(a, b, c)
        count = int(not abs(small) > tiny) + int(not abs(big) > tiny)
    if count > 0:
        if perturbation == 0:
            return -1, 0, 0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        small = replacement(small, perturbation)
        if count == 2:
            big = replacement(big, perturbation)
        p = cosine / big * cosine + sine / small * sine
        q = cosine / big * sine - sine / small * cosine
        r = sine / big * sine + cosine / small * cosine
        left, right = 1.0, 1.0
        one, two = abs(big), abs(small)
    else:
        p, q, r = y / det * (ratio / b), -1 / det / b, x / det / ratio / b
        sign = math.copysign(1.0, b)
        big, small, cosine, sine = eigen(sign * x, sign, sign * y)
        root, scale = math.sqrt(ratio), math.sqrt(abs(b))
        left, right = root / scale, 1 / root / scale
        one, two = abs(b), abs(b) * abs(det)
    first, second = 1 / math.sqrt(abs(big)), 1 / math.sqrt(abs(small))
    return (
        count, int(big < 0), int(small < 0), one, two, p, q, r,
        first * cosine * left, first * sine * right, -second * sine * left, second * cosine * right,
    )


@shared
def times(product, exponent, factor):
    """Multiply product e^exponent by a positive factor: a logarithm only where the product would leave the range."""
    if not 1e-150 < factor < 1e150:
        return product, exponent + math.log(factor)
    product *= factor
    if not 1e-150 < product < 1e150:
        return 1.0, exponent + math.log(product)
    return product, exponent


@shared
def place(pivot):
    """The row of M that a pivot was taken from: those of 2x2 blocks are kept as one's complement."""
    return ~pivot if pivot < 0 else pivot


@shared
def order(pivots, m):
    """pivots[m:], signs in the last bit, <- the places of the pivots once the positive ones come first."""
    negative = 0
    for k in range(m):
        negative += pivots[m + k] & 1
    positive, next_negative = 0, m - negative
    for k in range(m):
        if pivots[m + k] & 1:
            pivots[m + k] = next_negative
            next_negative += 1
        else:
            pivots[m + k] = positive
            positive += 1


@shared
def enlarge(size, scale, partner, perturbation, limit, largest):
    """Whether a pivot whose row of Y has the squared norm ``size`` is enlarged, and what that does.

    scale and partner are the pivot's row of G^{-1}; the others are those of `Pivoting`. Returns (the factor of the row
    of Y and of G^{-1}; 1 where the pivot is enlarged that was not perturbed already, else 0; what is added to
    log|det M|).
    """
    if size > limit:
        pivot = 1.0 / (scale**2 + partner**2)
        if pivot < largest:
            shrink = math.sqrt(max(limit / size, pivot / largest))
            return shrink, int(abs(pivot - perturbation) > 1e-5 * pivot), -2.0 * math.log(shrink)
    return 1.0, 0, 0.0
