"""Chains over a Dask cluster of two processes: against dense algebra and one machine; workers that die; bytes."""

import os
import signal

import numpy as np
import pytest

import numba_hinv as nh

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

from numba_hinv.distributed import cluster as clusters  # noqa: E402
from numba_hinv.distributed import elimination  # noqa: E402
from numba_hinv.distributed.segment import Segment, bytes_of_blocks  # noqa: E402

_LIMIT = 3 << 30


@pytest.fixture(scope="module")
def client():
    """A client of two workers, processes of their own, that are started again where they die."""
    options = {"processes": True, "dashboard_address": None, "memory_limit": _LIMIT}
    # Tasks stay where the segments are, so that bytes can be counted, and those that kill a worker fail soon.
    with dask.config.set({"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.work-stealing": False}):
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster:
            with distributed.Client(cluster) as client:
                yield client


@pytest.fixture(autouse=True)
def both_workers(client):
    """Have two workers at the start of each test, whatever the last one has done."""
    client.wait_for_workers(2)


def layers(seed, states, params):
    """`LayerBlocks` from states[0] to states[-1] states; a chain that neither explodes nor vanishes."""
    rng, found = np.random.default_rng(seed), []
    for a_in, a, p in zip(states[:-1], states[1:], params):
        Dxx, Dzz = rng.standard_normal((p, p)), rng.standard_normal((a_in, a_in))
        Dz = rng.standard_normal((a, a_in)) / np.sqrt(a + a_in)
        Dzx = rng.standard_normal((p, a_in))
        found.append(nh.LayerBlocks(rng.standard_normal((a, p)), Dz, Dxx + Dxx.T, Dzx, Dzz + Dzz.T))
    return found


def stages(seed, num_layers, a=8, p=8, middle=None):
    """Arrays of a positive definite chain; with a ``middle``, layers of that width between the first and the last."""
    rng = np.random.default_rng(seed)
    if middle is not None:
        return layers(seed, [a, *[middle] * (num_layers - 1), a], [p] * num_layers)
    eye = np.broadcast_to(np.eye(p), (num_layers, p, p))
    return {
        "Dx": rng.standard_normal((num_layers, a, p)) / a,
        "Dz": 0.5 * rng.standard_normal((num_layers, a, a)) / np.sqrt(a),
        "Dxx": 2.0 * eye,
        "Dzx": np.zeros((num_layers, p, a)),
        "Dzz": np.broadcast_to(np.eye(a), (num_layers, a, a)),
    }


def whole(pieces, terminal=None):
    """The chain of these pieces on this machine."""
    blocks = [block for function, *arguments in pieces for block in function(*arguments)]
    return nh.Hessian.from_blocks(blocks, terminal)


# Three segments with layers and seams of many widths, one of them a single layer, and one layer without parameters.
PIECES = [(layers, 0, [0, 3, 5, 2], [2, 4, 3]), (layers, 1, [2, 4], [3]), (layers, 2, [4, 1, 3, 3, 2], [2, 0, 5, 1])]
TERMINAL = np.array([[1.0, 0.3], [0.3, -2.0]])


@pytest.mark.parametrize("damping", [0.0, -0.7])
def test_against_dense_algebra(client, damping):
    H = nh.distributed.hessian(PIECES, client, TERMINAL)
    dense = whole(PIECES, TERMINAL).todense()
    A, (P, _) = dense + damping * np.eye(len(dense)), H.shape
    rng = np.random.default_rng(3)
    b = rng.standard_normal((P, 3))
    np.testing.assert_allclose(H @ b, dense @ b, rtol=1e-12, atol=1e-12)
    F = H.factorize(damping)
    eigenvalues = np.linalg.eigvalsh(A)
    assert F.inertia == (int((eigenvalues < 0).sum()), 0, int((eigenvalues > 0).sum()), True)
    sign, logabsdet = F.slogdet()
    assert sign == np.linalg.slogdet(A)[0]
    np.testing.assert_allclose(logabsdet, np.log(np.abs(eigenvalues)).sum(), rtol=1e-11)
    x, info = F.solve(b, full_output=True)
    size = np.linalg.norm(dense, 2) * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
    assert (np.linalg.norm(A @ x - b, axis=0) < 1e-14 * size).all() and (info.backward_error < 1e-14).all()
    errors = np.linalg.norm(x - np.linalg.solve(A, b), axis=0) / np.linalg.norm(x, axis=0)
    assert (errors <= info.error_bound).all() and (info.error_bound < 1e-10).all()
    one = F.solve(b[:, 0])
    assert one.shape == (P,)
    # A block of one column is added up in another order than one of three.
    np.testing.assert_allclose(one, x[:, 0], rtol=1e-9, atol=1e-12 * np.abs(x).max())


