"""The line on stderr where kernels take long to compile: once, of this package's functions, not from the cache."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numba.core import event

import numba_hinv as nh
from numba_hinv.runtime import compile_notice

OWN = SimpleNamespace(py_func=nh.Network.init)
OTHER = SimpleNamespace(py_func=np.median)
# Losses take some seconds to compile, all together, and are kept like kernels.
COMPILES = """
import numpy as np, numba_hinv as nh
from numba_hinv.layers.losses import loss_address
{before}
for name in nh.loss_names():
    loss_address(name, np.dtype(np.float64))
"""


class Clock:
    """Stands for the module `time`; advances when it is told to."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(compile_notice, "time", clock)
    return clock


def compile_for(clock, seconds, dispatcher=OWN, within=()):
    """What Numba says when it compiles for so long; ``within`` is what it compiles on the way."""
    with event.trigger_event("numba:compile", data={"dispatcher": dispatcher}):
        clock.now += seconds
        for arguments in within:
            compile_for(clock, *arguments)


def told(clock, capsys, *compilations):
    """How often a new listener tells of these."""
    capsys.readouterr()
    with event.install_listener("numba:compile", compile_notice.Notice()):
        for arguments in compilations:
            compile_for(clock, *arguments)
    return capsys.readouterr().err.count("python -m numba_hinv warmup")


@pytest.fixture(autouse=True)
def no_other_listener(monkeypatch):
    monkeypatch.delenv(compile_notice.VARIABLE, raising=False)
    nh.set_compile_notice(False)


def test_once_after_a_second(clock, capsys):
    assert told(clock, capsys, (0.9,)) == 0
    assert told(clock, capsys, (1.1,)) == 1
    assert told(clock, capsys, (0.6,), (0.6,)) == 1
    assert told(clock, capsys, (5.0,), (5.0,), (5.0,)) == 1


def test_said_while_the_outermost_function_is_compiled(clock, capsys):
    """What a function needs counts once, and is when the word comes."""
    assert told(clock, capsys, (0.2, OWN, [(0.2,), (0.2,)])) == 0
    with event.install_listener("numba:compile", compile_notice.Notice()):
        with event.trigger_event("numba:compile", data={"dispatcher": OWN}):
            compile_for(clock, 1.5)
            assert "warmup" in capsys.readouterr().err


def test_nothing_of_other_packages(clock, capsys):
    assert told(clock, capsys, (60.0, OTHER)) == 0
    # Of functions that need each other, the time of ours counts with all that it takes, and no more.
    assert told(clock, capsys, (60.0, OTHER, [(0.9,)])) == 0
    assert told(clock, capsys, (60.0, OTHER, [(1.5,)])) == 1
    assert told(clock, capsys, (0.1, OWN, [(1.5, OTHER)])) == 1


def test_an_error_leaves_it_in_order(clock, capsys):
    with event.install_listener("numba:compile", compile_notice.Notice()):
        with pytest.raises(ZeroDivisionError), event.trigger_event("numba:compile", data={"dispatcher": OWN}):
            raise ZeroDivisionError
        clock.now += 100.0
        compile_for(clock, 0.5)
        assert capsys.readouterr().err == ""
        compile_for(clock, 0.6)
        assert "warmup" in capsys.readouterr().err


@pytest.mark.parametrize("value, count", [("0", 0), ("off", 0), ("1", 1), ("", 1)])
def test_the_environment_switches_it_off(clock, capsys, monkeypatch, value, count):
    monkeypatch.setenv(compile_notice.VARIABLE, value)
    assert told(clock, capsys, (2.0,)) == count


def test_what_is_no_flag_is_refused():
    with pytest.raises(TypeError, match="on: expected True or False, got 'no'"):
        nh.set_compile_notice("no")


def test_in_a_process_of_its_own(tmp_path):
    """Real functions: told when they are compiled, not when they come from the cache; and not where it is off."""

    def err(cache, before=""):
        done = subprocess.run(
            [sys.executable, "-c", COMPILES.format(before=before)],
            env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / cache), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stderr

    first = err("cache")
    assert first.count("\n") == 1 and str(tmp_path / "cache") in first and "python -m numba_hinv warmup" in first
    assert err("cache") == ""
    assert err("other", "nh.set_compile_notice(False)") == ""
