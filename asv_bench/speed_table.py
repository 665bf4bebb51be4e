"""The README's table: this library beside plain NumPy, a dense solve and MINRES, interleaved in one process.

Run it with ``python asv_bench/speed_table.py [--rounds N] [--minres-seconds S]`` where numba_hinv is installed. Each
round takes every stage of both programs in turn, so that whatever else the machine does meets both; the figures are
medians over the rounds, each followed by how many times longer NumPy takes. New rows belong into
benchmarks/problem.py, faster NumPy into numpy_reference.py. OPENBLAS_NUM_THREADS sets the threads of both: small
blocks run faster with 1, large ones with all.
"""

import argparse
import os
import platform
import time
from statistics import median

import llvmlite.binding
import numba
import numpy as np
import scipy
from benchmarks.peers import dense_solve, minres_solve
from benchmarks.problem import DAMPING, ROWS, Problem
from numpy_reference import NumpyReference

LOSS = "softmax_cross_entropy"
STAGES = ("linearise", "multiply", "factorize", "solve", "net to solution")
DENSE_BYTES = 2e9


class OutOfTime(Exception):
    pass


def clock(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def one_round(problem):
    """Seconds of every stage, once: {stage: (library, NumPy)}, and the solutions of both.

    "net to solution" is linearise + factorize + the first solve; "solve" is the second one, with what the library
    makes once per Hessian at its first solve (an estimate of the norm) at hand.
    """
    b, times = problem.b, {}
    linearise, H = clock(problem.hessian)
    linearise_numpy, reference = clock(
        lambda: NumpyReference(problem.layers, LOSS, problem.params, problem.X, problem.y))
    times["linearise"] = linearise, linearise_numpy
    times["multiply"] = clock(lambda: H @ b)[0], clock(lambda: reference.matvec(b))[0]
    factorize, F = clock(lambda: H.factorize(DAMPING))
    factorize_numpy, _ = clock(lambda: reference.factorize(DAMPING))
    times["factorize"] = factorize, factorize_numpy
    solve, x = clock(lambda: F.solve(b))
    solve_numpy, x_numpy = clock(lambda: reference.solve(b))
    times["solve"] = clock(lambda: F.solve(b))[0], clock(lambda: reference.solve(b))[0]
    times["net to solution"] = linearise + factorize + solve, linearise_numpy + factorize_numpy + solve_numpy
    return times, x, x_numpy


def backward_error(problem, x):
    """||b - (H + damping I) x|| / (||H + damping I|| ||x|| + ||b||), the norm of the matrix by ten power steps."""
    H, v = problem.hessian(), problem.b
    for _ in range(10):
        v = v / np.linalg.norm(v)
        v = H @ v + DAMPING * v
    b, shifted = problem.b, H @ x + DAMPING * x
    return np.linalg.norm(b - shifted) / (np.linalg.norm(v) * np.linalg.norm(x) + np.linalg.norm(b))


def measure(row, rounds):
    """Medians {stage: (library, NumPy)} over the rounds, and the backward errors of both."""
    problem = Problem(row)
    one_round(problem)    # compiles, and touches the memory
    collected = [one_round(problem) for _ in range(rounds)]
    times = {stage: tuple(median(times[stage][side] for times, _, _ in collected) for side in (0, 1))
             for stage in STAGES}
    return times, backward_error(problem, collected[-1][1]), backward_error(problem, collected[-1][2])


def dense_column(problem):
    """Time of a dense solve, or the memory it would take."""
    needed = 2 * 8 * problem.net.num_params**2
    if needed > DENSE_BYTES:
        return f"({needed / 1e9:,.0f} GB)" if needed < 1e12 else f"({needed / 1e12:,.0f} TB)"
    return f"{clock(lambda: dense_solve(problem))[0]:.2g} s"


def minres_column(problem, allowed):
    """Time of MINRES to 1e-10 by its own test, or the backward error it has when its time is up."""
    start, last = time.perf_counter(), np.zeros_like(problem.b)

    def stop_in_time(x):
        last[:] = x
        if time.perf_counter() - start > allowed:
            raise OutOfTime

    try:
        x = minres_solve(problem, rtol=1e-10, maxiter=10_000_000, callback=stop_in_time)
    except OutOfTime:
        x = last
    return f"{time.perf_counter() - start:.2g} s, error {backward_error(problem, x):.0e}"


def cell(pair):
    """The library's time and how many times longer NumPy takes."""
    ours, ratio = pair[0], pair[1] / pair[0]
    text = f"{ours:.3g} s" if ours >= 1 else f"{ours * 1e3:.3g} ms"
    return f"{text}, {ratio:.2g}x" if ratio < 100 else f"{text}, {ratio:.0f}x"


def machine():
    """The machine and the versions, in one line."""
    features = llvmlite.binding.get_host_cpu_features()
    vectors = next((name for key, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if features.get(key)), "SSE2")
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "all")
    return (f"{os.cpu_count()} cores, {vectors}, BLAS threads: {threads}, float64, "
            f"Python {platform.python_version()}, numba {numba.__version__}, numpy {np.__version__}, "
            f"scipy {scipy.__version__}")


def print_table_head(*columns):
    columns = ("width, B, L", "parameters", *columns)
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--minres-seconds", type=float, default=20.0)
    options = arguments.parse_args()
    print(machine(), f"; medians of {options.rounds} rounds; damping {DAMPING:g}\n", sep="")
    print_table_head("factorize", "solve", "net to solution", "dense solve", "MINRES")
    details = []
    for row in ROWS.values():
        times, ours, theirs = measure(row, options.rounds)
        problem = Problem(row)
        name = f"{row.width}, {row.batch}, {row.depth:,}{', skip' * row.skip} | {problem.net.num_params:,}"
        cells = [cell(times[stage]) for stage in ("factorize", "solve", "net to solution")]
        print(f"| {name}", *cells, dense_column(problem), minres_column(problem, options.minres_seconds), sep=" | ",
              end=" |\n", flush=True)
        details.append(f"| {name} | {cell(times['linearise'])} | {cell(times['multiply'])} | {ours:.0e} "
                       f"| {theirs:.0e} |")
    print()
    print_table_head("linearise", "multiply", "backward error", "that of NumPy")
    print(*details, sep="\n")


if __name__ == "__main__":
    main()
