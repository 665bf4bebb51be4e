"""PyTorch's modules as networks: losses, gradients and Hessians against PyTorch's own, and what cannot be converted."""

import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.runtime import memory_budget

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - after the skip
from torch.nn import functional  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from numba_hinv.frameworks import torch_conversion  # noqa: E402 - imports torch
from numba_hinv.frameworks.torch_chain import chain  # noqa: E402

# PyTorch says so where it lacks a batching rule and loops, and where it copies what it pads unevenly.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Using padding='same'")

B = 5


class Gate(nn.Module):
    """Not a chain: the input is used twice."""

    def __init__(self, n):
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x):
        return x * torch.sigmoid(self.lin(x))


class Skip(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


class SkipBehind(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x):
        return functional.silu(self.lin(x)) + x


class SkipAround(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + functional.silu(self.conv(x))


class Perceptron(nn.Module):
    """A chain of one's own, with functions and methods for activations."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(functional.silu(self.first(x), inplace=False))
        x = x + torch.sin(self.second(x))
        return self.last(x.sigmoid())


class Backwards(nn.Module):
    """Children in another order than that of the calls."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


class Twice(nn.Module):
    """One layer applied twice."""

    def __init__(self, n):
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x):
        return torch.tanh(self.lin(torch.tanh(self.lin(x))))


class Bilinear(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.bilinear = nn.Bilinear(n, n, m)

    def forward(self, x):
        return self.bilinear(x, torch.tanh(x))


class Curve(nn.Module):
    """A parameter of its own, of no layer, and a buffer."""

    def __init__(self, n):
        super().__init__()
        self.power = nn.Parameter(torch.linspace(0.5, 1.5, n))
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, n))

    def forward(self, x):
        return (1 + x**2) ** self.power + self.shift


def dense(*shape, **options):
    return nh.Dense(*shape, **options)


def double(*modules):
    torch.manual_seed(len(modules))
    return nn.Sequential(*modules).double()


def structured():
    """Nets of layers that this library has, and what they must become."""
    return {
        "activations": (
            double(
                nn.Linear(3, 4),
                nn.Tanh(),
                nn.Linear(4, 3),
                nn.Sigmoid(),
                nn.Linear(3, 4, bias=False),
                nn.Softplus(),
                nn.Linear(4, 4),
                nn.SiLU(),
                nn.Linear(4, 4),
                nn.GELU(),
                nn.Linear(4, 3),
                nn.ReLU(inplace=True),
                nn.Linear(3, 2),
            ),
            [
                dense(3, 4, activation="tanh"),
                dense(4, 3, activation="sigmoid"),
                dense(3, 4, activation="softplus", bias=False),
                dense(4, 4, activation="silu"),
                dense(4, 4, activation="gelu"),
                dense(4, 3, activation="relu"),
                dense(3, 2, activation="identity"),
            ],
        ),
        "nested": (
            double(
                nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Sequential(nn.Dropout(0.0), nn.Tanh())),
                nn.Unflatten(1, (2, 2)),
                nn.Flatten(),
                nn.Linear(4, 2),
                nn.Dropout(0.5).eval(),
            ),
            [dense(3, 4, activation="tanh"), dense(4, 2, activation="identity")],
        ),
        "skips": (
            double(
                nn.Linear(3, 4),
                nn.GELU(),
                Skip(nn.Linear(4, 4), nn.Tanh()),
                SkipBehind(4),
                Skip(nn.Linear(4, 4, bias=False)),
                nn.Linear(4, 2),
            ),
            [
                dense(3, 4, activation="gelu"),
                dense(4, 4, activation="tanh", skip=True),
                dense(4, 4, activation="silu", skip=True),
                dense(4, 4, activation="identity", bias=False, skip=True),
                dense(4, 2, activation="identity"),
            ],
        ),
        "norms": (
            double(
                nn.LayerNorm(3, eps=1e-3),
                nn.Linear(3, 6),
                nn.LayerNorm(6, bias=False),
                nn.GLU(),
                nn.RMSNorm(3),
                nn.Linear(3, 4),
                nn.RMSNorm(4, eps=1e-2),
                nn.Linear(4, 2),
            ),
            [
                nh.LayerNorm(3, 1e-3),
                dense(3, 6, activation="identity"),
                nh.LayerNorm(6, bias=False),
                nh.Gated(3),
                nh.RMSNorm(3),
                dense(3, 4, activation="identity"),
                nh.RMSNorm(4, 1e-2),
                dense(4, 2, activation="identity"),
            ],
        ),
        "convolutions": (
            double(
                nn.Linear(3, 6),
                nn.Tanh(),
                nn.Unflatten(1, (2, 3)),
                Skip(nn.Conv1d(2, 2, 3, padding=1), nn.Tanh()),
                nn.Conv1d(2, 3, 2, bias=False),
                nn.Flatten(),
                nn.SiLU(),
                nn.Linear(6, 2),
            ),
            [
                dense(3, 6, activation="tanh"),
                nh.Conv1d(2, 2, 3, 3, padding=1, skip=True),
                nh.Conv1d(2, 3, 2, 3, "silu", bias=False),
                dense(6, 2, activation="identity"),
            ],
        ),
        "dropout and shapes": (
            double(
                nn.Unflatten(1, (3, 1)),
                nn.Dropout1d(0.5).eval(),
                nn.Flatten(),
                nn.Linear(3, 4),
                nn.Dropout(0.9).eval(),
                nn.Tanh(),
                nn.AlphaDropout(0.1).eval(),
                nn.Linear(4, 2),
            ),
            [dense(3, 4, activation="tanh"), dense(4, 2, activation="identity")],
        ),
        "deep": (
            double(nn.Linear(3, 2), *[Skip(nn.Linear(2, 2), nn.Tanh()) for _ in range(30)]),
            [dense(3, 2, activation="identity"), *[dense(2, 2, activation="tanh", skip=True)] * 30],
        ),
    }


