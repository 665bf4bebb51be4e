"""Anything at all, passed to the whole public interface: a verified answer, or an error that names the argument.

500 examples in a normal run; 10,000, drawn anew each time, with --slow. Answers are verified against the independent
truth in extended precision, so that a call that should have been refused cannot pass with a plausible number.
"""

import re
import tempfile
import warnings

import dense_truth
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import layer, make

import numba_hinv as nh

ERRORS = (ValueError, TypeError, MemoryError)  # LinAlgError is a ValueError
NETS = [
    make([layer(2, 2), layer(2, 2, "sin", skip=True), layer(2, 1, "sin", bias=False)], "mean_squared_error", batch=2),
    make([layer(2, 3, "gelu"), layer(3, 3, "identity")], batch=5),
    make([layer(1, 1, "softplus", skip=True), layer(1, 1, "identity")], "binary_cross_entropy", batch=1),
    make([layer(3, 2, "relu", bias=False), layer(2, 2, "tanh")], "mean_squared_error", batch=4),
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.integers(-3, 5),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.complex_numbers(max_magnitude=3),
    st.floats(-3, 3).map(np.float32),
    st.sampled_from([np.float64(0.3), np.array(0.3), np.array([0.3]), np.int8(1), np.bool_(True)]),
    st.sampled_from([[], {}, (), object()]),
)
numbers = st.one_of(
    st.floats(-3, 3),
    st.sampled_from([0.0, 1.0, -0.0, 1e-300, 5e-324, 1e-150, 1e-30, 1e30, 1e150, 1e300, -1e300]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
)
dtypes = st.sampled_from(["f8", ">f8", "f4", "f2", "g", "i1", "i8", "u8", "?", "c16", "O", "U3", "M8[s]"])


@st.composite
def like(draw, array):
    """The array's shape, or one nearby, filled with other numbers, in any type and layout."""
    shape = list(array.shape)
    change = draw(st.sampled_from(["none"] * 6 + ["longer", "shorter", "wider", "flat", "empty", "transposed"]))
    if change == "longer":
        shape[0] += 1
    elif change == "shorter":
        shape[0] -= 1
    elif change == "wider":
        shape += [draw(st.integers(0, 3))]
    elif change == "flat":
        shape = [int(np.prod(shape))]
    elif change == "empty":
        shape[draw(st.integers(0, len(shape) - 1))] = 0
    elif change == "transposed":
        shape = shape[::-1]
    kind = draw(st.sampled_from(["scaled", "drawn", "one entry"]))
    filled = np.resize(np.asarray(array, float), shape) if array.size else np.zeros(shape)
    if kind == "drawn":
        filled = draw(hnp.arrays("f8", tuple(shape), elements=numbers))
    elif kind == "scaled":
        with np.errstate(all="ignore"):
            filled = filled * draw(st.sampled_from([1.0, 0.0, -1.0, 1e-150, 1e-30, 1e-8, 1e8, 1e30, 1e150, 1e300]))
    elif filled.size:
        filled.flat[draw(st.integers(0, filled.size - 1))] = draw(numbers)
    dtype = draw(st.one_of(st.just(array.dtype), dtypes))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            filled = filled.astype(dtype)
        except (ValueError, TypeError, OverflowError):
            pass
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "read-only", "list", "broadcast"]))
    if layout == "F":
        return np.asfortranarray(filled)
    if layout == "strided":
        spread = np.empty((*filled.shape, 2), filled.dtype)
        spread[..., 0] = filled
        return spread[..., 0]
    if layout == "reversed" and filled.ndim:
        return np.ascontiguousarray(filled[::-1])[::-1]
    if layout == "read-only":
        filled.flags.writeable = False
    if layout == "list":
        return filled.tolist()
    if layout == "broadcast" and filled.size:
        return np.broadcast_to(filled.flat[0], filled.shape)
    return filled


CALLS = ["forward", "loss", "gradient", "hessian", "product", "solve", "one call", "count_below"]
CALLS += ["init", "unpack", "save", "diagonal", "sample"]
CALLS += ["trust region", "eigenvalues", "eigenvalues_in", "spectral_density"]


