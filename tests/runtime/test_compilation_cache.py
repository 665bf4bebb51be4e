"""The disk cache of compiled code is never stale: not after an edit of the package, nor of a user's own function."""

import gc
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import numba_hinv
from numba_hinv.runtime import compilation_cache

PACKAGE = Path(numba_hinv.__file__).parent

SOLVE = """
import numpy as np, numba_hinv as nh
net = nh.Network([nh.Dense(2, 2, skip=True), nh.Dense(2, 1, "identity")], loss="mean_squared_error")
print(repr(net.loss(net.init(), np.ones((1, 2)), np.zeros((1, 1)))))
"""

CUSTOM = """
import numpy as np, numba_hinv as nh
import own
net = nh.Network([nh.Dense(1, 1, "own", bias=False)], loss="mean_squared_error")
print(repr(float(net.forward(np.array([3.0]), np.ones((1, 1)))[0, 0])))
"""


LAYER = """
import numpy as np, numba_hinv as nh
import own
net = nh.Network([nh.Custom(own.own, 1, 1, 1)], loss="mean_squared_error")
print(repr(float(net.gradient(np.array([3.0]), np.ones((1, 1)), np.zeros((1, 1)))[0])))
"""


def run(code, folder, **environment):
    """Standard output of a fresh process that starts in, and imports from, ``folder`` first."""
    path = os.pathsep.join([str(folder), str(PACKAGE.parent)])
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def copy_package(folder):
    shutil.copytree(PACKAGE, folder / "numba_hinv", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "numba_hinv"


def test_the_cache_is_used_until_a_kernel_is_edited(tmp_path):
    """memory.add is compiled into linearise.forward, whose own file does not change."""
    package = copy_package(tmp_path)
    cache = tmp_path / "cache"
    before = run(SOLVE, tmp_path, NUMBA_CACHE_DIR=str(cache))
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
    assert written
    assert run(SOLVE, tmp_path, NUMBA_CACHE_DIR=str(cache)) == before
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")} == written
    source = package / "kernels" / "plumbing" / "memory.py"
    source.write_text(source.read_text().replace("out[i] += given[i]", "out[i] -= given[i]"))
    assert run(SOLVE, tmp_path, NUMBA_CACHE_DIR=str(cache)) != before


def test_all_compiled_functions_are_in_files_that_the_digest_reads():
    for module in pkgutil.walk_packages([str(PACKAGE)], "numba_hinv."):
        if not module.name.startswith(("numba_hinv.cuda", "numba_hinv.frameworks", "numba_hinv.__main__")):
            importlib.import_module(module.name)
    compiled = [thing for thing in gc.get_objects() if isinstance(thing, Dispatcher)]
    files = {Path(thing.py_func.__code__.co_filename) for thing in compiled}
    own = {path for path in files if PACKAGE in path.parents and PACKAGE / "cuda" not in path.parents}
    assert len(own) > 20
    assert own <= set(compilation_cache.sources())


def test_an_edited_activation_is_compiled_again(tmp_path):
    for factor in (2.0, 5.0):
        (tmp_path / "own.py").write_text(
            "import numba_hinv as nh\n\n\n"
            f"@nh.register_activation('own')\ndef own(u):\n    return {factor} * u, {factor}, 0.0\n"
        )
        assert float(run(CUSTOM, tmp_path)) == 3.0 * factor


def test_an_edited_custom_layer_is_compiled_again(tmp_path):
    for factor in (2.0, 5.0):
        (tmp_path / "own.py").write_text(f"def own(z, x, out):\n    out[0] = {factor} * x[0] * z[0]\n")
        # d/dx (factor x)^2 at x = 3.
        assert float(run(LAYER, tmp_path)) == 6.0 * factor**2


FIRST_USE = """
import os, sys
for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
    if name not in sys.argv:
        os.environ.pop(name, None)
import numpy as np, numba_hinv as nh, own
from numba_hinv.kernels.dense import product
from numba_hinv.layers.activations import activation_address
activation_address("silu", np.dtype(np.float64))
A = np.eye(3)
product.multiply(1.0, A, A, 0.0, np.empty((3, 3)))
own.square(2.0)
from numba_hinv.kernels.plumbing import disk_cache
from numba_hinv.runtime.compilation_cache import cache_directories
print(disk_cache.root(), *cache_directories())
"""
OWN = "import numba\n\n\n@numba.njit(cache=True)\ndef square(x):\n    return x * x\n"


def first_use(folder, *kept, **environment):
    """(where a copy of the package caches after its first use, the files of caches that are in the folder then)."""
    copy_package(folder)
    (folder / "own.py").write_text(OWN)
    shown = run(FIRST_USE.replace("sys.argv", repr(kept)), folder, **environment).split()
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.nb?"))
    return Path(shown[0]), [Path(directory) for directory in shown[1:]], files


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other folders")
@pytest.mark.parametrize("kept", [(), ("XDG_CACHE_HOME",), ("NUMBA_CACHE_DIR",)])
def test_the_cache_is_in_the_users_folder(tmp_path, kept):
    """Or where the user says; what is uninstalled leaves nothing, and other packages' functions stay where they
    were.
    """
    places = {name: str(tmp_path / name.lower()) for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    root, directories, files = first_use(tmp_path, *kept, **places)
    expected = {
        (): tmp_path / "home" / ".cache" / "numba_hinv",
        ("XDG_CACHE_HOME",): tmp_path / "xdg_cache_home" / "numba_hinv",
        ("NUMBA_CACHE_DIR",): tmp_path / "numba_cache_dir",
    }[kept]
    assert root == expected and all(directory.parent == root for directory in directories)
    ours = [path for path in files if "square" not in path.name]
    assert len(ours) >= 4 and all(expected in (tmp_path / path).parents for path in ours)
    theirs = {path.parts[0] for path in files if "square" in path.name}
    assert theirs == ({"numba_cache_dir"} if kept == ("NUMBA_CACHE_DIR",) else {"__pycache__"})


def test_no_place_for_a_cache(tmp_path):
    """Where nothing can be written, the library still works: in a temporary directory of its own, which then goes."""
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    names = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "LOCALAPPDATA")
    root, _, files = first_use(tmp_path, *names, **dict.fromkeys(names, str(blocked)))
    assert root.name.startswith("numba_hinv_") and not root.exists()
    assert not any("square" not in path.name for path in files)


def test_numbas_own_cache_is_as_it_was():
    """Nothing of Numba's is replaced for the whole process."""
    code = """
from numba.core import caching
before = dict(vars(caching.Cache)), list(caching.CacheImpl._locator_classes), caching.config.CACHE_DIR
import numba_hinv
assert before == (dict(vars(caching.Cache)), caching.CacheImpl._locator_classes, caching.config.CACHE_DIR)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line_info():
    finished = subprocess.run([sys.executable, "-m", "numba_hinv", "info"], capture_output=True, text=True, check=True)
    named = [line.split(" ", 1)[0] for line in finished.stdout.splitlines()]
    assert numba_hinv.__version__ in finished.stdout
    assert {"numba_hinv", "Python", "Numba", "NumPy", "SciPy", "processor", "threads", "BLAS", "GPU", "cache"} <= {
        *named
    }


USES = """
import numpy as np, numba_hinv as nh
from numba_hinv.runtime.compilation_cache import cache_directories

def compiled():
    return sorted(str(file) for directory in cache_directories() for file in directory.rglob("*.nbc"))

before = compiled()
for dtype in {dtypes}:
    for layer in {layers}:
        net = nh.Network([layer, nh.Dense(4, 3)], loss="softmax_cross_entropy")
        params, X, y = net.init(0, dtype=dtype), np.random.default_rng(0).random((5, 4)).astype(dtype), [0, 1, 2, 0, 1]
        H = net.hessian(params, X, y)
        for F in (*H.factorize_many([10.0, 20.0]), H.factorize(10.0, factor_dtype="{narrow}", checkpoint=True)):
            F.solve(np.ones((H.shape[0], 20), dtype), full_output=True)
            F.slogdet()
        H.count_below(-10.0)
        chain = nh.Hessian.from_blocks([H.blocks(l) for l in range(2)], H.terminal)
        chain.factorize(10.0).solve(H.gradient)
        H.diagonal(), net.jacobian(params, X), net.input_hessian(params, X, y)
    nh.minimize(net, params, X, y, max_iterations=2)
print(len(before), len(set(compiled()) - set(before)))
"""


@pytest.mark.parametrize("everything", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_warmup_compiles_everything(everything, tmp_path):
    """After it, a process that uses nets, chains, convolutions and norms in both precisions compiles nothing more.

    Nor does one that uses dense layers and chains in float64, where those are asked for; the whole takes minutes.
    """
    cache = str(tmp_path / "cache")
    chosen = [] if everything else ["--kind", "dense", "--kind", "blocks", "--dtype", "float64"]
    command = f"import numba_hinv.__main__ as command; command.main({['warmup', *chosen]!r})"
    shown = run(command, tmp_path, NUMBA_CACHE_DIR=cache)
    assert "done in" in shown and f"cached in {cache}" in shown
    layers, dtypes, narrow = ['nh.Dense(4, 4, "gelu", skip=True)'], "(np.float64,)", "float64"
    if everything:
        layers, dtypes, narrow = (
            [*layers, "nh.Conv1d(2, 2, 1, 2)", "nh.LayerNorm(4)"],
            "(np.float64, np.float32)",
            "float32",
        )
    uses = USES.format(layers=f"({', '.join(layers)},)", dtypes=dtypes, narrow=narrow)
    before, more = map(int, run(uses, tmp_path, NUMBA_CACHE_DIR=cache).split())
    assert before > 100 and more == 0


NORMS = """
import numpy as np, numba_hinv as nh
layers = [{layers}]
for layer in layers:
    net = nh.Network([layer, nh.Dense(layer.out_features, 1, "identity")], loss="mean_squared_error")
    print(repr(float(net.loss(net.init(), np.array([[0.1, 0.2, 0.4, 0.8]]), np.zeros((1, 1))))))
"""


def test_what_several_processes_cached_is_told_apart(tmp_path):
    """Closures of one name over other constants, each compiled first in a process of its own, and all loaded by one."""
    copy_package(tmp_path)
    layers = [
        *("nh.LayerNorm(4, 0.1)", "nh.LayerNorm(4, 0.01)", "nh.RMSNorm(4, 0.1)"),
        *("nh.Gated(2, 'sigmoid')", "nh.Gated(2, 'silu')"),
    ]
    cache = str(tmp_path / "cache")
    alone = [run(NORMS.format(layers=layer), tmp_path, NUMBA_CACHE_DIR=cache) for layer in layers]
    assert len(set(alone)) == len(alone)
    assert run(NORMS.format(layers=", ".join(layers)), tmp_path, NUMBA_CACHE_DIR=cache).split() == alone
