"""Every benchmark of asv_bench/ runs once, quickly, so that none rots; its peers find the same answers as the library.

A new benchmark is found by its name (time_, peakmem_, track_) and needs no change here.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

ASV = Path(__file__).resolve().parents[1] / "asv_bench"
MODULES = sorted(path.stem for path in (ASV / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ASV))


def benchmarks_of(module):
    """(class, method name) of the benchmarks that asv would find in a module."""
    for cls in vars(importlib.import_module(f"benchmarks.{module}")).values():
        if isinstance(cls, type):
            for name in vars(cls):
                if name.startswith(("time_", "peakmem_", "track_")):
                    yield cls, name


def first_parameters(cls):
    """The first value of each parameter, as asv hands them to a benchmark."""
    return next(product(*getattr(cls, "params", [])))


@pytest.mark.parametrize("module", MODULES)
def test_benchmarks_run(module):
    for cls, name in benchmarks_of(module):
        benchmark, parameters = cls(), first_parameters(cls)
        if hasattr(benchmark, "setup"):
            benchmark.setup(*parameters)
        figure = getattr(benchmark, name)(*parameters)
        if name.startswith("track_"):
            assert figure > 0


def test_benchmarks_are_found():
    names = {name for module in MODULES for _, name in benchmarks_of(module)}
    assert {
        "time_linearise",
        "time_multiply",
        "time_factorize",
        "time_solve",
        "track_linearise",
        "track_multiply",
        "track_factorize",
        "track_solve",
        "peakmem_net_to_solution",
        "track_factorize_per_layer",
        "track_memory_per_layer",
        "track_time",
        "track_backward_error",
        "time_factorize_and_solve",
    } <= names


def test_asv_configuration_is_json_and_points_here():
    configuration = json.loads((ASV / "asv.conf.json").read_text())
    assert (ASV / configuration["repo"] / "pyproject.toml").exists()
    assert (ASV / configuration["benchmark_dir"]).is_dir()


def peer_classes():
    return importlib.import_module("benchmarks.peers").PEERS


@pytest.fixture
def problem():
    """A function that makes a `Problem` of a row."""
    module = importlib.import_module("benchmarks.problem")
    return lambda *row, **options: module.Problem(module.Row(*row, **options))


@pytest.mark.parametrize("index", range(9))
def test_every_peer_finds_the_solution(index, problem):
    """Damping 10 makes the matrix well conditioned and positive definite, so that CG and MINRES reach 1e-10 as well."""
    peer = peer_classes()[index]
    if not peer.installed():
        pytest.skip(f"{peer.needs} is not installed")
    made = problem(5, 2, 4, True, damping=10.0)
    x, expected = peer(made, seconds=60.0 if peer.needs != "curvlinops" else 2.0).solve(), made.solve()
    # An iteration ends at a relative residual of 1e-10, by its own estimate; the condition number is below 10.
    assert np.linalg.norm(x - expected) <= 1e-8 * np.linalg.norm(expected)
    assert importlib.import_module("benchmarks.peers").Judge(made).backward_error(x) <= 1e-9


def test_every_peer_is_tested():
    assert len(peer_classes()) == 9
    titles = [peer.title for peer in peer_classes()]
    assert len(set(titles)) == len(titles)


def test_peers_that_are_not_installed_are_skipped(monkeypatch):
    peers = importlib.import_module("benchmarks.peers")
    monkeypatch.setattr(peers.Pardiso, "needs", "a_module_that_does_not_exist")
    with pytest.raises(NotImplementedError, match="not installed"):
        peers.Peers().setup("Pardiso", 3)


def test_an_iteration_that_runs_out_of_time_returns_what_it_has(problem):
    peers = importlib.import_module("benchmarks.peers")
    made = problem(8, 1, 300, True)
    x = peers.Minres(made, seconds=0.05).solve()
    assert np.isfinite(x).all()
    assert 1e-8 < peers.Judge(made).backward_error(x) < 1.0


def test_backward_error_is_that_of_dense_algebra(problem):
    """The norm comes from power steps, from below, so that the error can only be larger."""
    made = problem(4, 3, 5, True)
    matrix = made.hessian().todense() + made.damping * np.eye(made.net.num_params)
    x = made.solve() + 1e-3 * made.b
    scale = np.linalg.norm(matrix, 2) * np.linalg.norm(x) + np.linalg.norm(made.b)
    exact = np.linalg.norm(made.b - matrix @ x) / scale
    assert exact * (1 - 1e-10) <= importlib.import_module("benchmarks.peers").Judge(made).backward_error(x) <= 2 * exact


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damping", [1.0, -5e-2])
def test_lifted_net_has_the_solution(batch, skip, damping, problem):
    peers, lifted = (importlib.import_module(f"benchmarks.{name}") for name in ("peers", "lifted"))
    made = problem(4, batch, 5, skip)
    system = lifted.lift_net(peers.linearise(made), damping)
    matrix = system.matrix.toarray()
    assert np.array_equal(matrix, matrix.T)
    x = np.linalg.solve(matrix, system.right_hand_side(made.b))[system.parameters]
    dense = made.hessian().todense() + damping * np.eye(made.net.num_params)
    expected = np.linalg.solve(dense, made.b)
    tolerance = 10 * np.finfo(float).eps * (len(matrix) * np.linalg.cond(matrix) + len(dense) * np.linalg.cond(dense))
    assert np.linalg.norm(x - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("a", [1, 3, 8])
def test_chains_of_blocks(a):
    """The Hessian by NumPy's products is symmetric; the library and the sparse and banded solvers solve with it."""
    blocks = importlib.import_module("benchmarks.blocks")
    chain = blocks.Chain(a, stages=7)
    dense = np.array([chain.multiply(row) for row in np.eye(len(chain.b))])
    roundoff = 100 * len(chain.b) * np.finfo(float).eps * np.linalg.cond(dense)
    assert np.abs(dense - dense.T).max() <= roundoff * np.abs(dense).max()
    assert np.linalg.eigvalsh(dense)[0] > 0
    expected = np.linalg.solve(dense, chain.b)
    answers = {title: solve() for title, solve in blocks.peer_solvers(chain).items() if solve is not None}
    answers["numba_hinv"] = blocks.library_solve(chain.hessian(), chain.b)
    answers["embedded"] = blocks.embedded_solver(chain, 7)[0]()
    for title, x in answers.items():
        assert np.linalg.norm(x - expected) <= roundoff * np.linalg.norm(expected), title
        assert chain.residual(x) <= roundoff, title
    assert chain.first(3).b.size == 3 * a


