"""The functions of `kernels.dense.pivot_arithmetic`, for kernels to call: the same source, compiled for the device."""

from ...kernels.dense import pivot_arithmetic as shared
from ..plumbing.target import device

stays_nonnegative, is_weak, choice = device(shared.stays_nonnegative), device(shared.is_weak), device(shared.choice)
replacement, eigen, split_block = device(shared.replacement), device(shared.eigen), device(shared.split_block)
times, place, order, enlarge = device(shared.times), device(shared.place), device(shared.order), device(shared.enlarge)
