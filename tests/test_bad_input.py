"""Bad input: a clear error that names the argument, what was given and what was expected; nothing half done.

Also what must be accepted: other memory layouts, read-only arrays, integers, lists; and inputs are never modified.
"""

import contextlib
import re
import warnings

import dense_truth
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from problems import chain, layer, make

import numba_hinv as nh
from numba_hinv.system.ridge import as_ridge

LABELS = chain(4, 3, out=3, batch=5)
VALUES = chain(4, 3, out=3, batch=5, loss="mean_squared_error")
REJECTED = (ValueError, TypeError)


@contextlib.contextmanager
def rejected(*words, errors=REJECTED):
    """The error's message must contain every word (numbers and argument names as whole words)."""
    with pytest.raises(errors) as caught:
        yield
    message = str(caught.value)
    for word in words:
        assert re.search(rf"(?<![\w.]){re.escape(str(word))}(?![\w])", message), f"{word!r} is not in: {message}"


def calls(problem, **changed):
    """Every function that takes the data, with one argument replaced."""
    a = {"params": problem.params, "X": problem.X, "y": problem.y, "b": problem.right_hand_side(), **changed}
    net = problem.net
    yield from (
        lambda: net.loss(a["params"], a["X"], a["y"]),
        lambda: net.gradient(a["params"], a["X"], a["y"]),
        lambda: net.hessian(a["params"], a["X"], a["y"]),
        lambda: nh.solve(net, a["params"], a["X"], a["y"], a["b"], damping=0.1),
    )
    if "y" not in changed:
        yield lambda: net.forward(a["params"], a["X"])


# ---- building a net -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (-1, 3), (3, -2), (2.5, 3), ("4", 3), (None, 3)])
def test_layer_sizes(sizes):
    with rejected():
        nh.Dense(*sizes)


def test_layer_size_messages():
    with rejected("in_features", 0):
        nh.Dense(0, 3)
    with rejected("out_features", -2):
        nh.Dense(3, -2)


def test_skip_needs_equal_sizes():
    with rejected("skip", 3, 4):
        nh.Dense(3, 4, skip=True)


def test_unknown_activation_lists_the_known_ones():
    with rejected("activation", "tahn", *dense_truth.ACTIVATIONS):
        nh.Network([nh.Dense(3, 4, "tahn")], "mean_squared_error")


def test_unknown_loss_lists_the_known_ones():
    with rejected("loss", "hinge", *dense_truth.LOSSES):
        nh.Network([nh.Dense(3, 4)], loss="hinge")


@pytest.mark.parametrize("activation", [None, 3, np.add, ["tanh"]])
def test_activation_of_a_wrong_type(activation):
    with rejected("activation"):
        nh.Network([nh.Dense(3, 4, activation)], "mean_squared_error")


def test_mismatched_consecutive_layers():
    with rejected("layers", 4, 5):
        nh.Network([nh.Dense(3, 4), nh.Dense(4, 4), nh.Dense(5, 2)], "mean_squared_error")


@pytest.mark.parametrize("layers", [[], None, 3, [3, 4], ["tanh"], nh.Dense(3, 3)])
def test_layers_of_a_wrong_kind(layers):
    with rejected("layers"):
        nh.Network(layers, "mean_squared_error")


# ---- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(70,), (72,), (71, 1), (1, 71), (), (0,)])
def test_shape_of_params(given):
    expected = LABELS.size
    shape = tuple({71: expected, 70: expected - 1, 72: expected + 1}.get(n, n) for n in given)
    for call in [*calls(LABELS, params=np.ones(shape)), lambda: LABELS.net.unpack(np.ones(shape))]:
        with rejected("params", expected):
            call()


@pytest.mark.parametrize("shape", [(5, 3), (5, 5), (4,), (5, 4, 1), ()])
def test_shape_of_X(shape):
    for call in calls(LABELS, X=np.ones(shape)):
        with rejected("X", 4):
            call()


