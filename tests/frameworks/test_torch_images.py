"""Nets of images and sequences in PyTorch, pooled and normalised: layers of this library, against double backward."""

import numpy as np
import pytest

import numba_hinv as nh

torch = pytest.importorskip("torch")
from test_from_torch import data, double, trained_norm, truth  # noqa: E402 - after the skip
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def image_norm(channels, **options):
    norm = nn.BatchNorm2d(channels, **options)
    norm.running_mean.uniform_(-1.0, 1.0)
    norm.running_var.uniform_(0.5, 2.0)
    return norm


class Tutorial(nn.Module):
    """A forward as tutorials have it: functions, a view, and dropout that is out of training."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 2)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = functional.max_pool2d(torch.tanh(self.first(x)), 2, stride=1)
        x = functional.avg_pool2d(functional.silu(self.second(x)), kernel_size=2)
        x = functional.dropout(x, 0.3, self.training)
        return self.last(self.flat(x))

    def flat(self, x):
        return x.view(x.size(0), -1)


class ByShape(Tutorial):
    def flat(self, x):
        return x.reshape(x.shape[0], -1)


class ByWidth(Tutorial):
    def flat(self, x):
        return torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1).view(-1, 4)


# (module, shape of a sample, classes of the layers)
CASES = {
    "odd sizes": (
        lambda: double(nn.Conv2d(2, 3, (3, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(36, 2)), (2, 5, 5), "Conv2d Dense"
    ),
    "strides": (
        lambda: double(nn.Conv2d(1, 3, 2, stride=3, padding=(0, 1)), nn.GELU(),
                       nn.Conv2d(3, 2, (1, 2), stride=(1, 2), dilation=(1, 2), padding=1), nn.Flatten(),
                       nn.Linear(16, 2)),
        (1, 6, 7), "Conv2d Conv2d Dense",
    ),
    "same and valid": (
        lambda: double(nn.Conv2d(2, 2, (3, 5), padding="same", dilation=(2, 1)), nn.Sigmoid(),
                       nn.Conv2d(2, 2, 2, padding="valid", bias=False), nn.Flatten()),
        (2, 3, 3), "Conv2d Conv2d",
    ),
    "means": (
        lambda: double(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.AvgPool2d((2, 3), stride=1, padding=(1, 1)), nn.Flatten(),
                       nn.Linear(48, 2)),
        (1, 4, 5), "Conv2d AvgPool2d Dense",
    ),
    "means inside, then an activation": (
        lambda: double(nn.Conv2d(1, 3, 2), nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.SiLU(), nn.Flatten(),
                       nn.Linear(12, 2)),
        (1, 4, 4), "Conv2d AvgPool2d Activation Dense",
    ),
    "maxima": (
        lambda: double(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.MaxPool2d(2, stride=1, padding=1, dilation=(2, 1)),
                       nn.Flatten(), nn.Linear(48, 2)),
        (1, 5, 4), "Conv2d MaxPool2d Dense",
    ),
    "adaptive": (
        lambda: double(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveMaxPool2d((2, None)), nn.AdaptiveAvgPool2d(1),
                       nn.Flatten(), nn.Linear(3, 2)),
        (1, 6, 5), "Conv2d MaxPool2d AvgPool2d Dense",
    ),
    "ceil_mode that changes nothing": (
        lambda: double(nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.Flatten(),
                       nn.Linear(4, 2)),
        (2, 6, 2), "MaxPool2d AvgPool2d Dense",
    ),
    "sequences": (
        lambda: double(nn.Conv1d(2, 3, 3, padding=1), trained_norm(3), nn.ReLU(), nn.MaxPool1d(3, 2),
                       nn.AvgPool1d(2, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)).eval(),
        (2, 9), "Conv1d BatchNorm Activation MaxPool1d AvgPool1d AvgPool1d Dense",
    ),
    "norms": (
        lambda: double(nn.Conv2d(1, 3, 2), image_norm(3), nn.Tanh(), image_norm(3, affine=False), nn.MaxPool2d(2),
                       nn.Dropout2d(), nn.Flatten(), nn.Linear(3, 4), trained_norm(4), nn.Sigmoid()).eval(),
        (1, 3, 3), "Conv2d BatchNorm Activation BatchNorm MaxPool2d Dense BatchNorm Activation",
    ),
    "norm first": (
        lambda: double(image_norm(2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(2, 2)).eval(), (2, 2, 2),
        "BatchNorm Conv2d Dense",
    ),
    "tutorial": (lambda: Tutorial().double().eval(), (1, 6, 6), "Conv2d MaxPool2d Conv2d AvgPool2d Dense"),
    "by shape": (lambda: ByShape().double().eval(), (1, 6, 6), "Conv2d MaxPool2d Conv2d AvgPool2d Dense"),
    "by width": (lambda: ByWidth().double().eval(), (1, 6, 6), "Conv2d MaxPool2d Conv2d AvgPool2d AvgPool2d Dense"),
    # What this library has no layers for goes through torch.func.
    "groups and a kernel that sticks out": (
        lambda: double(nn.Conv2d(2, 2, 2, groups=2), nn.MaxPool2d(2, ceil_mode=True),
                       nn.AvgPool2d(2, divisor_override=3, stride=1), nn.Flatten(), nn.Linear(2, 2)),
        (2, 4, 4), "External External External Dense",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gauss_newton(module, loss, X, y):
    """``J^T C J`` by PyTorch's own derivatives."""
    names, values = zip(*module.named_parameters())

    def outputs(*values):
        return torch.func.functional_call(module, dict(zip(names, values)), (X,)).flatten(1)

    J = torch.autograd.functional.jacobian(outputs, values)
    n = outputs(*values).numel()
    J = torch.cat([part.reshape(n, -1) for part in J], dim=1)
    C = torch.autograd.functional.hessian(lambda z: loss(z, y), outputs(*values).detach()).reshape(n, n)
    return (J.T @ C @ J).numpy()