def trained_norm(channels):
    """A batch normalisation with statistics of its own."""
    norm = nn.BatchNorm1d(channels)
    norm.running_mean.uniform_(-1.0, 1.0)
    norm.running_var.uniform_(0.5, 2.0)
    return norm


def unknown():
    """Nets with modules that go through torch.func: the modules' names."""
    return {
        "gate": (double(nn.Linear(3, 4), Gate(4), nn.Linear(4, 2)), ["Gate"]),
        "group norm": (double(nn.Linear(3, 6), nn.GroupNorm(2, 6), nn.Linear(6, 2)), ["GroupNorm"]),
        "bilinear": (double(nn.Linear(3, 3), nn.Tanh(), Bilinear(3, 2)), ["Bilinear"]),
        "slopes": (
            double(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 2)),
            ["PReLU", "PReLU"],
        ),
        "first and last": (double(Curve(3), nn.Linear(3, 3), Curve(3)), ["Curve", "Curve"]),
        "instance norm": (
            double(nn.Linear(3, 4), nn.Unflatten(1, (1, 4)), nn.InstanceNorm1d(1), nn.Flatten(), nn.Linear(4, 2)),
            ["InstanceNorm1d"],
        ),
        "pre-norm block": (
            double(nn.Linear(3, 4), Skip(nn.LayerNorm(4), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4))),
            ["Skip"],
        ),
        "activations": (
            double(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2), nn.GELU("tanh")),
            ["GELU"],
        ),
        "images": (
            double(nn.Unflatten(1, (1, 3)), nn.ConvTranspose1d(1, 2, 2), nn.ELU(True), nn.Flatten(), nn.Linear(8, 2)),
            ["ConvTranspose1d", "ELU"],
        ),
        "convolutions": (
            double(
                nn.Linear(3, 8),
                nn.Unflatten(1, (2, 4)),
                nn.Conv1d(2, 2, 3, groups=2),
                nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"),
                nn.Conv1d(2, 2, 2, padding="same"),
                nn.Flatten(),
                nn.Linear(4, 2),
            ),
            ["Conv1d", "Conv1d", "Conv1d"],
        ),
        "skip around a reshaped convolution": (
            double(
                nn.Linear(3, 8),
                nn.Unflatten(1, (2, 4)),
                Skip(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Unflatten(1, (2, 4))),
                nn.Flatten(),
                nn.Linear(8, 2),
            ),
            ["Skip"],
        ),
        "norm without a gain": (
            double(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)),
            ["LayerNorm"],
        ),
        "linear over positions": (
            double(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), nn.Flatten(), nn.Tanh()),
            ["Transposition"],
        ),
        "kernels over channels": (
            double(
                nn.Linear(3, 8),
                nn.Unflatten(1, (2, 4)),
                nn.Conv1d(2, 3, 2),
                trained_norm(3),
                nn.ELU(),
                nn.Dropout(0.5),
                nn.LPPool1d(2, 2),
                nn.Flatten(),
                nn.Linear(3, 2),
            ).eval(),
            ["ELU", "LPPool1d"],
        ),
        "twice": (double(nn.Linear(3, 3), Twice(3)), ["Twice"]),
    }


