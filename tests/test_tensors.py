"""Tensors of PyTorch as arguments: the answers of their values, as tensors of their dtype and device.

A stand-in with the few methods that are called does for PyTorch where it is not installed; it also has a device that
NumPy cannot read.
"""

import sys
import types

import numpy as np
import pytest

import numba_hinv as nh

try:
    import torch
except ImportError:
    torch = None


class Dtype:
    """A dtype of the stand-in: its numbers lie in arrays of ``holder``."""

    def __init__(self, name, holder, itemsize):
        self.name, self.holder, self.itemsize = name, np.dtype(holder), itemsize

    def __repr__(self):
        return f"torch.{self.name}"


DTYPES = {
    name: Dtype(name, holder, size)
    for name, holder, size in (
        ("float64", "f8", 8), ("float32", "f4", 4), ("float16", "f2", 2), ("bfloat16", "f4", 2), ("int64", "i8", 8)
    )
}  # fmt: skip
WIDE = {dtype.holder: dtype for dtype in DTYPES.values() if dtype.name != "bfloat16"}


class Tensor:
    """As much of a tensor as the library asks for. What is recorded or elsewhere is no array."""

    def __init__(self, array, dtype=None, device="cpu", requires_grad=False):
        self.dtype = WIDE[array.dtype] if dtype is None else dtype
        with np.errstate(over="ignore"):
            self.array = array.astype(self.dtype.holder)
        self.device, self.requires_grad = device, requires_grad
        self.shape, self.ndim, self.is_cuda = self.array.shape, self.array.ndim, device != "cpu"

    def __array__(self, dtype=None, copy=None):
        raise TypeError("a tensor that is recorded, or elsewhere, was read as an array")

    def is_floating_point(self):
        return self.dtype is not DTYPES["int64"]

    def detach(self):
        return Tensor(self.array, self.dtype, self.device)

    def cpu(self):
        return Tensor(self.array, self.dtype, requires_grad=self.requires_grad)

    def float(self):
        return Tensor(self.array, DTYPES["float32"], self.device)

    def to(self, device, dtype=None):
        return Tensor(self.array, dtype or self.dtype, device)

    def isfinite(self):
        return np.isfinite(self.array)

    def numpy(self):
        assert not self.is_cuda and not self.requires_grad and self.dtype is not DTYPES["bfloat16"]
        return self.array


STAND_IN = types.SimpleNamespace(Tensor=Tensor, from_numpy=Tensor, **DTYPES)


@pytest.fixture(params=["stand-in", "stand-in elsewhere", "torch"])
def tensor(request, monkeypatch):
    """``tensor(array, dtype)``, with a history where that can be, and the module that it is of."""
    if request.param == "torch":
        if torch is None:
            pytest.skip("PyTorch is not installed")
        return lambda array, dtype="float64": torch.tensor(
            array, dtype=getattr(torch, dtype), requires_grad=dtype != "int64"
        )
    monkeypatch.setitem(sys.modules, "torch", STAND_IN)
    device = "far:0" if "elsewhere" in request.param else "cpu"
    return lambda array, dtype="float64": Tensor(np.asarray(array), DTYPES[dtype], device, dtype != "int64")


def value(answer, like):
    """The numbers of an answer, once it is sure that it is a tensor without history beside ``like``."""
    assert type(answer) is type(like) and answer.device == like.device and not answer.requires_grad
    return answer.to("cpu").numpy() if repr(answer.dtype) != "torch.bfloat16" else answer.to("cpu").float().numpy()


@pytest.fixture(scope="module")
def problem():
    net = nh.Network([nh.Dense(3, 4), nh.Dense(4, 2, "identity")], "softmax_cross_entropy")
    rng = np.random.default_rng(0)
    params, X, y = net.init(0), rng.standard_normal((5, 3)), np.array([0, 1, 1, 0, 1])
    H = net.hessian(params, X, y)
    return net, params, X, y, H, H.factorize(0.1), rng.standard_normal((net.num_params, 2))


