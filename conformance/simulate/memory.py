"""Which storages lie on the simulated device, and how much memory they take."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator

import torch

from conformance.simulate import checks
from conformance.simulate.device import BACKEND, HOST, Machine
from conformance.simulate.internals import storage_device, storage_id

_GRANULE = 256
"""Bytes to which the driver rounds a buffer up (Metal's buffer alignment)."""


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
    by themselves when torch frees them.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.blocks: dict[int, _Block] = {}
        self.allocated = 0
        self.peak = 0
        self.driver = 0
        self.driver_peak = 0
        self._freed = self._released
        self._ratchet = machine.ratchet
        self._longest = machine.buffer_bytes
        self.set_fraction(1.0)
        self._kept: Counter[int] = Counter()

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

    def mark_fresh(self, tensor: torch.Tensor, key: int) -> None:
        """As `mark`, in one step for the many: a strided result of a type that the device has.

        `key` is its storage's address, which is not known here yet. Raises RuntimeError when
        memory is full.
        """
        storage = tensor.untyped_storage()
        nbytes = storage.nbytes()
        if self._kept or nbytes >= self._longest or self.driver + nbytes > self._allowed:
            self.mark_storage(storage)
            return
        self.blocks[key] = block = _Block(storage, self._freed)
        block.key, block.nbytes = key, nbytes
        self.allocated = allocated = self.allocated + nbytes
        self.driver = driver = self.driver - (-nbytes // _GRANULE) * _GRANULE
        if allocated > self.peak:
            self.peak = allocated
        if driver > self.driver_peak:
            self.driver_peak = driver

    def mark_storage(self, storage: torch.UntypedStorage) -> None:
        """Puts one storage on the device; nothing happens if it is there already."""
        key = storage._cdata
        if key in self.blocks:
            return
        nbytes = storage.nbytes()
        self.reserve(nbytes)
        block = _Block(storage, self._freed)
        block.key, block.nbytes = key, nbytes
        self.blocks[key] = block
        self._grow(nbytes)

    def reserve(self, nbytes: int) -> None:
        """Raises RuntimeError, in the allocator's words, where `nbytes` more would not fit."""
        if nbytes >= self.machine.buffer_bytes:
            checks.check_buffer(nbytes, self.machine)
        allowed = self._allowed
        if self.driver + nbytes <= allowed:
            return
        if self._kept.get(_rounded(nbytes)):
            return
        self.empty_cache()
        if self.driver + nbytes > allowed:
            raise checks.out_of_memory(self.allocated, self.driver, allowed, nbytes)

    def resized(self, tensor: torch.Tensor) -> None:
        """Accounts for a storage that changed its size in place."""
        storage = tensor.untyped_storage()
        block = self.blocks[storage._cdata]
        change = storage.nbytes() - block.nbytes
        if change > 0:
            checks.check_buffer(storage.nbytes(), self.machine)
            self.reserve(change)
        block.nbytes += change
        self._grow(change)

    def set_fraction(self, fraction: float) -> None:
        """Lets the driver hold this share of what it is allowed."""
        allowed = self.machine.allowed_bytes
        self._allowed = sys.maxsize if allowed is None else int(allowed * fraction)

    def empty_cache(self) -> None:
        """Gives the freed blocks that the driver still holds back to the system."""
        self.driver -= sum(size * count for size, count in self._kept.items())
        self._kept.clear()

    def reset_peak(self) -> None:
        """Makes the present use the peak."""
        self.peak = self.allocated
        self.driver_peak = self.driver

    def _grow(self, nbytes: int) -> None:
        self.allocated += nbytes
        size = _rounded(nbytes)
        if self._kept and self._kept[size]:
            self._kept[size] -= 1
        else:
            self.driver += size
        if self.allocated > self.peak:
            self.peak = self.allocated
        if self.driver > self.driver_peak:
            self.driver_peak = self.driver

    def _released(self, block: _Block) -> None:
        blocks, key, nbytes = self.blocks, block.key, block.nbytes
        if blocks.get(key) is not block:
            return
        del blocks[key]
        self.allocated -= nbytes
        if self._ratchet:
            self._kept[_rounded(nbytes)] += 1
        else:
            self.driver += (-nbytes // _GRANULE) * _GRANULE


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