@pytest.mark.parametrize("batch", [1, 3])
def test_lifted_blocks_of_a_net(batch, problem):
    """The system of the paper itself, from the blocks that the library writes out for a dense layer."""
    lifted = importlib.import_module("benchmarks.lifted")
    made = problem(3, batch, 4, True)
    H = made.hessian()
    terminal = np.zeros((10 * batch, 10 * batch))
    reference = importlib.import_module("benchmarks.peers").linearise(made)
    for sample, curvature in enumerate(reference.loss_curvature):
        terminal[10 * sample : 10 * sample + 10, 10 * sample : 10 * sample + 10] = curvature
    system = lifted.lift_blocks([H.blocks(l) for l in range(len(made.layers))], terminal, made.damping)
    matrix = system.matrix.toarray()
    x = np.linalg.solve(matrix, system.right_hand_side(made.b))[system.parameters]
    dense = H.todense() + made.damping * np.eye(made.net.num_params)
    tolerance = 10 * np.finfo(float).eps * (len(matrix) * np.linalg.cond(matrix) + len(dense) * np.linalg.cond(dense))
    expected = H.factorize(made.damping).solve(made.b)
    assert np.linalg.norm(x - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture
def report(monkeypatch):
    """The module, which sets the environment where it is loaded."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    return importlib.import_module("report")


def test_report(report, tmp_path, monkeypatch, capsys):
    page, picture = tmp_path / "benchmarks.md", tmp_path / "peers.png"
    page.write_text(f"before\n{report.MARKERS[0]}\nold\n{report.MARKERS[1]}\nafter\n")
    monkeypatch.setattr("sys.argv", ["report.py", "--quick", "--page", str(page), "--picture", str(picture)])
    report.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text in f"before\n{report.MARKERS[0]}\n\n{capsys.readouterr().out}" or "numba_hinv" in text
    assert all(peer.title in text for peer in report.peers.PEERS)
    for expected in ("SuperLU", "unsolved", "GB", "backward error", "cores"):
        assert expected in text
    assert picture.stat().st_size > 10_000


def test_the_page_has_the_markers_of_the_report(report):
    text = (ASV.parent / "docs" / "benchmarks.md").read_text()
    assert all(text.count(marker) == 1 for marker in report.MARKERS)


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damping", [1.0, 1e-2, -5e-2])
def test_numpy_reference_agrees_with_the_library(batch, skip, damping):
    """Both are backward stable, so that solutions differ by a few units of roundoff times the condition number."""
    reference_module = importlib.import_module("benchmarks.numpy_reference")
    problem_module = importlib.import_module("benchmarks.problem")
    problem = problem_module.Problem(problem_module.Row(width=4, batch=batch, depth=6, skip=skip))
    reference = reference_module.NumpyReference(
        problem.layers, "softmax_cross_entropy", problem.params, problem.X, problem.y
    )
    H = problem.hessian()
    matrix = H.todense() + damping * np.eye(H.shape[0])
    eps, singular_values = np.finfo(float).eps, np.linalg.svd(matrix, compute_uv=False)
    norm, condition = singular_values[0], singular_values[0] / singular_values[-1]
    roundoff = 20 * H.shape[0] * eps

    assert abs(reference.value - H.loss) <= roundoff * abs(H.loss)
    assert np.linalg.norm(reference.gradient - H.gradient) <= roundoff * np.linalg.norm(H.gradient)
    product_norm = norm * np.linalg.norm(problem.b)
    assert np.linalg.norm(reference.matvec(problem.b) - H @ problem.b) <= roundoff * product_norm

    reference.factorize(damping)
    F = H.factorize(damping)
    x = F.solve(problem.b)
    assert np.linalg.norm(reference.solve(problem.b) - x) <= roundoff * condition * np.linalg.norm(x)
    assert F.inertia.negative == reference.num_negative
    assert abs(F.slogdet()[1] - reference.logabsdet) <= roundoff * condition * H.shape[0]


@pytest.mark.parametrize("name", ["Arrays", "TorchArrays", "JaxArrays", "CupyArrays"])
@pytest.mark.parametrize("batch, skip", [(1, True), (3, False), (5, True)])
def test_array_sweeps_agree_with_the_library(name, batch, skip, problem):
    """The GPU report's peers, wherever they run: products, and solutions for several dampings at a time."""
    sweeps = importlib.import_module("benchmarks.array_sweep")
    cls = getattr(sweeps, name)
    if not cls.installed():
        pytest.skip(f"{cls.needs} is not installed")
    made, arrays = problem(5, batch, 5, skip), cls()
    sweep, H, dampings = sweeps.ArraySweep(made, arrays), made.hessian(), np.array([1.0, 1e-2, -5e-2])
    dense = H.todense()
    sweep.linearise()
    b = np.stack([made.b, -made.b, made.b[::-1]])
    product = arrays.numpy(sweep.multiply(arrays.array(b)))
    assert np.abs(product - b @ dense).max() <= 1e-13 * np.abs(dense).sum(axis=1).max()
    sweep.factorize(arrays.array(dampings))
    for x, damping, row in zip(arrays.numpy(sweep.solve(arrays.array(b))), dampings, b):
        matrix = dense + damping * np.eye(len(row))
        scale = np.linalg.norm(matrix, 2) * np.linalg.norm(x) + np.linalg.norm(row)
        assert np.linalg.norm(row - matrix @ x) <= 1e-14 * scale


def test_array_sweeps_scan_as_jax_does(problem):
    """Layers are slices of stacked arrays there, in nested tuples, and what a step leaves is stacked."""
    sweeps = importlib.import_module("benchmarks.array_sweep")

    def each(function, *trees):
        if isinstance(trees[0], tuple):
            return tuple(each(function, *parts) for parts in zip(*trees))
        return function(*trees)

    class Stacked(sweeps.Arrays):
        def scan(self, step, carry, *xs, reverse=False):
            kept, count = {}, len(xs[0])
            for l in reversed(range(count)) if reverse else range(count):
                carry, kept[l] = step(carry, *each(lambda x: x[l], xs))
            return carry, each(lambda *parts: np.stack(parts), *(kept[l] for l in range(count)))

        def stack(self, stacked):
            return stacked

        def lu(self, M):
            return tuple(map(np.stack, zip(*super().lu(M))))

        def lu_solve(self, factors, K):
            return super().lu_solve(zip(*factors), K)

    made = problem(4, 2, 5, True)
    sweep, H = sweeps.ArraySweep(made, Stacked()), made.hessian()
    sweep.linearise()
    np.testing.assert_allclose(sweep.multiply(made.b[None])[0], H @ made.b, rtol=1e-10, atol=1e-12)
    sweep.factorize(np.array([1e-2, -1e-2]))
    for x, damping in zip(sweep.solve(np.stack([made.b, made.b])), (1e-2, -1e-2)):
        expected = H.factorize(damping).solve(made.b)
        assert np.linalg.norm(x - expected) <= 1e-10 * np.linalg.norm(expected)


def test_array_sweeps_say_what_they_need(problem):
    sweeps = importlib.import_module("benchmarks.array_sweep")
    with pytest.raises(ValueError, match="at most 4 samples"):
        sweeps.ArraySweep(problem(4, 5, 3, True), sweeps.Arrays())


def run_gpu_report(*options, **environment):
    return subprocess.run(
        [sys.executable, str(ASV / "gpu_report.py"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
    )


def test_gpu_report_without_a_gpu(report):
    cuda = importlib.util.find_spec("numba_cuda") and importlib.import_module("numba.cuda")
    if cuda and cuda.is_available():
        pytest.skip("there is a GPU")
    run = run_gpu_report(NUMBA_ENABLE_CUDASIM="0")
    assert run.returncode != 0 and run.stdout == ""
    assert "nothing was measured" in run.stderr and "Traceback" not in run.stderr


def test_gpu_report_simulated(report):
    """Its checks at tiny sizes, in Numba's simulator where that is there; nothing is timed."""
    run = run_gpu_report("--simulate", NUMBA_ENABLE_CUDASIM="1")
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("nothing was timed\n") and "the same sweep, NumPy: backward error" in run.stdout
    if importlib.util.find_spec("numba_cuda"):
        assert run.stdout.count("numba_hinv on cuda: backward error") == 3


TABLE = """
import gpu_report
from benchmarks import array_sweep

class Measured(array_sweep.Arrays):
    title = "a peer"

    def where(self):
        return "cuda"

class Failing(Measured):
    title = "a failing peer"

    def lu(self, M):
        raise MemoryError("no room")

gpu_report.ROUNDS, gpu_report.COPY, gpu_report.PRODUCT = 1, 64, 6
gpu_report.LIBRARIES = array_sweep.CupyArrays, Measured, Failing
gpu_report.Clock.seconds, gpu_report.Clock.device_name = gpu_report.WallClock.seconds, lambda self: "a device"
print(gpu_report.report(gpu_report.TINY[:2]))
"""


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
def test_table_of_the_gpu_report(report):
    """That it is made, by another clock, in the simulator: these are no times of a GPU."""
    run = subprocess.run(
        [sys.executable, "-c", TABLE],
        capture_output=True,
        text=True,
        cwd=ASV,
        env={
            **os.environ,
            "NUMBA_ENABLE_CUDASIM": "1",
            "PYTHONPATH": os.pathsep.join([str(ASV), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert run.returncode == 0, run.stderr[-3000:]
    lines = run.stdout.splitlines()
    table = [line for line in lines if line.startswith("| 3, ")]
    assert len(table) == 8 and all(line.count("|") == lines[0].count("|") for line in table)
    assert "a peer" in lines[0] and "a device: copy" in run.stdout
    assert "a failing peer: MemoryError: no room" in run.stdout


def test_traffic_is_what_the_library_keeps(problem, report):
    """The floors of the GPU report count the numbers that the library's factors have, but for the diagonals' zeros."""
    report_module = importlib.import_module("gpu_report")
    row = importlib.import_module("benchmarks.problem").Row(12, 2, 6, True)
    case = report_module.Case(row, 3)
    F, H = problem(*row).hessian().factorize(0.1), problem(*row).hessian()
    kept = sum(H.system.table["m"] * (H.system.table["m"] / 2 + H.system.table["N"]))
    assert 2 * 3 * kept < report_module.traffic(case)["solve"][0] / 8 < 2 * 3 * kept + 10 * H.shape[0]
    assert 8 * kept < F.nbytes < 2 * 8 * kept
