"""Every public name has an example in its docstring, and the examples of all docstrings show what really comes out.

Where numpydoc is installed, the docstrings of all public names and of their methods are validated as well: they say in
the right order what is given, returned and raised, each with a name, a type and a description.
"""

import ast
import doctest
import importlib.util
import inspect
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


# What numpydoc may find fault with: sections and their order (GL), the summary (SS), parameters (PR), returned values
# (RT), what follows (YD01, SA02 to SA04), and whether there is an example (EX01). Left out are GL01 and GL02, by which
# text begins and ends on lines of its own; SS05, which takes every first word that ends in an s for a verb; RT02, by
# which returned values have no names; and ES01 and SA01, by which every docstring has more than a summary and a section
# "See Also": a summary is often all that there is to say, and most names are found beside the others of their page.
CODES = {
    *("GL03", "GL05", "GL06", "GL07", "GL08", "GL09", "GL10", "SS01", "SS02", "SS03", "SS04", "SS06"),
    *("PR01", "PR02", "PR03", "PR04", "PR05", "PR06", "PR07", "PR08", "PR09", "PR10"),
    *("RT01", "RT03", "RT04", "RT05", "YD01", "SA02", "SA03", "SA04", "EX01"),
}


def public():
    """The dotted names of everything public, with methods and properties that the library itself defines."""
    for name in sorted({*nh.__all__, *ESTIMATORS} - {"__version__"}):
        thing = getattr(nh, name)
        if not isinstance(thing, types.ModuleType):
            yield from members(f"numba_hinv.{name}", thing)
            continue
        for part in thing.__all__:
            if not isinstance(getattr(thing, part), int):
                yield from members(f"numba_hinv.{name}.{part}", getattr(thing, part))


def members(name, thing):
    from numpydoc.docscrape import NumpyDocString

    yield name
    if not inspect.isclass(thing):
        return
    # What the section about attributes describes needs no docstring of its own.
    attributes = NumpyDocString(inspect.getdoc(thing))["Attributes"]
    described = {one for attribute in attributes for one in attribute.name.split(", ")}
    for member in vars_of(thing):
        if not member.startswith("_") and member not in described:
            yield f"{name}.{member}"


def vars_of(cls):
    """The names of methods and properties of a class, and of those classes of the library that it is derived from."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "numba_hinv":
            yield from (name for name, value in vars(base).items() if hasattr(value, "__get__"))


def faults(name):
    """What numpydoc finds fault with."""
    from numpydoc.docscrape import NumpyDocString
    from numpydoc.validate import validate

    thing = nh
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    is_class, is_member = inspect.isclass(thing), name.split(".")[-2][0].isupper()
    ignored = set()
    if is_member:
        # They are shown at work in the example of their class.
        ignored.add("EX01")
    if is_class:
        text = NumpyDocString(inspect.getdoc(thing))
        if text["Attributes"] and not text["Parameters"]:
            # It is given to users, who do not make it: the arguments of its constructor are not theirs.
            ignored.add("PR01")
    return [f"{name}: {code} {what}" for code, what in validate(name)["errors"] if code in CODES - ignored]


@pytest.mark.skipif(importlib.util.find_spec("numpydoc") is None, reason="needs numpydoc")
def test_docstrings_are_complete():
    names = sorted(set(public()))
    assert len(names) > 150
    found = [fault for name in names for fault in faults(name)]
    assert not found, "\n".join(found)
