"""Makes torch's public surface say what it says on a Mac: backends, accelerator, storage, CUDA."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections import OrderedDict
from typing import Any

import torch

from conformance.simulate import limits, tracing
from conformance.simulate.autocast import Autocast
from conformance.simulate.core import Core
from conformance.simulate.device import ABSENT, BACKEND, DEVICE, HOST, REPORTED_NAME
from conformance.simulate.functions import (
    call,
    from_dlpack,
    is_backend_name,
    make_tensor,
    to_dlpack,
)
from conformance.simulate.internals import storage_device
from conformance.simulate.patching import Patches
from conformance.simulate.randomness import Generator
from conformance.simulate.streams import DeviceStream, Event, Stream

_CACHED_MODULES = (
    "torch.backends.mps",
    "transformers.utils.import_utils",
    "transformers.utils.generic",
    "accelerate.utils.imports",
    "accelerate.utils.environment",
    "diffusers.utils.import_utils",
    "diffusers.utils.torch_utils",
)


def forget_answers() -> None:
    """Clears what torch and the libraries above it remember about the devices present."""
    for name in _CACHED_MODULES:
        for value in list(vars(sys.modules[name]).values()) if name in sys.modules else ():
            # Lazy modules hold names whose lookup imports; only what is loaded is touched.
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()


def install(patches: Patches, core: Core) -> None:
    """Replaces the attributes; `patches.undo` puts them back."""
    _backend(patches, core)
    _memory(patches, core)
    _accelerator(patches, core)
    _tensors(patches, core)
    _storages(patches, core)
    _cuda(patches)
    Autocast(core).install(patches)
    _metadata(patches, core)
    tracing.install(patches, core, is_backend_name)
    nested_module: Any = vars(torch._C)["_nested"]
    plain_tensor, plain_nested = torch.tensor, nested_module.nested_tensor

    def nested(*args: Any, **kwargs: Any) -> torch.Tensor:
        if is_backend_name(kwargs.get("device")):
            raise limits.NESTED.error(device=DEVICE)
        made: torch.Tensor = plain_nested(*args, **kwargs)
        return made

    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        # Inside torch's own Python functions no function mode is active.
        if is_backend_name(kwargs.get("device")) and not torch._C._len_torch_function_stack():
            made: torch.Tensor = make_tensor(core, plain_tensor, args, kwargs)
            return made
        return plain_tensor(*args, **kwargs)

    def ranged(*args: Any, **kwargs: Any) -> torch.Tensor:
        # The one constructor of torch's that asks no mode.
        made: torch.Tensor = call(core, plain_range, args, kwargs)
        return made

    plain_range = torch.range
    patches.set(torch, "range", ranged)
    patches.set(torch, "tensor", tensor)
    tracing.compile_as(patches, ranged, "aten::range")
    tracing.compile_as(patches, tensor, "aten::tensor")
    patches.set(nested_module, "nested_tensor", nested)
    capsules: dict[int, tuple[Any, torch.Tensor]] = {}
    for owner in (torch, torch.utils.dlpack):
        plain = vars(owner)["to_dlpack"]
        patches.set(owner, "to_dlpack", functools.partial(to_dlpack, core, capsules, plain))
        plain = vars(owner)["from_dlpack"]
        patches.set(owner, "from_dlpack", functools.partial(from_dlpack, core, capsules, plain))
    patches.set(torch, "Generator", Generator)
    patches.set(torch, "Event", Event)
    patches.set(torch, "Stream", Stream)


def _backend(patches: Patches, core: Core) -> None:
    machine, c = core.machine, torch._C
    owner = os.getpid()
    patches.set(c, "_has_mps", True)
    patches.set(c, "_mps_is_available", lambda: True)
    patches.set(c, "_mps_is_in_bad_fork", lambda: os.getpid() != owner)
    patches.set(c, "_mps_is_on_macos_or_newer", machine.at_least)
    patches.set(c, "_mps_get_name", lambda: f"Apple GPU ({REPORTED_NAME})")
    patches.set(c, "_mps_get_core_count", lambda: 10)
    patches.set(c, "_mps_get_default_generator", lambda: core.random.default)
    patches.set(torch.mps, "_default_mps_generator", None)
    patches.set(c, "_mps_deviceSynchronize", lambda: None)
    patches.set(c, "_mps_compileShader", _no_metal)
    patches.set(c, "_mps_loadMetalllib", _no_metal)
    patches.set(c, "_mps_loadMetallibFromPath", _no_metal)
    for name in ("_mps_profilerStartTrace", "_mps_profilerStopTrace"):
        patches.set(c, name, functools.partial(_profile, core))
    patches.set(c, "_mps_isCaptureEnabled", lambda: False)
    patches.set(c, "_mps_isCapturing", lambda: False)
    patches.set(c, "_mps_startCapture", functools.partial(_profile, core))
    patches.set(c, "_mps_stopCapture", functools.partial(_profile, core))
    _events(patches)


def _no_metal(*_: object) -> Any:
    raise RuntimeError(
        f"[{REPORTED_NAME}] Metal source cannot be compiled or run here; run this part on a Mac."
    )


def _profile(core: Core, *_: object, **__: object) -> None:
    core.recorder.note(
        f"[{REPORTED_NAME}] The MPS profiler records nothing here: there is no GPU to trace."
    )


def _events(patches: Patches) -> None:
    numbers = itertools.count(1)
    times: dict[int, float] = {}

    def acquire(_: bool) -> int:
        number = next(numbers)
        times[number] = time.perf_counter()
        return number

    def stamp(number: int) -> None:
        times[number] = time.perf_counter()

    c = torch._C
    patches.set(c, "_mps_acquireEvent", acquire)
    patches.set(c, "_mps_releaseEvent", lambda number: times.pop(number, None))
    patches.set(c, "_mps_recordEvent", stamp)
    patches.set(c, "_mps_waitForEvent", lambda _: None)
    patches.set(c, "_mps_synchronizeEvent", lambda _: None)
    patches.set(c, "_mps_queryEvent", lambda _: True)
    patches.set(
        c, "_mps_elapsedTimeOfEvents", lambda first, last: (times[last] - times[first]) * 1e3
    )


def _memory(patches: Patches, core: Core) -> None:
    ledger, c = core.ledger, torch._C

    patches.set(c, "_mps_emptyCache", ledger.empty_cache)
    patches.set(c, "_mps_setMemoryFraction", ledger.set_fraction)
    patches.set(c, "_mps_currentAllocatedMemory", lambda: ledger.allocated)
    patches.set(c, "_mps_driverAllocatedMemory", lambda: ledger.driver)
    patches.set(c, "_mps_recommendedMaxMemory", lambda: core.machine.recommended_bytes)
    patches.set(c, "_mps_maxBufferLength", lambda: core.machine.recommended_bytes // 2)


def _accelerator(patches: Patches, core: Core) -> None:
    ledger, c = core.ledger, torch._C

    def stats(_: int) -> OrderedDict[str, int]:
        values = {
            "allocated_bytes": (ledger.allocated, ledger.peak),
            "reserved_bytes": (ledger.driver, ledger.driver_peak),
        }
        rows = OrderedDict[str, int]()
        for kind, (current, peak) in values.items():
            rows[f"{kind}.all.current"] = current
            rows[f"{kind}.all.peak"] = peak
        return rows

    def info(_: int) -> tuple[int, int]:
        total = core.machine.recommended_bytes
        return max(total - ledger.driver, 0), total

    answers: dict[str, Any] = {
        "_accelerator_getAccelerator": lambda: torch.device(BACKEND),
        "_accelerator_getDeviceIndex": lambda: 0,
        "_accelerator_setDeviceIndex": lambda _: None,
        "_accelerator_exchangeDevice": lambda _: 0,
        "_accelerator_maybeExchangeDevice": lambda _: 0,
        "_accelerator_getStream": lambda _: DeviceStream(),
        "_accelerator_setStream": lambda _: None,
        "_accelerator_synchronizeDevice": lambda _: None,
        "_accelerator_emptyCache": ledger.empty_cache,
        "_accelerator_emptyHostCache": lambda: None,
        "_accelerator_isAllocatorInitialized": lambda: True,
        "_accelerator_getDeviceStats": stats,
        "_accelerator_getMemoryInfo": info,
        "_accelerator_resetAccumulatedStats": lambda _: None,
        "_accelerator_resetPeakStats": lambda _: ledger.reset_peak(),
        "_accelerator_getDeviceCapability": lambda _: {},
        "_get_accelerator": lambda *_: torch.device(BACKEND),
    }
    for name, answer in answers.items():
        if hasattr(c, name):
            patches.set(c, name, answer)


def _tensors(patches: Patches, core: Core) -> None:
    holds = core.ledger.holds
    base = torch._C.TensorBase
    disabled = torch._C.DisableTorchFunction

    def reported(name: str, ours: Any) -> property:
        descriptor = getattr(base, name)

        def get(tensor: torch.Tensor) -> Any:
            if holds(tensor):
                return ours
            with disabled():
                return descriptor.__get__(tensor)

        return property(get)

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        """By device and dtype, as foreach optimisers ask; C++ sees the host's alone."""
        found: dict[Any, Any] = {}
        for (device, dtype), (columns, indices) in plain_grouped(lists, with_indices).items():
            for row, first in enumerate(columns[0]):
                key = DEVICE if first is not None and holds(first) else device, dtype
                kept, numbers = found.setdefault(key, ([[] for _ in columns], []))
                for column, values in zip(kept, columns, strict=True):
                    column.extend(values[row : row + 1])
                if with_indices:
                    numbers.append(indices[row])
        return found

    def named(value: Any) -> Any:
        text = str(value) if isinstance(value, (str, torch.device)) else ""
        return HOST if text.partition(":")[0] == BACKEND else value

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        """A tensor made of tensors; C++ would guard a device that this build has not, and abort."""
        given = [named(value) for value in args]
        options = {name: named(value) for name, value in kwargs.items()}
        made = plain_wrapper(*given, **options)
        if given == list(args) and options == kwargs:
            return made
        core.ledger.mark_wrapper(made)
        return made

    plain_wrapper = patches.set(torch.Tensor, "_make_wrapper_subclass", staticmethod(wrapper))
    plain_grouped = patches.set(torch._C, "_group_tensors_by_device_and_dtype", grouped)
    patches.set(torch.Tensor, "device", reported("device", DEVICE))
    patches.set(torch.Tensor, "is_mps", reported("is_mps", True))
    patches.set(torch.Tensor, "is_cpu", reported("is_cpu", False))


