"""Chains that one process is not allowed to hold, on a cluster of processes of this machine.

    python asv_bench/cluster.py long [--layers 1000000] [--pieces 8] [--limit 7]
    python asv_bench/cluster.py rates [--width 64] [--layers 200]
    python asv_bench/cluster.py wide [--layers 200] [--width 128] [--samples 4] [--limit 1.5]

``long``: stages with 8 states and 8 parameters, built on two workers. ``wide``: a net of which the factors exceed what
one worker may have. ``rates``: what the parts of a segment of dense layers, with B = 1, take on one core, and a seam;
without a cluster. Needs dask and distributed (the extra ``distributed``). Limits are in GiB a worker.
"""

import argparse
import time

import dask
import numpy as np
from distributed import Client, LocalCluster

import numba_hinv as nh
from numba_hinv.distributed import elimination, seams, segment


def stages(seed, num_layers, a=8, p=8):
    rng = np.random.default_rng(seed)
    return {
        "Dx": rng.standard_normal((num_layers, a, p)),
        "Dz": 0.9 / np.sqrt(a) * rng.standard_normal((num_layers, a, a)),
        "Dxx": np.broadcast_to(np.eye(p), (num_layers, p, p)),
        "Dzx": np.zeros((num_layers, p, a)),
        "Dzz": np.broadcast_to(np.eye(a), (num_layers, a, a)),
    }


def entries(size, seed):
    return np.random.default_rng(seed).standard_normal(size)


def moved(client):
    return sum(client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total).values())


def resident():
    import psutil

    return psutil.Process().memory_info().rss


def largest():
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def clocked(what, function, *arguments, **options):
    begin = time.perf_counter()
    found = function(*arguments, **options)
    print(f"{what}: {time.perf_counter() - begin:.2f} s", flush=True)
    return found


def report(client, H, damping):
    """Factorize, count, solve: seconds, backward error, bytes moved and memory."""
    print(H)
    clocked("norm of H, and what the first product needs", H.norm)
    kept, peak = H.memory()
    before, sent = client.run(resident), moved(client)
    F = clocked("factorize", H.factorize, damping)
    after = client.run(resident)
    for worker in dict.fromkeys(H.workers):
        more, planned, most = (n / 1e9 for n in (after[worker] - before[worker], kept[worker], peak[worker]))
        print(f"  {worker}: {more:.3f} GB more in memory, planned {planned:.3f}, peak {most:.3f}")
    print(f"  moved between workers: {moved(client) - sent:,} bytes")
    print(clocked("inertia", lambda: F.inertia), F.slogdet())
    sent = moved(client)
    b = [
        client.submit(entries, size, s, workers=[where], pure=False)
        for s, (size, where) in enumerate(zip(H.sizes, H.workers))
    ]
    x = clocked("solve", lambda: client.gather(client.map(np.linalg.norm, F.solve(b))))
    print(f"  moved between workers: {moved(client) - sent:,} bytes; |x| = {np.linalg.norm(x):.6g}")
    _, info = clocked("solve, with an error bound", F.solve, b, full_output=True)
    print(f"  backward error {float(info.backward_error):.1e}, {info.refinement_steps} steps of refinement")
    print(f"largest memory of a worker so far: {max(client.run(largest).values()) / 1e9:.2f} GB")


def rates(width, depth):
    """Seconds of the parts of a segment in the middle of a chain, by layer, and of a seam."""
    net = nh.Network([nh.Dense(width, width, "tanh", skip=True)] * (depth + 2), "mean_squared_error")
    rng = np.random.default_rng(0)
    H = net.hessian(0.3 * net.init(0), rng.standard_normal((1, width)), rng.standard_normal((1, width)))
    inner = list(segment.of_system(H.system, H.dtype, (0, 1, depth + 1, depth + 2)))[1]
    inner = segment.Segment.of_chain(*inner)
    rows, N = rng.standard_normal((1, inner.system.num_params)), inner.num_in
    task = elimination.Task(0.1, np.dtype(np.float64), H.system.norm(), 0)
    ends = np.zeros((1, N)), np.zeros((1, N))

    def timed(function, *arguments):
        function(*arguments)
        begin = time.perf_counter()
        found = function(*arguments)
        return time.perf_counter() - begin, found

    whole, _ = timed(lambda: H.factorize(0.1, method="layers"))
    eliminated, factors = timed(elimination.eliminate, inner, task, np.zeros(depth + 1))
    back, half = timed(elimination.back, inner, factors, rows)
    forth, _ = timed(elimination.forth, inner, factors, rows, half, np.zeros((1, 2 * N)))
    links, _ = timed(inner.links)
    product = timed(inner.ends, rows)[0] + timed(inner.multiply, rows, ends)[0]
    count = 99
    middle = factors.relation
    first = middle._replace(P=middle.P[:0, :0], Phi=middle.Phi[:, :0])
    last = middle._replace(Phi=middle.Phi[:0], Psi=middle.Psi[:0, :0])
    joined, chain = timed(seams.Seams, [first, *[middle] * (count - 1), last])
    told = [np.ones((1, n + c)) for n, c in chain.sizes]
    solved, _ = timed(chain.solve, told)
    figures = {
        "a layer, chain as one: factorize": whole / (depth + 2),
        "a layer: eliminate in a segment": eliminated / depth,
        "a layer: J and C": links / depth,
        "a layer: solve": (back + forth) / depth,
        "a layer: product": product / depth,
        "a seam: factorize": joined / count,
        "a seam: solve": solved / count,
    }
    for name, seconds in figures.items():
        print(f"{name}: {1e6 * seconds:.4g} us")
    kept, _ = elimination.num_bytes(inner, np.dtype(np.float64))
    print(f"bytes a layer: blocks {inner.num_bytes / depth:,.0f}, factors {kept / depth:,.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chain", choices=["long", "wide", "rates"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--limit", type=float)
    given = parser.parse_args()
    if given.chain == "rates":
        rates(given.width, given.layers or 200)
        return
    limit = given.limit or (7.0 if given.chain == "long" else 1.5)
    options = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": int(limit * 2**30)}
    with dask.config.set({"distributed.scheduler.work-stealing": False}):
        with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
            # What is compiled, or loaded from the cache, at the first call.
            warm = nh.distributed.factorize([(stages, s, 200) for s in range(2)], 0.1, client)
            warm.solve(np.ones(warm.shape[0]))
            if given.chain == "long":
                each = (given.layers or 1_000_000) // given.pieces
                H = clocked(
                    "build", nh.distributed.hessian, [(stages, s, each) for s in range(given.pieces)], client, np.eye(8)
                )
                report(client, H, 0.1)
                return
            width, samples, depth = given.width, given.samples, given.layers or 200
            layer = nh.Dense(width, width, "tanh", skip=True)
            net = nh.Network([layer] * (depth - 1) + [nh.Dense(width, 10, "identity")], "softmax_cross_entropy")
            rng = np.random.default_rng(0)
            X, y = rng.standard_normal((samples, width)), rng.integers(0, 10, samples)
            whole = net.hessian(0.3 * net.init(0), X, y)
            try:
                nh.distributed.factorize(whole, 0.1, client, num_segments=1)
            except MemoryError as error:
                print(f"on one worker: {error}")
            H = clocked("send", nh.distributed.hessian, whole, client)
            report(client, H, 0.1)


if __name__ == "__main__":
    main()
