"""The losses that ship and their options: against PyTorch's answers, definitions in NumPy, and each other."""

import copy
import math
import pickle
from pathlib import Path

import numba
import numpy as np
import pytest
from loss_cases import CASES, N, torch_answer

import numba_hinv as nh
from numba_hinv.layers import losses

GOLDEN = Path(__file__).parents[1] / "data" / "losses" / "losses.npz"
PARTS = "value", "gradient", "curvature"


def layers(outputs=N):
    """One layer, whose outputs are what matters."""
    return [nh.Dense(outputs, outputs, "identity", bias=False)]


def answer(case, dtype=np.float64, **more):
    """Value, gradient and curvature in the outputs."""
    model = nh.Network(layers(), case.make(**more)).model
    z, y = case.data()
    return model.terminal(z.astype(dtype), model.check_y(y, len(z), dtype))


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    golden = np.load(GOLDEN)
    for part, found in zip(PARTS, answer(CASES[name])):
        expected = golden[f"{name}_{part}"]
        assert np.abs(found - expected).max() <= 1e-14 * max(1.0, np.abs(expected).max()), part


@pytest.mark.parametrize("name", CASES)
def test_golden_is_torchs(name):
    pytest.importorskip("torch")
    golden = np.load(GOLDEN)
    for part, found in zip(PARTS, torch_answer(CASES[name])):
        np.testing.assert_allclose(found, golden[f"{name}_{part}"], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    for part, found in zip(answer(CASES[name]), answer(CASES[name], np.float32)):
        assert np.abs(part - found).max() <= 1e-5 * max(1.0, np.abs(part).max())


@pytest.mark.parametrize("name", ["binary_pos_weight", "huber", "smooth_l1", "quantile"])
def test_a_number_for_each_output(name):
    """Each output as with that number for all."""
    case = CASES[name]
    (option,) = set(case.options) - {"reduction"}
    numbers, (z, y) = [0.2, 0.9, 0.4, 0.6], case.data()
    found = nh.Network(layers(), getattr(nh.losses, case.loss)(**{option: numbers}))
    gradient = found.model.terminal(z, found.model.check_y(y, len(z), np.float64))[1]
    for a, number in enumerate(numbers):
        one = nh.Network(layers(), getattr(nh.losses, case.loss)(**{option: number})).model
        assert np.array_equal(gradient[:, a], one.terminal(z, one.check_y(y, len(z), np.float64))[1][:, a])


def test_definitions():
    """In the words of the documentation, one number at a time."""

    def value(loss, z, t):
        return nh.Network(layers(len(z)), loss).loss(np.eye(len(z)).ravel(), [z], [t])

    assert value(nh.losses.huber(2.0), [3.0, 0.0], [0.0, 1.0]) == pytest.approx((2 * (3 - 1) + 0.5) / 2, rel=1e-15)
    assert value(nh.losses.smooth_l1(2.0), [3.0, 0.0], [0.0, 1.0]) == pytest.approx((3 - 1 + 1 / 4) / 2, rel=1e-15)
    assert value(nh.losses.poisson(), [0.5], [3.0]) == pytest.approx(math.exp(0.5) - 1.5, rel=1e-15)
    stirling = 3 * math.log(3) - 3 + 0.5 * math.log(2 * math.pi * 3)
    assert value(nh.losses.poisson(full=True), [0.5], [3.0]) == pytest.approx(math.exp(0.5) - 1.5 + stirling, rel=1e-15)
    assert value(nh.losses.poisson(False, eps=0.0), [0.5], [3.0]) == pytest.approx(0.5 - 3 * math.log(0.5), rel=1e-15)
    assert value(nh.losses.poisson(False, eps=0.0), [0.0], [0.0]) == 0.0
    z, t = [1.0, -1.0, 0.5, -0.5], [2.0, 1.0]
    normal = (0.5 + 1 * math.exp(-0.5) - 0.5 + 4 * math.exp(0.5)) / 4
    assert value(nh.losses.gaussian_nll(), z, t) == pytest.approx(normal, rel=1e-15)
    full = normal + 0.5 * math.log(2 * math.pi)
    assert value(nh.losses.gaussian_nll(full=True), z, t) == pytest.approx(full, rel=1e-15)
    assert value(nh.losses.quantile(0.9), [1.0, 0.0], [0.0, 1.0]) == pytest.approx((0.1 + 0.9) / 2, rel=1e-15)
    p = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    net = nh.Network(layers(2), nh.losses.softmax_cross_entropy([2.0, 3.0], 0.2))
    smooth = -0.8 * 3 * math.log(p[1]) - 0.1 * (2 * math.log(p[0]) + 3 * math.log(p[1]))
    assert net.loss(np.eye(2).ravel(), [[1.0, 0.0]], [1]) == pytest.approx(smooth / 3, rel=1e-15)


def test_digits_where_probabilities_are_extreme():
    """p (1 - p) and p - 1 down to 1e-300, as before there were options."""
    net = nh.Network(layers(2), "cross_entropy").model
    _, gradient, curvature = net.terminal(np.array([[600.0, 0.0]]), net.check_y([0], 1, np.float64))
    small = math.exp(-600.0)
    np.testing.assert_allclose(gradient, [[-small, small]], rtol=1e-13)
    np.testing.assert_allclose(curvature, small * np.array([[[1.0, -1.0], [-1.0, 1.0]]]), rtol=1e-13)
    net = nh.Network(layers(1), nh.losses.binary_cross_entropy(pos_weight=2.0)).model
    _, gradient, curvature = net.terminal(np.array([[600.0]]), net.check_y([1.0], 1, np.float64))
    np.testing.assert_allclose([gradient[0, 0], curvature[0, 0, 0]], [-2 * small, 2 * small], rtol=1e-13)


def test_convex_or_not():
    """What the documentation says of the curvature."""
    for name, case in CASES.items():
        least = np.linalg.eigvalsh(answer(case)[2]).min()
        assert least < 0.0 if case.loss == "gaussian_nll" else least >= -1e-16, name
    assert not answer(CASES["quantile"])[2].any() and not answer(CASES["l1"])[2].any()


def test_parameters_compile_nothing():
    before = {name: losses.loss_address(name, np.float64) for name in nh.loss_names()}
    for delta in (0.1, 0.2, 3.0):
        nh.Network(layers(), nh.losses.huber(delta)).loss(np.eye(N).ravel(), np.ones((2, N)), np.zeros((2, N)))
    assert before == {name: losses.loss_address(name, np.float64) for name in nh.loss_names()}


def test_copies_pickles_and_equality():
    loss = nh.losses.softmax_cross_entropy([1.0, 2.0, 3.0, 4.0], 0.1, -100, "sum")
    same = nh.Loss("softmax_cross_entropy", "sum", -100, label_smoothing=0.1, class_weights=np.arange(1, 5))
    described = nh.Loss.from_description(loss.describe())
    for other in (same, pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss), described):
        assert other == loss and hash(other) == hash(loss) and repr(other) == repr(loss)
    assert loss != nh.losses.softmax_cross_entropy() and loss != "softmax_cross_entropy"
    net = nh.Network(layers(), loss)
    assert pickle.loads(pickle.dumps(net)).loss_definition == loss
    assert repr(nh.Network(layers(), "mse")) == "Network(1 layers, 16 parameters, loss='mean_squared_error')"
    assert "reduction='sum'" in repr(net)


