"""``python -m numba_hinv warmup`` compiles everything ahead; ``python -m numba_hinv info`` says what is at hand."""

import argparse
import importlib.util
import os
import platform
import sys
import time

import llvmlite.binding
import numba
import numpy as np
import scipy

import numba_hinv as nh

from .layers.activations import activation_address
from .layers.losses import loss_address
from .runtime import threads
from .runtime.compilation_cache import cache_directories
from .system.dense import Assembler, finish


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
        ("GPU", gpu()),
        *(("cache", directory) for directory in cache_directories()),
    ):
        print(f"{name:12}{value}")


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


def _steps():
    """What there is to compile, as (name, function)."""
    for dtype in (np.dtype(np.float64), np.dtype(np.float32)):
        for name in nh.activation_names():
            yield f"{name}, {dtype}", lambda name=name, dtype=dtype: activation_address(name, dtype)
        for name in nh.loss_names():
            yield f"{name}, {dtype}", lambda name=name, dtype=dtype: loss_address(name, dtype)
        for layer in (nh.LayerNorm(2), nh.RMSNorm(2), nh.Gated(2)):
            yield f"{type(layer).__name__}, {dtype}", lambda layer=layer, dtype=dtype: layer.addresses(dtype)
        # Sweeps over chains without convolutions are compiled without them.
        for layer in (nh.Dense(3, 3, skip=True), nh.Conv1d(1, 3, 3, 3)):
            for job in (_gradient, _solve, _covariances, _dense, _blocks, _parts):
                name = f"{job.__name__[1:]}, {type(layer).__name__}, {dtype}"
                yield name, lambda layer=layer, job=job, dtype=dtype: _small_problem(layer, dtype, job)
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
    return F.diagonal(), F.blocks(1), F.sample(0)


def _blocks(net, params, X, y):
    H = net.hessian(params, X, y)
    chain = nh.Hessian.from_blocks([H.blocks(l) for l in range(2)], H.terminal)
    return chain.factorize(damping=1.0).solve(H.gradient)


def _parts(net, params, X, y):
    return net.hessian(params, X, y).diagonal(), net.jacobian(params, X), net.input_hessian(params, X, y)


def _unstable_chain():
    """Half of the squares of all states and controls u, from 0 on, with a state that grows by a half in every step."""
    A, B, num_steps = np.array([[1.5, 1.0], [0.0, 0.5]]), np.array([[0.0], [1.0]]), 60
    blocks = [
        nh.LayerBlocks(B, A[:, :n_in], np.eye(1), np.zeros((1, n_in)), np.eye(n_in)) for n_in in (0, *[2] * num_steps)
    ]
    return nh.Hessian.from_blocks(blocks, np.eye(2)).factorize(0.0).solve(np.ones(num_steps + 1))


def warmup():
    """Compile every kernel, activation, loss and layer for float64 and float32, or find it in the cache."""
    start = time.perf_counter()
    steps = list(_steps())
    for done, (name, compile_step) in enumerate(steps):
        bar = "#" * (30 * done // len(steps))
        print(f"\r[{bar:30}] {done}/{len(steps)} {name:40.40}", end="", flush=True)
        compile_step()
    print(f"\r[{'#' * 30}] {len(steps)}/{len(steps)} {f'{time.perf_counter() - start:.1f} s':40.40}")
    for directory in cache_directories():
        print("cached in", directory)


def main(arguments=None):
    """Entry point of ``python -m numba_hinv``."""
    parser = argparse.ArgumentParser(prog="python -m numba_hinv", description=__doc__)
    parser.add_argument("command", choices=("warmup", "info"))
    {"warmup": warmup, "info": info}[parser.parse_args(arguments).command]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
