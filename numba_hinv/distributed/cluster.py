"""The workers that segments live on: which one has which, how much memory each has, and tasks for them.

Everything that is made on workers is made by tasks, from the functions and arrays that were given to the first of them.
So Dask makes again what a worker that has died took with it. A segment's tasks are sent to its worker, and to any other
one where that is gone.
"""

import uuid

import numpy as np

from ..runtime import memory_budget
from ..runtime.compile_notice import set_compile_notice

# Bytes of a task's arguments from which on Dask would say that they were better scattered; scattered data are lost with
# their worker.
_LARGE = "distributed.admin.large-graph-warning-threshold"


class Cluster:
    """A client of Dask's scheduler, and the workers of so many segments.

    Parameters
    ----------
    client : distributed.Client
    count : int, optional
        Of segments; by default as many as all workers have threads.
    """

    def __init__(self, client, count=None):
        self.client = _as_client(client)
        threads = self._threads()
        if not threads:
            raise ValueError("client: expected a cluster with at least one worker, got none")
        self.count = sum(threads.values()) if count is None else count
        # Neighbours live together, as many on each worker as it has threads.
        slots = np.repeat(list(threads), list(threads.values()))
        self.places = [str(slots[s * slots.size // self.count]) for s in range(self.count)]
        # Of no segment: the seams.
        self.places.append(self.places[0])
        # Said by the process that asks, if at all.
        self.client.run(set_compile_notice, False, on_error="ignore")

    def _threads(self):
        return {worker: int(count) for worker, count in sorted(self.client.nthreads().items())}

    def submit_to(self, worker, function, *arguments):
        """The future of a function on a worker, or on another one where that is gone."""
        import dask

        name = getattr(function, "__name__", "task").strip("_")
        with dask.config.set({_LARGE: "1 TiB"}):
            return self.client.submit(
                function,
                *arguments,
                key=f"{name}-{uuid.uuid4().hex}",
                workers=[worker],
                allow_other_workers=True,
                pure=False,
            )

    def submit(self, segment, function, *arguments):
        """The future of a function where a segment lives; -1 is where the seams are."""
        return self.submit_to(self.places[segment], function, *arguments)

    def map(self, function, *arguments):
        """A future for every segment, the arguments being sequences of so many."""
        return [self.submit(s, function, *own) for s, own in enumerate(zip(*arguments))]

    def gather(self, futures, what):
        """The results of futures, here. What they raise is raised; ``RuntimeError`` where something cannot be made."""
        import distributed

        lost = tuple(
            getattr(distributed.client, name)
            for name in ("FutureCancelledError", "FuturesCancelledError")
            if hasattr(distributed.client, name)
        )
        try:
            return self.client.gather(futures)
        except distributed.KilledWorker as error:
            raise RuntimeError(
                f"client: {what} was lost: its task {error.task!r} was running on each of several workers when they "
                f"died, the last of them {error.last_worker.address}; expected workers with more memory, or smaller "
                "segments"
            ) from error
        except lost as error:
            raise RuntimeError(
                f"client: {what} was lost with the worker or the client that had it, and cannot be made again from its "
                "inputs; expected pieces and right-hand sides that are functions, arrays or results of tasks, not "
                "scattered data"
            ) from error

    # ---- memory -----------------------------------------------------------------------------------------------------

    def at_peak(self, kept, work):
        """Bytes that each segment needs, (S,): of those of a worker as many are at work as it has threads."""
        threads, needed = self._threads(), [int(num_bytes) for num_bytes in kept]
        for place in set(self.places[:-1]):
            here = [s for s, worker in enumerate(self.places[:-1]) if worker == place]
            here.sort(key=lambda s: -work[s])
            for s in here[: threads.get(place, 1)]:
                needed[s] += int(work[s])
        return needed

    def require(self, needed, purpose, way_out):
        """``MemoryError`` that names the first worker which has less than its segments need, (S,) bytes."""
        totals = {}
        for worker, num_bytes in zip(self.places, needed):
            totals[worker] = totals.get(worker, 0) + int(num_bytes)
        rooms = {worker: self.submit_to(worker, _room) for worker in totals}
        found = dict(zip(rooms, self.client.gather(list(rooms.values()))))
        on_host = {}
        for worker, total in totals.items():
            room = found[worker]
            if room["has"] is not None and total > room["has"]:
                limit = "" if room["limit"] is None else f" of its limit of {room['limit']:,}"
                raise MemoryError(
                    f"{purpose} would need {total:,} bytes ({total / 2**30:.2f} GiB) on worker {worker}, which has "
                    f"{room['has']:,}{limit} left; {way_out}"
                )
            host = on_host.setdefault(room["host"], [0, room["available"], []])
            host[0] += total
            host[2].append(worker)
        for host, (total, available, workers) in on_host.items():
            if available is not None and total > available:
                raise MemoryError(
                    f"{purpose} would need {total:,} bytes ({total / 2**30:.2f} GiB) on workers {', '.join(workers)} "
                    f"of {host}, which has {available:,} available; {way_out}"
                )
        return totals


def _room():
    """What memory the worker has on which this runs, before it spills or pauses."""
    import distributed

    worker, available = distributed.get_worker(), memory_budget.available_bytes()
    manager, limit, has = worker.memory_manager, worker.memory_manager.memory_limit, None
    names = "memory_target_fraction", "memory_spill_fraction", "memory_pause_fraction"
    fractions = [share for share in (getattr(manager, name, False) for name in names) if share]
    if limit:
        usable = int(limit * min(fractions, default=1.0))
        has = max(usable - _resident(), 0)
    return {
        "has": has,
        "limit": limit or None,
        "available": available,
        "host": worker.address.rpartition(":")[0].rpartition("/")[2],
    }


def _resident():
    """Bytes that this process has in memory."""
    # One of the packages that distributed needs.
    import psutil

    return int(psutil.Process().memory_info().rss)


def _as_client(client):
    try:
        import distributed
    except ImportError:
        raise ImportError(
            "client: expected dask and distributed to be installed (pip install 'numba_hinv[distributed]'), got none"
        ) from None
    if not isinstance(client, distributed.Client):
        raise TypeError(f"client: expected a distributed.Client, got {type(client).__name__}")
    if client.asynchronous:
        raise TypeError("client: expected a client that is not asynchronous, got one that is")
    return client
