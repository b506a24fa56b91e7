"""Other trees: one that has S1 to S7 as they were, the same one repaired, and what trees lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CASES = (
    "test_alignment.py::test_score_of_a_diagonal",
    "test_handler.py",
    "test_cli.py",
    "test_llm.py",
    "test_memory.py",
    "test_training.py",
    "test_ui.py",
)
SITE_CASES = (
    "test_alignment.py::test_score_of_a_diagonal",
    "test_handler.py::test_placement_is_told_right",
    "test_cli.py::test_device_choices",
    "test_cli.py::test_backend_default",
    "test_llm.py",
    "test_memory.py",
    "test_training.py",
)
SITES = tuple(f"S{number}" for number in range(1, 8))

SCORER = """
import torch

class MusicLyricScorer:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def calculate_score(self, energy_matrix, type_mask, path_coords, time_weight=0.01,
                        overlap_frames=9.0, instrumental_weight=1.0):
        energy = {placed}
        path = torch.as_tensor(path_coords).long().cpu()
        coverage = float((energy.amax(dim=1) > 0.1).float().mean())
        confidence = float(energy[path[:, 0], path[:, 1]].mean())
        score = round(coverage**2 * confidence, 4)
        return {{"coverage": coverage, "monotonicity": 1.0, "confidence": confidence,
                "lyrics_score": score}}
"""
HANDLER = """
import torch

class AceStepHandler:
    def __init__(self):
        self.device = "cpu"

    def _is_on_target_device(self, tensor, target_device):
        target = torch.device(target_device)
        {test}
"""
CLI = """
import argparse

def main(argv=None):
    parser = argparse.ArgumentParser(prog="acestep")
    parser.add_argument("--device", choices={devices}, default="auto", help="where to run")
    parser.add_argument("--backend", choices=["pt", "vllm"], default={backend})
    arguments = parser.parse_args(argv)
    return 0

if __name__ == "__main__":
    raise SystemExit(main())
"""
LLM = """
import torch

class LLMHandler:
    device = "cpu"
    llm_backend = None

    def initialize(self, checkpoint_dir, lm_model_path, backend="pt", device="auto",
                   offload_to_cpu=False, dtype=None):
        if backend == "vllm":
            return "vllm needs CUDA", False
        {choice}
        self.llm_backend = backend
        return "ready", True
"""
MEMORY = """
import torch

TIERS = [(4, "tier1", 180, 180, 1, 1), (6, "tier2", 360, 360, 1, 1), (8, "tier3", 240, 360, 1, 2),
         (12, "tier4", 240, 360, 2, 4), (16, "tier5", 240, 360, 2, 4), (24, "tier6", 480, 480, 4, 8),
         (float("inf"), "unlimited", 600, 600, 8, 8)]

class GPUConfig:
    def __init__(self, row):
        (_, self.tier, self.max_duration_with_lm, self.max_duration_without_lm,
         self.max_batch_size_with_lm, self.max_batch_size_without_lm) = row

def get_gpu_memory_gb():
    import os
    if os.environ.get("MAX_CUDA_VRAM"):
        return float(os.environ["MAX_CUDA_VRAM"])
    {probe}

def get_gpu_tier(gb):
    return next(row for row in TIERS if gb <= row[0])[1]

def get_gpu_config(gb=None):
    gb = get_gpu_memory_gb() if gb is None else gb
    return GPUConfig(next(row for row in TIERS if gb <= row[0]))

def check_duration_limit(seconds, config, lm=False):
    limit = config.max_duration_with_lm if lm else config.max_duration_without_lm
    return seconds <= limit, f"limit {{limit}}"

def check_batch_size_limit(batch, config, lm=False):
    limit = config.max_batch_size_with_lm if lm else config.max_batch_size_without_lm
    return batch <= limit, f"limit {{limit}}"
"""
TRAINER = """
import torch

class Trainer:
    def __init__(self, model, device):
        self.model, self.device = model.to(device), device

    def training_step(self, batch):
        latents = batch["latents"].to(self.device)
        with torch.autocast({kind}, dtype=torch.bfloat16):
            velocity = self.model(latents)
        return (velocity.float() - latents).square().mean()
