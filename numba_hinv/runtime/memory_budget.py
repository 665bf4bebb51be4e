"""How much memory there is, and the error when a computation would not fit. Asked before anything is allocated."""

import os

# Less than this is not worth asking about: the question takes longer than a small factorization.
_NEGLIGIBLE = 1 << 20
# What may be done, where the caller of `require` knows nothing better.
FEWER = "take fewer samples, or free memory"


def available_bytes() -> int | None:
    """Bytes that can still be allocated: the least of free memory and the address space's limit; None if unknown."""
    limits = []
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        limits.append(1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        try:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, OSError, ValueError):
            pass
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            with open("/proc/self/statm", encoding="ascii") as sizes:
                limits.append(soft - int(sizes.read().split()[0]) * resource.getpagesize())
    except (ImportError, OSError, ValueError):
        pass
    return min(limits, default=None)


def fits(num_bytes: int) -> bool:
    """Whether so many bytes are available, as far as is known."""
    if num_bytes < _NEGLIGIBLE:
        return True
    available = available_bytes()
    return available is None or num_bytes <= available


def require(num_bytes: int, purpose: str, way_out: str = FEWER) -> None:
    """``MemoryError`` if ``num_bytes`` for ``purpose`` are not available; the message ends with the way out."""
    if num_bytes < _NEGLIGIBLE:
        return
    available = available_bytes()
    if available is not None and num_bytes > available:
        raise MemoryError(
            f"{purpose} would need {num_bytes:,} bytes ({num_bytes / 2**30:.2f} GiB), {available:,} are available; "
            f"{way_out}"
        )