def test_empty_batch():
    for problem, y in [(LABELS, np.zeros(0, dtype=int)), (VALUES, np.zeros((0, 3)))]:
        for call in calls(problem, X=np.zeros((0, 4)), y=y):
            with rejected("X"):
                call()


@pytest.mark.parametrize("shape", [(4,), (6,), (5, 3), (1, 5), ()])
def test_shape_of_labels(shape):
    for call in calls(LABELS, y=np.zeros(shape, dtype=int)):
        with rejected("y", 5):
            call()


@pytest.mark.parametrize("loss", ["mean_squared_error", "binary_cross_entropy"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (5, 2), (3, 5), (5, 3, 1), ()])
def test_shape_of_values(loss, shape):
    problem = chain(4, 3, out=3, batch=5, loss=loss)
    for call in calls(problem, y=np.zeros(shape)):
        with rejected("y", 5):
            call()


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_labels_out_of_range(label):
    y = np.array([0, 1, label, 2, 0])
    for call in calls(LABELS, y=y):
        with rejected("y", label):
            call()


@pytest.mark.parametrize("y", [np.full(5, 0.5), np.full(5, np.nan), np.full(5, 1j), np.array(list("abcab"))])
def test_labels_that_are_not_integers(y):
    for call in calls(LABELS, y=y):
        with rejected("y"):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    def spoil(a):
        a = a.copy()
        a.flat[a.size // 2] = value
        return a

    for call in calls(VALUES, params=spoil(VALUES.params)):
        with rejected("params"):
            call()
    for call in calls(VALUES, X=spoil(VALUES.X)):
        with rejected("X"):
            call()
    for call in calls(VALUES, y=spoil(VALUES.y)):
        with rejected("y"):
            call()
    b = spoil(VALUES.right_hand_side())
    F = VALUES.hessian.factorize(damping=0.1)
    for call in [
        lambda: nh.solve(VALUES.net, VALUES.params, VALUES.X, VALUES.y, b, damping=0.1),
        lambda: F.solve(b),
        lambda: F.solve(b, refine=False),
        lambda: F.solve(np.column_stack([np.ones_like(b), b])),
    ]:
        with rejected("b"):
            call()


@pytest.mark.parametrize("dtype", [np.complex128, np.complex64, object, "U3", "M8[s]"])
def test_dtypes_that_cannot_be_converted(dtype):
    def converted(a):
        return np.zeros(a.shape, dtype=dtype) if dtype is not object else np.full(a.shape, None)

    for name, array in [("params", VALUES.params), ("X", VALUES.X), ("y", VALUES.y)]:
        for call in calls(VALUES, **{name: converted(array)}):
            with rejected(name):
                call()
    with rejected("b"):
        VALUES.hessian.factorize(damping=0.1).solve(converted(VALUES.params))


def test_masked_entries_are_not_taken_for_numbers():
    def masked(a):
        return np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) == a.size // 2)

    for name, array in [("params", VALUES.params), ("X", VALUES.X), ("y", VALUES.y)]:
        for call in calls(VALUES, **{name: masked(array)}):
            with rejected(name, "masked"):
                call()
    F, b = VALUES.hessian.factorize(damping=0.1), VALUES.right_hand_side()
    with rejected("b", "masked"):
        F.solve(masked(b))
    np.testing.assert_array_equal(F.solve(np.ma.masked_array(b, mask=False)), F.solve(b))


@pytest.mark.parametrize("extra", [(-1,), (1,), (0, 1, 1)])
def test_shape_of_b(extra):
    F = LABELS.hessian.factorize(damping=0.1)
    shape = (LABELS.size + extra[0], *extra[1:])
    for refine in (True, False):
        with rejected("b", LABELS.size):
            F.solve(np.ones(shape), refine=refine)
    with rejected("b", LABELS.size):
        F.solve(1.0)


def test_a_transposed_right_hand_side():
    F = LABELS.hessian.factorize(damping=0.1)
    with rejected("b", LABELS.size):
        F.solve(np.ones((2, LABELS.size)))


