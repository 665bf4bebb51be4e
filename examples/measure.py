"""Seconds and bytes of a function call, as the examples report them, and how they are printed."""

import time
import tracemalloc


def seconds(function, repeats=5):
    """The shortest time of some calls of ``function()`` in seconds, and the result of the last call."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def peak_bytes(function):
    """The most memory that Python objects and NumPy arrays held at once during ``function()``."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def time_text(value):
    """A time with the unit that suits it: '8.1 us', '3.4 ms', '2.0 s'."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def memory_text(value):
    """A number of bytes with the unit that suits it: '4.2 MB'."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"