def data(module, loss, shape=(3,), batch=B):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        n = module(X[:1]).numel()
    if isinstance(loss, nn.CrossEntropyLoss):
        return X, torch.randint(0, n, (batch,), generator=generator)
    return X, torch.rand(batch, n, generator=generator, dtype=torch.float64)


def truth(module, loss, X, y):
    """Loss, gradient and Hessian by PyTorch's reverse mode twice, without batching rules and fused attention."""
    with sdpa_kernel(SDPBackend.MATH):
        return reverse_mode(module, loss, X, y)


def reverse_mode(module, loss, X, y):
    parameters = list(module.parameters())
    value = loss(module(X).flatten(1), y)
    slopes = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
    gradient = torch.cat([slope.reshape(-1) for slope in slopes])
    rows = []
    for slope in gradient:
        row = torch.autograd.grad(slope, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.reshape(-1) for part in row]))
    return value.item(), gradient.detach().numpy(), torch.stack(rows).numpy()


def check(module, loss, shape=(3,), batch=B):
    X, y = data(module, loss, shape, batch)
    net, params = nh.from_torch(module, loss, shape)
    assert np.array_equal(params, nn.utils.parameters_to_vector(module.parameters()).detach().numpy())
    value, gradient, hessian = truth(module, loss, X, y)
    outputs = module(X).detach().flatten(1)
    X, y = X.flatten(1).numpy(), y.numpy()
    np.testing.assert_allclose(net.forward(params, X), outputs, rtol=0, atol=1e-13)
    assert net.loss(params, X, y) == pytest.approx(value, rel=1e-12)
    assert np.abs(net.gradient(params, X, y) - gradient).max() <= 1e-12 * np.abs(gradient).max()
    H = net.hessian(params, X, y)
    assert H.loss == pytest.approx(value, rel=1e-12)
    assert np.abs(H.todense() - hessian).max() <= 1e-12 * np.abs(hessian).max()
    damping = 1e-2 * np.linalg.norm(hessian, 2)
    dense = hessian + damping * np.eye(params.size)
    F, b = H.factorize(damping), np.random.default_rng(0).standard_normal(params.size)
    x = F.solve(b)
    scale = np.linalg.norm(dense, 2) * np.linalg.norm(x) + np.linalg.norm(b)
    assert np.linalg.norm(dense @ x - b) <= 1e-12 * scale
    assert F.inertia.exact and F.inertia.negative == (np.linalg.eigvalsh(dense) < 0).sum()
    return net


@pytest.mark.parametrize("name", structured())
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss()], ids=str)
def test_layers_of_this_library(name, loss):
    module, layers = structured()[name]
    net = check(module, loss)
    assert [repr(layer) for layer in net.layers] == [repr(layer) for layer in layers]


