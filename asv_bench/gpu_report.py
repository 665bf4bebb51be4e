"""This library on a GPU beside what else one would write there: checks first, then a Markdown table.

    python asv_bench/gpu_report.py

Every answer of the library is judged by products that share no code with it, and its inertia by the CPU's; with one of
them wrong nothing is timed. Times are between CUDA events, medians over the rounds, the CPU's by its clock. Beside each
stand two floors, what its bytes and what its flops take at the rates that a copy and a large product reach in the same
run, and how many times the higher one the library takes. Peers (benchmarks/array_sweep.py) that are not installed, or
have no GPU, are left out with a note. ``--simulate`` times nothing: it runs the checks and the peers at tiny sizes
wherever they run, on the CPU too, and the library in Numba's simulator where NUMBA_ENABLE_CUDASIM is 1.
"""

import argparse
import sys
import time
from statistics import median
from typing import NamedTuple

import numpy as np
from benchmarks.array_sweep import LIBRARIES, Arrays, ArraySweep
from benchmarks.peers import Judge
from benchmarks.problem import DAMPING, Problem, Row
from report import duration, machine, paragraph, ratio, table_head, table_line

STAGES = ("linearise", "H @ v", "factorize", "solve")
SOLVED = 1e-14  # backward error of the library's answers
PEERS_SOLVED = 1e-10
ROUNDS = 5
# Dampings of a case whose answers are checked.
CHECKED = 3
# Numbers of the copy, and rows of the product, that the rates are measured with.
COPY, PRODUCT = 2**27, 4096


class Case(NamedTuple):
    row: Row
    num_dampings: int = 1

    def __str__(self):
        many = f", {self.num_dampings} dampings" if self.num_dampings > 1 else ""
        return f"{self.row}{many}"

    def dampings(self):
        return DAMPING * (1 + np.arange(self.num_dampings) / self.num_dampings)


CASES = (
    *(Case(Row(width, 1, 4096, True)) for width in (8, 16, 32)),
    Case(Row(16, 2, 256, True), 256),
    Case(Row(1024, 1, 24, True)),
)
TINY = Case(Row(3, 1, 4, True)), Case(Row(3, 2, 3, True), 3), Case(Row(5, 1, 2, True))


class Library:
    """This library, with the stages of `ArraySweep`; b and v are (P, k)."""

    title = "numba_hinv"

    def __init__(self, problem, device):
        self.problem, self.device = problem, device
        self.put = lambda array: array
        if device == "cuda":
            import numba.cuda

            self.put = numba.cuda.to_device
        self.given = [self.put(array) for array in (problem.params, problem.X, problem.y)]

    def linearise(self):
        self.H = self.problem.net.hessian(*self.given, device=self.device)

    def multiply(self, v):
        return self.H @ v

    def factorize(self, dampings):
        self.factorizations = self.H.factorize_many(dampings)

    def solve(self, columns):
        return [F.solve(b) for F, b in zip(self.factorizations, columns)]


class Clock:
    """Seconds of work on the GPU."""

    def __init__(self):
        import numba.cuda

        self.cuda = numba.cuda

    def seconds(self, function, wait):
        start, end = self.cuda.event(), self.cuda.event()
        start.record()
        function()
        wait()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wait(self):
        self.cuda.synchronize()

    def device_name(self):
        return self.cuda.get_current_device().name


class WallClock:
    """Seconds of work on the CPU."""

    def seconds(self, function, wait):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start


def times(method, case, put, clock, wait, rounds=ROUNDS):
    """Median seconds of every stage, after one run that compiles; ``put`` is given what `solve` and products take."""
    b, dampings = put(np.repeat(Problem(case.row).b[None], case.num_dampings, axis=0))
    stages = {
        "linearise": method.linearise,
        "H @ v": lambda: method.multiply(b[0]),
        "factorize": lambda: method.factorize(dampings),
        "solve": lambda: method.solve(b[1]),
    }
    found = {stage: [] for stage in STAGES}
    for turn in range(rounds + 1):
        for stage, function in stages.items():
            seconds = clock.seconds(function, wait)
            if turn:
                found[stage].append(seconds)
    return {stage: median(values) for stage, values in found.items()}


def on_library(library, case):
    """What `times` puts: v, and a column for each factorization."""

    def put(rows):
        return (library.put(np.ascontiguousarray(rows.T)), [library.put(row) for row in rows]), case.dampings()

    return put


