"""Which storages lie on the simulated device, and how much memory they take."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections import Counter
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
_OURS = 3
"""References to a storage that nobody else holds: the table's, a variable's, an argument's."""


class _Block(weakref.ref[torch.UntypedStorage]):
    """One storage on the device, while it lives."""

    __slots__ = ("key", "nbytes")
    key: int
    nbytes: int


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _GRANULE) * _GRANULE


class Ledger:
    """The storages marked as lying on the device, by address, with their sizes in bytes.

    A tensor is on the simulated device exactly when its storage is marked here. Storages leave
    by themselves when torch frees them. Small ones that operators made are first kept alive and
    looked at some time later, when most of them are dead: that costs less than a weak reference.
    Peaks above `_MOST_FRESH` are exact all the same, for that time comes before all of them
    together, the dead included, could have passed a peak.
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
        self._freed = self._released
        self._ratchet = machine.ratchet
        self._exact = False
        self._allowed = sys.maxsize
        self._kept: Counter[int] = Counter()
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
        self._grow(nbytes)
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
        block.nbytes += change
        self._grow(change)
        self._make_room()

    def set_fraction(self, fraction: float) -> None:
        """Lets the driver hold this share of what it is allowed."""
        allowed = self.machine.allowed_bytes
        self._allowed = sys.maxsize if allowed is None else int(allowed * fraction)
        self._settle()

    def empty_cache(self) -> None:
        """Gives the freed blocks that the driver still holds back to the system."""
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
        fresh, blocks = self._fresh, self.blocks
        try:
            while fresh:
                storage = fresh.pop()
                key = storage._cdata
                # No tensor's (before torch 2.13 Python does not count those), and no program's.
                if use_count(key) == 1 and getrefcount(storage) == _OURS:
                    del blocks[key]
                else:
                    nbytes = storage.nbytes()
                    self._keep(storage, nbytes)
                    self._grow(nbytes)
        except IndexError:
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
        block = _Block(storage, self._freed)
        block.key, block.nbytes = key, nbytes = storage._cdata, nbytes
        self.blocks[key] = block

    def _grow(self, nbytes: int) -> None:
        self._bytes += nbytes
        size = _rounded(nbytes)
        if self._kept and self._kept[size]:
            self._kept[size] -= 1
        else:
            self._driver += size
        if self._bytes > self.peak:
            self.peak = self._bytes
        if self._driver > self.driver_peak:
            self.driver_peak = self._driver

    def _released(self, block: _Block) -> None:
        blocks, key, nbytes = self.blocks, block.key, block.nbytes
        if blocks.get(key) is not block:
            return
        del blocks[key]
        self._bytes -= nbytes
        if self._ratchet:
            self._kept[_rounded(nbytes)] += 1
        else:
            self._driver += (-nbytes // _GRANULE) * _GRANULE


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
