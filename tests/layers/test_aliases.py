"""Names and functions of other libraries that stand for losses and activations."""

import math

import numpy as np
import pytest

import numba_hinv as nh


@pytest.mark.parametrize(
    "given, name",
    [
        ("mse", "mean_squared_error"), ("MSELoss", "mean_squared_error"), ("mean squared error", "mean_squared_error"),
        ("cross_entropy", "softmax_cross_entropy"), ("CrossEntropyLoss", "softmax_cross_entropy"),
        ("bce_with_logits", "binary_cross_entropy"), ("Huber", "huber"), ("SmoothL1Loss", "smooth_l1"),
        ("pinball", "quantile"), ("poisson_nll_loss", "poisson"), ("GaussianNLLLoss", "gaussian_nll"),
    ],
)  # fmt: skip
def test_losses(given, name):
    assert nh.Loss(given).name == nh.Network([nh.Dense(2, 2)], given).loss_name == name


@pytest.mark.parametrize(
    "given, name",
    [
        ("ReLU", "relu"), ("Tanh", "tanh"), ("SiLU", "silu"), ("swish", "silu"), ("linear", "identity"),
        ("logistic", "sigmoid"), (np.tanh, "tanh"), (np.sin, "sin"), (math.tanh, "tanh"),
    ],
)  # fmt: skip
def test_activations(given, name):
    layer = nh.Dense(2, 2, given)
    assert layer.activation == name and layer == nh.Dense(2, 2, name)
    assert nh.Conv1d(1, 1, 1, 2, given).activation == nh.Gated(2, given).activation == name


def test_functions_of_torch():
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional

    for given, name in (
        (torch.tanh, "tanh"),
        (functional.relu, "relu"),
        (nn.GELU, "gelu"),
        (functional.silu, "silu"),
        (torch.sigmoid, "sigmoid"),
        (functional.softplus, "softplus"),
    ):
        assert nh.Dense(2, 2, given).activation == name
    for given, name in (
        (functional.mse_loss, "mean_squared_error"),
        (nn.CrossEntropyLoss, "softmax_cross_entropy"),
        (functional.huber_loss, "huber"),
        (functional.binary_cross_entropy_with_logits, "binary_cross_entropy"),
    ):
        assert nh.Network([nh.Dense(2, 2)], given).loss_name == name
    for given in (functional.binary_cross_entropy, nn.BCELoss):
        with pytest.raises(ValueError, match="takes probabilities"):
            nh.Loss(given)
    with pytest.raises(ValueError, match="takes a variance beside the mean"):
        nh.Loss(functional.gaussian_nll_loss)
    with pytest.raises(ValueError, match="an object.* nh.from_torch takes those of PyTorch"):
        nh.Dense(2, 2, nn.ReLU())


def test_what_is_meant_is_asked():
    for wrong, right in (("tahn", "tanh"), ("gellu", "gelu"), ("Relu6", "relu")):
        with pytest.raises(ValueError, match=f"activation: expected one of .*; got {wrong!r}; did you mean '{right}'"):
            nh.Dense(2, 2, wrong)
    with pytest.raises(ValueError, match="loss: expected one of .*; got 'mean_square_eror'; did you mean 'mean_squ"):
        nh.Network([nh.Dense(2, 2)], "mean_square_eror")
    with pytest.raises(ValueError, match="loss: expected one of [^;]*; got 'zzz'$"):
        nh.Loss("zzz")

    def tanh(u):
        return u

    with pytest.raises(ValueError, match="a function of another package; expected it to be registered first"):
        nh.Dense(2, 2, tanh)
    for given in (None, 3, [], object()):
        with pytest.raises(ValueError, match="expected one of"):
            nh.Dense(2, 2, given)


def test_exact_names_come_first():
    """What users register under a name that is an alias, or differs in case, is theirs."""

    @nh.register_activation("Test_Swish")
    def own(u):
        return u, 1.0, 0.0

    assert nh.Dense(2, 2, "Test_Swish").activation == "Test_Swish"
    assert nh.Dense(2, 2, "test-swish").activation == "Test_Swish"