def compare(module, loss, X, y, curvature, names=None, tolerance=1e-12):
    """Values, products, the assembled matrix, and solves by both routes."""
    net, params = nh.from_torch(module, loss, tuple(X.shape[1:]))
    assert names is None or [type(layer).__name__ for layer in net.layers] == names.split()
    value, gradient, expected = truth(module, loss, X, y)
    if curvature == "ggn":
        expected = gauss_newton(module, loss, X, y)
    inputs, targets = X.flatten(1).numpy(), y.numpy()
    found, slope = net.loss_and_gradient(params, inputs, targets)
    assert found == pytest.approx(value, rel=tolerance)
    assert np.abs(slope - gradient).max() <= tolerance * np.abs(gradient).max()
    H = net.hessian(params, inputs, targets, curvature=curvature)
    scale = np.abs(expected).max()
    assert np.abs(H @ np.eye(params.size) - expected).max() <= tolerance * scale
    assert np.abs(H.todense() - expected).max() <= tolerance * scale
    damping = 1e-2 * np.linalg.norm(expected, 2)
    dense = expected + damping * np.eye(params.size)
    b = np.random.default_rng(0).standard_normal(params.size)
    for method in ("layers", "dense"):
        F = H.factorize(damping, method=method)
        x = F.solve(b)
        size = np.linalg.norm(dense, 2) * np.linalg.norm(x) + np.linalg.norm(b)
        assert np.linalg.norm(dense @ x - b) <= tolerance * size
        assert F.inertia.exact and F.inertia.negative == (np.linalg.eigvalsh(dense) < 0).sum()
    return net, params


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch, curvature, loss", [
    (4, "hessian", nn.CrossEntropyLoss()), (1, "hessian", nn.MSELoss()), (4, "ggn", nn.MSELoss()),
], ids=str)  # fmt: skip
def test_double_backward(name, batch, curvature, loss):
    build, shape, names = CASES[name]
    module = build()
    X, y = data(nn.Sequential(module, nn.Flatten()), loss, shape, batch)
    compare(module, loss, X, y, curvature, names)


