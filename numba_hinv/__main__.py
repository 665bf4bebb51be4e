"""``python -m numba_hinv warmup`` compiles everything ahead; ``python -m numba_hinv info`` says what is at hand.

``warmup --kind dense --dtype float64`` compiles only what such nets need; both options may be given several times.
"""

import argparse
import importlib.util
import os
import platform
import sys
import time
import timeit

import llvmlite.binding
import numba
import numpy as np
import scipy

import numba_hinv as nh

from .kernels.dense.product import multiply
from .kernels.plumbing import binding
from .layers.activations import activation_address
from .layers.losses import loss_address
from .runtime import threads
from .runtime.compilation_cache import cache_directories
from .runtime.progress import bar
from .system.dense import Assembler, finish

KINDS = "dense", "conv", "custom", "blocks"
DTYPES = "float64", "float32"
# Rows and columns of the product whose rate `info` measures: it stays in a second-level cache.
SHAPE = 128


def info():
    """Print versions, processor, threads, BLAS, GPU and where compiled code is cached."""
    blas = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    for name, value in (
        ("numba_hinv", nh.__version__),
        ("Python", platform.python_version()),
        ("Numba", numba.__version__),
        ("NumPy", np.__version__),
        ("SciPy", scipy.__version__),
        ("processor", f"{llvmlite.binding.get_host_cpu_name()}, {os.cpu_count()} CPUs"),
        ("threads", f"up to {threads.available_cores()}, for many right-hand sides or dampings"),
        ("BLAS", f"{blas['name']} {blas['version']} (SciPy's), threads: {threads.blas_threads()}"),
        ("BLAS core", threads.blas_core()),
        ("products", f"{rates()} GFLOP/s, {SHAPE} x {SHAPE} x {SHAPE} in float64"),
        ("GPU", gpu()),
        *(("cache", directory) for directory in cache_directories()),
    ):
        print(f"{name:12}{value}")


def rates():
    """GFLOP/s of a product by BLAS, with its threads, and by the micro-kernel, on one: the best of some."""
    A, B, C = (np.asarray(np.random.default_rng(0).standard_normal((SHAPE, SHAPE)), order="F") for _ in range(3))
    of_rows = A.T, B.T, C.T
    binding.load(np.dtype(np.float64))
    found = {}
    for name, job in (
        ("BLAS", lambda: scipy.linalg.blas.dgemm(1.0, A, B, 0.0, C, overwrite_c=True)),
        ("micro-kernel", lambda: multiply(1.0, *of_rows[:2], 0.0, of_rows[2])),
    ):
        job()
        seconds = min(timeit.repeat(job, number=10, repeat=20)) / 10
        found[name] = 2e-9 * SHAPE**3 / seconds
    return ", ".join(f"{name} {rate:.3g}" for name, rate in found.items())


