"""The types that programs of users see: mypy checks one that calls everything, and it does what its types say."""

import importlib.util
import inspect
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import numba_hinv as nh

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")


def has(module):
    return importlib.util.find_spec(module) is not None


def test_the_package_says_that_it_has_types():
    assert (Path(nh.__file__).parent / "py.typed").exists()


def test_the_program_calls_everything():
    text = PROGRAM.read_text("utf-8")
    assert [name for name in nh.__all__ if not re.search(rf"\bnh\.{name}\b", text)] == []
    for module in (nh.losses, nh.embedded):
        name = module.__name__.rpartition(".")[2]
        missing = [each for each in module.__all__ if not re.search(rf"\bnh\.{name}\.{each}\b", text)]
        assert set(missing) <= {"NOT_FINITE", "SINGULAR_PIVOT"}


@pytest.mark.filterwarnings("ignore")
def test_the_program_runs():
    pytest.importorskip("typing_extensions")
    runpy.run_path(str(PROGRAM), run_name="__main__")


@pytest.mark.skipif(not has("mypy"), reason="mypy is not installed")
def test_mypy_agrees(tmp_path):
    """As `mypy` does it in the root, by the settings of pyproject.toml."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not has("mypy"), reason="mypy is not installed")
def test_mypy_finds_what_is_wrong(tmp_path):
    """Types that say nothing would agree with everything."""
    wrong = {
        'net.init(seed="x", rong=1)': "call-arg",
        'net.hessian(params, X, y, curvature="gnn")': "arg-type",
        "nh.Dense(2)": "call-arg",
        'F.solve(params, full_output="yes")': "call-overload",
        "F.sample(2, 3)": "call-arg",
        "nh.trust_region_step(F, 1.0)": "arg-type",
        "F.inertia.negatives": "attr-defined",
        "nh.eigenvalue(H, 1)": "attr-defined",
        "nh.embedded.factorize(system, 0.1)": "call-arg",
    }
    lines = [
        "import numba_hinv as nh",
        "def program(net: nh.Network, H: nh.Hessian, F: nh.Factorization, system: nh.embedded.System) -> None:",
        "    params, X, y = net.init(), [[1.0]], [1.0]",
        *(f"    {line}" for line in wrong),
    ]
    path = tmp_path / "wrong.py"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path), str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for at, (line, code) in enumerate(wrong.items(), 4):
        assert re.search(rf"wrong\.py:{at}: error: .*\[{code}\]", done.stdout), f"{line}\n{done.stdout}{done.stderr}"


def _public():
    """Full names of public functions and classes, where they are defined."""
    for name in nh.__all__:
        found = getattr(nh, name)
        if inspect.ismodule(found):
            yield from (f"{found.__name__}.{each}" for each in found.__all__ if each[0].islower() or each == "System")
        elif hasattr(found, "__qualname__"):
            yield f"{found.__module__}.{found.__qualname__}"


@pytest.mark.skipif(not (has("pyright") and has("scipy-stubs")), reason="pyright and scipy-stubs are not installed")
def test_pyright_knows_the_type_of_every_public_symbol():
    """Of `--verifytypes`, what users see: it counts every module without an underscore in its name as public."""
    command = [sys.executable, "-m", "pyright", "--ignoreexternal", "--outputjson", "--verifytypes", "numba_hinv"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    symbols = {one["name"]: one for one in json.loads(done.stdout)["typeCompleteness"]["symbols"]}
    public = set(_public())
    assert public <= set(symbols)

    def is_public(name):
        parents = [name.rpartition(".")[0], name]
        return any(parent in public for parent in parents) and not re.search(r"\._(?!_)", name)

    found = {name: one for name, one in symbols.items() if is_public(name)}
    assert len(found) > 300
    assert [name for name, one in found.items() if not one["isTypeKnown"]] == []
