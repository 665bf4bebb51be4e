"""`progress=True`: bars that are complete at the end, an error that names the extra, nothing imported otherwise."""

import builtins
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from problems import chain


class Recorder:
    """What the sweeps need of tqdm."""

    made = []

    def __init__(self, total, desc, unit):
        self.total, self.desc, self.unit, self.done, self.closed = total, desc, unit, 0, False
        Recorder.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def update(self, amount):
        self.done += amount


@pytest.fixture
def bars(monkeypatch):
    auto = pytest.importorskip("tqdm.auto")
    monkeypatch.setattr(auto, "tqdm", Recorder)
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder.made


def test_bars_reach_their_end(bars):
    problem = chain(4, 30, batch=2)
    H = problem.hessian
    F = H.factorize(0.1, progress=True)
    C = H.factorize(0.1, checkpoint=True, progress=True)
    H.factorize_many([0.1, 0.2, 0.3], progress=True, num_threads=2)
    for G in (F, C):
        G.solve(problem.right_hand_side(70), progress=True)
        G.solve(problem.right_hand_side(), progress=True)
    L = len(problem.layers)
    assert [(bar.total, bar.unit) for bar in bars] == [
        (L, "layer"), (L, "layer"), (3 * L, "layer"), (70, "column"), (1, "column"), (70, "column"), (1, "column")
    ]  # fmt: skip
    assert all(bar.done == bar.total and bar.closed for bar in bars)


def test_an_interrupted_bar_is_closed(bars, monkeypatch):
    problem = chain(4, 30, batch=2)
    monkeypatch.setattr(Recorder, "update", lambda self, amount: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        problem.hessian.factorize(0.1, progress=True)
    assert bars[0].closed


def test_answers_are_the_same(bars):
    problem = chain(4, 12, batch=2)
    b = problem.right_hand_side(3)
    F, G = problem.hessian.factorize(0.1), problem.hessian.factorize(0.1, progress=True)
    np.testing.assert_array_equal(F.solve(b), G.solve(b, progress=True))


def test_without_tqdm(monkeypatch):
    problem = chain(3, 4)
    F, found = problem.hessian.factorize(1.0), builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for call in (
        lambda: problem.hessian.factorize(1.0, progress=True),
        lambda: problem.hessian.factorize_many([1.0], progress=True),
        lambda: F.solve(problem.right_hand_side(), progress=True),
    ):
        with pytest.raises(ImportError, match=r"progress: expected tqdm .*numba_hinv\[progress\]"):
            call()
    problem.hessian.factorize(1.0)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_bad_flags(value):
    problem = chain(3, 4)
    with pytest.raises(TypeError, match="progress"):
        problem.hessian.factorize(1.0, progress=value)
    with pytest.raises(TypeError, match="progress"):
        problem.hessian.factorize(1.0).solve(problem.right_hand_side(), progress=value)


def test_tqdm_is_not_imported_unasked():
    code = """
        import sys, numpy as np, numba_hinv as nh
        net = nh.Network([nh.Dense(2, 2)], "mean_squared_error")
        F = net.hessian(net.init(), np.ones((1, 2)), np.ones((1, 2))).factorize(1.0)
        F.solve(np.ones(6))
        assert "tqdm" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
