"""Loss modules of PyTorch with their options: losses, gradients and Hessians by its reverse mode twice."""

import numpy as np
import pytest

import numba_hinv as nh

torch = pytest.importorskip("torch")
nn = torch.nn

B, N = 9, 3
CLASSES = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
LOSSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(weight=CLASSES),
    nn.CrossEntropyLoss(weight=CLASSES, label_smoothing=0.2, ignore_index=1),
    nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
    nn.MSELoss(reduction="sum"),
    nn.BCEWithLogitsLoss(pos_weight=CLASSES),
    nn.HuberLoss(delta=0.6),
    nn.SmoothL1Loss(beta=0.3, reduction="sum"),
    nn.L1Loss(),
    nn.PoissonNLLLoss(full=True),
    nn.PoissonNLLLoss(log_input=False, eps=1.0, reduction="sum"),
]


def targets(loss):
    rng = np.random.default_rng(1)
    if isinstance(loss, nn.CrossEntropyLoss):
        y = rng.integers(0, N, B)
        y[2] = loss.ignore_index
        return y
    if isinstance(loss, nn.PoissonNLLLoss):
        return rng.integers(0, 5, (B, N)).astype(float)
    return rng.random((B, N)) if isinstance(loss, nn.BCEWithLogitsLoss) else rng.standard_normal((B, N))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_gradient_and_hessian(loss):
    torch.manual_seed(0)
    last = nn.Sigmoid() if isinstance(loss, nn.PoissonNLLLoss) else nn.Identity()
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, N), last).double()
    X, y = np.random.default_rng(0).standard_normal((B, 4)), targets(loss)
    net, params = nh.from_torch(module, loss)

    def value(flat):
        parts, at = {}, 0
        for name, parameter in module.named_parameters():
            parts[name] = flat[at : at + parameter.numel()].reshape(parameter.shape)
            at += parameter.numel()
        return loss(torch.func.functional_call(module, parts, torch.from_numpy(X)), torch.from_numpy(y))

    flat = torch.from_numpy(params).requires_grad_(True)
    here = value(flat)
    (gradient,) = torch.autograd.grad(here, flat, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(one, flat, retain_graph=True)[0] for one in gradient]).numpy()
    H = net.hessian(params, X, y)
    assert net.loss(params, X, y) == pytest.approx(here.item(), rel=1e-13)
    assert np.abs(H.gradient - gradient.detach().numpy()).max() <= 1e-13 * max(1.0, gradient.abs().max().item())
    assert np.abs(H.todense() - hessian).max() <= 1e-13 * max(1.0, np.abs(hessian).max())
    in_batches = net.hessian(params, X, y, batch_size=4)
    assert np.abs(in_batches.todense() - hessian).max() <= 1e-13 * max(1.0, np.abs(hessian).max())


def test_classes_and_functions_of_losses():
    module = nn.Sequential(nn.Linear(4, 3))
    expected = nh.losses.softmax_cross_entropy(ignore_index=-100)
    assert nh.from_torch(module, nn.CrossEntropyLoss)[0].loss_definition == expected
    assert nh.from_torch(module, nn.functional.huber_loss)[0].loss_definition == nh.losses.huber()
    assert nh.from_torch(module, nh.losses.huber(2.0))[0].loss_definition == nh.losses.huber(2.0)


def test_a_loader_of_labels_to_ignore():
    """The mean is over those that are not."""
    module = nn.Sequential(nn.Linear(4, N)).double()
    net, params = nh.from_torch(module, nn.CrossEntropyLoss())
    X, y = torch.randn(B, 4, dtype=torch.float64), torch.tensor([0, 1, -100, 2, -100, -100, -100, 1, 0])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=3)
    with torch.no_grad():
        assert net.loss(params, loader) == pytest.approx(nn.CrossEntropyLoss()(module(X), y).item(), rel=1e-14)