@pytest.mark.parametrize("name", unknown())
def test_unknown_modules(name):
    module, names = unknown()[name]
    net = check(module, nn.MSELoss())
    assert [layer.function.__name__ for layer in net.layers if isinstance(layer, nh.External)] == names


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=str)
def test_convolutions(loss):
    module = double(
        nn.Conv1d(2, 3, 3, stride=2, padding=2),
        nn.Tanh(),
        nn.Conv1d(3, 2, 2, padding=(1,), dilation=2),
        nn.GELU(),
        SkipAround(2),
        nn.Conv1d(2, 2, 3, padding="same", dilation=2),
        nn.Sigmoid(),
        nn.Conv1d(2, 1, 2, padding="valid"),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    net = check(module, loss, (2, 9), batch=2)
    assert net.layers == (
        nh.Conv1d(2, 3, 3, 9, stride=2, padding=2),
        nh.Conv1d(3, 2, 2, 6, "gelu", padding=1, dilation=2),
        nh.Conv1d(2, 2, 3, 6, "silu", padding=1, skip=True),
        nh.Conv1d(2, 2, 3, 6, "sigmoid", padding=2, dilation=2),
        nh.Conv1d(2, 1, 2, 6, "identity"),
        dense(5, 3, activation="identity"),
    )


class OverPositions(nn.Module):
    """A chain of one's own over the positions of a sequence."""

    def __init__(self, n):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(n, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, n)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = x + functional.silu(self.second(x))
        return self.last(x)


def over_positions():
    """Nets of sequences (4, 3), and what their layers are called."""
    return {
        "perceptron": (
            double(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2), nn.Flatten(), nn.Tanh(), nn.Linear(8, 2)),
            ["Conv1d", "Conv1d", "Transposition", "Dense"],
        ),
        "ends turned": (
            double(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)),
            ["Conv1d", "Conv1d", "Transposition"],
        ),
        "own": (double(OverPositions(3), nn.Flatten(), nn.Linear(12, 2)), ["Conv1d"] * 3 + ["Transposition", "Dense"]),
        "unknown between": (
            double(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.ELU(), nn.Flatten(), nn.Linear(8, 2)),
            ["Conv1d", "LayerNorm", "Conv1d", "ELU", "Dense"],
        ),
        "skip of rows": (double(Skip(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 1)), ["Skip", "Conv1d"]),
        "one position": (
            double(nn.Flatten(), nn.Unflatten(1, (1, 12)), nn.Linear(12, 3), nn.Tanh(), nn.Linear(3, 2)),
            ["Dense", "Dense"],
        ),
        "other positions": (
            double(
                nn.Linear(3, 4),
                nn.Unflatten(1, (2, 2)),
                nn.Linear(4, 2),
                nn.Flatten(1, 2),
                nn.Linear(2, 3),
                nn.Unflatten(2, (3, 1)),
                nn.Linear(1, 2),
                nn.Flatten(2),
                nn.Conv1d(4, 1, 2),
            ),
            ["Conv1d", "Conv1d", "Conv1d", "Transposition", "Conv1d", "Transposition", "Conv1d"],
        ),
    }


@pytest.mark.parametrize("name", over_positions())
def test_linear_over_positions(name):
    module, names = over_positions()[name]
    net = check(module, nn.MSELoss(), (4, 3), batch=2)
    assert [getattr(layer, "function", type(layer)).__name__ for layer in net.layers] == names


def test_modules_of_ones_own():
    torch.manual_seed(0)
    net = check(Perceptron().double(), nn.CrossEntropyLoss())
    assert [type(layer).__name__ for layer in net.layers] == ["Dense", "LayerNorm", "Dense", "External", "Dense"]
    assert net.layers[2] == dense(4, 4, activation="sin", skip=True)


def test_the_order_of_the_parameters_is_that_of_the_children():
    """A module whose calls are in another order is not taken apart."""
    torch.manual_seed(0)
    net = check(Backwards().double(), nn.MSELoss())
    assert repr(net.layers) == "(External(Backwards, in_features=3, out_features=2, num_params=26),)"


def test_the_children_of_a_sequential():
    """They keep their names and their order, and one that is there twice is applied twice."""
    tanh, inside = nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    named = OrderedDict(first=nn.Linear(4, 4), act=tanh, inside=inside, again=tanh)
    for module, names in (
        (nn.Sequential(named), list(named)),
        (nn.Sequential(*named.values()), ["0", "1", "2", "3"]),
        (nn.Sequential(), []),
    ):
        steps = chain(module)
        assert [step.name for step in steps] == names
        assert [step.module for step in steps] == list(module)
    module = nn.Sequential(nn.Linear(4, 4))
    module.add_module("nothing", None)
    assert chain(module) is None


def test_narrow_modules_stay_narrow():
    module = double(nn.Linear(3, 4), nn.Tanh(), Gate(4), nn.LayerNorm(4), nn.Linear(4, 2))
    X, y = data(module, nn.MSELoss())
    _, gradient, hessian = truth(module, nn.MSELoss(), X, y)
    net, params = nh.from_torch(module.float(), nn.MSELoss())
    assert params.dtype == np.float32
    X, y = X.float().numpy(), y.float().numpy()
    assert net.gradient(params, X, y).dtype == np.float32
    assert np.abs(net.gradient(params, X, y) - gradient).max() <= 1e-5 * np.abs(gradient).max()
    H = net.hessian(params, X, y)
    assert H.dtype == np.float32 and np.abs(H.todense() - hessian).max() <= 1e-5 * np.abs(hessian).max()