@pytest.mark.parametrize("damping", [np.nan, np.inf, -np.inf, 1j, "0.1", None, [0.1, 0.2], [[1], [2, 3]], np.zeros(3)])
def test_damping(damping):
    with rejected("damping"):
        LABELS.hessian.factorize(damping=damping)
    with rejected("damping"):
        nh.solve(LABELS.net, LABELS.params, LABELS.X, LABELS.y, LABELS.params, damping=damping)


@pytest.mark.parametrize("dtype", ["float16", "f8,f8", "01", "0:", "(", ">f8", int, complex, object, 8, "\ud800"])
def test_dtypes_other_than_float64_and_float32(dtype):
    """NumPy parses strings, with errors of all kinds."""
    with rejected("dtype"):
        LABELS.net.init(dtype=dtype)
    with rejected("factor_dtype"):
        LABELS.hessian.factorize(0.1, dtype)


def test_weights_that_float32_cannot_hold():
    assert np.isfinite(LABELS.net.init(gain=1e60)).all()
    with rejected("gain", "float32"):
        LABELS.net.init(gain=1e60, dtype="float32")
    with rejected("gain"):
        nh.Network([nh.Dense(1, 50)], "mean_squared_error").init(gain=1.7e308)


def test_overflow_inside_the_net_is_an_error():
    """Finite input whose output, loss or derivatives are not: no NaN may come out without an error."""
    problem = make([layer(2, 2, "identity"), layer(2, 2, "identity")], "mean_squared_error", batch=2)
    huge = 1e200 * np.abs(problem.params)
    X = np.abs(problem.X)
    with np.errstate(all="ignore"), pytest.raises((ValueError, FloatingPointError, OverflowError)):
        H = problem.net.hessian(huge, X, problem.y)
        F = H.factorize(damping=1.0)
        x = F.solve(np.ones(problem.size))
        assert np.isfinite(x).all()  # an AssertionError is not among the errors above


