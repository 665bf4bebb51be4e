"""What GPUs have and the simulator has not: streams, neighbours, and limits of what is launched.

Stand-ins note what would happen on a GPU. The tests of arrays run in the simulator, those of launches outside of it.
"""

import sys
import types

import numpy as np
import pytest
import test_cuda
from problems import chain

if not test_cuda.INSTALLED:
    pytest.skip("numba-cuda is not installed", allow_module_level=True)

import numba.cuda

from numba_hinv.cuda.dense import product
from numba_hinv.cuda.plumbing import arrays, launch, vectors
from numba_hinv.cuda.plumbing.target import PLAIN_SHARED, RESERVED_SHARED

simulated = pytest.mark.skipif(not test_cuda.SIMULATED, reason="needs the simulator")
compiled = pytest.mark.skipif(test_cuda.SIMULATED, reason="the simulator has no such limits")


class Stream:
    """A stream that notes when it is waited for."""

    def __init__(self, noted, name="stream"):
        self.noted, self.name = noted, name

    def synchronize(self):
        self.noted.append(self.name)


@simulated
def test_arrays_of_another_stream_are_waited_for():
    noted = []
    array = numba.cuda.to_device(np.ones(3))
    array.stream = Stream(noted)
    for read in (lambda: arrays.as_array("b", array, (3,), None, 0), lambda: arrays.take_row("y", array, 0)):
        read()
        assert noted == ["stream"]
        noted.clear()


@simulated
def test_tensors_are_waited_for_on_the_stream_of_pytorch(monkeypatch):
    """The array interface of a tensor names no stream: what fills it is on PyTorch's current one."""
    noted, devices = [], []

    class Tensor:
        __cuda_array_interface__ = {}
        device = types.SimpleNamespace(index=0)

    def current_stream(device):
        devices.append(device)
        return Stream(noted, "current")

    def as_cuda_array(value):
        noted.append("read")
        return numba.cuda.to_device(np.ones(3))

    torch = types.SimpleNamespace(Tensor=Tensor, cuda=types.SimpleNamespace(current_stream=current_stream))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(numba.cuda, "as_cuda_array", as_cuda_array, raising=False)
    arrays.as_array("b", Tensor(), (3,), None, 0)
    assert noted == ["current", "read"] and devices == [Tensor.device]


@simulated
def test_results_on_the_device_are_done(monkeypatch):
    """Whoever reads them does so on a stream of their own, which knows nothing of the one that they come from."""
    H = test_cuda.moved(chain(3, 3, batch=2)).hessian
    F, b = H.factorize(0.1), numba.cuda.to_device(np.ones((H.shape[0], 2)))
    noted, run = [], launch.simulator.run

    def noted_run(kernel, *rest):
        noted.append(kernel.py_func.__name__)
        run(kernel, *rest)

    monkeypatch.setattr(launch.simulator, "run", noted_run)
    monkeypatch.setattr(numba.cuda, "default_stream", lambda: Stream(noted))
    for ask in (lambda: F.solve(b), lambda: H @ b, lambda: F @ b):
        noted.clear()
        ask()
        assert noted[-1] == "stream" and "_write_columns" in noted


@simulated
def test_one_gpu_beside_another(monkeypatch):
    """Arrays of another GPU than the current one, and Hessians, are named; on their own they work again."""
    problem = chain(3, 3, batch=2)
    H = test_cuda.moved(problem).hessian
    F, b = H.factorize(0.1), problem.right_hand_side()
    expected = F.solve(b)
    with monkeypatch.context() as patch:
        for name in ("numba_hinv.cuda.memory", "numba_hinv.cuda.plumbing.arrays"):
            patch.setattr(f"{name}.current_gpu", lambda: 1)
        for ask in (lambda: F.solve(b), lambda: H @ b, lambda: H.factorize(0.2)):
            with pytest.raises(ValueError, match=r"device: expected GPU 0 .* got GPU 1; .*numba.cuda.gpus\[0\]"):
                ask()
        other = test_cuda.moved(problem).hessian
        np.testing.assert_array_equal(other.factorize(0.1).solve(b), expected)
    np.testing.assert_array_equal(F.solve(b), expected)
    for device in (types.SimpleNamespace(id=1), types.SimpleNamespace(index=1)):
        array = types.SimpleNamespace(__cuda_ndarray__=True, device=device)
        with pytest.raises(ValueError, match=r"b: expected an array on GPU 0, the current one, got one on GPU 1"):
            arrays.in_place("b", array)


