"""The rule of the house: imports go in one direction, in no circle, and no file uses another's private names.

`ORDER` lists the packages and the public modules, each of which may import from those before it. docs/architecture.md
says what lives where.
"""

import ast
import graphlib
from pathlib import Path

import pytest

import numba_hinv

PACKAGE = Path(numba_hinv.__file__).parent
ORDER = [
    "_version",
    "kernels",
    "runtime",
    "layers",
    "system",
    "cuda",
    "factors",
    "certainty",
    "factorization",
    "hessian",
    ("network", "losses"),
    ("storage", "embedded", "applications", "distributed"),
    "frameworks",
    "",
    "__main__",
]
# Folders within `kernels` and `cuda`, likewise; `cuda.device` and what registers it come last.
INNER = ["plumbing", "dense", "steps", "sweeps", ""]
# What users install by extras: modules that import one may themselves be imported late.
EXTRAS = {"numba.cuda", "numba_cuda", "torch", "sklearn", "jax", "equinox", "flax", "tqdm", "matplotlib", "cuda"}
PATHS = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {
    name.removesuffix("/__init__").replace("__init__", ""): ast.parse(path.read_text()) for name, path in PATHS.items()
}
IS_PACKAGE = {name.removesuffix("__init__").rstrip("/") for name in PATHS if name.endswith("__init__")}
# Methods of named tuples, which begin with an underscore so that fields may have any name.
NAMED_TUPLE = {"_asdict", "_replace", "_fields", "_make"}


def imports(name, late):
    """(module of the package, names taken from it) of all imports, those inside of functions where ``late``.

    What is imported to check types alone is none: it names what is above, and never runs.
    """
    tree, inside, for_types = TREES[name], set(), set()
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.Lambda)):
            inside |= {id(node) for node in ast.walk(function)}
        if isinstance(function, ast.If) and ast.unparse(function.test) == "TYPE_CHECKING":
            for_types |= {id(node) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level and (id(node) in inside) == late:
            parts = name.split("/") if name else []
            base = parts[: len(parts) - node.level + (name in IS_PACKAGE)]
            base = "/".join(base + (node.module.split(".") if node.module else []))
            for alias in node.names:
                full = "/".join(filter(None, [base, alias.name]))
                yield (full, None) if full in TREES else (base, alias.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and (id(node) in inside) == late:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert name == "__main__" or not any(given.split(".")[0] == "numba_hinv" for given in names), name


def place(name):
    """Where a module stands in `ORDER`."""
    top = name.split("/")[0]
    return next(at for at, entry in enumerate(ORDER) if top == entry or (isinstance(entry, tuple) and top in entry))


def inner_place(name):
    parts = name.split("/")
    return INNER.index(parts[1]) if len(parts) > 2 or parts[-1] in INNER else INNER.index("")


@pytest.mark.parametrize("name", TREES)
def test_imports_go_down(name):
    for late in (False, True):
        for target, _ in imports(name, late):
            if name and target == "":
                pytest.fail(f"{name} imports the package itself")
            assert place(target) <= place(name), f"{name} imports {target}, which is above it"
            if target.split("/")[0] == name.split("/")[0] and name.split("/")[0] in ("kernels", "cuda"):
                assert inner_place(target) <= inner_place(name), f"{name} imports {target}, which is above it"


def test_packages_of_the_same_rank_do_not_import_each_other():
    for name in TREES:
        for target, _ in imports(name, False):
            if place(name) == place(target):
                assert name.split("/")[0] == target.split("/")[0], f"{name} imports {target}"


def test_no_circles():
    graph = {name: {target for late in (False, True) for target, _ in imports(name, late)} for name in TREES}
    for name, targets in graph.items():
        # A package is what its own modules import nothing from.
        targets.discard(name)
    graphlib.TopologicalSorter(graph).prepare()


def test_late_imports_are_for_extras():
    for name in TREES:
        for target, _ in imports(name, late=True):
            given = {
                imported
                for node in TREES[target].body
                if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0)
                for imported in (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                )
            }
            assert any(extra in EXTRAS or extra.split(".")[0] in EXTRAS for extra in given), (
                f"{name} imports {target} late"
            )


def private(name):
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def defined(tree):
    """Private names that a file defines: functions, classes, variables and attributes of objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if private(name)}


def bound_to_own(name):
    """Names that imports of the package's own modules, or of what is in them, bind in a file."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield from (alias.asname or alias.name for alias in node.names)


def test_private_names_stay_at_home():
    own = {name: defined(tree) for name, tree in TREES.items()}
    anywhere = set().union(*own.values())
    for name, tree in TREES.items():
        for late in (False, True):
            for target, taken in imports(name, late):
                assert taken is None or not private(taken), f"{name} takes {taken} from {target}"
        foreign = set(bound_to_own(name))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and private(node.attr):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                # What a file defines is its own, but not where it asks another module for a thing of the same name.
                at_home = owner in ("self", "cls") or node.attr in own[name] or node.attr not in anywhere
                assert at_home and owner not in foreign, f"{name}:{node.lineno} uses {ast.unparse(node)}"