def run(call, p, a):
    """One call, with everything that it needs; returns (what was asked for, its answer)."""
    net = p.net
    if call == "forward":
        return net.forward(a["params"], a["X"])
    if call == "init":
        return net.init(a["rng"], a["gain"], a["dtype"])
    if call == "unpack":
        return net.unpack(a["params"])
    if call in ("loss", "gradient"):
        return getattr(net, call)(a["params"], a["X"], a["y"])
    if call == "one call":
        return nh.solve(net, a["params"], a["X"], a["y"], a["b"], a["damping"])
    H = net.hessian(a["params"], a["X"], a["y"])
    if call == "hessian":
        return H
    if call == "product":
        return H @ a["v"]
    if call == "count_below":
        return H.count_below(a["t"])
    if call == "trust region":
        return nh.trust_region_step(H, a["radius"], a["gradient"], a["multiplier"])
    if call == "eigenvalues":
        return nh.eigenvalues(H, a["k"], a["near"])
    if call == "eigenvalues_in":
        return nh.eigenvalues_in(H, a["low"], a["high"])
    if call == "spectral_density":
        return nh.spectral_density(H, a["grid"])
    F = H.factorize(a["damping"], a["factor_dtype"])
    if call == "save":
        with tempfile.NamedTemporaryFile() as file:
            F.save(file.name)
            return nh.load(file.name).solve(a["b"])
    if call == "diagonal":
        return F.diagonal()
    if call == "sample":
        return F.sample(a["n"], rng=a["rng"])
    return F.solve(a["b"], a["refine"], a["full_output"])


USES = {
    "forward": ["params", "X"],
    "loss": ["params", "X", "y"],
    "gradient": ["params", "X", "y"],
    "hessian": ["params", "X", "y"],
    "product": ["params", "X", "y", "v"],
    "solve": ["params", "X", "y", "b", "damping", "factor_dtype", "refine", "full_output"],
    "one call": ["params", "X", "y", "b", "damping"],
    "save": ["params", "X", "y", "b", "damping", "factor_dtype"],
    "count_below": ["params", "X", "y", "t"],
    "init": ["rng", "gain", "dtype"],
    "unpack": ["params"],
    "diagonal": ["params", "X", "y", "damping", "factor_dtype"],
    "sample": ["params", "damping", "rng", "n"],
    "trust region": ["params", "X", "y", "radius", "gradient", "multiplier"],
    "eigenvalues": ["params", "k", "near"],
    "eigenvalues_in": ["params", "low", "high"],
    "spectral_density": ["params", "grid"],
}


