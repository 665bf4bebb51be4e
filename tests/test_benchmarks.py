"""Every benchmark of asv_bench/ runs once, quickly, so that none rots; and its NumPy yardstick agrees with the library.

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
        benchmark.setup(*parameters)
        figure = getattr(benchmark, name)(*parameters)
        if name.startswith("track_"):
            assert figure > 0


def test_benchmarks_are_found():
    names = {name for module in MODULES for _, name in benchmarks_of(module)}
    assert {"time_linearise", "time_multiply", "time_factorize", "time_solve", "peakmem_solve",
            "track_factorize_per_layer", "track_memory_per_layer"} <= names


def test_asv_configuration_is_json_and_points_here():
    configuration = json.loads((ASV / "asv.conf.json").read_text())
    assert (ASV / configuration["repo"] / "pyproject.toml").exists()
    assert (ASV / configuration["benchmark_dir"]).is_dir()


def test_speed_table_measures_a_row():
    table = importlib.import_module("speed_table")
    row = importlib.import_module("benchmarks.problem").Row(width=5, batch=2, depth=4, skip=True)
    times, ours, theirs = table.measure(row, rounds=1)
    assert set(times) == set(table.STAGES)
    assert all(seconds > 0 for pair in times.values() for seconds in pair)
    assert max(ours, theirs) < 1e-14
    problem = table.Problem(row)
    assert table.dense_column(problem).endswith(" s")
    assert "error" in table.minres_column(problem, allowed=1.0)
    assert "cores" in table.machine()


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damping", [1.0, 1e-2, -5e-2])
def test_numpy_reference_agrees_with_the_library(batch, skip, damping):
    """Both are backward stable, so that solutions differ by a few units of roundoff times the condition number."""
    reference_module = importlib.import_module("numpy_reference")
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