def test_vectors_by_segment(client):
    """Futures in, futures out; chunks of dask arrays likewise. No machine sees all of them."""
    array = pytest.importorskip("dask.array")
    F = nh.distributed.factorize(PIECES, 0.4, client, TERMINAL)
    b = np.random.default_rng(4).standard_normal((F.shape[0], 2))
    x = F.solve(b)
    parts = np.split(b, np.cumsum(F.hessian.sizes)[:-1])
    given = [client.submit(np.copy, part) for part in parts]
    found = F.solve(given)
    assert all(isinstance(part, distributed.Future) for part in found)
    np.testing.assert_array_equal(np.concatenate(client.gather(found)), x)
    np.testing.assert_array_equal(np.concatenate(client.gather(F.solve(parts))), x)
    chunks = F.solve(array.from_array(b, chunks=(7, 1)))
    assert chunks.chunks == (F.hessian.sizes, (2,))
    np.testing.assert_array_equal(client.compute(chunks).result(), x)
    np.testing.assert_array_equal(
        np.concatenate(client.gather(F.solve([part[:, 0] for part in parts]))), F.solve(b[:, 0])
    )


def test_a_net_that_is_cut(client):
    """Structured layers, an L2 term by layer, and factors in float32 that refinement makes good."""
    layers = [
        nh.Dense(5, 4, "tanh"),
        *[nh.Dense(4, 4, "tanh", skip=True) for _ in range(9)],
        nh.Dense(4, 3, "identity"),
    ]
    net = nh.Network(layers, "softmax_cross_entropy")
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((2, 5)), np.array([0, 2])
    for l2 in (0.01, [0.01 * (1 + l) for l in range(11)]):
        here = net.hessian(net.init(0), X, y, l2=l2)
        dense = here.todense()
        H = nh.distributed.hessian(here, client, num_segments=3)
        assert len(H.sizes) == 3 and H.num_layers == 11
        b = rng.standard_normal((H.shape[0], 2))
        np.testing.assert_allclose(H @ b, dense @ b, rtol=1e-11, atol=1e-12 * np.abs(dense).max())
        for F, G in zip(H.factorize_many([0.05, -0.3]), (here.factorize(0.05), here.factorize(-0.3))):
            assert F.inertia.negative == G.inertia.negative and F.slogdet()[0] == G.slogdet()[0]
            np.testing.assert_allclose(F.slogdet()[1], G.slogdet()[1], rtol=1e-10)
        for dtype in ("float64", "float32"):
            x, A = H.factorize(0.05, factor_dtype=dtype).solve(b), dense + 0.05 * np.eye(len(dense))
            size = np.linalg.norm(dense, 2) * np.linalg.norm(x, axis=0) + np.linalg.norm(b, axis=0)
            assert (np.linalg.norm(A @ x - b, axis=0) < 1e-14 * size).all()
    eigenvalues = np.linalg.eigvalsh(dense)
    middle = 0.5 * (eigenvalues[3] + eigenvalues[4])
    assert H.count_below(middle) == (eigenvalues < middle).sum()


# ---- workers that die ----------------------------------------------------------------------------------------------