def on_peer(arrays, case):
    def put(rows):
        rows = arrays.array(rows)
        return (rows, rows), arrays.array(case.dampings())

    return put


def check(case, device):
    """Largest backward error of the library's answers on a device; AssertionError where they or inertias are wrong."""
    problem = Problem(case.row)
    there, here = Library(problem, device), Library(problem, "cpu")
    errors, dampings = [], case.dampings()
    for library in (there, here):
        library.linearise()
        library.factorize(dampings)
    for index in np.unique(np.linspace(0, len(dampings) - 1, CHECKED).astype(int)):
        ours, theirs = there.factorizations[index], here.factorizations[index]
        assert ours.inertia == theirs.inertia, f"{case}: inertia {ours.inertia}, on the CPU {theirs.inertia}"
        error = backward_error(case, dampings[index], ours.solve(problem.b))
        assert error <= SOLVED, f"{case}: backward error {error:.1e}"
        errors.append(error)
    return max(errors)


def backward_error(case, damping, x):
    return Judge(Problem(case.row._replace(damping=damping))).backward_error(x)


def check_peer(case, arrays):
    """The same of a peer, and of its products."""
    problem, dampings = Problem(case.row), case.dampings()
    sweep = ArraySweep(problem, arrays)
    b = arrays.array(np.repeat(problem.b[None], len(dampings), axis=0))
    sweep.linearise()
    sweep.factorize(arrays.array(dampings))
    product, x = arrays.numpy(sweep.multiply(b)), arrays.numpy(sweep.solve(b))
    expected = Judge(problem).reference.matvec(problem.b)
    difference = np.abs(product - expected).max() / np.abs(expected).max()
    assert difference <= 1e-12, f"{case}, {arrays.title}: products differ by {difference:.1e}"
    error = max(backward_error(case, damping, row) for damping, row in zip(dampings[:CHECKED], x))
    assert error <= PEERS_SOLVED, f"{case}, {arrays.title}: backward error {error:.1e}"
    return error


def traffic(case):
    """{stage: (bytes, flops)} that cannot be saved: blocks, factors and vectors once, in the solve factors twice."""
    row, k = case.row, case.num_dampings
    layers = Problem(row).layers
    n_in, n_out = (
        np.array([getattr(layer, name) for layer in layers], float) for name in ("in_features", "out_features")
    )
    B, d = row.batch, n_in + 1
    r, N = np.minimum(B, d), B * n_in
    N[0] = 0
    m, P = n_out * r, (n_out * d).sum()
    blocks, factors = (B * (n_in + 3 * n_out)).sum(), k * (m * m / 2 + m * N).sum()
    return {
        "linearise": (8 * (2 * P + blocks), (6 * B * n_in * n_out).sum()),
        "H @ v": (8 * (P + 2 * k * P + blocks), 12 * k * (B * n_in * n_out).sum()),
        "factorize": (8 * (P + blocks + factors), k * (m**3 / 3 + m * m * N + m * N * N).sum()),
        "solve": (8 * (P + 2 * k * P + 2 * factors), k * (2 * m * m + 4 * m * N).sum()),
    }


def rates(clock):
    """(bytes a second of a copy, flops a second of a product in float64, what computed the product)."""
    import numba.cuda

    one, other = (numba.cuda.device_array(COPY, np.float64) for _ in range(2))
    copies = [clock.seconds(lambda: other.copy_to_device(one), clock.wait) for _ in range(ROUNDS + 1)][1:]
    for cls in LIBRARIES:
        if cls.installed() and (arrays := cls()).where() == "cuda" and cls.needs != "jax":
            A = arrays.array(np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT)))
            product, wait, by = lambda: A @ A, arrays.wait, cls.needs
            break
    else:
        from numba_hinv.cuda.dense.product import gemm_nn

        A, C = (numba.cuda.to_device(np.ones(PRODUCT**2)) for _ in range(2))
        matrix = A, 0, 0, PRODUCT

        def product():
            gemm_nn(0, 1, PRODUCT, PRODUCT, PRODUCT, 1, *matrix, *matrix, 0, C, 0, 0, PRODUCT)

        wait, by = clock.wait, "this library's tiles"
    products = [clock.seconds(product, wait) for _ in range(ROUNDS + 1)][1:]
    return 2 * 8 * COPY / median(copies), 2 * PRODUCT**3 / median(products), by


