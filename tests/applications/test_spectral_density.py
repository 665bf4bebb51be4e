"""`nh.spectral_density`: the histogram of dense eigenvalues, whatever the edges."""

import numpy as np
import pytest
from problems import GOLDEN, chain, golden

import numba_hinv as nh


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files(name):
    problem, arrays = golden(name)
    exact, norm = arrays["eigenvalues"], problem.norm
    decades = norm * np.logspace(-8, 0.1, 12)
    for edges in (np.linspace(-0.7, 0.913, 24) * norm, np.concatenate([-decades[::-1], decades])):
        spectrum = nh.spectral_density(problem.hessian, edges)
        np.testing.assert_array_equal(spectrum.edges, edges)
        below = np.array([(exact < t).sum() for t in edges])
        assert np.abs(exact[:, None] - edges).min() > 1e-13 * norm
        np.testing.assert_array_equal(spectrum.counts, np.diff(below))
        assert (spectrum.below, spectrum.above) == (below[0], problem.size - below[-1])
        np.testing.assert_allclose(spectrum.density @ np.diff(edges), spectrum.counts.sum() / problem.size)


def test_threads_and_the_grid():
    """The same on any number of threads; the caller's grid is kept apart."""
    H, grid = chain(8, 6, batch=2).hessian, np.linspace(-1.0, 1.2, 10)
    expected = nh.spectral_density(H, grid, num_threads=1)
    assert not np.shares_memory(expected.edges, grid)
    for num_threads in (3, None):
        for ours, theirs in zip(nh.spectral_density(H, list(grid), num_threads), expected):
            np.testing.assert_array_equal(ours, theirs)


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    spectrum = nh.spectral_density(chain(8, 6, batch=2).hessian, np.linspace(-1.0, 1.2, 10))
    ax = spectrum.plot()
    (steps,) = ax.patches
    np.testing.assert_array_equal(steps.get_data().values, spectrum.counts)
    np.testing.assert_array_equal(steps.get_data().edges, spectrum.edges)
    assert spectrum.plot(ax, color="red") is ax and len(ax.patches) == 2
    ax.figure.canvas.draw()
    plt.close("all")


@pytest.mark.parametrize("num_edges", [3, 7, 21])
def test_symmetric_grids_of_a_net_with_eigenvalues_of_0(num_edges):
    """A softmax net has eigenvalues of 0, whatever its weights: half-open bins, as those of numpy.histogram."""
    problem = chain(8, 6, batch=2)
    H, edges = problem.hessian, np.linspace(-1.0, 1.0, num_edges)
    values = np.linalg.eigvalsh(problem.truth.hessian.astype(float))
    values[np.abs(values) < 1e-13] = 0.0
    spectrum = nh.spectral_density(H, edges)
    np.testing.assert_array_equal(spectrum.counts, np.histogram(values, edges)[0])
    assert spectrum.below == (values < -1.0).sum() and spectrum.above == (values > 1.0).sum()
    middle = num_edges // 2
    assert spectrum.on_edges[middle] == (values == 0.0).sum() > 0 and 0.0 < spectrum.widths[middle] < 1e-9 * H.norm()
    others = np.arange(num_edges) != middle
    assert not spectrum.on_edges[others].any() and not spectrum.widths[others].any()


def of_matrix(A):
    """A as the Hessian of one layer."""
    p = len(A)
    return nh.Hessian.from_blocks([nh.LayerBlocks(np.ones((1, p)), np.ones((1, 0)), A, np.ones((p, 0)), np.eye(0))])


def test_edges_on_eigenvalues():
    """Known ones with multiplicities, on inner and outer edges, and edges that cannot be told from each other."""
    values = np.array([-2.0, -1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 3.0])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((10, 10)))[0]
    matrix = rotation * values @ rotation.T
    H = of_matrix(0.5 * (matrix + matrix.T))
    for edges in ([-2.0, -1.0, 0.0, 2.0], [-1.0, 0.0, 3.0], [-3.0, 1.0, 2.0]):
        spectrum = nh.spectral_density(H, edges)
        np.testing.assert_array_equal(spectrum.counts, np.histogram(values, edges)[0])
        assert spectrum.below == (values < edges[0]).sum() and spectrum.above == (values > edges[-1]).sum()
        np.testing.assert_array_equal(spectrum.on_edges, [(values == edge).sum() for edge in edges])
    spectrum = nh.spectral_density(H, [-1.5, -1e-15, 0.0, 1e-15, 1.5])
    assert spectrum.counts.min() == 0 and spectrum.counts.sum() == 6 and (spectrum.on_edges[1:4] == 3).all()
    # H = 0.
    np.testing.assert_array_equal(nh.spectral_density(of_matrix(np.zeros((3, 3))), [-1.0, 0.0, 1.0]).counts, [0, 3])


@pytest.mark.parametrize(
    "grid, error",
    [
        ([0.5], ValueError),
        ([], ValueError),
        ([0.5, 0.4], ValueError),
        ([0.5, 0.5], ValueError),
        ([0.5, np.inf], ValueError),
        ([[0.5, 0.6]], ValueError),
        (0.5, ValueError),
        ("fine", TypeError),
    ],
)
def test_bad_grids(grid, error):
    with pytest.raises(error, match="^grid: expected"):
        nh.spectral_density(chain(3, 2).hessian, grid)


def test_other_bad_arguments():
    with pytest.raises(TypeError, match="^H: expected a Hessian"):
        nh.spectral_density(np.eye(3), [0.0, 1.0])
    with pytest.raises(ValueError, match="^num_threads: "):
        nh.spectral_density(chain(3, 2).hessian, [0.5, 1.0], num_threads=0)
    with pytest.raises(TypeError, match="^progress: "):
        nh.spectral_density(chain(3, 2).hessian, [0.5, 1.0], progress=1)