def kill_after(monkeypatch, client, name):
    """Have the worker with the first segment killed once a task of this name has been sent to each segment."""
    submit, sent, killed = clusters.Cluster.submit_to, [], []

    def submit_to(self, worker, function, *arguments):
        future = submit(self, worker, function, *arguments)
        sent.extend([worker] if function.__name__ == name else [])
        if len(sent) == self.count and not killed:
            pids = client.run(os.getpid)
            killed.append(pids[self.places[0]])
            os.kill(killed[0], signal.SIGKILL)
        return future

    monkeypatch.setattr(clusters.Cluster, "submit_to", submit_to)
    return killed


@pytest.mark.parametrize("name", ["_eliminate", "forth"])
def test_a_worker_dies(client, monkeypatch, name):
    """In the middle of factorize and of a solve: what it had is made again, and the answer is the same."""
    pieces = [(stages, s, 2000) for s in range(2)]
    b = np.random.default_rng(5).standard_normal((2 * 2000 * 8, 2))
    F = nh.distributed.factorize(pieces, 0.1, client)
    expected, slogdet = F.solve(b), F.slogdet()
    killed = kill_after(monkeypatch, client, name)
    if name == "_eliminate":
        F = nh.distributed.factorize(pieces, 0.1, client)
    x = F.solve(b)
    assert len(killed) == 1
    np.testing.assert_array_equal(x, expected)
    assert F.slogdet() == slogdet