def test_objects_stay_usable_after_an_error():
    H = LABELS.hessian
    F = H.factorize(damping=0.1)
    b = LABELS.right_hand_side()
    before = F.solve(b), H @ b
    for bad in (np.full(LABELS.size, np.nan), np.ones(3), np.ones(LABELS.size, dtype=complex)):
        with rejected():
            F.solve(bad)
    with rejected():
        H.factorize(damping=np.nan)
    with rejected():
        H @ np.ones(3)
    np.testing.assert_array_equal(F.solve(b), before[0])
    np.testing.assert_array_equal(H @ b, before[1])


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_factorization_that_would_not_fit():
    """Batch 40,000 at width 64: one front alone is (2.6 million)^2. Nothing of it may be allocated."""
    batch, width = 40_000, 64
    net = nh.Network([nh.Dense(2, width), nh.Dense(width, width), nh.Dense(width, 1, "identity")], "mean_squared_error")
    rng = np.random.default_rng(0)
    H = net.hessian(net.init(rng=0), rng.standard_normal((batch, 2)), rng.standard_normal((batch, 1)))
    with pytest.raises(MemoryError) as caught:
        H.factorize(damping=1.0, method="layers")
    message = str(caught.value)
    numbers = [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", message)]
    assert re.search(r"bytes|[KMGTP]i?B", message), message
    assert max(numbers) > 1e12 or re.search(r"[TP]i?B", message), message
    assert batch in numbers and width in numbers, message
    assert re.search(r"\bB\b|batch", message), message
    # There is a way that would fit, and it is the one that is taken by itself.
    assert f"method='dense' would need {H.nbytes_to_factorize():,} bytes" in message
    # The operator itself is still usable.
    assert np.isfinite(H @ np.ones(net.num_params)).all()


# ---- what is accepted -----------------------------------------------------------------------------------------------


def layouts(a):
    """The same numbers in other memory layouts."""
    spread = np.zeros((2,) + a.shape + (3,), dtype=a.dtype)
    spread[0, ..., 1] = a
    locked = a.copy()
    locked.flags.writeable = False
    yield "strided", spread[0, ..., 1]
    yield "Fortran", np.asfortranarray(a)
    yield "reversed", np.ascontiguousarray(a[::-1])[::-1]
    yield "read-only", locked
    yield "big-endian", a.astype(a.dtype.newbyteorder(">"))
    yield "list", a.tolist()
    shifted = np.zeros(a.nbytes + 1, dtype=np.uint8)[1:].view(a.dtype).reshape(a.shape)
    shifted[...] = a
    yield "unaligned", shifted


@pytest.mark.parametrize("name", ["params", "X", "y", "b"])
@pytest.mark.parametrize("problem", [LABELS, VALUES], ids=["labels", "values"])
def test_other_memory_layouts(problem, name):
    data = {"params": problem.params, "X": problem.X, "y": problem.y, "b": problem.right_hand_side(2)}

    def answers(params, X, y, b):
        H = problem.net.hessian(params, X, y)
        return problem.net.forward(params, X), problem.net.gradient(params, X, y), H @ b, H.factorize(0.1).solve(b)

    expected = answers(**data)
    for layout, array in layouts(data[name]):
        if layout == "list" and name == "b":
            continue  # operators take arrays
        for ours, theirs in zip(answers(**{**data, name: array}), expected):
            np.testing.assert_array_equal(ours, theirs, err_msg=layout)


def test_integers_are_converted():
    net = nh.Network([nh.Dense(2, 2), nh.Dense(2, 2, "identity")], loss="mean_squared_error")
    params = np.arange(12) % 3 - 1
    X, y = np.array([[1, 2], [0, -1]]), np.array([[1, 0], [0, 1]])
    b = np.arange(12)
    expected = nh.solve(net, params.astype(float), X.astype(float), y.astype(float), b.astype(float), damping=0.5)
    for dtype in (np.int64, np.int32, np.int8):
        x = nh.solve(net, params.astype(dtype), X.astype(dtype), y.astype(dtype), b.astype(dtype), damping=0.5)
        assert x.dtype == np.float64
        np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(nh.solve(net, params, X.astype(np.float32), y, b, damping=1 / 2), expected)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_label_types(dtype):
    expected = LABELS.net.gradient(LABELS.params, LABELS.X, LABELS.y)
    ours = LABELS.net.gradient(LABELS.params, LABELS.X, LABELS.y.astype(dtype))
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("damping", [1, np.int64(1), np.float32(1), np.float64(1), np.array(1.0)])
def test_kinds_of_damping(damping):
    b = LABELS.right_hand_side()
    np.testing.assert_array_equal(LABELS.hessian.factorize(damping).solve(b), LABELS.hessian.factorize(1.0).solve(b))


@pytest.mark.parametrize("batch", [2, 9])
def test_inputs_are_never_modified(batch):
    problem = chain(4, 4, batch=batch)
    b = problem.right_hand_side(3)
    data = [problem.params, problem.X, problem.y, b]
    copies = [a.copy() for a in data]
    net = problem.net
    net.forward(*data[:2])
    net.loss(*data[:3])
    net.gradient(*data[:3])
    H = net.hessian(*data[:3])
    H @ b
    H.todense()
    for damping in (0.1, -0.05):
        F = H.factorize(damping=damping)
        F.solve(b)
        F.solve(b[:, 0])
        F.solve(np.asfortranarray(b))
        F.solve(b, refine=False)
        F @ b
        nh.solve(net, *data, damping=damping)
    for a, copy in zip(data, copies):
        np.testing.assert_array_equal(a, copy)


def test_results_do_not_share_memory_with_inputs_or_one_another():
    problem = chain(4, 4, batch=3)
    b = problem.right_hand_side()
    H = problem.hessian
    F = H.factorize(damping=0.1)
    x = F.solve(b)
    again = F.solve(b)
    assert not np.shares_memory(x, b) and not np.shares_memory(x, again)
    kept = x.copy()
    again[:] = 0
    x[:] = 0
    np.testing.assert_array_equal(F.solve(b), kept)
    product = H @ b
    assert not np.shares_memory(product, H @ b)
    # The identity in the last layer and a single layer are where an output could be a view of its input.
    net = nh.Network([nh.Dense(2, 2, "identity", bias=False)], "mean_squared_error")
    X = np.ones((1, 2))
    out = net.forward(np.eye(2).ravel(), X)
    assert not np.shares_memory(out, X)


def test_operators_do_not_follow_later_changes_of_the_inputs():
    problem = chain(4, 4, batch=3)
    params, X, y = problem.params.copy(), problem.X.copy(), problem.y.copy()
    b = problem.right_hand_side()
    H = problem.net.hessian(params, X, y)
    F = H.factorize(damping=0.1)
    before = H @ b, F.solve(b), H.gradient.copy()
    params[:], X[:], y[:] = 3.0, -2.0, 0
    np.testing.assert_array_equal(H @ b, before[0])
    np.testing.assert_array_equal(F.solve(b), before[1])
    np.testing.assert_array_equal(H.gradient, before[2])


# ---- anything at all ------------------------------------------------------------------------------------------------

anything = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.floats(),
    st.integers(-3, 100),
    st.lists(st.floats(), max_size=4),
    hnp.arrays(
        st.sampled_from(["f8", "f4", "i4", "u1", "c16", "?", "f2", ">f8"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    ),
    st.sampled_from([(14,), (14, 2), (14, 0), (2, 14), (14, 1)]).flatmap(
        lambda shape: hnp.arrays(
            st.sampled_from(["f8", "f4", "i8", "f2", "g"]), shape, elements=st.sampled_from([0, 1, 2, 3])
        )
    ),
)
SMALL = make(
    [layer(2, 2), layer(2, 2, "sin", skip=True), layer(2, 1, "sin", bias=False)], "mean_squared_error", batch=2
)


@settings(max_examples=200)
@given(st.sampled_from(["params", "X", "y", "b", "damping"]), anything)
def test_any_value_of_any_argument(name, value):
    """Either a verified answer or one of four errors that names the argument."""
    data = {"params": SMALL.params, "X": SMALL.X, "y": SMALL.y, "b": SMALL.right_hand_side(), "damping": 0.37}
    data[name] = value
    refused = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            x = nh.solve(SMALL.net, data["params"], data["X"], data["y"], data["b"], damping=data["damping"])
        except np.linalg.LinAlgError:  # a ValueError, too
            refused = True
        except (ValueError, TypeError, MemoryError) as error:
            assert re.search(rf"\b{name}\b", str(error)) or (name in "Xy" and re.search(r"\b[Xy]\b", str(error))), error
            return
        # A plain vector of targets is taken where there is one output.
        y = np.reshape(data["y"], (-1, 1))
        t = dense_truth.differentiate(SMALL.layers, SMALL.loss, data["params"], data["X"], y)
    # A sequence may be a damping by layer or by parameter.
    damping, ridge = as_ridge("damping", data["damping"], SMALL.hessian.system.chain)
    hessian = t.hessian if ridge is None else t.hessian + np.diag(ridge)
    warned = any(issubclass(w.category, scipy.linalg.LinAlgWarning) for w in caught)
    if refused or warned:
        eigenvalues = np.linalg.eigvalsh(hessian.astype(float))
        assert np.abs(eigenvalues + damping).min() < (1e-12 if refused else 1e-8) * np.abs(eigenvalues).max()
        return
    assert np.shape(x) == np.shape(data["b"])
    error = dense_truth.backward_error(hessian, damping, x, np.asarray(data["b"], dtype=float))
    assert error <= (1e-6 if x.dtype == np.float32 else 1e-14)
