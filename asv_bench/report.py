"""The figures of docs/benchmarks.md: this library beside what else one would use, interleaved in one process.

    OPENBLAS_NUM_THREADS=1 python asv_bench/report.py --page docs/benchmarks.md

prints three tables, writes them into the file between the two marker comments, and draws peers.png beside this script.
OPENBLAS_NUM_THREADS is the number of threads of every library here. Each round takes every method in turn, so that
whatever else the machine does meets all of them; figures are medians over the rounds. A method leaves the rounds once
it has used up its share of time, and is not started where its memory or its time, by a rough model, would be too much.
Every answer is checked with products that share no code with the library, and the error is printed with the time.
Peers that are not installed (extra: peers) are left out, with a note. New peers belong into benchmarks/peers.py.
"""

import argparse
import importlib.metadata
import os
import platform
import textwrap
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

# Read when the libraries are loaded. Nested BLAS and OpenMP threads would otherwise be as many as there are cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = os.environ.setdefault("OPENBLAS_NUM_THREADS", str(os.cpu_count()))

import llvmlite.binding  # noqa: E402 - the environment has to be set first
import numba  # noqa: E402
import numpy as np  # noqa: E402
import scipy  # noqa: E402
from benchmarks import blocks, peers  # noqa: E402
from benchmarks.numpy_reference import NumpyReference  # noqa: E402
from benchmarks.problem import LOSS, ROWS, Problem, Row, threads  # noqa: E402
from tqdm import tqdm  # noqa: E402

LIBRARY = "numba_hinv"
STAGES = ("linearise", "H @ v", "factorize", "solve", "net to solution")
# Small enough for every method; damping 10 makes the second one positive definite, which CG needs.
PEER_ROWS = (Row(8, 4, 50, True), Row(8, 4, 50, True, damping=10.0), *ROWS)
DEPTHS = tuple(Row(8, 4, depth, True) for depth in (10, 50, 200, 1000, 3000))
WIDTHS = tuple(Row(width, 1, 20, True) for width in (4, 8, 16, 32, 64, 128, 256, 512))
SOLVED = 1e-8  # backward error above which an answer does not count as a solution
PICTURE = Path(__file__).with_name("peers.png")
MARKERS = "<!-- written by asv_bench/report.py: begin -->", "<!-- written by asv_bench/report.py: end -->"


STAGES_TEXT = """
Stages of this library, and how many times longer the same elimination takes in plain NumPy and SciPy
(`asv_bench/benchmarks/numpy_reference.py`):
"""
PEERS_TEXT = """
From the net to the solution: time, how many times longer than this library, and the normwise backward error of the
answer (unsolved: above {solved:.0e}; iterations are stopped after {seconds:g} s). In parentheses, what would be needed:
memory, or roughly the time. Sparse solvers are timed without assembling their matrix.
"""
BLOCKS_TEXT = """
Generic layers with a states and a parameters, factorize and solve: microseconds per stage, and the relative residual.
"""


class Effort(NamedTuple):
    """How much the report does.

    Seconds of one method at one problem: an iteration gets `krylov`, others may be estimated to take `direct`, and
    `share` ends a method's rounds.
    """

    rounds: int
    krylov: float
    direct: float
    share: float
    rows: tuple
    peer_rows: tuple
    sweeps: dict
    sizes: tuple
    stages: int


FULL = Effort(
    rounds=3,
    krylov=1.5,
    direct=8.0,
    share=1.0,
    rows=ROWS,
    peer_rows=PEER_ROWS,
    sweeps={"layers": DEPTHS, "width": WIDTHS},
    sizes=blocks.SIZES,
    stages=10**9,
)
QUICK = Effort(
    rounds=1,
    krylov=0.05,
    direct=0.5,
    share=0.1,
    rows=(Row(5, 2, 4, True),),
    peer_rows=(Row(5, 2, 4, True), Row(5, 2, 4, True, damping=10.0), Row(8, 4, 1000, True)),
    sweeps={"layers": (Row(5, 2, 3, True), Row(5, 2, 6, True)), "width": (Row(4, 1, 3, True),)},
    sizes=(8,),
    stages=20,
)