def gpu():
    """The GPU that ``device="cuda"`` means, or why there is none."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "none (numba-cuda is not installed)"
    import numba.cuda

    if not numba.cuda.is_available():
        return "none (numba-cuda is installed, and finds no GPU)"
    device, memory = numba.cuda.get_current_device(), numba.cuda.current_context().get_memory_info()
    if not hasattr(device, "name"):
        return "Numba's simulator of one"
    name = device.name.decode() if isinstance(device.name, bytes) else device.name
    return f"{name}, {memory.total / 2**30:.0f} GiB"


def steps(kinds, dtypes):
    """What there is to compile for these kinds of chains, and for parameters of these dtypes, as (name, function)."""
    for dtype in map(np.dtype, dtypes):
        if kinds != ["blocks"]:
            for name in nh.activation_names():
                yield f"{name}, {dtype}", lambda name=name, dtype=dtype: activation_address(name, dtype)
            for name in nh.loss_names():
                yield f"loss {name}, {dtype}", lambda name=name, dtype=dtype: loss_address(name, dtype)
        if "custom" in kinds:
            for layer in (nh.LayerNorm(2), nh.RMSNorm(2), nh.Gated(2)):
                yield f"{type(layer).__name__}, {dtype}", lambda layer=layer, dtype=dtype: layer.addresses(dtype)
        # Sweeps over chains without convolutions are compiled without them.
        layers = [nh.Dense(3, 3, skip=True)] if {"dense", "custom"} & set(kinds) else []
        layers += [nh.Conv1d(1, 3, 3, 3)] if "conv" in kinds else []
        for layer in layers:
            for job in (_gradient, _solve, _covariances, _dense, _parts):
                name = f"{job.__name__[1:]}, {type(layer).__name__}, {dtype}"
                yield name, lambda layer=layer, job=job, dtype=dtype: _small_problem(layer, dtype, job)
        if "blocks" in kinds:
            yield f"blocks, {dtype}", lambda dtype=dtype: _blocks(dtype)
    if "blocks" in kinds:
        yield "unstable chains", _unstable_chain


def _small_problem(layer, dtype, job):
    net = nh.Network([layer, nh.Dense(3, 2, "identity")], loss="mean_squared_error")
    return job(net, net.init(dtype=dtype), np.eye(2, 3, dtype=dtype), np.zeros((2, 2), dtype))


def _gradient(net, params, X, y):
    return net.gradient(params, X, y)


def _solve(net, params, X, y):
    H = net.hessian(params, X, y)
    H @ params
    F = H.factorize(damping=1.0)
    return F.solve(params), F.solve(np.stack([params, params], axis=1)), F.inertia


def _dense(net, params, X, y):
    system = net.hessian(params, X, y).system
    # Problems as small as this one are left to products with H.
    assembler, H = Assembler(system.table, *system.on_host()), np.empty((params.size, params.size))
    assembler.add(H, True)
    finish(system.table, assembler.plan.places, H, system.l2, assembler.workers)
    return H


def _covariances(net, params, X, y):
    F = net.hessian(params, X, y, curvature="ggn").factorize(damping=1.0)
    return F.diagonal(), F.blocks(1), F.sample(rng=0)


def _blocks(dtype):
    one, zero = np.eye(2, dtype=dtype), np.zeros((2, 2), dtype)
    H = nh.Hessian.from_blocks([nh.LayerBlocks(one, one, one, zero, one)] * 2, one)
    F = H.factorize(damping=1.0)
    b = H @ np.ones(4, dtype)
    return F.solve(b), F.solve(np.stack([b, b], axis=1)), F.inertia, F.diagonal(), F.blocks(1)


def _parts(net, params, X, y):
    return net.hessian(params, X, y).diagonal(), net.jacobian(params, X), net.input_hessian(params, X, y)


def _unstable_chain():
    """Half of the squares of all states and controls u, from 0 on, with a state that grows by a half in every step."""
    A, B, num_steps = np.array([[1.5, 1.0], [0.0, 0.5]]), np.array([[0.0], [1.0]]), 60
    blocks = [
        nh.LayerBlocks(B, A[:, :n_in], np.eye(1), np.zeros((1, n_in)), np.eye(n_in)) for n_in in (0, *[2] * num_steps)
    ]
    return nh.Hessian.from_blocks(blocks, np.eye(2)).factorize(0.0).solve(np.ones(num_steps + 1))


def warmup(kinds=KINDS, dtypes=DTYPES):
    """Compile the kernels, activations, losses and layers for these, or find them in the cache."""
    nh.set_compile_notice(False)
    start, jobs = time.perf_counter(), list(steps([kind for kind in KINDS if kind in kinds], dtypes))
    has_bar = importlib.util.find_spec("tqdm") is not None
    with bar(has_bar, len(jobs), "warmup", "step") as shown:
        for done, (name, compile_step) in enumerate(jobs):
            if has_bar:
                shown.set_description(f"{name:30.30}")
            else:
                print(f"\r[{'#' * (30 * done // len(jobs)):30}] {done}/{len(jobs)} {name:40.40}", end="", flush=True)
            compile_step()
            shown.update(1)
    full = "" if has_bar else f"\r[{'#' * 30}] {len(jobs)}/{len(jobs)} "
    print(f"{full}{f'done in {time.perf_counter() - start:.1f} s':40}")
    for directory in cache_directories():
        print("cached in", directory)


def main(arguments=None):
    """Entry point of ``python -m numba_hinv``."""
    parser = argparse.ArgumentParser(prog="python -m numba_hinv", description=__doc__)
    parser.add_argument("--version", action="version", version=nh.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, processor, BLAS and its speed, GPU, cache")
    ahead = commands.add_parser("warmup", help="compile ahead what is then found in the cache")
    ahead.add_argument(
        "--kind", action="append", choices=KINDS, dest="kinds", help="nets of dense layers, with convolutions, with "
        "custom layers such as LayerNorm, or chains given as blocks; all by default",
    )  # fmt: skip
    ahead.add_argument("--dtype", action="append", choices=DTYPES, dest="dtypes", help="of params; both by default")
    given = parser.parse_args(arguments)
    if given.command == "info":
        info()
    else:
        warmup(given.kinds or KINDS, given.dtypes or DTYPES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
