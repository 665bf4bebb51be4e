"""Races, barriers and uninitialised memory of the CUDA kernels, by the race checker of this folder.

The tests of `test_cuda` run here once more, with every access to memory looked at, in Numba's simulator alone:
``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda/test_races.py``. With ``--slow`` every barrier of the library is
taken away, one at a time, which has to be noticed.
"""

import ast
import time
from pathlib import Path

import pytest
import test_cuda

if not test_cuda.SIMULATED or not test_cuda.INSTALLED:
    pytest.skip("needs the simulator", allow_module_level=True)

from race_checker import Found, RaceChecker

import numba_hinv as nh

PACKAGE = Path(nh.__file__).parent / "cuda"
SOURCES = {str(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
# What starts processes of its own, or has nothing to do with kernels.
APART = "test_in_the_simulator", "test_without_numba_cuda", "test_without_a_gpu", "test_devices_are_named"
CHECKED = {
    name: test
    for name, test in vars(test_cuda).items()
    if name.startswith("test_")
    and name not in APART
    and not any(mark.name == "gpu" for mark in getattr(test, "pytestmark", []))
}
globals().update(CHECKED)
# What has been met by all the tests that ran.
ran, kernels_met, barriers_met = set(), set(), set()


@pytest.fixture(autouse=True)
def checker(request):
    if request.function not in CHECKED.values():
        yield
        return
    with RaceChecker() as found:
        yield
    ran.add(request.function)
    kernels_met.update(found.kernels)
    barriers_met.update(found.barriers)
    assert not found.findings, "\n".join(map(str, found.findings))


def is_call(node, *names):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names


def barriers(*names):
    """(file name, line) of the calls of these functions of `cuda` in the library."""
    return {(path, node.lineno) for path, tree in SOURCES.items() for node in ast.walk(tree) if is_call(node, *names)}


def kernels():
    """module.name of all kernels of the library."""
    return {
        f"{Path(path).stem}.{node.name}"
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(decorator, ast.Name) and decorator.id == "kernel" for decorator in node.decorator_list)
    }


def test_all_kernels_and_barriers_were_met():
    """By the tests above: what none of them runs is not checked."""
    if len(ran) < len(set(CHECKED.values())):
        pytest.skip("not all the tests of this file have run")
    assert kernels() - kernels_met == set()
    assert barriers("syncthreads", "syncthreads_or") - barriers_met == set()


def cases():
    """Functions of a monkeypatch that together need every barrier of the library."""
    for name in ("one sample", "bottleneck", "more samples than columns", "mixed skips and biases", "exploding"):
        yield name, lambda patch, name=name: test_cuda.test_shapes(name)
    for name in test_cuda.WIDE:
        yield f"wide: {name}", lambda patch, name=name: test_cuda.test_wide_shapes(name, patch)
    for name in test_cuda.CUT:
        yield f"cut: {name}", lambda patch, name=name: test_cuda.test_segments(name, patch)
    for kind in ("indefinite", "saddle", "singular", "negative"):
        for factor in (test_cuda.factor_by_block, test_cuda.factor_by_device):
            yield f"{kind}, {factor.__name__}", lambda patch, c=(kind, factor): test_cuda.test_signed_cholesky(*c)
    yield "any chain", lambda patch: test_cuda.test_any_chain()
    yield "any chain, wide", test_cuda.test_wide_chain_of_blocks
    yield "any chain, cut", test_cuda.test_segments_of_any_chain
    yield "sweeps over wide layers", lambda patch: test_cuda.test_wide_solves_and_products(0, patch)
    yield "places", lambda patch: test_cuda.test_where_a_front_lies_changes_nothing("f8", patch)
    yield "places of segments", lambda patch: test_cuda.test_where_segments_lie_changes_nothing("f8", patch)
    yield "singular stages", lambda patch: test_cuda.test_stage_singular_shifts(1)
    yield "tiny dampings", lambda patch: test_cuda.test_tiny_dampings()
    yield "not finite", lambda patch: test_cuda.test_wide_not_finite(False, patch)


@pytest.mark.slow
def test_every_barrier_is_needed():
    """Without any one of the barriers of the library there is a race, or shared memory is read that nobody wrote."""
    passed, seconds, every = {}, {}, dict(cases())
    for name, case in every.items():
        began = time.perf_counter()
        with RaceChecker() as found, pytest.MonkeyPatch.context() as patch:
            case(patch)
        passed[name], seconds[name] = found.barriers, time.perf_counter() - began
    idle = []
    for barrier in sorted(barriers("syncthreads")):
        for name in sorted((name for name in every if barrier in passed[name]), key=seconds.get):
            try:
                with RaceChecker(barrier, first_only=True), pytest.MonkeyPatch.context() as patch:
                    every[name](patch)
            except Found as finding:
                print(f"{Path(barrier[0]).name}:{barrier[1]}: {finding}", flush=True)
                break
            except Exception as error:
                # Wrong numbers may end a run before threads meet: another case has to show the race.
                print(f"{Path(barrier[0]).name}:{barrier[1]}: {name}: {type(error).__name__}", flush=True)
        else:
            idle.append(barrier)
    assert not idle, "barriers that nothing needs: " + ", ".join(f"{path}:{line}" for path, line in idle)
