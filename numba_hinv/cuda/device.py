"""The GPU as a `System` sees it: twin of `system.cpu.Cpu`, with the same parts over the kernels of this package.

Each part is in a neighbouring file of its name. One, `segments`, is of the GPU alone.
"""

import numba.cuda

from ..runtime import threads
from .columns import DeviceColumns
from .elimination import DeviceElimination
from .memory import DeviceMemory
from .models import DeviceModels
from .products import DeviceProducts
from .segments import DeviceSegments
from .substitution import DeviceSubstitution


class Device:
    """One GPU and a stream on it, to which all work goes, in order.

    Parameters
    ----------
    stream : numba.cuda stream, or 0
    """

    name = "cuda"

    def __init__(self, stream=0):
        if not numba.cuda.is_available():
            raise RuntimeError(
                "device: 'cuda' needs an NVIDIA GPU and its driver, and numba-cuda finds none: "
                f"{_why_not_available()}; expected device='cpu' on this machine"
            )
        self.memory = memory = DeviceMemory(stream)
        self.columns = DeviceColumns(stream)
        self.models = DeviceModels(memory)
        self.products = DeviceProducts(memory)
        self.elimination = DeviceElimination(memory)
        self.segments = DeviceSegments(memory)
        self.substitution = DeviceSubstitution(memory)
        self.lifting = None

    def __reduce__(self):
        # A stream belongs to its process.
        return Device, ()

    @classmethod
    def for_array(cls, array):
        """On the stream of an array's ``__cuda_array_interface__``, or on the default stream."""
        stream = (getattr(array, "__cuda_array_interface__", None) or {}).get("stream")
        # 1 and 2 are the default streams, legacy and of a thread.
        if stream is None or stream == 1:
            return cls()
        return cls(numba.cuda.per_thread_default_stream() if stream == 2 else numba.cuda.external_stream(stream))

    def load(self, dtype, table=None):
        """Nothing: kernels are compiled where they are launched first."""

    def num_workers(self, num_threads, num_jobs, reach_blas):
        """One: what runs at the same time is in one launch."""
        threads.num_workers(num_threads, num_jobs, reach_blas)
        return 1


def _why_not_available():
    try:
        return str(numba.cuda.cuda_error()).strip().replace("\n", " ") or "no device"
    except Exception as error:
        return str(error).strip()
