"""Attention of PyTorch: its fused kernels have no second derivative, so that its formula is what is differentiated."""

import pickle

import numpy as np
import pytest

import numba_hinv as nh

torch = pytest.importorskip("torch")
from test_from_torch import check, data, double, truth  # noqa: E402 - after the skip
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

TOKENS, WIDTH = 2, 4


class Attention(nn.Module):
    """By hand, causal, with a skip."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        return x + functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), is_causal=True)


class SelfAttention(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def encoder(**options):
    return nn.TransformerEncoderLayer(WIDTH, 2, 5, batch_first=True, **options)


MODULES = {
    "by hand": Attention,
    "heads": SelfAttention,
    "encoder": lambda: encoder(dropout=0.0),
    "encoder in eval mode": lambda: encoder(dropout=0.1, norm_first=True, activation="gelu").eval(),
    "stack": lambda: nn.TransformerEncoder(encoder(dropout=0.1), 2).eval(),
}


def kernels():
    return [
        getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math", "cudnn")
    ] + [torch.backends.mha.get_fastpath_enabled()]


def net_of(module):
    return double(nn.Linear(3, TOKENS * WIDTH), nn.Unflatten(1, (TOKENS, WIDTH)), module, nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("name", MODULES)
def test_hessians_are_those_of_torch(name):
    before = kernels()
    net = check(net_of(MODULES[name]()), nn.CrossEntropyLoss(), batch=3)
    assert [type(layer).__name__ for layer in net.layers] == ["Dense", "External", "Dense"]
    assert kernels() == before


def test_where_it_is_converted_does_not_matter():
    """Neither inside of ``sdpa_kernel`` nor in another process: the kernel is chosen where derivatives are taken."""
    module = net_of(Attention())
    X, y = data(module, nn.MSELoss())
    _, _, hessian = truth(module, nn.MSELoss(), X, y)
    with sdpa_kernel(SDPBackend.MATH):
        net, params = nh.from_torch(module, nn.MSELoss())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for other in (net, pickle.loads(pickle.dumps(net))):
            H = other.hessian(params, X, y).todense()
            assert np.abs(H - hessian).max() <= 1e-12 * np.abs(hessian).max()


def test_kernels_are_put_back_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken on purpose")

    before = kernels()
    with pytest.raises(ValueError, match="broken on purpose"):
        nh.from_torch(net_of(Broken()), nn.MSELoss())
    assert kernels() == before


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True),
            r"MultiheadAttention\): it cannot be called .*expected a module of one input around it, "
            r".*attention\(x, x, x\)\[0\]",
        ),
        (
            lambda: SelfAttention(batch_first=False),
            r"mixes the samples .*its part 'attention' \(MultiheadAttention\) has batch_first=False",
        ),
        (lambda: encoder(dropout=0.1), r"TransformerEncoderLayer|Dropout\): it is random .*call eval\(\) first"),
    ],
)
def test_what_does_not_convert_says_why(make, message):
    with pytest.raises(ValueError, match=message):
        nh.from_torch(net_of(make()), nn.MSELoss())