class Figure(NamedTuple):
    seconds: float
    error: float  # backward error
    difference: float  # from the library's answer, relative


def clock(function):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def interleave(methods, rounds, share):
    """{name: (median seconds, last result)}; a method whose calls took `share` seconds skips the further rounds."""
    times, results = {name: [] for name in methods}, {}
    for _ in range(rounds):
        for name, method in methods.items():
            if sum(times[name]) < share:
                seconds, results[name] = clock(method)
                times[name].append(seconds)
    return {name: (median(times[name]), results[name]) for name in methods}


# The stages, beside NumPy.


def one_round(problem):
    """Seconds of every stage, once: {stage: (library, NumPy)}, and the solutions of both.

    "net to solution" is linearise + factorize + the first solve; "solve" is the second one, with what the library
    makes once per Hessian at its first solve (an estimate of the norm) at hand.
    """
    b, damping, times = problem.b, problem.damping, {}
    linearise, H = clock(problem.hessian)
    linearise_numpy, reference = clock(
        lambda: NumpyReference(problem.layers, LOSS, problem.params, problem.X, problem.y)
    )
    times["linearise"] = linearise, linearise_numpy
    times["H @ v"] = clock(lambda: H @ b)[0], clock(lambda: reference.matvec(b))[0]
    factorize, F = clock(lambda: H.factorize(damping))
    factorize_numpy, _ = clock(lambda: reference.factorize(damping))
    times["factorize"] = factorize, factorize_numpy
    solve, x = clock(lambda: F.solve(b))
    solve_numpy, x_numpy = clock(lambda: reference.solve(b))
    times["solve"] = clock(lambda: F.solve(b))[0], clock(lambda: reference.solve(b))[0]
    times["net to solution"] = linearise + factorize + solve, linearise_numpy + factorize_numpy + solve_numpy
    return times, x, x_numpy


def measure_stages(row, rounds):
    """Medians {stage: (library, NumPy)} over the rounds, and the backward errors of both."""
    problem = Problem(row)
    problem.solve()  # compiles, and touches the memory
    collected = [one_round(problem) for _ in range(rounds)]
    times = {
        stage: tuple(median(times[stage][side] for times, _, _ in collected) for side in (0, 1)) for stage in STAGES
    }
    judge = peers.Judge(problem)
    return times, *(judge.backward_error(x) for x in collected[-1][1:])


def stages_table(effort):
    lines = table_head("width, B, L", "parameters", *STAGES, "backward error")
    for row in tqdm(effort.rows, desc="stages", leave=False):
        times, ours, _ = measure_stages(row, effort.rounds)
        cells = [f"{duration(ours)}, {ratio(theirs / ours)}" for ours, theirs in (times[stage] for stage in STAGES)]
        lines.append(table_line(row, f"{Problem(row).net.num_params:,}", *cells, f"{ours:.0e}"))
    return lines


# The peers.


def measure_peers(row, effort):
    """{title: Figure, or why there is none} of the library and every installed peer."""
    problem = Problem(row)
    methods, results = {LIBRARY: problem.solve}, {}
    for peer in peers.PEERS:
        seconds, held = peer.estimate(problem), peer.estimate_bytes(problem)
        if not peer.installed():
            results[peer.title] = "not installed"
        elif held > peers.LARGEST_BYTES:
            results[peer.title] = f"({size(held)})"
        elif seconds > effort.direct:
            results[peer.title] = f"({peer.estimated}about {duration(float(f'{seconds:.1g}'))})"
        else:
            methods[peer.title] = peer(problem, effort.krylov).solve
    problem.solve()
    answers = interleave(methods, effort.rounds, effort.share)
    ours, judge = answers[LIBRARY][1], peers.Judge(problem)
    for title, (seconds, x) in answers.items():
        difference = np.linalg.norm(x - ours) / np.linalg.norm(ours)
        results[title] = Figure(seconds, judge.backward_error(x), difference)
    return {title: results[title] for title in (LIBRARY, *(peer.title for peer in peers.PEERS))}