def test_scattered_data_are_lost(client):
    """What only a dead worker had cannot be made again: the error says what."""
    H = nh.distributed.hessian([(stages, s, 50) for s in range(2)], client)
    F = H.factorize(0.1)
    parts = [np.ones(size) for size in H.sizes]
    given = [client.scatter(part, workers=[H.workers[0]], hash=False) for part in parts]
    os.kill(client.run(os.getpid)[H.workers[0]], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a part of b was lost"):
        F.solve(given)


def test_a_piece_that_kills_its_workers(client):
    with pytest.raises(RuntimeError, match="a piece was lost: its task 'build.*died"):
        nh.distributed.hessian([(stages, 0, 5), (kill_self, 5)], client)


def kill_self(num_layers):
    os.kill(os.getpid(), signal.SIGKILL)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def moved(client):
    """Bytes that workers have sent each other."""
    return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


def test_bytes_that_move_do_not_depend_on_inner_widths(client):
    """Only seams move: of widths that differ by eight, the same bytes, which are few."""
    found, a, k = [], 4, 3
    for middle in (5, 40):
        H = nh.distributed.hessian([(stages, s, 12, a, middle, middle) for s in range(2)], client)
        places = zip(H.sizes, H.workers)
        b = [client.submit(np.ones, (size, k), workers=[where], pure=False) for size, where in places]
        before = moved(client)
        F = H.factorize(0.3)
        between = moved(client)
        distributed.wait(F.solve(b))
        assert F.inertia.exact
        found.append((between - before, moved(client) - between))
    # J, C and P, Phi, Psi of a segment, and its ends for the vector of each product, up to four for the norm: as many
    # more or less as that takes make hundreds of bytes. One part of b has 36 times 40 numbers.
    assert np.abs(np.subtract(*found)).max() < 1000
    assert 0 < np.max(found) < 36 * 40 * 8


def resident():
    import psutil

    return psutil.Process().memory_info().rss


def test_memory_is_as_planned(client):
    """What a worker has more in memory after factorize is what the plan says is kept, within 10 %."""
    num_layers = 48_000
    H = nh.distributed.hessian([(stages, s, num_layers) for s in range(2)], client)
    # What is loaded, or kept by the allocator, at the first call.
    H.factorize(0.2).solve(np.zeros(H.shape[0]))
    kept, peak = H.memory()
    before = client.run(resident)
    F = H.factorize(0.1)
    after = client.run(resident)
    assert F.inertia.negative == 0
    for worker in H.workers:
        assert kept[worker] > 5e7 and peak[worker] >= kept[worker]
        assert abs(after[worker] - before[worker] - kept[worker]) < 0.1 * kept[worker]


def test_memory_is_asked_for_first(client):
    """A worker that has too little is named, with what is needed, before anything is allocated."""
    H = nh.distributed.hessian([(stages, s, 200) for s in range(2)], client)
    with pytest.raises(MemoryError, match=rf"worker {H.workers[0]}, which has [\d,]+ of its limit of {_LIMIT:,} left"):
        H.cluster.require([_LIMIT, 0], "a test", "do nothing")
    with pytest.raises(MemoryError, match="the derivative blocks of 2000001 layers would need .* on worker tcp"):
        nh.distributed.hessian([(kill_self, 0)] * 2, client, shapes=[(2_000_000, 8, 8), (1, 8, 8)])
    net = nh.Network([nh.Dense(80, 80, skip=True) for _ in range(24)], "mean_squared_error")
    X = np.random.default_rng(0).standard_normal((48, 80))
    here = net.hessian(net.init(0), X, X)
    H = nh.distributed.hessian(here, client)
    kept, peak = H.memory()
    assert max(peak.values()) > _LIMIT
    before = client.run(resident)
    with pytest.raises(MemoryError, match=r"a factorization of 24 layers would need [\d,]+ bytes .* on worker tcp"):
        H.factorize(0.1)
    after = client.run(resident)
    assert all(after[worker] - before[worker] < 1 << 26 for worker in H.workers)


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_bad_arguments(client):
    with pytest.raises(TypeError, match="client: expected a distributed.Client, got str"):
        nh.distributed.hessian(PIECES, "tcp://localhost")
    with pytest.raises(TypeError, match="pieces: expected a function.*piece 1, got int"):
        nh.distributed.hessian([PIECES[0], 3], client)
    with pytest.raises(
        ValueError, match="first layer of piece 1 to take the 2 states that piece 0 leaves, got a Dz for 4"
    ):
        nh.distributed.hessian([PIECES[0], PIECES[2]], client)
    with pytest.raises(ValueError, match="pieces: piece 0: .*Dxx"):
        nh.distributed.hessian([(unsymmetric, 3)], client)
    F = nh.distributed.factorize(PIECES, 0.4, client)
    P = F.shape[0]
    with pytest.raises(ValueError, match=rf"b: expected shape \({P},\) or \({P}, k\)"):
        F.solve(np.ones(P + 1))
    with pytest.raises(ValueError, match="b: expected a part of shape .* for segment 1"):
        F.solve([np.ones(size + (s == 1)) for s, size in enumerate(F.hessian.sizes)])
    with pytest.raises(ValueError, match="b: expected finite numbers, got nan"):
        F.solve(np.full(P, np.nan))
    singular = [(stages_without_curvature, 4), (stages_without_curvature, 4)]
    with pytest.raises(np.linalg.LinAlgError, match="damping"):
        nh.distributed.factorize(singular, 0.0, client).solve(np.ones(8))


def unsymmetric(num_layers):
    return [nh.LayerBlocks(np.ones((1, 2)), np.ones((1, 1)), np.triu(np.ones((2, 2))), np.ones((2, 1)), np.eye(1))] * 3


def stages_without_curvature(num_layers):
    one, zero = np.ones((num_layers, 1, 1)), np.zeros((num_layers, 1, 1))
    return {"Dx": one, "Dz": one, "Dxx": zero, "Dzx": zero, "Dzz": zero}


def test_sizes_in_plan_are_those_of_the_factors():
    """Byte for byte, without a cluster."""
    segment = Segment.of_blocks(stages(0, 100), None, True, True)
    kept, _ = elimination.num_bytes(segment, np.dtype(np.float64))
    task = elimination.Task(0.1, np.dtype(np.float64), 10.0, 0)
    factors = elimination.eliminate(segment, task, np.zeros(101))
    assert factors.__sizeof__() == kept
    # The exit, its states and its place in the table, are beside the layers.
    assert 0 <= segment.num_bytes - bytes_of_blocks(100, 8, 8)[0] < 2000
