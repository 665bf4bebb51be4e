"""``rng=`` wherever something is drawn, and the names and the order that it had before."""

import warnings

import numpy as np
import pytest
from problems import chain

import numba_hinv as nh

NET = nh.Network([nh.Dense(2, 3), nh.Dense(3, 1, "identity")], "mean_squared_error")
X, Y = np.linspace(-1.0, 1.0, 12).reshape(6, 2), np.linspace(0.0, 1.0, 6)


def trained(**options):
    options = {"batch_size": 2, "max_iterations": 4, **options}
    return nh.minimize(NET, NET.init(rng=3), X, Y, **options).x


def sampled(**options):
    return NET.hessian(NET.init(), X, Y, curvature="ggn").factorize(0.1).sample(2, **options)


def posterior(**options):
    laplace = nh.Laplace(NET, NET.init(), X, Y, curvature="ggn")
    return laplace.sample(2, **options)


@pytest.mark.parametrize("draw", [lambda **options: NET.init(**options), trained, sampled, posterior])
def test_seeds_generators_and_none(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, same, other = draw(rng=5), draw(rng=np.random.default_rng(5)), draw(rng=6)
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)
        assert not np.array_equal(draw(rng=None), draw(rng=None))


@pytest.mark.parametrize("draw", [lambda **options: NET.init(**options), trained])
def test_seed_is_deprecated(draw):
    with pytest.warns(DeprecationWarning, match="^seed: expected rng") as warned:
        found = draw(seed=5)
    assert [one.filename for one in warned] == [__file__]
    np.testing.assert_array_equal(found, draw(rng=5))
    with pytest.raises(TypeError, match="^seed: expected rng alone"):
        draw(seed=5, rng=5)


def test_a_seed_beside_rng_without_its_name():
    with pytest.raises(TypeError, match="^seed: expected rng alone"):
        NET.init(5, seed=5)
    np.testing.assert_array_equal(NET.init(5), NET.init(rng=5))


def test_samples_in_the_former_order():
    F = chain(3, 3, batch=2).hessian.factorize(100.0)
    for arguments, expected in (
        ((5, 3), F.sample(3, rng=5)),
        ((np.random.default_rng(5), 3), F.sample(3, rng=5)),
        ((np.random.default_rng(5),), F.sample(rng=5)),
    ):
        with pytest.warns(DeprecationWarning, match="^rng: expected it by name"):
            np.testing.assert_array_equal(F.sample(*arguments), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert F.sample(3).shape == (3, F.shape[0])


@pytest.mark.parametrize("draw", [lambda **options: NET.init(**options), trained, sampled, posterior])
def test_bad_generators(draw):
    for value in ("seed", -1, 0.5, object()):
        with pytest.raises((TypeError, ValueError), match="^rng: expected None, a seed or a numpy.random.Generator"):
            draw(rng=value)
