"""Which functions of the backends' namespaces belong together, shared by the rules.

What raises without CUDA and what does nothing was read off PyTorch 2.13's CPU build by calling
each function of ``torch.cuda``, ``torch.mps`` and ``torch.xpu``.
"""

from __future__ import annotations

from conformance.scan.knowing.vocabulary import NAMESPACES, PROBES

#: Calls that do nothing, rather than raise, where their backend is missing.
HARMLESS: dict[str, frozenset[str]] = {
    "cuda": frozenset(
        {
            "empty_cache",
            "stream",
            "set_stream",
            "device",
            "list_gpu_processes",
            "host_memory_stats",
            "caching_allocator_enable",
            "get_gencode_flags",
        }
    ),
    "xpu": frozenset({"empty_cache"}),
}
#: Debugging tools of CUDA's allocator, of which no other backend has the like.
HISTORY = frozenset(
    {"_record_memory_history", "_snapshot", "_dump_snapshot", "_save_segment_usage"}
)
#: Calls that are right on any device: they look at what they are given.
PASSIVE = frozenset({"device_of", "_get_device_index", "from_ipc_handle"})
#: Memory, properties and counts: functions that only inform.
MEMORY = frozenset(
    {
        "get_device_properties",
        "get_device_capability",
        "get_device_name",
        "mem_get_info",
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
        "memory_cached",
        "max_memory_cached",
        "memory_stats",
        "memory_summary",
        "memory_snapshot",
        "reset_peak_memory_stats",
        "reset_max_memory_allocated",
        "reset_max_memory_cached",
        "reset_accumulated_memory_stats",
        "memory_usage",
        "utilization",
        "temperature",
        "power_draw",
        "clock_rate",
        "device_memory_used",
        "current_allocated_memory",
        "driver_allocated_memory",
        "recommended_max_memory",
        "set_per_process_memory_fraction",
        "device_count",
    }
)
#: Those of them that answer zero or an empty table where their backend is missing.
QUIET_MEMORY = frozenset(
    {
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
        "memory_cached",
        "max_memory_cached",
        "memory_stats",
        "device_count",
    }
)
#: Seeds and random state. Seeding is remembered, not refused, where the backend is missing.
RANDOM = frozenset(
    {
        "manual_seed",
        "manual_seed_all",
        "seed",
        "seed_all",
        "initial_seed",
        "get_rng_state",
        "get_rng_state_all",
        "set_rng_state",
        "set_rng_state_all",
        "default_generators",
    }
)
SEEDING = frozenset({"manual_seed", "manual_seed_all", "seed", "seed_all"})


def backend_of(dotted: str) -> str | None:
    """Backend whose namespace a dotted path lies in (``torch.cuda.Stream`` gives cuda)."""
    parts = dotted.split(".", 2)
    if len(parts) == 3 and parts[0] == "torch" and parts[1] in NAMESPACES:
        return parts[1]
    return None


def is_probe(dotted: str) -> bool:
    """Whether a function only asks if its backend is there."""
    return dotted.rpartition(".")[2] in PROBES


def is_amp(dotted: str) -> bool:
    """Whether a function belongs to the old automatic mixed precision of CUDA."""
    return dotted.startswith("torch.cuda.amp.")