def test_files_keep_the_options(tmp_path):
    case = CASES["cross_entropy_all"]
    z, y = case.data()
    net = nh.Network([nh.Dense(N, N)], case.make())
    weights = np.linspace(0.0, 2.0, len(z))
    F = net.hessian(net.init(0), z, y, sample_weight=weights).factorize(0.5)
    F.save(tmp_path / "f")
    H = nh.load(tmp_path / "f").hessian
    assert H.network.loss_definition == case.make() and H.total_weight == F.hessian.total_weight
    again = H.network.hessian(net.init(0), z, y, sample_weight=weights)
    assert np.array_equal(again.todense(), F.hessian.todense()) and H.loss == again.loss


def refused(match, function, *arguments, kind=ValueError, **options):
    with pytest.raises(kind, match=match):
        function(*arguments, **options)


def test_options_that_are_wrong():
    refused("delta: expected numbers above 0, got 0", nh.losses.huber, 0.0)
    refused("beta: expected numbers of at least 0, got -1", nh.losses.smooth_l1, [1.0, -1.0])
    refused("quantile: expected numbers above 0 and below 1, got 1", nh.losses.quantile, 1.0)
    cross_entropy = nh.losses.softmax_cross_entropy
    refused("label_smoothing: expected numbers of at least 0 and at most 1, got 2", cross_entropy, 1.0, 2.0)
    refused("class_weights: expected numbers of at least 0", nh.losses.softmax_cross_entropy, [1.0, -1.0])
    refused("label_smoothing: expected a real number", nh.losses.softmax_cross_entropy, 1.0, [0.1, 0.2], kind=TypeError)
    refused("log_input: expected True or False, got 1", nh.losses.poisson, 1, kind=TypeError)
    refused("delta: expected a finite number", nh.losses.huber, math.inf)
    refused("reduction: expected 'mean' or 'sum', got 'none'", nh.losses.huber, 1.0, "none")
    refused("beta: expected a parameter of 'huber', which has delta", nh.Loss, "huber", beta=1.0, kind=TypeError)
    refused("which has no parameters", nh.Loss, "mse", beta=1.0, kind=TypeError)
    refused("ignore_index: expected None with 'huber'", nh.Loss, "huber", ignore_index=1)
    refused(
        "delta: expected one number, or one for each of the 4 outputs, got 3",
        nh.Network,
        layers(),
        nh.losses.huber([1.0, 2.0, 3.0]),
    )
    refused("loss: expected 2 outputs for each target with .*, got 3", nh.Network, layers(3), "gaussian_nll")
    net = nh.Network(layers(), "gaussian_nll")
    refused(
        r"y: expected shape \(5, 2\) \(samples x targets, for the 4 outputs",
        net.loss,
        np.eye(N).ravel(),
        np.ones((5, N)),
        np.ones((5, N)),
    )
    net = nh.Network(layers(), nh.losses.poisson(log_input=False))
    refused("finite loss", net.loss, np.eye(N).ravel(), -np.ones((5, N)), np.zeros((5, N)))
    net = nh.Network(layers(), nh.losses.softmax_cross_entropy(ignore_index=-7))
    refused("y: expected labels from 0 to 3, got -8 at index 1", net.loss, np.eye(N).ravel(), np.ones((2, N)), [-7, -8])
    refused("with a positive, finite sum.* got 0; a loss with", net.loss, np.eye(N).ravel(), np.ones((2, N)), [-7, -7])