def test_the_module_is_left_as_it_is():
    module = double(nn.Linear(3, 4), nn.ELU(inplace=True), nn.BatchNorm1d(4).eval(), Gate(4), nn.Linear(4, 2))
    before = pickle.dumps(module.state_dict())
    state = torch.random.get_rng_state()
    net, params = nh.from_torch(module, nn.MSELoss())
    assert torch.equal(state, torch.random.get_rng_state())
    X, y = (tensor.numpy() for tensor in data(module, nn.MSELoss()))
    gradient = net.gradient(params, X, y)
    assert pickle.dumps(module.state_dict()) == before and module[1].inplace
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module[2].running_var.mul_(3.0)
    assert np.array_equal(net.gradient(params, X, y), gradient)


def test_pickled_and_used_by_threads():
    module = double(nn.Linear(3, 4), Gate(4), nn.Linear(4, 2))
    net, params = nh.from_torch(module, nn.MSELoss())
    X, y = (tensor.numpy() for tensor in data(module, nn.MSELoss()))
    points = [params * (1 + 0.1 * k) for k in range(6)]
    expected = [net.hessian(point, X, y).todense() for point in points]
    copy = pickle.loads(pickle.dumps(net))
    found = [None] * len(points)

    def work(k):
        found[k] = copy.hessian(points[k], X, y).todense()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(points))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, other) for one, other in zip(found, expected))


def test_wrong_batching_rules_are_found_out(monkeypatch):
    """Derivatives that PyTorch's batched passes get wrong are taken one by one."""
    from numba_hinv.frameworks import torch_function

    calls = []

    def vmap(pull):
        def wrong(unit):
            calls.append(len(unit))
            return tuple(rows * (1.0 + 1e-6) for rows in torch.func.vmap(pull)(unit))

        return wrong

    module = double(nn.Linear(3, 4), Gate(4), nn.Linear(4, 2))
    monkeypatch.setattr(torch_function, "vmap", vmap)
    check(module, nn.MSELoss())
    assert calls and min(calls) > 1


def trained(module):
    return module.double().train()


def frozen():
    module = double(nn.Linear(3, 4), nn.Linear(4, 2))
    module[1].bias.requires_grad_(False)
    return module


def hooked():
    module = double(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].register_forward_hook(lambda *arguments: None)
    return module


def shared():
    module = double(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    return module


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=0)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return 2 * x


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.round()


class Misplaced(torch.autograd.Function):
    """The sine, with slopes of other entries."""

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, slope):
        (x,) = context.saved_tensors
        return slope * torch.cos(x.roll(1, dims=1))


class Function(nn.Module):
    """Not a chain: what it computes is hidden from tracing."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Whole(nn.Module):
    """A part, differentiated as a whole."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return x * self.part(x)