class Kernel:
    """A kernel that notes how it is launched, with 1 KiB of shared memory of its own."""

    def __init__(self):
        self.launched = []

    def typeof_pyval(self, value):
        return type(value)

    def compile(self, signature):
        function = types.SimpleNamespace(handle=(self, signature))
        return types.SimpleNamespace(_codelibrary=types.SimpleNamespace(get_cufunc=lambda: function))

    def __getitem__(self, configuration):
        return lambda *arguments: self.launched.append(configuration)


@compiled
def test_shared_memory_is_asked_for(monkeypatch):
    """Above 48 KiB, those of the kernel itself among them: once for each kernel, types of arguments, and GPU."""
    from cuda.bindings import driver

    asked, gpu = [], [0]

    def set_attribute(attribute, value, handle, device):
        assert attribute == driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        asked.append((value, handle[1], device))
        return (driver.CUresult.CUDA_SUCCESS if value <= 227 * 1024 else driver.CUresult.CUDA_ERROR_INVALID_VALUE,)

    monkeypatch.setattr(driver, "cuKernelSetAttribute", set_attribute)
    monkeypatch.setattr(launch, "current_gpu", lambda: gpu[0])
    kernel, own, real = Kernel(), RESERVED_SHARED, (float,)
    launch.launch(kernel, 1, 0, 1.0, shared=PLAIN_SHARED - own)
    assert asked == []
    launch.launch(kernel, 1, 0, 1.0, shared=PLAIN_SHARED - own + 8)
    for argument in (1.0, 1.0, 1):
        launch.launch(kernel, 1, 0, argument, shared=PLAIN_SHARED)
    assert asked == [(PLAIN_SHARED - own + 8, real, 0), (PLAIN_SHARED, real, 0), (PLAIN_SHARED, (int,), 0)]
    gpu[0] = 1
    launch.launch(kernel, 1, 0, 1.0, shared=PLAIN_SHARED)
    assert asked[3:] == [(PLAIN_SHARED, real, 1)] and len(kernel.launched) == 6
    with pytest.raises(MemoryError, match="refuses a kernel .* bytes of shared memory"):
        launch.launch(kernel, 1, 0, 1.0, shared=2**20)


@simulated
def test_many_columns_at_a_time():
    """A grid has 65,535 blocks along y at most, and a column each; checkpoints take all columns at once."""
    with pytest.raises(ValueError, match=r"at most 65,535 columns at a time on a GPU, got 65,536; give them in parts"):
        vectors.Vectors.of(np.ones((2**16, 1))).lengths()


def test_many_products_at_a_time(monkeypatch):
    """A grid has 65,535 blocks along z at most: more products are more launches, from where the others end."""
    launched = []

    def noted(kernel, grid, stream, *arguments):
        launched.append((grid[2], *(arguments[at] for at in (5, 9, 14))))

    monkeypatch.setattr(product, "launch", noted)
    C = types.SimpleNamespace(dtype=np.dtype(np.float64))
    product.gemm_nn(0, 150_000, 2, 2, 2, 1, C, 10, 1, 2, C, 20, 2, 2, 0, C, 30, 3, 2)
    most = 65_535
    assert [count for count, *_ in launched] == [most, most, 150_000 - 2 * most]
    assert [starts for _, *starts in launched] == [[10 + z, 20 + 2 * z, 30 + 3 * z] for z in (0, most, 2 * most)]
