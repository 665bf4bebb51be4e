"""Every benchmark of asv_bench/ runs once, quickly, so that none rots; its peers find the same answers as the library.

A new benchmark is found by its name (time_, peakmem_, track_) and needs no change here.
"""

import importlib
import json
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
    assert {"time_linearise", "time_multiply", "time_factorize", "time_solve", "track_linearise", "track_multiply",
            "track_factorize", "track_solve", "peakmem_net_to_solution", "track_factorize_per_layer",
            "track_memory_per_layer", "track_time", "track_backward_error", "time_factorize_and_solve"} <= names


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
    readme, picture = tmp_path / "README.md", tmp_path / "peers.png"
    readme.write_text(f"before\n{report.MARKERS[0]}\nold\n{report.MARKERS[1]}\nafter\n")
    monkeypatch.setattr("sys.argv", ["report.py", "--quick", "--readme", str(readme), "--picture", str(picture)])
    report.main()
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text in f"before\n{report.MARKERS[0]}\n\n{capsys.readouterr().out}" or "numba_hinv" in text
    assert all(peer.title in text for peer in report.peers.PEERS)
    for expected in ("HPIPM", "SuperLU", "unsolved", "GB", "backward error", "cores"):
        assert expected in text
    assert picture.stat().st_size > 10_000


def test_readme_has_the_markers_of_the_report(report):
    text = (ASV.parent / "README.md").read_text()
    assert all(text.count(marker) == 1 for marker in report.MARKERS)


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damping", [1.0, 1e-2, -5e-2])
def test_numpy_reference_agrees_with_the_library(batch, skip, damping):
    """Both are backward stable, so that solutions differ by a few units of roundoff times the condition number."""
    reference_module = importlib.import_module("benchmarks.numpy_reference")
    problem_module = importlib.import_module("benchmarks.problem")
    problem = problem_module.Problem(problem_module.Row(width=4, batch=batch, depth=6, skip=skip))
    reference = reference_module.NumpyReference(problem.layers, "softmax_cross_entropy", problem.params, problem.X,
                                                problem.y)
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
