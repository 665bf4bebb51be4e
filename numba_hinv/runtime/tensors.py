"""Tensors of PyTorch among the arguments: read as arrays, and answered with tensors of their dtype and device.

PyTorch is not imported here: whoever has a tensor has imported it.
"""

import sys
from typing import Any

import numpy as np


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch."""
    torch = sys.modules.get("torch")
    return isinstance(value, getattr(torch, "Tensor", ()))


def plain(value: Any, on_device: bool = False) -> Any:
    """A tensor as an array of NumPy, or as itself without its history if it may stay ``on_device``; all else as it
    is.
    """
    if not is_tensor(value):
        return value
    value = value.detach()
    if on_device and value.is_cuda:
        return value
    value = value.cpu()
    # NumPy has no such numbers, and single precision holds all of them.
    return (value.float() if value.dtype == sys.modules["torch"].bfloat16 else value).numpy()


def like(found: Any, given: Any) -> Any:
    """An answer as a tensor, if ``given`` was one: on its device and, if that is a floating one, in its dtype.

    ``LinAlgError`` where that dtype cannot hold the answer.
    """
    if not is_tensor(given):
        return found
    torch = sys.modules["torch"]
    answer = torch.from_numpy(found) if isinstance(found, np.ndarray) else torch.as_tensor(found, device=given.device)
    if not given.is_floating_point():
        return answer.to(given.device)
    narrow = answer.to(given.device, given.dtype)
    if narrow.dtype.itemsize < answer.dtype.itemsize and not bool(narrow.isfinite().all()):
        raise np.linalg.LinAlgError(f"the answer overflows {given.dtype}; expected a tensor of a wider dtype")
    return narrow