def lines_of(case, ours, cpu, peers, bandwidth, flop_rate):
    """A line of the table for every stage; ``peers`` are {title: {stage: seconds} or None}."""
    for stage, (num_bytes, flops) in traffic(case).items():
        floors = num_bytes / bandwidth, flops / flop_rate
        others = (
            "" if found is None else f"{duration(found[stage])}, {ratio(found[stage] / ours[stage])}"
            for found in (cpu, *peers.values())
        )
        yield table_line(
            case, stage, duration(ours[stage]), *others, *map(duration, floors), ratio(ours[stage] / max(floors))
        )


def report(cases):
    clock, notes, lines, errors = Clock(), [], [], []
    for case in cases:
        errors.append(check(case, "cuda"))
        print(f"{case}: backward error {errors[-1]:.0e}, inertia as on the CPU", file=sys.stderr)
    peers = {}
    for cls in LIBRARIES:
        if not cls.installed():
            notes.append(f"{cls.title}: {cls.needs} is not installed, left out")
        elif (arrays := cls()).where() != "cuda":
            notes.append(f"{cls.title}: {cls.needs} finds no GPU, left out")
        else:
            peers[cls.title] = arrays
    bandwidth, flop_rate, by = rates(clock)
    for case in cases:
        library = Library(Problem(case.row), "cuda")
        ours = times(library, case, on_library(library, case), clock, clock.wait)
        host = Library(library.problem, "cpu")
        cpu = times(host, case, on_library(host, case), WallClock(), None, rounds=2)
        found = {}
        for title, arrays in peers.items():
            try:
                check_peer(case, arrays)
                found[title] = times(
                    ArraySweep(library.problem, arrays), case, on_peer(arrays, case), clock, arrays.wait
                )
            except Exception as reason:  # whatever another library raises, memory above all
                found[title] = None
                notes.append(f"{case}, {title}: {type(reason).__name__}: {reason}")
        lines += lines_of(case, ours, cpu, found, bandwidth, flop_rate)
    head = table_head(
        "width, B, L",
        "stage",
        "numba_hinv, GPU",
        "numba_hinv, CPU",
        *peers,
        "bytes / bandwidth",
        "flops / rate",
        "times the higher floor",
    )
    text = [
        *head,
        *lines,
        "",
        paragraph(
            f"Backward errors of at most {max(errors):.0e}, inertias as on the CPU. Beside the times of others, how "
            f"many times longer than this library on the GPU. {clock.device_name()}: "
            f"copy {bandwidth / 1e9:.0f} GB/s, product of {PRODUCT} rows ({by}) {flop_rate / 1e12:.3g} Tflop/s. "
            f"CPU: {machine()}; medians of {ROUNDS} rounds."
        ),
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(text)


def simulate():
    """Checks at tiny sizes of what runs here, a line each."""
    import importlib.util

    devices = ["cpu"]
    if importlib.util.find_spec("numba_cuda") is not None:
        import numba.cuda

        devices += ["cuda"] * numba.cuda.is_available()
    for case in TINY:
        for device in devices:
            yield f"{case}: numba_hinv on {device}: backward error {check(case, device):.0e}, inertia as on the CPU"
        for cls in (Arrays, *LIBRARIES):
            if not cls.installed():
                yield f"{case}: {cls.title}: {cls.needs} is not installed"
            else:
                yield f"{case}: {cls.title}: backward error {check_peer(case, cls()):.0e}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--simulate", action="store_true", help="tiny problems, nothing timed, also without a GPU")
    if arguments.parse_args().simulate:
        for line in simulate():
            print(line)
        print("nothing was timed")
        return
    try:
        H = Problem(TINY[0].row)
        H.net.hessian(H.params, H.X, H.y, device="cuda")
        from numba_hinv.cuda.plumbing.target import SIMULATED
    except (ImportError, RuntimeError) as reason:
        sys.exit(f"gpu_report: nothing was measured: {reason}. --simulate checks it at tiny sizes without a GPU.")
    if SIMULATED:
        sys.exit("gpu_report: nothing was measured: this is Numba's simulator of a GPU; give --simulate as well")
    print(report(CASES))


if __name__ == "__main__":
    main()