# What users register themselves.


def power(z, y, gradient, curvature, parameters):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        p, r = parameters[0, a], z[a] - y[a] - parameters[1, a]
        value += abs(r) ** p
        gradient[a] = p * abs(r) ** (p - 1.0) * math.copysign(1.0, r)
        curvature[a, a] = p * (p - 1.0) * abs(r) ** (p - 2.0)
    return value


compiled_power = numba.njit(power)


def test_a_registered_loss_with_parameters():
    exponent = nh.losses.Parameter(2.0, low=1.0)
    nh.register_loss("test_power", "elements", parameters={"exponent": exponent, "shift": 0.0})(power)
    z, y = np.linspace(-2.0, 2.0, 8).reshape(2, 4), np.zeros((2, 4))
    net = nh.Network(layers(), nh.Loss("test_power", exponent=[2.0, 3.0, 4.0, 2.5], shift=0.3))
    expected = (np.abs(z - 0.3) ** [2.0, 3.0, 4.0, 2.5]).mean()
    assert net.loss(np.eye(N).ravel(), z, y) == pytest.approx(expected, rel=1e-14)
    refused("exponent: expected numbers of at least 1", nh.Loss, "test_power", exponent=0.5)
    nh.register_loss("test_power", "elements", parameters={"exponent": exponent, "shift": 0.0, "more": 1.0})(power)
    refused("registered again with others", net.loss, np.eye(N).ravel(), z, y)


def test_registrations_with_parameters_that_are_wrong():
    def wrong(z, y, gradient, curvature, parameters):
        value = compiled_power(z, y, gradient, curvature, parameters)
        curvature[0, 0] *= 1.5
        return value

    def changes(z, y, gradient, curvature, parameters):
        parameters[0, 0] = 3.0
        return compiled_power(z, y, gradient, curvature, parameters)

    def beyond(z, y, gradient, curvature, parameters):
        return compiled_power(z, y, gradient, curvature, parameters) + parameters[2, 0]

    register = nh.register_loss("test_refused", parameters={"exponent": 2.0, "shift": 0.0})
    refused(r"curvature\[0, 0\] = .* where differences of gradient\[0\] give", register, wrong)
    refused("to leave parameters as it is", register, changes)
    refused("index", register, beyond)
    refused(r"function\(z, y, gradient, curvature, parameters\)", register, lambda z, y, g, c: 0.0, kind=TypeError)
    refused(r"function\(z, y, gradient, curvature\)", nh.register_loss("test_refused"), power, kind=TypeError)
    refused("parameters: expected a dict", nh.register_loss, "test_refused", parameters=[1.0], kind=TypeError)
    refused("names that are free", nh.register_loss, "test_refused", parameters={"reduction": 1.0})
    refused("outputs_per_target: expected 1", nh.register_loss, "test_refused", targets="labels", outputs_per_target=2)


def test_several_outputs_for_each_target():
    @nh.register_loss("test_interval", outputs_per_target=2)
    def interval(z, y, gradient, curvature):
        value, m = 0.0, y.size
        curvature[:] = 0.0
        for a in range(m):
            gradient[a], gradient[m + a] = z[a] - y[a], z[m + a] - y[a]
            curvature[a, a] = curvature[m + a, m + a] = 1.0
            value += 0.5 * (gradient[a] ** 2 + gradient[m + a] ** 2)
        return value

    net = nh.Network(layers(), "test_interval")
    assert net.loss(np.eye(N).ravel(), [[1.0, 2.0, 3.0, 4.0]], [[0.0, 1.0]]) == 0.5 * (1 + 1 + 9 + 9)