def _storages(patches: Patches, core: Core) -> None:
    ledger = core.ledger
    storage_type: Any = torch.UntypedStorage

    def device(storage: torch.UntypedStorage) -> torch.device:
        return DEVICE if ledger.holds_storage(storage) else storage_device(storage)

    patches.set(storage_type, "device", property(device))

    def copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        made: torch.UntypedStorage = storage_type(storage.nbytes()).copy_(storage, False)
        return made

    def clone(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if not ledger.holds_storage(storage):
            same: torch.UntypedStorage = plain_clone(storage)
            return same
        made = copied(storage)
        ledger.mark_storage(made)
        return made

    def to_device(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        if ledger.holds_storage(storage):
            return storage
        made = copied(storage)
        ledger.mark_storage(made)
        return made

    def make(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if not is_backend_name(device):
            return plain_new(cls, *args, **({} if device is None else {"device": device}), **kwargs)
        made = plain_new(cls, *args, **kwargs)
        ledger.mark_storage(made)
        return made

    plain_new = patches.set(storage_type, "__new__", make)
    plain_clone = patches.set(storage_type, "clone", clone)
    patches.set(storage_type, BACKEND, to_device)
    for name in ("share_memory_", "_share_filename_cpu_", "_share_fd_cpu_"):
        _refuse(patches, core, name, limits.SHARING)
    _refuse(patches, core, "resize_", limits.RESIZING)


def _refuse(patches: Patches, core: Core, name: str, limit: limits.Limit) -> None:
    """Has this method of storages raise for the device's."""

    def refused(storage: torch.UntypedStorage, *args: object, **kwargs: object) -> Any:
        if core.ledger.holds_storage(storage):
            raise limit.error()
        return plain(storage, *args, **kwargs)

    plain = patches.set(torch.UntypedStorage, name, refused)


def _metadata(patches: Patches, core: Core) -> None:
    """What is loaded may carry a sign, which C++ sets without an operator."""

    def set_metadata(tensor: torch.Tensor, metadata: dict[str, bool]) -> None:
        if metadata.get("neg"):
            core.heed_signs()
        plain(tensor, metadata)

    plain = patches.set(torch._utils, "set_tensor_metadata", set_metadata)


def _cuda(patches: Patches) -> None:
    def absent(*_: object, **__: object) -> Any:
        raise AssertionError(ABSENT)

    patches.set(torch.cuda, "is_available", lambda: False)
    patches.set(torch.cuda, "device_count", lambda: 0)
    patches.set(torch.cuda, "_lazy_init", absent)
    patches.set(torch.version, "cuda", None)