def measure_all_peers(effort):
    """{row: what `measure_peers` returns} of the table and the sweeps, whose rows overlap."""
    rows = dict.fromkeys((*effort.peer_rows, *(row for sweep in effort.sweeps.values() for row in sweep)))
    return {row: measure_peers(row, effort) for row in tqdm(rows, desc="peers", leave=False)}


def peers_table(columns):
    """One line per method, one column per problem; and the differences from the library's answer, for the log."""
    lines, log = table_head("", *columns), table_head("difference", *columns)
    for title in next(iter(columns.values())):
        figures = [column[title] for column in columns.values()]
        if all(figure == "not installed" for figure in figures):
            continue
        ours = [column[LIBRARY].seconds for column in columns.values()]
        lines.append(table_line(title, *(peer_cell(*pair, title) for pair in zip(figures, ours))))
        log.append(
            table_line(
                title, *(figure if isinstance(figure, str) else f"{figure.difference:.0e}" for figure in figures)
            )
        )
    missing = [f"{peer.title} ({peer.needs})" for peer in peers.PEERS if not peer.installed()]
    return lines, log, [paragraph(f"Not installed, and left out: {'; '.join(missing)}.")] if missing else []


def peer_cell(figure, ours, title):
    if isinstance(figure, str):
        return figure
    if title == LIBRARY:
        return f"{duration(figure.seconds)}, {figure.error:.0e}"
    slower = ratio(figure.seconds / ours) if figure.error <= SOLVED else "unsolved"
    return f"{duration(figure.seconds)}, {slower}, {figure.error:.0e}"


def draw(sweeps, picture):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(sweeps), figsize=(12, 6), layout="constrained", sharey=True)
    for axes, (name, points) in zip(panels, sweeps.items()):
        for index, title in enumerate((LIBRARY, *(peer.title for peer in peers.PEERS))):
            kept = [
                (getattr(row, "depth" if name == "layers" else "width"), results[title])
                for row, results in points.items()
                if isinstance(results[title], Figure)
            ]
            if not kept:
                continue
            at, seconds = [x for x, _ in kept], [result.seconds for _, result in kept]
            (line,) = axes.loglog(
                at,
                seconds,
                "-" if title == LIBRARY else "--",
                label=title,
                color=f"C{index}",
                linewidth=2.5 if title == LIBRARY else 1,
            )
            for hollow in (False, True):
                some = [(x, y) for x, y, (_, result) in zip(at, seconds, kept) if (result.error > SOLVED) == hollow]
                if some:
                    axes.plot(
                        *zip(*some),
                        "o",
                        color=line.get_color(),
                        markersize=5 + 2 * hollow,
                        markerfacecolor="none" if hollow else line.get_color(),
                    )
        row = next(iter(points))
        fixed = f"width {row.width}, B = {row.batch}" if name == "layers" else f"B = {row.batch}, {row.depth} layers"
        axes.set(xlabel=name, title=f"{fixed}, skip")
        axes.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel("seconds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(f"From the net to x = (H + 0.01 I)$^{{-1}}$ b; hollow: backward error above {SOLVED:.0e}")
    figure.savefig(picture, dpi=120)
    plt.close(figure)


# Stages of generic blocks.


def measure_blocks(a, effort):
    """{title: (microseconds per stage, residual)} of the library, twice, and its peers."""
    stages, fewer = (min(count, effort.stages) for count in blocks.stages_of(a))
    chain = blocks.Chain(a, stages)
    short, H = chain.first(fewer), chain.hessian()
    blocks.library_solve(H, chain.b)
    methods = {
        f"{LIBRARY}, refined": lambda: blocks.library_solve(H, chain.b),
        f"{LIBRARY}, one sweep": lambda: blocks.library_solve(H, chain.b, refine=False),
    }
    counts = dict.fromkeys(methods, (chain, stages))
    horizon = min(blocks.HORIZON, effort.stages)
    embedded_solve, *count = blocks.embedded_solver(chain, horizon)
    title = f"{LIBRARY}.embedded, {horizon} stages, one sweep"
    methods[title], counts[title] = embedded_solve, count
    embedded_solve()
    solvers = {title: solve for title, solve in blocks.peer_solvers(short).items() if solve is not None}
    counts |= dict.fromkeys(solvers, (short, fewer))
    answers = interleave({**methods, **solvers}, effort.rounds + 2, effort.share)
    return {
        title: (seconds / counts[title][1] * 1e6, counts[title][0].residual(x))
        for title, (seconds, x) in answers.items()
    }


def blocks_table(effort):
    columns = {a: measure_blocks(a, effort) for a in tqdm(effort.sizes, desc="blocks", leave=False)}
    lines = table_head("microseconds per stage, a = p =", *columns)
    for title in next(iter(columns.values())):
        lines.append(
            table_line(title, *(f"{column[title][0]:.3g}, {column[title][1]:.0e}" for column in columns.values()))
        )
    return lines


# Text.


def duration(seconds):
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds / 3600:.2g} h"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def ratio(number):
    return f"{number:.2g}x" if number < 100 else f"{number:,.0f}x"