def test_networks(problem, tensor):
    net, params, X, y, H, *_ = problem
    given = tensor(params), tensor(X), tensor(y, "int64")
    assert np.array_equal(value(net.forward(*given[:2]), given[0]), net.forward(params, X))
    assert net.loss(*given) == net.loss(params, X, y)
    loss, gradient = net.loss_and_gradient(*given)
    assert loss == H.loss and np.array_equal(value(gradient, given[0]), net.gradient(params, X, y))
    assert np.array_equal(value(net.gradient(*given), given[0]), net.gradient(params, X, y))
    assert np.array_equal(net.hessian(*given).todense(), H.todense())
    # Parameters decide: samples may be tensors beside an array, and the other way round.
    assert isinstance(net.gradient(params, *given[1:]), np.ndarray)
    assert np.array_equal(value(net.gradient(given[0], X, y), given[0]), net.gradient(params, X, y))
    narrow = tensor(params, "float32")
    found = net.gradient(narrow, X, y)
    assert repr(found.dtype) == "torch.float32"
    assert np.array_equal(value(found, narrow), net.gradient(params.astype(np.float32), X, y))


def test_solves_and_products(problem, tensor):
    *_, H, F, b = problem
    x, product = F.solve(b), H @ b
    given, column = tensor(b), tensor(b[:, 0])
    for found in (F.solve(given), F @ given, F.dot(given), F * given, F.matmat(given), F.rmatmat(given)):
        np.testing.assert_allclose(value(found, given), x, rtol=1e-13)
    for found in (H @ given, H.dot(given), H.matmat(given)):
        np.testing.assert_allclose(value(found, given), product, rtol=1e-13)
    for found in (F @ column, F.solve(column), F.matvec(column)):
        assert tuple(found.shape) == (len(b),)
        np.testing.assert_allclose(value(found, column), x[:, 0], rtol=1e-12)
    found, info = F.solve(given, full_output=True)
    np.testing.assert_allclose(value(found, given), x, rtol=1e-13)
    assert info.backward_error.shape == (2,)


@pytest.mark.parametrize("dtype, eps", [("float32", 2**-23), ("float16", 2**-10), ("bfloat16", 2**-7)])
def test_dtypes_of_tensors(problem, tensor, dtype, eps):
    *_, F, b = problem
    given = tensor(b, dtype)
    found = F.solve(given)
    assert found.dtype is given.dtype
    exact = F.solve(value(given.detach(), given).astype(float))
    assert np.abs(value(found, given) - exact).max() <= eps * np.abs(exact).max()


def test_whole_numbers(problem, tensor):
    """The answer's dtype is that of the Hessian, as for arrays."""
    *_, F, b = problem
    given = tensor(np.arange(len(b)), "int64")
    found = F.solve(given)
    assert repr(found.dtype) == "torch.float64"
    assert np.array_equal(value(found, given), F.solve(np.arange(len(b))))


def test_messages(problem, tensor):
    net, params, X, y, _, F, b = problem
    with pytest.raises(ValueError, match=r"b: expected shape \(26,\) or \(26, k\), got \(5,\)"):
        F.solve(tensor(np.ones(5)))
    with pytest.raises(ValueError, match=r"b: expected shape"):
        F @ tensor(np.ones(5))
    with pytest.raises(ValueError, match="params: expected finite numbers, got nan at index 0"):
        net.gradient(tensor(np.full(params.size, np.nan)), X, y)
    with pytest.raises(np.linalg.LinAlgError, match="the answer overflows torch.float16; expected a tensor of a wider"):
        net.hessian(params, X, y).factorize(1e-7).solve(tensor(np.full(params.size, 6e4), "float16"))


def test_arrays_stay_arrays(problem, tensor):
    """With PyTorch at hand, too."""
    net, params, X, y, H, F, b = problem
    assert isinstance(F @ b, np.ndarray) and isinstance(H @ b, np.ndarray) and isinstance(F.solve(b), np.ndarray)
    assert isinstance(net.gradient(params, X, y), np.ndarray) and isinstance(net.forward(params, X), np.ndarray)