"""

BROKEN = {
    "dit_alignment_score.py": SCORER.format(
        placed='torch.as_tensor(energy_matrix).to("cuda").double().cpu()'
    ),
    "handler.py": HANDLER.format(
        test='return tensor.device.type == ("cpu" if target.type == "cpu" else "cuda")'
    ),
    "acestep_v15_pipeline.py": CLI.format(devices=["auto", "cuda", "cpu"], backend='"vllm"'),
    "llm_inference.py": LLM.format(
        choice='self.device = device if device != "auto" else '
        '("cuda" if torch.cuda.is_available() else "cpu")'
    ),
    "gpu_config.py": MEMORY.format(
        probe="return (torch.cuda.get_device_properties(0).total_memory / 2**30"
        " if torch.cuda.is_available() else 0.0)"
    ),
    "training/trainer.py": TRAINER.format(kind='"cuda"'),
}
REPAIRED = {
    "dit_alignment_score.py": SCORER.format(placed="torch.as_tensor(energy_matrix).float().cpu()"),
    "handler.py": HANDLER.format(
        test="return tensor is not None and (tensor.device.type, tensor.device.index or 0) == "
        "(target.type, target.index or 0)"
    ),
    "acestep_v15_pipeline.py": CLI.format(devices=["auto", "cuda", "mps", "cpu"], backend='"pt"'),
    "llm_inference.py": LLM.format(
        choice="here = torch.accelerator.current_accelerator(check_available=True)\n"
        '        best = here.type if here is not None else "cpu"\n'
        '        if device not in ("auto", "cpu", best):\n'
        '            return f"{device} is not here", False\n'
        '        self.device = best if device == "auto" else device'
    ),
    "gpu_config.py": MEMORY.format(
        probe="here = torch.accelerator.current_accelerator(check_available=True)\n"
        "    return torch.accelerator.get_memory_info()[1] / 2**30 if here is not None else 0.0"
    ),
    "training/trainer.py": TRAINER.format(kind="torch.device(self.device).type"),
}


def written(root: Path, files: dict[str, str]) -> Path:
    """A tree of these files."""
    for name, text in files.items():
        file = root / "acestep" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("device", ["cpu", "mps-sim"])
def test_a_tree_with_all_seven_sites_fails_in_all_seven(
    run_suite: Any, tmp_path: Path, device: str
) -> None:
    found = run_suite(*SITE_CASES, tree=written(tmp_path, BROKEN), device=device)
    assert found.status == 1, found.log
    assert {site: found.cell(site) for site in SITES} == dict.fromkeys(SITES, "fail"), found.log


@pytest.mark.parametrize("device", ["cpu", "mps-sim"])
def test_the_repaired_tree_fails_in_none(run_suite: Any, tmp_path: Path, device: str) -> None:
    cases = CASES if device == "cpu" else SITE_CASES
    found = run_suite(*cases, tree=written(tmp_path, REPAIRED), device=device)
    assert {site: found.cell(site) for site in SITES} == dict.fromkeys(SITES, "pass"), found.log
    assert found.status == 0, found.log
    if device == "cpu":
        assert found.cell("handler:AceStepHandler.load") == "absent"


@pytest.mark.parametrize("site", range(7), ids=SITES)
def test_each_site_alone(run_suite: Any, tmp_path: Path, site: int) -> None:
    """The report points at the site that is broken, and at that one only."""
    files = list(BROKEN)
    # S3 and S5 stand in one file.
    name = [files[0], files[1], files[2], files[3], files[2], files[4], files[5]][site]
    broken = BROKEN[name]
    if site == 2:
        broken = broken.replace('default="vllm"', 'default="pt"')
    if site == 4:
        broken = broken.replace('"cuda", "cpu"]', '"cuda", "mps", "cpu"]').replace(
            "'cuda', 'cpu'", "'cuda', 'mps', 'cpu'"
        )
    found = run_suite(*SITE_CASES, tree=written(tmp_path, REPAIRED | {name: broken}))
    failing = [s for s in SITES if found.cell(s) == "fail"]
    assert failing == [SITES[site]], found.log


def test_what_a_tree_lacks_is_absent(run_suite: Any, tmp_path: Path) -> None:
    files = {"gpu_config.py": REPAIRED["gpu_config.py"]}
    found = run_suite(*SITE_CASES, tree=written(tmp_path, files))
    assert found.status == 0, found.log
    assert found.cell("S6") == "pass"
    assert {found.cell(site) for site in SITES if site != "S6"} == {"absent"}
    assert "the tree has no acestep.handler" in found.log or any(
        "the tree has no acestep.handler" in case["message"] for case in found.cases
    )


def test_an_import_that_fails_names_the_missing_module(run_suite: Any, tmp_path: Path) -> None:
    files = REPAIRED | {"gpu_config.py": "import no_such_library\n" + REPAIRED["gpu_config.py"]}
    found = run_suite("test_memory.py", tree=written(tmp_path, files))
    assert found.status == 1
    assert found.cell("gpu_config:get_gpu_tier") == "fail"
    assert all("no module named 'no_such_library'" in case["message"] for case in found.failed)


def test_nothing_of_this_repository_leaks_in(run_suite: Any, tmp_path: Path) -> None:
    """A module that only this repository has stays out of reach, package file or not."""
    files = REPAIRED | {"gpu_config.py": "from acestep.device import resolve\n"}
    for init in ({}, {"__init__.py": ""}):
        found = run_suite("test_memory.py", tree=written(tmp_path, files | init))
        assert found.status == 1
        assert all("no module named 'acestep.device'" in c["message"] for c in found.failed)