def attempt(data):
    p = data.draw(st.sampled_from(NETS), label="net")
    call = data.draw(st.sampled_from(CALLS), label="call")
    b = p.right_hand_side()
    arguments = {"params": p.params, "X": p.X, "y": p.y, "b": b, "v": b, "damping": 0.37, "t": 0.01}
    arguments |= {"factor_dtype": None, "refine": True, "full_output": False}
    arguments |= {"gain": 1.0, "dtype": "float64", "rng": 0, "n": 3}
    arguments |= {"k": 2, "near": 0.1, "low": -0.1, "high": 1.0}
    arguments |= {"radius": 0.7, "gradient": None, "multiplier": None, "grid": np.linspace(-1.0, 1.0, 5)}
    changed = data.draw(st.lists(st.sampled_from(USES[call]), min_size=1, max_size=2, unique=True), label="changed")
    for name in changed:
        near = like(arguments[name]) if isinstance(arguments[name], np.ndarray) else scalars
        arguments[name] = data.draw(st.one_of(near, near, near, scalars), label=name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = run(call, p, arguments)
        except ERRORS as error:
            message = str(error)
            related = {*changed, *(["params", "X", "y", "damping"] if isinstance(error, np.linalg.LinAlgError) else [])}
            # Whether X or y has the wrong number of samples is a matter of taste, and all three make a loss overflow.
            related |= {"params", "X", "y"} if {"params", "X", "y"} & related else set()
            # What H @ v says comes through; a gradient may be too large for the radius.
            related |= {"v", "radius"} if call in JUDGES else set()
            # NumPy itself speaks where the operator @ or the random generator is asked for the impossible.
            by_numpy = call == "product" and "v" in changed
            assert by_numpy or any(re.search(rf"\b{name}\b", message) for name in related), message
            return
    verify(call, p, arguments, result, [w for w in caught if issubclass(w.category, scipy.linalg.LinAlgWarning)])


def judge_diagonal(a, result, warned, t, eigenvalues, norm):
    assert np.isfinite(result).all()
    size, damping = len(result), float(a["damping"])
    shifted = eigenvalues + damping
    condition = (norm + abs(damping)) / np.abs(shifted).min()
    if not warned and 1e-100 < norm < 1e100 and 1e-100 < abs(damping) < 1e100 and condition < 1e10:
        inverse = np.linalg.inv((t.hessian + damping * np.eye(size)).astype(float))
        tolerance = 1e-8 if a["factor_dtype"] is None else 1e-3
        lengths = np.linalg.norm(inverse, axis=0)
        assert (np.abs(result - np.diagonal(inverse)) <= 30 * (tolerance + 1e-15 * float(condition)) * lengths).all()


def judge_sample(a, result, warned, t, eigenvalues, norm):
    size = len(eigenvalues)
    assert np.isfinite(result).all() and result.shape == ((size,) if a["n"] is None else (a["n"], size))
    assert eigenvalues[0] + float(a["damping"]) > -1e-12 * (norm + abs(float(a["damping"])))


def judge_trust_region(a, result, warned, t, eigenvalues, norm):
    """Inside the ball, and no worse than the best point in the direction of steepest descent."""
    g = (t.gradient if a["gradient"] is None else np.asarray(a["gradient"])).astype(np.longdouble)
    p, radius = result.step.astype(np.longdouble), np.longdouble(float(a["radius"]))
    assert np.sqrt(p @ p) <= radius * (1 + 1e-8)
    length, rounding = np.sqrt(g @ g), 1e-10 * (np.sqrt(g @ g) * radius + norm * radius**2)
    if length > 0:
        along = g @ t.hessian @ g / length**2
        far = min(radius, length / along) if along > 0 else radius
        cauchy = far * length - along * far**2 / 2
        assert -(g @ p) - p @ t.hessian @ p / 2 >= cauchy - rounding


def judge_eigenvalues(a, result, warned, t, eigenvalues, norm):
    assert np.isfinite(result).all() and len(result) == a["k"]
    if not warned:
        assert all(np.abs(eigenvalues - value).min() <= 1e-11 * norm for value in result)


def judge_eigenvalues_in(a, result, warned, t, eigenvalues, norm):
    low, high = np.longdouble(float(a["low"])), np.longdouble(float(a["high"]))
    some, rounding = np.asarray(result), 1e-11 * norm
    inner = ((eigenvalues > low + rounding) & (eigenvalues < high - rounding)).sum()
    outer = ((eigenvalues >= low - rounding) & (eigenvalues <= high + rounding)).sum()
    assert inner <= some.size <= outer and all(np.abs(eigenvalues - value).min() <= 1e3 * rounding for value in some)


def judge_spectral_density(a, result, warned, t, eigenvalues, norm):
    edges = np.asarray(result.edges, float)
    assert result.below + result.counts.sum() + result.above == len(eigenvalues)
    for edge, count in zip(edges, result.below + np.concatenate([[0], np.cumsum(result.counts)])):
        assert (eigenvalues < edge - 1e-11 * norm).sum() <= count <= (eigenvalues <= edge + 1e-11 * norm).sum()


JUDGES = {
    "diagonal": judge_diagonal, "sample": judge_sample, "trust region": judge_trust_region,
    "eigenvalues": judge_eigenvalues, "eigenvalues_in": judge_eigenvalues_in,
    "spectral_density": judge_spectral_density,
}  # fmt: skip


def verify(call, p, a, result, warned):
    if call in ("init", "unpack"):
        if call == "init":
            assert result.shape == (p.size,) and np.isfinite(result).all()
        return
    if np.asarray(a["params"]).dtype == np.float32:
        # test_float32 verifies these; here, that nothing infinite comes out.
        flat = result[0] if isinstance(result, tuple) else result
        assert isinstance(flat, (nh.Hessian, nh.TrustRegionStep)) or call in JUDGES or np.isfinite(flat).all()
        return
    y = np.asarray(a["y"])
    y = y.reshape(-1, 1) if p.loss != "softmax_cross_entropy" and y.ndim == 1 else y
    X = np.asarray(a["X"]).astype(np.float64)
    y = y if p.loss == "softmax_cross_entropy" else y.astype(np.float64)
    if call == "forward":
        y = np.zeros(len(X), int) if p.loss == "softmax_cross_entropy" else np.zeros((len(X), result.shape[1]))
    t = dense_truth.differentiate(p.layers, p.loss, np.asarray(a["params"]).astype(np.float64), X, y)

    def close(ours, exact, scale):
        return np.abs(np.asarray(ours) - exact).max(initial=0) <= 1e-11 * scale + 1e-300

    # Sizes that rounding is relative to: numbers pass through weights and squares of them.
    size = 1 + max(np.abs(np.asarray(a["params"], float)).max(), np.abs(X).max(initial=0)).astype(np.longdouble) ** 6
    if call == "forward":
        assert close(result, t.output, size)
    elif call == "loss":
        assert close(result, t.value, np.abs(t.value) + size)
    elif call == "gradient":
        assert close(result, t.gradient, np.abs(t.gradient).max() + size)
    elif call == "hessian":
        assert result.shape == (p.size, p.size) and np.isfinite(result.loss) and np.isfinite(result.gradient).all()
    elif call == "product":
        v = np.asarray(a["v"]).astype(np.longdouble)
        assert close(result, t.hessian @ v, (np.abs(t.hessian).max() + size) * max(np.abs(v).max(initial=0), 1e-300))
    else:
        unit = max(np.abs(t.hessian).max(), np.longdouble("1e-4900"))
        eigenvalues = np.linalg.eigvalsh((t.hessian / unit).astype(float)).astype(np.longdouble) * unit
        norm = np.abs(eigenvalues).max()
        if call in JUDGES:
            JUDGES[call](a, result, warned, t, eigenvalues, norm)
            return
        if call == "count_below":
            where = np.longdouble(float(a["t"]))
            # The library's Hessian is that of float64 numbers: eigenvalues within its rounding may lie on either side.
            rounding = 1e-13 * norm + 1e-13 * size
            below, above = (eigenvalues < where - rounding).sum(), (eigenvalues < where + rounding).sum()
            assert below <= result <= above
            return
        x = result[0] if isinstance(result, tuple) else result
        b = np.asarray(a["b"])
        assert np.shape(x) == b.shape and np.isfinite(x).all()
        if warned or a["refine"] is not True or x.dtype == np.float32:
            return
        damping = np.longdouble(float(a["damping"]))
        x, b = (array.astype(np.longdouble).reshape(p.size, -1) for array in (x, b))
        residual = np.abs(b - t.hessian @ x - damping * x).max(axis=0, initial=0)
        rounding = 1e-14 * (norm * np.sqrt((x * x).sum(axis=0)) + np.sqrt((b * b).sum(axis=0)))
        # Denormal numbers have no digits to be right in.
        rounding += 1e-13 * size * np.abs(x).max(axis=0, initial=0) + np.longdouble(1e-300) * (norm + abs(damping) + 1)
        assert (residual <= rounding).all()


@settings(max_examples=500)
@given(st.data())
def test_any_call(data):
    attempt(data)


@pytest.mark.slow
@settings(max_examples=10_000, derandomize=False)
@given(st.data())
def test_any_call_nightly(data):
    attempt(data)


@settings(max_examples=200)
@given(*(st.one_of(scalars, st.just(valid)) for valid in (3, 3, "tanh", True, True)))
def test_any_layer(n_in, n_out, activation, bias, skip):
    try:
        made = nh.Dense(n_in, n_out, activation, bias, skip)
    except (ValueError, TypeError) as error:
        assert re.match("in_features|out_features|activation|bias|skip", str(error)), error
        return
    assert made.in_features == n_in and made.out_features == n_out and made.activation == activation
    assert made.in_features > 0 and made.out_features > 0
    assert isinstance(made.bias, bool) and isinstance(made.skip, bool)


@settings(max_examples=200)
@given(st.one_of(scalars, st.lists(st.one_of(scalars, st.just(nh.Dense(2, 2))), max_size=3)), scalars)
def test_any_network(layers, loss):
    try:
        net = nh.Network(layers, loss)
    except (ValueError, TypeError) as error:
        assert re.match("layers|loss", str(error)), error
        return
    assert net.num_params == 6 * len(net.layers)
    with pytest.raises(AssertionError):
        assert loss not in nh.loss_names()
