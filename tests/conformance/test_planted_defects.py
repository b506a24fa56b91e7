"""Planted defects: each small edit of a copy of `acestep` is caught, and the edited line named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HANDLER, CLI, DEVICE = "test_handler.py", "test_cli.py", "test_device.py"
ALIGNMENT, MEMORY, PAGE = "test_alignment.py", "test_memory.py", "test_ui.py"
PLACED = f"{HANDLER}::test_everything_is_placed"
ANSWERS = f"{DEVICE}::test_policy_answers"


@dataclass(frozen=True)
class Defect:
    """One edit.

    Attributes:
        name: what is wrong.
        file: the file below `acestep`.
        old: text to replace, once; indentation and the rest of the line are kept.
        new: what replaces it; its first line is the one that must be named.
        cases: which part of the suite to run.
        rows: rows of the report that must fail.
        device: the target to run on.
    """

    name: str
    file: str
    old: str
    new: str
    cases: str
    rows: tuple[str, ...] = ()
    device: str = "cpu"


DEFECTS = (
    Defect(
        "S1: the score is forced onto CUDA",
        "alignment/scorer.py",
        "        energy = to_host(energy_matrix)\n",
        "        import torch; energy = to_host(torch.as_tensor(energy_matrix).cuda())\n",
        f"{ALIGNMENT}::test_score_of_a_diagonal",
        ("S1",),
    ),
    Defect(
        "S1's trap: moved to the device, but in float64",
        "alignment/attention.py",
        "    return values.cpu().numpy()\n",
        "    return values.double().cpu().numpy()\n",
        f"{ALIGNMENT}::test_score_of_a_diagonal",
        ("S1",),
        device="mps-sim",
    ),
    Defect(
        "S2: any device but the CPU is CUDA",
        "handler.py",
        "        return tensor is not None and canonical(tensor.device) == wanted\n",
        '        return tensor.device.type == ("cpu" if wanted[0] == "cpu" else "cuda")\n',
        f"{HANDLER}::test_placement_is_told_right",
        ("S2",),
    ),
    Defect(
        "S2: the index is forgotten",
        "handler.py",
        "        return tensor is not None and canonical(tensor.device) == wanted\n",
        "        return canonical(tensor.device)[0] == wanted[0]\n",
        f"{HANDLER}::test_placement_is_told_right",
        ("S2",),
    ),
    Defect(
        "S3: mps is lost from the command line's choices",
        "device/presence.py",
        'DEVICE_CHOICES = ("auto", "cuda", "mps", "cpu")',
        'DEVICE_CHOICES = ("auto", "cuda", "cpu")',
        f"{CLI}::test_device_choices",
        ("S3",),
    ),
    Defect(
        "S4: the LM knows only CUDA or the CPU",
        "llm_inference.py",
        "                resolve(device, dtype=name, quantization=quantization, engine=engine),\n",
        '                resolve("cuda" if torch.cuda.is_available() else "cpu", dtype=name),\n',
        "test_llm.py::test_auto_picks_this_device",
        ("S4",),
    ),
    Defect(
        "S4: auto never means MPS",
        "llm_inference.py",
        "                resolve(device, dtype=name, quantization=quantization, engine=engine),\n",
        '                resolve("cpu" if device == "auto" else device, dtype=name),\n',
        "test_llm.py::test_auto_picks_this_device",
        ("S4",),
        device="mps-sim",
    ),
    Defect(
        "S5: the backend defaults to vllm everywhere",
        "device/choosing.py",
        '        return "pt", "vLLM runs on CUDA only"\n',
        '        return "vllm", "the fastest"\n',
        f"{CLI}::test_backend_default",
        ("S5",),
    ),
    Defect(
        "S5: the parser's own default is vllm",
        "acestep_v15_pipeline.py",
        '        "--backend",\n',
        '        "--backend", default="vllm",\n',
        f"{CLI}::test_backend_default",
        ("S5",),
    ),
    Defect(
        "S3: mps is lost from the page's choices",
        "gradio_ui/interfaces/service.py",
        "            for name in DEVICE_CHOICES\n",
        '            for name in ("auto", "cuda", "cpu")\n',
        f"{PAGE}::test_device_dropdown",
        ("S3",),
    ),
    Defect(
        "S5: the page starts with vllm everywhere",
        "gradio_ui/settings.py",
        "        return resolve(device, engine=engine).lm_backend\n",
        '        return "vllm"\n',
        f"{PAGE}::test_backend_dropdown",
        ("S5",),
    ),
    Defect(
        "S6: only CUDA's memory is probed",
        "gpu_config.py",
        '    policy = policy or resolve("auto")\n',
        "    import torch; return torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else 0.0\n",
        f"{MEMORY}::test_memory_of_this_device",
        ("S6",),
    ),
    Defect(
        "S6: an MPS machine has no memory",
        "gpu_config.py",
        "    return policy.total_memory if policy.is_accelerator else 0.0\n",
        '    return policy.total_memory if policy.device.type == "cuda" else 0.0\n',
        f"{MEMORY}::test_memory_of_this_device",
        ("S6",),
        device="mps-sim",
    ),
    Defect(
        "a hard-coded autocast, as in S7",
        "device/policy.py",
        "        return torch.autocast(device_type=self.device.type, dtype=dtype)",
        '        return torch.autocast(device_type="cuda", dtype=dtype)',
        f"{DEVICE}::test_autocast_is_of_the_device",
    ),
    Defect(
        "S7: training's autocast names CUDA",
        "training/trainer.py",
        "        with self.policy.autocast():\n",
        '        with torch.autocast("cuda", dtype=torch.bfloat16):\n',
        "test_training.py::test_a_step_on_the_device",
        ("S7",),
    ),
    Defect(
        "an unguarded MPS call",
        "device/policy.py",
        '        """Give memory that the allocator holds but does not use back to the system."""\n',
        "        import torch; torch.mps.empty_cache()\n",
        ANSWERS,
    ),
    Defect(
        "a generator on the wrong device",
        "device/policy.py",
        '        return torch.Generator("cpu").manual_seed(seed)',
        '        return torch.Generator("cuda").manual_seed(seed)',
        ANSWERS,
    ),
    Defect(
        "a generator on the device instead of the host",
        "device/policy.py",
        '        return torch.Generator("cpu").manual_seed(seed)',
        "        return torch.Generator(self.device).manual_seed(seed)",
        ANSWERS,
        device="mps-sim",
    ),
    Defect(
        "a module is left behind on the CPU",
        "handler.py",
        "            self.unload()\n            self.engine, ",
        '            engine.pipeline.vae.to("cpu")\n            self.unload()\n            self.engine, ',
        PLACED,
        ("A1",),
        device="mps-sim",
    ),
    Defect(
        "a silent fall-back from an absent device",
        "device/choosing.py",
        "    if not available:\n        raise DeviceError(\n            f\"device '{requested}' is not available here: {detail}",
        '    if not available: return torch.device("cpu")\n    if not available:\n        raise DeviceError(\n            f"device \'{requested}\' is not available here: {detail}',
        f"{DEVICE}::test_nothing_is_silently_replaced",
        ("A2",),
    ),
    Defect(
        "a CUDA import at module level",
        "handler.py",
        "import threading\n",
        "from torch.cuda import empty_cache; import threading\n",
        f"{HANDLER}::test_an_absent_device_is_refused",
    ),
    Defect(
        "a CUDA call in a thread",
        "handler.py",
        '        """One line: what is loaded where."""\n',
        "        threading.Thread(target=torch.cuda.empty_cache).start()\n",
        PLACED,
    ),
    Defect(
        "a CUDA call only on an error path",
        "handler.py",
        "            return str(error), False\n",
        "            torch.cuda.empty_cache(); return str(error), False\n",
        f"{HANDLER}::test_a_failed_load_changes_nothing",
    ),
    Defect(
        "a CUDA call whose error is swallowed",
        "device/policy.py",
        '        """Wait until the device has finished all work submitted so far."""\n',
        "        import contextlib, torch\n        with contextlib.suppress(Exception): "
        "torch.cuda.synchronize()\n",
        ANSWERS,
    ),
    Defect(
        "a CUDA query by another name",
        "device/policy.py",
        '        """Give memory that the allocator holds but does not use back to the system."""\n',
        '        torch = __import__("torch"); getattr(torch, "cuda").is_initialized()\n',
        ANSWERS,
    ),
    Defect(
        "CUDA's random state",
        "device/policy.py",
        '        return torch.Generator("cpu").manual_seed(seed)',
        '        torch.cuda.manual_seed_all(seed); return torch.Generator("cpu").manual_seed(seed)',
        ANSWERS,
    ),
    Defect(
        "a branch on is_cuda",
        "alignment/attention.py",
        "    return values.cpu().numpy()\n",
        "    return (values if values.is_cuda else values.cpu()).numpy()\n",
        f"{ALIGNMENT}::test_score_of_a_diagonal",
        ("S1",),
    ),
    Defect(
        "a device object for CUDA",
        "device/policy.py",
        '        return torch.Generator("cpu").manual_seed(seed)',
        '        torch.device("cuda", 0); return torch.Generator("cpu").manual_seed(seed)',
        ANSWERS,
    ),
    Defect(
        "a tensor made on CUDA",
        "diffusion/denoise.py",
        "    peak = latents.abs().amax(dim=(1, 2)).float().cpu()\n",
        '    peak = torch.zeros(1, device="cuda")\n',
        f"{DEVICE}::test_what_a_device_can_do_wrong",
    ),
    Defect(
        "the convolution limit is lost",
        "device/choosing.py",
        '        max_conv_output=MPS_MAX_CONV_OUTPUT if device.type == "mps" and not on_mlx else None,\n',
        "        max_conv_output=None,\n",
        f"{DEVICE}::test_policy_of_this_device",
        device="mps-sim",
    ),
    Defect(
        "float16 by default",
        "device/dtypes.py",
        '        torch.bfloat16,\n        "native',
        '        torch.float16,\n        "native',
        f"{DEVICE}::test_policy_of_this_device",
        device="mps-sim",
    ),
)


def plant(root: Path, defect: Defect) -> int:
    """Make the edit; returns the number of the edited line."""
    path = root / "acestep" / defect.file
    text = path.read_text(encoding="utf-8")
    assert text.count(defect.old) == 1, f"{defect.file} has changed: {defect.old!r}"
    path.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    return text[: text.index(defect.old)].count("\n") + 1


def names(cases: list[dict[str, Any]], defect: Defect, line: int) -> bool:
    """Whether a failing case names one of the lines that the edit put there."""
    lines = range(line, line + defect.new.rstrip("\n").count("\n") + 1)
    told = " ".join(str(c[k]) for c in cases for k in ("place", "message", "touches"))
    return any(f"acestep/{defect.file}:{number}" in told for number in lines)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_planted_defect_is_caught(run_suite: Any, copy: Path, defect: Defect) -> None:
    line = plant(copy, defect)
    found = run_suite(defect.cases, tree=copy, device=defect.device)
    assert found.status == 1, found.log
    assert found.failed, found.log
    for row in defect.rows:
        assert found.cell(row) == "fail"
    assert names(found.failed, defect, line), found.log


def test_without_a_defect_nothing_fails(run_suite: Any, copy: Path) -> None:
    """The same parts of the suite, on the copy as it was but for what it is lenient in."""
    heads = copy / "acestep" / "alignment" / "attention.py"
    text = heads.read_text(encoding="utf-8")
    assert text.count("int(layer)") == 3, "alignment/attention.py has changed"
    # Other trees take layers as numbers alone, and JSON has them as texts.
    heads.write_text(text.replace("int(layer)", "layer.__index__()"), encoding="utf-8")
    for device in ("cpu", "mps-sim"):
        cases = dict.fromkeys(d.cases for d in DEFECTS if d.device == device)
        cases |= {f"{ALIGNMENT}::test_reference_score": None} if device == "cpu" else {}
        found = run_suite(*cases, tree=copy, device=device)
        assert found.status == 0, found.log
        assert not found.failed
