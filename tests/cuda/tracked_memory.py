"""Arrays of the race checker: every access to an element is noted, by its address, and compared with those before
it.
"""

import itertools
import sys

import numpy as np
from numba.np.numpy_support import as_dtype

# What integers hold before they are written.
POISON = 0x5A5A5A5A


def poisoned(array):
    """The array, filled with NaN or with a large integer."""
    array[...] = np.nan if array.dtype.kind == "f" else POISON
    return array


class Accesses:
    """Who has touched which element, and who runs now."""

    __slots__ = ("checker", "epoch", "first", "thread", "shared", "everywhere")

    def __init__(self, checker):
        self.checker = checker
        # Epochs are numbered through all blocks of all launches; ``first`` is the first one of this block.
        self.epoch = self.first = self.thread = 0
        # By address.
        self.shared, self.everywhere = {}, {}

    def start_block(self):
        self.epoch += 1
        self.first = self.epoch
        self.shared.clear()


# A record: epoch, thread and place of the last write, and whether it was an atomic one; epoch, thread and place of the
# first read of the last epoch with reads; thread and place of the next thread that read in it; place of a read by an
# earlier block.
W_EPOCH, W_THREAD, W_PLACE, W_ATOMIC, R_EPOCH, R_THREAD, R_PLACE, O_THREAD, O_PLACE, EARLIER = range(10)


def note_read(accesses, records, address, frame):
    epoch, thread = accesses.epoch, accesses.thread
    record = records.get(address)
    if record is None:
        if records is accesses.shared:
            accesses.checker.report("uninitialised", None, frame)
        records[address] = [-1, -1, None, False, epoch, thread, (frame.f_code, frame.f_lasti), -1, None, None]
        return
    written = record[W_EPOCH]
    if written == epoch:
        if record[W_THREAD] != thread:
            accesses.checker.report("race", record[W_PLACE], frame)
    elif 0 <= written < accesses.first:
        accesses.checker.report("blocks", record[W_PLACE], frame)
    read = record[R_EPOCH]
    if read != epoch:
        if 0 <= read < accesses.first:
            record[EARLIER] = record[R_PLACE]
        record[R_EPOCH], record[R_THREAD], record[R_PLACE] = epoch, thread, (frame.f_code, frame.f_lasti)
        record[O_THREAD] = -1
    elif record[R_THREAD] != thread and record[O_THREAD] < 0:
        record[O_THREAD], record[O_PLACE] = thread, (frame.f_code, frame.f_lasti)


def note_write(accesses, records, address, frame, atomic=False):
    epoch, thread, place = accesses.epoch, accesses.thread, (frame.f_code, frame.f_lasti)
    record = records.get(address)
    if record is None:
        records[address] = [epoch, thread, place, atomic, -1, -1, None, -1, None, None]
        return
    written = record[W_EPOCH]
    if not (atomic and record[W_ATOMIC]):
        if written == epoch:
            if record[W_THREAD] != thread:
                accesses.checker.report("race", record[W_PLACE], frame)
        elif 0 <= written < accesses.first:
            accesses.checker.report("blocks", record[W_PLACE], frame)
    read = record[R_EPOCH]
    if read == epoch:
        if record[R_THREAD] != thread:
            accesses.checker.report("race", record[R_PLACE], frame)
        elif record[O_THREAD] >= 0:
            accesses.checker.report("race", record[O_PLACE], frame)
    elif 0 <= read < accesses.first:
        accesses.checker.report("blocks", record[R_PLACE], frame)
    if record[EARLIER] is not None:
        accesses.checker.report("blocks", record[EARLIER], frame)
    record[W_EPOCH], record[W_THREAD], record[W_PLACE], record[W_ATOMIC] = epoch, thread, place, atomic


class Tracked:
    """An array as kernels see it: every element is looked at by its address, so that views and rows are no others."""

    __slots__ = ("_array", "_accesses", "_records", "_base", "_step", "shape", "size", "ndim")

    def __init__(self, array, accesses, records):
        self._array, self._accesses, self._records = array, accesses, records
        self._base, self.shape, self.size, self.ndim = array.ctypes.data, array.shape, array.size, array.ndim
        self._step = array.strides[0] if array.ndim == 1 else 0

    def __len__(self):
        return self.shape[0]

    @property
    def dtype(self):
        return self._array.dtype

    def _view(self, index):
        return Tracked(self._array[index], self._accesses, self._records)

    def address(self, index, frame):
        """Of an element, or None where the index means a part of the array."""
        indices = index if type(index) is tuple else (index,)
        if any(isinstance(one, slice) for one in indices):
            return None
        for one, length in zip(indices, self.shape):
            if not 0 <= one < length:
                self._accesses.checker.report("index", None, frame)
                raise IndexError(f"index {index} of an array of shape {self.shape}")
        if len(indices) < self.ndim:
            return None
        return self._base + sum(int(one) * step for one, step in zip(indices, self._array.strides))

    def __getitem__(self, index):
        frame = sys._getframe(1)
        if self._step and type(index) is int and 0 <= index < self.size:
            note_read(self._accesses, self._records, self._base + index * self._step, frame)
            return self._array[index]
        address = self.address(index, frame)
        if address is None:
            return self._view(index)
        note_read(self._accesses, self._records, address, frame)
        return self._array[index]

    def __setitem__(self, index, value):
        frame = sys._getframe(1)
        if self._step and type(index) is int and 0 <= index < self.size:
            note_write(self._accesses, self._records, self._base + index * self._step, frame)
        else:
            address = self.address(index, frame)
            if address is None:
                part = self._view(index)
                for place in itertools.product(*map(range, part.shape)):
                    note_write(self._accesses, self._records, part.address(place, frame), frame)
            else:
                note_write(self._accesses, self._records, address, frame)
        self._array[index] = value

    def update(self, index, function, frame):
        """An atomic exchange of an element for a function of it; returns what it was."""
        old = self._array[index]
        note_write(self._accesses, self._records, self.address(index, frame), frame, atomic=True)
        self._array[index] = function(old)
        return old


class Atomic:
    """`cuda.atomic`, of the functions that change one element."""

    def add(self, array, index, value):
        return array.update(index, lambda old: old + value, sys._getframe(1))

    def max(self, array, index, value):
        return array.update(index, lambda old: max(old, value), sys._getframe(1))

    def min(self, array, index, value):
        return array.update(index, lambda old: min(old, value), sys._getframe(1))

    def exch(self, array, index, value):
        return array.update(index, lambda old: value, sys._getframe(1))

    def cas(self, array, index, expected, value):
        return array.update(index, lambda old: value if old == expected else old, sys._getframe(1))


class Local:
    """`cuda.local`."""

    def array(self, shape, dtype):
        return poisoned(np.empty(shape, as_dtype(dtype)))
