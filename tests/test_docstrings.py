"""Every public name has an example in its docstring, and the examples of all docstrings show what really comes out."""

import ast
import doctest
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
from test_examples import run

import numba_hinv as nh

PACKAGE = Path(nh.__file__).parent
ESTIMATORS = ("NetClassifier", "NetRegressor") if importlib.util.find_spec("sklearn") else ()


def docstrings(path):
    """(name, docstring) of what a file defines, decorated or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text and ">>>" in text:
                yield f"{path.stem}.{getattr(node, 'name', '')}", text


def missing(text):
    """The libraries that an example imports and that are not installed."""
    names = re.findall(r"^ *>>> (?:from|import) ([\w, ]+)", text, re.M)
    roots = {part.split()[0] for name in names for part in name.split(" import ")[0].split(",")}
    return {root for root in roots if importlib.util.find_spec(root) is None}


def run_all():
    """For a process of its own, since some examples register names: print (examples tried, failures)."""
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    skipped = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, text in docstrings(path):
            if missing(text):
                skipped.append(name)
                continue
            test = doctest.DocTestParser().get_doctest(text, {"__name__": name}, name, str(path), 0)
            runner.run(test, out=sys.stdout.write)
    print(json.dumps({"tried": runner.tries, "failed": runner.failures, "skipped": skipped}))


def test_examples_show_what_comes_out(tmp_path):
    tests = str(Path(__file__).parent)
    program = f"import sys; sys.path.insert(0, {tests!r}); import test_docstrings; test_docstrings.run_all()"
    output = run(["-W", "default", "-c", program], tmp_path)
    counts = json.loads(output.splitlines()[-1])
    assert counts["failed"] == 0, output
    assert counts["tried"] > 200


@pytest.mark.parametrize("name", sorted({*nh.__all__, *ESTIMATORS} - {"__version__"}))
def test_every_public_name_has_an_example(name):
    thing = getattr(nh, name)
    if name == "distributed":  # what it makes takes a cluster: one example goes all the way
        assert ">>>" in thing.hessian.__doc__
    elif isinstance(thing, types.ModuleType):
        without = [
            part
            for part in thing.__all__
            if not isinstance(getattr(thing, part), int) and ">>>" not in (getattr(thing, part).__doc__ or "")
        ]
        assert not without
    else:
        assert ">>>" in (thing.__doc__ or "")
