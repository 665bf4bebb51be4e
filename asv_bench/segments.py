"""One long chain on several threads: factorizing and solving in segments, beside the chain as one.

    OPENBLAS_NUM_THREADS=1 python asv_bench/segments.py [--threads 2] [--rounds 7]

The two take turns, round by round, in one process; figures are medians of seconds, and ratios are medians of those of
the rounds. The model is that of docs/theory.md, section 10, for the elimination alone.
"""

import argparse
import statistics
import time

import numpy as np

import numba_hinv as nh
from numba_hinv.factors import segmentation


def dense(width, samples, depth):
    net = nh.Network(
        [nh.Dense(width, width, "tanh", skip=True)] * (depth - 1) + [nh.Dense(width, 1, "identity")],
        "mean_squared_error",
    )
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((samples, width)), rng.standard_normal((samples, 1))
    return net.hessian(0.5 * net.init(0), X, y)


def control(states, controls, depth):
    rng = np.random.default_rng(0)
    A = 0.9 / np.sqrt(states) * rng.standard_normal((depth, states, states))
    B = rng.standard_normal((depth, states, controls))
    blocks = [
        nh.LayerBlocks(B[l], A[l, :, :a], np.eye(controls), np.zeros((controls, a)), np.eye(a))
        for l, a in enumerate((0, *[states] * (depth - 1)))
    ]
    return nh.Hessian.from_blocks(blocks, np.eye(states))


CHAINS = {
    "dense, width 8, B = 1, 100,000 layers": lambda: dense(8, 1, 100_000),
    "dense, width 8, B = 4, 10,000 layers": lambda: dense(8, 4, 10_000),
    "dense, width 24, B = 2, 3,000 layers": lambda: dense(24, 2, 3_000),
    "blocks, a = p = 8, 100,000 layers": lambda: control(8, 8, 100_000),
    "blocks, a = 32, p = 16, 10,000 layers": lambda: control(32, 16, 10_000),
}


def seconds_of(call):
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print("| chain | job | one thread | segments | times as fast | model |\n| --- | --- | --- | --- | --- | --- |")
    for name, make in CHAINS.items():
        H = make()
        damping, b = 0.01 * H.norm(), np.random.default_rng(1).standard_normal(H.shape[0])
        times = {job: ([], []) for job in ("factorize", "solve")}
        for _ in range(options.rounds + 1):
            for side, given in enumerate(({}, {"num_threads": options.threads})):
                taken, F = seconds_of(lambda: H.factorize(damping, method="layers", **given))
                times["factorize"][side].append(taken)
                times["solve"][side].append(seconds_of(lambda: F.solve(b))[0])
        plan = segmentation.plan(H.system, options.threads)
        lengths = np.diff(plan.bounds)
        model = (lengths.sum() / (lengths * plan.loads)).min()
        for job in ("factorize", "solve"):
            one, several = (part[1:] for part in times[job])
            ratio = statistics.median(a / b for a, b in zip(one, several))
            print(
                f"| {name} | {job} | {statistics.median(one):.4f} | {statistics.median(several):.4f} | {ratio:.2f} | "
                f"{model:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
