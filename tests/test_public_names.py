"""What `dir` and a star bring: the public names, and no others."""

import importlib.util

import numba_hinv as nh

ESTIMATORS = {"NetClassifier", "NetRegressor"}


def test_dir_lists_the_public_names_alone():
    is_there = importlib.util.find_spec("sklearn") is not None
    assert dir(nh) == sorted({*nh.__all__, *(ESTIMATORS if is_there else ())})
    assert all(getattr(nh, name) is not None for name in dir(nh))


def test_a_star_brings_the_public_names():
    found = {}
    exec("from numba_hinv import *", found)
    assert {*found} - {"__builtins__"} == {*nh.__all__}


def test_public_names_are_sorted_and_not_private():
    assert nh.__all__ == sorted(nh.__all__)
    assert [name for name in nh.__all__ if name.startswith("_")] == ["__version__"]
