"""The largest dense problem of a machine with 16 GB: 30,000 parameters and 60,000 samples that lie on a disk.

    python asv_bench/largest.py [--hidden 38] [--samples 60000] [--gigabytes 16]

The process may not have more address space than ``--gigabytes``. It factorizes H + damping I of a net 784-hidden-10,
solves one system, and prints seconds, the peak of its memory, and the backward error of the solution by products over
the samples.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

import numba_hinv as nh


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, default=38)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--gigabytes", type=float, default=16.0)
    options = parser.parse_args()
    limit = int(options.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    net = nh.Network([nh.Dense(784, options.hidden), nh.Dense(options.hidden, 10, "identity")], "softmax_cross_entropy")
    rng, params = np.random.default_rng(0), net.init(rng=0)
    with tempfile.TemporaryDirectory() as folder:
        X = np.lib.format.open_memmap(Path(folder) / "X.npy", "w+", np.float64, (options.samples, 784))
        for start in range(0, options.samples, 1000):
            X[start : start + 1000] = rng.random(X[start : start + 1000].shape)
        y = rng.integers(0, 10, options.samples)
        begin = time.perf_counter()
        H = net.hessian(params, X, y, keep_bytes=0)
        b = rng.standard_normal(net.num_params)
        linearised = time.perf_counter()
        F = H.factorize(0.1)
        factorized = time.perf_counter()
        x = F.solve(b)
        solved = time.perf_counter()
        # Another Hessian of the same samples, which has not been formed.
        residual = b - net.hessian(params, X, y, keep_bytes=0) @ x - 0.1 * x
        error = np.linalg.norm(residual) / (H.norm() * np.linalg.norm(x) + np.linalg.norm(b))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"P = {net.num_params:,}, {options.samples:,} samples on a disk, method {F.method}, {F.inertia}")
    print(f"loss and gradient {linearised - begin:.1f} s, factorize {factorized - linearised:.1f} s, ", end="")
    print(f"solve {solved - factorized:.2f} s, peak {peak:.1f} GiB, backward error {error:.1e}")


if __name__ == "__main__":
    main()