@pytest.mark.parametrize("pool", [nn.AvgPool2d, nn.MaxPool2d])
def test_digits_from_end_to_end(pool):
    """LeNet on the digits of scikit-learn: trained here, and solved with on both routes, as PyTorch's Hessian says."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    X = torch.tensor(digits.data / 16.0).reshape(-1, 1, 8, 8)
    y = torch.tensor(digits.target)
    module = double(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        pool(2),
        nn.Conv2d(4, 6, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    loss = nn.CrossEntropyLoss()
    net, params = nh.from_torch(module, loss, (1, 8, 8))
    assert not any(isinstance(layer, nh.External) for layer in net.layers)
    trained = nh.minimize(net, params, X[:300].flatten(1), y[:300], l2=1e-3, gtol=1e-4, max_iterations=10).x
    nn.utils.vector_to_parameters(torch.from_numpy(trained), module.parameters())
    outputs = net.forward(trained, X[300:].flatten(1).numpy())
    assert np.abs(outputs - module(X[300:]).detach().numpy()).max() < 1e-12
    assert (outputs.argmax(1) == digits.target[300:]).mean() > 0.8
    compare(module, loss, X[:15], y[:15], "hessian")


def test_float32():
    """Linearised in float64 whatever the parameters are: the answer is that of the float64 net, rounded."""
    module = nn.Sequential(nn.Conv2d(1, 3, 3), image_norm(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    module = nn.Sequential(module, nn.Linear(12, 3)).eval()
    X, y = torch.randn(6, 1, 6, 6), torch.arange(6) % 3
    net, params = nh.from_torch(module, nn.CrossEntropyLoss(), (1, 6, 6))
    assert params.dtype == np.float32
    inputs, targets = X.flatten(1).numpy(), y.numpy()
    outputs = module(X).detach().numpy()
    assert net.forward(params, inputs).dtype == np.float32
    assert np.abs(net.forward(params, inputs) - outputs).max() < 1e-5 * np.abs(outputs).max()
    value = nn.functional.cross_entropy(module(X), y)
    slope = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, list(module.parameters()))]).numpy()
    assert np.abs(net.gradient(params, inputs, targets) - slope).max() < 1e-5 * np.abs(slope).max()
    _, _, expected = truth(module.double(), nn.CrossEntropyLoss(), X.double(), y)
    H = net.hessian(params, inputs, targets)
    assert np.abs(H.todense() - expected).max() < 1e-6 * np.abs(expected).max()
    for method in ("layers", "dense"):
        x = H.factorize(0.1, method=method).solve(slope)
        assert x.dtype == np.float32
        exact = np.linalg.solve(expected + 0.1 * np.eye(slope.size), slope)
        assert np.abs(x - exact).max() < 1e-4 * np.abs(exact).max()


def test_the_same_as_outside_layers():
    """What was an external layer before: the same loss, products and solves."""
    module = double(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))

    class Opaque(nn.Module):
        """Not a chain to torch.fx."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 1.0

    X, y = torch.randn(3, 1, 6, 6, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    ours, params = nh.from_torch(module, nn.MSELoss(), (1, 6, 6))
    theirs, _ = nh.from_torch(nn.Sequential(Opaque(module[:4]), module[4]), nn.MSELoss(), (1, 6, 6))
    assert [type(layer).__name__ for layer in theirs.layers] == ["External", "Dense"]
    one, other = (net.hessian(params, X.flatten(1), y.numpy()) for net in (ours, theirs))
    assert np.abs(one.todense() - other.todense()).max() < 1e-13 * np.abs(other.todense()).max()


@pytest.mark.parametrize("module, shape, message", [
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 5)), (1, 4, 4), r"layer 0 \('0', Conv2d\): it cannot be called"),
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), image_norm(2)), (1, 4, 4), "it mixes the samples of a batch while"),
    (lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)).eval(), (1, 2, 2), "track_running_stats="),
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3)), (1, 4, 4), r"layer 1 \('1', MaxPool2d\): it cannot"),
])  # fmt: skip
def test_refused(module, shape, message):
    with pytest.raises(ValueError, match=message):
        nh.from_torch(module(), nn.MSELoss(), shape)


def test_views_that_mix_samples():
    class Mixed(nn.Module):
        def forward(self, x):
            return x.view(-1, 2)

    with pytest.raises(ValueError, match="it mixes the samples: two of shape"):
        nh.from_torch(nn.Sequential(nn.Linear(4, 4), Mixed(), nn.Linear(2, 1)), nn.MSELoss())
