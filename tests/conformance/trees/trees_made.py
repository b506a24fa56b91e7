"""Small trees in the three layouts that real checkouts have, whole and with each site broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conformance.trees.asking import Asking, Told
from conformance.trees.facts import choices, memory, placement, scoring, selection, song, training

QUESTIONS: dict[str, Callable[[Asking], Told]] = {
    "S1": scoring.scored_where_it_lies,
    "S2": placement.told_for_every_device,
    "S3": choices.command_offers_mps,
    "S3 page": choices.page_offers_mps,
    "S4": selection.planner_picks_the_device,
    "S5": choices.command_backend,
    "S5 page": choices.page_backend,
    "S6": memory.accelerator_counts,
    "S7": training.cast_for_the_device,
    "A2": selection.service_picks_the_device,
    "A1": song.made_from_end_to_end,
}
SCORER = """
import torch
{extra}

class MusicLyricScorer:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def calculate_score(self, energy_matrix, type_mask, path_coords, time_weight=0.01):
        energy = {placed}
        path = torch.as_tensor(path_coords).long().to(energy.device)
        score = float(energy[path[:, 0], path[:, 1]].mean().cpu())
        return {result}
"""
PLACEMENT = """
import torch
{extra}

class {name}:
    def {method}(self, tensor, target_device):
        wanted = torch.device(target_device).type
        return {test}
"""
HANDLER = """
import torch
{imports}

class AceStepHandler({bases}):
    def __init__(self):
        self.device = "cpu"

    def initialize_service(self, project_root, config_path, device="auto", **options):
        if device == "auto":
            device = {best}
        self.device = device
        raise FileNotFoundError(config_path)
"""
BEST = (
    '"cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"'
)
COMMAND = """
import argparse
import sys
{extra}

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--language", default="en", choices=["en", "pt"])
    parser.add_argument("--device", default="auto",
                        choices={devices})
    parser.add_argument("--backend", default={backend}, choices=["vllm", "pt", "mlx"])
    return parser.parse_args()
"""
PAGE = """
import gradio as gr
import sys
{extra}

def {name}(dit_handler, llm_handler, init_params=None, language="en"):
    backend_value = {backend}
    device = gr.Dropdown(
        choices={devices},
        value="auto",
    )
    backend_dropdown = gr.Dropdown(choices=["vllm", "pt", "mlx"], value=backend_value)
    return {{"device": device, "backend": backend_dropdown}}
"""
PLANNER = """
import torch
{extra}

class LLMHandler:
    def __init__(self):
        self.device = "cpu"

    def initialize(self, checkpoint_dir, lm_model_path, backend="vllm", device="auto"):
        if device == "auto":
            device = {best}
        self.device = {used}
        return "no model there", False
"""
MEMORY = """
import torch
{extra}

def {name}():
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory / 2**30
    {otherwise}
"""
COUNTED = """if torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory() / 2**30
    return 0.0"""
TRAINER = """
import contextlib
import torch
{extra}

class {name}(torch.nn.Module):
    def __init__(self, model, device, dtype):
        super().__init__()
        self.model, self.device, self.dtype = model.to(device), torch.device(device), dtype

    def training_step(self, batch):
        with {cast}:
            latents = batch["target_latents"].to(self.device)
            return (self.model(latents) - latents).float().square().mean()
"""
DEVICES = '["auto", "cuda", "mps", "cpu"]'
FIRST_BY_MACHINE = '"mlx" if sys.platform == "darwin" else "vllm"'

#: Of each site, what a repaired tree has in the places that the broken ones change.
WHOLE = {
    "scorer": {
        "placed": "torch.as_tensor(energy_matrix).float().cpu()",
        "result": "{'lyrics_score': score}",
    },
    "placement": {"test": "tensor.device.type == wanted"},
    "handler": {"best": BEST},
    "command": {"devices": DEVICES, "backend": FIRST_BY_MACHINE},
    "page": {"devices": DEVICES, "backend": FIRST_BY_MACHINE},
    "planner": {"best": BEST, "used": "device"},
    "memory": {"otherwise": COUNTED},
    "trainer": {"cast": "torch.autocast(self.device.type, dtype=torch.bfloat16)"},
}
TEMPLATES = {
    "scorer": SCORER,
    "placement": PLACEMENT,
    "handler": HANDLER,
    "command": COMMAND,
    "page": PAGE,
    "planner": PLANNER,
    "memory": MEMORY,
    "trainer": TRAINER,
}
#: Layout to the file of each part; `late` has names that no version is known to have.
LAYOUTS = {
    "first": {
        "scorer": "dit_alignment_score.py",
        "placement": "placing.py",
        "handler": "handler.py",
        "command": "acestep_v15_pipeline.py",
        "page": "gradio_ui/interfaces/generation.py",
        "planner": "llm_inference.py",
        "memory": "gpu_config.py",
        "trainer": "training/trainer.py",
    },
    "split": {
        "scorer": "core/scoring/dit_score.py",
        "placement": "core/generation/handler/init_service_memory_basic.py",
        "handler": "handler.py",
        "command": "acestep_v15_pipeline.py",
        "page": "ui/gradio/interfaces/generation_service_config_rows.py",
        "planner": "llm_inference.py",
        "memory": "gpu_config.py",
        "trainer": "training_v2/fixed_lora_module.py",
    },
    "late": {
        "scorer": "scores/lyrics.py",
        "placement": "service/tensors.py",
        "handler": "service/engine.py",
        "command": "commands/serve.py",
        "page": "web/rows.py",
        "planner": "planning/model.py",
        "memory": "machine/memory.py",
        "trainer": "fit/steps.py",
    },
}
_NAMES = {
    "first": {"page": "create_generation_section", "memory": "get_gpu_memory_gb"},
    "split": {"page": "create_rows", "memory": "get_gpu_memory_gb"},
    "late": {"page": "rows", "memory": "memory_here"},
}


def tree(
    root: Path,
    layout: str,
    *,
    without: tuple[str, ...] = (),
    extra: str = "",
    **changed: dict[str, str],
) -> Path:
    """A tree in one layout, whole but for what is changed of its parts."""
    files = LAYOUTS[layout]
    (root / "acestep").mkdir(parents=True, exist_ok=True)
    (root / "acestep" / "__init__.py").touch()
    for part, template in TEMPLATES.items():
        if part in without:
            continue
        module = files["placement"].removesuffix(".py").replace("/", ".")
        method = "lies_on" if layout == "late" else "_is_on_target_device"
        values = {
            "imports": f"from acestep.{module} import Placing",
            "bases": "Placing",
            "method": method,
            "name": _NAMES[layout].get(part, "Placing" if part == "placement" else "Trainer"),
            "extra": extra if part != "handler" else "",
        } | WHOLE[part]
        file = root / "acestep" / files[part]
        file.parent.mkdir(parents=True, exist_ok=True)
        text = template.format(**(values | changed.get(part, {})))
        file.write_text(text.lstrip("\n"), encoding="utf-8")
    return root
