"""How far the elimination of large fronts is from the machine's limit: the time of its flops at the rate of dgemm.

Run it with ``python asv_bench/limits.py [--rounds N]``. Each round times a square product of NumPy's, the
factorization, and the product again, so that whatever else the machine does meets both; a ratio is the median over the
rounds of time over limit. The limit counts ``m^3/3 + m^2 N + m N^2`` a layer and the structured products
(`kernels/front.py`), half of a product where only a triangle is computed. One damping makes every pivot positive
definite, another leaves most indefinite. OPENBLAS_NUM_THREADS sets the threads of both.
"""

import argparse
from statistics import median

import numpy as np
from report import clock, machine

import numba_hinv as nh

# (width, B, layers)
NETS = ((1024, 1, 4), (256, 4, 6), (24, 64, 6), (64, 16, 6))
# In units of an estimate of ||H|| that is at most a quarter too low.
DAMPINGS = {"definite": 1.5, "indefinite": 1e-3}
PRODUCT = 1500


def flops(width, B, layers):
    """Of equal layers without a skip: the first hands no front down, the last enters with a block-diagonal one."""
    n, r, a = width, min(B, width + 1), B * width
    m, N = n * r, a
    factor, front = m**3 / 3, m * m * N + m * N * N
    # E = P J for all rows; K = (R x I) E and (R x I) V; M from that; A^T E.
    into_E, from_R = 2 * a * a * n, 2 * r * B * n * N if B > 1 else 0
    into_M, into_P = (r * B * n * m if B > 1 else 0), a * N * n
    inner = factor + front + into_E + 2 * from_R + into_M + into_P
    last = factor + front + 2 * a * n * n + r * r * B * n * n + 2 * B * n * n * n
    first = factor + from_R + into_M
    return (layers - 2) * inner + last + first


def measure(width, B, layers, relative_damping, rounds):
    """Median ratio of time to limit, median seconds, median rate of the product, and the share of negative pivots."""
    rng = np.random.default_rng(0)
    net = nh.Network([nh.Dense(width, width) for _ in range(layers)], "mean_squared_error")
    H = net.hessian(net.init(0), rng.standard_normal((B, width)), rng.random((B, width)))
    damping, square = relative_damping * H.norm(), rng.standard_normal((PRODUCT, PRODUCT))
    F = H.factorize(damping)
    ratios, seconds, rates = [], [], []
    for _ in range(rounds):
        before, _ = clock(lambda: square @ square)
        taken, F = clock(lambda: H.factorize(damping))
        after, _ = clock(lambda: square @ square)
        rate = 2 * PRODUCT**3 / (0.5 * (before + after))
        ratios.append(taken * rate / flops(width, B, layers))
        seconds.append(taken)
        rates.append(rate)
    return median(ratios), median(seconds), median(rates), F.inertia.negative / H.shape[0]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=7)
    options = arguments.parse_args()
    print(machine(), f"; medians of {options.rounds} rounds\n", sep="")
    print("| width, B, L | pivots | factorize | time / limit | dgemm | negative eigenvalues |")
    print("|---|---|---|---|---|---|")
    for width, B, layers in NETS:
        for name, relative_damping in DAMPINGS.items():
            ratio, seconds, rate, negative = measure(width, B, layers, relative_damping, options.rounds)
            print(
                f"| {width}, {B}, {layers} | {name} | {seconds * 1e3:.3g} ms | {ratio:.2f} | {rate / 1e9:.0f} GF/s "
                f"| {negative:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
