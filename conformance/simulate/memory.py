"""Which storages lie on the simulated device, and how much memory they take."""

from __future__ import annotations

import contextlib
import functools
import sys
import weakref
from collections.abc import Iterator
from sys import getrefcount

import torch

from conformance.simulate import checks
from conformance.simulate.device import BACKEND, HOST, Machine
from conformance.simulate.internals import (
    no_function_modes,
    storage_device,
    storage_id,
    use_count,
)

_GRANULE = 256
"""Bytes to which the driver rounds a buffer up (Metal's buffer alignment)."""
_MOST_FRESH = 2**16
"""Bytes of fresh storages that are looked at together: so much may lie dead for a while."""
_OURS = 4
"""References to a storage nobody else holds: the table's, a list's, a variable's, an argument's."""


class _Block(weakref.ref[torch.UntypedStorage]):
    """One storage on the device, while it lives."""

    __slots__ = ("key", "leaving", "nbytes")
    key: int
    nbytes: int
    leaving: weakref.ref[torch.UntypedStorage]
    """What takes it out of the table."""


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _GRANULE) * _GRANULE


class Ledger:
    """The storages marked as lying on the device, by address, with their sizes in bytes.

    A tensor is on the simulated device exactly when its storage is marked here. Storages leave
    by themselves when torch frees them. Small ones that operators made are first kept alive and
    looked at some time later, when most of them are dead: that costs less than a weak reference.
    Peaks above `_MOST_FRESH` are exact all the same, for that time comes before all of them
    together, the dead included, could have passed a peak.

    A signal's handler may raise wherever Python code calls or jumps back, and inside the callback
    of a weak reference that is swallowed. So those callbacks are C alone: they empty the table's
    row before its address can be another storage's, and leave the counting for later. What has to
    be done as a whole is written without a call or a loop in it.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.blocks: dict[int, _Block | torch.UntypedStorage] = {}
        self.peak = 0
        self.driver_peak = 0
        self._fresh: list[torch.UntypedStorage] = []
        self._room = self._spare = 0
        self._bytes = 0
        self._driver = 0
        self._dead: list[_Block] = []
        self._ratchet = machine.ratchet
        self._exact = False
        self._allowed = sys.maxsize
        self._kept: dict[int, int] = {}
        self.set_fraction(1.0)

    @property
    def allocated(self) -> int:
        """Bytes of the storages that live."""
        self._settle()
        return self._bytes

    @property
    def driver(self) -> int:
        """Bytes that the driver holds for them, and for freed ones that it keeps."""
        self._settle()
        return self._driver

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor`, of any layout or functorch wrapper, lies on the device."""
        try:
            return storage_id(tensor) in self.blocks
        except (RuntimeError, NotImplementedError):
            return any(storage_id(part) in self.blocks for part in _parts(tensor))

    def holds_storage(self, storage: torch.UntypedStorage) -> bool:
        """Whether this storage lies on the device."""
        return storage._cdata in self.blocks

    def mark(self, tensor: torch.Tensor) -> None:
        """Puts the storages behind a fresh tensor on the device.

        Raises TypeError for a dtype that the device lacks, RuntimeError when memory is full.
        """
        checks.check_dtype(tensor.dtype, self.machine)
        checks.check_layout(tensor, self.machine)
        for part in _parts(tensor):
            storage = part.untyped_storage()
            if storage_device(storage) == HOST:
                self.mark_storage(storage)

    def mark_wrapper(self, tensor: torch.Tensor) -> None:
        """Has a tensor without memory of its own, made of others, lie on the device."""
        with contextlib.suppress(RuntimeError, NotImplementedError), no_function_modes():
            self._keep(tensor.untyped_storage(), 0)

    def takes(self, storage: torch.UntypedStorage) -> bool:
        """Marks a small fresh storage in one step, where there is room for it beyond doubt."""
        room = self._room - storage.nbytes() - _GRANULE
        if room < 0:
            self._settle()
            room = self._room - storage.nbytes() - _GRANULE
            if room < 0:
                return False
        key = storage._cdata
        if key not in self.blocks:
            self._room = room
            self.blocks[key] = storage
            self._fresh.append(storage)
        return True

    def mark_storage(self, storage: torch.UntypedStorage) -> None:
        """Puts one storage on the device; nothing happens if it is there already."""
        if storage._cdata in self.blocks:
            return
        nbytes = storage.nbytes()
        self.reserve(nbytes)
        self._keep(storage, nbytes)
        self._make_room()

    def reserve(self, nbytes: int) -> None:
        """Raises RuntimeError, in the allocator's words, where `nbytes` more would not fit."""
        self._count()
        if nbytes >= self.machine.buffer_bytes:
            checks.check_buffer(nbytes, self.machine)
        allowed = self._allowed
        if self._driver + nbytes <= allowed:
            return
        if self._kept.get(_rounded(nbytes)):
            return
        self.empty_cache()
        if self._driver + nbytes > allowed:
            raise checks.out_of_memory(self._bytes, self._driver, allowed, nbytes)

    def resized(self, tensor: torch.Tensor) -> None:
        """Accounts for a storage that changed its size in place."""
        self._settle()
        storage = tensor.untyped_storage()
        block = self.blocks[storage._cdata]
        assert isinstance(block, _Block)
        change = storage.nbytes() - block.nbytes
        checks.check_buffer(storage.nbytes(), self.machine)
        # One that was fresh has been counted with its new size by now, which may not fit.
        self.reserve(max(change, 0))
        self._grow(block, change, block)
        self._make_room()

    def set_fraction(self, fraction: float) -> None:
        """Lets the driver hold this share of what it is allowed."""
        allowed = self.machine.allowed_bytes
        self._allowed = sys.maxsize if allowed is None else int(allowed * fraction)
        self._settle()

    def empty_cache(self) -> None:
        """Gives the freed blocks that the driver still holds back to the system."""
        self._bury()
        self._driver -= sum(size * count for size, count in self._kept.items())
        self._kept.clear()

    def reset_peak(self) -> None:
        """Makes the present use the peak."""
        self._settle()
        self.peak = self._bytes
        self.driver_peak = self._driver
        self._make_room()

    @contextlib.contextmanager
    def surge(self) -> Iterator[list[int]]:
        """A block; how many bytes the driver held at most above those at its start is told after it."""
        told = [0]
        self._settle()
        before, start = (self.peak, self.driver_peak, self._exact), self._driver
        self.peak, self.driver_peak, self._exact = self._bytes, start, True
        self._make_room()
        try:
            yield told
        finally:
            told[0] = self.driver_peak - start
            self.peak = max(before[0], self.peak)
            self.driver_peak = max(before[1], self.driver_peak)
            self._exact = before[2]
            self._make_room()

    def fits(self, surge: int) -> bool:
        """Whether a known surge of the driver's memory passes neither a peak nor what is allowed."""
        # Fresh storages count as if all of them lived: sooner asked than which do.
        taken = min(_MOST_FRESH, self._spare) - self._room
        if surge + taken <= self._spare:
            return True
        self._settle()
        return surge <= self._spare

    def _settle(self) -> None:
        """Counts what lives, and says how much may come before the next time."""
        self._count()
        self._make_room()

    def _count(self) -> None:
        """Forgets the fresh storages that are dead, and keeps the others as long as they live."""
        self._bury()
        fresh, blocks = self._fresh, self.blocks
        try:
            while fresh:
                storage = fresh[-1]
                key = storage._cdata
                # No tensor's (before torch 2.13 Python does not count those), and no program's.
                dead = (
                    blocks[key] is storage and use_count(key) == 1 and getrefcount(storage) == _OURS
                )
                if not dead:
                    self._keep(storage, storage.nbytes())
                if fresh[-1] is storage:
                    del fresh[-1]
                    if dead:
                        del blocks[key]
        except LookupError:
            pass  # Another thread was at it too.

    def _bury(self) -> None:
        """Takes what has died off the count."""
        dead, kept = self._dead, self._kept
        try:
            while dead:
                block = dead[-1]
                size = _rounded(block.nbytes)
                freed = kept.get(size, 0) + 1 if self._ratchet else 0
                if dead[-1] is block:
                    del dead[-1]
                    self._bytes -= block.nbytes
                    if freed:
                        kept[size] = freed
                    else:
                        self._driver -= size
        except LookupError:
            pass  # Another thread was at it too.

    def _make_room(self) -> None:
        """Says how much may come before the next look at what lives."""
        if self._ratchet or self._exact:
            # What is freed, and when, decides what the driver keeps.
            self._room = self._spare = 0
            return
        self._spare = min(
            max(self.peak, _MOST_FRESH) - self._bytes,
            max(self.driver_peak, _MOST_FRESH) - self._driver,
            self._allowed - self._driver,
        )
        self._room = min(_MOST_FRESH, self._spare)

    def _keep(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        """Has a storage in the table, and counted, for as long as it lives."""
        block = _Block(storage, self._dead.append)
        block.key, block.nbytes = storage._cdata, 0
        block.leaving = weakref.ref(storage, functools.partial(self.blocks.pop, block.key))
        self._grow(block, nbytes, storage)

    def _grow(self, block: _Block, change: int, known: _Block | torch.UntypedStorage) -> None:
        """Counts a block as so many bytes longer, where the table has it as `known` or not at all."""
        key, size = block.key, _rounded(change)
        kept = self._kept.get(size, 0)
        blocks = self.blocks
        # From here on nothing is called.
        if key in blocks and blocks[key] is not known:
            return
        blocks[key] = block
        block.nbytes += change
        self._bytes += change
        if kept:
            self._kept[size] = kept - 1
        else:
            self._driver += size
        if self._bytes > self.peak:
            self.peak = self._bytes
        if self._driver > self.driver_peak:
            self.driver_peak = self._driver
        # Until somebody says how much may come.
        self._room = self._spare = 0


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The dense tensors whose storages make up `tensor`."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    if tensor.layout is torch.sparse_coo:
        yield tensor._indices()
        yield tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    elif torch._C._has_storage(tensor):
        yield tensor


def is_backend(device: torch.device | None) -> bool:
    """Whether a device names the simulated backend."""
    return device is not None and device.type == BACKEND
