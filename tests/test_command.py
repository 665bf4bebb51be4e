"""``python -m numba_hinv``: what `warmup` compiles for whom, how it shows where it is, and what `info` says."""

import importlib.util
import re

import pytest

import numba_hinv.__main__ as command
from numba_hinv.runtime import threads


def names(kinds, dtypes):
    return [name for name, _ in command.steps(list(kinds), dtypes)]


def test_all_kinds_are_what_each_of_them_is():
    everything = names(command.KINDS, command.DTYPES)
    assert len(set(everything)) == len(everything)
    assert set(everything) == {name for kind in command.KINDS for name in names([kind], command.DTYPES)}
    assert set(names(["dense"], ["float64"])) < set(names(["conv", "dense"], ["float64"])) < set(everything)


def test_of_one_kind_and_dtype_no_others():
    dense, blocks = names(["dense"], ["float32"]), names(["blocks"], ["float64"])
    assert not any("float64" in name or "Conv" in name or "blocks" in name or "Norm" in name for name in dense)
    assert any("solve, Dense" in name for name in dense) and any(name.startswith("tanh") for name in dense)
    assert blocks == ["blocks, float64", "unstable chains"]


@pytest.fixture
def no_work(monkeypatch):
    """`warmup` with three steps that do nothing but tell."""
    done = []
    asked = []

    def steps(kinds, dtypes):
        asked.append((list(kinds), list(dtypes)))
        return [(f"step {k}", lambda k=k: done.append(k)) for k in range(3)]

    monkeypatch.setattr(command, "steps", steps)
    return done, asked


def test_a_bar_without_tqdm(no_work, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tqdm" else find(name))
    command.main(["warmup"])
    shown = capsys.readouterr().out
    assert "step 2" in shown and f"[{'#' * 30}] 3/3 done in" in shown and "cached in" in shown
    assert no_work == ([0, 1, 2], [(list(command.KINDS), list(command.DTYPES))])


def test_a_bar_of_tqdm(no_work, capsys):
    pytest.importorskip("tqdm")
    command.main(["warmup", "--kind", "blocks", "--kind", "dense", "--dtype", "float32"])
    shown = capsys.readouterr()
    assert "3/3" in shown.err and "step 2" in shown.err and "done in" in shown.out
    assert no_work == ([0, 1, 2], [(["dense", "blocks"], ["float32"])])


@pytest.mark.parametrize("arguments", [[], ["dance"], ["warmup", "--kind", "round"], ["warmup", "--dtype", "int8"]])
def test_what_is_no_command_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "usage: python -m numba_hinv" in capsys.readouterr().err


def test_info(capsys):
    command.main(["info"])
    shown = {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()}
    assert {"numba_hinv", "Numba", "processor", "BLAS", "GPU", "cache"} <= set(shown)
    assert shown["BLAS core"] == threads.blas_core()
    rates = re.fullmatch(r"BLAS (\S+), micro-kernel (\S+) GFLOP/s, 128 x 128 x 128 in float64", shown["products"])
    assert all(float(rate) > 0 for rate in rates.groups())


def test_the_core_that_blas_has_chosen():
    """By threadpoolctl, which asks OpenBLAS, too."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    known = {found.get("architecture") for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"}
    assert threads.blas_core() in known | {"unknown"}


def test_version(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        command.main(["--version"])
    assert capsys.readouterr().out == f"{command.nh.__version__}\n"