class Undifferentiable(nn.Module):
    def forward(self, x):
        return Rounding.apply(x)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: trained(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
            r"cannot convert layer 1 \('1', BatchNorm1d\): it mixes the samples of a batch while training; call "
            r"eval\(\) first",
        ),
        (
            lambda: trained(nn.Sequential(Whole(nn.BatchNorm1d(3)), nn.Linear(3, 4))),
            r"layer 0 \('0.part', BatchNorm1d\): it mixes the samples of a batch while training; call eval\(\) first",
        ),
        (
            lambda: trained(Function(lambda x: functional.batch_norm(x, None, None, training=True))),
            r"Function\): it mixes the samples of a batch: for one sample alone, .*; call eval\(\) first",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(),
            r"BatchNorm1d\): it mixes .*this BatchNorm1d has track_running_stats=False, and mixes them in eval "
            r"mode, too$",
        ),
        (
            lambda: trained(nn.Sequential(nn.Linear(3, 4), Whole(nn.Dropout(0.001)))),
            r"layer 1 \('1.part', Dropout\): it is random while training \(p=0.001\); call eval\(\) first",
        ),
        (
            lambda: trained(Function(lambda x: functional.dropout(x, 0.001))),
            r"layer 0 \('', Function\): it is random: a call draws from PyTorch's generator; call eval\(\) first",
        ),
        (lambda: Function(lambda x: x + np.random.rand()), r"it is random: two calls with the same input differ"),
        (
            lambda: nn.Sequential(Function(lambda x: x.sum(dim=1)), nn.Linear(1, 2)),
            r"'1', Linear\): it cannot be called",
        ),
        (
            lambda: Function(lambda x: (x, x)),
            r"expected a float64 tensor .*, got tuple; .* to return the outputs alone",
        ),
        (
            lambda: double(nn.Linear(3, 4), Function(lambda x: 2 * Misplaced.apply(x))),
            r"its second derivatives are not symmetric: ",
        ),
        (
            lambda: trained(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Dropout(0.2)))),
            r"layer 1 \('1.1', Dropout\): it is random while training \(p=0.2\); call eval\(\) first",
        ),
        (lambda: double(nn.Linear(3, 4), Mixing()), r"layer 1 \('1', Mixing\): it mixes the samples of a batch"),
        (lambda: double(nn.Linear(3, 4), Noise()), r"layer 1 \('1', Noise\): it is random"),
        (lambda: double(Counting(), nn.Linear(3, 4)), r"layer 0 \('0', Counting\): it changes its buffer 'calls'"),
        (
            lambda: double(nn.Linear(3, 4), Undifferentiable()),
            r"'1', Undifferentiable\): torch.func cannot differentiate",
        ),
        (frozen, r"layer 1 \('1', Linear\): its parameter 'bias' is frozen"),
        (hooked, r"layer 0 \('0', Linear\): it has hooks"),
        (shared, r"layer 1 \('2', Linear\): its parameter 'weight' belongs to a layer before it"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)), r"layer 1 \('1', Linear\): .*shape \(3, 4\)"),
        (lambda: nn.Sequential(nn.Linear(3, 4).half()), r"its parameter 'weight' has dtype torch.float16"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), r"its parameters have no values yet"),
        (lambda: nn.Sequential(nn.Linear(3, 4, device="meta")), r"its parameter 'weight' is on the meta device"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (3, 2))), r"\('1', Unflatten\): it cannot be called"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 2, 3)),
            r"layer 1 \('2', Conv1d\): it cannot be called with an input of shape \(3, 2, 2\)",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Conv1d(4, 2, 1)), r"layer 1 \('1', Conv1d\): "),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Embedding(3, 4)), r"\('1', Embedding\): it cannot be called"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2)), nn.GRU(2, 2)),
            r"layer 1 \('2', GRU\): expected a float64 tensor",
        ),
        (lambda: nn.ModuleList([nn.Linear(3, 4)]), r"layer 0 \('', ModuleList\): it cannot be called"),
        (lambda: nn.Sequential(nn.Identity()), "expected at least one layer, got a module that does nothing"),
        (lambda: nn.Sequential(nn.Tanh()), "layers: expected at least one parameter"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_converted_says_where_and_why(make, message):
    with pytest.raises(ValueError, match=message):
        nh.from_torch(make(), nn.MSELoss(), 3)


def test_arguments():
    module = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(TypeError, match="module: expected a torch.nn.Module, got list"):
        nh.from_torch([module], nn.MSELoss())
    with pytest.raises(TypeError, match="loss: expected options of mse_loss, got power"):
        nh.from_torch(module, partial(functional.mse_loss, power=1))
    with pytest.raises(ValueError, match="expected MSELoss with reduction='mean' or 'sum', got 'none'"):
        nh.from_torch(module, partial(functional.mse_loss, reduction="none"))
    with pytest.raises(ValueError, match="module: cannot convert the BatchNorm1d that comes first: .*call eval"):
        nh.from_torch(nn.Sequential(nn.BatchNorm1d(3), *module), nn.MSELoss())
    with pytest.raises(ValueError, match=r"loss: expected one of nn.CrossEntropyLoss\(\), .*; got KLDivLoss"):
        nh.from_torch(module, nn.KLDivLoss())
    with pytest.raises(TypeError, match="loss: expected one of .*; got int"):
        nh.from_torch(module, 3)
    with pytest.raises(ValueError, match="got GaussianNLLLoss, which takes a variance .* take nh.losses.gaussian_nll"):
        nh.from_torch(module, nn.GaussianNLLLoss())
    with pytest.raises(ValueError, match="got 'crossentropi'; did you mean 'softmax_cross_entropy'"):
        nh.from_torch(module, "crossentropi")
    for loss, option in (
        (nn.MSELoss(reduction="none"), "reduction='mean' or 'sum', got 'none'"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(4)), "weight=None"),
    ):
        with pytest.raises(ValueError, match=f"loss: expected {type(loss).__name__} with {option}"):
            nh.from_torch(module, loss)
    with pytest.raises(ValueError, match="pos_weight: expected one number, or one for each of the 4 outputs, got 3"):
        nh.from_torch(module, nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)))
    with pytest.raises(ValueError, match="input_shape: expected the shape .* since a Flatten comes first"):
        nh.from_torch(nn.Sequential(nn.Flatten(), *module), nn.MSELoss())
    with pytest.raises(ValueError, match="input_shape: expected at least 1, got 0"):
        nh.from_torch(module, nn.MSELoss(), (0, 3))
    with pytest.raises(ValueError, match=r"one output per class .* got outputs of shape \(2, 2\)"):
        nh.from_torch(nn.Sequential(*module, nn.Unflatten(1, (2, 2))), nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        functional.mse_loss,
        functional.binary_cross_entropy_with_logits,
        partial(functional.mse_loss, reduction="mean"),
    ],
)
def test_losses_that_are_functions(loss):
    module = double(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    X, y = data(module, nn.CrossEntropyLoss() if loss is functional.cross_entropy else nn.MSELoss())
    net, params = nh.from_torch(module, loss)
    assert net.loss(params, X, y) == pytest.approx(loss(module(X), y).item(), rel=1e-12)


class HalfCompiled(nn.Module):
    """A chain of which one part is compiled, and another one used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = torch.compile(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x):
        return self.act(self.last(self.act(self.first(x))))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.compile(double(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh())),
        lambda: double(
            torch.compile(nn.Linear(3, 4)),
            torch.compile(nn.Sequential(nn.Tanh(), torch.compile(nn.Linear(4, 2)))),
            torch.compile(nn.Tanh()),
        ),
        lambda: HalfCompiled().double(),
    ],
)
def test_compiled_modules_are_unwrapped(make):
    """Nothing is compiled: the layers are those of the modules inside, and the wrappers stay where they are."""
    module = make()
    before = repr(module)
    net, params = nh.from_torch(module, nn.MSELoss(), 3)
    assert repr(net.layers) == repr((dense(3, 4, activation="tanh"), dense(4, 2, activation="tanh")))
    assert np.array_equal(params, nn.utils.parameters_to_vector(module.parameters()).detach().numpy())
    assert repr(module) == before


def test_modules_compiled_in_place():
    module = double(nn.Linear(3, 4), Gate(4), nn.Linear(4, 2))
    module.compile()
    module[1].compile()
    net, _ = nh.from_torch(module, nn.MSELoss())
    assert [type(layer).__name__ for layer in net.layers] == ["Dense", "External", "Dense"]


class Wide(nn.Module):
    """So many parameters in one module that is no chain."""

    def __init__(self, n):
        super().__init__()
        self.first, self.last = nn.Linear(n, n), nn.Linear(n, 2)

    def forward(self, x):
        return self.last(x * torch.tanh(self.first(x)))


def test_large_modules_are_refused_before_anything_is_made(monkeypatch):
    """A module of 11,110 parameters takes two blocks of 8 p^2 bytes and little more, or is refused by name."""
    module = nn.Sequential(nn.Linear(3, 104), Wide(104)).double()
    p = sum(parameter.numel() for parameter in module[1].parameters())
    needed = 2 * 8 * (p**2 + 2 * 104 * p)
    tracemalloc.start()
    nh.from_torch(module, nn.MSELoss())
    assert tracemalloc.get_traced_memory()[1] < 1e-2 * needed
    tracemalloc.stop()
    monkeypatch.setattr(torch_conversion, "TorchFunction", None)
    monkeypatch.setattr(memory_budget, "available_bytes", lambda: needed // 2)
    message = (
        rf"module: cannot convert layer 1 \('1', Wide\): derivatives of {p:,} parameters and 104 inputs, of B = 1, .*"
        "split the layer"
    )
    with pytest.raises(MemoryError, match=message):
        nh.from_torch(module, nn.MSELoss())


def test_losses_of_this_library_by_name():
    net, _ = nh.from_torch(nn.Sequential(nn.Linear(3, 4)), "binary_cross_entropy")
    assert net.loss_name == "binary_cross_entropy"


def test_torch_is_imported_by_those_who_ask():
    script = """
import sys
import numba_hinv as nh
assert "torch" not in sys.modules
sys.modules["torch"] = None
try:
    nh.from_torch(None, None)
except ImportError as error:
    assert "numba_hinv[torch]" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
