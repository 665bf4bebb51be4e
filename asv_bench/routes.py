"""The two routes of a factorization, by layers and dense, over a grid of shapes: does method="auto" take the faster
one?

    python asv_bench/routes.py [--rounds 3] [--limit 3.0] [--float32]

For every shape (width, layers, samples) a fresh Hessian is factorized by either method, and one system is solved; the
two take turns, and figures are the least of their seconds. Shapes of which either method would take longer than
`--limit` seconds, by its flops at 2 GF/s, are left out. The last lines give the shapes where the method that "auto"
takes needs more than 1.5 times the time of the other one, and the worst.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import numba_hinv as nh

WIDTHS, DEPTHS = (4, 8, 16, 32, 64), (2, 5, 10, 30)
SAMPLES = (1, 4, 16, 48, 128, 320, 1024)
RATE = 2e9  # flops a second, so low that nothing takes longer


def flops(width, depth, B):
    """(by layers, dense) by the counts of the documentation."""
    P = depth * width * (width + 1)
    m = min(B, width + 1) * width
    rows = B * width
    return depth * (m**3 / 3 + m * m * rows + m * rows * rows), 2.0 * B * P * P + P**3 / 3


def shapes(limit):
    for width, depth, B in itertools.product(WIDTHS, DEPTHS, SAMPLES):
        if max(flops(width, depth, B)) <= limit * RATE * 10:
            yield width, depth, B


def problem(width, depth, B):
    rng = np.random.default_rng(0)
    net = nh.Network([nh.Dense(width, width, "tanh", skip=True) for _ in range(depth)], "mean_squared_error")
    X, y = rng.standard_normal((B, width)), rng.standard_normal((B, width))
    return net, net.init(rng=0), X, y


def seconds_of(net, params, X, y, method, dtype):
    H = net.hessian(params, X, y)
    start = time.perf_counter()
    F = H.factorize(0.1, method=method, factor_dtype=dtype)
    F.solve(params)
    return time.perf_counter() - start, F.method


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=3.0)
    parser.add_argument("--float32", action="store_true")
    options = parser.parse_args()
    dtype = "float32" if options.float32 else None
    print("| width | layers | samples | P | layers, ms | dense, ms | auto takes | ratio |\n|" + "---|" * 8)
    ratios = {}
    for shape in shapes(options.limit):
        case = problem(*shape)
        chosen = seconds_of(*case, "auto", dtype)[1]
        times = {"layers": [], "dense": []}
        for _, method in itertools.product(range(options.rounds), times):
            times[method].append(seconds_of(*case, method, dtype)[0])
        best = {method: min(found) for method, found in times.items()}
        ratio = ratios[shape] = best[chosen] / min(best.values())
        cells = *shape, case[0].num_params, f"{1e3 * best['layers']:.3g}", f"{1e3 * best['dense']:.3g}", chosen
        print("|", " | ".join(map(str, cells)), f"| {ratio:.2f} |", flush=True)
    over = {shape: ratio for shape, ratio in ratios.items() if ratio > 1.5}
    print(f"\n{len(ratios)} shapes, {len(over)} beyond 1.5, the worst {max(ratios.values()):.2f}")
    for shape, ratio in sorted(over.items(), key=lambda pair: -pair[1]):
        print(shape, f"{ratio:.2f}")


if __name__ == "__main__":
    main()
