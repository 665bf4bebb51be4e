"""Processors: their parts, and that a device of one's own can be added without touching the library."""

import pickle

import numpy as np
import pytest
from problems import chain

from numba_hinv.system import cpu, processor

PARTS = ("memory", "columns", "models", "products", "elimination", "substitution")


class CountingMemory(cpu.CpuMemory):
    """The CPU's, which keeps count of the memory that is asked for."""

    asked = 0

    def require(self, num_bytes, *purpose):
        self.asked += num_bytes
        super().require(num_bytes, *purpose)


class Counting(cpu.Cpu):
    name = "counting"
    memory = CountingMemory()


@pytest.fixture
def counting(monkeypatch):
    device = Counting()
    monkeypatch.setattr(processor, "_OPENERS", dict(processor._OPENERS))
    processor.register(device.name, lambda like: device)
    return device


def test_another_device(counting):
    """Everything goes through the processor, and the answers are those of the CPU, bit for bit."""
    problem = chain(4, 5, batch=3)
    H = problem.net.hessian(problem.params, problem.X, problem.y, device="counting")
    asked = counting.memory.asked
    F, b = H.factorize(0.1), problem.right_hand_side(2)
    assert asked > 0 and counting.memory.asked - asked >= F.nbytes
    np.testing.assert_array_equal(F.solve(b), problem.hessian.factorize(0.1).solve(b))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(F)).solve(b), F.solve(b))
    with pytest.raises(ValueError, match="expected 'counting' or 'cpu' or 'cuda', got 'gpu'"):
        processor.get("gpu")
    with pytest.raises(ValueError, match="expected 'cpu' for samples, got a Hessian on 'counting'"):
        processor.require_cpu(counting, "samples")


def test_the_gpu_has_the_parts_of_the_cpu():
    """Whatever the CPU is asked for, its twin has as well."""
    pytest.importorskip("numba_cuda")
    import inspect

    from numba_hinv.cuda import columns, elimination, memory, models, products, substitution

    modules = (memory, columns, models, products, elimination, substitution)
    for part, module in zip(PARTS, modules, strict=True):
        ours, theirs = getattr(cpu.CPU, part), getattr(module, f"Device{part.capitalize()}")
        public = [name for name in dir(ours) if not name.startswith("_")]
        assert public and not [name for name in public if not hasattr(theirs, name)], part
        for name in public:
            if inspect.isfunction(getattr(type(ours), name)):
                given = list(inspect.signature(getattr(ours, name)).parameters)
                expected = list(inspect.signature(getattr(theirs, name)).parameters)[1:]
                assert len(expected) >= len(given), (part, name)
