"""`acestep devices`: what this machine has, what `auto` picks, and what follows from it."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
from typing import Any

from acestep.console.terminal import EXIT_OK, result
from acestep.device import DevicePolicy, budget, describe_devices, engines, resolve
from acestep.errors import RequestError
from acestep.gpu_config import get_gpu_config

# Columns of a table that no terminal shows.
_PIPED = 400


def add_parser(subparsers: Any) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "devices",
        help="what this machine has, and what auto picks",
        description="List the devices of this machine, what auto picks and why.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plan",
        nargs="?",
        type=_gigabytes,
        const=0.0,
        metavar="GB",
        help="what fits under MLX, on this machine or on a Mac with so much memory: --plan 8",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, or JSON."""
    if arguments.plan is not None:
        return _plan(arguments.plan, arguments.json)
    report = describe()
    if arguments.json:
        result(json.dumps(report, indent=2))
    else:
        _print_table(report)
    return EXIT_OK


def planned(memory: float) -> dict[str, Any]:
    """What fits under MLX, as plain data; GiB, and seconds.

    Args:
        memory: of a Mac, GiB; 0 for this machine.
    """
    if memory:
        working = budget.working_set(memory)
    else:
        here = resolve("auto")
        working = here.total_memory
        if not here.is_accelerator:
            working = budget.working_set(working)
    rows = [dataclasses.asdict(made) for made in budget.fits(working)]
    best = budget.best(working)
    return {
        "memory_gib": memory or None,
        "working_set_gib": working,
        "rows": rows,
        "best": best and dataclasses.asdict(best),
    }


def _plan(memory: float, as_json: bool) -> int:
    report = planned(memory)
    if as_json:
        result(json.dumps(report, indent=2))
        return EXIT_OK
    of = f"a Mac of {memory:g} GB" if memory else "this machine"
    result(f"{of}: a working set of {report['working_set_gib']:.1f} GiB, computed from shapes")
    for row in report["rows"]:
        if row["longest"]:
            held = f"{row['bits']} bits" if row["bits"] else "bfloat16"
            models = f"{row['music']:<8}  {row['language']:<19}  {held:<8}"
            weights = f"weights {row['weights']:4.1f} GiB"
            taken = f"{row['peak']:4.1f} to {row['most']:4.1f}"
            result(f"{models}  {weights}, with a song of {row['longest']} s {taken}")
    if not report["best"]:
        least = min(report["rows"], key=lambda row: row["peak"])
        result(f"nothing fits: the least that there is needs {least['peak']:.1f} GiB")
    if best := report["best"]:
        bits = f" --quantize {best['bits']}" if best["bits"] else ""
        # On a Mac `auto` takes MLX by itself.
        by_itself = memory or resolve("auto", engine="auto").on_mlx
        engine = "" if by_itself else " --engine mlx"
        result(
            f'best: acestep generate "…" --think --model {best["music"]} --lm-model '
            f"{best['language']}{bits}{engine}"
        )
    return EXIT_OK


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"'{text}' is no memory in GB; give one such as 8 or 16")
    return value


def describe() -> dict[str, Any]:
    """The whole report as plain data; memory in GiB, tier limits in seconds and songs.

    Raises:
        RequestError: a variable of the environment names what there is not.
    """
    devices = []
    engines.named()
    for info in describe_devices():
        entry: dict[str, Any] = {
            "name": info.name,
            "available": info.available,
            "detail": info.detail,
        }
        if info.available:
            policy = _policy(info.name)
            limits = get_gpu_config(policy=policy)
            entry |= {
                "device": policy.name,
                "total_memory_gib": round(policy.total_memory, 1),
                "free_memory_gib": round(policy.free_memory, 1),
                "tier": limits.tier,
                "max_duration_s": limits.max_duration(),
                "max_batch_size": limits.max_batch_size(),
                "dtypes": {
                    name: {"dtype": choice.name, "reason": choice.reason, "source": choice.source}
                    for name, choice in policy.dtypes.items()
                },
                "stored_in_bfloat16": _stored_so(policy),
                "engine": policy.engine_name,
                "engine_reason": policy.engine_reason,
                "mlx": policy.mlx_detail,
                "lm_backend": policy.lm_backend,
                "lm_backend_reason": policy.lm_backend_reason,
            }
        devices.append(entry)
    picked = resolve("auto")
    return {"auto": picked.name, "reason": picked.reason, "devices": devices}


def _policy(device: str) -> DevicePolicy:
    """The policy of a device; where the engine that ACESTEP_ENGINE names cannot be had, torch's."""
    try:
        return resolve(device, engine="auto")
    except RequestError as error:
        return dataclasses.replace(resolve(device), engine_reason=str(error))


def _stored_so(policy: DevicePolicy) -> dict[str, str]:
    """In which dtype checkpoints run that are stored in bfloat16, as published ones are."""
    choice = policy.for_weights("BF16").dtypes["dit"]
    return {"dtype": choice.name, "reason": choice.reason, "source": choice.source}


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    halves: list[str] = []
    for heading in ("device", "memory", "tier", "up to", "dtype", "engine", "LM", "notes"):
        table.add_column(heading, overflow="fold")
    for entry in report["devices"]:
        if not entry["available"]:
            table.add_row(entry["name"], *"------", f"absent: {entry['detail']}")
            continue
        dtypes = {name: choice["dtype"] for name, choice in entry["dtypes"].items()}
        vae = "" if dtypes["vae"] == dtypes["dit"] else f", VAE {dtypes['vae']}"
        stored = entry["stored_in_bfloat16"]
        if stored["dtype"] != dtypes["dit"]:
            halves.append(f"{entry['device']} in {stored['dtype']}: {stored['reason']}")
        table.add_row(
            entry["device"],
            f"{entry['free_memory_gib']} of {entry['total_memory_gib']} GiB free",
            entry["tier"],
            f"{entry['max_duration_s']:g} s, batch {entry['max_batch_size']}",
            dtypes["dit"] + vae,
            entry["engine"],
            entry["lm_backend"],
            entry["detail"],
        )
    if sys.stdout.isatty():
        Console().print(table)
    else:
        # Whoever reads the table from a pipe wants a device a line.
        plain = Console(file=io.StringIO(), width=_PIPED)
        with plain.capture() as captured:
            plain.print(table)
        result("\n".join(line.rstrip() for line in captured.get().splitlines()))
    result(f"auto picks {report['auto']} ({report['reason']})")
    for entry in report["devices"]:
        if entry["available"]:
            name = entry["device"]
            result(
                f"{name}: engine {entry['engine']} ({entry['engine_reason']}); mlx: {entry['mlx']}"
            )
    for line in halves:
        result(f"checkpoints stored in bfloat16 run on {line}")
