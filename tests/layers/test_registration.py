"""What is refused when a loss or an activation is registered, and what is not: right functions of many kinds."""

import math
import subprocess
import sys

import numba
import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.layers import activations, loss_trial, losses
from numba_hinv.layers.trial import compare

# Losses that are right.


def huber(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        r = z[a] - y[a]
        if abs(r) <= 1.0:
            value += 0.5 * r * r
            gradient[a] = r
            curvature[a, a] = 1.0
        else:
            value += abs(r) - 0.5
            gradient[a] = math.copysign(1.0, r)
    return value


def pinball(z, y, gradient, curvature, level=0.9):
    """With an argument that has a default."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        r = y[a] - z[a]
        value += level * r if r > 0 else (level - 1) * r
        gradient[a] = -level if r > 0 else 1 - level
    return value


def quantiles(z, y, gradient, curvature):
    """Seven outputs, no more and no fewer, of one target: y[0]."""
    if z.size != LEVELS.size:
        raise ValueError("seven outputs")
    value = 0.0
    curvature[:] = 0.0
    for a in range(LEVELS.size):
        r = y[0] - z[a]
        value += LEVELS[a] * r if r > 0 else (LEVELS[a] - 1) * r
        gradient[a] = -LEVELS[a] if r > 0 else 1 - LEVELS[a]
    return value


LEVELS = np.linspace(0.05, 0.95, 7)


def poisson(z, y, gradient, curvature):
    """Of log rates."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        rate = math.exp(z[a])
        value += rate - y[a] * z[a] + math.lgamma(y[a] + 1.0)
        gradient[a] = rate - y[a]
        curvature[a, a] = rate
    return value


def poisson_of_rates(z, y, gradient, curvature):
    """No value where a rate is negative."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        value += z[a] - y[a] * math.log(z[a])
        gradient[a] = 1.0 - y[a] / z[a]
        curvature[a, a] = y[a] / z[a] ** 2
    return value


def bernoulli_of_probabilities(z, y, gradient, curvature):
    """Raises for what is no probability, and for targets that are neither 0 nor 1."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        if not 0.0 < z[a] < 1.0 or (y[a] != 0.0 and y[a] != 1.0):
            raise ValueError("no probability, or no event")
        p = z[a] if y[a] == 1.0 else 1.0 - z[a]
        value -= math.log(p)
        gradient[a] = (-1.0 if y[a] == 1.0 else 1.0) / p
        curvature[a, a] = 1.0 / p**2
    return value


def gaussian(z, y, gradient, curvature):
    """Means, then logarithms of variances: an even number of outputs, half as many targets that count."""
    if z.size % 2:
        raise ValueError("an even number of outputs")
    m = z.size // 2
    value = 0.0
    curvature[:] = 0.0
    for a in range(m):
        r, precision = z[a] - y[a], math.exp(-z[m + a])
        value += 0.5 * (z[m + a] + precision * r * r)
        gradient[a] = precision * r
        gradient[m + a] = 0.5 - 0.5 * precision * r * r
        curvature[a, a] = precision
        curvature[a, m + a] = curvature[m + a, a] = -precision * r
        curvature[m + a, m + a] = 0.5 * precision * r * r
    return value


def soft_cross_entropy(z, y, gradient, curvature):
    """Right for targets that sum to 1 only."""
    total = 0.0
    for a in range(z.size):
        total += math.exp(z[a])
    value = 0.0
    for a in range(z.size):
        p = math.exp(z[a]) / total
        gradient[a] = p - y[a]
        value += y[a] * (math.log(total) - z[a])
        for b in range(z.size):
            curvature[a, b] = (p if a == b else 0.0) - p * math.exp(z[b]) / total
    return value


def logistic(z, y, gradient, curvature):
    """Right for targets of -1 and 1 only."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        p = 1.0 / (1.0 + math.exp(y[a] * z[a]))
        value -= math.log1p(-p)
        gradient[a] = -y[a] * p
        curvature[a, a] = p * (1.0 - p)
    return value


def events(z, y, gradient, curvature):
    """Right for targets of 0 and 1 only."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        p = 1.0 / (1.0 + math.exp(-z[a]))
        value -= math.log(p) if y[a] == 1 else math.log1p(-p)
        gradient[a] = p - y[a]
        curvature[a, a] = p * (1.0 - p)
    return value


def many_kinks(z, y, gradient, curvature):
    """Closer to each other than the points at which it is tried are to any: a kink lies beside many of them."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        r = 40.0 * (z[a] - y[a])
        value += abs(r - round(r))
        gradient[a] = 40.0 if r > round(r) else -40.0
    return value


def in_single_precision(z, y, gradient, curvature):
    value = np.float32(0.0)
    for a in range(z.size):
        r = np.float32(z[a]) - np.float32(y[a])
        value += np.float32(0.5) * r * r
        gradient[a] = r
        for b in range(z.size):
            curvature[a, b] = 1 if a == b else 0
    return value


def nothing(z, y, gradient, curvature):
    """An integer, and a loss that depends on nothing."""
    gradient[:] = 0.0
    curvature[:] = 0.0
    return 0


def hinge(z, y, gradient, curvature):
    """Labels; a kink where the best of the others changes."""
    label = int(y[0])
    other = 1 if label == 0 else 0
    for a in range(z.size):
        if a != label and z[a] > z[other]:
            other = a
    gradient[:] = 0.0
    curvature[:] = 0.0
    margin = 1.0 + z[other] - z[label]
    if margin <= 0.0:
        return 0.0
    gradient[other] = 1.0
    gradient[label] = -1.0
    return margin


def three_classes(z, y, gradient, curvature):
    """Labels, weighted by class; three outputs, no more and no fewer, as no bounds are exceeded with these only."""
    label = int(y[0])
    value = 0.0
    curvature[:] = 0.0
    for a in range(3):
        r = z[a] - (1.0 if a == label else 0.0)
        value += WEIGHTS[label] * r * r
        gradient[a] = 2.0 * WEIGHTS[label] * r
        curvature[a, a] = 2.0 * WEIGHTS[label]
    for a in range(3, z.size):
        raise ValueError("three outputs")
    return value


WEIGHTS = np.array([1.0, 2.0, 0.5])


@numba.njit
def ten(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(10):
        value += 0.5 * (z[a] - y[a]) ** 2
        gradient[a] = z[a] - y[a]
        curvature[a, a] = 1.0
    return value


def ten_outputs(z, y, gradient, curvature):
    """No more and no fewer, said by nobody; bounds are checked in this function only."""
    if z.size > 10:
        raise ValueError("ten outputs")
    return ten(z, y, gradient, curvature)


RIGHT = [
    *[(function, "values") for function in (huber, pinball, quantiles, poisson, poisson_of_rates, gaussian)],
    *[(function, "values") for function in (bernoulli_of_probabilities, soft_cross_entropy, logistic, events)],
    *[(function, "values") for function in (ten_outputs, many_kinks, in_single_precision, nothing)],
    *[(function, "labels") for function in (hinge, three_classes)],
]


@pytest.mark.parametrize("function, targets", RIGHT, ids=lambda given: getattr(given, "__name__", given))
def test_right_losses(function, targets):
    assert nh.register_loss("test_right", targets=targets)(function) is function
    assert losses.get_loss("test_right")["function"] is function


def test_a_loss_in_a_net():
    """One that was registered is used: with its derivatives where it is smooth."""
    nh.register_loss("test_gaussian")(numba.njit(gaussian))
    net = nh.Network([nh.Dense(2, 4, "identity")], "test_gaussian")
    rng = np.random.default_rng(0)
    params, X, y = net.init(0), rng.standard_normal((3, 2)), rng.standard_normal((3, 4))
    d = rng.standard_normal(net.num_params)
    slopes = (net.gradient(params + 1e-5 * d, X, y) - net.gradient(params - 1e-5 * d, X, y)) / 2e-5
    np.testing.assert_allclose(net.hessian(params, X, y) @ d, slopes, rtol=1e-7, atol=1e-9)


OWN = nh.loss_names()


@pytest.mark.parametrize("name", OWN)
def test_the_losses_of_the_package(name):
    loss_trial.try_loss(losses.get_loss(name))


# Losses that are refused. Most are `right`, and then something else.


@numba.njit
def right(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        gradient[a] = z[a] - y[a]
        curvature[a, a] = 1.0
        value += 0.5 * gradient[a] ** 2
    return value


def three_arguments(z, y, gradient):
    return 0.0


def five_arguments(z, y, gradient, curvature, more):
    return 0.0


def undefined(z, y, gradient, curvature):
    return missing(z)  # noqa: F821


def unsupported(z, y, gradient, curvature):
    return np.linalg.no_such_thing(z)


def returns_nothing(z, y, gradient, curvature):
    right(z, y, gradient, curvature)


def returns_an_array(z, y, gradient, curvature):
    right(z, y, gradient, curvature)
    return z * y


def returns_now_and_then(z, y, gradient, curvature):
    right(z, y, gradient, curvature)
    if z[0] > 0:
        return 1.0


def returns_complex(z, y, gradient, curvature):
    right(z, y, gradient, curvature)
    return z[0] * 1j


def raises(z, y, gradient, curvature):
    raise RuntimeError("no such thing")


def reads_out_of_bounds(z, y, gradient, curvature):
    return right(z, y, gradient, curvature) + z[z.size]


def writes_out_of_bounds(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    curvature[0, z.size] = 0.0
    return value


@numba.njit
def write_far(out):
    out[out.size + 3] = 1.0


def calls_what_writes_out_of_bounds(z, y, gradient, curvature):
    """Bounds are checked in the function only, but its arrays lie between fences."""
    value = right(z, y, gradient, curvature)
    write_far(curvature[-1])
    return value


def changes_z(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    z[0] += 1.0
    return value


def changes_y(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    y[-1] = 0.0
    return value


def diagonal_only(z, y, gradient, curvature):
    value = 0.0
    for a in range(z.size):
        gradient[a] = z[a] - y[a]
        curvature[a, a] = 1.0
        value += 0.5 * gradient[a] ** 2
    return value


def accumulates(z, y, gradient, curvature):
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        gradient[a] += z[a] - y[a]
        curvature[a, a] = 1.0
        value += 0.5 * (z[a] - y[a]) ** 2
    return value


def stops_early(z, y, gradient, curvature):
    """Writes no gradient of the last output, of four and more."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        value += 0.5 * (z[a] - y[a]) ** 2
        curvature[a, a] = 1.0
        if a < 4:
            gradient[a] = z[a] - y[a]
    return value


def reads_what_it_was_given(z, y, gradient, curvature):
    value = gradient[0]
    curvature[:] = 0.0
    for a in range(z.size):
        gradient[a] = z[a] - y[a]
        curvature[a, a] = 1.0
        value += 0.5 * gradient[a] ** 2
    return value


def asymmetric(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    if z.size > 1:
        curvature[0, 1] = 0.25
    return value


def not_a_number(z, y, gradient, curvature):
    right(z, y, gradient, curvature)
    return math.nan


def infinite_gradient(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    gradient[0] = math.inf
    return value


def half_the_value(z, y, gradient, curvature):
    return 0.5 * right(z, y, gradient, curvature)


def constant_value(z, y, gradient, curvature):
    right(z, y, gradient, curvature)
    return 1.0


def wrong_sign_of_the_gradient(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    gradient[0] = -gradient[0]
    curvature[0, 0] = -1.0
    return value


def wrong_sign_of_the_curvature(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    curvature[:] = -curvature
    return value


def wrong_curvature_of_one_entry(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    curvature[-1, -1] = 1.5
    return value


def coupling_that_is_not_there(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    if z.size > 2:
        curvature[0, 2] = curvature[2, 0] = 0.1
    return value


def wrong_where_outputs_are_negative(z, y, gradient, curvature):
    value = right(z, y, gradient, curvature)
    if z[0] < 0:
        curvature[0, 0] = 0.5
    return value


def no_sign(z, y, gradient, curvature):
    """Huber's loss, whose slope misses a sign on one side."""
    value = huber_compiled(z, y, gradient, curvature)
    for a in range(z.size):
        if z[a] - y[a] < -1.0:
            gradient[a] = 1.0
    return value


def wrong_but_for_ones(z, y, gradient, curvature):
    """Of one output, for which what sums to 1 is always 1: no kind of targets."""
    if z.size != 1:
        raise ValueError("one output")
    value = right(z, y, gradient, curvature)
    gradient[0] = z[0] - 1.0
    return value


huber_compiled = numba.njit(huber)

MANY = [
    (three_arguments, TypeError, r"function function\(z, y, gradient, curvature\), .*got three_arguments\(z"),
    (five_arguments, TypeError, r"got five_arguments\(z, y, gradient, curvature, more\)"),
    (lambda: 0.0, TypeError, r"got <lambda>\(\)"),
    (math.sin, TypeError, "plain or @njit, got <built-in function sin>"),
    (None, TypeError, "got None"),
    (undefined, TypeError, "nopython mode, got undefined, .*missing"),
    (unsupported, TypeError, "nopython mode, got unsupported, .*no_such_thing"),
    (returns_nothing, TypeError, "a real number; got none"),
    (returns_an_array, TypeError, r"a real number; got array\(float64"),
    (returns_now_and_then, TypeError, r"a real number; got OptionalType\(float64\)"),
    (returns_complex, TypeError, "a real number; got complex128"),
    (raises, ValueError, "from 1 to 256; got RuntimeError for 1: no such thing"),
    (reads_out_of_bounds, ValueError, "from 1 to 256; got IndexError for 1: .*out of bounds"),
    (writes_out_of_bounds, ValueError, "from 1 to 256; got IndexError for 1: .*out of bounds"),
    (calls_what_writes_out_of_bounds, ValueError, "IndexError for 1: a compiled function that it calls writes out of"),
    (changes_z, ValueError, "to leave z as it is; got it changed"),
    (changes_y, ValueError, "to leave y as it is; got it changed"),
    (diagonal_only, ValueError, r"write all of curvature, .* curvature\[0, 1\] unwritten or .* for 2 outputs"),
    (accumulates, ValueError, r"write all of gradient, .* gradient\[0\] unwritten or .* for 1 outputs"),
    (stops_early, ValueError, r"write all of gradient, .* gradient\[4\] unwritten or .* for 5 outputs"),
    (reads_what_it_was_given, ValueError, "return the same value whatever gradient and curvature held before"),
    (asymmetric, ValueError, r"a symmetric curvature, .* 0.25 in entry \(0, 1\), 0 in entry \(1, 0\)"),
    (not_a_number, ValueError, "a finite value with finite derivatives for some z of 1 or 2 or 3 or 5 outputs"),
    (infinite_gradient, ValueError, "a finite value with finite derivatives"),
    (half_the_value, ValueError, r"gradient\[0\] = \S+ where differences of the value give \S+, at z = \["),
    (constant_value, ValueError, r"gradient\[0\] = \S+ where differences of the value give 0, at z = \["),
    (wrong_sign_of_the_gradient, ValueError, r"gradient\[0\] = \S+ where differences of the value give"),
    (wrong_sign_of_the_curvature, ValueError, r"curvature\[0, 0\] = -1 where .* of gradient\[0\] give 1, at z"),
    (wrong_curvature_of_one_entry, ValueError, r"curvature\[0, 0\] = 1.5 where .*\[0\] give 1, at .*, y = \["),
    (coupling_that_is_not_there, ValueError, r"curvature\[2, 0\] = 0.1 where differences of gradient\[2\] give"),
    (wrong_where_outputs_are_negative, ValueError, r"curvature\[0, 0\] = 0.5 where .* give 1, at z = \[-"),
    (wrong_but_for_ones, ValueError, r"gradient\[0\] = \S+ where differences of the value give \S+, at z = \["),
    (no_sign, ValueError, r"gradient\[\d\] = 1 where differences of the value give -1"),
]


@pytest.mark.parametrize("function, error, words", MANY, ids=lambda given: getattr(given, "__name__", None))
def test_losses_that_are_refused(function, error, words):
    with pytest.raises(error, match="^function: (?s:.*)" + words):
        nh.register_loss("test_refused")(function)
    assert "test_refused" not in nh.loss_names()


def last_label_out_of_bounds(z, y, gradient, curvature):
    label = int(y[0])
    margin = z[label] - z[label + 1]
    gradient[:] = 0.0
    curvature[:] = 0.0
    gradient[label], gradient[label + 1] = 1.0, -1.0
    return margin


def label_for_a_target(z, y, gradient, curvature):
    """Reads a target for each output, where y holds one label."""
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        gradient[a] = z[a] - y[a]
        curvature[a, a] = 1.0
        value += 0.5 * gradient[a] ** 2
    return value


def wrong_at_the_label(z, y, gradient, curvature):
    value = hinge_compiled(z, y, gradient, curvature)
    gradient[int(y[0])] = 0.0
    return value


hinge_compiled = numba.njit(hinge)


@pytest.mark.parametrize(
    "function, words",
    [
        (last_label_out_of_bounds, "work for every label from 0 to 1; got IndexError for 1: "),
        (label_for_a_target, "from 2 to 256; got IndexError for 2: "),
        (wrong_at_the_label, r"gradient\[\d\] = 0 where differences of the value give -1, at z = .*, y = \[\d\.\]"),
    ],
)
def test_losses_of_labels_that_are_refused(function, words):
    with pytest.raises(ValueError, match="^function: (?s:.*)" + words):
        nh.register_loss("test_refused", targets="labels")(function)
    assert "test_refused" not in nh.loss_names()


def test_a_loss_for_other_numbers_of_outputs():
    """What was registered for some numbers of outputs is refused by a net of others."""
    nh.register_loss("test_even")(gaussian)
    nh.register_loss("test_three", targets="labels")(three_classes)
    nh.Network([nh.Dense(2, 4)], "test_even")
    nh.Network([nh.Dense(2, 3)], "test_three")
    with pytest.raises(ValueError, match="^loss: expected a loss of 3 outputs, .*ValueError from gaussian"):
        nh.Network([nh.Dense(2, 3)], "test_even")
    with pytest.raises(ValueError, match="^loss: expected a loss of 2 outputs, .*IndexError from"):
        nh.Network([nh.Dense(2, 2)], "test_three")

    nh.register_loss("test_ten")(ten_outputs)
    with pytest.raises(ValueError, match="^loss: expected a loss of 4 outputs, .* writes out of"):
        nh.Network([nh.Dense(2, 4)], "test_ten")

    @nh.register_loss("test_five_labels", targets="labels")
    def five_labels(z, y, gradient, curvature):
        gradient[:] = 0.0
        curvature[:] = 0.0
        gradient[int(y[0])] = FIVE[int(y[0])]
        return FIVE[int(y[0])] * z[int(y[0])]

    nh.Network([nh.Dense(2, 5)], "test_five_labels")
    with pytest.raises(ValueError, match="^loss: .* label from 0 to 5; got IndexError for 5: "):
        nh.Network([nh.Dense(2, 6)], "test_five_labels")

    @nh.register_loss("test_up_to_five")
    def up_to_five(z, y, gradient, curvature):
        value = 0.0
        curvature[:] = 0.0
        for a in range(z.size):
            value += 0.5 * (z[a] - y[a]) ** 2
            curvature[a, a] = 1.0
            if a < 5:
                gradient[a] = z[a] - y[a]
        return value

    with pytest.raises(ValueError, match=r"^loss: .* gradient\[5\] unwritten .* for 6 outputs"):
        nh.Network([nh.Dense(2, 6)], "test_up_to_five")


FIVE = np.ones(5)


# Activations.


def leaky_relu(u, slope=0.1):
    return (u, 1.0, 0.0) if u > 0 else (slope * u, slope, 0.0)


def relu6(u):
    """Of integers and truth values, too."""
    return min(max(u, 0), 6), 0 < u < 6, 0


def logarithm(u):
    """No value where the argument is negative."""
    return math.log(u), 1 / u, -1 / (u * u)


def steep(u):
    t = math.tanh(300 * u)
    return t, 300 * (1 - t * t), -180000 * t * (1 - t * t)


def exponential(u):
    e = math.exp(u)
    return e, e, e


def tanh_in_single_precision(u):
    t = np.float32(math.tanh(u))
    return t, np.float32(1) - t * t, np.float32(-2) * t * (np.float32(1) - t * t)


@pytest.mark.parametrize("function", [leaky_relu, relu6, logarithm, steep, exponential, tanh_in_single_precision])
def test_right_activations(function):
    assert nh.register_activation("test_right")(function) is function
    net = nh.Network([nh.Dense(1, 1, "test_right", bias=False)], "mean_squared_error")
    for dtype in (np.float64, np.float32):
        u = dtype(0.3)
        assert net.forward(np.array([u]), np.array([[1.0]]))[0, 0] == pytest.approx(float(function(u)[0]), rel=1e-6)


@pytest.mark.parametrize("name", nh.activation_names())
def test_the_activations_of_the_package(name):
    activations.try_activation(activations.activation_function(name))


def two_numbers(u):
    return u, 1.0


def a_list(u):
    return [u, 1.0, 0.0]


def a_number(u):
    return u


def complex_slope(u):
    return u, 1j * u, 0.0


def now_and_then(u):
    if u > 0:
        return u, 1.0, 0.0


def undefined_activation(u):
    return missing(u), 1.0, 0.0  # noqa: F821


def raises_always(u):
    raise RuntimeError("no such thing")


def raises_for_some(u):
    if u < -50.0:
        raise ValueError("too negative")
    return u, 1.0, 0.0


def from_a_table(u):
    return TABLE[int(abs(u))], 0.0, 0.0


TABLE = np.zeros(3)


def never_finite(u):
    return math.nan, math.nan, math.nan


def half_slope(u):
    return u * u, u, 1.0


def wrong_bend(u):
    e = math.exp(-u * u)
    return e, -2 * u * e, (4 * u * u + 2) * e


def half_slope_of_a_fast_wave(u):
    """Too fast for the longer steps of differences."""
    return math.sin(300 * u), 150 * math.cos(300 * u), -90000 * math.sin(300 * u)


def wrong_where_negative(u):
    return (u, 1.0, 0.0) if u > 0 else (0.1 * u, 0.01, 0.0)


@pytest.mark.parametrize(
    "function, error, words",
    [
        (lambda: (0.0, 0.0, 0.0), TypeError, r"expected a function function\(u\), .*got <lambda>\(\)"),
        (lambda u, v: (u, 1.0, 0.0), TypeError, r"got <lambda>\(u, v\)"),
        (math.tanh, TypeError, "plain or @njit, got <built-in"),
        ("tanh", TypeError, "plain or @njit, got 'tanh'"),
        (undefined_activation, TypeError, "nopython mode, got undefined_activation, .*missing"),
        (two_numbers, TypeError, r"three real numbers, .*; got UniTuple\(float64 x 2\)"),
        (a_list, TypeError, r"three real numbers, .*; got .*list\(float64"),
        (a_number, TypeError, "three real numbers, .*; got float64"),
        (complex_slope, TypeError, r"three real numbers, .*; got Tuple\(float64, complex128, float64\)"),
        (now_and_then, TypeError, "three real numbers, .*; got OptionalType"),
        (raises_for_some, ValueError, "value for any u, or NaN; got ValueError at u = -87.1: too negative"),
        (from_a_table, ValueError, "value for any u, or NaN; got IndexError at u = 3"),
        (raises_always, ValueError, "value for any u, or NaN; got RuntimeError at u = 0.003: no such thing"),
        (never_finite, ValueError, r"finite for some u from -87.1 to 87.1; got \(nan, nan, nan\)"),
        (half_slope, ValueError, r"got \S+ for the first derivative at u = \S+, where differences of the value give "),
        (half_slope_of_a_fast_wave, ValueError, r"got \S+ for the first derivative at u = \S+, where differences of"),
        (wrong_bend, ValueError, "got 2.00002 for the second .* u = 0.003, .* of the first derivative give -1."),
        (wrong_where_negative, ValueError, r"got 0.01 for the first derivative at u = -\S+, where .* give 0.1"),
    ],
)
def test_activations_that_are_refused(function, error, words):
    with pytest.raises(error, match="^function: (?s:.*)" + words):
        nh.register_activation("test_refused")(function)
    assert "test_refused" not in nh.activation_names()


@pytest.mark.parametrize("jump", [2.0, 0.05, 0.002])
def test_kinks_contradict_nothing(jump):
    """A slope that jumps by ``jump`` every 0.02, at random points: most are judged, none is held to be wrong."""

    def value(u):
        return np.array([u + jump / 2 * abs(u - 0.04 * round(u / 0.04))])

    judged = 0
    for u in np.random.default_rng(0).standard_normal(2000):
        slope = 1.0 + math.copysign(jump / 2, u - 0.04 * round(u / 0.04))
        known, wrong, _ = compare(lambda t: value(u + t), np.array([slope]))
        judged += known[0]
        assert not wrong[0]
    assert judged > 1900


# The registry.


def test_a_refused_function_changes_nothing():
    nh.register_loss("test_kept", mean_over="elements")(huber)
    nh.register_activation("test_kept")(leaky_relu)
    net = nh.Network([nh.Dense(2, 2, "test_kept")], "test_kept")
    params, X, y = net.init(0), np.ones((1, 2)), np.zeros((1, 2))
    before = net.loss(params, X, y)
    entries = losses._registry.get("test_kept"), activations._registry.get("test_kept")
    addresses = losses.loss_address("test_kept", np.float64), activations.activation_address("test_kept", np.float64)
    for function in (diagonal_only, three_arguments, undefined):
        with pytest.raises((TypeError, ValueError)):
            nh.register_loss("test_kept")(function)
    for function in (half_slope, two_numbers, undefined_activation):
        with pytest.raises((TypeError, ValueError)):
            nh.register_activation("test_kept")(function)
    assert losses._registry.get("test_kept") is entries[0] and activations._registry.get("test_kept") is entries[1]
    assert losses.loss_address("test_kept", np.float64) == addresses[0]
    assert activations.activation_address("test_kept", np.float64) == addresses[1]
    assert nh.Network([nh.Dense(2, 2, "test_kept")], "test_kept").loss(params, X, y) == before


def test_what_compiles_for_float64_alone():
    """Types are inferred anew for float32, at its first use."""
    matrix = np.eye(2)

    @nh.register_loss("test_wide")
    def wide(z, y, gradient, curvature):
        if z.size != 2:
            raise ValueError("two outputs")
        gradient[:] = np.dot(matrix, z - y)
        curvature[:] = matrix
        return 0.5 * np.dot(gradient, z - y)

    net = nh.Network([nh.Dense(2, 2)], "test_wide")
    params, X, y = net.init(0), np.ones((1, 2)), np.zeros((1, 2))
    assert net.loss(params, X, y) > 0.0
    with pytest.raises(TypeError, match="^loss: .* compiles for float32, too; got 'test_wide', of which Numba says: "):
        net.loss(params.astype(np.float32), X, y)


def test_importing_tries_nothing():
    program = (
        "import numba\nfrom numba.core import dispatcher\ncompile = dispatcher.Dispatcher.compile\n"
        "def record(self, *arguments):\n    print('compiled', self.py_func.__name__)\n"
        "    return compile(self, *arguments)\n"
        "dispatcher.Dispatcher.compile = record\nimport numba_hinv, numba_hinv.layers.trial\n"
        "print('tried', numba_hinv.layers.trial._checked.cache_info().currsize)\n"
        "numba_hinv.register_activation('own')(lambda u: (u, 1.0, 0.0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    tried = done.stdout.splitlines()
    assert tried[tried.index("tried 0") :] == ["tried 0", "compiled <lambda>"]
    assert not [line for line in tried[: tried.index("tried 0")] if line.split()[1] in NAMES], tried


NAMES = {*nh.activation_names(), *nh.loss_names()}