def size(held):
    return f"{held / 1e9:,.0f} GB" if held < 1e12 else f"{held / 1e12:,.0f} TB"


def table_head(*columns):
    return [table_line(*columns), "|---" * len(columns) + "|"]


def table_line(*cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def paragraph(text):
    return textwrap.fill(text.strip(), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def machine():
    """The machine and the versions, in one line."""
    features = llvmlite.binding.get_host_cpu_features()
    vectors = next((name for key, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if features.get(key)), "SSE2")
    others = [
        f"{module} {version(module)}" for module in ("torch", "pypardiso", "curvlinops-for-pytorch") if version(module)
    ]
    return (
        f"{os.cpu_count()} cores, {vectors}, threads: {threads()} for every library, float64, "
        f"Python {platform.python_version()}, numba {numba.__version__}, numpy {np.__version__}, "
        f"{', '.join([f'scipy {scipy.__version__}', *others])}"
    )


def version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(path, text):
    """Replace what is between the markers in the file."""
    old = path.read_text()
    before, rest = old.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    path.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}")


def report(effort, picture):
    """(what goes into the page, what is only printed)."""
    warm = Problem(Row(4, 2, 3, True))
    for peer in peers.PEERS:
        if peer.installed():
            peer(warm, effort.krylov).solve()  # first calls import and initialise
    stages = stages_table(effort)
    measured = measure_all_peers(effort)
    peer_lines, differences, notes = peers_table({row: measured[row] for row in effort.peer_rows})
    draw({name: {row: measured[row] for row in rows} for name, rows in effort.sweeps.items()}, picture)
    block_lines = blocks_table(effort)
    picture_link = f"![Time of every method against depth and width, on log axes](../asv_bench/{PICTURE.name})"
    text = [
        paragraph(STAGES_TEXT),
        *stages,
        "",
        paragraph(PEERS_TEXT.format(solved=SOLVED, seconds=effort.krylov)),
        *peer_lines,
        "",
        *notes,
        picture_link,
        "",
        paragraph(BLOCKS_TEXT),
        *block_lines,
        "",
        paragraph(f"{machine()}; medians of {effort.rounds} rounds.").rstrip(),
    ]
    return "\n".join(text), "\n".join(differences)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="tiny problems, to see that it runs")
    arguments.add_argument("--page", type=Path, help="file to write the tables into, between its markers")
    arguments.add_argument("--picture", type=Path, default=PICTURE)
    options = arguments.parse_args()
    started = time.perf_counter()
    text, differences = report(QUICK if options.quick else FULL, options.picture)
    print(text, f"\nRelative differences from the library's answer:\n\n{differences}", sep="\n")
    print(f"\n{options.picture}; {time.perf_counter() - started:.0f} s in all")
    if options.page:
        write(options.page, text)


if __name__ == "__main__":
    main()
