"""Data frames and series as arguments: the numbers in them, and the names of columns in errors."""

import numpy as np
import pytest

import numba_hinv as nh
from numba_hinv.runtime import frames


class Series:
    """What pandas and polars have in common, for where neither is installed."""

    def __init__(self, values, name=None):
        self.values, self.name = np.asarray(values), name
        self.shape = self.values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def to_numpy(self):
        return self.values


class Frame:
    def __init__(self, columns):
        self.data, self.columns = columns, list(columns)
        self.shape = len(next(iter(columns.values()))), len(columns)

    def __getitem__(self, name):
        return Series(self.data[name], name)

    def to_numpy(self):
        return np.column_stack(list(self.data.values()))


class Missing:
    """As pandas.NA: comparisons are as unknown as it is."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise TypeError


def test_numbers_are_read():
    mixed = Frame({"a": [1, 2], "b": np.array([0.5, 1.5]), "c": np.array([True, False], object)})
    found = frames.plain("X", mixed)
    assert found.dtype == np.float64 and found.tolist() == [[1.0, 0.5, 1.0], [2.0, 1.5, 0.0]]
    assert frames.plain("X", Frame({"a": np.ones(2, np.float32)})).dtype == np.float32
    assert frames.plain("y", Series(np.array([1, 0], object))).dtype == np.int64


def test_errors_name_the_column():
    for column, error, message in [
        (np.array(["red", "blue"], object), TypeError, "X: expected numbers in column 'b', got 'red' at row 0; encode"),
        (np.array([1, None], object), ValueError, "X: expected numbers in column 'b' without gaps, .* at row 1"),
        (np.array([1, Missing()], object), ValueError, "X: expected numbers in column 'b' without gaps, .* at row 1"),
        (np.array([np.nan, 1.0]), ValueError, "X: expected numbers in column 'b' without gaps, .* at row 0"),
        (np.array(["2020-01-01"] * 2, "M8[D]"), TypeError, "X: expected numbers in column 'b', got dtype datetime64"),
    ]:
        with pytest.raises(error, match=message):
            frames.plain("X", Frame({"a": [1, 2], "b": column}))


def test_networks_take_them():
    net = nh.Network([nh.Dense(2, 3), nh.Dense(3, 2, "identity")], "softmax_cross_entropy")
    params, X, y = net.init(0), np.random.default_rng(0).standard_normal((4, 2)), np.array([0, 1, 1, 0])
    frame, series = Frame({"a": X[:, 0], "b": X[:, 1].astype(object)}), Series(y.astype(object), "label")
    assert net.loss(params, frame, series) == net.loss(params, X, y)
    H, expected = net.hessian(params, frame, series), net.hessian(params, X, y)
    assert np.array_equal(H.todense(), expected.todense())
    trained = nh.minimize(net, params, frame, series, l2=0.1)
    assert np.array_equal(trained.x, nh.minimize(net, params, X, y, l2=0.1).x)
    with pytest.raises(ValueError, match="X: expected numbers in column 'b' without gaps"):
        net.loss(params, Frame({"a": X[:, 0], "b": np.full(4, np.nan)}), series)


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([1, 2, 3], "Int64"), "b": pandas.array([0.5, 1.0, None], "Float64")})
    with pytest.raises(ValueError, match="X: expected numbers in column 'b' .* a missing value at row 2"):
        frames.plain("X", frame)
    assert frames.plain("X", frame[:2]).tolist() == [[1.0, 0.5], [2.0, 1.0]]
    flags = pandas.Series(pandas.array([True, False], "boolean"))
    assert frames.plain("y", flags).tolist() == [1, 0]
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    data = pandas.DataFrame({"age": pandas.array(rng.integers(20, 60, 30), "Int64"), "size": rng.standard_normal(30)})
    labels = pandas.Series(np.where(data["age"] > 40, "old", "young"), dtype="string")
    model = nh.NetClassifier((), alpha=0.1).fit(data, labels)
    assert list(model.feature_names_in_) == ["age", "size"] and model.score(data, labels) > 0.9
    with pytest.raises(ValueError, match="feature names"):
        model.predict(data.rename(columns={"age": "years"}))
    with pytest.raises(ValueError, match="X: expected numbers in column 'age' .* a missing value at row 0"):
        model.predict(data.assign(age=data["age"].mask(data.index == 0)))
    with pytest.raises(ValueError, match="y: .*missing value at row 3"):
        nh.NetClassifier((), alpha=0.1).fit(data, labels.mask(labels.index == 3))
