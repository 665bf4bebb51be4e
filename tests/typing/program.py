"""A user's program that calls everything public. `test_typing` checks its types and runs it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from typing_extensions import assert_type

import numba_hinv as nh

Floats = NDArray[np.floating[Any]]


@nh.register_activation("square of the program")
def square(u: float) -> tuple[float, float, float]:
    return u * u, 2.0 * u, 2.0


@nh.register_loss("half squares of the program", mean_over="samples", parameters={"offset": nh.losses.Parameter(0.0)})
def half_squares(z: Any, y: Any, gradient: Any, curvature: Any, parameters: Any) -> float:
    value = 0.0
    curvature[:] = 0.0
    for a in range(z.size):
        gradient[a] = z[a] - y[a] - parameters[0, a]
        curvature[a, a] = 1.0
        value += 0.5 * gradient[a] ** 2
    return value


def doubled(z: Any, x: Any, out: Any) -> None:
    for i in range(z.size):
        out[i] = x[0] * z[i]


def scaled(Z: Any, x: Any) -> Any:
    return x * Z


def scaled_jacobian(Z: Any, x: Any) -> Any:
    return np.broadcast_to(np.diag(x), (len(Z), 3, 3)), Z[:, :, None] * np.eye(3)


def scaled_curvature(Z: Any, x: Any, G: Any) -> Any:
    return np.zeros((3, 3)), G[:, :, None] * np.eye(3), np.zeros((len(Z), 3, 3))


def layers() -> None:
    chains: list[list[Any]] = [
        [nh.Dense(4, 3, activation="square of the program"), nh.LayerNorm(3, eps=1e-3), nh.RMSNorm(3), nh.Gated(1)][:3],
        [nh.Dense(4, 6, "identity", bias=False), nh.Gated(3, "silu"), nh.Activation(3, "tanh")],
        [nh.Conv1d(1, 2, 3, 6, padding=1), nh.AvgPool1d(2, 2, 6), nh.BatchNorm([0.0, 1.0], np.ones(2), positions=3)],
        [nh.Conv2d(1, 2, 3, (6, 6), stride=(1, 1)), nh.MaxPool2d(2, (2, 2), 4), nh.AvgPool2d(2, 2, 2)],
        [nh.MaxPool1d(2, 2, 4), nh.Custom(doubled, 4, 4, num_params=1, init=2.0)],
        [nh.External(scaled, scaled_jacobian, scaled_curvature, 3, 3, num_params=3, init=[1.0, 2.0, 3.0])],
    ]
    for chain in chains:
        net = nh.Network(chain, nh.losses.mean_squared_error())
        assert_type(net.num_params, int)
        assert_type(net.layers[0].in_features, int)
        X = np.full((2, net.layers[0].in_features), 0.5)
        assert_type(net.forward(net.init(rng=1), X), Floats)
    assert_type(nh.Dense(2, 3).weight_shape, tuple[int, int])
    assert_type(nh.activation_names() + nh.loss_names(), list[str])


def losses() -> None:
    found = [
        nh.Loss("half squares of the program", offset=1.0),
        nh.Loss("huber", reduction="sum", delta=2.0),
        nh.losses.softmax_cross_entropy(class_weights=[1.0, 2.0], label_smoothing=0.1, ignore_index=-1),
        nh.losses.binary_cross_entropy(),
        nh.losses.huber(),
        nh.losses.smooth_l1(),
        nh.losses.poisson(),
        nh.losses.gaussian_nll(),
        nh.losses.quantile(0.5),
    ]
    assert_type(found, list[nh.Loss])
    assert_type(found[0].name, str)


def solves(folder: Path) -> None:
    nh.set_compile_notice(False)
    nh.set_progress(False)
    net = nh.Network([nh.Dense(2, 3), nh.Dense(3, 1, "identity")], loss="mean_squared_error")
    X, y = np.linspace(-1.0, 1.0, 12).reshape(6, 2), np.linspace(0.0, 1.0, 6)
    params = net.init(rng=np.random.default_rng(0), gain=0.5, dtype=np.float64)
    assert_type(params, Floats)
    assert_type(net.loss(params, X, y, l2=[0.1, (0.2, 0.3)]), float)
    assert_type(net.gradient(params, X, y, sample_weight=np.ones(6)), Floats)
    assert_type(net.gradient(params, [(X[:3], y[:3]), (X[3:], y[3:])]), Floats)
    assert_type(net.loss_and_gradient(params, X, y), tuple[float, Floats])
    assert_type(net.jacobian(params, X), Floats)
    assert_type(net.input_hessian(params, X, y), Floats)
    head, rest = net.freeze(params, slice(-1))
    assert_type(head.unfreeze(rest), tuple[nh.Network, Floats])
    assert_type(net.frozen_params, Floats)
    assert_type(net.unpack(params), list[Any])

    H = net.hessian(params, X, y, curvature="ggn", l2=0.1, progress=False)
    assert_type(H, nh.Hessian)
    assert_type(H.loss, float | None)
    assert_type(H.gradient, Floats | None)
    assert_type(H.network, nh.Network | None)
    assert_type(H @ params, Floats)
    assert_type(H.matvec(params), Floats)
    assert_type(H.diagonal(), Floats)
    assert_type(H.trace() + H.norm(), float)
    assert_type(H.block(0, 1), Floats)
    assert_type(H.todense(num_threads=1), Floats)
    assert_type(H.count_below(0.2), int)
    assert_type(H.count_below([0.2, 0.3]), NDArray[np.integer[Any]])
    assert_type(nh.Hessian.combine([H, H], [0.5, 0.5]), nh.Hessian)
    assert_type(H.blocks(0), nh.LayerBlocks)
    blocks = nh.Hessian.from_blocks([H.blocks(0), H.blocks(1)], terminal=H.terminal)
    assert_type(blocks.num_layers + blocks.nbytes_to_factorize(), int)

    F = H.factorize(damping=1e-2, factor_dtype="float64", method="layers")
    assert_type(F, nh.Factorization)
    x, info = F.solve(params, full_output=True)
    assert_type(x, Floats)
    assert_type(info, nh.SolveInfo)
    assert_type(F.solve(np.ones((params.size, 2))), Floats)
    assert_type(F @ params, Floats)
    assert_type(F.inertia, nh.Inertia)
    assert_type(F.inertia.negative, int)
    assert_type(F.slogdet(), tuple[float, float])
    assert_type(F.condition(), float)
    assert_type(F.sample(3, rng=0), Floats)
    assert_type(F.diagonal(), Floats)
    assert_type(F.blocks(0), Floats)
    assert_type(F.todense(), Floats)
    assert_type(F.damping, float | Floats)
    assert_type(F.hessian, nh.Hessian)
    assert_type(F.method, str)
    assert_type(F.nbytes + F.num_perturbed, int)
    assert_type(H.factorize_many([0.1, 0.2]), list[nh.Factorization])
    F.save(folder / "factors.npz")
    assert_type(nh.load(folder / "factors.npz"), nh.Factorization)
    assert_type(nh.solve(net, params, X, y, params, damping=10.0), Floats)

    assert_type(nh.eigenvalues(H, 2, which="highest"), NDArray[np.float64])
    values, vectors = nh.eigenvalues(H, 1, near=0.1, return_eigenvectors=True)
    assert_type(vectors, NDArray[np.float64])
    assert_type(nh.eigenvalues_in(H, 0.11, np.inf), NDArray[np.float64])
    density = nh.spectral_density(H, [-1.0, 0.05, 1.0])
    assert_type(density, nh.SpectralDensity)
    assert_type(density.density, NDArray[np.float64])
    step = nh.trust_region_step(H, radius=0.1)
    assert_type(step, nh.TrustRegionStep)
    assert_type(step.hard_case, bool)


def applications() -> None:
    net = nh.Network([nh.Dense(1, 1, "identity")], "mean_squared_error")
    x = np.array([[-1.0], [0.0], [1.0], [2.0]])
    y = 2.0 * x[:, 0] + np.array([0.1, -0.1, 0.1, -0.1])
    fit = nh.minimize(net, net.init(), x, y, l2=0.1, method="trust-region", max_iterations=20, rng=1)
    params: NDArray[np.float64] = fit.x
    options: dict[str, Any] = {"jac": True, "hess": net.hessian, "method": nh.trust_region}
    other = scipy.optimize.minimize(net.loss_and_gradient, params, (x, y), **options)
    laplace = nh.Laplace(net, other.x, x, y, prior_precision=0.1, curvature="ggn", noise_variance=0.01)
    assert_type(laplace.fit_prior(noise=True, per_layer=False).log_evidence(), float)
    assert_type(laplace.predict(x), tuple[Floats, Floats])
    assert_type(laplace.sample(2, rng=3), Floats)
    assert_type(laplace.variances(), Floats)
    assert_type(laplace.decrement(), float)
    assert_type(laplace.factorization, nh.Factorization)
    found = nh.influence(net, params, x, y, x[:2], y[:2], damping=0.0, l2=0.1)
    assert_type(found, nh.Influence)
    assert_type(found.values, Floats)
    left_out = nh.leave_one_out(net, params, x, y, l2=0.1, groups=2)
    assert_type(left_out, nh.LeaveOneOut)
    assert_type(left_out.score, float)
    slope = nh.hypergradient(net, params, (x, y), (x, y), with_respect_to=("l2", "y"), l2=0.1)
    assert_type(slope, nh.Hypergradient)
    assert_type(slope.adjoint, NDArray[Any])


def embedded() -> None:
    system = nh.embedded.chain(states=[2, 2], parameters=[1, 1], num_vectors=1, dtype=np.float64)
    assert_type(system, nh.embedded.System)
    for l in range(2):
        Dx, Dz, Dxx, Dzx, Dzz = nh.embedded.blocks(system, l)
        assert_type(Dx, NDArray[Any])
        Dx[:], Dxx[:], Dzz[:] = 1.0, 1.0, np.eye(2)[:, : Dz.shape[1]][: Dzz.shape[0]]
    nh.embedded.terminal(system)[:] = np.eye(2)
    code, negative, perturbed = nh.embedded.factorize(system, 0.1, 0.0)
    assert_type(negative, int)
    b, x = np.ones((1, 2)), np.empty((1, 2))
    nh.embedded.solve(system, b, x, 0)
    nh.embedded.factorize_and_solve(system, 0.1, 0.0, b, x, 1)
    nh.embedded.multiply(system, x, b)
    assert_type(nh.embedded.nbytes(nh.embedded.from_hessian(_chain())), int)
    nh.embedded.typed_list([system])
    assert code == nh.embedded.OK


def _chain() -> nh.Hessian:
    one = np.eye(2)
    return nh.Hessian.from_blocks([nh.LayerBlocks(one, one, one, 0.0 * one, one)] * 2, one)


def converters() -> None:
    """For those who have the libraries; elsewhere they say what is missing."""
    for job in (_from_torch, _from_jax, _from_sklearn):
        try:
            job()
        except ImportError:
            continue


def _from_torch() -> None:
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(2, 1))
    net, params = nh.from_torch(module, "mean_squared_error", input_shape=2)
    assert_type(net, nh.Network)
    assert_type(params, Floats)


def _from_jax() -> None:
    import equinox
    import jax
    from flax import linen

    module = equinox.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    net, params, unflatten = nh.from_equinox(module, "mean_squared_error")
    assert_type(params, Floats)
    unflatten(params)
    dense = linen.Dense(3)
    nh.from_flax(dense, "mean_squared_error", dense.init(jax.random.key(0), np.ones((1, 2))))


def _from_sklearn() -> None:
    from sklearn.neural_network import MLPRegressor

    X = np.linspace(0.0, 1.0, 20).reshape(10, 2)
    net, params = nh.from_sklearn(MLPRegressor(hidden_layer_sizes=(3,), max_iter=2000, tol=1e-2).fit(X, X[:, 0]))
    assert net.num_params == params.size


def over_a_cluster(client: Any) -> None:
    """With a client of Dask, which this program has not got: `tests/distributed` has one."""
    H = nh.distributed.hessian(_chain(), client, num_segments=2)
    assert_type(H, nh.distributed.DistributedHessian)
    F = H.factorize(0.1)
    assert_type(F, nh.distributed.DistributedFactorization)
    assert_type(F.inertia, nh.Inertia)
    assert_type(F.slogdet(), tuple[float, float])
    nh.distributed.factorize(_chain(), 0.1, client)


def main() -> None:
    assert_type(nh.__version__, str)
    layers()
    losses()
    with tempfile.TemporaryDirectory() as folder:
        solves(Path(folder))
    applications()
    embedded()
    converters()


if __name__ == "__main__":
    main()
